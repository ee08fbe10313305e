"""Where voxels lie: 48 orientations, oblique, left-handed; by a computation apart."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daasr_jax.data.sources.nifti import load, slices_of
from daasr_jax.errors import DataError
from daasr_jax.scans import (
    Grid,
    Scan,
    back,
    coverage_report,
    enlarged,
    grid_of,
    in_plane,
    on_grid,
    read_scan,
    slice_axis,
    write_nifti,
)
from daasr_jax.scans.quaternion import qform_of
from tests.data_fixtures import one_line

SHAPE, SIDES = (17, 14, 12), (0.9, 1.1, 4.0)
# Every way of storing three axes: their order and the way each runs.
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
# Turns about x, y and z in degrees.
TURNS = [(0, 0, 0), (12, -7, 5), (0.02, 0, 0), (0, 1.3, -0.4), (33, 20, -28)]
# Near half a turn the 24 bits of a qform cannot hold 1e-4 mm, see `TestQform`.
NEAR_HALF = [(0.02, 0, 0), (0, 1.3, -0.4)]


def affine_of(order, signs, turn=(0, 0, 0), sides=SIDES, shift=(-81.3, 94.7, -40.2)):
    """Voxel axis i runs along the world's axis order[i], by signs[i], then turned."""
    axes = np.zeros((3, 3))
    for i, (world, sign) in enumerate(zip(order, signs, strict=True)):
        axes[world, i] = sign * sides[i]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ axes
    affine[:3, 3] = shift
    return affine


def scan_of(affine, shape=SHAPE, voxels=None, source="scan.nii", **more):
    if voxels is None:
        rng = np.random.default_rng(0)
        voxels = rng.integers(0, 900, shape).astype(np.int16)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return Scan(voxels, affine, True, tuple(sides.tolist()), source, "nifti", **more)


def outer_corners(affine, shape):
    """The eight corners of the box of the voxels' faces, one by one, in mm."""
    out = []
    for ends in itertools.product(*[(-0.5, side - 0.5) for side in shape]):
        place = affine[:3, 3].astype(float)
        for i in range(3):
            place = place + ends[i] * affine[:3, i]
        out.append(place)
    return np.array(out)


def written(path, affine, shape=SHAPE, codes=(1, 1), units="mm", **fields):
    """A file of known voxels, and the scan that is read from it."""
    image = nib.Nifti1Image(
        np.random.default_rng(1).integers(0, 900, shape).astype(np.int16), None
    )
    image.header.set_sform(affine, codes[0])
    image.header.set_qform(affine, codes[1], strip_shears=True)
    image.header.set_xyzt_units(units, "sec")
    for name, value in fields.items():
        image.header[name] = value
    nib.Nifti1Image(image.dataobj, None, image.header).to_filename(path)
    return read_scan(path)


class TestEnlarged:
    @pytest.mark.parametrize("turn", TURNS)
    @pytest.mark.parametrize("order", sorted({o for o, _ in ORIENTATIONS}))
    def test_outer_faces_stay(self, order, turn, tmp_path):
        """Of 48 orientations and each axis, in sform and qform, as nibabel reads."""
        path = tmp_path / "out.nii"
        for signs in itertools.product((1, -1), repeat=3):
            affine = affine_of(order, signs, turn)
            for axis, scale in ((2, 4), (0, 3), (1, 2)):
                scan = scan_of(affine, header=nib.Nifti1Header())
                scan.header.set_data_shape(SHAPE)
                scan.header.set_sform(affine, 1)
                scan.header.set_qform(affine, 1)
                grid = enlarged(scan, axis, scale)
                wanted = [s * (scale if i != axis else 1) for i, s in enumerate(SHAPE)]
                assert grid.shape == tuple(wanted)
                voxels = np.zeros(grid.shape, np.float32)
                write_nifti(path, voxels, grid, scan, force=True)
                found = nib.load(path)
                corners = outer_corners(affine, SHAPE)
                forms = [found.get_sform(), found.affine]
                if turn not in NEAR_HALF:
                    forms.append(found.get_qform())
                for form in forms:
                    off = outer_corners(form, found.shape) - corners
                    assert np.abs(off).max() < 1e-4, (signs, axis)
                sides = np.array(SIDES) / [scale if i != axis else 1 for i in range(3)]
                np.testing.assert_allclose(found.header.get_zooms(), sides, rtol=1e-6)

    def test_first_voxel_by_hand(self):
        affine = np.diag([2.0, 3.0, 5.0, 1.0])
        affine[:3, 3] = (10, 20, 30)
        grid = enlarged(scan_of(affine), 2, 2)
        # voxels of 1 and 1.5 mm: centres a quarter of the old side before the old ones
        np.testing.assert_allclose(grid.affine[:3, 3], (9.5, 19.25, 30))
        np.testing.assert_allclose(np.diag(grid.affine), (1, 1.5, 5, 1))

    def test_an_image_keeps_its_place(self):
        """A bright voxel's block of voxels lies around the voxel's centre."""
        scan = scan_of(affine_of((2, 0, 1), (1, -1, -1), (20, 10, 5)))
        grid = enlarged(scan, 1, 4)
        block = np.stack(np.meshgrid(range(12, 16), [5], range(28, 32))).reshape(3, -1)
        places = grid.affine[:3, :3] @ block + grid.affine[:3, 3:]
        centre = scan.affine @ [3, 5, 7, 1]
        np.testing.assert_allclose(places.mean(axis=1), centre[:3], atol=1e-9)


