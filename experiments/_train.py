"""The command that trains a classifier, whatever the dataset and the defence."""

import contextlib
import dataclasses
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from experiments._attacks import check_count, check_positive
from experiments._checkpoints import load_checkpoint, save_checkpoint
from experiments._cli import Terminated, images_bar, use_all_cores
from experiments._evaluation import digest
from experiments._report import run_environment, write_json_atomic
from experiments._runs import (
    RunFolder,
    claim,
    default_folder,
    finish,
    show_finished,
    withdraw,
)
from experiments._together import all_or_none, check_same, of_first
from experiments._training import (
    STANDARD,
    Hooks,
    Meter,
    Recipe,
    Stopped,
    accuracy,
    check_recipe,
    initial_state,
    learning_rates,
    progress_bar,
    steps_of,
    train,
)
from experiments._weights import (
    MODEL_NAME,
    STANDARD_MODEL,
    WEIGHTS,
    Classifier,
    ModelName,
    build_model,
    load_weights,
    save,
    trained_model,
)
from wasserstein_adv import parallel
from wasserstein_adv.attacks.unbalanced import TRAINING
from wasserstein_adv.attacks.wong import CIFAR10_TRAINING, MNIST_TRAINING
from wasserstein_adv.data import RawDataset, describe, published_sizes, read, resolve
from wasserstein_adv.defenses import (
    LINF_CIFAR10,
    LINF_MNIST,
    Defense,
    linf_training,
    plain,
    unbalanced_training,
    wong_training,
)
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import MODELS
from wasserstein_adv.training import Measures, TrainState, Variables

DefenseName = Literal["plain", "pgd", "wong", "unbalanced"]

_CHECKPOINTS = "checkpoints"
_METRICS = "metrics.jsonl"
_RECORD_EVERY = 50  # steps; and after the last of every epoch
_MOST_DEVICES = 256  # of a CPU; with many more JAX does not come to a start
_NEW = {"seconds": 0.0, "seconds_waiting": 0.0}  # of a training that has not begun
_TESTED = 1000  # test images at most, after every epoch


@dataclass(frozen=True)
class TrainOptions:
    """What can be chosen of a training; the rest is the standard of dataset and defence."""

    data: str = "auto"
    """The dataset."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    defense: DefenseName = "plain"
    """What to train against. plain: nothing. pgd (Madry et al. 2018): signed steps in an ℓ∞ ball.
    wong (Wong et al. 2019): a Wasserstein ball that grows, image by image, until the network errs.
    unbalanced (Subramanyam): clean images, and answers to unbalanced-transport attacks kept near
    those to clean ones."""

    model: ModelName | None = None
    """The network. By default the one that the papers use with the dataset."""

    init: Path | None = None
    """Weights to start from, as --checkpoint of the attack commands takes them; by default random
    ones."""

    epochs: int | None = None
    """Passes over the training images. By default the paper's, or ours where the paper names none;
    so too the options below."""

    learning_rate: float | None = None
    """The highest learning rate."""

    schedule: Literal["one-cycle", "drop", "constant"] | None = None
    """The rate over time: up and down along a cosine; divided by ten half-way; constant."""

    batch_size: int | None = None
    """Images in a batch, over all devices of all processes."""

    attack_steps: int | None = None
    """Gradient steps of the defence's attack, at most; plain has none."""

    num_images: int | None = None
    """How many training images to use, from the first; by default all."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What convolutions compute in; weights are float32 always. auto: bfloat16 for residual
    networks on a GPU or TPU, else float32."""

    seed: int = 0
    """Seed of the first weights, the order of the images, their changes and the attacks."""

    checkpoint_every: float = 120.0
    """Seconds between two checkpoints; 0 for one after every step."""

    host_devices: int | None = None
    """CPU devices; by default one per core."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes train together; on TPU pods and under SLURM
    `auto`."""

    num_processes: int | None = None
    """How many processes train together; for --coordinator HOST:PORT."""

    process_id: int | None = None
    """Which of them this is, from 0; for --coordinator HOST:PORT."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted, in whatever way, goes on where it stopped; a finished one is shown again."""


