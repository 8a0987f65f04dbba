"""A grid of CIFAR-10 images from the shipped weights, or from any checkpoint.

python simple_gen_test.py
python simple_gen_test.py --n_steps 20 --cfg 1.5 --solver heun
"""

from _repo import HERE  # noqa: F401
from cifar10.config import FOLDER
from common.runtime import run_main
from common.scripts.grid import grid_main

if __name__ == "__main__":
    run_main(lambda: grid_main(FOLDER, __doc__))
