"""Numbers as the sum of two floats, the first of which lies on a grid.

λ times a weight of one is 1e5, and an exponent must be right to 1e-5: single precision has not the
digits. But differences are all that counts, and differences of numbers on one grid are exact.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Pair(NamedTuple):
    """high + low."""

    high: Float[Array, "..."]
    """A multiple of the grid's step."""
    low: Float[Array, "..."]
    """At most half a step."""

    @property
    def value(self) -> Float[Array, "..."]:
        """The sum, rounded."""
        return self.high + self.low


def grid_step(bound: Float[Array, ""]) -> Float[Array, ""]:
    """The step, a power of two, of a grid on which sums of four numbers up to `bound` are exact."""
    _, exponent = jnp.frexp(bound)
    digits = int(jnp.finfo(bound.dtype).nmant) - 2
    return jnp.ldexp(jnp.ones_like(bound), exponent - digits)


def carry(step: Float[Array, ""], high: Float[Array, "..."], low: Float[Array, "..."]) -> Pair:
    """high + low with as much of low as there are steps in it moved to high, exactly."""
    whole = step * jnp.round(low / step)
    return Pair(high + whole, low - whole)


def minus(a: Pair, b: Pair) -> Float[Array, "..."]:
    """a − b, exact until the last addition."""
    return (a.high - b.high) + (a.low - b.low)
