"""The figures of generated images: one engine of Frechet and kernel distances, with one name and one unit for each.

``fid`` and ``kid`` are those of pytorch-fid's Inception; another network's are ``frechet_distance`` and
``kernel_distance``. ``kid`` is the plain distance, as torch-fidelity and clean-fid give it; a table that shows a
thousand times that says "KID x 1000".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import metrics
from common.evaluate import features, scores, sets
from common.evaluate.features import INCEPTION, FeatureNetwork
from common.evaluate.sets import FeatureSet
from common.runtime import generator


def measure(
    a: FeatureSet, b: FeatureSet, kid_subsets: int = 100, neighbours: int = 3, resamples: int = 4, seed: int = 0
) -> dict[str, Any]:
    """All figures of generated images ``a`` against real ones ``b`` that their features allow.

    Args:
        a, b: Features by the same network.
        kid_subsets: Subsets of KID, of up to 1000 images each.
        neighbours: The neighbour that gives the radius in precision and recall; 0: without them.
        resamples: Random halves of a's kept features that tell the spread of FID; 0: none.
        seed: Of halves and subsets.
    """
    frechet, kernel = ("fid", "kid") if a.about["backend"] == INCEPTION else ("frechet_distance", "kernel_distance")
    figures: dict[str, Any] = {frechet: metrics.frechet_distance(a.mean, a.cov, b.mean, b.cov)}
    smaller = min(len(a.rows), len(b.rows))
    if resamples and len(a.rows) >= 4:
        mean, spread = scores.frechet_of_halves(a.rows, b.mean, b.cov, resamples, generator(seed, "halves"))
        halves = {"mean": mean, "std": spread, "size": len(a.rows) // 2, "resamples": resamples}
        figures[f"{frechet}_of_halves"] = halves
    if smaller >= 2:
        size, draw = min(1000, smaller), generator(seed, "subsets")
        value, error = metrics.kernel_distance(a.rows, b.rows, kid_subsets, size, draw)
        figures |= {kernel: value, f"{kernel}_error": error, f"{kernel}_subsets": [kid_subsets, size]}
    if smaller > neighbours > 0:
        precision, recall = scores.precision_recall(b.rows, a.rows, neighbours)
        figures |= {"precision": precision, "recall": recall, "neighbours": neighbours}
        figures["manifolds"] = [len(a.rows), len(b.rows)]
    for name, features_of in (("", a), ("_real", b)):
        if features_of.score is not None:
            figures[f"inception_score{name}"], figures[f"inception_score{name}_std"] = features_of.score
    return figures


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images that generated ones are compared with: a network, and the statistics of their features."""

    network: FeatureNetwork
    real: FeatureSet

    def measure(self, images: Tensor, **options: int) -> dict[str, float | int]:
        """The figures of uint8 images (N, C, S, S) that are numbers, and how many real images they stand against;
        options as in :func:`measure`."""
        batches = sets.set_of(images, "the generated images").batches(sets.BATCH)
        figures = measure(sets.collect(batches, self.network, total=len(images)), self.real, **options)
        return {k: v for k, v in figures.items() if isinstance(v, float)} | {"fid_real": self.real.count}


def inception_reference(
    real: Tensor, weights: Path, known: Path | None, device: torch.device | str = "cpu"
) -> Reference:
    """Statistics of Inception's features of real images.

    Args:
        real: uint8, (N, C, S, S).
        weights: File of FID's Inception; see ``common.evaluate.features``.
        known: Folder that keeps statistics by the content of the images; None: keep nothing.
        device: Of the network.
    """
    network = features.inception_network(weights, device)
    return Reference(network, sets.cached(sets.set_of(real, "the real images"), network, known))
