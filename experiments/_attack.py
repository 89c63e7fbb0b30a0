"""The command that attacks a classifier, whatever the dataset and the attack."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from experiments._attacks import (
    FAMILIES,
    INSIDE,
    KEEPS,
    OBJECTIVES,
    Family,
    check_batch_size,
    check_count,
    check_each,
    settings_of,
)
from experiments._evaluation import (
    Subject,
    begin,
    end,
    measure_distances,
    predictions,
    provenance,
    rulers,
    run_attack,
)
from experiments._grid import transport_measures, transport_summary
from experiments._report import plot_curve, plot_examples, results_table
from experiments._runs import save_arrays
from experiments._weights import ModelName
from wasserstein_adv.attacks import AttackResult
from wasserstein_adv.data import class_names, describe
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import accuracy_at, wilson_interval

AttackName = Literal[
    "projected-sinkhorn", "capped", "dual-projection", "frank-wolfe", "flow", "unbalanced"
]


@dataclass(frozen=True)
class AttackOptions:
    """What can be chosen of an attack; where nothing is given, its paper's protocol holds."""

    data: str = "auto"
    """The dataset."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or the folder of a training. By default a
    standard model of the dataset, trained on the first run and cached."""

    model: ModelName | None = None
    """The network that the checkpoint is of; by default what its training says, or else the one
    that the papers use with the dataset."""

    attack: AttackName = "projected-sinkhorn"
    """projected-sinkhorn (Wong et al. 2019): a Wasserstein ball that grows until the classifier
    errs. capped (Hu et al. 2020): the same with no pixel above white, and long steps.
    dual-projection, frank-wolfe (Wu et al. 2020): the coupling is moved, in one ball. flow: exact
    projections on a growing ball of the cost |Δrow| + |Δcol|, to anywhere. unbalanced
    (Subramanyam): steps drawn back by unbalanced transport."""

    preset: str = "paper"
    """Settings to start from: paper; script (projected-sinkhorn: those of the published script);
    transport (unbalanced: where mass really moves)."""

    num_images: int = 200
    """How many test images to attack, from the first."""

    steps: int | None = None
    """Gradient steps at most."""

    step_size: float | None = None
    """Length of a step: in intensities; for capped in shares of the image's mass, for flow that at
    radius 1. frank-wolfe has none."""

    p: float | None = None
    """Exponent of the ground cost; of flow's there is none."""

    radii: tuple[float, ...] | None = None
    """Balls: radii at which to report the accuracy that is left; by default a few that suit the
    attack."""

    start_radius: float | None = None
    """projected-sinkhorn, flow: radius of the first step."""

    growth: float | None = None
    """projected-sinkhorn, flow: factor by which the radius grows, with flow in every step,"""

    grow_every: int | None = None
    """with projected-sinkhorn once in so many."""

    increment: float | None = None
    """capped: growth of the radius in every step, from this."""

    reg: float | None = None
    """projected-sinkhorn, capped: λ, the projection's weight on the distance against the plan's
    entropy. frank-wolfe: 1/γ, weight of the gradient against it."""

    window: int | None = None
    """Balls but flow: side of the window in which mass may move, in pixels, odd."""

    variant: Literal["exact", "published"] | None = None
    """unbalanced: exact solves the stated problem; published is the paper's iteration."""

    norm: Literal["linf", "l2"] | None = None
    """unbalanced: sign steps, or steps along the gradient."""

    iterations: int | None = None
    """unbalanced: Sinkhorn iterations at most after each step."""

    eta: float | None = None
    """unbalanced: η, weight of the plan's entropy."""

    tau: float | None = None
    """unbalanced: τ, price of mass that appears or disappears."""

    gamma: float | None = None
    """unbalanced: γ, weight of the distance to the stepped image."""

    scale: float | None = None
    """unbalanced: length of the image's side in units of cost."""

    radius: float | None = None
    """dual-projection, frank-wolfe: ε. unbalanced: what the plan's normalised cost is compared
    with."""

    floor: float | None = None
    """unbalanced, published: what stands for a zero pixel under its logarithm."""

    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """What the attack maximises."""

    keep: Literal["first-success", "last", "highest-objective", "closest"] | None = None
    """Which iterate is the answer. By default the first success, and for unbalanced the last."""

    random_start: bool = False
    """Start from a random point."""

    restarts: int = 1
    """Random starts per image; more than one needs --random-start."""

    batch_size: int | Literal["auto"] = "auto"
    """Images in one call, over all devices; auto takes what suits them. Answers differ
    by no more than what the projections leave open."""

    seed: int = 0
    """Seed of the random starts and of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


_SHARED = ("objective", "random_start", "restarts")
_OWN = (
    "steps", "step_size", "p", "start_radius", "growth", "grow_every", "increment", "reg", "window",
    "variant", "norm", "iterations", "eta", "tau", "gamma", "scale", "radius", "floor",
)  # fmt: skip


def attack(config: AttackOptions, command: str) -> None:
    """Attack, measure the exact distances, and write `results.json`, arrays and pictures.

    Args:
        config: the command's options.
        command: its name, without the package.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    own = {option: getattr(config, option) for option in _OWN}
    colour = describe(config.data).colour
    protocol = settings_of(config.attack, config.preset, own, colour=colour)
    family = FAMILIES[config.attack]
    _check(config)
    keep = config.keep or family.keep
    radii = _radii(config, protocol)
    settings = {
        "attack": config.attack,
        **{option: getattr(config, option) for option in _SHARED},
        **({"radii": radii} if radii else {}),
        "keep": keep,
        **protocol._asdict(),
    }
    run = begin(config, "attack", settings, results_table, config.model)
    if run is None:
        return
    subject, folder = run.subject, run.folder
    built = family.build(
        subject.x.shape[1:3],
        protocol,
        objective=OBJECTIVES[config.objective],
        keep=KEEPS[keep](),
        random_start=config.random_start,
        restarts=config.restarts,
    )
    result, seconds = run_attack(
        subject, built, protocol.steps,
        batch_size=config.batch_size, seed=config.seed, folder=folder,
    )  # fmt: skip
    results = {
        **provenance(subject, command, config.seed),
        "attack": {
            "name": config.attack,
            **protocol._asdict(),
            "objective": config.objective,
            "keep": keep,
            "random_start": config.random_start,
            "restarts": config.restarts,
        },
        "seconds": {"attack": round(seconds, 3)},
        "images_per_second": len(subject.x) / seconds,
        **_share("nominal", predictions(subject.classifier, subject.x) == subject.y),
        "projections_converged": float(result.evidence.converged.mean()),
    }
    answers = predictions(subject.classifier, result.image)
    save_arrays(
        folder.path / "adversarial.npz",
        clean=subject.x, adversarial=result.image, before_clamp=result.evidence.point,
        label=subject.y, prediction=answers,
    )  # fmt: skip
    started = time.perf_counter()
    names = class_names(subject.data, config.data_dir) if colour else ()
    if family.ball is not None:
        results |= _report_ball(
            family, protocol, radii, folder.path, subject, result, answers, names
        )
    else:
        results |= _report_unbalanced(
            family, protocol, folder.path, subject, result, answers, names, keep
        )
    results["seconds"]["report"] = round(time.perf_counter() - started, 3)
    end(run, results, results_table)


