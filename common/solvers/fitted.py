"""Samplers fitted to a model: for n steps, the weights that combine the velocities met so far, and the time grid.

Step i of such a sampler is x_(i+1) = a_i x_0 + sum_(j <= i) b_ij v_j with v_j = v(x_j, t_j), which contains Euler's and
every explicit multistep method. For given times the weights of a step are a least-squares problem: fit the states of
fine trajectories of some noises at t_(i+1). One step after the other, each with the velocities that the fitted sampler
itself meets: n evaluations per noise, and nothing to differentiate. The times are searched around grids that suit the
model. Tested on other noises than it was fitted on; the result is a small JSON beside the weights.

Source: the family is that of non-stationary solvers (Shaul et al. 2403.01329), who train it by gradients
through the network; that its weights are linear least squares for given times is what is used here.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from common.metrics import rms
from common.runtime import atomic_write, checked, file_hash, reading, silent
from common.solvers import integrate
from common.solvers.grids import Times, adaptive_grid, nodes_of, time_grid
from common.solvers.multistep import Slope, adams

Velocity = Callable[[Tensor, Tensor], Tensor]
VelocityFor = Callable[[float], Velocity]  # the velocity of a sampler whose last step starts at the given time

# Pulls the weights towards those of AB2, in units of the mean square of the columns: without it the weights of nearly
# equal velocities grow large and of opposite sign, and rounding in 16 bits is amplified.
RIDGE = 1e-6


@dataclass(frozen=True)
class FittedSampler:
    """Times t_0 < ... < t_n and, for each step i, the weights of x_0, v_0, ..., v_i."""

    times: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        nodes_of(self.times)
        shape = [len(row) for row in self.weights]
        if shape != list(range(2, len(self.times) + 1)):
            raise ValueError(f"a sampler of {len(self.times) - 1} steps has rows of {shape} weights: fit it again")
        if not all(math.isfinite(w) for row in self.weights for w in row):
            raise ValueError("a fitted sampler's weights hold NaN or infinity: fit it again")

    @property
    def n_steps(self) -> int:
        return len(self.weights)

    def __call__(self, f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
        """As the solvers of common.solvers: ``integrate(velocity, x, sampler.times, sampler)``."""
        if len(nodes) != len(self.times) or any(abs(a - b) > 1e-6 for a, b in zip(nodes, self.times)):
            raise ValueError(f"this sampler was fitted for its own {self.n_steps} steps: give it its own times")
        columns = [x]  # x_0, v_0, ..., v_i: all that the step may combine, (B, ...) each
        for t, row in zip(nodes, self.weights):
            columns.append(f(x, t))  # the one evaluation of the step
            x = _combination(row, columns)  # from x_0, not from x_i: what was missed before can be made up for
            yield x


def _combination(row: Sequence[float], columns: Sequence[Tensor]) -> Tensor:
    """sum_j row_j columns_j."""
    x = row[0] * columns[0]
    for w, column in zip(row[1:], columns[1:]):
        x.add_(column, alpha=w)
    return x


# ------------------------------------------------------------------------------------------------------------- teacher
@dataclass(frozen=True)
class Teacher:
    """Fine trajectories: states (T + 1, B, ...) and velocities (T, B, ...) at T + 1 ascending times."""

    times: list[float]
    states: Tensor
    velocities: Tensor

    def at(self, t: float) -> Tensor:
        """States at any time, by cubic Hermite interpolation (in the last interval by its chord)."""
        i = min(bisect_right(self.times, t) - 1, len(self.times) - 2)
        h, p, q = self.times[i + 1] - self.times[i], self.states[i], self.states[i + 1]
        u = (t - self.times[i]) / h
        if i + 1 >= len(self.velocities):
            return p + u * (q - p)
        bend = (1 - u) * (h * self.velocities[i] - (q - p)) - u * (h * self.velocities[i + 1] - (q - p))
        return p + u * (q - p) + u * (1 - u) * bend


Progress = Callable[[int], object]  # called with the evaluations of the batch that were made since the last call


@torch.no_grad()
def teach(
    velocity_for: VelocityFor, x0: Tensor, n_steps: int = 100, on_progress: Progress = silent, landing: float = 1.0
) -> Teacher:
    """Fine trajectories of the noises x0 by AB4 at the times u^(5/4); n_steps evaluations.

    They are dense at the noise, where AB4 starts with low orders, and leave 1/80 of the way (with 100 steps) to the
    last step: nearer to the data the velocity of a data prediction is its error divided by almost nothing. With
    ``landing`` below 1 the last step starts there.
    """
    if landing < 1:
        times = [*(landing * time_grid(n_steps - 1, "uniform", torch.float64) ** 1.25).tolist(), 1.0]
    else:
        times = (time_grid(n_steps, "uniform", torch.float64) ** 1.25).tolist()
    velocity, velocities = velocity_for(times[-2]), []

    def record(x: Tensor, t: Tensor) -> Tensor:
        velocities.append(velocity(x, t))
        on_progress(1)
        return velocities[-1]

    # The last step is Euler's, so that a velocity with a landing (see velocity_for) lands.
    states = integrate(record, x0, times[:-1], "ab4", trajectory=True)
    end = integrate(record, states[-1], times[-2:], "euler")
    return Teacher(times, torch.cat([states, end[None]]), torch.stack(velocities))


# ------------------------------------------------------------------------------------------------------------- fitting
@torch.no_grad()
def fit_weights(velocity: Velocity, teacher: Teacher, times: Sequence[float]) -> tuple[FittedSampler, float]:
    """The weights for given times, and the root mean square error at the end on the teacher's own noises.

    Costs len(times) - 1 evaluations of the teacher's batch.
    """
    nodes, x, end = nodes_of(times), teacher.states[0], teacher.states[-1]
    if nodes[0] != teacher.times[0] or nodes[-1] != teacher.times[-1]:
        raise ValueError(f"times go from {nodes[0]:g} to {nodes[-1]:g}, the teacher's not: use the same ends")
    columns, weights = [x], []
    for i, t in enumerate(nodes[:-1]):
        # where the fitted sampler itself is, not on the teacher's path: it will meet its own errors when it samples
        columns.append(velocity(x, x.new_full((len(x),), t)).to(x.dtype))
        row, x = _fit_step(columns, teacher.at(nodes[i + 1]), _adams_row(nodes, i, 2))
        weights.append(row)
    return FittedSampler(tuple(nodes), tuple(weights)), rms(x, end)


def adams_sampler(times: Sequence[float], order: int) -> FittedSampler:
    """Adams-Bashforth of an order as a sampler of this family; order 1 is Euler's method."""
    nodes = nodes_of(times)
    return FittedSampler(tuple(nodes), tuple(tuple(_adams_row(nodes, i, order)) for i in range(len(nodes) - 1)))


