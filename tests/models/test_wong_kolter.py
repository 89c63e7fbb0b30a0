"""The network computes what PyTorch's does, with weights from any published wrapping."""

import gzip
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate
from torch_writer import WRITERS, tensor, zip_bytes

from wasserstein_adv.errors import InputError
from wasserstein_adv.models import WongKolterCNN, load_wong_kolter

SHAPES = {
    "0.weight": (16, 1, 4, 4),
    "0.bias": (16,),
    "2.weight": (32, 16, 4, 4),
    "2.bias": (32,),
    "5.weight": (100, 1568),
    "5.bias": (100,),
    "7.weight": (10, 100),
    "7.bias": (10,),
}


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        key: (rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
        for key, shape in SHAPES.items()
    }


def state_dict(weights, prefix: str = "") -> OrderedDict:
    state = OrderedDict(
        (prefix + key, tensor(array, str(i))) for i, (key, array) in enumerate(weights.items())
    )
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def torch_convolution(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """PyTorch's Conv2d(kernel 4, stride 2, padding 1), NCHW, by SciPy's cross-correlation."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.array(
        [
            [
                correlate(image, kernel, mode="valid")[0, ::2, ::2] + shift
                for kernel, shift in zip(weight, bias, strict=True)
            ]
            for image in padded
        ]
    )


def torch_forward(images: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The published `Sequential`, in float64: `(n, 28, 28, 1)` images to `(n, 10)` logits."""
    w = {key: array.astype(np.float64) for key, array in weights.items()}
    x = images.astype(np.float64).transpose(0, 3, 1, 2)
    x = np.maximum(torch_convolution(x, w["0.weight"], w["0.bias"]), 0)
    x = np.maximum(torch_convolution(x, w["2.weight"], w["2.bias"]), 0)
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ w["5.weight"].T + w["5.bias"], 0)
    return x @ w["7.weight"].T + w["7.bias"]


@pytest.fixture
def load(tmp_path):
    """Returns a function that loads the network from a checkpoint's bytes."""

    def from_bytes(data: bytes):
        (tmp_path / "network.pth").write_bytes(data)
        return load_wong_kolter(tmp_path / "network.pth")

    return from_bytes


