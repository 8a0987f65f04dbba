"""Sequential reflow: pairs, training, distillation and evaluation, one stage a command.

    python main.py --config=configs/rf/toy2d.py --config.model.rf_phase=1                          # a teacher of points
    python main.py --config=configs/rf/mnist.py --config.training.reflow_mode=gen_reflow           # pairs
    python main.py --config=configs/rf/mnist.py --config.training.reflow_mode=train_reflow         # training
    python main.py --config=configs/rf/mnist.py --mode=eval --config.sampling.method=pc            # evaluation

All stages, for several numbers of segments and with a table in the end: pipeline.py. README.md has more, and times.
"""

from __future__ import annotations

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from seqrf.flags import parse


def main() -> None:
    """Read the command line and do what it asks for."""
    run = parse(description=__doc__)
    from seqrf.stages import execute

    execute(run)


if __name__ == "__main__":
    run_main(main)
