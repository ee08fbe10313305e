"""Patch search, pair score and transfer, against float64 NumPy and hand computation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax import matching
from daasr_jax.matching import near, searching


def of_arrays(function):
    """`function` of NumPy's arrays, as JAX's."""

    def call(*arrays, **options):
        if "index" in options:
            options["index"] = jnp.asarray(options["index"])
        return function(*map(jnp.asarray, arrays), **options)

    return call


match, pair_score, search, transfer = map(
    of_arrays,
    (matching.match, matching.pair_score, matching.search, matching.transfer),
)
METHODS = ("diagonal", "chunked")


@pytest.fixture
def hold(monkeypatch):
    """Sets the bytes of scores that a search holds; None leaves them."""

    def set_budget(method, budget):
        if budget is not None:
            monkeypatch.setitem(searching.BUDGET_BYTES, method, (budget, budget))

    return set_budget


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def patches(x, patch):
    """`(b, patches, patch^2 c)` in float64, zero outside the map."""
    b, h, w, _ = x.shape
    r = patch // 2
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (r, r), (r, r), (0, 0)))
    entries = [x[:, i : i + h, j : j + w] for i, j in np.ndindex(patch, patch)]
    return np.concatenate(entries, -1).reshape(b, h * w, -1)


def cosines(query, key, patch):
    q, k = (patches(x, patch) for x in (query, key))
    norm_q = np.linalg.norm(q, axis=-1, keepdims=True)
    norm_k = np.linalg.norm(k, axis=-1, keepdims=True)
    q = np.divide(q, norm_q, out=np.zeros_like(q), where=norm_q > 0)
    k = np.divide(k, norm_k, out=np.zeros_like(k), where=norm_k > 0)
    return q @ k.swapaxes(1, 2)


def assert_best(query, key, index, patch):
    """The chosen scores are the maximum within 1e-5; the indices may differ."""
    table = cosines(query, key, patch)
    assert index.dtype == jnp.int32
    assert index.shape == query.shape[:3]
    flat = np.asarray(index).reshape(index.shape[0], -1)
    assert flat.min() >= 0
    assert flat.max() < table.shape[-1]
    chosen = np.take_along_axis(table, flat[..., None], -1)[..., 0]
    assert (table.max(-1) - chosen).max() <= 1e-5
    score = np.asarray(pair_score(query, key, index, patch=patch), np.float64)
    assert score.shape == (*index.shape, 1)
    assert np.abs(score.reshape(chosen.shape) - chosen).max() <= 1e-5


# One channel, one row, patch 3: rows above and below are outside, hence zero.
#   key    1 0 2     patches (0 1 0) (1 0 2) (0 2 0)
#   query  0 3 1     patches (0 0 3) (0 3 1) (3 1 0)
#   cosines    key 0      key 1            key 2
#   query 0    0          6 / 3 sqrt 5     0
#   query 1    3/sqrt 10  2 / sqrt 50      6 / 2 sqrt 10: a tie of 0 and 2
#   query 2    1/sqrt 10  3 / sqrt 50      1 / sqrt 10
KEY = np.float32([1, 0, 2]).reshape(1, 1, 3, 1)
QUERY = np.float32([0, 3, 1]).reshape(1, 1, 3, 1)


@pytest.mark.parametrize("method", METHODS)
def test_search_by_hand(method):
    index = np.asarray(search(QUERY, KEY, method=method)).ravel()
    assert index[0] == 1
    assert index[1] in (0, 2)
    assert index[2] == 1


def test_pair_score_by_hand():
    index = jnp.array([[[1, 0, 2]]])
    score = pair_score(QUERY, KEY, index).ravel()
    expected = [2 / np.sqrt(5), 3 / np.sqrt(10), 1 / np.sqrt(10)]
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_transfer_by_hand():
    value = jnp.array([10.0, 20.0, 30.0]).reshape(1, 1, 3, 1)
    # Query 0 takes patch 1 (10 20 30), query 1 patch 2 (20 30 -), query 2 patch 0
    # (- 10 20). Laid at their places:
    #   position 0: 20 of query 0, 20 of query 1             mean 20
    #   position 1: 30 of query 0, 30 of query 1, none of 2  mean 30
    #   position 2: none of query 1, 10 of query 2           mean 10
    result = transfer(value, jnp.array([[[1, 2, 0]]]))
    np.testing.assert_allclose(result.ravel(), [20.0, 30.0, 10.0], rtol=1e-6)


def test_transfer_patch_1_is_a_gather():
    value = normal(0, 2, 3, 4, 5)
    index = np.random.default_rng(1).integers(0, 12, (2, 6, 7))
    expected = np.stack(
        [v.reshape(12, 5)[i] for v, i in zip(value, index, strict=True)]
    )
    np.testing.assert_array_equal(transfer(value, index, patch=1), expected)


def test_transfer_of_the_identity_is_the_identity():
    value = normal(2, 1, 6, 5, 3)
    index = jnp.arange(30).reshape(1, 6, 5)
    np.testing.assert_allclose(transfer(value, index), value, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("patch", [1, 3, 5])
@pytest.mark.parametrize("sizes", [((9, 10), (9, 10)), ((17, 6), (5, 13))])
def test_search_is_the_maximum(method, patch, sizes):
    query, key = normal(3, 2, *sizes[0], 4), normal(4, 2, *sizes[1], 4)
    index = search(query, key, patch=patch, method=method)
    assert_best(query, key, index, patch)


@pytest.mark.parametrize("method", METHODS)
def test_search_with_a_large_background(method):
    query, key = np.zeros((2, 1, 20, 22, 6), np.float32)
    query[:, 7:13, 8:15] = normal(5, 1, 6, 7, 6)
    key[:, 3:10, 10:18] = normal(6, 1, 7, 8, 6)
    index = search(query, key, method=method)
    assert_best(query, key, index, 3)


def test_default_is_one_of_the_methods():
    query, key = normal(7, 1, 8, 8, 4), normal(8, 1, 7, 9, 4)
    np.testing.assert_array_equal(
        search(query, key), search(query, key, method="diagonal")
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_patch_finds_itself(method):
    x = normal(9, 2, 11, 7, 4)
    index = search(x, x, method=method)
    np.testing.assert_array_equal(index.reshape(2, -1), np.tile(np.arange(77), (2, 1)))
    np.testing.assert_allclose(pair_score(x, x, index), 1.0, atol=1e-6)


@pytest.mark.parametrize("budget", [None, 2000])
@pytest.mark.parametrize("method", METHODS)
def test_lowest_of_exact_ties(method, budget, hold):
    hold(method, budget)
    # +1 and -1, so sums are exact; period 4, so interior patches recur.
    tile = np.where(normal(10, 1, 4, 4, 4) > 0, 1.0, -1.0).astype(np.float32)
    x = np.tile(tile, (1, 3, 3, 1))
    index = np.asarray(search(x, x, method=method))[0]
    for y in range(1, 11):
        for column in range(1, 11):
            first = [1 + (v - 1) % 4 for v in (y, column)]
            assert index[y, column] == first[0] * 12 + first[1]


@pytest.mark.parametrize("method", METHODS)
def test_zero_query_takes_the_first_key(method):
    index = search(jnp.zeros((1, 6, 6, 3)), normal(11, 1, 5, 5, 3), method=method)
    assert not index.any()


@pytest.mark.parametrize("patch", [3, 5])
def test_constant_value_comes_back_exactly(patch):
    # Random indices, of which the border of the reference gets its share.
    index = np.random.default_rng(12).integers(0, 42, (2, 9, 8))
    corners = np.array([0, 5, 36, 41])
    index[:, :2] = np.random.default_rng(13).choice(corners, (2, 2, 8))
    run = jax.jit(lambda v, i: transfer(v, i, patch=patch))
    for constant in (0.0, 1.0, 0.1, 1 / 3, -7.7, 1e-3, 12345.678):
        result = run(jnp.full((2, 7, 6, 3), constant, jnp.float32), index)
        np.testing.assert_array_equal(result, np.float32(constant))


def test_zero_maps_give_no_nan():
    zero = jnp.zeros((1, 6, 6, 4))

    def total(query, key, value):
        t, _, c = match(query, key, value)
        return jnp.sum(t) + jnp.sum(c)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    arguments = [(zero, zero, zero)]
    half = jnp.asarray(normal(14, 1, 6, 6, 4)).at[:, :4].set(0.0)
    arguments += [(half, zero, half), (zero, half, half), (half, half, half)]
    for case in arguments:
        value, grads = run(*case)
        assert np.isfinite(value)
        for grad in grads:
            assert np.isfinite(grad).all()
            assert np.abs(grad).max() < 100


def materialised(query, keys, values, index, patch):
    """T and C with all patches and all N x M cosines held at once."""
    b, height, width, _ = query.shape
    r = patch // 2
    taps = list(np.ndindex(patch, patch))

    def unfold(x):
        h, w = x.shape[-3:-1]
        x = jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (r, r), (r, r), (0, 0)))
        parts = [x[..., i : i + h, j : j + w, :] for i, j in taps]
        return jnp.stack(parts, -2).reshape(b, -1, len(taps), x.shape[-1])

    def unit(x):
        x = x.reshape(b, x.shape[1], -1)
        square = jnp.sum(x * x, -1, keepdims=True)
        full = square > 0
        return jnp.where(full, x / jnp.sqrt(jnp.where(full, square, 1.0)), 0.0)

    flat = index.reshape(b, -1)
    table = jnp.einsum("bqd,bkd->bqk", unit(unfold(query)), unit(unfold(keys)))
    score = jnp.take_along_axis(table, flat[..., None], -1).reshape(*index.shape, 1)

    def lay(x):
        chosen = jax.vmap(lambda f, i: f[i])(unfold(x), flat)
        chosen = chosen.reshape(*index.shape, len(taps), -1)
        # Room for patches that reach over the border of the map.
        canvas = jnp.zeros((b, height + 2 * r, width + 2 * r, x.shape[-1]))
        for n, (i, j) in enumerate(taps):
            canvas = canvas.at[:, i : i + height, j : j + width].add(chosen[:, :, :, n])
        return canvas[:, r : r + height, r : r + width]

    count = lay(jnp.ones_like(values[..., :1]))
    return lay(values) / jnp.maximum(count, 1.0), score


@pytest.mark.parametrize("patch", [1, 3, pytest.param(5, marks=pytest.mark.full)])
@pytest.mark.parametrize("references", [(), (2,)])
def test_gradient_is_that_of_the_materialised_form(patch, references):
    """An empty region in the query; maps of different sizes."""
    query = normal(15, 2, 7, 6, 4)
    query[0, :, :3] = 0.0
    keys, values = (normal(s, 2, *references, 5, 8, c) for s, c in ((16, 4), (17, 3)))
    m = int(np.prod(references)) * 5 * 8
    index = np.random.default_rng(18).integers(0, m, (2, 7, 6))
    weight_t, weight_c = normal(19, 2, 7, 6, 3), normal(20, 2, 7, 6, 1)

    def total(form):
        def loss(query, keys, values):
            t, c = form(query, keys, values)
            return jnp.sum(t * weight_t) + jnp.sum(c * weight_c), (t, c)

        run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        return run(query, keys, values)

    ours = total(lambda q, k, v: match(q, k, v, patch=patch, index=index)[::2])
    theirs = total(lambda q, k, v: materialised(q, k, v, index, patch))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_search_passes_no_gradient():
    x = jnp.asarray(normal(21, 1, 5, 5, 3))
    grad = jax.grad(lambda q: jnp.sum(match(q, x, x)[0]))(x)
    assert not grad.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 5_000, 20_000])
def test_tiles_change_nothing(method, budget, hold):
    # 19 rows of queries and 13 of keys: the last tiles are filled up.
    query, key = normal(22, 2, 19, 6, 4), normal(23, 2, 13, 7, 4)
    key = key - 3.0  # all true scores may be negative: filling must not win
    whole = search(query, key, method=method)
    hold(method, budget)
    tiled = jax.jit(lambda q, k: search(q, k, method=method))(query, key)
    np.testing.assert_array_equal(tiled, whole)


def largest_intermediate(jaxpr):
    """Most elements of any array computed in a jaxpr or in one inside it."""
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, int(np.prod(getattr(variable.aval, "shape", ()))))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                largest = max(largest, largest_intermediate(inner))
    return largest


@pytest.mark.parametrize("budget", [2**20, 16 * 2**20])
@pytest.mark.parametrize("side", [80, 256])
@pytest.mark.parametrize("method", METHODS)
def test_never_more_than_the_budget(method, side, budget, hold):
    hold(method, budget)
    x = jax.ShapeDtypeStruct((1, side, side, 8), jnp.float32)
    traced = jax.make_jaxpr(lambda q, k: search(q, k, method=method))(x, x)
    largest = largest_intermediate(traced)
    assert largest > side**2 * 8  # it looked inside the loops
    assert largest < side**4
    unfolded = side**2 * 9 * 8 * 2
    one_row = (side + 2) ** 2 * 9  # a query row against a key row, with their halo
    assert largest <= max(budget // 4, unfolded, one_row)


def test_transfer_by_loops():
    """Every patch is laid down; a pixel is the mean of what reached it."""
    value = normal(34, 1, 7, 8, 2)
    index = np.random.default_rng(35).integers(0, 56, (1, 5, 4))
    total, count = np.zeros((5, 4, 2)), np.zeros((5, 4))
    for i, j in np.ndindex(5, 4):
        row, column = divmod(int(index[0, i, j]), 8)
        for dy, dx in np.ndindex(3, 3):
            y, x, v, u = i + dy - 1, j + dx - 1, row + dy - 1, column + dx - 1
            if 0 <= y < 5 and 0 <= x < 4 and 0 <= v < 7 and 0 <= u < 8:
                total[y, x] += value[0, v, u]
                count[y, x] += 1
    result = transfer(value, index)
    np.testing.assert_allclose(result[0], total / count[..., None], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("patch", "budget"), [(1, None), (3, None), (3, 3_000), (5, None)]
)
def test_several_references(method, patch, budget, hold):
    hold(method, budget)
    query, keys = normal(38, 2, 6, 7, 4), normal(39, 2, 3, 5, 8, 4)
    index = search(query, keys, patch=patch, method=method)
    flat = np.asarray(index).reshape(2, -1)
    assert set(np.unique(flat // 40)) == {0, 1, 2}
    table = np.concatenate([cosines(query, keys[:, i], patch) for i in range(3)], -1)
    chosen = np.take_along_axis(table, flat[..., None], -1)[..., 0]
    assert (table.max(-1) - chosen).max() <= 1e-5
    score = np.asarray(pair_score(query, keys, index, patch=patch)).reshape(2, -1)
    np.testing.assert_allclose(score, chosen, atol=1e-5)
    # Of equal maps the first is taken.
    again = search(query, jnp.concatenate([keys, keys], 1), patch=patch, method=method)
    np.testing.assert_array_equal(again, index)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top", [0, 9])
def test_near_is_all_where_all_is_near(method, top):
    query, key = normal(1, 2, 21, 37, 3), normal(2, 2, 3, 30, 37, 3)
    near = search(query, key, method=method, within=40, top=top)
    np.testing.assert_array_equal(near, search(query, key, method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("patch", "within"), [(1, 3), (3, 1), (3, 6), (5, 2)])
def test_near_is_the_best_of_what_is_near(method, patch, within):
    """No key within reach is better, and what was found lies in the tile's window."""
    query, key = normal(3, 1, 40, 35, 4), normal(4, 1, 40, 35, 4)
    found = np.asarray(search(query, key, patch=patch, method=method, within=within))
    table = cosines(query, key, patch)[0]
    y, x = np.divmod(np.arange(40 * 35), 35)
    chosen = table[np.arange(len(table)), found.reshape(-1)]
    apart = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x))
    best = np.where(apart <= within, table, -2).max(1)
    assert (best - chosen).max() <= 1e-5
    row, column = np.divmod(found.reshape(-1), 35)
    for place, own in ((row, y), (column, x)):
        assert (abs(place - own) < near.TILE + 2 * within).all()
    assert (table.max(1) > chosen + 0.005).any()  # the whole map has better ones


