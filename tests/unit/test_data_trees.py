"""Which files of a tree are taken, and which person each of them belongs to."""

import contextlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from daasr_jax.data import DataSettings
from daasr_jax.data.sources import choose_source, forms
from daasr_jax.data.sources.tree import walk
from daasr_jax.errors import DataError
from tests.data_fixtures import (
    fastmri_root,
    nifti_root,
    one_line,
    scan_voxels,
    write_nifti,
    write_rss,
)

NII = (".nii", ".nii.gz")


def scan(root, **changes):
    wanted = DataSettings(**{"root": str(root), **changes})
    return choose_source(wanted).scan(wanted)


def write(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        write_nifti(root / name, scan_voxels(i))
    return root


def placed(*paths: str, pattern: str = "auto") -> list[tuple[str, str, str]]:
    """Subject, study and contrast of each path."""
    return [tuple(spot)[:3] for spot in forms.place(paths, pattern)[1].values()]


class TestForms:
    def test_the_first_trees_keep_their_names(self):
        paths = [f"patient{i:02d}/study1_{c}.nii.gz" for i in (1, 3) for c in ("T1W",)]
        paths += ["patient01/study2_FLAIR.nii.gz", "patient03/T2W.nii"]
        assert placed(*paths) == [
            ("patient01", "study1", "T1W"),
            ("patient03", "study1", "T1W"),
            ("patient01", "study2", "FLAIR"),
            ("patient03", "", "T2W"),
        ]

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ("IXI-T1/IXI001-Site-T1.nii.gz", ("IXI001", "", "T1")),
            ("IXI-T2/IXI002-Guys-0828-T2.nii.gz", ("IXI002", "", "T2")),
            ("IXI-DTI/IXI012-HH-1211-DTI-03.nii.gz", ("IXI012", "", "DTI")),
            ("sub-01/anat/sub-01_T1w.nii.gz", ("sub-01", "", "T1w")),
            ("sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii", ("sub-01", "ses-1", "FLAIR")),
            ("sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_T1w.nii.gz",
             ("sub-A2", "ses-pre", "T1w")),
            ("OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_T1w.nii.gz",
             ("sub-OAS30001", "ses-d0129", "T1w")),
            ("sub00/visit-01/T1w.nii.gz", ("sub00", "visit-01", "T1w")),
            ("ADNI/002_S_0295/MPR__GradWarp/2006-04-18_08_20_30.0/S13408/ADNI_I4.nii",
             ("002_S_0295", "2006-04-18_08_20_30.0", "I4")),
            ("HGG/BraTS20_001/BraTS20_001_t1ce.nii.gz",
             ("BraTS20_001", "BraTS20_001", "t1ce")),
            ("site1/p01/T1.nii", ("p01", "", "T1")),
            ("T1/p01.nii", ("p01", "", "T1")),
            ("visit1/p01_T2.nii", ("p01", "visit1", "T2")),
            ("train/p01/mri/T1_brain.nii", ("p01", "", "T1")),
            ("imagesTr/BRATS_001_0000.nii.gz", ("BRATS_001", "", "0000")),
            ("p/a.nii", ("p", "", "a")),
            ("study01/T1.nii", ("study01", "", "T1")),
        ],
    )  # fmt: skip
    def test_one_path(self, path, place):
        assert placed(path) == [place]

    def test_folders_that_all_paths_share_are_no_subject(self):
        paths = ["openms/case7/a/T1.nii", "openms/case8/a/T1.nii"]
        assert [spot[0] for spot in placed(*paths)] == ["case7", "case8"]
        paths = ["BraTS2021/BraTS_1/BraTS_1_t1.nii", "BraTS2021/BraTS_2/BraTS_2_t1.nii"]
        assert [spot[0] for spot in placed(*paths)] == ["BraTS_1", "BraTS_2"]
        # two scans of what is perhaps the only person
        paths = ["proband7/A/T1.nii", "proband7/B/T1.nii"]
        assert [spot[0] for spot in placed(*paths)] == ["proband7", "proband7"]

    def test_a_pattern_decides_alone(self):
        pattern = r"(?P<subject>[^/]+)/(?P<contrast>[^_/]+)\.nii$"
        assert placed("sub-01/anat/T1w.nii", "x.nii", pattern=pattern) == [
            ("anat", "", "T1w")
        ]

    @pytest.mark.parametrize(
        ("name", "label"),
        [
            ("p/BraTS20_001_seg.nii.gz", True),
            ("sub-01/anat/sub-01_desc-brain_mask.nii.gz", True),
            ("sub-01/anat/sub-01_dseg.nii", True),
            ("p/BraTS-GLI-0001-seg.nii.gz", True),
            ("p/mask.nii", True),
            ("derivatives/fmriprep/sub-01/anat/sub-01_T1w.nii.gz", True),
            ("labelsTr/a.nii.gz", True),
            ("p/gt.nii", True),
            ("p/T1_masked.nii", False),
            ("masked_patients/T1.nii", False),
            ("p/T1.nii", False),
            ("segal/T1.nii", False),
        ],
    )
    def test_names_of_masks_and_label_maps(self, name, label):
        assert forms.is_label_map(name) is label


