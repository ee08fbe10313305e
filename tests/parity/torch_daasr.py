"""DAASR in PyTorch, NCHW: the other side of the parity tests and of the benchmarks.

Written as PyTorch users write it: the retrieval is TTSR's (unfold, normalise, `bmm`,
maximum over the keys, gather, fold), with overlaps divided by the number of entries
that count instead of by nine. Modules carry the names of the Flax ones, so weights are
copied by path. Fields are those of `daasr_jax.models.daasr.DAASR`.

Two differences are PyTorch's own: `F.normalize` has a gradient of up to 1e12 in an
all-zero patch, where `daasr_jax` has 0; and `nn.BatchNorm2d` keeps the unbiased
variance in its running statistics, where Flax keeps the biased one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TorchOutputs(NamedTuple):
    """As `daasr_jax.models.outputs.Outputs`, NCHW; `index` is `(G, B, h, w)`."""

    sr: Tensor
    cwt: Tensor
    sat: Tensor | None = None
    index: Tensor | None = None
    confidence: Tensor | None = None


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys' bicubic, a = -0.5; without antialias PyTorch takes a = -0.75."""
    return F.interpolate(
        x, size=size, mode="bicubic", antialias=True, align_corners=False
    )


def upsample(x: Tensor, scale: int) -> Tensor:
    return resize(x, (x.shape[2] * scale, x.shape[3] * scale))


