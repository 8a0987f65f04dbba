"""Figures: rows of images, curves, and flows in the plane. Matplotlib is imported inside, without a display.

What draws points, paths and densities draws on axes that the caller holds, so the same functions serve scripts and
notebooks; :func:`panels` makes them without pyplot.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from common.images import grid
from common.runtime import atomic_write

SOURCE, TARGET, MADE, PATH = "#d1495b", "#8d99a6", "#1f6f8b", "#2b2d42"  # colours of points and of paths


def pyplot() -> Any:
    """matplotlib.pyplot with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: str | Path, dpi: int = 150, crop: bool = True) -> None:
    """Write a figure whole or not at all, as a PNG unless the name says otherwise, and free it.

    Without ``crop``, which cuts off empty margins, it has exactly the size that it was made with.
    """
    with atomic_write(path) as temporary:
        suffix = Path(path).suffix[1:] or "png"
        figure.savefig(temporary, format=suffix, dpi=dpi, bbox_inches="tight" if crop else None)
    if plt := sys.modules.get("matplotlib.pyplot"):  # only pyplot keeps figures
        plt.close(figure)


def image_rows(rows: Mapping[str, Tensor], path: str | Path) -> None:
    """One labelled row of images in [-1, 1], (B, C, H, W), for each entry, as one solver a row on the same noises."""
    plt = pyplot()
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.6 * count, 0.6 * len(rows)), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items()):
        axis.imshow(grid(images, n_columns=count).numpy(), interpolation="nearest", cmap="gray")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.subplots_adjust(hspace=0.03)
    save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | Path,
    x_label: str,
    y_label: str,
    highlight: str = "",
    floors: Mapping[str, float] | None = None,
    scale: Literal["log", "linear"] = "log",
    floor: str = "floor",
) -> None:
    """Lines over logarithmic axes, one panel beside the other, the same colours and one legend.

    Args:
        panels: title -> line's label -> points (x, y); an empty line is left out.
        highlight: label of the line that is drawn black and thicker.
        floors: panel's title -> the best that y can be, drawn as a dashed line.
        scale: of both axes.
        floor: what that line is called.
    """
    from matplotlib.ticker import LogLocator

    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.2), squeeze=False)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    style = {label: (f"C{i}", "osv^DPX*"[i % 8]) for i, label in enumerate(labels)}
    for axis, (title, lines) in zip(axes[0], panels.items()):
        for label, points in lines.items():
            if points:
                color, marker = ("black", "o") if label == highlight else style[label]
                width = 2.2 if label == highlight else 1.2
                axis.plot(*zip(*points), color=color, marker=marker, ms=4, lw=width, label=label)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        if floors and title in floors:
            axis.axhline(floors[title], color="black", ls="--", lw=0.8, label=floor)
        axis.set(xscale=scale, yscale=scale, title=title, xlabel=x_label)
        axis.set_xticks(ticks, [f"{x:g}" if x not in (7, 9, 19) else "" for x in ticks], fontsize=7)
        low, high = axis.get_ylim()
        if scale == "log" and high < 100 * low:  # less than two decades: powers of ten alone would be too few
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(y_label)
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    save(figure, path)


# ---- flows in the plane


def panels(titles: Sequence[str], limit: float = 7.0, scale: float = 2.2) -> tuple[Any, list[Any]]:
    """A figure and its row of square axes, a title each, ``scale`` inches wide, of [-limit, limit]^2 without ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(scale * len(titles), scale + 0.25), dpi=85, layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles):
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    return figure, axes


def limit_of(*samples: Tensor) -> float:
    """Half the side of a square around the origin that shows all of some points, (N, 2), with a margin."""
    return 1.08 * max(sample.abs().max().item() for sample in samples)


def points(axis: Any, x: Tensor, colour: str = MADE, size: float = 3.0, alpha: float = 0.5) -> None:
    """A scatter of x, (N, 2)."""
    # pictures, not shapes: a notebook or a PDF with thousands of shapes is slow
    axis.scatter(*x.detach().cpu().T.numpy(), s=size, c=colour, alpha=alpha, linewidths=0, rasterized=True)


def paths(axis: Any, trajectory: Tensor, alpha: float = 0.35) -> None:
    """Lines from the start (red) to the end (blue) of the first 128 paths of a trajectory, (n + 1, B, 2)."""
    from matplotlib.collections import LineCollection

    shown = trajectory[:, :128].detach().cpu()
    lines = LineCollection(list(shown.transpose(0, 1).numpy()), colors=PATH, linewidths=0.6, alpha=alpha)
    axis.add_collection(lines)
    points(axis, shown[0], SOURCE, size=5.0, alpha=0.9)
    points(axis, shown[-1], MADE, size=5.0, alpha=0.9)
