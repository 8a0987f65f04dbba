"""Comparing time series: distances of distributions, autocorrelation, and errors on the circle.

Arrays are numpy; times are in frames unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np

from timeseries_examples.dihedrals import wrap

Distance = Callable[[np.ndarray, np.ndarray], float]


# ---- distributions


def js_distance(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon distance of two histograms of the same bins: 0 equal, 1 disjoint.

    The square root of (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 and logarithms to the base 2; a metric
    (Endres and Schindelin 2003). Two finite samples of one distribution have a distance above 0, the more bins the
    larger: compare with such a floor.

    Raises:
        ValueError: other shapes, negative counts, or an empty histogram.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape != q.shape or min(p.min(), q.min()) < 0 or not (p.sum() > 0 and q.sum() > 0):
        raise ValueError(f"histograms of shapes {p.shape} and {q.shape}: need the same bins, counts >= 0, not all 0")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> float:
        inside = a > 0
        return float(np.sum(a[inside] * np.log2(a[inside] / middle[inside])))

    return float(np.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2)))


def cells(
    points: np.ndarray, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, bins: int
) -> np.ndarray:
    """Counts (bins, ..., bins) of points (N, D) in a box; what lies outside is counted in the nearest cell."""
    start, end = np.asarray(low), np.asarray(high)
    index = np.floor((points - start) / (end - start) * bins).astype(np.int64).clip(0, bins - 1)
    flat = np.ravel_multi_index(tuple(index.T), (bins,) * points.shape[1])
    return np.bincount(flat, minlength=bins ** points.shape[1]).reshape((bins,) * points.shape[1])


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of one number, the area between their distribution functions."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(np.ravel(a), np.ravel(b)))


def against_floor(made: Sequence, real: Sequence, distance: Distance) -> tuple[float, float]:
    """(mean distance of made from real sets, mean distance between different real sets), all of one size.

    The second is what a perfect model would get.
    """
    between = [distance(a, b) for a, b in product(made, real)]
    within = [distance(a, b) for a, b in combinations(real, 2)]
    return float(np.mean(between)), float(np.mean(within))


# ---- chaotic systems: forecasts and attractors


def smape(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Symmetric mean absolute percentage error of the frames up to each horizon, 0 to 200, (T,).

    200 / h times the sum over frames 1 ... h of |y - z| / (|y| + |z|), averaged over forecasts and coordinates; 0 / 0
    counts as 0, a forecast that is not finite as 200. It depends on where 0 is: give coordinates of mean 0.

    Args:
        forecast, truth: (T, ...).

    Source: Gilpin 2023, Phys. Rev. Research 5, 043252. dysts.metrics.smape is half of it by default.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(forecast) + np.abs(truth)
        parts = np.abs(forecast - truth) / np.where(size > 0, size, 1)
    each = np.where(np.isfinite(parts), parts, 1).reshape(len(parts), -1).mean(1)
    return 200 * np.cumsum(each) / np.arange(1, len(each) + 1)


def correlation_dimension(points: np.ndarray, share: float = 0.01) -> float:
    """Correlation dimension of points (N, D): the exponent of C(r) ~ r^d, the share of pairs closer than r.

    The maximum-likelihood exponent, d = -1 / mean of log(r_ij / R) over the pairs closer than R, the quantile ``share``
    of all distances. Neighbours in time have to be thinned out before (Theiler 1986). Points that lie on each other,
    of a run that came to rest, have dimension 0. N = 2,000: 0.1 s.

    Source: Grassberger and Procaccia 1983, Physica D 9, 189; Takens 1985 for the estimator. nolds.corr_dim embeds a
    scalar series; dysts.analysis.gp_dim takes distances between their quantiles 5% and 50% for the tail of a decreasing
    power law: where C(r) = r^d exactly it gives 1 + 0.642 d.
    """
    from scipy.spatial.distance import pdist

    distances = pdist(points)
    count = max(2, round(share * len(distances)))
    close = np.partition(distances, count - 1)[:count]
    radius = close.max()
    if radius <= 0 or close.min() <= 0:
        return 0.0 if radius <= 0 else correlation_dimension(np.unique(points, axis=0), share)
    return float(-1 / np.mean(np.log(close[close < radius] / radius)))


def state_space_divergence(
    real: np.ndarray, made: np.ndarray, width: float = 0.2, draws: int = 1000, seed: int = 0
) -> float:
    """Kullback-Leibler divergence KL(p | q) in nats of Gaussian mixtures on points (N, D) of two attractors.

    p(x) = 1/N sum over points of N(x; x_i, width^2 I), q the same of ``made``; the mean of log p(x) - log q(x) over
    draws from p. All in logarithms, so that the divergence of attractors far apart is large, not infinite. The
    width is in the units of the points: give coordinates of standard deviation 1.

    Source: Brenner et al. 2022 (ICML) and Hess et al. 2023 (ICML), D_stsp by Gaussian mixtures; Hershey and Olsen 2007,
    section 2, for the estimate. dysts.metrics.estimate_kl_divergence has densities in place of logarithms and width 1.
    """
    rng = np.random.default_rng(seed)
    x = real[rng.integers(0, len(real), draws)] + width * rng.normal(size=(draws, real.shape[1]))
    return float(np.mean(_log_mixture(x, real, width) - _log_mixture(x, made, width)))


def _log_mixture(x: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """Log density of a mixture of equal Gaussians at x (M, D), but for the constant of D and width."""
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    return logsumexp(cdist(x, centres, "sqeuclidean") / (-2 * width**2), axis=1) - np.log(len(centres))


# ---- autocorrelation


def autocorrelation(x: np.ndarray, most: int) -> np.ndarray:
    """Normalised autocorrelation of x (T,) or (T, F) at lags 0 ... most, summed over features, by FFT.

    rho(l) = sum_t <x_t - m, x_{t + l} - m> / (T - l) over its value at 0, m the mean. Angles go in as (sin, cos).

    Raises:
        ValueError: fewer frames than lags, or a constant series.
    """
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    frames = len(x)
    if not 0 <= most < frames:
        raise ValueError(f"{most} lags of {frames} frames: give fewer lags or more frames")
    x = x - x.mean(0)
    size = 1 << int(2 * frames - 1).bit_length()  # padded: no wrapping around
    power = np.abs(np.fft.rfft(x, size, axis=0)) ** 2
    sums = np.fft.irfft(power, size, axis=0).sum(1)[: most + 1] / (frames - np.arange(most + 1))
    if sums[0] <= 0:
        raise ValueError("a constant series has no autocorrelation")
    return sums / sums[0]


def correlation_time(rho: np.ndarray, window: float = 5.0) -> float:
    """Integrated autocorrelation time 1/2 + sum rho(l) in frames, up to the first lag >= window times itself.

    An exponential exp(-l / tau) gives about tau. Source: Sokal 1997, "Monte Carlo methods in statistical mechanics".
    """
    sums = 0.5 + np.cumsum(rho[1:])
    enough = np.flatnonzero(np.arange(1, len(rho)) >= window * sums)
    return float(sums[enough[0] if len(enough) else -1])


# ---- angles, in radians


def circular_mean(angles: np.ndarray, axis: int = 0) -> np.ndarray:
    """The direction of the mean of the unit vectors; it has the smallest mean of 1 - cos(error)."""
    return np.arctan2(np.sin(angles).mean(axis), np.cos(angles).mean(axis))


def circular_errors(forecast: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """``mae`` and ``rmse`` in degrees of wrapped differences, and ``cc``, the circular correlation, over all angles."""
    errors = np.rad2deg(np.abs(wrap(forecast - truth)))
    return {
        "mae": float(errors.mean()),
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "cc": circular_correlation(forecast.reshape(-1, forecast.shape[-1]), truth.reshape(-1, truth.shape[-1])),
    }


def circular_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over columns of sum sin(a - A) sin(b - B) / sqrt(sum sin^2(a - A) sum sin^2(b - B)); A, B circular means.

    Args:
        a, b: Angles (N, angles). Each column has its own means, so that two angles that merely differ do not count;
            one that never changes counts as 0.

    Source: Jammalamadaka and Sarma 1988; Fisher 1993, section 6.3.
    """
    x, y = (np.sin(np.asarray(z, np.float64) - circular_mean(z)) for z in (a, b))
    norm = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return float(np.mean((x * y).sum(0) / np.where(norm > 0, norm, np.inf)))


