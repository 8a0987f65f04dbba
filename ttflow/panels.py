"""The data, a train's points and a network's points, side by side with their distances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from ttflow.datasets import Data

COLOURS = {"data": "#4c566a", "network": "#2a78b5", "tt": "#c8553d"}
SHOWN = 4000


def comparison(data: Data, points: dict[str, Tensor], results: dict[str, Any], path: Path) -> None:
    """One panel each for the data, the train and the network; the first three columns at most are drawn."""
    from common.plots import pyplot, save

    sets = {"data": data.test, **{name: points[name] for name in ("network", "tt") if name in points}}
    spatial = data.dim == 3
    columns = 3 if spatial else min(2, data.dim)
    figure = pyplot().figure(figsize=(4.4 * len(sets), 4.8))
    figure.subplots_adjust(left=0.03 if spatial else 0.06, right=0.96 if spatial else 0.99, top=0.84, wspace=0.16)
    low, high = _limits(data.test[:, :columns])
    for k, (name, rows) in enumerate(sets.items()):
        axis = figure.add_subplot(1, len(sets), k + 1, projection="3d" if spatial else None)
        _draw(axis, rows[:SHOWN, :columns], COLOURS[name], low, high)
        axis.set_title(_title(name, results), fontsize=10)
    save(figure, path)


def _limits(points: Tensor) -> tuple[Tensor, Tensor]:
    """The box of the data with a margin."""
    low, high = points.amin(0), points.amax(0)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _draw(axis: Any, points: Tensor, colour: str, low: Tensor, high: Tensor) -> None:
    """Points of one to three columns, with equal limits in all panels."""
    columns = points.shape[1]
    if columns == 1:
        axis.hist(points[:, 0].numpy(), bins=80, range=(low.item(), high.item()), color=colour, density=True)
        axis.set(xlabel="$x_1$", ylabel="density")
        return
    inside = points[((points >= low) & (points <= high)).all(1)]
    size, alpha = (4.0, 0.7) if columns == 3 else (2.0, 0.45)
    axis.scatter(*inside.T.numpy(), s=size, c=colour, alpha=alpha, linewidths=0, rasterized=True)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="$x_1$", ylabel="$x_2$")
    if columns == 3:
        axis.set(zlim=(low[2], high[2]), zlabel="$x_3$")
        axis.locator_params(axis="y", nbins=4)  # seen along it: numbers would overlap
        axis.view_init(elev=8, azim=-78)
        axis.set_box_aspect(tuple((high - low).tolist()))
    else:
        axis.set_aspect("equal")


def _title(name: str, results: dict[str, Any]) -> str:
    """What the panel shows, with numbers."""
    if name == "data":
        floor = results["floor"]
        return f"{results['dataset']}\ntwo samples: Sinkhorn {floor['sinkhorn']:.3f}, W2 {floor['w2']:.3f}"
    row = results[name]
    what = "network" if name == "network" else f"tensor train, ranks {_ranks(row['ranks'])}"
    return (
        f"{what}, {row['parameters']:,} parameters\n"
        f"Sinkhorn {row['sinkhorn']:.3f}, W2 {row['w2']:.3f}, fit {row['fit_seconds']:.0f} s"
    )


def _ranks(ranks: list[int]) -> str:
    return "-".join(map(str, ranks)) if len(ranks) <= 4 else f"{min(ranks)} to {max(ranks)}"
