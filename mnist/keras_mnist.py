"""Fetch MNIST by Keras, 11 MB, for when torchvision's mirrors fail; training does so by itself.

python keras_mnist.py            # writes data/mnist_train.npz and data/mnist_test.npz beside this file
"""

from _repo import HERE
from common.runtime import run_main


def main() -> None:
    """Fetch both parts, unless they are there."""
    from mnist.by_keras import fetch

    print(*(fetch(HERE / "data", split) for split in ("train", "test")), sep="\n")


if __name__ == "__main__":
    run_main(main)
