"""A field whose forecast is known exactly: advection and diffusion of temperature anomalies on a torus, with seasons.

Each Fourier mode of the anomaly is an AR(1) process, a' = lambda a + noise. A uniform current turns its phase,
diffusion and exchange with the atmosphere damp it, |lambda| < 1, weather forces it. Everything is linear and Gaussian:
from a known state the anomaly h frames later has the mean lambda^h a, and at every cell the same standard deviation.
Source: Hasselmann 1976 (Tellus 28) for the damped response of the sea to weather; Frankignoul and Reynolds 1983 for the
current.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.runtime import generator
from sst.data import Fields, Region


@dataclass(frozen=True)
class Ocean:
    """Parameters of the field, in cells and frames; a year has 73 frames of five days.

    Args:
        side: cells of a side.
        years: length; the test year is the last, the validation year the one before.
        std: standard deviation of the anomaly, deg C.
        scale: wavenumber (waves on a side) beyond which the spectrum falls.
        slope: power of its fall.
        current: cells a frame, along rows and columns.
        diffusion: cells squared a frame.
        damping: rate of the exchange with the atmosphere, 1 / frame.
        seed: of the weather.
    """

    side: int = 60
    years: int = 12
    std: float = 1.0
    scale: float = 3.0
    slope: float = 2.0
    current: tuple[float, float] = (0.4, 1.1)
    diffusion: float = 0.6
    damping: float = 0.04
    seed: int = 0

    def factor(self) -> Tensor:
        """lambda of each mode, complex128, shape (side, side // 2 + 1)."""
        rows, columns = self._waves()
        # A phase at the Nyquist wavenumber would make the field complex.
        along, across = (torch.where(q.abs() < math.pi - 1e-9, q, 0) for q in (rows, columns))
        turn = self.current[0] * along + self.current[1] * across
        decay = self.damping + self.diffusion * (rows**2 + columns**2)
        return torch.exp(torch.complex(-decay, -turn))

    def amplitude(self) -> Tensor:
        """Of a filter that turns white noise into the stationary anomaly, shape (side, side // 2 + 1)."""
        rows, columns = self._waves()
        waves = (rows**2 + columns**2).sqrt() * self.side / (2 * math.pi)
        spectrum = (1 + (waves / self.scale) ** 2) ** (-self.slope)
        spectrum[0, 0] = 0  # the mean over the torus belongs to the seasons
        return (spectrum * self.std**2 / mean_power(spectrum, self.side)).sqrt()

    def innovation(self, leads: int) -> Tensor:
        """Amplitude of what ``leads`` frames of weather add."""
        return self.amplitude() * (1 - self.factor().abs() ** (2 * leads)).clamp(min=0).sqrt()

    def forecast_std(self, leads: int) -> float:
        """Standard deviation of the exact forecast at every cell, deg C."""
        return math.sqrt(mean_power(self.innovation(leads).square(), self.side))

    def forecast_mean(self, anomaly: Tensor, leads: int) -> Tensor:
        """Mean of the exact forecast from known anomalies, (..., side, side), deg C."""
        modes = torch.fft.rfft2(anomaly.double())
        return torch.fft.irfft2(modes * self.factor() ** leads, s=(self.side, self.side))

    def climatology(self, times: np.ndarray) -> Tensor:
        """The true seasonal cycle, (T, side, side), deg C: warmer at the first rows, stronger at the last ones."""
        phase = torch.from_numpy(season(times))[:, None, None]
        row = torch.linspace(0, 2 * math.pi, self.side + 1, dtype=torch.float64)[:-1][None, :, None]
        column = torch.linspace(0, 2 * math.pi, self.side + 1, dtype=torch.float64)[:-1][None, None]
        cycle = (3 - row.cos()) * torch.cos(2 * math.pi * phase - 0.3 * column.sin())
        return 18 + 6 * row.cos() + 0.8 * cycle

    def _waves(self) -> tuple[Tensor, Tensor]:
        """Angular wavenumbers along rows and columns."""
        rows = 2 * math.pi * torch.fft.fftfreq(self.side, dtype=torch.float64)[:, None]
        columns = 2 * math.pi * torch.fft.rfftfreq(self.side, dtype=torch.float64)[None]
        return rows, columns


def mean_power(spectrum: Tensor, side: int) -> float:
    """Variance at a cell of white noise filtered to a power spectrum over (side, side // 2 + 1) modes."""
    twice = torch.full((spectrum.shape[1],), 2.0, dtype=spectrum.dtype)
    twice[0] = 1
    if side % 2 == 0:
        twice[-1] = 1
    return ((spectrum * twice).sum() / side**2).item()


def season(times: np.ndarray) -> np.ndarray:
    """Share of the year that has passed at each date, in [0, 1)."""
    years = times.astype("datetime64[Y]")
    return (times - years.astype("datetime64[D]")).astype(float) / 365.25


def filtered(amplitude: Tensor, white: Tensor) -> Tensor:
    """White noise (..., H, W) with its modes multiplied by an amplitude (H, W // 2 + 1)."""
    return torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=white.shape[-2:])


def make(ocean: Ocean) -> Fields:
    """The field over its years, from a stationary start; half a second for 12 years of 60 x 60."""
    n = 73 * ocean.years
    times = np.datetime64("2009-01-01") + np.array([365 * (k // 73) + 5 * (k % 73) for k in range(n)])
    draw = generator(ocean.seed, "weather")
    size = (ocean.side, ocean.side)
    factor, forcing = ocean.factor(), ocean.innovation(1)
    modes = torch.fft.rfft2(torch.randn(size, generator=draw, dtype=torch.float64)) * ocean.amplitude()
    values = ocean.climatology(times)
    for k in range(n):
        values[k] += torch.fft.irfft2(modes, s=size)
        modes = factor * modes + torch.fft.rfft2(torch.randn(size, generator=draw, dtype=torch.float64)) * forcing
    region = Region(
        "synthetic", values.float().numpy(), np.ones(size, bool), np.zeros(ocean.side), np.zeros(ocean.side)
    )
    return Fields("synthetic", [region], times, torus=True, made=ocean)
