"""Evaluation of sequential reflow: draw samples from a teacher or a student, measure them and the paths they took.

Sample k is a function of (weights, seed, k), so models evaluated with the same seed start from the same noises.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime import number_of
from seqrf.endpoints import sources
from seqrf.options import PREDICTORS
from seqrf.segments import (
    sample,
    sample_times,
    segment_times,
    sequential_straightness,
    truncation_error,
    uniform_edges,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from seqrf.models import Model
    from seqrf.options import Config, Run
    from seqrf.quality import Judge

SHOWN = 64  # samples of a picture and of a trajectory's file
DRAWN = 2000  # points of a picture
MOMENTS = 8  # times that are shown of a trajectory, at most
PATHS, IMAGE_PATHS = 1000, 32  # samples whose paths are measured: points, images
PATH_FIGURES = ("straightness", "sequential_straightness", "truncation")
STATES = 2**25  # numbers of fine trajectories that are in memory at a time


# ---------------------------------------------------------------------------------------------------- samples
@dataclass(frozen=True, eq=False)
class Samples:
    """Samples and what they cost.

    Attributes:
        x: (n, *shape) on the CPU; float32, or uint8 pixels where those were asked for.
        y: labels (n,), or None.
        nfe: network evaluations of a sample, counted at the network; a mean where batches differ (dopri5).
        seconds: wall time.
        trajectory, times: states (n_steps + 1, n, *shape), float32, and their times, if they were asked for.
    """

    x: Tensor
    y: Tensor | None
    nfe: float
    seconds: float
    trajectory: Tensor | None = None
    times: list[float] | None = None


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn.

    Attributes:
        method: A name of ``common.solvers.SOLVERS``, or "dopri5".
        n_steps: Steps in all, shared among the segments; None: one a segment. Of dopri5: the times returned only.
        tol: dopri5's rtol and atol.
        cfg: Guidance; neither 0 nor 1: two evaluations in place of one.
        seed: Of the noises.
    """

    method: str = "euler"
    n_steps: int | None = None
    tol: float = 1e-4
    cfg: float = 1.0
    seed: int = 0


SAMPLER = Sampler()


def draw(
    model: Model,
    indices: Sequence[int],
    labels: Tensor | None = None,
    sampler: Sampler = SAMPLER,
    trajectory: bool = False,
    batch_size: int = 500,
    pixels: bool = False,
    progress: bool = True,
) -> Samples:
    """The samples of some indices, batch by batch under a bar.

    But for rounding, a sample does not depend on its batch; with dopri5 its NFE does, being that of the slowest.

    Args:
        model: Teacher or student.
        indices: Whose noises; sample k is the same whatever the others are.
        labels: (n,), one for each index; None: without.
        sampler: How.
        trajectory: Keep the states at all times.
        batch_size: Samples at a time.
        pixels: Keep images as uint8, which is what figures and pictures use: a quarter of the memory.

    Raises:
        ValueError: unknown method, fewer steps than segments, no indices, or labels that do not fit.
    """
    import torch
    from tqdm import tqdm

    from common.images import to_uint8

    _check_counts(len(indices), labels, batch_size)
    parts, states, calls, begin = [], [], 0, time.perf_counter()
    with tqdm(total=len(indices), desc=model.name, unit="sample", disable=not progress, dynamic_ncols=True) as bar:
        for rows in _slices(len(indices), batch_size):
            model.count.reset()
            path = _states(model, list(indices[rows]), _to(labels, rows, model.device), sampler, trajectory)
            calls += model.count.nfe * path.shape[1]
            parts.append((to_uint8(path[-1]) if pixels else path[-1].float()).cpu())
            states += [path.float().cpu()] if trajectory else []
            bar.update(path.shape[1])
    times = sample_times(model.edges, sampler.n_steps) if trajectory else None
    paths = torch.cat(states, dim=1) if states else None
    return Samples(torch.cat(parts), labels, calls / len(indices), time.perf_counter() - begin, paths, times)


