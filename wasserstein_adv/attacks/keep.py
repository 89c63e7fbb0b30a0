"""Which iterate is the answer of an attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Candidate(NamedTuple):
    """An iterate that might be the answer, for one image or (with a leading axis) for many."""

    image: Float[Array, "h w c"]
    evidence: Any
    """The feasible set's memory of this iterate."""
    objective: Float[Array, ""]
    """Value of the attacker's objective, which it maximises."""
    success: Bool[Array, ""]
    budget: Float[Array, ""]
    """Radius of the set that the iterate was projected on; 0 for the clean image."""
    distance: Float[Array, ""]
    """How much of a radius it makes use of, by the set's own account."""
    steps: Int[Array, ""]


class Keep(NamedTuple):
    """A rule on candidates, elementwise over images."""

    better: Callable[[Candidate, Candidate], Array]
    """(new, kept) ↦ whether the new one replaces the kept one."""
    settled: Callable[[Candidate], Array]
    """kept ↦ whether the image needs no further step."""
    across: Callable[[Candidate, Candidate], Array] | None = None
    """As `better`, between the answers of two restarts; None for `better` itself."""


def first_success() -> Keep:
    """The first success, and the image stops there; while there is none, the newest iterate.

    Across restarts, the success with the smallest radius.
    """

    def better(new: Candidate, kept: Candidate) -> Array:
        return ~kept.success | (new.success & (new.budget < kept.budget))

    return Keep(better, lambda kept: kept.success)


def last() -> Keep:
    """The last iterate, whatever it does: attacks that give every image all their steps.

    Across restarts a success, and of two alike the one with the higher objective.
    """

    def across(new: Candidate, kept: Candidate) -> Array:
        higher = (new.success == kept.success) & (new.objective > kept.objective)
        return (new.success & ~kept.success) | higher

    return Keep(
        lambda new, kept: jnp.ones_like(kept.success),
        lambda kept: jnp.zeros_like(kept.success),
        across,
    )


def highest_objective() -> Keep:
    """The iterate with the highest objective over all steps."""
    return Keep(
        lambda new, kept: new.objective > kept.objective,
        lambda kept: jnp.zeros_like(kept.success),
    )


def closest() -> Keep:
    """The success that uses the least of its radius, over all steps; before it, the newest."""

    def better(new: Candidate, kept: Candidate) -> Array:
        return ~kept.success | (new.success & (new.distance < kept.distance))

    return Keep(better, lambda kept: kept.success & (kept.budget == 0))
