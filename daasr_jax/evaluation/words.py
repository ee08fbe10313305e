"""What a result says of its references and of the run, in words."""

from __future__ import annotations

from typing import Any


def reference_words(protocol: dict[str, Any]) -> str:
    """The references of a result, such as `aligned reference (neighbour, 4.0 mm)`."""
    count = protocol.get("count", 1)
    text = f"{protocol['track']} reference" if count == 1 else ""
    text = text or f"{count} {protocol['track']} references"
    if not protocol["aligned"]:
        return text
    how = protocol.get("contrast_by")
    if distance := protocol.get("distance_mm"):
        how = f"{distance:.1f} mm"
    return f"{text} ({protocol['aligned']}{', ' if how else ''}{how or ''})"


def perceptual_words(perceptual: dict[str, Any]) -> str:
    """What the perceptual term was made of, in the words of log, record and table."""
    if perceptual["network"] == "none":
        return "perceptual term off"
    text = f"perceptual term by {perceptual['source']}"
    if "stands_in_for" in perceptual:
        text += f", which STANDS IN for {perceptual['stands_in_for']}"
    return text


def describe_training(report: dict[str, Any]) -> str:
    """What the run was trained with beyond L1 and its given rates, in one line."""
    trained = report["training"]
    if not trained:
        return "unknown: no config.json beside the checkpoints"
    start = trained.get("start") or {}
    if "converted" in start and not report.get("checkpoint_step"):
        return f"elsewhere: {start['converted']}, sha256 {start['sha256'][:12]}"
    text, adversarial = perceptual_words(trained["perceptual"]), trained["adversarial"]
    off = adversarial["objective"] == "none"
    text += f"; adversarial term {'off' if off else adversarial['objective']}"
    if changes := trained.get("changes"):
        text += f"; {len(changes)} settings CHANGED on the way"
    batch = trained.get("batch") or {"rates_times": 1}
    if batch["rates_times"] == 1:
        return text
    return f"{text}; batch {batch['images']}, rates times {batch['rates_times']:.4g}"


def describe_run(report: dict[str, Any]) -> dict[str, str]:
    """What stands under the table: how the run was trained and which step it is.

    Args:
        report: From `make_report`, with the provenance of an evaluation.

    Returns:
        Title -> one line.
    """
    rule = report["checkpoint_rule"]
    by = "the last one" if rule == "last" else f"the best {rule.upper()} of validation"
    lines = {
        "trained": describe_training(report),
        "checkpoint": f"step {report['checkpoint_step']} of "
        f"{report['trained_steps']}, {by}",
    }
    if left_out := report.get("files_left_out"):
        lines["left out"] = f"{left_out} files that cannot be used (data.skip_bad)"
    overlap = report["overlap"]
    learned = [
        f"{n['subjects']} subjects of {k}" for k, n in overlap.items() if k != "known"
    ]
    if not overlap["known"]:
        lines["overlap"] = "UNKNOWN: nothing tells whom the run was trained on"
    elif learned:
        lines["overlap"] = f"the run LEARNED FROM {', '.join(learned)} evaluated here"
    return lines