def _states(model: Model, indices: Sequence[int], y: Tensor | None, sampler: Sampler, trajectory: bool) -> Tensor:
    """The states of a batch at all times, (steps + 1, B, ...), or at the last one alone, (1, B, ...)."""
    import torch

    velocity, x = model.velocity_for(y, sampler.cfg), starts(model, indices, sampler.seed)
    tol, method = sampler.tol, sampler.method
    with torch.no_grad():
        path = sample(velocity, x, model.edges, sampler.n_steps, method, trajectory, tol, tol)
    path = path if trajectory else path[None]
    if not bool(torch.isfinite(path[-1]).all()):
        raise ValueError(f"samples of {model.name} by {method} are not finite: take more steps, or other weights")
    return path


def _check_counts(n: int, labels: Tensor | None, batch_size: int) -> None:
    if n < 1 or batch_size < 1 or (labels is not None and len(labels) != n):
        counts = f"{n} samples, {'no' if labels is None else len(labels)} labels, {batch_size} at a time"
        raise ValueError(f"{counts}: give at least 1, and a label for each")


def starts(model: Model, indices: Sequence[int], seed: int) -> Tensor:
    """Where the flow starts for some indices, on the model's device, in the order of memory of fast convolutions."""
    import torch

    x = sources(indices, model.shape, seed, "x0", model.source).to(model.device)
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _to(labels: Tensor | None, rows: slice, device: torch.device) -> Tensor | None:
    return None if labels is None else labels[rows].to(device)


