"""A sampler of few steps, fitted to the weights' own fine trajectories; kept beside the weights.

python fit_sampler.py --n_steps 8
python fit_sampler.py --weights results/mine --n_steps 5 10
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.fit import fit_main
from lsun_bed.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: fit_main(FOLDER, __doc__))