class TestSubjects:
    def test_ixi(self, tmp_path, caplog):
        names = [
            f"IXI-{c}/IXI{i:03d}-Site-{c}.nii.gz"
            for c in ("T1", "T2", "PD", "MRA")
            for i in range(1, 8)
        ]
        with caplog.at_level(logging.INFO, "daasr_jax"):
            volumes = scan(write(tmp_path, *names))
        assert len({v.subject for v in volumes}) == 7
        assert {v.contrast for v in volumes if v.subject == "IXI003"} == {
            "T1", "T2", "PD", "MRA",
        }  # fmt: skip
        assert "28 volumes of 7 subjects by IXI names, 4 each" in caplog.text

    def test_visits(self, tmp_path):
        names = [f"sub{i:02d}/visit-{v:02d}/T1w.nii.gz" for i in (0, 1) for v in (1, 2)]
        volumes = scan(write(tmp_path, *names))
        assert [(v.subject, v.study, v.contrast) for v in volumes] == [
            (f"sub{i:02d}", f"visit-{v:02d}", "T1w") for i in (0, 1) for v in (1, 2)
        ]

    @pytest.mark.parametrize("session", ["", "ses-1/"])
    def test_bids_with_other_folders_beside_anat(self, tmp_path, caplog, session):
        names = [f"sub-0{i}/{session}anat/sub-0{i}_T1w.nii.gz" for i in (1, 2, 3)]
        write(tmp_path, *names)
        assert [v.subject for v in scan(tmp_path)] == ["sub-01", "sub-02", "sub-03"]
        assert not caplog.records
        for i in (1, 2, 3):
            beside = f"sub-0{i}/{session}"
            write(
                tmp_path,
                f"{beside}fmap/sub-0{i}_phasediff.nii.gz",
                f"{beside}perf/sub-0{i}_asl.nii.gz",
                f"{beside}swi/sub-0{i}_swi.nii.gz",
            )
            bold = np.ones((16, 16, 4, 5), np.float32)
            write_4d(tmp_path / f"{beside}func/sub-0{i}_task-rest_bold.nii.gz", bold)
        volumes = scan(tmp_path)
        assert [(v.subject, v.contrast) for v in volumes] == [
            (f"sub-0{i}", "T1w") for i in (1, 2, 3)
        ]
        assert {v.study for v in volumes} == {session.rstrip("/")}
        assert "left out 12 of 15 files: they name no image by BIDS names" in (
            caplog.text
        )
        assert f"the first is sub-01/{session}fmap/" in caplog.text

    @pytest.mark.parametrize(
        ("names", "pattern", "word"),
        [
            (("sub-01/anat/T1.nii", "sub-01/swi/T1.nii"), "", "sub-01"),
            (("T1/IXI001-a.nii", "T2/IXI001-b.nii"), "", "IXI001"),
            (("patient1/v1/T1.nii", "patient1/v2/T1.nii"), "", "patient1"),
            (("patient01_T1/scan.nii", "patient01_T2/scan.nii"), "auto", "patient01"),
            (("ds1/sub-01/sub-01_T1w.nii", "ds2/sub-01/sub-01_T1w.nii"), "auto",
             "sub-01"),
            (("site1/p01/T1.nii", "site2/p01/T1.nii"), "auto", "p01"),
        ],
    )  # fmt: skip
    def test_one_person_in_two_subjects_stops(self, tmp_path, names, pattern, word):
        pattern = pattern or r"(?P<subject>[^/]+)/[^/]+$"
        with pytest.raises(DataError) as error:
            scan(write(tmp_path, *names), pattern=pattern)
        one_line(error.value, "E321", word, "--config.data.pattern")

    @pytest.mark.parametrize("name", ["t1_pat2.nii", "T1_sub.nii", "subtraction_1.nii"])
    def test_words_of_scanners_are_no_people(self, tmp_path, name):
        volumes = scan(write(tmp_path, f"p1/{name}", f"p2/{name}"))
        assert [v.subject for v in volumes] == ["p1", "p2"]

    def test_the_way_out_of_two_people_of_one_name(self, tmp_path):
        write(tmp_path, "ds1/sub-01/sub-01_T1w.nii", "ds2/sub-01/sub-01_T1w.nii")
        two = scan(tmp_path, pattern=r"(?P<subject>ds\d/sub-\d+)/")
        assert [v.subject for v in two] == ["ds1/sub-01", "ds2/sub-01"]
        one = scan(tmp_path, pattern=r"(?P<subject>sub-\d+)/")
        assert [v.subject for v in one] == ["sub-01", "sub-01"]

    def test_real_visits_of_one_person_stay_one_subject(self, tmp_path):
        """Of the form that a pattern of the innermost folder cuts in two."""
        names = [f"OAS30001/d{d}/T1w.nii" for d in ("0129", "0757")]
        volumes = scan(write(tmp_path, *names, "OAS30002/d0001/T1w.nii"))
        assert [(v.subject, v.study) for v in volumes] == [
            ("OAS30001", "d0129"), ("OAS30001", "d0757"), ("OAS30002", "d0001"),
        ]  # fmt: skip


