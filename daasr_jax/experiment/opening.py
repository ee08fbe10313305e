"""An evaluation before its first slice: what is asked, the run and its data."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import daasr_jax
from daasr_jax import data
from daasr_jax.data.pseudonyms import salted
from daasr_jax.errors import ConfigError
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.experiment import checks, parts, subjects
from daasr_jax.experiment.installation import commit_id
from daasr_jax.experiment.places import place
from daasr_jax.experiment.record import trained_with
from daasr_jax.experiment.same_run import changed, check_same, with_given
from daasr_jax.experiment.saved_run import TrainedRun, open_record, restore
from daasr_jax.models.lpips_backbones import SMALLEST
from daasr_jax.runtime import devices
from daasr_jax.runtime.failures import explained
from daasr_jax.weights.lpips import load_lpips

log = logging.getLogger("daasr_jax")

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """What is asked of an evaluation beside the run.

    Attributes:
        given: Key of the configuration -> value: places, references, its own settings.
        config: A configuration that the run must have been trained by; None to ask
            for none.
        split: `"train"`, `"val"` or `"test"` of the run's own data.
        subjects: Those to evaluate, of any data, comma-separated; empty for the split,
            or for all of other data.
        allow_overlap: Evaluate subjects that the run learned from.
        out: Result file (.json); by default `eval_<split>_<track>.json` in the run, or
            `eval_<split>_controls.json`.
        force: Replace a result.
        lpips: Measure LPIPS too, with both nets.
        names: Show the names of subjects and files in results, not salted hashes.
    """

    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Config | None = None
    split: str = "test"
    subjects: str = ""
    allow_overlap: bool = False
    out: str = ""
    force: bool = False
    lpips: bool = False
    names: bool = False

    def check(self) -> None:
        """Asks for a split that there is.

        Raises:
            ConfigError: If there is none of that name (E228).
        """
        if self.split not in ("train", "val", "test"):
            raise ConfigError(
                "E228", f"--split must be train, val or test, got {self.split!r}."
            )


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run and the split that it is evaluated on.

    Attributes:
        config: The run's, with what was given.
        provenance: Where the numbers come from, for the report.
        table: The split.
        pairing: The reference of each slice.
        model: The network.
        variables: Of the checkpoint, on the devices of this process.
        predict: See `evaluation.make_predict`; its method is the model's name.
        target: Result file, which may be written.
        names: What subjects and slices are called in results.
    """

    config: Config
    provenance: dict[str, Any]
    table: data.SliceTable
    pairing: data.Pairing
    model: Any
    variables: Any
    predict: evaluation.Predict
    target: Path
    names: data.Names

    def label(self, i: int) -> str:
        """What slice i is called in results."""
        return self.names.slice(self.table, i)

    @property
    def method(self) -> str:
        """Name of the model."""
        return self.config.model.name

    def measured(self) -> dict[str, Any]:
        """How it is measured: keyword arguments of the reports."""
        evaluate = self.config.evaluate
        return {
            "method": self.method,
            "scale": self.config.scale,
            "degradation": self.config.degradation,
            "border": checks.metric_border(self.config),
            "resamples": evaluate.resamples,
            "seed": evaluate.seed,
            "provenance": self.provenance,
            "names": self.names,
        }


@explained(evaluating=True)
def by_track(workdir: str, request: EvaluationRequest) -> list[EvaluationRequest]:
    """A request for each track that a run is evaluated on.

    Args:
        workdir: Folder of the run.
        request: What is asked.

    Raises:
        UserError: If data cannot be used, or a result may not be written.
    """
    folder, _, config = _configuration(workdir, request)
    if config.reference.track != "mixed":
        return [request]
    checks.check_ranges(config)
    prepared, split, what = _data(checks.place_of_data(config), folder, request)
    out = place(request.out) if request.out else folder / f"eval_{what}.json"
    requests = []
    for track in data.tracks(prepared.splits[split]):
        name = _track(ConfigDict({"reference": track}))
        target = out.with_name(f"{out.stem}_{name}{out.suffix}")
        _check_target(target, folder, force=request.force)
        given = {f"reference.{key}": value for key, value in track.items()}
        requests.append(
            dataclasses.replace(
                request, given={**request.given, **given}, out=str(target)
            )
        )
    return requests


