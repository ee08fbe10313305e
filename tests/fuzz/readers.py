"""What reads files, each with files to damage and an independent reader beside it.

A reader returns where the program refused the file by a `UserError` of one line or read
what is there. It raises `WrongError` where what was read is not what is there. Any
other exception would be a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import nibabel as nib
import numpy as np

from daasr_jax.data import draw_pairing, load_pairing
from daasr_jax.data.settings import SPLITS, DataSettings
from daasr_jax.data.slices import voxel_fault
from daasr_jax.data.sources import fastmri, nifti
from daasr_jax.data.sources.base import Volume
from daasr_jax.data.splits import assign_splits
from daasr_jax.errors import UserError
from daasr_jax.scans import read_scan
from daasr_jax.weights import vgg
from tests.data_fixtures import HEADER, scan_voxels, table, write_h5, write_nifti

READ, REFUSED = "read", "refused"


class WrongError(Exception):
    """What was read is not what the file holds, or the refusal is no line."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        make: Writes the undamaged cases into a folder, one folder each.
        read: Reads a case, given its folder and that of the undamaged one.
        damaged: Glob patterns of the files that are damaged.
        json_files: They are JSON.
        packed: Case -> what makes a file of the damaged bytes: they are the content of
            an archive, so that its checksum does not hide what is inside.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Path], None]
    damaged: tuple[str, ...] = ("**/*",)
    json_files: bool = False
    packed: dict[str, Callable[[bytes], bytes]] = dataclasses.field(
        default_factory=dict
    )

    def files(self, case: Path) -> list[Path]:
        """The files of a case that are damaged."""
        found = {p for pattern in self.damaged for p in case.glob(pattern)}
        return sorted(p for p in found if p.is_file())


