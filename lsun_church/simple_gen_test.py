"""A grid of LSUN church images from a checkpoint; arcs between noises; an image followed to its noise and back.

python simple_gen_test.py
python simple_gen_test.py --n_steps 20 --interpolate --columns 8
python simple_gen_test.py --invert photo.jpg
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.grid import grid_main
from lsun_church.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: grid_main(FOLDER, __doc__))