def ramachandran(angles: np.ndarray, bins: int = 36) -> np.ndarray:
    """Counts (bins of phi, bins of psi) of angles (..., 2) in radians, all residues together."""
    return cells(angles.reshape(-1, 2), [-np.pi] * 2, [np.pi] * 2, bins)


def free_energy(phi: np.ndarray, psi: np.ndarray, bins: int = 36) -> np.ndarray:
    """Free energy in kT of each cell of (phi, psi), (bins, bins), phi first: 0 at its minimum, NaN where never visited.

    F = -log of the histogram's density, but for a constant. A cell that n independent frames visit is off by about
    1 / sqrt(n); frames of a trajectory are not independent.

    Args:
        phi, psi: Radians in [-pi, pi), arrays of one shape.
        bins: Cells a side; 36: 10 degrees.
    """
    counts = ramachandran(np.stack([phi, psi], axis=-1), bins).astype(np.float64)
    return np.log(counts.max()) - np.log(np.where(counts > 0, counts, np.nan))


def free_energy_error(reference: np.ndarray, other: np.ndarray, within: float = 4.0) -> float:
    """Root mean square difference of two free energies in kT over the cells that matter, each cell counting alike.

    These are the cells that the reference visits within ``within`` kT of its minimum. A free energy is known but for a
    constant: the one is taken that makes the error least, the mean difference over these cells. A cell that the other
    one never visits counts as half a visit would, log 2 above the largest that it has. Finite samples of one
    distribution have an error above 0: compare with that of two real ones.

    Args:
        reference, other: Surfaces of :func:`free_energy`, of the same cells.
        within: kT.

    Raises:
        ValueError: other shapes, or a surface without a visited cell.
    """
    if reference.shape != other.shape or np.isnan(reference).all() or np.isnan(other).all():
        raise ValueError(
            f"free energies of shapes {reference.shape} and {other.shape}: need the same cells, not all NaN"
        )
    filled = np.where(np.isnan(other), np.nanmax(other) + np.log(2), other)
    matter = reference <= np.nanmin(reference) + within
    return float((filled - reference)[matter].std())


