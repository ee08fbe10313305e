"""Dual Attention Aggregation Super-Resolution: six stacked groups of CWT and SAT.

Reference: L. Wang, T. Chang, L. Tan, B. Shi, Y. Zhu, "Reference-guided MRI
super-resolution with dual attention aggregation network". Equation and section numbers
in this package are that paper's; where its text leaves a choice, the choice is a field
here and a row of `docs/design/0001-reading-of-the-paper.md`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from daasr_jax.models.conv import Conv3
from daasr_jax.models.cwt import CWT
from daasr_jax.models.init import linear
from daasr_jax.models.outputs import Outputs
from daasr_jax.models.sat import ALIGNMENTS, INDEX, SAT, check_alignment
from daasr_jax.models.sfe import SFE
from daasr_jax.models.structure import REPLACEMENTS, Replacement
from daasr_jax.registry import MODELS
from daasr_jax.resampling import blur, depth_to_space, space_to_depth, upsample

PRESETS = {
    # Literal where the paper's text is explicit.
    "paper": {
        "blocks_per_group": 1,
        "group_block": "none",
        "sfe_grid": "hr",
        "sat_grid": "hr",
        "query": "projected",
    },
    # What measures best per second; see the README's table.
    "fast": {
        "blocks_per_group": 1,
        "group_block": "conv",
        "sfe_grid": "lr",
        "sat_grid": "lr",
        "query": "shared",
    },
}

_CHOICES = {
    "scale": (2, 3, 4),
    "structure": ("cwt", "none", *REPLACEMENTS),
    "group_block": ("none", "conv"),
    "residual": ("cwt", "input", "both"),
    "sat": ("full", "none"),
    "sat_grid": ("hr", "lr"),
    "sfe_grid": ("hr", "lr"),
    "sfe_norm": ("batch", "group", "none"),
    "query": ("projected", "shared"),
    "supervise_cwt": ("last", "all"),
    "attention_scale": ("temperature", "sqrt_hw"),
    "alignment": ALIGNMENTS,
    "modulation": (True, False),
    "index_map": (True, False),
    "score_map": (True, False),
}


class Group(nn.Module):
    """Hierarchical Feature Alignment Group (HFAG), Eq. 1-3.

    Fields as in `DAASR`; `number` counts the groups from 0.
    """

    features: int
    scale: int
    blocks: int
    group_block: str
    mlp_ratio: int
    heads: int
    attention_scale: str
    sat: str
    sat_grid: str
    sfe_grid: str
    match_stride: int
    residual: str
    dtype: DTypeLike
    structure: str
    number: int
    alignment: str
    modulation: bool
    index_map: bool
    score_map: bool

    @nn.compact
    def __call__(self, f, maps, *, index=None):
        """Returns `(F_i, F_CWT, (F_SAT, P, C) or None)`."""
        f_cwt = f
        for i in range(self.blocks if self.structure != "none" else 0):
            if self.structure == "cwt":
                block = CWT(
                    self.mlp_ratio,
                    self.heads,
                    self.attention_scale,
                    self.dtype,
                    name=f"cwt{i}",
                )
            else:
                block = Replacement(
                    self.structure,
                    self.mlp_ratio,
                    self.heads,
                    shifted=(self.number * self.blocks + i) % 2 == 1,
                    dtype=self.dtype,
                    name=f"{self.structure}_block{i}",
                )
            f_cwt = block(f_cwt)
        if self.group_block == "conv":
            y = nn.relu(Conv3(self.features, dtype=self.dtype, name="conv1")(f_cwt))
            f_cwt = f_cwt + Conv3(self.features, dtype=self.dtype, name="conv2")(y)
        if self.sat == "none":
            return f_cwt, f_cwt, None
        f_sat, p, c = SAT(
            self.features,
            self.scale,
            self.sat_grid,
            self.sfe_grid,
            self.match_stride,
            dtype=self.dtype,
            alignment=self.alignment,
            modulation=self.modulation,
            index_map=self.index_map,
            score_map=self.score_map,
            name="sat",
        )(f_cwt, *maps, index=index)
        cells = space_to_depth(f_sat, self.scale) if self.sat_grid == "hr" else f_sat
        back = linear(self.features, cells, dtype=self.dtype, name="back")
        start = {"cwt": f_cwt, "input": f, "both": f + f_cwt}[self.residual]
        return start + back, f_cwt, (f_sat, p, c)


@MODELS.register("daasr")
class DAASR(nn.Module):
    """The network: `(lr, ref) -> Outputs`, at x2, x3 or x4.

    The last convolutions start at zero, so an untrained network returns the bicubic
    image. The defaults are the `paper` preset; `PRESETS` holds both presets. The rows
    of the paper's ablations are fields: `structure` and `sat` for Tables 2 and 3,
    `alignment` and `modulation` for Table 4, `index_map` and `score_map` for Figure 6;
    `configs/ablation_x4.py` has them all by name.

    Attributes:
        scale: s in {2, 3, 4}.
        features: Channels C.
        groups: Number of HFAGs.
        structure: What models the structure in each group. `"cwt"`: the CWT. `"none"`:
            nothing, F_CWT is the group's input (after `group_block`, if any), Table 2
            "w/o CWT", and with `sat="none"` "w/o CWT&SAT". `"conv"`, `"se"` and
            `"window"`: rows "CWT-to-Conv", "CWT-to-CA(SE Block)" and "CWT-to-S(W)MSA"
            of Table 3, with as many parameters; see `structure.Replacement`. Windows
            move in every other block, counted through the groups.
        blocks_per_group: Such blocks in each group.
        group_block: `"conv"` adds a residual (Conv3, ReLU, Conv3) after them.
        mlp_ratio, heads, attention_scale: See `cwt.CWT`; `heads` are those of window
            attention too.
        sfe_norm, sfe_grid: See `sfe.SFE`.
        sat: `"full"`, or `"none"` for the single-image network without reference,
            Table 2 "w/o SAT".
        sat_grid: See `sat.SAT`.
        query: `"projected"`: Eq. 6 as written; `"shared"`: the SFE of the bicubic LR
            image plus that projection, which starts at zero.
        residual: What the group adds to its SAT branch in Eq. 3: `"cwt"` F_CWT,
            `"input"` F_{i-1}, `"both"`.
        match_stride: 0 for s; 1 for the dense search on the HR grid.
        alignment, modulation, index_map, score_map: See `sat.SAT`; not used with
            `sat="none"`.
        blur_factor: Factor of the reference's blur, 0 for s; the text says 4.
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
    blocks_per_group: int = 1
    group_block: str = "none"
    mlp_ratio: int = 2
    heads: int = 1
    attention_scale: str = "temperature"
    sfe_norm: str = "batch"
    sfe_grid: str = "hr"
    sat: str = "full"
    sat_grid: str = "hr"
    query: str = "projected"
    residual: str = "cwt"
    match_stride: int = 0
    blur_factor: int = 0
    supervise_cwt: str = "last"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    structure: str = "cwt"
    alignment: str = "matching"
    modulation: bool = True
    index_map: bool = True
    score_map: bool = True
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        lr: Float[Array, "b h w 1"],
        ref: Float[Array, "b h2 w2 1"],
        *,
        train: bool,
        indices: Int[Array, "g b h3 w3"] | None = None,
    ) -> Outputs:
        """Super-resolves `lr` with the help of `ref`.

        Args:
            lr: Low-resolution slices, float32 in [0, 1].
            ref: High-resolution reference slices in the same intensity unit; their size
                need not be that of the output but must be a multiple of the scale.
            train: Whether batch normalisation uses and updates batch statistics.
            indices: Index maps P to use instead of searching, one for each group.

        Returns:
            `Outputs`; see there for `aux`. `index` and `confidence` are there where a
            search is made, that is with `alignment="matching"`.

        Raises:
            ValueError: If a field is outside its choices, two do not go together, or
                `ref` has an unfit size.
        """
        self._check(ref)
        if indices is not None and self.alignment != "matching":
            raise ValueError(
                "indices need alignment='matching', a search they stand for; got "
                f"{self.alignment!r}."
            )
        s = self.scale
        dtype = self.dtype
        bicubic = upsample(lr, s)
        f0 = f = Conv3(self.features, dtype=dtype, name="shallow")(lr)
        maps = self._reference_maps(bicubic, ref, train) if self.sat == "full" else ()

        group = Group
        if self.remat:
            keep = jax.checkpoint_policies.save_only_these_names(INDEX)
            group = nn.remat(Group, policy=keep)
        structure, texture, index, confidence = [], None, [], []
        for i in range(self.groups):
            f, f_cwt, aligned = group(
                self.features,
                s,
                self.blocks_per_group,
                self.group_block,
                self.mlp_ratio,
                self.heads,
                self.attention_scale,
                self.sat,
                self.sat_grid,
                self.sfe_grid,
                self.match_stride or s,
                self.residual,
                dtype,
                self.structure,
                i,
                self.alignment,
                self.modulation,
                self.index_map,
                self.score_map,
                name=f"group{i}",
            )(f, maps, index=None if indices is None else indices[i])
            structure.append(f_cwt)
            if aligned is not None:
                texture, p, c = aligned
                if p is not None:
                    index.append(p)
                    confidence.append(c)

        f = Conv3(self.features, dtype=dtype, name="body_out")(f) + f0
        for step, factor in enumerate({2: (2,), 3: (3,), 4: (2, 2)}[s]):
            f = Conv3(self.features * factor**2, dtype=dtype, name=f"up{step}")(f)
            f = depth_to_space(f, factor)
        sr = self._picture(f, bicubic, "out")

        supervised = {
            i: x
            for i, x in enumerate(structure)
            if self.supervise_cwt == "all" or i == self.groups - 1
        }
        heads = [
            self._picture(x, bicubic, f"head_cwt{i}") for i, x in supervised.items()
        ]
        aux = {"cwt": jnp.stack(heads)}
        if texture is not None:
            aux["sat"] = self._picture(texture, bicubic, "head_sat")[None]
        if index:
            aux["index"] = jnp.stack(index)
            aux["confidence"] = jnp.stack(confidence)
        return Outputs(sr=sr, aux=aux)

    def _reference_maps(self, bicubic: Array, ref: Array, train: bool):
        """`(query or None, key, value)` from one call of the SFE, Eq. 6.

        Without an alignment nothing is compared: query and key are None.
        """
        sfe = SFE(
            self.features,
            self.scale,
            self.sfe_grid,
            self.sfe_norm,
            self.axis_name,
            self.dtype,
            self.remat,
            name="sfe",
        )
        if self.alignment == "none":
            return None, None, sfe(ref, train=train)
        images = [ref, blur(ref, self.blur_factor or self.scale)]
        if self.query == "shared" and bicubic.shape == ref.shape:
            value, key, query = jnp.split(
                sfe(jnp.concatenate([*images, bicubic]), train=train), 3
            )
            return query, key, value
        value, key = jnp.split(sfe(jnp.concatenate(images), train=train), 2)
        query = sfe(bicubic, train=train) if self.query == "shared" else None
        return query, key, value

    def _picture(self, f: Array, bicubic: Array, name: str) -> Array:
        """Conv3 from features on either grid to an image, added to the bicubic."""
        coarse = f.shape[1] != bicubic.shape[1]
        channels = self.scale**2 if coarse else 1
        zero = nn.initializers.zeros
        y = Conv3(
            channels, kernel_init=zero, bias_init=zero, dtype=self.dtype, name=name
        )(f)
        y = depth_to_space(y, self.scale) if coarse else y
        return y.astype(jnp.float32) + bicubic

    def _check(self, ref: Array) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {choices}, got {getattr(self, field)!r}."
                )
        check_alignment(self.alignment, self.index_map, self.score_map)
        if self.match_stride not in (0, 1, self.scale):
            raise ValueError(
                f"match_stride must be 0, 1 or the scale, got {self.match_stride}."
            )
        if self.sfe_grid == "lr" and (self.sat_grid == "hr" or self.match_stride == 1):
            raise ValueError(
                "sfe_grid='lr' has no HR maps: it needs sat_grid='lr' and "
                f"match_stride=0, got {self.sat_grid!r} and {self.match_stride}."
            )
        if self.sat == "full" and (
            ref.shape[1] % self.scale or ref.shape[2] % self.scale
        ):
            raise ValueError(
                f"ref of {ref.shape[1]}x{ref.shape[2]} is not divisible by scale "
                f"{self.scale}."
            )
