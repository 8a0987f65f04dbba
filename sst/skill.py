"""Scores of forecasts beside those of persistence, climatology, damped persistence and, where it is known, the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sst import linear
from sst.scores import by_lead, crps, crps_gaussian, mse_of_mean, rank_histogram, spread_skill_ratio, weighted_mean

if TYPE_CHECKING:
    from sst.forecast import Ensemble, World

# Baselines: the first three say one number, and score its absolute error; the others a normal distribution.
POINT = ("persistence", "climatology", "damped persistence")
GAUSSIAN = ("climatology, Gaussian", "damped persistence, Gaussian")
FITTED = "damped persistence, fitted"  # the last one, its spread fitted to the validation years like the flow's
LINEAR = "linear inverse model"  # a normal distribution, see linear.py
EXACT = "exact"


def area_of(data: World, box: Tensor) -> Tensor:
    """Weights of the cells of each forecast, (N, H, W)."""
    return torch.stack([data.boxes[k].area for k in box.tolist()])


def std_of(data: World, box: Tensor) -> Tensor:
    """deg C of a standard deviation, (N, H, W)."""
    return torch.stack([data.boxes[k].std for k in box.tolist()])


def fitted_spread(data: World, frames: Tensor, leads: int) -> Tensor:
    """Factors, (leads,), that make damped persistence's spread as large as its errors in forecasts from some frames."""
    area, factors = torch.stack([box.area for box in data.boxes]), []
    for k in range(leads):
        errors = [b.anomalies[frames + k + 1] - b.damping[k] * b.anomalies[frames] for b in data.boxes]
        power = weighted_mean(torch.stack([e.square().mean(0) for e in errors]), area)
        factors.append(math.sqrt(power / weighted_mean(torch.stack([b.residual[k] ** 2 for b in data.boxes]), area)))
    return torch.tensor(factors)


