"""`daasr_jax.enhance` on arrays, and the engine below it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import daasr_jax
from daasr_jax import released
from daasr_jax.enhancement import Engine, bands
from daasr_jax.enhancement.arrays import fitted
from daasr_jax.errors import CheckpointError, DataError, ResourceError
from daasr_jax.registry import MODELS
from tests.weights import write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return released.load(write_weights(tmp_path_factory.mktemp("w") / "x2.safetensors"))


def scan(*shape: int, seed: int = 0, top: float = 900.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random(shape) * top).astype(np.float32)


@pytest.fixture(scope="module")
def pair():
    return scan(2, 20, 23), scan(2, 40, 46, seed=1, top=7.0)


@pytest.fixture(scope="module")
def made(weights, pair):
    return daasr_jax.enhance(*pair, weights)


def test_it_is_the_network_on_normalised_slices(weights, pair, made):
    lr, ref = (jnp.asarray(x / x.max())[..., None] for x in pair)
    model, variables, _ = weights
    wanted = jax.jit(lambda a, b: model.apply(variables, a, b, train=False))(lr, ref)
    assert made.sr.shape == (2, 40, 46)
    assert made.sr.dtype == np.float32
    scale = pair[0].max()
    np.testing.assert_allclose(made.sr, wanted.sr[..., 0] * scale, atol=1e-4 * scale)
    assert made.confidence.shape == made.index.shape == (2, 20, 23)
    np.testing.assert_allclose(
        made.confidence, wanted.aux["confidence"][-1, ..., 0], atol=1e-5
    )
    assert made.index.dtype == np.int32


def test_one_slice_has_no_axis_of_slices(weights, pair, made):
    one = daasr_jax.enhance(pair[0][0], pair[1][0], weights)
    assert one.sr.shape == (40, 46)
    assert one.index.shape == (20, 23)


def test_the_unit_is_that_of_the_input(weights, pair, made):
    lr, ref = pair
    other = daasr_jax.enhance(lr * 8, ref * 0.25, weights)
    np.testing.assert_allclose(other.sr, made.sr * 8, rtol=1e-5, atol=1e-2)
    integer = daasr_jax.enhance(lr.astype(np.uint16), ref, weights)
    assert np.abs(integer.sr - made.sr).mean() < 2


def test_a_hot_voxel_does_not_set_the_range(weights):
    lr = np.full((20, 20), 100.0)
    lr[5:15, 5:15] = np.arange(100).reshape(10, 10) + 200
    plain = daasr_jax.enhance(lr, None, weights).sr
    lr[0, 0] = 1e6
    hot = daasr_jax.enhance(lr, None, weights).sr
    np.testing.assert_allclose(hot[20:], plain[20:], rtol=0.02, atol=4)


def test_without_reference_is_with_zeros(weights, pair):
    lr = pair[0]
    none = daasr_jax.enhance(lr, None, weights)
    engine = Engine(weights)
    zeros = np.zeros((2, 1, 40, 46), np.float32)
    black = engine((lr / lr.max()).astype(np.float32), zeros)
    np.testing.assert_allclose(none.sr / lr.max(), black.sr, atol=1e-6)
    assert not none.confidence.any()


@pytest.mark.full
def test_a_network_that_takes_a_reference_at_its_own_place_does_without(tmp_path):
    """Another run than of DAASR `fast`; and one that searches nothing has no maps."""
    for name, fields in (("minet", {"features": 8}), ("srcnn", {})):
        model = MODELS.get(name)(scale=2, **fields)
        zeros = jnp.zeros((1, 20, 20, 1)), jnp.zeros((1, 40, 40, 1))
        variables = model.init(jax.random.key(0), *zeros, train=False)
        about = {"scale": 2, "model": name, "kwargs": fields, "degradation": "bicubic"}
        released.save(tmp_path / f"{name}.safetensors", variables, about)
        made = daasr_jax.enhance(scan(20, 24), None, tmp_path / f"{name}.safetensors")
        assert made.sr.shape == (40, 48)
        assert made.confidence is None
        assert made.index is None


def test_several_references_are_searched_together(weights, pair, made):
    lr, ref = pair
    stranger = scan(2, 40, 46, seed=5)
    both = daasr_jax.enhance(lr, [stranger, ref], weights)
    cells = 20 * 23
    taken = both.index >= cells
    assert taken.any()
    assert (both.confidence >= made.confidence - 1e-5).all()
    np.testing.assert_array_equal(both.index[taken] - cells, made.index[taken])


@pytest.mark.parametrize("size", [(40, 46), (38, 50), (45, 41)])
def test_the_reference_is_padded_or_cropped_about_its_centre(weights, pair, made, size):
    ref = fitted(pair[1], size)
    assert ref.shape == (2, *size)
    found = daasr_jax.enhance(pair[0], ref, weights)
    assert found.sr.shape == made.sr.shape
    back = fitted(ref, (40, 46))
    inner = np.s_[:, 3:-3, 3:-3]
    np.testing.assert_array_equal(back[inner], pair[1][inner])


@pytest.mark.parametrize(
    ("lr", "ref", "said"),
    [
        (np.zeros((2, 20, 20, 1)), None, "(H, W) or (S, H, W)"),
        (np.full((20, 20), "a"), None, "real numbers"),
        (np.ones((20, 20), complex), None, "real numbers"),
        (np.full((20, 20), np.nan), None, "not finite"),
        (scan(19, 30), None, "20 to 1024"),
        (scan(20, 1025), None, "20 to 1024"),
        (np.ones((20, 20)), None, "blank"),
        (scan(2, 20, 20), scan(3, 40, 40), "3 slices, wanted 2"),
        (scan(20, 20), np.zeros((40, 40)), "ref is blank"),
        (scan(20, 20), [scan(40, 40), np.zeros((40, 40))], "ref 1 is blank"),
    ],
)
def test_what_is_no_image_is_told(weights, lr, ref, said):
    with pytest.raises(DataError) as caught:
        daasr_jax.enhance(lr, ref, weights)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_by_name(tmp_path, pair, made):
    path = write_weights(tmp_path / "x2.safetensors")
    found = daasr_jax.enhance(*pair, weights=path)
    np.testing.assert_array_equal(found.sr, made.sr)
    with pytest.raises(CheckpointError, match="x9"):
        daasr_jax.enhance(*pair, weights="x9")


def test_the_function_stays_where_a_module_takes_its_name(weights, pair, made):
    import daasr_jax.enhance

    found = daasr_jax.enhance(*pair, weights)
    np.testing.assert_array_equal(found.sr, made.sr)
    with pytest.raises(AttributeError, match="enhanced"):
        _ = daasr_jax.enhanced


class Starved(Engine):
    """With room for one slice."""

    room = 1

    def _fitting(self, lr, ref):
        return 4

    def _program(self, n, lr, ref):
        if n > self.room:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return super()._program(n, lr, ref)


def test_out_of_memory_halves_and_goes_on(weights):
    lr, ref = scan(5, 20, 20, top=1.0), scan(5, 1, 40, 40, seed=1, top=1.0)
    seen = []

    def track(places, total):
        for i in places:
            seen.append((i, total))
            yield i

    starved = Starved(weights)(lr, ref, track)
    plain = Engine(weights)(lr, ref)
    np.testing.assert_array_equal(starved.sr, plain.sr)
    assert seen == [(i, 5) for i in range(5)]


@pytest.mark.full
def test_no_room_for_a_whole_slice_takes_bands(weights):
    lr, ref = scan(1, 20, 21, top=1.0), scan(1, 1, 40, 42, seed=1, top=1.0)
    engine = Starved(weights)
    engine.room = 0
    wanted = Engine(weights)(lr, ref).sr
    np.testing.assert_allclose(
        engine(lr, ref).sr, wanted, atol=1e-5 * max(1, np.abs(wanted).max())
    )


def test_no_room_at_all_is_one_line(weights, monkeypatch):
    monkeypatch.setattr(bands, "can_band", lambda _: False)
    engine = Starved(weights)
    engine.room = 0
    with pytest.raises(ResourceError, match="one slice of 20x21 pixels"):
        engine(scan(1, 20, 21), scan(1, 1, 40, 42))


def test_a_slice_over_the_memory_without_bands_is_one_line(weights, monkeypatch):
    monkeypatch.setattr(bands, "can_band", lambda _: False)
    given = scan(1, 20, 21), scan(1, 1, 40, 42)
    needed = Engine(weights)(*given).bytes
    assert Engine(weights, memory=needed)(*given).bytes == needed
    with pytest.raises(ResourceError) as error:
        Engine(weights, memory=needed - 2**10)(*given)
    allowed, takes = (f"{x / 2**30:.3g}" for x in (needed - 2**10, needed))
    text = str(error.value)
    assert text.startswith("error E615: one slice of 20x21 pixels does not fit into")
    assert f"{allowed} GiB (it takes {takes})" in text


def test_another_error_of_a_device_stays(weights, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    engine = Engine(weights)
    monkeypatch.setattr(engine, "_program", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        engine(scan(1, 20, 21), scan(1, 1, 40, 42))


def test_batches_give_what_single_slices_give(weights):
    lr, ref = scan(5, 20, 20, top=1.0), scan(5, 1, 40, 40, seed=1, top=1.0)
    plain, roomy = Engine(weights), Starved(weights)
    roomy.room = 4
    np.testing.assert_allclose(roomy(lr, ref).sr, plain(lr, ref).sr, atol=1e-5)
    assert plain(lr, ref).bytes > lr.nbytes
