"""Training over devices: a step on all of them, and which of them share a batch. The public face
is `wasserstein_adv.parallel`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wasserstein_adv.errors import InputError
from wasserstein_adv.training import Batch, Measures, Step, TrainState


class Replicated(NamedTuple):
    """A training step on every device of every process; see `replicate`."""

    put: Callable[[TrainState], Any]
    """A state of NumPy arrays ↦ a copy of it on every local device."""
    step: Callable[[Any, Batch, bool], tuple[Any, Measures, np.ndarray]]
    """(state on the devices, this process's part of the batch, stop) ↦ (the next state, measures,
    how many devices' processes said stop); the arrays wait for nothing. The state is used up."""
    get: Callable[[Any], TrainState]
    """A state on the devices ↦ NumPy arrays."""


AXIS = "devices"
"""The name of the axis that `replicate` maps, for layers that average over it."""


def replicate(step: Step, devices: Sequence[jax.Device] | None = None) -> Replicated:
    """A step of training on all devices of all processes, each with an equal part of the batch.

    Args:
      step: of `train_step`, with `axis_name=AXIS`.
      devices: by default all of all processes.

    Raises (the step returned):
      InputError: the part of the batch does not divide by the number of local devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    local = [device for device in devices if device.process_index == jax.process_index()]

    def part(state: TrainState, batch: Batch, stop: jax.Array) -> Any:
        return *step(state, batch), jax.lax.psum(stop, AXIS)

    mapped = jax.pmap(part, AXIS, devices=devices, donate_argnums=0)
    on_cpu = local[0].platform == "cpu"

    def split(leaf: Any) -> Any:
        if len(leaf) % len(local):
            raise InputError(f"batch_size: {len(leaf)} images for {len(local)} devices")
        return leaf.reshape(len(local), -1, *leaf.shape[1:])

    def advance(state: Any, batch: Batch, stop: bool = False) -> tuple[Any, Measures, Any]:
        flags = np.full(len(local), stop, np.int32)
        state, *told = mapped(state, jax.tree.map(split, batch), flags)
        if on_cpu:  # calls that overlap can run into each other's rendezvous
            jax.block_until_ready(state)
        # The same on all devices: the first has it.
        first = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tuple(told))
        return state, *first

    def put(state: TrainState) -> Any:
        def copies(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.broadcast_to(leaf, (len(local), *leaf.shape))

        return jax.tree.map(copies, state)

    def get(state: Any) -> TrainState:
        def first(leaf: jax.Array | np.ndarray) -> np.ndarray:
            # Before the first step it is as `put` made it.
            parts = leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf
            # An array still where nothing but a number is left.
            return np.array(np.asarray(parts)[0])

        return jax.tree.map(first, state)

    return Replicated(put, advance, get)


def devices_for(size: int) -> list[jax.Device]:
    """The devices that can share a batch of `size` equally: all of them, or as many as can be.

    Raises:
      InputError: there are several processes, and not all of their devices can, or they have not
        equally many.
    """
    devices = jax.devices()
    if jax.process_count() == 1:
        return devices[: max(n for n in range(1, len(devices) + 1) if size % n == 0)]
    each = sorted(Counter(device.process_index for device in devices).values())
    if each[0] < each[-1]:
        raise InputError(f"the processes must have equally many devices, not {each}")
    if size % len(devices):
        raise InputError(f"batch_size must be a multiple of the {len(devices)} devices, got {size}")
    return devices


def own_part(size: int) -> slice:
    """Which examples of a batch of `size` this process puts on its devices, see `devices_for`."""
    part = size // jax.process_count()
    return slice(jax.process_index() * part, (jax.process_index() + 1) * part)
