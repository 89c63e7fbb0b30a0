"""What an attacker maximises: functions of one image's logits and its label."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Objective = Callable[[Float[Array, "k"], Int[Array, ""]], Float[Array, ""]]
"""(logits, label) ↦ a number that grows as the attack on this label succeeds."""


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
    return lambda logits, label: -objective(logits, label)
