"""Another contrast on the grid of its target: by the headers, kept in the cache."""

import logging
import os

import numpy as np
import pytest
from scipy import ndimage

from daasr_jax.data import draw_pairing, prepare, training_batches
from daasr_jax.data.companions import between, on_grid
from daasr_jax.data.sources.base import Volume
from daasr_jax.errors import DataError
from daasr_jax.evaluation.report import contrast_by
from tests.data_fixtures import (
    SIZE,
    fastmri_root,
    one_line,
    scan_voxels,
    settings,
    write_nifti,
    write_rss,
)

CONTRAST = {"track": "aligned", "aligned": "contrast", "companions": True}


def blob(place):
    """A smooth head in the scanner's space; place is (..., 3) in mm."""
    x, y, z = np.moveaxis(place, -1, 0)
    head = np.exp(-((x / 22) ** 2 + (y / 28) ** 2 + (z / 30) ** 2))
    return head * (1 + 0.5 * np.sin(x / 6) * np.cos(y / 7) * np.sin(z / 8 + 1))


def sampled(affine, shape):
    """The head on a grid, (S, H, W), by the (4, 4) from (slice, row, column, 1)."""
    grid = np.stack(np.indices(shape), axis=-1)
    return blob(grid @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def grid(spacing, shape, degrees=0.0, shift=(0, 0, 0)):
    """From (slice, row, column, 1) to mm, about the middle, turned about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    slices, rows, columns = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])
    axes = np.column_stack([slices, rows, columns]) * spacing
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine[:3, 3] = np.array(shift) - middle
    return affine


def volume(affine, shape):
    rows = tuple(map(tuple, np.asarray(affine).tolist()))
    return Volume("v", "p", "c", "", "", shape, affine=rows)


class TestOnGrid:
    target, shape = grid((3, 1.5, 1.5), (12, 30, 28)), (12, 30, 28)

    @pytest.mark.parametrize(
        "other",
        [
            ((3, 1.5, 1.5), (12, 30, 28), 0, (0, 0, 0)),
            ((3.3, 1.2, 1.2), (14, 44, 40), 0, (3, -4, 2)),
            ((2.5, 1.4, 1.4), (20, 44, 44), 12, (1, 2, 0)),
        ],
    )
    def test_what_lies_at_the_same_place(self, other):
        spacing, shape, degrees, shift = other
        affine = grid(spacing, shape, degrees, shift)
        there = sampled(affine, shape)
        link = between(volume(self.target, self.shape), volume(affine, shape))
        found = np.stack(list(on_grid(there, link, self.shape[1:], range(2, 10))))
        wanted = sampled(self.target, self.shape)[2:10]
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() < 0.03 * wanted.max()
        # of the relative number of the slice, without the plane's place
        if shift != (0, 0, 0):
            naive = ndimage.zoom(there, np.array(self.shape) / shape, order=1)[2:10]
            assert np.abs(naive - wanted).max() > 0.2 * wanted.max()

    def test_itself_is_itself(self):
        there = sampled(self.target, self.shape)
        found = np.stack(list(on_grid(there, np.eye(4), self.shape[1:], range(12))))
        np.testing.assert_allclose(found, there, atol=1e-5)

    def test_outside_is_zero(self):
        there = np.ones((4, 10, 10), np.float32)
        link = np.eye(4)
        link[1, 3] = -6  # six rows above
        first, *_, last = on_grid(there, link, (20, 10), range(-1, 5))
        assert not first.any()
        assert not last.any()
        (image,) = on_grid(there, link, (20, 10), [2])
        np.testing.assert_allclose(image.mean(axis=1), [0] * 6 + [1] * 10 + [0] * 4)

    def test_a_coarser_grid_is_antialiased(self):
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((24, 48, 48)).astype(np.float32)
        link = np.diag([4.0, 4.0, 4.0, 1.0])
        coarse = np.stack(list(on_grid(noise, link, (12, 12), range(1, 5))))
        assert coarse.std() < 0.15
        same = np.stack(list(on_grid(noise, np.eye(4), (48, 48), range(4))))
        assert same.std() == pytest.approx(1, abs=0.05)


def affine_of_file(affine):
    """From the axes that `write_nifti` stores, (column, row, slice), to mm."""
    out = affine.copy()
    out[:, [0, 2]] = out[:, [2, 0]]
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four people with a T1 and a T2 of the same head on grids of their own."""
    root = tmp_path_factory.mktemp("data")
    for i in range(4):
        for contrast, spacing, shape, shift in (
            ("T1W", (3.0, 1.5, 1.5), (14, 36, 36), (0, 0, 0)),
            ("T2W", (2.5, 1.3, 1.3), (18, 48, 40), (3, -4, 5)),
        ):
            affine = grid(spacing, shape, 0, shift)
            affine[:2] *= -1  # L and P
            voxels = sampled(affine, shape) * (1 + 0.1 * i)
            if contrast == "T2W":
                voxels = voxels**1.5
            path = root / f"patient{i:02d}/study1_{contrast}.nii.gz"
            write_nifti(path, voxels, affine_of_file(affine))
    return root


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


class TestPrepared:
    def test_the_reference_is_registered(self, root, cache, caplog):
        wanted = settings(root, cache, whole="test", slice_range=(0.2, 0.8), **CONTRAST)
        with caplog.at_level(logging.INFO, "daasr_jax"):
            table = prepare(wanted).splits["test"]
        assert "8 pairs of volumes by their headers, 0 by the relative" in caplog.text
        pairing = draw_pairing(table, track="aligned", aligned="contrast")
        assert contrast_by(table, pairing) == "by the headers"
        before, after = [], []
        for i, k in enumerate(pairing.references):
            image = table.image(i)
            beside = table.other_contrast(i, int(k))
            assert beside.shape == (SIZE, SIZE, 1)
            assert beside.dtype == np.float32
            before.append(correlation(image, table.image(int(k))))
            after.append(correlation(image, beside))
        assert min(after) > 0.95
        assert np.mean(after) > np.mean(before) + 0.1

    def test_the_named_slice_is_the_nearest_by_the_headers(self, root, cache):
        wanted = settings(root, cache, whole="test", **CONTRAST)
        table = prepare(wanted).splits["test"]
        pairing = draw_pairing(table, track="aligned", aligned="contrast")
        z = {"T1W": (3.0, 13 / 2, 0.0), "T2W": (2.5, 17 / 2, 5.0)}
        at = np.array(
            [
                (index - z[c][1]) * z[c][0] + z[c][2]
                for index, c in zip(table.index, table.contrasts, strict=True)
            ]
        )
        for i, k in enumerate(pairing.references):
            same = (table.subjects == table.subjects[i]) & (
                table.contrasts != table.contrasts[i]
            )
            assert abs(at[k] - at[i]) <= abs(at[same] - at[i]).min() + 1e-3

    def test_batches_have_it(self, root, cache):
        wanted = settings(root, cache, whole="train", **CONTRAST)
        table = prepare(wanted).splits["train"]
        run = {"batch_size": 4, "crop": 0, "scale": 2, "steps": 3, "seed": 0}
        rule = {"track": "aligned", "aligned": "contrast", "augment": False}
        batches = list(training_batches(table, **run, **rule))
        known = {
            companion.images(k).tobytes()
            for companion in table.companions.values()
            for k in companion.numbers.values()
        }
        assert {ref.tobytes() for batch in batches for ref in batch["ref"]} <= known
        threads = list(training_batches(table, **run, **rule, num_threads=0))
        for a, b in zip(batches, threads, strict=True):
            np.testing.assert_array_equal(a["ref"], b["ref"])

    def test_kept_in_the_cache_by_content_and_header(self, root, tmp_path):
        cache = tmp_path / "cache"
        wanted = settings(root, cache, whole="test", **CONTRAST)
        first = prepare(wanted)
        folders = {p: p.stat().st_mtime_ns for p in cache.glob("prepared-*/*")}
        assert len(folders) == 8 + 8
        second = prepare(wanted)
        assert {p: p.stat().st_mtime_ns for p in folders} == folders
        assert second.companions == first.companions
        plain = prepare(settings(root, cache, whole="test"))
        assert (plain.key, plain.companions) == (first.key, None)

        moved = tmp_path / "moved"
        for path in root.rglob("*.nii.gz"):
            place = moved / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
        path = moved / "patient00/study1_T2W.nii.gz"
        path.unlink()
        affine = grid((2.5, 1.3, 1.3), (18, 48, 40), 0, (3, -4, 5))
        affine[:2] *= -1
        voxels = sampled(affine, (18, 48, 40)) ** 1.5
        affine[2, 3] += 6  # the same voxels at another place
        write_nifti(path, voxels, affine_of_file(affine))
        third = prepare(settings(moved, cache, whole="test", **CONTRAST))
        assert third.key == first.key
        assert third.companions != first.companions
        assert len(list(cache.glob("prepared-*/*"))) == 16 + 2

    def test_damage_is_found(self, root, tmp_path):
        wanted = settings(root, tmp_path, whole="test", **CONTRAST)
        table = prepare(wanted).splits["test"]
        companion = next(iter(table.companions.values()))
        folder = companion.images._places[0][0].folder
        file = next(folder.rglob("*.array_record*"))
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(DataError) as error:
            prepare(wanted)
        one_line(error.value, "E311", folder)

    def test_without_geometry_the_relative_number_stays(self, tmp_path, cache, caplog):
        root = fastmri_root(tmp_path / "data", train=0, val=0)
        for i in range(3):
            for contrast in ("AXT1", "AXT2"):
                seed = 10 * i + (contrast == "AXT2")
                path = root / f"multicoil_val/file_{i}_{contrast}.h5"
                write_rss(path, seed, f"val{i}", contrast)
        with caplog.at_level(logging.INFO, "daasr_jax"):
            wanted = settings(root, cache, whole="test", **CONTRAST)
            prepared = prepare(wanted)
        table = prepared.splits["test"]
        assert prepared.companions is None
        assert "0 pairs of volumes by their headers, 6 by the relative" in caplog.text
        pairing = draw_pairing(table, track="aligned", aligned="contrast")
        assert contrast_by(table, pairing) == "by the relative number of the slice"
        for i, k in enumerate(pairing.references.tolist()):
            np.testing.assert_array_equal(table.other_contrast(i, k), table.image(k))
            assert table.index[k] == table.index[i]


def test_voxels_of_another_type_are_taken(tmp_path, cache):
    """uint16 voxels and a copy of another contrast on one grid: nothing moves."""
    for i in range(2):
        for j, contrast in enumerate(("T1W", "T2W")):
            path = tmp_path / f"d/patient{i}/study1_{contrast}.nii.gz"
            write_nifti(path, scan_voxels(10 * i + j))
    wanted = settings(tmp_path / "d", cache, whole="test", **CONTRAST)
    table = prepare(wanted).splits["test"]
    pairing = draw_pairing(table, track="aligned", aligned="contrast")
    for i, k in enumerate(pairing.references.tolist()):
        beside = table.other_contrast(i, k)
        assert np.abs(beside - table.image(k)).max() < 0.02
