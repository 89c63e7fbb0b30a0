"""The public face as a program of somebody else's sees it: `make lint` checks its types.

It is read by the type checker alone and never run, so it must not need more than annotations say.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wasserstein_adv as wa
from wasserstein_adv import defenses, models, training


def logits_fn(images: jax.Array) -> jax.Array:
    """Stand for any model."""
    return images.reshape(images.shape[0], -1)[:, :10]


def project(x: jax.Array, w: jax.Array) -> jax.Array:
    """Project in three ways, under a transformation too."""
    window = wa.local_grid((28, 28), wa.euclidean_power(1), window=5)
    found = wa.projected_sinkhorn(window, x, w, radius=0.5)
    assert_type(found, wa.Projection)
    again = wa.projected_sinkhorn(window, x, w, 0.5, duals=found.duals, cap=1.0)
    near = wa.flow_projection(x, w, radius=0.5)
    drawn = wa.unbalanced_sinkhorn(wa.separable_grid((28, 28)), x, w, eta=1e-3, tau=1e-2, gamma=0.5)
    assert_type(drawn, wa.UnbalancedProjection)
    return again.point + near.point + drawn.point


def attack(x: jax.Array, y: jax.Array) -> wa.AttackResult:
    """Compose an attack, take a paper's, and run one over the devices, from NumPy arrays."""
    own = wa.first_order(
        wa.wasserstein_ball(wa.local_grid((28, 28), wa.euclidean_power(1))),
        wa.pgd(optax.chain(wa.linf_unit(0.1))),
        radius=wa.attacks.growing(0.3, 1.1, every=10),
        steps=200,
    )
    papers = wa.wong((28, 28), wa.attacks.WongProtocol(reg=100.0), restarts=2, random_start=True)
    many = wa.parallel.evaluate(papers, jax.random.key(0), logits_fn, np.asarray(x), np.asarray(y))
    assert_type(many, wa.AttackResult)
    wa.check_images(many.image)
    return own(jax.random.key(0), logits_fn, x, y)


def refused() -> None:
    """Do what must not pass: unused ignores are errors."""
    wa.wong((28, 28), restart=2)  # type: ignore[call-arg]
    wa.wong((28, 28), restarts="2")  # type: ignore[arg-type]
    wa.hu(28)  # type: ignore[arg-type]


def train(x: jax.Array, y: jax.Array) -> training.Measures:
    """Train for a step."""
    model, optimizer = models.WongKolterCNN(), optax.adam(1e-3)
    defense = defenses.adversarial_training(wa.wong((28, 28)))
    state = training.initialise(model, optimizer, (28, 28, 1), seed=0)
    batch = training.Batch(index=jnp.arange(1), images=x, labels=y)
    state, measures = training.train_step(model, optimizer, defense, seed=0)(state, batch)
    return measures
