r"""Patch search, pair score and transfer: the hard retrieval of Eq. 7-9.

A *patch* of a map is its `patch x patch` neighbourhood, zero outside the map; the
similarity of a query and a key patch is the cosine of all their entries (Eq. 7):

.. math:: r_{ij} = \langle q_i / \|q_i\|, k_j / \|k_j\| \rangle, \quad
          P_i = \arg\max_j r_{ij}, \quad C_i = \max_j r_{ij}.

`search` finds P and is not differentiable; `pair_score` computes C for given P and
`transfer` brings the chosen value patches over; both differentiate with respect to
their maps; `match` does all three. This split costs O(n patch^2 C) for the gradient,
where differentiating through the search costs as much as several searches.

The search never holds all n x m similarities: it works in tiles under a byte budget.
Two exact forms serve two kinds of machine, `"diagonal"` sums (CPU) and `"chunked"`
products (accelerators). A third, `"kernel"`, does all on a GPU's chip; it is chosen by
name only. `within` searches near each query's own place alone, where both maps lie on
one grid: the time then grows as n, not as n^2.

Traps, which a caller may meet:

* Ties (black background) may resolve to different indices in the two forms or on two
  machines: their scores differ by rounding only (diagonal sums compare 21 of the 24
  bits of a score). Compare scores, not indices.
* A patch of norm below 1e-6 holds nothing to compare: it scores 0 against everything,
  with a zero gradient. `x / norm` would give NaN.
* Overlapping patches are averaged by the number that reach a pixel, so borders keep
  their brightness.
* Positions are row-major in the key map.
* The argmax has no gradient. Query and key learn through `pair_score` only.
"""

from daasr_jax.matching.searching import match, search
from daasr_jax.matching.transferring import pair_score, transfer
from daasr_jax.matching.window import Window

__all__ = ["Window", "match", "pair_score", "search", "transfer"]