def outcome(reader: Reader, folder: Path, original: Path) -> tuple[str, str]:
    """`read`, or `refused` with the line.

    Raises:
        WrongError: If the refusal is not one line with a code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, original)
    except UserError as error:
        check_line(error)
        return REFUSED, str(error)
    return READ, ""


def check_line(error: UserError) -> None:
    """Raises WrongError for a refusal that is not one line."""
    text = str(error)
    # names that are no UTF-8 hold surrogates, which every stream here writes
    shown = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    if not shown.isprintable() or not text.startswith("error E") or len(text) > 2000:
        raise WrongError(f"the line of the refusal: {text[:500]!r}")


@contextlib.contextmanager
def _checked_refusal() -> Iterator[None]:
    """What is refused here may be read by what comes next."""
    try:
        yield
    except UserError as error:
        check_line(error)


@contextlib.contextmanager
def _other_reader() -> Iterator[None]:
    """What the independent reader refuses is not compared."""
    try:
        yield
    except WrongError:
        raise
    except Exception:
        return


def _same(found: Any, wanted: Any, what: str, *, rtol: float = 0.0) -> None:
    """Raises WrongError where an element differs.

    Values that are not finite are equal to themselves alone. So is every other one
    without `rtol`, after a cast to the type of what was found. With it, a value may
    differ by that share of itself and of the median of all, which a damaged voxel does
    not move.
    """
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape:
        raise WrongError(f"{what} has shape {found.shape}, not {wanted.shape}")
    with np.errstate(all="ignore"):
        wanted = wanted.astype(found.dtype)
        finite = np.isfinite(wanted)
        equal = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        if rtol and finite.any():
            a, b = (np.where(finite, x, 0).astype(np.float64) for x in (found, wanted))
            scale = np.median(np.abs(b[finite]))
            equal |= finite & (np.abs(a - b) <= rtol * (np.abs(b) + scale))
    if not equal.all():
        at = tuple(int(i) for i in np.argwhere(~equal)[0])
        raise WrongError(
            f"{what} is not what the file holds: at {at} {found[at]}, not {wanted[at]}"
        )


def _same_scan(scan: Any, found: Any, wanted: np.ndarray, rtol: float = 0.0) -> None:
    """Voxels in the axes of `wanted`; what is no number is 0, which is said."""
    with np.errstate(all="ignore"):
        wanted = wanted.astype(found.dtype)
    bad = ~np.isfinite(wanted)
    if bad.any() and not any("NaN or infinite" in told for told in scan.remarks):
        raise WrongError(f"{int(bad.sum())} voxels are not finite, which is not said")
    _same(found, np.where(bad, 0, wanted), "scan", rtol=rtol)


# --- HDF5 ------------------------------------------------------------------------


def _make_hdf5(folder: Path) -> None:
    image = scan_voxels(1).astype(np.float32) * np.float32(2.0**-20)
    text = HEADER.format(ex=48, ey=24, x=20, y=24)
    write_h5(folder / "gzip/f.h5", subject="s", reconstruction_rss=image)
    write_h5(folder / "header/f.h5", subject="s", header=text, reconstruction_esc=image)
    (folder / "plain").mkdir()
    with h5py.File(folder / "plain/f.h5", "w") as file:
        file["reconstruction_rss"] = image
        file.attrs["acquisition"], file.attrs["patient_id"] = "AXT2", "s"
        file.attrs["max"] = float(image.max())
    rng = np.random.default_rng(0)
    kspace = rng.standard_normal((2, 3, 24, 20)) + 1j * rng.standard_normal(
        (2, 3, 24, 20)
    )
    (folder / "kspace").mkdir()
    with h5py.File(folder / "kspace/f.h5", "w", libver="latest") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["ismrmrd_header"] = text
        file.attrs["acquisition"], file.attrs["patient_id"] = "AXT2", "s"


def _read_hdf5(folder: Path, _: Path) -> None:
    settings = DataSettings(root=str(folder), layout="fastmri")
    (volume,) = fastmri.scan(settings)
    voxels = fastmri.read(volume)
    if voxel_fault(voxels):  # refused when it is prepared
        return
    if voxels.shape != volume.shape:
        raise WrongError(f"{voxels.shape}, but the header said {volume.shape}")
    name = volume.options.partition(":")[0]
    with _other_reader(), h5py.File(volume.path, "r") as file:
        stored = file[name][()]
        if name == "kspace":
            wanted = _rss(stored, voxels.shape)
            for k in range(len(wanted)):  # a spike is in every pixel of its slice
                _same(voxels[k], wanted[k], f"slice {k}", rtol=1e-5)
        else:
            _same(voxels, stored, name)
    scan = read_scan(volume.path)
    _same_scan(scan, scan.voxels.transpose(2, 1, 0)[:, ::-1], voxels)


def _rss(kspace: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    kspace = kspace if kspace.ndim == 4 else kspace[:, None]
    k = np.fft.ifftshift(kspace.astype(np.complex128), axes=(-2, -1))
    image = np.fft.fftshift(np.fft.ifft2(k, norm="ortho"), axes=(-2, -1))
    y, x = ((image.shape[i] - shape[i]) // 2 for i in (-2, -1))
    image = image[..., y : y + shape[-2], x : x + shape[-1]]
    return np.sqrt((np.abs(image) ** 2).sum(axis=1)).astype(np.float32)


# --- NIfTI -----------------------------------------------------------------------


def _make_nifti(folder: Path) -> None:
    voxels = scan_voxels(1)
    write_nifti(folder / "int/s1_T1.nii", voxels)
    write_nifti(folder / "packed/s1_T1.nii.gz", voxels)
    raw = write_nifti(folder / "inside/s1_T1.nii", voxels.astype(np.float32) / 7)
    raw.rename(raw.with_suffix(".nii.gz"))
    oblique = np.array(
        [[-0.6, 0.1, 0, 3], [0.1, 0, 2.9, -5], [0, 0.7, 0.3, 9], [0, 0, 0, 1]]
    )
    scaled = nib.Nifti1Image(voxels.astype(np.float32).transpose(2, 1, 0), oblique)
    scaled.header.set_data_dtype(np.int16)
    scaled.header.set_slope_inter(0.5, 3)
    (folder / "scaled").mkdir()
    nib.save(scaled, folder / "scaled/s1_T1.nii")
    header = nib.Nifti2Header(endianness=">")
    header.set_data_dtype(">f4")
    second = nib.Nifti2Image(
        voxels.astype(">f4").transpose(2, 1, 0), np.diag([2.0, 1, 1, 1]), header
    )
    (folder / "second").mkdir()
    nib.save(second, folder / "second/s1_T1.nii")


_CANONICAL = {
    "axial": lambda v: v.transpose(2, 1, 0)[:, ::-1, ::-1],
    "coronal": lambda v: v.transpose(1, 2, 0)[::-1, ::-1, ::-1],
    "sagittal": lambda v: v.transpose(0, 2, 1)[::-1, ::-1, ::-1],
}


def _read_nifti(folder: Path, _: Path) -> None:
    (path,) = folder.iterdir()
    with _checked_refusal():
        (volume,) = nifti.scan(
            DataSettings(root=str(folder), layout="nifti", pattern="(?P<subject>s1)")
        )
        slices = nifti.read(volume)
        with _other_reader():
            image = nib.load(path)
            array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
            wanted = nib.as_closest_canonical(nib.Nifti1Image(array, image.affine))
            canonical = np.asanyarray(wanted.dataobj)
            _same(slices, _CANONICAL[volume.options](canonical), "slices")
    scan = read_scan(path)
    with _other_reader():
        image = nib.load(path)
        array = np.asanyarray(image.dataobj).reshape(image.shape[:3])
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        _same_scan(scan, scan.voxels, array, rtol=1e-6 * scaled)
        unit = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1)
        _same(scan.affine[:3], image.affine[:3] * unit, "affine", rtol=1e-9)


# --- DICOM -----------------------------------------------------------------------


def _make_dicom(folder: Path) -> None:
    import pydicom

    from tests.unit import test_scans_dicom as dicom

    series = dicom.series_of(dicom.pixels(shape=(4, 14, 12)))
    dicom.write(folder / "series", series)
    dicom.write(
        folder / "scaled", dicom.series_of(dicom.pixels(shape=(3, 14, 12)),
                                           RescaleSlope=1.5, RescaleIntercept=-2)
    )  # fmt: skip
    (folder / "implicit").mkdir()
    for k, image in enumerate(series):
        meta = image.file_meta
        meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        image.save_as(
            folder / f"implicit/{k}.dcm", implicit_vr=True, little_endian=True,
            enforce_file_format=False,
        )  # fmt: skip
    dicom.save(dicom.enhanced(), folder / "enhanced/e.dcm")


def _read_dicom(folder: Path, _: Path) -> None:
    import pydicom

    scan = read_scan(folder)
    told = " ".join(scan.remarks)
    files = sorted(folder.iterdir())
    with _other_reader():
        found = []
        for path in files:
            if path.name in told:
                continue
            data = pydicom.dcmread(path, force=True)
            found += _frames_of(data)
        normal = np.cross(found[0][1][:3], found[0][1][3:])
        found.sort(key=lambda one: float(normal @ one[0]))
        wanted = np.stack([image.T for _, _, image in found], axis=-1)
        _same_scan(scan, scan.voxels, wanted)
        _same(scan.affine[:3, 3], found[0][0] * [-1, -1, 1], "place", rtol=1e-9)


def _frames_of(data: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Place, cosines and values of each frame of a file, as pydicom has them."""
    import pydicom

    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    pixels = data.pixel_array
    if "PerFrameFunctionalGroupsSequence" not in data:
        groups, pixels = [data], pixels[None]
    else:
        groups = data.PerFrameFunctionalGroupsSequence
        pixels = pixels if pixels.ndim == 3 else pixels[None]
    shared = data.get("SharedFunctionalGroupsSequence", [None])[0]

    def of(group: Any, sequence: str, name: str, usual: Any = None) -> Any:
        for place in (group, shared):
            if place is not None and place.get(sequence):
                return place[sequence].value[0].get(name, usual)
        return data.get(name, usual)

    out = []
    for group, stored in zip(groups, pixels, strict=False):
        change = "PixelValueTransformationSequence"
        slope = float(of(group, change, "RescaleSlope") or 1)
        shift = float(of(group, change, "RescaleIntercept") or 0)
        place = of(group, "PlanePositionSequence", "ImagePositionPatient")
        turn = of(group, "PlaneOrientationSequence", "ImageOrientationPatient")
        out.append(
            (
                np.array(place, float),
                np.array(turn, float),
                stored * np.float64(slope) + shift,
            )
        )
    return out