def _fit_step(columns: list[Tensor], target: Tensor, prior: list[float]) -> tuple[tuple[float, ...], Tensor]:
    """Ridge regression of the target on the columns, around the prior; the row of weights and the fitted state.

    Normal equations in float64, a few samples at a time: 10 columns at most times a batch of images.
    """
    k, n = len(columns), target.numel()
    gram = torch.zeros(k, k + 1, dtype=torch.float64)
    for rows in torch.arange(len(target)).split(max(1, 2**22 // max(1, target[0].numel()))):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        a = torch.stack([c[part].reshape(-1).cpu() for c in (*columns, target)]).double()
        gram += a[:k] @ a.T
    base = torch.tensor(prior, dtype=torch.float64)
    # min |A w - y|^2 / n + ridge |w - prior|^2; with w = prior + d: (A'A / n + ridge) d = A'(y - A prior) / n
    matrix, right = gram[:, :k] / n, gram[:, k] / n
    ridge = RIDGE * matrix.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    row = (base + torch.linalg.solve(matrix + ridge, right - matrix @ base)).tolist()
    return tuple(row), _combination(row, columns)


def _adams_row(nodes: Sequence[float], step: int, order: int) -> list[float]:
    """The weights of x_0, v_0, ..., v_step by which Adams-Bashforth of an order reaches nodes[step + 1].

    They are what the solver, which is linear, makes of unit vectors.
    """
    x0, *velocities = torch.eye(step + 2, dtype=torch.float64)
    given = iter(velocities)
    *_, row = adams(order)(lambda x, t: next(given), x0, list(nodes[: step + 2]))
    return row.tolist()


@torch.no_grad()
def fit_sampler(
    velocity_for: VelocityFor,
    teacher: Teacher,
    n_steps: int,
    search: int = 30,
    on_progress: Progress = silent,
) -> FittedSampler:
    """The best sampler of n steps for a model: weights by least squares, times by search.

    Starts from the best of the uniform, the cosine and the two adaptive grids, then Nelder-Mead moves the inner times
    (as logarithms of the steps' ratios). On the teacher's noises the result is never worse than Euler's method and AB2
    on the uniform grid and on its own. Costs (8 + search) n_steps evaluations of the teacher's batch.

    Args:
        velocity_for: velocity_for(t) -> the velocity of a sampler whose last step starts at t; most models have one
            velocity for all t.
        search: fits of the weights that the search for times may take; 0: the best of the four grids.

    Returns:
        The sampler; ``facts`` has rms_fit, its error on the teacher's noises.
    """
    from scipy.optimize import minimize

    candidates = {kind: time_grid(n_steps, kind, torch.float64).tolist() for kind in ("uniform", "cosine")}
    if n_steps < len(teacher.times):
        for cost in ("euler", "straightness"):
            candidates[cost] = adaptive_grid(teacher.states, teacher.times, n_steps, cost).tolist()
    trials: list[tuple[float, FittedSampler]] = []  # every sampler with its error: the best of all is returned

    def attempt(times: Sequence[float]) -> float:
        sampler, error = fit_weights(velocity_for(times[-2]), teacher, times)
        trials.append((error, sampler))
        on_progress(n_steps)
        return error

    for times in candidates.values():
        attempt(times)
    if search > 0 and n_steps > 1:
        # Logarithms of ratios are free numbers: any vector gives ascending times from 0 to 1.
        start = _log_ratios(min(trials, key=lambda pair: pair[0])[1].times)
        size = len(start)
        simplex = torch.tensor(start, dtype=torch.float64) + 0.35 * torch.eye(size + 1, size, dtype=torch.float64)
        options = {"maxfev": search, "initial_simplex": simplex.numpy(), "xatol": 1e-3, "fatol": 0, "adaptive": True}
        minimize(lambda z: attempt(_from_log_ratios(z)), start, method="Nelder-Mead", options=options)
    # Least squares are greedy, step by step, and can end worse than plain weights on the same times.
    for times in (candidates["uniform"], min(trials, key=lambda pair: pair[0])[1].times):
        for plain in (adams_sampler(times, 1), adams_sampler(times, 2)):
            trials.append((missed(velocity_for, teacher, plain, times), plain))
            on_progress(n_steps)
    error, sampler = min(trials, key=lambda pair: pair[0])
    return FittedSampler(sampler.times, sampler.weights, {"rms_fit": error})


@torch.no_grad()
def missed(velocity_for: VelocityFor, teacher: Teacher, method: str | FittedSampler, times: Times) -> float:
    """Root mean square difference of a solver's end on some times to the end of the teacher's fine trajectories."""
    return rms(integrate(velocity_for(float(times[-2])), teacher.states[0], times, method), teacher.states[-1])


def _log_ratios(times: Sequence[float]) -> list[float]:
    """log of each step over the last one: n - 1 free numbers."""
    steps = [s - t for t, s in zip(times, times[1:])]
    return [math.log(step / steps[-1]) for step in steps[:-1]]


def _from_log_ratios(z: Sequence[float]) -> list[float]:
    steps = torch.softmax(torch.tensor([*(max(-8.0, min(8.0, float(v))) for v in z), 0.0], dtype=torch.float64), 0)
    return [0.0, *steps.cumsum(0)[:-1].tolist(), 1.0]


# ---------------------------------------------------------------------------------------------------------------- files
KINDS = ("adaptive", "fitted")
FULL = "no"  # the precision that is full; entries that name none are of it


def samplers_path(weights: Path) -> Path:
    """Where the samplers of a weights file lie: the same name with .samplers.json."""
    return weights.with_suffix(".samplers.json")


class Grid(TypedDict):
    """What an adaptive grid is kept as."""

    n_steps: Annotated[int, Meta(ge=1)]
    cfg: float
    cfg_interval: NotRequired[Annotated[str, Meta(max_length=40)]]  # without it the whole
    guide: NotRequired[Annotated[str, Meta(max_length=1000)]]
    guide_sha256: NotRequired[Annotated[str, Meta(max_length=64)]]
    landing: float
    precision: NotRequired[Annotated[str, Meta(max_length=10)]]
    times: Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=2)]