class TestQform:
    def test_near_half_a_turn(self):
        """Plain rounding is off by up to 0.2 mm; the search is nearer."""
        rng = np.random.default_rng(3)
        plain, nearest = [], []
        shape = (512, 512, 40)
        for _ in range(60):
            turn = rng.normal(0, 5, 3)
            affine = affine_of((0, 1, 2), (-1, -1, 1), turn, (0.45, 0.45, 4.0))
            header = nib.Nifti1Header()
            header.set_data_shape(shape)
            header.set_qform(affine, 1)
            for found, errors in (
                (header.get_qform(), plain),
                (form_of(affine, shape), nearest),
            ):
                off = outer_corners(found, shape) - outer_corners(affine, shape)
                errors.append(np.abs(off).max())
        assert np.median(nearest) < 1e-4 < np.median(plain)
        assert (np.array(nearest) <= np.array(plain) + 1e-5).all()

    def test_says_how_far_off_it_is(self):
        shape = (512, 512, 40)
        for turn in TURNS:
            for order, signs in ORIENTATIONS[::5]:
                affine = affine_of(order, signs, turn, (0.45, 0.45, 4.0))
                off = outer_corners(form_of(affine, shape), shape)
                off -= outer_corners(affine, shape)
                told = qform_of(affine, shape)
                there = np.linalg.norm(off, axis=1).max()
                assert there == pytest.approx(told.error, abs=1e-6)

    def test_shear(self):
        affine = affine_of((0, 1, 2), (1, 1, 1))
        affine[0, 2] += 0.8
        assert qform_of(affine, SHAPE).error > 0.1


def form_of(affine, shape):
    """What nibabel reads of the qform that is written."""
    held = qform_of(affine, shape)
    header = nib.Nifti1Header()
    header["pixdim"][:4] = [held.handed, *held.sides]
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = held.quaternion
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = held.offset
    return header.get_qform()


