"""Figures: maps of a forecast by lead, skill against lead, rank histogram. matplotlib is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.plots import pyplot, save

if TYPE_CHECKING:
    from sst.forecast import Ensemble, World

LAND = "0.75"
STYLES = {  # of skill curves: colour, line, marker
    "flow": ("black", "-", "o"),
    "persistence": ("#d55e00", "-", "^"),
    "climatology": ("#0072b2", "-", "s"),
    "damped persistence": ("#009e73", "-", "D"),
    "climatology, Gaussian": ("#0072b2", "--", "s"),
    "damped persistence, Gaussian": ("#009e73", "--", "D"),
    "damped persistence, fitted": ("#009e73", ":", "v"),
    "linear inverse model": ("#cc79a7", "--", "^"),
    "exact": ("#cc79a7", ":", "*"),
}


def forecast_maps(path: str | Path, data: World, drawn: Ensemble, index: int = 0, leads: tuple[int, ...] = ()) -> None:
    """Truth, mean, one member, spread and error of a forecast, one column for each lead; anomalies in deg C.

    Args:
        path: picture to write.
        data: the data.
        drawn: forecasts.
        index: which of them.
        leads: columns; empty: the first, the last and two between.
    """
    horizon = len(drawn.target)
    leads = leads or tuple(sorted({1, round(1 + (horizon - 1) / 3), round(1 + 2 * (horizon - 1) / 3), horizon}))
    box = data.boxes[int(drawn.box[index])]
    members, target = (x[:, ..., index, :, :] * box.std for x in (drawn.members, drawn.target))
    mean = members.mean(1)
    rows = {
        "truth": target,
        "ensemble mean": mean,
        "one member": members[:, 0],
        "error of the mean": mean - target,
        "ensemble spread": members.std(1),
    }
    ocean = box.ocean.bool()
    top = round(float(torch.quantile(target[:, ocean].abs(), 0.99)), 1)
    widest = round(float(torch.quantile(rows["ensemble spread"][:, ocean], 0.99)), 2)
    plt = pyplot()
    size = (1.75 * len(leads) + 1.5, 1.75 * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(leads), figsize=size, squeeze=False, layout="constrained")
    images: dict[str, Any] = {}
    for i, (name, fields) in enumerate(rows.items()):
        spread = name == "ensemble spread"
        scale = (
            {"cmap": "viridis", "vmin": 0, "vmax": widest} if spread else {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
        )
        for j, lead in enumerate(leads):
            images[name] = _one_map(axes[i, j], fields[lead - 1], ocean, box.region, scale)
            if i == 0:
                date = data.fields.times[int(drawn.frame[index]) + lead]
                axes[i, j].set_title(f"lead {lead}\n{date}", fontsize=8)
        axes[i, 0].set_ylabel(name, fontsize=9)
    _label_edges(axes, box.region)
    figure.colorbar(images["truth"], ax=axes[:-1], label="anomaly, error (deg C)", shrink=0.6, extend="both")
    figure.colorbar(images["ensemble spread"], ax=axes[-1:], label="spread (deg C)", extend="max")
    start = data.fields.times[int(drawn.frame[index])]
    figure.suptitle(f"{data.fields.name}: {members.shape[1]} members from {start}", fontsize=10)
    save(figure, path)


def _one_map(axis: Any, field: torch.Tensor, ocean: torch.Tensor, region: Any, scale: dict[str, Any]) -> Any:
    """Draw a map with north at the top; land is grey."""
    shown = np.ma.masked_array(field.numpy(), ~ocean.numpy())
    upwards = region.lat[0] <= region.lat[-1]
    axis.set_facecolor(LAND)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(shown, origin="lower" if upwards else "upper", interpolation="nearest", **scale)


def _label_edges(axes: Any, region: Any) -> None:
    """Longitudes below the last row and latitudes right of the first column's label, where the field has places."""
    if np.ptp(region.lat) == 0:
        return
    rows, columns = (np.linspace(0, len(x) - 1, 3).round().astype(int) for x in (region.lat, region.lon))
    for axis in axes[-1]:
        axis.set_xticks(columns, [_degrees(region.lon[k], "E", "W") for k in columns], fontsize=6)
    for axis in axes[:, 0]:
        axis.set_yticks(rows, [_degrees(region.lat[k], "N", "S") for k in rows], fontsize=6)


def _degrees(value: float, positive: str, negative: str) -> str:
    """58N, 122W; longitudes beyond 180 are counted westwards."""
    value = value - 360 if positive == "E" and value > 180 else value
    if value in (0, 180):
        return f"{value:g}"
    return f"{abs(value):g}{positive if value >= 0 else negative}"


def skill_curves(path: str | Path, result: dict[str, Any]) -> None:
    """CRPS, RMSE of the mean and spread-skill ratio against lead, with the baselines."""
    plt = pyplot()
    table, leads = result["units"]["deg_C"], range(1, len(result["ssr"]) + 1)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    for name, scores in table.items():
        colour, line, marker = STYLES[name]
        style = {"color": colour, "ls": line, "marker": marker, "ms": 4, "lw": 2.2 if name == "flow" else 1.2}
        label = f"flow, {result['members']} members" if name == "flow" else name
        axes[0].plot(leads, scores["crps"], label=label, **style)
        if not name.endswith(("Gaussian", "fitted")):  # they have the mean of the one without
            axes[1].plot(leads, np.sqrt(scores["mse"]), **style)
    axes[2].plot(leads, result["ssr"], color="black", marker="o", ms=4, lw=2.2)
    axes[2].axhline(1, color="0.5", lw=1)
    axes[2].axhspan(0.8, 1.2, color="0.93", zorder=0)
    axes[2].set_ylim(min(0.5, *result["ssr"]), max(1.5, *result["ssr"]))
    for axis, label in zip(axes, ("CRPS (deg C)", "RMSE of the mean (deg C)", "spread-skill ratio"), strict=True):
        axis.set(xlabel="lead (frames)", ylabel=label)
        axis.set_xticks(list(leads))
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    save(figure, path)


def ranks(path: str | Path, result: dict[str, Any]) -> None:
    """Rank histogram over all leads; flat is reliable."""
    plt = pyplot()
    shares = np.array(result["ranks"])
    figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
    axis.bar(range(len(shares)), shares * len(shares), width=1.0, color="#0072b2", edgecolor="white", lw=0.3)
    axis.axhline(1, color="black", lw=1, ls="--", label="reliable")
    axis.set(xlabel="members below the truth", ylabel="share x (members + 1)", xlim=(-0.5, len(shares) - 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    save(figure, path)
