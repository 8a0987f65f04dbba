"""How far are generated CIFAR-10 images from real ones? Recognised share and feature distance by a small classifier.

python measure.py
python measure.py --n_steps 10 --solver heun --out results/measured.json
"""

from _repo import HERE  # noqa: F401
from cifar10.config import FOLDER
from common.runtime import run_main
from common.scripts.measure import measure_main

if __name__ == "__main__":
    run_main(lambda: measure_main(FOLDER, __doc__, has_test=False, residual=True))
