"""Where images come from: folders, zip, tar and LMDB files read in place, .npy/.npz arrays and torchvision's sets.

``open_source(spec, ...)`` only looks (names, labels, shapes); pixels are read when ``Source.load(i)`` is called,
which is safe from several threads. ``common.data`` turns a source into tensors; ``common.data.archives`` reads archives.
Nothing here unpickles a file of the user's, and nothing is extracted from an archive.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ALLOWED = "torchvision:NAME, a folder, .zip or .tar of images, an LMDB, or a .npy/.npz file"
MAX_MEMBER_BYTES = 128 * 2**20  # one encoded image; a larger member of an archive is taken for a bomb
PREPARE = "python -m common.prepare images --size SIZE --to FILE.zip --from"
_CONVERTED = (".gz", ".tgz", ".bz2", ".xz", ".parquet", ".tfrecord", ".tfrecords")  # by it, but not read in training
MAX_CLASSES = 100_000
_SPLITS = {"train", "training", "test", "val", "valid", "validation"}


class DownloadError(ValueError):
    """A data set could not be fetched; the message says what to do by hand."""


@dataclass
class Source:
    """Images that can be read one by one.

    Attributes:
        where: The spec that was opened, for messages.
        load: ``load(i)`` gives image i as a decoded PIL image and raises when it cannot be read.
        names: File name of each image, or None when images have no names (arrays).
        count: Number of images.
        labels: (count,) int64, or None.
        class_names: Name of each label.
        rows: For arrays, ``rows[i:j]`` gives uint8 pixels in the layout of ``layout``; else None.
        layout: "NHW", "NHWC" or "NCHW".
        kind: What the images were found in: "folder", "zip", "tar", "lmdb", "array", ...
    """

    where: str
    load: Callable[[int], Image]
    count: int
    names: Sequence[str] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    rows: Any = None
    layout: str = ""
    kind: str = ""

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""
        return self.names[index] if self.names is not None else f"image {index} of {self.where}"


def open_source(spec: str, root: str | Path | None = None, split: str = "train", say=print) -> Source:
    """Opens what ``--data`` names.

    Args:
        spec: ``torchvision:NAME``, a folder, a .zip or .tar, an LMDB (its folder or file), a .npy or a .npz.
        root: Folder of torchvision's sets; what is missing is downloaded into it.
        split: "train" or "test": torchvision's split, or the sub-folder of that name when there are such.
        say: Gets lines of information.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: It holds no images, or is not what it seems to be.
        DownloadError: A torchvision set is not there and could not be fetched.
    """
    if spec.startswith("torchvision:"):
        return _open_torchvision(spec, root, split, say)
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        raise FileNotFoundError(f"--data {spec!r}: no such file or folder; give {ALLOWED}")
    from common.data import archives  # which builds on this module

    if path.is_dir() and not (path / "data.mdb").exists():
        return _open_folder(path, split)
    openers = {
        "": lambda: archives.open_lmdb(path / "data.mdb", say),
        ".lmdb": lambda: archives.open_lmdb(path, say),
        ".mdb": lambda: archives.open_lmdb(path, say),
        ".zip": lambda: archives.open_zip(path, split, say),
        ".tar": lambda: archives.open_tar(path, split, say),
        ".npy": lambda: open_npy(path),
        ".npz": lambda: _open_npz(path),
    }
    suffix = "" if path.is_dir() else path.suffix.lower() or "suffixless"
    if suffix not in openers:
        hint = f"; convert it by {PREPARE} {spec}" if suffix in _CONVERTED else ""
        raise ValueError(f"--data {spec}: cannot read a {suffix} file; give {ALLOWED}{hint}")
    return openers[suffix]()


# ---- folders


def _open_folder(path: Path, split: str) -> Source:
    return named_source(path, list_files(path), split, "folder", lambda names: partial(_load_file, path, names))


def _load_file(folder: Path, names: Sequence[str], index: int) -> Image:
    with open(os.path.join(folder, names[index]), "rb") as file:
        return decode(file.read())


def named_source(path: Path, names: list[str], split: str, kind: str, loader: Callable[[list[str]], Any]) -> Source:
    """A source of named images; ``loader(names)`` gives its ``load`` for the names that are left of ``names``."""
    names = _pick_split(sorted(filter(is_image, names)), split, str(path))
    if not names:
        raise ValueError(f"--data {path}: no images in it; names must end in {' '.join(SUFFIXES)}")
    labels, class_names = class_labels(names)
    return Source(str(path), loader(names), len(names), names, labels, class_names, kind=kind)


def list_files(path: Path) -> list[str]:
    """Files below ``path``, as relative names; links are followed, but no folder is visited twice."""
    names, seen = [], set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(path).as_posix()
        prefix = "" if relative == "." else relative + "/"
        names += [prefix + name for name in files]
    return names


def is_image(name: str) -> bool:
    """Whether a name is that of an image, and not hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def _pick_split(names: list[str], split: str, where: str) -> list[str]:
    """Keeps the sub-folder called ``split`` when the folders are train/, test/, ...; else all names."""
    folders = _first_folders(names)
    if not folders or not set(folders) <= _SPLITS:
        return names
    if split not in folders:
        raise ValueError(f"--data {where}: no {split}/ in it, only {', '.join(sorted(set(folders)))}; give one of them")
    return [name for name, folder in zip(names, folders, strict=True) if folder == split]


