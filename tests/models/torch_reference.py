"""What PyTorch code of the networks computes, in NumPy and float64, by PyTorch's names.

Images are NCHW as there. A network is a table of its state dict's shapes and a forward pass. Where
a forward pass is handed a dictionary `seen`, batch normalisation is in training mode and leaves the
batch's mean and (biased) variance there.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Weights = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
Seen = dict[str, tuple[np.ndarray, np.ndarray]] | None


def random_weights(shapes: Shapes, seed: int = 0) -> Weights:
    """Weights that neither explode nor vanish, every one of them of consequence."""
    rng = np.random.default_rng(seed)
    draws = {
        "weight": lambda s: (
            rng.standard_normal(s, np.float32) / np.float32(np.sqrt(np.prod(s[1:])))
            if len(s) > 1
            else rng.uniform(0.5, 1.5, s)
        ),
        "bias": lambda s: rng.normal(0, 0.1, s),
        "running_mean": lambda s: rng.normal(0, 0.1, s),
        "running_var": lambda s: rng.uniform(0.5, 1.5, s),
        "num_batches_tracked": lambda s: np.int64(7),
    }
    weights = {key: draws[key.split(".")[-1]](shape) for key, shape in shapes.items()}
    for key in [k for k in weights if k.endswith("running_var")]:
        # A channel of little variance, so that epsilon counts.
        weights[key][0] = 1e-5
        weights[key.replace("running_var", "weight")][0] = 0.01
    return {
        key: np.asarray(array, np.int64 if key.endswith("tracked") else np.float32)
        for key, array in weights.items()
    }


# Layers -------------------------------------------------------------------------------------------


def convolve(x, weight, bias=0.0, stride=1, padding=0):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    y = np.tensordot(windows, weight.astype(np.float64), ((1, 4, 5), (1, 2, 3))) + bias
    return y.transpose(0, 3, 1, 2)


def normalise(x, w: Weights, name: str, seen: Seen):
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    if seen is not None:
        mean, var = seen[name] = x.mean((0, 2, 3)), x.var((0, 2, 3))
    mean, var, scale, bias = (
        np.asarray(v, np.float64)[:, None, None]
        for v in (mean, var, w[f"{name}.weight"], w[f"{name}.bias"])
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def pool(x, size, stride, padding=0):
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, border, constant_values=-np.inf)
    return sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride].max((4, 5))


def relu(x):
    return np.maximum(x, 0)


def dense(x, w: Weights, name: str):
    return x @ w[f"{name}.weight"].astype(np.float64).T + w[f"{name}.bias"]


def norm_shapes(name: str, features: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{p}": (features,) for p in parts} | {f"{name}.num_batches_tracked": ()}


def dense_shapes(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


# kuangliu/pytorch-cifar, ResNet18 -----------------------------------------------------------------


def resnet18_shapes(classes: int = 10) -> Shapes:
    shapes = {"conv1.weight": (64, 3, 3, 3)} | norm_shapes("bn1", 64)
    inputs = 64
    for stage, features in enumerate((64, 128, 256, 512), 1):
        for name in (f"layer{stage}.0", f"layer{stage}.1"):
            shapes[f"{name}.conv1.weight"] = (features, inputs, 3, 3)
            shapes |= norm_shapes(f"{name}.bn1", features)
            shapes[f"{name}.conv2.weight"] = (features, features, 3, 3)
            shapes |= norm_shapes(f"{name}.bn2", features)
            if inputs != features:
                shapes[f"{name}.shortcut.0.weight"] = (features, inputs, 1, 1)
                shapes |= norm_shapes(f"{name}.shortcut.1", features)
            inputs = features
    return shapes | dense_shapes("linear", classes, 512)


def resnet18(x, w: Weights, seen: Seen = None):
    x = relu(normalise(convolve(x, w["conv1.weight"], padding=1), w, "bn1", seen))
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            name = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = convolve(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = relu(normalise(y, w, f"{name}.bn1", seen))
            y = convolve(y, w[f"{name}.conv2.weight"], padding=1)
            y = normalise(y, w, f"{name}.bn2", seen)
            if f"{name}.shortcut.0.weight" in w:
                x = convolve(x, w[f"{name}.shortcut.0.weight"], stride=stride)
                x = normalise(x, w, f"{name}.shortcut.1", seen)
            x = relu(y + x)
    return dense(x.mean((2, 3)), w, "linear")


# torchvision, resnet50 ----------------------------------------------------------------------------

RESNET50_COUNTS = (3, 4, 6, 3)


def resnet50_shapes(classes: int = 1000) -> Shapes:
    shapes = {"conv1.weight": (64, 3, 7, 7)} | norm_shapes("bn1", 64)
    inputs = 64
    for stage, count in enumerate(RESNET50_COUNTS, 1):
        width = (64, 128, 256, 512)[stage - 1]
        for number in range(count):
            name = f"layer{stage}.{number}"
            layers = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for part, shape in enumerate(layers, 1):
                shapes[f"{name}.conv{part}.weight"] = shape
                shapes |= norm_shapes(f"{name}.bn{part}", shape[0])
            if number == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes | dense_shapes("fc", classes, 2048)


def resnet50(x, w: Weights, seen: Seen = None):
    x = convolve(x, w["conv1.weight"], stride=2, padding=3)
    x = pool(relu(normalise(x, w, "bn1", seen)), 3, 2, 1)
    for stage, count in enumerate(RESNET50_COUNTS, 1):
        for number in range(count):
            name = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = convolve(x, w[f"{name}.conv1.weight"])
            y = relu(normalise(y, w, f"{name}.bn1", seen))
            y = convolve(y, w[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = relu(normalise(y, w, f"{name}.bn2", seen))
            y = normalise(convolve(y, w[f"{name}.conv3.weight"]), w, f"{name}.bn3", seen)
            if number == 0:
                x = convolve(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = normalise(x, w, f"{name}.downsample.1", seen)
            x = relu(y + x)
    return dense(x.mean((2, 3)), w, "fc")


# TRADES, WideResNet -------------------------------------------------------------------------------


def wide_resnet_shapes(depth: int = 34, widen: int = 10, classes: int = 10) -> Shapes:
    """With the first block a second time, as TRADES's class has it: `sub_block1` is not used."""
    shapes: Shapes = {"conv1.weight": (16, 3, 3, 3)}
    widths = (16, 16 * widen, 32 * widen, 64 * widen)
    for block, at in (("block1", 0), ("sub_block1", 0), ("block2", 1), ("block3", 2)):
        for number in range((depth - 4) // 6):
            name, out = f"{block}.layer.{number}", widths[at + 1]
            inputs = out if number else widths[at]
            shapes |= norm_shapes(f"{name}.bn1", inputs)
            shapes[f"{name}.conv1.weight"] = (out, inputs, 3, 3)
            shapes |= norm_shapes(f"{name}.bn2", out)
            shapes[f"{name}.conv2.weight"] = (out, out, 3, 3)
            if inputs != out:
                shapes[f"{name}.convShortcut.weight"] = (out, inputs, 1, 1)
    return shapes | norm_shapes("bn1", widths[3]) | dense_shapes("fc", classes, widths[3])


def wide_resnet(x, w: Weights, seen: Seen = None):
    x = convolve(x, w["conv1.weight"], padding=1)
    for name in [k.removesuffix(".conv1.weight") for k in w if k.endswith(".conv1.weight")]:
        if name.startswith("sub_block1"):
            continue
        stride = 2 if name in ("block2.layer.0", "block3.layer.0") else 1
        y = relu(normalise(x, w, f"{name}.bn1", seen))
        shortcut = x
        if f"{name}.convShortcut.weight" in w:
            shortcut = convolve(y, w[f"{name}.convShortcut.weight"], stride=stride)
        y = convolve(y, w[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = relu(normalise(y, w, f"{name}.bn2", seen))
        x = shortcut + convolve(y, w[f"{name}.conv2.weight"], padding=1)
    return dense(relu(normalise(x, w, "bn1", seen)).mean((2, 3)), w, "fc")


# Carlini & Wagner's network as a `Sequential` -----------------------------------------------------


def carlini_wagner_shapes(classes: int = 10, flattened: int = 64 * 4 * 4) -> Shapes:
    convolutions = {"0": (32, 1, 3, 3), "2": (32, 32, 3, 3), "5": (64, 32, 3, 3)}
    shapes: Shapes = {}
    for name, shape in (convolutions | {"7": (64, 64, 3, 3)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= dense_shapes("11", 200, flattened) | dense_shapes("13", 200, 200)
    return shapes | dense_shapes("15", classes, 200)


def carlini_wagner(x, w: Weights, seen: Seen = None):
    for pair in (("0", "2"), ("5", "7")):
        for name in pair:
            x = relu(convolve(x, w[f"{name}.weight"], w[f"{name}.bias"]))
        x = pool(x, 2, 2)
    x = relu(dense(x.reshape(len(x), -1), w, "11"))
    return dense(relu(dense(x, w, "13")), w, "15")


# Wong & Kolter's network as a `Sequential` --------------------------------------------------------


def wong_kolter_shapes(classes: int = 10, flattened: int = 32 * 7 * 7) -> Shapes:
    shapes: Shapes = {"0.weight": (16, 1, 4, 4), "0.bias": (16,)}
    shapes |= {"2.weight": (32, 16, 4, 4), "2.bias": (32,)}
    return shapes | dense_shapes("5", 100, flattened) | dense_shapes("7", classes, 100)


def wong_kolter(x, w: Weights, seen: Seen = None):
    for name in ("0", "2"):
        x = relu(convolve(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1))
    return dense(relu(dense(x.reshape(len(x), -1), w, "5")), w, "7")
