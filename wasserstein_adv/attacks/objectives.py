"""What an attacker maximises: functions of one image's logits and its label."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from wasserstein_adv.errors import InputError

Objective = Callable[..., Float[Array, ""]]
"""(logits, label) ↦ a number that grows as the attack on this label succeeds. An attack with a
context hands it on as a third argument."""


def cross_entropy(logits: Float[Array, "k"], label: Int[Array, ""]) -> Float[Array, ""]:
    """−ln softmax(logits)_label."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def margin(logits: Float[Array, "k"], label: Int[Array, ""]) -> Float[Array, ""]:
    """max_{k ≠ label} logit_k − logit_label: positive exactly when the label has lost.

    Carlini and Wagner (2017), their f₆ without the floor at −κ.
    """
    is_label = jnp.arange(logits.shape[-1]) == label
    return jnp.max(jnp.where(is_label, -jnp.inf, logits)) - logits[label]


def targeted(objective: Objective) -> Objective:
    """The objective of an attacker who wants `label` to win: minus `objective`."""
    return lambda logits, label, *context: -objective(logits, label, *context)


def dlr(logits: Float[Array, "k"], label: Int[Array, ""]) -> Float[Array, ""]:
    """The difference of logits ratio: −(z_y − max_{k ≠ y} z_k) / (z_π1 − z_π3), sorted by π.

    Croce and Hein (2020), equation 6. It does not change when the logits are shifted or multiplied,
    where the cross-entropy's gradient vanishes. Where the three largest are one, there is no ratio,
    and the value and its gradient are 0.

    Raises:
      InputError: fewer than three classes.
    """
    if logits.shape[-1] < 3:
        raise InputError(f"the DLR objective needs 3 classes or more, got {logits.shape[-1]}")
    top, _ = jax.lax.top_k(logits, 3)
    return _ratio(margin(logits, label), top[0] - top[2])


def dlr_targeted(
    logits: Float[Array, "k"], label: Int[Array, ""], target: Int[Array, ""]
) -> Float[Array, ""]:
    """−(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2): of `dlr`'s kind, towards a class t.

    Croce and Hein (2020), equation 7. The context of such an attack is t: see `next_class`.

    Raises:
      InputError: fewer than four classes.
    """
    if logits.shape[-1] < 4:
        raise InputError(f"the targeted DLR objective needs 4 classes, got {logits.shape[-1]}")
    top, _ = jax.lax.top_k(logits, 4)
    return _ratio(logits[target] - logits[label], top[0] - 0.5 * (top[2] + top[3]))


def kl_divergence(
    logits: Float[Array, "k"], label: Int[Array, ""], clean: Float[Array, "k"]
) -> Float[Array, ""]:
    """KL(softmax(clean) ‖ softmax(logits)): how far the answer is from that to the clean image.

    Zhang et al. (2019), TRADES. The label has no part in it. The context of such an attack is
    `clean_logits`.
    """
    del label
    log_p, log_q = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def clean_logits(
    logits: Float[Array, "k"], label: Array, x: Array, key: PRNGKeyArray, restart: Array
) -> Float[Array, "k"]:
    """The context that is the model's answer to the clean image."""
    return logits


def next_class(
    logits: Float[Array, "k"], label: Array, x: Array, key: PRNGKeyArray, restart: Array
) -> Int[Array, ""]:
    """The context that is a class to aim at: the likeliest wrong one by the model's answer to the
    clean image, in the next restart the next one, and in the end the likeliest again."""
    wrong = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
    return jnp.argsort(-wrong)[restart % (logits.shape[-1] - 1)]


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
