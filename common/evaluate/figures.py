"""The figures of generated images: one engine of Frechet and kernel distances, with one name and one unit for each.

``fid`` and ``kid`` are those of pytorch-fid's Inception; all figures of EfficientNet-Lite0 begin with ``effnet_``, and
another network's are ``frechet_distance`` and ``kernel_distance``: a number carries the name of its features wherever
it goes. ``kid`` is the plain distance, as torch-fidelity and clean-fid give it; a table that shows a thousand times
that says "KID x 1000".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import metrics
from common.evaluate import scores, sets
from common.evaluate.features import EFFNET, INCEPTION, FeatureNetwork
from common.evaluate.sets import FeatureSet
from common.runtime import generator

# What the Frechet and the kernel distance of a network's features are called, and what comes before all other names.
NAMES = {INCEPTION: ("fid", "kid", ""), EFFNET: ("effnet_frechet", "effnet_kid", "effnet_")}
OTHER_NAMES = ("frechet_distance", "kernel_distance", "")


def measure(
    a: FeatureSet, b: FeatureSet, kid_subsets: int = 100, neighbours: int = 3, resamples: int = 4, seed: int = 0
) -> dict[str, Any]:
    """All figures of generated images ``a`` against real ones ``b`` that their features allow.

    Args:
        kid_subsets: Subsets of KID, of up to 1000 images each.
        neighbours: The neighbour that gives the radius in precision and recall; 0: without them.
        resamples: Random halves of a's kept features that tell the spread of FID; 0: none.

    Raises:
        ValueError: features of different networks.
    """
    for key in ("backend", "weights", "resize"):
        if a.about.get(key) != b.about.get(key):
            others = f"{key} {a.about.get(key)} and {b.about.get(key)}"
            raise ValueError(f"no distance between features of two networks: {others}")
    frechet, kernel, prefix = NAMES.get(a.about["backend"], OTHER_NAMES)
    figures: dict[str, Any] = {frechet: metrics.frechet_distance(a.mean, a.cov, b.mean, b.cov)}
    smaller = min(len(a.rows), len(b.rows))
    if resamples and len(a.rows) >= 4:
        mean, spread = scores.frechet_of_halves(a.rows, b.mean, b.cov, resamples, generator(seed, "halves"))
        halves = {"mean": mean, "std": spread, "size": len(a.rows) // 2, "resamples": resamples}
        figures[f"{frechet}_of_halves"] = halves
    if smaller >= 2:
        size, draw = min(1000, smaller), generator(seed, "subsets")
        value, error = metrics.kernel_distance(a.rows, b.rows, kid_subsets, size, draw)
        figures |= {kernel: value, f"{kernel}_subsets": [kid_subsets, size]}
        figures |= {f"{kernel}_error": error} if math.isfinite(error) else {}
    if smaller > neighbours > 0:
        precision, recall = scores.precision_recall(b.rows, a.rows, neighbours)
        found = {"precision": precision, "recall": recall, "neighbours": neighbours}
        found["manifolds"] = [len(a.rows), len(b.rows)]
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
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
        fake = sets.collect(batches, self.network, total=len(images))
        figures = measure(fake, self.real, **{"resamples": 0, **options})  # the spread of halves is no number
        frechet, _, _ = NAMES.get(self.network.backend, OTHER_NAMES)
        return {k: v for k, v in figures.items() if isinstance(v, float)} | {f"{frechet}_real": self.real.count}


def reference(network: FeatureNetwork, real: Tensor, known: Path | None) -> Reference:
    """Statistics of the features of real images, uint8 (N, C, S, S), kept in the folder ``known`` by their content."""
    return Reference(network, sets.cached(sets.set_of(real, "the real images"), network, known))


def against_equally_many(
    network: FeatureNetwork, images: Tensor, real: Tensor, known: Path | None
) -> dict[str, float | int]:
    """The figures of generated images against as many real ones, and the distances of those to as many others.

    A Frechet distance falls with the number of images, so that only figures of as many can be compared, and what real
    images get against real ones tells how near to perfect a figure is. The real images are drawn once for all
    measurements.

    Args:
        images, real: uint8, (N, C, S, S) and (M, C, S, S); of more than M / 2 images the first M / 2 are taken.
        known: As in :func:`reference`.

    Raises:
        ValueError: fewer than 2 images, or fewer than 4 real ones.
    """
    frechet, kernel, _ = NAMES.get(network.backend, OTHER_NAMES)
    count = min(len(images), len(real) // 2)
    order = torch.randperm(len(real), generator=generator(0, "real images"))
    parts = (real[order[start : start + count].sort().values] for start in (0, count))
    near, other = (reference(network, part, known) for part in parts)
    floor = measure(other.real, near.real, neighbours=0, resamples=0)
    figures = near.measure(images[:count])
    return {**figures, f"{frechet}_floor": floor[frechet], f"{kernel}_floor": floor[kernel]}
