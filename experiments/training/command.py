"""The command that trains a classifier, whatever the dataset and the defence."""

import contextlib
import dataclasses
import json
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.harness import runs
from experiments.harness.arguments import Terminated, check_count, use_all_cores
from experiments.harness.environment import command_line, run_environment
from experiments.harness.files import write_json_atomic
from experiments.harness.tables import Table, on_terminal
from experiments.training.checkpoints import load_checkpoint, save_checkpoint
from experiments.training.log import Log
from experiments.training.options import Task, TrainOptions, first_of, open_task
from experiments.training.weights import MODEL_NAME, WEIGHTS, save
from wasserstein_adv import parallel
from wasserstein_adv.errors import InputError
from wasserstein_adv.fitting import Hooks, Stopped, accuracy, initial_state, train
from wasserstein_adv.processes import all_or_none, check_same, of_first
from wasserstein_adv.recipes import steps_of
from wasserstein_adv.training import TrainState, Variables

_CHECKPOINTS = "checkpoints"
_MOST_DEVICES = 256  # of a CPU; with many more JAX does not come to a start
_NEW = {"seconds": 0.0, "seconds_waiting": 0.0}  # of a training that has not begun
_TESTED = 1000  # test images at most, after every epoch


def run_training(config: TrainOptions) -> None:
    """Train, and leave weights, metrics and results in the run's folder.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
        Terminated: SIGTERM or Ctrl-C came; where the training was is saved.
    """
    _join(config)
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    task = all_or_none(lambda: open_task(config, console))
    check_same("settings", json.dumps(task.settings))
    path = config.out or runs.default_folder(f"train-{config.defense}", task.settings)
    # Process 0 has the folder to itself; the others need not see it.
    folder = all_or_none(lambda: _claimed(path, task) if first else runs.RunFolder(path, False))
    runs.show_finished(folder, console)
    if of_first(folder.finished):
        return

    recipe, training = task.recipe, task.training
    devices = len(parallel.devices_for(recipe.batch_size))
    steps = steps_of(recipe, len(training.labels))
    console.print(
        f"{task.model_name}, {config.defense}: {recipe.epochs} epochs in {steps:,} steps of "
        f"{recipe.batch_size} images; {recipe.optimizer} at {recipe.learning_rate:g}, "
        f"{recipe.schedule}; {devices} {'device' if devices == 1 else 'devices'}",
        highlight=False,
        soft_wrap=True,
    )
    shape = training.images.shape[1:]
    start = task.start and task.start.variables
    state = initial_state(task.model, shape, recipe, steps, start)
    resumed = all_or_none(lambda: _resumed(folder, state, devices) if first else (state, _NEW))
    state, about = of_first(resumed)
    log = Log(folder.path, recipe, steps, int(state.step), len(training.labels))
    log.waited = float(about["seconds_waiting"])
    begun = last_saved = time.perf_counter()

    def seconds() -> float:
        return float(about["seconds"]) + time.perf_counter() - begun

    def save_due(step: int) -> bool:
        return first and time.perf_counter() - last_saved >= config.checkpoint_every

    def keep(state: TrainState) -> None:
        nonlocal last_saved
        if first:
            kept = {
                "seed": recipe.seed,
                "epoch": int(state.step) // log.per_epoch,
                "batch": int(state.step) % log.per_epoch,
                "devices": devices,
                "seconds": seconds(),
                "seconds_waiting": log.waited,
            }
            save_checkpoint(folder.path / _CHECKPOINTS, state, kept)
        last_saved = time.perf_counter()

    def after_epoch(step: int, variables: Callable[[], Variables]) -> None:
        log.after_epoch(step, accuracy(task.model, variables(), first_of(task.test, _TESTED)))

    with _signals() as received, log.open(f"{task.name}, {config.defense}" if first else None):
        hooks = Hooks(state, log.after_step, after_epoch, save_due, keep, lambda: bool(received))
        try:
            variables = train(task.model, training, recipe, task.defense, hooks)
        except Stopped as stopped:
            raise Terminated(received[0] if received else signal.SIGTERM) from stopped
    if first:
        # There already in a run that was killed right here: the same weights.
        shutil.rmtree(folder.path / WEIGHTS, ignore_errors=True)
        save(folder.path / WEIGHTS, variables)

    some = first_of(training, _TESTED)
    results = {
        "dataset": {"name": task.name, "training_images": len(training.labels)},
        **{name: task.settings[name] for name in ("model", "defense", "attack")},
        "recipe": dataclasses.asdict(recipe),
        **{name: task.settings[name] for name in ("init", "precision")},
        "seconds": round(seconds(), 1),
        "seconds_waiting_for_input": round(log.waited, 3),
        "devices": devices,
        "processes": jax.process_count(),
        "last": log.last,
        "accuracy": {
            "train": accuracy(task.model, variables, some),
            "test": accuracy(task.model, variables, task.test),
        },
        "images": {"train": len(some.labels), "test": len(task.test.labels)},
        "environment": run_environment(),
        "command": command_line(),
    }
    table = results_table(results)
    if first:
        runs.finish(folder, results, [table])
        shutil.rmtree(folder.path / _CHECKPOINTS, ignore_errors=True)
    console.print(on_terminal(table))
    console.print(f"weights: {folder.path}", highlight=False, soft_wrap=True)


