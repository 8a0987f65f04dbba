"""Pixels: [-1, 1] to uint8 and back, grids, and sets of numbered images on disk that can be continued.

``open_writer`` gives a folder of numbered PNG files or a .npz. Both have ``missing(start, stop)``, ``write(index,
image)`` and ``finish()``, may be filled by several processes or machines, and survive kill -9 at any moment.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from common.runtime import atomic_write, read_json, write_json
from common.runtime.kept import check_same


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded; values outside are clamped.

    Raises:
        ValueError: NaN or infinity, which would become black or white.
    """
    if not torch.isfinite(x).all():
        raise ValueError("the images hold NaN or infinity: the weights are damaged or have diverged, or try -mp no")
    return x.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def from_uint8(u: Tensor) -> Tensor:
    """0..255 to float32 in [-1, 1]; ``to_uint8`` undoes it exactly."""
    return u.to(torch.float32, copy=True).div_(127.5).sub_(1)


HEADER = 18  # rows of the names over a grid's columns
MOVING, HELD = 1600, 2500  # milliseconds of a moving picture until its last frame, and of that one
MOST_FRAMES, MOST_BYTES = 24, 1_500_000  # of a moving picture
WHITE = "white"  # what shows through where an image is transparent
_TIFF_BITS, _TIFF_MOST = 258, 281  # tags: bits of a sample, its largest value


def decode(data: bytes) -> Image.Image:
    """An image file's bytes as a decoded PIL image, upright; of several frames the first.

    Raises:
        ValueError: Samples of more than 8 bits whose range the file does not say.
    """
    image = Image.open(io.BytesIO(data))
    animated = getattr(image, "is_animated", False)
    image.load()
    bits, most = _bits(image, data)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        hidden = np.asarray(image) == image.info.get("transparency")  # of PNG (tRNS): a level that is not to be seen
        image = eight_bits(image, most)
        if hidden.any():
            image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    elif bits == 16 and 0 < np.asarray(image.convert("RGB")).max() < 16:
        raise ValueError("pixels of 16 bits that use the lower 12 at most; are they of fewer bits? give 8 bit images")
    image.info["frames"] = animated
    return image


