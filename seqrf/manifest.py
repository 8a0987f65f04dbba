"""The manifest of a folder of pairs: whose flow they follow, which pairs they are, and where each of them lies.

It is fixed before the first pair and compared before any other. ``FOLDER/manifest.json`` has all of it on one level.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.methods import METHODS
from common.runtime import checked, reading, write_json

if TYPE_CHECKING:
    import numpy as np

FORMAT = {"format": "flow-pairs", "version": 1}
_NUMPY = {"float16": "<f2", "float32": "<f4", "uint8": "u1", "int16": "<i2"}

T = TypeVar("T")


@dataclass(frozen=True)
class Teacher:
    """What pairs need to know of the model whose flow they follow.

    Attributes:
        hash: Of its weights; training asks for it again.
        shape: Of one sample, (3, 32, 32) or (2,).
        source: Where the flow starts: "gaussian", or a distribution of ``common.data.toys``.
        method, sigma, coupling: What it was trained with, as its checkpoint has it; they say what a start is a mixture
            of. Coupling "auto": the method's usual one.
        cfg: Guidance scale in its velocity; only noted.
        landing: Time from which the way to the data is one straight step, see ``endpoints.follow``; 1: no such step.
    """

    hash: str
    shape: tuple[int, ...]
    source: str = "gaussian"
    method: str = "rf"
    sigma: float = 0.0
    cfg: float = 1.0
    landing: float = 1.0
    coupling: str = "auto"

    @property
    def joint(self) -> str:
        """How noise and data were paired in its training."""
        return METHODS[self.method].joint(self.coupling)

    @property
    def reg(self) -> float | None:
        """Regularisation of an entropic coupling."""
        return METHODS[self.method].regularisation(self.joint, self.sigma)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs, and how their ends are solved and stored. A manifest has them as ``plan`` has completed them.

    Attributes:
        n_pairs: Of all segments together, as many of each.
        edges: 0 = t_0 < ... < t_k = 1; in a manifest numbers that float32 holds exactly.
        seed: Of the noise and of the choice of data.
        solver: "dopri5"; "auto": rk4 where that is as good for less, see ``endpoints.choose_steps``; or one of
            ``common.solvers.SOLVERS`` with n_steps.
        n_steps: Steps in every segment, or in each; in a manifest see :attr:`Manifest.n_steps`.
        tolerance: dopri5's rtol and atol; in a manifest None where another solver was asked for.
        batch_size: Samples solved together, all of one segment and one shard. It changes roundings, which dopri5's
            choice of steps amplifies; so with dopri5 it belongs to the result.
        shard_size: Pairs of a file (the last one may have fewer); None: 2048, fewer where those would be over 64 MB.
        ends: How x_b is stored: "float16", "float32", or "uint8" for the pixels at t = 1 and float16 before.
    """

    n_pairs: int
    edges: Sequence[float]
    seed: int = 0
    solver: str = "auto"
    n_steps: int | Sequence[int] | None = None
    tolerance: float | None = 1e-4
    batch_size: int = 256
    shard_size: int | None = None
    ends: str = "float16"


@dataclass(frozen=True)
class PoolFacts:
    """What the samples are that pairs start from; "" and 0 without any.

    Attributes:
        data, data_hash: Their name, and the hash of samples and labels.
        data_count: Samples.
        data_dtype, label_dtype: How both are stored.
    """

    data: str
    data_hash: str
    data_count: int
    data_dtype: str
    label_dtype: str


