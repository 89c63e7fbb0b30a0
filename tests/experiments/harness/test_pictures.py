"""Figures, the results table, the environment and strict JSON."""

import io
import json
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import _report
from experiments._report import (
    library_version,
    plot_curve,
    plot_examples,
    results_table,
    run_environment,
    write_json_atomic,
)
from wasserstein_adv.errors import InputError

RADII = np.array([0, 0.1, 0.2, 0.2, 0.5, 0.9, np.inf, np.inf], np.float32)

RESULTS = {
    "dataset": {"name": "mnist", "split": "test", "num_images": 1000},
    "nominal_accuracy": 0.989,
    "nominal_interval": [0.981, 0.994],
    "adversarial_accuracy": {"1.0": 0.12, "0.5": 0.39},
    "adversarial_interval": {"1.0": [0.1, 0.14], "0.5": [0.36, 0.42]},
    "median_radius": "inf",
    "seconds": {"attack": 12.0, "report": 1234.5},
    "images_per_second": 83.2,
    "distance_check": {
        "measured": 980,
        "window": {
            "median": 0.97,
            "max": 1.01,
            "inside_before_clamp": 1.0,
            "inside": 0.985,
        },
        "global": {"median": 0.91, "max": 1.0},
        "mass_change": {"median": 0.001, "max": 0.02},
    },
}


def shapes(path: Path) -> tuple[int, ...]:
    """The shape of a PNG that is more than one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels[..., :3].std() > 0.02
    return pixels.shape


def rendered(results: dict) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table(results))
    return console.file.getvalue()


def test_curve_is_drawn(tmp_path):
    marks = {0.0: (0.875, 0.6, 0.97), 0.5: (0.375, 0.1, 0.7), 7.0: (0.25, 0.1, 0.5)}
    plot_curve(tmp_path / "one.png", {"attack": RADII}, 1.0, marks, "title")
    plot_curve(tmp_path / "two.png", {"a": RADII, "b": RADII / 2}, 1.0, {}, "title")
    assert shapes(tmp_path / "one.png")[0] > 400
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_curve_falls_where_the_images_are_fooled():
    axes = _report.new_figure(4, 3).add_subplot()
    _report._draw_curve(axes, RADII, 1.0, "attack", "black")
    (line,) = axes.lines
    at, share = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(at, np.float32([0, 0, 0.1, 0.2, 0.5, 0.9, 1]))
    np.testing.assert_allclose(share, [87.5, 87.5, 75, 50, 37.5, 25, 25])


def test_curve_of_many_images_is_drawn_on_a_grid():
    axes = _report.new_figure(4, 3).add_subplot()
    _report._draw_curve(axes, np.linspace(0, 1, 3000), 1.0, "attack", "black")
    assert len(axes.lines[0].get_xdata()) < 1100


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 12])
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


def test_table_holds_every_number():
    shown = rendered(RESULTS)
    for expected in (
        "mnist test, 1,000 images",
        "98.90 %",
        "98.10 – 99.40 %",
        "39.00 %",
        "36.00 – 42.00 %",
        "inf",
        "980",
        "0.97",
        "100.00 %",
        "98.50 %",
        "0.001",
        "1,234.5",
        "83.2",
    ):
        assert expected in shown
    assert shown.index("radius 0.5") < shown.index("radius 1.0")


@pytest.mark.parametrize("missing", [*RESULTS, None])
def test_table_does_without_what_is_missing(missing):
    some = {} if missing is None else {**RESULTS, missing: None}
    assert "measure" in rendered(some)


def test_environment_is_json_and_names_what_ran():
    found = run_environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"]["count"] >= 1
    assert found["numpy"] == np.__version__
    assert found["wasserstein_adv"] == library_version()
    assert {"jax", "jaxlib", "ott-jax", "optax", "flax", "POT", "git_commit"} <= found.keys()


def test_git_is_optional(tmp_path, monkeypatch):
    unknown = {"git_commit": None, "git_dirty": None}
    assert _report._git_state(tmp_path) == unknown
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _report._git_state(Path(_report.__file__).parents[1]) == unknown


def test_git_state_is_that_of_this_checkout_only(tmp_path, monkeypatch):
    if _report._git(tmp_path, "--version") is None:
        pytest.skip("needs git")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").touch()
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m", "--no-verify"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    clean = _report._git_state(tmp_path)
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] is False
    assert _report._git_state(tmp_path / "inside")["git_commit"] is None
    (tmp_path / "inside" / "file").write_text("changed")
    assert _report._git_state(tmp_path) == {**clean, "git_dirty": True}


def test_json_is_strict(tmp_path):
    path = tmp_path / "results.json"
    obj = {
        0.5: float("nan"),
        "infinite": [np.float32(np.inf), -np.inf],
        "arrays": (np.array([[1.5, np.nan]]), jnp.arange(2), np.bool_(True), np.int64(3)),
        "path": Path("a"),
        "text": "ε",
        "none": None,
    }
    write_json_atomic(path, obj)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(path.read_text("utf-8"), parse_constant=refuse) == {
        "0.5": None,
        "infinite": ["inf", "-inf"],
        "arrays": [[[1.5, None]], [0, 1], True, 3],
        "path": "a",
        "text": "ε",
        "none": None,
    }


def test_json_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomic(path, {"run": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"run": object()})
    assert json.loads(path.read_text()) == {"run": 1}
    write_json_atomic(path, {"run": 2})
    assert json.loads(path.read_text()) == {"run": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    with pytest.raises(InputError, match="cannot be written"):
        write_json_atomic(tmp_path / "no" / "results.json", {})
