"""The TFDS builder of the prepared set: one record per slice, array_record files."""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from daasr_jax.data.content import content_hash, write_json
from daasr_jax.data.progress import track
from daasr_jax.data.settings import DataSettings
from daasr_jax.data.slices import (
    central_slices,
    normalised,
    not_blank,
    resized,
)
from daasr_jax.data.sources.base import Source, Volume, log
from daasr_jax.data.splits import SPLITS, Splits
from daasr_jax.data.table import SliceRecord
from daasr_jax.errors import DataError

INDEX_FILE = "index.json"


class PreparedSlices(tfds.core.GeneratorBasedBuilder):
    """Slices of every split in the order of the volumes' keys."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        data_dir: str,
        settings: DataSettings,
        source: Source | None = None,
        splits: Splits | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        """With `data_dir` and `settings` alone the builder reads; else it can build."""
        self._folder, self._settings = data_dir, settings
        self._source, self._hashes = source, hashes or {}
        self._volumes: Splits = splits or {}
        self._index: dict[str, list[SliceRecord]] = {split: [] for split in SPLITS}
        self._blank = 0
        self._fault: DataError | None = None
        super().__init__(data_dir=data_dir, file_format="array_record")

    def __getstate__(self) -> dict[str, Any]:
        """What TFDS's `__setstate__` makes a reader in another process from."""
        made_from = {"data_dir": self._folder, "settings": self._settings}
        return {"_original_state": made_from}

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._settings.size
        image = tfds.features.Tensor(
            shape=(size, size, 1), dtype=np.float32, encoding="bytes"
        )
        text, number = tfds.features.Text, tfds.features.Scalar
        features = {
            "image": image,
            "volume": text(),
            "subject": text(),
            "contrast": text(),
            "study": text(),
            "index": number(dtype=np.int32),
            "n_slices": number(dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Slices divided by their volume's maximum, on one grid.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def build(self, folder: Path) -> None:
        """Writes records and index under `folder`, the builder's data_dir.

        Raises:
            DataError: If a volume cannot be read (E302), has changed since it was
                hashed (E316), or has no slice left (E315).
        """
        try:
            with quiet_tfds():
                self.download_and_prepare(download_dir=str(folder))
        except Exception:
            # TFDS rebuilds exceptions with longer messages; ours stay one line
            if self._fault is not None:
                raise self._fault from None
            raise
        if self._blank:
            log.info("%d slices of one constant value were dropped", self._blank)
        rows = {
            split: [dataclasses.astuple(record) for record in records]
            for split, records in self._index.items()
        }
        write_json(folder / INDEX_FILE, rows)

    def records(self, split: str) -> Sequence[Any]:
        """Random access to the written records of a split that is not empty."""
        reader: Any = self  # TFDS's decorator hides the signature
        return reader.as_data_source(split=split)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(split)
            for split in SPLITS
            if self._volumes[split]
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        volumes, number = self._volumes[split], 0
        for volume in track(volumes, f"preparing {split}", len(volumes)):
            try:
                slices = self._slices(volume)
            except DataError as error:
                self._fault = error
                raise
            for record, image in slices:
                self._index[split].append(record)
                yield number, {"image": image, **dataclasses.asdict(record)}
                number += 1

    def _slices(self, volume: Volume) -> list[tuple[SliceRecord, np.ndarray]]:
        assert self._source is not None
        array = self._source.read(volume)
        if content_hash(array) != self._hashes[volume.key]:
            raise DataError(
                "E316",
                f"{volume.path} holds other voxels than when it was last hashed, with "
                "its size and time unchanged: fetch the file again",
            )
        settings, count = self._settings, len(array)
        cut = central_slices(count, settings.slice_range, settings.slice_step)
        kept = not_blank(array, cut, volume.path)
        self._blank += len(cut) - len(kept)
        images = normalised(array)
        about = (volume.key, volume.subject, volume.contrast, volume.study)
        return [
            (
                SliceRecord(*about, i, count),
                resized(images[i], settings.size, settings.resize),
            )
            for i in kept
        ]


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