def _bits(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Bits of a sample in the file, and the largest value that it says they can have; 0: it does not say."""
    tags = getattr(image, "tag_v2", {})
    deep = 16 if image.format == "TIFF" or image.mode.startswith("I") else 8
    bits = data[24] if image.format == "PNG" else int(np.max(tags.get(_TIFF_BITS, deep)))
    if _TIFF_MOST in tags:
        return bits, int(np.max(tags[_TIFF_MOST]))
    significant = data.find(b"sBIT", 0, data.find(b"IDAT")) + 4 if image.format == "PNG" else 3
    if significant > 3:
        return bits, 2 ** data[significant] - 1
    signed = image.mode == "I" and bits == 16 and image.format == "TIFF"
    return bits, 2 ** (bits - signed) - 1 if bits <= 16 else 0


def eight_bits(image: Image.Image, most: int) -> Image.Image:
    """An image of integers of more than 8 bits, as grey of 8 bits: ``most`` becomes white.

    Raises:
        ValueError: The range is unknown, or can hardly be what the file says.
    """
    if image.mode == "F" or most == 0:
        raise ValueError(f"floating point or 32 bit pixels ({image.mode}) of unknown range; give 8 bit images")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if most < high < 2**16 and image.mode.startswith("I;16"):
        most = 2**16 - 1  # fewer bits were significant, but they are the upper ones
    if low < 0 or high > most or (most == 2**16 - 1 and 0 < high < 2**12):
        raise ValueError(f"pixels from {low} to {high} of {most}; are they of other bits? give 8 bit images")
    return Image.fromarray((values * 256 // (most + 1)).astype(np.uint8))


def traits(image: Image.Image, background: str = WHITE) -> list[str]:
    """What is worth telling of a decoded image, since it is not shown as it is."""
    animated = ["of several frames, the first is read"] if image.info.get("frames") else []
    return animated + ([f"transparent, shown on {background}"] if image.has_transparency_data else [])


def fit(image: Image.Image, size: int, channels: int, background: str = WHITE) -> np.ndarray:
    """A PIL image as (channels,size,size) uint8: centre square, bicubic with antialiasing, grey (1) or colour (3).

    Raises:
        ValueError: Floating point pixels or 32-bit integers, whose range is unknown.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = eight_bits(image, 2**16 - 1 if image.mode.startswith("I;16") else 0)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # resize(box=...) would mix in pixels from outside
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def grid(
    x: Tensor,
    n_columns: int | None = None,
    padding: int = 2,
    scale: int = 1,
    names: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> Tensor:
    """Images side by side, row by row, with black lines between and around them.

    Args:
        x: (B,C,H,W), float in [-1, 1] or uint8.
        n_columns: Images in a row; None: the square root of B, rounded up.
        padding: Width of the lines.
        scale: Each pixel becomes a square of this side.
        names: What stands over the columns.
        beside: What stands at the left of the rows, instead.

    Returns:
        (rows (scale H + padding) + padding, columns (scale W + padding) + padding, C) uint8 on the CPU; names add
        HEADER rows at the top, or columns at the left, as many as the longest name takes.
    """
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"a grid needs images of shape (B,C,H,W) with B >= 1, not {tuple(x.shape)}")
    x = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu()
    x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = x.shape
    columns = min(count, n_columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    out = x.new_zeros(rows * (height + padding) + padding, columns * (width + padding) + padding, channels)
    for k, image in enumerate(x):
        top, left = padding + k // columns * (height + padding), padding + k % columns * (width + padding)
        out[top : top + height, left : left + width] = image.permute(1, 2, 0)
    if beside:
        return torch.cat([_named(beside[:rows], out.shape[0], height + padding, channels, above=False), out], 1)
    return (
        torch.cat([_named(names[:columns], out.shape[1], width + padding, channels, above=True), out]) if names else out
    )


def class_rows(x: Tensor, n_classes: int, **options: Any) -> Tensor:
    """A :func:`grid` of images whose classes take turns, (B,C,H,W), image k in row k mod n_classes; unfilled places are
    black."""
    x = x if x.dtype == torch.uint8 else to_uint8(x)
    columns = math.ceil(len(x) / n_classes)
    whole = torch.cat([x, x.new_zeros(columns * n_classes - len(x), *x.shape[1:])])
    return grid(whole.unflatten(0, (columns, n_classes)).transpose(0, 1).flatten(0, 1), columns, **options)


def _named(names: Sequence[str], length: int, step: int, channels: int, above: bool) -> Tensor:
    """Names in white on black: each over the middle of its column and no wider than that, or before that of its row."""
    font = ImageFont.load_default(size=11)
    breadth = HEADER if above else 8 + math.ceil(max(map(font.getlength, names)))
    picture = Image.new("L", (length, breadth) if above else (breadth, length))
    pen = ImageDraw.Draw(picture)
    for k, name in enumerate(names):
        while above and font.getlength(name) > step and len(name) > 1:
            name = name[:-2] + "\u2026" if len(name) > 2 else name[:1]
        middle = 2 + (k + 0.5) * step
        place = (middle, HEADER / 2) if above else (breadth - 4, middle)
        pen.text(place, name, fill=255, font=font, anchor="mm" if above else "rm")
    return torch.from_numpy(np.asarray(picture).copy())[..., None].expand(-1, -1, channels)


def save_png(path: str | Path, image: Tensor | np.ndarray, sync: bool = True) -> None:
    """Writes pixels, (H,W,1 or 3) uint8, as a PNG file, whole or not at all; ``sync`` as in ``atomic_write``."""
    data = png(image)
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def png(image: Tensor | np.ndarray) -> bytes:
    """The bytes of a PNG file of pixels, (H,W,1 or 3) uint8."""
    pixels = np.ascontiguousarray(image.cpu().numpy() if isinstance(image, Tensor) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"save_png takes uint8 (H,W,1 or 3), not {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_gif(path: str | Path, frames: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> int:
    """Writes a moving picture that begins again and again, and stands still at its last frame; whole or not at all.

    Noise cannot be packed, so the moving frames get as many colours (256, 128, ..., 16) as ``most_bytes`` allow, the
    earlier the fewer; the last one has 256. Of more than MOST_FRAMES frames that many are taken, with both ends.

    Frames are (H,W,1 or 3) uint8 each. Returns the file's bytes; ``most_bytes`` is not promised where 16 colours are
    too many.
    """
    count = min(len(frames), MOST_FRAMES)
    chosen = [frames[round(k * (len(frames) - 1) / max(1, count - 1))].expand(-1, -1, 3) for k in range(count)]
    pictures = [Image.fromarray(np.ascontiguousarray(frame.cpu().numpy())) for frame in chosen]
    last, buffer = pictures[-1].quantize(256, dither=Image.Dither.NONE), io.BytesIO()
    times = [max(40, MOVING // max(1, count - 1))] * (count - 1) + [HELD]
    for fewer in range(0, 16, 3):
        halvings = [min(4, round(fewer * (1 - k / count))) for k in range(count - 1)]
        parts = [picture.quantize(256 >> h, dither=Image.Dither.NONE) for picture, h in zip(pictures, halvings)] + [
            last
        ]
        buffer = io.BytesIO()
        parts[0].save(buffer, "GIF", save_all=True, append_images=parts[1:], duration=times, loop=0, disposal=1)
        if buffer.tell() <= most_bytes:
            break
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return buffer.tell()


# ---- sets of images on disk


def open_writer(
    path: str | Path, count: int, shape: tuple[int, int, int], fingerprint: dict[str, Any]
) -> PngFolder | NpzWriter:
    """The writer for ``--save_dir``: a .npz by its suffix, else a folder of PNG files.

    Args:
        path: Where to; made, or continued when it was begun with the same fingerprint.
        count, shape: Images of the whole set, and (C,H,W) of one.
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


_FREE = ("nfe", "stamp", "guide")  # in samples.json, but no settings of the images; "guide" is a name beside its hash


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
    advice = "give another --save_dir, or delete that one"
    if not file.exists():
        if begun or path.is_file():
            raise ValueError(f"{path} holds images of unknown origin (no {file.name} in it); {advice}")
        write_json(file, fingerprint)
    check_same(path, read_json(file), fingerprint, advice, _FREE)


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

    def file(self, index: int) -> Path:
        """Where an image goes."""
        return self.path / f"{index:06d}.png"

    def missing(self, start: int, stop: int) -> list[int]:
        """Indices from start to stop - 1 that are still to be made."""
        present = self.present()
        return [k for k in range(start, stop) if k not in present]

    def write(self, index: int, image: Tensor | np.ndarray) -> None:
        """Writes image ``index``, (C,H,W) uint8."""
        save_png(self.file(index), _chw(image).transpose(1, 2, 0), sync=False)

    def finish(self) -> bool:
        """Whether the set is complete; then what killed processes left behind is removed."""
        if self.count is not None and self.missing(0, self.count):
            return False
        for leftover in self.path.glob(".*.png.*.tmp"):
            leftover.unlink(missing_ok=True)
        return True


class NpzWriter(PngFolder):
    """One .npz with ``arr_0`` (N,H,W,C) uint8; until all images are there they lie in a folder NAME.part, as PNG files.

    Filled in any order, by several processes; whoever finds the last image there makes the .npz.
    """

    def __init__(self, path: str | Path, count: int, shape: tuple[int, int, int]):
        self.npz, self.shape, self.count, self.path = Path(path), shape, count, Path(path).with_suffix(".part")
        channels, height, width = shape
        header, facts = io.BytesIO(), {"descr": "|u1", "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**facts, "shape": (count, height, width, channels)})
        self.header = header.getvalue()
        if self.npz.exists():
            self._check_finished()
        else:
            super().__init__(self.path, count)

    def _check_finished(self) -> None:
        """Raises when the finished file is missing or holds other images."""
        try:
            with zipfile.ZipFile(self.npz) as archive, archive.open("arr_0.npy") as file:
                same = file.read(len(self.header)) == self.header
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.npz} is not a .npz of images ({error}); give another --save_dir") from error
        if not same:
            raise ValueError(f"{self.npz} holds another number or size of images; give another --save_dir")

    def missing(self, start: int, stop: int) -> list[int]:
        """Indices from start to stop - 1 that are still to be made."""
        return [] if self.npz.exists() else super().missing(start, min(stop, self.count))

    def write(self, index: int, image: Tensor | np.ndarray) -> None:
        """Writes image ``index``, (C,H,W) uint8."""
        if not 0 <= index < self.count or _chw(image).shape != self.shape:
            raise ValueError(f"image {index} of shape {image.shape} does not go into {self.count} of {self.shape}")
        if not self.npz.exists():
            super().write(index, image)

    def finish(self) -> bool:
        """Makes the .npz when all images are there, whoever wrote them; returns whether the set is complete."""
        if self.missing(0, self.count):
            return False
        if not self.npz.exists():
            self._assemble()
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def _assemble(self) -> None:
        """Copies image by image: the set need not fit in memory."""
        try:
            with (
                atomic_write(self.npz) as temporary,
                zipfile.ZipFile(temporary, "w") as archive,
                archive.open("arr_0.npy", "w", force_zip64=True) as file,
            ):
                file.write(self.header)
                for index in range(self.count):
                    file.write(decode(self.file(index).read_bytes()).tobytes())
        except FileNotFoundError:
            self._check_finished()  # another process was faster


def _chw(image: Tensor | np.ndarray) -> np.ndarray:
    """An image (C,H,W) uint8 as a numpy array."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3:
        raise ValueError(f"an image to write must be uint8 (C,H,W), not {array.dtype} {array.shape}")
    return array
