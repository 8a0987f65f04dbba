"""Train a flow on CIFAR-10.

python train_cifar10.py                          # the shipped recipe
accelerate-launch train_cifar10.py --preset paper -mp bf16 -e results/paper
"""

from _repo import HERE  # noqa: F401
from cifar10.config import FOLDER
from common.runtime import run_main
from common.scripts.train import train_main

if __name__ == "__main__":
    run_main(lambda: train_main(FOLDER, __doc__))
