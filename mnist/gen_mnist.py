"""Generate many MNIST images as numbered PNG files or one .npz; run it again to go on where it was stopped.

python gen_mnist.py --n_samples 50000 --save_dir samples/gen
accelerate-launch gen_mnist.py --range 10000:20000 --save_dir samples/gen --sampling_method heun --sampling_steps 10
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.gen import gen_main
from mnist.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: gen_main(FOLDER, __doc__))
