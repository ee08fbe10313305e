"""The page of a visit from what its parts wrote: `gpu.md` and `gpu.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import stage

POINTS = 200  # of a curve that are kept
CONTROLS = ("black", "stranger", "neighbour", "contrast", "shuffled", "noisy", "self")
NAMES = {
    "fast": "DAASR `fast`",
    "paper": "DAASR `paper`",
    "no_reference": "DAASR `fast` without SAT and pixels: no reference",
    "no_pixels": "DAASR `fast` without the reference's pixels",
    "shared_query": "DAASR `fast`, search and gate as one, no pixels",
    "edsr": "EDSR: no reference",
}


def make(out: Path, note: Path | None = None) -> str:
    """Writes the page and the numbers, and returns the page.

    Args:
        out: Folder of the results; what is missing there is said to be not run.
        note: Markdown that ends the page.
    """
    found = {p.stem: json.loads(p.read_text()) for p in sorted(out.glob("*.json"))}
    found.pop("gpu", None)
    machine = found.get("machine", {})
    versions = machine.get("versions", {})
    lines = [
        "# A visit to a GPU",
        "",
        f"`{machine.get('command', 'not known')}`",
        "",
        f"{machine.get('card', 'not known')} (name, driver, memory); "
        f"{machine.get('cores')} processor cores; Python {machine.get('python')}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + f"; commit {machine.get('commit', 'not known')[:12]}.",
        "",
        *_check(found),
        *_match(found),
        *_step(found),
        *_train(found),
        *_became(found),
    ]
    text = "\n".join(lines) + "\n"
    text += "\n" + note.read_text(encoding="utf-8") if note else ""
    (out / "gpu.md").write_text(text, encoding="utf-8")
    for one in found.values():  # a curve that can be drawn is enough
        if "curve" in one:
            one["curve"] = one["curve"][:: max(1, len(one["curve"]) // POINTS)]
    stage.write(out / "gpu.json", found)
    return text


def _check(found: dict[str, Any]) -> list[str]:
    result = found.get("check")
    lines = ["## Tests marked `gpu`", ""]
    if not result:
        return [*lines, "Not run.", ""]
    counts = ", ".join(f"{n} {k.lower()}" for k, n in result["outcomes"].items())
    lines.append(f"{counts or 'none ended'} in {result['seconds']:.0f} s.")
    if result.get("not_ended"):
        lines[-1] += f" {result['not_ended']} had not ended then, and are not shown."
    lines += ["", *(f"- {_plain(x)}" for x in result["not_passed"])]
    return [*lines, *(f"- {_plain(x)}" for x in result["measured"]), ""]


def _match(found: dict[str, Any]) -> list[str]:
    parts = [found[f"match_{p}"] for p in ("jax", "torch") if f"match_{p}" in found]
    lines = ["## Patch search", ""]
    if not parts:
        return [*lines, "Not run.", ""]
    ceilings = parts[0].get("ceilings")
    lines.append(
        "One image, 64 features, 3x3 patches, float32, as many keys as queries: "
        "search, transfer and score. Median of the repeats [least, most]."
    )
    if ceilings:
        lines.append(
            f"This device reaches {ceilings['float32_tflops']:.0f} TFLOP/s in float32, "
            f"{ceilings['tensorfloat32_tflops']:.0f} in TF32, "
            f"{ceilings['bfloat16_tflops']:.0f} in bfloat16 on a square product, and "
            f"{ceilings['memory_gb_per_s']:.0f} GB/s on a copy. The floor is the time "
            "of the products of the search alone, in float32."
        )
    lines += [
        "",
        "| queries | mode | peer | ms | times torch | of the floor | MiB of work |",
        "|--:|---|---|--:|--:|--:|--:|",
    ]
    rows = [r for part in parts for r in part["rows"]]
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
        share = f"{100 * row['of_floor']:.0f} %" if "of_floor" in row else "-"
        work = f"{row['work_mib']:,.0f}" if "work_mib" in row else "-"
        times = f"{against / row['ms']:.2f}" if against else "-"
        lines.append(f"{head}{_times(row)} | {times} | {share} | {work} |")
    return [*lines, ""]


def _step(found: dict[str, Any]) -> list[str]:
    parts = [found[f"step_{p}"] for p in ("jax", "torch") if f"step_{p}" in found]
    lines = ["## One training step", ""]
    if not parts:
        return [*lines, "Not run.", ""]
    first = parts[0]
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
    rows = [r for part in parts for r in part["rows"]]
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
    if "trace" in first:
        trace = first["trace"]
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


def _train(found: dict[str, Any]) -> list[str]:
    rows = [v for k, v in found.items() if k.startswith("train_")]
    lines = ["## Networks trained in minutes", ""]
    if not rows:
        return [*lines, "Not run.", ""]
    how = rows[0]["how"]
    lines += [
        f"Batch {how['batch_size']}, LR crop {how['crop']}, mixed references "
        f"({', '.join(f'{k} {v:g}' for k, v in how['shares'].items())}), L1 terms of "
        "Eq. 14, Adam, a cosine to zero at the end of the time. One set of weights for "
        "all columns. PSNR in dB, mean over slices. `self` is the target as its own "
        "reference: an upper bound, no result.",
    ]
    loader = [r.get("loader_images_per_s_of_a_process", 0.0) for r in rows]
    if all(loader):
        lines[-1] += (
            " One process of the loader makes "
            f"{min(loader):,.0f} to {max(loader):,.0f} images/s beside the others' "
            "compilation."
        )
    datasets = sorted({d for r in rows for d in r.get("controls", {})})
    for dataset in datasets:
        own = [r for r in rows if dataset in r.get("controls", {})]
        one = own[0]["controls"][dataset]
        lines += [
            "",
            f"### {dataset}: {one['n_slices']} slices of {one['n_subjects']} subjects",
            "",
            "| scale | network | seed | steps | minutes | images/s | bicubic | "
            + " | ".join(CONTROLS)
            + " | neighbour - black, dB [95 % over subjects] | stranger - black |",
            "|--:|---|--:|--:|--:|--:|--:|" + "--:|" * len(CONTROLS) + "---|---|",
        ]
        for row in sorted(own, key=lambda r: (-r["scale"], r["row"], r["seed"])):
            report = row["controls"][dataset]
            cells = [
                f"x{row['scale']}",
                NAMES[row["row"]],
                str(row["seed"]),
                f"{row['steps']:,}",
                f"{row['train_seconds'] / 60:.1f}",
                f"{row['images_per_s']:,.0f}",
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
    left = {k: v for k, v in found.get("became", {}).items() if v != "done"}
    if not left:
        return ["Nothing was left out."]
    return ["Left out or not done:", "", *(f"- {k}: {v}" for k, v in left.items())]


def _times(row: dict[str, Any]) -> str:
    return f"{row['ms']:,.2f} [{row['min_ms']:,.2f}, {row['max_ms']:,.2f}]"


def _plain(text: str, most: int = 300) -> str:
    return text.replace("|", "/").replace("`", "'")[:most]
