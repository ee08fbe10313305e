"""The page beside a result: its slices, and where each patch came from.

One file that needs nothing else: no network, no font, no other script.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import zlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

LIMIT = 20 * 2**20  # bytes of the page
# Forms of the pictures, from the best: WebP without loss, then of less quality.
_QUALITIES = (None, 92, 80, 60, 40)
_ENOUGH = 2**22
_BRIGHTEST = 99.9  # per cent of the voxels that are not cut off in the pictures


@dataclasses.dataclass(frozen=True)
class Views:
    """What the page shows, S slices in the range of training.

    Attributes:
        lr: (S, h, w) float32.
        sr: (S, sh, sw) float32.
        references: (S, r, sh, sw) float32, or None.
        confidence: (S, h, w) float32, or None.
        index: (S, h, w) int32, P, row-major in the cells of the references, or None.
        hr: (S, sh, sw) float32 that `lr` was made from, in a simulation; else None.
        names: Of the references; one list of r for all slices, or one for each slice.
        spacing: Sides of an output pixel, of rows and columns.
        unit: Of `spacing`; `pixels` where they are not known.
        placed: Whether the references lie on the grid of the result.
        low, top: What 0 and 1 are in the unit of the scan.
        telling: C tells a reference of use from one of none. Else its picture is not
            stretched, and says so.
    """

    lr: np.ndarray
    sr: np.ndarray
    references: np.ndarray | None
    confidence: np.ndarray | None
    index: np.ndarray | None
    names: Sequence[Any]
    spacing: tuple[float, float]
    unit: str = "mm"
    placed: bool = True
    low: float = 0.0
    top: float = 1.0
    hr: np.ndarray | None = None
    telling: bool = True


def make_page(
    views: Views,
    *,
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    limit: int = LIMIT,
) -> str:
    """The text of the page.

    The pictures have 8 bits. Where they would be larger than `limit`, their quality is
    lowered, and then slices are left out, evenly; the page says so.

    Args:
        views: What it shows.
        title, subtitle: In its head.
        facts: What was done: names and words.
        warnings: What the user should know, each a sentence.
        limit: Bytes.
    """
    slices, height, width = views.lr.shape
    shades = _shades(views)
    chosen, quality = _chosen(views, shades, limit)
    told = list(facts)
    if quality is not None or len(chosen) < slices:
        words = f"{len(chosen)} of {slices} slices"
        words += f", WebP of quality {quality}" if quality is not None else ""
        told.append(
            ("on this page", f"{words}, so that it stays below {limit >> 20} MiB")
        )
    white = 255 * shades.white / shades.bright
    content = {
        "h": height,
        "w": width,
        "scale": views.sr.shape[1] // height,
        "total": slices,
        "first": int(np.argmin(np.abs(chosen - slices // 2))),
        "mm": list(views.spacing),
        "unit": views.unit,
        "placed": views.placed,
        "simulated": views.hr is not None,
        "low": views.low,
        "high": views.low + shades.bright * (views.top - views.low),
        "level": round(white / 2),
        "window": max(8, round(white)),
        "references": None if views.references is None else _names(views, 0),
        "confidence": None if views.confidence is None else shades.least,
        "telling": views.telling,
        "slices": [_slice(views, shades, i, quality) for i in chosen.tolist()],
    }
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "warnings": "".join(
            f'<p class="warning">{html.escape(text)}</p>' for text in warnings
        ),
        "facts": "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
            for name, text in told
        ),
        "data": json.dumps(content).replace("<", "\\u003c"),
    }
    text = (files("daasr_jax.enhancement") / "page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], text)


@dataclasses.dataclass(frozen=True)
class _Shades:
    """How values become shades.

    Attributes:
        bright: The lightest of input and output, in the range of training.
        white: Nearly the brightest of the output's tissue, likewise.
        tops: The lightest of each reference, which is shown as bright as the output.
        least: C that is the darkest.
    """

    bright: float
    white: float
    tops: list[float]
    least: float


def _shades(views: Views) -> _Shades:
    bright = min(_brightest(views.sr), 1.5 * _brightest(views.lr))
    white, refs = _white(views.sr), views.references
    tops = [] if refs is None else [_white(x) for x in refs.swapaxes(0, 1)]
    low = 0.0
    if views.confidence is not None and views.telling:
        low = np.floor(20 * float(np.percentile(views.confidence, 1))) / 20
    least = round(float(np.clip(low, 0, 0.95)), 2)
    return _Shades(bright, white, [top * bright / white for top in tops], least)


def _white(x: np.ndarray) -> float:
    """Nearly the brightest of the tissue."""
    x = _some(x)
    tissue = x[x > 0.02 * _brightest(x)]
    return float(np.percentile(tissue, 99)) if tissue.size else 1.0


def _brightest(x: np.ndarray) -> float:
    return max(float(np.percentile(_some(x), _BRIGHTEST)), 1e-6)


def _some(x: np.ndarray) -> np.ndarray:
    """At most some millions of the values, which tell a percentile as well as all."""
    return x.reshape(-1)[:: max(1, x.size // _ENOUGH)]


def _chosen(views: Views, shades: _Shades, limit: int) -> tuple[np.ndarray, int | None]:
    """The slices that are shown, and the quality of their pictures.

    By the size of three of them.
    """
    slices = len(views.lr)
    some = sorted({slices // 4, slices // 2, 3 * slices // 4})
    largest, quality = 0, None
    for quality in _QUALITIES:
        made = [json.dumps(_slice(views, shades, i, quality)) for i in some]
        largest = 1.1 * max(map(len, made))
        if largest * slices <= limit:
            return np.arange(slices), quality
    kept = max(1, min(slices, int(limit / largest)))
    return np.unique(np.linspace(0, slices - 1, kept).round().astype(int)), quality


def _slice(
    views: Views, shades: _Shades, i: int, quality: int | None
) -> dict[str, Any]:
    """One slice as the page reads it."""
    found: dict[str, Any] = {
        "number": i + 1,
        "lr": _packed(_eight(views.lr[i], shades.bright)),
        "sr": _picture(_eight(views.sr[i], shades.bright), quality),
    }
    if views.hr is not None:
        found["hr"] = _picture(_eight(views.hr[i], shades.bright), quality)
    if views.references is not None:
        pairs = zip(views.references[i], shades.tops, strict=True)
        found["references"] = [_picture(_eight(x, t), quality) for x, t in pairs]
        found["names"] = _names(views, i)
    if views.confidence is not None:
        c = _eight(views.confidence[i] - shades.least, 1.0 - shades.least)
        found["confidence"] = _packed(c)
    if views.index is not None and views.references is not None:
        found["index"] = _packed(views.index[i].astype("<i4"))
    return found


def _eight(x: np.ndarray, top: float) -> np.ndarray:
    return (x / top * 255).round().clip(0, 255).astype(np.uint8)


def _names(views: Views, i: int) -> list[str]:
    names = views.names
    return list(names if isinstance(names[0], str) else names[i])


def _packed(x: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(x.tobytes(), 9)).decode()


def _picture(x: np.ndarray, quality: int | None) -> str:
    out = io.BytesIO()
    lossless = quality is None
    Image.fromarray(x).save(
        out, "WEBP", method=2, lossless=lossless, quality=quality or 75
    )
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