class TestChoice:
    def test_label_maps_are_left_out(self, tmp_path, caplog):
        names = [
            f"BraTS_{i:03d}/BraTS_{i:03d}_{kind}.nii.gz"
            for i in range(3)
            for kind in ("flair", "t1", "t1ce", "t2", "seg")
        ]
        volumes = scan(write(tmp_path, *names))
        assert len(volumes) == 12
        assert {v.contrast for v in volumes} == {"flair", "t1", "t1ce", "t2"}
        assert "left out 3 of 15 files: masks and label maps" in caplog.text
        assert "the first is BraTS_000/BraTS_000_seg.nii.gz" in caplog.text
        # who asks for them by name gets them
        assert len(scan(tmp_path, contrasts="seg")) == 3

    def test_a_derived_tree_is_left_out(self, tmp_path, caplog):
        write(tmp_path, *(f"sub-0{i}/anat/sub-0{i}_T1w.nii" for i in (1, 2)))
        derived = tmp_path / "derivatives/fmriprep/sub-01/anat"
        write(derived, "sub-01_desc-preproc_T1w.nii")
        (derived / "sub-01_xfm.h5").write_bytes(b"x")  # decides no layout either
        assert len(scan(tmp_path)) == 2
        assert "left out 1 of 3 files" in caplog.text

    def test_paths_that_do_not_match_are_skipped_and_counted(self, tmp_path, caplog):
        write(tmp_path, "p1/T1.nii", "p2/T1.nii", "loose.nii", "atlas.nii.gz")
        assert [v.key for v in scan(tmp_path)] == ["p1/T1", "p2/T1"]
        assert "left out 2 of 4 files" in caplog.text
        assert "the first is atlas.nii.gz" in caplog.text
        only = scan(tmp_path, pattern=r"(?P<subject>p1)/")
        assert [v.key for v in only] == ["p1/T1"]
        with pytest.raises(DataError) as error:
            scan(tmp_path, pattern=r"(?P<subject>q\d)/")
        one_line(error.value, "E309", "none of 4 paths", "atlas.nii.gz", "data.pattern")

    def test_a_contrast_is_chosen_before_files_are_opened(self, tmp_path):
        write(tmp_path, "p1/T1.nii", "p2/T1.nii")
        write_4d(tmp_path / "p1/BOLD.nii", np.ones((16, 16, 4, 5), np.float32))
        (tmp_path / "p2/FLAIR.nii").write_bytes(b"damaged")
        assert len(scan(tmp_path, contrasts="T1")) == 2
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E302", "2 of 4", "(16, 16, 4, 5)", "FLAIR.nii")
        with pytest.raises(DataError) as error:
            scan(tmp_path, contrasts="BOLD")
        one_line(error.value, "1 of 1", "three axes are wanted")

    @pytest.mark.parametrize("name", ["scan.NII.GZ", "scan.NII", "scan.Nii.gz"])
    def test_endings_in_any_case(self, tmp_path, name):
        write(tmp_path, "p1/T1.nii", f"p2/{name.lower()}")
        (tmp_path / "p2" / name.lower()).rename(tmp_path / "p2" / name)
        source = choose_source(DataSettings(root=str(tmp_path)))
        volumes = source.scan(DataSettings(root=str(tmp_path)))
        assert [v.key for v in volumes] == ["p1/T1", "p2/scan"]
        np.testing.assert_array_equal(source.read(volumes[1]), scan_voxels(1))

    @pytest.mark.parametrize("second", ["a.nii.gz", "a.NII", "a.NII.GZ"])
    def test_two_files_of_one_scan(self, tmp_path, second):
        write(tmp_path, "p1/a.nii")
        path = write_nifti(tmp_path / f"p1/x{second.lower()[1:]}", scan_voxels(1))
        path.rename(tmp_path / "p1" / second)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E322", tmp_path / "p1/a.nii", tmp_path / "p1" / second)

    @pytest.mark.parametrize("name", ["a.mgz", "a.img", "a.dcm"])
    def test_forms_that_are_not_read_are_named(self, tmp_path, caplog, name):
        for folder in ("p1", "p2"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / name).write_bytes(b"x")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E301", f"2 {name[1:]} files (to NIfTI by ")
        write(tmp_path, "p1/T1.nii")
        scan(tmp_path)
        assert f"not read: 2 {name[1:]} files" in caplog.text


class TestWalk:
    def test_linked_subjects_and_folders(self, tmp_path, caplog):
        store = nifti_root(tmp_path / "store", 3, "T1")
        root = write(tmp_path / "root", "patient09/study1_T1.nii.gz")
        for i in range(3):
            (root / f"patient{i:02d}").symlink_to(store / f"patient{i:02d}")
        with caplog.at_level(logging.INFO, "daasr_jax"):
            volumes = scan(root, links_out=True)
        assert [v.key for v in volumes] == [
            f"patient{i:02d}/study1_T1" for i in (0, 1, 2, 9)
        ]
        assert "followed 3 links that lead out of the root" in caplog.text

        alias = tmp_path / "fastmri"
        alias.mkdir()
        real = fastmri_root(tmp_path / "real", 2, 1)
        for name in ("multicoil_train", "multicoil_val"):
            (alias / name).symlink_to(real / name)
        found = scan(alias, links_out=True)
        assert [v.role for v in found] == ["train", "train", "val"]
        linked = tmp_path / "linked"
        linked.symlink_to(root)
        assert len(scan(linked, links_out=True)) == 4

    def test_loops_and_second_links(self, tmp_path, caplog):
        root = write(tmp_path / "root", "p1/T1.nii", "p2/T1.nii")
        (root / "p1/up").symlink_to(root)
        (root / "above").symlink_to(tmp_path)
        (root / "a_copy_of_p2").symlink_to(root / "p2")
        (root / "self").symlink_to("self")
        assert [v.key for v in scan(root)] == ["p1/T1", "p2/T1"]
        assert "skipped 3 links to folders that are read already" in caplog.text
        for name in ("a_copy_of_p2", "above", "p1/up"):
            assert name in caplog.text

    def test_hidden_folders(self, tmp_path, caplog):
        hidden = (
            ".Trash-1000/files/p3",
            ".snapshot/daily/p1",
            ".git/annex",
            "#recycle",
        )
        write(tmp_path, "p1/T1.nii", "p2/T1.nii", *(f"{h}/T1.nii" for h in hidden))
        write(tmp_path, "p2/.old_T1.nii")
        (tmp_path / "p1/._T1.nii").write_bytes(b"x")
        with caplog.at_level(logging.INFO, "daasr_jax"):
            assert [v.key for v in scan(tmp_path)] == ["p1/T1", "p2/T1"]
        assert "skipped 5 hidden folders and files: #recycle, .Trash-1000, .git" in (
            caplog.text
        )

    def test_dangling_links_of_an_annex(self, tmp_path, monkeypatch):
        write(tmp_path, "p1/T1.nii", "p2/T1.nii", ".git/annex/objects/a/k1.nii")
        (tmp_path / "p3").mkdir()
        (tmp_path / "p3/T1.nii").symlink_to("../.git/annex/objects/a/k1.nii")
        assert len(scan(tmp_path)) == 3
        (tmp_path / "p3/T2.nii").symlink_to("../.git/annex/objects/a/k2.nii")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E320", "1 links", tmp_path / "p3/T2.nii", "datalad get")
        assert "damaged" not in str(error.value)
        assert len(scan(tmp_path, contrasts="T1")) == 3

    @pytest.mark.parametrize("layout", ["nifti", "fastmri"])
    def test_other_dangling_links(self, tmp_path, layout):
        if layout == "nifti":
            write(tmp_path, "p1/T1.nii")
            path = tmp_path / "p1/T2.nii"
        else:
            write_rss(tmp_path / "a.h5", 1, "p")
            path = tmp_path / "b.h5"
        path.symlink_to("/mnt/not_mounted/file")
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E320", path, "-> /mnt/not_mounted/file: mount the disk")

    def test_linked_folders_that_are_not_there(self, tmp_path):
        root = write(tmp_path / "n", "p1/T1.nii", "p2/T1.nii")
        (root / "README.txt").symlink_to("gone.txt")
        (root / "LICENSE").symlink_to(".git/annex/objects/x/LICENSE")
        assert len(scan(root)) == 2
        (root / "p3").symlink_to("/mnt/not_mounted/p3")
        with pytest.raises(DataError) as error:
            scan(root)
        one_line(error.value, "E320", f"{root / 'p3'} -> /mnt/not_mounted/p3")
        root = fastmri_root(tmp_path / "f")
        (root / "brain_train").symlink_to("/mnt/not_mounted/train")
        with pytest.raises(DataError) as error:
            scan(root)
        one_line(error.value, "E320", root / "brain_train")
        assert len(scan(root, folders="multicoil_train")) == 6

    def test_a_link_into_a_closed_folder(self, tmp_path, monkeypatch):
        root = write(tmp_path / "root", "p1/T1.nii")
        store = write(tmp_path / "store", "p2/T1.nii")
        (root / "p2").symlink_to(store / "p2")
        (root / "notes.txt").symlink_to(store / "notes.txt")
        listed = os.scandir

        class Closed:
            """A link whose target may not be looked at."""

            def __init__(self, name):
                self.name = name

            def is_dir(self):
                raise PermissionError(13, "Permission denied")

            def is_symlink(self):
                return True

        @contextlib.contextmanager
        def scandir(path):
            if Path(path).name == "p2":
                raise PermissionError(13, "Permission denied")
            with listed(path) as found:
                yield [Closed(e.name) if e.is_symlink() else e for e in found]

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(DataError) as error:
            scan(root)
        one_line(error.value, "E302", "1 folders", f"{root / 'p2'} (Permission denied)")

    @pytest.mark.parametrize(
        ("content", "remedy"),
        [
            (b"/annex/objects/MD5E-s1--0.nii.gz\n", "datalad get"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
                "git lfs pull",
            ),
        ],
    )
    def test_pointers_without_content(self, tmp_path, content, remedy):
        write(tmp_path, "p1/T1.nii")
        (tmp_path / "p1/T2.nii.gz").write_bytes(content)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E302", "T2.nii.gz", remedy)
        assert "NIfTI file (" not in str(error.value)

    @pytest.mark.parametrize("layout", ["nifti", "fastmri"])
    def test_folders_that_cannot_be_read(self, tmp_path, monkeypatch, layout):
        root = fastmri_root(tmp_path) if layout == "fastmri" else nifti_root(tmp_path)
        closed = (
            ["multicoil_val"] if layout == "fastmri" else ["patient01", "patient04"]
        )
        listed = os.scandir

        def scandir(path):
            if Path(path).name in closed:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(DataError) as error:
            scan(root)
        named = [f"{root / name} (Permission denied)" for name in closed]
        one_line(error.value, "E302", f"{len(closed)} folders", "chmod", *named)
        if layout == "fastmri":  # a folder that is not asked for stops nobody
            assert len(scan(root, folders="multicoil_train")) == 6

    def test_a_root_without_readable_folders_says_so(self, tmp_path, monkeypatch):
        listed = os.scandir
        closed = tmp_path / "data"
        closed.mkdir()

        def scandir(path):
            if Path(path) == closed:
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(DataError) as error:
            scan(tmp_path)
        one_line(error.value, "E301", f"{closed} cannot be read (Permission denied)")

    def test_a_root_that_is_a_link_to_nothing(self, tmp_path):
        (tmp_path / "root").symlink_to("/mnt/nothing")
        with pytest.raises(DataError) as error:
            scan(tmp_path / "root")
        one_line(error.value, "E301", "is a link to /mnt/nothing, which is not there")

    def test_depth(self, tmp_path):
        write(tmp_path, "a.nii", "p/b.nii", "p/q/c.nii")
        names = [path.name for path in walk(tmp_path, NII, depth=1).files]
        assert names == ["a.nii", "b.nii"]
        assert len(walk(tmp_path, NII).files) == 3


def write_4d(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(voxels, np.diag([-0.7, -0.7, 3.0, 1.0])), path)
