"""The rows of many evaluations as one table and one figure: read, put together over seeds, written and drawn."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypedDict

from common.records.rows import JsonLines
from common.runtime import atomic_write
from seqrf.quality import METRICS

Row = dict[str, Any]

WHAT = ("data", "source", "name", "step", "condition", "edges", "method", "n_steps", "tol", "cfg", "samples")
PATHS = ("straightness", "sequential_straightness", "truncation")
FIGURES = (*METRICS, "recognised", *PATHS, "samples_per_second")  # columns of the printed table
FIRST = ("data", "name", "step", "method", "n_steps", "nfe")


class Named(TypedDict):
    """What every line of rows.jsonl has."""

    name: str
    data: str
    step: int
    method: str


class Line(Named, total=False):
    """A line of rows.jsonl, as far as it is read again."""

    condition: str | None
    edges: list[float] | None
    n_steps: int | list[int] | None
    nfe: float | None
    seed: int | None
    w2: float | None
    fid: float | None
    kid: float | None
    feature_distance: float | None


def compare(folders: Iterable[str | Path], out: Path, metric: str = "auto") -> None:
    """Write table.csv and quality_against_nfe.png to ``out``, and print the table.

    Raises:
        FileNotFoundError, ValueError: a folder without rows, or a metric that no row has.
    """
    rows = newest(read_rows(folders))
    metric = chosen_metric(metric, rows)
    write_csv(rows, metric, out / "table.csv")
    groups = by_seed(rows)
    draw(groups, metric, out / "quality_against_nfe.png")
    print(markdown(groups, metric))
    print(f"results: {out}")


# ------------------------------------------------------------------------------------------------------- rows
def read_rows(folders: Iterable[str | Path]) -> list[Row]:
    """All rows of all rows.jsonl below the folders, each with its "folder".

    Raises:
        FileNotFoundError: a folder without any.
    """
    rows = []
    for folder in map(Path, folders):
        files = sorted(folder.rglob("rows.jsonl")) if folder.is_dir() else []
        own = [{**row, "folder": str(file.parent.resolve())} for file in files for row in JsonLines(file).read(Line)]
        if not own:
            raise FileNotFoundError(f"no evaluations (rows.jsonl) in {folder}: run main.py --mode=eval on it first")
        rows += own
    return rows


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each model, sampler and seed.

    Students of the same name in different folders are different students: where nothing else tells them apart their
    folders are added to their names. A teacher is the same everywhere.
    """
    folders: dict[str, set[str]] = {}
    for row in rows:
        if row.get("condition") != "teacher":
            folders.setdefault(_key(row, "seed"), set()).add(row["folder"])
    alike = {row["name"] for row in rows if len(folders.get(_key(row, "seed"), ())) > 1}
    root = os.path.commonpath([row["folder"] for row in rows])
    last: dict[str, Row] = {}
    for row in rows:
        if row["name"] in alike and row.get("condition") != "teacher":
            row = {**row, "name": f"{row['name']} ({os.path.relpath(row['folder'], root)})"}
        key = _key(row, "seed")
        last.pop(key, None)
        last[key] = row
    return list(last.values())


def _key(row: Row, *more: str) -> str:
    return json.dumps([row.get(name) for name in (*WHAT, *more)])


def by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in the seed alone, together; in the order of data, model (teachers first), step and NFE.

    Adaptive segments differ from seed to seed, and do not part the rows of a model.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key({**row, "edges": len(row.get("edges") or ())}), []).append(row)
    first = list(dict.fromkeys((row["data"], row["name"]) for row in rows))
    teachers = {(row["data"], row["name"]) for row in rows if row.get("condition") == "teacher"}
    order = {name: i for i, name in enumerate(sorted(first, key=lambda name: name not in teachers))}
    return sorted(groups.values(), key=lambda g: (order[g[0]["data"], g[0]["name"]], g[0]["step"], g[0]["nfe"]))