# ------------------------------------------------------------------------------------------------------ paths
def geometry(
    model: Model,
    sampler: Sampler = SAMPLER,
    n: int = 256,
    fine: int = 100,
    edges: Sequence[float] | None = None,
    straight: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """How straight a model's paths are, and what its sampler's steps lose.

    Costs about 2 fine evaluations for each path. Paths are solved by AB2: with 100 steps the straightness of four paths
    of the shipped MNIST teacher was 35.87, against 35.88 with 160 steps of rk4, 36.22 and 36.45 with 100 of midpoint
    and Heun, which cost twice as much.

    Args:
        model: Teacher or student.
        sampler: Whose truncation is measured; its guidance and its noises are those of the paths.
        n: Paths; a conditional model takes its classes in turn. The truncation is measured on a quarter of them.
        fine: Steps of a path in all, at least 20 a segment; as many rk4 steps make the exact solution that the
            truncation is measured against.
        edges: Segments to measure a teacher's sequential straightness by; None: the model's own.
        straight: The first two results, where they are known already: they do not depend on the sampler.

    Returns:
        "straightness" of the whole path, "sequential_straightness" by the edges, "truncation_within" each of the
        model's segments from exact states, "truncation" at the end of its own states (root mean squares).

    Raises:
        ValueError: edges for a student, whose own are part of it.
    """
    from tqdm import tqdm

    from common.generate import labels_for

    k = len(model.edges) - 1
    nodes = list(model.edges if edges is None else edges)
    if k > 1 and nodes != list(model.edges):
        raise ValueError(f"{model.name} has segments of its own: other edges are for a teacher")
    labels, steps = labels_for(range(n), model.num_classes), max(fine, 20 * (len(nodes) - 1))
    some = slice(0, -(-n // 4))
    total = 4 * steps * some.stop + (0 if straight else steps * n)  # rk4's, and AB2's; the few of the sampler aside
    with tqdm(total=total, desc=f"{model.name}, paths", unit="eval", unit_scale=True, dynamic_ncols=True) as bar:
        whole, parts = straight or _straightness(model, nodes, steps, n, labels, sampler, bar)
        velocity = _watched(model.velocity_for(_to(labels, some, model.device), sampler.cfg), bar)
        x = starts(model, range(some.stop), sampler.seed)
        within, in_all = truncation_error(velocity, x, model.edges, sampler.n_steps, sampler.method, steps // k)
    return {
        "straightness": whole,
        "sequential_straightness": parts,
        "truncation_within": within,
        "truncation": in_all[-1],
    }


def _watched(velocity: Callable[..., Tensor], bar: Any) -> Callable[..., Tensor]:
    """The velocity; the bar goes on by the evaluations of each call."""

    def call(x: Tensor, *arguments: Any) -> Tensor:
        bar.update(len(x))
        return velocity(x, *arguments)

    return call


def _straightness(
    model: Model, edges: Sequence[float], n_steps: int, n: int, labels: Tensor | None, sampler: Sampler, bar: Any
) -> tuple[float, float]:
    """Straightness, and sequential straightness by the edges, of n paths, so many at a time that they fit in memory."""
    import torch

    from common.metrics import straightness
    from common.solvers import integrate

    times = sample_times(edges, n_steps)
    whole, parts = 0.0, 0.0
    for rows in _slices(n, max(1, STATES // (len(times) * math.prod(model.shape)))):
        velocity = _watched(model.velocity_for(_to(labels, rows, model.device), sampler.cfg), bar)
        x, share = starts(model, range(rows.start, rows.stop), sampler.seed), (rows.stop - rows.start) / n
        with torch.no_grad():
            if len(model.edges) > 2:
                path = sample(velocity, x, edges, n_steps, "ab2", trajectory=True)
            else:  # a teacher's velocity does not jump at the edges
                path = integrate(lambda x, t: velocity(x, t, 0), x, times, "ab2", trajectory=True)
        whole += share * straightness(path, times)
        parts += share * sequential_straightness(path, times, edges)
    return whole, parts


# ----------------------------------------------------------------------------------------------------- a whole
def sampler_of(config: Config, cfg: float = 1.0) -> Sampler:
    """The sampler that the options ask for; an adaptive method has no number of steps."""
    adaptive, tol = config.sampling.method == "ode", config.sampling.tol
    method = "dopri5" if adaptive else PREDICTORS[config.sampling.predictor]
    return Sampler(method, None if adaptive else config.model.num_scales, tol, cfg, config.seed)


def evaluate(model: Model, run: Run, judge: Judge, out: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Draw config.eval.num_samples samples, measure them and their paths; a row, a picture and, if asked, trajectories.

    Args:
        model: Teacher or student.
        run: The options: sampling, eval, seed, model.num_scales and training.reflow_t (a teacher's sequential
            straightness is by that many equal segments).
        judge: See ``quality.make_judge``.
        out: Folder: the row is added to rows.jsonl; the picture is WHAT.png and, with config.eval.save_trajectory,
            trajectories are WHAT-trajectory.npz and .png, where WHAT is NAME-step-STEP-METHOD-STEPS.
        before: A row of the same model, seed and guidance by another sampler: its straightness is taken over.

    Returns:
        The row, all primitives.

    Raises:
        ValueError: fewer steps than segments, or another option that the sampler refuses.
    """
    from common.generate import labels_for
    from common.records.rows import JsonLines

    config, images = run.config, len(model.shape) == 3
    n, is_teacher = config.eval.num_samples, model.condition == "teacher"
    sampler = sampler_of(config, config.sampling.cfg if is_teacher else 1.0)  # a student has learnt the guided teacher
    segment_times(model.edges, sampler.n_steps)  # refuses too few steps before anything is computed
    labels = labels_for(range(n), model.num_classes)
    samples = draw(model, range(n), labels, sampler, batch_size=config.eval.batch_size, pixels=images)
    edges = uniform_edges(config.training.reflow_t) if is_teacher else list(model.edges)
    # the steps of dopri5 lose nothing to speak of: beside it stands what one Euler step a segment would lose
    steps = sampler if sampler.n_steps else replace(sampler, method="euler")
    straight = None if before is None else (before["straightness"], before["sequential_straightness"])
    row = {
        "data": config.data.dataset,
        "source": model.source,
        "name": model.name,
        "step": model.step,
        "condition": model.condition,
        "k": len(model.edges) - 1,
        "edges": list(model.edges),
        "method": sampler.method,
        "tol": None if sampler.n_steps else sampler.tol,
        "cfg": sampler.cfg,
        "seed": sampler.seed,
        "n_steps": sampler.n_steps,
        **_cost(samples),
        **judge.measure(samples.x, samples.y),
        **geometry(model, steps, min(n, IMAGE_PATHS if images else PATHS), edges=edges, straight=straight),
        "straightness_edges": edges,
        **_origin(model.device),
    }
    JsonLines(out / "rows.jsonl").append(row)
    print(line(row))
    what = f"{model.name}-step-{model.step}-{sampler.method}-{sampler.n_steps or sampler.tol:g}"
    stem = out / re.sub(r"[^\w.-]+", "-", what)
    picture(samples.x, judge.real(DRAWN), Path(f"{stem}.png"))
    if config.eval.save_trajectory:
        save_trajectory(model, min(n, SHOWN), labels, sampler, f"{stem}-trajectory")
    return row


def _cost(samples: Samples) -> dict[str, Any]:
    """What samples took."""
    n = len(samples.x)
    return {
        "nfe": samples.nfe,
        "samples": n,
        "seconds": samples.seconds,
        "samples_per_second": n / samples.seconds,
    }


def _origin(device: torch.device) -> dict[str, str]:
    """Commit and hardware."""
    from common.records.cards import commit
    from common.runtime import hardware

    return {"commit": commit(), "hardware": hardware(device)}


def line(row: dict[str, Any]) -> str:
    """A row for a reader: what was evaluated, its cost, and the figures of its samples and paths."""
    how = row["method"] + (f" {number_of(row['n_steps'], 'step')}" if row["n_steps"] else f" at {row['tol']:g}")
    parts = [f"{row['name']}, step {row['step']}, {how}: NFE {row['nfe']:g}, {row['samples_per_second']:.3g} samples/s"]
    for key in ("w2", "recognised", "feature_distance", "fid", "kid", *PATH_FIGURES):
        if row.get(key) is not None:
            floor = f" (floor {row[f'{key}_floor']:.4g})" if f"{key}_floor" in row else ""
            parts.append(f"{key} {row[key]:.4g}{floor}")
    return ", ".join(parts)


# --------------------------------------------------------------------------------------------------- pictures
def picture(x: Tensor, real: Tensor | None, path: Path) -> None:
    """Images as a grid of 64; 2000 points of the plane, beside real ones where there are any."""
    from common import plots
    from common.images import grid, save_png

    if x.ndim == 4:
        return save_png(path, grid(x[:SHOWN]))
    sets = {"samples": x[:DRAWN]} | ({} if real is None else {"target": real})
    figure, axes = plots.panels(list(sets), plots.limit_of(*sets.values()))
    for axis, points, colour in zip(axes, sets.values(), (plots.MADE, plots.TARGET)):
        plots.points(axis, points, colour)
    plots.save(figure, path, dpi=120, crop=False)


def save_trajectory(model: Model, n: int, labels: Tensor | None, sampler: Sampler, stem: str) -> None:
    """The first n samples' states on their way: stem.npz, and stem.png as :func:`trajectory_picture` draws it.

    The .npz holds "times" (steps + 1,), "states" (steps + 1, n, *shape) float16 and, of a conditional model, "labels".
    The times are the sampler's own; dopri5's are those of 8 equal steps, more where there are more segments.
    """
    import numpy as np

    from common.runtime import atomic_write

    sampler = replace(sampler, n_steps=sampler.n_steps or max(MOMENTS, len(model.edges) - 1))
    y = None if labels is None else labels[:n]
    path = draw(model, range(n), y, sampler, trajectory=True, batch_size=n, progress=False)
    assert path.trajectory is not None and path.times is not None
    arrays = {"times": np.array(path.times, np.float32), "states": path.trajectory.half().numpy()}
    arrays |= {} if y is None else {"labels": y.numpy()}
    with atomic_write(f"{stem}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    trajectory_picture(path.trajectory, path.times, Path(f"{stem}.png"))


def trajectory_picture(states: Tensor, times: Sequence[float], path: Path) -> None:
    """Images: 8 samples, one a row, at 8 times; points of the plane: lines from source to end."""
    from common import plots
    from common.images import grid, save_png

    if states.ndim == 5:
        count = min(MOMENTS, len(times))
        columns = [round(i * (len(times) - 1) / (count - 1)) for i in range(count)]
        return save_png(path, grid(states[columns, :8].transpose(0, 1).flatten(0, 1), n_columns=count))
    figure, axes = plots.panels(["paths"], plots.limit_of(states.flatten(0, 1)), scale=4.0)
    plots.paths(axes[0], states)
    plots.save(figure, path, dpi=120, crop=False)
