"""Pairs of sequential reflow: made with a teacher, kept as shards, read back for training.

    options = PairOptions(n_pairs=1_000_000, edges=uniform_edges(4))
    generate("pairs", velocity, Pool(images), Teacher(file_hash(weights), (3, 32, 32)), options)
    pairs = Pairs.open("pairs", file_hash(weights), k=4)
    x_a, x_b, t_a, t_b, segment, y = pairs.at(step, batch_size=512, seed=0)

Pair p is a function of (teacher, data, seed, p): the order of the work, the number of processes and the shards that are
made again do not matter. What a pair is stands in endpoints.py, what a folder holds in manifest.py and shards.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.runtime import generator
from seqrf import shards as store
from seqrf.endpoints import as_floats, check_teacher, choose_steps, follow, mix, noise_of, starts
from seqrf.manifest import Manifest, PairOptions, Teacher, read_manifest, shape_text, write_manifest
from seqrf.plan import first_noise, plan

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from seqrf.endpoints import Pool, Velocity

WINDOW = 32  # shards that a reader shuffles together
RESIDENT = 2**28  # bytes of pairs that a reader keeps


# ---------------------------------------------------------------------------------------------------------- generation
def generate(
    folder: str | os.PathLike[str],
    velocity: Velocity,
    pool: Pool,
    teacher: Teacher,
    options: PairOptions,
    *,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    shards: Sequence[int] | None = None,
    progress: bool = True,
) -> Manifest:
    """Make the pairs of a folder, or those of them that are not there yet.

    Args:
        folder: Where they go.
        velocity: The teacher's, on the device: velocity(x, t), with labels velocity(x, t, y).
        pool: Real samples: uint8 pixels (stored as they are), float16 or float32 (points, latents), and for a
            conditional teacher their labels. With one segment neither is needed.
        teacher: Whose velocity it is.
        options: Which pairs, and how.
        device: Of the velocity.
        rank, world: This process makes the shards s with s mod world = rank; any number of them, on any machines.
        turn: The context of fixing or reading the manifest: ``Processes.main_first`` of processes that begin together.
        shards: It makes these instead. Of these the contents are read, too, and a damaged one is made again: for those
            that ``shards.verify`` names. A second a GB.
        progress: Show a bar.

    Returns:
        The manifest. What a pair costs in evaluations of velocity stands in every shard's header and in ``Pairs.nfe``.

    Raises:
        ValueError: options out of range, a teacher of other samples, a folder with other pairs, or a flow that is not
            finite.
    """
    if not 0 <= rank < world:
        raise ValueError(f"process {rank} of {world}: ranks go from 0 to {world - 1}")
    import torch

    folder, manifest = Path(folder), plan(pool, teacher, options)
    with torch.no_grad(), turn():
        check_teacher(velocity, manifest, pool, device)
        if options.solver == "auto" and not (folder / "manifest.json").exists():
            n_steps = choose_steps(velocity, manifest, pool, device)
            manifest = replace(manifest, options=replace(manifest.options, n_steps=n_steps))
        manifest = write_manifest(folder, manifest)
    _check_noise(folder, manifest)
    own = range(rank, manifest.n_shards, world) if shards is None else store.check_shards(manifest, shards)
    todo = [shard for shard in own if store.flaw(folder, manifest, shard, contents=shards is not None)]
    _Maker(folder, manifest, velocity, pool, options.batch_size, device).run(own, todo, progress)
    return manifest


@dataclass(frozen=True, eq=False)
class _Maker:
    """Fills the shards of a folder, one after the other."""

    folder: Path
    manifest: Manifest
    velocity: Velocity
    pool: Pool
    batch_size: int
    device: Any

    def run(self, own: Sequence[int], todo: Sequence[int], progress: bool) -> None:
        """Make the shards ``todo`` out of this process's own, under a bar that counts those that were there."""
        import torch
        from tqdm import tqdm

        total, n_todo = (sum(len(self.manifest.span(shard)) for shard in shards) for shards in (own, todo))
        bar = tqdm(total=total, initial=total - n_todo, desc="pairs", unit="pair", disable=not progress)
        with bar, torch.no_grad():
            for shard in todo:
                self.shard(shard, bar)

    def shard(self, shard: int, bar: Any) -> None:
        """Solve the pairs of a shard, batch by batch, each of one segment, and write it."""
        import numpy as np

        from common.solvers import CountNFE

        manifest, begin, count = self.manifest, time.perf_counter(), CountNFE(self.velocity)
        span, k = manifest.span(shard), manifest.k
        out = np.zeros(manifest.size(shard), np.uint8)
        for segment in range(k):
            numbers = range(span.start + (segment - span.start) % k, span.stop, k)  # pair p is of segment p mod k
            for part in (numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size)):
                places = manifest.offset(np.array(part)) - manifest.offset(span.start)
                for place, record in zip(places.tolist(), self.records(segment, part, count)):
                    out[place : place + len(record)] = record
                bar.update(len(part))
        facts = {"nfe": count.per_sample(len(span)), "calls": count.nfe, "seconds": time.perf_counter() - begin}
        store.write_shard(self.folder, manifest, shard, out, **facts)

    def records(self, segment: int, pairs: Sequence[int], velocity: Velocity) -> np.ndarray:
        """Solve pairs of a segment: their records, (B, bytes) uint8."""
        import numpy as np

        manifest = self.manifest
        records = np.zeros(len(pairs), manifest.records[segment])
        x, data, y = starts(manifest, segment, pairs, self.pool)  # x_a; of it only the sample goes to the disk
        if data is not None:
            records["data"] = data.numpy()
        if y is not None:
            records["label"], y = y.numpy(), y.to(self.device)
        t_a, t_b = manifest.edges[segment : segment + 2]
        solver = manifest.numerics(segment)
        end = follow(velocity, x.to(self.device), y, t_a, t_b, *solver, manifest.teacher.landing)  # x_b, (B, ...)
        records["end"] = _stored(end, records["end"].dtype.base)
        return records.view(np.uint8).reshape(len(pairs), -1)


