"""Both ends of a pair of sequential reflow: where it starts, and where the teacher's flow takes it.

A pair of segment i starts at t_a = t_i from a REAL sample mixed with fresh noise, x_a = (1 - t_a) noise + t_a data, and
ends at t_b = t_(i+1) in x_b. So a pair costs one segment of the path, and begins on the exact marginal whatever the
teacher does before it. The mixture is that of the teacher's own training: with the spread of its path, and with noise
and data coupled as they were (rf, cfm: independent; otcfm, idff: optimal transport within 64 pairs).
Segment 0 starts from pure noise and needs no data: with k = 1 these are the pairs of plain reflow, for any teacher.

Source: Yoon & Lee 2402.06461, section 3; Liu et al. 2209.03003 (k = 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from common.runtime import derive_seed, generator
from seqrf.manifest import PoolFacts, shape_text

if TYPE_CHECKING:
    from torch import Tensor

    from seqrf.manifest import Manifest

    Velocity = Callable[..., Tensor]  # velocity(x, t), with labels velocity(x, t, y)

BEND = 3.0  # see segment_times
TRIALS = 64  # pairs of each segment, at most, that the solver is chosen on; 1 in 100, but 8 at least
BLOCK = 256  # points of a source that is not noise, drawn together
COUPLED = 64  # pairs of a segment that are coupled together, as the batches of training are


# -------------------------------------------------------------------------------------------------------------- starts
@dataclass(frozen=True, eq=False)
class Pool:
    """Real samples (N, ...), uint8 pixels or floating point, and labels (N,) from 0 on; either may be None. The name is
    for the manifest."""

    data: Tensor | None
    labels: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        data, labels = self.data, self.labels
        if data is not None and (data.ndim < 2 or not len(data) or not _stored_type(data)):
            raise ValueError(f"data of shape {tuple(data.shape)}, {data.dtype}: give (N, ...), uint8 or floating point")
        if labels is not None and (labels.ndim != 1 or not len(labels) or not 0 <= int(labels.min()) < 2**15):
            raise ValueError(f"labels of shape {tuple(labels.shape)}: give (N,) integers from 0 on")
        if data is not None and labels is not None and len(data) != len(labels):
            raise ValueError(f"{len(labels)} labels for {len(data)} samples: give one for each")

    def __len__(self) -> int:
        return next((len(x) for x in (self.data, self.labels) if x is not None), 0)

    def facts(self) -> PoolFacts:
        """Name, hash, count and types. Reads all of it: a second a GB."""
        import torch

        digest = hashlib.sha256()
        for x in (self.data, self.labels):
            if x is not None:
                digest.update(x.cpu().contiguous().view(torch.uint8).numpy())
        return PoolFacts(
            data=self.name,
            data_hash=digest.hexdigest()[:16] if len(self) else "",
            data_count=len(self),
            data_dtype="" if self.data is None else _stored_type(self.data),
            label_dtype="" if self.labels is None else "uint8" if int(self.labels.max()) < 256 else "int16",
        )

    def draw(self, pairs: Sequence[int], seed: int, samples: bool) -> tuple[Tensor | None, Tensor | None]:
        """The samples (if wanted) and the labels of pairs, on the CPU; samples in the type in which they are stored."""
        import torch

        rows = torch.tensor([derive_seed(seed, "sample", p) % len(self) if len(self) else 0 for p in pairs])
        labels = None if self.labels is None else self.labels.cpu()[rows].long()
        if not samples or self.data is None:
            return None, labels
        x = self.data[rows.to(self.data.device)].cpu()
        return x.to(getattr(torch, _stored_type(x))), labels


def _stored_type(data: Tensor) -> str:
    """How samples are stored: pixels and float16 as they are, other floating point as float32; "": not at all."""
    name = str(data.dtype).removeprefix("torch.")
    return name if name in ("uint8", "float16") else "float32" if data.is_floating_point() else ""


def as_floats(x: Tensor) -> Tensor:
    """Stored numbers as float32, pixels in [-1, 1]."""
    import torch

    from common.images import from_uint8

    return from_uint8(x) if x.dtype == torch.uint8 else x.float()


def sources(indices: Sequence[int], shape: Sequence[int], seed: int, stream: str, source: str = "gaussian") -> Tensor:
    """Where flows start, (len(indices), *shape): normal noise, or points of a distribution of ``common.data.toys``.

    Row i is a function of (seed, stream, indices[i]) only. The points are drawn in blocks and shuffled, since some
    distributions take turns among their parts.
    """
    import torch

    from common.data import toys
    from common.generate import noise_for

    if source == "gaussian":
        return noise_for(indices, shape, seed, stream)
    if tuple(shape) != (2,):
        raise ValueError(f"the source {source!r} is a distribution of the plane, the samples are {shape_text(shape)}")
    blocks = {}
    for number in {k // BLOCK for k in indices}:
        draw = generator(seed, stream, source, number)
        points = toys.sample(source, BLOCK, draw)
        blocks[number] = points[torch.randperm(BLOCK, generator=draw)]
    return torch.stack([blocks[k // BLOCK][k % BLOCK] for k in indices])


def noise_of(manifest: Manifest, pairs: Sequence[int]) -> Tensor:
    """The noise of pairs, (len(pairs), *shape), as it was and will be drawn whenever one asks."""
    return sources(pairs, manifest.teacher.shape, manifest.options.seed, "pair", manifest.teacher.source)


def mix(manifest: Manifest, segment: int, pairs: Sequence[int], noise: Tensor, data: Tensor | None) -> Tensor:
    """x_a on the teacher's path between noise and stored data; in segment 0 the noise itself.

    Both who makes a pair and who reads it call this, so the bits agree.
    """
    if data is None:
        return noise
    from common.generate import noise_for
    from common.methods import METHODS

    teacher, spread = manifest.teacher, None
    t = noise.new_full((len(noise),), manifest.edges[segment])
    if teacher.sigma:
        spread = noise_for(pairs, teacher.shape, manifest.options.seed, "spread")
    # (1 - t) noise + t data, and the spread of a path that has one
    return METHODS[teacher.method].path(teacher.sigma).xt(noise, as_floats(data), t, spread)  # type: ignore[arg-type]


def starts(
    manifest: Manifest, segment: int, pairs: Sequence[int], pool: Pool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x_a of pairs of a segment, the samples in it (None in segment 0) and the labels (None without), on the CPU."""
    noise = noise_of(manifest, pairs)
    if segment and manifest.teacher.joint != "independent":
        data, y = _coupled(manifest, segment, pairs, pool)
    else:
        data, y = pool.draw(pairs, manifest.options.seed, samples=segment > 0)
    return mix(manifest, segment, pairs, noise, data), data, y


