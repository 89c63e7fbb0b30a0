"""Distances measured with a progress bar."""

from collections.abc import Mapping

import numpy as np

from experiments.harness.progress import progress_bar
from wasserstein_adv import evidence
from wasserstein_adv.evidence import Files, Part


def measure(
    part: Part, files: Files, images: int, title: str | None = None
) -> Mapping[str, np.ndarray]:
    """`evidence.measure` with a progress bar, by default named after the part."""
    with progress_bar() as bar:
        total = len(part.distances) * images
        task = bar.add_task(title or f"{part.title}: distances", total=total, measured="")
        return evidence.measure(part, files, images, lambda: bar.update(task, advance=1))
