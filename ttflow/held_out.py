"""Log-likelihoods of held-out points by trains, a network and the usual density estimates: rows of likelihood.py.

All fit the same points, standardised by the deviations of those to fit; log p is that of the set's own units. What an
estimate leaves open is chosen without the test points: the bandwidth by cross-validation, the components by BIC, and of
small tables the jitter of the flows' points (normal noise, which they need there as kernels a bandwidth), and
the axes of a train, by the likelihood of validation rows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ttflow.densities import Density
    from ttflow.options import Options

METHODS = {
    "gaussian": "Gaussian",
    "kde": "KDE",
    "mixture": "mixture",
    "network": "network",
    "train": "train",
    "both": "train on mixture",
}
FEW = 1000  # rows to fit below which the jitter is chosen and a train's ridge is 0.1
JITTERS = (0.2, 0.45)  # deviations, in those of the columns
CHOOSING = 300  # validation rows that a choice is made on
N_BASIS = 14  # functions of each coordinate above three dimensions
FEW_STEPS, FEW_PAIRS = 600, 5000  # of the network, of a sweep, for such tables
MAF = ("power", "gas")


class Row(TypedDict):
    """A row of the table, as far as it is read again."""

    set: str
    seed: int
    dim: int
    n_train: int
    n_test: int
    nats: dict[str, float]
    errors: dict[str, float]
    exact: float | None
    entropy: list[float] | None


@dataclass(frozen=True)
class Points:
    """A set in units of its own deviations: points here times scale, plus an offset; float64."""

    train: Tensor
    validation: Tensor
    test: Tensor
    scale: Tensor
    exact: Tensor | None
    density: Density | None

    @property
    def dim(self) -> int:
        """Columns."""
        return self.train.shape[1]


def load(name: str, seed: int, n_train: int, n_test: int, root: str = "") -> Points:
    """A set of ``densities``, ``datasets`` or ``maf``, at most so many points of it.

    Raises:
        ValueError, FileNotFoundError: what these refuse.
    """
    import torch

    from ttflow import maf
    from ttflow.datasets import load as load_set
    from ttflow.densities import KNOWN, known

    density = known(name) if name in KNOWN else None
    if density is not None:
        parts = [density.draw(n, _generator(seed, k)) for k, n in enumerate((n_train, max(200, n_train // 10), n_test))]
    elif name in MAF:
        parts = list(maf.load(name, root))
    else:
        data = load_set(name, seed=seed)
        parts = [data.train.numpy(), data.validation.numpy(), torch.cat([data.test, data.again]).numpy()]
    train, validation, test = (torch.from_numpy(part).double() for part in parts)
    train, validation, test = train[:n_train], validation[:n_train], test[:n_test]
    exact = None if density is None else torch.from_numpy(density.log_density(test.numpy()))
    mean, std = train.mean(0), train.std(0)
    return Points(*((part - mean) / std for part in (train, validation, test)), std, exact, density)


def _generator(seed: int, part: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([seed, 7, part])


def measure(
    name: str, seed: int, options: Options, n_steps: int, root: str = "", before: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """A row: the mean log-likelihood of the test points by each method, in nats, with what was chosen and the seconds.

    Args:
        name: See :func:`load`.
        seed: Of points or split, and of all fits.
        options: Of trains and network: n_train, n_test, n_pairs, nn_steps, sweeps, budget.
        n_steps: Runge-Kutta steps of the flows' densities.
        root: Folder of MAF's data.
        before: A row of the same points that lacks some methods.
    """
    import torch

    points = load(name, seed, options.n_train, options.n_test, root)
    options = replace(options, seed=seed, verbose=0)
    nats, errors, facts = ({**before.get(key, {})} for key in ("nats", "errors", "facts"))
    for method, fit in _fits(points, options, n_steps).items():
        if method in nats:
            continue
        begin = time.perf_counter()
        log_density, facts[method] = fit()
        values = log_density(points.test) - points.scale.log().sum()
        facts[method]["seconds"] = time.perf_counter() - begin
        against = values if points.exact is None else values - points.exact  # noise of the test points cancels
        nats[method] = values.mean().item()
        errors[method] = against.std().item() / math.sqrt(len(values))
    row = {"set": name, "seed": seed, "dim": points.dim, "n_train": len(points.train), "n_test": len(points.test)}
    known = {"exact": None, "entropy": None}
    if points.exact is not None and points.density is not None:
        known = {"exact": points.exact.mean().item(), "entropy": list(points.density.entropy())}
    return row | {"nats": nats, **known, "errors": errors, "facts": facts, "threads": torch.get_num_threads()}


LogDensity = Callable[["Tensor"], "Tensor"]


def _fits(points: Points, options: Options, n_steps: int) -> dict[str, Callable[[], tuple[LogDensity, dict[str, Any]]]]:
    """For each method what fits it: log p of points, and what was chosen."""
    import torch

    from ttflow import baselines

    train, seed = points.train.numpy(), options.seed

    def of_arrays(estimate: Callable[[np.ndarray], np.ndarray]) -> LogDensity:
        return lambda x: torch.from_numpy(estimate(x.numpy()))

    def kernel() -> tuple[LogDensity, dict[str, Any]]:
        estimate, bandwidth = baselines.kernel(train, seed)
        return of_arrays(estimate), {"bandwidth": bandwidth}

    fitted = cache(lambda: baselines.mixture(train, seed=seed))

    def mixture() -> tuple[LogDensity, dict[str, Any]]:
        return of_arrays(fitted().score_samples), {"components": fitted().n_components}

    return {
        "gaussian": lambda: (of_arrays(baselines.gaussian(train)), {}),
        "kde": kernel,
        "mixture": mixture,
        "network": lambda: _best(_networks(points, options), points, n_steps),
        "train": lambda: _best(_trains(points, options), points, n_steps),
        "both": lambda: _best(_trains(points, options, fitted()), points, n_steps),
    }


def _best(
    flows: Iterable[tuple[Any, dict[str, Any]]], points: Points, n_steps: int
) -> tuple[LogDensity, dict[str, Any]]:
    """The density of the flow under which the validation rows are likeliest; of a single one that."""
    from ttflow.score import log_density

    made = [(flow.double(), about) for flow, about in flows]
    if len(made) > 1:
        values = [log_density(flow, points.validation[:CHOOSING], n_steps).mean().item() for flow, _ in made]
        made = [made[max(range(len(made)), key=values.__getitem__)]]
    flow, about = made[0]
    return lambda x: log_density(flow, x, n_steps), about | {"parameters": flow.n_parameters}


def _trains(points: Points, options: Options, mixture: Any = None) -> Iterable[tuple[Any, dict[str, Any]]]:
    """The train of the options, with both axes or some jitters; alone, or on the flow of a mixture of scikit-learn."""
    from ttflow.datasets import Data
    from ttflow.experiment import Fitting, plan

    validation, test = points.validation.float(), points.test.float()
    few = len(points.train) < FEW
    if few:
        options = replace(options, reg_coeff=0.1, n_pairs=min(options.n_pairs or FEW_PAIRS, FEW_PAIRS))
    elif points.dim > 3:
        options = replace(options, n_centers=N_BASIS)
    # the axes of the data are exact for a Gaussian, the columns have margins that are functions of one coordinate
    axes = (True, False) if mixture is None else (False,)
    for jitter, rotate in itertools.product((0.0, JITTERS[-1]) if few else (0.0,), axes):
        train, options = _jittered(points.train, jitter, options.seed), replace(options, rotate=rotate)
        fitting = Fitting(options, Data("", train, validation, test, test, test[None], test[None]))
        if mixture is not None:
            fitting.put_on(mixture)
        velocity, history = fitting.fit(*plan(options, points.dim))
        chosen = {"ridge": options.reg_coeff, "jitter": jitter, "rotate": rotate, "ranks": velocity.train_.ranks}
        yield velocity, chosen | {"sweeps": len(history)}


def _networks(points: Points, options: Options) -> Iterable[tuple[Any, dict[str, Any]]]:
    """Networks of some jitters, or the one of the options."""
    from ttflow import network

    few = len(points.train) < FEW
    steps = FEW_STEPS if few else options.nn_steps
    for jitter in JITTERS if few else (0.0,):
        velocity, _ = network.train(_jittered(points.train, jitter, options.seed), n_steps=steps, seed=options.seed)
        yield velocity, {"steps": steps, "jitter": jitter}


def _jittered(rows: Tensor, deviation: float, seed: int) -> Tensor:
    """float32 rows; with a deviation 20 copies of each with normal noise."""
    import torch

    from common.runtime import generator

    if not deviation:
        return rows.float()
    copies = rows.repeat(20, 1)
    return (copies + deviation * torch.randn(copies.shape, generator=generator(seed, "jitter")).to(copies)).float()


# --------------------------------------------------------------------------------------------------------------- table
def add_missing(
    path: Path, names: Sequence[str], seeds: Sequence[int], options: Options, n_steps: int, root: str
) -> None:
    """Measures what a file of rows lacks, seed after seed, and prints it; see :func:`measure`."""
    from common.records.cards import commit
    from common.records.rows import JsonLines

    log, done = JsonLines(path), {(row["set"], row["seed"]): row for row in read(path)}
    sizes = {name: getattr(options, name) for name in ("n_pairs", "sweeps", "nn_steps", "budget")}
    for name, seed in ((name, seed) for seed in seeds for name in names):
        before = done.get((name, seed), {})
        if set(METHODS) - set(before.get("nats", {})):
            row = measure(name, seed, options, n_steps, root, before)
            log.append(row | {"options": sizes | {"n_steps": n_steps}, "commit": commit()})
            print(name, seed, *(f"{method} {value:.3f}" for method, value in row["nats"].items()), flush=True)


def report(rows: list[Row]) -> str:
    """All tables."""
    parts = {"nats": table(rows), "bits per dimension": table(rows, bits=True), "below the exact density": gaps(rows)}
    return "\n".join(f"\n{title}\n{lines}" for title, lines in parts.items())


def read(path: Path) -> list[Row]:
    """The rows of a file, the last of each set and seed."""
    from common.records.rows import JsonLines

    rows: list[Any] = JsonLines(path).read(Row)
    return list({(row["set"], row["seed"]): row for row in rows}.values())


def table(rows: list[Row], bits: bool = False) -> str:
    """Markdown: means over the seeds with standard errors, in nats (more is better) or bits per dimension (less)."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    head = ["set", "rows", "seeds", "exact", *METHODS.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in names:
        of_set = [row for row in rows if row["set"] == name]
        unit = -math.log(2) * of_set[0]["dim"] if bits else 1.0
        exact = [row["exact"] / unit for row in of_set if row["exact"] is not None]
        cells = [name, f"{of_set[0]['n_train']:,}", str(len(of_set)), _cell(exact)]
        cells += [_cell([row["nats"][method] / unit for row in of_set]) for method in METHODS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(rows: list[Row]) -> str:
    """Markdown: by how much the exact density's likelihood of the test points is above that of each method, in nats."""
    head = ["set", *METHODS.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["set"] for row in rows if row["exact"] is not None):
        of_set = [row for row in rows if row["set"] == name]
        cells = [_gap(of_set, method) for method in METHODS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _gap(rows: list[Row], method: str) -> str:
    """Mean and standard error over the seeds; of one seed the error of its test points."""
    cell = _cell([(row["exact"] or 0.0) - row["nats"][method] for row in rows], 3)
    return cell if len(rows) > 1 else f"{cell} ± {rows[0]['errors'][method]:.3f}"


def _cell(values: list[float], digits: int = 2) -> str:
    """Mean and standard error."""
    import statistics as st

    if not values:
        return ""
    error = f" ± {st.stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{st.mean(values):.{digits}f}{error}"
