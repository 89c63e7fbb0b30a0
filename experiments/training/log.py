"""What a training tells while it runs: measures, a progress bar, JSON lines, TensorBoard."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness.files import write_text
from experiments.harness.progress import progress_bar
from wasserstein_adv.errors import InputError
from wasserstein_adv.recipes import Recipe, learning_rates
from wasserstein_adv.training import Measures

_METRICS = "metrics.jsonl"
_RECORD_EVERY = 50  # steps; and after the last of every epoch


class Meter:
    """A training's measures over the steps since they were last read."""

    def __init__(self) -> None:
        self._recent: list[Measures] = []
        self._waited, self._images = 0.0, 0
        self._since = time.perf_counter()

    def add(self, measures: Measures, waited: float, images: int) -> None:
        """Take in one step, of so many images, that waited so many seconds for them."""
        self._recent.append(measures)
        self._waited += waited
        self._images += images

    def read(self) -> dict[str, float]:
        """Means over the steps since the last call, rates per second; waits for the devices."""
        loss, clean, adversarial = np.mean(np.asarray(jax.device_get(self._recent)), axis=0)
        seconds = time.perf_counter() - self._since
        found = {
            "loss": float(loss),
            "clean_accuracy": float(clean),
            "adversarial_accuracy": None if np.isnan(adversarial) else float(adversarial),
            "images_per_second": self._images / seconds,
            "input_wait": self._waited / seconds,
        }
        self.__init__()
        return found


@contextlib.contextmanager
def training_bar(title: str, steps: int, begun: int = 0) -> Iterator[Callable[..., None]]:
    """Show a training of so many steps on stderr while the block runs.

    Yields:
        (steps taken, what `Meter.read` found) ↦ None.
    """
    with progress_bar(20) as bar:
        task = bar.add_task(title, total=steps, completed=begun, measured="compiling")

        def show(step: int, found: dict[str, Any]) -> None:
            measured = f"loss {found['loss']:.3f}  clean {found['clean_accuracy']:.1%}"
            if found["adversarial_accuracy"] is not None:
                measured += f"  adversarial {found['adversarial_accuracy']:.1%}"
            measured += f"  {found['images_per_second']:,.0f} images/s"
            measured += f"  waiting {found['input_wait']:.0%}"
            bar.update(task, completed=step, measured=measured)

        yield show


class Log:
    """A training's metrics, as JSON lines, for TensorBoard, and on the progress bar."""

    def __init__(self, path: Path, recipe: Recipe, steps: int, begun: int, images: int) -> None:
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
            self._show = stack.enter_context(training_bar(title, self.steps, self.begun))
            yield

    def after_step(self, step: int, measures: Measures, waited: float) -> None:
        """Take in a step, as `Hooks` has it; raise InputError if the loss is not finite."""
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
    write_text(path, "".join(f"{line}\n" for line in lines))
    return last
