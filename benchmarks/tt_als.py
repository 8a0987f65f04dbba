"""What do tensor trains cost, to fit and to sample from, against teneva's and against a network?

    python benchmarks/tt_als.py fit --ranks 5          # one train with outputs against one teneva.als_func per output
    python benchmarks/tt_als.py scaling                # seconds of a sweep and peak memory for 10,000 to 1M pairs
    python benchmarks/tt_als.py sampling               # error by solver and steps, time against the ReLU network
    python benchmarks/tt_als.py sampling --parts       # and where an evaluation spends its time

The problem is the velocity of a rectified flow from normal noise to a Swiss roll, in the frame of ``ttflow``. All on
one thread. The seconds of ``fit`` are processor time, so a busy machine disturbs them little; teneva's are without its
validation, a loop over rows in Python. ``fit`` needs teneva (pip install teneva).
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402
from common.cli.ranges import Count, NoneFor, NotNegative, Positive, Seed  # noqa: E402
from common.runtime import run_main  # noqa: E402

CLOCK = time.process_time
HELD_OUT = 20_000  # rows for the validation error
BLOCK = 8192  # rows of a block that scaling makes when it is asked for


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    what: Literal["fit", "scaling", "sampling"] = "fit"
    """What to measure"""
    data: str = "swissroll-3d-sklearn"
    """A data set of ttflow"""
    targets: Literal["means", "plain"] = "means"
    """Targets of fit: posterior means, ttflow's default, or x1 - x0"""
    n_pairs: Count = 50_000
    """Rows of fit, pairs of the sampled train's fit"""
    ranks: tuple[Count, ...] = (5,)
    """Ranks of fit; the first is that of scaling and sampling"""
    n_basis: Count = 12
    """Functions of each variable in fit"""
    lambs: tuple[NotNegative, ...] = (1e-3, 1.0, 10.0, 100.0)
    """teneva's lamb: its default and others"""
    seconds: Positive = 60.0
    """Longest fit by teneva, processor time"""
    tolerance: Positive = 1e-4
    """Fits end when the held-out error fell by less than this part in three sweeps"""
    sizes: tuple[Count, ...] = (10_000, 50_000, 250_000, 1_000_000)
    """Pairs of scaling"""
    n_samples: Count = 2000
    """Points of sampling"""
    runs: Count = 30
    """Rounds of timing"""
    network_steps: Annotated[Count | None, NoneFor(0)] = None
    """sampling: training steps of the networks; none: those of their recipes"""
    parts: bool = False
    """sampling: profile an evaluation"""
    seed: Seed = 0
    """Of data, pairs and starts"""


# ----------------------------------------------------------------------------------------------------------------- fit
def problem(options: Options) -> tuple[Any, Any]:
    """Rows to fit and rows held out, each (inputs in [-1, 1]^(d+1), targets (N, d)), float64.

    A box holds 99.9% of each coordinate; the others are moved to its edge, as both sides would do.
    """
    import torch

    from ttflow.datasets import load
    from ttflow.draws import data_pairs, on_lines, posterior_means
    from ttflow.recflow import frame_of

    data = load(options.data, seed=options.seed)
    pairs = data_pairs(data.train, options.n_pairs, seed=options.seed)
    frame = frame_of(*pairs(0))
    if options.targets == "plain":
        draw = on_lines(pairs, options.seed)
        held = on_lines(data_pairs(data.validation, HELD_OUT, seed=options.seed + 1), options.seed + 1)
    else:
        draw = posterior_means(data.train, options.n_pairs, options.seed)
        held = posterior_means(data.validation, HELD_OUT, options.seed + 1, 5000)
    (x, y), (held_x, held_y) = frame.rows(*draw(0)), frame.rows(*held(0))
    low, high = (torch.stack([column.quantile(q) for column in x.T]) for q in (0.0005, 0.9995))
    low[-1], high[-1] = 0.0, 1.0
    return tuple(
        (((inputs - low) / (high - low) * 2 - 1).clamp(-1, 1), targets)
        for inputs, targets in ((x, y), (held_x, held_y))
    )


@dataclass
class Fit:
    """Processor seconds after each sweep, the held-out error then (mean square, summed over outputs), parameters."""

    seconds: list[float]
    errors: list[float]
    parameters: int

    def reaches(self, error: float) -> float:
        """Seconds to an error, NaN if never."""
        return next((s for s, e in zip(self.seconds, self.errors) if e <= error), float("nan"))


