"""Mean log-likelihood of held-out points: trains, a network, a kernel estimate, Gaussian mixtures, one Gaussian.

    python likelihood.py                                         # what needs no download; finished rows are kept
    python likelihood.py --names mixture-6 wine-13 --seeds 0
    python likelihood.py --names power gas --data-root MAF --n-train 2000000 --n-test 200000      # hours
    python likelihood.py --table                                 # print what is there

Sets: distributions with known densities in 2, 6 and 8 dimensions (densities.py), scikit-learn's tables by principal
components (wine-13, breast-cancer-8, digits-16; the digits with noise uniform in a grey level), FILE.csv, and POWER and
GAS from MAF's files (maf.py). A row for each set and seed goes to results/likelihood.jsonl. README.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _repo import HERE
from common import cli
from common.cli.ranges import Count, Seed
from common.runtime import run_main
from ttflow.held_out import add_missing, read, report
from ttflow.options import Options as Experiment

SETS = "mixture-6 wine-13 copula-6 circles digits-8 mixture-8 breast-cancer-8 moons clayton-6"
SMOKE = {"n_train": 300, "n_test": 50, "n_pairs": 500, "sweeps": 2, "nn_steps": 30}


@dataclass(frozen=True)
class Options:
    """Options of the table."""

    names: tuple[str, ...] = tuple(SETS.split())
    """Sets; besides those below, seed after seed, also mixture-6-apart, copula-8, swissroll, blobs-sklearn, ..."""
    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    """Seeds of points or splits, and of all fits"""
    data_root: str = ""
    """Folder with power/ and gas/ of MAF's data"""
    n_train: Count = 10_000
    """Points to fit, at most"""
    n_test: Count = 500
    """Points whose likelihood is measured, at most"""
    n_pairs: Count = 20_000
    """Pairs of a sweep of the trains"""
    sweeps: Count = 6
    """Sweeps of the trains, at most"""
    nn_steps: Count = 2000
    """Training steps of the network"""
    n_steps: Count = 25
    """Runge-Kutta steps of the flows' densities"""
    table: bool = False
    """Only print the rows that are there"""
    smoke: bool = False
    """Seconds: shows only that it runs; writes to results/smoke-likelihood.jsonl"""
    out: str = ""
    """File of rows; empty: results/likelihood.jsonl"""


def main() -> None:
    """Measure what is missing and print the tables."""
    options = cli.parse(Options, description=__doc__ or "")
    kind = "smoke-likelihood" if options.smoke else "likelihood"
    out = Path(options.out) if options.out else HERE / "results" / f"{kind}.jsonl"
    sizes = SMOKE if options.smoke else {name: getattr(options, name) for name in SMOKE}
    if not options.table:
        add_missing(out, options.names, options.seeds, Experiment(**sizes), options.n_steps, options.data_root)
    print(report(read(out)))


if __name__ == "__main__":
    run_main(main)