class Plan(Grid):
    """What a fitted sampler is kept as."""

    weights: list[list[Annotated[float, Meta(ge=-1e6, le=1e6)]]]  # of a fit that is any good: below 100
    facts: dict[str, Any]


class Samplers(TypedDict):
    """What the file beside a network's weights holds."""

    weights_sha256: str
    adaptive: list[Grid]
    fitted: list[Plan]


def read_samplers(weights: Path) -> dict[str, list[dict[str, Any]]]:
    """The adaptive grids and fitted samplers of a weights file; empty lists when there are none.

    Raises:
        ValueError: the file is damaged, or belongs to other weights.
    """
    path = samplers_path(weights)
    if not path.exists():
        return {kind: [] for kind in KINDS}
    with reading(path, "remove it and fit the samplers again"):
        content = checked(json.loads(path.read_text(encoding="utf-8")), Samplers, "its value")
        for entry in content["adaptive"] + content["fitted"]:
            if len(nodes_of(entry["times"])) != entry["n_steps"] + 1:
                raise ValueError(f"{len(entry['times'])} times for {entry['n_steps']} steps")
        for entry in content["fitted"]:
            _sampler_of(entry)
        if content["weights_sha256"] != file_hash(weights):
            raise ValueError(
                f"{path} was fitted to other weights than {weights.name}: remove it and fit the samplers again"
            )
    return {kind: content[kind] for kind in KINDS}


