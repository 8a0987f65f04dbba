"""A rectified flow whose velocity is a tensor train, beside the same flow with a neural network.

    python train_eval_linear_recflow.py --dataset-name swissroll-3d-sklearn
    python train_eval_linear_recflow.py --dataset-name digits-16 --tt-only
    python train_eval_linear_recflow.py --dataset-name circles-sklearn --bases rbf --hopt --hopt-max-eval 20

Writes results/NAME/: figure.png (the data, both flows' points, their distances), results.json, tt.pt, network.pt.
About two minutes on two CPU cores, most of it for the distances. README.md explains and has the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from _repo import HERE
from common import cli
from common.runtime import run_main

ALIASES = {"--hopt-max-evals": "--hopt-max-eval"}
SOLVERS = Literal["euler", "midpoint", "heun", "rk4", "ab2"]


@dataclass(frozen=True)
class Options:
    """Options of the experiment."""

    dataset_name: str = "swissroll-3d-sklearn"
    """Data: one of the sets named above, or FILE.csv"""
    seed: int = 42
    """Seed of data, fits and test noise"""
    bases: Literal["bsplines", "rbf", "fourier", "legendre", "any"] = "bsplines"
    """Functions of one coordinate; any: --hopt chooses"""
    rank: int = 0
    """Rank of all bonds; 0: ranks that adapt to the data within --budget"""
    reg_coeff: float = 1e-4
    """Ridge"""
    n_centers: int = 0
    """Functions of each coordinate; 0: 36 in up to two dimensions, 20 in three, 8 in more"""
    length_scale: float = 0.0
    """Length of radial functions, in standard deviations of the data; 0: the distance of two centres"""
    time_at: int = -1
    """Position of t in the train; -1: the first in three dimensions, else the last"""
    budget: int = 3600
    """Most parameters of a train whose ranks adapt, and of the search; times dim / 3 in more than three dimensions"""
    sweeps: int = 14
    """Sweeps over the train, at most"""
    coupling: Literal["independent", "ot"] = "independent"
    """Of noise and data"""
    tt_only: bool = False
    """Leave the network out"""
    network: Literal["better", "seed"] = "better"
    """How the network is trained: "seed" as in ttrecflow; see network.py"""
    nn_steps: int = 0
    """Training steps of the network; 0: those of its recipe"""
    hopt: bool = False
    """Search for rank, functions and ridge on the validation set first; the study is results/NAME/study.db"""
    hopt_max_eval: int = 20
    """Trials of the search, those of an interrupted one included"""
    use_best_model: bool = False
    """Take the train that an earlier --hopt found"""
    odesolve_method_tt: SOLVERS = "rk4"
    """Solver of the train's flow"""
    odesolve_method_nn: SOLVERS = "rk4"
    """Solver of the network's flow"""
    n_steps: int = 100
    """Steps of both solvers; ttrecflow has 2000"""
    n_train: int = 50_000
    """Training points"""
    n_pairs: int = 0
    """Pairs of a sweep, fresh in each; 0: 60,000 in up to three dimensions, 20,000 in more"""
    n_test: int = 10_000
    """Test points of W2"""
    sinkhorn_draws: int = 5
    """Samples of 2,000 points that Sinkhorn's divergence is the mean of (of a table: 1)"""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is trained and both flows are sampled; trains are fitted on the CPU"""
    dtype: Literal["float32", "float64"] = "float32"
    """Of sampling; trains are fitted in float64, networks in float32"""
    out: str = ""
    """Folder of the results; empty: results/NAME"""
    verbose: int = 1
    """0: only the table; 1: progress bars; 2: also a line for each sweep"""
    smoke: bool = False
    """Seconds: few points, sweeps and steps; shows only that it runs"""


def main() -> None:
    """Read the command line and run the experiment."""
    from ttflow.datasets import describe

    help_text = f"{__doc__}\nData sets: {describe()}."
    options = cli.parse(Options, description=help_text, aliases=ALIASES)
    from ttflow.experiment import run

    run(options, HERE)


if __name__ == "__main__":
    run_main(main)
