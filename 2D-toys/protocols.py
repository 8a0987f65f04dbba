"""The two published protocols on 2D toys: their data sets, their settings, and the figures they were published with.

Both share the data and the training of Tong et al. (2302.00482): 10,000 training points, batches of 512, 1000 epochs of
AdamW. They differ in how a network is sampled and tested: Tong et al. take 100 Euler steps and 1,000 test points,
Shi et al. (DSBM, 2303.16852, table 2) 20 Euler steps. How many test points the latter had is not stated; 10,000 is the
size at which their figures are possible at all, see ``PUBLISHED``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPLIT = (10_000, 1_000, 1_000, 10_000)  # training, validation, test of Tong et al., test of DSBM
BATCH, STEPS = 512, 19_000  # 1000 epochs of the 19 whole batches in 10,000 points
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5
SEEDS = (42, 43, 44, 45, 46)


# ------------------------------------------------------------------------------------------------------------ data sets
def _normal(n: int, g: torch.Generator) -> Tensor:
    import torch

    return torch.randn(n, 2, generator=g)


def gaussians(n: int, g: torch.Generator) -> Tensor:
    """Eight standard normals on a circle of radius 5, equally many points of each."""
    import torch

    from common.data.toys import ring

    return ring(5.0, torch.arange(n) % 8) + _normal(n, g)


def eight_gaussians(n: int, g: torch.Generator) -> Tensor:
    """Eight Gaussians of spread 1.5 on a circle of radius 12, the mode of each point drawn."""
    import torch

    from common.data.toys import ring

    return ring(12.0, torch.randint(8, (n,), generator=g)) + 1.5 * _normal(n, g)


def even_moons(n: int, g: torch.Generator, noise: float) -> Tensor:
    """scikit-learn's moons: evenly spaced points on two half circles, and noise."""
    import torch

    from common.data.toys import half_circles

    upper = n // 2
    angle = torch.cat([torch.linspace(0, math.pi, k) for k in (upper, n - upper)])
    return half_circles(angle, torch.arange(n) >= upper) + noise * _normal(n, g)


def moons(n: int, g: torch.Generator) -> Tensor:
    """Half circles with noise 0.05, times 2, moved left by 1."""
    import torch

    return 2 * even_moons(n, g, 0.05) - torch.tensor([1.0, 0.0])


def wide_moons(n: int, g: torch.Generator) -> Tensor:
    """Half circles with noise 0.1, all coordinates together brought to mean 0 and spread 7."""
    points = even_moons(n, g, 0.1)
    return 7 * (points - points.mean()) / points.std()


def s_curve(n: int, g: torch.Generator) -> Tensor:
    """scikit-learn's S seen from the side, noise 0.05, times 1.5."""
    import torch

    from common.data.toys import s_shape

    return 1.5 * (s_shape(3 * math.pi * (torch.rand(n, generator=g) - 0.5)) + 0.05 * _normal(n, g))


PAIRS = {
    "N-8gaussians": (_normal, gaussians),
    "moons-8gaussians": (wide_moons, eight_gaussians),
    "N-moons": (_normal, moons),
    "N-scurve": (_normal, s_curve),
}


@dataclass(frozen=True)
class Points:
    """Source and target points of a pair: training, validation, and the two test sets."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    large_test: tuple[Tensor, Tensor]


def points_of(pair: str, seed: int, split: tuple[int, int, int, int] = SPLIT) -> Points:
    """The data of a pair: one draw of the source and one of the target, shuffled and split; the rows are not paired."""
    import torch

    from common.runtime import generator

    if pair not in PAIRS:
        raise ValueError(f"unknown pair {pair!r}: choose from {', '.join(PAIRS)}")
    parts = []
    for k, draw in enumerate(PAIRS[pair]):
        g = generator(seed, "points", pair, k)
        points = draw(sum(split), g)
        parts.append(points[torch.randperm(len(points), generator=g)].split(list(split)))
    return Points(*zip(*parts, strict=True))


# -------------------------------------------------------------------------------------------------------------- methods
@dataclass(frozen=True)
class Method:
    """What is trained: a loss of ``common.losses``, its coupling, and what is changed from the published recipe."""

    loss: str
    coupling: str
    sigma: float
    schedule: str = "constant"
    predicts: str = "velocity"
    """velocity, or data: the network estimates x1, and v = (x1_hat - x) / (1 - t)"""


METHODS = {
    "OT-CFM": Method("otcfm", "ot", 0.1),
    "CFM": Method("cfm", "independent", 0.1),
    "FM": Method("fm", "independent", 0.1),
    "RF": Method("rf", "independent", 0.0),
    "SB-CFM": Method("sbcfm", "sinkhorn", 1.0),
    "IDFF": Method("idff", "ot", 0.2),
}
# One change of OT-CFM each, then the combinations. The average of the weights (EMA) comes with every network.
VARIANTS = {
    "OT-CFM + sigma 0": Method("otcfm", "ot", 0.0),
    "OT-CFM + cosine": Method("otcfm", "ot", 0.1, schedule="cosine"),
    "OT-CFM + x1": Method("otcfm", "ot", 0.0, predicts="data"),
    "OT-CFM + sigma 0 + cosine": Method("otcfm", "ot", 0.0, schedule="cosine"),
    "OT-CFM + x1 + cosine": Method("otcfm", "ot", 0.0, schedule="cosine", predicts="data"),
    "OT-CFM + coupling 128": Method("otcfm", "ot128", 0.1),
}
AVERAGED = ("OT-CFM", "OT-CFM + sigma 0", "OT-CFM + x1")
HEADLINE = ("OT-CFM", "OT-CFM + sigma 0 + cosine")  # compared with the published OT-CFM, with all seeds
# Tested on 10,000 points as well, in this order: the headline right after training, the rest when all is trained.
LARGE = (HEADLINE, tuple(METHODS), (*VARIANTS, *(f"{name} + EMA" for name in AVERAGED)))
VARIANT_SEEDS = SEEDS[:3]


def planned(pair: str, seed: int) -> list[str]:
    """What is trained of a pair and a seed when nothing is named: all methods, and for three seeds all variants.

    FM (Lipman et al.) is defined for a Gaussian source only, so it has no entry for moons -> 8gaussians, as in Tong et
    al. The variant in HEADLINE is trained with all seeds, smaller coupling batches with one seed of one pair.
    """
    names = [name for name in METHODS if name != "FM" or pair.startswith("N-")]
    names += [name for name in VARIANTS if name in HEADLINE]
    if seed in VARIANT_SEEDS:
        names += [name for name in VARIANTS if name not in HEADLINE and "coupling" not in name]
    if seed == SEEDS[0] and pair == "N-8gaussians":
        names += [name for name in VARIANTS if "coupling" in name]
    return names