class Plan(NamedTuple):
    """A dataset's recipe under a defence."""

    recipe: Recipe
    protocol: Any
    """The settings of the defence's attack; None without one."""


_WONG = Recipe(20, 0.1, "sgd", "drop")


def plan_of(data: str, defense: DefenseName) -> Plan:
    """The papers' recipe for a dataset and a defence, where they give one.

    Wong et al., appendix B: SGD at 0.1, later 0.01, in batches of 128. Subramanyam, section V.A:
    SGD at 0.01 for 40 epochs on MNIST, at 0.0003 for 60 on Fashion-MNIST, Adam at 0.0001 for 50 on
    Tiny ImageNet, with 2 steps of the attack there. Where a paper names no recipe, as the latter
    for CIFAR-10, it is that of MNIST; ℓ∞ training has the dataset's own.
    """
    standard, colour = STANDARD[data], describe(data).colour
    changes = {"padding": standard.padding, "flip": standard.flip}
    if defense == "plain":
        return Plan(standard, None)
    if defense == "pgd":
        return Plan(standard, LINF_CIFAR10 if colour else LINF_MNIST)
    if defense == "wong":
        recipe = dataclasses.replace(_WONG, **(changes if colour else {}))
        return Plan(recipe, CIFAR10_TRAINING if colour else MNIST_TRAINING)
    protocol = TRAINING._replace(steps=2) if data == "tiny_imagenet" else TRAINING
    recipe = {
        "fashion_mnist": Recipe(60, 3e-4, "sgd", "constant"),
        "tiny_imagenet": Recipe(50, 1e-4, "adam", "constant", **changes),
    }.get(data, Recipe(40, 0.01, "sgd", "constant", **(changes if colour else {})))
    return Plan(recipe, protocol)


def defense_of(name: DefenseName, grid_size: tuple[int, int], protocol: Any) -> Defense:
    """A defence by its name, with the settings of its attack."""
    if name == "plain":
        return plain()
    if name == "pgd":
        return linf_training(protocol)
    build = wong_training if name == "wong" else unbalanced_training
    return build(grid_size, protocol)


def run_training(config: TrainOptions, command: str) -> None:
    """Train, and leave weights, metrics and results in the run's folder.

    Args:
        config: the command's options.
        command: its name, without the package.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
        Terminated: SIGTERM or Ctrl-C came; where the training was is saved.
    """
    _join(config)
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    task = all_or_none(lambda: _opened(config, console))
    check_same("settings", json.dumps(task.settings))
    path = config.out or default_folder(f"train-{config.defense}", task.settings)
    # Process 0 has the folder to itself; the others need not see it.
    folder = all_or_none(lambda: _claimed(path, task) if first else RunFolder(path, False))
    show_finished(folder, results_table, console)
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
    log = _Log(folder.path, recipe, steps, int(state.step), len(training.labels), console)
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
        log.after_epoch(step, accuracy(task.model, variables(), _first(task.test, _TESTED)))

    defense = defense_of(config.defense, shape[:2], task.protocol)
    with _signals() as received, log.open(f"{task.name}, {config.defense}" if first else None):
        hooks = Hooks(state, log.after_step, after_epoch, save_due, keep, lambda: bool(received))
        try:
            variables = train(task.model, training, recipe, defense, hooks)
        except Stopped as stopped:
            raise Terminated(received[0] if received else signal.SIGTERM) from stopped
    if first:
        # There already in a run that was killed right here: the same weights.
        shutil.rmtree(folder.path / WEIGHTS, ignore_errors=True)
        save(folder.path / WEIGHTS, variables)

    some = _first(training, _TESTED)
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
        "command": shlex.join(["python", "-m", f"experiments.{command}", *sys.argv[1:]]),
    }
    if first:
        finish(folder, results)
        shutil.rmtree(folder.path / _CHECKPOINTS, ignore_errors=True)
    console.print(results_table(results))
    console.print(f"weights: {folder.path}", highlight=False, soft_wrap=True)