@dataclass(frozen=True)
class Manifest:
    """What the pairs of a folder are, and where each of them lies.

    Attributes:
        teacher, options, pool: See there.
        noise: The first numbers of pair 0's noise, by which a reader knows that it draws the same.
    """

    teacher: Teacher
    options: PairOptions
    pool: PoolFacts
    noise: tuple[float, ...]

    def facts(self) -> dict[str, Any]:
        """All of it on one level, as the file has it."""
        teacher = asdict(self.teacher)
        if self.teacher.joint == METHODS[self.teacher.method].coupling:
            del teacher["coupling"]  # the usual one goes without saying, as in folders from before it was recorded
        facts = {"teacher": teacher.pop("hash"), **teacher, **asdict(self.options), **asdict(self.pool)}
        return facts | {"noise": self.noise}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Manifest:
        """The manifest of :meth:`facts`; KeyError or ValueError where one is missing or unknown."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        values["hash"] = values.pop("teacher")
        values.setdefault("coupling", "auto")

        def take(record: type[T]) -> T:
            known = {field.name: values.pop(field.name) for field in fields(record)}  # type: ignore[arg-type]
            return record(**checked(known, record, "its value"))

        manifest = cls(take(Teacher), take(PairOptions), take(PoolFacts), values.pop("noise"))
        if values:
            raise ValueError(f"unknown {', '.join(values)}")
        return manifest

    @property
    def edges(self) -> tuple[float, ...]:
        """0 = t_0 < ... < t_k = 1."""
        return tuple(self.options.edges)

    @property
    def k(self) -> int:
        """Segments."""
        return len(self.options.edges) - 1

    @property
    def shard_size(self) -> int:
        """Pairs of a shard; the last one may have fewer."""
        assert self.options.shard_size  # plan has chosen it
        return self.options.shard_size

    @property
    def n_shards(self) -> int:
        """Files."""
        return -(-self.options.n_pairs // self.shard_size)

    @cached_property
    def mark(self) -> str:
        """Short hash of all of it, which every shard carries."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def records(self) -> tuple[np.dtype, ...]:
        """The record of each segment's pairs."""
        import numpy as np

        def record(segment: int) -> np.dtype:
            last = segment == self.k - 1
            ends, shape = self.options.ends, self.teacher.shape
            parts: list[Any] = [("end", _NUMPY["float16" if ends == "uint8" and not last else ends], shape)]
            if segment > 0:
                parts.append(("data", _NUMPY[self.pool.data_dtype], shape))
            if self.pool.label_dtype:
                parts.append(("label", _NUMPY[self.pool.label_dtype]))
            return np.dtype(parts)

        return tuple(record(segment) for segment in range(self.k))

    @property
    def n_steps(self) -> tuple[int, ...]:
        """Steps in each segment, 0 for dopri5 there; empty: dopri5 everywhere."""
        assert isinstance(self.options.n_steps, tuple)  # plan has made them those of each segment
        return self.options.n_steps

    def numerics(self, segment: int) -> tuple[str, int, float]:
        """Solver, steps and tolerance in a segment."""
        n_steps = self.n_steps[segment] if self.n_steps else 0
        name = "dopri5" if n_steps == 0 else "rk4" if self.options.solver == "auto" else self.options.solver
        return name, n_steps, self.options.tolerance or 0.0

    def offset(self, pair: Any) -> Any:
        """Bytes of all records before a pair (a number or an array): k records in turn repeat for ever."""
        import numpy as np

        before = np.cumsum([0, *(record.itemsize for record in self.records)])
        return pair // self.k * before[-1] + before[pair % self.k]

    def span(self, shard: int) -> range:
        """The pairs of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.options.n_pairs))

    def size(self, shard: int) -> int:
        """Bytes of a shard's records."""
        span = self.span(shard)
        return int(self.offset(span.stop) - self.offset(span.start))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Fix what a folder holds, or go on with what it holds already. Returns what is fixed.

    Raises:
        ValueError: the folder holds other pairs; the first difference is named.
    """
    path = folder / "manifest.json"
    if not path.exists():
        write_json(path, FORMAT | manifest.facts())
    fixed = read_manifest(folder)  # another process may have been first
    free = {"noise", "data"}  # the last bits of another machine's noise; a name, whose hash is compared
    free |= {"batch_size"} if fixed.n_steps and 0 not in fixed.n_steps else set()  # dopri5 amplifies roundings
    free |= {"n_steps"} if manifest.options.solver == "auto" else set()  # chosen once
    facts = manifest.facts()
    for key, value in {"coupling": "auto", **fixed.facts()}.items():
        if value != facts.get(key, "auto") and key not in free:
            ours = _short(facts.get(key, "auto"))
            raise ValueError(
                f"{folder} holds pairs with {key} {_short(value)}, not {ours}: go on with the same "
                "options or choose another folder"
            )
    return fixed


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
    with reading(path, "generate the pairs again"):
        values = checked(json.loads(path.read_text(encoding="utf-8")), dict, "its value")
        version = {key: values.pop(key) for key in FORMAT}
        manifest = Manifest.from_facts(values)
    if version != FORMAT:
        raise ValueError(f"{path} is of version {version['version']}, this code reads {FORMAT['version']}: update it")
    return manifest


def shape_text(shape: Sequence[int]) -> str:
    """(3, 32, 32) as "3x32x32"."""
    return "x".join(map(str, shape)) if math.prod(shape) else "nothing"
