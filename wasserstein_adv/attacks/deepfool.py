"""DeepFool: the nearest boundary of the linearised model, again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from wasserstein_adv.attacks.first_order import (
    FirstOrderAttack,
    LogitsFn,
    result_of,
    select,
)
from wasserstein_adv.attacks.keep import Candidate
from wasserstein_adv.attacks.minimal import (
    Norm,
    check_norm,
    clean_candidate,
    judged,
    linearise,
    merged,
    norm_of,
)
from wasserstein_adv.errors import InputError

_BEYOND = 1e-4  # of a step, past the boundary of the linear model


class DeepFoolProtocol(NamedTuple):
    """Settings of the attack."""

    norm: Norm = "l2"
    """What is to be small."""
    steps: int = 50
    """Linearisations at most."""
    overshoot: float = 0.02
    """How much farther than the sum of steps the image goes, as a share of it."""
    classes: int = 10
    """How many of the likeliest classes are looked at, the image's own included."""


PAPER = DeepFoolProtocol()


class _State(NamedTuple):
    total: Float[Array, "n h w c"]
    """The sum of all steps, before the overshoot and before it is clipped."""
    classes: Int[Array, "n k"]
    """By the answer to the clean image, the likeliest first."""
    step: Int[Array, "n"]
    kept: Candidate


def deepfool(protocol: DeepFoolProtocol = PAPER) -> FirstOrderAttack:
    """DeepFool. Moosavi-Dezfooli, Fawzi and Frossard (2016), algorithm 2.

    With f_k = z_k − z_y the model is linear near the iterate, and the nearest of its boundaries is
    that of the class with the least |f_k|/‖∇f_k‖_q, q = 2 for ℓ2 and 1 for ℓ∞; the step goes there.
    Steps are summed without the box, and the image is the clean one plus the sum and a little more,
    clipped to [0, 1]: to clip within the loop and forget what was clipped, as some code does, never
    arrives where pixels are black. The first image that is misclassified is the answer, its norm
    the radius.

    Args:
      protocol: the settings. An image whose clean answer is wrong has radius 0.

    Raises:
      InputError: a norm that is none, or numbers out of range.
    """
    norm, steps, overshoot, count = protocol
    check_norm(norm)
    if not 1 <= steps < 2**31:
        raise InputError(f"steps must be 1 or more, below 2^31, got {steps}")
    if overshoot < 0:
        raise InputError(f"overshoot must not be negative, got {overshoot}")
    if count < 2:
        raise InputError(f"classes must be 2 or more, got {count}")

    def image_of(x: Array, total: Array) -> Array:
        return jnp.clip(x + (1.0 + overshoot) * total, 0.0, 1.0)

    def init(
        keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array, restart: int | Array = 0
    ) -> _State:
        x = jax.lax.stop_gradient(x)
        logits = jax.lax.stop_gradient(logits_fn(x))
        # The label comes first even where it is not the likeliest: then there is nothing to do.
        others = jnp.where(jnp.arange(logits.shape[1]) == y[:, None], jnp.inf, logits)
        _, classes = jax.lax.top_k(others, min(count, logits.shape[1]))
        kept = clean_candidate(x, *judged(logits, y))
        return _State(jnp.zeros_like(x), classes, jnp.zeros(len(x), jnp.int32), kept)

    def unsettled(state: _State) -> Array:
        return ~state.kept.success & (state.step < steps)

    def step(logits_fn: LogitsFn, x: Array, y: Array, state: _State) -> _State:
        x = jax.lax.stop_gradient(x)
        logits, slopes = jax.lax.stop_gradient(
            linearise(logits_fn, image_of(x, state.total), state.classes)
        )
        total = state.total + _way(norm, logits, slopes, state.classes)
        image = image_of(x, total)
        taken = state.step + 1
        success, value = judged(jax.lax.stop_gradient(logits_fn(image)), y)
        size = norm_of(norm, image - x)
        new = _State(
            total, state.classes, taken, Candidate(image, (), value, success, size, size, taken)
        )
        return select(unsettled(state), new, state)

    def final(state: _State) -> Array:
        return state.kept.success

    return FirstOrderAttack(init, step, unsettled, merged, result_of, 1, final)


def _way(norm: Norm, logits: Array, slopes: Array, classes: Array) -> Array:
    """The shortest step to a boundary of the linear model; none where its slopes vanish."""
    values = jnp.take_along_axis(logits, classes, axis=1)
    apart = jnp.abs(values[:, 1:] - values[:, :1])
    ways = slopes[:, 1:] - slopes[:, :1]
    largest = jnp.max(jnp.abs(ways), axis=(2, 3, 4), keepdims=True)
    unit = ways / jnp.where(largest > 0, largest, 1.0)
    if norm == "l2":
        size = jnp.sqrt(jnp.sum(jnp.square(unit), axis=(2, 3, 4)))
        along = unit / jnp.where(size > 0, size, 1.0)[..., None, None, None]
    else:
        size = jnp.sum(jnp.abs(unit), axis=(2, 3, 4))
        along = jnp.sign(unit)
    size = size * largest[..., 0, 0, 0]
    far = jnp.where(size > 0, apart / jnp.where(size > 0, size, 1.0), jnp.inf)
    nearest = jnp.argmin(far, axis=1)[:, None]
    length = jnp.take_along_axis(far, nearest, axis=1)[..., None, None]
    length = jnp.where(jnp.isfinite(length), length + _BEYOND, 0.0)
    return length * jnp.take_along_axis(along, nearest[..., None, None, None], axis=1)[:, 0]
