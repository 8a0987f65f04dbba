"""Figures: maps of a forecast by lead, and the page of its verification. matplotlib is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.plots import pyplot, save
from sst import skill

if TYPE_CHECKING:
    from sst.forecast import Ensemble, World

LAND = "0.75"
NETWORKS = ("black", "#d81b60", "#8e6c00", "#5e35b1")  # colours of the first, second, ... network
STYLES = {  # of other curves: colour, line, marker
    "persistence": ("#d55e00", "-", "^"),
    "climatology": ("#0072b2", "-", "s"),
    "damped persistence": ("#009e73", "-", "D"),
    "climatological ensemble": ("#56b4e9", "-", "s"),
    "climatology, Gaussian": ("#0072b2", "--", "s"),
    "damped persistence, Gaussian": ("#009e73", "--", "D"),
    "damped persistence, fitted": ("#009e73", ":", "v"),
    "linear inverse model": ("#cc79a7", "--", "^"),
    "exact": ("#cc79a7", ":", "*"),
}


def forecast_maps(path: str | Path, data: World, drawn: Ensemble, index: int = 0, leads: tuple[int, ...] = ()) -> None:
    """Truth, mean, one member, spread and error of a forecast, one column for each lead; anomalies in deg C.

    Truth and error are left out where the truth is not known.

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
    if not target.isfinite().all():  # nobody knows it yet
        rows = {name: rows[name] for name in ("ensemble mean", "one member", "ensemble spread")}
    ocean = box.ocean.bool()
    top = round(float(torch.quantile(rows[next(iter(rows))][:, ocean].abs(), 0.99)), 1) or 0.1
    widest = round(float(torch.quantile(rows["ensemble spread"][:, ocean], 0.99)), 2)
    plt = pyplot()
    size = (1.75 * len(leads) + 1.5, 1.75 * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(leads), figsize=size, squeeze=False, layout="constrained")
    images: dict[str, Any] = {}
    for i, (name, fields) in enumerate(rows.items()):
        scale = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
        if name == "ensemble spread":
            scale = {"cmap": "viridis", "vmin": 0, "vmax": widest}
        for j, lead in enumerate(leads):
            images[name] = _one_map(axes[i, j], fields[lead - 1], ocean, box.region, scale)
            if i == 0:
                date = data.fields.times[int(drawn.frame[index]) + lead]
                axes[i, j].set_title(f"lead {lead}\n{date}", fontsize=8)
        axes[i, 0].set_ylabel(name, fontsize=9)
    _label_edges(axes, box.region)
    figure.colorbar(images["ensemble mean"], ax=axes[:-1], label="anomaly, error (deg C)", shrink=0.6, extend="both")
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
    """Longitudes below the last row and latitudes left of the first column, where the field has places."""
    if np.ptp(region.lat):
        for axis in axes[-1]:
            _ticks(axis, "x", region.lon, 3)
        for axis in axes[:, 0]:
            _ticks(axis, "y", region.lat, 3)


def _ticks(axis: Any, side: str, places: np.ndarray, count: int) -> None:
    """So many longitudes (side x) or latitudes (y) at their cells."""
    cells, ways = np.linspace(0, len(places) - 1, count).round().astype(int), "EW" if side == "x" else "NS"
    set_ticks = axis.set_xticks if side == "x" else axis.set_yticks
    set_ticks(cells, [_degrees(float(places[k]), *ways) for k in cells], fontsize=6)


def _degrees(value: float, positive: str, negative: str) -> str:
    """58N, 122W; longitudes beyond 180 are counted westwards."""
    value = value - 360 if positive == "E" and value > 180 else value
    if value in (0, 180):
        return f"{value:g}"
    return f"{abs(value):g}{positive if value >= 0 else negative}"


# ---- the page of the verification


