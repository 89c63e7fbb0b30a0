"""The certificate against another LP solver, closed forms and its own failures."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array, vstack

from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import exact_distance, exact_distances, transport


def euclidean(p):
    return lambda drow, dcol: np.hypot(drow, dcol) ** p


def no_corners(k, p=1):
    """A k×k window of Euclidean costs whose corners are forbidden."""
    offsets = np.arange(k) - k // 2
    costs = np.hypot(offsets[:, None], offsets) ** p
    costs[np.ix_([0, -1], [0, -1])] = np.inf
    return costs


def skewed(drow, dcol):
    """A cost that depends on the direction: moving right and up is dear."""
    return np.abs(drow) + np.abs(dcol) + 0.5 * (drow < 0) + 0.25 * (dcol > 0)


def single(*pixels, shape=(6, 6)):
    """A one-channel image with mass 1 at each pixel."""
    image = np.zeros((*shape, 1))
    for pixel in pixels:
        image[pixel] += 1.0
    return image


def sparse_image(rng, shape, density):
    image = rng.random(shape) * (rng.random(shape) < density)
    image[rng.integers(shape[0]), rng.integers(shape[1])] = 0.5  # never blank
    return image


def move_locally(rng, x, reach, share):
    """Moves random shares of every pixel of (H, W) to random pixels within reach: feasible."""
    z = x.copy()
    for pixel in np.argwhere(x > 0):
        for _ in range(3):
            to = np.clip(pixel + rng.integers(-reach, reach + 1, 2), 0, np.array(x.shape) - 1)
            mass = share * rng.random() * x[tuple(pixel)]
            z[tuple(pixel)] -= mass
            z[tuple(to)] += mass
    return z


def highs_distance(x, z, cost, window=None):
    """The same LP of two (H, W) images by SciPy's HiGHS, over the allowed arcs only."""
    if not callable(cost):
        kernel, window = cost, len(cost)
        reach = window // 2

        def cost(drow, dcol):
            clipped = [np.clip(d, -reach, reach).astype(int) + reach for d in (drow, dcol)]
            return kernel[tuple(clipped)]

    (xr, xc), (zr, zc) = np.nonzero(x), np.nonzero(z)
    drow = (zr - xr[:, None]).astype(float)
    dcol = (zc - xc[:, None]).astype(float)
    costs = np.asarray(cost(drow, dcol))
    allowed = np.isfinite(costs)
    if window is not None:
        allowed &= np.maximum(np.abs(drow), np.abs(dcol)) <= window // 2
    i, j = np.nonzero(allowed)
    if not len(i):
        return np.inf
    arcs, ones = np.arange(len(i)), np.ones(len(i))
    marginals = vstack(
        [
            coo_array((ones, (i, arcs)), shape=(len(xr), len(i))),
            coo_array((ones, (j, arcs)), shape=(len(zr), len(i))),
        ]
    )
    masses = np.concatenate([x[xr, xc] / x.sum(), z[zr, zc] / z.sum()])
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    answer = linprog(costs[i, j], A_eq=marginals.tocsr(), b_eq=masses, options=tight)
    assert answer.status in (0, 2), answer.message
    return answer.fun if answer.status == 0 else np.inf


PROBLEMS = [
    (euclidean(1), None),
    (euclidean(2), None),
    (euclidean(1), 3),
    (euclidean(2), 5),
    (euclidean(0.5), 7),
    (skewed, None),
    (skewed, 5),
    (no_corners(3), None),
    (no_corners(5, p=2), None),
]


@pytest.mark.parametrize(("cost", "window"), PROBLEMS)
@pytest.mark.parametrize("side", [4, 7])
def test_agrees_with_highs_where_a_plan_exists(cost, window, side):
    rng = np.random.default_rng(side)
    for density in (0.3, 1.0):
        x = sparse_image(rng, (side, side), density)
        z = move_locally(rng, x, 1, 0.3)  # corners of the 3×3 window are forbidden: may be inf
        expected = highs_distance(x, z, cost, window)
        ours = exact_distance(x[..., None], z[..., None], cost, window)
        np.testing.assert_allclose(ours.total, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("cost", "window"), PROBLEMS)