def _first_folders(names: list[str]) -> list[str]:
    """First folder of each name below what all names share; empty when some image lies above such folders."""
    parts = [name.split("/")[:-1] for name in names]
    depth = len(os.path.commonprefix(parts)) if parts else 0
    return [] if any(len(part) <= depth for part in parts) else [part[depth] for part in parts]


def class_labels(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from class folders: (N,) int64 and the folders' names, sorted (numbers by value); None without them."""
    folders = _first_folders(names)
    if not folders:
        return None, ()
    classes = sorted(set(folders))
    if all(name.isdigit() for name in classes):
        classes.sort(key=int)
    number = {name: k for k, name in enumerate(classes)}
    return np.fromiter((number[folder] for folder in folders), np.int64, len(folders)), tuple(classes)


# ---- arrays


class FileRows:
    """An uncompressed .npy array inside a file, read row by row: no mapping, no copy of the whole, thread-safe."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self.row_items = math.prod(shape[1:])
        if path.stat().st_size < offset + shape[0] * self.row_items * dtype.itemsize:
            raise ValueError(f"--data {path}: the file ends before its {shape[0]} images; copy or download it again")

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        offset = self.offset + start * self.row_items * self.dtype.itemsize
        block = np.fromfile(self.path, self.dtype, (stop - start) * self.row_items, offset=offset)
        return block.reshape(stop - start, *self.shape[1:])


def _npy_header(file, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an open .npy file; the file is left at the first byte of the data."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"--data {what}: not a readable .npy array ({error})") from error
    if any(side < 0 for side in shape):
        raise ValueError(f"--data {what}: not a readable .npy array (shape {shape})")
    if dtype.hasobject:
        raise ValueError(f"--data {what}: an array of Python objects needs unpickling, which can run code; refused")
    return shape, fortran, dtype


def open_npy(path: Path) -> Source:
    """A source from an array in a .npy file, read row by row.

    Raises:
        ValueError: It is damaged, or holds no uint8 images.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, str(path))
        rows = np.load(path, allow_pickle=False) if fortran else None
        if rows is None:
            _check_pixels(str(path), shape, dtype)
            rows = FileRows(path, file.tell(), shape, dtype)
    return array_source(str(path), rows)


def _open_npz(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"--data {path}: not a readable .npz file ({error}); copy or download it again") from error
    with archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        images = next((key for key in ("images", "arr_0", "x") if key in keys), None)
        labels = next((key for key in ("labels", "label", "y", "arr_1") if key in keys), None)
        if images is None:
            raise ValueError(f"--data {path}: no array 'images' or 'arr_0' in it, only {', '.join(keys) or 'nothing'}")
        rows = _npz_array(path, archive, images)
        return array_source(str(path), rows, _npz_array(path, archive, labels)[:] if labels else None)


def _npz_array(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray | FileRows:
    """One array of an .npz: left in the file when it is stored uncompressed, else unpacked into memory."""
    member, what = archive.getinfo(key + ".npy"), f"{path} ({key})"
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file, what)
        header = file.tell()
        if header + math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"--data {what}: the array ends before its shape {shape}; copy or download it again")
    if member.compress_type == zipfile.ZIP_STORED and not fortran and shape:
        return FileRows(path, _member_offset(path, member) + header, shape, dtype)
    try:
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"--data {what}: damaged ({error}); copy or download it again") from error


def _member_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin in the archive (zip specification, local file header 4.3.7)."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name_length + extra_length


def array_source(where: str, rows, labels: np.ndarray | None = None, class_names: Sequence[str] = ()) -> Source:
    """A source from pixels (N,H,W), (N,H,W,C) or (N,C,H,W) uint8 and labels (N,) integers."""
    layout = _check_pixels(where, rows.shape, rows.dtype)
    count = rows.shape[0]
    if labels is not None:
        labels, found = _check_labels(where, np.asarray(labels), count)
        class_names = tuple(class_names) or tuple(str(k) for k in range(found))

    load = partial(_load_row, rows, layout)
    return Source(where, load, count, None, labels, tuple(class_names), rows, layout, "array")


