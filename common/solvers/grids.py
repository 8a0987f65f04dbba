"""Time grids: closed forms, and the best division of given trajectories by dynamic programming.

The programme serves two: a sampler's grid (which n Euler steps leave the fine trajectories least?) and the segments of
sequential reflow (which k chords are straightest?). Only the cost of a segment differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Times = Tensor | Sequence[float]

GRIDS = ("uniform", "cosine", "power", "logsnr", "edm")
COSTS = ("euler", "straightness")

# EDM's range of noise levels sigma = (1 - t) / t (Karras et al. 2206.00364, table 1).
SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0
STRETCHED = 20  # steps up to which logsnr and edm move no node but the two ends


def time_grid(n_steps: int, kind: str = "uniform", dtype: torch.dtype = torch.float32) -> Tensor:
    """Times of a sampler: n_steps + 1 ascending nodes, the first 0 (noise) and the last 1 (data), on the CPU.

    With u_i = i / n_steps and the noise level sigma = (1 - t) / t:

    * uniform: t = u
    * cosine: t = (1 - cos(pi u)) / 2; fine at both ends
    * power: t = 1 - (1 - u)^2; fine near the data
    * logsnr: log sigma falls uniformly from log 80 to log 0.002
    * edm: sigma^(1/7) falls uniformly from 80^(1/7) to 0.002^(1/7) (Karras et al. 2206.00364, eq. 5)

    logsnr and edm then have their first node moved from t = 1/81 to 0 and their last one from 1/1.002 to 1. Unlike EDM,
    which appends sigma = 0, this wastes no evaluation on the last 0.002 of the way. With more than STRETCHED steps
    their neighbours move, too, so that the first and the last step shrink with the others: else no solver would
    have an order there.

    Raises:
        ValueError: n_steps < 1 or an unknown kind.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}: a sampler needs at least 1 step; try --n_steps 10")
    u = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    if kind == "uniform":
        times = u
    elif kind == "cosine":
        times = (1 - torch.cos(math.pi * u)) / 2
    elif kind == "power":
        times = 1 - (1 - u) ** 2
    elif kind == "logsnr":
        times = torch.sigmoid(-math.log(SIGMA_MAX) + u * math.log(SIGMA_MAX / SIGMA_MIN))
    elif kind == "edm":
        sigma = (SIGMA_MAX ** (1 / RHO) + u * (SIGMA_MIN ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
        times = 1 / (1 + sigma)
    else:
        raise ValueError(f"unknown time grid {kind!r}: use one of {', '.join(GRIDS)}")
    # Each end is moved whole, the nodes within 1 / STRETCHED of it in u in proportion to how near they are
    start, end = times[0].item(), times[-1].item()
    times = times - start * (1 - STRETCHED * u).clamp(min=0) + (1 - end) * (1 - STRETCHED * (1 - u)).clamp(min=0)
    times[0], times[-1] = 0.0, 1.0
    return times.to(dtype)


def nodes_of(times: Times) -> list[float]:
    """Times as Python numbers; ValueError unless there are two or more, finite, strictly ascending or descending."""
    nodes = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if len(nodes) < 2:
        raise ValueError(f"times has {len(nodes)} node(s): a solver needs at least 2; try time_grid(10)")
    steps = [s - t for t, s in pairwise(nodes)]
    if not all(map(math.isfinite, nodes)) or not (all(d > 0 for d in steps) or all(d < 0 for d in steps)):
        raise ValueError(f"times must ascend or descend strictly, but are {nodes[:6]}...; try time_grid(10)")
    return nodes


# ------------------------------------------------------------------------------------------------- adaptive divisions
def segment_costs(trajectory: Tensor, times: Times, kind: str = "euler") -> np.ndarray:
    """What it costs to go from node i to node j of fine trajectories in one step: (T + 1, T + 1), inf where j <= i.

    * straightness: int_i^j E |(x_j - x_i) / (t_j - t_i) - dx/dt|^2 dt, how far the trajectories are from their chords
      (SeqRF's, up to a factor). With the chords d_s of the fine intervals it is
      sum |d_s|^2 / dt_s - |x_j - x_i|^2 / (t_j - t_i), so cumulative sums and one Gram matrix are all it takes.
    * euler: the root mean square of x_j - x_i - (t_j - t_i) v_i with v_i = d_i / dt_i: what one Euler step misses. The
      sum over the steps bounds the error at the end of a sampler whose velocity does not amplify errors.

    Args:
        trajectory: States at the fine nodes, shape (T + 1, B, ...). Cost T^2 B D multiplications, once.
        times: T + 1 nodes, ascending or descending.

    Source: Yoon & Lee 2402.06461 (straightness); Chen et al. 2405.11326 (euler).
    """
    nodes = np.asarray(nodes_of(times))
    if trajectory.ndim < 2 or len(trajectory) != len(nodes):
        raise ValueError(f"trajectory has shape {tuple(trajectory.shape)} for {len(nodes)} times: need (times, B, ...)")
    if kind not in COSTS:
        raise ValueError(f"unknown cost {kind!r}: use one of {', '.join(COSTS)}")
    gram, batch = _gram(trajectory), trajectory.shape[1]
    square = np.diag(gram)
    apart = square[:, None] + square[None, :] - 2 * gram  # |x_j - x_i|^2, summed over the batch
    span = np.abs(nodes[None, :] - nodes[:, None])
    span[np.diag_indices_from(span)] = 1.0
    step = np.abs(np.diff(nodes))
    length = np.diag(apart, 1)  # |d_s|^2
    if kind == "straightness":
        energy = np.concatenate([[0.0], np.cumsum(length / step)])
        cost = (energy[None, :] - energy[:, None] - apart / span) / batch
    else:
        # <x_j - x_i, d_i> from inner products of the states with the chords
        chord = gram[:, 1:] - gram[:, :-1]  # <x_j, d_i>, (T + 1, T)
        along = chord.T - chord[np.arange(len(step)), np.arange(len(step))][:, None]
        ratio = span[:-1] / step[:, None]
        miss = apart[:-1] - 2 * ratio * along + ratio**2 * length[:, None]
        cost = np.full_like(apart, np.inf)
        cost[:-1] = np.sqrt(np.maximum(miss, 0) / (batch * trajectory[0, 0].numel()))
    cost = np.maximum(cost, 0)
    cost[np.tril_indices_from(cost)] = np.inf
    return cost


def _gram(trajectory: Tensor) -> np.ndarray:
    """Inner products of the states, summed over the batch, (T + 1, T + 1) float64, a few samples at a time.

    The states are taken relative to their mean over time, which loses nothing of any difference.
    """
    total = np.zeros((len(trajectory), len(trajectory)))
    for part in trajectory.split(max(1, 2**24 // max(1, trajectory[:, :1].numel())), dim=1):
        x = part.detach().cpu().flatten(1).double()
        x = x - x.mean(0)
        total += (x @ x.T).numpy()
    return total


def partition(cost: np.ndarray, n_segments: int, shortest: int = 1) -> list[int]:
    """Indices 0 = i_0 < i_1 < ... < i_n = T that minimise sum cost[i_m, i_(m+1)]: exact dynamic programming.

    ``cost`` is (T + 1, T + 1), as from :func:`segment_costs`; ``shortest``: fewest fine intervals of a segment.

    Cost n T^2. Raises ValueError if n segments of that length do not fit.
    """
    last = len(cost) - 1
    if n_segments < 1 or shortest < 1 or n_segments * shortest > last:
        raise ValueError(
            f"{n_segments} segments of at least {shortest} of {last} fine steps: give 1 to {last // max(1, shortest)}"
        )
    index = np.arange(last + 1)
    allowed = np.where(index[None, :] - index[:, None] >= shortest, cost, np.inf)
    best, before = allowed[0], []
    for _ in range(n_segments - 1):
        through = best[:, None] + allowed
        before.append(through.argmin(0))
        best = through.min(0)
    path = [last]
    for choice in reversed(before):
        path.append(int(choice[path[-1]]))
    return [0, *reversed(path)]


def adaptive_grid(trajectory: Tensor, times: Times, n_steps: int, cost: str = "euler", shortest: int = 1) -> Tensor:
    """The n_steps + 1 of the fine trajectories' times that divide them best, float64; see :func:`segment_costs`."""
    nodes = torch.tensor(nodes_of(times), dtype=torch.float64)
    return nodes[partition(segment_costs(trajectory, times, cost), n_steps, shortest)]