def baselines(
    data: World, drawn: Ensemble, validation: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Mean and standard deviation (None: a single number) of each baseline, (L, N, H, W), in standard deviations.

    ``validation``: frames of forecasts to which the spread of one more, FITTED, is fitted.
    """
    leads = len(drawn.target)
    maps = {n: torch.stack([getattr(data.boxes[k], n) for k in drawn.box.tolist()], 1) for n in ("damping", "residual")}
    still, zero = drawn.start.expand(leads, *drawn.start.shape), torch.zeros_like(drawn.target)
    damped = maps["damping"][:leads] * drawn.start
    found: dict[str, tuple[Tensor, Tensor | None]] = dict(zip(POINT, ((still, None), (zero, None), (damped, None))))
    found[GAUSSIAN[0]] = (zero, torch.ones_like(zero))
    found[GAUSSIAN[1]] = (damped, maps["residual"][:leads])
    found[LINEAR] = inverse(data, drawn)
    if validation is not None:
        factors = fitted_spread(data, validation, leads)[:, None, None, None]
        found[FITTED] = (damped, factors * maps["residual"][:leads])
    if data.fields.made is not None:
        found[EXACT] = exact(data, drawn)
    return found


def inverse(data: World, drawn: Ensemble) -> tuple[Tensor, Tensor]:
    """Mean and spread of the linear inverse model's forecasts, see ``linear``."""
    leads, models = len(drawn.target), linear.models(data, len(drawn.target))
    means, stds = torch.empty_like(drawn.target), torch.empty_like(drawn.target)
    for k, model in enumerate(models):
        rows = drawn.box == k
        for lead in range(leads):
            means[lead, rows] = model.mean(drawn.start[rows], lead + 1)
            stds[lead, rows] = model.residual[lead]
    return means, stds


def exact(data: World, drawn: Ensemble) -> tuple[Tensor, Tensor]:
    """The synthetic field's own forecast from the true state, in the units of ``drawn``."""
    ocean, box = data.fields.made, data.boxes[0]
    truth = ocean.climatology(data.fields.times)
    start = torch.from_numpy(box.region.values).double()[drawn.frame] - truth[drawn.frame]
    means, stds = [], []
    for lead in range(1, len(drawn.target) + 1):
        later = drawn.frame + lead
        mean = ocean.forecast_mean(start, lead) + truth[later] - box.cycle[later]
        means.append(mean / box.std)
        stds.append((ocean.forecast_std(lead) / box.std).expand_as(mean))
    return torch.stack(means), torch.stack(stds)


def crps_of(forecast: tuple[Tensor, Tensor | None], target: Tensor, weights: Tensor) -> list[float]:
    """CRPS at each lead of a mean and a standard deviation, (L, N, H, W)."""
    mean, std = forecast
    scores = (mean - target).abs() if std is None else crps_gaussian(mean, std, target)
    return [weighted_mean(score, weights) for score in scores]


def evaluate(data: World, drawn: Ensemble, seed: int = 0, validation: Tensor | None = None) -> dict[str, Any]:
    """All scores, per lead and averaged over leads, in standard deviations and in deg C; see ``baselines``.

    Returns:
        ``units`` -> name -> {"crps": [...], "mse": [...], "crps_mean": x, "mse_mean": x}, for the flow "crps_fair" too;
        ``ssr`` (with the factor for a finite ensemble) and ``ssr_mean``; ``ranks``, the rank histogram over all leads.
        ``exact_ratio``, where the exact forecast is known: CRPS divided by its, per lead and of the averages.
    """
    area, std = area_of(data, drawn.box), std_of(data, drawn.box)
    others = baselines(data, drawn, validation)
    result: dict[str, Any] = {"units": {}}
    for unit, scale in (("normalised", torch.ones_like(std)), ("deg_C", std)):
        members, target = drawn.members * scale, drawn.target * scale
        table = {
            "flow": {"crps": by_lead(crps, members, target, area), "mse": by_lead(mse_of_mean, members, target, area)}
        }
        table["flow"]["crps_fair"] = by_lead(partial(crps, fair=True), members, target, area)
        for name, (mean, spread) in others.items():
            scaled = (mean * scale, None if spread is None else spread * scale)
            errors = [weighted_mean((m - y).square(), area) for m, y in zip(scaled[0], target, strict=True)]
            table[name] = {"crps": crps_of(scaled, target, area), "mse": errors}
        result["units"][unit] = {name: _with_means(scores) for name, scores in table.items()}
    ratios = by_lead(spread_skill_ratio, drawn.members, drawn.target, area)
    result |= {"ssr": ratios, "ssr_mean": sum(ratios) / len(ratios)}
    draw = torch.Generator().manual_seed(seed)
    ranks = [rank_histogram(m, y, area, draw) for m, y in zip(drawn.members, drawn.target, strict=True)]
    result["ranks"] = torch.stack(ranks).mean(0).tolist()
    if EXACT in others:
        table = result["units"]["normalised"]
        result["exact_ratio"] = [a / b for a, b in zip(table["flow"]["crps"], table[EXACT]["crps"], strict=True)]
        result["exact_ratio_mean"] = table["flow"]["crps_mean"] / table[EXACT]["crps_mean"]
    return result


def _with_means(scores: dict[str, list[float]]) -> dict[str, Any]:
    return scores | {f"{key}_mean": sum(values) / len(values) for key, values in scores.items()}


def lines(result: Mapping[str, Any], unit: str = "normalised") -> list[str]:
    """A table for the terminal: CRPS by lead."""
    table, label = result["units"][unit], {"normalised": "standard deviations", "deg_C": "deg C"}[unit]
    leads = len(result["ssr"])
    width = max(map(len, table)) + 2
    head = f"{f'CRPS, {label}':<{max(width, 26)}}" + "".join(f"lead {k:<3}" for k in range(1, leads + 1)) + "mean"
    rows = [_line(name, scores["crps"], scores["crps_mean"], width) for name, scores in table.items()]
    return [head, *rows, _line("spread-skill ratio", result["ssr"], result["ssr_mean"], width)]


def _line(name: str, values: Sequence[float], mean: float, width: int) -> str:
    return f"{name:<{max(width, 26)}}" + "".join(f"{v:<8.3f}" for v in values) + f"{mean:.3f}"


def below_everywhere(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool]:
    """Whether the CRPS is below each baseline's at every lead."""
    table = result["units"]["normalised"]
    return {name: all(a < b for a, b in zip(table["flow"]["crps"], table[name]["crps"], strict=True)) for name in names}
