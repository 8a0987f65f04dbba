"""The train beside the network on all twelve data sets, three seeds each: the table of README.md.

    python twelve.py                       # about an hour and a half on one core; finished runs are kept
    python twelve.py --table               # print what is there

Each run is one of train_eval_linear_recflow.py, in results/table/SET/seed-N/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _repo import HERE
from common import cli
from common.runtime import run_main
from datasets import TWELVE
from train_eval_linear_recflow import Options as Experiment


@dataclass(frozen=True)
class Options:
    """Options of the table."""

    names: tuple[str, ...] = tuple(TWELVE)
    """Data sets"""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Seeds"""
    n_test: int = 5000
    """Test points of W2"""
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
    print(table(out))


def _run(name: str, seed: int, out: Path, options: Options) -> None:
    """One experiment, unless its results are there."""
    from experiment import run

    if (out / "results.json").is_file():
        return
    print(f"{name}, seed {seed}")
    run(Experiment(name, seed, n_test=options.n_test, out=str(out), smoke=options.smoke), HERE)


def table(out: Path) -> str:
    """Markdown: means and spreads over the seeds, W2^2 / 2 like Sinkhorn's divergence.

    Raises:
        FileNotFoundError: no results.
    """
    rows = []
    for folder in sorted(out.iterdir()) if out.is_dir() else []:
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*/results.json"))]
        if runs:
            rows.append(_row(folder.name, runs))
    if not rows:
        raise FileNotFoundError(f"no results in {out}: run `python twelve.py` first")
    better = sum(row["excess"]["tt"] <= row["excess"]["network"] for row in rows)
    head = (
        "| set | seeds | floor | train | network | train wins | parameters | fit s | sampling s |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(row["text"] for row in rows), f"\nno worse than the network on {better} of {len(rows)}"])


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table."""
    import statistics as st

    values = {who: [run[who]["w2"] ** 2 / 2 for run in runs] for who in ("floor", "tt", "network")}
    cells = [f"{st.mean(v):.4f} ± {st.stdev(v) if len(v) > 1 else 0:.4f}" for v in values.values()]
    wins = sum(a <= b for a, b in zip(values["tt"], values["network"]))
    pair = [
        " / ".join(f"{st.mean(run[who][key] for run in runs):{form}}" for who in ("tt", "network"))
        for key, form in (("parameters", ",.0f"), ("fit_seconds", ".0f"), ("sampling_seconds", ".2f"))
    ]
    excess = {who: st.mean(values[who]) - st.mean(values["floor"]) for who in ("tt", "network")}
    return {
        "excess": excess,
        "text": f"| {' | '.join([name, str(len(runs)), *cells, f'{wins} of {len(runs)}', *pair])} |",
    }


if __name__ == "__main__":
    run_main(main)
