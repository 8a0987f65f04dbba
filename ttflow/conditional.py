"""Missing values: draws from p(x_missing | x_observed) of a flow, by its density.

Fixing the observed coordinates of the velocity and following the others does *not* draw from the conditional: the flow
of p(x_m | x_o) has another velocity, E[x_m,1 - x_m,0 | x_m,t, x_o], in which x_o stands at its value and not on a path.
(Closed forms of the velocity with variables fixed, as in ``integrals``, are conditionals of a function, not of a
density.) What a train has is the density of whole points, exactly up to the solver. So draws are proposed from the
conditional of a Gaussian mixture, which is a mixture in closed form, and weighted:

    w proportional to p(x_m, x_o) / q(x_m | x_o),    sum w = 1 for each row.

The proposals q are exact draws. Means under w tend to those of the flow's conditional as the draws grow, with a bias of
the order 1 / n and the variance of ``effective`` draws; where few are effective, the conditional of the flow is wider
than, or beside, that of the mixture, and more draws are needed. A part of the proposals has twice the variance, so the
weights are bounded where the flow's tails are no heavier.

Source: Owen, Monte Carlo theory, methods and examples, sections 9.2 (self-normalised) and 9.11 (defensive mixtures).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 0.2  # part of the proposals with covariances times STRETCH
STRETCH = 2.0


@dataclass(frozen=True)
class Gaussians:
    """A mixture: weights (K,), means (K, d), covariances (K, d, d); float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """log p of points (n, d), (n,)."""
        roots = torch.linalg.cholesky(self.covariances)
        z = torch.linalg.solve_triangular(roots, (x[None] - self.means[:, None]).mT, upper=False)
        size = roots.diagonal(dim1=1, dim2=2).log().sum(1) + x.shape[1] / 2 * math.log(math.tau)
        return (self.weights.log()[:, None] - z.square().sum(1) / 2 - size[:, None]).logsumexp(0)

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """n points (n, d)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=g)
        noise = torch.randn(n, self.means.shape[1], generator=g, dtype=torch.float64)
        return self.means[k] + (torch.linalg.cholesky(self.covariances)[k] @ noise[..., None])[..., 0]

    def given(self, x: Tensor, missing: Tensor) -> Gaussians:
        """The distribution of the missing entries of x (d,) given the others: a mixture with other weights.

        Args:
            x: The point; what it holds where it is missing does not matter.
            missing: Where, bool (d,).
        """
        o, m = (~missing).nonzero()[:, 0], missing.nonzero()[:, 0]
        if not len(o):
            return self
        across, within = self.covariances[:, m][:, :, o], self.covariances[:, o][:, :, o]
        gain = torch.linalg.solve(within, across.mT).mT  # S_mo S_oo^-1
        means = self.means[:, m] + (gain @ (x[o] - self.means[:, o])[..., None])[..., 0]
        covariances = self.covariances[:, m][:, :, m] - gain @ across.mT
        each = [
            Gaussians(self.weights[k : k + 1], self.means[k : k + 1, o], within[k : k + 1]) for k in range(len(within))
        ]
        weights = torch.stack([one.log_density(x[None, o])[0] for one in each]).softmax(0)
        return Gaussians(weights, means, (covariances + covariances.mT) / 2)

    def widened(self) -> Gaussians:
        """A part WIDE of it with larger covariances, the rest as it is."""
        weights = torch.cat([(1 - WIDE) * self.weights, WIDE * self.weights])
        covariances = torch.cat([self.covariances, STRETCH * self.covariances])
        return Gaussians(weights, torch.cat([self.means, self.means]), covariances)


@dataclass(frozen=True)
class Filled:
    """Draws for rows with missing entries: points (rows, n, d), weights (rows, n) of sum 1 a row."""

    points: Tensor
    weights: Tensor

    @property
    def effective(self) -> Tensor:
        """How many equal weights have the same variance, 1 / sum w^2, (rows,)."""
        return 1 / self.weights.square().sum(1)

    def mean(self) -> Tensor:
        """(rows, d)."""
        return (self.weights[..., None] * self.points).sum(1)

    def below(self, x: Tensor) -> Tensor:
        """P(X_i < x_i) for each coordinate of points x (rows, d): (rows, d)."""
        return (self.weights[..., None] * (self.points < x[:, None])).sum(1).clamp(max=1)


def fill(
    log_density: Callable[[Tensor], Tensor],
    proposal: Gaussians,
    rows: Tensor,
    n: int,
    g: torch.Generator,
    block: int = 4096,
) -> Filled:
    """n weighted draws of the entries that are NaN, for each row (rows, d).

    Cost: the density of rows times n points.

    Args:
        log_density: log p of points (B, d), of a flow for instance: ``recflow.log_likelihood``.
        proposal: A mixture near p; its conditional is what is proposed.
        rows: float64, with NaN where a value is missing.
        n: Draws of a row.
        g: On the CPU.
        block: Points whose density is asked for at once.

    Raises:
        ValueError: infinity, or nothing finite under the density.
    """
    if rows.isinf().any():
        raise ValueError("the rows hold infinity: give NaN where a value is missing")
    points, log_q = [], []
    for row in rows.double():
        missing = row.isnan()
        given = proposal.given(row, missing).widened()
        draws = row.repeat(n, 1)
        draws[:, missing] = given.draw(n, g) if missing.any() else draws[:, missing]
        points.append(draws)
        log_q.append(given.log_density(draws[:, missing]) if missing.any() else draws.new_zeros(n))
    every = torch.stack(points)
    log_p = torch.cat([log_density(part) for part in every.flatten(0, 1).split(block)]).view(len(rows), n)
    if not log_p.isfinite().any(1).all():
        raise ValueError("a row has the density 0 for all draws: its observed values are far from the data")
    return Filled(every, (log_p.double() - torch.stack(log_q)).softmax(1))


def coverage(below: Tensor, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> list[float]:
    """Parts of the true values inside the central intervals of some levels.

    Args:
        below: P(X < x) at the true values x, of any shape: uniform if the distributions are right.
        levels: Of the intervals.
    """
    return [((below - 0.5).abs() <= level / 2).double().mean().item() for level in levels]
