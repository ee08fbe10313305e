"""What the shared contract does not say about McMRSR: counts, matching, sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daasr_jax.models import mcmrsr
from daasr_jax.models import mcmrsr_matching as matching
from daasr_jax.models.__main__ import parameters
from daasr_jax.models.mcmrsr import Adaptation, Aggregation, McMRSR
from daasr_jax.models.mcmrsr_matching import BLOCK, WINDOW
from tests.parity.weights import flatten, random_variables, uniform

FAST_COMPILE = {"xla_backend_optimization_level": 0}
TINY = {"features": 8, "groups": 1, "blocks": 1, "heads": 2, "level_blocks": (1, 1, 1)}


def jit(f):
    return jax.jit(f, compiler_options=FAST_COMPILE)


def maps(*shape, name="map"):
    return jnp.asarray(2 * uniform(shape, seed=1, name=name) - 1)


def positions(h, w, width, *, down=0, right=0):
    """Positions in a map of `width` of an h x w cut that starts there, `(1, h, w)`."""
    y, x = np.mgrid[down : down + h, right : right + w]
    return jnp.asarray((y * width + x)[None].astype(np.int32))


def shapes(model, lr=(1, 16, 16), ref=None):
    b, h, w = lr
    ref = ref or (h * model.scale, w * model.scale)
    images = jnp.zeros((b, h, w, 1)), jnp.zeros((b, *ref, 1))
    return jax.eval_shape(
        lambda key: model.init_with_output(key, *images, train=False),
        jax.random.key(0),
    )


class TestParameters:
    def test_published_counts(self):
        conv = 60 * 60 * 9 + 60
        unused = conv + 4 * 2 * conv  # by the public network at x2, see the module
        assert parameters("mcmrsr", 4) == 3_175_741
        assert parameters("mcmrsr", 2) == 3_175_741 - unused == 2_883_601

    def test_x3_has_the_layers_of_x2(self):
        two, three = (shapes(McMRSR(scale=s, **TINY))[1] for s in (2, 3))
        assert jax.tree.map(jnp.shape, two) == jax.tree.map(jnp.shape, three)

    def test_start(self):
        """Every kernel, those of gamma and beta included, is N(0, 0.02)."""
        model = McMRSR(scale=2, **(TINY | {"features": 24}))
        lr, ref = jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 32, 32, 1))
        params = jit(lambda k: model.init(k, lr, ref, train=False))(jax.random.key(0))
        params = flatten(params["params"])
        for path, value in params.items():
            if path.endswith("kernel") and value.size > 1000:
                assert 0.018 < value.std() < 0.022, path
        for name in ("gamma", "beta"):
            assert not params[f"adapt/{name}/bias"].any()
        assert params["adapt/shared/bias"].any()
        assert not params["deep/group0_layer0/mlp/in/bias"].any()


class TestSearch:
    def test_blocks_and_positions_find_themselves(self):
        key = maps(2, 20, 26, 4)
        query = key[:, 3:19, 2:26]
        found = np.asarray(jit(matching.find)(query, key))
        expected = np.broadcast_to(positions(16, 24, 26, down=3, right=2), found.shape)
        # The patches at the border of the query repeat it and are of no place.
        inner = (slice(None), slice(1, -1), slice(1, -1))
        np.testing.assert_array_equal(found[inner], expected[inner])

    def test_coarse_is_the_best_sum_of_three_cosines(self):
        query, key = maps(1, 8, 16, 3, name="q"), maps(1, 15, 17, 3, name="k")
        best = np.asarray(matching.coarse(query, key))[0, 0]
        q, k = (np.asarray(x[0], np.float64) for x in (query, key))
        k = np.pad(k, ((3, 3), (3, 3), (0, 0)))

        def patch(x, row, column, d):
            return x[row - d : row + d + 1 : d, column - d : column + d + 1 : d].ravel()

        def cosine(a, b):
            return a @ b / np.sqrt((a @ a) * (b @ b))

        for block in (0, 1):
            own = [patch(q, 4, 8 * block + 4, d) for d in (1, 2, 3)]
            sums = [
                sum(cosine(own[d - 1], patch(k, y + 3, x + 3, d)) for d in (1, 2, 3))
                for y in range(15)
                for x in range(17)
            ]
            assert best[block] == np.argmax(sums)

    @pytest.mark.parametrize(
        ("centre", "rows", "columns"),
        [((0, 0), (1, 13), (1, 13)), ((12, 15), (6, 18), (9, 21)), ((9, 22), 0, 0)],
    )
    def test_window_stays_inside(self, centre, rows, columns):
        query, key = maps(1, 8, 8, 3, name="q"), maps(1, 20, 23, 3, name="k")
        at = jnp.full((1, 1, 1), centre[0] * 23 + centre[1], jnp.int32)
        found = np.asarray(matching.fine(query, key, at))
        rows, columns = rows or (3, 15), columns or (9, 21)
        for got, (low, high) in ((found // 23, rows), (found % 23, columns)):
            assert low <= got.min() <= got.max() <= high

    def test_refusals(self):
        with pytest.raises(ValueError, match="query must have sides that are mult"):
            matching.find(maps(1, 12, 16, 1), maps(1, 16, 16, 1))
        with pytest.raises(ValueError, match="key must have sides of at least 15"):
            matching.find(maps(1, 16, 16, 1), maps(1, 14, 16, 1))


class TestScore:
    def test_is_one_for_equal_patches_and_zero_for_empty_ones(self):
        key = maps(1, 20, 20, 3).at[:, 8:].set(0.0)
        query = 2 * key[:, 2:18, 2:18]
        index = positions(16, 16, 20, down=2, right=2)

        def total(query, key):
            score = matching.score(query, key, index)
            return jnp.sum(score), score

        gradients, score = jax.grad(total, (0, 1), has_aux=True)(query, key)
        np.testing.assert_allclose(score[:, 1:6, 1:-1], 1.0, atol=1e-6)
        np.testing.assert_array_equal(score[:, 8:], 0.0)
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient[:, 11:], 0.0)

    def test_both_maps_learn(self):
        query, key = maps(1, 8, 8, 2, name="q"), maps(1, 15, 15, 2, name="k")
        index = positions(8, 8, 15, down=3, right=4)

        def total(query, key):
            return jnp.sum(matching.score(query, key, index) ** 2)

        for gradient in jax.grad(total, (0, 1))(query, key):
            assert np.abs(gradient).max() > 1e-3


class TestTransfer:
    @pytest.mark.parametrize("cell", [1, 2, 3])
    def test_of_a_moved_map_is_a_cut(self, cell):
        value = maps(1, 20 * cell, 21 * cell, 2)
        index = positions(16, 16, 21, down=2, right=3)
        got = matching.transfer(value, index, jnp.ones((1, 16, 16, 1)), cell=cell)
        cut = value[:, 2 * cell : 18 * cell, 3 * cell : 19 * cell]
        np.testing.assert_allclose(got, cut, atol=1e-6)

    def test_mean_of_the_patches_of_a_block(self):
        value = maps(1, 15, 15, 2)
        y, x = (
            1 + np.floor(13 * uniform((8, 16), seed=2, name=n)).astype(int)
            for n in ("y", "x")
        )
        index = jnp.asarray((y * 15 + x)[None].astype(np.int32))
        got = matching.transfer(value, index, jnp.ones((1, 8, 16, 1)), cell=1)
        total, count = np.zeros((8, 16, 2)), np.zeros((8, 16, 1))
        for i, j in np.ndindex(8, 16):
            for di, dj in np.ndindex(3, 3):
                row, column = i + di - 1, j + dj - 1
                if 0 <= row < 8 and column // 8 == j // 8 and column >= 0:
                    at = y[i, j] + di - 1, x[i, j] + dj - 1
                    total[row, column] += value[(0, *at)]
                    count[row, column] += 1
        np.testing.assert_allclose(got[0], total / count, atol=1e-6)

    def test_confidence_is_enlarged_within_blocks(self):
        ramp = jnp.tile(jnp.arange(8.0), 2).reshape(1, 1, 16, 1)
        confidence = jnp.broadcast_to(ramp, (1, 8, 16, 1))
        ones = jnp.ones((1, 32, 64, 1), jnp.bfloat16)
        got = matching.transfer(ones, positions(8, 16, 16), confidence, cell=4)
        assert got.dtype == jnp.bfloat16
        got = matching.transfer(
            ones.astype(jnp.float32),
            positions(8, 8, 16, down=0, right=1).repeat(2, axis=2),
            confidence,
            cell=4,
        )
        line = np.tile(np.linspace(0, 7, 32), 2)
        np.testing.assert_allclose(
            got[0, 4:-4, :, 0], np.tile(line, (24, 1)), atol=1e-5
        )


class TestAggregation:
    @pytest.mark.parametrize("factor", [2, 3])
    def test_grids_agree(self, factor):
        """Down takes, and up fills, the pixel that the kernel's middle meets."""
        middle = factor // 3
        fine = maps(1, 4 * factor, 5 * factor, 1)

        class Down(mcmrsr.nn.Module):
            @mcmrsr.nn.compact
            def __call__(self, x):
                return mcmrsr._reduce(x, factor, jnp.float32, "conv")

        kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
        params = {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}
        down = Down().apply({"params": params}, fine)
        assert isinstance(down, jax.Array)
        np.testing.assert_array_equal(down, fine[:, middle::factor, middle::factor])
        up = mcmrsr._spread(down, factor)
        assert up.shape == fine.shape
        np.testing.assert_array_equal(up[:, middle::factor, middle::factor], down)
        assert np.count_nonzero(up) == down.size

    def test_x3_cells_do_not_overlap(self):
        target, texture = maps(1, 3, 4, 2, name="a"), maps(1, 9, 12, 2, name="b")
        model = Aggregation(3)
        params = random_variables(
            jax.eval_shape(model.init, jax.random.key(0), target, texture), seed=3
        )
        run = jit(model.apply)
        moved = run(params, target.at[0, 1, 1].add(1.0), texture)
        changed = np.abs(moved - run(params, target, texture)).max((0, 3)) > 0
        # Its own cell, 3:6, and one pixel around it by the last convolution.
        outside = np.ones((9, 12), bool)
        outside[2:7, 2:7] = False
        assert changed[3:6, 3:6].any()
        assert not changed[outside].any()


