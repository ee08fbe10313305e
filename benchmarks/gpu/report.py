"""The page of a visit from what its parts wrote: `gpu.md` and `gpu.json`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import stage

POINTS = 200  # of a curve that are kept
PEERS = ("jax", "torch", "kernel", "torch compiled")
RATE = "loader_images_per_s_of_a_process"
CONTROLS = ("black", "stranger", "neighbour", "contrast", "shuffled", "noisy", "self")
NAMES = {
    "fast": "DAASR `fast`",
    "paper": "DAASR `paper`",
    "no_reference": "DAASR `fast` without SAT and pixels: no reference",
    "no_pixels": "DAASR `fast` without the reference's pixels",
    "shared_query": "DAASR `fast`, search and gate as one, no pixels",
    "edsr": "EDSR: no reference",
}


def make(out: Path, note: Path | None = None) -> tuple[str, dict[str, str]]:
    """Writes the page and the numbers.

    Args:
        out: Folder of the results; what is missing there is said to be not run.
        note: Markdown that ends the page.

    Returns:
        The page, and what was left out, see `left_out`.
    """
    found = {p.stem: json.loads(p.read_text()) for p in sorted(out.glob("*.json"))}
    found.pop("gpu", None)
    machine = found.get("machine", {})
    versions = machine.get("versions", {})
    made = {title: lines for title, part in SECTIONS.items() if (lines := part(found))}
    only = f": {next(iter(made)).lower()}" if len(made) == 1 else ""
    lines = [
        f"# A visit to a GPU{only}",
        "",
        f"`{machine.get('command', 'not known')}`",
        "",
        f"{machine.get('card', 'not known')} (name, driver, memory); "
        f"{machine.get('cores')} processor cores; Python {machine.get('python')}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + f"; commit {machine.get('commit', 'not known')[:12]}. JAX finds: "
        f"{machine.get('jax_devices', 'not asked')}.",
        "",
        *(line for title in made for line in (f"## {title}", "", *made[title])),
        *_not_run(made),
        *_became(found),
    ]
    text = "\n".join(lines) + "\n"
    text += "\n" + note.read_text(encoding="utf-8") if note else ""
    (out / "gpu.md").write_text(text, encoding="utf-8")
    for one in found.values():  # a curve that can be drawn is enough
        if "curve" in one:
            one["curve"] = one["curve"][:: max(1, len(one["curve"]) // POINTS)]
    stage.write(out / "gpu.json", found)
    return text, left_out(found)


def _not_run(made: Collection[str]) -> list[str]:
    """The sections that no part wrote anything for, in a line."""
    missing = [title[0].lower() + title[1:] for title in SECTIONS if title not in made]
    return [f"Not run: {', '.join(missing)}.", ""] if missing else []


def is_readable(out: Path) -> bool:
    """Whether the files of a visit have the form that this page is made from."""
    path = out / "machine.json"
    return path.is_file() and json.loads(path.read_text()).get("form") == stage.FORM


def left_out(found: dict[str, Any]) -> dict[str, str]:
    """Part -> what became of it and what of it was not run; nothing of a whole one."""
    if "became" not in found:
        return {"visit": "it left no became.json, so what was left out is not known"}
    left = {}
    for name, became in found["became"].items():
        words = [] if became == "done" else [became]
        words += _lacking(found.get(name.replace(" ", "_"), {}))
        if words:
            left[name] = "; ".join(words)
    return left


def _lacking(result: dict[str, Any]) -> list[str]:
    """What of a part was not run, or failed."""
    rows = result.get("rows", [])
    reasons = [_plain(row["not_run"], 80) for row in rows if "not_run" in row]
    words = []
    if reasons:
        why = ", ".join(dict.fromkeys(reasons))
        words.append(f"{len(reasons)} of {len(rows)} not run: {why}")
    outcomes = result.get("outcomes", {})
    bad = ["FAILED", "ERROR", *([] if "PASSED" in outcomes else ["SKIPPED"])]
    words += [f"{outcomes[name]} {name.lower()}" for name in bad if name in outcomes]
    if result.get("not_ended"):
        words.append(f"{result['not_ended']} had not ended")
    return words


def _parts(found: dict[str, Any], part: str) -> dict[str, Any]:
    """Peer -> what it wrote, in the order of `PEERS`."""
    own = {peer: found.get(f"{part}_{peer.replace(' ', '_')}") for peer in PEERS}
    return {peer: result for peer, result in own.items() if result}


def _devices(found: dict[str, Any], devices: dict[str, str]) -> list[str]:
    """Which part ran where; a warning where a card is there and was not used."""
    where: dict[str, list[str]] = {}
    for name, device in devices.items():
        where.setdefault(device, []).append(name)
    said = "; ".join(f"{_plain(k)} ({', '.join(v)})" for k, v in where.items())
    lines = [f"Ran on: {said}.", ""]
    on_cpu = [name for name, device in devices.items() if device.lower() == "cpu"]
    if on_cpu and found.get("machine", {}).get("card", "none") != "none":
        lines += [
            f"**Warning: {', '.join(on_cpu)} ran on a CPU beside the card. Those "
            "figures are not the card's.**",
            "",
        ]
    return lines


def _check(found: dict[str, Any]) -> list[str]:
    result = found.get("check")
    if not result:
        return []
    counts = ", ".join(f"{n} {k.lower()}" for k, n in result["outcomes"].items())
    if not counts:
        counts = "none ended: " + _plain(" ".join(result["end"])) + ":"
    lines = [f"{counts} in {result['seconds']:.0f} s."]
    if result.get("not_ended"):
        lines[-1] += f" {result['not_ended']} had not ended then, and are not shown."
    lines += ["", *(f"- {_plain(x)}" for x in result["not_passed"])]
    return [*lines, *(f"- {_plain(x)}" for x in result["measured"]), ""]


def _match(found: dict[str, Any]) -> list[str]:
    parts = _parts(found, "match")
    if not parts:
        return []
    lines = _devices(found, {k: v["device"] for k, v in parts.items()})
    ceilings = parts.get("jax", {}).get("ceilings")
    lines.append(
        "One image, 64 features, 3x3 patches, float32, as many keys as queries: "
        "search, transfer and score. Median of the repeats [least, most]."
    )
    if ceilings:
        lines.append(
            f"This device reaches {ceilings['float32_tflops']:.0f} TFLOP/s in float32, "
            f"{ceilings['tensorfloat32_tflops']:.0f} in TF32, "
            f"{ceilings['bfloat16_tflops']:.0f} in bfloat16 on a square product, and "
            f"{ceilings['memory_gb_per_s']:.0f} GB/s on a copy. The floor of every "
            "row is the time of the products of all patches, 2 n m 9 C operations, at "
            "the rate in bfloat16. A form that shares products among patches has fewer "
            "and may pass it."
        )
    lines += [
        "",
        "| queries | mode | peer | ms | times torch | of the floor | MiB of work |",
        "|--:|---|---|--:|--:|--:|--:|",
    ]
    rows = [r for part in parts.values() for r in part["rows"]]
    features = next(iter(parts.values()))["features"]
    base = {
        (r["queries"], r["mode"]): r["ms"]
        for name in ("torch, chunked", "torch, TTSR form")  # the second where it ran
        for r in rows
        if r["peer"] == name and "ms" in r
    }
    for row in sorted(rows, key=lambda r: (r["mode"], r["queries"], r["peer"])):
        head = f"| {row['queries']:,} | {row['mode']} | {row['peer']} | "
        if "ms" not in row:
            lines.append(f"{head}not run: {_plain(row['not_run'], 120)} | | | |")
            continue
        against = base.get((row["queries"], row["mode"]))
        share = "-"
        if ceilings:
            operations = 2 * row["queries"] ** 2 * 9 * features
            floor_ms = operations / ceilings["bfloat16_tflops"] / 1e9
            share = f"{100 * floor_ms / row['ms']:.0f} %"
        work = f"{row['work_mib']:,.0f}" if "work_mib" in row else "-"
        times = f"{against / row['ms']:.2f}" if against else "-"
        lines.append(f"{head}{_times(row)} | {times} | {share} | {work} |")
    return [*lines, ""]


def _step(found: dict[str, Any]) -> list[str]:
    parts = _parts(found, "step")
    if not parts:
        return []
    first = next(iter(parts.values()))
    lines = _devices(found, {k: v["device"] for k, v in parts.items()})
    lines += [
        f"{first['features']} features, {first['groups']} groups, batch "
        f"{first['batch']}, LR crop {first['crop']}, x{first['scale']}; L1 terms of "
        "Eq. 14, Adam, images on the device. PyTorch's line is the twin of the parity "
        "tests in the same precision (bfloat16: autocast). Memory: state and work of "
        "the compiled program; PyTorch's peak.",
        "",
        "| preset | precision | batch | recomputed | peer | ms | images/s | "
        "times torch | MiB | first call, s |",
        "|---|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    rows = [r for part in parts.values() for r in part["rows"]]
    base = {
        (*r["variant"][:2], r["variant"][3]): r["ms"]  # as JSON has a `Variant`
        for r in rows
        if r.get("peer") == "torch, eager" and "ms" in r
    }
    for row in sorted(rows, key=lambda r: [str(x) for x in r["variant"]]):
        preset, precision, remat, many, search = row["variant"]
        head = f"| {preset} | {precision} | {many * first['batch']} | "
        head += f"{'yes' if remat else 'no'} | "
        head += row.get("peer", "daasr_jax")
        head += f", search `{search}` | " if search else " | "
        if "ms" not in row:
            lines.append(f"{head}not run: {_plain(row['not_run'], 120)} | | | | |")
            continue
        against = base.get((preset, precision, many))
        times = f"{against / row['ms']:.2f}" if against else "-"
        memory = row.get("peak_mib") or row.get("state_mib", 0) + row.get("work_mib", 0)
        lines.append(
            f"{head}{_times(row)} | {row['images_per_s']:,.0f} | {times} | "
            f"{memory:,.0f} | {row.get('trace_s', 0) + row['compile_s']:.0f} |"
        )
    lines += _loader(found, rows)
    trace = parts.get("jax", {}).get("trace", {})
    if "failed" in trace:
        lines += ["", f"The trace failed: {_plain(trace['failed'])}."]
    elif trace:
        lines += [
            "",
            f"The device is busy for {trace['busy_ms']:.2f} ms of a `fast` step in "
            f"TF32, with {trace['kernels']} kinds of kernels. The largest:",
            "",
            "| kernel | ms | share |",
            "|---|--:|--:|",
            *(
                f"| `{_plain(k['name'], 70)}` | {k['ms']:.3f} | "
                f"{100 * k['share']:.0f} % |"
                for k in trace["largest"]
            ),
        ]
    if first.get("kept_before"):
        lines += ["", "The compiled programs were kept by an earlier visit."]
    return [*lines, ""]


def _loader(found: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """How many processes of the loader a step needs, where both are known."""
    rates = [v.get(RATE, 0.0) for k, v in found.items() if k.startswith("train_")]
    steps = {
        r["variant"][0]: r["images_per_s"]
        for r in rows
        if r.get("peer") == "daasr_jax" and r.get("images_per_s")
        and r["variant"][1:] == ["tensorfloat32", False, 1, ""]
    }  # fmt: skip
    if not steps or not all(rates) or not rates:
        return []
    needed = ", ".join(
        f"{rate / min(rates):.1f} for `{preset}`" for preset, rate in steps.items()
    )
    return [
        "",
        f"One process of the loader makes {min(rates):,.0f} images/s beside "
        f"compilation. A step in TF32 takes the images of {needed} processes.",
    ]


def _train(found: dict[str, Any]) -> list[str]:
    rows = [v for k, v in found.items() if k.startswith("train_")]
    if not rows:
        return []
    how = rows[0]["how"]
    lines = _devices(found, {_named(r): r["device"] for r in rows})
    lines += [
        "Size: features x groups, of EDSR x blocks. Mixed references "
        f"({', '.join(f'{k} {v:g}' for k, v in how['shares'].items())}), L1 terms of "
        "Eq. 14, Adam, a cosine to zero at the end of the time. One set of weights for "
        "all columns. PSNR in dB, mean over slices. `self` is the target as its own "
        "reference: an upper bound, no result.",
    ]
    loader = [r.get(RATE, 0.0) for r in rows]
    if all(loader):
        lines[-1] += (
            " One process of the loader makes "
            f"{min(loader):,.0f} to {max(loader):,.0f} images/s beside the others' "
            "compilation."
        )
    lines[-1] += (
        " `compiling` counts the parts of the visit that still compiled beside a "
        "training: it had fewer steps than alone."
    )
    datasets = sorted({d for r in rows for d in r.get("controls", {})})
    for dataset in datasets:
        own = [r for r in rows if dataset in r.get("controls", {})]
        counts = {
            f"{c['n_slices']} slices of {c['n_subjects']} subjects"
            for c in (row["controls"][dataset] for row in own)
        }
        lines += [
            "",
            f"### {dataset}: {', or '.join(sorted(counts))}",
            "",
            "| scale | network | size | batch | LR crop | rate | seed | steps "
            "| seconds | images/s | compiling "
            + "| bicubic | "
            + " | ".join(CONTROLS)
            + " | neighbour - black, dB [95 % over subjects] | stranger - black |",
            "|--:|---|" + "--:|" * (10 + len(CONTROLS)) + "---|---|",
        ]
        for row in sorted(own, key=_order):
            report = row["controls"][dataset]
            cells = [
                f"x{row['scale']}",
                NAMES[row["row"]],
                _size(row),
                str(row["how"]["batch_size"]),
                str(row["how"]["crop"]),
                row["options"]["learning_rate"],
                str(row["seed"]),
                f"{row['steps']:,}",
                f"{row['train_seconds']:.0f}",
                f"{row['images_per_s']:,.0f}",
                str(len(row["beside"])),
                _mean(report, "bicubic"),
                *(
                    "not used"
                    if not report["uses_reference"] and c != "black"
                    else _mean(report, c)
                    for c in CONTROLS
                ),
                *(_gain(report, c) for c in ("neighbour", "stranger")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        if not row.get("controls"):
            lines += ["", f"{NAMES[row['row']]} x{row['scale']} was stopped after step "
                      f"{row['steps']:,}, before it was evaluated."]  # fmt: skip
    return [*lines, ""]


def depth(row: str, options: Mapping[str, Any]) -> Any:
    """The groups of a network; of EDSR its blocks."""
    return options["blocks" if row == "edsr" else "groups"]


def _size(row: dict[str, Any]) -> str:
    return f"{row['options']['features']} x {depth(row['row'], row['options'])}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['row']} x{row['scale']} of {_size(row)}, seed {row['seed']}"


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return -row["scale"], -int(row["options"]["features"]), row["row"], row["seed"]


def _mean(report: dict[str, Any], name: str) -> str:
    if name not in report["methods"]:
        return "-"
    value = report["methods"][name]["psnr"]["mean"]
    return "not finite" if value is None else f"{value:.2f}"


def _gain(report: dict[str, Any], name: str) -> str:
    if not report["uses_reference"] or name not in report["minus_black"]:
        return "-"
    found = report["minus_black"][name]["psnr"]
    interval = found.get("ci95")
    if found["mean"] is None:
        return "not finite"
    text = f"{found['mean']:+.2f}"
    return f"{text} [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else text


def _became(found: dict[str, Any]) -> list[str]:
    left = left_out(found)
    if not left:
        return ["Nothing was left out."]
    return ["Left out or not done:", "", *(f"- {k}: {v}" for k, v in left.items())]


def _times(row: dict[str, Any]) -> str:
    return f"{row['ms']:,.2f} [{row['min_ms']:,.2f}, {row['max_ms']:,.2f}]"


def _plain(text: str, most: int = 300) -> str:
    return text.replace("|", "/").replace("`", "'")[:most]


SECTIONS = {
    "Tests marked `gpu`": _check,
    "Patch search": _match,
    "One training step": _step,
    "Networks trained": _train,
}
