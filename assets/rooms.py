"""Draw the rooms of common/ by floor, as ARCHITECTURE.md shows them.

python assets/rooms.py

A room is a file or a folder directly in common/; it stands one floor above the highest room that it imports, whether at
import or inside a function. Needs matplotlib.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.runtime import run_main

HERE = Path(__file__).resolve().parent
COMMON = HERE.parent / "common"


@dataclass(frozen=True)
class Options:
    """Options of the picture."""

    out: str = str(HERE / "rooms.png")
    """Picture to write"""


def files_of(room: str) -> list[Path]:
    """The Python files of a room."""
    return sorted((COMMON / room).rglob("*.py")) if (COMMON / room).is_dir() else [COMMON / f"{room}.py"]


def imported(tree: ast.AST) -> set[str]:
    """Rooms that a module imports, except for type annotations alone."""
    rooms = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "common":
            first = (node.module or "").split(".")[1:2]
            rooms |= set(first or (alias.name for alias in node.names))
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("common.")}
        rooms |= imported(node)
    return rooms


def arrows() -> dict[str, set[str]]:
    """The rooms of common/, and the rooms that each imports."""
    names = {path.stem for path in COMMON.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    rooms = sorted(names - {"__init__"})
    trees = {room: [ast.parse(file.read_text(encoding="utf-8")) for file in files_of(room)] for room in rooms}
    return {room: set().union(*map(imported, trees[room])) - {room} for room in rooms}


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, 1 for those that import none.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [room for room, below in graph.items() if room not in level and below <= level.keys()]
        if not ready:
            raise ValueError(f"a circle among {', '.join(sorted(graph.keys() - level.keys()))}")
        level |= {room: 1 + max((level[other] for other in graph[room]), default=0) for room in ready}
    return level


def draw(path: Path) -> None:
    """A row of boxes a floor, as wide as the rooms have lines of code; folders are darker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    level, graph = floors(arrows()), arrows()
    lines = {room: sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files_of(room)) for room in level}
    height, gap = max(level.values()), 0.12
    figure, axis = plt.subplots(figsize=(11, 0.95 * height + 0.5))
    for floor in range(1, height + 1):
        rooms = sorted((room for room in level if level[room] == floor), key=lambda room: -lines[room])
        widths = [1.0 + lines[room] / 700 for room in rooms]
        left = -(sum(widths) + gap * (len(rooms) - 1)) / 2
        for room, width in zip(rooms, widths, strict=True):
            folder = (COMMON / room).is_dir()
            box = plt.Rectangle((left, floor), width, 0.8, color="#1f6f8b" if folder else "#8fb8c8")
            axis.add_patch(box)
            colour = "white" if folder else "black"
            name = f"{room}/" if folder else room
            axis.text(left + width / 2, floor + 0.47, name, ha="center", va="center", color=colour, fontsize=9)
            count = f"{lines[room]} lines"
            axis.text(left + width / 2, floor + 0.2, count, ha="center", va="center", color=colour, fontsize=6.5)
            left += width + gap
    total = f"{len(level)} rooms, {sum(map(len, graph.values()))} arrows, all downwards, {sum(lines.values()):,} lines"
    axis.text(0, 0.75, total, ha="center", va="center", fontsize=9, color="#555555")
    axis.set(xlim=(-7.2, 7.2), ylim=(0.5, height + 0.9))
    axis.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Read the options and draw."""
    options = cli.parse(Options, description=__doc__ or "")
    draw(Path(options.out))
    print(f"picture: {options.out}")


if __name__ == "__main__":
    run_main(main)
