"""Verification of forecasts beside persistence, climatology, damped persistence and, where it is known, the best."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.metrics import crps_ensemble
from common.runtime import generator
from sst import climate as C
from sst import frames, linear, scores
from sst.scores import crps_gaussian, weighted_mean
from sst.synthetic import season

if TYPE_CHECKING:
    from sst.forecast import Ensemble, World

# Baselines: the first three say one number, and score its absolute error; the others a distribution.
POINT = ("persistence", "climatology", "damped persistence")
PAST = "climatological ensemble"  # the fields of the training years at that time of the year
GAUSSIAN = ("climatology, Gaussian", "damped persistence, Gaussian")  # the latter is an AR(1) process in each cell
FITTED = "damped persistence, fitted"  # its spread fitted to the validation years like the flow's
LINEAR = "linear inverse model"  # a normal distribution, see linear.py
EXACT = "exact"
WARM = 0.9  # quantile of the training years beyond which a cell is in a marine heat wave
DRAWN = 20  # members of a normal forecast, for its energy score (fair, so of any number) and spectrum
NEAR = 1 / 8  # of a year: how far from a date's season the climatological ensemble looks
UNITS = {"normalised": "standard deviations", "deg_C": "deg C"}


@dataclass(frozen=True)
class Members:
    """A forecast by members, (L, M, N, H, W), in standard deviations."""

    values: Tensor


@dataclass(frozen=True)
class Normal:
    """A forecast by a normal distribution in each cell; mean and std (L, N, H, W); std None: a single number.

    ``amplitude``: of the noise that makes fields of it at each lead, (L, side, side // 2 + 1); None: the innovations'.
    """

    mean: Tensor
    std: Tensor | None
    amplitude: Tensor | None = None


Forecast = Members | Normal


def warm_of(data: World, box: Tensor) -> Tensor:
    """The warm decile of the training years at each cell, (N, H, W), in standard deviations."""
    return torch.stack([quantile(b.anomalies, WARM, data.parts.val) for b in data.boxes])[box]


def quantile(anomalies: C.Anomalies, share: float, end: int) -> Tensor:
    """A quantile of each cell's first ``end`` anomalies, (H, W), some rows at a time: it needs all times at once."""
    _, height, width = anomalies.shape
    bands = torch.arange(height).split(max(1, 8 * frames.CHUNK // (end * width)))
    found = []
    for rows in bands:
        part, series = anomalies.crop(rows, torch.arange(width)), torch.empty(end, len(rows), width)
        for a, b in frames.chunks(part, end):
            series[a:b] = part[a:b]
        found.append(np.quantile(series.numpy(), share, axis=0))
    return torch.from_numpy(np.concatenate(found)).float()


def fitted_spread(data: World, frames: Tensor, leads: int) -> Tensor:
    """Factors, (leads,), that make damped persistence's spread as large as its errors in forecasts from some frames."""
    area, factors = data.maps("area"), []
    for k in range(leads):
        errors = [b.anomalies[frames + k + 1] - b.damping[k] * b.anomalies[frames] for b in data.boxes]
        power = weighted_mean(torch.stack([e.square().mean(0) for e in errors]), area)
        factors.append(math.sqrt(power / weighted_mean(data.maps("residual")[:, k] ** 2, area)))
    return torch.tensor(factors)


def baselines(data: World, drawn: Ensemble, validation: Tensor | None = None) -> dict[str, Forecast]:
    """The forecasts to compare with, by name, for the starts of some others.

    ``validation``: frames of forecasts to which the spread of one more, FITTED, is fitted.
    """
    leads = len(drawn.target)
    still, zero = drawn.start.expand(leads, *drawn.start.shape), torch.zeros_like(drawn.target)
    damped, residual = damped_persistence(data, drawn)
    found: dict[str, Forecast] = {name: Normal(mean, None) for name, mean in zip(POINT, (still, zero, damped))}
    found[PAST] = Members(climatological(data, drawn))
    found[GAUSSIAN[0]] = Normal(zero, torch.ones_like(zero))
    found[GAUSSIAN[1]] = Normal(damped, residual)
    found[LINEAR] = Normal(*inverse(data, drawn))
    if validation is not None:
        factors = fitted_spread(data, validation, leads)[:, None, None, None]
        found[FITTED] = Normal(damped, factors * residual)
    if data.fields.made is not None:
        ocean = data.fields.made
        modes = torch.stack([ocean.innovation(k) / ocean.forecast_std(k) for k in range(1, leads + 1)]).float()
        found[EXACT] = Normal(*exact(data, drawn), modes)
    return found


def damped_persistence(data: World, drawn: Ensemble) -> tuple[Tensor, Tensor]:
    """Mean and spread of an AR(1) process in each cell, each (L, N, H, W)."""
    leads = len(drawn.target)
    damping, residual = (data.maps(name)[drawn.box, :leads].transpose(0, 1) for name in ("damping", "residual"))
    return damping * drawn.start, residual


def climatological(data: World, drawn: Ensemble) -> Tensor:
    """Fields of the training years whose season is the target's, up to 1/8 of a year, as members (L, M, N, H, W).

    As many at each date, no more than the forecast has, evenly spread over the years.
    """
    leads = torch.arange(1, len(drawn.target) + 1)
    when = torch.from_numpy(season(data.fields.times))
    off = (when[drawn.frame + leads[:, None]][..., None] - when[: data.parts.val] + 0.5) % 1 - 0.5  # (L, N, T)
    near = off.abs() <= NEAR + 1e-9
    count = max(2, min(drawn.members.shape[1], int(near.sum(-1).min())))
    values = drawn.members.new_empty(len(leads), count, *drawn.target.shape[1:])
    for lead in range(len(leads)):
        for n, k in enumerate(drawn.box.tolist()):
            frames = torch.nonzero(near[lead, n]).flatten()
            chosen = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
            values[lead, :, n] = data.boxes[k].anomalies[chosen]
    return values


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
    start = torch.from_numpy(box.region.values[drawn.frame.numpy()]).double() - truth[drawn.frame]
    means, stds = [], []
    for lead in range(1, len(drawn.target) + 1):
        later = drawn.frame + lead
        mean = ocean.forecast_mean(start, lead) + truth[later] - box.cycle[later]
        means.append(mean / box.std)
        stds.append((ocean.forecast_std(lead) / box.std).expand_as(mean))
    return torch.stack(means), torch.stack(stds)


# ---- scores


def cells(forecast: Forecast, target: Tensor) -> dict[str, tuple[int, Tensor]]:
    """What is averaged over the cells of one lead, with the power of the unit that it has; each (N, H, W).

    ``forecast`` is that of the lead: members (M, N, H, W), or mean and std (N, H, W). ``variance`` is the squared error
    that the forecast expects.
    """
    if isinstance(forecast, Members):
        x = forecast.values
        found = {"crps": (1, crps_ensemble(x, target, mean=False)), "mse": (2, scores.squared_error(x, target))}
        found["crps_fair"] = (1, crps_ensemble(x, target, fair=True, mean=False))
        found["mse_fair"] = (2, scores.squared_error(x, target, fair=True))
        return found | {"variance": (2, scores.expected_error(x, target))}  # type: ignore[return-value]
    error = forecast.mean - target
    if forecast.std is None:
        return {"crps": (1, error.abs()), "mse": (2, error.square())}
    crps = crps_gaussian(forecast.mean, forecast.std, target)
    return {"crps": (1, crps), "mse": (2, error.square()), "variance": (2, forecast.std.square())}


def at_lead(forecast: Forecast, lead: int) -> Forecast:
    """The part of a forecast that is for one lead, counted from 0."""
    if isinstance(forecast, Members):
        return Members(forecast.values[lead])
    return Normal(*(None if x is None else x[lead] for x in (forecast.mean, forecast.std, forecast.amplitude)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ground:
    """What all forecasts are scored against.

    Args:
        target: (L, N, H, W), in standard deviations.
        area: weights (N, H, W).
        std: deg C of a standard deviation, (N, H, W).
        warm: limits of the warm event, (N, H, W).
        window: of spectra, (N, H, W).
        amplitude: of noise for normal forecasts.
        members: so many are drawn of these; two at least.
        seed: of ties and of that noise.
    """

    target: Tensor
    area: Tensor
    std: Tensor
    warm: Tensor
    window: Tensor
    amplitude: Tensor
    members: int
    seed: int

    def drawn(self, forecast: Forecast, lead: int) -> Tensor:
        """Members (M, N, H, W) of a forecast at one lead; a normal one's noise has the innovations' spectrum."""
        if isinstance(forecast, Members):
            return forecast.values
        if forecast.std is None:
            return forecast.mean[None]
        draw = generator(self.seed, "normal", lead)
        noise = C.coloured(self.amplitude, (self.members, *forecast.mean.shape), draw)
        return forecast.mean + forecast.std * noise.to(forecast.mean)

    def warm_skill(self, forecast: Forecast, lead: int) -> float:
        """Brier skill of the warm event: 1 - score / score of the constant probability that the training years have."""
        happened, of_members = self.target[lead] > self.warm, 0
        if isinstance(forecast, Members):
            probability, of_members = (forecast.values > self.warm).double().mean(0), len(forecast.values)
        elif forecast.std is None:
            probability = (forecast.mean > self.warm).double()
        else:
            probability = torch.special.ndtr((forecast.mean - self.warm).double() / forecast.std)
        known = scores.brier(torch.full_like(probability, 1 - WARM), happened)
        score = weighted_mean(scores.brier(probability, happened, of_members), self.area)
        return 1 - score / weighted_mean(known, self.area)


def ground(data: World, drawn: Ensemble, seed: int) -> Ground:
    """See :class:`Ground`."""
    box = drawn.box
    windows = torch.stack([C.window(b.ocean, data.fields.torus) for b in data.boxes])[box]
    places = (data.maps("area")[box], data.maps("std")[box], warm_of(data, box), windows)
    return Ground(drawn.target, *places, data.amplitude, DRAWN, seed)


def rows_of(forecast: Forecast, ground: Ground) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[Any]]]:
    """All scores of a forecast by lead: in each unit, and those without one.

    The energy score of members is the fair one, so that ensembles of any size compare; of a single field it is the
    weighted RMS error.
    """
    units: dict[str, dict[str, list[float]]] = {unit: defaultdict(list) for unit in UNITS}
    without: dict[str, list[Any]] = defaultdict(list)
    for lead, target in enumerate(ground.target):
        part = at_lead(forecast, lead)
        found, members = cells(part, target), ground.drawn(part, lead)
        for unit, scale in (("normalised", torch.ones_like(ground.std)), ("deg_C", ground.std)):
            for name, (power, values) in found.items():
                units[unit][name].append(weighted_mean(values.double() * scale**power, ground.area))
            fields = (members * scale, target * scale, ground.area)
            units[unit]["energy"].append(scores.energy_score(*fields, fair=len(members) > 1))
        if "variance" in found:
            variance, error = (units["normalised"][key][-1] for key in ("variance", "mse"))
            without["ssr"].append(math.sqrt(variance / error) if error > 0 else math.inf)
        without["brier_skill"].append(ground.warm_skill(part, lead))
        without["spectrum_ratio"].append(scores.spectrum_ratio(members, target, ground.window).tolist())
        if isinstance(part, Members):
            draw = generator(ground.seed, "ties", lead)
            without["ranks"].append(scores.rank_histogram(members, target, ground.area, draw).tolist())
    return {unit: _with_means(table) for unit, table in units.items()}, _with_means(without)


def evaluate(
    data: World,
    drawn: Ensemble,
    seed: int = 0,
    validation: Tensor | None = None,
    name: str = "flow",
    beside: Mapping[str, Ensemble] | None = None,
) -> dict[str, Any]:
    """All scores by lead, and averaged over leads (name_mean), of forecasts and baselines.

    Args:
        data: the data.
        drawn: the forecasts.
        seed: of ties, and of the members that are drawn of normal baselines for energy scores and spectra.
        validation: see ``baselines``.
        name: of the forecasts' row.
        beside: other networks' forecasts from the same starts, by name.

    Returns:
        ``units`` -> unit -> name -> ``crps``, ``mse`` (of the mean), ``energy`` (fair), and of distributions
        ``variance`` ((M + 1) / M of the members'), of members ``crps_fair`` and ``mse_fair``; ``without_units`` -> name
        -> ``ssr`` (root of variance / mse), ``brier_skill`` (of the warm decile, fair), ``spectrum_ratio`` (lead, waves
        1 to side // 2 of a box), ``ranks`` (lead, members + 1). ``exact_ratio``, where the exact forecast is known:
        CRPS divided by its. ``row``: the name; ``networks``: evaluations a lead and seconds of all that are.
    """
    networks = {name: drawn, **(beside or {})}
    all_of = {key: Members(e.members) for key, e in networks.items()} | baselines(data, drawn, validation)
    truth = ground(data, drawn, seed)
    rows = {key: rows_of(forecast, truth) for key, forecast in all_of.items()}
    costs = {key: {"nfe": e.nfe, "seconds": round(e.seconds, 1)} for key, e in networks.items()}
    result: dict[str, Any] = {"row": name, "networks": costs}
    result["units"] = {unit: {key: in_units[unit] for key, (in_units, _) in rows.items()} for unit in UNITS}
    result["without_units"] = {key: without for key, (_, without) in rows.items()}
    result["box"] = data.amplitude.shape[0]
    if EXACT in rows:
        table: dict[str, Any] = result["units"]["normalised"]
        result["exact_ratio"] = [a / b for a, b in zip(table[name]["crps"], table[EXACT]["crps"], strict=True)]
        result["exact_ratio_mean"] = table[name]["crps_mean"] / table[EXACT]["crps_mean"]
    return result


def _with_means(table: dict[str, list[Any]]) -> dict[str, Any]:
    numbers = {key: values for key, values in table.items() if isinstance(values[0], float)}
    return dict(table) | {f"{key}_mean": sum(values) / len(values) for key, values in numbers.items()}


# ---- words


def outlook(data: World, drawn: Ensemble) -> dict[str, dict[str, float]]:
    """Of forecasts from one frame: by date, the area's mean anomaly and spread in deg C, and its share that is warm."""
    area, std, warm = data.maps("area")[drawn.box], data.maps("std")[drawn.box], warm_of(data, drawn.box)
    found = {}
    for lead, members in enumerate(drawn.members):
        spread = weighted_mean((members * std).double().var(0), area)
        found[str(data.fields.times[int(drawn.frame[0]) + lead + 1])] = {
            "anomaly": weighted_mean(members.mean(0) * std, area),
            "spread": math.sqrt(spread),
            "warm": weighted_mean((members > warm).double().mean(0), area),
        }
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """Tables for the terminal, by lead: CRPS, energy score, spread-skill ratio, skill for the warm decile."""
    units, others = result["units"], result["without_units"]
    ratios = {key: row for key, row in others.items() if "ssr" in row}
    tables = [(f"CRPS, {UNITS[unit]}", units[unit], "crps") for unit in UNITS]
    tables += [("energy score, fair, deg C", units["deg_C"], "energy"), ("spread-skill ratio", ratios, "ssr")]
    tables += [("Brier skill, warm decile", others, "brier_skill")]
    return [line for table in tables for line in _table(*table)]


def _table(title: str, rows: Mapping[str, Any], key: str) -> list[str]:
    width = max(len(text) for text in (title, *rows)) + 2
    leads = len(next(iter(rows.values()))[key])
    head = f"{title:<{width}}" + "".join(f"lead {k:<3}" for k in range(1, leads + 1)) + "mean"
    by_lead = {name: "".join(f"{v:<8.3f}" for v in row[key]) for name, row in rows.items()}
    return ["", head, *(f"{name:<{width}}{by_lead[name]}{row[f'{key}_mean']:.3f}" for name, row in rows.items())]


def below_everywhere(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, bool]:
    """Whether the CRPS is below each baseline's at every lead."""
    table = result["units"]["normalised"]
    own = table[result["row"]]["crps"]
    return {name: all(a < b for a, b in zip(own, table[name]["crps"], strict=True)) for name in names}
