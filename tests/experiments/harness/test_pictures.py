"""Pictures: curves of accuracy, and examples of images."""

from pathlib import Path

import numpy as np
import pytest

from experiments.harness.pictures import draw_accuracy, new_figure, plot_curve, plot_examples
from wasserstein_adv.errors import InputError

RADII = np.array([0, 0.1, 0.2, 0.2, 0.5, 0.9, np.inf, np.inf], np.float32)


def shapes(path: Path) -> tuple[int, ...]:
    """The shape of a PNG that is more than one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels[..., :3].std() > 0.02
    return pixels.shape


def test_curve_is_drawn(tmp_path):
    marks = {0.0: (0.875, 0.6, 0.97), 0.5: (0.375, 0.1, 0.7), 7.0: (0.25, 0.1, 0.5)}
    plot_curve(tmp_path / "one.png", {"attack": RADII}, 1.0, marks, "title")
    plot_curve(tmp_path / "two.png", {"a": RADII, "b": RADII / 2}, 1.0, {}, "title")
    assert shapes(tmp_path / "one.png")[0] > 400
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_curve_falls_where_the_images_are_fooled():
    axes = new_figure(4, 3).add_subplot()
    draw_accuracy(axes, RADII, (0.0, 1.0), "attack", 0)
    (line,) = axes.lines
    at, share = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(at, np.float32([0, 0.1, 0.2, 0.5, 0.9, 1]))
    np.testing.assert_allclose(share, [87.5, 75, 50, 37.5, 25, 25])


def test_curve_of_many_images_is_drawn_on_a_grid():
    axes = new_figure(4, 3).add_subplot()
    draw_accuracy(axes, np.linspace(0, 1, 3000), (0.0, 1.0), "attack", 0)
    assert len(axes.lines[0].get_xdata()) < 1100


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (1, 12), (3, 4)])
def test_examples_are_drawn(tmp_path, channels, count):
    rng = np.random.default_rng(0)
    clean = rng.random((count, 8, 8, channels), np.float32)
    radii = np.linspace(0.1, 1, count)
    radii[-1] = np.inf
    labels = np.arange(count) % 10
    distances = np.where(np.isfinite(radii), radii, np.nan)
    path = tmp_path / "examples.png"
    plot_examples(path, clean, clean[::-1], radii, labels, labels[::-1], distances)
    assert shapes(path)[1] > 160 * min(count, 10)
    plot_examples(path, clean, clean, radii, labels, labels)  # no change, nothing measured


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 8, 8, 2), (8, 8, 1)])
def test_examples_of_other_shapes_are_refused(tmp_path, shape):
    nothing = np.zeros(shape, np.float32)
    with pytest.raises(InputError):
        plot_examples(tmp_path / "no.png", nothing, nothing, *[np.zeros(2)] * 3)


def test_figures_that_cannot_be_drawn_or_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        plot_curve(tmp_path / "no" / "curve.png", {"a": RADII}, 1.0, {}, "")
    with pytest.raises(InputError, match="curves"):
        plot_curve(tmp_path / "curve.png", {}, 1.0, {}, "")
    with pytest.raises(InputError, match="max_radius"):
        plot_curve(tmp_path / "curve.png", {"a": RADII}, np.inf, {}, "")
