"""How far are generated MNIST images from real ones? Recognised share and feature distance by a small classifier.

python measure.py
python measure.py --n_steps 10 --solver heun --out results/measured.json
python measure.py --n_samples 1000 --n_steps 10 --sweep_cfg 1 1.5 2 --sweep_interval 0..1 0.2..0.8
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.measure import measure_main
from mnist.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: measure_main(FOLDER, __doc__))
