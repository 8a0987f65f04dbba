"""Distributions whose density is known: what a likelihood on held-out points can be measured against.

In two dimensions five of the sets in ``datasets`` (points on curves with normal noise, whose density is an integral
along the curve); in six and eight Gaussian mixtures and copulas, drawn once and for all from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Density:
    """A distribution of points (d,) that can be drawn from and whose density can be computed."""

    def draw(self, n: int, g: np.random.Generator) -> np.ndarray:
        """n points, (n, d) float64."""
        raise NotImplementedError

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p of points (n, d), in nats: (n,)."""
        raise NotImplementedError

    def entropy(self, n: int = 20_000) -> tuple[float, float]:
        """-E log p in nats and its standard error: by n draws, or exactly, then with the error 0."""
        import numpy as np

        parts = [self.log_density(self.draw(n // 20, np.random.default_rng([20, k]))) for k in range(20)]
        values = np.concatenate(parts)
        return -float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


@dataclass(frozen=True, eq=False)
class Mixture(Density):
    """sum_k w_k N(mean_k, root_k root_k^T).

    Args:
        weights: (K,), of sum 1.
        means: (K, d).
        roots: (K, d, d), lower triangles; (1, d, d): shared by all.
    """

    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    def draw(self, n: int, g: np.random.Generator) -> np.ndarray:
        """n points."""
        import numpy as np

        k = g.choice(len(self.weights), n, p=self.weights)
        roots = np.broadcast_to(self.roots, (len(self.weights), *self.roots.shape[1:]))
        return self.means[k] + np.einsum("nij,nj->ni", roots[k], g.standard_normal((n, self.means.shape[1])))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p, component after component."""
        import numpy as np

        total = np.full(len(x), -np.inf)
        inverses = np.linalg.inv(self.roots)
        sizes = np.linalg.slogdet(inverses)[1] - x.shape[1] / 2 * math.log(math.tau)
        for k, weight in enumerate(self.weights):
            shared = k % len(inverses)
            square = ((x - self.means[k]) @ inverses[shared].T) ** 2
            total = np.logaddexp(total, math.log(weight) + sizes[shared] - square.sum(1) / 2)
        return total


@dataclass(frozen=True, eq=False)
class Named(Density):
    """A set of ``datasets.TWELVE``, with the mixture that its density is (up to quadrature along a curve)."""

    name: str
    mixture: Mixture

    def draw(self, n: int, g: np.random.Generator) -> np.ndarray:
        """n points, as ``datasets`` draws them."""
        import numpy as np

        from ttflow.datasets import TWELVE

        return np.asarray(TWELVE[self.name](n, g), dtype=np.float64)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p."""
        return self.mixture.log_density(x)


@dataclass(frozen=True, eq=False)
class GaussianCopula(Density):
    """x_i = F_i^-1(Phi(z_i)) with z ~ N(0, R): given margins, coupled as a Gaussian is.

    log p(x) = -log det(R) / 2 - z^T (R^-1 - I) z / 2 + sum_i log f_i(x_i); the entropy: sum_i h(f_i) + log det(R) / 2.

    Args:
        correlation: R (d, d).
        margins: d frozen distributions of ``scipy.stats``.
    """

    correlation: np.ndarray
    margins: Sequence[Any]

    def draw(self, n: int, g: np.random.Generator) -> np.ndarray:
        """n points."""
        import numpy as np
        from scipy.special import ndtr

        z = g.standard_normal((n, len(self.margins))) @ np.linalg.cholesky(self.correlation).T
        return np.stack([margin.ppf(ndtr(column)) for margin, column in zip(self.margins, z.T)], axis=1)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p."""
        import numpy as np
        from scipy.special import ndtri

        z = np.stack([ndtri(margin.cdf(column)) for margin, column in zip(self.margins, x.T)], axis=1)
        coupling = np.linalg.inv(self.correlation) - np.eye(len(self.margins))
        margins = sum(margin.logpdf(column) for margin, column in zip(self.margins, x.T))
        return margins - np.einsum("ni,ij,nj->n", z, coupling, z) / 2 - np.linalg.slogdet(self.correlation)[1] / 2

    def entropy(self, n: int = 0) -> tuple[float, float]:
        """Exact."""
        import numpy as np

        of_margins = sum(float(margin.entropy()) for margin in self.margins)
        return of_margins + np.linalg.slogdet(self.correlation)[1] / 2, 0.0


@dataclass(frozen=True)
class Clayton(Density):
    """Normal margins coupled by Clayton's copula: they go together where they are low and hardly where they are high.

    With u = Phi(x): c(u) = prod_k<d (1 + k theta) (prod u_i)^(-1 - theta) (sum u_i^-theta - d + 1)^(-d - 1 / theta).

    Args:
        dim: d.
        theta: Above 0; Kendall's tau of two variables is theta / (theta + 2).

    Source: Marshall and Olkin 1988 for the draw, u_i = (1 + e_i / w)^(-1 / theta), e exponential and w gamma.
    """

    dim: int
    theta: float

    def draw(self, n: int, g: np.random.Generator) -> np.ndarray:
        """n points."""
        import numpy as np
        from scipy.special import ndtri

        w, e = g.gamma(1 / self.theta, size=(n, 1)), g.exponential(size=(n, self.dim))
        return ndtri(np.clip((1 + e / w) ** (-1 / self.theta), 1e-300, 1 - 1e-16))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log p."""
        import numpy as np
        from scipy.special import log_ndtr
        from scipy.stats import norm

        log_u = log_ndtr(x)
        total = np.log(np.exp(-self.theta * log_u).sum(1) - self.dim + 1)
        factors = math.fsum(math.log1p(k * self.theta) for k in range(self.dim))
        copula = factors - (1 + self.theta) * log_u.sum(1) - (self.dim + 1 / self.theta) * total
        return copula + norm.logpdf(x).sum(1)


# ------------------------------------------------------------------------------------------------------ what there is
def _components(dim: int, spread: float, seed: int, n: int = 4) -> Mixture:
    """n Gaussians with means of N(0, spread^2) and covariances of random axes and variances of 0.2 to 1.2."""
    import numpy as np

    g = np.random.default_rng([seed, dim])
    turns = np.linalg.qr(g.standard_normal((n, dim, dim)))[0]
    covariances = np.einsum("kij,kj,klj->kil", turns, g.uniform(0.2, 1.2, (n, dim)), turns)
    weights = g.uniform(0.5, 1.5, n)
    return Mixture(weights / weights.sum(), spread * g.standard_normal((n, dim)), np.linalg.cholesky(covariances))


def _even(points: Any, noise: float) -> Mixture:
    """Equal weights, the same noise in both directions."""
    import numpy as np

    points = np.asarray(points, dtype=np.float64)
    return Mixture(np.full(len(points), 1 / len(points)), points, noise * np.eye(2)[None])


def _plane(name: str) -> Named:
    """One of the sets in two dimensions; curves as points in the middles of pieces of at most 0.9 of the noise."""
    import torch

    from common.data.toys import half_circles, polar, ring, roll
    from ttflow.datasets import CENTRES

    middles = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    ones = torch.ones(600, dtype=torch.bool)
    mixtures = {
        "gaussian-mixture": lambda: _even(ring(8.0, torch.arange(8).double()), math.sqrt(0.3)),
        "blobs-sklearn": lambda: _even(CENTRES, 1.0),
        "circles": lambda: _even(torch.cat([polar(r, math.tau * middles) for r in (4.0, 8.0)]), 0.1),
        "moons": lambda: _even(torch.cat([2 * half_circles(math.pi * middles, low) for low in (ones, ~ones)]), 0.1),
        "swissroll": lambda: _even(0.8 * roll(middles), 0.4),
    }
    return Named(name, mixtures[name]())


def _copula(dim: int) -> GaussianCopula:
    """Gamma, beta, t, normal, lognormal and logistic margins in turn, correlations of 0.6^|i - j|."""
    import numpy as np
    from scipy import stats

    margins = [stats.gamma(3), stats.beta(2, 5), stats.t(8), stats.norm(), stats.lognorm(0.4), stats.logistic()]
    places = np.arange(dim)
    return GaussianCopula(0.6 ** np.abs(places[:, None] - places), [margins[k % 6] for k in range(dim)])


KNOWN: dict[str, Callable[[], Density]] = {
    **{name: lambda name=name: _plane(name) for name in ("blobs-sklearn", "circles", "gaussian-mixture", "moons")},
    "swissroll": lambda: _plane("swissroll"),
    "mixture-6": lambda: _components(6, 1.0, 1),
    "mixture-6-apart": lambda: _components(6, 2.0, 1),
    "mixture-8": lambda: _components(8, 1.0, 1),
    "copula-6": lambda: _copula(6),
    "copula-8": lambda: _copula(8),
    "clayton-6": lambda: Clayton(6, 1.5),
}


@cache
def known(name: str) -> Density:
    """A distribution of KNOWN."""
    return KNOWN[name]()
