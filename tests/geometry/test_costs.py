"""Ground costs by hand, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import (
    LocalGrid,
    dense_grid,
    euclidean_power,
    local_grid,
    minkowski,
    separable_grid,
    separable_power,
    unit_square,
    window_cost,
)

STEPS = np.meshgrid(np.arange(-4.0, 5.0), np.arange(-3.0, 4.0), indexing="ij")


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (euclidean_power(1), 5.0),
        (euclidean_power(2), 25.0),
        (euclidean_power(5), 3125.0),
        (minkowski(1), 7.0),
        (minkowski(2), 5.0),
        (minkowski(3), 91.0 ** (1 / 3)),
        (separable_power(1), 7.0),
        (separable_power(2), 25.0),
        (separable_power(3), 91.0),
    ],
)
def test_cost_of_a_step_of_3_and_4(cost, expected):
    for drow, dcol in [(3.0, 4.0), (-4.0, 3.0), (3.0, -4.0), (-3.0, -4.0)]:
        assert cost(drow, dcol) == pytest.approx(expected, rel=1e-14)
    assert cost(0.0, 0.0) == 0
    np.testing.assert_allclose(cost(jnp.array([3.0]), jnp.array([4.0])), [expected], rtol=1e-6)


def test_families_meet_where_they_should():
    np.testing.assert_allclose(minkowski(2)(*STEPS), euclidean_power(1)(*STEPS), rtol=1e-14)
    np.testing.assert_allclose(minkowski(1)(*STEPS), separable_power(1)(*STEPS), rtol=1e-14)
    np.testing.assert_allclose(euclidean_power(2)(*STEPS), separable_power(2)(*STEPS), rtol=1e-14)


def test_window_cost_is_indexed_by_displacement():
    window = window_cost(lambda drow, dcol: 10 * drow + dcol, 5, unit=(1.0, 0.5))
    assert window.shape == (5, 5) and window.dtype == np.float64
    assert window[2 + 1, 2 - 2] == 10 * 1 - 2 * 0.5


def test_unit_square_puts_the_corners_on_the_corners():
    assert unit_square(5, 11) == (0.25, 0.1)
    assert unit_square(1, 3) == (1.0, 0.5)
    cost = dense_grid((5, 11), separable_power(1), unit=unit_square(5, 11)).cost_matrix
    assert float(cost[0, -1]) == pytest.approx(2.0)


@pytest.mark.parametrize("family", [euclidean_power, minkowski, separable_power])
@pytest.mark.parametrize("p", [0.0, -1.0, np.inf, np.nan])
def test_exponents_are_positive_and_finite(family, p):
    with pytest.raises(InputError, match="p must be"):
        family(p)


@pytest.mark.parametrize("window", [0, 2, 4, -3, 3.5])
def test_windows_have_a_centre(window):
    with pytest.raises(InputError, match="odd positive"):
        window_cost(euclidean_power(1), window)
    with pytest.raises(InputError, match="odd positive"):
        local_grid((4, 4), euclidean_power(1), window)
    with pytest.raises(InputError, match="odd positive"):
        dense_grid((4, 4), euclidean_power(1), window)


def spoiled(**entries):
    window = window_cost(euclidean_power(1), 3)
    window[entries["at"]] = entries["value"]
    return window


@pytest.mark.parametrize(
    "window",
    [
        np.zeros(9),
        np.zeros((3, 5)),
        np.zeros((4, 4)),
        np.zeros((0, 0)),
        np.zeros((3, 3, 1)),
        spoiled(at=(0, 1), value=-1.0),
        spoiled(at=(0, 1), value=np.nan),
        spoiled(at=(1, 1), value=0.5),
        spoiled(at=(1, 1), value=np.inf),
    ],
)
def test_local_grid_refuses_wrong_windows(window):
    with pytest.raises(InputError, match="window"):
        LocalGrid((4, 4), window)


@pytest.mark.parametrize("grid_size", [(4,), (4, 4, 3), (0, 4), (4, -1)])
def test_local_grid_refuses_wrong_sizes(grid_size):
    with pytest.raises(InputError, match="grid_size"):
        LocalGrid(grid_size, window_cost(euclidean_power(1), 3))


@pytest.mark.parametrize("p", [0.5, 0.0, np.inf, np.nan])
def test_separable_grid_refuses_exponents_below_1(p):
    with pytest.raises(InputError, match="p must be"):
        separable_grid((4, 4), p)


def test_local_grid_leaves_the_callers_window_alone():
    mine = window_cost(euclidean_power(1), 3)
    geometry = LocalGrid((4, 4), mine)
    mine[0, 0] = 7.0  # still mine to write to
    assert geometry.window[0, 0] == pytest.approx(np.sqrt(2))


def test_minkowski_of_a_large_exponent_is_the_larger_part():
    assert minkowski(300)(1 / 27, 0.0) == pytest.approx(1 / 27)
    assert minkowski(300)(2 / 27, -1 / 27) == pytest.approx(2 / 27)
    assert minkowski(300)(0.0, 0.0) == 0.0
