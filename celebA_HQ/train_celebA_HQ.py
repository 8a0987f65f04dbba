"""Train IDFF, or any other method, on CelebA-HQ at 256x256.

python train_celebA_HQ.py                            # one GPU of 24 GB
python train_celebA_HQ.py --preset multi             # all GPUs of the machine
python train_celebA_HQ.py --preset small             # a CPU, a few hundred steps
"""

from _repo import HERE  # noqa: F401
from celebA_HQ.config import FOLDER
from common.runtime import run_main
from common.scripts.train import train_main

if __name__ == "__main__":
    run_main(lambda: train_main(FOLDER, __doc__))
