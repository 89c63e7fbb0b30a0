"""A PyTorch module attacked where it is: PyTorch's own logits and gradients, in every place."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wasserstein_adv as wa
from wasserstein_adv.attacks import growing, linf_ball
from wasserstein_adv.data.idx import read_idx_split
from wasserstein_adv.models import WongKolterCNN, from_torch, load_wong_kolter

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
nn = torch.nn

ROOT = Path(__file__).parents[2]
SHAPE = (8, 6, 3)


class Convolutional(nn.Module):
    """What published networks are made of: normalising, batch norm, ReLU in place, dropout, view.

    It works in place on its images as well.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])
        self.convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.dense = nn.Linear(60, 4)

    def forward(self, x):
        x -= self.mean
        x.div_(0.25)
        x = self.relu(self.norm(self.convolution(x)))
        return self.dense(self.dropout(x.view(len(x), -1)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = Convolutional()
    with torch.no_grad():
        net.norm.running_mean.normal_(0, 0.3)
        net.norm.running_var.uniform_(0.5, 2)
        net.norm.weight.uniform_(0.5, 1.5)
    return net.eval()


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, *SHAPE), np.float32)


def by_torch(net: nn.Module, x: np.ndarray, cotangents: np.ndarray | None = None) -> np.ndarray:
    """Logits, or the gradient of ⟨logits, cotangents⟩ in the images, in float64."""
    nchw = np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float64)
    leaf = torch.tensor(nchw, requires_grad=True)
    logits = net.double()(leaf.clone())
    if cotangents is None:
        return logits.detach().numpy()
    (gradient,) = torch.autograd.grad(logits, leaf, torch.tensor(cotangents).double())
    return gradient.numpy().transpose(0, 2, 3, 1)


X, COTANGENTS = pictures(5), np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_logits_and_gradients_are_those_of_pytorch(wrap):
    logits_fn = from_torch(network(), SHAPE)
    logits = wrap(logits_fn)(X)
    gradient = wrap(lambda x: jax.vjp(logits_fn, x)[1](jnp.asarray(COTANGENTS))[0])(X)
    assert (logits.dtype, gradient.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(logits, by_torch(network(), X), **CLOSE)
    np.testing.assert_allclose(gradient, by_torch(network(), X, COTANGENTS), **CLOSE)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_one_function_takes_batches_of_any_size(n):
    logits_fn = jax.jit(from_torch(network(), SHAPE))
    for size in (n, 2, n + 1):
        x = pictures(size, seed=size)
        np.testing.assert_allclose(logits_fn(x), by_torch(network(), x), **CLOSE)


def test_vmap_and_loops():
    logits_fn = from_torch(network(), SHAPE)
    x = pictures(6).reshape(2, 3, *SHAPE)
    np.testing.assert_allclose(
        jax.vmap(logits_fn)(x).reshape(6, 4), by_torch(network(), x.reshape(6, *SHAPE)), **CLOSE
    )
    jacobian = jax.jacrev(lambda image: logits_fn(image[None])[0])(X[0])
    for k in range(4):
        rows = by_torch(network(), X[:1], np.eye(4)[k : k + 1])[0]
        np.testing.assert_allclose(jacobian[k], rows, **CLOSE)

    def ascend(x):
        return x + 0.1 * jax.grad(lambda x: logits_fn(x)[:, 0].sum())(x)

    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: ascend(x), x))(X)
    expected = X.astype(np.float64)
    for _ in range(3):
        expected = expected + 0.1 * by_torch(network(), expected, np.tile(np.eye(4)[0], (5, 1)))
    np.testing.assert_allclose(looped, expected, **CLOSE)


def test_the_images_are_not_written_on():
    x = jnp.asarray(X)
    logits_fn = from_torch(network(), SHAPE)
    logits_fn(x), jax.grad(lambda x: logits_fn(x).sum())(x)
    np.testing.assert_array_equal(x, X)


def test_a_module_in_train_mode_is_evaluated_as_a_copy_and_left_alone():
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits_fn = from_torch(net, SHAPE)
    first = logits_fn(X)
    np.testing.assert_allclose(first, by_torch(network(), X), **CLOSE)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        net.dense.weight.mul_(2)
    np.testing.assert_array_equal(logits_fn(X), first)


def test_inside_no_grad_there_are_gradients_all_the_same():
    with torch.no_grad():
        logits_fn = from_torch(network(), SHAPE)
        gradient = jax.vjp(logits_fn, X)[1](jnp.asarray(COTANGENTS))[0]
    np.testing.assert_allclose(gradient, by_torch(network(), X, COTANGENTS), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floating_types_are_computed_in_and_come_back_as_float32(dtype):
    logits_fn = from_torch(network().to(dtype), SHAPE)
    logits = logits_fn(X)
    gradient = jax.vjp(logits_fn, X)[1](jnp.asarray(COTANGENTS))[0]
    assert (logits.dtype, gradient.dtype) == (jnp.float32, jnp.float32)
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(logits, by_torch(network(), X), **close)
    np.testing.assert_allclose(gradient, by_torch(network(), X, COTANGENTS), **close)


def test_half_precision_images_become_float32():
    logits_fn = from_torch(network(), SHAPE)
    x = jnp.asarray(X, jnp.bfloat16)
    gradient = jax.grad(lambda x: logits_fn(x).sum())(x)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        logits_fn(x), by_torch(network(), np.asarray(x, np.float32)), **CLOSE
    )


# What is refused ----------------------------------------------------------------------------------


