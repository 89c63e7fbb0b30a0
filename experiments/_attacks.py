"""The attacks by the names that the commands take, with their papers' settings."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from wasserstein_adv.attacks import (
    FirstOrderAttack,
    Keep,
    closest,
    cross_entropy,
    first_success,
    highest_objective,
    last,
    margin,
)
from wasserstein_adv.attacks import flow as flow_attack
from wasserstein_adv.attacks.flow import FlowProtocol
from wasserstein_adv.attacks.hu import CIFAR10 as HU_CIFAR10
from wasserstein_adv.attacks.hu import HuProtocol, hu
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT, unbalanced
from wasserstein_adv.attacks.wong import CIFAR10 as WONG_CIFAR10
from wasserstein_adv.attacks.wong import MNIST, MNIST_SCRIPT, wong
from wasserstein_adv.attacks.wu import (
    FrankWolfeProtocol,
    ProjectionProtocol,
    wu_frank_wolfe,
    wu_projection,
)
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import Cost, euclidean_power, minkowski, unit_square

INSIDE = 1e-4
"""Relative slack of "inside the ball": float32 images, their mass rounded."""

OBJECTIVES = {"cross-entropy": cross_entropy, "margin": margin}
KEEPS: dict[str, Callable[[], Keep]] = {
    "first-success": first_success,
    "last": last,
    "highest-objective": highest_objective,
    "closest": closest,
}


class Ball(NamedTuple):
    """What is particular to an attack within a Wasserstein ball."""

    largest: Callable[[Any], float]
    """settings ↦ the radius of the last step."""
    radii: Callable[[Any], tuple[float, ...]]
    """settings ↦ the radii at which accuracy is reported unless others are asked for."""
    clamped: bool = False
    """Whether the projected image is clamped to [0, 1] afterwards, which can lead out of it."""


class Family(NamedTuple):
    """An attack that takes settings."""

    title: str
    """The attack in a few words."""

    presets: Mapping[str, Any]
    """Settings by name, NamedTuples of one type; the first is the default."""
    build: Callable[..., FirstOrderAttack]
    """(grid_size, settings, **first_order_options) ↦ the attack."""
    keep: str
    """The rule of `KEEPS` for which iterate is the answer."""
    options: Mapping[str, str]
    """Options of the command that have another name than the setting."""
    positive: tuple[str, ...]
    """Settings that must be positive."""
    counts: tuple[str, ...]
    """Settings that must be 1 or more."""
    cost: Callable[[Any, tuple[int, int]], Cost]
    """(settings, grid_size) ↦ the cost of a displacement in pixels, by which it is measured: in
    pixels for balls, in the unit square, whatever the scale, for unbalanced."""
    ball: Ball | None = None
    """None for an attack that no ball bounds."""
    colour: Mapping[str, Any] = MappingProxyType({})
    """Presets that take the place of those above on colour images: CIFAR-10's in the papers."""


def _in_unit_square(settings: Any, grid_size: tuple[int, int]) -> Cost:
    row, column = unit_square(*grid_size)
    ground = minkowski(settings.p)
    return lambda drow, dcol: ground(drow * row, dcol * column)


def _euclidean(settings: Any, grid_size: tuple[int, int]) -> Cost:
    del grid_size
    return euclidean_power(settings.p)


