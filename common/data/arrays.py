"""Arrays of images in .npy and .npz files, read row by row; nothing is unpickled.

Pixels are uint8, (N,H,W), (N,H,W,C) or (N,C,H,W) with one, three or four channels.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CLASSES = 100_000


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


def open_npz(path: Path) -> Source:
    """A source from the arrays ``images`` and, if it is there, ``labels`` of an .npz file (or ``arr_0``, ``arr_1``).

    Raises:
        ValueError: It is damaged, or holds no uint8 images.
    """
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
        labels, n_classes = _check_labels(where, np.asarray(labels), count)
        class_names = tuple(class_names) or tuple(str(k) for k in range(n_classes))

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