def around(forward) -> nn.Module:
    """A network with something wrong around it: `forward(network, x)`."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return forward(self.net, x)

    return Around()


def cannot_be_copied() -> nn.Module:
    net = network()
    net.kept = net.dense.weight * 2  # autograd's own: copy.deepcopy refuses it
    return net


def statistics_of_the_batch() -> nn.Module:
    net = network()
    net.norm = nn.BatchNorm2d(5, track_running_stats=False)
    return net


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: network().state_dict(), "module must be a torch.nn.Module, got OrderedDict"),
        (cannot_be_copied, "module cannot be copied: RuntimeError"),
        (lambda: nn.Linear(7, 4), r"fails on images of shape \(2, 3, 8, 6\): RuntimeError"),
        (lambda: around(lambda net, x: (net(x), x)), "one tensor of logits, got tuple"),
        (lambda: around(lambda net, x: {"logits": net(x)}), "one tensor of logits, got dict"),
        (lambda: around(lambda net, x: net(x)[:, 0]), r"got float32 \(2,\) for n = 2"),
        (lambda: around(lambda net, x: net(x)[:, :1]), r"got float32 \(2, 1\) for n = 2"),
        (lambda: around(lambda net, x: net(x).argmax(1, True)), r"got int64 \(2, 1\) for n = 2"),
        (lambda: around(lambda net, x: net(x[:1])), r"got float32 \(1, 4\) for n = 2"),
        (lambda: around(lambda net, x: net(x).detach()), "passes no gradient to its images"),
        (lambda: around(lambda net, x: net(x) + torch.rand(())), "in another batch or call"),
        (statistics_of_the_batch, "statistics of the batch"),
    ],
)
def test_a_module_that_cannot_be_attacked_is_refused_in_one_line(module, message):
    with pytest.raises(wa.InputError, match=message) as caught:
        from_torch(module(), SHAPE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("module")


@pytest.mark.parametrize("shape", [(8, 6, 3), (5, 6, 8, 3), (5, 8, 6, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(wa.InputError, match=r"images must have shape \(n, 8, 6, 3\)"):
        jax.jit(from_torch(network(), SHAPE))(jnp.zeros(shape))


# Attacks ------------------------------------------------------------------------------------------


def wong_kolter() -> nn.Module:
    """The published PyTorch code of `WongKolterCNN`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def both_forms(checkpoint: Path):
    """A checkpoint's network in Flax and, by PyTorch's own reader, in PyTorch."""
    variables = load_wong_kolter(checkpoint)
    (state,) = [torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]]
    net = wong_kolter()
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    return lambda x: WongKolterCNN().apply(variables, x), from_torch(net, (28, 28, 1))


def test_an_attack_finds_the_same_on_either_form_of_a_network(tmp_path):
    torch.manual_seed(0)
    torch.save({"state_dict": wong_kolter().state_dict()}, tmp_path / "network.pth")
    x = np.random.default_rng(0).random((20, 28, 28, 1), np.float32)
    forms = both_forms(tmp_path / "network.pth")
    y = np.argmax(forms[0](x), -1)
    radius = growing(0.01, 1.2, 1)
    attack = wa.first_order(linf_ball(), wa.pgd(wa.linf_unit(0.01)), radius=radius, steps=15)
    ours, theirs = (
        wa.parallel.evaluate(attack, jax.random.key(0), logits_fn, x, y, batch_size=8)
        for logits_fn in forms
    )
    assert ours.success.sum() > 5
    np.testing.assert_array_equal(ours.radius, theirs.radius)
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    np.testing.assert_allclose(ours.image, theirs.image, atol=1e-4)


def test_wongs_attack_leaves_the_same_images_of_the_published_model(real_data):
    folder, n = real_data / "mnist", 20
    images, labels = read_idx_split(
        folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    )
    x, y = np.float32(images[:n]) / 255, labels[:n].astype(np.int32)
    ours, theirs = (
        jax.jit(
            lambda key, x, y, logits_fn=logits_fn: wa.wong((28, 28))(key, logits_fn, x, y),
            compiler_options={"xla_backend_optimization_level": 0},
        )(jax.random.key(0), x, y)
        for logits_fn in both_forms(real_data / "checkpoints" / "mnist_vanilla.pth")
    )
    np.testing.assert_array_equal(ours.radius, theirs.radius)
    assert ours.success.all()
    # Where two gradients differ in sign at one pixel, by rounding, the paths part.
    assert (np.abs(ours.image - theirs.image).max((1, 2, 3)) < 1e-3).sum() >= n - 1


DEVICES = """
import jax, numpy as np, sys
jax.config.update("jax_num_cpu_devices", 3)
sys.path.insert(0, "tests/models")
from test_torch_module import by_torch, growing, linf_ball, network, pictures, wa
from wasserstein_adv.models import from_torch
assert len(jax.local_devices()) == 3
logits_fn = from_torch(network(), (8, 6, 3))
x = pictures(900)  # 170 kB a device: what hangs in jax.pure_callback
y = np.argmax(by_torch(network(), x), -1)
attack = wa.first_order(linf_ball(), wa.pgd(wa.sign(0.01)), radius=growing(0.01, 1.3, 2), steps=8)
one, *several = (
    wa.parallel.evaluate(
        attack, jax.random.key(0), logits_fn, x, y,
        batch_size=size, devices=jax.local_devices()[:count],
    )
    for count, size in ((1, 900), (3, 900), (3, 200))
)
assert 0 < one.success.mean() < 1 or one.success.all()
for other in several:
    same = (one.radius == other.radius) & (one.steps == other.steps)
    assert same.mean() > 0.99, same.mean()  # a sign step may turn on the last digit
    np.testing.assert_allclose(one.image[same], other.image[same], atol=0.025)
print("same")
"""


def test_on_several_devices_and_in_batches_that_change():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu",
             "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        timeout=300,  # callbacks that wait for each other would wait for ever
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "same"
