"""How far are generated CelebA images from real ones? Frechet distance and KID by ImageNet features: no labels, so no
classifier.

python measure.py --features effnet-lite0
python measure.py --features effnet-lite0 --n_samples 1000 --n_steps 10 --card
"""

from _repo import HERE  # noqa: F401
from celebA.config import FOLDER
from common.runtime import run_main
from common.scripts.measure import measure_main

if __name__ == "__main__":
    run_main(lambda: measure_main(FOLDER, __doc__, has_test=False))
