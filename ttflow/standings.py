"""The runs of twelve.py: made, measured again, read back; their table and their CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.runtime import atomic_write, read_json
from ttflow.options import Options

WHO = ("floor", "tt", "network")
METRICS = ("sinkhorn", "w2", "outliers")

Runs = dict[str, list[dict[str, Any]]]  # what results.json holds, by data set


def run_or_measure(options: Options, again: bool) -> None:
    """One experiment, unless its results are there; with ``again`` those are measured once more."""
    from ttflow import experiment

    out = Path(options.out)
    done = (out / "results.json").is_file()
    if done and not again:
        return
    print(f"{options.dataset_name}, seed {options.seed}")
    if done:
        experiment.again(out, n_test=options.n_test, sinkhorn_draws=options.sinkhorn_draws)
    else:
        experiment.run(options, out)


def read_runs(out: Path) -> Runs:
    """The results of the runs.

    Raises:
        FileNotFoundError: none.
        ValueError: one that was measured before outliers were counted.
    """
    runs: Runs = {}
    for folder in sorted(out.iterdir()) if out.is_dir() else []:
        if paths := sorted(folder.glob("seed-*/results.json")):
            runs[folder.name] = [read_json(path, dict[str, Any]) for path in paths]
            for path, run in zip(paths, runs[folder.name], strict=True):
                if "outliers" not in run.get("tt", {}):
                    raise ValueError(f"{path} has no outliers, an older version wrote it: run twelve.py with --again")
    if not runs:
        raise FileNotFoundError(f"no results in {out}: run `python twelve.py` first")
    return runs


def _distance(run: dict[str, Any], who: str, metric: str) -> float:
    """Of floor, train or network; W2 as half its square, which Sinkhorn's divergence tends to for small blur."""
    return run[who]["w2"] ** 2 / 2 if metric == "w2" else run[who][metric]


def table(sets: Runs) -> str:
    """Markdown: means over the runs, the distances with their standard deviation.

    The train is worse where it is above both the network and the floor: what is below the floor is chance, or outliers.
    """
    import statistics as st

    lines = [
        "| set | Sinkhorn: floor | train | network | W2²/2: floor | train | network | outliers in 1,000 | parameters "
        "| fit s | sample s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    wins = dict.fromkeys(METRICS, 0)
    for name, runs in sets.items():
        cells = [name]
        for metric in METRICS:
            values = {who: [_distance(run, who, metric) for run in runs] for who in WHO}
            means = {who: st.mean(v) for who, v in values.items()}
            wins[metric] += means["tt"] <= max(means["network"], means["floor"])
            if metric == "outliers":
                cells.append(" / ".join(f"{1000 * mean:.1f}" for mean in means.values()))
            else:
                cells += [f"{st.mean(v):.4f} ± {st.stdev(v) if len(v) > 1 else 0:.4f}" for v in values.values()]
        for key, form in (("parameters", ",.0f"), ("fit_seconds", ".0f"), ("sampling_seconds", ".2f")):
            cells.append(" / ".join(f"{st.mean(run[who][key] for run in runs):{form}}" for who in WHO[1:]))
        lines.append(f"| {' | '.join(cells)} |")
    verdict = ", ".join(f"by {metric} on {n}" for metric, n in wins.items())
    return "\n".join([*lines, f"\nthe train is no worse than the network {verdict} of {len(sets)}"])


def write_csv(sets: Runs, path: Path) -> None:
    """A line of CSV for each run."""
    import csv

    keys = ("parameters", "bytes", "fit_seconds", "sampling_seconds", "nfe", "sinkhorn", "w2", "mmd", "outliers")
    names = [f"{who}_{key}" for who in WHO for key in keys if who != "floor" or key in keys[-4:]]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["dataset", "seed", "components", "sinkhorn_draws", *names, "commit"])
        for name, runs in sets.items():
            for run in runs:
                values = [run[who][key] for who, key in (column.split("_", 1) for column in names)]
                numbers = [f"{v:.6g}" if isinstance(v, float) else v for v in values]
                options = [run["options"][key] for key in ("seed", "components")]
                rows.writerow([name, *options, run["sinkhorn"]["draws"], *numbers, run["commit"]])
