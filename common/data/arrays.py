"""Arrays of images in .npy and .npz files, mapped into memory where they lie uncompressed; nothing is unpickled.

Pixels are uint8, (N,H,W), (N,H,W,C) or (N,C,H,W) with one, three or four channels.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.data.sources import AGAIN, Source

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CLASSES = 100_000


def open_npy(path: Path) -> Source:
    """A source from an array in a .npy file."""
    with _readable(path):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return array_source(str(path), rows)


def open_npz(path: Path) -> Source:
    """A source from the arrays ``images`` and, if it is there, ``labels`` of an .npz file (or ``arr_0``, ``arr_1``)."""
    with _readable(path):
        archive = np.lib.npyio.NpzFile(path.open("rb"), own_fid=True, allow_pickle=False)
    with archive:
        images = next((key for key in ("images", "arr_0", "x") if key in archive.files), None)
        labels = next((key for key in ("labels", "label", "y", "arr_1") if key in archive.files), None)
        if images is None:
            found = ", ".join(archive.files) or "nothing"
            raise ValueError(f"--data {path}: no array 'images' or 'arr_0' in it, only {found}")
        rows = _member(path, archive, images)
        return array_source(str(path), rows, _member(path, archive, labels) if labels else None)


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
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
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


def _image(rows: np.ndarray, index: int) -> Image:
    from PIL import Image

    pixels = np.ascontiguousarray(rows[index].transpose(1, 2, 0))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _channels_first(where: str, pixels: np.ndarray) -> np.ndarray:
    """A view (N,C,H,W) of an array of images; ValueError when it is none."""
    shape = pixels.shape
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"--data {where}: dtype {pixels.dtype}; give uint8 (common.images.to_uint8 converts from [-1, 1])"
        )
    if len(shape) == 3:
        pixels = pixels[:, None]
    elif len(shape) == 4 and shape[3] in (1, 3, 4):
        pixels = pixels.transpose(0, 3, 1, 2)
    elif len(shape) != 4 or shape[1] not in (1, 3, 4):
        raise ValueError(f"--data {where}: shape {shape}; give (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1, 3 or 4")
    if 0 in shape:
        raise ValueError(f"--data {where}: no images in it (shape {shape})")
    return pixels


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
