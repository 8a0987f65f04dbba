"""Arrays of images in .npy and .npz files, mapped into memory where they lie uncompressed; nothing is unpickled.

Pixels are uint8, (N,H,W), (N,H,W,C) or (N,C,H,W) with one, three or four channels.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from common.data import splits
from common.data.sources import AGAIN, Source

MAX_CLASSES = 100_000
_CHANNELS = (1, 3, 4)
_GIVE = "give (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1, 3 or 4"
_IMAGES = ("images", "arr_0", "x", "data", "image", "imgs", "img", "pixels", "samples")
_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "fine_labels", "arr_1")


def open_npy(path: Path, split: str) -> Source:
    """A source from an array in a .npy file."""
    if split not in ("train", splits.ALL):
        raise splits.NoSplit(f"--data {path}: one array has no {split} part")
    with _readable(path):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    source = array_source(str(path), rows)
    source.files = [path]
    return source


def open_npz(path: Path, split: str) -> Source:
    """A source from the arrays ``images`` and, if it is there, ``labels`` of an .npz file, or of the usual other names.

    An array of another name is taken where it is the only one of its shape; ``x_train``, ``test_y`` are of a split.
    """
    with _readable(path):
        archive = np.lib.npyio.NpzFile(path.open("rb"), own_fid=True, allow_pickle=False)
    with archive:
        keys = _of_split(path, archive.files, split)
        images = _named(path, archive, keys, _IMAGES, lambda shape, dtype: len(shape) in (3, 4))
        if images is None:
            found = ", ".join(keys) or "nothing"
            raise ValueError(f"--data {path}: no array 'images' or 'arr_0' in it, only {found}")
        rows = _member(path, archive, keys[images])
        sizes = ((len(rows),), (len(rows), 1)) if rows.ndim else ()
        labels = _named(path, archive, keys, _LABELS, lambda shape, dtype: shape in sizes and dtype.kind in "iu")
        source = array_source(str(path), rows, _member(path, archive, keys[labels]) if labels else None)
    source.files = [path]
    if labels is not None:
        source.notes.append(f"labels: {keys[labels]}")
    if others := [keys[name] for name in keys if name not in (images, labels)]:
        source.notes.append(f"not read: {', '.join(others)}")
    return source


def _of_split(path: Path, keys: Sequence[str], split: str) -> dict[str, str]:
    """The arrays of a split: their names without it, and with it."""
    found = {key: splits.split_of(key) for key in keys}
    there = sorted({kind for kind, _ in found.values()} - {""})
    if not there and split in ("train", splits.ALL):
        return {key: key for key in keys}
    if split not in there:
        raise splits.NoSplit(
            f"--data {path}: no {split} arrays in it, only {', '.join(there or keys)}; give one of them"
        )
    return {rest or "images": key for key, (kind, rest) in found.items() if kind in (split, "")}


def _named(
    path: Path,
    archive: np.lib.npyio.NpzFile,
    keys: Mapping[str, str],
    usual: Sequence[str],
    fits: Callable[[tuple[int, ...], np.dtype], bool],
) -> str | None:
    """The first of the usual names, in any case, that is there, or else the name of the only array that fits."""
    by_name = {name.lower(): name for name in reversed([*keys])}
    if known := [by_name[name] for name in usual if name in by_name]:
        return known[0]
    assert archive.zip is not None
    fitting = []
    for name, key in keys.items():
        with _readable(path, f" ({key})"), archive.zip.open(key + ".npy") as file:
            shape, dtype, _ = _header(file)
        if fits(shape, dtype):
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type and whether in Fortran's order, of an array in .npy format; the file is left at its first byte."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, dtype, fortran


@contextlib.contextmanager
def _readable(path: Path, key: str = "") -> Iterator[None]:
    """What numpy and zlib raise of a damaged file becomes one line that names it."""
    try:
        yield
    except (ValueError, EOFError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"--data {path}{key}: not a readable {path.suffix} array of numbers ({error}); {AGAIN}"
        ) from error


def _member(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    """One array of an .npz: mapped where it is stored uncompressed, else unpacked into memory."""
    assert archive.zip is not None
    member = archive.zip.getinfo(key + ".npy")
    with _readable(path, f" ({key})"), path.open("rb") as file:
        if member.compress_type != zipfile.ZIP_STORED:
            return archive[key]
        file.seek(member.header_offset + 26)  # the local header's two lengths (zip specification, 4.3.7)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        shape, dtype, fortran = _header(file)
        if dtype.hasobject or not shape:
            return archive[key]  # refused there
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def array_source(
    where: str, pixels: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> Source:
    """A source from pixels (N,H,W), (N,H,W,C) or (N,C,H,W) uint8 and labels (N,) integers."""
    rows = _channels_first(where, pixels)
    if labels is not None:
        labels, n_classes = _check_labels(where, np.asarray(labels), len(rows))
        class_names = tuple(class_names) or tuple(str(k) for k in range(n_classes))
    return Source(where, partial(_image, rows), len(rows), None, labels, tuple(class_names), rows, "array")


def _image(rows: np.ndarray, index: int) -> Image.Image:
    pixels = np.ascontiguousarray(rows[index].transpose(1, 2, 0))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _channels_first(where: str, pixels: np.ndarray) -> np.ndarray:
    """A view (N,C,H,W) of an array of images; ValueError when it is none."""
    shape = pixels.shape
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"--data {where}: dtype {pixels.dtype}; give uint8 (common.images.to_uint8 converts from [-1, 1])"
        )
    if len(shape) == 3 and shape[2] in _CHANNELS and shape[1] != shape[2]:
        raise ValueError(
            f"--data {where}: shape {shape}: one image, or {shape[0]} of {shape[1]}x{shape[2]}? give (N,H,W,C)"
        )
    squares = [side == shape[2] for side in (shape[1], shape[3])] if len(shape) == 4 else []  # last axis, first axis
    both = len(shape) == 4 and shape[1] in _CHANNELS and shape[3] in _CHANNELS and max(shape[1:]) > 1
    if both and squares[0] == squares[1]:
        raise ValueError(f"--data {where}: shape {shape}: is the first or the last axis that of the channels? {_GIVE}")
    if len(shape) == 3:
        pixels = pixels[:, None]
    elif len(shape) == 4 and shape[3] in _CHANNELS and not (both and squares[1]):
        pixels = pixels.transpose(0, 3, 1, 2)
    elif len(shape) != 4 or shape[1] not in _CHANNELS:
        raise ValueError(f"--data {where}: shape {shape}; {_GIVE}")
    if 0 in shape:
        raise ValueError(f"--data {where}: no images in it (shape {shape})")
    return pixels


def _check_labels(where: str, labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Labels as int64, and the number of classes."""
    labels = labels[:, 0] if labels.shape == (count, 1) else labels
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"--data {where}: labels have shape {labels.shape} and dtype {labels.dtype}; give ({count},) integers"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise ValueError(f"--data {where}: labels reach from {low} to {high}; allowed are 0 to {MAX_CLASSES - 1}")
    return labels.astype(np.int64), high + 1
