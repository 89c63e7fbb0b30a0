"""What the commands have in common."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wasserstein_adv.errors import InputError

Config = TypeVar("Config")

_BAD_INPUT = 2
_BY_SIGNAL = 128  # and the signal's number, as shells report it


class Terminated(KeyboardInterrupt):
    """A signal that ends a command, which cleans up as after Ctrl-C."""

    def __init__(self, number: int):
        self.number = number


def run_command(
    main: Callable[[Config], None], config_type: type[Config], argv: Sequence[str] | None = None
) -> int:
    """Parse a command's arguments, run it, and say how it ended.

    Args:
        main: the command.
        config_type: dataclass of its options; its docstrings are the command's `--help`.
        argv: the arguments without the program's name; None means those of this process.

    Returns:
        The exit status: 0; 2 after an `InputError`, whose message went to stderr as one line
        `error: …`; 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
        SystemExit: with status 2 for arguments that cannot be parsed, with 0 after `--help`.
    """
    config = tyro.cli(config_type, args=argv, prog=_program(main))
    try:
        with _terminable():
            main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    except Terminated as terminated:
        return _interrupted(terminated.number)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While the block runs, SIGTERM raises `Terminated` in it."""

    def end(number: int, frame: Any) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(number: int) -> int:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    return _BY_SIGNAL + number


def _program(main: Callable) -> str:
    """`python -m package.module`, as the user called it."""
    spec = getattr(sys.modules.get(main.__module__), "__spec__", None)
    name = spec.name if spec is not None else main.__module__
    return f"python -m {name.removesuffix('.__main__')}"


@contextlib.contextmanager
def images_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show how many images are done while the block runs, where stderr is a terminal.

    Args:
        title: What stands before the bar.
        quiet: Whether to show nothing.

    Yields:
        (images done, of how many) ↦ None.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f} images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr)  # as it is now: what TFDS writes is sent elsewhere
    disable = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def use_all_cores(host_devices: int | None = None) -> None:
    """Give JAX one CPU device per core, or so many, and keep compiled functions between runs.

    $JAX_NUM_CPU_DEVICES, where it is set, stands.

    To be called before JAX is first used: the number of devices is fixed from then on. An
    accelerator, where there is one, is used all the same.
    """
    import jax

    from experiments._training import cache_root

    if host_devices is not None or "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        jax.config.update("jax_num_cpu_devices", host_devices or cores)
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