def _load_row(rows: Any, layout: str, index: int) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(_channels_last(rows[index : index + 1], layout)[0]))


def _channels_last(block: np.ndarray, layout: str) -> np.ndarray:
    """(N,H,W,C), or (N,H,W) for one channel, as PIL wants it."""
    if layout == "NCHW":
        block = block.transpose(0, 2, 3, 1)
    return block[..., 0] if block.ndim == 4 and block.shape[-1] == 1 else block


def channels_first(block: np.ndarray, layout: str) -> np.ndarray:
    """A view (N,C,H,W) of a block of rows."""
    if layout == "NHW":
        return block[:, None]
    return block.transpose(0, 3, 1, 2) if layout == "NHWC" else block


def _check_pixels(where: str, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """The layout of an array of images, "NHW", "NHWC" or "NCHW"; ValueError when it is none."""
    if dtype != np.uint8:
        raise ValueError(f"--data {where}: dtype {dtype}; give uint8 (common.images.to_uint8 converts from [-1, 1])")
    if len(shape) == 3:
        layout = "NHW"
    elif len(shape) == 4 and shape[3] in (1, 3, 4):
        layout = "NHWC"
    elif len(shape) == 4 and shape[1] in (1, 3, 4):
        layout = "NCHW"
    else:
        raise ValueError(f"--data {where}: shape {shape}; give (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1, 3 or 4")
    if 0 in shape:
        raise ValueError(f"--data {where}: no images in it (shape {shape})")
    return layout


def _check_labels(where: str, labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Labels as int64, and the number of classes."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"--data {where}: labels have shape {labels.shape} and dtype {labels.dtype}; give ({count},) integers"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise ValueError(f"--data {where}: labels reach from {low} to {high}; allowed are 0 to {MAX_CLASSES - 1}")
    return labels.astype(np.int64), high + 1


# ---- torchvision


def _open_torchvision(spec: str, root: str | Path | None, split: str, say) -> Source:
    dataset = _torchvision_set(spec.removeprefix("torchvision:"), root, split, say)
    targets = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    labels = None if targets is None else np.asarray(targets)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any()):
        labels = None  # attributes, boxes, "unlabelled": not classes
    classes = tuple(str(name) for name in getattr(dataset, "classes", ()))
    pixels = getattr(dataset, "data", None)
    if pixels is not None and getattr(pixels, "ndim", 0) in (3, 4):
        return array_source(spec, np.asarray(pixels), labels, classes if labels is not None else ())
    classes = classes if labels is not None else ()
    return Source(spec, lambda index: dataset[index][0], len(dataset), None, labels, classes, kind="torchvision")


def _torchvision_set(name: str, root: str | Path | None, split: str, say) -> Any:
    from torchvision import datasets

    if name not in datasets.__all__:
        close = difflib.get_close_matches(name, datasets.__all__, 1)
        raise ValueError(f"--data torchvision:{name}: no such set{f'; did you mean {close[0]}?' if close else ''}")
    if not root:
        raise ValueError(f"--data torchvision:{name}: give --data-root, the folder where it lies or goes")
    cls: Any = getattr(datasets, name)
    parameters = inspect.signature(cls).parameters
    options: dict[str, Any] = {"train": split == "train"} if "train" in parameters else {}
    if "split" in parameters:
        options = {"split": split}
    try:
        return cls(root=str(root), download=False, **options)
    except Exception as error:  # torchvision raises RuntimeError when absent, anything when damaged
        if "not found" not in str(error).lower():
            raise ValueError(f"--data torchvision:{name} in {root}: {_one_line(error)}") from error
    say(f"{name} is not (whole) in {root}: downloading {_download_size(cls)}; --data-root takes a folder that has it")
    try:
        return cls(root=str(root), download=True, **options)
    except Exception as error:
        raise DownloadError(
            f"could not download {name} ({_one_line(error)}); copy its files into {root} by hand, "
            f"or give --data with {ALLOWED.removeprefix('torchvision:NAME, ')}"
        ) from error


def _download_size(cls) -> str:
    """About how much a torchvision set downloads, asked from its server; "an unknown amount" when it does not say."""
    import http.client
    import urllib.request

    mirror = (getattr(cls, "mirrors", None) or [""])[0]
    links = [mirror + entry[0] for entry in getattr(cls, "resources", [])] or [getattr(cls, "url", "")]
    try:
        total = 0
        for link in links:
            with urllib.request.urlopen(urllib.request.Request(link, method="HEAD"), timeout=5) as reply:
                total += int(reply.headers["Content-Length"])
        return f"{total / 1e6:.0f} MB"
    except (OSError, ValueError, TypeError, http.client.HTTPException):  # the download itself reports what is wrong
        return "an unknown amount"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