def ended(errors: list[float], options: Options, seconds: float) -> bool:
    """Whether a fit is to end here."""
    stalled = len(errors) > 3 and min(errors[-3:]) > (1 - options.tolerance) * min(errors[:-3])
    return stalled or seconds > options.seconds


def ours(options: Options, rows: Any, held: Any, rank: int, kind: str, budget: int = 0) -> Fit:
    """One train with all outputs; t, in the first place, has Legendre polynomials, the coordinates those or B-splines.

    With a budget of parameters the ranks adapt. The seconds hold the validation of each sweep.
    """
    from common.runtime import generator
    from ttflow.als import fit
    from ttflow.bases import make
    from ttflow.recflow import SWEEPS
    from ttflow.sweeper import Adapt
    from ttflow.tt import random_train

    d = rows[0].shape[1]
    bases = [make(kind if k else "legendre", options.n_basis, -1.0, 1.0) for k in range(d)]
    start = random_train(bases, rank, d - 1, generator(options.seed, "start"), [d - 1, *range(d - 1)])
    adapt = Adapt(14, budget, growth=4) if budget else None
    sweeps = replace(SWEEPS, n_sweeps=100, tolerance=options.tolerance, adapt=adapt)
    clock = []

    def draw(_: int) -> Any:
        clock.append(CLOCK())
        return rows

    done, history = fit(start, draw, sweeps, held)
    clock.append(CLOCK())
    seconds = [now - clock[0] for now in clock[1:]]
    return Fit(seconds, [row["validation"] for row in history], done.n_parameters)


def teneva_fit(options: Options, rows: Any, held: Any, rank: int, lamb: float) -> Fit:
    """One ``teneva.als_func`` per output on Chebyshev polynomials; a sweep of each in turn, the best of each counts."""
    import numpy as np
    import teneva

    (x, y), (held_x, held_y) = ((a.numpy(), b.numpy()) for a, b in (rows, held))
    shape = [options.n_basis] * x.shape[1]
    trains = [teneva.rand(shape, rank, seed=options.seed + k) for k in range(y.shape[1])]
    squares = np.full(len(trains), np.inf)
    used, seconds, errors = 0.0, [], []
    while not errors or not ended(errors, options, used):
        for k, train in enumerate(trains):
            begun = CLOCK()
            trains[k] = teneva.als_func(x, y[:, k], train, -1.0, 1.0, nswp=1, lamb=lamb)
            used += CLOCK() - begun
            squares[k] = min(squares[k], ((chebyshev(trains[k], held_x) - held_y[:, k]) ** 2).mean())
        seconds.append(used)
        errors.append(float(squares.sum()))
    return Fit(seconds, errors, sum(core.size for train in trains for core in train))


def chebyshev(train: Any, x: Any) -> Any:
    """teneva's train at all rows at once; ``teneva.func_get`` is a loop over them."""
    import numpy as np
    import teneva

    left = np.ones((len(x), 1))
    for core, column in zip(train, x.T):
        factor = np.tensordot(teneva.func_basis(column, core.shape[1]), core, ([0], [1]))
        left = (left[:, None] @ factor)[:, 0]
    return left[:, 0]


def equal_size(options: Options, d: int, parameters: int) -> int:
    """The largest rank of a train with d outputs and d + 1 variables that has no more parameters."""
    from common.runtime import generator
    from ttflow.bases import Legendre
    from ttflow.tt import random_train

    polynomials = [Legendre(options.n_basis, -1.0, 1.0) for _ in range(d + 1)]
    rank = 1
    while random_train(polynomials, rank + 1, d, generator(0), output=d).n_parameters <= parameters:
        rank += 1
    return rank


