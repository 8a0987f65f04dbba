"""Shards: numbered files of pairs that can be read row by row, and the manifest that says what they are.

    FOLDER/manifest.json        what is fixed before the first pair: teacher, data, segments, solver, seed, counts
    FOLDER/shard-00000.pairs    512 bytes of JSON (which pairs, checksum, what they cost), then one record a pair

Pair p belongs to segment p mod k. Its record holds the end of the segment's trajectory, the real sample that its start
was mixed from (only where the start is not pure noise) and the label (only with labels). The noise is not stored: it is
drawn again from the seed and p. A shard is written whole or not at all and by one process, so any number of
processes and machines can fill a folder, and a killed one loses the shard that it was working on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime import atomic_write, write_json

if TYPE_CHECKING:
    import numpy as np

HEADER = 512  # bytes
FORMAT = {"format": "flow-pairs", "version": 1}
ENDS = ("float16", "float32", "uint8")
_NUMPY = {"float16": "<f2", "float32": "<f4", "uint8": "u1", "int16": "<i2"}


@dataclass(frozen=True)
class Manifest:
    """What the pairs of a folder are, and where each of them lies.

    Attributes:
        teacher: hash of the weights whose flow the pairs follow.
        edges: 0 = t_0 < ... < t_k = 1, numbers that float32 holds exactly.
        solver: "dopri5", one of ``common.solvers.SOLVERS``, or "auto": rk4 and dopri5, whichever cost less.
        tolerance: dopri5's rtol and atol; None where there is no dopri5.
        n_steps: steps in each segment, 0 for dopri5 there; empty for dopri5 everywhere.
        seed: of the noise and of the choice of data.
        shape: of one sample.
        n_pairs, shard_size: all pairs, and those of a shard (the last one may have fewer).
        batch_size: samples solved together; dopri5 takes its steps for the whole batch, so they belong to the result.
        ends: "float16", "float32", or "uint8" for the ends at t = 1 with float16 for the others.
        data, data_hash, data_count, data_dtype: name, hash, size and stored type of the data; "" and 0 without any.
        label_dtype: stored type of the labels; "" without.
        noise: the first numbers of pair 0's noise, by which a reader knows that it draws the same.
        source: "gaussian", or the distribution of ``common.toys`` that the flow starts from.
        method, sigma: the teacher's, which say what a start is a mixture of.
        cfg: guidance scale of the teacher.
        landing: time from which the way to the data is one straight step; 1: no such step.
    """

    teacher: str
    edges: tuple[float, ...]
    solver: str
    tolerance: float | None
    n_steps: tuple[int, ...]
    seed: int
    shape: tuple[int, ...]
    n_pairs: int
    shard_size: int
    batch_size: int
    ends: str
    data: str
    data_hash: str
    data_count: int
    data_dtype: str
    label_dtype: str
    noise: tuple[float, ...]
    source: str
    method: str
    sigma: float
    cfg: float
    landing: float

    @property
    def coupling(self) -> str:
        """How noise and data were paired in the teacher's training."""
        from common.methods import METHODS

        return METHODS[self.method].coupling

    @property
    def reg(self) -> float | None:
        """Regularisation of an entropic coupling."""
        return 2 * self.sigma**2 if self.coupling == "sinkhorn" else None

    @property
    def k(self) -> int:
        """Segments."""
        return len(self.edges) - 1

    @property
    def n_shards(self) -> int:
        """Files."""
        return -(-self.n_pairs // self.shard_size)

    @cached_property
    def mark(self) -> str:
        """Short hash of all of it, which every shard carries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def records(self) -> tuple[np.dtype, ...]:
        """The record of each segment's pairs."""
        import numpy as np

        def record(segment: int) -> np.dtype:
            last = segment == self.k - 1
            end = self.ends if self.ends != "uint8" or last else "float16"
            parts: list[Any] = [("end", _NUMPY[end], self.shape)]
            if segment > 0:
                parts.append(("data", _NUMPY[self.data_dtype], self.shape))
            if self.label_dtype:
                parts.append(("label", _NUMPY[self.label_dtype]))
            return np.dtype(parts)

        return tuple(record(segment) for segment in range(self.k))

    def numerics(self, segment: int) -> tuple[str, int, float]:
        """Solver, steps and tolerance in a segment."""
        n_steps = self.n_steps[segment] if self.n_steps else 0
        name = "dopri5" if n_steps == 0 else "rk4" if self.solver == "auto" else self.solver
        return name, n_steps, self.tolerance or 0.0

    def offset(self, pair: Any) -> Any:
        """Bytes of all records before a pair (a number or an array): k records in turn repeat for ever."""
        import numpy as np

        before = np.cumsum([0, *(record.itemsize for record in self.records)])
        return pair // self.k * before[-1] + before[pair % self.k]

    def span(self, shard: int) -> range:
        """The pairs of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.n_pairs))

    def size(self, shard: int) -> int:
        """Bytes of a shard's records."""
        span = self.span(shard)
        return int(self.offset(span.stop) - self.offset(span.start))


# ------------------------------------------------------------------------------------------------------------ manifest
def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Fix what a folder holds, or go on with what it holds already. Returns what is fixed.

    Raises:
        ValueError: the folder holds other pairs; the first difference is named.
    """
    path = folder / "manifest.json"
    if not path.exists():
        write_json(path, {**FORMAT, **asdict(manifest)})
    there = read_manifest(folder)  # another process may have been first
    free = {"noise", "data"}  # the last bits of another machine's noise; a name, whose hash is compared
    free |= {"batch_size"} if there.n_steps and 0 not in there.n_steps else set()  # dopri5's steps are a batch's
    free |= {"n_steps"} if manifest.solver == "auto" else set()  # chosen once
    for field in fields(Manifest):
        old, new = getattr(there, field.name), getattr(manifest, field.name)
        if old != new and field.name not in free:
            raise ValueError(
                f"{folder} holds pairs with {field.name} {_short(old)}, not {_short(new)}: go on with the same options "
                "or choose another folder"
            )
    return there


def _short(value: Any) -> str:
    text = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: no folder, or no manifest in it.
        ValueError: damaged, or of another version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        what = "there is no such folder" if not folder.is_dir() else "it has no manifest.json"
        raise FileNotFoundError(f"no pairs in {folder}, {what}: generate them first, or give the folder that has them")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = {key: values.pop(key) for key in FORMAT}
        values |= {key: tuple(values[key]) for key in ("edges", "n_steps", "shape", "noise")}
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{path} is damaged or not a manifest of pairs ({type(error).__name__}): generate the pairs again"
        raise ValueError(text) from error
    if version != FORMAT:
        raise ValueError(f"{path} is of version {version['version']}, this code reads {FORMAT['version']}: update it")
    return manifest


# -------------------------------------------------------------------------------------------------------------- shards
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
    wanted = range(manifest.n_shards) if shards is None else check_shards(manifest, shards)
    return {shard: text for shard in wanted if (text := flaw(folder, manifest, shard, contents=True))}


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
    for shard, mine in zip(shards.tolist(), np.split(order, first[1:])):
        base = int(manifest.offset(manifest.span(shard).start)) - HEADER
        where = zip(mine.tolist(), (starts[mine] - base).tolist(), sizes[mine].tolist())
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


def shape_text(shape: Sequence[int]) -> str:
    """(3, 32, 32) as "3x32x32"."""
    return "x".join(map(str, shape)) if math.prod(shape) else "nothing"
