"""The command that attacks a classifier, whatever the dataset and the attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

from experiments.evaluation import session
from experiments.evaluation.cells import Cell, Files, Ruler, cell_of, sweep
from experiments.harness import arguments
from experiments.harness.catalogue.attacks import (
    ATTACKS,
    OBJECTIVES,
    RENAMED,
    Attack,
    AttackName,
    PresetName,
    attack_settings,
)
from experiments.harness.catalogue.datasets import ModelName
from experiments.harness.files import file_name
from experiments.harness.pictures import plot_curve, plot_examples
from experiments.harness.tables import Table, heading
from wasserstein_adv.data import class_names, describe
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Figure, entry_of, figure
from wasserstein_adv.metrics import accuracy_at

Figures = dict[str, Figure]


@dataclass(frozen=True)
class AttackOptions(session.ModelOptions):
    """What can be chosen of an attack; where nothing is given, its paper's protocol holds."""

    model: ModelName | None = None
    """The network that the checkpoint is of; by default what its training says, or else the one
    that the papers use with the dataset."""

    attack: AttackName = "wong"

    preset: PresetName = "paper"

    radii: tuple[float, ...] | None = None
    """Radii at which to report the accuracy that is left, of an attack in a ball; by default a few
    that suit the attack."""

    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """What the attack maximises."""

    keep: Literal["first-success", "last", "highest-objective", "closest"] | None = None
    """Which iterate is the answer. By default the first success, and for unbalanced the last."""

    random_start: bool = False
    """Start from a random point."""

    restarts: int = 1
    """Random starts per image; more than one needs --random-start."""

    settings: tyro.conf.Suppress[Any] = None
    """The attack's own; None for those of the preset."""

    choice: ClassVar[arguments.Choice] = arguments.Choice(
        "attack", ("attack", "preset", "data"), attack_settings, ATTACKS, RENAMED
    )


def attack(options: AttackOptions) -> None:
    """Attack, measure the exact distances, and write what was found, arrays and pictures.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    arguments.use_all_cores()  # before a geometry is built
    entry = ATTACKS[options.attack]
    protocol = options.settings
    if protocol is None:
        protocol = attack_settings(options.attack, options.preset, options.data)
    radii = _check(options, entry, protocol)
    keep = options.keep or entry.keep
    first_order = {name: getattr(options, name) for name in ("random_start", "restarts")}
    settings = {
        "attack": options.attack,
        "objective": options.objective,
        **first_order,
        **({"radii": radii} if radii else {}),
        "keep": keep,
        **protocol._asdict(),
    }
    run = session.begin(options, "attack", settings, options.model)
    if run is None:
        return
    rulers = _rulers(entry, protocol, run.subject.grid_size)
    objective = OBJECTIVES[options.objective]
    cell = cell_of(entry, protocol, run.subject, rulers, keep, objective=objective, **first_order)

    def figures(name: str, cell: Cell, files: Files) -> Figures:
        del name, cell
        converged = figure("mean", f"{file_name(options.attack)}/converged")
        if entry.largest:
            found = _in_a_ball(options, protocol, radii)
        else:
            found = _in_no_ball(options, protocol, keep, files)
        return {**found, session.CONVERGED: converged}

    found = sweep(run, {options.attack: cell}, options, figures=figures)
    arrays = found.files[file_name(options.attack)]
    attack, report = (round(float(arrays[name]), 3) for name in ("seconds", "measuring"))
    rate = len(arrays["success"]) / float(arrays["seconds"])
    results = {
        **found.results,
        "seconds": {"attack": attack, "report": report},
        "images_per_second": rate,
    }
    _draw(run, options, entry, protocol, radii, results, found.files)
    session.end(run, results, [results_table(results)], found.parts)


def _check(options: AttackOptions, entry: Attack, protocol: Any) -> tuple[float, ...]:
    """The radii to report accuracy at, all options checked; none for an attack without a ball."""
    shape = describe(options.data).image_shape
    arguments.check_settings(protocol, lambda settings: entry.build(shape[:2], settings))
    arguments.check_count("restarts", options.restarts)
    if options.restarts > 1 and not options.random_start:
        raise InputError("--restarts above 1 needs --random-start")
    if options.radii is None:
        return entry.radii_of(protocol)
    if entry.largest is None:
        raise InputError(f"--radii is not an option of --attack {options.attack}")
    arguments.check_each("radii", options.radii)
    return options.radii


def _rulers(entry: Attack, protocol: Any, grid_size: tuple[int, int]) -> dict[str, Ruler]:
    """How the attack's images are measured: against its ball where it has one."""
    ground, window = entry.ground(protocol, grid_size), entry.window(protocol)
    if entry.largest is None:
        return {"distance": Ruler(ground)}
    rulers = {"window_distance": Ruler(ground, window)} if window else {}
    if entry.clamped(protocol):
        rulers["window_before_clamp"] = Ruler(ground, window, "before_clamp")
    return {**rulers, "global_distance": Ruler(ground)}


