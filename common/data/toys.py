"""Two-dimensional distributions; ``common.training.small`` trains networks on their points.

Every distribution is centred near the origin and about 5 across, so that any can be the source of any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[int, torch.Generator], Tensor]  # draw(n, generator) -> (n, D) float32


# ------------------------------------------------------------------------------------------------------------- shapes
# Without noise and scale, as functions of what is drawn and in its precision: shared by all who draw such sets.
def polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    """Points (N, 2) of given angles (N,)."""
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)


def half_circles(angle: Tensor, lower: Tensor) -> Tensor:
    """Two half circles that reach into each other, at angles (N,) of [0, pi]; ``lower``: which are of the lower one."""
    x, y = torch.cos(angle), torch.sin(angle)
    return torch.where(lower[:, None], torch.stack([1 - x, 0.5 - y], 1), torch.stack([x, y], 1))


def s_shape(angle: Tensor) -> Tensor:
    """scikit-learn's S seen from the side, at angles (N,) of [-1.5 pi, 1.5 pi]."""
    return torch.stack([torch.sin(angle), torch.sign(angle) * (torch.cos(angle) - 1)], dim=1)


def roll(share: Tensor) -> Tensor:
    """scikit-learn's roll seen from above, at shares (N,) of its angle, which goes from 1.5 pi to 4.5 pi."""
    angle = 1.5 * math.pi * (1 + 2 * share)
    return polar(angle, angle)


def ring(radius: float, mode: Tensor) -> Tensor:
    """The points of eight on a circle whose numbers (N,) are given."""
    return polar(radius, mode * (math.pi / 4))


# ------------------------------------------------------------------------------------------------------ distributions
def _normal(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=g)


def _uniform(n: int, g: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=g)


def _moons(n: int, g: torch.Generator) -> Tensor:
    """Two half circles with noise 0.2, times 3 and minus 1: torchcfm's."""
    points = half_circles(_uniform(n, g, 0, math.pi), torch.arange(n) % 2 == 1)
    return 3 * (points + 0.2 * _normal(n, g)) - 1


def _checkerboard(n: int, g: torch.Generator) -> Tensor:
    """The eight dark squares of side 2 in [-4, 4]^2."""
    column, half = torch.randint(4, (n,), generator=g), torch.randint(2, (n,), generator=g)
    corner = torch.stack([column, 2 * half + column % 2], dim=1)
    return 2 * (corner + torch.rand(n, 2, generator=g)) - 4


def _pinwheel(n: int, g: torch.Generator) -> Tensor:
    """Five blades, their angle growing with the radius."""
    blade = torch.randint(5, (n,), generator=g)
    points = torch.tensor([0.3, 0.1]) * _normal(n, g) + torch.tensor([1.0, 0.0])
    angle = blade * (2 * math.pi / 5) + 0.25 * torch.exp(points[:, 0])
    c, s = torch.cos(angle), torch.sin(angle)
    return 2 * torch.stack([c * points[:, 0] - s * points[:, 1], s * points[:, 0] + c * points[:, 1]], dim=1)


def _spirals(n: int, g: torch.Generator) -> Tensor:
    """Two arms of one and a half turns."""
    angle = 3 * math.pi * torch.sqrt(_uniform(n, g))
    sign = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    return sign[:, None] * polar(angle / 3, angle) * 1.3 + 0.1 * _normal(n, g)


def _circles(n: int, g: torch.Generator) -> Tensor:
    """Two circles of radius 4 and 2 with noise 0.1."""
    radius = torch.where(torch.arange(n) % 2 == 0, 4.0, 2.0)
    return polar(radius, _uniform(n, g, 0, 2 * math.pi)) + 0.1 * _normal(n, g)


DISTRIBUTIONS: dict[str, Draw] = {
    "gaussian": _normal,
    # torchcfm's: equal weights on a circle of radius 5, covariance sqrt(0.1) I
    "8gaussians": lambda n, g: ring(5.0, torch.randint(8, (n,), generator=g)) + 0.1**0.25 * _normal(n, g),
    "moons": _moons,
    "s-curve": lambda n, g: 1.5 * (s_shape(_uniform(n, g, -1.5 * math.pi, 1.5 * math.pi)) + 0.05 * _normal(n, g)),
    "swissroll": lambda n, g: (roll(_uniform(n, g)) + 0.5 * _normal(n, g)) / 5,
    "checkerboard": _checkerboard,
    "pinwheel": _pinwheel,
    "spirals": _spirals,
    "circles": _circles,
}


ALTERNATING = ("moons", "spirals", "circles")  # rows of equal shares: they belong to the two parts in turn


def sample(name: str, n: int, draw: torch.Generator) -> Tensor:
    """n points of a named distribution, (n, 2) float32; the order of the rows carries no meaning.

    Raises:
        ValueError: unknown name, or n < 1.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {name!r}: choose one of {', '.join(DISTRIBUTIONS)}")
    if n < 1:
        raise ValueError(f"{n} points of {name}: ask for at least 1")
    return DISTRIBUTIONS[name](n, draw)
