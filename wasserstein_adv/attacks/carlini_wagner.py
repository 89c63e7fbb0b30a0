"""The attack of Carlini and Wagner in ℓ2: least squares against a margin, in the tanh variable."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from wasserstein_adv.attacks.first_order import (
    FirstOrderAttack,
    LogitsFn,
    result_of,
    select,
)
from wasserstein_adv.attacks.keep import Candidate
from wasserstein_adv.attacks.minimal import (
    clean_candidate,
    judged,
    merged,
    nearer,
    norm_of,
)
from wasserstein_adv.attacks.objectives import margin
from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError

_INSIDE = 0.999999  # what an image is drawn inwards by, so that black and white pixels can move
_LOOKS = 10  # in a search: where the lowest loss is what it was at the last, it is ended
_FALL = 0.9999
_MOST = 1e10  # the weight that counts as none


class CarliniWagnerProtocol(NamedTuple):
    """Settings of the attack."""

    searches: int = 9
    """Weights that are tried for each image, by bisection once one has succeeded."""
    steps: int = 1000
    """Steps of Adam at most for each weight; the paper has 10,000."""
    learning_rate: float = 0.01
    """Of Adam."""
    weight: float = 1e-3
    """c at first."""
    confidence: float = 0.0
    """κ: the margin that is wanted of an answer."""


PAPER = CarliniWagnerProtocol(steps=10_000)
"""The paper's, twenty times as many steps as are needed on MNIST."""
MNIST = CarliniWagnerProtocol()
"""As the paper, with a tenth of the steps."""


class _State(NamedTuple):
    w: Float[Array, "n h w c"]
    """The image is (tanh w + 1)/2."""
    adam: Any
    weight: Float[Array, "n"]
    low: Float[Array, "n"]
    high: Float[Array, "n"]
    """The bracket of c: the largest that failed, the smallest that succeeded."""
    succeeded: Bool[Array, "n"]
    """In this search."""
    lowest: Float[Array, "n"]
    """Loss in this search."""
    seen: Float[Array, "n"]
    """The lowest at the last look."""
    taken: Int[Array, "n"]
    """Steps in this search."""
    search: Int[Array, "n"]
    step: Int[Array, "n"]
    kept: Candidate


def carlini_wagner(protocol: CarliniWagnerProtocol = MNIST) -> FirstOrderAttack:
    """C&W in ℓ2. Carlini and Wagner (2017), section VI.

        min over w of  ‖x_w − x‖² + c·max(z_y − max_{k≠y} z_k + κ, 0),  x_w = (tanh w + 1)/2,

    by Adam from the clean image, for weights c: ten times as large until one succeeds, then the
    bracket is halved. The nearest misclassified image of all steps is the answer, its norm the
    radius. Clean images are drawn inwards by 1e-6 first: at w = ±∞ no gradient would move a pixel
    that is black or white. Each image has weights, moments and an end of its own.

    Args:
      protocol: the settings.

    Raises:
      InputError: numbers out of range.
    """
    searches, steps, learning_rate, weight, confidence = protocol
    for name, count in (("searches", searches), ("steps", steps)):
        if not 1 <= count < 2**31:
            raise InputError(f"{name} must be 1 or more, below 2^31, got {count}")
    check_positive("learning_rate", learning_rate)
    check_positive("weight", weight)
    if confidence < 0:
        raise InputError(f"confidence must not be negative, got {confidence}")
    adam = optax.adam(learning_rate)
    every = max(1, -(-steps // _LOOKS))

    def begun(x: Array) -> tuple[Array, Any]:
        w = jnp.arctanh((2.0 * x - 1.0) * _INSIDE)
        return w, jax.vmap(adam.init)(w)

    def image_of(w: Array) -> Array:
        return 0.5 * (jnp.tanh(w) + 1.0)

    def init(
        keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array, restart: int | Array = 0
    ) -> _State:
        x = jax.lax.stop_gradient(x)
        n = x.shape[0]
        logits = jax.lax.stop_gradient(logits_fn(x))
        kept = clean_candidate(x, *judged(logits, y))
        zero, none = jnp.zeros(n, x.dtype), jnp.zeros(n, jnp.int32)
        return _State(
            *begun(x), zero + weight, zero, zero + _MOST, jnp.zeros(n, bool), zero + jnp.inf,
            zero + jnp.inf, none, none, none, kept,
        )  # fmt: skip

    def unsettled(state: _State) -> Array:
        clean = state.kept.success & (state.kept.budget == 0)
        return ~clean & (state.search < searches)

    def step(logits_fn: LogitsFn, x: Array, y: Array, state: _State) -> _State:
        x = jax.lax.stop_gradient(x)

        def loss(w: Array) -> tuple[Array, Any]:
            image = image_of(w)
            logits = logits_fn(image)
            ahead = jax.vmap(margin)(logits, y)
            apart = jnp.sum(jnp.square(image - image_of(begun(x)[0])), axis=(1, 2, 3))
            losses = apart + state.weight * jnp.maximum(confidence - ahead, 0.0)
            return jnp.sum(losses), (image, ahead, losses)

        gradient, (image, ahead, losses) = jax.lax.stop_gradient(
            jax.grad(loss, has_aux=True)(state.w)
        )
        size = norm_of("l2", image - x)
        new = Candidate(image, (), ahead, ahead > confidence, size, size, state.step)
        first = ~state.kept.success & ~new.success
        kept = select(nearer(new, state.kept) | first, new, state.kept)
        succeeded = state.succeeded | new.success
        # Logits that are no numbers lead nowhere.
        known = jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3), keepdims=True)
        updates, moments = jax.vmap(adam.update)(jnp.where(known, gradient, 0.0), state.adam)

        look = state.taken % every == 0
        lowest = jnp.minimum(state.lowest, losses)
        stalled = look & (lowest > _FALL * state.seen)
        going = _State(
            state.w + updates, moments, state.weight, state.low, state.high, succeeded,
            lowest, jnp.where(look, lowest, state.seen), state.taken + 1, state.search,
            state.step + 1, kept,
        )  # fmt: skip
        low = jnp.where(succeeded, state.low, state.weight)
        high = jnp.where(succeeded, jnp.minimum(state.high, state.weight), state.high)
        another = jnp.where(high >= _MOST, 10.0 * state.weight, 0.5 * (low + high))
        none, unseen = jnp.zeros_like(state.taken), jnp.full_like(losses, jnp.inf)
        again = _State(
            *begun(x), another, low, high, jnp.zeros_like(succeeded), unseen, unseen, none,
            state.search + 1, state.step + 1, kept,
        )  # fmt: skip
        ended = stalled | (state.taken + 1 >= steps)
        return select(unsettled(state), select(ended, again, going), state)

    def final(state: _State) -> Array:
        return state.kept.success & (state.kept.budget == 0)

    return FirstOrderAttack(init, step, unsettled, merged, result_of, 1, final)
