"""A linear inverse model, the rival that costs nothing: regressions between the leading patterns of the anomalies.

The patterns are empirical orthogonal functions of the training years; their amplitudes at each lead are a linear
regression on the present ones, and what the patterns leave out is damped persistence. The spread is that of the
training years' errors. How many patterns: the best mean square in the validation years.
Source: Penland and Magorian 1993 (J. Climate 6, 1067), whose G(tau) is fitted here for each lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sst.climate import Climate, lagged, origins

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


def patterns(anomalies: Tensor, most: int) -> Tensor:
    """The leading orthogonal functions (most, H, W) of fields (T, H, W), by the smaller of the two covariances."""
    x = anomalies.flatten(1)
    t, n = x.shape
    vectors = torch.linalg.eigh(x @ x.T if t < n else x.T @ x)[1][:, -most:].flip(1)
    vectors = x.T @ vectors if t < n else vectors
    return (vectors / vectors.norm(dim=0)).T.reshape(-1, *anomalies.shape[1:])


def fit(box: Climate, found: Tensor, n_train: int, leads: int, breaks: Sequence[int] = ()) -> Inverse:
    """The model with these patterns, fitted to the first ``n_train`` frames."""
    a = box.anomalies[:n_train]
    amplitudes = torch.einsum("nij,kij->nk", a, found)
    maps = torch.zeros(leads, len(found), len(found))
    if len(found):
        maps = torch.stack([torch.linalg.lstsq(*lagged(amplitudes, k, breaks)).solution for k in range(1, leads + 1)])
    model = Inverse(found, maps, box.damping, torch.empty(0))
    spread = []
    for lead in range(1, leads + 1):
        now, later = lagged(a, lead, breaks)
        freedom = max(1, len(now) - len(found))  # each amplitude's regression has so many coefficients
        spread.append(((later - model.mean(now, lead)).square().sum(0) / freedom).sqrt().clamp(min=0.05))
    return Inverse(found, maps, box.damping, torch.stack(spread))


def models(data: World, leads: int) -> list[Inverse]:
    """The model of each evaluation box, all with the number of patterns that forecasts the validation years best."""
    n, breaks = data.parts.val, data.fields.breaks
    most = [count for count in COUNTS if count <= n // 4]
    found = [patterns(box.anomalies[:n], most[-1]) for box in data.boxes]
    frames = origins(n - 1, data.parts.test, 1, leads, breaks)
    best, least = [], float("inf")
    for count in most:
        fitted = [fit(box, p[:count], n, leads, breaks) for box, p in zip(data.boxes, found)]
        error = sum(_error(model, box, frames, leads) for model, box in zip(fitted, data.boxes))
        if error < least:
            best, least = fitted, error
    return best


def _error(model: Inverse, box: Climate, frames: Tensor, leads: int) -> float:
    """Squared errors of forecasts from some frames, by area."""
    a = box.anomalies
    errors = [a[frames + lead] - model.mean(a[frames], lead) for lead in range(1, leads + 1)]
    return sum((e.square() * box.area).sum().item() for e in errors)
