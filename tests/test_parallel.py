"""Evaluation on devices: the same answers as the traceable attack, however it is cut up."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from plainly import FLAGS

from wasserstein_adv import parallel
from wasserstein_adv.attacks import constant, first_order, growing, linf_ball, pgd, sign
from wasserstein_adv.errors import InputError

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(1)
RNG = np.random.default_rng(0)
X = RNG.random((13, 6, 6, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(36, 3)).astype(np.float32)


def logits_fn(images):
    return images.reshape(len(images), -1) @ WEIGHTS


Y = np.argmax(X.reshape(13, -1) @ WEIGHTS, -1).astype(np.int32)
Y[4] = (Y[4] + 1) % 3


def attack(**options):
    radius = growing(0.01, 1.3, 2)
    return first_order(linf_ball(), pgd(sign(0.02)), radius=radius, steps=12, **options)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("restarts", [1, 3])
def test_equals_the_traceable_attack(batch_size, restarts):
    chosen = attack(random_start=restarts > 1, restarts=restarts)
    whole = chosen(KEY, logits_fn, X, Y)
    rounds = []
    parts = parallel.evaluate(
        chosen, KEY, logits_fn, X, Y, batch_size=batch_size, steps_per_round=3,
        on_round=rounds.append,
    )  # fmt: skip
    assert_same(whole, parts)
    assert parts.radius[4] == 0
    assert 0 < parts.success.sum() < 13 or restarts > 1
    assert len(rounds) >= restarts


@pytest.mark.parametrize("restarts", [1, 2])
def test_resumes_from_every_round(restarts):
    chosen = attack(random_start=restarts > 1, restarts=restarts)
    options = {"batch_size": 8, "steps_per_round": 4}
    kept = []

    def keep(progress):
        kept.append(jax.tree.map(np.array, progress))

    whole = parallel.evaluate(chosen, KEY, logits_fn, X, Y, on_round=keep, **options)
    like = parallel.progress_like(chosen, logits_fn, X, Y)
    for progress in kept:
        assert jax.tree.structure(progress) == jax.tree.structure(like)
        for leaf, shape in zip(jax.tree.leaves(progress), jax.tree.leaves(like), strict=True):
            assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        again = parallel.evaluate(chosen, KEY, logits_fn, X, Y, resume=progress, **options)
        assert_same(whole, again)


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_batches_cover_everything_in_few_shapes(shards):
    sizes = set()
    for n in range(1, 200):
        batches = list(parallel._batches(np.arange(n), 32, shards))
        assert set(np.concatenate(batches)) == set(range(n))
        assert all(len(batch) % shards == 0 for batch in batches)
        sizes |= {len(batch) for batch in batches}
    assert len(sizes) <= 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"steps_per_round": 0}, "steps_per_round"),
        ({"y": Y[:3]}, "y must be 13"),
        ({"x": X[0]}, "x must have shape"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    arguments = {"x": X, "y": Y, **options}
    with pytest.raises(InputError, match=message):
        parallel.evaluate(
            attack(), KEY, logits_fn, arguments.pop("x"), arguments.pop("y"), **arguments
        )


EIGHT = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
import sys
sys.path.insert(0, "tests")
from test_parallel import KEY, X, Y, logits_fn, attack, parallel
from wasserstein_adv.attacks.wong import WongProtocol, wong
assert len(jax.local_devices()) == 8
ball = wong((6, 6), WongProtocol(steps=4, window=3))
# Steps of projected Sinkhorn agree to the tolerance that they stop at.
for chosen, atol in ((attack(), 1e-5), (ball, 2e-3)):
    one = parallel.evaluate(chosen, KEY, logits_fn, X, Y, devices=jax.local_devices()[:1])
    run = parallel.evaluator(chosen, logits_fn, batch_size=16)
    for _ in range(10):
        eight = run(KEY, X, Y)
        np.testing.assert_array_equal(one.radius, eight.radius)
        np.testing.assert_array_equal(one.steps, eight.steps)
        np.testing.assert_allclose(one.image, eight.image, atol=atol)
print("same")
"""


def test_eight_devices_give_the_answers_of_one_ten_times():
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], capture_output=True, text=True, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu",
             "XLA_FLAGS": FLAGS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "same"


def test_constant_radius_never_exceeds_it():
    chosen = first_order(linf_ball(), pgd(sign(1.0)), radius=constant(0.05), steps=3)
    found = parallel.evaluate(chosen, KEY, logits_fn, X, Y)
    assert np.abs(found.image - X).max() <= 0.05 + 1e-6


def test_a_batch_size_for_the_devices(monkeypatch):
    devices = jax.local_devices()[:1]

    def fitting(free):
        monkeypatch.setattr(parallel, "_free_bytes", lambda device: free)
        return parallel.fitting_batch_size(attack(), logits_fn, (6, 6, 1), devices)

    assert fitting(None) == 64
    sizes = {free: fitting(free) for free in (2**16, 2**18, 2**22)}
    assert sizes[2**16] < sizes[2**18] < sizes[2**22]
    for free, size in sizes.items():
        needed = parallel._step_bytes(attack(), logits_fn, (6, 6, 1), size)
        # XLA's plan is not quite linear in the batch; half of the memory is the margin.
        assert 0.1 * free < needed < free
    assert fitting(2**60) == 8192
    with pytest.raises(InputError, match="one image of"):
        fitting(100)


def test_a_device_that_tells_its_memory_is_asked():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    assert parallel._free_bytes(Device()) == 700
    assert parallel._free_bytes(jax.devices("cpu")[0]) is None


def test_an_evaluator_compiles_once_and_evaluate_sees_a_model_that_changed():
    traced, scale = [], [1.0]

    def model(images):
        traced.append(images.shape)
        return scale[0] * logits_fn(images)

    run = parallel.evaluator(attack(), model, batch_size=13)
    first = run(KEY, X, Y)
    count = len(traced)
    assert_same(first, run(KEY, X, Y))
    assert len(traced) == count
    scale[0] = np.nan
    assert_same(first, run(KEY, X, Y))
    assert not parallel.evaluate(attack(), KEY, model, X, Y).success.any()