def test_near_is_the_same_for_some_rows():
    """Tiles lie where they are in the whole grid."""
    query, key = normal(5, 1, 50, 20, 4), normal(6, 1, 2, 50, 20, 4)
    whole = np.asarray(search(query, key, within=3))
    near_row = jax.jit(lambda q, k, row: matching.search(q, k, within=3, top=row))
    for top in (0, 5, 16, 29):
        part = near_row(query[:, top : top + 21], key, top)
        # The last row of a part has no patch of its own: its neighbour is missing.
        inner = slice(1 if top else 0, 21 if top + 21 == 50 else 20)
        np.testing.assert_array_equal(
            part[:, inner], whole[:, top : top + 21][:, inner]
        )


def test_near_needs_one_grid():
    query, key = normal(7, 1, 6, 8, 2), normal(8, 1, 6, 7, 2)
    with pytest.raises(ValueError, match="6x8 and 6x7"):
        search(query, key, within=2)
    for wrong in ({"within": -1}, {"within": 1, "method": "kernel"}):
        with pytest.raises(ValueError, match="within must be"):
            search(query, query, **wrong)
    with pytest.raises(ValueError, match="method"):
        search(query, query, within=1, method="none")
    side = jax.export.symbolic_shape("1, h, h, 2", constraints=["h <= 99"])
    free = jax.ShapeDtypeStruct(side, np.float32)
    with pytest.raises(ValueError, match="symbols"):
        jax.export.export(jax.jit(lambda x: matching.search(x, x, within=1)))(free)


