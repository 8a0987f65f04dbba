"""Write the real CIFAR-10 images as numbered PNG files (or one .npz), to compare generated ones with.

python gen_true_cifar10.py --save_dir samples/true
"""

from _repo import HERE  # noqa: F401
from cifar10.config import FOLDER
from common.runtime import run_main
from common.scripts.true import true_main

if __name__ == "__main__":
    run_main(lambda: true_main(FOLDER, __doc__))
