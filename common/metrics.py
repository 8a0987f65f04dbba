"""Distances of samples and distributions: Frechet, W2, Sinkhorn, MMD, KID; CRPS of ensembles; straightness of paths.

Everything is computed in float64 (on MPS, which has none, on the CPU), in blocks of bounded memory where the number of
pairs is large. Samples are rows: any shape (N, ...) is flattened to (N, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 4_000_000  # pairs in memory at a time: 32 MB in float64
ABSORB = 20  # sweeps of an entropic transport between two absorptions
OVER = 1.8  # over-relaxation of Sinkhorn's updates: a tenth of the sweeps


def _rows(x: Tensor, name: str) -> Tensor:
    """x as finite (N, D) float64."""
    x = torch.as_tensor(x).detach()
    x = (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: give at least one row, shape (N, D)")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity: look at the samples before measuring them")
    return x.reshape(x.shape[0], -1)


def pair_of_samples(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, D) and (M, D) float64, shifted by the same vector to the origin, where differences round least."""
    a, b = _rows(a, "a"), _rows(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has {a.shape[1]} features and b {b.shape[1]}: they must be equal")
    centre = a.mean(0)
    return a - centre, b.to(a.device) - centre


def blocks(n: int, m: int) -> Iterator[slice]:
    """Slices of n rows such that each has at most BLOCK pairs with m others."""
    size = max(1, BLOCK // m)
    return (slice(i, i + size) for i in range(0, n, size))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M), never negative; directly for few features (exact zeros), else by a matrix product."""
    mode = "donot_use_mm_for_euclid_dist" if a.shape[1] <= 16 else "use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode).square()


# ---------------------------------------------------------------------------------------------------- Frechet distance
class Moments:
    """Mean and covariance of rows that come in batches: D^2 numbers in memory, however many rows there are.

    Each batch is centred on its own mean and then moved to the common one, so nothing cancels, as it would in
    E[x^2] - E[x]^2.

    Source: Chan, Golub and LeVeque 1983, eq. 2.1.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, D).

        Raises:
            ValueError: NaN or infinity.
        """
        x = rows.detach().cpu().double()
        finite = torch.isfinite(x).all(1)
        if not finite.all():
            raise ValueError(f"the features of {int((~finite).sum())} of {len(x)} images hold NaN or infinity")
        n, m = self.count, len(x)
        mean = x.mean(0)
        shift = mean - self.mean
        centred = torch.cat([x - mean, math.sqrt(n * m / (n + m)) * shift[None]])  # the last row: between the batches
        self._scatter.addmm_(centred.T, centred)
        self.mean += shift * m / (n + m)
        self.count += m

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D).

        Raises:
            ValueError: fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(f"statistics of {self.count} image(s): a covariance needs at least 2")
        return self.mean, self._scatter / (self.count - 1)


def gaussian_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), float64, as pytorch-fid takes them.

    Raises:
        ValueError: fewer than 2 rows, NaN or infinity.
    """
    rows = torch.as_tensor(features).flatten(1)
    moments = Moments(rows.shape[1])
    for part in rows.split(4096):  # one block in float64 at a time
        moments.add(part)
    return moments.statistics()


def frechet_distance(mu_a: Tensor, cov_a: Tensor, mu_b: Tensor, cov_b: Tensor) -> float:
    """Squared W2 distance of two Gaussians: |mu_a - mu_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)).

    The last trace is the sum of the singular values of cov_a^(1/2) cov_b^(1/2); the roots come from eigenvalues, those
    below 0 by rounding set to 0. So covariances without full rank (fewer samples than features) need no special care
    and nothing is ever imaginary. Cost D^3; about 20 s for 2048 features on one core.

    Means are (D,), covariances (D, D), tensors or arrays.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity.

    Source: Dowson and Landau 1982, eq. 4; Heusel et al. 1706.08500 for FID.
    """
    mu_a, mu_b = (_rows(torch.atleast_1d(torch.as_tensor(m)), "a mean").flatten() for m in (mu_a, mu_b))
    cov_a, cov_b = (_rows(torch.atleast_2d(torch.as_tensor(c)), "a covariance") for c in (cov_a, cov_b))
    d = len(mu_a)
    if not (mu_b.shape == (d,) and cov_a.shape == cov_b.shape == (d, d)):
        shapes = ", ".join(str(tuple(v.shape)) for v in (mu_a, cov_a, mu_b, cov_b))
        raise ValueError(f"mean, covariance, mean, covariance have shapes {shapes}: they must be (D,) and (D, D)")
    root_a, root_b = matrix_root(cov_a), matrix_root(cov_b)
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp(min=0).item()