class TestSlices:
    @pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
    def test_as_training_cuts_them(self, order, signs, tmp_path):
        scan = written(tmp_path / "a.nii", affine_of(order, signs, (6, -4, 9)))
        image = load(tmp_path / "a.nii")
        for name in ("axial", "coronal", "sagittal"):
            axis = slice_axis(scan, name)
            slices = in_plane(scan, axis)
            np.testing.assert_array_equal(slices, slices_of(image, name))
            np.testing.assert_array_equal(back(slices, scan, axis), scan.voxels)
        assert slice_axis(scan) == 2  # 4 mm

    @pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
    def test_enlarged_slices_go_back_to_their_grid(self, order, signs):
        """Rows and columns repeated are the voxels repeated."""
        scan = scan_of(affine_of(order, signs))
        for axis in range(3):
            slices = in_plane(scan, axis).repeat(3, axis=1).repeat(3, axis=2)
            voxels = scan.voxels
            for i in {0, 1, 2} - {axis}:
                voxels = voxels.repeat(3, axis=i)
            grid = enlarged(scan, axis, 3)
            assert back(slices, scan, axis).shape == grid.shape
            np.testing.assert_array_equal(back(slices, scan, axis), voxels)
            np.testing.assert_array_equal(in_plane(scan, axis, voxels), slices)

    @pytest.mark.parametrize(
        ("sides", "axis", "says"),
        [
            ((1, 1, 3), 2, ""),
            ((3, 1, 1.2), 0, ""),
            (
                (1.2, 1, 1),
                0,
                "nearly as long as they are thick; the slices are taken s",
            ),
            ((1, 1, 1), 2, "no longest side; the slices are taken axial"),
            ((3, 3, 1), 0, "no longest side; the slices are taken sagittal"),
        ],
    )
    def test_the_thickest_side(self, sides, axis, says, caplog):
        scan = scan_of(affine_of((0, 1, 2), (-1, -1, 1), sides=sides))
        assert slice_axis(scan) == axis
        assert says in caplog.text
        assert bool(caplog.text) == bool(says)

    def test_axis_asked_for(self):
        scan = scan_of(affine_of((1, 2, 0), (1, -1, -1)))
        found = [slice_axis(scan, name) for name in ("coronal", "axial", "sagittal")]
        assert found == [0, 1, 2]
        assert [slice_axis(scan, name) for name in "012"] == [0, 1, 2]
        with pytest.raises(DataError) as error:
            slice_axis(scan, "oblique")
        one_line(error.value, "E346", "oblique", "none of auto")
        thin = scan_of(scan.affine, (17, 14, 8))
        with pytest.raises(DataError) as error:
            slice_axis(thin, "0")
        one_line(error.value, "E346", "14x8", "under 11", "--axis")


def ramp(affine, shape, gradient=(3.0, -2.0, 5.0), at=1000.0):
    """A linear function of the place in mm, on a grid."""
    places = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return (places @ np.array(gradient) + at).astype(np.float32)


