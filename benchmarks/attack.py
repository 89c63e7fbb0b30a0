"""A whole attack, Wong's protocol on MNIST, beside the published loop around the package.

Same images, same model (the PyTorch network has our weights), same protocol. The two differ in how
far every projection goes: ours to its default tolerance, the package's by its own rule.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.table import Table

from benchmarks import _peers
from benchmarks._measure import (
    Record,
    Setup,
    interleaved,
    lay_out,
    number,
    ratio_cell,
    record,
    records_of,
    text,
    timed,
)
from experiments.evaluation.subjects import Subject, logits_of, with_model
from wasserstein_adv import parallel
from wasserstein_adv.attacks import AttackResult
from wasserstein_adv.attacks.wong import MNIST, wong
from wasserstein_adv.metrics import accuracy_at

_IMAGES, _QUICK_IMAGES = 100, 4
_RADII = (0.3, 0.5, 0.7, 1.0)
_LOGITS_DIFFER = 1e-4  # at most, between the frameworks
_PUBLISHED = "published loop"


def measure(setup: Setup) -> list[Record]:
    """Time both attacks on the first images, and without --quick ours on all."""
    setup.tell("the model")
    subject = with_model(setup.subject, setup.data_dir, 0, Console(stderr=True))
    count = _QUICK_IMAGES if setup.quick else _IMAGES
    few = subject._replace(x=subject.x[:count], y=subject.y[:count])
    runs = {"ours": _ours(few)}
    if not _peers.missing([_peers.PACKAGE]):
        _check_logits(few)
        runs[_PUBLISHED] = _peers.published_attack(few.classifier.variables, few.x, few.y, MNIST)
    with _empty_cache():
        setup.tell("ours, compiling")
        first = timed(runs["ours"])
        # The peer takes minutes, and the same in every run.
        answers, seconds = interleaved(runs, setup.repeats, setup.tell, once=[_PUBLISHED])
    curves = {name: accuracy_at(answer.radius, _RADII).accuracy for name, answer in answers.items()}
    more = {
        name: {
            "images": count,
            "seconds_with_compilation": first.seconds + first.compiling if name == "ours" else None,
            "accuracy": dict(zip(map(str, _RADII), curve.tolist(), strict=True)),
            "points_from_ours": 100 * float(np.abs(curve - curves["ours"]).max()),
            "device": _peers.device_of(_peers.PACKAGE if name == _PUBLISHED else name),
        }
        for name, curve in curves.items()
    }
    setting = f"{subject.data}, {subject.described}, Wong's protocol"
    records = records_of("attack", seconds, more, setting=setting)
    return records if setup.quick else [*records, _on_all(setup, subject, setting)]


def _ours(subject: Subject) -> Callable[[], AttackResult]:
    published = wong(subject.x.shape[1:3], MNIST._replace(white="clamped"))
    run = parallel.evaluator(published, logits_of(subject.classifier))
    key = jax.random.key(0)
    return lambda: run(key, subject.x, subject.y)


def _on_all(setup: Setup, subject: Subject, setting: str) -> Record:
    """Our attack on every test image, once."""
    setup.tell(f"ours, all {len(subject.x):,} images")
    found = timed(_ours(subject))
    curve = accuracy_at(found.answer.radius, _RADII).accuracy
    return record(
        "attack",
        "ours, all test images",
        found.seconds,
        setting=setting,
        images=len(subject.x),
        seconds_with_compilation=found.seconds + found.compiling,
        accuracy=dict(zip(map(str, _RADII), curve.tolist(), strict=True)),
    )


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """With a compilation cache in which nothing is at first."""
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        _use_cache(folder)
        try:
            yield
        finally:
            _use_cache(before)


def _use_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # or the one before would stay open


def _check_logits(subject: Subject) -> None:
    """Raise RuntimeError unless the networks of both frameworks answer alike."""
    ours = np.asarray(logits_of(subject.classifier)(subject.x))
    difference = float(
        np.abs(_peers.torch_logits(subject.classifier.variables, subject.x) - ours).max()
    )
    if not difference <= _LOGITS_DIFFER:
        raise RuntimeError(f"PyTorch's logits differ from Flax's by {difference}")


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"attack: {records[0]['setting']}; accuracy left at ε, points from ours",
        records,
        {
            "method": text("method"),
            "images": text("images"),
            "seconds": number("seconds"),
            "compiling": number("seconds_with_compilation"),
            "ratio": ratio_cell,
            **{f"ε {r}": lambda each, r=r: f"{each['accuracy'][str(r)]:.0%}" for r in _RADII},
            "points": number("points_from_ours", ".1f"),
        },
    )
