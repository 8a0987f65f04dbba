"""A grid of MNIST images from the shipped weights, or from any checkpoint.

python simple_gen_test.py
python simple_gen_test.py --label 7 --n_steps 20
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.grid import grid_main
from mnist.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: grid_main(FOLDER, __doc__))
