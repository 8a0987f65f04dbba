"""Scores of images and densities: samples of streams, Inception score, precision and recall, spread, likelihood.

All sums are float64. What reads many images keeps a bounded number of numbers about them, so that memory does not grow
with their number, and the result does not depend on their order or on the batches that they came in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.metrics import blocks, matrix_root, pair_of_samples
from common.solvers import integrate
from common.solvers.grids import Times, nodes_of

Velocity = Callable[[Tensor, Tensor], Tensor]
Draw = torch.Generator | Sequence[torch.Generator] | None  # one generator for the batch, or one for each of its rows

EXACT_UP_TO = 64  # coordinates whose divergence is computed exactly where no number of probes is given
EQUAL = 1e-12  # squared distances below this share of the squared norms are rounding


# ---------------------------------------------------------------------------------------------------------- streaming
class Kept:
    """The rows with the smallest keys: a random sample that depends on the rows alone, where keys are hashes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._keys: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._waiting = 0

    def add(self, keys: Tensor, rows: Tensor) -> None:
        """Take in keys (B,) int64 and their rows (B, D)."""
        self._keys.append(keys)
        self._rows.append(rows.detach().cpu().float())
        self._waiting += len(keys)
        if self._waiting > 2 * self.size:
            self._shrink()

    def rows(self) -> Tensor:
        """The rows kept, (K, D) float32, in the order of their keys."""
        self._shrink()
        return self._rows[0]

    def _shrink(self) -> None:
        keys, rows = torch.cat(self._keys), torch.cat(self._rows)
        first = keys.argsort(stable=True)[: self.size]
        self._keys, self._rows, self._waiting = [keys[first]], [rows[first]], len(first)