def matrix_root(cov: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


# --------------------------------------------------------------------------------------------------- optimal transport
def wasserstein2(a: Tensor, b: Tensor) -> float:
    """Exact W2 distance (the root, not its square) of two empirical distributions, (N, D) and (M, D).

    POT's network simplex on the CPU: N M memory, about 0.3 s for 1000 points each. Never 0 for two samples of one
    distribution: print beside it the W2 of two sets of real samples.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or the simplex does not finish.
    """
    import ot

    a, b = pair_of_samples(a, b)
    cost = _squared_distances(a, b).cpu().numpy()
    squared, log = ot.emd2(ot.unif(len(a)), ot.unif(len(b)), cost, numItermax=10_000_000, log=True)
    if log.get("warning"):
        raise ValueError(f"optimal transport of {len(a)} and {len(b)} points did not finish: use fewer points")
    return math.sqrt(max(0.0, float(squared)))


def sinkhorn_divergence(a: Tensor, b: Tensor, blur: float = 0.05, tol: float = 2e-3) -> float:
    """Debiased entropic transport S = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2 for the cost |x - y|^2 / 2.

    GeomLoss' convention (p = 2): the regularisation is blur^2 and S tends to W2^2 / 2 as blur goes to 0. S >= 0, and 0
    only for equal distributions. N M memory, as :func:`wasserstein2`; 2 s on one core for 1000 points each whose extent
    is 300 times the blur.

    Args:
        a, b: Samples, shapes (N, D) and (M, D).
        blur: Length below which differences are smoothed away, in units of the samples.
        tol: Of :func:`entropic_potentials`. Where 4000 sweeps do not suffice the result is a lower bound.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or a blur that is not above 0.

    Source: Feydy et al. 1810.08278, eq. 3.
    """
    if not blur > 0:
        raise ValueError(f"blur is {blur:g}: need blur > 0; try 0.05")
    a, b = pair_of_samples(a, b)

    def transport(x: Tensor, y: Tensor) -> float:
        """The value of the dual, which is the mean of both potentials: the plan's sum is 1."""
        cost = _squared_distances(x, y).cpu().numpy() / 2
        return sum(potential.mean() for potential in entropic_potentials(cost, blur**2, tol, 4000, OVER)[:2])

    divergence = transport(a, b) - transport(a, a) / 2 - transport(b, b) / 2
    return 0.0 if divergence < 0 else divergence  # rounding; NaN stays NaN


def entropic_potentials(
    cost: np.ndarray, reg: float, tol: float, iterations: int, over: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dual potentials f (n, 1) and g (1, m) of entropic transport with uniform marginals, and its plan.

    The plan exp((f + g - cost) / reg) / (n m) minimises <plan, cost> - reg * entropy.

    Sinkhorn's scalings of a kernel into which they are absorbed every ``ABSORB`` sweeps, so that nothing overflows; the
    potentials start at those of exact transport, where each row and column has an entry exp(0), so that nothing
    underflows to an empty row, however small reg is. A sweep costs two products with an (n, m) matrix: 12 microseconds
    at 128, a thirtieth of POT's log-domain sweep.

    Args:
        tol: Sum of the absolute errors of the row marginal at which to stop; the column marginal is exact.
        iterations: Sweeps at most.
        over: Over-relaxation; 1 is the plain update, 2 the limit of stability.

    Source: Cuturi 1306.0895; Schmitzer 1610.06519 (absorption); Thibault et al. 1711.01851 (over-relaxation).
    """
    import ot

    cost = np.ascontiguousarray(cost, dtype=np.float64)
    n, m = cost.shape
    log = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), cost, numItermax=10_000_000, log=True)[1]
    f, g = log["u"][:, None], log["v"][None, :]
    for _ in range(0, iterations, ABSORB):
        plan = np.exp((f + g - cost) / reg) / (n * m)
        u, v = np.ones(n), np.ones(m)
        for _ in range(ABSORB):
            u = u ** (1 - over) * (n * (plan @ v)) ** -over
            v = v ** (1 - over) * (m * (u @ plan)) ** -over
        if over != 1:  # the last sweep is a plain one, after which the column marginal is exact
            u = 1 / (n * (plan @ v))
            v = 1 / (m * (u @ plan))
        f, g = f + reg * np.log(u)[:, None], g + reg * np.log(v)[None, :]
        plan = u[:, None] * plan * v
        if np.abs(plan.sum(1) - 1 / n).sum() < tol:
            break
    return f, g, plan


# --------------------------------------------------------------------------------------------------------------- MMD
def mmd(a: Tensor, b: Tensor, sigmas: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0)) -> float:
    """Squared maximum mean discrepancy with the kernel sum_s exp(-|x - y|^2 / (2 s^2)).

    The unbiased estimator (pairs of a sample with itself are left out) has mean 0 for equal distributions and so may be
    negative. Samples are (N, D) and (M, D), ``sigmas`` the bandwidths.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 rows, NaN or infinity.

    Source: Gretton et al. 2012 (JMLR 13), eq. 3.
    """
    a, b = pair_of_samples(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"mmd of {n} and {m} sample(s): give at least 2 of each")

    def kernel(squared: Tensor) -> Tensor:
        return sum((torch.exp(squared / (-2 * s**2)) for s in sigmas), start=torch.zeros_like(squared))

    def within(x: Tensor) -> float:
        return (_total(x, x, kernel) - len(x) * len(sigmas)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * _total(a, b, kernel) / (n * m)


def _total(a: Tensor, b: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Sum of kernel(squared distance) over all pairs, in blocks."""
    return sum(kernel(_squared_distances(a[rows], b)).sum().item() for rows in blocks(len(a), len(b)))


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Kernel distance of two sets of features (KID on Inception's): mean over random subsets, and its standard error.

    Of each pair of subsets the unbiased squared MMD with the kernel (x . y / D + 1)^3, whose mean is 0 for equal
    distributions at any number of samples (a Frechet distance falls with it). Papers often print 1000 times this.
    Subsets overlap where there are fewer rows than subsets times their size: the standard error is then too small.
    Where they could only be the whole sets it is the jackknife's, see :func:`_jackknife_error`.
    Cost: 3 subset_size^2 D products a subset, 0.3 s on one core for 1000 of 2048 features.

    Args:
        a, b: Features, shapes (N, D) and (M, D).
        subset_size: Rows of each, drawn without replacement from both sets.
        generator: Draws the rows, on the CPU; None: torch's own.

    Raises:
        ValueError: shapes that do not fit, subsets larger than a set or of fewer than 2 rows, NaN or infinity.

    Source: Binkowski et al. 1801.01401, section 4.
    """
    a, b = _rows(a, "a"), _rows(b, "b")
    smaller = min(len(a), len(b))
    if a.shape[1] != b.shape[1] or subsets < 1 or not 2 <= subset_size <= smaller:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{subsets} subsets of {subset_size} rows of {shapes}: give 1 or more, of 2 to {smaller} rows")

    if subset_size == len(a) == len(b):
        return _cubic_mmd(a, b.to(a.device)), _jackknife_error(a, b.to(a.device))

    def draw(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:subset_size].to(x.device)]

    values = torch.tensor([_cubic_mmd(draw(a), draw(b).to(a.device)) for _ in range(subsets)], dtype=torch.float64)
    spread = values.std().item() if subsets > 1 else 0.0
    return values.mean().item(), spread / math.sqrt(subsets)


def _cubic_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of two samples of the same size with the kernel (x . y / D + 1)^3."""
    m, d = x.shape

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / d + 1) ** 3

    def within(p: Tensor) -> Tensor:
        k = kernel(p, p)
        return (k.sum() - k.diagonal().sum()) / (m * (m - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


def _jackknife_error(x: Tensor, y: Tensor) -> float:
    """Standard error of :func:`_cubic_mmd` for rows in random order: from the values without a tenth of both sets each;
    NaN for fewer than 4 rows.

    Source: Shao and Wu 1989, section 1, for groups that are left out in turn.
    """
    groups = min(10, len(x) // 2)  # two rows are left at least
    if groups < 2:
        return math.nan
    group = torch.arange(len(x), device=x.device) % groups
    values = torch.tensor([_cubic_mmd(x[group != g], y[group != g]) for g in range(groups)], dtype=torch.float64)
    return ((groups - 1) * values.var(correction=0)).sqrt().item()


# -------------------------------------------------------------------------------------------------- ensembles and paths
def crps_ensemble(members: Tensor, target: Tensor, fair: bool = False, mean: bool = True) -> float | Tensor:
    """Continuous ranked probability score of an ensemble: mean |x_i - y| - sum_ij |x_i - x_j| / (2 M^2).

    The biased estimator, as in xskillscore and properscoring, so that figures compare with papers: it is the exact
    score of the ensemble's own distribution and falls with M. ``fair=True`` divides by 2 M (M - 1) instead: on average
    the score of the distribution the members were drawn from. Cost M log M for each target.

    Args:
        members, target: Shapes (M, ...) and (...).
        mean: Average over all targets; False: return the scores, shape (...), float64.

    Raises:
        ValueError: shapes that do not fit, too few members, NaN or infinity.

    Source: Gneiting and Raftery 2007, eq. 21; Ferro 2014 for the fair score.
    """
    m = members.shape[0] if members.ndim else 0
    if m < 1 + fair or members.shape[1:] != target.shape:
        shapes = f"{tuple(members.shape)} and {tuple(target.shape)}"
        raise ValueError(f"members and target have shapes {shapes}: need (M, ...) and (...), M >= {1 + fair}")
    x, y = _rows(members, "members"), _rows(target.reshape(1, -1), "target")
    ranks = torch.arange(1, m + 1, dtype=x.dtype, device=x.device)[:, None]
    # sum_ij |x_i - x_j| = 2 sum_k (2 k - m - 1) x_(k) for the sorted members
    spread = 2 * ((2 * ranks - m - 1) * x.sort(0).values).sum(0)
    scores = (x - y).abs().mean(0) - spread / (2 * m * (m - 1 if fair else m))
    return scores.mean().item() if mean else scores.reshape(target.shape)


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square difference, over all coordinates of all samples."""
    return (a.double() - b.double()).square().mean().sqrt().item()


def straightness(trajectory: Tensor, times: Tensor | Sequence[float]) -> float:
    """int E |(x_end - x_start) / T - dx/dt|^2 dt, T = the whole time: 0 exactly for straight paths of constant speed.

    dx/dt is the chord of each interval, so corners inside an interval do not count: use many.

    Args:
        trajectory: States at the times, shape (n + 1, B, ...); summed over features, averaged over the batch.
        times: n + 1 nodes, ascending or descending.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity.

    Source: Liu et al. 2209.03003, eq. 9, for T = 1.
    """
    nodes = torch.as_tensor(times, dtype=torch.float64).flatten().cpu()
    if len(nodes) < 2 or trajectory.ndim < 2 or len(trajectory) != len(nodes):
        raise ValueError(f"trajectory has shape {tuple(trajectory.shape)} for {len(nodes)} times: need (times, B, ...)")
    steps = nodes.diff().tolist()
    x = [_rows(state, "trajectory") for state in trajectory]
    whole = (x[-1] - x[0]) / sum(steps)
    parts = [abs(d) * (whole - (q - p) / d).square().sum(1).mean() for p, q, d in zip(x, x[1:], steps, strict=False)]
    return torch.stack(parts).sum().item()