class TestAdaptation:
    def test_takes_over_mean_and_unbiased_deviation(self):
        target, texture = maps(2, 5, 6, 3, name="a"), maps(2, 5, 6, 3, name="b")
        params = jax.eval_shape(Adaptation().init, jax.random.key(0), target, texture)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
        got = Adaptation().apply(zero, 0.1 * target + 3, 7 * texture)
        assert isinstance(got, jax.Array)
        np.testing.assert_allclose(
            got.mean((1, 2)), (0.1 * target + 3).mean((1, 2)), rtol=1e-6
        )
        expected = np.asarray(0.1 * target).std((1, 2), ddof=1)
        np.testing.assert_allclose(got.std((1, 2)), expected, rtol=1e-4)

    def test_constant_channels_have_finite_gradients(self):
        ones = jnp.ones((1, 4, 4, 2))
        params = random_variables(
            jax.eval_shape(Adaptation().init, jax.random.key(0), ones, ones), seed=4
        )
        gradients = jax.grad(
            lambda *x: jnp.sum(jnp.asarray(Adaptation().apply(params, *x)) ** 2),
            (0, 1),
        )(ones, 0 * ones)
        assert all(np.isfinite(g).all() for g in gradients)


class TestSizes:
    def test_padded(self):
        assert mcmrsr.padded_size(85, 128) == (88, 128)
        assert mcmrsr.padded_size(4, 17) == (2 * BLOCK, 24)
        assert 2 * BLOCK >= WINDOW

    def test_mirror_and_back(self):
        grid = jnp.arange(35, dtype=jnp.float32).reshape(1, 5, 7, 1)
        padded = mcmrsr.pad_image(grid, (16, 16))
        rows = [*range(5), *range(4, -1, -1), *range(5), 4]
        np.testing.assert_array_equal(padded[0, :, 0, 0] // 7, rows)
        back = mcmrsr._unmirrored(jnp.arange(256), 16, (5, 7))
        np.testing.assert_array_equal(back, padded.ravel().astype(int))

    def test_reference_may_have_another_size(self):
        out, _ = shapes(McMRSR(scale=3, **TINY), (2, 5, 18), (33, 60))
        assert out.sr.shape == (2, 15, 54, 1)
        assert out.aux["index"].shape == (1, 2, 5, 18)
        assert out.aux["confidence"].shape == (1, 2, 5, 18, 1)


@pytest.mark.parametrize(
    ("fields", "ref", "message"),
    [
        ({"level_blocks": (1, 1)}, None, "level_blocks must have 3 numbers at x4"),
        ({"heads": 3}, None, "heads must divide the channels"),
        ({}, (64, 66), "not divisible by scale 4"),
    ],
)
def test_refusals(fields, ref, message):
    with pytest.raises(ValueError, match=message):
        shapes(McMRSR(**(TINY | fields)), ref=ref)


@pytest.mark.parametrize("size", [0.0, 1e-18, 1e-15, 1e-13, 1e-6])
def test_gradients_of_almost_empty_maps_are_finite(size):
    """1 / sqrt of a patch that is as good as empty has no finite gradient."""
    query, key = size * maps(1, 8, 8, 4), size * maps(1, 16, 16, 4, name="key")
    index = jnp.full((1, 8, 8), 40, jnp.int32)
    gradients = jax.grad(lambda *x: jnp.sum(matching.score(*x, index)), (0, 1))(
        jnp.asarray(query), jnp.asarray(key)
    )
    assert all(np.isfinite(g).all() for g in gradients)
