"""The attacks that the commands know, an entry each.

An attack is added by its file in `wasserstein_adv.attacks` and an entry of `ATTACKS`; then every
command knows it. Its options are the fields of its settings, a NamedTuple whose docstrings are the
options' help.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from experiments.harness.arguments import named
from wasserstein_adv.attacks import (
    FirstOrderAttack,
    Keep,
    closest,
    cross_entropy,
    first_success,
    highest_objective,
    last,
    margin,
    wu,
)
from wasserstein_adv.attacks.flow import MNIST as FLOW
from wasserstein_adv.attacks.flow import flow
from wasserstein_adv.attacks.hu import CIFAR10 as HU_CIFAR10
from wasserstein_adv.attacks.hu import MNIST as HU
from wasserstein_adv.attacks.hu import hu
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT, unbalanced
from wasserstein_adv.attacks.wong import CIFAR10, MNIST, MNIST_SCRIPT, wong
from wasserstein_adv.data import NAMES, describe
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Ground
from wasserstein_adv.geometry import unit_square

GridSize = tuple[int, int]

OBJECTIVES = {"cross-entropy": cross_entropy, "margin": margin}
KEEPS: dict[str, Callable[[], Keep]] = {
    "first-success": first_success,
    "last": last,
    "highest-objective": highest_objective,
    "closest": closest,
}


def in_pixels(settings: Any, grid_size: GridSize) -> Ground:
    """|Δrow| + |Δcol| in pixels."""
    del settings, grid_size
    return Ground()


def euclidean(settings: Any, grid_size: GridSize) -> Ground:
    """(Δrow² + Δcol²)^(p/2) in pixels, of settings with an exponent p."""
    del grid_size
    return Ground("euclidean", settings.p)


def in_unit_square(settings: Any, grid_size: GridSize) -> Ground:
    """(|Δrow|^p + |Δcol|^p)^(1/p), the image's sides being 1."""
    return Ground("minkowski", settings.p, *unit_square(*grid_size))


class Attack(NamedTuple):
    """An attack that the commands know."""

    title: str
    """Its name in a figure."""
    about: str
    """What it is, in a line of the commands' help."""
    build: Callable[..., FirstOrderAttack]
    """(grid_size, settings, **first_order_options) ↦ the attack."""
    presets: Mapping[str, Any]
    """Settings by name, NamedTuples of one type; "paper" is the default."""
    colour: Mapping[str, Any] = MappingProxyType({})
    """Presets that take the place of those above on colour images: CIFAR-10's in the papers."""
    ground: Callable[[Any, GridSize], Ground] = in_pixels
    """(settings, grid_size) ↦ the cost by which its images are measured."""
    largest: Callable[[Any], float] | None = None
    """settings ↦ the radius of the last step; None for an attack that no Wasserstein ball bounds.
    A radius is in units of the cost, inside the settings' `window` where they have one."""
    radii: Callable[[Any], tuple[float, ...]] | None = None
    """settings ↦ the radii at which accuracy is reported; by default the largest."""
    keep: str = "first-success"
    """The rule of `KEEPS` for which iterate is the answer."""
    varied: tuple[str, ...] = ()
    """Settings that `compare` runs at several values: of "radius", "step_size", "variant"."""

    def settings(self, preset: str, *, colour: bool) -> Any:
        """The settings of a preset, for images with or without colours; None if there is none."""
        return {**self.presets, **(self.colour if colour else {})}.get(preset)

    def first(self, settings: Any) -> float:
        """The smallest radius that is tried; 0 where there is but one, or none."""
        return getattr(settings, "start_radius", getattr(settings, "increment", 0.0))

    def clamped(self, settings: Any) -> bool:
        """Whether projected images are clamped to [0, 1] afterwards, which can lead out."""
        return getattr(settings, "white", "") == "clamped"

    def window(self, settings: Any) -> int | None:
        """Side of the window that mass stays in, in pixels; None for none."""
        return getattr(settings, "window", None)

    def radii_of(self, settings: Any) -> tuple[float, ...]:
        """The radii at which accuracy is reported; none without a ball."""
        if self.largest is None:
            return ()
        return self.radii(settings) if self.radii else (self.largest(settings),)


_SMALL = (0.01, 0.02, 0.05, 0.1, 0.2)