def verification(path: str | Path, result: dict[str, Any], data: World, drawn: Ensemble) -> None:
    """One page: scores by lead, reliability, spectra, and maps of skill and of spread over error.

    Args:
        path: picture to write.
        result: of ``skill.evaluate``.
        data: the data.
        drawn: the forecasts of the first row, for the maps.
    """
    plt = pyplot()
    height, width = _mosaic(data, drawn, drawn.target[0]).shape
    low = 2 * (0.5 + min(3.5, 12 / len(_three(len(drawn.target))) * height / width))  # inches of the maps
    figure = plt.figure(figsize=(14, 7.4 + low), layout="constrained")
    curves, places = figure.subfigures(2, 1, height_ratios=(7.4, low))
    axes = curves.subplots(2, 4)
    table, others = result["units"]["deg_C"], result["without_units"]
    _curves(axes[0, 0], result, {name: row["crps"] for name, row in table.items()}, "CRPS (deg C)")
    _errors(axes[0, 1], result)
    _curves(axes[0, 2], result, {name: row["energy"] for name, row in table.items()}, "energy score, fair (deg C)")
    ratios = {name: row["ssr"] for name, row in others.items() if "ssr" in row}
    _curves(axes[0, 3], result, ratios, "spread-skill ratio")
    shown = [0.8, 1.2, *(value for name in result["networks"] for value in ratios[name])]
    axes[0, 3].set_ylim(min(shown) - 0.02, max(shown) + 0.02)
    axes[0, 3].axhspan(0.9, 1.1, color="0.92", zorder=0)
    axes[0, 3].axhline(1, color="0.5", lw=1)
    events = {name: row["brier_skill"] for name, row in others.items() if name not in skill.POINT}
    _curves(axes[1, 0], result, events, "Brier skill, warm decile")
    axes[1, 0].axhline(0, color="0.5", lw=1)
    _ranks(axes[1, 1], others[result["row"]]["ranks"])
    _spectra(axes[1, 2], result)
    axes[1, 3].axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 3].legend(handles, labels, loc="upper left", frameon=False, fontsize=9)
    _places(places, result, data, drawn)
    when = " to ".join(str(day) for day in data.fields.times[drawn.frame[[0, -1]].numpy()])
    title = f"{data.fields.name}: {len(drawn.box)} forecasts of {drawn.members.shape[1]} members, starts {when}"
    figure.suptitle(title, fontsize=12)
    save(figure, path, dpi=110)


def _style(result: dict[str, Any], name: str) -> dict[str, Any]:
    """How a row's curve is drawn: networks thick."""
    if name in result["networks"]:
        colour = NETWORKS[list(result["networks"]).index(name) % len(NETWORKS)]
        return {"color": colour, "marker": "o", "ms": 4, "lw": 2.2}
    colour, line, marker = STYLES[name]
    return {"color": colour, "ls": line, "marker": marker, "ms": 3.5, "lw": 1.2}


def _curves(axis: Any, result: dict[str, Any], rows: dict[str, list[float]], label: str) -> None:
    """A score of some rows against lead."""
    for name, values in rows.items():
        axis.plot(range(1, len(values) + 1), values, label=name, **_style(result, name))
    _frame(axis, "lead (frames)", label)
    axis.set_xticks(range(1, len(next(iter(rows.values()))) + 1))


def _errors(axis: Any, result: dict[str, Any]) -> None:
    """RMSE of the mean and, dotted, the spread of networks."""
    table = result["units"]["deg_C"]
    same = ("Gaussian", "fitted")  # they have the mean of the one without
    rows = {name: np.sqrt(row["mse"]) for name, row in table.items() if not name.endswith(same)}
    _curves(axis, result, rows, "RMSE of the mean; dotted: spread (deg C)")
    for name in result["networks"]:
        spread = np.sqrt(table[name]["variance"])
        axis.plot(range(1, len(spread) + 1), spread, **_style(result, name) | {"ls": ":", "marker": ""})


def _ranks(axis: Any, ranks: list[list[float]]) -> None:
    """Rank histograms of three leads; flat is reliable."""
    for lead, colour in zip(_three(len(ranks)), ("#9ecae1", "#4292c6", "#08306b")):
        shares = np.array(ranks[lead - 1])
        steps = np.linspace(0, 1, len(shares) + 1)
        axis.stairs(shares * len(shares), steps, color=colour, lw=1.4, label=f"lead {lead}")
    axis.axhline(1, color="0.5", lw=1)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
    _frame(axis, "share of members below the truth", "rank histogram x (members + 1)")


