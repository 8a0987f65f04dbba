"""Pictures of attractors, forecasts, free energies and traces; made without pyplot, so they need no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import plots

save = partial(plots.save, dpi=120, crop=False)
REAL, MODEL = "#2b2d42", "#d1495b"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# ---- chaotic systems


def attractors(real: np.ndarray, made: np.ndarray, names: Sequence[str], path: Path, frames: int = 1500) -> None:
    """A real and a made trajectory, (T, 3), in space, side by side on the same axes."""
    figure = _figure(9, 4)
    low, high = real.min(0), real.max(0)
    for i, (title, x, colour) in enumerate((("integrator", real, REAL), ("model", made, MODEL))):
        axis = figure.add_subplot(1, 2, i + 1, projection="3d")
        smooth = _smooth(x[:frames])
        axis.plot(*smooth.T, lw=0.35, color=colour)
        axis.set(xlabel=names[0], ylabel=names[1], zlabel=names[2])
        axis.set_title(title, y=0.95)
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axis.view_init(elev=22, azim=-60)
        axis.set_box_aspect((1, 1, 0.9), zoom=0.95)
    save(figure, path, dpi=100)


def _smooth(x: np.ndarray, times: int = 5) -> np.ndarray:
    """A cubic spline through the frames, for the eye: frames are too far apart for straight lines."""
    from scipy.interpolate import CubicSpline

    return CubicSpline(np.arange(len(x)), x)(np.linspace(0, len(x) - 1, times * (len(x) - 1) + 1))


def forecast(
    truth: np.ndarray, made: np.ndarray, names: Sequence[str], step: float, valid: float, folder: Path, name: str
) -> None:
    """Truth and forecast (T, 3) from one exact state against Lyapunov times."""
    figure = _figure(8, 4.6)
    axes = figure.subplots(3, 1, sharex=True)
    times = step * np.arange(1, len(truth) + 1)
    for axis, label, x, y in zip(axes, names, truth.T, made.T):
        axis.plot(times, x, color=REAL, lw=1.4, label="truth")
        axis.plot(times, y, color=MODEL, lw=1.1, ls="--", label="forecast")
        axis.axvline(valid, color="grey", lw=0.9, ls=":", label=f"valid for {valid:.1f}")
        axis.set_ylabel(label)
        axis.margins(x=0)
    axes[-1].set_xlabel("Lyapunov times")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save(figure, folder / f"{name}_forecast.png")


def statistics(
    real: np.ndarray, made: np.ndarray, maxima: Mapping[str, np.ndarray], names: Sequence[str], top: int, path: Path
) -> None:
    """Marginal densities of three coordinates, (B, T, 3), and the map of successive maxima of one of them, ``top``."""
    figure = _figure(11, 3)
    axes = figure.subplots(1, 4)
    for i, axis in enumerate(axes[:3]):
        a, b = real[..., i].ravel(), made[..., i].ravel()
        edges = np.linspace(a.min(), a.max(), 60)
        axis.hist(a, edges, density=True, color=REAL, alpha=0.35, label="integrator")
        axis.hist(b, edges, density=True, histtype="step", color=MODEL, lw=1.2, label="model")
        axis.set(xlabel=names[i], ylabel="density" if i == 0 else "", yticks=[])
    for name, colour, size in (("real", REAL, 5.0), ("made", MODEL, 1.5)):
        axes[3].scatter(*maxima[name].T, s=size, color=colour, linewidths=0, rasterized=True)
    axes[3].set(xlabel=f"maximum of {names[top]}", ylabel="the next maximum", aspect="equal")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def ensembles(drawn: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Forecasts from one state of some systems.

    Args:
        drawn: Name, Lyapunov times (T,), truth (T,), echo-state network (T,), members (B, T) of each.
        path: Picture to write.
    """
    figure = _figure(9, 2.1 * len(drawn) + 0.5)
    axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axis, (name, times, truth, echo, members) in zip(axes, drawn):
        fine = _smooth(times)
        drawings = axis.plot(fine, _smooth(members.T), color=MODEL, lw=0.6, alpha=0.45)
        drawings[0].set_label(f"flow from noise, {len(members)} members")
        axis.plot(fine, _smooth(truth), color=REAL, lw=2.2, label="truth")
        axis.plot(fine, _smooth(echo), color="#ffb703", lw=1.2, ls="--", label="echo-state network")
        low, high = truth.min(), truth.max()
        axis.set(ylabel="x", xlim=(0, times[-1]), ylim=(low - 0.25 * (high - low), high + 0.25 * (high - low)))
        axis.set_title(name, loc="left", fontsize=10)
    axes[-1].set_xlabel("Lyapunov times")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save(figure, path, dpi=100)


# ---- dihedrals


