"""Wright's omega against SciPy, from underflow to huge arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import wrightomega

from wasserstein_adv.projections import log_wright_omega, wright_omega

POINTS = np.unique(
    np.concatenate(
        [np.linspace(-80, 80, 4001), np.geomspace(80, 1e5, 500), 1 + np.geomspace(1e-7, 1)]
    )
)


def test_values_in_float32():
    t = POINTS.astype(np.float32)
    truth = wrightomega(t.astype(np.float64))
    np.testing.assert_allclose(wright_omega(t), truth, rtol=1e-6)
    np.testing.assert_allclose(log_wright_omega(t), np.log(truth), rtol=1e-6, atol=3e-7)


def test_values_in_float64(x64):
    truth = wrightomega(POINTS)
    np.testing.assert_allclose(wright_omega(POINTS), truth, rtol=1e-12)
    np.testing.assert_allclose(log_wright_omega(POINTS), np.log(truth), rtol=1e-12, atol=1e-12)


def test_far_out_there_is_no_nan():
    t = jnp.array([-1e4, -500.0, -104.0, -88.0, -jnp.inf, 1e20], jnp.float32)
    omega, log = np.asarray(wright_omega(t)), np.asarray(log_wright_omega(t))
    assert (omega[:5] >= 0).all() and (omega[:5] < 1e-37).all()
    np.testing.assert_array_equal(log[:5], t[:5])
    assert omega[5] == pytest.approx(1e20, rel=1e-6)
    assert log[5] == pytest.approx(np.log(1e20), rel=1e-6)
    slopes = jax.vmap(jax.grad(lambda t: wright_omega(t) + log_wright_omega(t)))(t)
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-6)  # ω/(1+ω) + 1/(1+ω)


def test_gradients(x64):
    t = np.array([-30.0, -1.0, 0.9, 1.1, 5.0, 1e3])
    omega = wrightomega(t)
    slope, log_slope = (jax.vmap(jax.grad(f)) for f in (wright_omega, log_wright_omega))
    np.testing.assert_allclose(slope(t), omega / (1 + omega), rtol=1e-12)
    np.testing.assert_allclose(log_slope(t), 1 / (1 + omega), rtol=1e-12)
    h = 1e-5
    np.testing.assert_allclose(
        slope(t), (wrightomega(t + h) - wrightomega(t - h)) / (2 * h), rtol=1e-8
    )
    # Derivatives of derivatives: ω'' = ω / (1 + ω)³.
    np.testing.assert_allclose(
        jax.vmap(jax.grad(jax.grad(wright_omega)))(t), omega / (1 + omega) ** 3, rtol=1e-10
    )
