"""The standard attacks in ℓ∞ and ℓ2 balls, as compositions, each under its paper's settings.

Units: intensities for ℓ∞ radii and steps, Euclidean lengths of the image for ℓ2. The papers' codes
return the last iterate whatever it is; here the first success is kept unless `keep` says otherwise,
which never leaves more accuracy.
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from wasserstein_adv.attacks import methods, objectives
from wasserstein_adv.attacks.apgd import apgd as auto_steps
from wasserstein_adv.attacks.first_order import (
    FirstOrderAttack,
    FirstOrderOptions,
    Start,
    first_order,
)
from wasserstein_adv.attacks.minimal import Norm, check_norm
from wasserstein_adv.attacks.schedules import constant
from wasserstein_adv.attacks.sets import FeasibleSet, l2_ball, linf_ball
from wasserstein_adv.attacks.transforms import input_diversity, rotation_and_shift
from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError


class SignProtocol(NamedTuple):
    """Settings of an attack of one step."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    step_size: float = 0.3
    """α."""


class IteratedProtocol(NamedTuple):
    """Settings of an attack of many equal steps."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    step_size: float = 0.01
    """α."""
    steps: int = 40
    """Gradient steps at most."""


class MomentumProtocol(NamedTuple):
    """Settings of an attack of steps with momentum."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    step_size: float = 0.03
    """α."""
    steps: int = 10
    """Gradient steps at most."""
    decay: float = 1.0
    """μ: how much of the momentum stays from step to step; 0 for none."""


class DiversityProtocol(NamedTuple):
    """Settings of an attack through images of other sizes."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    step_size: float = 0.03
    """α."""
    steps: int = 10
    """Gradient steps at most."""
    decay: float = 0.0
    """μ of the momentum; 0 for none."""
    smallest: float = 0.9
    """The smallest size, as a share of the image's."""
    probability: float = 0.5
    """Of another size at all."""


class EotProtocol(NamedTuple):
    """Settings of an attack on the mean over rotations and shifts."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    step_size: float = 0.01
    """α."""
    steps: int = 40
    """Gradient steps at most."""
    draws: int = 10
    """Images that a gradient is the mean over."""
    degrees: float = 30.0
    """Rotations, to either side."""
    pixels: float = 3.0
    """Shifts, to either side."""


class ApgdProtocol(NamedTuple):
    """Settings of Auto-PGD."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    steps: int = 100
    """Gradient steps at most, in each restart."""


class TargetedApgdProtocol(NamedTuple):
    """Settings of Auto-PGD towards one class after another."""

    norm: Norm = "linf"
    """Of the ball."""
    radius: float = 0.3
    """ε."""
    steps: int = 100
    """Gradient steps at most, for each class."""
    classes: int = 9
    """How many of the likeliest wrong classes are aimed at."""


FGSM = SignProtocol()
FFGSM = SignProtocol(step_size=0.375)
PGD = IteratedProtocol()
TPGD = IteratedProtocol()
MI_FGSM = MomentumProtocol()
DI_FGSM = DiversityProtocol()
EOT_PGD = EotProtocol()
APGD = ApgdProtocol()
APGD_T = TargetedApgdProtocol()


def fgsm(
    protocol: SignProtocol = FGSM, **first_order_options: Unpack[FirstOrderOptions]
) -> FirstOrderAttack:
    """One step of the radius' length: Goodfellow et al. (2015). The step size is not used.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return _iterated(protocol._replace(step_size=protocol.radius), 1, **first_order_options)


def ffgsm(
    protocol: SignProtocol = FFGSM,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """One step from a random start: Wong, Rice and Kolter (2020), algorithm 3.

    Args:
      protocol: the settings; the paper's step is 1.25 times the radius.
      **first_order_options: as for `first_order`.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return _iterated(protocol, 1, **_or(first_order_options, random_start=True))


