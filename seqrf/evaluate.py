"""Evaluation of sequential reflow: draw samples from a teacher or a student, measure them and the paths they took.

Sample k is a function of (weights, seed, k), so models evaluated with the same seed start from the same noises.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from seqrf.options import Run, Sampling
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


def draw(
    model: Model,
    indices: Sequence[int],
    labels: Tensor | None = None,
    method: str = "euler",
    n_steps: int | None = None,
    tol: float = 1e-4,
    cfg: float = 1.0,
    seed: int = 0,
    trajectory: bool = False,
    batch_size: int = 500,
    pixels: bool = False,
    progress: bool = True,
) -> Samples:
    """The samples of some indices, batch by batch under a bar.

    Within a solver's precision a sample does not depend on its batch; dopri5 shares its steps among a batch, so there
    it may differ by about the tolerance.

    Args:
        model: Teacher or student.
        indices: Whose noises; sample k is the same whatever the others are.
        labels: (n,), one for each index; None: without.
        method: A name of ``common.solvers.SOLVERS``, or "dopri5".
        n_steps: Steps in all, shared among the segments; None: one a segment. Of dopri5: the times returned only.
        tol: dopri5's rtol and atol.
        cfg: Guidance; neither 0 nor 1: two evaluations in place of one.
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
            numbers = list(indices[rows])
            velocity = model.velocity_for(_to(labels, rows, model.device), cfg)
            model.count.reset()
            with torch.no_grad():
                x0 = starts(model, numbers, seed)
                path = sample(velocity, x0, model.edges, n_steps, method, trajectory, tol, tol)
            calls += model.count.nfe * len(numbers)
            x = path[-1] if trajectory else path
            if not bool(torch.isfinite(x).all()):
                raise ValueError(
                    f"samples of {model.name} by {method} are not finite: take more steps, or other weights"
                )
            parts.append((to_uint8(x) if pixels else x.float()).cpu())
            states += [path.float().cpu()] if trajectory else []
            bar.update(len(numbers))
    times = sample_times(model.edges, n_steps) if trajectory else None
    paths = torch.cat(states, dim=1) if states else None
    return Samples(torch.cat(parts), labels, calls / len(indices), time.perf_counter() - begin, paths, times)


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
    n: int = 256,
    fine: int = 100,
    seed: int = 0,
    edges: Sequence[float] | None = None,
    method: str = "euler",
    n_steps: int | None = None,
    cfg: float = 1.0,
    straight: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """How straight a model's paths are, and what its sampler's steps lose.

    Costs about 2 fine evaluations for each path. Paths are solved by AB2: with 100 steps the straightness of four paths
    of the shipped MNIST teacher was 35.87, against 35.88 with 160 steps of rk4, 36.22 and 36.45 with 100 of midpoint
    and Heun, which cost twice as much.

    Args:
        model: Teacher or student.
        n: Paths; a conditional model takes its classes in turn. The truncation is measured on a quarter of them.
        fine: Steps of a path in all, at least 20 a segment; as many rk4 steps make the exact solution that the
            truncation is measured against.
        seed: Of the noises, those of :func:`draw`.
        edges: Segments to measure a teacher's sequential straightness by; None: the model's own.
        method, n_steps: The sampler whose truncation is measured; None: one step a segment.
        cfg: Guidance.
        straight: The first two results, where they are known already: they do not depend on the sampler.

    Returns:
        "straightness" of the whole path, "sequential_straightness" by the edges, "truncation_within" each of the
        model's segments from exact states, "truncation" at the end of its own states (root mean squares).

    Raises:
        ValueError: edges for a student, whose own are part of it.
    """
    from common.generate import labels_for

    k = len(model.edges) - 1
    nodes = list(model.edges if edges is None else edges)
    if k > 1 and nodes != list(model.edges):
        raise ValueError(f"{model.name} has segments of its own: other edges are for a teacher")
    labels, steps = labels_for(range(n), model.num_classes), max(fine, 20 * (len(nodes) - 1))
    whole, parts = straight or _straightness(model, nodes, steps, n, labels, seed, cfg)
    some = slice(0, -(-n // 4))
    velocity, x = model.velocity_for(_to(labels, some, model.device), cfg), starts(model, range(some.stop), seed)
    within, in_all = truncation_error(velocity, x, model.edges, n_steps, method, steps // k)
    return {
        "straightness": whole,
        "sequential_straightness": parts,
        "truncation_within": within,
        "truncation": in_all[-1],
    }


def _straightness(
    model: Model, edges: Sequence[float], n_steps: int, n: int, labels: Tensor | None, seed: int, cfg: float
) -> tuple[float, float]:
    """Straightness, and sequential straightness by the edges, of n paths, so many at a time that they fit in memory."""
    import torch

    from common.metrics import straightness
    from common.solvers import integrate

    times = sample_times(edges, n_steps)
    whole, parts = 0.0, 0.0
    for rows in _slices(n, max(1, STATES // (len(times) * math.prod(model.shape)))):
        velocity = model.velocity_for(_to(labels, rows, model.device), cfg)
        x, share = starts(model, range(rows.start, rows.stop), seed), (rows.stop - rows.start) / n
        with torch.no_grad():
            if len(model.edges) > 2:
                path = sample(velocity, x, edges, n_steps, "ab2", trajectory=True)
            else:  # a teacher's velocity does not jump at the edges
                path = integrate(lambda x, t: velocity(x, t, 0), x, times, "ab2", trajectory=True)
        whole += share * straightness(path, times)
        parts += share * sequential_straightness(path, times, edges)
    return whole, parts


# ----------------------------------------------------------------------------------------------------- a whole
def sampler_of(sampling: Sampling, num_scales: int) -> tuple[str, int | None]:
    """Method and number of steps that the options ask for; an adaptive method has no number."""
    if sampling.method == "ode":
        return "dopri5", None
    return PREDICTORS[sampling.predictor], num_scales


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
    from common.runtime import JsonLines

    config, images = run.config, len(model.shape) == 3
    n, is_teacher = config.eval.num_samples, model.condition == "teacher"
    method, n_steps = sampler_of(config.sampling, config.model.num_scales)
    segment_times(model.edges, n_steps)  # refuses too few steps before anything is computed
    cfg = config.sampling.cfg if is_teacher else 1.0  # a student has learnt the guided teacher
    sampler: dict[str, Any] = {"method": method, "tol": config.sampling.tol, "cfg": cfg, "seed": config.seed}
    labels = labels_for(range(n), model.num_classes)
    samples = draw(
        model, range(n), labels, n_steps=n_steps, batch_size=config.eval.batch_size, pixels=images, **sampler
    )
    edges = uniform_edges(config.training.reflow_t) if is_teacher else list(model.edges)
    steps: dict[str, Any] = {} if n_steps is None else {"method": method, "n_steps": n_steps}
    if before is not None:
        steps["straight"] = (before["straightness"], before["sequential_straightness"])
    row = {
        "data": config.data.dataset,
        "source": model.source,
        "name": model.name,
        "step": model.step,
        "condition": model.condition,
        "k": len(model.edges) - 1,
        "edges": list(model.edges),
        **sampler,
        "tol": config.sampling.tol if method == "dopri5" else None,
        "n_steps": n_steps,
        **_cost(samples),
        **judge.measure(samples.x, samples.y),
        **geometry(model, min(n, IMAGE_PATHS if images else PATHS), seed=config.seed, edges=edges, cfg=cfg, **steps),
        "straightness_edges": edges,
        **_origin(model.device),
    }
    JsonLines(out / "rows.jsonl").append(row)
    print(line(row))
    stem = out / re.sub(r"[^\w.-]+", "-", f"{model.name}-step-{model.step}-{method}-{n_steps or config.sampling.tol:g}")
    picture(samples.x, judge.real(DRAWN), Path(f"{stem}.png"))
    if config.eval.save_trajectory:
        save_trajectory(model, min(n, SHOWN), labels, n_steps, f"{stem}-trajectory", **sampler)
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
    how = row["method"] + (f" {row['n_steps']} steps" if row["n_steps"] else f" at {row['tol']:g}")
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


def save_trajectory(
    model: Model, n: int, labels: Tensor | None, n_steps: int | None, stem: str, **sampler: Any
) -> None:
    """The first n samples' states on their way: stem.npz, and stem.png as :func:`trajectory_picture` draws it.

    The .npz holds "times" (steps + 1,), "states" (steps + 1, n, *shape) float16 and, of a conditional model, "labels".
    The times are the sampler's own; dopri5's are those of 8 equal steps, more where there are more segments.
    """
    import numpy as np

    from common.runtime import atomic_write

    steps = n_steps or max(MOMENTS, len(model.edges) - 1)
    y = None if labels is None else labels[:n]
    path = draw(model, range(n), y, n_steps=steps, batch_size=n, trajectory=True, progress=False, **sampler)
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
