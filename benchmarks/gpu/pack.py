"""Prepared slices in one file, for a machine that has neither the data nor readers.

Slices are rounded to 256 levels of [0, 1]: an error of at most 1/510, which is a
ceiling of 59 dB for any PSNR against them. Nothing else of a prepared set changes, so
references, crops and corruptions are drawn as in a training run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from daasr_jax.data.table import Companion, SliceRecord, SliceTable

LEVELS = 255
MOST = 30_000_000  # bytes of a file that is carried to a machine; larger is told
SPLITS = ("train", "val", "test")
PLACES = ("--config.data.root=", "--config.data.cache_dir=")  # not told to others


def pack(sets: list[list[str]], path: Path) -> dict[str, Any]:
    """Writes the prepared slices of configurations, one after another, as one .npz.

    Args:
        sets: The flags of each, as `train.py` takes them, a configuration first.
        path: The file.

    Returns:
        What lies in it, as `load` gives it.
    """
    from daasr_jax import data
    from daasr_jax.experiment import parts

    images: list[np.ndarray] = []
    about: dict[str, Any] = {"sets": [], "splits": {s: [] for s in SPLITS}}
    about["companions"] = {s: [] for s in SPLITS}
    places: dict[str, list[int]] = {s: [] for s in SPLITS}

    def add(image: np.ndarray) -> int:
        images.append(np.rint(LEVELS * image[..., 0]).astype(np.uint8))
        return len(images) - 1

    for number, flags in enumerate(sets):
        config = _configured(flags)
        prepared = data.prepare(parts.data_settings(config))
        about["sets"].append(
            {
                "flags": [f for f in flags if not f.startswith(PLACES)],
                "dataset": prepared.dataset,
                "key": prepared.key,
                "size": config.data.size,
                "subjects": {s: sorted(v) for s, v in prepared.subjects.items()},
            }
        )
        head = f"{number}:" if number else ""
        for split in SPLITS:
            table = prepared.splits[split]
            for i in range(len(table)):
                record = dataclasses.asdict(_record(table, i))
                record["volume"] = head + record["volume"]
                record["subject"] = head + record["subject"]
                about["splits"][split].append(record)
                places[split].append(add(table.image(i)))
            for (target, other), companion in table.companions.items():
                numbers = sorted(companion.numbers.items())
                about["companions"][split].append(
                    {
                        "target": head + target,
                        "other": head + other,
                        "at": [[i, companion.places[i]] for i, _ in numbers],
                        "images": [add(companion.images(k)) for _, k in numbers],
                    }
                )
    arrays = {f"{s}_at": np.array(places[s], np.int64) for s in SPLITS}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(path, images=np.stack(images), about=text, **arrays)
    return load(path)[1]


def load(path: Path) -> tuple[dict[str, SliceTable], dict[str, Any]]:
    """The tables of a file that `pack` wrote, and what it says of itself."""
    with np.load(path) as file:
        images, about = file["images"], json.loads(bytes(file["about"]).decode())
        places = {s: file[f"{s}_at"] for s in SPLITS}

    def image(place: int) -> np.ndarray:
        return images[place][..., None].astype(np.float32) / LEVELS

    tables = {}
    for split in SPLITS:
        records = [SliceRecord(**r) for r in about["splits"][split]]

        companions = {}
        for one in about["companions"][split]:
            at = one["images"]
            companions[one["target"], one["other"]] = Companion(
                images=lambda k, at=at: image(at[k]),
                numbers={i: k for k, (i, _) in enumerate(one["at"])},
                places=dict(one["at"]),
            )
        tables[split] = SliceTable(
            split,
            records,
            images.shape[1],
            lambda i, where=places[split]: image(where[i]),
            companions=companions,
        )
    about["slices"] = {s: len(t) for s, t in tables.items()}
    about["bytes"] = path.stat().st_size
    return tables, about


def sets_of(table: SliceTable, about: dict[str, Any]) -> dict[str, Any]:
    """The slices of each set of `load`, by a name for people."""
    out = {}
    for number, one in enumerate(about["sets"]):
        head = f"{number}:" if number else ""
        own = [
            i
            for i, volume in enumerate(table.volumes)
            if (volume.startswith(head) if head else ":" not in volume)
        ]
        if own:
            name = one["dataset"]
            out[f"{name} ({number})" if name in out else name] = table.only(own)
    return out


def rename(about: dict[str, Any], names: str | None) -> None:
    """Gives the sets of `about` names for people, `"A,B"`; an empty one stays."""
    for one, name in zip(about["sets"], (names or "").split(","), strict=False):
        one["dataset"] = name or one["dataset"]


def _record(table: SliceTable, i: int) -> SliceRecord:
    return SliceRecord(
        volume=str(table.volumes[i]),
        subject=str(table.subjects[i]),
        contrast=str(table.contrasts[i]),
        study=str(table.studies[i]),
        index=int(table.index[i]),
        n_slices=int(table.n_slices[i]),
        sha256=str(table.hashes[i]),
        spacing=float(table.spacing[i]),
    )


def _configured(flags: list[str]) -> Any:
    """The configuration that flags of `train.py` say, each `--config.KEY=VALUE`.

    Raises:
        ValueError: If there is none, or one is no setting of it.
    """
    from daasr_jax.experiment import configuration

    if not flags:
        raise ValueError("--set is empty: it wants CONFIG --config.KEY=VALUE ...")
    config = configuration.load(flags[0].removeprefix("--config="))
    changed = {}
    for flag in flags[1:]:
        key, _, value = flag.removeprefix("--config.").partition("=")
        try:
            changed[key] = _as(_at(config, key), value)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{flag} is no setting of {flags[0]}") from None
    config.update_from_flattened_dict(changed)
    return config


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _as(default: Any, text: str) -> Any:
    """A value of the default's type.

    Raises:
        ValueError: If the text is none.
        TypeError: If the default is no single value.
    """
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if not isinstance(default, (int, float, str)):
        raise TypeError(type(default).__name__)
    return type(default)(text)
