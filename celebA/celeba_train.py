"""Train IDFF, or any other method, on CelebA at 64x64.

python celeba_train.py                            # one GPU
python celeba_train.py --preset small             # a CPU
python celeba_train.py --preset paper --model IDFF --sigma 0.2 --flow_w 2 --parallel=True
"""

from _repo import HERE  # noqa: F401
from celebA.config import FOLDER
from common.runtime import run_main
from common.scripts.train import train_main

if __name__ == "__main__":
    run_main(lambda: train_main(FOLDER, __doc__))
