"""What a command shows and writes down about a run: figures, a table, its environment, JSON."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table

import wasserstein_adv
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import accuracy_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOT = Path(__file__).resolve().parents[1]
_LIBRARY = "wasserstein_adv"
_PACKAGES = ("jax", "jaxlib", "ott-jax", "optax", "flax", "numpy", "POT")

INCOMPLETE = ".incomplete."
"""What the name of a folder begins with in which something is written that is to appear whole."""

_DPI = 160
_GREY = "0.35"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe and Ito
_MAX_KNOTS = 1000  # of a curve; more cannot be told apart in a figure
_MAX_EXAMPLES = 10
_LONGEST_NAME = 15  # letters, above a picture


# Figures ------------------------------------------------------------------------------------------


def plot_curve(
    path: Path,
    curves: Mapping[str, Float[np.ndarray, "n"]],
    max_radius: float,
    marks: Mapping[float, tuple[float, float, float]],
    title: str,
    label: str = "radius ε",
) -> None:
    """Draw accuracy against radius as a PNG: the share of images whose radius is above each r.

    Args:
        path: The file.
        curves: At least one, by name: the smallest radius at which each image is misclassified; 0
            for one misclassified clean, inf for one never fooled. Each has its pointwise 95 %
            Wilson band.
        max_radius: Where the axis ends, positive and finite.
        marks: Accuracies to point out, by radius: the share and the ends of its interval, all
            from 0 to 1. Those beyond `max_radius` are left out.
        title: The figure's title.
        label: What stands for the radius, under the axis.

    Raises:
        InputError: As `wasserstein_adv.metrics.accuracy_at`; there is no curve, `max_radius` is
            not positive and finite, or the file cannot be written.
    """
    if not curves:
        raise InputError("curves must hold at least one")
    if not 0 < max_radius < math.inf:
        raise InputError(f"max_radius must be positive and finite, got {max_radius}")
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for number, (name, radii) in enumerate(curves.items()):
        _draw_curve(axes, np.asarray(radii), max_radius, name, COLOURS[number % len(COLOURS)])
    for radius, (share, low, high) in sorted(marks.items()):
        if radius <= max_radius:
            _draw_mark(axes, radius, share, low, high, max_radius)
    axes.set(xlim=(0, max_radius), xlabel=label, ylabel="accuracy (%)")
    axes.set(ylim=(0, 105), yticks=range(0, 101, 20))  # room for what is written at 100 %
    axes.spines["left"].set_bounds(0, 100)
    axes.set_title(title, loc="left", fontsize=11, pad=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def _draw_curve(
    axes: "Axes", radii: Float[np.ndarray, "n"], max_radius: float, name: str, colour: str
) -> None:
    """Draw one curve and its band. It falls at each radius, where the image is already fooled."""
    knots = np.unique(radii[radii < max_radius])
    if len(knots) > _MAX_KNOTS:
        knots = np.linspace(0, max_radius, _MAX_KNOTS, endpoint=False)
    curve = accuracy_at(radii, np.concatenate([[0.0], knots, [max_radius]]))
    axes.fill_between(
        curve.radius,
        100 * curve.low,
        100 * curve.high,
        step="post",
        color=colour,
        alpha=0.18,
        linewidth=0,
    )
    axes.step(curve.radius, 100 * curve.accuracy, where="post", color=colour, lw=1.6, label=name)


def _draw_mark(
    axes: "Axes", radius: float, share: float, low: float, high: float, max_radius: float
) -> None:
    """Draw a share with its interval as a point with error bars, its percentage beside it."""
    ends = np.clip([[share - low], [high - share]], 0, None)
    axes.errorbar(
        radius,
        100 * share,
        100 * ends,
        fmt="o",
        color="black",
        ms=4,
        lw=1,
        capsize=2.5,
        clip_on=False,
        zorder=5,
    )
    near_edge = radius > 0.9 * max_radius
    axes.annotate(
        f"{100 * share:.1f} %",
        (radius, 100 * high),
        xytext=(-4 if near_edge else 4, 4),
        textcoords="offset points",
        ha="right" if near_edge else "left",
        fontsize=9,
        zorder=6,
    )


def _short(name: str) -> str:
    """A class's name that fits above a picture: of WordNet's, the first word for the thing."""
    name = re.sub("^n[0-9]{8} ", "", name).split(",")[0]
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def plot_examples(
    path: Path,
    clean: Float[np.ndarray, "n h w c"],
    adversarial: Float[np.ndarray, "n h w c"],
    radii: Float[np.ndarray, "n"] | None,
    labels: Int[np.ndarray, "n"],
    predictions: Int[np.ndarray, "n"],
    distances: Float[np.ndarray, "n"] | None = None,
    notes: Sequence[str] = (),
    names: Sequence[str] = (),
) -> None:
    """Draw images, what the attack made of them and the change, one to a column, as a PNG.

    Above each stand its class and the network's answer, the attack's radius ε where it has one,
    the exact distance W where it was measured, and its note. All differences have one colour scale,
    symmetric about 0.

    Args:
        path: The file.
        clean: Grey (C = 1) or colour (C = 3) images in [0, 1]; the first ten are drawn.
        adversarial: The same images after the attack.
        radii: The radius at which each was found; inf for one that was never fooled. None for an
            attack without one.
        labels: Their classes.
        predictions: The network's answers to `adversarial`.
        distances: The exact distance of each, inf where no plan exists, NaN where it was not
            measured; None for none.
        notes: One more line for each image; none for no such line.
        names: What the classes are called; by default they are numbers.

    Raises:
        InputError: There is no image, the images do not match or are neither grey nor colour, or
            the file cannot be written.
    """
    clean, adversarial = np.asarray(clean), np.asarray(adversarial)
    if clean.shape != adversarial.shape or clean.ndim != 4 or clean.shape[-1] not in (1, 3):
        raise InputError(
            f"images must be of one shape (N, H, W, 1 or 3), got {clean.shape} and "
            f"{adversarial.shape}"
        )
    columns = min(len(clean), _MAX_EXAMPLES)
    if columns == 0:
        raise InputError("there is no image to draw")
    measured = np.full(len(clean), np.nan) if distances is None else np.asarray(distances)
    change = (adversarial - clean)[:columns].mean(axis=-1)
    limit = float(np.abs(change).max()) or 1.0

    figure = new_figure(1.3 + 1.1 * columns, 4.1)
    cells = figure.add_gridspec(3, columns + 1, width_ratios=[*[1] * columns, 0.1])
    grid = np.array([[figure.add_subplot(cells[r, c]) for c in range(columns)] for r in range(3)])
    for column in range(columns):
        for row, images in enumerate((clean, adversarial)):
            shown = np.clip(images[column], 0, 1)
            grid[row, column].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        drawn = grid[2, column].imshow(
            change[column], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        label, answer = int(labels[column]), int(predictions[column])
        if names:
            lines = [f"{_short(names[label])} →", _short(names[answer])]
        else:
            lines = [f"{label} → {answer}"]
        if radii is not None:
            fooled = np.isfinite(radii[column])
            lines.append(f"ε = {radii[column]:.3g}" if fooled else "not fooled")
        if not np.isnan(measured).all():
            known = not np.isnan(measured[column])
            lines.append(f"W = {measured[column]:.3g}" if known else "W not measured")
        lines.extend(notes[column : column + 1])
        grid[0, column].set_title("\n".join(lines), fontsize=8, linespacing=1.35)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="0.8", linewidth=0.6)
    for row, name in enumerate(("clean", "adversarial", "difference")):
        grid[row, 0].set_ylabel(name, fontsize=9)
    bar = figure.colorbar(drawn, cax=figure.add_subplot(cells[2, columns]))
    of = "intensity" if clean.shape[-1] == 1 else "the channels' mean"
    bar.set_label(f"change of\n{of}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    save_figure(figure, path)


def draw_image(
    axes: "Axes", image: Float[np.ndarray, "h w c"], frame: str | None = None, width: float = 1.8
) -> None:
    """Draw an image, grey or colour, without ticks; in a frame of a colour, else in a faint one.

    Args:
        axes: Where.
        image: In [0, 1].
        frame: The frame's colour; None for the faint one.
        width: The frame's width in points.
    """
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame or "0.8", linewidth=width if frame else 0.6)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches, outside pyplot and so without a window."""
    from matplotlib.figure import Figure  # here, because it takes a second to import

    return Figure((width, height), dpi=_DPI, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG; raise InputError where that fails."""
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file; raise InputError where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


# Tables -------------------------------------------------------------------------------------------


def markdown_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out cells as a Markdown table, its lines: the first column to the left, the others to the
    right."""
    rule = ("---", *("---:" for _ in header[1:]))
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a run's results for the terminal.

    Args:
        results: What `results.json` holds. What is missing from it or None has no row.

    Returns:
        The accuracies with their 95 % intervals, the median radius, the exact distances and the
        time it took.
    """
    dataset = results.get("dataset") or {}
    count = dataset.get("num_images")
    images = f", {count:,} images" if count is not None else ""
    table = Table(title=f"{dataset.get('name', 'results')} {dataset.get('split', '')}{images}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    parts = (_accuracy_rows, _distance_rows, _transport_rows, _time_rows)
    for row in (row for part in parts for row in part(results)):
        table.add_row(*row)
    return table


def _accuracy_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    if (nominal := results.get("nominal_accuracy")) is not None:
        interval = _interval(results.get("nominal_interval"))
        rows.append(("nominal accuracy", _percent(nominal), interval))
    intervals = results.get("adversarial_interval") or {}
    adversarial = results.get("adversarial_accuracy") or {}
    for radius in sorted(adversarial, key=float):
        name = f"accuracy at radius {radius}"
        rows.append((name, _percent(adversarial[radius]), _interval(intervals.get(radius))))
    if (left := results.get("attack_accuracy")) is not None:
        interval = _interval(results.get("attack_interval"))
        rows.append(("accuracy after the attack", _percent(left), interval))
    if (median := results.get("median_radius")) is not None:
        rows.append(("median radius", _number(median), ""))
    return rows


def _distance_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    check = results.get("distance_check") or {}
    rows = []
    if (measured := check.get("measured")) is not None:
        rows.append(("exact distances measured", f"{measured:,}", ""))
    names = {"window": "window", "global": "global", "mass_change": "mass change"}
    for key, name in names.items():
        part = check.get(key) or {}
        what = name if key == "mass_change" else f"distance / radius, {name}"
        for measure in ("median", "max"):
            if (value := part.get(measure)) is not None:
                rows.append((f"{what}: {measure}", _number(value), ""))
        for measure, when in (("inside_before_clamp", " before the clamp"), ("inside", "")):
            if (share := part.get(measure)) is not None:
                rows.append((f"inside the ball{when}, {name}", _percent(share), ""))
    return rows


_TRANSPORT = {
    "moved": "mass moved, share of the plan",
    "unmatched": "mass deleted and created",
    "mass_change": "mass change",
    "distance": "exact distance, masses normalised",
    "plan_cost": "cost of the plan, in its own unit",
}


def _transport_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = results.get("transport") or {}
    rows = []
    for key, name in _TRANSPORT.items():
        for measure in ("mean", "max"):
            if (value := (found.get(key) or {}).get(measure)) is not None:
                rows.append((f"{name}: {measure}", _number(value), ""))
    if (share := found.get("within_budget")) is not None:
        rows.append((f"plans within the budget of {found['budget']}", _percent(share), ""))
    if (residual := found.get("residual")) is not None:
        rows.append(("optimality residual: max", _number(residual), ""))
    return rows


def _time_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    seconds = results.get("seconds") or {}
    rows = [
        (f"seconds: {part}", f"{float(seconds[part]):,.1f}", "")
        for part in ("attack", "report")
        if seconds.get(part) is not None
    ]
    if (rate := results.get("images_per_second")) is not None:
        rows.append(("images per second", _number(rate), ""))
    return rows


def _percent(share: float) -> str:
    return f"{100 * float(share):.2f} %"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{100 * float(ends[0]):.2f} – {100 * float(ends[1]):.2f} %"


def _number(value: float | str) -> str:
    return f"{float(value):.4g}"  # "inf" too


# The environment ----------------------------------------------------------------------------------


def library_version() -> str:
    """Return the library's version."""
    return wasserstein_adv.__version__


def run_environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on, apart from its settings.

    Returns:
        "python", "platform", "cpu_count"; the version of "wasserstein_adv" and of every package
        that computes, None for one that is not installed; "device", JAX's "platform", "kind" and
        "count"; "git_commit" of this checkout and whether it is "git_dirty" (files changed or
        added since), both None outside a git checkout or without git.
    """
    import jax

    devices = jax.devices()
    return {
        "python": platform.python_version(),
        _LIBRARY: library_version(),
        **{package: _installed(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        **_git_state(_ROOT),
    }


def _installed(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git_state(root: Path) -> dict[str, str | bool | None]:
    """Return the commit checked out at `root`, and whether files there differ from it."""
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    # A copy inside somebody else's checkout is not theirs.
    if not top or not commit or Path(top).resolve() != root.resolve():
        return {"git_commit": None, "git_dirty": None}
    changes = _git(root, "--no-optional-locks", "status", "--porcelain")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command printed; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# JSON ---------------------------------------------------------------------------------------------


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write an object as strict JSON, in one step: the file is the old one or the new, whole.

    Args:
        path: The file; one that is there is replaced.
        obj: Dictionaries, lists, tuples, strings, numbers, booleans, None, paths, and NumPy or
            JAX arrays and scalars. As JSON has no such numbers, NaN becomes null and the
            infinities the strings "inf" and "-inf".

    Raises:
        InputError: The file cannot be written.
        TypeError: The object holds anything else.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with tempfile.TemporaryDirectory(prefix=INCOMPLETE, dir=path.parent) as folder:
            written = Path(folder) / path.name
            written.write_text(text, encoding="utf-8")
            os.replace(written, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _plain(obj: Any) -> Any:
    """Return an object in the types and numbers that strict JSON has."""
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if hasattr(obj, "tolist"):  # arrays and scalars of NumPy and JAX
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None if math.isnan(obj) else str(obj)
    return obj
