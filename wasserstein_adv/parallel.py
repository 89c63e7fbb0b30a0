"""Attacks and training over devices: the one place that knows about them, with `replication`.

`evaluate` drives an attack's public `init` and `step` in rounds of a few steps. Between rounds it
drops the images that are settled and packs the others anew, into batches of one size and one last
batch padded to one of few sizes: images already fooled cost nothing, and few shapes are compiled.
An image's keys come from its index, so neither the packing nor the number of devices changes its
answer, beyond rounding and what an iteration to a tolerance makes of it.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from wasserstein_adv.attacks.first_order import (
    AttackResult,
    AttackState,
    FirstOrderAttack,
    LogitsFn,
    as_batch,
    check_key,
    check_model,
    image_keys,
)
from wasserstein_adv.errors import InputError
from wasserstein_adv.replication import AXIS, Replicated, devices_for, own_part, replicate

__all__ = [
    "AXIS",
    "Evaluate",
    "Progress",
    "Replicated",
    "devices_for",
    "evaluate",
    "evaluator",
    "fitting_batch_size",
    "on_devices",
    "own_part",
    "progress_like",
    "replicate",
]

_SIZES_APART = 8  # the ratio of two sizes of batches
_CPU_BATCH, _TRIAL_BATCH, _MOST = 64, 32, 8192  # images on a device


class Progress(NamedTuple):
    """Where an evaluation stands after a round; enough to go on from there."""

    restart: int | np.ndarray
    """Which restart is under way, from 0."""
    state: AttackState
    """The attack's state on all images, NumPy arrays."""
    earlier: AttackState | None
    """The best of the restarts so far, in the same form; None if there is only one restart."""
    settled: np.ndarray
    """(n,) which images need no further step in this restart."""


Evaluate = Callable[..., AttackResult]
"""(key, x, y, *, resume=None, on_round=…) ↦ `AttackResult`, see `evaluate`."""


def evaluate(
    attack: FirstOrderAttack,
    key: PRNGKeyArray,
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    batch_size: int | Literal["auto"] = "auto",
    steps_per_round: int = 5,
    devices: Sequence[jax.Device] | None = None,
    resume: Progress | None = None,
    on_round: Callable[[Progress], None] = lambda progress: None,
) -> AttackResult:
    """Attack n images on all devices; the same answers as `attack(key, logits_fn, x, y)`.

    Traces and compiles anew in every call: a model that has been trained in between is seen as it
    is. To attack the same model again and again, keep the `evaluator`.

    Args:
      attack: what to run.
      key: random key, as for the attack itself.
      logits_fn: the model, a pure function.
      x: (n, h, w, c) clean images in [0, 1].
      y: (n,) integer labels.
      batch_size: images in one call, over all devices together; "auto" takes what fits, see
        `fitting_batch_size`.
      steps_per_round: attack steps between two packings.
      devices: where to run; all local devices by default.
      resume: a `Progress` that `on_round` was given by an evaluation of the same arguments.
      on_round: called after every round, with progress and for checkpoints.

    Returns:
      `AttackResult` of NumPy arrays.

    Raises:
      InputError: shapes that do not agree, images, labels or a key that are none, or sizes below 1.
    """
    run = evaluator(
        attack, logits_fn, batch_size=batch_size, steps_per_round=steps_per_round, devices=devices
    )
    return run(key, x, y, resume=resume, on_round=on_round)


