"""A generative one-step propagator of the Lorenz and Rossler systems: train, forecast, compare the attractors, draw.

python Lorenz_simulation.py
python Lorenz_simulation.py --system rossler
python Lorenz_simulation.py --weights results/lorenz/CFM_lorenz_v1.pt

Without a GPU; README.md has times and figures. ``--weights`` evaluates and draws without training. Writes weights,
SYSTEM.json and three pictures to the run folder.
"""

from _repo import HERE  # noqa: F401
from common.cli import parse
from common.runtime import run_main
from timeseries_examples.lorenz import Options, run

if __name__ == "__main__":
    run_main(lambda: run(parse(Options, description=__doc__)))
