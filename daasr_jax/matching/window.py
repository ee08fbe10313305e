"""The patches of a map: where they lie, their entries, their norms."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

MIN_SQUARE = 1e-12  # squared norm of a patch that counts as empty


@dataclasses.dataclass(frozen=True)
class Window:
    """Patches of `patch x patch` entries `dilation` apart, one every `stride` pixels.

    Patch (i, j) is centred on pixel (i stride, j stride); its entries are zero outside
    the map. A map of height h has ceil(h / stride) rows of patches.

    Attributes:
        patch: Entries along a side, odd.
        stride: Pixels from one patch to the next.
        dilation: Pixels from one entry to the next.
    """

    patch: int = 3
    stride: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patch % 2 == 0:
            raise ValueError(f"patch must be odd and positive, got {self.patch}.")
        for name in ("stride", "dilation"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be 1 or more, got {getattr(self, name)}."
                )

    @property
    def reach(self) -> int:
        """Pixels from the centre of a patch to its outermost entry."""
        return self.dilation * (self.patch // 2)

    def grid(self, size: int) -> int:
        """Patches along a side of `size` pixels."""
        return -(-size // self.stride)

    def pad(self, x: Array) -> Array:
        """`x (..., h, w, c)` with a border of zeros as wide as `reach`."""
        r = self.reach
        return jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (r, r), (r, r), (0, 0)))

    def phases(self) -> dict[int, tuple[int, ...]]:
        """Entries along a side, by the residue of their place in the padded map.

        Entry k of patch i lies at pixel i stride + k dilation of the padded map: at
        place i + shift of the map `padded[residue::stride]`.
        """
        found: dict[int, tuple[int, ...]] = {}
        for k in range(self.patch):
            shift, residue = divmod(k * self.dilation, self.stride)
            found[residue] = (*found.get(residue, ()), shift)
        return found

    def entry(
        self, padded: Array, row: int, column: int, grid: tuple[int, int]
    ) -> Array:
        """Entry (row, column) of every patch, `(..., gh, gw, c)`, of a padded map."""
        y, x = row * self.dilation, column * self.dilation
        s, (gh, gw) = self.stride, grid
        return padded[
            ..., y : y + s * (gh - 1) + 1 : s, x : x + s * (gw - 1) + 1 : s, :
        ]

    def unfold(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b gh gw p2c"]:
        """All patches, their entries along the last axis."""
        grid = self.grid(x.shape[-3]), self.grid(x.shape[-2])
        padded, n = self.pad(x), range(self.patch)
        return jnp.concatenate(
            [self.entry(padded, i, j, grid) for i in n for j in n], axis=-1
        )

    def spread(
        self, x: Float[Array, "*b gh gw"], size: tuple[int, int]
    ) -> Float[Array, "*b h w"]:
        """Sum, at every pixel of a map of `size`, of `x` of the patches over it."""
        grid = (x.shape[-2], x.shape[-1])
        shape = jax.ShapeDtypeStruct((*x.shape[:-2], *size), x.dtype)
        return jax.linear_transpose(lambda y: self._sum(y, grid), shape)(x)[0]

    def _sum(self, x: Array, grid: tuple[int, int]) -> Array:
        """Over the entries of every patch of a map `(..., h, w)`."""
        x, n = self.pad(x[..., None]), range(self.patch)
        return add(self.entry(x, i, j, grid)[..., 0] for i in n for j in n)

    def inverse_norm(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b gh gw"]:
        """Reciprocal norms of the patches; 0, with zero gradient, where empty."""
        grid = self.grid(x.shape[-3]), self.grid(x.shape[-2])
        box = self._sum(over_channels(x * x), grid)
        full = box > MIN_SQUARE
        return jnp.where(full, lax.rsqrt(jnp.where(full, box, 1.0)), 0.0)


def over_channels(x: Array) -> Array:
    """Sum over the last axis, as a product with ones: quicker than a sum on a CPU."""
    return jnp.einsum(
        "...c,c->...",
        x,
        jnp.ones(x.shape[-1], x.dtype),
        precision=lax.Precision.HIGHEST,
    )


def add(terms: Iterable[Array]) -> Array:
    """Sum of arrays, in order."""
    return functools.reduce(operator.add, terms)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Padded key maps `(b, r, h, w, c)`, to gather entries of chosen patches from."""

    flat: Array
    width: int
    rows: int
    grid: tuple[int, int]
    window: Window

    @classmethod
    def of(cls, key: Array, window: Window) -> Keys:
        """From maps that are not padded."""
        padded = window.pad(key)
        b, _, rows, width, c = padded.shape
        grid = window.grid(key.shape[2]), window.grid(key.shape[3])
        return cls(padded.reshape(b, -1, c), width, rows, grid, window)

    def place(self, index: Array) -> Array:
        """Flat position of the first entry of each chosen patch."""
        s, (gk, wgk) = self.window.stride, self.grid
        reference, within = index // (gk * wgk), index % (gk * wgk)
        row = reference * self.rows + within // wgk * s
        return row * self.width + within % wgk * s

    def entry(self, place: Array, row: int, column: int) -> Array:
        """Entry (row, column) of each chosen patch, `(b, gq, wgq, c)`."""
        d = self.window.dilation
        return gather(self.flat, place + (row * self.width + column) * d)


def gather(flat: Array, index: Array) -> Array:
    """`flat (b, n, c)` at `index (b, h, w)` -> `(b, h, w, c)`."""
    return jax.vmap(lambda f, i: f.at[i].get(mode="clip"))(flat, index)


def scatter(flat: Array, index: Array, x: Array) -> Array:
    """`flat (b, n, c)` with `x (b, h, w, c)` added at `index (b, h, w)`."""
    return jax.vmap(lambda f, i, y: f.at[i].add(y, mode="clip"))(flat, index, x)


def check(query: Array, key: Array) -> tuple[Array, Array]:
    """The query map and the keys as `(b, r, h, w, c)`.

    Raises:
        ValueError: If axes, batches or channels disagree.
    """
    if query.ndim != 4 or key.ndim not in (4, 5):
        raise ValueError(
            "query must be (b, h, w, c), key (b, h, w, c) or (b, r, h, w, c), "
            f"got shapes {query.shape} and {key.shape}."
        )
    if query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            "query and key must agree in batch and channels, "
            f"got shapes {query.shape} and {key.shape}."
        )
    return query, key if key.ndim == 5 else key[:, None]