def _in_a_ball(options: AttackOptions, protocol: Any, radii: tuple[float, ...]) -> Figures:
    """Accuracy against the radius, and the exact distances as fractions of it."""
    entry, at = ATTACKS[options.attack], f"{file_name(options.attack)}/"
    claimed = ((f"{at}budget", ">", 0),)
    figures = {
        "adversarial_accuracy": figure("above", f"{at}radius", at=radii),
        "adversarial_interval": figure("above_interval", f"{at}radius", at=radii),
        "median_radius": figure("median", f"{at}radius"),
        "distance_check/measured": figure("count", f"{at}budget", where=claimed),
    }
    rulers = _rulers(entry, protocol, (1, 1))
    for ruler in ("window", "global"):
        if f"{ruler}_distance" in rulers:
            figures[f"distance_check/{ruler}"] = figure(
                "against", f"{at}{ruler}_distance", f"{at}budget"
            )
    if entry.clamped(protocol):
        figures["distance_check/inside_before_clamp"] = figure(
            "inside", f"{at}window_before_clamp", f"{at}budget"
        )
    mass = figure("extremes", f"{at}mass_change", where=claimed)
    return {**figures, "distance_check/mass_change": mass}


def _in_no_ball(options: AttackOptions, protocol: Any, keep: str, files: Files) -> Figures:
    """The accuracy that is left, the exact distances, and what became of the mass."""
    file = file_name(options.attack)
    there = [key for key in _TRANSPORT if key in files[file] and key != "plan_cost"]
    figures = {
        "attack_accuracy": figure("left", f"{file}/success"),
        "attack_interval": figure("left_interval", f"{file}/success"),
        **{f"transport/{key}": figure("summary", f"{file}/{key}") for key in there},
    }
    if "moved" in there:  # there is a plan
        plan = f"{file}/plan_cost"
        figures |= {
            "transport/plan_cost": figure("summary", plan),
            "transport/within_budget": figure("at_most", plan, limit=protocol.radius),
            "transport/residual": figure("largest", f"{file}/residual"),
        }
    if keep == "first-success":
        # The first success of an image says how many steps fool it: the whole sweep in one run.
        steps = (f"{file}/steps", f"{file}/success")
        figures["accuracy_after_steps"] = figure("after_steps", *steps, last=protocol.steps)
    return figures


