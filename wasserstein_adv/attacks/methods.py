"""How an attacker moves: Optax's init / update pairs, handed a set's maps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Moves(NamedTuple):
    """What a feasible set lets a method do, at the radius of the step under way."""

    project: Callable[[Any], tuple[Any, Any]]
    """stepped variable ↦ (the nearest feasible variable, the set's memory)."""
    lmo: Callable[[Any], tuple[Any, Any]]
    """gradient ↦ (the feasible variable with the least inner product, the set's memory)."""


class Method(NamedTuple):
    """A first-order method on one image, minimising minus the attacker's objective."""

    init: Callable[[Any], Any]
    """u ↦ state."""
    update: Callable[..., tuple[Any, Any, Any]]
    """(gradient, state, u, moves, **extra) ↦ (next u, the set's memory, state). Extra arguments are
    Optax's: `value`, what is minimised, at u."""


def pgd(step: optax.GradientTransformation) -> Method:
    """Projected gradient steps: u ← project(u + updates).

    Args:
      step: any Optax transformation. As everywhere in Optax its updates are *added* and descend, so
        `optax.adam(0.01)` or `optax.sgd(0.1, momentum=0.9)` serve unchanged; `sign(0.1)` is the
        papers' ℓ∞ step.
    """

    step = optax.with_extra_args_support(step)

    def update(gradient: Any, state: Any, u: Any, moves: Moves, **extra: Any) -> tuple[Any, ...]:
        updates, state = step.update(gradient, state, u, **extra)
        u, memory = moves.project(optax.apply_updates(u, updates))
        return u, memory, state

    return Method(step.init, update)


def frank_wolfe() -> Method:
    """Frank-Wolfe steps without projection: u ← u + 2/(t + 2)·(lmo(gradient) − u).

    Every iterate is a convex combination of feasible points. Jaggi (2013); Wu, Wang and Yu (2020),
    section 4. For sets that have a linear minimisation oracle.
    """

    def update(gradient: Any, t: Any, u: Any, moves: Moves, **_: Any) -> tuple[Any, ...]:
        corner, memory = moves.lmo(gradient)
        u = jax.tree.map(lambda a, b: a + 2.0 / (t + 2.0) * (b - a), u, corner)
        return u, memory, t + 1.0

    return Method(lambda u: jnp.zeros((), jax.tree.leaves(u)[0].dtype), update)


def sign(size: float) -> optax.GradientTransformation:
    """Steps of −size · sign(gradient): steepest descent for ‖·‖∞."""
    return optax.stateless(lambda g, _: jax.tree.map(lambda a: -size * jnp.sign(a), g))


def linf_unit(size: float) -> optax.GradientTransformation:
    """Steps of −size · gradient / ‖gradient‖_∞, and none where the gradient vanishes."""
    return optax.stateless(lambda gradient, _: jax.tree.map(lambda a: -size * a, _scaled(gradient)))


def l1_unit(size: float = 1.0) -> optax.GradientTransformation:
    """Steps of −size · gradient / ‖gradient‖₁, and none where the gradient vanishes.

    Momentum sums such steps up: Dong et al. (2018), equation 6.
    """

    def update(gradient, _):
        scaled = _scaled(gradient)
        norm = optax.tree.norm(scaled, ord=1)
        return jax.tree.map(lambda a: -size * a / jnp.where(norm > 0, norm, 1.0), scaled)

    return optax.stateless(update)


def l2_unit(size: float) -> optax.GradientTransformation:
    """Steps of −size · gradient / ‖gradient‖₂, and none where the gradient vanishes."""

    def update(gradient, _):
        scaled = _scaled(gradient)  # whose squares neither overflow nor vanish
        norm = optax.tree.norm(scaled)
        return jax.tree.map(lambda a: -size * a / jnp.where(norm > 0, norm, 1.0), scaled)

    return optax.stateless(update)


def _scaled(gradient: Any) -> Any:
    """gradient / ‖gradient‖_∞, and 0 where it vanishes."""
    largest = optax.tree.norm(gradient, ord=jnp.inf)
    return jax.tree.map(lambda a: a / jnp.where(largest > 0, largest, 1.0), gradient)
