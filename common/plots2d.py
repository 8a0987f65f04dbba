"""Figures of flows in the plane: points, paths, densities, on axes of equal scale.

Everything draws on axes that the caller holds, so the same functions serve scripts and notebooks; the figures are made
without pyplot and need no display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE, TARGET, MADE, PATH = "#d1495b", "#8d99a6", "#1f6f8b", "#2b2d42"  # colours of points and of paths


def panels(titles: Sequence[str], limit: float = 7.0, columns: int = 0, scale: float = 2.2) -> tuple[Any, list[Any]]:
    """A figure with one square axis a title, each showing [-limit, limit]^2 without ticks.

    Args:
        titles: Titles of the axes; their number is the number of axes.
        limit: Half the side of what is seen.
        columns: Axes in a row; 0: all in one row.
        scale: Inches of an axis.

    Returns:
        The matplotlib Figure, and its axes in the order of the titles.
    """
    from matplotlib.figure import Figure

    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(scale * columns, (scale + 0.25) * rows), dpi=85, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, title in zip(grid, titles):
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    for axis in grid[len(titles) :]:
        axis.set_visible(False)
    return figure, list(grid[: len(titles)])


def limit_of(*samples: Tensor) -> float:
    """Half the side of a square around the origin that shows all of some points, (N, 2), with a margin."""
    return 1.08 * max(sample.abs().max().item() for sample in samples)


def points(axis: Any, x: Tensor, colour: str = MADE, size: float = 3.0, alpha: float = 0.5) -> None:
    """A scatter of x, (N, 2)."""
    # pictures, not shapes: a notebook or a PDF with thousands of shapes is slow
    axis.scatter(*x.detach().cpu().T.numpy(), s=size, c=colour, alpha=alpha, linewidths=0, rasterized=True)


def paths(axis: Any, trajectory: Tensor, n_paths: int = 128, alpha: float = 0.35) -> None:
    """Lines from the start (red) to the end (blue) of the first paths of a trajectory, (n + 1, B, 2)."""
    from matplotlib.collections import LineCollection

    shown = trajectory[:, :n_paths].detach().cpu()
    lines = LineCollection(list(shown.transpose(0, 1).numpy()), colors=PATH, linewidths=0.6, alpha=alpha)
    axis.add_collection(lines)
    points(axis, shown[0], SOURCE, size=5.0, alpha=0.9)
    points(axis, shown[-1], MADE, size=5.0, alpha=0.9)


def image(axis: Any, density: Tensor, limit: float) -> None:
    """A density on [-limit, limit]^2 as a picture: (rows of y ascending, columns of x ascending)."""
    axis.imshow(density.detach().cpu().numpy(), extent=(-limit, limit) * 2, origin="lower", cmap="magma")


def histogram(x: Tensor, limit: float, bins: int = 100) -> Tensor:
    """The density of points (N, 2) on [-limit, limit]^2, (bins, bins), rows of y; what lies outside is left out."""
    cell = 2 * limit / bins
    inside = x[(x.abs() < limit).all(1)]
    column, row = ((inside + limit) / cell).long().clamp(max=bins - 1).T
    counts = torch.bincount(row * bins + column, minlength=bins**2)
    return counts.reshape(bins, bins) / (len(x) * cell**2)


def mesh(limit: float, bins: int = 100) -> Tensor:
    """Centres of the cells of :func:`histogram`, (bins^2, 2); values at them reshape to (bins, bins), rows of y."""
    centres = (torch.arange(bins) + 0.5) * (2 * limit / bins) - limit
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def save(figure: Any, path: str | Path, dpi: int = 120) -> None:
    """Write a figure whole or not at all, as a PNG unless the name says otherwise."""
    from common.runtime import atomic_write

    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png", dpi=dpi)
