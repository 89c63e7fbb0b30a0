"""Double precision for the few problems that single precision cannot end.

Most problems take single precision, which is fast everywhere. Where an image is faint beside the
step that was taken from it, digits run out; those problems are solved in double precision, whatever
JAX's own precision is, and the answers come back in the precision of the question.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

Tree = TypeVar("Tree")


def double(tree: Tree) -> Tree:
    """The tree with its floating-point leaves in double precision, where that is enabled."""

    def convert(leaf: Array) -> Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.lax.convert_element_type(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(convert, tree)


def again_in_double(solve: Callable[[Tree], Tree], found: Tree, needed: Bool[Array, ""]) -> Tree:
    """`solve(found)` in double precision where it is `needed`, in the dtypes of `found`.

    A loop of one turn, not a branch: under `jax.vmap` both branches would be taken, always. So a
    batch pays only if one of it needs this.

    Args:
      solve: is given `found` with its floating-point leaves in double precision.
      found: an answer.
      needed: whether it is not good enough.
    """

    def turn(carry: tuple[Array, Tree]) -> tuple[Array, Tree]:
        better = solve(double(carry[1]))
        back = jax.tree.map(lambda new, old: new.astype(old.dtype), better, carry[1])
        return jnp.zeros_like(carry[0]), back

    with jax.enable_x64(True):
        return jax.lax.while_loop(lambda carry: carry[0], turn, (needed, found))[1]
