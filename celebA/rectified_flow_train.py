"""Train a rectified flow on CelebA at 128x128 by the Flow Image Generator's recipe, and sample from its checkpoints.

python rectified_flow_train.py                    # 1000 epochs; checkpoints/epoch_N.pth and checkpoints/rf_best.pth
python rectified_flow_train.py --epochs 100 --batch_size 32 --data img_align_celeba
"""

from pathlib import Path
from typing import Any

from _repo import HERE  # noqa: F401
from celebA.config import GENERATOR_FOLDER
from celebA.drawing import sample_from_checkpoint  # noqa: F401  (imported from here by who has the checkpoints)
from common.runtime import run_main
from common.scripts.train import train_main


def run(*arguments: Any) -> Path:
    """``epochs.train_epochs``, imported late so that ``--help`` stays fast."""
    from celebA.epochs import train_epochs

    return train_epochs(*arguments)


if __name__ == "__main__":
    run_main(lambda: train_main(GENERATOR_FOLDER, __doc__, run=run))
