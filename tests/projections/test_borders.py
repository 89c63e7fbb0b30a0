"""What no projection takes: refused in one line where it is known, never certified where traced."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

import wasserstein_adv as wa

SHAPE = (4, 5)
GEOMETRY = wa.local_grid(SHAPE, wa.euclidean_power(1.0), window=3)
RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, SHAPE).astype(np.float32)
W = (X + RNG.uniform(-0.3, 0.3, SHAPE)).astype(np.float32)


def coupling(x, w, radius, **options):
    plan = wa.projections.diagonal_plan(GEOMETRY, x + 0 * w)
    return wa.dual_projection(GEOMETRY, x, plan.at[0].set(0.0625), radius, **options)


PROJECTIONS = {
    "sinkhorn": functools.partial(wa.projected_sinkhorn, GEOMETRY),
    "dual": coupling,
    "flow": wa.flow_projection,
    "oracle": functools.partial(wa.linear_oracle, GEOMETRY),
    "unbalanced": lambda x, w, radius, **options: wa.unbalanced_sinkhorn(
        GEOMETRY, x, w, tau=radius, **options
    ),
}
CAPPED = ("sinkhorn", "dual", "flow")
NAMES = {"unbalanced": "tau"}  # what the radius is called
every = pytest.mark.parametrize("name", PROJECTIONS)


def changed(image, value):
    image = np.array(image)
    image[1, 2] = value
    return image


@every
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((X * 255).astype(np.uint8), "x must be floating point, got uint8"),
        (changed(X, -0.25), "x must be non-negative, got -0.25"),
        (changed(X, np.nan), "x must be finite, 1 values are not"),
        (jnp.asarray(changed(X, np.inf)), "x must be finite, 1 values are not"),
        (X.tolist(), "x must be an array, got list"),
    ],
)
def test_an_image_that_is_none_is_refused(name, x, message):
    project = PROJECTIONS[name]
    if name == "dual":  # a plan of its own shape stands beside it
        plan = np.zeros((9, *SHAPE), np.float32)

        def project(x, w, radius):
            return wa.dual_projection(GEOMETRY, x, plan, radius)

    with pytest.raises(wa.InputError, match=message):
        project(x, W, 0.1)


@every
@pytest.mark.parametrize("value", ["a", None, 0.0, -1.0, np.nan, jnp.float32(-1.0), np.ones(2)])
def test_a_radius_that_is_none_is_refused(name, value):
    with pytest.raises(wa.InputError, match=f"^{NAMES.get(name, 'radius')} must be positive"):
        PROJECTIONS[name](X, W, value)


@every
@pytest.mark.parametrize(
    "options",
    [{"max_iterations": 1.5}, {"max_iterations": True}, {"tolerance": "a"}, {"tolerance": None}],
)
def test_a_wrong_kind_of_stopping_is_refused(name, options):
    with pytest.raises(wa.InputError, match=f"^{next(iter(options))} must be"):
        PROJECTIONS[name](X, W, 0.1, **options)


@pytest.mark.parametrize("name", CAPPED)
def test_a_cap_without_room_for_the_image_is_refused(name):
    with pytest.raises(wa.InputError, match=r"cap must be at least x's largest value 0\.8"):
        PROJECTIONS[name](X, W, 0.1, cap=0.5)


@every
@pytest.mark.parametrize("radius", [-1.0, 0.0, np.nan])
def test_a_traced_radius_that_is_none_is_not_certified(name, radius):
    found = jit(PROJECTIONS[name])(X, W, jnp.float32(radius))
    assert not found.converged
    np.testing.assert_array_equal(found.point, X)


@pytest.mark.parametrize("name", CAPPED)
def test_a_traced_cap_without_room_for_the_image_is_not_certified(name):
    found = jit(lambda cap: PROJECTIONS[name](X, W, 0.1, cap=cap))(jnp.float32(0.5))
    assert not found.converged
    assert found.cost <= 0.1
    np.testing.assert_allclose(jnp.sum(found.point), X.sum(), rtol=1e-6)


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_images_of_half_precision_are_projected_in_single(name, dtype):
    x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
    found = PROJECTIONS[name](x, w, 0.1)
    expected = PROJECTIONS[name](x.astype(np.float32), w.astype(np.float32), 0.1)
    assert found.converged
    assert found.point.dtype == jnp.float32
    np.testing.assert_array_equal(found.point, expected.point)


@every
def test_concrete_arguments_beside_a_traced_one_are_looked_at_all_the_same(name):
    x, radius = jnp.asarray(X), jnp.float32(0.1)
    found = jit(lambda w: PROJECTIONS[name](x, w, radius))(W)
    assert found.converged
    negative = jnp.asarray(changed(X, -1.0))
    with pytest.raises(wa.InputError, match="x must be non-negative"):
        jit(lambda w: PROJECTIONS[name](negative, w, radius))(W)
