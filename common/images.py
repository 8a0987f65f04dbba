"""Pixels: [-1, 1] to uint8 and back, grids, and sets of numbered images on disk that can be continued.

``open_writer`` gives a folder of numbered PNG files or a .npz. Both have ``missing(start, stop)``, ``write(index,
image)`` and ``finish()``, may be filled by several processes or machines, and survive kill -9 at any moment.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.runtime import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from PIL.Image import Image


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded; values outside are clamped."""
    return x.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def from_uint8(u: Tensor) -> Tensor:
    """0..255 to float32 in [-1, 1]; ``to_uint8`` undoes it exactly."""
    return u.to(torch.float32, copy=True).div_(127.5).sub_(1)


def decode(data: bytes) -> Image:
    """An image file's bytes as a decoded PIL image, upright."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(data))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def fit(image: Image, size: int, channels: int) -> np.ndarray:
    """A PIL image as (channels,size,size) uint8: centre square, bicubic with antialiasing, grey or colour.

    Raises:
        ValueError: Floating point pixels, whose range is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating point pixels; give 8 or 16 bit images")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # resize(box=...) would mix in pixels from outside
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def grid(x: Tensor, n_columns: int | None = None, padding: int = 2) -> Tensor:
    """Images side by side, row by row, with black lines between and around them.

    Args:
        x: (B,C,H,W), float in [-1, 1] or uint8.
        n_columns: Images in a row; None: the square root of B, rounded up.
        padding: Width of the lines.

    Returns:
        (rows (H + padding) + padding, columns (W + padding) + padding, C) uint8 on the CPU.
    """
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"a grid needs images of shape (B,C,H,W) with B >= 1, not {tuple(x.shape)}")
    x = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu()
    count, channels, height, width = x.shape
    columns = min(count, n_columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    out = x.new_zeros(rows * (height + padding) + padding, columns * (width + padding) + padding, channels)
    for k, image in enumerate(x):
        top, left = padding + k // columns * (height + padding), padding + k % columns * (width + padding)
        out[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return out


def save_png(path: str | Path, image: Tensor | np.ndarray, sync: bool = True) -> None:
    """Writes a PNG file whole or not at all: uint8 (H,W,C), or images (B,C,H,W) as a grid. Makes the folder.

    Args:
        path: File to write.
        image: Its pixels.
        sync: Wait until the disk has it (milliseconds).
    """
    if isinstance(image, Tensor):
        image = (grid(image) if image.ndim == 4 else image).cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"save_png takes uint8 (H,W,1 or 3) or (B,C,H,W), not {image.dtype} {image.shape}")
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(_png(image))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- sets of images on disk


def open_writer(
    path: str | Path, count: int, shape: tuple[int, int, int], fingerprint: dict[str, Any]
) -> PngFolder | NpzWriter:
    """The writer for ``--save_dir``: a .npz by its suffix, else a folder of PNG files.

    Args:
        path: Where to; made, or continued when it was begun with the same fingerprint.
        count: Images of the whole set.
        shape: (C,H,W) of an image.
        fingerprint: What the pixels depend on (weights, seed, solver, ...), JSON-like; kept in samples.json.

    Raises:
        ValueError: The set there was made with other settings.
    """
    path = Path(path)
    if path.suffix == ".npz":
        _check_fingerprint(facts_file(path), {**fingerprint, "shape": shape, "count": count}, path)
        return NpzWriter(path, count, shape)
    writer = PngFolder(path, count)
    _check_fingerprint(facts_file(path), {**fingerprint, "shape": shape}, path, begun=bool(writer.present()))
    return writer


COUNTED = ("nfe",)  # in samples.json, but known only once images are made


def facts_file(path: Path) -> Path:
    """Where it says how a set of images was made."""
    return path.with_suffix(".samples.json") if path.suffix == ".npz" else path / "samples.json"


def add_counted(path: str | Path, **counted: float) -> None:
    """Add to samples.json what was counted while images were made: the mean network evaluations of one, ``nfe``."""
    file = facts_file(Path(path))
    whole = {key: int(value) if float(value).is_integer() else round(value, 2) for key, value in counted.items()}
    facts = read_json(file) | whole
    write_json(file, facts)


def _check_fingerprint(file: Path, fingerprint: dict[str, Any], path: Path, begun: bool = False) -> None:
    """Writes the fingerprint of a new set; refuses a set that was begun with another one."""
    new = json.loads(json.dumps(fingerprint))
    advice = "give another --save_dir, or delete that one"
    if not file.exists():
        if begun or path.is_file():
            raise ValueError(f"{path} holds images of unknown origin (no {file.name} in it); {advice}")
        write_json(file, new)
    try:
        old = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); {advice}") from error
    keys = [key for key in sorted({*new, *old} - {*COUNTED}) if new.get(key) != old.get(key)]
    if keys:
        differences = ", ".join(f"{key} {old.get(key)} there and {new.get(key)} now" for key in keys)
        raise ValueError(f"{path} was begun with other settings: {differences}; {advice}")