def evaluator(
    attack: FirstOrderAttack,
    logits_fn: LogitsFn,
    *,
    batch_size: int | Literal["auto"] = "auto",
    steps_per_round: int = 5,
    devices: Sequence[jax.Device] | None = None,
) -> Evaluate:
    """`evaluate` for one model, as a function that compiles once for each size of batch.

    Args:
      attack, logits_fn, batch_size, steps_per_round, devices: as for `evaluate`. What `logits_fn`
        closes over is taken as it is in the first call.

    Returns:
      (key, x, y, *, resume, on_round) ↦ `AttackResult`, the arguments as for `evaluate`.

    Raises:
      InputError: sizes below 1.
    """
    for name, size in (("batch_size", batch_size), ("steps_per_round", steps_per_round)):
        if size != "auto" and size < 1:
            raise InputError(f"{name} must be 1 or more, got {size}")
    devices = jax.local_devices() if devices is None else list(devices)

    @functools.cache
    def start_with(impl: Hashable) -> Callable[..., AttackState]:
        def start(key_data, x, y, restart):
            keys = jax.random.wrap_key_data(key_data, impl=impl)
            return attack.init(keys, logits_fn, x, y, restart[0])

        return on_devices(start, devices)

    def advance(x, y, state):
        def unfinished(carry):
            taken, state = carry
            return (taken < steps_per_round) & jnp.any(attack.unsettled(state))

        def one(carry):
            taken, state = carry
            return taken + 1, attack.step(logits_fn, x, y, state)

        _, state = jax.lax.while_loop(unfinished, one, (0, state))
        return state, ~attack.unsettled(state)

    advance = on_devices(advance, devices)

    @functools.cache
    def fitting(image_shape: tuple[int, int, int]) -> int:
        return fitting_batch_size(attack, logits_fn, image_shape, devices)

    def run(
        key: PRNGKeyArray,
        x: Array | np.ndarray,
        y: Array | np.ndarray,
        *,
        resume: Progress | None = None,
        on_round: Callable[[Progress], None] = lambda progress: None,
    ) -> AttackResult:
        x, y = as_batch(x, y)
        check_model(logits_fn, x, y)
        check_key(key, x.shape[0])
        everyone = np.arange(x.shape[0])
        y = np.asarray(y, np.int32)
        start = start_with(jax.random.key_impl(key))
        size = fitting(x.shape[1:]) if batch_size == "auto" else batch_size
        size = min(size, len(everyone))

        def begin(restart: int) -> AttackState:
            keys = image_keys(jax.random.fold_in(key, restart), jnp.asarray(everyone))
            data = np.asarray(jax.random.key_data(keys))
            batches = list(_batches(everyone, size, len(devices)))
            turn = np.full(len(everyone), restart, np.int32)
            parts = [start(*(_take(part, b) for part in (data, x, y, turn))) for b in batches]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(everyone)], *parts)

        earlier = None
        first = 0 if resume is None else int(resume.restart)
        for restart in range(first, attack.restarts):
            if resume is not None and restart == first:
                state, earlier, settled = resume.state, resume.earlier, resume.settled.copy()
            else:
                state = begin(restart)
                settled = ~np.asarray(attack.unsettled(state))
                if earlier is not None:
                    settled |= np.asarray(attack.final(earlier))
                if earlier is None and attack.restarts > 1:
                    earlier = state
            state = jax.tree.map(np.array, state)  # a copy of our own, to be written into
            while not settled.all():
                for batch in _batches(everyone[~settled], size, len(devices)):
                    new, done = advance(_take(x, batch), _take(y, batch), _take(state, batch))
                    _put(state, batch, new)
                    settled[batch] = done
                # A copy: what is written into next must not change what was handed out.
                kept = jax.tree.map(np.array, state)
                on_round(Progress(np.asarray(restart), kept, earlier, settled.copy()))
            if earlier is not None:
                state = jax.tree.map(np.asarray, attack.merge(state, earlier))
                earlier = state
        return jax.tree.map(np.asarray, attack.result(state))

    return run


