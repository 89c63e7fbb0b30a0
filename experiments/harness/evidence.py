"""Distances measured with a progress bar."""

import numpy as np
from jaxtyping import Float

from experiments.harness.progress import progress_bar
from wasserstein_adv import evidence
from wasserstein_adv.evidence import *  # noqa: F403
from wasserstein_adv.evidence import Files, Part


def measure(
    part: Part, files: Files, images: int, title: str = "exact distances"
) -> dict[str, Float[np.ndarray, "_"]]:
    """`evidence.measure` with a progress bar, `title` before it."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(part.distances) * images, measured="")
        return evidence.measure(part, files, images, lambda: bar.update(task, advance=1))
