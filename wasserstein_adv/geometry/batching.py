"""Functions of one image that keep the axes of `jax.vmap` last."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def batch_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(shared, *args)`, such that vmap puts its axes last.

    vmap puts an axis first, or where a scan wants it. A function of many pixels and few numbers per
    image runs over contiguous memory if images are the last axis instead, three times as fast on a
    CPU. So `function` is written for arrays with any axes after its own; under vmap it is called
    once, with the axes of all vmaps there.

    Args:
      function: takes pytrees of arrays and returns one. `shared` is the same for all images, and
        every array of `args` comes with all the trailing axes.

    Returns:
      The function for one image. Where vmap batches `shared` too, as it does to all that a branch
      closes over if the choice of branch is batched, the function is mapped as vmap would.
    """

    @custom_vmap
    def batched(shared: Any, *args: Any) -> Any:
        with _precision_of(shared, *args):
            return function(shared, *args)

    @batched.def_vmap
    def _(size: int, in_batched: Any, shared: Any, *args: Any) -> tuple[Any, Any]:
        with _precision_of(shared, *args):
            return rule(size, in_batched, shared, *args)

    def rule(size: int, in_batched: Any, shared: Any, *args: Any) -> tuple[Any, Any]:
        if any(jax.tree.leaves(in_batched[0])):
            return _batch_first(function, in_batched, (shared, *args))

        def last(is_batched: bool, leaf: jax.Array) -> jax.Array:
            if is_batched:
                return jnp.moveaxis(leaf, 0, -1)
            return jnp.broadcast_to(leaf[..., None], (*leaf.shape, size))

        found = batched(shared, *jax.tree.map(last, tuple(in_batched[1:]), args))
        first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), found)
        return first, jax.tree.map(lambda _: True, first)

    return batched


def _precision_of(*args: Any) -> AbstractContextManager[Any]:
    """Double precision where arguments have it: rules run outside of where their function stood."""
    wide = any(jnp.result_type(leaf) == "float64" for leaf in jax.tree.leaves(args))
    return jax.enable_x64(True) if wide else nullcontext()


def _batch_first(
    function: Callable[..., Any], in_batched: Any, args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """`function` under an ordinary vmap: what the rule of `batch_last` returns."""
    leaves, structure = jax.tree.flatten(args)
    axes = [0 if is_batched else None for is_batched in jax.tree.leaves(in_batched)]

    def of_leaves(*leaves: jax.Array) -> Any:
        return function(*jax.tree.unflatten(structure, leaves))

    found = jax.vmap(of_leaves, in_axes=axes)(*leaves)
    return found, jax.tree.map(lambda _: True, found)