# --- npz -------------------------------------------------------------------------


def _make_npz(folder: Path) -> None:
    voxels = scan_voxels(1)
    for name in ("stored", "packed", "inside"):
        (folder / name).mkdir(parents=True)
    np.savez(folder / "stored/a.npz", voxels=voxels, spacing=np.array([3, 0.7, 0.7]))
    np.savez_compressed(folder / "packed/a.npz", image=voxels.astype(np.float32))
    np.save(folder / "inside/a.npy", voxels)
    (folder / "inside/a.npy").rename(folder / "inside/a.npz")


def _zipped(array: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("voxels.npy", array)
    return buffer.getvalue()


def _read_npz(folder: Path, _: Path) -> None:
    path = folder / "a.npz"
    scan = read_scan(path)
    with _other_reader(), np.load(path, allow_pickle=False) as file:
        names = [n for n in file.files if file[n].ndim == 3]
        name = "voxels" if "voxels" in names else names[0]
        _same_scan(scan, scan.voxels.transpose(2, 1, 0)[:, ::-1], file[name])
        if "spacing" in file.files:
            _same(scan.spacing, file["spacing"][::-1], "spacing")


# --- weights ---------------------------------------------------------------------


def _make_weights(folder: Path) -> None:
    from tests.weights import write_weights

    (folder / "sealed").mkdir(parents=True)
    write_weights(folder / "sealed/w.safetensors")
    (folder / "alone").mkdir()
    shutil.copy(folder / "sealed/w.safetensors", folder / "alone")


def _read_weights(folder: Path, original: Path) -> None:
    from flax.traverse_util import flatten_dict

    from daasr_jax import released

    with mock.patch.object(released, "variable_shapes", _shapes_of):
        weights = released.load(folder / "w.safetensors")
    found: Any = flatten_dict(weights.variables, sep="/")
    sealed = folder.name == "sealed"
    with _other_reader():
        data = (original if sealed else folder) / "w.safetensors"
        for name, wanted in _tensors(data.read_bytes()).items():
            _same(found[name], wanted, name)


_SHAPES: dict[str, Any] = {}


def _shapes_of(model: Any, scale: int) -> Any:
    """Those of one network are traced once."""
    from daasr_jax.models.network import variable_shapes

    key = repr((model, scale))
    if key not in _SHAPES:
        _SHAPES[key] = variable_shapes(model, scale)
    return _SHAPES[key]


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """The format of safetensors by its own words: length, JSON, bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    out = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in about["data_offsets"])
            values = np.frombuffer(data[begin:end], kinds[about["dtype"]])
            out[name] = values.reshape(about["shape"])
    return out


# Of the network, with few channels: damage finds more than values.
_LAYERS = {
    f"block{block}_conv{k}": (3, 3, fan_in, block + 3)
    for block, count in ((1, 2), (2, 2), (3, 3))
    for k in range(1, count + 1)
    for fan_in in [3 if block == k == 1 else block + 2 + (k > 1)]
}


@functools.cache
def _vgg_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"{layer}.{name}": rng.standard_normal(size, np.float32)
        for layer, shape in _LAYERS.items()
        for name, size in (("kernel", shape), ("bias", shape[-1:]))
    }


def _make_vgg(folder: Path) -> None:
    """Keras' files of both ages, one that is packed, and the project's own `.npz`."""
    arrays = _vgg_arrays()
    form: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    for case, lead, name, options in (
        ("keras2", "", "{layer}/{layer}_{part}_1:0", {}),
        ("keras3", "model_weights/", "{layer}/vgg/{layer}/{part}", {}),
        ("packed", "", "{layer}/{part}", form),
    ):
        (folder / case).mkdir(parents=True)
        version = "latest" if case == "keras3" else "earliest"
        with h5py.File(folder / case / "w", "w", libver=version) as file:
            names = [layer.encode() for layer in _LAYERS]
            file.attrs["layer_names"] = names
            for key, array in arrays.items():
                layer, part = key.split(".")
                place = lead + name.format(layer=layer, part=part)
                file.create_dataset(place, data=array, **options)
                file[lead + layer].attrs["weight_names"] = [place.encode()]
    for case, write in (("npz", np.savez), ("deflated", np.savez_compressed)):
        (folder / case).mkdir()
        with (folder / case / "w").open("wb") as file:
            write(file, preprocessing=np.array("torchvision"), **arrays)
    (folder / "inside").mkdir()
    with (folder / "inside/w").open("wb") as file:
        np.save(file, arrays["block2_conv1.kernel"])


def _vgg_zipped(kernel: bytes) -> bytes:
    """An `.npz` with one array of these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("block2_conv1.kernel.npy", kernel)
        for name, array in _vgg_arrays().items():
            if name != "block2_conv1.kernel":
                plain = io.BytesIO()
                np.save(plain, array)
                file.writestr(f"{name}.npy", plain.getvalue())
    return buffer.getvalue()


def _read_vgg(folder: Path, _: Path) -> None:
    from flax.traverse_util import flatten_dict

    path = folder / "w"
    with mock.patch.object(vgg, "LAYERS", _LAYERS):
        found = vgg.read_vgg19(path)
    if found.sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
        raise WrongError("the SHA-256 is that of another file")
    arrays = flatten_dict(found.params, sep=".")
    with _other_reader():
        wanted = _vgg_by_other_means(path)
        if arrays.keys() != wanted.keys():
            raise WrongError(f"{sorted(arrays)}, not {sorted(wanted)}")
        for name in wanted:
            _same(arrays[name], wanted[name], name)


def _vgg_by_other_means(path: Path) -> dict[str, np.ndarray]:
    """What the file holds for each layer, by the number of axes."""
    out: dict[str, np.ndarray] = {}
    if path.read_bytes()[:2] == b"PK":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _vgg_arrays()}
    with h5py.File(path, "r") as file:
        top: Any = file.get("model_weights", file)
        for layer in _LAYERS:

            def take(_: str, item: Any, layer: str = layer) -> None:
                if isinstance(item, h5py.Dataset):
                    out[f"{layer}.{'kernel' if item.ndim == 4 else 'bias'}"] = item[()]

            top[layer].visititems(take)
    return out


