"""Training runs: the plan through the loop, validated, recorded and saved."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from daasr_jax import data
from daasr_jax.errors import unwritable
from daasr_jax.evaluation import predict as evaluation
from daasr_jax.evaluation.controls import black, evenly_spaced, itself, uses_reference
from daasr_jax.evaluation.controls_scores import control_scores, with_identity
from daasr_jax.experiment import checks, parts
from daasr_jax.experiment.batch import lay_out
from daasr_jax.experiment.begun import check_new
from daasr_jax.experiment.places import run_folder
from daasr_jax.experiment.plan import Plan, make_plan
from daasr_jax.experiment.record import read_record, record_config
from daasr_jax.experiment.subjects import changed_files, record_subjects, salt_of
from daasr_jax.files import write_atomically
from daasr_jax.runtime import devices
from daasr_jax.runtime.claim import alone
from daasr_jax.runtime.failures import explained
from daasr_jax.runtime.stopping import StopRequest
from daasr_jax.training import disk, loop
from daasr_jax.training.checkpoints import Checkpoints
from daasr_jax.training.state import TrainState, generator_variables
from daasr_jax.training.writers import NullWriter, RunWriter
from daasr_jax.weights.lpips import load_lpips

log = logging.getLogger("daasr_jax")

CONTROLLED = 8  # validation slices, at most, that are restored with other references

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows


@explained()
def train_run(
    config: Config,
    workdir: str | None = None,
    *,
    names: bool = False,
    allow_change: bool = False,
) -> None:
    """Trains what the configuration says into `workdir`, resuming where it left off.

    Args:
        config: The configuration.
        workdir: Folder of the run; by default `runs/<name>_<preset>`.
        names: Write the names of subjects into the run, not salted hashes.
        allow_change: Go on with settings other than those the run began with.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    with StopRequest() as stop:
        folder = run_folder(config, workdir)
        config = checks.setup(config)
        _make_folder(folder)
        rule, first = checks.best_rule(config)
        with (
            alone(folder),
            contextlib.closing(
                Checkpoints(folder, best_by=rule, best_from=first)
            ) as checkpoints,
        ):
            _train(
                config,
                folder,
                checkpoints,
                stop,
                names=names,
                allow_change=allow_change,
            )


def _train(
    config: Config,
    folder: Path,
    checkpoints: Checkpoints,
    stop: StopRequest,
    *,
    names: bool,
    allow_change: bool,
) -> None:
    newest = checkpoints.latest()
    begun = newest is not None
    layout = lay_out(config, read_record(folder).get("batch") if begun else None)
    if config.train.batch_per_device:
        log.info("a batch of %s", layout.words)
    log.info("the run lies in %s", folder)
    plan = make_plan(config, layout, begun=begun)
    settings = plan.settings
    if not begun:
        saves = (settings.validate_every, settings.checkpoint_every, settings.steps)
        check_new(folder, min(n for n in saves if n))
    disk.require(folder, plan.state)
    given = config.to_dict()
    record_config(
        given,
        folder,
        plan.inputs,
        begun=begun,
        ended=newest is not None and newest >= settings.steps,
        allow=allow_change,
        changed_files=changed_files(folder, plan.prepared) if begun else (),
    )
    if jax.process_index() == 0:
        record_subjects(plan.prepared, folder, names=names)
    log.info(
        "%s x%d, %s parameters, %d steps of %d (epoch: %d steps), %s",
        plan.name,
        plan.scale,
        f"{sum(x.size for x in jax.tree.leaves(plan.state.gen)):,}",
        settings.steps,
        settings.batch_size,
        settings.steps_per_epoch,
        devices.description(),
    )
    loop.train(
        plan.step_fn,
        plan.state,
        plan.batches,
        mesh=plan.mesh,
        settings=settings,
        checkpoints=checkpoints,
        writer=lambda start: (
            RunWriter(folder, start_step=start)
            if jax.process_index() == 0
            else NullWriter()
        ),
        validate=make_validation(config, plan.prepared.splits["val"]),
        stop=stop,
        blame=lambda steps: record_blame(plan, steps, folder, names=names),
    )


def record_blame(plan: Plan, steps: range, folder: Path, *, names: bool) -> None:
    """Writes what the batches of a row of bad updates were made of.

    The file is `not_finite.json`: step -> the target of each sample and its references.

    Args:
        plan: The run.
        steps: Of the updates.
        folder: Of the run.
        names: Show the names of slices, not salted hashes.
    """
    if jax.process_index():
        return
    table, path = plan.prepared.splits["train"], folder / "not_finite.json"
    label = functools.partial(
        data.Names(None if names else salt_of(folder)).slice, table
    )
    found = {
        str(step): [
            {"slice": label(target), "references": [label(k) for k in references]}
            for target, references in plan.samples(step)
        ]
        for step in steps
    }
    try:
        write_atomically(path, json.dumps(found, indent=1))
    except OSError as error:  # the run goes on, or ends with its own error
        log.warning("%s cannot be written: %s", path, error.strerror)
    else:
        log.warning("the samples of steps %d to %d: %s", steps[0], steps[-1], path)


def make_validation(config: Config, table: data.SliceTable) -> loop.Validate | None:
    """Scores of a state on full validation slices, None where there are none.

    Of a network that takes a reference also `control_scores`, of a few slices.
    """
    if not len(table):
        log.warning(
            "no validation split: no best checkpoint is chosen, the last one counts"
        )
        return None
    model, scale, method = parts.make_model(config), config.scale, config.model.name
    mesh = devices.local_mesh(config.train.devices)
    predict = evaluation.make_predict(
        model,
        scale=scale,
        border=checks.metric_border(config),
        method=method,
        degradation=config.degradation,
        lpips={"alex": load_lpips("alex")}
        if checks.best_rule(config)[0] == "lpips"
        else None,
        mesh=mesh,
    )
    pairing = parts.make_pairing(config, table)
    few = evenly_spaced(len(table), CONTROLLED)
    used: list[bool] = []  # found by the first validation

    @explained(evaluating=True)
    def validate(state: TrainState, beat: Callable[[], None]) -> dict[str, float]:
        variables = devices.to_local(generator_variables(state), mesh)
        if not used:
            used.append(uses_reference(model, variables, scale=scale))

        def rows(number: int, **kwargs: Any) -> list[evaluation.Prediction]:
            found = evaluation.run_split(
                predict, variables, table, pairing, scale=scale, **kwargs
            )
            return evaluation.of_all_processes(
                map(with_identity, _heeded(found, number, beat)), number
            )

        found = rows(len(table))
        scores = evaluation.mean_scores(found, method)
        if not used[0]:
            return scores
        answer, none = (
            rows(len(few), positions=few, images=images)
            for images in (itself(table, pairing.count), black(table, pairing.count))
        )
        return scores | control_scores([found[i] for i in few], none, answer, method)

    return validate


def _heeded(
    rows: Iterator[evaluation.Prediction], number: int, beat: Callable[[], None]
) -> Iterator[evaluation.Prediction]:
    """The rows of this process, with a beat for each of the longest share of any."""
    share = -(-number // jax.process_count())
    for row in rows:
        beat()
        share -= 1
        yield row
    for _ in range(share):
        beat()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(f"--workdir={folder}", error) from None
