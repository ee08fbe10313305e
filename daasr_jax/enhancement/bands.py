"""DAASR on one slice in bands of rows, for slices that memory does not hold whole.

What a band gives is what the whole slice gives: a band is computed with as many rows
around it as its layers see, each channel attention has the sums of all bands first, and
the search sees the whole reference. Maps between two steps lie in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.matching import pair_score, search, transfer
from daasr_jax.models.conv import Conv3
from daasr_jax.models.cwt import CWT, whole_gram
from daasr_jax.models.daasr import DAASR, make_group
from daasr_jax.models.data_consistency import DataConsistent
from daasr_jax.models.detail import pixel_maps
from daasr_jax.models.group import class_of
from daasr_jax.models.sat import Matching, Retrieved
from daasr_jax.models.sfe import SFE
from daasr_jax.models.tail import Tail
from daasr_jax.resampling import blur, replace_centre, upsample

# Rows of the LR slice that a step sees on either side of its own.
_SFE, _CONV, _GROUP, _TAIL = 7, 1, 2, 8
LEAST = 16  # rows of a band
# Maps of C channels: that a step holds of a window, and of the whole slice beside it.
_OF_WINDOW, _OF_SLICE, _OF_REFERENCE = 24, 6, 4


def can_band(model: Any) -> bool:
    """Whether bands are made for a network: DAASR with one search for all groups."""
    network = model.model if isinstance(model, DataConsistent) else model
    return (
        isinstance(network, DAASR)
        and (network.query, network.sfe_grid, network.sat_grid)
        == ("extractor", "lr", "lr")
        and class_of(network.align) is Matching
        and class_of(network.structure) is CWT
        and network.phases == 1
        and network.sfe_norm != "group"
    )


def rows_within(memory: int, lr: tuple[int, ...], refs: int, features: int) -> int:
    """Rows of a band for which a memory has room, beside the maps of the whole slice.

    Args:
        memory: Bytes.
        lr: Height and width of the LR slice.
        refs: Number of references of the size of the result.
        features: Channels C.
    """
    kept, row = _bytes(lr, refs, features)
    return max(LEAST, int((memory - kept) // row) - 2 * _TAIL)


def least_bytes(lr: tuple[int, ...], refs: int, features: int) -> int:
    """Bytes that bands of `LEAST` rows take, about; arguments as of `rows_within`."""
    kept, row = _bytes(lr, refs, features)
    return kept + row * min(lr[0], LEAST + 2 * _TAIL)


def _bytes(lr: tuple[int, ...], refs: int, features: int) -> tuple[int, int]:
    """Bytes of the maps of the whole slice, and of each row of a window."""
    row = 4 * features * lr[1]
    kept = (_OF_SLICE + _OF_REFERENCE * refs) * row * lr[0]
    return kept, _OF_WINDOW * row


class Bands:
    """A network on one slice, in bands.

    Args:
        model: One that `can_band`.
        variables: Its weights.
        rows: Of a band.
    """

    def __init__(self, model: Any, variables: Any, rows: int) -> None:
        self.rows = rows
        self._centre = isinstance(model, DataConsistent)
        self._model: Any = model.model if self._centre else model
        self._variables = variables
        self._height = 0
        m = self._model
        c = {"features": m.features, "dtype": m.dtype}
        align = m.align(**c)
        patch = align.patch
        self._around = patch // 2  # rows of a patch on either side of its middle
        sfe = SFE(scale=m.scale, grid="lr", norm=m.sfe_norm, **c)
        tail = Tail(scale=m.scale, detail=m.detail, **c)
        self._sfe = jax.jit(lambda v, x: sfe.apply(v, x, train=False))
        self._shallow = jax.jit(Conv3(**c).apply)
        form = {"patch": patch, "method": align.search}
        self._search = jax.jit(lambda k, q: search(q, k, **form))
        self._near = jax.jit(
            lambda k, q, row: search(q, k, within=align.within, top=row[0, 0], **form)
        )
        self._within = align.within
        self._score = jax.jit(lambda k, q, p: pair_score(q, k, p, patch=patch))
        self._transfer = jax.jit(lambda v, p: transfer(v, p, patch=patch))
        self._tail = jax.jit(tail.apply)
        self._groups = [_steps(make_group(m, i)) for i in range(m.groups)]

    def __call__(
        self, lr: np.ndarray, ref: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(sr (sh, sw), C (h, w), P (h, w))` of `lr (h, w)` and `ref (r, H, W)`."""
        m, params = self._model, self._variables["params"]
        image = np.asarray(lr, np.float32)[None, ..., None]
        bicubic = np.asarray(upsample(jnp.asarray(image), m.scale))
        self._height = image.shape[1]
        t, pixels, c, p = self._retrieve(bicubic, ref)
        f = f0 = self._over(self._shallow, _CONV, {"params": params["shallow"]}, image)
        for i in range(m.groups):
            f = self._group(i, f, t, c)
        names = ("body_out", "detail", "up0", "up1", "out")
        own = {"params": {name: params[name] for name in names if name in params}}
        sr = self._over(self._tail, _TAIL, own, f, f0, bicubic, pixels, c)
        if self._centre:
            sr = replace_centre(jnp.asarray(sr), jnp.asarray(image), m.scale)
            sr = np.asarray(sr)
        return sr[0, ..., 0], c[0, ..., 0], p[0]

    def _retrieve(self, bicubic: np.ndarray, ref: np.ndarray) -> tuple:
        """T, the pixels for `detail` or None, C and P of the whole slice."""
        m = self._model
        found = self._variables.get("batch_stats", {})
        own = {"params": self._variables["params"]["sfe"]}
        if "sfe" in found:
            own["batch_stats"] = found["sfe"]
        query = self._over(self._sfe, _SFE, own, bicubic)
        keys, values = [], []
        for one in ref:
            image = jnp.asarray(one, jnp.float32)[None, ..., None]
            self._height = image.shape[1] // m.scale
            blurred = blur(image, m.blur_factor or m.scale)
            there = np.float32(one.any())
            keys.append(self._over(self._sfe, _SFE, own, np.asarray(blurred)) * there)
            value = [self._over(self._sfe, _SFE, own, np.asarray(image))]
            if m.detail is not None:
                value.append(np.asarray(pixel_maps(image, blurred, m.scale)))
            values.append(np.concatenate(value, axis=-1) * there)
        key, value = (jnp.asarray(np.stack(x, axis=1)) for x in (keys, values))
        del keys, values
        self._height = query.shape[1]
        if self._within and key.shape[-3:-1] == query.shape[1:3]:
            row = np.arange(self._height, dtype=np.int32)[None]
            p = self._over(self._near, self._around, key, query, row)
        else:
            p = self._over(self._search, self._around, key, query)
        c = self._over(self._score, self._around, key, query, p)
        t = self._over(self._transfer, self._around, value, p)
        if m.detail is None:
            return t, None, c, p
        return t[..., : m.features], t[..., m.features :], c, p

    def _group(
        self, number: int, f: np.ndarray, t: np.ndarray, c: np.ndarray
    ) -> np.ndarray:
        """F of a group; the sums for its attentions first, one after the other."""
        sums_of, run = self._groups[number]
        variables = {"params": self._variables["params"][f"group{number}"], "whole": {}}
        n = f.shape[1] * f.shape[2]
        for i in range(self._model.blocks_per_group):
            name = f"cwt{i}"
            total: dict[str, Any] = {}
            for rows, _, _ in self._windows(0):
                made = sums_of(variables, f[:, rows], t[:, rows], c[:, rows])[name]
                for key, x in made["attention"]["of_part"].items():
                    total[key] = total.get(key, 0.0) + np.asarray(x, np.float64)
            own = variables["params"][name]["attention"]
            gram = whole_gram(total, n, normalised="temperature" in own)
            whole = {"gram": jnp.asarray(gram, jnp.float32), "n": jnp.float32(n)}
            given = variables["whole"] | {name: {"attention": whole}}
            variables = variables | {"whole": given}
        return self._over(run, _GROUP, variables, f, t, c)

    def _windows(self, halo: int) -> Iterator[tuple[slice, slice, slice]]:
        """Bands: their rows, their window, and their rows in it.

        A window is moved inwards at the ends, so that a border of the slice is one of
        the window, and all windows have one height.
        """
        tall = min(self._height, self.rows + 2 * halo)
        for begin in range(0, self._height, self.rows):
            end = min(self._height, begin + self.rows)
            top = min(max(0, begin - halo), self._height - tall)
            yield (
                slice(begin, end),
                slice(top, top + tall),
                slice(begin - top, end - top),
            )

    def _over(
        self,
        step: Callable[..., Any],
        halo: int,
        whole: Any,
        *inputs: np.ndarray | None,
    ) -> np.ndarray:
        """What a step gives of the whole slice, band by band.

        Args:
            step: From `whole` and windows of the inputs.
            halo: Rows around a band that the step sees.
            whole: What every band gets whole: weights, or maps of the reference.
            inputs: (b, n h, ...), for h rows of the LR slice, or None.
        """
        out = np.empty(0)
        for rows, window, own in self._windows(halo):
            made = np.asarray(step(whole, *self._cut(inputs, window)))
            factor = made.shape[1] // (window.stop - window.start)
            if not out.size:
                shape = (len(made), factor * self._height, *made.shape[2:])
                out = np.empty(shape, made.dtype)
            out[:, _times(rows, factor)] = made[:, _times(own, factor)]
        return out

    def _cut(self, inputs: Sequence[np.ndarray | None], window: slice) -> list:
        return [
            None if x is None else x[:, _times(window, x.shape[1] // self._height)]
            for x in inputs
        ]


def _steps(group: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The sums of a group's attentions over a band, and F of the band."""

    def run(variables: Any, f: Any, t: Any, c: Any, **how: Any) -> Any:
        found = Retrieved(t=t, c=c.astype(group.dtype), p=None, confidence=None)
        return group.apply(variables, f, found, **how)

    def sums(variables: Any, f: Any, t: Any, c: Any) -> Any:
        return run(variables, f, t, c, mutable=["sums"])[1]["sums"]

    return jax.jit(sums), jax.jit(lambda *given: run(*given)[0])


def _times(rows: slice, factor: int) -> slice:
    return slice(rows.start * factor, rows.stop * factor)
