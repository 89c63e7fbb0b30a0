"""Transport to anywhere at the cost |Δrow| + |Δcol|, its kernel applied by recursion.

Along one axis the kernel exp(−ψ|x_i − x_j|) is a two-sided exponential filter: what reaches pixel
i from its left is what had reached pixel i−1 and pixel i−1 itself, attenuated by one step. So a
kernel application takes O(H·W) time and memory, where a separable cost in general takes
O(H·W·(H + W)) and a dense one O((H·W)²).

The recursion stays in floating-point range for any exponents. With

    M_i = max_j (h_j − ψ|x_i − x_j|),

itself a recursion of maxima, every element exp(h_j − M_j) and every attenuation
exp(±(M_{i−1} − M_i) − ψ|x_i − x_{i−1}|) is at most 1, and every sum at least 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_pytree_node_class
from jaxtyping import Array, Float
from ott.geometry import grid

from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.geometry.log_kernel import LogKernel, log_kernel, safe_log


@register_pytree_node_class
class ManhattanGrid(grid.Grid):
    """OTT's `Grid` with coordinates in ascending order and the cost |Δrow| + |Δcol|.

    The type is the promise that solvers rely on: `separable_grid` makes one for p = 1. OTT's own
    solvers treat it as any other `Grid`.
    """

    def gaps(self, dtype: jnp.dtype) -> tuple[Float[Array, "rows"], Float[Array, "cols"]]:
        """Distances between neighbouring rows, and between neighbouring columns."""
        rows, cols = (jnp.diff(jnp.asarray(x)).astype(dtype) for x in self.x)
        return rows, cols


@log_kernel.register
def _(
    geometry: ManhattanGrid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1
) -> LogKernel:
    del axis  # the cost is symmetric
    psi = jnp.asarray(psi, h.dtype)
    gaps = geometry.gaps(h.dtype)
    lse = _lse(gaps, h, psi)
    # In recursions of their own, which the compiler drops where nobody asks for the moments.
    mean, var = _moments(gaps, h, psi)
    return LogKernel(lse, mean, var, jnp.full((), -jnp.inf, h.dtype))


class _Filter(NamedTuple):
    """One axis made ready for the recursions; arrays of shape (n, m, ...), the axis first."""

    top: Array
    """M."""
    element: Array
    """exp(h − M)."""
    forward: Array
    """Attenuation from i−1 to i."""
    backward: Array
    """Attenuation from i+1 to i."""


def _filter(h: Array, decay: Array) -> _Filter:
    """`h` of shape (n, m, ...), `decay` ψ·gap of shape (n−1, 1, ...)."""
    none = jnp.zeros((1, *decay.shape[1:]), decay.dtype)

    def reach(best: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        score, step = here
        best = jnp.maximum(score, best - step)
        return best, best

    inf = jnp.full_like(h[0], -jnp.inf)
    before = jnp.concatenate([none, decay]), jnp.concatenate([decay, none])
    fixed_h, fixed_decay = jax.lax.stop_gradient((h, before))
    _, best = jax.lax.scan(reach, inf, (fixed_h, fixed_decay[0]))
    _, top = jax.lax.scan(reach, inf, (best, fixed_decay[1]), reverse=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)  # a line without any mass

    rise = jnp.diff(top, axis=0)
    edge = jnp.zeros_like(top[:1])
    forward = jnp.concatenate([edge, jnp.exp(-rise - decay)])
    backward = jnp.concatenate([jnp.exp(rise - decay), edge])
    return _Filter(top, jnp.exp(h - top), forward, backward)


def _axis_lse(h: Array, decay: Array) -> Array:
    """ln Σ_j exp(h_j − decay(i, j)) along the first axis."""
    top, element, forward, backward = _filter(h, decay)

    def accumulate(before: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        element, attenuation = here
        arrived = attenuation * before
        return arrived + element, arrived

    zero = jnp.zeros_like(element[0])
    _, left = jax.lax.scan(accumulate, zero, (element, forward))
    _, right = jax.lax.scan(accumulate, zero, (element, backward), reverse=True)
    return safe_log(left + element + right) + top


class _Cloud(NamedTuple):
    """Masses with the mean and the variance of the cost that they have come by."""

    mass: Array
    mean: Array
    var: Array

    def move(self, attenuation: Array, cost: Array) -> "_Cloud":
        return _Cloud(attenuation * self.mass, self.mean + cost, self.var)

    def join(self, other: "_Cloud") -> "_Cloud":
        # Shares, not sums of squares, which would lose float32's digits.
        mass = self.mass + other.mass
        # Not times 1/mass, which is inf for subnormal masses.
        share = jnp.where(mass > 0.0, other.mass, 0.0) / jnp.where(mass > 0.0, mass, 1.0)
        delta = other.mean - self.mean
        mean = self.mean + share * delta
        spread = share * (1.0 - share) * delta**2
        return _Cloud(mass, mean, self.var + share * (other.var - self.var) + spread)


def _axis_moments(h: Array, decay: Array, gap: Array, mean: Array, var: Array) -> _Cloud:
    """Mean and variance of cost along the first axis, of elements that have some already."""
    _, element, forward, backward = _filter(h, decay)
    none = jnp.zeros((1, *gap.shape[1:]), gap.dtype)
    elements = _Cloud(element, mean, var)

    def accumulate(before: _Cloud, here: tuple[_Cloud, Array, Array]) -> tuple[_Cloud, _Cloud]:
        element, attenuation, cost = here
        arrived = before.move(attenuation, cost)
        return arrived.join(element), arrived

    zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), elements)
    before, after = jnp.concatenate([none, gap]), jnp.concatenate([gap, none])
    _, left = jax.lax.scan(accumulate, zero, (elements, forward, before))
    _, right = jax.lax.scan(accumulate, zero, (elements, backward, after), reverse=True)
    return left.join(elements).join(right)


def _decay(gap: Array, psi: Array) -> tuple[Array, Array]:
    """ψ·gap and gap as columns (n, 1, ...), with ψ's axes after."""
    column = gap.reshape(-1, 1, *(1 for _ in psi.shape))
    return psi * column, column + jnp.zeros_like(psi)


