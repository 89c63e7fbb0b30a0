"""Settings at which users of the published attack met overflows, NaN and shapes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

import wasserstein_adv as wa
from wasserstein_adv.attacks import WongProtocol
from wasserstein_adv.metrics import exact_distances

REPORTS = {
    # λ = 1000 and a radius that grows by 1.1 to the end, on an image that nothing fools.
    "growth 1.1 on digits": ((28, 28, 1), WongProtocol(grow_every=1, steps=20)),
    # λ = 3000, p = 2 on colour images, where exp(λ …) overflowed.
    "p = 2 on colour": ((32, 32, 3), WongProtocol(0.001, 1.17, 1, 20, reg=3000.0, p=2.0)),
    "more columns than rows": ((12, 20, 1), WongProtocol(steps=10, grow_every=2)),
    "more rows than columns": ((21, 9, 3), WongProtocol(steps=10, grow_every=2, p=2.0)),
}


@pytest.mark.parametrize("white", ["capped", "clamped"])
@pytest.mark.parametrize("report", REPORTS)
def test_it_runs_and_every_image_is_an_image_in_its_ball(report, white):
    shape, protocol = REPORTS[report]
    attack = wa.wong(shape[:2], protocol._replace(white=white), keep=wa.attacks.last())
    rng = np.random.default_rng(0)
    x = (rng.random((2, *shape)) * (rng.random((2, *shape)) < 0.3)).astype(np.float32)
    weights = rng.normal(size=(x[0].size, 4)).astype(np.float32)

    def logits_fn(images):
        # The label's answer is beyond reach, and its gradient is not.
        return (images.reshape(len(images), -1) @ weights).at[:, 0].add(1e4)

    y = jnp.zeros(2, int)
    found = jit(lambda key, x: attack(key, logits_fn, x, y))(jax.random.key(0), x)
    image, point = np.asarray(found.image), np.asarray(found.evidence.point)
    assert np.isfinite(image).all() and np.isfinite(point).all()
    assert image.min() >= 0 and image.max() <= 1
    assert np.asarray(found.evidence.converged).all()
    assert not np.asarray(found.success).any()
    largest = wa.attacks.schedules.growing(
        protocol.start_radius, protocol.growth, protocol.grow_every
    )(protocol.steps - 1)
    assert (np.asarray(found.evidence.cost) <= largest * (1 + 1e-5)).all()
    np.testing.assert_allclose(point.sum((1, 2)), x.sum((1, 2)), rtol=1e-5)
    cost = wa.euclidean_power(protocol.p)
    measured = exact_distances(x[:1], point[:1], cost, protocol.window).total
    assert measured[0] <= largest * (1 + 1e-4)