def positive_phi_share(angles: np.ndarray) -> np.ndarray:
    """Share of residues with 0 < phi < 120 degrees for each frame: angles (..., residues, 2) -> (...).

    The left-handed states, alpha-L and the axial C7, behind the highest barrier of an alanine. Beyond 120 degrees
    lies the extended basin, which reaches over the end of the circle.
    """
    phi = np.rad2deg(angles[..., 0])
    return ((phi > 0) & (phi < 120)).mean(-1)


def helix_share(angles: np.ndarray) -> np.ndarray:
    """Share of residues in a helix for each frame: angles (..., residues, 2) -> (...).

    A residue counts if -100 < phi < -30 and -67 < psi < -7 degrees, and so do two neighbours that make three in a row
    with it; where there are fewer than three residues, each for itself. Source: Best and Hummer 2009, J. Phys. Chem. B
    113, 9004.
    """
    phi, psi = np.rad2deg(angles[..., 0]), np.rad2deg(angles[..., 1])
    inside = (phi > -100) & (phi < -30) & (psi > -67) & (psi < -7)
    padded = np.concatenate([np.zeros_like(inside[..., :2]), inside, np.zeros_like(inside[..., :2])], axis=-1)
    n = inside.shape[-1]
    if n < 3:
        return inside.mean(-1)
    triples = padded[..., : n + 2] & padded[..., 1 : n + 3] & padded[..., 2:]
    return (triples[..., :n] | triples[..., 1 : n + 1] | triples[..., 2:]).mean(-1)
