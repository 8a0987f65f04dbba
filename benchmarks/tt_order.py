"""Where in a tensor train does t stand best, and do whitening or a rotation help?

    python benchmarks/tt_order.py
    python benchmarks/tt_order.py --dataset_name circles-sklearn

Each train has at most the same number of parameters, and ranks that adapt; the error is that on held-out rows, in units
of the velocity. The seconds are processor time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Count, Seed
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    dataset_name: str = "swissroll-3d-sklearn"
    """A data set of ttflow"""
    budget: Count = 3600
    """Most parameters"""
    sweeps: Count = 12
    """Sweeps over the train"""
    seed: Seed = 0
    """Seed of data and fits"""


def main() -> None:
    """Prints a line for each place of t, then for each frame."""
    options = cli.parse(Options, description=__doc__ or "")
    from ttflow.datasets import load
    from ttflow.recflow import data_pairs, frame_of, posterior_means

    data = load(options.dataset_name, seed=options.seed)
    pairs = data_pairs(data.train, 20_000, seed=options.seed)(0)
    held_out = posterior_means(data.validation, 20_000, options.seed + 1, 5000)(0)
    draw = posterior_means(data.train, 60_000, options.seed)
    print(f"{'variant':24}{'parameters':>11}{'ranks':>18}{'held out':>10}{'s':>7}")
    for place in range(data.dim, -1, -1):
        _line(f"t at position {place}", options, draw, held_out, frame_of(*pairs), place)
    for scale in ("whitened", "none"):
        _line(f"scale {scale}", options, draw, held_out, frame_of(*pairs, scale=scale))
    _line("not rotated", options, draw, held_out, frame_of(*pairs, rotate=False))


def _line(name: str, options: Options, draw, held_out, frame, time_at: int | None = None) -> None:
    """Fits and prints one variant."""
    from ttflow.recflow import SWEEPS, Shape, fit_velocity
    from ttflow.sweeper import Adapt

    n_basis, n_time = (20, 8) if frame.means.shape[1] > 2 else (36, 14)
    shape = Shape(n_basis=n_basis, n_time=n_time, rank=4, time_at=time_at)
    sweeps = replace(SWEEPS, n_sweeps=options.sweeps, adapt=Adapt(16, options.budget))
    begin = time.process_time()
    velocity, _ = fit_velocity(draw, frame, shape, sweeps, held_out)
    seconds = time.process_time() - begin
    x, t, u = held_out
    error = float((velocity(x, t) - u).square().sum(1).mean())
    ranks = "-".join(map(str, velocity.train_.ranks))
    print(f"{name:24}{velocity.n_parameters:>11,}{ranks:>18}{error:>10.4f}{seconds:>7.1f}", flush=True)


if __name__ == "__main__":
    run_main(main)
