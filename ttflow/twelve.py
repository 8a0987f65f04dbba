"""The train beside the network on all twelve data sets, three seeds each: the table of README.md.

    python twelve.py                       # about 40 minutes on one core; finished runs are kept
    python twelve.py --table               # print what is there
    python twelve.py --again --names circles --sinkhorn-draws 20    # measure the kept flows once more, longer

Each run is one of train_eval_linear_recflow.py, in results/table/SET/seed-N/; results/table.csv has a line for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _repo import HERE
from common import cli
from common.cli.ranges import Count, Seed, Whole
from common.runtime import run_main
from ttflow.datasets import TWELVE
from ttflow.options import Options as Experiment
from ttflow.standings import read_runs, run_or_measure, table, write_csv


@dataclass(frozen=True)
class Options:
    """Options of the table."""

    names: tuple[str, ...] = tuple(TWELVE)
    """Data sets"""
    seeds: tuple[Seed, ...] = (42, 43, 44)
    """Seeds"""
    n_test: Count = 5000
    """Test points of W2"""
    sinkhorn_draws: Count = 5
    """Pairs of samples of 2,000 points that Sinkhorn's divergence of a run is the mean of"""
    components: Whole = 0
    """Gaussians of the mixture that each train corrects, by BIC at most so many; 0: none"""
    again: bool = False
    """Measure the flows of runs that are there once more"""
    table: bool = False
    """Only print the runs that are there"""
    smoke: bool = False
    """Seconds: shows only that it runs; writes to results/smoke-table"""
    out: str = ""
    """Folder of the runs; empty: results/table"""


def main() -> None:
    """Run what is missing and print the table."""
    options = cli.parse(Options, description=__doc__ or "")
    out = Path(options.out) if options.out else HERE / "results" / ("smoke-table" if options.smoke else "table")
    for seed in () if options.table else options.seeds:
        for name in options.names:
            more = {key: getattr(options, key) for key in ("n_test", "sinkhorn_draws", "components")}
            experiment = Experiment(name, seed, **more, smoke=options.smoke, out=str(out / name / f"seed-{seed}"))
            run_or_measure(experiment, options.again)
    runs = read_runs(out)
    write_csv(runs, out.with_suffix(".csv"))
    print(table(runs))


if __name__ == "__main__":
    run_main(main)
