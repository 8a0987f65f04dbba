"""What is known before a network is trained: seasonal cycle, scales, persistence, spectrum; all of the training years.

A network sees and forecasts anomalies: temperature less the seasonal cycle, divided by the standard deviation of each
cell. No trend is removed. A trend fitted to ten years would mostly be one El Nino, and what is left of the warming when
the test years come is in the state that a forecast starts from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.series import windows
from sst.data import Fields, Region
from sst.frames import Frames, chunks
from sst.synthetic import filtered, mean_power, season

FLOOR = 0.25  # least standard deviation, as a share of the median one: cells under ice hardly change
RIDGE = 0.02  # of the persistence's regression, as a share of the variance
LEAST_OCEAN = 0.2  # share of ocean that a box needs
SHORE = 2  # cells; over twice as many the spectrum's weights rise from a coast


@dataclass(frozen=True)
class Split:
    """First frames of the validation and of the test years, and the number of frames."""

    val: int
    test: int
    end: int


def split(fields: Fields, val_years: float, test_years: float) -> Split:
    """Where the validation and test years begin, by the calendar.

    Raises:
        ValueError: nothing, or less than two years, is left to train on.
    """
    last = fields.times[-1]
    end = _years_before(last, -1 / 12) if fields.monthly else last + np.timedelta64(fields.step, "D")
    test = int(np.searchsorted(fields.times, _years_before(end, test_years)))
    val = int(np.searchsorted(fields.times, _years_before(end, test_years + val_years)))
    if val < 1.95 * fields.per_year or not val < test < len(fields.times):
        years = len(fields.times) / fields.per_year
        raise ValueError(
            f"{fields.name} has {len(fields.times)} frames, {years:.1f} years: {val} frames "
            f"are left before --val_years {val_years:g} and --test_years {test_years:g}; training needs two years"
        )
    return Split(val, test, len(fields.times))


def last_years(fields: Fields, parts: Split, years: float) -> tuple[Fields, Split]:
    """Without the frames that are earlier than so many years before the validation years.

    Raises:
        ValueError: there are fewer years before them.
    """
    first = _years_before(fields.times[parts.val], years)
    if fields.times[0] > first + fields.half:
        begin, val = fields.times[[0, parts.val]]
        there = (val - begin).astype(int) / 365.2425
        raise ValueError(
            f"--train_years {years:g}: {fields.name} begins on {begin}, with {there:.1f} years before "
            f"its validation years from {val}: give no more"
        )
    k = int(np.searchsorted(fields.times, first - fields.half))
    return fields.between(k, parts.end), Split(parts.val - k, parts.test - k, parts.end - k)


def _years_before(end: np.datetime64, years: float) -> np.datetime64:
    """The date so many years before another."""
    month = end.astype("datetime64[M]")
    day = end - month.astype("datetime64[D]")
    return (month - np.timedelta64(round(12 * years), "M")).astype("datetime64[D]") + day


def seasonal_basis(times: np.ndarray, harmonics: int) -> Tensor:
    """1, and cosine and sine of the first harmonics of the year, float64, shape (T, 1 + 2 harmonics)."""
    angle = 2 * math.pi * torch.from_numpy(season(times))[:, None] * torch.arange(1, harmonics + 1)
    return torch.cat([torch.ones(len(times), 1, dtype=torch.float64), angle.cos(), angle.sin()], 1)


@dataclass(frozen=True)
class Cycle:
    """Seasonal cycle in deg C, worked out for the frames that are asked for: ``basis`` (T, K), ``waves`` (K, H, W)."""

    basis: Tensor
    waves: Tensor

    def exact(self, frames: Any) -> Tensor:
        """Of some frames (...), float64, (..., H, W). A sum term by term: it does not depend on what else is asked."""
        basis = self.basis[frames][..., None, None]
        total = basis[..., 0, :, :] * self.waves[0]
        for k in range(1, len(self.waves)):
            total += basis[..., k, :, :] * self.waves[k]
        return total

    def __getitem__(self, frames: Any) -> Tensor:
        return self.exact(frames).float()


@dataclass(frozen=True)
class Anomalies:
    """Anomalies, float32, made of the temperatures that are asked for: an index gives what that of (T, H, W) would.

    Args:
        values: temperatures.
        cycle: is taken from them.
        std: (H, W), float64, deg C, by which they are divided.
        ocean: (H, W), bool; elsewhere they are 0.
    """

    values: Frames
    cycle: Cycle
    std: Tensor
    ocean: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W)."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    @property
    def store(self) -> Any:
        """What is read, for ``frames.chunks``."""
        return self.values.store

    def exact(self, frames: Any) -> Tensor:
        """Of some frames (...), float64, (..., H, W)."""
        off = torch.from_numpy(self.values[frames]).double() - self.cycle.exact(frames)
        return torch.where(self.ocean, off, 0.0) / self.std

    def __getitem__(self, key: Any) -> Tensor:
        first, *others = key if isinstance(key, tuple) else (key,)
        found = self.exact(first).float()
        return found[(*[slice(None)] * (found.ndim - 2), *others)] if others else found

    def crop(self, rows: Tensor, columns: Tensor) -> Anomalies:
        """Of some rows and columns."""
        waves, std, ocean = (x[..., rows, :][..., columns] for x in (self.cycle.waves, self.std, self.ocean))
        return Anomalies(self.values.crop(rows.numpy(), columns.numpy()), Cycle(self.cycle.basis, waves), std, ocean)


@dataclass(frozen=True)
class Climate:
    """Anomalies of a region, and the maps that belong to them.

    Args:
        region: the region.
        anomalies: (T, H, W), in standard deviations; 0 on land.
        ocean: (H, W), 1 on water, 0 on land.
        area: (H, W), ocean times the cosine of the latitude: the weights of all scores.
        std: (H, W), deg C; 1 on land.
        damping: regression of the anomaly h frames later on the present one, (horizon, H, W).
        residual: standard deviation of what that leaves, (horizon, H, W), in standard deviations; 1 on land.
    """

    region: Region
    anomalies: Anomalies
    ocean: Tensor
    area: Tensor
    std: Tensor
    damping: Tensor
    residual: Tensor

    @property
    def cycle(self) -> Cycle:
        """Seasonal cycle, (T, H, W), deg C."""
        return self.anomalies.cycle

    def crop(self, rows: Tensor, columns: Tensor) -> Climate:
        """The same of some rows and columns, which may go around the globe."""

        def cut(x: Tensor) -> Tensor:
            return x[..., rows, :][..., columns]

        r, i, j = self.region, rows.numpy(), columns.numpy()
        part = Region(r.name, Frames.of(r.values).crop(i, j), r.ocean[i][:, j], r.lat[i], r.lon[j], False)
        maps = (self.ocean, self.area, self.std, self.damping, self.residual)
        return Climate(part, self.anomalies.crop(rows, columns), *map(cut, maps))


def fit(
    region: Region, times: np.ndarray, n_train: int, harmonics: int, horizon: int, breaks: Sequence[int] = ()
) -> Climate:
    """Estimate a region's climate from its first ``n_train`` frames; ``breaks`` as ``Fields`` has them.

    Three passes over them, a chunk at a time.

    Raises:
        ValueError: the field does not change in time.
    """
    values, ocean = Frames.of(region.values), torch.from_numpy(region.ocean)
    basis = seasonal_basis(times, harmonics)
    inverse = torch.linalg.pinv(basis[:n_train])  # least squares: waves = inverse @ values
    waves = torch.zeros(basis.shape[1], *ocean.shape, dtype=torch.float64)
    for a, b in chunks(values, n_train):
        waves += torch.tensordot(inverse[:, a:b], torch.from_numpy(values[a:b]).double(), 1)
    plain = Anomalies(values, Cycle(basis, waves), torch.ones((), dtype=torch.float64), ocean)  # deg C
    std = torch.zeros(ocean.shape, dtype=torch.float64)
    for a, b in chunks(values, n_train):
        std += plain.exact(slice(a, b)).square().sum(0)
    std = (std / n_train).sqrt()
    typical = std[ocean].median()
    if not typical > 1e-6:
        raise ValueError(f"{region.name} does not change in the training years: is it the right variable?")
    std = torch.where(ocean, std.clamp(min=FLOOR * typical.item()), 1.0)
    anomalies = replace(plain, std=std)
    damping, residual = persistence(anomalies, horizon, breaks, n_train)
    residual = torch.where(ocean, residual, 1.0)
    area = ocean * torch.from_numpy(np.cos(np.deg2rad(region.lat)))[:, None].clamp(min=0)
    return Climate(region, anomalies, *(x.float() for x in (ocean, area, std, damping, residual)))


def origins(begin: int, end: int, past: int, horizon: int, breaks: Sequence[int] = ()) -> Tensor:
    """Frames that have ``past`` - 1 frames before and ``horizon`` after them in [begin, end), without a break between.

    Raises:
        ValueError: there are none.
    """
    edges = [begin, *(k for k in breaks if begin < k < end), end]
    index = windows([torch.empty(b - a) for a, b in pairwise(edges)], past, horizon)
    return torch.tensor(edges)[index[:, 0]] + index[:, 1] + past - 1


def pairs(
    x: Any, leads: int, breaks: Sequence[int] = (), end: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Frames of (T, ...) and those 1 to ``leads`` later, without pairs over a break, in the first ``end`` frames.

    Chunk by chunk: lead, now, later.
    """
    end = len(x) if end is None else end
    piece = torch.from_numpy(np.searchsorted(breaks, np.arange(end), "right"))
    for a, b in chunks(x, end):
        block = x[a : min(b + leads, end)]
        for lead in range(1, leads + 1):
            now = torch.arange(a, max(a, min(b, end - lead)))
            now = now[piece[now] == piece[now + lead]] - a
            yield lead, block[now], block[now + lead]