def values(group: Iterable[Row], column: str) -> list[float]:
    """The numbers of a column, of those rows that have one."""
    return [row[column] for row in group if isinstance(row.get(column), (int, float))]


def chosen_metric(name: str, rows: Sequence[Row]) -> str:
    """The column to draw.

    Raises:
        ValueError: no row has it.
    """
    if name == "auto":
        name = next((metric for metric in METRICS if values(rows, metric)), "straightness")
    if not values(rows, name):
        columns = sorted({column for row in rows for column in row if values([row], column)})
        raise ValueError(f"--metric {name}: no row has it; there are {', '.join(columns)}")
    return name


# ------------------------------------------------------------------------------------------------------ output
def write_csv(rows: Sequence[Row], metric: str, path: Path) -> None:
    """One line a row, the columns that one looks for first; lists as JSON, numbers to 6 digits, no folders."""
    first = [*FIRST, metric, f"{metric}_floor", *FIGURES, "samples", "seed"]
    every = dict.fromkeys([*first, *(column for row in rows for column in row)])
    columns = [column for column in every if column != "folder" and any(column in row for row in rows)]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({column: _cell(row.get(column)) for column in columns})


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def markdown(groups: Sequence[Sequence[Row]], metric: str) -> str:
    """The table for people: a line for each model and sampler, mean and spread over seeds."""
    ours = [metric, *(name for name in FIGURES if name != metric)]
    figures = [name for name in ours if any(values(group, name) for group in groups)]
    head = ["data", "model", "step", "method", "steps", "NFE", *figures, "seeds"]
    lines = [head, ["---"] * len(head)]
    for group in groups:
        one = group[0]
        steps = f"{one['tol']:g}" if one.get("n_steps") is None and one.get("tol") else one.get("n_steps")
        cells = [one["data"], one["name"], one["step"], one["method"], steps, spread(values(group, "nfe"))]
        lines.append([*map(str, cells), *(spread(values(group, name)) for name in figures), str(len(group))])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    floors = floors_of(groups, metric)
    return text + "".join(f"\n\nfloor of {metric}, {data}: {floor:.4g}" for data, floor in floors.items())


def spread(numbers: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, where they differ; a dash when there is nothing."""
    if not numbers:
        return "-"
    return f"{mean(numbers):.4g}" + (f" +- {stdev(numbers):.2g}" if len(set(numbers)) > 1 else "")


def floors_of(groups: Iterable[Sequence[Row]], metric: str) -> dict[str, float]:
    """What perfect samples get, by data set."""
    floors: dict[str, list[float]] = {}
    for group in groups:
        floors.setdefault(group[0]["data"], []).extend(values(group, f"{metric}_floor"))
    return {data: mean(numbers) for data, numbers in floors.items() if numbers}


def draw(groups: Sequence[Sequence[Row]], metric: str, path: Path) -> None:
    """A line for each model, at its last step, over the NFE; a panel for each data set, and its floor."""
    from common.plots import curves

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for group in groups:
        one, points = group[0], values(group, metric)
        rows = [g[0] for g in groups if (g[0]["data"], model_of(g[0])) == (one["data"], model_of(one))]
        if one["step"] < max(row["step"] for row in rows) or not points or mean(points) <= 0:
            continue  # a logarithm has no place for 0
        several = len({row["method"] for row in rows if row["step"] == one["step"]}) > 1
        label = f"{model_of(one)}, {one['method']}" if several else model_of(one)
        line = panels.setdefault(one["data"], {}).setdefault(label, [])
        line.append((mean(values(group, "nfe")), mean(points)))
    if not panels:
        raise ValueError(f"--metric {metric}: nothing above 0 to draw; choose another")
    y_label = METRICS.get(metric, metric.replace("_", " "))
    curves(panels, path, "network evaluations", y_label, floors=floors_of(groups, metric))


def model_of(row: Row) -> str:
    """The name without the step."""
    return re.sub(r",? step \d+", "", row["name"])