def compare_fits(options: Options) -> None:
    """Seconds to the end, held-out error, and seconds to the best error of teneva."""
    rows, held = problem(options)
    level = held[1].square().sum(1).mean().item()
    print(f"{len(rows[0]):,} rows; mean square of the held-out targets {level:.3f}; seconds of one core")
    for rank in options.ranks:
        fits: dict[str, Fit] = {}
        for lamb in options.lambs:
            fits[f"teneva, lamb {lamb:g}"] = shown(teneva_fit(options, rows, held, rank, lamb))
        best = min(min(fit.errors) for fit in fits.values())
        size = next(iter(fits.values())).parameters
        wider = equal_size(options, rows[1].shape[1], size)
        for kind, r in (("legendre", rank), ("legendre", wider), ("bsplines", wider)):
            fits[f"one train, {kind}, rank {r}"] = shown(ours(options, rows, held, r, kind))
        fits["one train, bsplines, adaptive ranks"] = shown(ours(options, rows, held, 4, "bsplines", size))
        print(f"\n| rank {rank} | parameters | sweeps | seconds | held-out error | seconds to {best:.3f} | a sweep |")
        print("|---|---|---|---|---|---|---|")
        for name, fit in fits.items():
            n, end = len(fit.seconds), fit.seconds[-1]
            cells = f"{fit.parameters} | {n} | {end:.1f} | {min(fit.errors):.3f} | {fit.reaches(best):.1f}"
            print(f"| {name} | {cells} | {end / n:.2f} |")


def shown(fit: Fit) -> Fit:
    """Prints the first sweeps."""
    print(*(f"{s:.1f} s {e:.3f}" for s, e in zip(fit.seconds[:12], fit.errors)), sep="  ", flush=True)
    return fit


# ------------------------------------------------------------------------------------------------------------- scaling
class Made:
    """Blocks of rows that are made when they are asked for: block i of n pairs of the data."""

    def __init__(self, x1: Any, frame: Any, n: int, seed: int) -> None:
        self.x1, self.frame, self.n, self.seed = x1, frame, n, seed

    def __len__(self) -> int:
        return -(-self.n // BLOCK)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        import torch

        from common.runtime import generator

        g = generator(self.seed, "block", i)
        size = min(BLOCK, self.n - i * BLOCK)
        x1 = self.x1[torch.randint(len(self.x1), (size,), generator=g)]
        x0, t = torch.randn(x1.shape, generator=g), torch.rand(size, generator=g)
        return self.frame.rows(torch.lerp(x0, x1, t[:, None]), t, x1 - x0)


def sweep_cost(options: Options, n: int, lazy: bool) -> dict[str, float]:
    """Seconds of a sweep and memory of a fit to n pairs: run it in a process of its own."""
    import torch

    from common.runtime import generator
    from ttflow.als import fit
    from ttflow.bases import BSplines, Legendre
    from ttflow.datasets import load
    from ttflow.draws import data_pairs
    from ttflow.normal import CACHE
    from ttflow.recflow import SWEEPS, frame_of
    from ttflow.tt import random_train

    torch.set_num_threads(1)
    data = load(options.data, seed=options.seed)
    frame = frame_of(*data_pairs(data.train, 10_000)(0))
    d = data.dim
    bases = [BSplines(20, -3.5, 3.5) for _ in range(d)] + [Legendre(8, 0.0, 1.0, outside="clamp")]
    start = random_train(bases, options.ranks[0], d, generator(options.seed, "start"), output=d)
    blocks = Made(data.train, frame, n, options.seed)
    one_block = Made(data.train, frame, BLOCK, 1)
    fit(start, lambda k: one_block, replace(SWEEPS, n_sweeps=1, cache=0))  # everything is loaded
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    rows: Any = blocks if lazy else tuple(torch.cat(part) for part in zip(*(blocks[i] for i in range(len(blocks)))))
    begun = CLOCK()
    fit(start, lambda k: rows, replace(SWEEPS, n_sweeps=2, cache=0 if lazy else CACHE, tolerance=0.0))
    return {"seconds": (CLOCK() - begun) / 2, "before": before, "peak": resident("VmHWM")}


def resident(key: str) -> float:
    """VmRSS, memory of this process in MB, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no peak memory in /proc/self/status: scaling needs Linux")


def scaling(options: Options) -> None:
    """A table by number of pairs: rows made block by block and forgotten, and rows in memory."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    print("| pairs | made in blocks: s a sweep | us a pair | peak MB | of the fit | in memory | us | MB | fit |")
    print("|---|---|---|---|---|---|---|---|")
    for n in options.sizes:
        cells = []
        for lazy in (True, False):
            with spawn.Pool(1) as pool:
                cost = pool.apply(sweep_cost, (options, n, lazy))
            used = f"{cost['peak']:.0f} | {cost['peak'] - cost['before']:.0f}"
            cells.append(f"{cost['seconds']:.2f} | {1e6 * cost['seconds'] / n:.1f} | {used}")
        print(f"| {n:,} | {' | '.join(cells)} |", flush=True)


# ------------------------------------------------------------------------------------------------------------ sampling
STEPS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100)
CALLS = {"heun": 2, "midpoint": 2, "rk4": 4}  # of a step; 1 for the others


