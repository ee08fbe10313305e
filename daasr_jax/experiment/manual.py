"""What `--help` prints: flags, examples, exit codes and every key of the configuration.

The words for a key are the comment beside it in `configs/fastmri_x4.py`; those for the
keywords of a model and for settings of the data come from the docstrings of the classes
that take them.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from typing import Any

from absl import flags

from daasr_jax.errors import DivergedError, Preempted, UserError
from daasr_jax.experiment.configuration import load, locate
from daasr_jax.experiment.installation import command

_WIDTH = 88
_BASE = "fastmri_x4"
_EXAMPLES = {
    "train": (
        ("the paper's settings, into runs/fastmri_x4_paper",
         "--config configs/fastmri_x4.py --config.data.root=DIR"),
        ("a small network on 2 CPU cores",
         "--config configs/brain_x4_small.py --config.data.root=DIR --workdir=RUN"),
        ("what it would need, without training",
         "--config configs/fastmri_x4.py:fast --config.data.root=DIR --dry_run"),
    ),
    "eval": (
        ("the test split of a run", "--workdir=RUN"),
        ("its validation split, the neighbouring slice as reference, with LPIPS",
         "--workdir=RUN --split=val --config.reference.track=aligned --lpips"),
        ("whether the network uses its reference", "--workdir=RUN --controls"),
        ("two subjects of other data",
         "--workdir=RUN --config.data.root=DIR --subjects=sub-01,sub-02"),
    ),
}  # fmt: skip


def manual(module: str, modules: list[str], config: str | None) -> str:
    """The text of `--help`.

    Args:
        module: Of the program, whose docstring begins the text.
        modules: Those whose flags it has.
        config: The configuration whose keys are shown; None for the paper's.
    """
    main = sys.modules[module]
    door = (main.__spec__.name if main.__spec__ else module).rpartition(".")[2]
    door = door if door in _EXAMPLES else "train"
    own = [f for m in modules for f in flags.FLAGS.get_flags_for_module(m)]
    parts = [
        inspect.cleandoc(main.__doc__ or ""),
        "Flags:\n" + "".join(_entry(f"--{f.name}", f.help) for f in own)
        + _entry("--config.KEY=VALUE", "A key of the configuration, see below."),
        "Examples:\n" + "".join(
            f"  # {what}\n  {command(door)} {words}\n"
            for what, words in _EXAMPLES[door]
        ),
        "Exit codes:\n" + exit_codes(),
        "Keys of the configuration, with their values there:\n"
        + _keys(config or _BASE),
    ]  # fmt: skip
    return "\n\n".join(part.rstrip() for part in parts)


def exit_codes(*, trains: bool = True) -> str:
    """The exit codes of the programs, a line each; without training fewer."""
    lines = ["  0   done", "  1   a fault of the program: please report it"]
    without = () if trains else (DivergedError, Preempted)
    for kind in UserError.__subclasses__():
        if kind in without:
            continue
        words = (kind.__doc__ or "").splitlines()[0]
        words = re.sub(r" \((exit )?code \d+\)", "", words)
        lines.append(f"  {kind.exit_code:<3} {words}")
    outside = " outside training" if trains else ""
    return "\n".join([*lines, f"  130 stopped by Ctrl-C{outside}"])


def _keys(name: str) -> str:
    try:
        config = load(name)
    except UserError as error:
        return f"  {error}"
    words = key_words(config)
    return "".join(
        _entry(f"--config.{key}={value!r}", words.get(key, ""))
        for key, value in _flat(config)
    )


def _flat(config: Any, above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in config.items():
        if hasattr(value, "items"):
            found += _flat(value, f"{above}{key}.")
        else:
            found.append((above + key, value))
    return found


def key_words(config: Any) -> dict[str, str]:
    """Key -> what it means, where that is written down.

    Args:
        config: The configuration.
    """
    from daasr_jax.data import DataSettings
    from daasr_jax.registry import MODELS, PARTS

    words = {f"data.{k}": v for k, v in _attributes(DataSettings).items()}
    model = _attributes(MODELS.get(config.model.name))
    words |= {f"model.kwargs.{k}": v for k, v in model.items()}
    for key, value in config.model.kwargs.items():
        if hasattr(value, "items"):
            words[f"model.kwargs.{key}.name"] = model.get(key, "")
            if value.name != "none":
                about = _attributes(PARTS.get(value.name))
                words |= {f"model.kwargs.{key}.{k}": v for k, v in about.items()}
    words |= _comments(locate(_BASE).read_text(encoding="utf-8"))
    same = {k: v for k, v in words.items() if k.startswith("optimiser.")}
    return {f"adversarial.{key}": text for key, text in same.items()} | words


def _attributes(kind: type) -> dict[str, str]:
    """Name -> words of the section "Attributes" of a docstring."""
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    if section is None:
        return {}
    entries = re.split(
        r"^(\w[\w, ]*): ", textwrap.dedent(section[1]), flags=re.MULTILINE
    )
    return {
        name: " ".join(words.split())
        for names, words in zip(entries[1::2], entries[2::2], strict=True)
        for name in names.split(", ")
    }


def _comments(source: str) -> dict[str, str]:
    """Key -> the comment on its line, and on lines of their own above it."""
    notes, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found: dict[str, str] = {}

    def note(key: str, line: int) -> None:
        above = []
        while (line - len(above) - 1) in alone:
            above.append(notes[line - len(above) - 1])
        text = " ".join([*reversed(above), notes.get(line, "")]).strip()
        if text:
            found[key] = text

    def walk(node: ast.expr, above: str) -> None:
        if isinstance(node, ast.Call) and node.args:
            node = node.args[0]
        if not isinstance(node, ast.Dict):
            return
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                note(f"{above}{key.value}", key.lineno)
                walk(value, f"{above}{key.value}.")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute) and node.value is not None:
                if not isinstance(node.value, ast.Call):
                    note(target.attr, node.lineno)
                walk(node.value, f"{target.attr}.")
    return found


def _entry(name: str, words: str | None) -> str:
    text = textwrap.fill(
        " ".join((words or "").split()), _WIDTH, initial_indent=" " * 6,
        subsequent_indent=" " * 6,
    )  # fmt: skip
    return f"  {name}\n{text}\n" if text else f"  {name}\n"
