"""How good samples are: what one evaluation compares all its samples with, made once.

* Points of the plane: the exact W2 distance to fresh points of the target.
* Images: the recognised share and the feature distance of a small classifier (``common.evaluate.recogniser``),
  against the data's test split or a fifth held out; with Inception weights also FID and KID against the training
  images, as papers do.

A figure's floor, what perfect samples would get, stands beside it as NAME_floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common.runtime import generator
from seqrf.options import PLANE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from common.data.loading import ImageData
    from common.evaluate.recogniser import Recogniser
    from seqrf.options import Data, Run

    Figures = dict[str, float | None]

POINTS = 10_000  # of an exact W2 at most: 20 s and 1 GB
REAL = 50_000  # images of a split at most; of training images this is what papers take for FID
REAL_BYTES = 2**32  # of their pixels at most
KEPT = 10_000  # features of real images kept for KID
METRICS = {"w2": "W2", "fid": "FID", "feature_distance": "feature distance", "kid": "KID x 1000"}  # lower is better


class Judge(Protocol):
    """Measures sets of samples, all in the same way."""

    def measure(self, x: Tensor, y: Tensor | None = None) -> Figures:
        """Figures of samples (N, ...), floating point or uint8 pixels, with the labels they were drawn for."""
        ...

    def real(self, n: int) -> Tensor | None:
        """n real points to draw beside samples; None for images."""
        ...


def make_judge(run: Run, workdir: Path, device: torch.device | str = "cpu") -> Judge:
    """The judge of a run's data.

    Args:
        run: The options; config.data says what is learnt.
        workdir: Keeps a classifier that had to be trained and the statistics of real images.
        device: Of the Inception network.

    Raises:
        ValueError, FileNotFoundError: data, classifier or weights that are not there or cannot be used.
    """
    data = run.config.data
    if data.dataset.startswith(PLANE):
        return PlaneJudge(data.dataset.removeprefix(PLANE), run.config.seed)
    return make_image_judge(data, run.config.seed, workdir, device, run.smoke)


# ------------------------------------------------------------------------------------------------------ points
@dataclass(frozen=True, eq=False)
class PlaneJudge:
    """W2 between samples and as many fresh points of a distribution of ``common.toys``, 10,000 at most.

    The floor is the W2 of two sets of fresh points of that number. All draws are fixed by the seed.
    """

    target: str
    seed: int = 0
    _floors: dict[int, float] = field(default_factory=dict)

    def measure(self, x: Tensor, y: Tensor | None = None) -> Figures:
        """w2, w2_floor and the number of points; labels play no part. About 20 s for 10,000 points."""
        from common.metrics import wasserstein2

        n = min(len(x), POINTS)
        w2 = wasserstein2(x[:n], self.points(n, "test"))
        return {"w2": w2, "w2_floor": self.floor(n), "w2_points": n}

    def floor(self, n: int) -> float:
        """W2 of two sets of n fresh points, computed once."""
        from common.metrics import wasserstein2

        if n not in self._floors:
            self._floors[n] = wasserstein2(self.points(n, "floor"), self.points(n, "test"))
        return self._floors[n]

    def real(self, n: int) -> Tensor:
        """n fresh points of the target, for a picture."""
        return self.points(n, "picture")

    def points(self, n: int, stream: str) -> Tensor:
        """n fresh points of the target, (n, 2)."""
        from common.toys import sample

        return sample(self.target, n, generator(self.seed, stream))


# ------------------------------------------------------------------------------------------------------ images
@dataclass(frozen=True, eq=False)
class ImageJudge:
    """Figures of images by a classifier, by Inception's features, or by both."""

    recogniser: Recogniser | None
    inception: InceptionReference | None = None

    def measure(self, x: Tensor, y: Tensor | None = None) -> Figures:
        """recognised (with labels), feature_distance, feature_distance_floor; fid, kid, kid_error."""
        import torch

        from common.images import to_uint8

        images = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu()
        figures: Figures = {}
        if self.recogniser is not None:
            figures |= self.recogniser.measure(images, None if y is None else y.cpu())
            figures["feature_distance_floor"] = self.recogniser.floor
        return figures | (self.inception.measure(images) if self.inception is not None else {})

    def real(self, n: int) -> None:
        """None: the figures do not need a picture of real images beside them."""