def _stored(end: Tensor, kind: np.dtype) -> np.ndarray:
    """Ends as they are stored; ValueError where they are not finite, or beyond what the type holds."""
    import torch

    from common.images import to_uint8

    stored = to_uint8(end) if kind == "uint8" else end.to(getattr(torch, kind.name))
    if not bool(torch.isfinite(end if kind == "uint8" else stored).all()):
        raise ValueError(
            f"the teacher's flow reaches {end.abs().max():.3g}, which {kind.name} cannot hold: check the teacher and "
            "the scale of its data"
        )
    return stored.cpu().numpy()


# ------------------------------------------------------------------------------------------------------------- reading
def _check_noise(folder: Path, manifest: Manifest) -> None:
    """ValueError when the noise drawn here is not that of the pairs, whose starts would all be wrong."""
    here = first_noise(manifest.teacher, manifest.options.seed)
    if max(abs(a - b) for a, b in zip(here, manifest.noise, strict=True)) > 1e-4:
        raise ValueError(
            f"this version of torch draws other noise than the pairs in {folder} were made with: make them again"
        )


class PairBatch(NamedTuple):
    """Start and end of each pair, (B, ...) float32; their times, (B,); segment and label, (B,) int64, or no labels."""

    x_a: Tensor
    x_b: Tensor
    t_a: Tensor
    t_b: Tensor
    segment: Tensor
    y: Tensor | None