def free_energy(surfaces: Mapping[str, np.ndarray], path: Path, most: float = 7.0) -> None:
    """Free energies of (phi, psi) side by side on one colour scale, white where never visited.

    Args:
        surfaces: Title -> kT of each cell (bins of phi, bins of psi), minimum 0.
        path: Picture to write.
        most: End of the scale in kT.
    """
    figure = _figure(3.4 * len(surfaces) + 0.9, 3.6)
    axes = figure.subplots(1, len(surfaces), sharey=True, squeeze=False)[0]
    levels = np.arange(1, most)
    for axis, (title, surface) in zip(axes, surfaces.items()):
        box: dict[str, Any] = {"extent": (-180, 180, -180, 180), "origin": "lower"}
        drawn = axis.imshow(surface.T, vmin=0, vmax=most, cmap="viridis", interpolation="nearest", **box)
        axis.contour(surface.T, levels, colors="white", linewidths=0.4, **box)
        axis.set(title=title, xlabel="$\\phi$ (degrees)", xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    axes[0].set_ylabel("$\\psi$ (degrees)")
    figure.colorbar(drawn, ax=axes, label="free energy (kT)", shrink=0.9, pad=0.015, extend="max")
    save(figure, path)


def traces(pictures: dict[str, Any], lag: float, path: Path, residues: int = 3) -> None:
    """Forecasts of an ensemble beside the truth for some residues (left), and long runs beside the dynamics (right)."""
    residues = min(residues, pictures["real"][0].shape[1])
    figure = _figure(11, 1.6 * residues + 1)
    axes = figure.subplots(residues, 3, width_ratios=(1, 1.3, 1.3), sharey=True, squeeze=False)
    made, truth = np.rad2deg(pictures["forecast"]), np.rad2deg(pictures["truth"])
    real, model = np.rad2deg(pictures["real"][0]), np.rad2deg(pictures["made"][0])
    count = real.shape[1]
    for row, residue in enumerate(np.linspace(0, count - 1, residues).round().astype(int)):
        left, middle, right = axes[row]
        column = 2 * residue + 1  # psi, which tells helix from strand
        times = lag * np.arange(1, len(truth) + 1)
        for member in made[:, :, column].T:
            left.plot(times, _broken(member), color=MODEL, lw=0.5, alpha=0.4)
        left.plot(times, _broken(truth[:, column]), color=REAL, lw=1.6)
        for axis, x, colour in ((middle, real, REAL), (right, model, MODEL)):
            long = lag * np.arange(len(x)) / 1000
            axis.plot(long, x[:, residue, 1], ".", ms=0.8, color=colour, rasterized=True)
            axis.margins(x=0)
        left.set_ylabel(f"$\\psi_{{{residue + 1}}}$ (degrees)")
        left.set(ylim=(-180, 180), yticks=range(-180, 181, 90))
    for axis, title, label in zip(
        axes[0], ("forecast: truth and members", "held-out dynamics", "model"), ("ps", "ns", "ns")
    ):
        axis.set_title(title)
        axes[-1][list(axes[0]).index(axis)].set_xlabel(f"time ({label})")
    save(figure, path, dpi=95)


def _broken(angles: np.ndarray) -> np.ndarray:
    """Degrees with a gap where a line would cross the picture from one end of the circle to the other."""
    return np.where(np.abs(np.diff(angles, append=angles[-1])) > 180, np.nan, angles)


def slow(pictures: dict[str, Any], lag: float, path: Path) -> None:
    """Autocorrelation of phi and psi against time, and the share of helix along the runs: dynamics and model."""
    from timeseries_examples.ensemble import mean_autocorrelation
    from timeseries_examples.measures import helix_share

    figure = _figure(11, 3)
    axes = figure.subplots(1, 3)
    real, made = pictures["real"], list(pictures["made"])
    lags = min(2000, min(map(len, [*real, *made])) // 4)
    for i, (axis, name) in enumerate(zip(axes, ("\\phi", "\\psi"))):
        for parts, colour, label in ((real, REAL, "dynamics"), (made, MODEL, "model")):
            axis.plot(lag * np.arange(lags + 1), mean_autocorrelation(parts, i, lags), color=colour, label=label)
        axis.set(xscale="log", xlabel="time (ps)", ylabel=f"autocorrelation of ${name}$", xlim=(lag, lag * lags))
        axis.axhline(0, color="grey", lw=0.6)
    axes[0].legend(frameon=False)
    for parts, colour in ((made, MODEL), (real, REAL)):
        for x in parts:
            width = max(1, len(x) // 80)
            share = helix_share(x)[: len(x) // width * width].reshape(-1, width).mean(1)
            axes[2].plot(lag * width * (np.arange(len(share)) + 0.5) / 1000, share, color=colour, lw=1, alpha=0.6)
    what = "of residues in a helix" if real[0].shape[1] > 2 else "at a helix's angles"  # a helix takes three
    axes[2].set(xlabel="time (ns)", ylabel=f"share {what}", ylim=(0, 1))
    save(figure, path)
