"""Fetch MNIST by Keras, 11 MB, for when torchvision's mirrors fail; training does so by itself.

python keras_mnist.py            # writes data/mnist_train.npz and data/mnist_test.npz beside this file
"""

from dataclasses import dataclass

from _repo import HERE
from common import cli
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of keras_mnist.py."""

    data_root: str = str(HERE / "data")
    """Folder of the files"""


def main() -> None:
    """Fetch both parts, unless they are there."""
    options = cli.parse(Options, description=__doc__ or "")
    from mnist.by_keras import fetch

    print(*(fetch(options.data_root, split) for split in ("train", "test")), sep="\n")


if __name__ == "__main__":
    run_main(main)