def _coupled(manifest: Manifest, segment: int, pairs: Sequence[int], pool: Pool) -> tuple[Tensor, Tensor | None]:
    """Samples and labels of pairs, the samples of each block of 64 pairs reordered by the teacher's coupling."""
    import torch

    from common.couplings import couple
    from common.images import to_uint8

    k, seed, coupling, reg = manifest.k, manifest.options.seed, manifest.teacher.joint, manifest.teacher.reg
    samples, labels = {}, {}
    for number in {p // k // COUPLED for p in pairs}:
        block = [segment + k * j for j in range(number * COUPLED, (number + 1) * COUPLED)]
        data, y = pool.draw(block, seed, samples=True)
        draw, inside = generator(seed, "couple", segment, number), y is not None
        # the noise stays where it is, so that a reader can draw it again from the pair's number
        x = couple(as_floats(data), noise_of(manifest, block), coupling, draw, y, reg, inside)[0]  # type: ignore[arg-type]
        samples |= dict(zip(block, to_uint8(x) if data is not None and data.dtype == torch.uint8 else x))
        labels |= dict(zip(block, y)) if y is not None else {}
    y = torch.stack([labels[p] for p in pairs]) if labels else None
    return torch.stack([samples[p] for p in pairs]), y


# ---------------------------------------------------------------------------------------------------------------- ends
def segment_times(t_a: float, t_b: float, n_steps: int) -> Tensor:
    """n_steps + 1 nodes from t_a to t_b, evenly spaced in (1 - t)^(1/3): fine near the data, where velocities turn."""
    import torch

    a, b = (1 - t_a) ** (1 / BEND), (1 - t_b) ** (1 / BEND)
    times = 1 - (a + (b - a) * torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)) ** BEND
    times[0], times[-1] = t_a, t_b
    return times


