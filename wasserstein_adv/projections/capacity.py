"""Pixels that can hold so much and no more: a plan brought under their capacity.

A plan Π with row sums x ≤ cap, of which pixel j keeps a share θ_j of what arrives from elsewhere,
while the rest stays where it came from, leaves

    z_j(θ) = x_j − Σ_{k≠j} Π_jk θ_k + θ_j Σ_{i≠j} Π_ij

at j. Its row sums are x for every θ, its cost is at most that of Π, and θ = 0 leaves x. So whatever
a projection stopped at becomes feasible by turning away what does not fit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_PATIENCE = 100


def turn_away(
    x: Float[Array, "..."],
    arriving: Float[Array, "..."],
    leaving: Callable[[Array], Array],
    cap: float | Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The share θ of what arrives that every pixel keeps, so that none holds more than `cap`.

    θ ← min(θ, (cap − x + leaving(θ)) / arriving) at the pixels that are too full, from θ = 1: what
    one pixel turns away stays in others, which turn away more in their turn. θ only falls, so it
    has a limit, and the limit is feasible. Few passes are needed where a plan is nearly feasible.
    After a hundred, a pixel that is too full takes what fits even if nothing left it, which
    settles it for good, so that there is an end.

    Args:
      x: row sums, at most `cap`.
      arriving: Σ_{i≠j} Π_ij for every pixel j.
      leaving: θ ↦ Σ_{j≠i} Π_ij θ_j for every pixel i.
      cap: capacity of a pixel.

    Returns:
      (θ, z(θ)), z exceeding `cap` by rounding at most.
    """
    limit = cap * (1.0 + 4.0 * float(jnp.finfo(x.dtype).eps))

    def held(theta: Array, left: Array) -> Array:
        return x - left + theta * arriving

    def overfull(theta: Array, left: Array) -> Array:
        return (theta > 0) & (held(theta, left) > limit)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        theta, left, passes = carry
        # With patience at an end every pass settles a pixel.
        return jnp.any(overfull(theta, left)) & (passes < _PATIENCE + x.size)

    def lower(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        theta, left, passes = carry
        room = cap - x + jnp.where(passes < _PATIENCE, left, 0.0)
        fitting = jnp.clip(room / jnp.where(arriving > 0, arriving, 1.0), 0.0, theta)
        theta = jnp.where(overfull(theta, left), fitting, theta)
        return theta, leaving(theta), passes + 1

    everything = jnp.ones_like(x)
    first = (everything, leaving(everything), jnp.zeros((), jnp.int32))
    theta, left, _ = jax.lax.while_loop(unfinished, lower, first)
    return theta, jnp.maximum(held(theta, left), 0.0)