def projected_gradient(
    protocol: IteratedProtocol = PGD,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """PGD from a random start: Madry et al. (2018), with their settings for MNIST by default.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`; `random_start` is set unless given.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return _iterated(protocol, protocol.steps, **_or(first_order_options, random_start=True))


def tpgd(
    protocol: IteratedProtocol = TPGD,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """PGD away from the answer to the clean image: Zhang et al. (2019), TRADES.

    The divergence's gradient is 0 at the clean image, so the start is noise of deviation 0.001.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`, but for the objective.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    check_positive("step_size", protocol.step_size)
    options = _or(first_order_options, random_start=near)
    return first_order(
        ball(protocol.norm),
        methods.pgd(_unit(protocol.norm, protocol.step_size)),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        context=objectives.clean_logits,
        **_or({"objective": objectives.kl_divergence}, **options),
    )


def mi_fgsm(
    protocol: MomentumProtocol = MI_FGSM,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Sign steps along a sum of gradients of one ℓ1 norm: Dong et al. (2018).

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return first_order(
        ball(protocol.norm),
        methods.pgd(_momentum(protocol.norm, protocol.step_size, protocol.decay)),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        **first_order_options,
    )


def di_fgsm(
    protocol: DiversityProtocol = DI_FGSM,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """The same through images of other sizes, drawn anew in each step: Xie et al. (2019).

    With a decay of 1 it is their M-DI²-FGSM.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return first_order(
        ball(protocol.norm),
        methods.pgd(_momentum(protocol.norm, protocol.step_size, protocol.decay)),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        transform=input_diversity(protocol.smallest, protocol.probability),
        **first_order_options,
    )


def eot_pgd(
    protocol: EotProtocol = EOT_PGD, **first_order_options: Unpack[FirstOrderOptions]
) -> FirstOrderAttack:
    """PGD on the mean over rotations and shifts: Athalye et al. (2018). Judged as the image is.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`; `random_start` is set unless given.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    check_positive("step_size", protocol.step_size)
    return first_order(
        ball(protocol.norm),
        methods.pgd(_unit(protocol.norm, protocol.step_size)),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        transform=rotation_and_shift(protocol.degrees, protocol.pixels),
        draws=protocol.draws,
        **_or(first_order_options, random_start=True),
    )


def apgd_ce(
    protocol: ApgdProtocol = APGD, **first_order_options: Unpack[FirstOrderOptions]
) -> FirstOrderAttack:
    """Auto-PGD on the cross-entropy, from a point of the sphere: Croce and Hein (2020).

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    return first_order(
        ball(protocol.norm),
        auto_steps(_unit(protocol.norm, 1.0), _checked(protocol.radius), protocol.steps),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        **_or(first_order_options, random_start=on_sphere(protocol.norm)),
    )


def apgd_dlr(
    protocol: ApgdProtocol = APGD, **first_order_options: Unpack[FirstOrderOptions]
) -> FirstOrderAttack:
    """The same on the difference of logits ratio, `objectives.dlr`.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`, but for the objective.

    Raises:
      InputError: a norm that is none, or numbers out of range; fewer than three classes.
    """
    return apgd_ce(protocol, **_or({"objective": objectives.dlr}, **first_order_options))


def apgd_t(
    protocol: TargetedApgdProtocol = APGD_T,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """The same on the targeted ratio, towards one of the likeliest wrong classes in each restart.

    Args:
      protocol: the settings.
      **first_order_options: as for `first_order`, but for objective and restarts.

    Raises:
      InputError: a norm that is none, or numbers out of range; fewer than four classes.
    """
    options = _or(first_order_options, random_start=on_sphere(protocol.norm))
    fixed: FirstOrderOptions = {"objective": objectives.dlr_targeted, "restarts": protocol.classes}
    return first_order(
        ball(protocol.norm),
        auto_steps(_unit(protocol.norm, 1.0), _checked(protocol.radius), protocol.steps),
        radius=constant(_checked(protocol.radius)),
        steps=protocol.steps,
        context=objectives.next_class,
        **_or(fixed, **options),
    )


def ball(norm: Norm) -> FeasibleSet:
    """The ball of a norm.

    Raises:
      InputError: a norm that is none.
    """
    check_norm(norm)
    return linf_ball() if norm == "linf" else l2_ball()


def near(key: PRNGKeyArray, x: Array, radius: Array) -> Array:
    """A start of independent normal noise of deviation 0.001."""
    return x + 1e-3 * jax.random.normal(key, x.shape, x.dtype)


def on_sphere(norm: Norm) -> Start:
    """A start as far as the radius, in a random direction."""

    def start(key: PRNGKeyArray, x: Array, radius: Array) -> Array:
        if norm == "linf":
            way = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
            return x + radius * way / jnp.max(jnp.abs(way))
        way = jax.random.normal(key, x.shape, x.dtype)
        return x + radius * way / jnp.linalg.norm(way.reshape(-1))

    return start


def _or(options: FirstOrderOptions, **otherwise: Unpack[FirstOrderOptions]) -> FirstOrderOptions:
    """The options, and where they say nothing, those after them."""
    return {**otherwise, **options}


def _checked(radius: float) -> float:
    check_positive("radius", radius)
    return radius


def _unit(norm: Norm, size: float) -> optax.GradientTransformation:
    return methods.sign(size) if norm == "linf" else methods.l2_unit(size)


def _momentum(norm: Norm, size: float, decay: float) -> optax.GradientTransformation:
    check_positive("step_size", size)
    if not 0.0 <= decay <= 1.0:
        raise InputError(f"decay must be between 0 and 1, got {decay}")
    # The sum points downhill already: a step along it, not against it.
    along = optax.chain(optax.scale(-1.0), _unit(norm, size))
    return optax.chain(methods.l1_unit(), optax.trace(decay), along)


def _iterated(
    protocol: SignProtocol | IteratedProtocol, steps: int, **options: Unpack[FirstOrderOptions]
) -> FirstOrderAttack:
    check_positive("step_size", protocol.step_size)
    return first_order(
        ball(protocol.norm),
        methods.pgd(_unit(protocol.norm, protocol.step_size)),
        radius=constant(_checked(protocol.radius)),
        steps=steps,
        **options,
    )
