"""Which pairs of sequential reflow to make: the options checked, as a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from seqrf.endpoints import Pool, sources
from seqrf.segments import checked_edges, uniform_edges
from seqrf.shards import ENDS, Manifest, shape_text

SHARD_BYTES, SHARD_PAIRS = 64 * 2**20, 2048  # at most, of shards whose size was not given


def plan(
    pool: Pool,
    *,
    teacher_hash: str,
    n_pairs: int,
    k: int | None = None,
    edges: Sequence[float] | None = None,
    seed: int = 0,
    solver: str = "auto",
    n_steps: int | Sequence[int] | None = None,
    tolerance: float = 1e-4,
    batch_size: int = 256,
    shard_size: int | None = None,
    ends: str = "float16",
    shape: Sequence[int] | None = None,
    data_name: str = "",
    source: str = "gaussian",
    method: str = "rf",
    sigma: float = 0.0,
    cfg: float = 1.0,
    landing: float = 1.0,
) -> Manifest:
    """What pairs to make, checked.

    Args:
        pool: Samples and labels to draw from; k = 1 needs none.
        teacher_hash: Of the teacher's weights; training asks for it again.
        n_pairs: Pairs of all segments together, as many of each.
        k, edges: Number of segments of equal length, or 0 = t_0 < ... < t_k = 1.
        seed: Of the noise and of the choice of samples.
        solver: "dopri5"; "auto", which is rk4 where that is as good for less (endpoints.choose_steps); or one of
            ``common.solvers.SOLVERS`` with n_steps in every segment, or in each.
        tolerance: dopri5's rtol and atol.
        batch_size: Samples solved together, all of one segment and one shard.
        shard_size: Pairs of a file; None: 2048, fewer where those would be over 64 MB.
        ends: How x_b is stored: "float16", "float32", or "uint8" for the pixels at t = 1 and float16 before.
        shape: What the teacher works on; None: the shape of the samples.
        data_name: What to call the samples in the manifest.
        source: Where the flow starts, see ``endpoints.sources``.
        method, sigma: What the teacher was trained with, as its checkpoint has it.
        cfg: Guidance scale in the teacher's velocity; only noted, since the velocity is given.
        landing: Time from which the way to the data is one straight step, see ``endpoints.follow``.

    Raises:
        ValueError: an option out of range, or samples of another shape than the teacher's.
    """
    nodes, shape = _edges(k, edges), _shape(pool, shape)
    _check_counts(pool, len(nodes) - 1, n_pairs, batch_size, shard_size)
    if not 0 < landing <= 1:
        raise ValueError(f"landing {landing:g} is out of range: give a time above 0, to 1 (none)")
    if ends not in ENDS or (ends == "uint8" and len(shape) != 3):
        raise ValueError(f"ends {ends!r} of samples {shape_text(shape)}: use float16 or float32, for images also uint8")
    manifest = Manifest(
        teacher=teacher_hash,
        edges=nodes,
        **_numerics(solver, n_steps, tolerance, len(nodes) - 1),
        seed=seed,
        shape=shape,
        n_pairs=n_pairs,
        shard_size=shard_size or SHARD_PAIRS,
        batch_size=batch_size,
        ends=ends,
        data=data_name,
        noise=first_noise(shape, seed, source),
        source=source,
        method=method,
        sigma=sigma,
        cfg=cfg,
        landing=landing,
        **pool.facts(),
    )
    fitting = SHARD_BYTES * manifest.k // int(manifest.offset(manifest.k))
    return manifest if shard_size else replace(manifest, shard_size=max(1, min(SHARD_PAIRS, fitting)))


def _edges(k: int | None, edges: Sequence[float] | None) -> tuple[float, ...]:
    """The edges, as numbers that float32 holds: the times that the student is trained with."""
    import numpy as np

    if edges is None and k is None:
        raise ValueError("give the number of segments k, or their edges")
    given = uniform_edges(k or 0) if edges is None else checked_edges(edges)
    if k is not None and k != len(given) - 1:
        raise ValueError(f"k = {k}, but {len(given)} edges make {len(given) - 1} segments: give one of the two")
    return tuple(checked_edges([float(np.float32(t)) for t in given]))


def _shape(pool: Pool, shape: Sequence[int] | None) -> tuple[int, ...]:
    there = None if pool.data is None else tuple(pool.data.shape[1:])
    wanted = None if shape is None else tuple(shape)
    if there is None and wanted is None:
        raise ValueError("without data nothing says what a sample is: give its shape, such as (3, 32, 32)")
    if there and wanted and there != wanted:
        raise ValueError(
            f"the data are {shape_text(there)}, but the teacher works on {shape_text(wanted)}: give the teacher's data"
        )
    return there or wanted or ()


def _check_counts(pool: Pool, k: int, n_pairs: int, batch_size: int, shard_size: int | None) -> None:
    if pool.data is None and k > 1:
        raise ValueError(f"{k} segments start from real samples: give the data (only k = 1 needs none)")
    if n_pairs < k:
        raise ValueError(f"{n_pairs} pairs of {k} segments: give at least one for each")
    if batch_size < 1 or (shard_size is not None and shard_size < 1):
        raise ValueError(f"batches of {batch_size} pairs, shards of {shard_size}: give at least 1")


def _numerics(solver: str, n_steps: int | Sequence[int] | None, tolerance: float, k: int) -> dict[str, Any]:
    """Solver, tolerance and steps as a manifest has them; those of "auto" are chosen later."""
    from common.solvers import SOLVERS

    if solver in ("auto", "dopri5"):
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance {tolerance:g}: give a positive one below 1, such as 1e-4")
        if n_steps is not None:
            raise ValueError(f"solver {solver} finds its own steps: leave out n_steps, or use solver rk4")
        return {"solver": solver, "tolerance": tolerance, "n_steps": ()}
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: use auto, dopri5 or one of {', '.join(SOLVERS)}")
    steps = (n_steps,) * k if isinstance(n_steps, int) else tuple(n_steps or ())
    if len(steps) != k or min(steps) < 1:
        raise ValueError(f"{n_steps} steps of {solver} for {k} segments: give n_steps of at least 1, or one for each")
    return {"solver": solver, "tolerance": None, "n_steps": steps}


def first_noise(shape: Sequence[int], seed: int, source: str) -> tuple[float, ...]:
    """The first numbers of pair 0's noise."""
    return tuple(sources([0], shape, seed, "pair", source).flatten()[:4].tolist())
