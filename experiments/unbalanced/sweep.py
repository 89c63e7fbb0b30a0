"""What the commands share that run the attack at many settings, by the ruler of its paper."""

from dataclasses import dataclass

from experiments.evaluation.cells import Ruler
from experiments.evaluation.session import ModelOptions
from experiments.harness.arguments import check_settings, use_all_cores
from experiments.harness.catalogue.attacks import ATTACKS, GridSize, in_unit_square
from wasserstein_adv.attacks.unbalanced import PAPER, UnbalancedProtocol
from wasserstein_adv.data import describe


@dataclass(frozen=True)
class SweepOptions(ModelOptions):
    """What these commands can be told."""

    distance_images: int = 100
    """On how many of the images, from the first, to measure exact distances."""

    @property
    def measured(self) -> int:
        """On how many there are distances."""
        return min(self.distance_images, self.num_images)


def paper_ruler(grid_size: GridSize) -> dict[str, Ruler]:
    """The paper's own cost, for every setting: |Δrow| + |Δcol|, the image's sides being 1."""
    return {"distance": Ruler(in_unit_square(PAPER, grid_size))}


def check_protocol(protocol: UnbalancedProtocol, data: str) -> None:
    """Raise InputError, naming the option, unless the attack can be had on a dataset's images."""
    use_all_cores()  # before a geometry is built
    grid_size = describe(data).image_shape[:2]
    check_settings(protocol, lambda settings: ATTACKS["unbalanced"].build(grid_size, settings))


def short_distance(distance: float) -> str:
    """A distance below a picture: `.013`."""
    return f"{distance:.3f}".removeprefix("0") if distance else "0"