class TestOnGrid:
    @pytest.mark.parametrize("seed", range(12))
    def test_a_ramp_in_world_space(self, seed):
        """Any two oblique grids: the value at a voxel is that of its place."""
        rng = np.random.default_rng(seed)
        order, signs = ORIENTATIONS[rng.integers(48)]
        shape = (30, 34, 26)
        affine = affine_of(order, signs, rng.uniform(-40, 40, 3), (1.2, 1.0, 1.5))
        reference = scan_of(affine, voxels=ramp(affine, shape))
        order, signs = ORIENTATIONS[rng.integers(48)]
        other = affine_of(order, signs, rng.uniform(-40, 40, 3), (0.6, 0.5, 2.0))
        size = (24, 20, 8)
        middle = affine @ [*(np.array(shape) - 1) / 2, 1]
        other[:3, 3] = 0
        other[:3, 3] = middle[:3] - (other @ [*(np.array(size) - 1) / 2, 1])[:3]
        grid = Grid(size, other)
        voxels, inside = on_grid(reference, grid)
        assert inside.all()
        assert voxels.dtype == np.float32
        # a spline that is mirrored at its ends bends a ramp within a few voxels of them
        wanted = ramp(other, size)
        index = np.linalg.inv(affine) @ other
        places = np.stack(np.indices(size), axis=-1) @ index[:3, :3].T + index[:3, 3]
        deep = ((places > 6) & (places < np.array(shape) - 7)).all(axis=-1)
        assert deep.mean() > 0.3
        np.testing.assert_allclose(voxels[deep], wanted[deep], atol=0.02)
        # the same without the part of the reference that is left out
        report = coverage_report(reference, grid, inside, 2)
        assert report.share == 1
        assert report.empty == 0
        assert report.known_place

    def test_part_of_a_large_reference_is_enough(self):
        """What is cropped away changes nothing."""
        rng = np.random.default_rng(0)
        voxels = rng.uniform(0, 100, (90, 20, 20)).astype(np.float32)
        reference = scan_of(np.eye(4), voxels=voxels)
        affine = np.diag([0.5, 0.5, 3.0, 1.0])
        affine[:3, 3] = (41, 3, 2)
        grid = Grid((8, 12, 5), affine)
        found, inside = on_grid(reference, grid)
        assert inside.all()
        far = voxels.copy()
        far[:25], far[65:] = 0, 0
        again, _ = on_grid(scan_of(np.eye(4), voxels=far), grid)
        np.testing.assert_allclose(found, again, atol=1e-3)
        assert found.std() > 5

    def test_itself_is_itself_and_integers_are_no_hindrance(self):
        scan = scan_of(affine_of((2, 0, 1), (1, -1, -1), (10, 20, 30)))
        found, inside = on_grid(scan, Grid(SHAPE, scan.affine))
        np.testing.assert_allclose(found, scan.voxels, atol=0.01)
        assert inside.all()

    def test_no_value_beyond_the_range_of_the_scan(self):
        voxels = np.zeros((20, 20, 20), np.float32)
        voxels[8:12, 8:12, 8:12] = 100
        scan = scan_of(np.eye(4), voxels=voxels)
        found, _ = on_grid(scan, enlarged(scan, 2, 4))
        assert found.min() == 0
        assert found.max() == 100

    def test_one_slice(self):
        scan = scan_of(np.diag([1.0, 1, 4, 1]), voxels=np.ones((12, 12, 1), np.int16))
        found, inside = on_grid(scan, enlarged(scan, 2, 2))
        np.testing.assert_allclose(found, 1, atol=1e-6)
        assert inside.all()

    def test_part_and_none(self):
        scan = scan_of(np.eye(4), voxels=np.full((20, 20, 20), 7, np.uint8))
        affine = np.eye(4)
        affine[2, 3] = 12.0
        grid = Grid((20, 20, 16), affine)
        found, inside = on_grid(scan, grid)
        assert inside.sum() == 20 * 20 * 8
        assert not found[~inside].any()
        np.testing.assert_allclose(found[inside], 7, atol=1e-5)
        report = coverage_report(scan, grid, inside, 2)
        assert (report.share, report.empty, report.slices) == (0.5, 8, 16)
        assert not report.enough
        assert "covers 50.0 %" in str(report)
        assert "8 of 16 slices" in str(report)
        affine[2, 3] = 40.0
        with pytest.raises(DataError) as error:
            on_grid(scan, Grid((20, 20, 16), affine))
        one_line(error.value, "E348", "scan.nii", "does not overlap")

    def test_report(self):
        scan = scan_of(affine_of((1, 2, 0), (-1, -1, 1), sides=(1.2, 1.2, 1.0)))
        grid = Grid(SHAPE, affine_of((0, 1, 2), (-1, -1, 1), (0, 0, 9), (0.3, 0.3, 4)))
        report = coverage_report(scan, grid, np.ones(SHAPE, bool), 2)
        assert report.degrees == pytest.approx(9)
        assert report.turned
        np.testing.assert_allclose(report.ratio, (1 / 0.3, 4, 0.3), rtol=0.02)
        same = coverage_report(scan, Grid(SHAPE, scan.affine), np.ones(SHAPE, bool), 2)
        assert (same.degrees, same.turned) == (pytest.approx(0, abs=1e-5), False)
        assert same.ratio == pytest.approx((1, 1, 1))

    def test_another_space_is_said(self, tmp_path):
        affine = affine_of((0, 1, 2), (1, 1, 1))
        scan = written(tmp_path / "a.nii", affine, codes=(1, 1))
        everywhere = np.ones(SHAPE, bool)
        for codes, says in (((1, 1), ""), ((2, 1), ""), ((4, 1), "MNI space where")):
            other = written(tmp_path / "b.nii", affine, codes=codes)
            report = coverage_report(other, grid_of(scan), everywhere, 2, scan)
            assert says in str(report)
            assert bool(report.apart) == bool(says)
            assert not coverage_report(other, grid_of(scan), everywhere, 2).apart

    def test_unknown_places_are_the_same_region(self):
        def unplaced(shape):
            voxels = ramp(np.diag([1 / n for n in shape] + [1]), shape, (9, 5, 2), 0)
            return Scan(voxels, np.eye(4), False, (np.nan,) * 3, "a.npz", "npz")

        small, large = unplaced((20, 24, 6)), unplaced((80, 96, 6))
        found, inside = on_grid(large, enlarged(small, 2, 4))
        np.testing.assert_allclose(found, large.voxels, atol=1e-4)
        assert inside.all()
        found, inside = on_grid(small, enlarged(small, 2, 4))
        assert inside.all()
        assert np.abs(found - large.voxels)[16:-16, 16:-16].max() < 0.3
        with pytest.raises(DataError) as error:
            on_grid(unplaced((80, 90, 6)), enlarged(small, 2, 4))
        one_line(error.value, "E349", "80x90x6", "80x96x6")