def test_a_patch_comes_from_its_own_reference():
    """Whose borders are borders."""
    index = np.random.default_rng(40).integers(0, 120, (2, 6, 7))
    values = normal(41, 2, 3, 5, 8, 2)
    constant = jnp.broadcast_to(jnp.arange(3.0).reshape(1, 3, 1, 1, 1), values.shape)
    of_patch = transfer(constant, index, patch=1)[..., 0]
    np.testing.assert_array_equal(of_patch, index // 40)
    one = jnp.full_like(index, 47)  # the same patch of the second reference everywhere
    np.testing.assert_allclose(
        transfer(values, one), transfer(values[:, 1], one - 40), atol=1e-6
    )


def test_bfloat16_maps():
    query, key = (jnp.asarray(normal(s, 1, 8, 9, 4), jnp.bfloat16) for s in (24, 25))
    value = jnp.asarray(normal(26, 1, 8, 9, 3), jnp.bfloat16)
    t, index, c = jax.jit(match)(query, key, value)
    assert (t.dtype, index.dtype, c.dtype) == (jnp.bfloat16, jnp.int32, jnp.float32)
    # bfloat16 products are exact in float32, so this is the search of the values.
    assert_best(query, key, index, 3)
    exact = transfer(value.astype(jnp.float32), index)
    np.testing.assert_allclose(t.astype(jnp.float32), exact, atol=0.05)
    constant = jnp.full((1, 8, 9, 2), 0.7, jnp.bfloat16)
    np.testing.assert_array_equal(transfer(constant, index), constant)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    x = jnp.zeros((1, 4, 4, 2))
    for patch in (0, 2, -1):
        with pytest.raises(ValueError, match="patch must be odd"):
            search(x, x, patch=patch)
        with pytest.raises(ValueError, match="patch must be odd"):
            pair_score(x, x, jnp.zeros((1, 4, 4), jnp.int32), patch=patch)
    for shape in ((1, 4, 5), (1, 3, 3)):
        with pytest.raises(ValueError, match=r"index must have the shape \(1, 4, 4\)"):
            match(x, x, x, index=jnp.zeros(shape, jnp.int32))
    with pytest.raises(ValueError, match="got shapes"):
        search(x[0], x[0])
    with pytest.raises(ValueError, match="method must be one of"):
        search(x, x, method="exact")
    with pytest.raises(ValueError, match="agree in batch and channels"):
        search(x, jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="agree in batch and channels"):
        search(x, jnp.zeros((2, 4, 4, 2)))
