"""Marginals, conditionals and moments of a train, exactly: integrals over some of its variables are contractions.

A train is f(z) = G_1(z_1) ... G_D(z_D) with G_p(z) = sum_j b_pj(z) C_p[j]. For a density that is a product over the
variables the mean goes through the product, factor by factor:

    E[f]     = H_1 ... H_D,   H_p = sum_j E[b_pj] C_p[j]                          one row of matrices,
    E[f f']  = K_1 ... K_D,   K_p = sum_ij E[b_pi b_pj] C_p[i] (x) C_p[j]         the same of two trains.

Integrating over some variables alone leaves a train of the others, the marginal; a variable that is fixed is one whose
measure is a point, the conditional. What is left are integrals of one variable: sums over Gauss's nodes in each
interval of a spline, exact for the uniform measure and to rounding for a normal one.

This is about the velocity of a flow, a function. Conditioning a flow's *density* is another matter: the velocity of
p(x_1 | x_2) is not that of p(x_1, x_2) with x_2 fixed; see ``conditional``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttflow.bases import Basis, BSplines
from ttflow.recflow import TTVelocity
from ttflow.tt import FunctionalTT, contract

NODES = 24  # of Gauss's rule in an interval
TAIL = 9.0  # deviations: what a normal measure has beyond is 1e-19


@dataclass(frozen=True)
class Measure:
    """A distribution of one variable as nodes (n,) and weights (n,) of sum 1, float64."""

    nodes: Tensor
    weights: Tensor

    def mean(self, basis: Basis) -> Tensor:
        """E[b_j], (n,)."""
        return self.weights @ basis(self.nodes)

    def gram(self, basis: Basis) -> Tensor:
        """E[b_i b_j], (n, n)."""
        values = basis(self.nodes)
        return values.T @ (self.weights[:, None] * values)


def point(x: float) -> Measure:
    """All at x: the variable is fixed."""
    return Measure(torch.tensor([x], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def uniform(basis: Basis, low: float, high: float) -> Measure:
    """Uniform between two values; exact for splines and polynomials."""
    nodes, weights = _panels(basis, low, high)
    return Measure(nodes, weights / (high - low))


def normal(basis: Basis, mean: float = 0.0, std: float = 1.0) -> Measure:
    """N(mean, std^2), to rounding."""
    nodes, weights = _panels(basis, mean - TAIL * std, mean + TAIL * std, std)
    weights = weights * torch.exp(-((nodes - mean) / std).square() / 2)
    return Measure(nodes, weights / weights.sum())


def _panels(basis: Basis, low: float, high: float, longest: float = float("inf")) -> tuple[Tensor, Tensor]:
    """Gauss's nodes and weights between the places where a basis is not smooth, in pieces of at most some length."""
    import numpy as np

    reach = basis.margin * (basis.high - basis.low) if basis.outside == "linear" else 0.0
    places = [basis.low - reach, basis.low, basis.high, basis.high + reach]
    places += basis.table("nodes", torch.zeros((), dtype=torch.float64)).tolist() if isinstance(basis, BSplines) else []
    ends = np.unique([low, high, *(p for p in places if low < p < high)])
    cuts = [np.linspace(a, b, 1 + max(1, int(np.ceil((b - a) / longest)))) for a, b in zip(ends[:-1], ends[1:])]
    ends = np.unique(np.concatenate(cuts))
    u, w = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(ends)[:, None] / 2
    nodes, weights = ends[:-1, None] + half * (1 + u), half * w
    return torch.from_numpy(nodes.ravel()), torch.from_numpy(weights.ravel())


Measures = Mapping[int, Measure]


def integrated(train: FunctionalTT, measures: Measures) -> FunctionalTT:
    """The mean over some variables as a train of the others, which keep their order and are numbered anew.

    Args:
        train: f(z_0, ..., z_(D-1)).
        measures: For each variable to be integrated over, or fixed (:func:`point`), its measure; not for all of them.

    Raises:
        ValueError: no variable is left, or there is none of a number.
    """
    _check(train, measures)
    if len(measures) == len(train.order):
        raise ValueError("no variable is left: for the mean over all of them call `mean`")
    parts = [(k, basis, core) for k, basis, core in zip(train.order, train.bases, train.cores)]
    output = train.output
    while gone := [p for p, (k, _, _) in enumerate(parts) if k in measures]:
        p = gone[-1]
        k, basis, core = parts.pop(p)
        matrices = _reduced(core, measures[k].mean(basis))  # (a, o, b)
        q = p - 1 if p else 0
        near, of_near, other = parts[q]
        formula = "cnxa,ayb->cnxyb" if p else "ayb,bnxc->anxyc"
        product = torch.einsum(formula, *((other, matrices) if p else (matrices, other)))
        parts[q] = near, of_near, product.flatten(2, 3)
        output = q if output == p else output - (output > p)
    left = sorted(k for k, _, _ in parts)
    return FunctionalTT(
        [basis for _, basis, _ in parts], [core for _, _, core in parts], [left.index(k) for k, _, _ in parts], output
    )