def _plain_lse(gaps: tuple[Array, Array], h: Array, psi: Array) -> Array:
    """The log-kernel's value for h of shape (H, W, ...) and ψ of shape (...)."""
    (along_rows, _), (along_cols, _) = (_decay(gap, psi) for gap in gaps)
    inner = _axis_lse(jnp.swapaxes(h, 0, 1), along_cols)
    return _axis_lse(jnp.swapaxes(inner, 0, 1), along_rows)


def _plain_moments(gaps: tuple[Array, Array], h: Array, psi: Array) -> tuple[Array, Array]:
    """The mean and the variance of the cost under the kernel's weights, as `_plain_lse`."""
    along_rows, along_cols = (_decay(gap, psi) for gap in gaps)
    h = jnp.swapaxes(h, 0, 1)
    zero = jnp.zeros_like(h)
    inner = _axis_moments(h, *along_cols, zero, zero)
    elements = (_axis_lse(h, along_cols[0]), inner.mean, inner.var)
    lse, mean, var = (jnp.swapaxes(a, 0, 1) for a in elements)
    outer = _axis_moments(lse, *along_rows, mean, var)
    empty = outer.mass <= 0
    return jnp.where(empty, 0.0, outer.mean), jnp.where(empty, 0.0, outer.var)


def _fast(function):
    """`function` with its batches last; its derivative is that of the function itself."""
    batched = batch_last(function)

    @jax.custom_jvp
    def fast(gaps, h, psi):
        return batched(gaps, h, psi)

    @fast.defjvp
    def _(primals, tangents):
        return fast(*primals), jax.jvp(function, primals, tangents)[1]

    return fast


_lse = _fast(_plain_lse)
_moments = _fast(_plain_moments)
