"""Checkpoints of a training under way: written whole, and checked when they are read."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.training.weights import check_weights, leaves_by_name, of_this_process, quiet_orbax
from wasserstein_adv.errors import InputError
from wasserstein_adv.training import TrainState

_KEPT = 2  # the newest, and the one before in case the newest cannot be read
_STATE, _ABOUT = "state", "about"


def save_checkpoint(folder: Path, state: TrainState, about: dict[str, Any]) -> None:
    """Write a state of NumPy arrays as `folder/STEP`, and what else is kept with it, as JSON holds
    it; remove all but the two newest. Raise InputError where it cannot be written."""
    # Arrays: a NumPy number would come back as another type.
    leaves = {name: np.asarray(leaf) for name, leaf in leaves_by_name(state).items()}
    about = {**about, "step": int(state.step), "digest": _digest(leaves)}
    try:
        with quiet_orbax() as ocp, _manager(ocp, folder) as manager:
            items = {_STATE: ocp.args.PyTreeSave(leaves), _ABOUT: ocp.args.JsonSave(about)}
            manager.save(int(state.step), args=ocp.args.Composite(**items))
    except (OSError, ValueError) as error:  # a full disk, say, as Orbax's backend reports it
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder}: cannot be written ({reason})") from error


def load_checkpoint(folder: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Read the newest checkpoint that is sound; None where there is none.

    One that is damaged is reported on stderr and set aside, as `damaged-STEP` beside the folder.

    Args:
        folder: as `save_checkpoint` was given.
        like: the state's structure, shapes and types.

    Raises:
        InputError: a sound checkpoint is of another network or optimiser; or one cannot be read for
            a reason that says nothing of it, as when memory runs out.
    """
    if not folder.is_dir():
        return None
    with quiet_orbax() as ocp, _manager(ocp, folder) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                items = {_STATE: ocp.args.PyTreeRestore(), _ABOUT: ocp.args.JsonRestore()}
                found = manager.restore(step, args=ocp.args.Composite(**items))
                leaves = {name: np.asarray(leaf) for name, leaf in found[_STATE].items()}
                if _digest(leaves) != found[_ABOUT]["digest"]:
                    raise ValueError("its content is not what was written")
            except Exception as error:  # a damaged checkpoint raises whatever its parser meets
                missing = isinstance(error, FileNotFoundError)
                if isinstance(error, (MemoryError, OSError)) and not missing:
                    raise InputError(f"{folder / str(step)}: cannot be read ({error})") from error
                _set_aside(folder, step, error)
                continue
            check_weights(leaves, leaves_by_name(like), folder / str(step))
            names = list(leaves_by_name(like))
            ordered = [leaves[name] for name in names]
            return jax.tree.unflatten(jax.tree.structure(like), ordered), found[_ABOUT]
    return None


def _manager(ocp: Any, folder: Path) -> Any:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        enable_async_checkpointing=False,
        multiprocessing_options=of_this_process(ocp),
        create=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def _digest(leaves: dict[str, Any]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[name])
        hashed.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        hashed.update(leaf.tobytes())
    return hashed.hexdigest()


def _set_aside(folder: Path, step: int, error: Exception) -> None:
    reason = next(iter(str(error).splitlines()), "")[:120] or type(error).__name__
    print(f"warning: {folder / str(step)}: damaged ({reason}), set aside", file=sys.stderr)
    aside = folder.parent / f"damaged-{step}"
    while aside.exists():  # of an earlier start
        aside = aside.with_name(f"{aside.name}-again")
    os.replace(folder / str(step), aside)
