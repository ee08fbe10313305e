"""Pictures of the report: slices with a zoomed box, error maps, curves."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

_BOX = 4  # a box is this part of the side
_CURVE_DB = 5.0  # that the curves of training span at most
_COLOURS = ("#1a237e", "#c62828", "#2e7d32", "#ef6c00", "#6a1b9a", "#00838f", "#5d4037",
            "#ad1457", "#558b2f", "#283593", "#f9a825")  # fmt: skip


def box_of(hr: np.ndarray, bicubic: np.ndarray) -> tuple[int, int, int]:
    """`(row, column, side)` of the square where bicubic errs most, so not by eye.

    Args:
        hr, bicubic: (H, W).
    """
    side = max(2, min(hr.shape) // _BOX)
    error = np.abs(hr.astype(np.float64) - bicubic)
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = (
        sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
        + sums[:-side, :-side]
    )  # fmt: skip
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row), int(column), side


def shades(image: np.ndarray, top: float) -> np.ndarray:
    """(H, W) to RGB bytes, 0 to `top` from black to white."""
    grey = (np.asarray(image, np.float64) / top * 255).round().clip(0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def heat(error: np.ndarray, top: float) -> np.ndarray:
    """(H, W) to RGB bytes, 0 to `top` by the map magma."""
    scaled = np.clip(np.asarray(error, np.float64) / top, 0, 1)
    return (colormaps["magma"](scaled)[..., :3] * 255).round().astype(np.uint8)


def zoomed(rgb: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    """The picture with the box drawn, and below it the box as wide as the picture."""
    row, column, side = box
    width = rgb.shape[1]
    inner = Image.fromarray(rgb[row : row + side, column : column + side])
    inner = inner.resize((width, width), Image.Resampling.NEAREST)
    whole = Image.fromarray(rgb.copy())
    ImageDraw.Draw(whole).rectangle(
        (column, row, column + side - 1, row + side - 1), outline=(255, 202, 40)
    )
    return np.concatenate([np.asarray(whole), np.asarray(inner)])


def picture(rgb: np.ndarray, quality: int) -> str:
    """A WebP picture as a `data:` address."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def curves(lines: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """PSNR of validation by step, as an SVG picture; empty without two points.

    Values far below the best lie on the lower edge, which is said, so that the others
    can be told apart.

    Args:
        lines: Name -> points `(step, dB)`.
    """
    points = [p for line in lines.values() for p in line
              if isinstance(p[1], int | float) and np.isfinite(p[1])]  # fmt: skip
    if len(points) < 2:
        return ""
    x, y = np.array(points, np.float64).T
    right, low, high = max(float(x.max()), 1.0), float(y.min()), float(y.max())
    high = high if high > low else low + 1
    cut = low < high - _CURVE_DB
    low = max(low, high - _CURVE_DB)
    width, height, left, foot = 640, 260, 52, 30

    def at(step: float, psnr: float) -> str:
        across = left + (width - left - 150) * step / right
        down = 10 + (height - foot - 10) * (high - max(psnr, low)) / (high - low)
        return f"{across:.1f},{down:.1f}"

    text = [f'<svg class="curves" viewBox="0 0 {width} {height}" role="img" '
            'aria-label="PSNR of validation by step" font-size="11" '
            'font-family="sans-serif">']  # fmt: skip
    for k in range(3):
        value = low + (high - low) * k / 2
        _, level = at(0, value).split(",")
        text.append(f'<line x1="{left}" x2="{width - 150}" y1="{level}" y2="{level}" '
                    'stroke="#e0e0e0"/>'
                    f'<text x="{left - 6}" y="{level}" text-anchor="end">{value:.2f}'
                    "</text>")  # fmt: skip
    for i, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        good = [p for p in line if isinstance(p[1], int | float)]
        path = " ".join(at(*p) for p in good)
        text.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                    'stroke-width="1.5"/>')  # fmt: skip
        text += [f'<circle cx="{c}" cy="{r}" r="2" fill="{colour}"/>'
                 for c, r in (at(*p).split(",") for p in good)]  # fmt: skip
        text.append(f'<text x="{width - 144}" y="{16 + 14 * i}" fill="{colour}">'
                    f"{html.escape(name)}</text>")  # fmt: skip
    told = f"; the lower edge is {low:.2f} and all below" if cut else ""
    text.append(f'<text x="{left}" y="{height - 6}">step 0 to {right:,.0f}; '
                f"PSNR of validation, dB{told}</text></svg>")  # fmt: skip
    return "".join(text)
