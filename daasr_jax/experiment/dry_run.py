"""What a training run would need, without training: `daasr_jax.train --dry_run`."""

from __future__ import annotations

import itertools
import time
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from daasr_jax.experiment import checks
from daasr_jax.experiment.batch import lay_out
from daasr_jax.experiment.begun import has_checkpoints
from daasr_jax.experiment.places import run_folder
from daasr_jax.experiment.plan import Plan, make_plan
from daasr_jax.experiment.record import read_record
from daasr_jax.runtime import devices
from daasr_jax.runtime.console import console
from daasr_jax.runtime.failures import explained, reading
from daasr_jax.training.progress import clock
from daasr_jax.training.step import Step

Config = Any  # an ml_collections.ConfigDict, whose attributes no checker knows

TIMED = 3  # steps, after one that is not


def measure(step: Step, state: Any, batches: Any, mesh: Mesh) -> dict[str, float]:
    """Compiles the step and makes a few, whose results are dropped.

    Args:
        step: The per-device step.
        state: Initial train state; not changed.
        batches: Of this process.
        mesh: Devices.

    Returns:
        `compile_seconds`; `step_seconds`; in bytes on each device `state_bytes` (what
        goes into the step), `work_bytes` (what it needs besides) and `limit_bytes`
        (what there is, 0 where the device does not tell).
    """
    state = devices.replicate(state, mesh)
    following = list(itertools.islice(devices.ahead(batches, mesh), TIMED + 1))
    following += following[-1:] * (TIMED + 1 - len(following))
    begin = time.monotonic()
    run: Any = devices.compile_step(step, mesh)
    compiled = run.func.lower(*run.args, state, following[0]).compile()
    compile_seconds = time.monotonic() - begin
    memory = compiled.memory_analysis()
    begin = 0.0
    for i, batch in enumerate(following):
        state, metrics = compiled(*run.args, state, batch)
        if i == 0 or jax.default_backend() == "cpu":
            jax.block_until_ready(metrics)
        if i == 0:
            begin = time.monotonic()
    jax.block_until_ready(state)
    seconds = (time.monotonic() - begin) / TIMED
    given = memory.argument_size_in_bytes
    total = given + memory.output_size_in_bytes - memory.alias_size_in_bytes
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return {
        "compile_seconds": compile_seconds,
        "step_seconds": seconds,
        "state_bytes": given,
        "work_bytes": total - given + memory.temp_size_in_bytes,
        "limit_bytes": limit,
    }


def show(plan: Plan, measured: dict[str, float], device: str) -> None:
    """Prints the table.

    Args:
        plan: The run.
        measured: From `measure`.
        device: Description of the devices.
    """
    settings, used = plan.settings, plan.mesh.size
    seconds = measured["step_seconds"]
    need = measured["state_bytes"] + measured["work_bytes"]
    memory = f"{_mib(need)} of a device: {_mib(measured['state_bytes'])} state and "
    memory += f"batch, {_mib(measured['work_bytes'])} work"
    if measured["limit_bytes"]:
        memory += f"; it has {_mib(measured['limit_bytes'])}"
    slices = ", ".join(f"{k} {len(v)} slices" for k, v in plan.prepared.splits.items())
    parameters = sum(x.size for x in jax.tree.leaves(plan.state.gen))
    rows = {
        "model": f"{plan.name} x{plan.scale}, {parameters:,} parameters",
        "data": f"{plan.prepared.dataset}: {slices}",
        "devices": f"{used} of the {jax.device_count()} of {jax.process_count()} "
        f"process(es), {device}",
        "batch": plan.layout.words,
        "steps": f"{settings.steps:,} ({settings.steps_per_epoch:,} an epoch)",
        "memory": memory,
        "compilation": f"{measured['compile_seconds']:.0f} s",
        "speed": f"{settings.batch_size / seconds:.1f} images/s ({TIMED} steps)",
        "training": f"about {clock(settings.steps * seconds)}, without validation",
    }
    table = Table(
        show_header=False,
        title="dry run: nothing was trained, no run was written",
        caption="the prepared data and the compiled programs may stay in the cache",
    )
    for name, text in rows.items():
        table.add_row(name, text)
    console(width=88).print(table)


def _mib(number: float) -> str:
    return f"{number / 2**20:,.0f} MiB"


@explained()
def dry_run(config: Config, workdir: str | None = None) -> None:
    """Reads and checks the data, compiles the step, times it and prints what it needs.

    Args:
        config: The configuration.
        workdir: Folder of the run, whose batch is kept where it has begun.

    Raises:
        UserError: For anything a user can mend, see `daasr_jax.errors`.
    """
    config = checks.setup(config)
    folder = run_folder(config, workdir)
    begun = has_checkpoints(folder)
    layout = lay_out(config, read_record(folder).get("batch") if begun else None)
    plan = make_plan(config, layout, begun=begun)
    batches = reading(plan.batches(0))
    measured = measure(plan.step_fn, plan.state, batches, plan.mesh)
    if jax.process_index() == 0:
        show(plan, measured, devices.description())
