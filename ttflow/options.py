"""The options of an experiment. No torch, so that --help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SOLVERS = Literal["euler", "midpoint", "heun", "rk4", "ab2"]
SMOKE = {
    "n_train": 2000,
    "n_pairs": 2000,
    "n_test": 200,
    "sweeps": 3,
    "nn_steps": 30,
    "n_steps": 8,
    "hopt_max_eval": 2,
    "sinkhorn_draws": 1,
}


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


def check(options: Options) -> None:
    """Raises ValueError for numbers out of range."""
    for name in ("sweeps", "n_steps", "budget", "sinkhorn_draws"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least 1")
    if options.n_pairs == 1:
        raise ValueError("--n-pairs is 1: a fit needs at least 2 rows; try 60000")
    if options.time_at < -1:
        raise ValueError(f"--time-at is {options.time_at}: give a position, 0 is the first, or -1 for the default")
    if min(options.rank, options.n_centers, options.nn_steps, options.n_pairs) < 0:
        raise ValueError("--rank, --n-centers, --nn-steps and --n-pairs are 0 (chosen for you) or positive")
    if options.bases == "any" and not (options.hopt or options.use_best_model):
        raise ValueError("--bases any is for --hopt, which finds the best kind: add it, or name one")
    if options.hopt and options.use_best_model:
        raise ValueError("--hopt searches for the best model, --use-best-model takes an earlier one: give one of them")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device here; leave it out for the CPU")
