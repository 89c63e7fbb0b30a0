"""How an attacker moves: Optax's init / update pairs, handed a set's maps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Project = Callable[[Any], tuple[Any, Any]]
"""stepped variable ↦ (feasible variable, the set's memory)."""


class Method(NamedTuple):
    """A first-order method on one image, minimising minus the attacker's objective."""

    init: Callable[[Any], Any]
    """u ↦ state."""
    update: Callable[[Any, Any, Any, Project], tuple[Any, Any, Any]]
    """(gradient, state, u, project) ↦ (next u, the set's memory, state)."""


def pgd(step: optax.GradientTransformation) -> Method:
    """Projected gradient steps: u ← project(u + updates).

    Args:
      step: any Optax transformation. As everywhere in Optax its updates are *added* and descend, so
        `optax.adam(0.01)` or `optax.sgd(0.1, momentum=0.9)` serve unchanged; `sign(0.1)` is the
        papers' ℓ∞ step.
    """

    def update(gradient, state, u, project):
        updates, state = step.update(gradient, state, u)
        u, memory = project(optax.apply_updates(u, updates))
        return u, memory, state

    return Method(step.init, update)


def sign(size: float) -> optax.GradientTransformation:
    """Steps of −size · sign(gradient): steepest descent for ‖·‖∞."""
    return optax.stateless(lambda g, _: jax.tree.map(lambda a: -size * jnp.sign(a), g))


def l2_unit(size: float) -> optax.GradientTransformation:
    """Steps of −size · gradient / ‖gradient‖₂, and none where the gradient vanishes."""

    def update(gradient, _):
        norm = optax.tree.norm(gradient)
        return jax.tree.map(lambda a: -size * a / jnp.where(norm > 0, norm, 1.0), gradient)

    return optax.stateless(update)
