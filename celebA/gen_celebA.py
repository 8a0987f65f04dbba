"""Generate many CelebA images as numbered PNG files or one .npz; run it again to go on where it was stopped.

python gen_celebA.py --n_samples 50000 --save_dir samples/gen
accelerate-launch gen_celebA.py --range 10000:20000 --sampling_method heun --sampling_steps 10
"""

from _repo import HERE  # noqa: F401
from celebA.config import FOLDER
from common.runtime import run_main
from common.scripts.gen import gen_main

if __name__ == "__main__":
    run_main(lambda: gen_main(FOLDER, __doc__))
