"""Figures for README and reports; matplotlib is imported inside, without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def pyplot() -> Any:
    """matplotlib.pyplot with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: str | Path) -> None:
    """Write a figure whole, at 150 dots per inch, and free it."""
    from common.runtime import atomic_write

    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png", dpi=150, bbox_inches="tight")
    pyplot().close(figure)


def image_rows(rows: Mapping[str, Tensor], path: str | Path, scale: float = 0.6) -> None:
    """One labelled row of images for each entry, for example one solver a row on the same noises.

    Args:
        rows: label -> images in [-1, 1], shape (B, C, H, W), the same B in each.
        path: picture to write.
        scale: inches of one image.
    """
    from common.images import grid

    plt = pyplot()
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), 1, figsize=(scale * count, scale * len(rows)), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items()):
        axis.imshow(grid(images, n_columns=count).numpy(), interpolation="nearest", cmap="gray")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.subplots_adjust(hspace=0.03)
    save(figure, path)


def image_grids(grids: Mapping[str, Tensor], path: str | Path, columns: int = 8, scale: float = 3.0) -> None:
    """Titled grids side by side, for example the same noises at several NFE.

    Args:
        grids: title -> images in [-1, 1], shape (B, C, H, W).
        columns: images of one row inside a grid.
        scale: inches of one grid.
    """
    from common.images import grid

    plt = pyplot()
    figure, axes = plt.subplots(1, len(grids), figsize=(scale * len(grids), scale + 0.3), squeeze=False)
    for axis, (title, images) in zip(axes[0], grids.items()):
        axis.imshow(grid(images, n_columns=columns).numpy(), interpolation="nearest", cmap="gray")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save(figure, path)


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Training and validation loss against images seen.

    Args:
        runs: label -> rows of a run's metrics.jsonl.
        path: picture to write.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 3))
    for label, rows in runs.items():
        steps = {row["step"]: row["images_seen"] for row in rows if "images_seen" in row}
        train = [(row["images_seen"], row["loss"]) for row in rows if row.get("loss") is not None]
        held_out = [(steps[row["step"]], row["val_loss"]) for row in rows if "val_loss" in row and row["step"] in steps]
        (line,) = axis.plot(*zip(*train), lw=0.8, label=label)
        if held_out:
            axis.plot(*zip(*held_out), "o", ms=3, color=line.get_color(), label=f"{label}, held out (EMA)")
    axis.set_xlabel("images seen")
    axis.set_ylabel("loss")
    axis.set_xscale("log")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | Path,
    x_label: str,
    y_label: str,
    highlight: str = "",
    floors: Mapping[str, float] | None = None,
) -> None:
    """Lines over logarithmic axes, one panel beside the other, the same colours and one legend.

    Args:
        panels: title -> line's label -> points (x, y); an empty line is left out.
        path: picture to write.
        highlight: label of the line that is drawn black and thicker.
        floors: panel's title -> the best that y can be, drawn as a dashed line.
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
            axis.axhline(floors[title], color="black", ls="--", lw=0.8, label="floor")
        axis.set(xscale="log", yscale="log", title=title, xlabel=x_label)
        axis.set_xticks(ticks, [f"{x:g}" if x not in (7, 9, 19) else "" for x in ticks], fontsize=7)
        low, high = axis.get_ylim()
        if high < 100 * low:  # less than two decades: powers of ten alone would be too few
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(y_label)
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    save(figure, path)
