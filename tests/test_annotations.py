"""The numerical core with every annotation checked at run time, shapes and dtypes included."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
TESTS = Path(__file__).parent

# In a process of its own: the checks must be switched on before anything imports the library.
SCRIPT = """
from jaxtyping import TypeCheckError, install_import_hook
parts = [f"wasserstein_adv.{part}" for part in ("geometry", "projections", "attacks")]
install_import_hook(parts, "runtime_types.check")
import jax, jax.numpy as jnp
import wasserstein_adv as wa

trace = jax.eval_shape  # where the annotations are checked
x = jax.random.uniform(jax.random.key(0), (6, 5))
pair = jnp.stack([x, x])[..., None]
for geometry in (
    wa.local_grid((6, 5), wa.euclidean_power(1), 3),
    wa.separable_grid((6, 5)),
    wa.dense_grid((6, 5), wa.minkowski(2)),
):
    project = lambda image: wa.projected_sinkhorn(geometry, image, image + 0.1, 0.5)
    assert trace(project, x).converged.shape == ()
    assert trace(jax.vmap(project), pair).converged.shape == (2,)
window = wa.local_grid((6, 5), wa.euclidean_power(1), 3)
plan = wa.projections.diagonal_plan(window, x)
trace(lambda w: wa.projected_sinkhorn(window, x, w, 0.5, cap=1.0), x)
trace(lambda q: wa.dual_projection(window, x, q, 0.5, cap=1.0), plan)
trace(lambda w: wa.flow_projection(x, w, 0.5, tolerance=0.1), x)
trace(lambda g: wa.linear_oracle(window, x, g, 0.5), x)
trace(lambda g: wa.linear_oracle(window, x, g, 0.5, 100.0), x)
options = dict(radius=wa.attacks.constant(0.3), steps=2, random_start=True)
labels = jnp.array([1, 2])
logits_fn = lambda z: z.reshape(len(z), -1)[:, :4]
for attack in (
    wa.first_order(wa.wasserstein_ball(window), wa.pgd(wa.sign(0.1)), **options),
    wa.first_order(wa.capped_ball(window), wa.pgd(wa.linf_unit(0.1)), **options),
    wa.first_order(wa.couplings(window), wa.frank_wolfe(), **options),
    wa.first_order(wa.flow_ball(), wa.pgd(wa.linf_unit(0.1)), restarts=2, **options),
):
    run = trace(lambda key, x, y: attack(key, logits_fn, x, y), jax.random.key(0), pair, labels)
    assert run.radius.shape == (2,)
try:
    trace(lambda x: wa.projections.alpha_step("not an array", x), x)
except TypeCheckError:
    print("checked")
"""


def test_annotations_hold():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "checked"