def relative(a: Any, b: Any) -> float:
    """Root mean square of a - b over that of b from its mean."""
    return ((a - b).square().mean() / (b - b.mean(0)).square().mean()).sqrt().item()


def flows(options: Options) -> dict[str, Any]:
    """A train by the defaults of ttflow's experiment, and the network beside it by either recipe."""
    from ttflow import network
    from ttflow.datasets import load
    from ttflow.experiment import Fitting, plan
    from ttflow.options import Options as Experiment

    data = load(options.data, seed=options.seed)
    begun = CLOCK()
    experiment = Experiment(options.data, options.seed, n_pairs=options.n_pairs)
    train, _ = Fitting(experiment, data).fit(*plan(experiment, data.dim))
    made = {f"train, {train.n_parameters} parameters, ranks {train.train_.ranks}": train.eval()}
    print(f"train fitted in {CLOCK() - begun:.1f} s of one core", flush=True)
    for recipe in network.RECIPES:
        net, _ = network.train(data.train, recipe, n_steps=options.network_steps, seed=options.seed)
        made[f"network, recipe {recipe}, {net.n_parameters} parameters"] = net
    return made


def sampling(options: Options) -> None:
    """For each flow the cheapest solver that is as accurate as RK4 with 100 steps (or 1e-3), and the time it takes."""
    import torch

    from common.runtime import generator
    from common.solvers import integrate, time_grid

    made = flows(options)
    dim = next(iter(made.values())).dim
    x0 = torch.randn(options.n_samples, dim, generator=generator(options.seed, "x0"))
    ways: dict[str, tuple[Any, str, str, int]] = {}
    with torch.no_grad():
        for name, flow in made.items():
            method, grid, n = cheapest(name, flow, x0)
            ways[name] = (flow, method, grid, n)
        for what in ("cheapest", "rk4, 100 uniform steps"):
            jobs = {}
            for name, (flow, *way) in ways.items():
                method, grid, n = way if what == "cheapest" else ("rk4", "uniform", 100)
                jobs[name] = partial(integrate, flow, x0, time_grid(n, grid), method)
            for name, took in timed(jobs, options.runs).items():
                print(f"| {what} | {name} | {took * 1e3:.1f} ms |")
        if options.parts:
            parts(next(iter(made.values())), x0)


def cheapest(name: str, flow: Any, x0: Any) -> tuple[str, str, int]:
    """Solver, grid and steps of the fewest calls, of those that are accurate enough; prints the best five."""
    from common.solvers import GRIDS, SOLVERS, integrate, time_grid

    exact = integrate(flow.double(), x0.double(), time_grid(400), "rk4").float()
    finer = integrate(flow, x0.double(), time_grid(800), "rk4").float()
    hundred = relative(integrate(flow.float(), x0, time_grid(100), "rk4"), exact)
    enough = max(1e-3, hundred)
    print(f"{name}: rk4, 400 steps against 800: {relative(exact, finer):.1e}; 100: {hundred:.1e}; asked {enough:.1e}")
    found: list[tuple[int, float, str, str, int]] = []
    for method in SOLVERS:
        for grid in GRIDS:
            for n in STEPS:
                calls = n * CALLS.get(method, 1)
                error = relative(integrate(flow, x0, time_grid(n, grid), method), exact) if calls <= 100 else math.inf
                if error <= enough:
                    found.append((calls, error, method, grid, n))
                    break  # more steps cost more
    found = sorted(found) or [(400, hundred, "rk4", "uniform", 100)]
    for calls, error, method, grid, n in found[:5]:
        print(f"  enough: {method}, {grid}, {n} steps: {calls} calls, {error:.1e}", flush=True)
    return found[0][2:]


def timed(jobs: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            begun = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def parts(velocity: Any, x: Any) -> None:
    """The operations of an evaluation, by their own time."""
    from torch.profiler import ProfilerActivity, profile

    t = x.new_full((len(x),), 0.3)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(100):
            velocity(x, t)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=24))


def main() -> None:
    """Measure one of the three."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy and torch are imported
    options = cli.parse(Options, description=__doc__, words=("what",))
    {"fit": compare_fits, "scaling": scaling, "sampling": sampling}[options.what](options)


if __name__ == "__main__":
    run_main(main)
