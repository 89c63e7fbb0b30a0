"""Double precision where single is not enough, under every transformation, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.projections.double import again_in_double, double


def residue(x):
    """√(1 + x) − 1 as a function of a batch: 0 where x is below the rounding of 1."""
    return batch_last(lambda _, x: jnp.sqrt(1.0 + x) - 1.0)((), x)


def repaired(x):
    found = {"value": residue(x), "count": jnp.zeros((), jnp.int32)}

    def solve(found):
        return {"value": residue(double(x)), "count": found["count"] + 1}

    return again_in_double(solve, found, found["value"] == 0.0)


SMALL = np.array([1e-9, 0.5, 3e-12, 2.0], np.float32)


@pytest.mark.parametrize(
    "mapped",
    [
        jax.vmap(repaired),
        jax.jit(jax.vmap(repaired)),
        lambda x: jax.tree.map(
            lambda a: a.reshape(4), jax.vmap(jax.vmap(repaired))(x.reshape(2, 2))
        ),
        jax.jit(lambda x: jax.lax.map(repaired, x)),
        jax.jit(lambda x: jax.lax.scan(lambda c, x: (c, jax.vmap(repaired)(x)), 0.0, x[None])[1]),
    ],
    ids=["vmap", "jit", "vmap of vmap", "map", "scan"],
)
def test_what_single_precision_loses_is_found_again(mapped):
    got = jax.tree.map(lambda a: np.asarray(a).reshape(4), mapped(SMALL))
    assert got["value"].dtype == np.float32 and got["count"].dtype == np.int32
    np.testing.assert_allclose(got["value"], np.sqrt(1 + SMALL.astype(float)) - 1, rtol=1e-3)
    np.testing.assert_array_equal(got["count"], [1, 0, 1, 0])


def test_the_precision_outside_stays_as_it_was():
    repaired(SMALL[0])
    assert jnp.ones(()).dtype == jnp.float32