def open_split(workdir: str, request: EvaluationRequest, name: str = "") -> Opened:
    """Opens a run and the data that it is asked to be evaluated on.

    Args:
        workdir: Folder of the run.
        request: What is asked.
        name: What the result is called after the split; by default its track.

    Raises:
        UserError: If data or checkpoint cannot be used, or the result may not be
            written.
    """
    folder, record, config = _configuration(workdir, request)
    config = checks.setup(config)
    if request.lpips:
        checks.check_lpips(config)
    name = name or _track(config)
    target = place(request.out) if request.out else None
    own_data = "data.root" not in request.given and not request.subjects
    if own_data and target is None:
        target = folder / f"eval_{request.split}_{name}.json"
    if target:
        _check_target(target, folder, force=request.force)
    run = restore(record, folder)
    prepared, split, what = _data(
        config, folder, request, companions=True if name == "controls" else None
    )
    table = prepared.splits[split]
    if not len(table):
        raise ConfigError(
            "E228",
            f"the {split} split is empty; give another --split or more subjects.",
        )
    overlap: dict[str, Any] = {"known": True}
    if prepared.key != record.get("prepared_sha256"):  # not the run's own split
        overlap = _overlap(folder, prepared, split, request)
    if target is None:
        target = folder / f"eval_{what}_{name}.json"
        _check_target(target, folder, force=request.force)
    names = data.Names(None if request.names else subjects.salt_of(folder))
    model = parts.make_model(config)
    mesh = devices.local_mesh(config.train.devices)
    variables = devices.to_local(run.variables, mesh)
    return Opened(
        config=config,
        provenance={
            "dataset": names.dataset(prepared.dataset),
            "prepared_sha256": prepared.key,
            "companions_sha256": prepared.companions,
            "files_left_out": prepared.left_out,
            "evaluated": what,
            "overlap": overlap,
            "given": _given(record, config, request),
            "config": config.name,
            "preset": config.preset,
            **_source(record, run),
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "training": trained_with(record),
            "commit": commit_id(),
            "device": devices.description(),
            "deterministic": devices.is_deterministic(),
            "versions": {"daasr_jax": daasr_jax.__version__, "jax": jax.__version__},
        },
        table=table,
        pairing=parts.make_pairing(config, table),
        model=model,
        variables=variables,
        predict=evaluation.make_predict(
            model,
            scale=config.scale,
            border=checks.metric_border(config),
            method=config.model.name,
            degradation=config.degradation,
            lpips={n: load_lpips(n) for n in SMALLEST} if request.lpips else None,
            mesh=mesh,
        ),
        target=target,
        names=names,
    )


def _configuration(
    workdir: str, request: EvaluationRequest
) -> tuple[Path, dict[str, Any], Config]:
    """Folder and record of a run, and its configuration with what was given."""
    request.check()
    folder = place(workdir)
    record = open_record(folder)
    if request.config is not None:
        check_same(record, request.config.to_dict(), folder)
    return folder, record, ConfigDict(with_given(record, dict(request.given)))


def _given(
    record: dict[str, Any], config: Config, request: EvaluationRequest
) -> dict[str, Any]:
    """What was given beside the run, with the number of subjects for their names."""
    found = changed(record["config"], config.to_dict())
    for key in found if not request.names else ():
        if key.startswith("data.subjects."):
            found[key] = f"{len(parts.names(found[key]))} subjects"
    return found


def _source(record: dict[str, Any], run: TrainedRun) -> dict[str, Any]:
    """What names the run in the report: hashes, the checkpoint, the code it is of."""
    return {
        **run.source,
        "checkpoint_rule": run.rule,
        "trained_steps": run.last_step,
        "trained_by": record.get("commits") or [record.get("commit")],
    }


