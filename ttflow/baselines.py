"""What a density is usually estimated by: one Gaussian, a kernel estimate, a Gaussian mixture. scikit-learn's.

Each takes points to fit (N, d) and gives log p, in nats, of others (n, d), as arrays of float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    LogDensity = Callable[[np.ndarray], np.ndarray]

BANDWIDTHS = (0.15, 0.22, 0.32, 0.46, 0.68, 1.0)  # in Scott's, N^(-1 / (d + 4)), of standardised columns
COMPONENTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32)
MANY = 2000  # points from which on one split of them chooses the bandwidth, else five


def gaussian(train: np.ndarray) -> LogDensity:
    """The normal distribution of largest likelihood."""
    from sklearn.covariance import EmpiricalCovariance

    fit: Any = EmpiricalCovariance().fit(train)
    return lambda x: _normal(fit, x)


def _normal(fit: Any, x: np.ndarray) -> np.ndarray:
    """log N(x) of a fitted covariance."""
    import numpy as np

    sign, size = np.linalg.slogdet(fit.get_precision() / (2 * np.pi))
    assert sign > 0
    return (size - fit.mahalanobis(x)) / 2


def kernel(train: np.ndarray, seed: int = 0) -> tuple[LogDensity, float]:
    """A sum of equal normal kernels at the points, and its bandwidth, which cross-validation chooses.

    Five folds; of more than MANY points one split, with 300 held out. The columns should have similar deviations.
    """
    from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit
    from sklearn.neighbors import KernelDensity

    n, d = train.shape
    bandwidths = [factor * float(n) ** (-1 / (d + 4)) for factor in BANDWIDTHS]
    folds = ShuffleSplit(1, test_size=300, random_state=seed) if n > MANY else KFold(5, shuffle=True, random_state=seed)
    search = GridSearchCV(KernelDensity(), {"bandwidth": bandwidths}, cv=folds).fit(train)
    return search.best_estimator_.score_samples, search.best_params_["bandwidth"]


def mixture(train: np.ndarray, most: int = COMPONENTS[-1], seed: int = 0) -> Any:
    """The Gaussian mixture of scikit-learn whose BIC is least, of those with COMPONENTS; ``score_samples`` is log p.

    More components are tried until the BIC has risen twice in succession.

    Args:
        train: Points (N, d).
        most: Components at most.
        seed: Of the start.
    """
    from sklearn.mixture import GaussianMixture

    best, least, risen = None, math.inf, 0
    for n in (n for n in COMPONENTS if n <= max(1, min(most, len(train) // 2))):
        fit = GaussianMixture(n, random_state=seed).fit(train)
        bic = float(fit.bic(train))
        best, least, risen = (fit, bic, 0) if bic < least else (best, least, risen + 1)
        if risen == 2:
            break
    return best
