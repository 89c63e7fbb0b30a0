"""Exact Wasserstein distances between images, by a solver that no attack uses: a certificate.

Each distance comes from POT's network simplex in float64 and is returned only after its plan has
been checked against the marginals and its dual potentials against weak duality, both of them here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wasserstein_adv.errors import InputError

GroundCost = Callable[[NDArray[np.float64], NDArray[np.float64]], ArrayLike]
"""`cost(drow, dcol)`: the cost of moving a unit of mass by so many pixels, for arrays of them."""

ROUNDING = 1e-6
"""Share of the mass that may find no allowed arc and still count as rounding: float32 images."""

MAX_PIVOTS = 10_000_000
"""Pivots after which the simplex gives up, an error; a 64×64 image takes fewer than 3e4."""

# The numbers below are in units of the largest allowed cost, which the solver sees as 1.
_GAP = 1e-7  # between the plan's cost and the dual's lower bound, at most
_PRICE = 1e-9  # an arc enters the problem when its reduced cost is below minus this
_NEAR = 81  # displacements, the cheapest ones, from which a problem with more of them starts
_BLOCK = 1 << 20  # arcs priced at once


class TransportDistance(NamedTuple):
    """Distances of one pair of images, or of N pairs with a leading axis N on every field.

    Attributes:
        total: Cost Σ_c s_c·W(x_c/|x_c|, z_c/|z_c|) with s_c = |x_c|/|x|, in units of the ground
            cost × share of the clean image's mass: what an attack's radius bounds. inf where a
            channel with mass, in either image, has no plan.
        channels: (C,) the W of each channel, both sides scaled to mass 1.
        mass_ratio: |z|/|x| of the whole images; 1 where both are blank, inf where only x is.
            `total` does not see a change of mass, so read the two together.
        channel_mass_ratios: (C,) the same of each channel.
        stranded: (C,) share of the channel's mass that no allowed arcs can carry from x to z. Up
            to `ROUNDING` it is charged; above, the distance is inf. 1 where one side is blank.
    """

    total: NDArray[np.float64] | np.float64
    channels: NDArray[np.float64]
    mass_ratio: NDArray[np.float64]
    channel_mass_ratios: NDArray[np.float64]
    stranded: NDArray[np.float64]


def exact_distance(
    x: ArrayLike,
    z: ArrayLike,
    cost: GroundCost | ArrayLike,
    window: int | None = None,
) -> TransportDistance:
    """Exact Wasserstein distance from image x to image z, channel by channel.

    For every channel, with a = x_c/|x_c| and b = z_c/|z_c| (|·| the sum over the pixels), solves

        W(a, b) = min ⟨Π, C⟩  over  Π ≥ 0,  Π1 = a,  Πᵀ1 = b,  Π_ij = 0 where C_ij = inf,

    C_ij = cost(row_j - row_i, col_j - col_i), and inf where the move leaves the window. Where no
    plan exists and the mass left over is at most `ROUNDING`, the most mass is carried that can be,
    at the least cost, and the rest is charged (H + W)·max C, a walk across the image; where more is
    left over, W is inf. Two blank channels are at distance 0, a blank one from any other at inf.

    Args:
        x: (H, W, C) clean image, non-negative.
        z: (H, W, C) adversarial image, non-negative.
        cost: The ground cost of a displacement in pixels, non-negative, 0 for (0, 0), inf for a
            forbidden move: a function of (drow, dcol), or the array of a k×k window, k odd, whose
            entry [k//2 + drow, k//2 + dcol] is the cost and outside which nothing moves.
        window: With a function, the odd side k of the window that bounds each move,
            |drow|, |dcol| ≤ k//2; None for none: mass may go anywhere.

    Returns:
        The distances, the changes of mass and the stranded shares. A distance is proved by its
        dual to be within 1e-7·max C of the optimum; 1e-9 is usual.

    Raises:
        InputError: If shapes, signs or the cost are not as above, or a value is NaN or infinite.
        RuntimeError: If the solver stops early or its answer fails the check.
    """
    x, z = _check_images(x, z, "(H, W, C)")
    return _image_distance(x, z, _prepare(cost, window, x.shape[:2]))


def exact_distances(
    x: ArrayLike,
    z: ArrayLike,
    cost: GroundCost | ArrayLike,
    window: int | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> TransportDistance:
    """`exact_distance` of N pairs of images, in threads (the solver releases Python's lock).

    Args:
        x: (N, H, W, C) clean images, non-negative.
        z: (N, H, W, C) adversarial images, non-negative.
        cost: As for `exact_distance`.
        window: As for `exact_distance`.
        workers: Threads; None for one per CPU.
        progress: Called in this thread, in order, with the number of images done: 1 ... N.

    Returns:
        `TransportDistance` with a leading axis N on every field.

    Raises:
        InputError: As for `exact_distance`; before anything is solved.
        RuntimeError: As for `exact_distance`.
    """
    x, z = _check_images(x, z, "(N, H, W, C)")
    ground = _prepare(cost, window, x.shape[1:3])
    done: list[TransportDistance] = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for distance in pool.map(functools.partial(_image_distance, ground=ground), x, z):
            done.append(distance)
            if progress is not None:
                progress(len(done))
    channels = (len(done), x.shape[3])
    shapes = ((len(done),), channels, (len(done),), channels, channels)
    # reshape, because stacking no images loses the channel axis
    return TransportDistance(
        *(np.asarray([d[f] for d in done], float).reshape(s) for f, s in enumerate(shapes))
    )


class _Ground(NamedTuple):
    """A ground cost made ready for images of one shape."""

    table: NDArray[np.float64]  # (2H-1, 2W-1) costs by displacement over `scale`; inf = forbidden
    scale: float  # the largest finite cost
    near: NDArray[np.intp]  # (K, 2) the cheapest displacements
    all_near: bool  # no allowed displacement is missing from `near`
    complete: bool  # no displacement is forbidden


def _check_images(
    x: ArrayLike, z: ArrayLike, axes: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    if x.shape != z.shape or x.ndim != axes.count(",") + 1 or 0 in x.shape[-3:]:
        raise InputError(f"x and z must be of one shape {axes}, got {x.shape} and {z.shape}")
    for name, image in (("x", x), ("z", z)):
        if not np.all(np.isfinite(image)):
            raise InputError(f"{name} has pixels that are NaN or infinite")
        if np.any(image < 0):
            raise InputError(f"{name} has negative pixels, down to {image.min():.3g}")
    return x, z


def _prepare(cost: GroundCost | ArrayLike, window: int | None, shape: tuple[int, int]) -> _Ground:
    table = _displacement_costs(cost, window, shape)
    center = (shape[0] - 1, shape[1] - 1)
    if np.any(np.isnan(table)) or np.any(table < 0):
        raise InputError("cost must be non-negative: it has entries that are negative or NaN")
    if table[center] != 0:
        raise InputError(f"cost of staying in place must be 0, got {table[center]:.3g}")
    allowed = np.isfinite(table)
    scale = float(table[allowed].max()) or 1.0
    cheapest = np.argsort(table, axis=None, kind="stable")[: min(_NEAR, int(allowed.sum()))]
    near = np.stack(np.unravel_index(cheapest, table.shape), axis=1) - center
    return _Ground(table / scale, scale, near, len(near) == allowed.sum(), bool(allowed.all()))


def _displacement_costs(
    cost: GroundCost | ArrayLike, window: int | None, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """The (2H-1, 2W-1) costs of all displacements, inf outside the window."""
    height, width = shape
    drow = np.arange(1.0 - height, height)[:, None]
    dcol = np.arange(1.0 - width, width)[None, :]
    drow, dcol = np.broadcast_arrays(drow, dcol)
    if callable(cost):
        table = np.asarray(cost(drow, dcol), np.float64)
        if table.shape != drow.shape:
            raise InputError(f"cost must return the shape {drow.shape} it got, not {table.shape}")
        if window is None:
            return table
        side, inside = window, table
    else:
        kernel = np.asarray(cost, np.float64)
        side = kernel.shape[0] if kernel.ndim == 2 else 0
        if kernel.shape != (side, side) or window is not None:
            raise InputError("cost as an array must be a square window, given without `window`")
        inside = None
    if side < 1 or side % 2 == 0:
        raise InputError(f"the window's side must be odd and positive, got {side}")
    reach = side // 2
    within = (np.abs(drow) <= reach) & (np.abs(dcol) <= reach)
    if inside is None:
        rows, cols = drow[within].astype(np.intp), dcol[within].astype(np.intp)
        inside = np.zeros(drow.shape)
        inside[within] = kernel[rows + reach, cols + reach]
    return np.where(within, inside, np.inf)


def _image_distance(
    x: NDArray[np.float64], z: NDArray[np.float64], ground: _Ground
) -> TransportDistance:
    pairs = [_channel_distance(x[..., c], z[..., c], ground) for c in range(x.shape[-1])]
    channels, stranded = np.array(pairs).T
    x_mass, z_mass = x.sum((0, 1)), z.sum((0, 1))
    if np.any(np.isinf(channels)):
        total = np.float64(np.inf)  # not a weighted sum: 0·inf for a channel where x is blank
    else:
        total = np.dot(x_mass, channels) / (x_mass.sum() or 1.0)
    return TransportDistance(
        total, channels, _ratio(z_mass.sum(), x_mass.sum()), _ratio(z_mass, x_mass), stranded
    )


def _ratio(new: ArrayLike, old: ArrayLike) -> NDArray[np.float64]:
    """new/old, where 0/0 is 1 and anything else over 0 is inf."""
    new, old = np.asarray(new), np.asarray(old)
    blank = np.where(new == 0, 1.0, np.inf)
    return np.where(old == 0, blank, new / np.where(old == 0, 1.0, old))


def _channel_distance(
    x: NDArray[np.float64], z: NDArray[np.float64], ground: _Ground
) -> tuple[float, float]:
    """W of one (H, W) channel and its stranded share."""
    if np.array_equal(x, z):  # all stays where it is, which is free
        return 0.0, 0.0
    if not (x.any() and z.any()):
        return (np.inf, 1.0) if x.any() or z.any() else (0.0, 0.0)
    source, target = np.flatnonzero(x), np.flatnonzero(z)
    carried, stranded = _transport(
        x.flat[source] / x.sum(), z.flat[target] / z.sum(), source, target, ground, x.shape
    )
    if stranded > ROUNDING:
        return np.inf, stranded
    return ground.scale * (carried + stranded * sum(x.shape)), stranded


def _transport(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    source: NDArray[np.intp],
    target: NDArray[np.intp],
    ground: _Ground,
    shape: tuple[int, int],
) -> tuple[float, float]:
    """Strands the least mass and, that done, carries the rest at the least cost.

    Mass that no allowed arc takes goes through one more node on either side, at a penalty M each
    way; those two nodes hold mass 1 and exchange what they do not need for nothing. So a plan
    always exists. A plan that strands more than it must can be bettered along a path that adds at
    most min(n, m) allowed arcs, of cost at most 1, and drops two penalised ones: 2M = min(n, m) + 1
    rules that out, and 2M = 2 where every source reaches every target by one arc. No larger: the
    simplex loses digits with M.

    The problem starts with the cheapest displacements; arcs whose reduced cost is negative join
    until there are none, which makes the plan optimal over all of them.

    Args:
        a: (n,) masses of the sources, positive, sum 1.
        b: (m,) masses of the targets, positive, sum 1.
        source: (n,) flat pixel index of each source.
        target: (m,) flat pixel index of each target.
        ground: The ground cost.
        shape: (H, W).

    Returns:
        The carried mass's cost, in units of `ground.scale`, and the stranded mass.
    """
    n, m = len(a), len(b)
    penalty = 1.0 if ground.complete else (min(n, m) + 1) / 2
    a, b = np.append(a, 1.0), np.append(b, 1.0)
    spare = (
        np.concatenate([np.arange(n), np.full(m + 1, n)]),
        np.concatenate([np.full(n, m), np.arange(m + 1)]),
    )
    spare_costs = np.append(np.full(n + m, penalty), 0.0)
    at, to = _positions(source, shape), _positions(target, shape)

    keys = _near_arcs(source, target, ground.near, shape)
    while True:
        rows, cols = np.divmod(keys, m)
        arcs = np.concatenate([rows, spare[0]]), np.concatenate([cols, spare[1]])
        costs = np.concatenate([_costs(at[rows], to[cols], ground.table), spare_costs])
        flow, u, v = _network_simplex(a, b, arcs, costs)
        if ground.all_near:
            break
        new = np.setdiff1d(_underpriced(at, to, u, v, ground.table), keys)
        if not len(new):
            break
        keys = np.concatenate([keys, new])

    _check_certificate(a, b, arcs, costs, flow, u, v)
    stranded = float(flow[len(keys) : len(keys) + n].sum())
    return float(np.dot(flow[: len(keys)], costs[: len(keys)])), stranded


def _positions(pixels: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    """Pixel indices on rows of length 2W-1, where a difference of two names the displacement."""
    rows, cols = np.divmod(pixels, shape[1])
    return rows * (2 * shape[1] - 1) + cols


def _costs(
    at: NDArray[np.intp], to: NDArray[np.intp], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Costs of the arcs between positions `at` and `to`, broadcast."""
    return table.ravel()[to - at + table.size // 2]


def _near_arcs(
    source: NDArray[np.intp],
    target: NDArray[np.intp],
    displacements: NDArray[np.intp],
    shape: tuple[int, int],
) -> NDArray[np.intp]:
    """The arcs (i, j), as i·m + j, that lead from a source to a target by a displacement."""
    index = np.full(shape, -1)
    index.flat[target] = np.arange(len(target))
    rows = (source // shape[1])[:, None] + displacements[:, 0]
    cols = (source % shape[1])[:, None] + displacements[:, 1]
    inside = (rows >= 0) & (rows < shape[0]) & (cols >= 0) & (cols < shape[1])
    reached = np.where(inside, index[rows * inside, cols * inside], -1)
    arcs = np.arange(len(source))[:, None] * len(target) + reached
    return arcs[reached >= 0]


def _underpriced(
    at: NDArray[np.intp],
    to: NDArray[np.intp],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    table: NDArray[np.float64],
) -> NDArray[np.intp]:
    """The arcs (i, j), as i·m + j, with C_ij - u_i - v_j < 0: those the plan may gain from."""
    n, m = len(at), len(to)
    found = []
    step = max(1, _BLOCK // m)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        reduced = _costs(at[rows, None], to, table) - u[rows, None] - v[:m]
        found.append(np.flatnonzero(reduced < -_PRICE) + first * m)
    return np.concatenate(found)


def _network_simplex(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    arcs: tuple[NDArray[np.intp], NDArray[np.intp]],
    costs: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The flow of each arc and the potentials of both sides; an early stop is an error."""
    # Here, because POT takes seconds to import: it imports whatever frameworks are installed.
    import ot
    from scipy.sparse import coo_array

    matrix = coo_array((costs, arcs), shape=(len(a), len(b)))
    plan, log = ot.emd(a, b, matrix, log=True, numItermax=MAX_PIVOTS, center_dual=False)
    if log["warning"] is not None:
        raise RuntimeError(f"the transport solver stopped early: {log['warning']}")
    # Arcs without flow are left out of the plan: put the others back in the order of `arcs`.
    keys, used = arcs[0] * len(b) + arcs[1], plan.row * len(b) + plan.col
    order = np.argsort(keys)
    flow = np.zeros(len(costs))
    flow[order[np.searchsorted(keys, used, sorter=order)]] = plan.data
    return flow, np.asarray(log["u"]), np.asarray(log["v"])


def _check_certificate(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    arcs: tuple[NDArray[np.intp], NDArray[np.intp]],
    costs: NDArray[np.float64],
    flow: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
) -> None:
    """Raises RuntimeError unless the flow is a plan and the potentials prove it optimal."""
    error = np.abs(np.bincount(arcs[0], flow, len(a)) - a).sum()
    error += np.abs(np.bincount(arcs[1], flow, len(b)) - b).sum()
    # Lowering each u_i by its worst violation makes the potentials feasible: a lower bound.
    excess = np.zeros(len(a))
    with np.errstate(invalid="ignore"):  # NaN is refused below
        np.minimum.at(excess, arcs[0], costs - u[arcs[0]] - v[arcs[1]])
    gap = np.dot(flow, costs) - (np.dot(a, u + excess) + np.dot(b, v))
    # Written so that NaN fails.
    if not (flow.min() >= 0 and error <= _GAP and gap <= _GAP):
        raise RuntimeError(
            f"the transport solver's answer fails its check: lowest flow {flow.min():.1e}, "
            f"marginals off by {error:.1e}, duality gap {gap:.1e} of the largest cost"
        )