def _grown(settings: Any, every: int = 1) -> float:
    """The radius of the last step of one that grows by a factor."""
    with np.errstate(over="ignore"):
        growth = np.power(settings.growth, float((settings.steps - 1) // every))
        return float(settings.start_radius * growth)


def _constant(settings: Any) -> float:
    return settings.radius


ATTACKS = {
    # The script published with the paper has other settings than its text.
    "wong": Attack(
        title="projected Sinkhorn",
        about="Wong et al. 2019: a Wasserstein ball that grows until the classifier errs",
        build=wong,
        presets={"paper": MNIST, "script": MNIST_SCRIPT},
        colour={"paper": CIFAR10, "script": CIFAR10._replace(p=2.0)},
        ground=euclidean,
        largest=lambda settings: _grown(settings, settings.grow_every),
        radii=lambda settings: (0.3, 0.5, 0.7, 1.0) if settings.start_radius >= 0.1 else _SMALL,
    ),
    "hu": Attack(
        title="capped projected Sinkhorn",
        about="Hu et al. 2020: the same with no pixel above white, and long steps",
        build=hu,
        presets={"paper": HU},
        colour={"paper": HU_CIFAR10},
        ground=euclidean,
        largest=lambda settings: settings.increment * settings.steps,
        radii=lambda settings: (0.05, 0.1, 0.2, 0.5, 1.0) if settings.increment >= 0.01 else _SMALL,
    ),
    "wu-projection": Attack(
        title="dual projection",
        about="Wu et al. 2020: the coupling is moved along its gradient, in one ball",
        build=wu.wu_projection,
        presets={"paper": wu.PROJECTION_MNIST},
        ground=euclidean,
        largest=_constant,
        varied=("radius",),
    ),
    "wu-frank-wolfe": Attack(
        title="Frank-Wolfe",
        about="Wu et al. 2020: the coupling is moved by Frank-Wolfe steps, in one ball",
        build=wu.wu_frank_wolfe,
        presets={"paper": wu.FRANK_WOLFE_MNIST},
        ground=euclidean,
        largest=_constant,
        varied=("radius",),
    ),
    "flow": Attack(
        title="exact projection, flow",
        about="exact projections on a growing ball of the cost |Δrow| + |Δcol|, to anywhere",
        build=flow,
        presets={"paper": FLOW},
        largest=_grown,
        radii=lambda settings: (0.02, 0.05, 0.1, 0.2, 0.5),
    ),
    # At the paper's settings no mass is transported; under "transport" it is.
    "unbalanced": Attack(
        title="unbalanced transport",
        about="Subramanyam: steps drawn back by unbalanced transport, in no ball",
        build=unbalanced,
        presets={"paper": PAPER, "transport": TRANSPORT},
        ground=in_unit_square,
        keep="last",
        varied=("variant", "step_size"),
    ),
}

RENAMED = {
    "projected-sinkhorn": "wong",
    "capped": "hu",
    "dual-projection": "wu-projection",
    "frank-wolfe": "wu-frank-wolfe",
}
"""What attacks of earlier versions are called now: as in the library."""


def attack_settings(attack: str, preset: str | None = None, data: str | None = None) -> Any:
    """An attack's settings by its name, the preset's and the dataset's; None if it is not known.

    Raises:
        InputError: the attack has no such preset.
    """
    if (entry := ATTACKS.get(attack)) is None:
        return None
    colour = data in NAMES and describe(data).colour
    found = entry.settings(preset or "paper", colour=colour)
    if found is None:
        raise InputError(f"--preset of {attack} must be {' or '.join(entry.presets)}")
    return found


def attacks_named(names: Sequence[str]) -> dict[str, Attack]:
    """The attacks of an option `--attacks`, by name.

    Raises:
        InputError: there is none, one is not known or named twice.
    """
    if not names:
        raise InputError("--attacks must name at least one")
    for name in names:
        if name not in ATTACKS:
            now = (
                f"called {RENAMED[name]} now"
                if name in RENAMED
                else f"none of {', '.join(ATTACKS)}"
            )
            raise InputError(f"--attacks: {name!r} is {now}")
    if len(set(names)) < len(names):
        raise InputError("--attacks must all be different")
    return {name: ATTACKS[name] for name in names}


AttackName = named(ATTACKS)
"""The type of an option that names one."""

_OTHERS = (
    f"{preset} ({name})"
    for name, entry in ATTACKS.items()
    for preset in entry.presets
    if preset != "paper"
)
PresetName = Annotated[
    str,
    tyro.conf.arg(help=f"Settings to start from: the paper's (paper), or {', '.join(_OTHERS)}."),
]
"""The type of an option that names a preset."""
