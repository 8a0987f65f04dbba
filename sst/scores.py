"""Scores of ensemble forecasts: CRPS, energy score, error of the mean, spread-skill ratio, ranks, events, spectra.

Forecasts are ensembles of M members, shape (M, ...); targets have shape (...). Weights (a mask, areas, or both) are
broadcast to the target and are zero where nothing counts, as on land; members and targets must be finite there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 64  # fields of an energy score: what memory they take

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


def energy_score(members: Tensor, target: Tensor, weights: Tensor | None = None, fair: bool = False) -> float:
    """Energy score of whole fields: mean |x_i - y| - sum_ij |x_i - x_j| / (2 M^2), |.| the weighted RMS over a field.

    The CRPS of many cells at once: it sees whether the members' patterns, not only their values at each cell, are the
    truth's, although weakly. ``fair``: divided by 2 M (M - 1), on average the score of what the members are drawn from.
    Cost M^2 cells for each target.

    Args:
        members: (M, N, ...): N fields.
        target: (N, ...).
        weights: Broadcast to the target; a field counts by the sum of its own.
        fair: See above; needs M >= 2.

    Source: Gneiting and Raftery 2007, eq. 22 (beta = 1); Ferro 2014 for the fair score.
    """
    m = _count(members, target, 1 + fair)
    w = normalised(torch.ones(()) if weights is None else weights, target).flatten(1)  # (N, cells)
    total = 0.0
    for rows in torch.arange(len(w)).split(AT_ONCE):
        shares = w[rows].sum(1)
        inside = (w[rows] / shares.clamp(min=torch.finfo(w.dtype).tiny)[:, None]).sqrt()
        off = (members[:, rows].double() - target[rows].double()).flatten(2).transpose(0, 1) * inside[:, None]
        pairs = torch.cdist(off, off, compute_mode="use_mm_for_euclid_dist")  # (N, M, M)
        pairs = pairs.sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(1)  # of rounding
        total += (shares * (off.norm(dim=2).mean(1) - pairs / (2 * m * (m - 1 if fair else m)))).sum().item()
    return total


def squared_error(members: Tensor, target: Tensor, fair: bool = False) -> Tensor:
    """Squared error of the members' mean at each target, float64, (...).

    ``fair``: less the members' variance / M, on average the error of the mean of infinitely many; the root of its mean
    is the fair RMSE. Single values may be below 0.
    """
    m = _count(members, target, 1 + fair)
    error = (members.double().mean(0) - target.double()).square()
    return error - members.double().var(0) / m if fair else error


def expected_error(members: Tensor, target: Tensor) -> Tensor:
    """(M + 1) / M times the members' variance: the squared error of their mean if they are reliable; float64, (...).

    The variance has the divisor M - 1. If the target is one more draw of the members' distribution with variance s^2,
    the squared error of the mean of M members is (1 + 1 / M) s^2 on average, hence the factor, which published tables
    often leave out; its root is 1.01 for 50 members. The root of the mean over targets is called the spread. Of the
    target the shape is read; M >= 2.

    Source: Fortin et al. 2014 (J. Hydrometeorology 15), eq. 15.
    """
    m = _count(members, target, 2)
    return (m + 1) / m * members.double().var(0)


def spread_skill_ratio(members: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """Spread over the RMSE of the members' mean: 1 if members and target are alike, below 1 if overconfident.

    Raises:
        ValueError: fewer than 2 members, or shapes that do not fit.
    """
    spread, error = (weighted_mean(f(members, target), weights) for f in (expected_error, squared_error))
    return math.sqrt(spread / error) if error > 0 else math.inf


def _count(members: Tensor, target: Tensor, least: int) -> int:
    """M, of members (M, ...) that fit to a target (...); raises ValueError unless they do."""
    if members.ndim == 0 or len(members) < least or members.shape[1:] != target.shape:
        shapes = f"{tuple(members.shape)} and {tuple(target.shape)}"
        raise ValueError(f"members and target have shapes {shapes}: need (M, ...) and (...), M >= {least}")
    return len(members)


def brier(probability: Tensor, happened: Tensor, members: int = 0) -> Tensor:
    """Brier scores (p - o)^2 of an event, float64.

    Args:
        probability: Of the event, shape (...).
        happened: Whether it did, shape (...).
        members: M where the probability is a share of M members: less p (1 - p) / (M - 1), on average the score of the
            probability that the members are drawn with. 0: the probability is one.

    Source: Brier 1950; Ferro 2014, eq. 6, for the fair score.
    """
    p = probability.double()
    scores = (p - happened.double()).square()
    return scores - p * (1 - p) / (members - 1) if members else scores


def rank_histogram(
    members: Tensor, target: Tensor, weights: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Share of targets that have 0, 1, ..., M members below them: flat (1 / (M + 1)) for a reliable ensemble.

    A U shape means too little spread, a dome too much, a slope a bias. Ties are broken at random.

    Args:
        generator: Draws for the ties, on the CPU; None: torch's own.

    Returns:
        Shares with sum 1, float64, shape (M + 1,).

    Source: Hamill 2001 (Monthly Weather Review 129).
    """
    _count(members, target, 1)
    below, ties = (members < target).sum(0), (members == target).sum(0)
    u = torch.rand(target.shape, generator=generator, dtype=torch.float64).to(target.device)
    ranks = below + (u * (ties + 1)).floor().long()
    w = normalised(torch.ones(()) if weights is None else weights, target)
    return torch.zeros(len(members) + 1, dtype=torch.float64, device=w.device).index_add_(
        0, ranks.flatten(), w.flatten()
    )


def ring_power(fields: Tensor, window: Tensor) -> Tensor:
    """Power of square fields by wavenumber, through a window that hides land and edges.

    Args:
        fields: (..., side, side).
        window: Broadcast to them; zero where nothing counts.

    Returns:
        Mean of |modes|^2 over the ring of the waves on a side 1, 2, ..., side // 2, float64, (..., side // 2).
    """
    side = fields.shape[-1]
    modes = torch.fft.rfft2(fields.double() * window).abs().square()
    waves = torch.cartesian_prod(torch.fft.fftfreq(side), torch.fft.rfftfreq(side)).mul(side)
    ring = waves.norm(dim=1).round().long()
    twice = torch.where((waves[:, 1] == 0) | (2 * waves[:, 1] == side), 1.0, 2.0).double()  # the other half's modes
    rings = F.one_hot(ring).double()[:, 1 : side // 2 + 1] * twice[:, None]
    return modes.flatten(-2) @ (rings / rings.sum(0))


def spectrum_ratio(members: Tensor, target: Tensor, window: Tensor) -> Tensor:
    """Power of the members over that of the targets by ring: 1 for fields as rough as the truth, less for smooth ones.

    Args:
        members: (M, N, side, side).
        target: (N, side, side).
        window: Broadcast to the target, see ``ring_power``.

    Returns:
        (side // 2,), float64, of the powers' means over members and targets.
    """
    power = torch.stack([ring_power(m, window).sum(0) for m in members]).mean(0)
    return power / ring_power(target, window).sum(0)


def by_lead(score: Score, members: Tensor, target: Tensor, weights: Tensor | None = None) -> list[float]:
    """A score at each lead time.

    Args:
        score: score(members, target, weights), for example ``crps``.
        members: (L, M, ...), as ``common.data.series.roll_out`` stacks them.
        target: (L, ...).
        weights: Broadcast to the target of one lead.
    """
    if len(members) != len(target):
        raise ValueError(f"{len(members)} leads of members, {len(target)} of targets: give as many of both")
    return [score(m, y, weights) for m, y in zip(members, target, strict=True)]
