"""Conditional probability paths p_t(x | x0, x1) = N(mean(t), spread(t)^2 I) and their velocities.

A path gives ``xt``, a sample, and ``ut``, the velocity of the conditional flow through that sample:
u_t(x) = spread'(t) / spread(t) * (x - mean(t)) + mean'(t) (Lipman et al. 2023, theorem 3).
All functions take t of shape (B,) and points of shape (B, ...).

For standard normal x0, independent of x1, p_t(x | x1) = N(t x1, S(t) I), where S holds x0's share and the spread's.
Two numbers follow: ``start``, sqrt(S(0)), the standard deviation of p_0, from which samples start; and
``score_divisor(t)`` = S - t S' / 2 with score(x) = -(x - t u) / score_divisor, where u is the velocity of p_t. For the
noise x - t x1 has the posterior mean -S score, and u = E[x1 | x] + S' / (2 S) E[x - t x1 | x], which is
E[x1 | x] - S' score / 2; so x - t u = -S score + t S' score / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """View t, shape (B,), as (B, 1, ..., 1) so that it multiplies x, shape (B, ...)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class LinearPath:
    """Straight line from x0 to x1 with a constant spread: conditional flow matching and rectified flow.

    mean = (1 - t) x0 + t x1, spread = sigma, u = x1 - x0.
    Source: Tong et al. 2024 (arXiv 2302.00482), equations 14 and 15; Liu et al. 2023 (2209.03003), equation 1.
    """

    sigma: float = 0.0

    @property
    def start(self) -> float:
        return math.hypot(1, self.sigma)  # S = (1 - t)^2 + sigma^2

    def score_divisor(self, t: float) -> float:
        return 1 - t + self.sigma**2

    def mean(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        t = expand(t, x1)
        return (1 - t) * x0 + t * x1

    def spread(self, t: Tensor) -> Tensor:
        return t.new_full(t.shape, self.sigma)

    def xt(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
        mean = self.mean(x0, x1, t)
        return mean if noise is None or self.sigma == 0 else mean + expand(self.spread(t), mean) * noise

    def ut(self, x0: Tensor, x1: Tensor, t: Tensor, xt: Tensor) -> Tensor:
        return x1 - x0


@dataclass(frozen=True)
class LipmanPath:
    """Noise that shrinks to a spread of sigma around x1: flow matching with the optimal-transport path.

    x0 is standard normal and plays the part of the path's noise: xt = t x1 + (1 - (1 - sigma) t) x0,
    u = (x1 - (1 - sigma) x) / (1 - (1 - sigma) t). Source: Lipman et al. 2023 (2210.02747), equations 20 and 21.
    """

    sigma: float = 0.0
    start = 1.0  # S = (1 - (1 - sigma) t)^2: x0 is all the noise there is

    def score_divisor(self, t: float) -> float:
        return 1 - (1 - self.sigma) * t

    def mean(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        return expand(t, x1) * x1

    def spread(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.sigma) * t

    def xt(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
        return self.mean(x0, x1, t) + expand(self.spread(t), x1) * x0

    def ut(self, x0: Tensor, x1: Tensor, t: Tensor, xt: Tensor) -> Tensor:
        # The formula at xt, simplified: no division by a spread that vanishes at t = 1 when sigma = 0.
        return x1 - (1 - self.sigma) * x0


@dataclass(frozen=True)
class BridgePath:
    """Brownian bridge from x0 to x1: Schrodinger-bridge CFM, [SF]2M and IDFF.

    mean = (1 - t) x0 + t x1, spread = sigma sqrt(t (1 - t)),
    u = (1 - 2t) / (2 t (1 - t)) (x - mean) + x1 - x0. Source: Tong et al. 2024 (2302.00482), equations 20 and 21.
    """

    sigma: float = 0.2
    start = 1.0  # S = (1 - t)^2 + sigma^2 t (1 - t)

    def score_divisor(self, t: float) -> float:
        return 1 - t + self.sigma**2 * t / 2

    def mean(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        t = expand(t, x1)
        return (1 - t) * x0 + t * x1

    def spread(self, t: Tensor) -> Tensor:
        return self.sigma * (t * (1 - t)).sqrt()

    def time_of(self, level: Tensor) -> Tensor:
        """The time of a noise level s = sqrt(S(t)) / t, (B,): that of x_t = t (x1 + s z), of all noise as one.

        With w = (1 - t) / t this is w^2 + sigma^2 w = s^2, of whose root the form without cancellation is taken.
        """
        square = self.sigma**2
        return 1 / (1 + 2 * level.square() / (square + (square**2 + 4 * level.square()).sqrt()).clamp(min=1e-30))

    def remaining(self, t: float) -> float:
        """sqrt(S(t)), the standard deviation of p_t(x | x1) for standard normal x0, independent of x1."""
        return math.sqrt((1 - t) ** 2 + self.sigma**2 * t * (1 - t))

    def xt(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        mean = self.mean(x0, x1, t)
        return mean + expand(self.spread(t), mean) * noise

    def ut(self, x0: Tensor, x1: Tensor, t: Tensor, xt: Tensor) -> Tensor:
        # 1e-8 as in torchcfm: at t = 0 and t = 1 the numerator's (x - mean) is zero as well.
        rate = (1 - 2 * t) / (2 * t * (1 - t) + 1e-8)
        return expand(rate, xt) * (xt - self.mean(x0, x1, t)) + x1 - x0

    def noise_mean(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """E[noise | x_t, x1] = s_t r / ((1 - t)^2 + s_t^2) of standard normal x0, independent of x1.

        x_t and x1 tell r = x_t - t x1 = (1 - t) x0 + s_t noise, the sum of two independent Gaussians; it is made of
        them here, since the difference would lose digits near the data. At t = 1, where r = 0, it is 0.
        """
        spread, rest = expand(self.spread(t), x0), expand(1 - t, x0)
        return spread * (rest * x0 + spread * noise) / (rest.square() + spread.square()).clamp(min=1e-12)


Path = LinearPath | LipmanPath | BridgePath
