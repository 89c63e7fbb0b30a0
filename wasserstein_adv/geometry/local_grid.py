"""Transport inside a k×k window around every pixel, applied as a stencil."""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_pytree_node_class
from jaxtyping import Array, Float
from ott.geometry import epsilon_scheduler, geometry

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.costs import check_window_size


def _check_window(window: np.ndarray) -> np.ndarray:
    window = np.array(window, np.float64)  # a copy: it is frozen below
    if window.ndim != 2 or window.shape[0] != window.shape[1]:
        raise InputError(f"window must be a square k×k array of costs, got shape {window.shape}")
    side = check_window_size(window.shape[0], "window side")
    if np.isnan(window).any() or (window < 0).any():
        raise InputError("window must hold non-negative costs (inf forbids a move)")
    if window[side // 2, side // 2] != 0:
        raise InputError("window must cost 0 at its centre, where mass stays in place")
    return window


@register_pytree_node_class
class LocalGrid(geometry.Geometry):
    """Pixels of an H×W image, transport allowed only inside a k×k window.

    C_ij = window[r + row(j) − row(i), r + col(j) − col(i)] with r = (k−1)/2, and +∞ outside the
    window (Wong et al. 2019, section 4.2). Every product with the kernel takes O(H·W·k²) time and
    O(H·W) memory; no (H·W)² matrix is ever formed. It is an `ott.geometry.Geometry`: OTT's own
    Sinkhorn accepts it, in log domain and in kernel mode.

    Args:
      grid_size: (H, W).
      window: `(k, k)` costs, k odd, non-negative, 0 at the centre; +inf forbids a displacement.
        Static: a concrete array, part of what a compiled function is specialised to.
      epsilon, relative_epsilon: OTT's entropic regularisation, used by OTT's solvers only. The
        default is OTT's 0.05 standard deviations, here of the window's finite costs.

    Raises:
      InputError: `window` is not a k×k array of costs as above, or `grid_size` is not two positive
        integers.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        window: np.ndarray,
        epsilon: float | epsilon_scheduler.Epsilon | None = None,
        relative_epsilon: Literal["mean", "std"] | None = None,
    ) -> None:
        super().__init__(epsilon=epsilon, relative_epsilon=relative_epsilon)
        if len(grid_size) != 2 or min(grid_size) < 1:
            raise InputError(f"grid_size must be two positive integers, got {grid_size}")
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
        self.window = _check_window(window)
        self.window.setflags(write=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(H·W, H·W)."""
        n = self.grid_size[0] * self.grid_size[1]
        return n, n

    @property
    def dtype(self) -> jnp.dtype:
        """JAX's default float, for OTT; products take the dtype of what they are applied to."""
        return jnp.result_type(float)

    @property
    def is_symmetric(self) -> bool:
        """Whether C = Cᵀ: the window equals itself turned by 180 degrees."""
        return bool((self.window == self.window[::-1, ::-1]).all())

    @property
    def can_LRC(self) -> bool:
        """False: a local cost has no finite low-rank form."""
        return False

    @property
    def mean_cost_matrix(self) -> float:
        """Mean of the window's finite costs."""
        return float(self.window[np.isfinite(self.window)].mean())

    @property
    def std_cost_matrix(self) -> float:
        """Standard deviation of the window's finite costs."""
        return float(self.window[np.isfinite(self.window)].std())

    @property
    def cost_matrix(self) -> Float[Array, "n n"]:
        """The dense C, +inf outside the window. For small images and tests: O((H·W)²) memory."""
        height, width = self.grid_size
        rows, cols = np.divmod(np.arange(height * width), width)
        radius = self.window.shape[0] // 2
        drow = rows[None, :] - rows[:, None] + radius
        dcol = cols[None, :] - cols[:, None] + radius
        side = self.window.shape[0]
        inside = (drow >= 0) & (drow < side) & (dcol >= 0) & (dcol < side)
        costs = self.window[drow.clip(0, side - 1), dcol.clip(0, side - 1)]
        return jnp.asarray(np.where(inside, costs, np.inf))

    @property
    def kernel_matrix(self) -> Float[Array, "n n"]:
        """The dense exp(−C/ε), for small images and tests."""
        return jnp.exp(-self.cost_matrix / self.epsilon)

    def taps(self, axis: int = 1) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        """The finite costs of the window in ascending order, each with its displacements.

        Args:
          axis: 1 lists (Δrow, Δcol) from a source pixel i to its destinations j; 0 from a
            destination to its sources.

        Yields:
          (cost, displacements), displacements inside the image only.
        """
        radius = self.window.shape[0] // 2
        window = self.window if axis == 1 else self.window[::-1, ::-1]
        height, width = self.grid_size
        for cost in np.unique(window[np.isfinite(window)]):
            hits = [(int(i) - radius, int(j) - radius) for i, j in np.argwhere(window == cost)]
            inside = [(i, j) for i, j in hits if abs(i) < height and abs(j) < width]
            if inside:
                yield float(cost), inside

    def neighbours(
        self, image: Float[Array, "h w"], fill: float, axis: int = 1
    ) -> list[tuple[float, list[Float[Array, "h w"]]]]:
        """Per cost of the window, the images shifted by each displacement of that cost.

        Args:
          image: (H, W) values.
          fill: what stands beyond the border.
          axis: as in `taps`.

        Returns:
          [(cost, [shifted, ...]), ...], shifted[i] = image[i + displacement].
        """
        height, width = self.grid_size
        radius = self.window.shape[0] // 2
        padded = jnp.pad(image, radius, constant_values=fill)

        def shifted(drow: int, dcol: int) -> Float[Array, "h w"]:
            start = (radius + drow, radius + dcol)
            return jax.lax.slice(padded, start, (start[0] + height, start[1] + width))

        return [(cost, [shifted(*d) for d in moves]) for cost, moves in self.taps(axis)]

    def _stencil(self, vec: Array, weight: Any, axis: int) -> Array:
        """Σ over the window of weight(cost)·vec, for a flat vector."""
        image = jnp.reshape(vec, self.grid_size)
        groups = self.neighbours(image, 0.0, axis)
        return sum(weight(cost) * sum(shifts) for cost, shifts in groups).reshape(-1)

    def apply_kernel(self, vec: Array, eps: float | None = None, axis: int = 0) -> Array:
        """exp(−C/ε)·vec (axis 1) or its transpose (axis 0), for a flat vector."""
        eps = self.epsilon if eps is None else eps
        return self._stencil(vec, lambda cost: jnp.exp(-cost / eps), axis)

    def apply_lse_kernel(
        self, f: Array, g: Array, eps: float, vec: Array | None = None, axis: int = 0
    ) -> tuple[Array, Array]:
        """ε·ln Σ exp((f + g − C)/ε)·vec − (f or g), with its sign; OTT's contract."""
        source, other = (g, f) if axis == 1 else (f, g)
        shape = self.grid_size
        groups = self.neighbours(jnp.reshape(source, shape), -jnp.inf, axis)
        signed = jnp.ones(shape, source.dtype) if vec is None else jnp.reshape(vec, shape)
        weights = [w for _, shifts in self.neighbours(signed, 0.0, axis) for w in shifts]
        scores = jnp.stack([(s - cost) / eps for cost, shifts in groups for s in shifts])
        lse, sign = jax.nn.logsumexp(scores, axis=0, b=jnp.stack(weights), return_sign=True)
        remainder = jnp.where(jnp.isfinite(other), 0.0, other)  # what OTT's centring leaves behind
        return eps * lse.reshape(-1) + remainder, sign.reshape(-1)

    def transport_from_potentials(self, f: Array, g: Array) -> Float[Array, "n n"]:
        """The dense plan, for small images and tests."""
        return jnp.exp((f[:, None] + g[None, :] - self.cost_matrix) / self.epsilon)

    def transport_from_scalings(self, u: Array, v: Array) -> Float[Array, "n n"]:
        """The dense plan, for small images and tests."""
        return self.kernel_matrix * u[:, None] * v[None, :]

    def apply_cost(
        self, arr: Array, axis: int = 0, fn: Any = None, is_linear: bool = False
    ) -> Array:
        """Σ over the window of fn(C)·arr: moves outside the window count as absent, not as ∞."""
        del is_linear
        fn = (lambda cost: cost) if fn is None else fn

        def product(vec: Array) -> Array:
            return self._stencil(vec, fn, axis)

        return product(arr) if arr.ndim == 1 else jax.vmap(product, in_axes=1, out_axes=1)(arr)

    def tree_flatten(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """ε is a leaf; the grid and the window are static."""
        static = _Static(self.grid_size, self.window, self._relative_epsilon)
        return (self._epsilon_init,), {"static": static}

    @classmethod
    def tree_unflatten(cls, aux_data: dict[str, Any], children: tuple[Any, ...]) -> "LocalGrid":
        """Inverse of `tree_flatten`."""
        static = aux_data["static"]
        new = cls.__new__(cls)
        geometry.Geometry.__init__(
            new, epsilon=children[0], relative_epsilon=static.relative_epsilon
        )
        new.grid_size, new.window = static.grid_size, static.window
        return new


class _Static:
    """The static part of a `LocalGrid`, compared by value: equal grids share compilations."""

    def __init__(
        self,
        grid_size: tuple[int, int],
        window: np.ndarray,
        relative_epsilon: Literal["mean", "std"] | None,
    ) -> None:
        self.grid_size, self.window, self.relative_epsilon = grid_size, window, relative_epsilon
        self._key = (grid_size, window.shape, window.tobytes(), relative_epsilon)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