def make_image_judge(
    data: Data, seed: int, workdir: Path, device: torch.device | str = "cpu", smoke: bool = False
) -> ImageJudge:
    """Load the real images, the classifier and Inception's weights where there are any; see :func:`make_judge`."""
    from common.evaluate.features import find_weights
    from common.evaluate.recogniser import make_recogniser, real_images

    given = Path(data.classifier) if data.classifier else None
    if given is not None and not given.exists():
        raise FileNotFoundError(f"no classifier at {given}: leave out --config.data.classifier, and one is trained")
    weights = find_weights(data.inception)
    limit = min(REAL, REAL_BYTES // (data.channels * data.image_size**2))
    train, test = real_images(lambda split: load_split(data, split, smoke, limit), not smoke and has_test(data))
    recogniser = None
    if given is not None or train.labels is not None:
        path = given or workdir / "classifier.pt"
        recogniser = make_recogniser(train, test, path, flip=data.random_flip, seed=seed)
    elif weights is None:
        print("images without labels and no Inception weights: their quality is not measured; --config.data.inception")
    return ImageJudge(recogniser, weights and inception_reference(train, data, weights, workdir, device))


def load_split(data: Data, split: str, smoke: bool = False, limit: int | None = None) -> ImageData:
    """Real images of "train" or "test", all or so many evenly spread; for --smoke made-up ones."""
    from common.data.loading import load_images, synthetic_images

    if smoke:
        return synthetic_images(64, data.image_size, data.channels, 10, seed=0)
    try:
        return load_images(data.dataset, data.image_size, data.channels, _root(data), split, limit=limit)
    except (OSError, ValueError) as error:  # it speaks of the flags that the data folders have
        flags = str(error).replace("--data-root", "--config.data.root").replace("--data", "--config.data.dataset")
        raise ValueError(flags) from error


def _root(data: Data) -> Path:
    return Path(data.root) if data.root else Path(__file__).resolve().parent / "data"


def has_test(data: Data) -> bool:
    """Whether the data has a test split of its own."""
    from common.data.opening import open_source

    if data.dataset.startswith("torchvision:"):
        return True

    def names(split: str) -> Sequence[str] | None:
        return open_source(data.dataset, _root(data), split, say=lambda line: None).names

    try:
        return names("test") != names("train")
    except ValueError:  # train/ without test/
        return False


# --------------------------------------------------------------------------------------------------- Inception
@dataclass(frozen=True, eq=False)
class InceptionReference:
    """What FID and KID compare with: statistics of Inception's features of real images."""

    weights: Path
    device: torch.device | str
    real: dict[str, Any]  # count, mean, cov, and features of some

    def measure(self, images: Tensor) -> Figures:
        """fid, kid and kid_error (both times 1000), and the number of real images; uint8 images (N, C, H, W)."""
        from common.evaluate.features import inception_features
        from common.metrics import frechet_distance, gaussian_statistics, kernel_distance

        fake, real = inception_features(images, self.weights, self.device), self.real["features"]
        fid = frechet_distance(*gaussian_statistics(fake), self.real["mean"], self.real["cov"])
        size = min(1000, len(fake), len(real))
        kid, error = kernel_distance(fake, real, subset_size=size, generator=generator(0, "kid"))
        return {"fid": fid, "kid": 1000 * kid, "kid_error": 1000 * error, "fid_real": self.real["count"]}


def inception_reference(
    train: ImageData, data: Data, weights: Path, workdir: Path, device: torch.device | str
) -> InceptionReference:
    """Inception's features of the training images, from workdir/inception.pt if they are there."""
    from common import checkpoint
    from common.evaluate.features import inception_features
    from common.metrics import gaussian_statistics
    from common.runtime import file_hash

    file = workdir / "inception.pt"
    of = {"data": data.dataset, "shape": list(train.images.shape), "weights": file_hash(weights)}
    real = checkpoint.load(file) if file.exists() else {}
    if real.get("of") != of:
        every = inception_features(train.images, weights, device)
        mean, cov = gaussian_statistics(every)
        kept = every[:: -(-len(every) // KEPT)].clone()
        real = {"of": of, "count": len(every), "mean": mean, "cov": cov, "features": kept}
        checkpoint.save(file, real)
    return InceptionReference(weights, device, real)
