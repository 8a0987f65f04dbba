"""Points to learn: the twelve sets of the ttrecflow experiments, scikit-learn's tables through PCA, and CSV files.

The twelve have the scales of ttrecflow, in whose units its Sinkhorn divergences are. Three of its sets could not be
drawn there or were drawn wrongly: "circles" had no points, "gaussian-mixture" did not run, and "blobs-sklearn" had
other centres in the test set than in the training set. They are drawn here as they were meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttflow import tables

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Sampler = Callable[[int, np.random.Generator], np.ndarray | Tensor]

NOISE = 5e-3  # of scikit-learn's curves, before they are scaled
HELD_OUT = 0.1  # part of a table for validation, for the test, and for its floor
FEW = 2000
INDEPENDENT = 32  # a part of 1/32 of an even sample varies as independent points do, but for 1/32 of the variance
FAR = 10  # times the deviation: an offset is removed; times another column's deviation, or 1: both are standardised


@dataclass(frozen=True)
class Units:
    """What a table's numbers are: offset + scale * (a point here), of columns with these names."""

    names: list[str]
    offset: list[float]
    scale: list[float]


@dataclass(frozen=True)
class Data:
    """Rows of float32: for the fit, for choices (early stop, hyper-parameters), for the verdict, and for the floor.

    ``test`` and ``again`` are two samples of the same size that nothing was fitted to: their distance is the floor.
    ``few`` and ``few_again`` are such samples of 2,000, ttrecflow's number, several of each, (draws, 2000, d): the
    distance of two of them varies too much for a verdict by one. A table has one.

    Some of the sets are more even than chance: scikit-learn's blobs have exactly as many points each, its circles are
    equally spaced. Samples of a flow are not, and no flow can be: hence the points of ``again`` and ``few_again`` are
    independent of each other, all others are ttrecflow's.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    again: Tensor
    few: Tensor
    few_again: Tensor
    units: Units | None = None

    @property
    def dim(self) -> int:
        """Columns."""
        return self.train.shape[1]


# ------------------------------------------------------------------------------------------------------ the twelve sets
def _noise(n: int, g: np.random.Generator) -> Tensor:
    import torch

    return torch.from_numpy(g.standard_normal((n, 2)))


def _share(n: int, g: np.random.Generator) -> Tensor:
    """Uniform in [0, 1), (n,) float64."""
    import torch

    return torch.from_numpy(g.random(n))


def _swissroll(n: int, g: np.random.Generator) -> Tensor:
    """0.8 (angle e(angle) + 0.5 noise), angles 1.5 pi to 4.5 pi."""
    from common.data.toys import roll

    return 0.8 * (roll(_share(n, g)) + 0.5 * _noise(n, g))


def _moons(n: int, g: np.random.Generator) -> Tensor:
    """Two half circles of radius 2 with noise 0.1."""
    from common.data.toys import half_circles

    return 2 * half_circles(math.pi * _share(n, g), _share(n, g) < 0.5) + 0.1 * _noise(n, g)


def _circles(n: int, g: np.random.Generator) -> Tensor:
    """Two circles of radius 8 and 4 with noise 0.1."""
    from common.data.toys import polar

    radius = 4.0 + 4.0 * (_share(n, g) < 0.5)
    return polar(radius, math.tau * _share(n, g)) + 0.1 * _noise(n, g)


def _gaussian_mixture(n: int, g: np.random.Generator) -> Tensor:
    """Eight normal distributions of variance 0.3 on a circle of radius 8."""
    import torch

    from common.data.toys import ring

    return ring(8.0, torch.from_numpy(g.integers(8, size=n)).double()) + math.sqrt(0.3) * _noise(n, g)


def _uniform_sphere(n: int, g: np.random.Generator) -> Tensor:
    """The circle of radius 8."""
    from common.data.toys import polar

    return polar(8.0, math.tau * _share(n, g))


def _sklearn(maker: str, scale: float, columns: list[int] | None = None, **options: object) -> Sampler:
    """Points of ``sklearn.datasets.make_...``, times scale."""

    def draw(n: int, g: np.random.Generator) -> np.ndarray:
        from sklearn import datasets

        points = getattr(datasets, maker)(n, random_state=int(g.integers(2**31)), **options)[0]
        return scale * (points if columns is None else points[:, columns])

    return draw


CENTRES = [(-2.5, 9.0), (4.6, 2.0), (-6.9, -6.9)]  # of the blobs: near those of make_blobs' random state 42

TWELVE: dict[str, Sampler] = {
    "moons-sklearn": _sklearn("make_moons", 5.0, noise=NOISE),
    "circles-sklearn": _sklearn("make_circles", 5.0, noise=NOISE, factor=0.3),
    "swissroll-2d-sklearn": _sklearn("make_swiss_roll", 0.5, [0, 2], noise=NOISE),
    "swissroll-3d-sklearn": _sklearn("make_swiss_roll", 0.5, noise=NOISE),
    "s-curve-2d-sklearn": _sklearn("make_s_curve", 5.0, [0, 2], noise=NOISE),
    "s-curve-3d-sklearn": _sklearn("make_s_curve", 1.0, noise=NOISE),
    "blobs-sklearn": _sklearn("make_blobs", 1.0, centers=CENTRES),
    "swissroll": _swissroll,
    "moons": _moons,
    "circles": _circles,
    "gaussian-mixture": _gaussian_mixture,
    "uniform-sphere": _uniform_sphere,
}


# --------------------------------------------------------------------------------------------------------------- tables
TABLES = ("breast-cancer", "digits", "wine")  # of scikit-learn, without a download
EXAMPLES = ("digits-16", "digits-64", "breast-cancer-8")


def describe() -> str:
    """The names that :func:`load` knows, for --help."""
    tables = f"a table of scikit-learn by its first principal components, {', '.join(EXAMPLES)}"
    return f"{', '.join(TWELVE)}; {tables}; or FILE.csv (.tsv, .txt)"


def load(name: str, n_train: int = 50_000, n_test: int = 10_000, seed: int = 0, draws: int = 1) -> Data:
    """A set of points.

    Args:
        name: See :func:`describe`. Of a table a tenth of the rows is held out for validation, a fifth for the test.
        n_train, n_test: Points, of the twelve; the validation set has a tenth of the training set's. At most so many
            rows of a table.
        seed: Of the points, or of the split.
        draws: Samples of 2,000, of the twelve.

    Raises:
        ValueError: unknown name, what ``tables`` refuses, NaN, a constant column, or too few rows.
        FileNotFoundError: no such CSV file.
    """
    import numpy as np
    import torch

    if min(n_train, n_test) < 2:
        raise ValueError(f"{n_train} training and {n_test} test points: give at least 2 of each")
    sampler = TWELVE.get(name)
    if sampler is None:
        return _table(name, n_train, n_test, seed)
    g = np.random.default_rng([seed, 1])

    def drawn(n: int) -> Tensor:
        return torch.as_tensor(sampler(n, g))[torch.from_numpy(g.permutation(n))].float()

    def independent(n: int) -> Tensor:
        return drawn(INDEPENDENT * n)[:n]

    train, validation, test = drawn(n_train), drawn(max(2, n_train // 10)), drawn(n_test)
    again, few = independent(n_test), torch.stack([drawn(FEW) for _ in range(draws)])
    return Data(name, train, validation, test, again, few, independent(draws * FEW).unflatten(0, (draws, FEW)))


def _table(name: str, n_train: int, n_test: int, seed: int) -> Data:
    """The parts of a table: a text file's, or scikit-learn's by principal components."""
    if name.lower().endswith(tables.SUFFIXES):
        table = tables.read(Path(name))
        _check(name, table.rows)
        return _split(name, *_levelled(name, table.rows, table.names), n_train, n_test, seed)
    table, _, columns = name.rpartition("-")
    if table not in TABLES or not columns.isdecimal():
        import difflib

        near = difflib.get_close_matches(name, [*TWELVE, *EXAMPLES], 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown data set {name!r}{hint} Choose one of {describe()}")
    return _split(name, _components(table, int(columns)), None, n_train, n_test, seed)


def _components(table: str, n: int) -> np.ndarray:
    """The first n principal components, divided by the deviation of the first; the columns are standardised before.

    The digits are not standardised (their columns have one unit) and get noise that is uniform in a grey level.
    """
    import numpy as np
    from sklearn import datasets

    rows = getattr(datasets, f"load_{table.replace('-', '_')}")().data
    if table == "digits":
        rows = rows + np.random.default_rng(0).random(rows.shape)
    else:
        rows = rows / rows.std(0)
    if not 1 <= n <= rows.shape[1]:
        raise ValueError(f"{table}-{n}: {table} has {rows.shape[1]} columns; give {table}-1 to {table}-{rows.shape[1]}")
    rows = rows - rows.mean(0)
    scores = rows @ np.linalg.svd(rows, full_matrices=False)[2][:n].T
    return scores / scores[:, 0].std()


def _levelled(name: str, rows: np.ndarray, names: list[str]) -> tuple[np.ndarray, Units]:
    """Columns without large offsets, and with the deviation 1 where theirs differ much: a flow starts at N(0, I).

    Done in float64, since in float32 a column of 1e9 + 1 is 1e9. Said aloud, as distances are then in other units.
    """
    import numpy as np

    mean, std = rows.mean(0), rows.std(0)
    offset = mean if (np.abs(mean) > FAR * std).any() else np.zeros_like(mean)
    ends = np.append(std, 1.0)
    scale = np.ones_like(std)
    if ends.max() > FAR * ends.min():
        offset, scale = mean, std
        print(f"{name}: deviations from {std.min():.3g} to {std.max():.3g}: the columns are standardised")
    elif offset.any():
        print(f"{name}: a column is far from 0: the means are removed")
    return (rows - offset) / scale, Units(names, offset.tolist(), scale.tolist())


def _check(name: str, rows: np.ndarray) -> None:
    """Raise ValueError for rows that nothing can be fitted to."""
    import numpy as np

    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ValueError(f"{name}: row {bad + 1} holds NaN or infinity: fill or drop such rows")
    if len(rows) < 20:
        raise ValueError(f"{name} has {len(rows)} rows: give at least 20")
    constant = np.ptp(rows, axis=0) == 0
    if constant.any():
        raise ValueError(f"{name}: column {int(constant.nonzero()[0][0]) + 1} is constant: drop it")


def _split(name: str, rows: np.ndarray, units: Units | None, n_train: int, n_test: int, seed: int) -> Data:
    """Rows in random order: a tenth for validation, two tenths for the test, the others to fit."""
    import numpy as np
    import torch

    mixed = torch.from_numpy(rows[np.random.default_rng([seed, 1]).permutation(len(rows))]).float()
    n = max(2, int(HELD_OUT * len(rows)))
    validation, test, again, train = mixed.split([n, n, n, len(rows) - 3 * n])
    parts = (train[:n_train], validation, test[:n_test], again[:n_test], test[None, :FEW], again[None, :FEW])
    return Data(name, *parts, units)