def assert_trees_equal(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


# The network --------------------------------------------------------------------------------------


def test_the_forward_pass_is_pytorchs(load):
    weights = random_weights()
    images = np.random.default_rng(1).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    logits = WongKolterCNN().apply(load(zip_bytes(state_dict(weights))), images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, torch_forward(images, weights), rtol=1e-4, atol=1e-5)


def test_the_loaded_variables_have_the_modules_own_shapes(load):
    images = jnp.zeros((2, 28, 28, 1))
    own = jax.eval_shape(WongKolterCNN().init, jax.random.key(0), images)
    loaded = jax.eval_shape(lambda: load(zip_bytes(state_dict(random_weights()))))
    assert own == loaded


@pytest.mark.parametrize(("side", "channels", "classes"), [(28, 1, 10), (32, 3, 7), (7, 1, 2)])
def test_shapes_follow_the_first_images(side, channels, classes):
    images = jax.ShapeDtypeStruct((3, side, side, channels), jnp.float32)
    initial = WongKolterCNN(classes=classes).init_with_output
    logits, variables = jax.eval_shape(initial, jax.random.key(0), images)
    assert variables["params"]["dense1"]["kernel"].shape == (32 * (side // 4) ** 2, 100)
    assert logits.shape == (3, classes)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64])
def test_images_of_other_precisions_are_computed_in_float32(load, x64, dtype):
    variables = load(zip_bytes(state_dict(random_weights())))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    images = np.random.default_rng(1).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    images = images.astype(dtype)
    logits = WongKolterCNN().apply(variables, images)
    assert logits.dtype == jnp.float32
    in_float32 = WongKolterCNN().apply(variables, images.astype(np.float32))
    np.testing.assert_array_equal(logits, in_float32)


@pytest.mark.parametrize(
    ("images", "problem"),
    [(jnp.zeros((28, 28, 1)), "shape"), (jnp.zeros((1, 28, 28, 1), jnp.uint8), "uint8")],
)
def test_images_that_are_not_images_are_refused(images, problem):
    with pytest.raises(InputError, match=problem):
        WongKolterCNN().init(jax.random.key(0), images)


# The checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("written", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": [state], "epoch": 19, "sampler_indices": []},
        lambda state: {"state_dict": state},
        lambda state: {"net": state, "acc": 81.78},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
        lambda state: {"epoch": 3, "model": {"state_dict": [state]}},
        lambda state: [state],
        lambda state: state,
    ],
    ids=["state_dict list", "state_dict", "net", "model_state_dict", "two", "list", "bare"],
)
def test_every_wrapping_gives_the_same_weights(load, written, prefix, wrap):
    weights = random_weights()
    variables = load(written(wrap(state_dict(weights, prefix))))
    params = variables["params"]
    assert list(params) == ["conv1", "conv2", "dense1", "dense2"]
    # One entry of each kernel, at its place in PyTorch's layout.
    assert params["conv2"]["kernel"][1, 3, 11, 20] == weights["2.weight"][20, 11, 1, 3]
    assert params["dense2"]["kernel"][42, 7] == weights["7.weight"][7, 42]
    row, column, channel = 4, 2, 17
    flat_here, flat_there = (row * 7 + column) * 32 + channel, channel * 49 + row * 7 + column
    assert params["dense1"]["kernel"][flat_here, 5] == weights["5.weight"][5, flat_there]
    assert_trees_equal(variables, load(zip_bytes(state_dict(weights))))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_types_become_float32(load, dtype):
    weights = {key: array.astype(dtype) for key, array in random_weights().items()}
    variables = load(zip_bytes(state_dict(weights)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(
        variables["params"]["dense2"]["bias"], weights["7.bias"].astype(np.float32)
    )


def refusal(load, checkpoint) -> str:
    with pytest.raises(InputError) as caught:
        load(zip_bytes(checkpoint))
    message = str(caught.value)
    assert "network.pth: " in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("key", SHAPES)
def test_a_missing_key_is_named(load, key):
    weights = random_weights()
    del weights[key]
    message = refusal(load, state_dict(weights))
    assert f"{key} is missing" in message
    assert str(SHAPES[key]) in message


@pytest.mark.parametrize("key", SHAPES)
def test_a_wrong_shape_is_named_with_the_right_one(load, key):
    wrong = random_weights() | {key: np.zeros((2, *SHAPES[key]), np.float32)}
    message = refusal(load, state_dict(wrong))
    assert f"{key} does not fit: shape {(2, *SHAPES[key])}" in message
    assert f"expected shape {SHAPES[key]}" in message


def test_transposed_weights_of_the_right_size_are_refused(load):
    weights = random_weights()
    message = refusal(load, state_dict(weights | {"7.weight": weights["7.weight"].T}))
    assert "shape (100, 10), expected shape (10, 100)" in message


@pytest.mark.parametrize("key", ["9.weight", "a\nb", "module.module.0.weight", "x" * 5000])
def test_an_unexpected_key_is_named(load, key):
    message = refusal(load, state_dict(random_weights() | {key: np.zeros((3, 2), np.float32)}))
    assert "unexpected key" in message
    assert "shape (3, 2)" in message
    assert len(message) < 400


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("key", ["0.weight", "7.bias"])
def test_weights_that_are_not_finite_are_refused(load, key, bad):
    weights = random_weights()
    weights[key] = weights[key].astype(np.float64)
    weights[key].flat[3] = bad
    assert f"{key} holds weights that are not finite" in refusal(load, state_dict(weights))


def test_integer_weights_are_refused(load):
    weights = random_weights() | {"0.bias": np.zeros(16, np.int64)}
    assert "0.bias holds int64" in refusal(load, state_dict(weights))


def test_a_doubled_key_is_refused(load):
    weights = random_weights()
    both = weights | {"module.0.bias": weights["0.bias"]}
    assert "'0.bias' is there twice" in refusal(load, state_dict(both))


@pytest.mark.parametrize(
    "checkpoint", [3, [], {"state_dict": []}, {"net": None}, {1: 2}, ["a", {}]]
)
def test_something_else_than_a_state_dict_is_refused(load, checkpoint):
    refusal(load, checkpoint)


def test_a_number_in_place_of_a_tensor_is_refused(load):
    state = state_dict(random_weights())
    state["0.bias"] = 3
    assert "0.bias does not fit: no tensor" in refusal(load, state)


# The published checkpoints ------------------------------------------------------------------------


def mnist_test(folder) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images, `(10000, 28, 28, 1)` in [0, 1], and their labels."""
    images, labels = (
        gzip.decompress((folder / "mnist" / f"t10k-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return pixels.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8)


@pytest.mark.parametrize(("name", "right"), [("mnist_vanilla", 9889), ("mnist_adv_training", 9728)])
def test_the_published_checkpoints_are_as_accurate_as_published(real_data, name, right):
    images, labels = mnist_test(real_data)
    variables = load_wong_kolter(real_data / "checkpoints" / f"{name}.pth")
    logits = jax.jit(WongKolterCNN().apply)(variables, images)
    assert logits.shape == (10_000, 10)
    assert int((np.argmax(logits, axis=1) == labels).sum()) == right
