"""Pictures: one style for all of them, and what several commands draw."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from experiments.harness.files import whole
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import accuracy_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe and Ito
_STYLES = ("-", "--", ":", "-.")  # of the curves, after so many colours
_MAX_KNOTS = 1000  # of a curve; more cannot be told apart in a figure
_MAX_EXAMPLES = 10
_CHARACTERS = 130  # to an inch of a legend in letters of one point
_LONGEST_NAME = 15  # letters, above a picture


# Figures ------------------------------------------------------------------------------------------


def plot_curve(
    path: Path,
    curves: Mapping[str, Float[np.ndarray, "n"]],
    max_radius: float,
    marks: Mapping[float, tuple[float, float, float]],
    title: str,
    label: str = "radius ε",
    min_radius: float = 0.0,
) -> None:
    """Draw accuracy against radius as a PNG: the share of images whose radius is above each r.

    Args:
        path: The file.
        curves: At least one, by name: the smallest radius at which each image is misclassified; 0
            for one misclassified clean, inf for one never fooled.
        max_radius: Where the axis ends, positive and finite.
        marks: Accuracies to point out, by radius: the share and the ends of its interval. Those
            beyond `max_radius` are left out.
        title: The figure's title.
        label: What stands for the radius, under the axis.
        min_radius: Where the axis begins: the smallest that was tried, below which nothing is said.

    Raises:
        InputError: As `accuracy_at`; there is no curve, `max_radius` is not positive and finite, or
            the file cannot be written.
    """
    if not curves:
        raise InputError("curves must hold at least one")
    if not 0 <= min_radius < max_radius < math.inf:
        raise InputError(f"max_radius must be above {min_radius} and finite, got {max_radius}")
    limits = (min_radius, max_radius)
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for number, (name, radii) in enumerate(curves.items()):
        draw_accuracy(axes, np.asarray(radii), limits, name, number)
    for radius, (share, low, high) in sorted(marks.items()):
        if min_radius <= radius <= max_radius:
            _draw_mark(axes, radius, share, low, high, max_radius)
    accuracy_axes(axes, limits)
    axes.set(xlabel=label, ylabel="accuracy (%), band: 95 % interval")
    axes.spines["left"].set_bounds(0, 100)
    axes.set_title(title, loc="left", fontsize=11, pad=8)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_accuracy(
    axes: "Axes",
    radii: Float[np.ndarray, "n"],
    limits: tuple[float, float],
    name: str,
    number: int,
    *,
    band: bool = True,
) -> None:
    """Draw one curve: the share of images whose radius is above each r between the limits.

    Args:
        axes: Where.
        radii: The smallest radius at which each image is misclassified, or whatever else it took.
        limits: The ends of the axis.
        name: The curve's, in a legend.
        number: Its place among the curves, which gives it a colour and a style of line.
        band: Whether to draw its pointwise 95 % Wilson band.
    """
    low, high = limits
    style, colour = divmod(number, len(COLOURS))
    # It falls at each radius, where the image is already fooled.
    knots = np.unique(radii[(radii > low) & (radii < high)])
    if len(knots) > _MAX_KNOTS:
        knots = np.linspace(low, high, _MAX_KNOTS, endpoint=False)[1:]
    curve = accuracy_at(radii, np.concatenate([[low], knots, [high]]))
    if band:
        axes.fill_between(
            curve.radius, 100 * curve.low, 100 * curve.high, step="post", color=COLOURS[colour],
            alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.step(
        curve.radius, 100 * curve.accuracy, where="post", label=name, lw=1.6,
        color=COLOURS[colour], ls=_STYLES[style % len(_STYLES)],
    )  # fmt: skip


def accuracy_axes(axes: "Axes", limits: tuple[float, float]) -> None:
    """Lay out axes of accuracies in percent."""
    axes.set(xlim=limits, ylim=(0, 105), yticks=range(0, 101, 20))  # room for a text at 100 %
    plain_axes(axes)


def plain_axes(axes: "Axes") -> None:
    """Take from axes the lines that say nothing, and give them faint ones to read by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def logarithmic(axes: "Axes") -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10, ..., if long 1, 3, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_xlim()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 3.0) if high > 40 * low else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_mark(
    axes: "Axes", radius: float, share: float, low: float, high: float, max_radius: float
) -> None:
    """Draw a share with its interval as a point with error bars, its percentage beside it."""
    ends = np.clip([[share - low], [high - share]], 0, None)
    axes.errorbar(
        radius, 100 * share, 100 * ends, fmt="o", color="black", ms=4, lw=1, capsize=2.5,
        clip_on=False, zorder=5,
    )  # fmt: skip
    near_edge = radius > 0.9 * max_radius
    axes.annotate(
        f"{100 * share:.1f} %", (radius, 100 * high), xytext=(-4 if near_edge else 4, 4),
        textcoords="offset points", ha="right" if near_edge else "left", fontsize=9, zorder=6,
    )  # fmt: skip


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
        radii: The radius at which each was found, inf for one never fooled; None for none.
        labels: Their classes.
        predictions: The network's answers to `adversarial`.
        distances: The exact distance of each, inf where there is no plan, NaN where not measured.
        notes: One more line for each image.
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
            draw_image(grid[row, column], np.clip(images[column], 0, 1))
        drawn = grid[2, column].imshow(
            change[column], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        _frame(grid[2, column])
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
    """Draw an image in [0, 1], grey or colour, without ticks; in a frame of a colour and of so many
    points, else in a faint one."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _frame(axes, frame, width)


def _frame(axes: "Axes", colour: str | None = None, width: float = 1.8) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour or "0.8", linewidth=width if colour else 0.6)


def legend_below(figure: "Figure", text: str, size: float = 8.0) -> None:
    """Write a legend of whole sentences below a figure, in lines that fit its width."""
    characters = int(figure.get_figwidth() * _CHARACTERS / size)
    figure.supxlabel(textwrap.fill(text, characters), fontsize=size)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches, outside pyplot and so without a window."""
    from matplotlib.figure import Figure  # here, because it takes a second to import

    return Figure((width, height), dpi=_DPI, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG, whole or not at all; raise InputError where that fails."""
    with whole(path) as written:
        figure.savefig(written, format="png")
