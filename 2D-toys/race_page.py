"""The page of a race: its numbers and trajectories, as integers, put into race.html.in with race.js."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
FRAMES = 51  # of each trajectory; the page moves straight between them
LEVELS = 2000  # of a coordinate across the picture, which has a few hundred pixels
TARGETS = 600  # points of the target drawn


def shown(value: float | None) -> float | None:
    """A number with four digits behind the point, as the page and the table have it."""
    return None if value is None else round(value, 4)


def page(data: dict[str, Any], results: dict[str, dict[str, Any]], target: Tensor) -> str:
    """The whole HTML file.

    Args:
        data: what ``racing.summary`` makes; names and texts in it are shown as they are, never read as HTML.
        results: by name, with ``paths`` of shape (FRAMES, particles, 2).
        target: points of the target, (N, 2).
    """
    drawn = {row["name"]: results[row["name"]]["paths"] for row in data["methods"] if row["drawn"]}
    low, unit = box([target, *(paths[k] for paths in drawn.values() for k in (0, -1))])
    data = data | {
        "frames": FRAMES,
        "levels": LEVELS,
        "particles": next(iter(drawn.values())).shape[1],
        "low": low,
        "unit": unit,
        "target_points": quantised(target[:TARGETS], low, unit).flatten().tolist(),
        "methods": [
            row | {"paths": second_differences(quantised(drawn[row["name"]], low, unit)) if row["drawn"] else None}
            for row in data["methods"]
        ],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")  # no "</script>"
    title = html.escape(f"{data['source']} → {data['target']}: a race of flows")
    template, script = ((HERE / name).read_text(encoding="utf-8") for name in ("race.html.in", "race.js"))
    return template.replace("@SCRIPT@", script).replace("@TITLE@", title).replace("@DATA@", text)


def box(points: Iterable[Tensor]) -> tuple[list[float], float]:
    """The lower left corner of a square around nearly all points, with a margin, and the length of a level."""
    import torch

    x = torch.cat([p.reshape(-1, 2) for p in points]).double()
    ends = torch.quantile(x[:: max(1, len(x) // 50_000)], torch.tensor([0.002, 0.998]).double(), dim=0)
    side = 1.1 * (ends[1] - ends[0]).max().item() + 1e-6
    low = ends.mean(0) - side / 2
    return [round(v, 6) for v in low.tolist()], round(side / LEVELS, 9)


def quantised(x: Tensor, low: list[float], unit: float) -> Tensor:
    """Points as whole levels from the corner; points outside the picture are below 0 or above LEVELS."""
    return ((x.double() - x.double().new_tensor(low)) / unit).round().long()


def second_differences(levels: Tensor) -> list[int]:
    """Paths (frames, ...) of whole numbers as their first frame, first step, and changes of step: mostly one digit."""
    first, steps = levels[:1], levels.diff(dim=0)
    return [v for part in (first, steps[:1], steps.diff(dim=0)) for v in part.flatten().tolist()]
