"""Sequences: windows of them, roll-outs of one-step maps, and scores of ensemble forecasts.

A series is a list of trajectories, each of shape (T, ...) with the same trailing shape. Forecasts are ensembles of M
members, shape (M, ...); targets have shape (...). Weights (a mask, areas, or both) are broadcast to the target and are
zero where nothing counts, as on land; members and targets must be finite there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.metrics import crps_ensemble

Step = Callable[[Tensor, int], Tensor]
Score = Callable[[Tensor, Tensor, "Tensor | None"], float]


# ------------------------------------------------------------------------------------------------------------- windows
def windows(series: Sequence[Tensor], past: int, horizon: int, stride: int = 1) -> Tensor:
    """Where each stretch of ``past + horizon`` frames begins; none reaches from one trajectory into another.

    Args:
        series: Trajectories, each (T, ...); those too short for a window are passed over.
        past: Frames that are given.
        horizon: Frames that follow and are to be predicted; 0: none.
        stride: Frames between the beginnings of neighbouring windows.

    Returns:
        (trajectory, first frame) of each window, int64, shape (N, 2); see ``frames_at``.

    Raises:
        ValueError: numbers out of range, or every trajectory is too short.
    """
    if past < 1 or horizon < 0 or stride < 1:
        raise ValueError(
            f"windows of {past} + {horizon} frames, stride {stride}: need past >= 1, horizon >= 0, stride >= 1"
        )
    length = past + horizon
    starts = [(k, start) for k, x in enumerate(series) for start in range(0, len(x) - length + 1, stride)]
    if not starts:
        longest = max(map(len, series), default=0)
        raise ValueError(
            f"no window of {past} + {horizon} frames in {len(series)} trajectories of at most {longest} frames: "
            "give longer ones, or fewer frames"
        )
    return torch.tensor(starts, dtype=torch.int64)


def frames_at(series: Sequence[Tensor], index: Tensor, past: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The frames of some windows.

    Args:
        series: As given to ``windows``.
        index: Rows of what it returned, shape (B, 2).
        past, horizon: As there.

    Returns:
        The given frames, (B, past, ...), and those that follow, (B, horizon, ...).
    """
    stretches = torch.stack([series[k][start : start + past + horizon] for k, start in index.tolist()])
    return stretches[:, :past], stretches[:, past:]


