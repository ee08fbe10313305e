"""The report: one HTML file with tables, curves and pictures, without network."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from daasr_jax.evaluation.tables import text
from daasr_jax.evaluation.tables.pictures import (
    box_of,
    curves,
    heat,
    picture,
    shades,
    zoomed,
)

LIMIT = 10_000_000  # bytes of the page
_QUALITIES = (85, 60, 35)
_DEVIATIONS = (
    "From our reading of the paper, whose text at hand has no formulas: the perceptual "
    "term of Eq. 13 is divided by a unit of its own, with lambda_p 0.1, and is off in "
    "small networks; the discriminator has 3x3 convolutions and 3 halvings; the "
    "channel attention of Eq. 4-5 is normalised, with a learned temperature; the "
    "search of Eq. 7-9 runs on maps decimated by the scale; the preset fast blurs the "
    "reference by the scale; the test split is the official validation folder of "
    "fastMRI, or that of the data named above; metrics leave out a border of as many "
    "pixels as the scale; Table 5's patch size is read as the LR training crop. The "
    "pages of the project, under Reading of the paper "
    "(docs/design/0001-reading-of-the-paper.md), have reasons and effects."
)
_ERROR_TOP = 0.25  # of the brightest: white in an error map


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The slices of a table or figure, restored by each of its rows.

    Attributes:
        part: Key of `cells.PARTS`.
        scale, track: Of the runs.
        rows: Label -> arrays of N slices: `hr`, `lr`, `ref`, `bicubic` and `sr`
            (N, ..), `keys`, `references` and `psnr` (N,), perhaps `confidence`,
            `index`, and `stripped_hr` and so on of fewer slices. The last two of the N
            are the worst and the best of the row by its gain over bicubic.
        base: Label of DAASR itself; empty where it is no row.
    """

    part: str
    scale: int
    track: str
    rows: Mapping[str, Mapping[str, np.ndarray]]
    base: str = ""


def make_report_page(
    records: Sequence[Mapping[str, Any]],
    *,
    pictures: Sequence[Pictures],
    viewer: str = "",
    environment: Mapping[str, str],
    limit: int = LIMIT,
) -> str:
    """The text of the page.

    Where it would be larger than `limit`, pictures lose quality, then the viewer goes,
    then the pictures; the page says so, also where its tables alone are larger.

    Args:
        records: Of tables and figures, see `experiment.reproduce_tables.table_record`.
        pictures: Of those that have some.
        viewer: Another page, shown within.
        environment: What it was made with: names and words.
        limit: Bytes.
    """
    tries = [(q, viewer, pictures, "") for q in _QUALITIES]
    tries += [
        (35, "", pictures, "The viewer is left out: the page would be too large."),
        (35, "", [], "The pictures are left out: the page would be too large."),
        (
            35,
            "",
            [],
            f"The pictures are left out, and the tables alone are larger than "
            f"the {limit / 1e6:g} MB that a report may have.",
        ),
    ]
    made = ""
    for quality, shown, some, said in tries:
        made = _page(records, some, shown, {**environment}, quality, said)
        if len(made.encode()) <= limit:
            break
    return made


def _page(
    records: Sequence[Mapping[str, Any]],
    pictures: Sequence[Pictures],
    viewer: str,
    environment: dict[str, str],
    quality: int,
    said: str,
) -> str:
    by_part = {p.part: p for p in pictures}
    body, links = [], []
    for record in records:
        anchor = record["name"].lower().replace(" ", "_")
        links.append(f'<a href="#{anchor}">{html.escape(record["name"])}</a>')
        body += [_section(record, anchor), _shown(by_part.get(anchor), quality)]
    if viewer:
        links.append('<a href="#viewer">Viewer</a>')
        body.append(
            '<h2 id="viewer">Viewer</h2><iframe title="viewer" style="width:100%;'
            f'height:48rem;border:0" srcdoc="{html.escape(viewer)}"></iframe>'
        )
    links.append('<a href="#about">Environment</a>')
    notes = list(dict.fromkeys(note for r in records for note in r["notes"]))
    notes += [said] if said else []
    protocols = [g["protocol"] for r in records for g in r["groups"]]
    facts = {**environment}
    for key in dict.fromkeys(k for p in protocols for k in p):
        values = dict.fromkeys(str(p[key]) for p in protocols if key in p)
        facts[f"convention: {key}"] = "; ".join(values)
    facts["deviations"] = _DEVIATIONS
    parts = {
        "title": "The paper's tables and figures, made again",
        "head": "".join(f'<p class="note">{_marked(n)}</p>' for n in notes),
        "links": "".join(links),
        "body": "".join(body),
        "facts": "".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
            for k, v in facts.items()
        ),
    }
    place = files("daasr_jax.evaluation.tables") / "report.html"
    whole = place.read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], whole)