def _claimed(path: Path, task: Task) -> runs.RunFolder:
    """The run's folder, with what a finished run no longer needs removed."""
    folder = runs.claim(path, task.settings)
    if folder.finished and not (path / WEIGHTS).is_dir():  # somebody removed them
        runs.withdraw(folder)
        folder = runs.claim(path, task.settings)
    if folder.finished:
        shutil.rmtree(path / _CHECKPOINTS, ignore_errors=True)
    else:
        write_json_atomic(path / MODEL_NAME, {"model": task.model_name})
    return folder


def _join(config: TrainOptions) -> None:
    """Set up this process's devices, and join the others."""
    if config.host_devices is not None:
        check_count("host_devices", config.host_devices)
        if config.host_devices > _MOST_DEVICES:
            raise InputError(f"--host-devices must be at most {_MOST_DEVICES}")
    together = (config.num_processes, config.process_id)
    if config.coordinator in (None, "auto") and together != (None, None):
        raise InputError("--num-processes and --process-id need --coordinator HOST:PORT")
    if config.coordinator not in (None, "auto") and None in together:
        raise InputError("--coordinator HOST:PORT needs --num-processes and --process-id")
    use_all_cores(config.host_devices)
    if config.coordinator is not None:
        # JAX's own would take SIGTERM from us.
        jax.config.update("jax_enable_preemption_service", False)
        named = {} if config.coordinator == "auto" else {"coordinator_address": config.coordinator}
        try:
            if named:  # a name that nobody knows would end the process without a word of Python's
                host, _, port = config.coordinator.rpartition(":")
                socket.getaddrinfo(host.strip("[]"), port)
            jax.distributed.initialize(
                **named, num_processes=config.num_processes, process_id=config.process_id
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"--coordinator {config.coordinator}: {reason}") from error


def _resumed(
    folder: runs.RunFolder, state: TrainState, devices: int
) -> tuple[TrainState, dict[str, float]]:
    """The state to go on from, and the seconds that it took to come there."""
    found = load_checkpoint(folder.path / _CHECKPOINTS, state)
    if found is None:
        return state, _NEW
    state, about = found
    if about["devices"] != devices:
        print(
            f"warning: begun on {about['devices']} devices and going on on {devices}: the weights "
            "will differ in rounding",
            file=sys.stderr,
        )
    # A checkpoint of an earlier version has no seconds_waiting.
    return state, {name: about.get(name, 0.0) for name in _NEW}


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """While the block runs, SIGTERM and Ctrl-C are taken note of, in the list; a second Ctrl-C
    interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def results_table(results: Mapping[str, Any]) -> Table:
    """What people look at of a training's results."""
    title = (
        f"{results['model']} on {results['dataset']['name']}, defence {results['defense']}, "
        f"{results['recipe']['epochs']} epochs in {results['seconds']:,.0f} s"
    )
    rows = [
        (split, f"{results['images'][split]:,}", f"{share:.2%}")
        for split, share in results["accuracy"].items()
    ]
    if (share := results["last"].get("adversarial_accuracy")) is not None:
        rows.append(("train, under the attack", "last steps", f"{share:.2%}"))
    return Table(title, ("split", "images", "accuracy"), rows)
