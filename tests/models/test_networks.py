"""The networks' forms, and that they compute what published PyTorch code does."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from flax import linen as nn
from plainly import jit
from torch_writer import Storage, Tensor, legacy_bytes, tensor, zip_bytes

from wasserstein_adv.errors import InputError
from wasserstein_adv.models import (
    MODELS,
    CarliniWagnerCNN,
    ResNet18,
    ResNet50,
    WideResNet,
    WongKolterCNN,
    load_torch,
)

CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AS_THEY_ARE = 0.0, 1.0
IMAGES = {
    "wong-kolter": (28, 28, 1),
    "carlini-wagner": (28, 28, 1),
    "resnet18": (32, 32, 3),
    "resnet50": (64, 64, 3),
    "wrn-34-10": (32, 32, 3),
}


class Case(NamedTuple):
    """A network, PyTorch's table and forward pass of it, and images large enough for it."""

    model: nn.Module
    shapes: reference.Shapes
    forward: Callable
    normalisation: tuple
    image: tuple[int, int, int]
    wrap: Callable = lambda state: state
    prefix: str = ""


CASES = {
    "resnet18": Case(
        ResNet18(),
        reference.resnet18_shapes(),
        reference.resnet18,
        CIFAR10,
        (16, 24, 3),
        lambda state: {"net": state, "acc": 95.47, "epoch": 199},
        "module.",
    ),
    "resnet50": Case(
        ResNet50(),
        reference.resnet50_shapes(classes=200),
        reference.resnet50,
        IMAGENET,
        (64, 64, 3),
        lambda state: {"state_dict": [state]},
    ),
    # Narrower than published, of its depth: every name is there.
    "wrn-34-2": Case(
        WideResNet(widen=2),
        reference.wide_resnet_shapes(widen=2),
        reference.wide_resnet,
        AS_THEY_ARE,
        (16, 12, 3),
        prefix="module.",
    ),
    "wrn-10-1": Case(
        WideResNet(depth=10, widen=1, classes=3, mean=(0.4,), std=(0.3,)),
        reference.wide_resnet_shapes(depth=10, widen=1, classes=3),
        reference.wide_resnet,
        (0.4, 0.3),
        (8, 8, 3),
    ),
    "carlini-wagner": Case(
        CarliniWagnerCNN(classes=7),
        reference.carlini_wagner_shapes(classes=7, flattened=64 * 4 * 6),
        reference.carlini_wagner,
        AS_THEY_ARE,
        (28, 36, 1),
        lambda state: {"state_dict": state},
    ),
    "wong-kolter": Case(
        WongKolterCNN(classes=4),
        reference.wong_kolter_shapes(classes=4, flattened=32 * 4 * 7),
        reference.wong_kolter,
        AS_THEY_ARE,
        (17, 30, 1),
    ),
}
with_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def state_dict(weights: reference.Weights, prefix: str = "") -> OrderedDict:
    return OrderedDict(
        (prefix + key, tensor(array, str(i))) for i, (key, array) in enumerate(weights.items())
    )


def hollow(shapes: reference.Shapes) -> OrderedDict:
    """A state dict of any size in a small file: every tensor repeats the one element it has."""
    return OrderedDict(
        (key, Tensor(Storage(np.ones(1, np.float32), str(i)), 0, shape, (0,) * len(shape)))
        for i, (key, shape) in enumerate(shapes.items())
    )


@pytest.fixture
def load(tmp_path):
    """Returns a function that loads a network from a checkpoint's bytes."""

    def from_bytes(model, image, data: bytes):
        (tmp_path / "network.pth").write_bytes(data)
        return load_torch(model, tmp_path / "network.pth", image)

    return from_bytes


def quick_jit(f: Callable) -> Callable:
    """`jax.jit` that compiles fast: the networks are large and run once."""
    return jit(f)


def in_training(model: nn.Module) -> Callable:
    """Returns a function of variables and images: the logits and the new statistics."""
    return partial(model.apply, train=True, mutable=["batch_stats"])


def images_of(case: Case, count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(count, *case.image)).astype(np.float32)


def torch_logits(case: Case, weights, images, seen=None):
    mean, std = (np.asarray(v, np.float64) for v in case.normalisation)
    normalised = (images.astype(np.float64) - mean) / std
    return case.forward(normalised.transpose(0, 3, 1, 2), weights, seen)