# ------------------------------------------------------------------------------------------------------------ roll-out
@torch.no_grad()
def roll_out(
    step: Step, start: Tensor, n_steps: int, every: int = 1, chunk: int = 0, progress: str = "", shown: int = 1
) -> Tensor:
    """Applies a one-step map again and again.

    Memory: the result, on the device of ``start``, and what ``step`` takes for ``chunk`` rows.

    Args:
        step: step(state, k) -> the next state; k = 0, 1, ... counts the steps. With ``chunk`` it is called for each
            part of the rows in turn, in their order.
        start: States, shape (B, ...).
        n_steps: Number of steps.
        every: Keep every so many states only.
        chunk: Rows that are given to ``step`` at a time; 0: all.
        progress: Text before a progress bar on stderr; empty: no bar.
        shown: What a step counts for in the bar, for example its rows.

    Returns:
        The states after steps every, 2 every, ...; shape (n_steps // every, B, ...). ``start`` is not among them.

    Raises:
        ValueError: a state is not finite (the line names the step), changes its shape, or a number is out of range.
    """
    if n_steps < 1 or not 1 <= every <= n_steps or chunk < 0:
        raise ValueError(f"{n_steps} steps, every {every}, chunk {chunk}: need 1 <= every <= n_steps and chunk >= 0")
    from tqdm import tqdm

    state, states = start, start.new_empty(n_steps // every, *start.shape)
    with tqdm(total=n_steps * shown, desc=progress, disable=not progress, dynamic_ncols=True, mininterval=0.5) as bar:
        for k in range(n_steps):  # x_{k+1} = step(x_k, k): errors of a step are what the next one starts from
            parts = state.split(chunk) if chunk else (state,)
            state = torch.cat([step(part, k) for part in parts])
            _check_state(state, start, k, n_steps)  # nan spreads silently: better to stop where it begins
            if (k + 1) % every == 0:
                states[(k + 1) // every - 1] = state
            bar.update(shown)
    return states


def _check_state(state: Tensor, start: Tensor, k: int, n_steps: int) -> None:
    """Raises ValueError unless a state has the shape of the first one and is finite."""
    if state.shape != start.shape:
        raise ValueError(f"step {k + 1} made {tuple(state.shape)} of {tuple(start.shape)}: a state must keep its shape")
    if not torch.isfinite(state).all():
        bad = (~torch.isfinite(state.reshape(len(state), -1))).any(1).sum().item()
        raise ValueError(
            f"the roll-out is not finite at step {k + 1} of {n_steps}, in {bad} of {len(state)} rows: "
            "train longer, with a smaller --lr, or take fewer steps"
        )


# -------------------------------------------------------------------------------------------------- scores of ensembles
def weighted_mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Mean in float64 under weights that are broadcast to the values.

    Raises:
        ValueError: the weights do not fit, are negative, or are all zero.
    """
    values = values.double()
    if weights is None:
        return values.mean().item()
    return (values * normalised(weights, values)).sum().item()


def normalised(weights: Tensor, like: Tensor) -> Tensor:
    """Weights broadcast to a tensor's shape, float64, with sum 1.

    Raises:
        ValueError: they do not fit, are negative, or are all zero.
    """
    try:
        w = weights.to(like.device, torch.float64).expand_as(like)
    except RuntimeError:
        shapes = f"{tuple(weights.shape)} and {tuple(like.shape)}"
        raise ValueError(f"weights and values have shapes {shapes}: they cannot be broadcast") from None
    total = w.sum()
    if not total > 0 or (w < 0).any():
        raise ValueError("weights must not be negative, and not all zero: look at the mask")
    return w / total


def crps(members: Tensor, target: Tensor, weights: Tensor | None = None, fair: bool = False) -> float:
    """Weighted mean of ``common.metrics.crps_ensemble``; a single member gives the mean absolute error.

    Args:
        members: (M, ...).
        target: (...).
        weights: Broadcast to the target; None: all count alike.
        fair: Without the bias of a finite ensemble; needs M >= 2.
    """
    scores = crps_ensemble(members, target, fair=fair, mean=False)
    assert isinstance(scores, Tensor)
    return weighted_mean(scores, weights)


def crps_gaussian(mean: Tensor, std: Tensor | float, target: Tensor) -> Tensor:
    """CRPS of normal distributions: s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - mean) / s.

    Args:
        mean: Shape (...).
        std: Broadcast to it, >= 0; where it is 0 the score is |y - mean|.
        target: What happened, shape (...).

    Returns:
        The scores, shape (...), float64.

    Source: Gneiting and Raftery 2007, eq. 22.
    """
    error = target.double() - mean.double()
    s = torch.as_tensor(std, dtype=torch.float64, device=error.device).expand_as(error)
    z = error / s.clamp(min=torch.finfo(torch.float64).tiny)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    scores = error * torch.erf(z / math.sqrt(2)) + s * (2 * density - 1 / math.sqrt(math.pi))
    return torch.where(s > 0, scores, error.abs())


def mse_of_mean(members: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """Mean squared error of the ensemble's mean; shapes as in ``crps``."""
    return weighted_mean((members.double().mean(0) - target.double()).square(), weights)


def spread_skill_ratio(members: Tensor, target: Tensor, weights: Tensor | None = None, finite: bool = True) -> float:
    """sqrt((M + 1) / M) sqrt(mean variance of the members) / RMSE of their mean: 1 if members and target are alike.

    The variance has the divisor M - 1. If the target is one more draw of the members' distribution with variance s^2,
    the squared error of the mean of M members is (1 + 1 / M) s^2 on average, hence the factor; it is 1.01 for 50
    members. ``finite=False`` leaves it out, as published tables do. Below 1 the ensemble is overconfident.

    Args:
        members: (M, ...), M >= 2.
        target: (...).
        weights: Broadcast to the target, for both means.
        finite: See above.

    Raises:
        ValueError: fewer than 2 members, or shapes that do not fit.

    Source: Fortin et al. 2014 (J. Hydrometeorology 15), eq. 15.
    """
    m = len(members)
    if m < 2 or members.shape[1:] != target.shape:
        shapes = f"{tuple(members.shape)} and {tuple(target.shape)}"
        raise ValueError(f"members and target have shapes {shapes}: need (M, ...) and (...), M >= 2")
    variance = weighted_mean(members.double().var(0), weights)
    error = mse_of_mean(members, target, weights)
    factor = math.sqrt((m + 1) / m) if finite else 1.0
    return factor * math.sqrt(variance / error) if error > 0 else math.inf


def rank_histogram(
    members: Tensor, target: Tensor, weights: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Share of targets that have 0, 1, ..., M members below them: flat (1 / (M + 1)) for a reliable ensemble.

    A U shape means too little spread, a dome too much, a slope a bias. Ties are broken at random.

    Args:
        members: (M, ...).
        target: (...).
        weights: Broadcast to the target.
        generator: Draws for the ties, on the CPU; None: torch's own.

    Returns:
        Shares with sum 1, float64, shape (M + 1,).

    Source: Hamill 2001 (Monthly Weather Review 129).
    """
    if members.ndim == 0 or members.shape[1:] != target.shape:
        raise ValueError(f"members and target have shapes {tuple(members.shape)} and {tuple(target.shape)}")
    below, ties = (members < target).sum(0), (members == target).sum(0)
    u = torch.rand(target.shape, generator=generator, dtype=torch.float64).to(target.device)
    ranks = below + (u * (ties + 1)).floor().long()
    w = normalised(torch.ones(()) if weights is None else weights, target)
    return torch.zeros(len(members) + 1, dtype=torch.float64, device=w.device).index_add_(
        0, ranks.flatten(), w.flatten()
    )


def by_lead(score: Score, members: Tensor, target: Tensor, weights: Tensor | None = None) -> list[float]:
    """A score at each lead time.

    Args:
        score: score(members, target, weights), for example ``crps``.
        members: (L, M, ...), as ``roll_out`` stacks them.
        target: (L, ...).
        weights: Broadcast to the target of one lead.
    """
    if len(members) != len(target):
        raise ValueError(f"{len(members)} leads of members, {len(target)} of targets: give as many of both")
    return [score(m, y, weights) for m, y in zip(members, target, strict=True)]
