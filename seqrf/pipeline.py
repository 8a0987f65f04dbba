"""The whole of sequential reflow in one command: teacher, pairs, students, distillation, evaluation, table and plot.

    python pipeline.py --config=configs/rf/toy2d.py                                  # minutes on a CPU
    python pipeline.py --config=configs/rf/mnist.py --config.pipeline.segments 2,4

What is done already is not done again: the same command goes on where it was stopped. README.md has times and numbers.
"""

from __future__ import annotations

from dataclasses import replace

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from seqrf.flags import parse


def main() -> None:
    """Go through all stages for every seed, then compare."""
    run = parse(description=__doc__)
    from common.runtime import processes
    from seqrf.all_stages import check, whole
    from seqrf.comparison import compare
    from seqrf.stages import smoke, workdir

    check(run)
    run = smoke(run) if run.smoke else run
    here = processes(run.device)
    if run.plan:
        from seqrf.costs import plan_all

        return plan_all(run, here)
    for seed in run.config.pipeline.seeds:
        folder = workdir(run) / f"seed-{seed}"
        whole(replace(run, workdir=str(folder), config=replace(run.config, seed=seed)), here)
    if here.is_main:
        compare([workdir(run)], workdir(run))


if __name__ == "__main__":
    run_main(main)