def _marked(words: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(words))


def _section(record: Mapping[str, Any], anchor: str) -> str:
    out = [
        f'<h2 id="{anchor}">{html.escape(record["name"])}: '
        f"{html.escape(record['title'])}</h2>",
        f"<p><code>{html.escape(record['command'])}</code></p>",
    ]
    for group in record["groups"]:
        first, *rest = text.grid(
            group, lpips=record["lpips"], base=record["base_label"]
        )
        out.append(f"<h3>{html.escape(text.group_title(group))}</h3>")
        out.append(f"<p>{html.escape(' '.join(text.facts(group)))}</p>")
        out.append('<div class="scroll"><table><thead><tr>')
        out.append("".join(f"<th>{html.escape(x)}</th>" for x in first))
        out.append("</tr></thead><tbody>")
        for row, cells in zip(group["rows"], rest, strict=True):
            missing = "" if row.get("statistics") else ' class="missing"'
            words = "".join(f"<td>{html.escape(x)}</td>" for x in cells)
            out.append(f"<tr{missing}>{words}</tr>")
        out.append("</tbody></table></div>")
        lines = {r["label"]: r["curves"][0] for r in group["rows"] if r.get("curves")}
        out.append(curves(lines))
    return "".join(out)


def _shown(pictures: Pictures | None, quality: int) -> str:
    """The pictures of a part: slices or errors by all rows, or worst and best."""
    if pictures is None or not pictures.rows:
        return ""
    first = next(iter(pictures.rows.values()))
    number = len(first["hr"]) - 2
    head = f"x{pictures.scale}, {pictures.track} reference"
    if pictures.part.startswith("figure"):
        errors = pictures.part == "figure_5"
        what = "Error maps |SR - HR|" if errors else "Slices"
        maps = pictures.part == "figure_6"
        told = "The box is where bicubic errs most, the same for all."
        out = [f"<h3>{what}, {head}</h3><p>{told}</p>"]
        for i in range(number):
            out.append(_grid(pictures.rows, i, "", errors, maps, quality))
        if "stripped_hr" in first:
            out.append(f"<h3>{what} without skull, by the masks, {head}</h3>")
            for i in range(len(first["stripped_hr"])):
                out.append(_grid(pictures.rows, i, "stripped_", errors, False, quality))
        return "".join(out)
    label = pictures.base if pictures.base in pictures.rows else [*pictures.rows][-1]
    out = [f"<h3>Worst and best slice of {html.escape(label)} by its gain over "
           f"bicubic, {head}</h3>"]  # fmt: skip
    own = {label: pictures.rows[label]}
    out += [_grid(own, number + k, "", False, True, quality) for k in (0, 1)]
    return "".join(out)


def _grid(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    i: int,
    prefix: str,
    errors: bool,
    maps: bool,
    quality: int,
) -> str:
    """One slice by all rows, with HR and bicubic."""
    first = next(iter(rows.values()))
    hr, bicubic = (
        np.asarray(first[prefix + k][i], np.float32) for k in ("hr", "bicubic")
    )
    box, top = box_of(hr, bicubic), float(np.percentile(hr, 99.8)) or 1.0
    cells: list[tuple[str, np.ndarray]] = [("HR", shades(hr, top))]
    if not prefix and first["ref"][i].shape == hr.shape:
        cells.append((f"reference {first['references'][i]}",
                      shades(first["ref"][i], top)))  # fmt: skip

    def drawn(image: np.ndarray) -> np.ndarray:
        if not errors:
            return shades(image, top)
        return heat(np.abs(np.asarray(image, np.float32) - hr), _ERROR_TOP * top)

    score = "" if prefix else f" {first['psnr_bicubic'][i]:.2f} dB"
    cells.append((f"bicubic{score}", drawn(bicubic)))
    for label, found in rows.items():
        score = "" if prefix else f" {found['psnr'][i]:.2f} dB"
        cells.append((label + score, drawn(found[prefix + "sr"][i])))
        if maps and "confidence" in found:
            c = np.asarray(found["confidence"][i], np.float32)
            grown = np.kron(c, np.ones((hr.shape[0] // c.shape[0],) * 2))
            if grown.shape == hr.shape:
                cells.append((f"C of {label}", heat(grown, 1.0)))
    figures = "".join(
        f'<figure><img alt="{html.escape(label)}" loading="lazy" '
        f'src="{picture(zoomed(rgb, box), quality)}">'
        f"<figcaption>{html.escape(label)}</figcaption></figure>"
        for label, rgb in cells
    )
    return (
        f'<p>{html.escape(str(first["keys"][i]))}</p><div class="grid">{figures}</div>'
    )
