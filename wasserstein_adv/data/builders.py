"""The TFDS builder of all our datasets, which needs no TensorFlow.

Importing this module imports tensorflow_datasets.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import tensorflow_datasets as tfds

from wasserstein_adv.data.images import encode_png
from wasserstein_adv.data.published import Published, Split
from wasserstein_adv.data.recipes import Recipe

_SHARD = 10_000  # images; TFDS keeps one shard's encoded examples in memory


class _LocalInfo(tfds.core.DatasetInfo):
    """Dataset info that is never looked for in TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Do nothing; TFDS's own leaves an empty temporary folder behind each time."""


class PublishedBuilder(  # type: ignore[call-arg]  # TFDS is not typed
    tfds.core.ShardBasedBuilder, skip_registration=True
):
    """Writes a published dataset: `image`, uint8 as PNG, and `label`, in the published order.

    TFDS's more usual base class sorts the examples, for which it holds them all in memory.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        recipe: Recipe,
        published: Published,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make a builder.

        Args:
            recipe: which dataset it is.
            published: what to write.
            progress: called now and then with the numbers of images written, and of all.
            **kwargs: what TFDS's own builders take, `data_dir` and `file_format` above all.
        """
        self.name = recipe.dataset
        self._recipe, self._published, self._progress = recipe, published, progress
        self._done = 0
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description=self._recipe.description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=self._recipe.spec.image_shape, encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=self._published.classes),
                }
            ),
            supervised_keys=("image", "label"),
            # Published results on "the first n test images" mean the published order.
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        return {
            name: [
                partial(self._examples, split, range(start, min(start + _SHARD, len(split.labels))))
                for start in range(0, len(split.labels), _SHARD)
            ]
            for name, split in self._published.splits.items()
        }

    def _examples(self, split: Split, positions: range) -> Iterator[tuple[int, dict[str, Any]]]:
        total = sum(len(split.labels) for split in self._published.splits.values())
        for position in positions:
            # Ready bytes are stored as they are, arrays only with TensorFlow.
            image = encode_png(split.image(position))
            yield position, {"image": image, "label": int(split.labels[position])}
            self._done += 1
            if self._progress is not None and (self._done % 100 == 0 or self._done == total):
                self._progress(self._done, total)