# --- splits, pairs and subjects ---------------------------------------------------


def _volumes() -> list[Volume]:
    return [
        Volume(f"p{s}/T{c}", f"p{s}", f"T{c}", "", f"p{s}/T{c}.nii", (8, 24, 24))
        for s in range(6)
        for c in (1, 2)
    ]


_SPLIT = {"train": ["p0", "p1"], "val": ["p2/T1", "p3"], "test": ["p4", "p5"]}


def _make_split(folder: Path) -> None:
    (folder / "split").mkdir(parents=True)
    (folder / "split/split.json").write_text(json.dumps(_SPLIT, indent=1))


def _read_split(folder: Path, _: Path) -> None:
    path = folder / "split.json"
    settings = DataSettings(layout="template", split_file=str(path))
    splits = assign_splits(_volumes(), settings)
    lists = json.loads(path.read_bytes())
    for name in SPLITS:
        named = lists.get(name, [])
        wanted = {v.key for v in _volumes() if {v.key, v.subject} & set(named)} | {
            v.key for v in _volumes() for n in named if n and v.subject.endswith(n)
        }
        if {volume.key for volume in splits[name]} != wanted:
            raise WrongError(f"{name}: {[v.key for v in splits[name]]}, not {wanted}")


@functools.cache
def _table() -> Any:
    return table(subjects=3, contrasts=("T1",), slices=3)


