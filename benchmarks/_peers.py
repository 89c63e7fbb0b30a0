"""What we are measured against, called as its authors call it. Nothing is imported before its use.

A peer that is not installed is left out; requirements-bench.txt names them all.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from benchmarks._measure import cpu_name, device_name
from benchmarks._problem import COST, Problem
from wasserstein_adv.attacks.wong import WongProtocol
from wasserstein_adv.geometry import window_cost

PACKAGE = "projected-sinkhorn"
ART = "ART"

_MODULES = {PACKAGE: ("torch", "projected_sinkhorn"), ART: ("art",)}

_SINKHORN_ITERATIONS = 400  # of the published attack, at most for each projection


def missing(peers: Iterable[str] = (PACKAGE, ART)) -> list[str]:
    """Those that are not installed."""
    return [
        peer
        for peer in peers
        if any(importlib.util.find_spec(module) is None for module in _MODULES[peer])
    ]


def device_of(method: str) -> str:
    """The device on which a method of that name runs, as records name it."""
    if method.startswith(ART):
        return cpu_name()
    if method.startswith(PACKAGE):
        on_cpu = _torch_device() == "cpu"
        return cpu_name() if on_cpu else importlib.import_module("torch").cuda.get_device_name()
    return device_name()


# projected-sinkhorn, on PyTorch -------------------------------------------------------------------


@functools.cache
def _package() -> ModuleType:
    """The package, as published by the authors of the attack."""
    # It imports a module of its own as if it were installed beside it.
    spec = importlib.util.find_spec("projected_sinkhorn")
    sys.path.extend(spec.submodule_search_locations)
    return importlib.import_module("projected_sinkhorn")


def _torch_device() -> str:
    return "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"


def _to_torch(images: Float[np.ndarray, "n h w c"]) -> Any:
    torch = importlib.import_module("torch")
    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return torch.from_numpy(channels_first).to(device=_torch_device())


def _from_torch(images: Any) -> np.ndarray:
    return np.moveaxis(images.cpu().numpy(), 1, -1)


def package(problem: Problem, iterations: int) -> Callable[[], np.ndarray]:
    """The package's projection, with so many iterations where its own rule does not stop it."""
    x, w, radius, reg, window = problem
    mass = x.sum((1, 2, 3), keepdims=True)
    there = [_to_torch(a / mass) for a in (x, w)]
    cost = _package().wasserstein_cost(there[0], p=1, kernel_size=window)
    epsilon = there[0].new_full((len(x),), radius)
    weight = there[0].new_full((len(x), 1, 1, 1), reg)

    def run() -> np.ndarray:
        z = _package().projected_sinkhorn(*there, cost, epsilon, weight, maxiters=iterations)
        return _from_torch(z) * mass

    return run


class Attacked(NamedTuple):
    """What the published attack found."""

    image: Float[np.ndarray, "n h w c"]
    radius: Float[np.ndarray, "n"]
    """ε at the first misclassification; 0 for an image misclassified clean, inf for one never."""


def published_attack(
    weights: Any,
    x: Float[np.ndarray, "n h w c"],
    y: Int[np.ndarray, "n"],
    protocol: WongProtocol,
) -> Callable[[], Attacked]:
    """The published attack's loop, Algorithm 1 with sign steps, around the package's projection.

    As published, every step projects the whole batch and keeps what belongs to the images that are
    not fooled yet; the loop ends when all are.

    Args:
        weights: variables of `WongKolterCNN`.
        x: clean images.
        y: their labels.
        protocol: the settings.
    """
    torch = importlib.import_module("torch")
    net = torch_network(weights)
    clean = _to_torch(x)
    label = torch.from_numpy(y.astype(np.int64)).to(clean.device)
    mass = clean.sum((1, 2, 3), keepdim=True)
    cost = _package().wasserstein_cost(clean, p=protocol.p, kernel_size=protocol.window)

    def fooled(images: Any) -> Any:
        with torch.no_grad():
            return net(images).argmax(1) != label

    def gradient(images: Any) -> Any:
        images = images.detach().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(net(images), label)
        return torch.autograd.grad(loss, images)[0]

    def run() -> Attacked:
        z, epsilon = clean.clone(), clean.new_full((len(clean),), protocol.start_radius)
        done = fooled(z)
        radius = torch.where(done, 0.0, torch.inf)
        for step in range(1, protocol.steps + 1):
            if bool(done.all()):
                break
            stepped = z + protocol.step_size * torch.sign(gradient(z))
            stepped = torch.where(done[:, None, None, None], z, stepped)
            found = _package().projected_sinkhorn(
                clean / mass, stepped / mass, cost, epsilon, protocol.reg,
                maxiters=_SINKHORN_ITERATIONS,
            )  # fmt: skip
            z = torch.where(done[:, None, None, None], z, (found * mass).clamp(0.0, 1.0))
            now = fooled(z) & ~done
            radius, done = torch.where(now, epsilon, radius), done | now
            if step % protocol.grow_every == 0:
                epsilon = torch.where(done, epsilon, epsilon * protocol.growth)
        return Attacked(_from_torch(z), radius.cpu().numpy())

    return run