def test_agrees_with_highs_on_unrelated_images(cost, window):
    rng = np.random.default_rng(3)
    for density in (0.2, 0.5, 1.0):
        x, z = (sparse_image(rng, (5, 6), density) for _ in range(2))
        expected = highs_distance(x, z, cost, window)
        ours = exact_distance(x[..., None], z[..., None], cost, window)
        np.testing.assert_allclose(ours.total, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("near", [1, 9, 10_000])
def test_arcs_that_join_later_do_not_change_the_answer(monkeypatch, near):
    rng = np.random.default_rng(4)
    x, z = (sparse_image(rng, (9, 8, 1), 0.7) for _ in range(2))
    for p in (1, 2):
        expected = highs_distance(x[..., 0], z[..., 0], euclidean(p))
        monkeypatch.setattr(transport, "_NEAR", near)
        monkeypatch.setattr(transport, "_BLOCK", 100)  # several blocks of arcs to price
        ours = exact_distance(x, z, euclidean(p))
        np.testing.assert_allclose(ours.total, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("start", "end", "window", "expected"),
    [
        ((2, 2), (2, 2), 3, 0.0),
        ((2, 2), (2, 3), 3, 1.0),
        ((2, 2), (4, 2), 5, 2.0),
        ((2, 2), (3, 3), 3, np.sqrt(2)),
        ((2, 2), (4, 2), 3, np.inf),
        ((0, 0), (3, 4), 5, np.inf),
        ((0, 0), (3, 4), None, 5.0),
        ((2, 2), (2, 2), 1, 0.0),
        ((2, 2), (2, 3), 1, np.inf),
    ],
)
def test_one_pixel_moved(start, end, window, expected):
    moved = exact_distance(single(start), single(end), euclidean(1), window)
    np.testing.assert_allclose(moved.total, expected, atol=1e-12)
    assert moved.stranded[0] == pytest.approx(float(np.isinf(expected)), abs=1e-12)
    assert moved.mass_ratio == 1.0


def test_window_array_is_read_by_displacement_of_the_mass():
    window = np.full((3, 3), np.inf)
    window[1, 1], window[1, 2] = 0.0, 0.75  # only to the right
    right = exact_distance(single((2, 2)), single((2, 3)), window)
    left = exact_distance(single((2, 3)), single((2, 2)), window)
    assert right.total == pytest.approx(0.75)
    assert np.isinf(left.total)


def test_every_corner_of_a_forbidden_window_is_forbidden():
    diagonal = exact_distance(single((2, 2)), single((3, 3)), no_corners(3))
    assert np.isinf(diagonal.total)
    assert exact_distance(single((2, 2)), single((3, 2)), no_corners(3)).total == pytest.approx(1)


@pytest.mark.parametrize("axis", [0, 1])
def test_line_has_the_cumulative_sums_distance(axis):
    rng = np.random.default_rng(5)
    x, z = rng.random((2, 120))
    expected = np.abs(np.cumsum(x / x.sum() - z / z.sum())).sum()
    line = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    ours = exact_distance(x.reshape(line), z.reshape(line), euclidean(1))
    assert ours.total == pytest.approx(expected, abs=1e-9)


def test_shifted_image_moves_by_the_shift():
    rng = np.random.default_rng(6)
    x = np.zeros((28, 28, 1))
    x[6:20, 8:18, 0] = rng.random((14, 10))
    shifted = np.roll(x, (1, 2), (0, 1))
    # For a convex cost of the displacement no plan beats moving everything by the mean.
    for p in (1, 2):
        for window in (5, None):
            ours = exact_distance(x, shifted, euclidean(p), window)
            assert ours.total == pytest.approx(5 ** (p / 2), abs=1e-8)
    assert np.isinf(exact_distance(x, shifted, euclidean(1), 3).total)


@pytest.mark.parametrize("window", [3, None])
def test_symmetric_and_blind_to_scale(window):
    rng = np.random.default_rng(7)
    x = sparse_image(rng, (8, 8), 0.6)
    z = move_locally(rng, x, 1, 0.2)[..., None]
    x = x[..., None]
    forth = exact_distance(x, z, euclidean(1), window)
    assert forth.total > 0.01
    assert exact_distance(z, x, euclidean(1), window).total == pytest.approx(forth.total, abs=1e-9)
    scaled = exact_distance(3 * x, 1e-6 * z, euclidean(1), window)
    assert scaled.total == pytest.approx(forth.total, abs=1e-9)
    assert scaled.mass_ratio == pytest.approx(z.sum() * 1e-6 / (3 * x.sum()))
    for factor in (1e-9, 1e9):
        dearer = exact_distance(x, z, lambda r, c, f=factor: f * np.hypot(r, c), window)
        assert dearer.total == pytest.approx(factor * forth.total, rel=1e-6)


def test_triangle_inequality_of_a_metric():
    rng = np.random.default_rng(8)
    images = rng.random((3, 7, 7, 1))
    ab, bc, ac = (exact_distance(images[i], images[j], euclidean(1)).total for i, j in
                  ((0, 1), (1, 2), (0, 2)))  # fmt: skip
    assert ac <= ab + bc + 1e-9


@pytest.mark.parametrize("side", [14, 28])
def test_rounding_to_float32_is_charged_and_no_more(side):
    rng = np.random.default_rng(9)
    x = sparse_image(rng, (side, side), 0.2)  # islands: each must balance by itself
    z = move_locally(rng, x, 1, 0.1)
    exact = exact_distance(x[..., None], z[..., None], euclidean(1), 3)
    noisy = (z * (1 + 2e-7 * rng.standard_normal(z.shape))).astype(np.float32)
    rounded = exact_distance(x[..., None], noisy[..., None], euclidean(1), 3)
    assert exact.stranded[0] < 1e-12
    assert 0 < rounded.stranded[0] < transport.ROUNDING
    charge = rounded.stranded[0] * 2 * side * np.sqrt(2)
    assert abs(rounded.total - charge - exact.total) < 1e-6
    broken = z.copy()
    broken[tuple(np.argwhere(x > 0)[0])] += 1e-4 * x.sum()
    assert np.isinf(exact_distance(x[..., None], broken[..., None], euclidean(1), 3).total)


def test_stranded_is_the_mass_that_cannot_move():
    x = single((0, 0), (0, 0), (0, 0), (5, 5))
    z = single((0, 0), (0, 1), (5, 5), (5, 5))
    ours = exact_distance(x, z, euclidean(1), 3)
    assert ours.stranded[0] == pytest.approx(0.25)
    assert np.isinf(ours.total)


def test_stranding_is_the_last_resort():
    # The chain of moves that frees a place is far dearer than any one move: still a plan.
    x, z = np.ones((1, 200, 1)), np.ones((1, 200, 1))
    x[0, 0] += 1
    z[0, -1] += 1
    ours = exact_distance(x, z, euclidean(1), 3)
    assert ours.stranded[0] == pytest.approx(0, abs=1e-12)
    assert ours.total == pytest.approx(199 / 201)


def test_channels_share_one_budget_by_clean_mass():
    x = np.concatenate([3 * single((2, 2)), single((0, 0))], axis=-1)
    z = np.concatenate([3 * single((2, 3)), single((0, 2))], axis=-1)
    ours = exact_distance(x, z, euclidean(1), 5)
    np.testing.assert_allclose(ours.channels, [1, 2])
    assert ours.total == pytest.approx((3 * 1 + 1 * 2) / 4)


def test_mass_changes_are_reported():
    x = np.concatenate([single((1, 1)), single((1, 1))], axis=-1)
    ours = exact_distance(x, x * [0.5, 1.0], euclidean(1))
    np.testing.assert_allclose(ours.channel_mass_ratios, [0.5, 1.0])
    assert ours.mass_ratio == pytest.approx(0.75)
    assert ours.total == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("window", [3, None])
def test_blank_channels(window):
    blank, full = np.zeros((6, 6, 1)), single((1, 1))
    both = exact_distance(blank, blank, euclidean(1), window)
    assert both.total == both.channels[0] == 0
    assert both.mass_ratio == 1
    gone = exact_distance(full, blank, euclidean(1), window)
    assert np.isinf(gone.total) and gone.mass_ratio == 0
    made = exact_distance(blank, full, euclidean(1), window)
    assert np.isinf(made.total) and np.isinf(made.mass_ratio)
    # A clean share of 0 must not hide the channel that appeared.
    x = np.concatenate([full, blank], axis=-1)
    assert np.isinf(exact_distance(x, np.concatenate([full, full], -1), euclidean(1)).total)
    assert exact_distance(x, x, euclidean(1)).total == 0


def test_dust_does_not_disturb():
    x = single((2, 2)).astype(np.float32)
    z = single((2, 3)).astype(np.float32)
    z[2, 1] = 1e-45  # a float32 denormal
    x[0, 0] = 1e-30
    ours = exact_distance(x, z, euclidean(1), 3)
    assert ours.total == pytest.approx(1, abs=1e-9)
    assert exact_distance(x, z, euclidean(1)).total == pytest.approx(1, abs=1e-9)


def test_batch_equals_one_by_one_and_reports_progress():
    rng = np.random.default_rng(10)
    x, z = rng.random((2, 5, 6, 7, 3))
    seen = []
    batch = exact_distances(x, z, euclidean(1), workers=2, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    for i in range(5):
        for ours, one in zip(batch, exact_distance(x[i], z[i], euclidean(1)), strict=True):
            np.testing.assert_array_equal(ours[i], one)
    empty = exact_distances(x[:0], z[:0], euclidean(1), progress=seen.append)
    assert [f.shape for f in empty] == [(0,), (0, 3), (0,), (0, 3), (0, 3)]
    assert len(seen) == 5


@pytest.mark.filterwarnings("ignore:numItermax reached")
def test_early_stop_is_an_error_not_a_value(monkeypatch):
    rng = np.random.default_rng(11)
    x, z = rng.random((2, 2, 8, 8, 1))
    monkeypatch.setattr(transport, "MAX_PIVOTS", 2)
    for window in (5, None):
        with pytest.raises(RuntimeError, match="stopped early"):
            exact_distance(x[0], z[0], euclidean(1), window)
    with pytest.raises(RuntimeError, match="stopped early"):
        exact_distances(x, z, euclidean(1))


@pytest.mark.parametrize("fault", ["flow", "flow and dual", "scaled flow", "dual", "nan"])
def test_wrong_answer_of_the_solver_is_an_error(monkeypatch, fault):
    solve = transport._network_simplex

    def faulty(a, b, arcs, costs):
        flow, u, v = solve(a, b, arcs, costs)
        if fault.startswith(
            "flow"
        ):  # feasible, but everything goes the long way, through the penalty
            flow = np.where(arcs[0] == len(a) - 1, b[arcs[1]], 0.0)
            flow += np.where(arcs[1] == len(b) - 1, a[arcs[0]], 0.0)
            flow[-1] = 0.0
            u = u + 10.0 * (fault != "flow")  # a bound above the cost, by infeasible potentials
        elif fault == "scaled flow":
            flow = 0.9 * flow
        elif fault == "dual":
            u = u - 0.01 * np.arange(len(u))  # raised, they would be lowered to feasibility
        else:
            u = u * np.nan
        return flow, u, v

    monkeypatch.setattr(transport, "_network_simplex", faulty)
    rng = np.random.default_rng(12)
    x, z = rng.random((2, 6, 6, 1))
    with pytest.raises(RuntimeError, match="fails its check"):
        exact_distance(x, z, euclidean(1))


GOOD = np.ones((4, 4, 1))


@pytest.mark.parametrize(
    ("x", "z", "cost", "window", "message"),
    [
        (GOOD, -GOOD, euclidean(1), None, "z has negative"),
        (GOOD * np.nan, GOOD, euclidean(1), None, "x has pixels that are NaN"),
        (GOOD, GOOD * np.inf, euclidean(1), None, "z has pixels"),
        (GOOD, GOOD[:3], euclidean(1), None, "one shape"),
        (GOOD[..., 0], GOOD[..., 0], euclidean(1), None, "one shape"),
        (GOOD, GOOD, euclidean(1), 4, "odd"),
        (GOOD, GOOD, euclidean(1), -1, "odd"),
        (GOOD, GOOD, np.zeros((4, 4)), None, "odd"),
        (GOOD, GOOD, np.zeros((3, 5)), None, "square"),
        (GOOD, GOOD, np.zeros((3, 3)), 3, "without"),
        (GOOD, GOOD, np.ones((3, 3)), None, "in place"),
        (GOOD, GOOD, lambda r, c: r + c, None, "negative"),
        (GOOD, GOOD, lambda r, c: r * np.nan, None, "NaN"),
        (GOOD, GOOD, lambda r, c: 0.0, None, "shape"),
    ],
)
def test_unusable_input_is_named(x, z, cost, window, message):
    with pytest.raises(InputError, match=message):
        exact_distance(x, z, cost, window)


def test_importing_is_light_and_measuring_leaves_jax_uninitialised():
    script = """
import sys
import numpy as np
from wasserstein_adv.metrics import exact_distance
heavy = {"ot", "torch"} & set(sys.modules)
assert not heavy, heavy
exact_distance(np.eye(4)[..., None], np.ones((4, 4, 1)), np.hypot)
import jax
jax.config.update("jax_num_cpu_devices", 3)  # refused once JAX has its devices
assert len(jax.devices("cpu")) == 3
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