def _make_pairing(folder: Path) -> None:
    for name in ("sealed", "resealed"):
        (folder / name).mkdir(parents=True)
        drawn = draw_pairing(_table(), seed=0, count=2)
        drawn.save(folder / name / "pairs.json")


def _resealed(data: bytes) -> bytes:
    """With the hash of what it now holds."""
    try:
        content = json.loads(data)
        content.pop("sha256", None)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(content).encode()


def _read_pairing(folder: Path, original: Path) -> None:
    found = load_pairing(folder / "pairs.json", _table())
    sealed = folder.name == "sealed"
    content = json.loads(((original if sealed else folder) / "pairs.json").read_bytes())
    keys = _table().keys
    for target, *others in content["pairs"]:
        told = [keys[k] for k in found.all_of(keys.index(target))]
        if told != others:
            raise WrongError(f"{target} has {told}, not {others}")


# --- runs ------------------------------------------------------------------------


@functools.cache
def _record() -> dict[str, Any]:
    from daasr_jax.experiment.configuration import load

    config: Any = load("srcnn_x4").unlock()
    return {
        "config": json.loads(json.dumps(config.to_dict())),
        "config_sha256": "0" * 64,
        "commit": "c",
        "commits": ["c"],
        "prepared_sha256": "1" * 64,
        "companions_sha256": None,
        "perceptual": {},
        "start": None,
        "batch": {"images": 2, "rates_of": 2, "rates_times": 1.0},
    }