def results_table(results: Mapping[str, Any]) -> Table:
    """The accuracies with their 95 % intervals, the exact distances, and the time it took."""
    rows = []

    def row(name: str, place: str, form: str = "{:.4g}", interval: str = "") -> None:
        if (value := entry_of(results, place)) is None:
            return
        ends = entry_of(results, interval) if interval else None
        between = "{:.2f} – {:.2f} %".format(*(100 * end for end in ends)) if ends else ""
        rows.append((name, form.format(value).replace("%", " %"), between))

    row("nominal accuracy", "nominal_accuracy", "{:.2%}", "nominal_interval")
    for radius in sorted(results.get("adversarial_accuracy", {}), key=float):
        place = f"adversarial_accuracy/{radius}"
        row(f"accuracy at radius {radius}", place, "{:.2%}", f"adversarial_interval/{radius}")
    row("accuracy after the attack", "attack_accuracy", "{:.2%}", "attack_interval")
    row("median radius", "median_radius")
    row("projections converged", session.CONVERGED, "{:.2%}")
    row("exact distances measured", "distance_check/measured", "{:,}")
    for key in ("window", "global"):
        for measure in ("median", "max"):
            row(f"distance / radius, {key}: {measure}", f"distance_check/{key}/{measure}")
        if key == "window":
            before = "distance_check/inside_before_clamp"
            row("inside the ball before the clamp, window", before, "{:.2%}")
        row(f"inside the ball, {key}", f"distance_check/{key}/inside", "{:.2%}")
    for measure in ("median", "max"):
        row(f"mass change: {measure}", f"distance_check/mass_change/{measure}")
    for key, name in _TRANSPORT.items():
        for measure in ("mean", "max"):
            row(f"{name}: {measure}", f"transport/{key}/{measure}")
    budget = results["settings"].get("radius")
    row(f"plans within the budget of {budget}", "transport/within_budget", "{:.2%}")
    row("optimality residual: max", "transport/residual")
    for part in ("attack", "report"):
        row(f"seconds: {part}", f"seconds/{part}", "{:,.1f}")
    row("images per second", "images_per_second")
    return Table(heading(results), ("measure", "value", "95 % interval"), rows)


_TRANSPORT = {
    "moved": "mass moved, share of the plan",
    "unmatched": "mass deleted and created",
    "mass_change": "mass change",
    "distance": "exact distance, masses normalised",
    "plan_cost": "cost of the plan, in its own unit",
}


def _draw(
    run: session.Run,
    options: AttackOptions,
    entry: Attack,
    protocol: Any,
    radii: tuple[float, ...],
    results: Mapping[str, Any],
    files: Files,
) -> None:
    """Draw the accuracy as a curve, and ten images: those fooled, if there are any."""
    path, arrays, x = run.folder.path, files[file_name(options.attack)], run.subject.x
    title = f"{run.subject.data}: {len(x):,} images, {entry.title}, "
    needed, success = arrays["radius"], arrays["success"]
    if entry.largest:
        window = entry.window(protocol)
        title += f"{window}×{window}" if window else "to anywhere"
        last, at = max(entry.largest(protocol), *radii), radii
        first, label = entry.first(protocol), "radius ε (pixels × share of the image's mass)"
    else:
        title += getattr(protocol, "variant", "")
        needed = np.where(success, arrays["steps"], np.inf).astype(np.float64)
        first, last, label = 0.0, float(protocol.steps), "gradient steps"
        at = sorted({protocol.steps // 4, protocol.steps // 2, protocol.steps})
    if entry.largest or "accuracy_after_steps" in results:
        curve = accuracy_at(needed, np.asarray(at))
        marks = dict(
            zip(
                map(float, at), zip(curve.accuracy, curve.low, curve.high, strict=True), strict=True
            )
        )
        plot_curve(path / "curve.png", {"attack": needed}, last, marks, title, label, first)

    chosen = np.flatnonzero(success & (arrays["radius"] > 0))
    shown = (chosen if len(chosen) else np.arange(len(x)))[:10]
    colour = describe(run.subject.data).colour
    measured = next(name for name in arrays if name.endswith("distance"))
    moved = arrays["moved"][shown] if "moved" in arrays else ()
    plot_examples(
        path / "examples.png", x[shown], arrays["image"][shown],
        arrays["radius"][shown] if entry.largest else None,
        run.subject.y[shown], arrays["prediction"][shown], arrays[measured][shown],
        [f"moved {100 * share:.2g} %" for share in moved],
        class_names(run.subject.data, options.data_dir) if colour else (),
    )  # fmt: skip
