"""What attacks of least norm share: they look for the nearest image that is misclassified, in no
ball, and the radius that they return is the norm that they reached, so that one run gives accuracy
at every radius."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.attacks.first_order import LogitsFn, select
from wasserstein_adv.attacks.keep import Candidate
from wasserstein_adv.attacks.objectives import margin
from wasserstein_adv.attacks.sets import euclidean_norm
from wasserstein_adv.errors import InputError

Norm = Literal["linf", "l2"]


def check_norm(norm: str) -> None:
    """Raise InputError unless the norm is "linf" or "l2"."""
    if norm not in ("linf", "l2"):
        raise InputError(f"norm must be linf or l2, got {norm!r}")


def norm_of(norm: Norm, change: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """‖change‖ of each image."""
    if norm == "linf":
        return jnp.max(jnp.abs(change), axis=(1, 2, 3))
    return jax.vmap(euclidean_norm)(change)


def judged(
    logits: Float[Array, "n classes"], y: Int[Array, "n"]
) -> tuple[Bool[Array, "n"], Float[Array, "n"]]:
    """Which answers are wrong, and by what margin. What is not a number is no answer."""
    known = ~jnp.any(jnp.isnan(logits), axis=1)
    return known & (jnp.argmax(logits, axis=1) != y), jax.vmap(margin)(logits, y)


def linearise(
    logits_fn: LogitsFn, images: Float[Array, "n h w c"], classes: Int[Array, "n k"]
) -> tuple[Float[Array, "n classes"], Float[Array, "n k h w c"]]:
    """The logits of images, and the gradients of those of some classes.

    One forward pass, and a backward pass for each class: each image is by itself.
    """
    logits, backward = jax.vjp(logits_fn, images)

    def slope(chosen: Int[Array, "n"]) -> Array:
        return backward(jax.nn.one_hot(chosen, logits.shape[1], dtype=logits.dtype))[0]

    return logits, jax.vmap(slope, 1, 1)(classes)


def clean_candidate(x: Array, success: Bool[Array, "n"], value: Float[Array, "n"]) -> Candidate:
    """The clean images as the first answers: of norm 0."""
    zero = jnp.zeros(x.shape[0], x.dtype)
    return Candidate(x, (), value, success, zero, zero, jnp.zeros(x.shape[0], jnp.int32))


def nearer(new: Candidate, kept: Candidate) -> Bool[Array, "n"]:
    """Which new images are misclassified and nearer than those kept, or the first that are."""
    return new.success & (~kept.success | (new.budget < kept.budget))


def merged(newer: Any, older: Any) -> Any:
    """The newer state, with the nearer answers of both."""
    better = nearer(newer.kept, older.kept) | (~older.kept.success & ~newer.kept.success)
    return newer._replace(kept=select(better, newer.kept, older.kept))