def _key(entry: Mapping[str, Any]) -> tuple[float, str, str, float, int, str]:
    """What an entry is found by."""
    guidance = entry["cfg"], entry.get("cfg_interval", ""), entry.get("guide_sha256", "")
    return *guidance, entry["landing"], entry["n_steps"], entry.get("precision", FULL)


def key_of(
    n_steps: int, cfg: float, landing: float = 1.0, precision: str = FULL, guidance: Mapping[str, str] = {}
) -> dict[str, Any]:
    """What an entry is for, and is found by; ``guidance``: interval and guiding weights, of ``Sampler.guidance``."""
    of_precision = {} if precision == FULL else {"precision": precision}
    return {"n_steps": n_steps, "cfg": cfg, **guidance, "landing": landing, **of_precision}


def entry_for(weights: Path, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry made in this precision, or else in full, which suits any network's arithmetic; never the reverse."""
    entries = {_key(entry): entry for entry in read_samplers(weights)[kind]}
    return next(filter(None, (entries.get(_key(each)) for each in (key, {**key, "precision": FULL}))), None)


def _sampler_of(entry: dict[str, Any]) -> FittedSampler:
    return FittedSampler(tuple(entry["times"]), tuple(map(tuple, entry["weights"])), entry["facts"])


def keep(weights: Path, kind: str, entries: Sequence[dict[str, Any]]) -> Path:
    """Add entries to the "adaptive" or "fitted" part of a weights file's samplers; those like them are replaced."""
    lists = read_samplers(weights)
    by_key = {_key(e): e for e in [*lists[kind], *entries]}
    lists[kind] = [by_key[key] for key in sorted(by_key)]
    with atomic_write(samplers_path(weights)) as path:
        # one entry a line: a long file of numbers is still readable, and its differences are
        parts = {k: "[\n  " + ",\n  ".join(map(json.dumps, lists[k])) + "\n ]" if lists[k] else "[]" for k in KINDS}
        body = ",\n".join(f' "{k}": {parts[k]}' for k in KINDS)
        path.write_text(f'{{\n "weights_sha256": "{file_hash(weights)}",\n{body}\n}}\n')
    return samplers_path(weights)


def keep_fitted(weights: Path, sampler: FittedSampler, key: Mapping[str, Any], facts: Mapping[str, Any] = {}) -> Path:
    """Save a fitted sampler beside its weights."""
    return keep(weights, "fitted", [{**key, **asdict(replace(sampler, facts={**sampler.facts, **facts}))}])


def fitted_for(weights: Path, key: Mapping[str, Any]) -> FittedSampler | None:
    """The sampler fitted to a weights file for what :func:`key_of` says, if there is one."""
    entry = entry_for(weights, "fitted", key)
    return None if entry is None else _sampler_of(entry)


def find_fitted(weights: Path, key: Mapping[str, Any]) -> FittedSampler:
    """As :func:`fitted_for`, but ValueError when there is none: which there are, and how to fit one."""
    if sampler := fitted_for(weights, key):
        return sampler
    names = ", ".join(map(flags_of, read_samplers(weights)["fitted"])) or "none"
    asked = flags_of(key)
    raise ValueError(
        f"no sampler was fitted to {weights.name} for --n_steps {asked}; there are: {names}; "
        f"fit one with fit_sampler.py --n_steps {asked}"
    )


def flags_of(entry: Mapping[str, Any]) -> str:
    """Number of steps and the other flags of an entry, as one would type them."""
    flags = {"cfg": "" if entry["cfg"] == 1 else f"{entry['cfg']:g}"}
    flags["cfg_interval"] = entry.get("cfg_interval", "").replace("..", " ")
    flags["guide"] = entry.get("guide", "")
    flags["landing"] = "" if entry["landing"] == 1 else f"{entry['landing']:g}"
    return f"{entry['n_steps']}" + "".join(f" --{name} {value}" for name, value in flags.items() if value)
