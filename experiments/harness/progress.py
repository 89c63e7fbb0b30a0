"""Progress on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(width: int | None = 40) -> Progress:
    """A progress bar on stderr whose tasks have a field `measured`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[measured]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextlib.contextmanager
def images_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show how many images are done while the block runs, where stderr is a terminal; yield
    (images done, of how many) ↦ None."""
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
