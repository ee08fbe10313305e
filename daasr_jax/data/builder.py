"""The TFDS builder of one prepared volume: a record per slice, in array_record."""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Of the only split that a volume has.
_NAME = "slices"


class PreparedVolume(tfds.core.GeneratorBasedBuilder):
    """The kept slices of one volume, in their order.

    Args:
        data_dir: Folder that is written to.
        size: Side of a slice, in pixels.
        content: Content hash of the volume, part of every record.
        slices: Place in the volume and image, (size, size, 1) float32, of each slice.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(
        self,
        *,
        data_dir: str,
        size: int,
        content: str,
        slices: Iterable[tuple[int, np.ndarray]],
    ) -> None:
        self._folder, self._size = data_dir, size
        self._content, self._images = content, slices
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Slices divided by their volume's maximum, on one grid.",
            features=slice_features(self._size),
            disable_shuffling=True,
        )

    def write(self) -> None:
        """Writes the records under `data_dir`."""
        with quiet_tfds():
            self.download_and_prepare(
                download_dir=self._folder,
                download_config=tfds.download.DownloadConfig(num_shards=1),
            )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {_NAME: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (index, image) in enumerate(self._images):
            yield number, {"image": image, "content": self._content, "index": index}


def slice_features(size: int) -> tfds.features.FeaturesDict:
    """What a record holds; its `deserialize_example_np` reads one.

    Args:
        size: Side of a slice, in pixels.
    """
    image = tfds.features.Tensor(
        shape=(size, size, 1), dtype=np.float32, encoding="bytes"
    )
    return tfds.features.FeaturesDict(
        {
            "image": image,
            "content": tfds.features.Text(),
            "index": tfds.features.Scalar(dtype=np.int32),
        }
    )


def records_file(folder: Path) -> Path:
    """The array_record file that a builder has written under a folder."""
    name = PreparedVolume.name
    place = folder / name / str(PreparedVolume.VERSION)
    return place / f"{name}-{_NAME}.array_record-00000-of-00001"


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Hides TFDS's bars and its talk of downloads: nothing is downloaded here."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
