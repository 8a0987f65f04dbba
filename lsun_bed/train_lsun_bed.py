"""Train IDFF, or any other method, on LSUN bedroom at 256x256.

python train_lsun_bed.py                            # one GPU of 24 GB
python train_lsun_bed.py --preset multi             # all GPUs of the machine
python train_lsun_bed.py --preset small             # a CPU, a few hundred steps
"""

from _repo import HERE  # noqa: F401
from common.runtime import run_main
from common.scripts.train import train_main
from lsun_bed.config import FOLDER

if __name__ == "__main__":
    run_main(lambda: train_main(FOLDER, __doc__))