def _check(config: AttackOptions) -> None:
    """Refuse what no attack's settings hold."""
    check_count("restarts", config.restarts)
    check_batch_size(config.batch_size)
    if config.radii is not None:
        if FAMILIES[config.attack].ball is None:
            raise InputError(f"--radii is not an option of --attack {config.attack}")
        check_each("radii", config.radii)
    if config.restarts > 1 and not config.random_start:
        raise InputError("--restarts above 1 needs --random-start")


def _radii(config: AttackOptions, protocol: Any) -> tuple[float, ...]:
    """The radii to report accuracy at; none for an attack without a ball."""
    ball = FAMILIES[config.attack].ball
    if ball is None:
        return ()
    return config.radii or ball.radii(protocol)


def _share(name: str, hits: np.ndarray) -> dict[str, Any]:
    """An accuracy with its interval, under the names that the results have for it."""
    interval = wilson_interval(int(hits.sum()), len(hits))
    return {f"{name}_accuracy": float(hits.mean()), f"{name}_interval": list(interval)}


# Wasserstein balls --------------------------------------------------------------------------------


def _report_ball(
    family: Family,
    protocol: Any,
    radii: tuple[float, ...],
    path: Path,
    subject: Subject,
    result: AttackResult,
    answers: np.ndarray,
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Accuracy against the radius, and the exact distances as fractions of it."""
    x = subject.x
    found = measure_distances(x, rulers(family, protocol, x, result.image, result.evidence.point))
    distances = {name: distance.total for name, distance in found.items()}
    distances["mass_change"] = found["global_distance"].mass_ratio - 1.0
    save_arrays(
        path / "radii.npz",
        radius=result.radius, budget=result.budget, steps=result.steps, success=result.success,
        label=subject.y, prediction=answers, plan_cost=result.distance,
        converged=result.evidence.converged, **distances,
    )  # fmt: skip
    curve = accuracy_at(result.radius, np.asarray(radii))
    marks = {
        r: (a, low, high)
        for r, a, low, high in zip(radii, curve.accuracy, curve.low, curve.high, strict=True)
    }
    window = getattr(protocol, "window", None)
    within = f"{window}×{window}" if window else "to anywhere"
    title = f"{subject.data}: {len(x):,} images, {family.title}, {within}"
    last = max(family.ball.largest(protocol), *radii)
    plot_curve(path / "curve.png", {"attack": result.radius}, last, marks, title)
    shown = _shown(result)
    plot_examples(
        path / "examples.png", x[shown], result.image[shown], result.radius[shown],
        subject.y[shown], answers[shown], next(iter(distances.values()))[shown],
        names=names,
    )  # fmt: skip

    def keyed(values: np.ndarray) -> dict[str, Any]:
        return {str(r): v for r, v in zip(radii, values, strict=True)}

    return {
        "adversarial_accuracy": keyed(curve.accuracy.tolist()),
        "adversarial_interval": keyed(np.stack([curve.low, curve.high], -1).tolist()),
        "median_radius": float(np.median(result.radius)),
        "distance_check": distance_summary(distances, result.budget),
    }


def distance_summary(
    distances: Mapping[str, np.ndarray], budget: Float[np.ndarray, "n"]
) -> dict[str, Any]:
    """Distances as fractions of the radius that was claimed, over the images that claimed one.

    Args:
        distances: those of `rulers`, and "mass_change".
        budget: the radius of each image's last projection, 0 where there was none.
    """
    claimed = budget > 0
    count = int(claimed.sum())
    if count == 0:
        return {"measured": 0}
    budget = budget[claimed].astype(np.float64)
    summary: dict[str, Any] = {"measured": count}
    for ruler in ("window", "global"):
        if f"{ruler}_distance" in distances:
            share = distances[f"{ruler}_distance"][claimed] / budget
            summary[ruler] = {
                "median": float(np.median(share)),
                "max": float(np.max(share)),
                "no_plan": float(np.isinf(share).mean()),
                "inside": float((share <= 1.0 + INSIDE).mean()),
            }
    if "window_before_clamp" in distances:
        before = distances["window_before_clamp"][claimed] / budget
        summary["window"]["inside_before_clamp"] = float((before <= 1.0 + INSIDE).mean())
    change = np.abs(distances["mass_change"][claimed])
    summary["mass_change"] = {"median": float(np.median(change)), "max": float(np.max(change))}
    return summary


def _shown(result: AttackResult) -> np.ndarray:
    """Ten images for the picture: those that the attack fooled, if it fooled any."""
    fooled = np.flatnonzero(result.success & (result.radius > 0))
    return (fooled if len(fooled) else np.arange(len(result.success)))[:10]


# Unbalanced transport -----------------------------------------------------------------------------


def _report_unbalanced(
    family: Family,
    protocol: Any,
    path: Path,
    subject: Subject,
    result: AttackResult,
    answers: np.ndarray,
    names: tuple[str, ...],
    keep: str,
) -> dict[str, Any]:
    """The accuracy that is left, what became of the mass, and the exact distances."""
    x = subject.x
    cost = family.cost(protocol, x.shape[1:3])
    distance = measure_distances(x, {"distance": (result.image, cost, None)})["distance"]
    measures = transport_measures(result, distance.total, distance.mass_ratio)
    save_arrays(
        path / "measures.npz",
        success=result.success, steps=result.steps, label=subject.y, prediction=answers,
        residual=result.evidence.residual, **measures,
    )  # fmt: skip
    shown = _shown(result)
    notes = [f"moved {100 * share:.2g} %" for share in measures["moved"][shown]]
    plot_examples(
        path / "examples.png", x[shown], result.image[shown], None,
        subject.y[shown], answers[shown], measures["distance"][shown], notes, names,
    )  # fmt: skip
    results = {
        **_share("attack", ~result.success),
        "transport": {
            **transport_summary(measures),
            "within_budget": float((measures["plan_cost"] <= protocol.radius).mean()),
            "budget": protocol.radius,
            "residual": float(result.evidence.residual.max()),
        },
    }
    if keep == "first-success":
        # The first success of an image says how many steps fool it: the whole sweep in one run.
        needed = np.where(result.success, result.steps, np.inf).astype(np.float64)
        at = np.arange(protocol.steps + 1)
        curve = accuracy_at(needed, at.astype(np.float64))
        results["accuracy_after_steps"] = {
            int(t): a for t, a in zip(at, curve.accuracy.tolist(), strict=True)
        }
        marks = {
            float(t): (curve.accuracy[t], curve.low[t], curve.high[t])
            for t in {protocol.steps // 4, protocol.steps // 2, protocol.steps}
        }
        title = f"{subject.data}: {len(x):,} images, unbalanced transport, {protocol.variant}"
        plot_curve(
            path / "curve.png", {"attack": needed}, float(protocol.steps), marks, title,
            "gradient steps",
        )  # fmt: skip
    return results