def blur(x: Tensor, scale: int) -> Tensor:
    height, width = x.shape[2:]
    return resize(resize(x, (-(-height // scale), -(-width // scale))), (height, width))


def search(
    query: Tensor, key: Tensor, *, patch: int = 3, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine score `(B, N)` and index `(B, N)` of the best key patch of each query."""
    pad = patch // 2
    queries = F.normalize(F.unfold(query, patch, padding=pad), dim=1)
    keys = F.normalize(F.unfold(key, patch, padding=pad), dim=1)
    if index is None:
        score, index = torch.bmm(keys.transpose(1, 2), queries).max(dim=1)
        return score, index
    chosen = keys.gather(2, index[:, None].expand(-1, keys.shape[1], -1))
    return (queries * chosen).sum(dim=1), index


def transfer(
    value: Tensor, index: Tensor, size: tuple[int, int], *, stride: int, patch: int = 3
) -> Tensor:
    """Lays patches of side `patch * stride` of `value` on a map of that size."""
    fold = {"kernel_size": patch * stride, "stride": stride}
    fold["padding"] = patch // 2 * stride
    columns = F.unfold(value, **fold)
    columns = columns.gather(2, index[:, None].expand(-1, columns.shape[1], -1))
    inside = F.unfold(torch.ones_like(value[:, :1]), **fold)
    inside = inside.gather(2, index[:, None].expand(-1, inside.shape[1], -1))
    return F.fold(columns, size, **fold) / F.fold(inside, size, **fold)


def conv3(channels: int, features: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, features, 3, padding=1, bias=bias)


class ChannelAttention(nn.Module):
    def __init__(self, features: int, heads: int, attention_scale: str) -> None:
        super().__init__()
        self.heads, self.attention_scale = heads, attention_scale
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)
        if attention_scale == "temperature":
            self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            f(x).view(b, n, self.heads, c // self.heads).permute(0, 2, 3, 1)
            for f in (self.query, self.key, self.value)
        )
        if self.attention_scale == "temperature":
            q, k = (F.rms_norm(x, (n,), eps=1e-5) / n**0.5 for x in (q, k))
            logits = q @ k.transpose(-2, -1) / self.temperature
        else:
            logits = q @ k.transpose(-2, -1) / n**0.5
        y = logits.softmax(dim=-1) @ v
        return y.reshape(b, c, n).transpose(1, 2)


class CWT(nn.Module):
    def __init__(
        self,
        features: int,
        mlp_ratio: int = 2,
        heads: int = 1,
        attention_scale: str = "temperature",
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(features)
        self.attention = ChannelAttention(features, heads, attention_scale)
        self.norm_mlp = nn.LayerNorm(features)
        self.mlp_in = nn.Linear(features, mlp_ratio * features)
        self.mlp_out = nn.Linear(mlp_ratio * features, features)

    def forward(self, f: Tensor) -> Tensor:
        x = f.flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm_attention(x))
        x = x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return x.transpose(1, 2).reshape(f.shape)


class SFE(nn.Module):
    def __init__(
        self, features: int, scale: int = 4, grid: str = "hr", norm: str = "batch"
    ) -> None:
        super().__init__()
        self.unshuffle = scale if grid == "lr" else 1
        self.conv_in = conv3(self.unshuffle**2, features)
        for i in range(3):
            for j in (1, 2):
                conv = conv3(features, features, bias=norm != "batch")
                setattr(self, f"block{i}_conv{j}", conv)
                if norm == "batch":
                    layer = nn.BatchNorm2d(features)
                elif norm == "group":
                    layer = nn.GroupNorm(8, features, eps=1e-6)
                else:
                    layer = nn.Identity()
                setattr(self, f"block{i}_norm{j}", layer)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_in(F.pixel_unshuffle(x, self.unshuffle)))
        for i in range(3):
            layer = {
                n: getattr(self, f"block{i}_{n}")
                for n in ("conv1", "norm1", "conv2", "norm2")
            }
            y = F.relu(layer["norm1"](layer["conv1"](x)))
            x = x + layer["norm2"](layer["conv2"](y))
        return x


class Found(NamedTuple):
    """T, P and C of one search that serves every group, NCHW."""

    t: Tensor
    index: Tensor
    score: Tensor


class Gain(nn.Module):
    def __init__(self, features: int, scale: int) -> None:
        super().__init__()
        n, self.scale = scale**2, scale
        self.judge = conv3(features + 1 + 2 * n, features)
        self.gain = conv3(features, n)
        self.give = conv3(features + n, features)

    def forward(
        self, f: Tensor, bicubic: Tensor, pixels: Tensor, score: Tensor
    ) -> tuple[Tensor, Tensor]:
        fine, coarse = pixels.chunk(2, dim=1)
        apart = coarse - F.pixel_unshuffle(bicubic, self.scale)
        seen = F.relu(self.judge(torch.cat([f, score, fine, apart], dim=1)))
        detail = self.gain(seen) * fine
        f = f + self.give(torch.cat([seen, detail], dim=1))
        return f, F.pixel_shuffle(detail, self.scale)


class SAT(nn.Module):
    def __init__(
        self,
        features: int,
        scale: int = 4,
        grid: str = "hr",
        map_grid: str = "hr",
        match_stride: int = 4,
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.grid, self.map_grid = scale, grid, map_grid
        self.decimated = map_grid == "hr" and match_stride != 1
        if apart:  # the search is made for all groups at once, the gate is learned
            self.gate_slope = nn.Parameter(torch.tensor(4.0))
            self.gate_bias = nn.Parameter(torch.tensor(-2.0))
        else:
            self.query = nn.Conv2d(features, features, 1, bias=False)
        cells = scale**2 if grid == "lr" and map_grid == "hr" else 1
        self.fuse = nn.Conv2d((cells + 1) * features, features, 1)

    def forward(
        self,
        f_cwt: Tensor,
        query: Tensor | Found | None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns F_SAT, P `(B, h, w)` and C `(B, 1, h, w)`."""
        if isinstance(query, Found):
            found = query
            gate = torch.sigmoid(self.gate_slope * found.score + self.gate_bias)
            f_sat = self.fuse(torch.cat([found.t * gate, f_cwt], dim=1))
            return f_sat, found.index, found.score
        s = self.scale
        up = upsample(f_cwt, s) if "hr" in (self.map_grid, self.grid) else f_cwt
        base = up if self.map_grid == "hr" else f_cwt
        if self.decimated:
            centre = (..., slice(s // 2, None, s), slice(s // 2, None, s))
            base, key = base[centre], key[centre]
            query = None if query is None else query[centre]
        q = self.query(base) if query is None else query + self.query(base)
        b, _, hq, wq = q.shape
        score, index = search(q, key, index=None if index is None else index.flatten(1))
        stride = s if self.decimated else 1
        t = transfer(value, index, (hq * stride, wq * stride), stride=stride)
        index, confidence = index.view(b, hq, wq), score.view(b, 1, hq, wq)
        weight = confidence
        if self.grid == "lr":
            if self.map_grid == "hr":
                t = F.pixel_unshuffle(t, s)
            if weight.shape[2] != f_cwt.shape[2]:
                weight = F.avg_pool2d(weight, s)
            up = f_cwt
        elif weight.shape[2] == f_cwt.shape[2]:
            weight = upsample(weight, s)
        return self.fuse(torch.cat([t, up], dim=1)) * weight, index, confidence


class Group(nn.Module):
    def __init__(
        self,
        features: int,
        scale: int,
        blocks: int,
        group_block: str,
        mlp_ratio: int,
        heads: int,
        attention_scale: str,
        sat: str,
        sat_grid: str,
        sfe_grid: str,
        match_stride: int,
        residual: str,
        layer_scale: float,
        apart: bool,
    ) -> None:
        super().__init__()
        self.blocks, self.group_block, self.residual = blocks, group_block, residual
        self.layer_scale = layer_scale
        scaled = [f"cwt{i}" for i in range(blocks)]
        for name in scaled:
            setattr(self, name, CWT(features, mlp_ratio, heads, attention_scale))
        if group_block == "conv":
            self.conv1 = conv3(features, features)
            self.conv2 = conv3(features, features)
            scaled.append("conv")
        for name in scaled if layer_scale else ():
            start = torch.full((features,), layer_scale)
            setattr(self, f"scale_{name}", nn.Parameter(start))
        self.unshuffle = scale if sat_grid == "hr" else 1
        self.sat = None
        if sat == "full":
            self.sat = SAT(features, scale, sat_grid, sfe_grid, match_stride, apart)
            self.back = nn.Conv2d(self.unshuffle**2 * features, features, 1)

    def forward(self, f: Tensor, maps: tuple, index: Tensor | None = None):
        f_cwt = f
        for i in range(self.blocks):
            y = getattr(self, f"cwt{i}")(f_cwt)
            f_cwt = f_cwt + self._scaled(y - f_cwt, f"cwt{i}")
        if self.group_block == "conv":
            y = self.conv2(F.relu(self.conv1(f_cwt)))
            f_cwt = f_cwt + self._scaled(y, "conv")
        if self.sat is None:
            return f_cwt, f_cwt, None
        aligned = self.sat(f_cwt, *maps, index=index)
        back = self.back(F.pixel_unshuffle(aligned[0], self.unshuffle))
        start = {"cwt": f_cwt, "input": f, "both": f + f_cwt}[self.residual]
        return start + back, f_cwt, aligned

    def _scaled(self, branch: Tensor, name: str) -> Tensor:
        if not self.layer_scale:
            return branch
        return branch * getattr(self, f"scale_{name}")[:, None, None]


class TorchDAASR(nn.Module):
    """The network; `forward(lr, ref, indices=None)` with NCHW images."""

    def __init__(
        self,
        scale: int = 4,
        features: int = 64,
        groups: int = 6,
        blocks_per_group: int = 1,
        group_block: str = "none",
        layer_scale: float = 0.0,
        mlp_ratio: int = 2,
        heads: int = 1,
        attention_scale: str = "temperature",
        sfe_norm: str = "batch",
        sfe_grid: str = "hr",
        sat: str = "full",
        sat_grid: str = "hr",
        query: str = "projected",
        residual: str = "cwt",
        match_stride: int = 0,
        blur_factor: int = 0,
        supervise_cwt: str = "last",
        detail: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.groups, self.query = scale, groups, query
        self.blur_factor = blur_factor or scale
        self.shallow = conv3(1, features)
        if sat == "full":
            self.sfe = SFE(features, scale, sfe_grid, sfe_norm)
        for i in range(groups):
            group = Group(
                features,
                scale,
                blocks_per_group,
                group_block,
                mlp_ratio,
                heads,
                attention_scale,
                sat,
                sat_grid,
                sfe_grid,
                match_stride or scale,
                residual,
                layer_scale,
                query == "extractor",
            )
            setattr(self, f"group{i}", group)
        self.body_out = conv3(features, features)
        self.factors = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
        for step, factor in enumerate(self.factors):
            setattr(self, f"up{step}", conv3(features, features * factor**2))
        self.out = conv3(features, 1)
        self.detail = Gain(features, scale) if detail else None
        self.supervised = [
            i for i in range(groups) if supervise_cwt == "all" or i == groups - 1
        ]
        for i in self.supervised:
            setattr(self, f"head_cwt{i}", conv3(features, scale**2))
        if sat == "full":
            self.head_sat = conv3(features, 1 if sat_grid == "hr" else scale**2)

    def forward(
        self, lr: Tensor, ref: Tensor, indices: Tensor | None = None
    ) -> TorchOutputs:
        s = self.scale
        bicubic = upsample(lr, s)
        f0 = f = self.shallow(lr)
        maps = self._reference_maps(bicubic, ref) if hasattr(self, "sfe") else ()
        if maps and self.query == "extractor":
            index = None if indices is None else indices[0]
            maps = (self._found(ref, *maps, index),)
        structure, aligned = [], []
        for i in range(self.groups):
            index = None if indices is None else indices[i]
            given = maps
            if maps and self.query == "extractor":
                given = (maps[0]._replace(t=maps[0].t[:, : f.shape[1]]),)
            f, f_cwt, found = getattr(self, f"group{i}")(f, given, index=index)
            structure.append(f_cwt)
            if found is not None:
                aligned.append(found)
        f, start = self.body_out(f) + f0, bicubic
        if self.detail is not None:
            t, _, score = maps[0]
            pixels = t[:, -2 * s * s :]
            f, detail = self.detail(f, bicubic, pixels, score)
            start = bicubic + detail
        for step, factor in enumerate(self.factors):
            f = F.pixel_shuffle(getattr(self, f"up{step}")(f), factor)
        sr = self.out(f) + start
        cwt = torch.stack(
            [
                F.pixel_shuffle(getattr(self, f"head_cwt{i}")(structure[i]), s)
                + bicubic
                for i in self.supervised
            ]
        )
        if not aligned:
            return TorchOutputs(sr, cwt)
        picture = self.head_sat(aligned[-1][0])
        if picture.shape[1] != 1:
            picture = F.pixel_shuffle(picture, s)
        return TorchOutputs(
            sr,
            cwt,
            (picture + bicubic)[None],
            torch.stack([found[1] for found in aligned]),
            torch.stack([found[2] for found in aligned]),
        )

    def _reference_maps(self, bicubic: Tensor, ref: Tensor) -> tuple:
        images = [ref, blur(ref, self.blur_factor)]
        if self.query != "projected" and bicubic.shape == ref.shape:
            value, key, query = self.sfe(torch.cat([*images, bicubic])).chunk(3)
            return query, key, value
        value, key = self.sfe(torch.cat(images)).chunk(2)
        return None if self.query == "projected" else self.sfe(bicubic), key, value

    def _found(
        self,
        ref: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        index: Tensor | None,
    ) -> Found:
        """One search on the LR grid; T is of V and, behind it, of pixels."""
        blurred = blur(ref, self.blur_factor)
        pixels = [F.pixel_unshuffle(x, self.scale) for x in (ref - blurred, blurred)]
        value = torch.cat([value, *pixels], dim=1)
        b, _, h, w = query.shape
        score, index = search(
            query, key, index=None if index is None else index.flatten(1)
        )
        t = transfer(value, index, (h, w), stride=1)
        return Found(t, index.view(b, h, w), score.view(b, 1, h, w))


_LEAVES = {  # where the names differ
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def copy_variables(module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copies Flax variables (`params`, and `batch_stats` if any) into the twin.

    Kernels turn from HWIO to OIHW. Channels that are s x s cells are ordered (row,
    column, channel) in `daasr_jax` and (channel, row, column) in PyTorch's
    `pixel_shuffle`; they are permuted on the way.
    """
    with torch.no_grad():
        for path, array in _leaves(variables):
            target = _target(module, path)
            source = torch.from_numpy(_to_torch(module, path, np.asarray(array)))
            if target.shape != source.shape:
                raise ValueError(f"{path}: {target.shape} is not {source.shape}.")
            target.copy_(source)
    given = {_target(module, path).data_ptr() for path, _ in _leaves(variables)}
    left = [n for n, p in module.named_parameters() if p.data_ptr() not in given]
    if left:
        raise ValueError(f"the variables do not hold {left}.")


def flax_array(
    module: nn.Module, path: tuple[str, ...], *, grad: bool = False
) -> np.ndarray:
    """The twin's tensor of a Flax path, or its gradient, in the layout of Flax."""
    target = _target(module, path)
    tensor = target.grad if grad else target.detach()
    if tensor is None:
        raise ValueError(f"{path} has no gradient.")
    array = tensor.numpy()
    if path[-1] == "kernel":
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        array = array[0, 0] if array.shape[:2] == (1, 1) else array
    cells, channels, axis = _cells(module, path)
    return _swap(array, channels, cells, axis) if cells else array.copy()


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, (*path, name))
        else:
            yield (*path, name), item


def _target(module: nn.Module, path: tuple[str, ...]) -> Tensor:
    owner = module.get_submodule(".".join(path[1:-1]))
    return getattr(owner, _LEAVES.get(path[-1], path[-1]))


def _cells(module: nn.Module, path: tuple[str, ...]) -> tuple[int, int, int]:
    """`(s * s, channels, axis)` where a Flax axis starts with s x s cells, or zeros."""
    name = path[-2]
    layer = module.get_submodule(".".join(path[1:-1]))
    owner = module.get_submodule(".".join(path[1:-2]))
    if name in ("up0", "up1"):
        cells = owner.factors[int(name[2:])] ** 2
        return cells, layer.out_channels // cells, -1
    if path[-1] == "kernel" and name == "back" and owner.unshuffle > 1:
        cells = owner.unshuffle**2
        return cells, layer.in_channels // cells, 0
    if path[-1] == "kernel" and name == "fuse" and owner.grid != owner.map_grid:
        cells = owner.scale**2 if owner.grid == "lr" else 0
        return cells, layer.in_channels // (cells + 1), 0
    return 0, 0, 0


def _swap(array: np.ndarray, first: int, second: int, axis: int) -> np.ndarray:
    """(first, second), flattened at the start of the axis, to (second, first)."""
    array = np.moveaxis(array, axis, 0)
    n = first * second
    head = array[:n].reshape(first, second, *array.shape[1:]).swapaxes(0, 1)
    array = np.concatenate([head.reshape(n, *array.shape[1:]), array[n:]])
    return np.moveaxis(array, 0, axis)


def _to_torch(
    module: nn.Module, path: tuple[str, ...], array: np.ndarray
) -> np.ndarray:
    cells, channels, axis = _cells(module, path)
    if cells:
        array = _swap(array, cells, channels, axis)
    if path[-1] == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if array.ndim < _target(module, path).ndim:
            array = array[:, :, None, None]
    return np.array(array, np.float32)
