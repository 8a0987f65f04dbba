"""Quality against size and against time, for trains of several ranks and networks of several widths.

    python frontier.py --dataset-name swissroll-3d-sklearn        # minutes on one core
    python frontier.py --dataset-name circles-sklearn --budgets 400 1600 --widths 25 100

Writes results/frontier/NAME/: frontier.png, frontier.json. Finished points are kept, an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from _repo import HERE
from common import cli
from common.cli.ranges import Count, Seed
from common.runtime import run_main
from ttflow.options import SMOKE
from ttflow.options import Options as Experiment
from ttflow.tradeoff import draw, points


@dataclass(frozen=True)
class Options:
    """Options of the picture."""

    dataset_name: str = "swissroll-3d-sklearn"
    """Data: as for train_eval_linear_recflow.py"""
    budgets: tuple[Count, ...] = (450, 900, 1800, 3600, 7200)
    """Most parameters of the trains, whose ranks adapt"""
    widths: tuple[Count, ...] = (25, 50, 100, 200)
    """Of the two hidden layers of the networks"""
    seed: Seed = 42
    """Seed of data, fits and test noise"""
    n_test: Count = 5000
    """Test points"""
    smoke: bool = False
    """Seconds: shows only that it runs; writes to results/smoke-frontier"""
    out: str = ""
    """Folder; empty: results/frontier/NAME"""


def main() -> None:
    """Fit what is missing, draw."""
    options = cli.parse(Options, description=__doc__ or "")
    kind = "smoke-frontier" if options.smoke else "frontier"
    out = Path(options.out) if options.out else HERE / "results" / kind / Path(options.dataset_name).stem
    experiment = Experiment(options.dataset_name, options.seed, n_test=options.n_test, verbose=0)
    experiment = replace(experiment, **SMOKE) if options.smoke else experiment
    rows = points(experiment, options.budgets, options.widths, out / "frontier.json")
    draw(rows, options.dataset_name, out / "frontier.png")
    print(f"wrote {out / 'frontier.png'}")


if __name__ == "__main__":
    run_main(main)
