"""Dual Attention Aggregation Super-Resolution: six stacked groups of CWT and SAT.

Reference: L. Wang, T. Chang, L. Tan, B. Shi, Y. Zhu, "Reference-guided MRI
super-resolution with dual attention aggregation network". Equation and section numbers
in this package are that paper's; where its text leaves a choice, the choice is a field
here and a row of `docs/design/0001-reading-of-the-paper.md`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.models.conv import Conv3
from daasr_jax.models.cwt import CWT
from daasr_jax.models.detail import Gain, pixel_maps
from daasr_jax.models.group import Group, class_of
from daasr_jax.models.outputs import Outputs, check_scale
from daasr_jax.models.sat import (
    INDEX,
    SAT,
    Fusion,
    GatedFusion,
    Matching,
    Retrieval,
    Retrieved,
)
from daasr_jax.models.sfe import SFE
from daasr_jax.models.tail import Tail, picture
from daasr_jax.registry import MODELS
from daasr_jax.resampling import (
    blur,
    depth_to_space,
    upsample,
)

PRESETS = {
    # Literal where the paper's text is explicit, but for the search: the text compares
    # all patches, this one those of the s-decimated maps (`match_stride`).
    "paper": {
        "blocks_per_group": 1,
        "group_block": "none",
        "sfe_grid": "hr",
        "sat_grid": "hr",
        "query": "projected",
        "blur_factor": 4,
    },
    # What measures best per second; see `docs/results/train_step.md`.
    "fast": {
        "blocks_per_group": 1,
        "group_block": "conv",
        "sfe_grid": "lr",
        "sat_grid": "lr",
        "query": "extractor",
        "fuse": GatedFusion,
        "detail": Gain,
        "blur_factor": 0,
    },
}

_CHOICES = {
    "group_block": ("none", "conv"),
    "residual": ("cwt", "input", "both"),
    "sat_grid": ("hr", "lr"),
    "query": ("projected", "shared", "extractor"),
    "supervise_cwt": ("last", "all"),
}


@MODELS.register("daasr")
class DAASR(nn.Module):
    """The network: `(lr, ref) -> Outputs`, at x2, x3 or x4.

    The last convolutions start at zero, so an untrained network returns the bicubic
    image. The defaults are the `paper` preset; `PRESETS` holds both presets. Another
    structure, alignment or fusion is a class, with `functools.partial` for its options;
    `ablations` holds those of the paper's tables, `configs/ablation_x4.py` their rows.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels C.
        groups: Number of HFAGs.
        structure: Makes the structure blocks of the groups, see `cwt.CWT` and
            `group.Group`.
        blocks_per_group: Such blocks in each group.
        group_block: `"conv"` adds a residual (Conv3, ReLU, Conv3) after them.
        layer_scale: Start of a learned scale of each channel, times what each block
            adds (LayerScale of H. Touvron et al., ICCV 2021); 0 for none.
        sfe_norm, sfe_grid: See `sfe.SFE`.
        align: Makes the alignment, see `sat.Matching`; None for the single-image
            network without reference, Table 2 "w/o SAT".
        fuse: Makes the fusion, see `sat.Fusion`.
        sat_grid: See `sat.SAT`.
        query: `"projected"`: Eq. 6 as written; `"shared"`: the SFE of the bicubic LR
            image plus that projection, which starts at zero; `"extractor"`: the SFE of
            that image alone. Then one search serves all groups, and nothing that is
            learned for the gate can spoil it.
        residual: What the group adds to its SAT branch in Eq. 3: `"cwt"` F_CWT,
            `"input"` F_{i-1}, `"both"`.
        match_stride: 0 for s, a deviation from the text, which decimates nothing; 1 for
            the dense search on the HR grid.
        blur_factor: Factor of the reference's blur: 4, the text's at every scale; 0
            for s.
        detail: Makes the way of the reference's own pixels to the output, see
            `detail.Gain`; None for none. It needs `query="extractor"` and
            `sfe_grid="lr"`.
        phases: Places in a cell, along each side, at which it is searched: 1 takes
            whole cells, so a texture is up to s / 2 pixels off; n takes n * n copies of
            the reference, moved by parts of s pixels, and as many times the work.
        supervise_cwt: Eq. 12 on the `"last"` group or on `"all"`.
        axis_name: Named device axis that shares batch statistics.
        dtype: Type of the computation; parameters are float32.
        remat: In training keep only the ends of groups and of SFE blocks, and P, and
            compute what is between again in the backward pass: less memory, more time,
            the same gradients. The search is not made again.
    """

    scale: int = 4
    features: int = 64
    groups: int = 6
    structure: Callable[..., nn.Module] = CWT
    blocks_per_group: int = 1
    group_block: str = "none"
    layer_scale: float = 0.0
    sfe_norm: str = "batch"
    sfe_grid: str = "hr"
    align: Callable[..., nn.Module] | None = Matching
    fuse: Callable[..., nn.Module] = Fusion
    sat_grid: str = "hr"
    query: str = "projected"
    residual: str = "cwt"
    match_stride: int = 0
    blur_factor: int = 4
    supervise_cwt: str = "last"
    detail: Callable[..., nn.Module] | None = None
    phases: int = 1
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    takes_several = True  # references of each slice

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b *r h2 w2 1"],
        *,
        train: bool,
        indices: Int[Array, "g b h3 w3"] | None = None,
    ) -> Outputs:
        """Super-resolves `lr` with the help of `ref`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1].
            ref: High-resolution reference slices in the same intensity unit, or several
                for each slice. Their size need not be that of the output but must be a
                multiple of the scale. One that is zero everywhere is none: neither its
                key nor its value is used.
            train: Whether batch normalisation uses and updates batch statistics.
            indices: Index maps P to use instead of searching, one for each group; where
                one search serves all, the first is used.

        Returns:
            `Outputs`; see there for `aux`. `index` and `confidence` are there where the
            alignment gives P and C.

        Raises:
            ValueError: If a field that is used is outside its choices, two do not go
                together, or `ref` has an unfit size.
        """
        self._check(ref)
        bicubic = upsample(lr, self.scale)
        f = f0 = Conv3(features=self.features, dtype=self.dtype, name="shallow")(lr)
        maps = pixels = None
        if self.align is not None:
            ref = self._at_phases(ref if ref.ndim == 5 else ref[:, None])
            maps, pixels = self._reference_maps(bicubic, ref, train, indices)
        f, structure, aligned = self._groups(f, maps, indices)
        tail = Tail(
            features=self.features,
            scale=self.scale,
            detail=self.detail,
            dtype=self.dtype,
        )
        nn.share_scope(self, tail)
        c = maps.c if isinstance(maps, Retrieved) else None
        sr = tail(f, f0, bicubic, pixels, c)

        first = 0 if self.supervise_cwt == "all" else self.groups - 1
        pictures = [
            self._picture(structure[i], bicubic, f"head_cwt{i}")
            for i in range(first, self.groups)
        ]
        aux = {"cwt": jnp.stack(pictures)}
        if aligned:
            f_sat = aligned[-1][0]
            if self.sat_grid == "hr":
                f_sat = depth_to_space(f_sat, self.scale)
            aux["sat"] = self._picture(f_sat, bicubic, "head_sat")[None]
        for i, name in ((1, "index"), (2, "confidence")):
            of_groups = [x[i] for x in aligned if x[i] is not None]
            if of_groups:
                aux[name] = jnp.stack(of_groups)
        return Outputs(sr=sr, aux=aux)

    def _groups(
        self, f: Array, maps: Any, indices: Array | None
    ) -> tuple[Array, list[Array], list[tuple]]:
        """F of the last group; of every group F_CWT, and `(F_SAT, P, C)` if aligned."""
        make = Group
        if self.remat:
            keep = jax.checkpoint_policies.save_only_these_names(INDEX)
            make = nn.remat(Group, policy=keep)
        structure, aligned = [], []
        for i in range(self.groups):
            group = make_group(self, i, make)
            f, f_cwt, of_reference = group(
                f, maps, index=None if indices is None else indices[i]
            )
            structure.append(f_cwt)
            if of_reference is not None:
                aligned.append(of_reference)
        return f, structure, aligned

    def _at_phases(self, ref: Array) -> Array:
        """`ref (b, r, H, W, 1)` and its moved copies as further references."""
        if self.phases == 1:
            return ref
        moves = [i * self.scale // self.phases for i in range(self.phases)]
        height, width = ref.shape[2:4]
        far = ((0, 0), (0, 0), (0, moves[-1]), (0, moves[-1]), (0, 0))
        padded = jnp.pad(ref, far, mode="edge")
        moved = [
            padded[:, :, y : y + height, x : x + width] for y in moves for x in moves
        ]
        return jnp.concatenate(moved, axis=1)

    def _reference_maps(
        self, bicubic: Array, ref: Array, train: bool, indices: Array | None
    ) -> tuple[Any, Array | None]:
        """What the groups take from `ref (b, r, H, W, 1)`, and pixels for `detail`.

        `(query or None, key, value)` from one call of the SFE, Eq. 6, or what the
        extractor alone has retrieved by them.
        """
        blurred = blur(ref.reshape(-1, *ref.shape[2:]), self.blur_factor or self.scale)
        query, key, value = self._features(bicubic, ref, blurred, train)
        # A reference that is zero everywhere is none: nothing agrees with it.
        there = jnp.any(ref != 0, axis=(2, 3, 4), keepdims=True)
        one = ref.shape[1] == 1

        def masked(x: Array) -> Array:
            x = jnp.where(there, x.reshape(*ref.shape[:2], *x.shape[1:]), 0)
            return x[:, 0] if one else x

        key = None if key is None else masked(key)
        if self.query != "extractor":
            return (query, key, masked(value)), None
        if self.detail is not None:
            pixels = pixel_maps(ref.reshape(blurred.shape), blurred, self.scale)
            value = jnp.concatenate([value, pixels], axis=-1)
        retrieve = Retrieval(**_alignment(self), name="retrieval")
        found = retrieve(
            None,
            query,
            key,
            masked(value),
            index=None if indices is None else indices[0],
        )
        if self.detail is None:
            return found, None
        t, pixels = jnp.split(found.t, [self.features], axis=-1)
        return found._replace(t=t), pixels

    def _features(
        self, bicubic: Array, ref: Array, blurred: Array, train: bool
    ) -> tuple[Array | None, Array | None, Array]:
        """`(query or None, key, value)` from one call of the SFE.

        Where an alignment compares nothing, query and key are None.
        """
        sfe = SFE(
            features=self.features,
            scale=self.scale,
            grid=self.sfe_grid,
            norm=self.sfe_norm,
            axis_name=self.axis_name,
            dtype=self.dtype,
            remat=self.remat,
            name="sfe",
        )
        ref = ref.reshape(blurred.shape)
        if not getattr(class_of(self.align), "compares", True):
            return None, None, sfe(ref, train=train)
        if self.query != "projected" and bicubic.shape[1:] == ref.shape[1:]:
            maps = sfe(jnp.concatenate([ref, blurred, bicubic]), train=train)
            value, key, query = jnp.split(maps, [len(ref), 2 * len(ref)])
            return query, key, value
        value, key = jnp.split(sfe(jnp.concatenate([ref, blurred]), train=train), 2)
        query = None if self.query == "projected" else sfe(bicubic, train=train)
        return query, key, value

    def _picture(self, f: Array, bicubic: Array, name: str) -> Array:
        """Conv3 from features on either grid to an image, added to the bicubic."""
        return picture(f, bicubic, scale=self.scale, dtype=self.dtype, name=name)

    def _check(self, ref: Array) -> None:
        check_scale(self.scale)
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {choices}, got {getattr(self, field)!r}."
                )
        several = self.phases > 1 or (ref.ndim == 5 and ref.shape[1] > 1)
        if several and not getattr(class_of(self.align), "takes_several", True):
            raise ValueError(
                f"{class_of(self.align).__name__} takes one reference at the query's "
                "own position: leave phases at 1 and give one reference."
            )
        if self.detail is not None and self.align is None:
            raise ValueError("detail needs an alignment: leave out both or none.")
        if self.detail is not None and (self.query, self.sfe_grid) != (
            "extractor",
            "lr",
        ):
            raise ValueError(
                "detail needs query='extractor' and sfe_grid='lr', got "
                f"{self.query!r} and {self.sfe_grid!r}."
            )
        if self.phases not in range(1, self.scale + 1):
            raise ValueError(
                f"phases must be 1 to the scale, {self.scale}, got {self.phases}."
            )
        if self.match_stride not in (0, 1, self.scale):
            raise ValueError(
                f"match_stride must be 0, 1 or the scale, got {self.match_stride}."
            )
        if self.sfe_grid == "lr" and (self.sat_grid == "hr" or self.match_stride == 1):
            raise ValueError(
                "sfe_grid='lr' has no HR maps: it needs sat_grid='lr' and "
                f"match_stride=0, got {self.sat_grid!r} and {self.match_stride}."
            )
        if self.align and (ref.shape[-3] % self.scale or ref.shape[-2] % self.scale):
            raise ValueError(
                f"ref of {ref.shape[-3]}x{ref.shape[-2]} is not divisible by scale "
                f"{self.scale}."
            )


@functools.lru_cache(maxsize=16)
def searching_within(model: nn.Module, within: int) -> nn.Module:
    """A network whose search goes only so far from each place, see `sat.Matching`.

    Args:
        model: DAASR, or a network around one (`data_consistency`). One that does not
            search comes back as it is.
        within: Positions of the search's grid; 0 searches all.
    """
    inner = getattr(model, "model", None)
    if inner is not None:
        return model.clone(model=searching_within(inner, within))
    align = getattr(model, "align", None)
    if align is None or not issubclass(class_of(align), Matching):
        return model
    if align().within == within:
        return model
    return model.clone(align=partial(align, within=within))


def make_group(model: DAASR, number: int, make: Callable[..., Any] = Group) -> Group:
    """A group of a network: its submodule where one is applied, else one of its own.

    Args:
        model: The network.
        number: Counts the groups from 0.
        make: `Group`, or that with remat.
    """
    align = model.align and partial(SAT, fuse=model.fuse, **_alignment(model))
    return make(
        features=model.features,
        structure=partial(model.structure, dtype=model.dtype),
        blocks=model.blocks_per_group,
        align=align,
        block=model.group_block,
        residual=model.residual,
        layer_scale=model.layer_scale,
        number=number,
        dtype=model.dtype,
        name=f"group{number}",
    )


def _alignment(model: DAASR) -> dict[str, Any]:
    """Fields of `SAT` and `Retrieval`."""
    return {
        "features": model.features,
        "scale": model.scale,
        "grid": model.sat_grid,
        "map_grid": model.sfe_grid,
        "match_stride": model.match_stride or model.scale,
        "align": model.align,
        "dtype": model.dtype,
    }