class ClassSums:
    """What the Inception score needs of images' logits: for each of a few groups sums over its images.

    The score of a group is exp of the mean of KL(p(y|x) || p(y)), p(y) being the group's mean; that is
    exp(H(p(y)) - mean H(p(y|x))), which needs sums only. It lies between 1 (all images alike to the classifier) and
    the number of classes (each recognised for sure, all equally often), sees no real images, and falls with the size of
    a group: compare scores of as many images only. Source: Salimans et al. 1606.03498, section 4.
    Published scores have 10 groups.
    """

    def __init__(self, groups: int, classes: int) -> None:
        self.counts = torch.zeros(groups, dtype=torch.float64)
        self._probabilities = torch.zeros(groups, classes, dtype=torch.float64)
        self._entropies = torch.zeros(groups, dtype=torch.float64)

    def add(self, logits: Tensor, groups: Tensor) -> None:
        """Take in logits (B, classes) and the group (B,) of each image."""
        log_p = logits.detach().cpu().double().log_softmax(1)
        p = log_p.exp()
        entropy = -torch.where(p > 0, p * log_p, p).sum(1)
        self.counts.index_add_(0, groups, torch.ones_like(entropy))
        self._probabilities.index_add_(0, groups, p)
        self._entropies.index_add_(0, groups, entropy)

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the groups that have images (0 for one group)."""
        used = self.counts > 0
        count = self.counts[used]
        mean = self._probabilities[used] / count[:, None]
        entropy = -torch.where(mean > 0, mean * mean.log(), mean).sum(1)
        scores = (entropy - self._entropies[used] / count).exp()
        return scores.mean().item(), scores.std(correction=0).item()


# ----------------------------------------------------------------------------------------------- precision and recall
def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: shares of samples that lie in the other set's manifold.

    A set's manifold is the union of balls around its rows, (N, D) and (M, D), each reaching to the row's k-th nearest
    neighbour in the set. Precision is the share of fake rows in the real manifold, recall that of real rows in the fake
    one. Both grow with the number of rows: compare figures of as many only (the paper takes 50,000 each). Cost: three
    products of all pairs, in blocks of bounded memory; about a minute on one core for 10,000 rows of 2048 features.

    Raises:
        ValueError: other shapes, not more than k rows, NaN or infinity.

    Source: Kynkaanniemi et al. 1904.06991, eq. 1 and 2.
    """
    a, b = pair_of_samples(real, fake)
    if not 1 <= k < min(len(a), len(b)):
        raise ValueError(f"neighbour {k} of {len(a)} and {len(b)} images: give more images, or --neighbours")
    radius_a, radius_b = _radii(a, k), _radii(b, k)
    covered = torch.zeros(len(a), dtype=torch.bool)
    inside = 0
    for rows in blocks(len(b), len(a)):
        squared = _squared(b[rows], a)
        inside += int((squared <= radius_a).any(1).sum())
        covered |= (squared <= radius_b[rows][:, None]).any(0)
    return inside / len(b), covered.double().mean().item()


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (N, M); those of equal rows are 0 and not rounding, so that a ball of radius 0 holds them."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = torch.addmm(norms, a, b.T, alpha=-2)
    return torch.where(squared <= EQUAL * norms, 0, squared)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest neighbour, itself left out; (N,)."""
    radii = []
    for rows in blocks(len(x), len(x)):
        squared = _squared(x[rows], x)
        squared.diagonal(rows.start).fill_(math.inf)
        radii.append(squared.kthvalue(k, 1).values)
    return torch.cat(radii)


# ------------------------------------------------------------------------------------------------------------- spread
def frechet_of_halves(
    rows: Tensor, mean: Tensor, cov: Tensor, resamples: int, draw: torch.Generator | None = None
) -> tuple[float, float]:
    """Frechet distances of random halves of rows (K, D), K >= 4, to a Gaussian: their mean and standard deviation.

    Halves drawn without replacement differ among each other as much as sets of all the rows would (the jackknife that
    deletes half), so the standard deviation estimates the standard error at as many images as there are rows. The mean
    is larger than the distance of all rows: a Frechet distance falls with the number of images.

    Cost: eigenvalues of one D x D matrix for each half, or of a smaller one where a half has fewer rows; a few seconds
    each on one core for 2048 features.

    Source: Shao and Wu 1989, section 3 (d = n / 2).
    """
    if len(rows) < 4 or resamples < 2:
        raise ValueError(f"{resamples} halves of {len(rows)} images: give at least 2 of at least 4")
    root, values = matrix_root(cov), []
    for _ in range(resamples):
        half = rows[torch.randperm(len(rows), generator=draw)[: len(rows) // 2]].double()
        mu = half.mean(0)
        centred = half - mu
        product = centred @ root  # singular values: those of cov_half^(1/2) cov^(1/2), times sqrt(n - 1)
        gram = product @ product.T if len(half) < len(mu) else product.T @ product
        cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum() / math.sqrt(len(half) - 1)
        own = centred.square().sum() / (len(half) - 1)
        values.append((mu - mean).square().sum() + own + cov.trace() - 2 * cross)
    distances = torch.stack(values)
    return distances.mean().item(), distances.std().item()


# --------------------------------------------------------------------------------------------------------- likelihood
class Likelihood(NamedTuple):
    """Log densities of samples under a flow; the NFE is the sum of both passes."""

    log_density: Tensor  # (B,) float64, in nats
    noise: Tensor  # where the samples come from, the shape of x
    forwards: int  # passes through the network for each sample
    backwards: int

    @property
    def nfe(self) -> int:
        """Passes through the network for each sample, forth and back."""
        return self.forwards + self.backwards


def log_likelihood(
    velocity: Velocity,
    x: Tensor,
    times: Times,
    method: str = "heun",
    probes: int | None = None,
    draw: Draw = None,
    start: float = 1.0,
) -> Likelihood:
    """Log density of samples x at t = 1 under the flow dx/dt = velocity(x, t) of normal noise at t = 0.

    The flow is followed from x backwards together with the divergence of the velocity along it:
    log p(x(1)) = log N(x(0); 0, start^2 I) - int_0^1 div velocity(x(t), t) dt. The state is float64 (on MPS float32),
    the velocity gets the dtype of x. The error is that of the solver (``heun``: order 2 for the density, too).

    The divergence is exact (one backward pass for each coordinate) or Hutchinson's estimate, the mean of e . (dv/dx) e
    over random signs e, drawn once for the whole path, so that the ODE stays an ODE: unbiased, one backward pass for
    each probe.

    Args:
        velocity: velocity(x, t) -> shape of x, differentiable in x; t has shape (B,).
        x: Samples, shape (B, ...).
        times: Nodes from 0 to 1, ascending; see ``common.solvers.time_grid``. Where a velocity has no value at 1 they
            may end just before it.
        method: As in ``common.solvers.integrate``.
        probes: Of the estimate; 0: exact. None: exact up to 64 coordinates, else 1.
        draw: Generator of the signs, on the CPU; with one for each row a row does not depend on the others.
        start: Standard deviation of the noise, see ``common.paths``.

    Returns:
        ``noise`` is x(0) / start.

    Raises:
        ValueError: no rows, times that do not ascend from 0, or a velocity without a derivative.

    Source: Chen et al. 1806.07366, eq. 8; Grathwohl et al. 1810.01367, eq. 7 and 8; Song et al. 2011.13456, eq. 39.
    """
    nodes = nodes_of(times)
    if x.ndim < 2 or not len(x) or not nodes[0] == 0 < nodes[-1]:
        raise ValueError(f"x has shape {tuple(x.shape)}, times go from {nodes[0]:g} to {nodes[-1]:g}: need (B, ...), 0")
    flat = x.detach().flatten(1)
    flat = flat if x.device.type == "mps" else flat.double()
    d = flat.shape[1]
    probes = (0 if d <= EXACT_UP_TO else 1) if probes is None else probes
    signs = (2 * (_uniform(probes, x.shape, draw) < 0.5) - 1).to(x) if probes else None
    count = 0

    def slope(state: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        v, divergence = _divergence(velocity, state[:, :d].reshape(x.shape).to(x.dtype), t.to(x.dtype), signs)
        return torch.cat([v.flatten(1).to(state.dtype), divergence.to(state.dtype)[:, None]], 1)

    state = torch.cat([flat, flat.new_zeros(len(flat), 1)], 1)
    with torch.no_grad():
        end = integrate(slope, state, nodes[::-1], method)
    noise, change = (
        end[:, :d] / start,
        end[:, d] - d * math.log(start),
    )  # change: the integral of the divergence from 1 to 0
    log_density = change - (noise.square().sum(1) + d * math.log(2 * math.pi)) / 2
    return Likelihood(log_density.cpu().double(), noise.reshape(x.shape).to(x.dtype), count, count * (probes or d))


def _uniform(n: int, shape: Sequence[int], draw: Draw) -> Tensor:
    """Numbers in [0, 1), (n, B, ...) for the shape (B, ...)."""
    if isinstance(draw, Sequence):
        return torch.stack([torch.rand(n, *shape[1:], generator=g) for g in draw], 1)
    return torch.rand(n, *shape, generator=draw)


def _divergence(velocity: Velocity, x: Tensor, t: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """The velocity and its divergence (B,): exact, or the mean over the given signs (probes, *x.shape)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t)
        if not v.requires_grad:
            raise ValueError("the velocity has no derivative: call the network outside torch.no_grad()")
        if signs is not None:
            parts = [(torch.autograd.grad(v, x, e, retain_graph=True)[0] * e).flatten(1).sum(1) for e in signs]
            return v.detach(), torch.stack(parts).mean(0)
        flat = v.flatten(1)
        parts = [
            torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
            for i in range(flat.shape[1])
        ]
        return v.detach(), torch.stack(parts).sum(0)


def bits_per_dimension(
    velocity: Velocity, images: Tensor, times: Times, method: str = "heun", draw: Draw = None, **options: Any
) -> tuple[Tensor, Likelihood]:
    """Bits for each pixel value of uint8 images under a flow whose data are u / 127.5 - 1; (B,) float64.

    Uniform dequantisation: the density is taken at (u + e) / 127.5 - 1 with e uniform in [-1/2, 1/2), a bin around
    each value, and turned from [-1, 1] to the scale of u (log2 127.5 bits more). By Jensen's inequality its mean is an
    upper bound of the bits of the discrete images. A flow that does not know the images needs 8.

    Images are (B, C, H, W), on the velocity's device; ``draw`` is of e and of the probes, all else as in
    :func:`log_likelihood`.

    Source: Theis et al. 1511.01844, section 3.1.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"bits are those of uint8 images, not {images.dtype}")
    e = _uniform(1, images.shape, draw)[0].to(images.device) - 0.5
    likelihood = log_likelihood(velocity, (images + e) / 127.5 - 1, times, method, draw=draw, **options)
    nats = -likelihood.log_density / images[0].numel()
    return nats / math.log(2) + math.log2(127.5), likelihood
