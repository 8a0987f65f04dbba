"""Which pairs of sequential reflow to make: a teacher, samples and options checked and completed, as a manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from seqrf.endpoints import Pool, sources
from seqrf.manifest import Manifest, PairOptions, Teacher, shape_text
from seqrf.segments import checked_edges

SHARD_BYTES, SHARD_PAIRS = 64 * 2**20, 2048  # at most, of shards whose size was not given
ENDS = ("float16", "float32", "uint8")


def plan(pool: Pool, teacher: Teacher, options: PairOptions) -> Manifest:
    """What pairs to make.

    Args:
        pool: Samples and labels to draw from; one segment needs none.
        teacher: Whose flow the pairs follow.
        options: Which pairs, and how.

    Raises:
        ValueError: an option out of range, or samples of another shape than the teacher's.
    """
    import numpy as np

    # numbers that float32 holds are the times that the student is trained with
    edges = tuple(checked_edges([float(np.float32(t)) for t in checked_edges(options.edges)]))
    _check(pool, teacher, options, len(edges) - 1)
    options = replace(options, edges=edges, **_numerics(options, len(edges) - 1))
    size = options.shard_size
    options = replace(options, shard_size=size or SHARD_PAIRS)
    manifest = Manifest(teacher, options, pool.facts(), first_noise(teacher, options.seed))
    if size:
        return manifest
    fitting = SHARD_BYTES * manifest.k // int(manifest.offset(manifest.k))
    return replace(manifest, options=replace(options, shard_size=max(1, min(SHARD_PAIRS, fitting))))


def _check(pool: Pool, teacher: Teacher, options: PairOptions, k: int) -> None:
    """ValueError for what cannot be made."""
    shape, size = shape_text(teacher.shape), options.shard_size
    if pool.data is not None and tuple(pool.data.shape[1:]) != tuple(teacher.shape):
        samples = shape_text(pool.data.shape[1:])
        raise ValueError(f"the data are {samples}, but the teacher works on {shape}: give the teacher's data")
    if pool.data is None and k > 1:
        raise ValueError(f"{k} segments start from real samples: give the data (only k = 1 needs none)")
    if options.n_pairs < k:
        raise ValueError(f"{options.n_pairs} pairs of {k} segments: give at least one for each")
    if options.batch_size < 1 or (size is not None and size < 1):
        raise ValueError(f"batches of {options.batch_size} pairs, shards of {size}: give at least 1")
    if not 0 < teacher.landing <= 1:
        raise ValueError(f"landing {teacher.landing:g} is out of range: give a time above 0, to 1 (none)")
    if options.ends not in ENDS or (options.ends == "uint8" and len(teacher.shape) != 3):
        raise ValueError(f"ends {options.ends!r} of samples {shape}: use float16 or float32, for images also uint8")


def _numerics(options: PairOptions, k: int) -> dict[str, Any]:
    """Tolerance and steps as a manifest has them; those of "auto" are chosen later."""
    from common.solvers import SOLVERS

    solver, tolerance, n_steps = options.solver, options.tolerance, options.n_steps
    if solver in ("auto", "dopri5"):
        if not 0 < (tolerance or 0) < 1:
            raise ValueError(f"tolerance {tolerance or 0:g}: give a positive one below 1, such as 1e-4")
        if n_steps is not None:
            raise ValueError(f"solver {solver} finds its own steps: leave out n_steps, or use solver rk4")
        return {"n_steps": ()}
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: use auto, dopri5 or one of {', '.join(SOLVERS)}")
    steps = (n_steps,) * k if isinstance(n_steps, int) else tuple(n_steps or ())
    if len(steps) != k or min(steps) < 1:
        raise ValueError(f"{n_steps} steps of {solver} for {k} segments: give n_steps of at least 1, or one for each")
    return {"tolerance": None, "n_steps": steps}


def first_noise(teacher: Teacher, seed: int) -> tuple[float, ...]:
    """The first numbers of pair 0's noise."""
    return tuple(sources([0], teacher.shape, seed, "pair", teacher.source).flatten()[:4].tolist())