class _Task(NamedTuple):
    """A training that has not begun."""

    name: str
    """The dataset's."""
    recipe: Recipe
    protocol: Any
    """The settings of the defence's attack; None without one."""
    model_name: str
    model: nn.Module
    start: Classifier | None
    """The weights to start from; None for random ones."""
    training: RawDataset
    test: RawDataset
    settings: dict[str, Any]
    """All that the weights depend on."""


def _opened(config: TrainOptions, console: Console) -> _Task:
    """What the options are of, read and checked."""
    name = resolve(config.data, config.data_dir)
    recipe, protocol = _chosen(name, config)
    started = config.init and trained_model(config.init)
    model_name = config.model or started or STANDARD_MODEL[name]
    dtype = _precision(config.precision, model_name)
    model = build_model(model_name, name, dtype=dtype, axis_name=parallel.AXIS)
    start = None if config.init is None else load_weights(config.init, name, model_name)
    training = _loaded(name, "train", config, console)
    if config.num_images is not None:
        if config.num_images > len(training.labels):
            raise InputError(
                f"--num-images {config.num_images}: {name} has {len(training.labels):,}"
            )
        training = _first(training, config.num_images)
    test = _loaded(name, "test", config, console)
    check_recipe(recipe, len(training.labels))
    settings = {
        "data": name,
        "num_images": len(training.labels),
        "model": model_name,
        "defense": config.defense,
        "attack": protocol and protocol._asdict(),
        "precision": jnp.dtype(dtype).name,
        "init": start and digest(start),
        **dataclasses.asdict(recipe),
    }
    return _Task(name, recipe, protocol, model_name, model, start, training, test, settings)


def _claimed(path: Path, task: _Task) -> RunFolder:
    """The run's folder, with what a finished run no longer needs removed."""
    folder = claim(path, task.settings)
    if folder.finished and not (path / WEIGHTS).is_dir():  # somebody removed them
        withdraw(folder)
        folder = claim(path, task.settings)
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
            jax.distributed.initialize(
                **named, num_processes=config.num_processes, process_id=config.process_id
            )
        except (RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"--coordinator {config.coordinator}: {reason}") from error


def _chosen(name: str, config: TrainOptions) -> Plan:
    """The papers' recipe with the options that were given in its place, checked."""
    recipe, protocol = plan_of(name, config.defense)
    options = ("epochs", "learning_rate", "schedule", "batch_size", "seed")
    given = {option: getattr(config, option) for option in options}
    changes = {option: value for option, value in given.items() if value is not None}
    for option in ("epochs", "batch_size", "attack_steps", "num_images"):
        if getattr(config, option) is not None:
            check_count(option, getattr(config, option))
    if config.learning_rate is not None:
        check_positive("learning_rate", config.learning_rate)
    if not config.checkpoint_every >= 0:
        raise InputError(f"--checkpoint-every must be 0 or more, got {config.checkpoint_every}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, got {config.seed}")
    if config.attack_steps is not None:
        if protocol is None:
            raise InputError("--attack-steps is not an option of --defense plain")
        protocol = protocol._replace(steps=config.attack_steps)
    return Plan(dataclasses.replace(recipe, **changes), protocol)


def _precision(name: str, model: str) -> Any:
    """The type to compute in."""
    if name != "auto":
        return jnp.dtype(name)
    # Small networks spend their time in the attack; CPUs have no fast bfloat16.
    residual = "axis_name" in MODELS[model].__dataclass_fields__
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return jnp.dtype("bfloat16" if residual and not on_cpu else "float32")


def _loaded(name: str, split: str, config: TrainOptions, console: Console) -> RawDataset:
    """A split of the dataset, with a progress bar where it takes long."""
    with images_bar(f"reading {name}, {split}", console.quiet) as show:
        dataset = read(name, split, config.data_dir, progress=show)
    count = len(dataset.labels)
    whole = published_sizes(name).get(split, count)
    of = "" if count == whole else f" of {whole:,}"
    console.print(f"{split}: {name}, {count:,}{of} images", highlight=False)
    return dataset


def _first(dataset: RawDataset, count: int) -> RawDataset:
    """Its first images."""
    return RawDataset(dataset.name, dataset.images[:count], dataset.labels[:count])