def torch_network(weights: Mapping[str, Any]) -> Any:
    """`WongKolterCNN` with these variables as a PyTorch module, on images laid out NCHW."""
    torch = importlib.import_module("torch")
    layers = {
        name: {part: np.asarray(value) for part, value in layer.items()}
        for name, layer in weights["params"].items()
    }

    def convolution(name: str) -> Any:
        _, _, inputs, outputs = layers[name]["kernel"].shape
        layer = torch.nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        return _with(layer, layers[name]["kernel"].transpose(3, 2, 0, 1), layers[name]["bias"])

    def dense(name: str, kernel: np.ndarray) -> Any:
        layer = torch.nn.Linear(*kernel.shape)
        return _with(layer, kernel.T, layers[name]["bias"])

    # Its inputs are a flattened image, channels last here and first there.
    flat = layers["dense1"]["kernel"]
    channels = layers["conv2"]["kernel"].shape[-1]
    side = round((len(flat) / channels) ** 0.5)
    flat = flat.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(flat.shape)
    relu = torch.nn.ReLU
    return torch.nn.Sequential(
        convolution("conv1"), relu(), convolution("conv2"), relu(), torch.nn.Flatten(),
        dense("dense1", flat), relu(), dense("dense2", layers["dense2"]["kernel"]),
    ).to(_torch_device())  # fmt: skip


def _with(layer: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
    torch = importlib.import_module("torch")
    layer.load_state_dict({
        "weight": torch.from_numpy(np.array(weight)), "bias": torch.from_numpy(np.array(bias))
    })  # fmt: skip
    return layer


def torch_logits(weights: Mapping[str, Any], images: Float[np.ndarray, "n h w c"]) -> np.ndarray:
    """What `torch_network` answers."""
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return torch_network(weights)(_to_torch(images)).cpu().numpy()


# Adversarial Robustness Toolbox, on NumPy ---------------------------------------------------------


def art(problem: Problem, iterations: int) -> Callable[[], np.ndarray]:
    """The projection inside ART's `Wasserstein` attack, given a Euclidean cost: its own is not."""
    x, w, radius, reg, window = problem
    attack = importlib.import_module("art.attacks.evasion.wasserstein").Wasserstein
    # The projection asks its attack for nothing but these; the attack itself would ask for a model.
    settings = SimpleNamespace(
        regularization=reg,
        kernel_size=window,
        projected_sinkhorn_max_iter=iterations,
        estimator=SimpleNamespace(channels_first=True),
    )
    for name in ("_unfold", "_batch_dot"):
        setattr(settings, name, getattr(attack, name))
    for name in ("_local_transport", "_projected_sinkhorn_evaluation"):
        setattr(settings, name, functools.partial(getattr(attack, name), settings))
    there = [np.moveaxis(a, -1, 1).astype(np.float64) for a in (w, x)]
    cost = np.asarray(window_cost(COST, window), np.float64)
    epsilon = np.full(len(x), radius)

    def run() -> np.ndarray:
        return np.moveaxis(attack._projected_sinkhorn(settings, *there, cost, epsilon), 1, -1)

    return run