def assert_near(found, expected, tolerance):
    """The same up to a part of the largest expected value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def variables_of(model, image):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))


# What they compute --------------------------------------------------------------------------------


@with_cases
def test_logits_are_pytorchs(load, case):
    weights = reference.random_weights(case.shapes)
    variables = load(case.model, case.image, zip_bytes(case.wrap(state_dict(weights, case.prefix))))
    assert jax.eval_shape(lambda: variables) == variables_of(case.model, case.image)
    images = images_of(case, 2)
    logits = quick_jit(case.model.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert_near(logits, torch_logits(case, weights, images), 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "wrn-10-1"])
def test_training_mode_is_pytorchs_but_for_biased_running_variances(load, name):
    case = CASES[name]
    weights = reference.random_weights(case.shapes)
    variables = load(case.model, case.image, legacy_bytes(state_dict(weights)))
    images, seen = images_of(case, 3), {}
    logits, updated = quick_jit(in_training(case.model))(variables, images)
    assert_near(logits, torch_logits(case, weights, images, seen), 1e-3)
    for layer, batch in seen.items():
        for part, statistic in zip(("mean", "var"), batch, strict=True):
            running = weights[f"{layer}.running_{part}"]
            running[:] = 0.9 * running + 0.1 * statistic
    expected = load(case.model, case.image, zip_bytes(state_dict(weights)))
    jax.tree.map(
        lambda found, right: assert_near(found, right, 1e-4),
        updated,
        {"batch_stats": expected["batch_stats"]},
    )


def test_devices_average_their_statistics(load):
    case = CASES["wrn-10-1"]
    model, images = case.model, images_of(case, 6)
    weights = reference.random_weights(case.shapes)
    variables = load(model, case.image, zip_bytes(state_dict(weights)))
    alone = quick_jit(in_training(model))(variables, images)
    on_devices = jax.vmap(in_training(model.copy(axis_name="devices")), (None, 0), 0, "devices")
    halves = quick_jit(on_devices)(variables, images.reshape(2, 3, 8, 8, 3))
    np.testing.assert_allclose(halves[0].reshape(6, -1), alone[0], rtol=1e-3, atol=1e-4)
    for half in (0, 1):
        one = jax.tree.map(lambda leaf, half=half: leaf[half], halves[1])
        jax.tree.map(lambda found, right: assert_near(found, right, 1e-4), one, alone[1])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn-34-10"])
def test_every_batch_norm_averages_over_the_axis_in_training_only(name):
    model, images = MODELS[name](axis_name="devices"), jnp.zeros((1, *IMAGES[name]))
    variables = variables_of(model, IMAGES[name])

    def averages(train: bool) -> int:
        apply = partial(model.apply, train=train, mutable=["batch_stats"])
        jaxpr = jax.make_jaxpr(apply, axis_env=[("devices", 2)])(variables, images)
        return str(jaxpr).count("psum[")

    batch_norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    assert averages(train=True) == batch_norms
    assert averages(train=False) == 0


def equations(jaxpr):
    """All equations of a jaxpr, those of the functions that it calls among them."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            called = getattr(value, "jaxpr", value)
            if hasattr(called, "eqns"):
                yield from equations(called)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_layers_compute_in_the_type_asked_for(name, train):
    model, images = MODELS[name](dtype=jnp.bfloat16), jnp.zeros((2, *IMAGES[name]))
    variables = variables_of(model, IMAGES[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    apply = partial(model.apply, train=train, mutable=["batch_stats"])
    jaxpr = jax.make_jaxpr(apply)(variables, images)
    found = [
        eqn.outvars[0].aval.dtype
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert found == [jnp.bfloat16] * len(kernels)
    assert {aval.dtype for aval in jaxpr.out_avals} == {jnp.dtype(jnp.float32)}


def test_convolutions_begin_as_he_et_al_draw_them():
    init = quick_jit(WideResNet(depth=10, widen=1).init)
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    drawn = params["block3_layer_0"]["conv2"]["kernel"], params["block2_layer_0"]["conv1"]["kernel"]
    for kernel, fan_out in zip(drawn, (9 * 64, 9 * 32), strict=True):
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_out), rel=0.03)
        # Normal, not truncated at two deviations as Flax's own default is.
        assert np.mean(np.abs(kernel) > 2 * np.sqrt(2 / fan_out)) == pytest.approx(0.0455, rel=0.2)


# Their forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shapes", "image", "published"),
    [
        (ResNet18(), reference.resnet18_shapes(), (32, 32, 3), 11_173_962),
        (ResNet50(classes=1000), reference.resnet50_shapes(), (64, 64, 3), 25_557_032),
        (WideResNet(), reference.wide_resnet_shapes(), (32, 32, 3), 46_160_474),
        (CarliniWagnerCNN(), reference.carlini_wagner_shapes(), (28, 28, 1), 312_202),
    ],
    ids=["resnet18", "resnet50", "wrn-34-10", "carlini-wagner"],
)
def test_the_published_networks_fit(load, model, shapes, image, published):
    counted = [
        np.prod(shape, dtype=int)
        for key, shape in shapes.items()
        if key.endswith((".weight", ".bias")) and not key.startswith("sub_block1")
    ]
    assert sum(counted) == published
    own = variables_of(model, image)
    assert sum(leaf.size for leaf in jax.tree.leaves(own["params"])) == published
    loaded = load(model, image, zip_bytes(hollow(shapes)))
    assert jax.eval_shape(lambda: loaded) == own


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("wong-kolter", 10, [(14, 14, 16), (7, 7, 32)]),
        (
            "carlini-wagner",
            10,
            [(26, 26, 32), (24, 24, 32), (10, 10, 64), (8, 8, 64)],
        ),
        ("resnet18", 10, [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
        ("resnet50", 200, [(32, 32, 64), (16, 16, 256), (8, 8, 512), (2, 2, 2048)]),
        ("wrn-34-10", 10, [(32, 32, 16), (32, 32, 160), (8, 8, 640)]),
    ],
)
def test_layers_have_the_published_shapes(name, classes, expected):
    model, key = MODELS[name](), jax.random.key(0)
    images = jax.ShapeDtypeStruct((5, *IMAGES[name]), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, key, images)
    assert logits.shape == (5, classes)
    assert logits.dtype == jnp.float32
    apply = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    _, seen = jax.eval_shape(apply, variables, images)
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(seen) if leaf.ndim == 4]
    assert set(expected) <= set(shapes)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(seen)} == {5}


