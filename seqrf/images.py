"""The real images of a run: its training images, and those that samples are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.data.loading import ImageData
    from seqrf.options import Data

REAL = 50_000  # images of a split at most; of training images this is what papers take for FID
REAL_BYTES = 2**32  # of their pixels at most


def real_parts(data: Data, smoke: bool = False) -> tuple[ImageData, ImageData]:
    """Training and test images, at most so many that they fit; a fifth is held out where there is no test split."""
    from common.evaluate.classifier import real_images

    limit = min(REAL, REAL_BYTES // (data.channels * data.image_size**2))
    return real_images(lambda split: load_split(data, split, smoke, limit), not smoke)


def load_split(data: Data, split: str, smoke: bool = False, limit: int | None = None) -> ImageData:
    """Real images of "train" or "test", all or so many evenly spread; for --smoke made-up ones."""
    from common.data.loading import load_images
    from common.data.splits import NoSplit
    from common.data.synthetic import synthetic_images

    if smoke:
        return synthetic_images(64, data.image_size, data.channels, 10, seed=0)
    try:
        return load_images(data.dataset, data.image_size, data.channels, root=_root(data), split=split, limit=limit)
    except NoSplit:
        raise
    except (OSError, ValueError) as error:  # it speaks of the flags that the data folders have
        flags = str(error).replace("--data-root", "--config.data.root").replace("--data", "--config.data.dataset")
        raise ValueError(flags) from error


def _root(data: Data) -> Path:
    return Path(data.root) if data.root else Path(__file__).resolve().parent / "data"
