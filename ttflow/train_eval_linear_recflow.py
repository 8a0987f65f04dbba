#!/usr/bin/env python3
"""A rectified flow whose velocity is a tensor train, beside the same flow with a neural network.

    python train_eval_linear_recflow.py --dataset-name swissroll-3d-sklearn
    python train_eval_linear_recflow.py --dataset-name digits-16 --tt-only
    python train_eval_linear_recflow.py --dataset-name circles-sklearn --bases rbf --hopt --hopt-max-eval 20

Writes results/NAME/: figure.png (the data, both flows' points, their distances), results.json, tt.pt, network.pt.
About two minutes on two CPU cores, most of it for the distances. README.md explains and has the table.
"""

from __future__ import annotations

from pathlib import Path

from _repo import HERE
from common import cli
from common.runtime import run_main
from ttflow.options import Options

ALIASES = {"--hopt-max-evals": "--hopt-max-eval"}


def main() -> None:
    """Read the command line and run the experiment."""
    from ttflow.datasets import describe

    help_text = f"{__doc__}\nData sets: {describe()}."
    options = cli.parse(Options, description=help_text, aliases=ALIASES)
    from ttflow.experiment import run

    name = "smoke-" * options.smoke + Path(options.dataset_name).stem
    run(options, Path(options.out) if options.out else HERE / "results" / name)


if __name__ == "__main__":
    run_main(main)