def test_there_are_five_networks():
    assert dict(MODELS) == {
        "wong-kolter": WongKolterCNN,
        "carlini-wagner": CarliniWagnerCNN,
        "resnet18": ResNet18,
        "resnet50": ResNet50,
        "wrn-34-10": WideResNet,
    }


# What they refuse ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_images_that_are_not_images_are_refused(name):
    for images, problem in (
        (jnp.zeros((32, 32, 3)), r"images: shape \(32, 32, 3\) is not"),
        (jnp.zeros((1, 32, 32, 3), jnp.uint8), "images: uint8 values, not floating point"),
    ):
        with pytest.raises(InputError, match=problem):
            MODELS[name]().init(jax.random.key(0), images)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn-34-10"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused(name, channels):
    with pytest.raises(InputError, match=f"images: {channels} channels, .* means of 3"):
        MODELS[name]().init(jax.random.key(0), jnp.zeros((1, 32, 32, channels)))


def test_means_without_their_deviations_are_refused():
    model = WideResNet(mean=(0.5,))
    with pytest.raises(InputError, match="means of 1 and the deviations of 3"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("depth", [4, 33, 36])
def test_depths_that_do_not_exist_are_refused(depth):
    with pytest.raises(InputError, match=f"depth: {depth}"):
        WideResNet(depth=depth).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def refusal(load, case: Case, shapes: reference.Shapes) -> str:
    with pytest.raises(InputError) as caught:
        load(case.model, case.image, zip_bytes(hollow(shapes)))
    message = str(caught.value)
    assert "network.pth: " in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resnet18", "bn1.running_var"),
        ("resnet18", "layer3.0.shortcut.1.weight"),
        ("resnet50", "layer2.0.downsample.0.weight"),
        ("wrn-10-1", "block2.layer.0.convShortcut.weight"),
        ("carlini-wagner", "11.bias"),
    ],
)
def test_a_missing_key_is_named(load, name, key):
    shapes = dict(CASES[name].shapes)
    expected = shapes.pop(key)
    message = refusal(load, CASES[name], shapes)
    assert f"{key} is missing: no tensor, expected shape {expected}" in message


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
        ("resnet50", "fc.weight", (1000, 2048)),
        ("wrn-10-1", "bn1.running_mean", (65,)),
        ("carlini-wagner", "11.weight", (200, 1024)),
        # Of the right size, in Flax's order.
        ("carlini-wagner", "13.bias", (200, 1)),
        ("resnet18", "layer2.0.shortcut.0.weight", (1, 1, 64, 128)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(load, name, key, shape):
    shapes = CASES[name].shapes
    message = refusal(load, CASES[name], shapes | {key: shape})
    assert f"{key} does not fit: shape {shape}, expected shape {shapes[key]}" in message


@pytest.mark.parametrize(
    "key", ["zca.weight", "conv1.num_batches_tracked", "sub_block1.layer.0.bn1.weight"]
)
def test_an_unexpected_key_is_named(load, key):
    case = CASES["carlini-wagner"] if key.startswith("sub") else CASES["wrn-10-1"]
    assert f"unexpected key {key!r}" in refusal(load, case, case.shapes | {key: (3, 2)})


@pytest.mark.parametrize(("name", "other"), list(pairwise([*CASES, "resnet18"])))
def test_a_checkpoint_of_another_network_is_refused(load, name, other):
    message = refusal(load, CASES[name], CASES[other].shapes)
    assert "expected shape" in message or "expected no such key" in message
    assert len(message) < 300


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model: Dense is none of wong-kolter, carlini-wagner"):
        load_torch(nn.Dense(3), tmp_path / "network.pth", (8, 8, 3))
