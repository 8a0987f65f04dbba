"""A linear inverse model, the rival that costs nothing: regressions between the leading patterns of the anomalies.

The patterns are empirical orthogonal functions of the training years; their amplitudes at each lead are a linear
regression on the present ones, and what the patterns leave out is damped persistence. The spread is that of the
training years' errors. How many patterns: the best mean square in the validation years.
Source: Penland and Magorian 1993 (J. Climate 6, 1067), whose G(tau) is fitted here for each lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import scipy.linalg
import torch
from torch import Tensor

from sst.climate import Climate, origins, pairs
from sst.frames import chunks

if TYPE_CHECKING:
    from sst.forecast import World

COUNTS = (0, 2, 5, 10, 20, 40)  # of patterns; 0: damped persistence


@dataclass(frozen=True)
class Inverse:
    """The model of one box.

    Args:
        patterns: (K, H, W), orthonormal.
        maps: (horizon, K, K), amplitudes now to amplitudes later.
        damping: (horizon, H, W), see ``Climate``.
        residual: standard deviation of the errors, (horizon, H, W).
    """

    patterns: Tensor
    maps: Tensor
    damping: Tensor
    residual: Tensor

    def mean(self, anomalies: Tensor, lead: int) -> Tensor:
        """The forecast ``lead`` frames after fields (N, H, W)."""
        now = torch.einsum("nij,kij->nk", anomalies, self.patterns)
        kept, later = (torch.einsum("nk,kij->nij", a, self.patterns) for a in (now, now @ self.maps[lead - 1]))
        return later + self.damping[lead - 1] * (anomalies - kept)


def patterns(anomalies: Any, most: int, end: int | None = None) -> Tensor:
    """The leading orthogonal functions (most, H, W) of the first ``end`` fields of (T, H, W).

    By the smaller of the two covariances: of the fields, which then are fewer than cells, or of the cells, in chunks.
    Memory: that matrix, in whose place the vectors are worked out.
    """
    t = len(anomalies) if end is None else end
    shape = anomalies[0].shape
    if t < (n := shape.numel()):
        x = anomalies[:t].flatten(1)
        vectors = x.T @ _leading(x @ x.T, most)
    else:
        covariance = torch.zeros(n, n)
        for a, b in chunks(anomalies, t):
            x = anomalies[a:b].flatten(1)
            covariance.addmm_(x.T, x)
        vectors = _leading(covariance, most)
    return (vectors / vectors.norm(dim=0)).T.reshape(-1, *shape)


def _leading(covariance: Tensor, most: int) -> Tensor:
    """Eigenvectors of the largest values, (n, most), of a symmetric matrix (n, n), which is overwritten."""
    n = len(covariance)
    which = (n - max(most, 1), n - 1)
    found = scipy.linalg.eigh(covariance.numpy().T, subset_by_index=which, overwrite_a=True, check_finite=False)[1]
    return torch.from_numpy(found[:, ::-1].copy())


def fit(box: Climate, found: Tensor, n_train: int, leads: int, breaks: Sequence[int] = ()) -> Inverse:
    """The model with these patterns, fitted to the first ``n_train`` frames."""
    return with_spread(_fitted(box, found, amplitudes(box, found, n_train), leads, breaks), box, n_train, breaks)


def amplitudes(box: Climate, found: Tensor, n_train: int) -> Tensor:
    """Of the patterns in the first ``n_train`` frames, (n_train, K)."""
    known = torch.empty(n_train, len(found))  # of small pieces that are kept, each would hold the heap apart
    for i, j in chunks(box.anomalies, n_train):
        known[i:j] = torch.einsum("nij,kij->nk", box.anomalies[i:j], found)
    return known


def _fitted(box: Climate, found: Tensor, known: Tensor, leads: int, breaks: Sequence[int]) -> Inverse:
    """The model whose patterns have had these amplitudes; its spread is not known yet."""
    maps = torch.zeros(leads, len(found), len(found))
    for lead in range(1, leads + 1) if len(found) else ():
        now = origins(0, len(known), 1, lead, breaks)
        maps[lead - 1] = torch.linalg.lstsq(known[now], known[now + lead]).solution
    return Inverse(found, maps, box.damping, torch.empty(0))


def with_spread(model: Inverse, box: Climate, n_train: int, breaks: Sequence[int] = ()) -> Inverse:
    """The model with the spread of its errors in the first ``n_train`` frames."""
    leads = len(model.maps)
    power, counts = torch.zeros(leads, *box.anomalies[0].shape), torch.zeros(leads, 1, 1)
    for lead, now, later in pairs(box.anomalies, leads, breaks, n_train):
        power[lead - 1] += (later - model.mean(now, lead)).square().sum(0)
        counts[lead - 1] += len(now)
    freedom = (counts - len(model.patterns)).clamp(min=1)  # each amplitude's regression has so many coefficients
    return replace(model, residual=(power / freedom).sqrt().clamp(min=0.05))


def models(data: World, leads: int) -> list[Inverse]:
    """The model of each evaluation box, all with the number of patterns that forecasts the validation years best."""
    n, breaks = data.parts.val, data.fields.breaks
    most = [count for count in COUNTS if count <= n // 4]
    found = [patterns(box.anomalies, most[-1], n) for box in data.boxes]
    known = [amplitudes(box, p, n) for box, p in zip(data.boxes, found)]
    frames = origins(n - 1, data.parts.test, 1, leads, breaks)
    best, least = [], float("inf")
    for count in most:
        fitted = [_fitted(b, p[:count], a[:, :count], leads, breaks) for b, p, a in zip(data.boxes, found, known)]
        error = sum(_error(model, box, frames, leads) for model, box in zip(fitted, data.boxes))
        if error < least:
            best, least = fitted, error
    return [with_spread(model, box, n, breaks) for model, box in zip(best, data.boxes)]


def _error(model: Inverse, box: Climate, frames: Tensor, leads: int) -> float:
    """Squared errors of forecasts from some frames, by area."""
    a = box.anomalies
    errors = [a[frames + lead] - model.mean(a[frames], lead) for lead in range(1, leads + 1)]
    return sum((e.square() * box.area).sum().item() for e in errors)
