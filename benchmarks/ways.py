"""Quality of the ways to few evaluations against the cost of their training, on MNIST: rows, table, picture.

    python mnist/measure.py --weights mnist/runs/flowmap --solver flowmap --n_steps 2 --n_samples 3000 --card
    python benchmarks/ways.py add --name "flow map" --run mnist/runs/flowmap
    python benchmarks/ways.py

The first puts figures into a run's card, for each number of steps; the second copies them, with what the training cost,
to benchmarks/ways.jsonl. The third prints the table of all of them beside those of sequential reflow
(seqrf/tables/mnist.csv) and draws assets/ways.png. Costs are counted in forward passes of the network, as
docs/few-steps.md counts them, for minutes of different machines are no measure; a step with gradient is three.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import statistics as st
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.runtime import run_main

ROOT = Path(__file__).resolve().parent.parent
ROWS, PICTURE = ROOT / "benchmarks" / "ways.jsonl", ROOT / "assets" / "ways.png"
STEP = {"ect": 4, "flowmap": 4, "meanflow": 7}  # passes an image; a forward derivative is about three
NFES, PANELS = (1, 2, 4, 8), (1, 2, 4)
WORST = 2.0  # feature distance, beyond which a sample is no digit; the picture ends there
# seqrf/README.md: 6,000 pairs of the guided teacher, 16 calls for a whole path and 13.25 for a segment, and 1,200 steps
# of batch 64; distillation is as many steps once more.
WHOLE, SEGMENT, STUDENT = 6000 * 16 * 2, round(6000 * 13.25 * 2), 1200 * 64 * 3


@dataclass(frozen=True)
class Options:
    """Options of the table."""

    what: Literal["add", "table"] = "table"
    """add: the figures of a run's card; table: what is there, as Markdown and picture"""
    name: str = ""
    """add: the name of the way"""
    run: str = ""
    """add: the run folder"""


def passes(config: dict[str, Any], images: int) -> int:
    """Forward passes that a run of its options and images seen has cost."""
    scale = config.get("teacher_cfg")  # cards from before there were teachers know none
    of_teacher = 0 if scale is None else 1 if scale in (0, 1) else 2
    if steps := config.get("teacher_steps"):
        return config["teacher_noises"] * steps * of_teacher + 3 * images
    return (STEP.get(config["method"], 3) + of_teacher) * images  # a flow's step is one call with gradient


def add(name: str, run: Path) -> None:
    """Copy the figures of a run's card.

    Raises:
        ValueError: no name, no run, or a card without figures.
    """
    import yaml

    from common import checkpoint
    from common.records.rows import JsonLines

    if not name or run == Path():
        raise ValueError("add: give --name, what the way is called, and --run, the folder of its run")
    weights = checkpoint.find(run, "--run")
    card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    if not card.get("measured"):
        raise ValueError(f"{run}: its card has no figures: python mnist/measure.py --weights {run} --card")
    config = yaml.safe_load((weights.parent / "config.yaml").read_text(encoding="utf-8"))
    about = {"way": name, "images": card["images_seen"], "passes": passes(config, card["images_seen"])}
    about |= {"minutes": round(60 * card["hours"], 1), "hardware": card["hardware"], "training_seed": card["seed"]}
    kept = ("solver", "nfe", "feature_distance", "recognised", "generated", "seed", "commit")
    rows = JsonLines(ROWS)
    known = rows.read() if ROWS.exists() else []
    for figures in card["measured"]:
        row = {**about, **{key: figures[key] for key in kept}}
        if row not in known:
            rows.append(row)


def of_segments() -> list[dict[str, Any]]:
    """The rows of sequential reflow: a student at the evaluations that it is made for and more."""
    rows = []
    with (ROOT / "seqrf" / "tables" / "mnist.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if "teacher" in row["name"] or int(row["nfe"]) not in NFES:
                continue
            cost = (WHOLE if row["k"] == "1" else SEGMENT) + STUDENT * (1 + row["name"].endswith("Distill"))
            figures = {key: float(row[key]) for key in ("feature_distance", "recognised")}
            rows.append({"way": row["name"], "nfe": int(row["nfe"]), "passes": cost, "generated": 2000, **figures})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ways down, evaluations across: distance and share recognised, means over training seeds; the dearest last."""
    lines = [
        "| way | million passes | images | seeds | " + " | ".join(f"{n} NFE" for n in NFES) + " |",
        "|---" * (4 + len(NFES)) + "|",
    ]
    for way in ways(rows):
        of_way = [row for row in rows if row["way"] == way]
        cells = []
        for n in NFES:
            runs = [row for row in of_way if row["nfe"] == n]
            means = [st.mean(row[key] for row in runs) for key in ("feature_distance", "recognised") if runs]
            cells.append("{:.3f}, {:.1%}".format(*means) if runs else "")
        cost, images = of_way[0]["passes"], of_way[0].get("images")
        seeds = len({row.get("training_seed") for row in of_way})
        facts = f"{way} | {f'{cost / 1e6:.2f}' if cost else '0'} | {f'{images:,}' if images else ''} | {seeds}"
        lines.append(f"| {facts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ways(rows: list[dict[str, Any]]) -> list[str]:
    """Their names by cost."""
    cost = {row["way"]: row["passes"] for row in rows}
    return sorted(cost, key=lambda way: (cost[way], way))


def picture(rows: list[dict[str, Any]]) -> None:
    """A panel for each number of evaluations: the distance of each way against what its training cost."""
    from common.plots import pyplot, save

    figure, axes = pyplot().subplots(1, len(PANELS), figsize=(11, 3.6), sharex=True, sharey=True, layout="constrained")
    shown = [row for row in rows if row["feature_distance"] < WORST and row["nfe"] in PANELS]
    for way, mark in zip(ways(shown), itertools.cycle("os^vD<>pX*")):
        for axis, nfe in zip(axes, PANELS):
            points = [
                (row["passes"] / 1e6, row["feature_distance"])
                for row in shown
                if (row["way"], row["nfe"]) == (way, nfe)
            ]
            axis.plot(*zip(*points or [(math.nan, math.nan)]), mark, fillstyle="none", ms=8, mew=1.5, label=way)
    for axis, nfe in zip(axes, PANELS):
        axis.set(title=f"{nfe} NFE", xlabel="million forward passes of training", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("feature distance to real digits")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save(figure, PICTURE)


def main() -> None:
    options = cli.parse(Options, description=__doc__ or "", words=("what",))
    if options.what == "add":
        return add(options.name, Path(options.run))
    from common.records.rows import JsonLines

    rows = JsonLines(ROWS).read() + of_segments()
    print(table(rows))
    picture(rows)
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    run_main(main)