def fitting_batch_size(
    attack: FirstOrderAttack,
    logits_fn: LogitsFn,
    image_shape: tuple[int, int, int],
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """The batch size that suits the devices: what "auto" stands for.

    Where devices tell their memory, as GPUs and TPUs do, the largest power of two for each of which
    a step of the attack takes at most half of what is free on the first, found by compiling a step
    for few images. CPUs do not, and gain nothing from batches that leave their caches: there it is
    64 for each device.

    Args:
      attack, logits_fn: what is to run.
      image_shape: (h, w, c).
      devices: where; all local devices by default.

    Raises:
      InputError: not even one image a device fits.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    free = _free_bytes(devices[0])
    if free is None:
        return _CPU_BATCH * len(devices)
    room = 0.5 * free / (_step_bytes(attack, logits_fn, image_shape, _TRIAL_BATCH) / _TRIAL_BATCH)
    if room < 1:
        raise InputError(f"x: a step on one image of {image_shape} needs more than half of memory")
    return min(2 ** int(np.log2(room)), _MOST) * len(devices)


def _free_bytes(device: jax.Device) -> int | None:
    """What a device has left, None where it does not tell."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def _step_bytes(
    attack: FirstOrderAttack, logits_fn: LogitsFn, image_shape: tuple[int, int, int], count: int
) -> int:
    """Memory of a step on `count` images, by XLA's own plan of it."""
    x = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    y = jax.ShapeDtypeStruct((count,), jnp.int32)
    keys = jax.eval_shape(lambda: image_keys(jax.random.key(0), jnp.arange(count)))
    state = jax.eval_shape(lambda keys, x, y: attack.init(keys, logits_fn, x, y), keys, x, y)
    step = jax.jit(lambda x, y, state: attack.step(logits_fn, x, y, state))
    plan: Any = step.lower(x, y, state).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes


def progress_like(
    attack: FirstOrderAttack, logits_fn: LogitsFn, x: Array | np.ndarray, y: Array | np.ndarray
) -> Progress:
    """The structure, shapes and dtypes of the first restart's `Progress`, to restore one into.

    Args:
      attack, logits_fn, x, y: as for `evaluate`.
    """
    keys = jax.eval_shape(lambda: image_keys(jax.random.key(0), jnp.arange(x.shape[0])))
    y = np.asarray(y, np.int32)
    state = jax.eval_shape(lambda keys, x, y: attack.init(keys, logits_fn, x, y), keys, x, y)
    restart: Any = jax.ShapeDtypeStruct((), np.int64)  # all leaves are such, in place of arrays
    settled: Any = jax.ShapeDtypeStruct((x.shape[0],), np.bool_)
    earlier = None if attack.restarts == 1 else state
    return Progress(restart, state, earlier, settled)


def on_devices(
    function: Callable[..., Any], devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
    """`function` of batches, each device taking an equal share of the leading axis.

    Args:
      function: pytrees of arrays with a leading axis ↦ pytree of arrays with that axis.
      devices: all local devices by default; their number must divide the leading axis.

    Returns:
      The same function on NumPy or JAX arrays, returning NumPy arrays. It waits for the result:
      on CPUs, calls that overlap can run into each other's rendezvous.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    mapped = jax.pmap(function, devices=devices)

    def split(leaf: Any) -> Any:
        return leaf.reshape(len(devices), -1, *leaf.shape[1:])

    def join(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).reshape(-1, *leaf.shape[2:])

    def run(*args: Any) -> Any:
        return jax.tree.map(join, jax.block_until_ready(mapped(*jax.tree.map(split, args))))

    return run


def _batches(index: np.ndarray, size: int, shards: int) -> Iterator[np.ndarray]:
    """`index` in pieces of `size`, the last one filled with repetitions to one of few sizes.

    All pieces are multiples of `shards`. A compilation takes as long as many steps of a small
    batch, so the sizes are far apart.
    """

    def even(count: int) -> int:
        return -(-count // shards) * shards

    size = even(size)
    for at in range(0, len(index), size):
        piece = index[at : at + size]
        room = size
        while even(-(-room // _SIZES_APART)) >= len(piece) and room > shards:
            room = even(-(-room // _SIZES_APART))
        yield np.resize(piece, room)


def _take(tree: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _put(tree: Any, index: np.ndarray, pieces: Any) -> None:
    jax.tree.map(lambda leaf, piece: leaf.__setitem__(index, piece), tree, pieces)
