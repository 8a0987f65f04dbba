"""The train beside the network on all twelve data sets, three seeds each: the table of README.md.

    python twelve.py                       # about 40 minutes on one core; finished runs are kept
    python twelve.py --table               # print what is there
    python twelve.py --again --names circles --sinkhorn-draws 20    # measure the kept flows once more, longer

Each run is one of train_eval_linear_recflow.py, in results/table/SET/seed-N/; results/table.csv has a line for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _repo import HERE
from common import cli
from common.runtime import read_json, run_main
from ttflow.datasets import TWELVE
from ttflow.train_eval_linear_recflow import Options as Experiment

WHO = ("floor", "tt", "network")
METRICS = ("sinkhorn", "w2")


@dataclass(frozen=True)
class Options:
    """Options of the table."""

    names: tuple[str, ...] = tuple(TWELVE)
    """Data sets"""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Seeds"""
    n_test: int = 5000
    """Test points of W2"""
    sinkhorn_draws: int = 5
    """Pairs of samples of 2,000 points that Sinkhorn's divergence of a run is the mean of"""
    again: bool = False
    """Measure the flows of runs that are there once more"""
    table: bool = False
    """Only print the runs that are there"""
    smoke: bool = False
    """Seconds: shows only that it runs"""
    out: str = ""
    """Folder of the runs; empty: results/table"""


def main() -> None:
    """Run what is missing and print the table."""
    options = cli.parse(Options, description=__doc__ or "")
    out = Path(options.out) if options.out else HERE / "results" / "table"
    if not options.table:
        for seed in options.seeds:
            for name in options.names:
                _run(name, seed, out / name / f"seed-{seed}", options)
    runs = _runs(out)
    _write(runs, out.with_suffix(".csv"))
    print(table(runs))


def _run(name: str, seed: int, out: Path, options: Options) -> None:
    """One experiment, unless its results are there."""
    from ttflow.experiment import again, run

    sizes: dict[str, Any] = {"n_test": options.n_test, "sinkhorn_draws": options.sinkhorn_draws}
    there = (out / "results.json").is_file()
    if there and not options.again:
        return
    print(f"{name}, seed {seed}")
    if there:
        again(out, **sizes)
    else:
        run(Experiment(name, seed, **sizes, out=str(out), smoke=options.smoke), HERE)


def _runs(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of the runs by data set.

    Raises:
        FileNotFoundError: none.
    """
    found = {}
    for folder in sorted(out.iterdir()) if out.is_dir() else []:
        if paths := sorted(folder.glob("seed-*/results.json")):
            found[folder.name] = [read_json(path) for path in paths]
    if not found:
        raise FileNotFoundError(f"no results in {out}: run `python twelve.py` first")
    return found


def _distance(run: dict[str, Any], who: str, metric: str) -> float:
    """Of floor, train or network; W2 as half its square, which Sinkhorn's divergence tends to for small blur."""
    return run[who]["w2"] ** 2 / 2 if metric == "w2" else run[who]["sinkhorn"]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over the runs, the distances with their standard deviation."""
    import statistics as st

    lines = [
        "| set | Sinkhorn: floor | train | network | W2²/2: floor | train | network | parameters | fit s | sample s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    better = dict.fromkeys(METRICS, 0)
    for name, runs in found.items():
        cells = [name]
        for metric in METRICS:
            values = {who: [_distance(run, who, metric) for run in runs] for who in WHO}
            cells += [f"{st.mean(v):.4f} ± {st.stdev(v) if len(v) > 1 else 0:.4f}" for v in values.values()]
            better[metric] += st.mean(values["tt"]) <= st.mean(values["network"])
        for key, form in (("parameters", ",.0f"), ("fit_seconds", ".0f"), ("sampling_seconds", ".2f")):
            cells.append(" / ".join(f"{st.mean(run[who][key] for run in runs):{form}}" for who in WHO[1:]))
        lines.append(f"| {' | '.join(cells)} |")
    said = ", ".join(f"by {metric} on {n}" for metric, n in better.items())
    return "\n".join([*lines, f"\nthe train is no worse than the network {said} of {len(found)}"])


def _write(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A line of CSV for each run."""
    import csv

    from common.runtime import atomic_write

    keys = ("parameters", "bytes", "fit_seconds", "sampling_seconds", "nfe", "sinkhorn", "w2", "mmd")
    names = [f"{who}_{key}" for who in WHO for key in keys if who != "floor" or key in keys[-3:]]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["dataset", "seed", "sinkhorn_draws", *names, "commit"])
        for name, runs in found.items():
            for run in runs:
                values = [run[who][key] for who, key in (column.split("_", 1) for column in names)]
                numbers = [f"{v:.6g}" if isinstance(v, float) else v for v in values]
                rows.writerow([name, run["options"]["seed"], run["sinkhorn"]["draws"], *numbers, run["commit"]])


if __name__ == "__main__":
    run_main(main)