def mean(train: FunctionalTT, measures: Measures, tilted: Mapping[int, Tensor] = {}) -> Tensor:
    """E[f], (o,).

    Args:
        train: f.
        measures: Of each variable.
        tilted: For some variables E[g(z) b_j(z)] in place of E[b_j]: the mean of f times g.
    """
    _check(train, measures, all_of_them=True)
    total = torch.ones(1, 1, dtype=torch.float64)  # (o, r)
    for k, basis, core in zip(train.order, train.bases, train.cores):
        values = tilted[k] if k in tilted else measures[k].mean(basis)
        total = torch.einsum("oa,oab->ob", *_alike(total, _reduced(core, values).transpose(0, 1)))
    return total[:, 0]


def second_moments(train: FunctionalTT, measures: Measures) -> Tensor:
    """E[f f^T], (o, o)."""
    _check(train, measures, all_of_them=True)
    total = torch.ones(1, 1, 1, 1, dtype=torch.float64)  # (o, o', r, r')
    for k, basis, core in zip(train.order, train.bases, train.cores):
        core, gram = core.double(), measures[k].gram(basis)
        weighted = torch.einsum("ij,cjye->ciye", gram, core)
        product = torch.einsum("aixb,ciye->xyacbe", core, weighted)  # (o or 1, o or 1, r, r', r, r')
        total = torch.einsum("xyac,xyacbe->xybe", *_alike(total, product, 2))
    return total[:, :, 0, 0]


def variance_shares(train: FunctionalTT, measures: Measures) -> Tensor:
    """Sobol's first-order indices (o, D): the part of the variance of an output that one variable alone explains."""
    means, seconds = mean(train, measures), second_moments(train, measures).diagonal()
    shares = []
    for k in range(len(train.order)):
        alone = integrated(train, {j: m for j, m in measures.items() if j != k}) if len(train.order) > 1 else train
        shares.append(second_moments(alone, {0: measures[k]}).diagonal() - means.square())
    return torch.stack(shares, dim=1) / (seconds - means.square())[:, None]


# ------------------------------------------------------------------------------------------------------------ velocity
def velocity_moments(velocity: TTVelocity, t: float, coordinates: Mapping[int, Measure]) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of a flow's velocity at a time, for independent coordinates z of its frame.

    v = m' + R w with w_i = s_i' z_i + f_i(z, t), so E[w w^T] has the terms E[z z^T], E[z_i f_k] and E[f f^T], each a
    contraction. The velocity is taken without its bound, which only holds it back far outside of the data.

    Args:
        velocity: With one train for all outputs and without a mixture.
        t: The time.
        coordinates: The measure of each z_i; N(0, 1) for all is the frame's own idea of the points at t.

    Raises:
        ValueError: separate trains or a mixture.
    """
    train, frame = velocity.train_, velocity.frame
    if not isinstance(train, FunctionalTT) or frame.components is not None:
        raise ValueError("the moments are those of one train for all outputs, without a mixture")
    d = velocity.dim
    at_t = integrated(_double(train), {d: point(t)})
    slope = frame.at(torch.tensor([t], dtype=frame.means.dtype))[2][0].double()
    of_z = torch.stack([m.weights @ m.nodes for _, m in sorted(coordinates.items())])
    squares = torch.stack([m.weights @ m.nodes.square() for _, m in sorted(coordinates.items())])
    of_f = mean(at_t, coordinates)
    bases: dict[int, Any] = dict(zip(at_t.order, at_t.bases))
    tilted = {k: (m.weights * m.nodes) @ bases[k](m.nodes) for k, m in coordinates.items()}
    cross = torch.stack([mean(at_t, coordinates, {k: tilted[k]}) for k in range(d)]) * slope[:, None]  # s_i' E[z_i f_k]
    linear = torch.outer(slope * of_z, slope * of_z) + torch.diag(slope.square() * (squares - of_z.square()))
    w = slope * of_z + of_f
    second = linear + cross + cross.T + second_moments(at_t, coordinates)
    rotation, means = frame.rotation.double(), frame.means.double()
    covariance = rotation @ (second - torch.outer(w, w)) @ rotation.T
    return means[1] - means[0] + rotation @ w, covariance


def _double(train: FunctionalTT) -> FunctionalTT:
    """The same train with cores of float64."""
    return FunctionalTT(train.bases, [core.double() for core in train.cores], train.order, train.output)


def _reduced(core: Tensor, values: Tensor) -> Tensor:
    """sum_j values[j] core[:, j]: (a, o, b) in float64."""
    return contract(values[None], core.double())[0].transpose(0, 1)


def _alike(total: Tensor, factor: Tensor, leading: int = 1) -> tuple[Tensor, Tensor]:
    """Both with as many outputs, the first indices, of which one may have 1."""
    sizes = [max(a, b) for a, b in zip(total.shape[:leading], factor.shape[:leading])]
    return total.expand(*sizes, *total.shape[leading:]), factor.expand(*sizes, *factor.shape[leading:])


def _check(train: FunctionalTT, measures: Measures, all_of_them: bool = False) -> None:
    """Raises ValueError for variables that there are not, or that lack a measure."""
    numbers = set(range(len(train.order)))
    if set(measures) - numbers or (all_of_them and set(measures) != numbers):
        what = "of each" if all_of_them else "of some"
        raise ValueError(f"measures of the variables {sorted(measures)}: give those {what} of 0 to {max(numbers)}")