def persistence(
    anomalies: Any, horizon: int, breaks: Sequence[int] = (), end: int | None = None
) -> tuple[Tensor, Tensor]:
    """Damping and residual standard deviation at leads 1 to ``horizon``, each (horizon, H, W), from (T, H, W)."""
    moments = torch.zeros(horizon, 3, *anomalies[0].shape, dtype=torch.float64)
    counts = torch.zeros(horizon, 1, 1, 1)
    for lead, now, later in pairs(anomalies, horizon, breaks, end):
        now, later = now.double(), later.double()
        counts[lead - 1] += len(now)
        for moment, product in zip(moments[lead - 1], (now.square(), now * later, later.square())):
            moment += product.sum(0)
    power, product, last = (moments / counts).unbind(1)
    damping = (product / (power * (1 + RIDGE)).clamp(min=1e-12)).clamp(-1, 1)
    left = last - 2 * damping * product + damping.square() * power  # the mean of (later - damping now)^2
    return damping, left.clamp(min=0).sqrt().clamp(min=0.05)


def boxes(climate: Climate, side: int) -> list[Climate]:
    """Fixed boxes for evaluation: side by side around the globe, in the rows nearest to the equator.

    Raises:
        ValueError: the region is smaller than a box, or all land.
    """
    height, width = climate.ocean.shape
    if min(height, width) < side:
        raise ValueError(
            f"{climate.region.name} has {height} x {width} cells: --box {side} is larger; give a smaller one"
        )
    if (height, width) == (side, side):
        return [climate]
    middle = [abs(float(climate.region.lat[k : k + side].mean())) for k in range(height - side + 1)]
    rows = torch.arange(side) + int(np.argmin(middle))
    parts = [climate.crop(rows, torch.arange(side) + k * side) for k in range(width // side)]
    kept = [part for part in parts if part.ocean.mean() >= LEAST_OCEAN]
    if not kept:
        raise ValueError(
            f"{climate.region.name}: no box of {side} x {side} cells is a fifth ocean: give a smaller --box"
        )
    return kept


def window(ocean: Tensor, torus: bool) -> Tensor:
    """Weights (H, W) through which a box is seen when its spectrum is estimated.

    On a torus they are the ocean. Elsewhere opposite edges do not fit, and a jump, there or at a coast, has power at
    all wavenumbers, most along the axes: so the weights fall to zero towards the edges (Hann) and the coasts.
    """
    if torus:
        return ocean.double()
    edges = [torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n).square() for n in ocean.shape]
    land = 1 - ocean.double()[None]
    open_sea = 1 - F.max_pool2d(land, 2 * SHORE + 1, 1, SHORE)
    smooth = F.avg_pool2d(open_sea, 2 * SHORE + 1, 1, SHORE)[0]
    return edges[0][:, None] * edges[1] * (smooth if open_sea.any() else ocean)


def spectrum(
    climates: list[Climate], n_train: int, side: int, colour: bool, torus: bool, breaks: Sequence[int] = ()
) -> Tensor:
    """Amplitude of the filter that makes noise like the one-step innovations; shape (side, side // 2 + 1), variance 1.

    Innovations are (a' - damping a) / residual of the training frames, on boxes. Without ``colour`` it is 1: white.
    """
    if not colour:
        return torch.ones(side, side // 2 + 1)
    power, seen = torch.zeros(side, side // 2 + 1, dtype=torch.float64), 0.0
    for climate in climates:
        for box in boxes(climate, side):
            weight, count, total = window(box.ocean, torus), 0, torch.zeros_like(power)
            for _, now, later in pairs(box.anomalies, 1, breaks, n_train):
                innovation = (later - box.damping[0] * now) / box.residual[0] * weight
                total, count = total + torch.fft.rfft2(innovation).abs().square().sum(0), count + len(now)
            power += total / count
            seen += weight.square().sum().item()
    # Power over what the weights let through adds up to the innovations' variance, about 1; noise is given exactly 1.
    return (power / seen / mean_power(power / seen, side)).sqrt().float()


def coloured(amplitude: Tensor, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Noise of that amplitude, unit variance, (..., side, side)."""
    return filtered(amplitude, torch.randn(shape, generator=draw))


def static_maps(climate: Climate) -> Tensor:
    """What a network sees of the place, (6, H, W): ocean, latitude, longitude (twice), damping, residual."""
    lat, lon = (torch.from_numpy(np.deg2rad(x)).float() for x in (climate.region.lat, climate.region.lon))
    one = torch.ones_like(climate.ocean)
    places = [lat.sin()[:, None] * one, lon.cos()[None] * one, lon.sin()[None] * one]
    return torch.stack([climate.ocean, *places, climate.damping[0], climate.residual[0]])


def season_of(times: np.ndarray) -> Tensor:
    """Cosine and sine of the time of year, float32, (T, 2)."""
    angle = 2 * math.pi * torch.from_numpy(season(times))
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def month_of(times: np.ndarray) -> Tensor:
    """Months 0 to 11, (T,)."""
    return torch.from_numpy(times.astype("datetime64[M]").astype(int) % 12)


def starts(first: int, end: int, past: int, horizon: int, count: int, breaks: Sequence[int] = ()) -> Tensor:
    """Frames from which forecasts start whose targets lie in [first, end); ``count`` of them, evenly spread; 0: all.

    Raises:
        ValueError: the years are shorter than a forecast.
    """
    frames = origins(max(0, first - past), end, past, horizon, breaks)
    if not count or count >= len(frames):
        return frames
    return frames[torch.linspace(0, len(frames) - 1, count).round().long()]
