"""The patches of a map: where they lie, their entries, their norms."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

MIN_SQUARE = 1e-12  # squared norm of a patch that counts as empty


@dataclasses.dataclass(frozen=True)
class Window:
    """Patches of `patch x patch` pixels, one around every pixel of a map.

    Entries outside the map are zero.

    Attributes:
        patch: Entries along a side, odd.
    """

    patch: int = 3

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patch % 2 == 0:
            raise ValueError(f"patch must be odd and positive, got {self.patch}.")

    @property
    def reach(self) -> int:
        """Pixels from the centre of a patch to its outermost entry."""
        return self.patch // 2

    def pad(self, x: Array) -> Array:
        """`x (..., h, w, c)` with a border of zeros as wide as `reach`."""
        r = self.reach
        return jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (r, r), (r, r), (0, 0)))

    def entries(self, x: Float[Array, "*b h w c"]) -> Iterator[Array]:
        """Entry after entry of all patches, by rows, each `(..., h, w, c)`."""
        padded, (h, w) = self.pad(x), x.shape[-3:-1]
        for i, j in np.ndindex(self.patch, self.patch):
            yield padded[..., i : i + h, j : j + w, :]

    def unfold(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w p2c"]:
        """All patches, their entries along the last axis."""
        return jnp.concatenate(list(self.entries(x)), axis=-1)

    def box(self, x: Float[Array, "*b h w"]) -> Float[Array, "*b h w"]:
        """Sum over the entries of each patch."""
        return add(entry[..., 0] for entry in self.entries(x[..., None]))

    def spread(self, x: Float[Array, "*b h w"]) -> Float[Array, "*b h w"]:
        """Sum, at every pixel, of `x` of the patches over it: `box` transposed."""
        return jax.linear_transpose(self.box, x)(x)[0]

    def inverse_norm(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w"]:
        """Reciprocal norms of the patches; 0, with zero gradient, where empty."""
        square = self.box(over_channels(x * x))
        full = square > MIN_SQUARE
        return jnp.where(full, lax.rsqrt(jnp.where(full, square, 1.0)), 0.0)


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
