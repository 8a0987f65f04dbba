"""MNIST by Keras, for when torchvision's mirrors fail; tensorflow runs in a child process only.

Imported into the training process tensorflow can end the interpreter (it and other libraries register the same LLVM
options) and takes the whole GPU, so it loads the images elsewhere and hands them over as a .npz (11 MB download).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.data.loading import ImageData, load_images
from common.data.opening import DownloadError
from common.runtime import atomic_write

TIMEOUT = 900  # seconds
CHILD = """
import sys
try:
    import tensorflow as tf
except ImportError as error:
    sys.exit(f"tensorflow is missing ({error}): pip install tensorflow")
try:
    parts = tf.keras.datasets.mnist.load_data()
except Exception as error:
    sys.exit("the download failed: " + " ".join(str(error).split())[:200])
import numpy as np
images, labels = parts[sys.argv[2] == "test"]
with open(sys.argv[1], "wb") as file:
    np.savez(file, images=images.astype(np.uint8), labels=labels.astype(np.int64))
"""


def fetch(folder: str | Path, split: str = "train") -> Path:
    """Writes ``folder/mnist_SPLIT.npz`` with images (N,28,28) uint8 and labels (N,), unless it is there.

    Raises:
        DownloadError: tensorflow or the network is missing; one line.
    """
    path = Path(folder).resolve() / f"mnist_{split}.npz"
    if path.exists():
        return path
    # The GPU belongs to the parent; the child's current directory must not shadow a module of tensorflow's.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with atomic_write(path) as temporary:
        command = [sys.executable, "-c", CHILD, str(temporary), split]
        try:
            child = subprocess.run(
                command, check=False, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise DownloadError(_advice(f"no answer within {TIMEOUT} s", path.parent)) from error
        if child.returncode != 0:
            lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            raise DownloadError(_advice(lines[-1].strip(), path.parent))
    return path


def _advice(reason: str, folder: Path) -> str:
    return (
        f"MNIST by Keras: {reason}; or put the four IDX files (train-images-idx3-ubyte, ...) "
        f"into {folder}/MNIST/raw, or give --data-root"
    )


def load_mnist(root: str | Path, image_size: int, channels: int, split: str = "train", **options: Any) -> ImageData:
    """MNIST by torchvision, and by Keras when that fails; options as in ``common.data.loading.load_images``.

    Raises:
        DownloadError: Neither has it; torchvision's reason has been printed, the line gives Keras's.
    """
    try:
        return load_images("torchvision:MNIST", image_size, channels, root=root, split=split, **options)
    except DownloadError as error:
        print(f"{error}\ntrying Keras")
        return load_images(str(fetch(root, split)), image_size, channels, split=split, **options)
