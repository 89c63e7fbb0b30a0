"""Strips against the log domain, which knows nothing of them."""

import numpy as np
import pytest
from plainly import jit
from windows import skewed

from wasserstein_adv.geometry import LocalGrid, from_strip, to_strip
from wasserstein_adv.projections.kernel import exp_domain, log_domain

CASES = [((6, 4), 5, 1), ((4, 7), 3, 3), ((3, 3), 7, 2), ((5, 1), 5, 3), ((1, 1), 3, 1)]


@pytest.mark.parametrize(("shape", "side", "channels"), CASES)
def test_a_strip_holds_its_image(shape, side, channels):
    geometry = LocalGrid(shape, skewed(side, 0))
    image = np.random.default_rng(1).random((*shape, channels)).astype(np.float32)
    strip = to_strip(geometry, image, -np.inf)
    np.testing.assert_array_equal(from_strip(geometry, strip), image)
    assert strip.ndim == 1 and np.isfinite(strip).sum() == image.size
    totals = exp_domain(geometry).totals(to_strip(geometry, image, 0.0))
    expected = np.broadcast_to(image.sum((0, 1)), image.shape)
    np.testing.assert_allclose(from_strip(geometry, totals), expected, rtol=1e-6)


@pytest.mark.parametrize(("shape", "side", "channels"), CASES)
def test_plans_are_those_of_the_log_domain(x64, shape, side, channels):
    geometry = LocalGrid(shape, skewed(side, 2))
    rng = np.random.default_rng(3)
    image = (*shape, channels)
    x = rng.random(image) * (rng.random(image) < 0.7)
    beta = 20 * rng.normal(size=image)
    # Nothing crosses from one channel to the next, however much it would gain.
    beta[..., -1] += 30
    fast, right = exp_domain(geometry), log_domain(geometry)

    @jit
    def both(psi):
        strips = fast.pack(x, 0.0), fast.pack(beta, -np.inf)
        rows = fast.eliminate(*strips, psi)
        rows = rows._replace(log_q=fast.unpack(rows.log_q))
        moved = fast.unpack(fast.push(*strips, psi)), right.push(x, beta, psi)
        return rows, right.eliminate(x, beta, psi), *moved

    for psi in (0.0, 0.4, 6.0):
        got, want, moved, expected = both(psi)
        assert bool(got.fits) and bool(want.fits)
        # Where no pixel with mass is in reach, there is no sum to compare.
        reached = np.isfinite(want.log_q)
        np.testing.assert_allclose(got.log_q[reached], want.log_q[reached], rtol=1e-11, atol=1e-11)
        assert (got.log_q[~reached] < got.floor).all()
        np.testing.assert_allclose([got.cost, got.slope], [want.cost, want.slope], atol=1e-11)
        np.testing.assert_allclose(moved, expected, atol=1e-12)
        np.testing.assert_allclose(moved.sum((0, 1)), x.sum((0, 1)), rtol=1e-12)


def test_a_row_beyond_the_range_of_exponentials_is_owned_up_to():
    geometry = LocalGrid((4, 4), skewed(3, 0))
    x, beta = np.full((4, 4, 1), 1 / 16, np.float32), np.zeros((4, 4, 1), np.float32)
    beta[0, 0] = 200.0
    kernel = exp_domain(geometry)
    rows = kernel.eliminate(kernel.pack(x, 0.0), kernel.pack(beta, -np.inf), np.float32(1.0))
    assert not bool(rows.fits)
    # The same potential over pixels without mass does no harm.
    x[1:, 1:] = 0
    x[0, 2:], x[2:, 0] = 0, 0
    rows = kernel.eliminate(kernel.pack(x, 0.0), kernel.pack(beta, -np.inf), np.float32(1.0))
    reach = [geometry.window[1 - i, 1 - j] for i, j in ((0, 0), (0, 1), (1, 0))]
    assert bool(rows.fits) == bool(np.isfinite(reach).all())
