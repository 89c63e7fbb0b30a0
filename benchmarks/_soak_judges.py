"""Projections solved again by an interior point, in double precision, knowing nothing of ours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._soak_problems import Problems, displacements

Judge = Callable[[Problems, int, np.ndarray], np.ndarray | None]
"""(problems, which of them, cost matrix) ↦ the point, of (h, w, c); None if it was not found."""


def cost_matrix(height: int, width: int, window: int) -> np.ndarray:
    """The Euclidean distances between pixels, ∞ beyond the window."""
    at = np.stack(np.indices((height, width)), -1).reshape(-1, 2)
    apart = at[:, None] - at
    near = (np.abs(apart) <= window // 2).all(-1)
    return np.where(near, np.sqrt((apart**2).sum(-1)), np.inf)


def _columns(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64).reshape(-1, image.shape[-1])


def _solved(problem: Any, *values: Any) -> bool:
    import cvxpy

    try:
        # Where steps are large beside the mass, the usual gap of 1e-8 is no accuracy in z.
        problem.solve("CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    except cvxpy.SolverError:
        return False
    return problem.status == "optimal" and all(value.value is not None for value in values)


def _plans(x: np.ndarray, cost: np.ndarray) -> tuple[list[Any], list[Any], Any, list[Any]]:
    """A plan for each channel, its column sums, the cost of all, and what a plan must meet."""
    import cvxpy

    rows, cols = np.nonzero(np.isfinite(cost))
    n = len(cost)
    down = np.zeros((n, len(rows)))
    down[rows, np.arange(len(rows))] = 1
    across = np.zeros((n, len(rows)))
    across[cols, np.arange(len(rows))] = 1
    plans = [cvxpy.Variable(len(rows), nonneg=True) for _ in x.T]
    spent = sum(cost[rows, cols] @ plan for plan in plans)
    return (
        plans,
        [across @ plan for plan in plans],
        spent,
        [down @ plan == channel for plan, channel in zip(plans, x.T, strict=True)],
    )


def _sinkhorn(problems: Problems, k: int, cost: np.ndarray, capped: bool) -> np.ndarray | None:
    import cvxpy

    mass = problems.x[k].astype(np.float64).sum()
    x, w = (_columns(a[k]) / mass for a in (problems.x, problems.w))
    plans, points, spent, meets = _plans(x, cost)
    reg = float(problems.reg[k])
    apart = sum(cvxpy.sum_squares(w[:, c] - z) for c, z in enumerate(points))
    entropy = -sum(cvxpy.sum(cvxpy.entr(plan)) for plan in plans)
    meets = [*meets, spent <= float(problems.radius[k])]
    if capped:
        meets += [z <= float(problems.cap[k]) / mass for z in points]
    problem = cvxpy.Problem(cvxpy.Minimize(apart / 2 + entropy / reg), meets)
    if not _solved(problem, *plans):
        return None
    return mass * np.stack([z.value for z in points], -1)


def _dual(problems: Problems, k: int, cost: np.ndarray, capped: bool) -> np.ndarray | None:
    import cvxpy

    x = _columns(problems.x[k])
    mass = x.sum()
    plans, points, spent, meets = _plans(x / mass, cost)
    width, moves = problems.x.shape[2], displacements(round(len(problems.plan[k]) ** 0.5))
    rows, cols = np.nonzero(np.isfinite(cost))
    leads = zip(cols // width - rows // width, cols % width - rows % width, strict=True)
    taps = [moves.index((int(down), int(right))) for down, right in leads]
    given = problems.plan[k].astype(np.float64).reshape(len(moves), len(cost), -1) / mass
    apart = sum(cvxpy.sum_squares(plan - given[taps, rows, c]) for c, plan in enumerate(plans))
    meets = [*meets, spent <= float(problems.radius[k])]
    if capped:
        meets += [z <= float(problems.cap[k]) / mass for z in points]
    if not _solved(cvxpy.Problem(cvxpy.Minimize(apart / 2), meets), *plans):
        return None
    return mass * np.stack([z.value for z in points], -1)


def _flow(problems: Problems, k: int, cost: np.ndarray, capped: bool) -> np.ndarray | None:
    import cvxpy

    height, width = problems.x.shape[1:3]
    mass = problems.x[k].astype(np.float64).sum()
    x, w = (_columns(a[k]) / mass for a in (problems.x, problems.w))
    at = np.arange(height * width).reshape(height, width)
    edges = [*zip(at[:-1].flat, at[1:].flat), *zip(at[:, :-1].flat, at[:, 1:].flat)]  # noqa: B905
    out = np.zeros((len(x), len(edges)))
    for e, (i, j) in enumerate(edges):
        out[i, e], out[j, e] = 1, -1
    flows = [cvxpy.Variable(len(edges)) for _ in x.T]
    points = [channel - out @ flow for channel, flow in zip(x.T, flows, strict=True)]
    apart = sum(cvxpy.sum_squares(w[:, c] - z) for c, z in enumerate(points))
    meets = [sum(cvxpy.norm1(flow) for flow in flows) <= float(problems.radius[k])]
    meets += [z >= 0 for z in points] + [z <= float(problems.cap[k]) / mass for z in points]
    if not _solved(cvxpy.Problem(cvxpy.Minimize(apart / 2), meets), *flows):
        return None
    return mass * np.stack([z.value for z in points], -1)


def _unbalanced(problems: Problems, k: int, cost: np.ndarray, capped: bool) -> np.ndarray | None:
    import cvxpy

    x, w = (_columns(a[k]) for a in (problems.x, problems.w))
    eta, tau, gamma = (float(a[k]) for a in (problems.eta, problems.tau, problems.gamma))
    at = np.arange(len(cost))[:, None]
    points, total = [], 0.0
    for c in range(x.shape[1]):
        # What has no mass sends none: as a variable it would be 0 under a logarithm.
        there = x[:, c] > 0
        rows, cols = np.nonzero(np.isfinite(cost) & there[:, None])
        plan, z = cvxpy.Variable(len(rows), nonneg=True), cvxpy.Variable(len(x), nonneg=True)
        points.append(z)
        total += gamma / 2 * cvxpy.sum_squares(z - w[:, c])
        if not there.any():
            total += tau * cvxpy.sum(z)
            continue
        down, across = (rows == at).astype(float)[there], (cols == at).astype(float)
        total += cost[rows, cols] @ plan - eta * cvxpy.sum(cvxpy.entr(plan))
        total += tau * cvxpy.sum(cvxpy.kl_div(down @ plan, x[there, c]))
        total += tau * cvxpy.sum(cvxpy.kl_div(across @ plan, z))
    if not _solved(cvxpy.Problem(cvxpy.Minimize(total)), *points):
        return None
    return np.stack([z.value for z in points], -1)


def judge(name: str, problems: Problems, k: int, window: int) -> np.ndarray | None:
    """The point of problem k by an interior point, of x's shape; None where it finds none.

    Args:
      name: of the projection, as `soak` calls it.
      problems: of one size.
      k: which.
      window: side of the window.
    """
    methods = {"sinkhorn": _sinkhorn, "dual": _dual, "flow": _flow, "unbalanced": _unbalanced}
    kind, _, capped = name.partition(", ")
    shape = problems.x.shape[1:]
    found = methods[kind](problems, k, cost_matrix(*shape[:2], window), bool(capped))
    return None if found is None else found.reshape(shape)