def _spectra(axis: Any, result: dict[str, Any]) -> None:
    """Power of members over that of the truth, by wavelength."""
    for name in result["networks"]:
        ratios, colour = result["without_units"][name]["spectrum_ratio"], _style(result, name)["color"]
        for lead, line in zip(_three(len(ratios)), (":", "--", "-")):
            waves = result["box"] / np.arange(1, len(ratios[0]) + 1)
            label = f"lead {lead}" if name == result["row"] else None
            axis.plot(waves, ratios[lead - 1], color=colour, ls=line, lw=1.4, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.5), max(high, 2))
    axis.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
    axis.minorticks_off()
    ticks = [w for w in (2, 5, 10, 20, 60) if w <= result["box"]]
    axis.set_xticks(ticks, [str(w) for w in ticks])
    axis.invert_xaxis()
    axis.axhline(1, color="0.5", lw=1)
    axis.legend(frameon=False, fontsize=8)
    _frame(axis, "wavelength (cells)", "power of members / of the truth")


def _frame(axis: Any, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _three(horizon: int) -> list[int]:
    """First, middle and last lead, each once."""
    return sorted({1, (horizon + 1) // 2, horizon})


def _places(figure: Any, result: dict[str, Any], data: World, drawn: Ensemble) -> None:
    """Maps of the fair CRPS's skill against damped persistence, and of spread over error, both over all starts."""
    from matplotlib.colors import LogNorm

    reference, leads = skill.GAUSSIAN[1], _three(len(drawn.target))
    rival = skill.Normal(*skill.damped_persistence(data, drawn))
    axes = figure.subplots(2, len(leads), squeeze=False)
    images: dict[int, Any] = {}
    for j, lead in enumerate(leads):
        pair = (skill.at_lead(f, lead - 1) for f in (skill.Members(drawn.members), rival))
        own, theirs = (skill.cells(part, drawn.target[lead - 1]) for part in pair)
        gain = 1 - _mosaic(data, drawn, own["crps_fair"][1]) / _mosaic(data, drawn, theirs["crps"][1])
        ratio = np.sqrt(_mosaic(data, drawn, own["variance"][1]) / _mosaic(data, drawn, own["mse"][1]))
        scales = ({"vmin": -0.4, "vmax": 0.4, "cmap": "RdBu"}, {"norm": LogNorm(0.5, 2), "cmap": "PuOr"})
        for i, (field, scale) in enumerate(zip((gain, ratio), scales)):
            axes[i, j].set_facecolor(LAND)
            axes[i, j].set(xticks=[], yticks=[])
            images[i] = axes[i, j].imshow(field, origin="lower", interpolation="nearest", **scale)
        axes[0, j].set_title(f"lead {lead}", fontsize=9)
    lat = np.sort(data.boxes[0].region.lat)
    for axis in axes.flat if np.ptp(lat) else ():
        _ticks(axis, "x", np.concatenate([b.region.lon for b in data.boxes]), 5)
        _ticks(axis, "y", lat, 3)
    figure.colorbar(images[0], ax=axes[0], extend="both", shrink=0.9)
    axes[0, 0].set_ylabel(f"CRPS skill (fair) against\n{reference}", fontsize=8)
    bar = figure.colorbar(images[1], ax=axes[1], extend="both", shrink=0.9)
    axes[1, 0].set_ylabel("spread / RMSE of the mean", fontsize=8)
    bar.set_ticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    bar.minorticks_off()


def _mosaic(data: World, drawn: Ensemble, values: torch.Tensor) -> np.ma.MaskedArray:
    """Means over the starts of values (N, H, W), the boxes side by side, north at the top of a map; land is masked."""
    parts = []
    for k, box in enumerate(data.boxes):
        mean = values[drawn.box == k].mean(0).numpy()
        part = np.ma.masked_array(mean, ~box.ocean.bool().numpy())
        parts.append(part if box.region.lat[0] <= box.region.lat[-1] else part[::-1])
    return np.ma.concatenate(parts, 1)
