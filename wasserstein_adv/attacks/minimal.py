"""What attacks of least norm share: they look for the nearest image that is misclassified, in no
ball, and the radius that they return is the norm that they reached, so that one run gives accuracy
at every radius."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.attacks.first_order import AttackResult, LogitsFn
from wasserstein_adv.attacks.keep import Candidate
from wasserstein_adv.errors import InputError

Norm = Literal["linf", "l2"]


def check_norm(norm: str) -> None:
    """Raise InputError unless the norm is "linf" or "l2"."""
    if norm not in ("linf", "l2"):
        raise InputError(f"norm must be linf or l2, got {norm!r}")


def norm_of(norm: Norm, change: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """‖change‖ of each image, whose squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(change), axis=(1, 2, 3))
    if norm == "linf":
        return largest
    unit = jnp.where(largest > 0, largest, 1.0)[:, None, None, None]
    return largest * jnp.sqrt(jnp.sum(jnp.square(change / unit), axis=(1, 2, 3)))


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
    return newer._replace(kept=chosen(better, newer.kept, older.kept))


def chosen(which: Bool[Array, "n"], new: Any, old: Any) -> Any:
    """Image by image, the leaves of `new` where chosen, else those of `old`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)


def result_of(state: Any) -> AttackResult:
    """What is known of a state's answers."""
    kept = state.kept
    reached = jnp.where(kept.success, kept.budget, jnp.inf)
    return AttackResult(
        kept.image, kept.success, reached, kept.budget, kept.distance, kept.objective, kept.steps,
        kept.evidence,
    )  # fmt: skip