def follow(
    velocity: Velocity,
    x: Tensor,
    y: Tensor | None,
    t_a: float,
    t_b: float,
    solver: str,
    n_steps: int = 1,
    tolerance: float = 1e-4,
    landing: float = 1.0,
) -> Tensor:
    """Where a flow takes x from t_a to t_b: by dopri5 to a tolerance, or by n_steps of another solver.

    On the device of x; images in the order of memory that networks are fast with. With ``landing`` below 1 the way to
    t = 1 ends with a straight step from there, for teachers whose velocity nearer to the data is mostly error; it is
    evaluated just after ``landing``, so that a velocity can tell it from a stage of the solver (see ``after``).
    """
    import torch

    from common.solvers import dopri5, integrate

    if t_b == 1 and landing < 1:
        if t_a < landing:
            x = follow(velocity, x, y, t_a, landing, solver, n_steps, tolerance)
        s = after(max(t_a, landing))
        return follow(velocity, x, y, s, 1.0, "euler")
    x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
    field = velocity if y is None else lambda x, t: velocity(x, t, y)
    if solver == "dopri5":
        return dopri5(field, x, (t_a, t_b), tolerance, tolerance)
    return integrate(field, x, segment_times(t_a, t_b, n_steps), solver, final_euler=True)


def after(t: float) -> float:
    """A moment later than t: where a landing step is evaluated."""
    return t + 1e-5


def choose_steps(velocity: Velocity, manifest: Manifest, pool: Pool, device: Any = "cpu") -> tuple[int, ...]:
    """For each segment the fewest steps of rk4 that are as good as dopri5 and cost less; 0 where none are: dopri5.

    As good means on up to 64 pairs: a root mean square error within the manifest's tolerance, or no larger than that of
    dopri5 at this tolerance. Cost: as the pairs tried, about ten times.
    """
    from common.metrics import rms
    from common.solvers import CountNFE

    counts, count = [], CountNFE(velocity)
    tolerance, n_pairs, k = manifest.options.tolerance or 1e-4, manifest.options.n_pairs, manifest.k
    trials = min(TRIALS, max(8, n_pairs // (100 * k)))
    land = {"landing": manifest.teacher.landing}
    for segment, (t_a, t_b) in enumerate(pairwise(manifest.edges)):
        x, _, y = starts(manifest, segment, range(segment, min(n_pairs, trials * k), k), pool)
        start = (x.to(device), None if y is None else y.to(device), t_a, t_b)
        exact = follow(velocity, *start, "dopri5", tolerance=max(tolerance / 100, 1e-6), **land)
        count.reset()
        bound = max(tolerance, rms(follow(count, *start, "dopri5", tolerance=tolerance, **land), exact))
        most = (count.nfe - 1 + 3 * (t_b == 1)) // 4  # of steps that cost less; the one into t = 1 is Euler's
        counts.append(fewest(lambda n: rms(follow(velocity, *start, "rk4", n, **land), exact) <= bound, most))
    return tuple(counts)


def fewest(good: Callable[[int], bool], most: int) -> int:
    """The smallest of 1 ... most that is good, by doubling and then halving; 0 when none is."""
    low, high = 0, 1
    while not good(high):
        if high >= most:
            return 0
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def check_teacher(velocity: Velocity, manifest: Manifest, pool: Pool, device: Any = "cpu") -> None:
    """One evaluation; ValueError when the teacher does not take samples of this shape, or gives others."""
    import torch

    x, _, y = starts(manifest, 0, [0], pool)
    shape = shape_text(manifest.teacher.shape)
    arguments = (x.to(device), torch.zeros(1, device=device), *(() if y is None else (y.to(device),)))
    try:
        v = velocity(*arguments)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"the teacher does not work on samples of {shape} ({reason}): give its own data") from error
    if v.shape != x.shape:
        result = shape_text(v.shape[1:])
        raise ValueError(f"the teacher turns samples of {shape} into {result}: give it as a velocity of its own data")