def _make_run(folder: Path) -> None:
    import jax
    import jax.numpy as jnp
    from ml_collections import ConfigDict

    from daasr_jax.experiment import parts
    from daasr_jax.training.checkpoints import Checkpoints

    config = ConfigDict(_record()["config"])
    training = parts.make_training(config, steps=1, steps_per_epoch=1)
    shapes = jax.eval_shape(lambda: parts.make_state(config, *training))
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    run = folder / "run"
    store = Checkpoints(run)
    store.save(1, state.replace(skipped_in_a_row=jnp.int32(0)), {"psnr": 30.0})
    store.close()
    (run / "config.json").write_text(json.dumps(_record(), indent=1))
    (run / "local.json").write_text(
        json.dumps({"data.root": "/x", "data.cache_dir": "c"})
    )
    hashes = {s: ["a" * 64] for s in SPLITS}
    contents = {"b" * 64: "a" * 64}
    seen = {"dataset": "d", "salt": "s", "subjects": hashes, "volumes": hashes}
    seen["contents"] = contents
    (run / "subjects.json").write_text(json.dumps(seen))
    row = {"step": 1, "g/total": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


class _Prepared:
    """What `subjects` asks of a prepared set."""

    def __init__(self) -> None:
        self.volume_hashes = {s: ["a" * 64] for s in SPLITS}
        self.files = {"v": ("/x/v.h5", "a" * 64)}

    def subject_hashes(self, _: str) -> dict[str, list[str]]:
        return self.volume_hashes


def _read_run(folder: Path, _: Path) -> None:
    import jax

    from daasr_jax.experiment import (
        checks,
        parts,
        record,
        same_run,
        saved_run,
        subjects,
    )
    from daasr_jax.experiment.begun import check_new
    from daasr_jax.experiment.configuration import load

    prepared: Any = _Prepared()
    refused = []

    def step(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            check_line(error)
            refused.append(error)

    step(saved_run.list_runs, folder)
    step(load, str(folder / "config.json"))
    seen = step(subjects.read_seen, folder)
    if seen:
        step(subjects.overlap, seen, prepared, "test")
        step(subjects.is_own, folder, prepared, "test")
        step(subjects.changed_files, folder, prepared)
    with _checked_refusal():  # always: there is a checkpoint
        check_new(folder, 1)
    inputs = {k: _record()[k] for k in record._INPUTS}
    step(record.record_config, _record()["config"], folder, inputs, begun=True)
    opened = step(saved_run.open_record, folder)
    if opened:
        step(record.trained_with, opened)
        step(same_run.with_given, opened, {"data.root": "x"})
        step(same_run.check_same, opened, _record()["config"], folder)
        run = step(saved_run.restore, opened, folder)
        if run:
            step(checks.check_ranges, run.config)
            step(parts.data_settings, run.config)
            for leaf in jax.tree.leaves(run.variables):
                _same(leaf, np.ones(leaf.shape), "parameters")
    if refused:
        raise refused[-1]


# --- checkpoints -----------------------------------------------------------------


def _state(value: int) -> Any:
    import jax.numpy as jnp

    from tests.unit.test_checkpoints import state

    gen = {"conv": {"kernel": jnp.full((64, 3), float(value))}}
    return state(value, gen=gen)


def _make_checkpoints(folder: Path) -> None:
    from daasr_jax.training.checkpoints import Checkpoints

    for name in ("sealed", "resealed"):
        store = Checkpoints(folder / name)
        for step in (1, 2):
            store.save(step, _state(step), {"psnr": 30.0 + step})
        store.close()


def _read_checkpoints(folder: Path, _: Path) -> None:
    import jax

    from daasr_jax.training.checkpoints import Checkpoints
    from daasr_jax.training.manifest import seal

    resealed = folder.name == "resealed"
    if resealed:  # whoever gives checkpoints to others seals them too
        for step in folder.glob("checkpoints/*"):
            seal(step, folder / f"manifests/{step.name}.json")
    store = Checkpoints(folder, read_only=True)
    try:
        for step in {store.latest(), store.best()} - {None}:
            store.metrics(step)
            found = store.restore(step, _state(0))
            part = store.restore_generator(step, found.gen, found.batch_stats)
            if not resealed:
                pairs = zip(
                    jax.tree.leaves((found, part["params"])),
                    jax.tree.leaves((_state(step), _state(step).gen)),
                    strict=True,
                )
                for a, b in pairs:
                    _same(a, b, f"step {step}")
    finally:
        store.close()


# --- prepared slices -------------------------------------------------------------


def _make_prepared(folder: Path) -> None:
    from daasr_jax.data.store import write_slices

    images = [np.full((16, 16, 1), k / 4, np.float32) for k in range(3)]
    place = folder / "set/v"
    place.parent.mkdir(parents=True)
    write_slices(
        place, enumerate(images), content="c", size=16, kept=[0, 1, 2],
        hashes=["a", "b", "c"],
    )  # fmt: skip


def _read_prepared(folder: Path, _: Path) -> None:
    from daasr_jax.data.store import Stored, StoredImages, read_index
    from daasr_jax.data.table import SliceRecord

    stored = Stored("c", folder / "v")
    rows = read_index(stored, check=True)
    if rows != [(0, "a"), (1, "b"), (2, "c")]:
        raise WrongError(f"index {rows}")
    records = [SliceRecord("v", "s", "", "", i, 3) for i, _ in rows]
    images = StoredImages(records, {"v": stored}, 16)
    for k in range(3):
        _same(images(k), np.full((16, 16, 1), k / 4), f"slice {k}")


READERS: dict[str, Reader] = {
    "hdf5": Reader(_make_hdf5, _read_hdf5),
    "nifti": Reader(_make_nifti, _read_nifti, packed={"inside": gzip.compress}),
    "dicom": Reader(_make_dicom, _read_dicom),
    "npz": Reader(_make_npz, _read_npz, packed={"inside": _zipped}),
    "safetensors": Reader(_make_weights, _read_weights),
    "vgg": Reader(_make_vgg, _read_vgg, packed={"inside": _vgg_zipped}),
    "split": Reader(_make_split, _read_split, json_files=True),
    "pairing": Reader(
        _make_pairing, _read_pairing, json_files=True, packed={"resealed": _resealed}
    ),
    "config": Reader(
        _make_run,
        _read_run,
        damaged=("config.json", "local.json", "subjects.json", "metrics.jsonl"),
        json_files=True,
    ),
    "checkpoints": Reader(_make_checkpoints, _read_checkpoints),
    "prepared": Reader(_make_prepared, _read_prepared),
}
