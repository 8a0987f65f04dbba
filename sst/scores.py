"""Scores of ensemble forecasts: CRPS, the error of the mean, spread-skill ratio, ranks.

Forecasts are ensembles of M members, shape (M, ...); targets have shape (...). Weights (a mask, areas, or both) are
broadcast to the target and are zero where nothing counts, as on land; members and targets must be finite there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from common.metrics import crps_ensemble

Score = Callable[[Tensor, Tensor, "Tensor | None"], float]


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


def spread_skill_ratio(members: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """sqrt((M + 1) / M) sqrt(mean variance of the members) / RMSE of their mean: 1 if members and target are alike.

    The variance has the divisor M - 1. If the target is one more draw of the members' distribution with variance s^2,
    the squared error of the mean of M members is (1 + 1 / M) s^2 on average, hence the factor, which published tables
    often leave out; it is 1.01 for 50 members. Below 1 the ensemble is overconfident.

    Args:
        members: (M, ...), M >= 2.
        target: (...).
        weights: Broadcast to the target, for both means.

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
    return math.sqrt((m + 1) / m) * math.sqrt(variance / error) if error > 0 else math.inf


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
        members: (L, M, ...), as ``common.series.roll_out`` stacks them.
        target: (L, ...).
        weights: Broadcast to the target of one lead.
    """
    if len(members) != len(target):
        raise ValueError(f"{len(members)} leads of members, {len(target)} of targets: give as many of both")
    return [score(m, y, weights) for m, y in zip(members, target, strict=True)]
