"""Auto-PGD: projected gradient steps with momentum, and a length that is halved when too long."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.attacks.methods import Method, Moves
from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError

_MOMENTUM = 0.75
_RISING = 0.75  # the share of steps that have to be better
_FIRST, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06  # windows between checks, as shares of all steps


class ApgdState(NamedTuple):
    """What the next step goes by."""

    before: Any
    """The iterate before this one."""
    best: Any
    best_gradient: Any
    best_value: Float[Array, ""]
    length: Float[Array, ""]
    """η."""
    value: Float[Array, ""]
    """Of the iterate before."""
    better: Int[Array, ""]
    """Steps in this window that were better than those before them."""
    taken: Int[Array, ""]
    """Steps in this window."""
    window: Int[Array, ""]
    halved: Bool[Array, ""]
    """Whether η was halved at the last check."""
    checked_value: Float[Array, ""]
    """The best value at the last check."""
    step: Int[Array, ""]


def apgd(direction: optax.GradientTransformation, radius: float, steps: int) -> Method:
    """Auto-PGD on a set of one radius. Croce and Hein (2020), algorithm 1.

        v = project(u_t − η∇),  u_{t+1} = project(u_t + ¾(v − u_t) + ¼(u_t − u_{t−1})),

    η = 2·radius at first. At the end of windows of 22 % of the steps, then 19, 16, … and never
    below 6 %, η is halved and the iteration goes on from its best point, if at most three steps in
    four were better than the one before, or if η stayed and nothing better was found.

    Args:
      direction: the unit step of the norm, stateless: `sign(1.0)` or `l2_unit(1.0)`.
      radius: of the set.
      steps: of the attack.

    Raises:
      InputError: the radius is not positive, or there is no step.
    """
    check_positive("radius", radius)
    if steps < 1:
        raise InputError(f"steps must be 1 or more, got {steps}")
    shortest, shorter = (max(int(share * steps), 1) for share in (_SHORTEST, _SHORTER))

    def init(u: Any) -> ApgdState:
        dtype = jax.tree.leaves(u)[0].dtype
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        window = jnp.full((), max(int(_FIRST * steps), 1), jnp.int32)
        length, worst = jnp.full((), 2.0 * radius, dtype), jnp.full((), jnp.inf, dtype)
        yes, flat = jnp.ones((), bool), optax.tree.zeros_like(u)
        return ApgdState(u, u, flat, worst, length, zero, none, none, window, yes, zero, none)

    def update(
        gradient: Any, state: ApgdState, u: Any, moves: Moves, *, value: Array, **_: Any
    ) -> tuple[Any, Any, ApgdState]:
        first = state.step == 0
        value = value.astype(state.value.dtype)

        def pick(chosen: Array, new: Any, old: Any) -> Any:
            return optax.tree.where(chosen, new, old)

        best_value = jnp.minimum(value, state.best_value)
        best, best_gradient = pick(
            value < state.best_value, (u, gradient), (state.best, state.best_gradient)
        )
        taken = state.taken + ~first
        better = state.better + (~first & (value < state.value))
        check = ~first & (taken == state.window)
        stuck = ~state.halved & (state.checked_value <= best_value)
        halve = check & ((better <= _RISING * state.window) | stuck)
        here, downhill = pick(halve, (best, best_gradient), (u, gradient))
        length = jnp.where(halve, 0.5 * state.length, state.length)

        step, _ = direction.update(downhill, direction.init(here))
        ahead, _ = moves.project(optax.tree.add(here, optax.tree.scale(length, step)))
        share = jnp.where(first, 1.0, _MOMENTUM).astype(value.dtype)
        mixed = optax.tree.add(
            optax.tree.add(here, optax.tree.scale(share, optax.tree.sub(ahead, here))),
            optax.tree.scale(1.0 - share, optax.tree.sub(here, state.before)),
        )
        new, memory = moves.project(mixed)
        return new, memory, ApgdState(
            here, best, best_gradient, best_value, length, value,
            jnp.where(check, 0, better), jnp.where(check, 0, taken),
            jnp.where(check, jnp.maximum(state.window - shorter, shortest), state.window),
            jnp.where(check, halve, state.halved),
            jnp.where(first | check, best_value, state.checked_value), state.step + 1,
        )  # fmt: skip

    return Method(init, update)
