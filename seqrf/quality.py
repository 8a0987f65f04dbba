"""How good samples are: what one evaluation compares all its samples with, made once.

* Points of the plane: the exact W2 distance to fresh points of the target.
* Images: the recognised share and the feature distance of a small classifier (``common.evaluate.classifier``),
  against the data's test split or a fifth held out; with Inception weights also FID, KID (the plain one, not times
  1000) and the Inception score against the training images, as papers do (``common.evaluate.figures``).

A figure's floor, what perfect samples would get, stands beside it as NAME_floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common.runtime import generator
from seqrf.options import PLANE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from common.evaluate.classifier import Recogniser
    from common.evaluate.figures import Reference
    from seqrf.options import Data, Run

    Figures = dict[str, float | None]

POINTS = 10_000  # of an exact W2 at most: 20 s and 1 GB
METRICS = {"w2": "W2", "fid": "FID", "feature_distance": "feature distance", "kid": "KID"}  # lower is better


@dataclass(frozen=True)
class PlaneJudge:
    """W2 between samples and as many fresh points of a distribution of ``common.data.toys``; all drawn by the seed."""

    target: str
    seed: int = 0

    def measure(self, x: Tensor, y: Tensor | None = None) -> Figures:
        """w2, w2_floor and the number of points, 10,000 at most, which take 20 s; labels play no part."""
        from common.metrics import wasserstein2

        n = min(len(x), POINTS)
        return {"w2": wasserstein2(x[:n], self.points(n, "test")), "w2_floor": self.floor(n), "w2_points": n}

    @cache  # noqa: B019  two numbers are the key; the judge lives as long as the run
    def floor(self, n: int) -> float:
        """W2 of two sets of n fresh points."""
        from common.metrics import wasserstein2

        return wasserstein2(self.points(n, "floor"), self.points(n, "test"))

    def points(self, n: int, stream: str = "picture") -> Tensor:
        """n fresh points of the target, (n, 2)."""
        from common.data.toys import sample

        return sample(self.target, n, generator(self.seed, stream))

    real = points  # to draw beside samples


@dataclass(frozen=True, eq=False)
class ImageJudge:
    """Figures of images by a classifier, by Inception's features, or by both."""

    recogniser: Recogniser | None
    inception: Reference | None = None

    def measure(self, x: Tensor, y: Tensor | None = None) -> Figures:
        """recognised (with labels), feature_distance, feature_distance_floor; fid, kid, kid_error, inception_score."""
        import torch

        from common.images import to_uint8

        images = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu()
        figures: Figures = {}
        if self.recogniser is not None:
            figures |= self.recogniser.measure(images, None if y is None else y.cpu())
            figures["feature_distance_floor"] = self.recogniser.floor
        # without precision and recall, which would take a minute each time
        return figures | (self.inception.measure(images, neighbours=0) if self.inception else {})

    def real(self, n: int) -> None:
        """None: the figures do not need a picture of real images beside them."""


Judge = PlaneJudge | ImageJudge


def make_judge(run: Run, workdir: Path, device: torch.device | str = "cpu") -> Judge:
    """The judge of a run's data; ``workdir`` keeps a classifier that had to be trained and statistics of real images.

    Raises:
        ValueError, FileNotFoundError: data, classifier or weights that are not there or cannot be used.
    """
    data = run.config.data
    if data.dataset.startswith(PLANE):
        return PlaneJudge(data.dataset.removeprefix(PLANE), run.config.seed)
    return make_image_judge(data, run.config.seed, workdir, device, run.smoke)


def make_image_judge(
    data: Data, seed: int, workdir: Path, device: torch.device | str = "cpu", smoke: bool = False
) -> ImageJudge:
    """Load the real images, the classifier and Inception's weights where there are any; see :func:`make_judge`."""
    from common.evaluate import features, figures
    from common.evaluate.classifier import make_recogniser
    from seqrf.images import real_parts

    given = Path(data.classifier) if data.classifier else None
    if given is not None and not given.exists():
        raise FileNotFoundError(f"no classifier at {given}: leave out --config.data.classifier, and one is trained")
    weights = features.find_weights(data.inception)
    train, test = real_parts(data, smoke)
    recogniser = None
    if given is not None or train.labels is not None:
        path = given or workdir / "classifier.pt"
        recogniser = make_recogniser(train, test, path, seed, asked_for=given is not None, flip=data.random_flip)
    elif weights is None:
        print("images without labels and no Inception weights: their quality is not measured; --config.data.inception")
    if weights is None:
        return ImageJudge(recogniser)
    network = features.inception_network(weights, device)
    return ImageJudge(recogniser, figures.reference(network, train.images, workdir / "statistics"))
