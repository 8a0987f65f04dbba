"""Train a flow between two distributions of the plane, sample from it, measure it and draw it.

    python toys.py
    python toys.py --source moons --target 8gaussians --method reflow
    python toys.py --method idff                            # IDFF's example: two heads and its own sampler
    python toys.py --weights results/gaussian-8gaussians-otcfm --solver euler --n_steps 4

One CPU core, about 20 s. The folder printed at the end holds figure.png, results.json and weights.pt.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from toy_flow import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