def _track(config: Config) -> str:
    """The references, as the name of a result has them."""
    r = config.reference
    return (
        "aligned_contrast"
        if (r.track, r.aligned) == ("aligned", "contrast")
        else r.track
    )


def result_files(target: Path) -> tuple[Path, Path, Path]:
    """What an evaluation writes: the result, its pairs and its picture."""
    return target, target.with_suffix(".pairing.json"), target.with_suffix(".png")


def _check_target(target: Path, folder: Path, *, force: bool) -> None:
    """Asks whether a result may be written.

    Raises:
        ConfigError: For another ending (E229), a name that could be one of the run's
            own files (E254), or a result that is there already (E253).
    """
    if target.suffix != ".json":
        raise ConfigError("E229", f"--out must end in .json, got {target}.")
    inside = folder.resolve() in target.resolve().parents
    if inside and not re.fullmatch(r"eval_[^/]*", target.name):
        raise ConfigError(
            "E254",
            f"--out={target} lies in the run, where results begin with eval_: "
            f"its other files are the run's own; give {target.parent}/eval_NAME.json.",
        )
    for path in result_files(target):
        if path.exists() and not force:
            raise ConfigError(
                "E253",
                f"{path} is there already; give --force to replace it, or another "
                "--out.",
            )


def _data(
    config: Config,
    folder: Path,
    request: EvaluationRequest,
    *,
    companions: bool | None = None,
) -> tuple[data.PreparedSet, str, str]:
    """The data that are meant: `(prepared, split of it, what to call it)`.

    The run's own split is looked for first, by the names in its `split.json`. Where
    the data root that was given has none of it, or other voxels, it is other data:
    then all its subjects are evaluated. It is called by its folder with `--names`, else
    by a salted hash of that.
    """
    settings = parts.data_settings(config)
    if companions is not None:
        settings = dataclasses.replace(settings, companions=companions)
    split = folder / subjects.SPLIT
    unnamed: dict[str, Any] = {f"{s}_subjects": () for s in ("train", "val", "test")}
    own = settings
    if split.exists():
        own = dataclasses.replace(settings, split_file=str(split), **unnamed)
    check = jax.process_index() == 0
    chosen = parts.names(request.subjects)
    if "data.root" not in request.given and not chosen:
        return data.prepare(own, check=check), request.split, request.split
    if not chosen:
        try:
            prepared = data.prepare(own, check=check)
        except ConfigError as error:
            if error.code != "E203":
                raise
        else:
            if subjects.is_own(folder, prepared, request.split):
                return prepared, request.split, request.split
    unnamed["test_subjects"] = chosen
    whole = dataclasses.replace(settings, whole="test", split_file="", **unnamed)
    prepared = data.prepare(whole, check=check)
    name = "subjects" if chosen else Path(settings.root).name or "data"
    log.info("all %d slices are evaluated, of %s", len(prepared.splits["test"]), name)
    if not chosen and not request.names:
        name = f"data-{salted(name, subjects.salt_of(folder))[:8]}"
    return prepared, "test", _in_file_names(name)


def _in_file_names(name: str) -> str:
    """A folder's name as a part of a file's: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]", "_", name)


def _overlap(
    folder: Path, prepared: data.PreparedSet, split: str, request: EvaluationRequest
) -> dict[str, Any]:
    """Who was evaluated of those that the run learned from, for the report.

    Raises:
        DataError: If anybody was and it was not asked for (E341).
    """
    seen = subjects.read_seen(folder)
    if seen is None:
        log.warning(
            "%s does not tell whom it was trained on: no overlap is seen", folder
        )
        return {"known": False}
    found = subjects.overlap(seen, prepared, split)
    if found and not request.allow_overlap and split not in ("train", "val"):
        raise subjects.refuse(found, folder)
    return {"known": True, **found}
