"""The options of an experiment. No torch, so that --help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from common.cli.ranges import AtLeast, AtMost, Count, NoneFor, NotNegative, Positive, Seed, Whole

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
    seed: Seed = 42
    """Seed of data, fits and test noise"""
    bases: Literal["bsplines", "rbf", "fourier", "legendre", "any"] = "bsplines"
    """Functions of one coordinate; any: --hopt chooses"""
    rank: Annotated[Count | None, NoneFor(0)] = None
    """Rank of all bonds; none: ranks that adapt to the data within --budget"""
    reg_coeff: NotNegative = 1e-4
    """Ridge"""
    n_centers: Annotated[Count | None, NoneFor(0)] = None
    """Functions of each coordinate; none: 36 in up to two dimensions, 20 in three, 8 in more"""
    length_scale: Annotated[Positive | None, NoneFor(0)] = None
    """Length of radial functions, in standard deviations of the data; none: the distance of two centres"""
    time_at: Annotated[Whole | None, NoneFor(-1)] = None
    """Position of t in the train; none: the first in three dimensions, else the last"""
    rotate: bool = True
    """To the principal axes of the data; off where columns of odd shapes depend on each other weakly"""
    components: Whole = 0
    """Gaussians of a mixture, by BIC at most so many, whose velocity the train corrects; 0: one, as the frame"""
    budget: Count = 3600
    """Most parameters of a train whose ranks adapt, and of the search; times dim / 3 in more than three dimensions"""
    sweeps: Count = 14
    """Sweeps over the train, at most"""
    coupling: Literal["independent", "ot"] = "independent"
    """Of noise and data"""
    tt_only: bool = False
    """Leave the network out"""
    network: Literal["better", "seed"] = "better"
    """How the network is trained: "seed" as in ttrecflow; see network.py"""
    nn_steps: Annotated[Count | None, NoneFor(0)] = None
    """Training steps of the network; none: those of its recipe"""
    hopt: bool = False
    """Search for rank, functions and ridge on the validation set first; the study is results/NAME/study.db"""
    hopt_max_eval: Count = 20
    """Trials of the search, those of an interrupted one included"""
    use_best_model: bool = False
    """Take the train that an earlier --hopt found"""
    odesolve_method_tt: SOLVERS = "rk4"
    """Solver of the train's flow"""
    odesolve_method_nn: SOLVERS = "rk4"
    """Solver of the network's flow"""
    n_steps: Count = 100
    """Steps of both solvers; ttrecflow has 2000"""
    n_train: Count = 50_000
    """Training points"""
    n_pairs: Annotated[int | None, AtLeast(2, "a fit needs at least 2 rows; try 60000"), NoneFor(0)] = None
    """Pairs of a sweep, fresh in each; none: 60,000 in up to three dimensions, 20,000 in more"""
    n_test: Count = 10_000
    """Test points of W2"""
    sinkhorn_draws: Count = 5
    """Samples of 2,000 points that Sinkhorn's divergence is the mean of (of a table: 1)"""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is trained and both flows are sampled; trains are fitted on the CPU"""
    dtype: Literal["float32", "float64"] = "float32"
    """Of sampling; trains are fitted in float64, networks in float32"""
    out: str = ""
    """Folder of the results; empty: results/NAME"""
    export: str = ""
    """NAME.npz: write the train as numbers, and beside them NAME.py, which needs numpy alone"""
    verbose: Annotated[int, AtLeast(0), AtMost(2)] = 1
    """0: only the table; 1: progress bars; 2: also a line for each sweep"""
    smoke: bool = False
    """Seconds: few points, sweeps and steps; shows only that it runs; writes to results/smoke-NAME"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together, or this machine."""
        if self.bases == "any" and not (self.hopt or self.use_best_model):
            raise ValueError("--bases any is for --hopt, which finds the best kind: add it, or name one")
        if self.components and self.coupling != "independent":
            raise ValueError(f"--components {self.components} is for independent pairs: leave out --coupling ot")
        if self.hopt and self.use_best_model:
            raise ValueError("--hopt finds the best model, --use-best-model takes an earlier one: give one of them")
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("--device cuda: no CUDA device here; leave it out for the CPU")
