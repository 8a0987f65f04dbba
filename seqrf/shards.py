"""Shards: numbered files of pairs that can be read row by row.

    FOLDER/manifest.json        what is fixed before the first pair: see manifest.py
    FOLDER/shard-00000.pairs    512 bytes of JSON (which pairs, checksum, what they cost), then one record a pair

Pair p belongs to segment p mod k. Its record holds the end of the segment's trajectory, the real sample that its start
was mixed from (only where the start is not pure noise) and the label (only with labels). The noise is not stored: it is
drawn again from the seed and p. A shard is written whole or not at all and by one process, so any number of
processes and machines can fill a folder, and a killed one loses the shard that it was working on.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime import atomic_write
from seqrf.manifest import read_manifest

if TYPE_CHECKING:
    import numpy as np

    from seqrf.manifest import Manifest

HEADER = 512  # bytes


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{shard:05d}.pairs"


def write_shard(folder: Path, manifest: Manifest, shard: int, records: np.ndarray, **facts: float) -> None:
    """Write a shard's records, (bytes,) uint8, whole or not at all, with facts such as nfe for the header.

    What a killed process left of this shard is removed.
    """
    path, span = shard_path(folder, shard), manifest.span(shard)
    for leftover in folder.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    content = records.data
    header = {"manifest": manifest.mark, "shard": shard, "pairs": [span.start, span.stop], "crc32": zlib.crc32(content)}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(json.dumps({**header, **facts}).encode().ljust(HEADER - 1) + b"\n")
        file.write(content)


def read_header(folder: Path, shard: int) -> dict[str, Any]:
    """The facts at the head of a shard; ValueError when it is no header."""
    with open(shard_path(folder, shard), "rb") as file:
        header = json.loads(file.read(HEADER))
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header


def flaw(folder: Path, manifest: Manifest, shard: int, contents: bool = False) -> str:
    """What is wrong with a shard; "" when it is whole.

    Args:
        contents: read it all and compare the checksum; False: look at the size and the header only.
    """
    path = shard_path(folder, shard)
    if not path.exists():
        return "missing"
    size, expected = path.stat().st_size, HEADER + manifest.size(shard)
    if size != expected:
        return f"{'truncated' if size < expected else 'too long'} ({size:,} of {expected:,} bytes)"
    try:
        header = read_header(folder, shard)
    except ValueError:
        return "damaged (header)"
    if (header.get("manifest"), header.get("shard")) != (manifest.mark, shard):
        return "of other pairs"
    return "damaged (checksum)" if contents and _crc32(path) != header.get("crc32") else ""


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        file.seek(HEADER)
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def verify(folder: str | os.PathLike[str], shards: Sequence[int] | None = None) -> dict[int, str]:
    """Read every shard (or those given) and name what is missing or damaged: {shard: what is wrong}, empty when whole.

    Cost: about a second a GB.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    numbers = range(manifest.n_shards) if shards is None else check_shards(manifest, shards)
    return {shard: text for shard in numbers if (text := flaw(folder, manifest, shard, contents=True))}


def check_shards(manifest: Manifest, shards: Sequence[int]) -> list[int]:
    """The shards as a list; ValueError for a number that there is none of."""
    wrong = [shard for shard in shards if not 0 <= shard < manifest.n_shards]
    if wrong:
        raise ValueError(f"there is no shard {wrong[0]}: these pairs have the shards 0 to {manifest.n_shards - 1}")
    return list(shards)


def read_rows(folder: Path, manifest: Manifest, pairs: np.ndarray) -> np.ndarray:
    """The records of pairs in any order, (B, bytes of the longest record) uint8; shorter ones end in zeros.

    Each shard is mapped once, read where its rows lie and unmapped, so that resident memory never holds more than the
    touched pages of one shard, and no more than one file is open.
    """
    import numpy as np

    rows = np.zeros((len(pairs), max(record.itemsize for record in manifest.records)), np.uint8)
    sizes = np.array([record.itemsize for record in manifest.records])[pairs % manifest.k]
    starts = manifest.offset(pairs)
    order = np.argsort(pairs // manifest.shard_size, kind="stable")
    shards, first = np.unique(pairs[order] // manifest.shard_size, return_index=True)
    for shard, at in zip(shards.tolist(), np.split(order, first[1:])):
        base = int(manifest.offset(manifest.span(shard).start)) - HEADER
        where = zip(at.tolist(), (starts[at] - base).tolist(), sizes[at].tolist())
        _copy_rows(shard_path(folder, shard), HEADER + manifest.size(shard), where, rows)
    return rows


def _copy_rows(path: Path, size: int, where: Iterable[tuple[int, int, int]], rows: np.ndarray) -> None:
    """Copy (row, start, bytes) of a mapped file of a size into rows."""
    import mmap

    import numpy as np

    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:  # reading beyond the end of a mapped file kills the process
            raise ValueError(f"{path} has changed while it was read: generate it again")
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_RANDOM)  # no pages beside those of the rows
            for row, start, length in where:
                rows[row, :length] = np.frombuffer(mapped[start : start + length], np.uint8)