class PngFolder:
    """Numbered PNG files, 000000.png and so on. A file that is there is complete."""

    def __init__(self, path: str | Path, count: int | None = None):
        self.path, self.count = Path(path), count
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; give a folder, or a name that ends in .npz")
        self.path.mkdir(parents=True, exist_ok=True)

    def present(self) -> set[int]:
        """Indices whose file is there, and not empty as after a power cut."""
        entries = (entry for entry in os.scandir(self.path) if re.fullmatch(r"\d{6,}\.png", entry.name))
        return {int(entry.name[:-4]) for entry in entries if entry.stat().st_size}

    def missing(self, start: int, stop: int) -> list[int]:
        """Indices from start to stop - 1 that are still to be made."""
        present = self.present()
        return [k for k in range(start, stop) if k not in present]

    def write(self, index: int, image: Tensor | np.ndarray) -> None:
        """Writes image ``index``, (C,H,W) uint8."""
        save_png(self.path / f"{index:06d}.png", _chw(image).transpose(1, 2, 0), sync=False)

    def finish(self) -> bool:
        """Whether the set is complete; then what killed processes left behind is removed."""
        if self.count is not None and self.missing(0, self.count):
            return False
        for leftover in self.path.glob(".*.png.*.tmp"):
            leftover.unlink(missing_ok=True)
        return True


class NpzWriter:
    """One .npz with ``arr_0`` (N,H,W,C) uint8, filled in any order, by several processes.

    Until all rows are there they lie in NAME.part.npy, with a byte for each finished row in NAME.done. Rows are written
    to the file rather than to a memory map of it: a full disk is then an error instead of a killed process.
    Every process that opens the set puts the same bytes at the same places, so that no lock is needed.
    """

    def __init__(self, path: str | Path, count: int, shape: tuple[int, int, int]):
        channels, height, width = shape
        self.path, self.count, self.shape = Path(path), count, (height, width, channels)
        self.part, self.done = self.path.with_suffix(".part.npy"), self.path.with_suffix(".done")
        self.row_bytes = channels * height * width
        self.header = _npy_header((count, height, width, channels))
        if self.path.exists():
            self._check_finished()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._prepare(self.part, self.header, len(self.header) + count * self.row_bytes)
        self._prepare(self.done, b"", count)

    def _prepare(self, file: Path, header: bytes, size: int) -> None:
        """Makes a file of ``size`` (sparse) bytes, or checks that the one there is of that size and kind."""
        file.open("ab").close()  # makes it and keeps what is in it
        with file.open("r+b") as handle:
            beginning = handle.read(len(header))
            if os.fstat(handle.fileno()).st_size not in (0, size) or beginning.strip(b"\0") not in (b"", header):
                raise ValueError(f"{file} belongs to another set of images; give another --save_dir, or delete it")
            handle.truncate(size)
            handle.seek(0)
            handle.write(header)

    def _check_finished(self) -> None:
        """Raises when the finished file is missing or holds other images."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                same = file.read(len(self.header)) == self.header
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is not a .npz of images ({error}); give another --save_dir") from error
        if not same:
            raise ValueError(f"{self.path} holds another number or size of images; give another --save_dir")

    def missing(self, start: int, stop: int) -> list[int]:
        """Indices from start to stop - 1 that are still to be made."""
        if self.path.exists():
            return []
        try:
            marks = self.done.read_bytes()  # a byte an image, 0 until it is written
        except FileNotFoundError:
            self._check_finished()  # by another process, just now
            return []
        return [k for k in range(start, min(stop, self.count)) if not marks[k]]

    def write(self, index: int, image: Tensor | np.ndarray) -> None:
        """Writes image ``index``, (C,H,W) uint8; its flag is set once its pixels are there."""
        pixels = _chw(image).transpose(1, 2, 0)
        if not 0 <= index < self.count or pixels.shape != self.shape:
            raise ValueError(f"image {index} of shape {pixels.shape} does not go into {self.count} of {self.shape}")
        try:
            _write_at(self.part, pixels.tobytes(), len(self.header) + index * self.row_bytes)
            _write_at(self.done, b"\x01", index)
        except FileNotFoundError:
            self._check_finished()  # another process has made them all

    def finish(self) -> bool:
        """Makes the .npz when all rows are there, whoever wrote them; returns whether the set is complete."""
        if not self.path.exists():
            if self.missing(0, self.count):
                return False
            self._assemble()
        for file in (self.done, self.part):
            file.unlink(missing_ok=True)
        return True

    def _assemble(self) -> None:
        try:
            rows = np.load(self.part, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return self._check_finished()  # another process was faster
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=rows)  # stored, in blocks: no second copy in memory


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of uint8 in C order."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _write_at(file: Path, data: bytes, offset: int) -> None:
    """Writes bytes at a place of an existing file."""
    with file.open("r+b") as handle:
        handle.seek(offset)
        handle.write(data)


def _chw(image: Tensor | np.ndarray) -> np.ndarray:
    """An image (C,H,W) uint8 as a numpy array."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3:
        raise ValueError(f"an image to write must be uint8 (C,H,W), not {array.dtype} {array.shape}")
    return array
