"""Flows on the pixel grid: their divergence, its transpose, and the Laplacian of both.

A flow m has for each pixel what goes down from it, and what goes right; across the border, nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def divergence(m: Float[Array, "2 h w ..."]) -> Float[Array, "h w ..."]:
    """What flows out of every pixel less what flows in. What would cross the border must be 0."""
    down, right = m
    above = jnp.concatenate([jnp.zeros_like(down[:1]), down[:-1]], axis=0)
    left = jnp.concatenate([jnp.zeros_like(right[:, :1]), right[:, :-1]], axis=1)
    return down - above + right - left


def descent(phi: Float[Array, "h w ..."]) -> Float[Array, "2 h w ..."]:
    """φ_i − φ_j along every edge i → j, down and right: the transpose of `divergence`."""
    down = jnp.concatenate([phi[:-1] - phi[1:], jnp.zeros_like(phi[:1])], axis=0)
    right = jnp.concatenate([phi[:, :-1] - phi[:, 1:], jnp.zeros_like(phi[:, :1])], axis=1)
    return jnp.stack([down, right])


def cosines(n: int) -> np.ndarray:
    """The orthonormal DCT-II of n points as a matrix."""
    at = np.arange(n)
    rows = np.cos(np.pi * at[:, None] * (2 * at + 1) / (2 * n)) * np.sqrt(2.0 / n)
    rows[0] /= np.sqrt(2.0)
    return rows


def laplacian_filter(transforms: tuple[Array, Array], r: Array, shift: float) -> Array:
    """(shift·I + div divᵀ)⁻¹ r, and for shift 0 the pseudo-inverse."""
    rows, cols = transforms
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def eigenvalues(n: int) -> np.ndarray:
        return 2.0 - 2.0 * np.cos(np.pi * np.arange(n) / n)

    total = shift + eigenvalues(len(rows))[:, None] + eigenvalues(len(cols))
    inverses = np.where(total > 0, 1.0 / np.where(total > 0, total, 1.0), 0.0)
    inverse = jnp.asarray(inverses, r.dtype).reshape(*total.shape, *(1,) * (r.ndim - 2))
    there = exact("ij,jk...->ik...", rows, exact("kl,jl...->jk...", cols, r))
    return exact("ji,jk...->ik...", rows, exact("lk,jl...->jk...", cols, there * inverse))


def over_pixels(a: Array) -> Array:
    """Σ over (h, w, c)."""
    return jnp.sum(a, axis=(0, 1, 2))


def over_edges(a: Array) -> Array:
    """Σ over (2, h, w, c)."""
    return jnp.sum(a, axis=(0, 1, 2, 3))