def _resumed(
    folder: RunFolder, state: TrainState, devices: int
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


class _Log:
    """A training's metrics, as JSON lines, for TensorBoard, and on the progress bar."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        steps: int,
        begun: int,
        images: int,
        console: Console,
    ) -> None:
        self.path, self.recipe, self.steps, self.begun = path, recipe, steps, begun
        self.per_epoch = images // recipe.batch_size
        self.last: dict[str, Any] = {}
        self._rate = learning_rates(recipe, steps)
        self._meter, self._bar_meter = Meter(), Meter()
        self._shown = self.waited = 0.0
        self._show = self._lines = self._board = None

    @contextlib.contextmanager
    def open(self, title: str | None) -> Iterator[None]:
        """While the block runs, write what `after_step` is told; with no title, nothing."""
        if title is None:
            yield
            return
        from tensorboardX import SummaryWriter  # here, because it takes a second to import

        with contextlib.ExitStack() as stack:
            try:
                self.last = _drop_lines_after(self.path / _METRICS, self.begun)
                lines = (self.path / _METRICS).open("a", encoding="utf-8")
                self._lines = stack.enter_context(lines)
                self._board = SummaryWriter(
                    str(self.path / "tensorboard"), purge_step=self.begun + 1, flush_secs=10
                )
            except OSError as error:
                raise InputError(f"{self.path}: metrics cannot be written ({error})") from error
            stack.callback(self._board.close)
            self._show = stack.enter_context(progress_bar(title, self.steps, self.begun))
            yield

    def after_step(self, step: int, measures: Measures, waited: float) -> None:
        """Take in a step, as `Hooks` has it.

        Raises:
            InputError: the loss is not finite any more.
        """
        size = self.recipe.batch_size
        self._meter.add(measures, waited, size)
        self.waited += waited
        if self._show is not None:
            self._bar_meter.add(measures, waited, size)
            if time.perf_counter() - self._shown > 0.5 or step == self.steps:
                self._shown = time.perf_counter()
                self._show(step, self._bar_meter.read())
        if step % _RECORD_EVERY == 0 or step % self.per_epoch == 0 or step == self.steps:
            self._record(step)

    def _record(self, step: int) -> None:
        found = self._meter.read()
        if not np.isfinite(found["loss"]):
            raise InputError(f"the loss is {found['loss']} at step {step}: lower --learning-rate")
        epoch = step / self.per_epoch
        rate = float(self._rate(step - 1))
        self.last = {"step": step, "epoch": round(epoch, 4), "learning_rate": rate, **found}
        self._write(self.last)

    def after_epoch(self, step: int, test_accuracy: float) -> None:
        """Take in the accuracy on a few test images."""
        epoch = step / self.per_epoch
        self._write({"step": step, "epoch": epoch, "test_accuracy": test_accuracy})

    def _write(self, record: dict[str, Any]) -> None:
        if self._lines is None:
            return
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        for name, value in record.items():
            if value is not None and name not in ("step", "epoch"):
                self._board.add_scalar(name, value, record["step"])


def _drop_lines_after(path: Path, step: int) -> dict[str, Any]:
    """Take from a file of metrics what a run that goes on from `step` will write anew; return the
    last record of training that stays."""
    lines, last = [], {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                found = json.loads(line)
                if found["step"] > step:
                    continue
            except (ValueError, TypeError, KeyError):  # a line that a kill cut off
                continue
            lines.append(line)
            last = found if "loss" in found else last
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    partial.replace(path)
    return last


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a training's results for the terminal."""
    recipe = results["recipe"]
    table = Table(
        title=f"{results['model']} on {results['dataset']['name']}, defence {results['defense']}, "
        f"{recipe['epochs']} epochs in {results['seconds']:,.0f} s"
    )
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for split, share in results["accuracy"].items():
        table.add_row(split, f"{results['images'][split]:,}", f"{share:.2%}")
    last = results["last"]
    if last.get("adversarial_accuracy") is not None:
        share = last["adversarial_accuracy"]
        table.add_row("train, under the attack", "last steps", f"{share:.2%}")
    return table
