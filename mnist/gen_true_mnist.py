"""Write the real MNIST images as numbered PNG files (or one .npz), to compare generated ones with.

python gen_true_mnist.py --save_dir samples/true
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.true import true_main
from mnist.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: true_main(FOLDER, __doc__))