def _grown(settings: Any, every: int) -> float:
    with np.errstate(over="ignore"):
        growth = np.power(settings.factor, float((settings.steps - 1) // every))
        return float(settings.start * growth)


_SMALL = (0.01, 0.02, 0.05, 0.1, 0.2)
_AT_ONE_RADIUS = Ball(lambda settings: settings.radius, lambda settings: (settings.radius,))

FAMILIES = {
    "projected-sinkhorn": Family(
        title="projected Sinkhorn",
        presets={"paper": MNIST, "script": MNIST_SCRIPT},
        build=wong,
        keep="first-success",
        options={"start": "start_radius", "factor": "growth", "every": "grow_every"},
        positive=("start", "factor", "step_size", "reg", "p"),
        counts=("every", "steps"),
        cost=_euclidean,
        ball=Ball(
            lambda settings: _grown(settings, settings.every),
            lambda settings: (0.3, 0.5, 0.7, 1.0) if settings.start >= 0.1 else _SMALL,
            clamped=True,
        ),
        colour={"paper": WONG_CIFAR10, "script": WONG_CIFAR10._replace(p=2.0)},
    ),
    "capped": Family(
        title="capped projected Sinkhorn",
        presets={"paper": HuProtocol()},
        build=hu,
        keep="first-success",
        options={},
        positive=("increment", "step_size", "reg", "p"),
        counts=("steps",),
        cost=_euclidean,
        ball=Ball(
            lambda settings: settings.increment * settings.steps,
            lambda settings: (0.05, 0.1, 0.2, 0.5, 1.0) if settings.increment >= 0.01 else _SMALL,
        ),
        colour={"paper": HU_CIFAR10},
    ),
    "dual-projection": Family(
        title="dual projection",
        presets={"paper": ProjectionProtocol()},
        build=wu_projection,
        keep="first-success",
        options={},
        positive=("radius", "step_size", "p"),
        counts=("steps",),
        cost=_euclidean,
        ball=_AT_ONE_RADIUS,
    ),
    "frank-wolfe": Family(
        title="Frank-Wolfe",
        presets={"paper": FrankWolfeProtocol()},
        build=wu_frank_wolfe,
        keep="first-success",
        options={},
        positive=("radius", "reg", "p"),
        counts=("steps",),
        cost=_euclidean,
        ball=_AT_ONE_RADIUS,
    ),
    "flow": Family(
        title="exact projection, flow",
        presets={"paper": FlowProtocol()},
        build=flow_attack,
        keep="first-success",
        options={"start": "start_radius", "factor": "growth"},
        positive=("start", "factor", "step_size"),
        counts=("steps",),
        cost=lambda settings, grid_size: minkowski(1.0),
        ball=Ball(lambda settings: _grown(settings, 1), lambda _: (0.02, 0.05, 0.1, 0.2, 0.5)),
    ),
    "unbalanced": Family(
        title="unbalanced transport",
        presets={"paper": PAPER, "transport": TRANSPORT},
        build=unbalanced,
        keep="last",
        options={},
        positive=("step_size", "eta", "tau", "gamma", "p", "scale", "radius", "floor"),
        counts=("steps", "iterations"),
        cost=_in_unit_square,
    ),
}


def flag(option: str) -> str:
    """`--an-option` of an_option."""
    return "--" + option.replace("_", "-")


def settings_of(
    attack: str, preset: str, options: Mapping[str, Any], *, colour: bool = False
) -> Any:
    """The settings of a preset with the options that were given in their place, checked.

    Args:
        attack: a name of `FAMILIES`.
        preset: one of its presets.
        options: values by the command's names; None for one that was not given.
        colour: whether the images have colours.

    Raises:
        InputError: the attack has no such preset or option, or a value is out of range.
    """
    family = FAMILIES[attack]
    if preset not in family.presets:
        raise InputError(f"--preset of {attack} must be {' or '.join(family.presets)}")
    settings = presets_of(attack, colour)[preset]
    fields = {family.options.get(field, field): field for field in settings._fields}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in fields:
            raise InputError(f"{flag(option)} is not an option of --attack {attack}")
    settings = settings._replace(**{fields[option]: value for option, value in given.items()})
    check_settings(family, settings)
    if "floor" in given and settings.variant != "published":
        raise InputError("--floor is for --variant published")
    return settings


def presets_of(attack: str, colour: bool) -> dict[str, Any]:
    """An attack's settings by name, for images with or without colours."""
    family = FAMILIES[attack]
    return {**family.presets, **(family.colour if colour else {})}


def check_settings(family: Family, settings: Any) -> None:
    """Raise InputError, with the option's name, where a setting is out of range."""
    for field, value in settings._asdict().items():
        option = family.options.get(field, field)
        if field in family.positive:
            check_positive(option, value)
        if field in family.counts:
            check_count(option, value)
        if field == "window" and (value < 1 or value % 2 == 0):
            raise InputError(f"{flag(option)} must be odd and positive, got {value}")


def check_positive(option: str, value: float) -> None:
    """Raise InputError unless a number is positive and finite in the float32 that computes."""
    single = np.float32(value)
    if not np.finfo(np.float32).tiny <= single < np.inf:
        raise InputError(f"{flag(option)} must be positive and finite, got {value}")


def check_each(option: str, values: Sequence[float]) -> None:
    """Raise InputError unless there are numbers, positive, finite, and different as shown."""
    if not values:
        raise InputError(f"{flag(option)} must name at least one")
    for value in values:
        check_positive(option, value)
    if len({f"{value:g}" for value in values}) < len(values):
        raise InputError(f"{flag(option)} must all be different")


def check_batch_size(value: int | str) -> None:
    """Raise InputError unless a batch size is "auto", or a number of images."""
    if value != "auto":
        check_count("batch_size", value)


def check_count(option: str, value: int) -> None:
    """Raise InputError unless a number of things is 1 or more, and fits 32 bits."""
    if value < 1:
        raise InputError(f"{flag(option)} must be 1 or more, got {value}")
    if value >= 2**31:
        raise InputError(f"{flag(option)} must be below 2^31, got {value}")