class Pairs:
    """Pairs of a folder, read from the disk when they are asked for; ``len`` is their number.

    Attributes:
        manifest: What they are; ``manifest.edges`` are the student's segments.
        nfe: Evaluations of the teacher that a pair has cost.
    """

    def __init__(self, folder: Path, manifest: Manifest, nfe: float) -> None:
        self.folder, self.manifest, self.nfe = folder, manifest, nfe
        self._all: PairBatch | None = None
        self._window: tuple[int, int, int, Tensor | None] = (0, 0, 0, None)  # seed, epoch, first position, pairs

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        teacher_hash: str | None = None,
        k: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> Pairs:
        """The pairs of a folder; size and header of every shard are looked at (``shards.verify`` reads them all).

        Args:
            folder: Where they are.
            teacher_hash, k, shape: What they must have been made with, where given.

        Raises:
            FileNotFoundError: no pairs there.
            ValueError: others than these, shards missing or damaged, or noise that this torch draws differently.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        teacher = manifest.teacher
        if teacher_hash not in (None, teacher.hash):
            raise ValueError(
                f"the pairs in {folder} were made with the teacher {teacher.hash[:12]}, not {teacher_hash[:12]}: give "
                "its weights, or make pairs with yours"
            )
        if k is not None and k != manifest.k:
            raise ValueError(f"the pairs in {folder} are of {manifest.k} segments, not {k}: make some with k = {k}")
        if shape is not None and tuple(shape) != teacher.shape:
            shapes = f"are {shape_text(teacher.shape)}, the network works on {shape_text(shape)}"
            raise ValueError(f"the pairs in {folder} {shapes}: give pairs of its data")
        flaws = {s: text for s in range(manifest.n_shards) if (text := store.flaw(folder, manifest, s))}
        if flaws:
            listed = ", ".join(f"shard {shard} {text}" for shard, text in list(flaws.items())[:3])
            raise ValueError(
                f"{len(flaws)} of the {manifest.n_shards} shards in {folder} cannot be used ({listed}"
                f"{', ...' if len(flaws) > 3 else ''}): generate with the same options again, what is whole stays"
            )
        _check_noise(folder, manifest)
        calls = sum(store.read_header(folder, s)["nfe"] * len(manifest.span(s)) for s in range(manifest.n_shards))
        return cls(folder, manifest, calls / manifest.options.n_pairs)

    def __len__(self) -> int:
        return self.manifest.options.n_pairs

    def batch(self, indices: Sequence[int] | Tensor) -> PairBatch:
        """The pairs of some numbers, in that order, on the CPU. Cost for 3x32x32: 0.1 ms of a core for each.

        Where all of them take less than 256 MB they are read once and kept.
        """
        import numpy as np
        import torch

        pairs = np.asarray(indices, dtype=np.int64)
        if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(self):
            raise ValueError(f"there is no pair {pairs.max()}: these are the pairs 0 to {len(self) - 1}")
        if 2 * 4 * math.prod(self.manifest.teacher.shape) * len(self) > RESIDENT:
            return self._read(pairs)
        if self._all is None:
            parts = [self._read(np.arange(i, min(i + 4096, len(self)))) for i in range(0, len(self), 4096)]
            self._all = PairBatch(*(None if x[0] is None else torch.cat(x) for x in zip(*parts, strict=True)))
        rows = torch.from_numpy(pairs)
        return PairBatch(*(None if x is None else x[rows] for x in self._all))

    def _read(self, pairs: np.ndarray) -> PairBatch:
        """Pairs from the disk: the ends and samples that are stored, the noise drawn again."""
        import numpy as np
        import torch

        manifest = self.manifest
        rows = store.read_rows(self.folder, manifest, pairs)  # (B, bytes)
        x_a = noise_of(manifest, pairs.tolist())
        x_b, segment = torch.empty_like(x_a), torch.from_numpy(pairs % manifest.k)
        y = torch.zeros_like(segment) if manifest.pool.label_dtype else None
        for s in segment.unique().tolist():
            at, kind = torch.nonzero(segment == s)[:, 0], manifest.records[s]  # a segment's records have one form
            records = np.ascontiguousarray(rows[at.numpy(), : kind.itemsize]).view(kind)[:, 0]
            parts = {name: torch.from_numpy(records[name].copy()) for name in kind.names or ()}
            x_b[at] = as_floats(parts["end"])
            if "data" in parts:
                x_a[at] = mix(manifest, s, pairs[at.numpy()].tolist(), x_a[at], parts["data"])
            if y is not None:
                y[at] = parts["label"].long()
        edges = torch.tensor(manifest.edges)
        return PairBatch(x_a, x_b, edges[segment], edges[segment + 1], segment, y)

    def at(self, step: int, batch_size: int, seed: int, flip: bool = False, rows: slice = slice(None)) -> PairBatch:
        """The training batch of a step, a function of (seed, step) and the batch size.

        Args:
            flip: Mirror half of the pairs, both ends together.
            rows: This process's part of the global batch; the parts together are the whole.
        """
        import torch

        batch = self.batch(self.indices(step, batch_size, seed)[rows])
        if not flip:
            return batch
        if len(self.manifest.teacher.shape) != 3:
            raise ValueError(f"samples of {shape_text(self.manifest.teacher.shape)} are no images: leave out flip")
        # drawn for the whole batch, so that processes that share it agree
        flips = (torch.rand(batch_size, generator=generator(seed, "flip", step)) < 0.5)[rows, None, None, None]
        x_a, x_b = (torch.where(flips, x.flip(-1), x) for x in batch[:2])
        return batch._replace(x_a=x_a, x_b=x_b)

    def indices(self, step: int, batch_size: int, seed: int) -> Tensor:
        """(B,) numbers of the pairs in the batch of a step, as many of each segment (to within one or two).

        An endless row of epochs, each with every pair once. An epoch takes the shards in a random order, 32 at a time,
        and shuffles the pairs of those: what it reads is in few files, and since the pairs are independent of one
        another an order of the files is as good as any.
        """
        import torch

        if batch_size < 1:
            raise ValueError(f"--batch_size {batch_size}: give 1 or more")
        position, stop, parts = step * batch_size, (step + 1) * batch_size, []  # in the endless row
        while position < stop:  # a batch may reach into the next window, and into the next epoch
            first, pairs = self._window_at(seed, *divmod(position, len(self)))
            at = position % len(self) - first
            parts.append(pairs[at : at + stop - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _window_at(self, seed: int, epoch: int, at: int) -> tuple[int, Tensor]:
        """The shuffled pairs of the window around a position of an epoch, and its first position."""
        import torch

        *key, first, pairs = self._window
        if pairs is not None and key == [seed, epoch] and first <= at < first + len(pairs):
            return first, pairs
        manifest, first = self.manifest, 0
        order = torch.randperm(manifest.n_shards, generator=generator(seed, "shards", epoch)).tolist()
        for number in range(0, len(order), WINDOW):
            shards = order[number : number + WINDOW]
            if at < first + sum(len(manifest.span(shard)) for shard in shards):
                break
            first += sum(len(manifest.span(shard)) for shard in shards)
        draw = generator(seed, "window", epoch, number)
        pairs = torch.cat([torch.arange(span.start, span.stop) for span in map(manifest.span, shards)])
        pairs = _shuffled(pairs, manifest.k, draw)
        self._window = (seed, epoch, first, pairs)
        return first, pairs


def _shuffled(pairs: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Pairs in a random order in which the segments take turns: k pairs that follow one another are of k segments."""
    import torch

    turn = torch.empty(len(pairs), dtype=torch.float64)
    for segment in range(k):
        rows = pairs % k == segment
        count = int(rows.sum())
        turn[rows] = torch.randperm(count, generator=draw) + torch.rand(count, generator=draw, dtype=torch.float64)
    return pairs[turn.argsort()]
