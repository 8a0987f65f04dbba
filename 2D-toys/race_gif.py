"""The moving picture of a race: all methods' particles at the same times, a panel each, as a GIF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from race_page import LEVELS, box, quantised

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SIDE, LABEL, MARGIN = 172, 34, 4  # of a panel, of the two lines under it, around both, pixels
COLUMNS = 4
TARGETS = 500  # points of the target drawn
SPEED = 60  # milliseconds a frame
REST = 1500  # of the last one
COLOURS = (  # as on the page
    "#0067b1", "#3f9bd8", "#6b4fa8", "#c2569a", "#cf5300", "#00845c", "#7d5a2b", "#c48f00", "#0067b1", "#a3225f",
    "#1f8a1f", "#5a5a5a", "#8a4fff",
)  # fmt: skip
GREY, INK, SOFT = "#b3bac2", "#1c2128", "#57606a"
BUDGET = 5  # evaluations whose W2 stands under a panel


def write_gif(data: dict[str, Any], results: dict[str, dict[str, Any]], target: Tensor, file: Path) -> None:
    """Write a GIF that plays over and over again.

    Args:
        data, results, target: as of :func:`race_page.page`.
        file: to write.
    """
    drawn = [row for row in data["methods"] if row["drawn"]]
    paths = {row["name"]: results[row["name"]]["paths"] for row in drawn}
    low, unit = box([target, *(path[k] for path in paths.values() for k in (0, -1))])
    empty = ground(drawn, (quantised(target[:TARGETS], low, unit) * SIDE / LEVELS).tolist(), data["nfe"])
    moving = [(quantised(path, low, unit) * SIDE / LEVELS).tolist() for path in paths.values()]
    frames = [frame(empty, drawn, points) for points in zip(*moving, strict=True)]
    durations = [SPEED] * (len(frames) - 1) + [REST]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def corner(k: int) -> tuple[int, int]:
    """Left and top of panel k."""
    return k % COLUMNS * (SIDE + 2 * MARGIN) + MARGIN, k // COLUMNS * (SIDE + LABEL + 2 * MARGIN) + MARGIN


def ground(drawn: Sequence[dict[str, Any]], target: list[list[float]], nfe: list[int]) -> Image:
    """What all frames share: the target, names, and W2 after few evaluations."""
    from PIL import Image, ImageDraw, ImageFont

    wide, high = corner(min(COLUMNS, len(drawn)) - 1)[0], corner(len(drawn) - 1)[1]
    image = Image.new("RGB", (wide + SIDE + MARGIN, high + SIDE + LABEL + MARGIN), "white")
    pen, large, small = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(12)
    for k, row in enumerate(drawn):
        left, top = corner(k)
        dots(pen, target, k, 0.5, GREY)
        pen.text((left + 2, top + SIDE), row["name"], INK, font=large)
        if BUDGET in nfe:
            text = f"W2 {row['w2'][nfe.index(BUDGET)]:.2f} at {BUDGET} NFE"
            pen.text((left + 2, top + SIDE + 17), text, SOFT, font=small)
    return image


def frame(empty: Image, drawn: Sequence[dict[str, Any]], points: Sequence[list[list[float]]]) -> Image:
    """All particles at one time, in a few colours."""
    from PIL import Image, ImageDraw

    image = empty.copy()
    for k, (row, cloud) in enumerate(zip(drawn, points, strict=True)):
        dots(ImageDraw.Draw(image), cloud, k, 1.5, COLOURS[row["look"] % len(COLOURS)])
    return image.quantize(palette=palette(), dither=Image.Dither.NONE)


def palette() -> Image:
    """The colours of all frames: those of the dots as they are, and ramps to white for the edges of letters."""
    from PIL import Image, ImageColor

    plain = [ImageColor.getrgb(colour) for colour in (*COLOURS, GREY)]
    letters = [ImageColor.getrgb(colour) for colour in (INK, SOFT)]
    ramps = [tuple(c + (255 - c) * k // 7 for c in letter) for letter in letters for k in range(8)]
    image = Image.new("P", (1, 1))
    image.putpalette([value for colour in (*plain, *ramps) for value in colour])
    return image


def dots(pen: Any, points: Iterable[list[float]], k: int, radius: float, colour: str) -> None:
    """Discs at points (x to the right, y upwards) of panel k; those outside of it are left out."""
    left, top = corner(k)
    for x, y in points:
        if 0 <= x <= SIDE and 0 <= y <= SIDE:
            pen.ellipse(
                [left + x - radius, top + SIDE - y - radius, left + x + radius, top + SIDE - y + radius], colour
            )
