"""Images in TFRecord files, without tensorflow: the framing, and of protobuf what a tf.train.Example needs.

Importing tensorflow for it would take seconds and most of a gigabyte of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.archives import AGAIN, read_range
from common.data.sources import Source
from common.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image


def open_tfrecord(path: Path) -> Source:
    """A source from a TFRecord file of tf.train.Example; labels are not read. Cost: one seek a record.

    The image is the feature ``image/encoded``, ``image`` or ``image_raw`` (a file's bytes), or ``data`` with
    ``shape`` (uint8 pixels, channels first or last, as progressive GANs and Glow write them).

    Raises:
        ValueError: Not a TFRecord file, compressed, or cut off.
    """
    places, start, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while start < size:
            head = file.read(12)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or start + 16 + length > size:
                raise ValueError(f"--data {path}: ends within record {len(places)}; {AGAIN}")
            if _masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
                raise ValueError(f"--data {path}: not an uncompressed TFRecord file (checksum of record {len(places)})")
            places.append((start + 12, length))
            start += 16 + length
            file.seek(start)
    if not places:
        raise ValueError(f"--data {path}: no images in it")
    return Source(str(path), partial(_load_record, path, places), len(places), kind="tfrecord")


def _masked_crc(data: bytes) -> int:
    """The CRC-32C that TFRecord files carry, rotated and offset (tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _crc_table()[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli) of each byte; polynomial 0x1EDC6F41, reflected."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return tuple(table)


def _load_record(path: Path, places: Sequence[tuple[int, int]], index: int) -> Image:
    from PIL import Image

    features = example(read_range(path, *places[index]))
    for name in ("image/encoded", "image", "image_raw"):
        if features.get(name):
            return decode(bytes(features[name][0]))
    if "data" not in features or len(features.get("shape", ())) != 3:
        raise ValueError(f"no image among the features {', '.join(sorted(features)) or 'of the record'}")
    first, height, last = features["shape"]
    pixels = np.frombuffer(features["data"][0], np.uint8).reshape(first, height, last)
    pixels = pixels.transpose(1, 2, 0) if first in (1, 3) else pixels
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def example(record: bytes) -> dict[str, list[Any]]:
    """The features of a serialised tf.train.Example: lists of bytes or of whole numbers; floats are left out.

    Source: tensorflow/core/example/feature.proto and the protobuf encoding; field 1 holds the features, their
    field 1 pairs of name (1) and value (2), a value a list of bytes (1) or of int64 (3).
    """
    lists: dict[str, list[Any]] = {}
    features = b"".join(value for number, value in _fields(record) if number == 1)
    for pair in (value for number, value in _fields(features) if number == 1):
        parts = dict(_fields(pair))
        for kind, values in _fields(parts.get(2, b"")):
            items = [item for number, item in _fields(values) if number == 1]
            if kind == 3:
                items = [n for item in items for n in ([item] if isinstance(item, int) else _varints(item))]
            if kind in (1, 3):
                lists[bytes(parts[1]).decode()] = items
    return lists


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message: whole numbers, or the bytes of anything else."""
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(view, at)
        else:
            length = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                length, at = _varint(view, at)
            if length is None or at + length > len(view):
                raise ValueError("a damaged record")
            value, at = view[at : at + length], at + length
        yield tag >> 3, value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, low ones first, and where it ends."""
    value, shift = 0, 0
    while at < len(view) and shift < 64:
        value |= (view[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if view[at - 1] < 128:
            return value, at
    raise ValueError("a damaged record")


def _varints(view: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(view):
        value, at = _varint(view, at)
        values.append(value)
    return values
