"""From the words of a command line to a solver and its times; and the body of fit_sampler.py."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.config import FitConfig, SampleConfig, WeightsConfig

if TYPE_CHECKING:
    from torch import Tensor

    from common.commands import Folder
    from common.fitted import Teacher, VelocityFor
    from common.generate import Sampler

# What "auto" is where no sampler was fitted: the best of the plain solvers over 5 to 20 evaluations on the shipped
# weights, see benchmarks/few_step.py.
SOLVER, GRID = "unipc2", "uniform"
LARGEST = 32  # steps up to which adaptive grids are kept
FIT_NOISE, TEST_NOISE = "fit", "fit-test"  # streams of noise that no sample uses


def resolved(sampler: Sampler, config: SampleConfig, weights: Path | None) -> Sampler:
    """The sampler with its solver and times as ``config`` asks for them.

    Args:
        weights: the file of the sampler's network; None: a network without one, of --smoke.

    Raises:
        ValueError: no sampler was fitted for these steps, or it is asked for with a time grid.
    """
    from common import fitted

    if config.solver == "fitted":
        if config.grid != "auto":
            raise ValueError(f"--solver fitted brings its own times: leave --grid {config.grid} out")
        if weights is None:
            raise ValueError("--solver fitted needs weights that a sampler was fitted to: give --weights")
        found = fitted.find_fitted(weights, config.n_steps, config.cfg, sampler.landing)
        return replace(sampler, solver="fitted", grid="fitted", fitted=found)
    if config.solver == "auto" and config.grid == "auto" and weights is not None:
        try:
            if found := fitted.fitted_for(weights, config.n_steps, config.cfg, sampler.landing):
                return replace(sampler, solver="fitted", grid="fitted", fitted=found)
        except ValueError as error:
            print(f"note: {error}")
    solver = SOLVER if config.solver == "auto" else config.solver
    grid = GRID if config.grid == "auto" else config.grid
    sampler = replace(sampler, solver=solver, grid=grid)
    return replace(sampler, nodes=adaptive_nodes(sampler, config.n_steps, weights)) if grid == "adaptive" else sampler


def adaptive_nodes(sampler: Sampler, n_steps: int, weights: Path | None) -> Tensor:
    """The adaptive grid of a network: kept beside its weights, or made (32 noises, 64 fine steps) and kept there."""
    import torch

    from common import fitted
    from common.grids import partition, segment_costs

    fine = max(64, 2 * n_steps)
    if weights is not None:
        for entry in fitted.read_samplers(weights)["adaptive"]:
            if (entry["n_steps"], entry["cfg"], entry["landing"]) == (n_steps, sampler.cfg, sampler.landing):
                return torch.tensor(entry["times"], dtype=torch.float64)
    teacher, _ = teacher_of(sampler, 32, FIT_NOISE, fine, "adaptive grid")
    cost = segment_costs(teacher.states, teacher.times)
    steps = sorted({*range(1, min(LARGEST, fine) + 1), n_steps})
    grids = {n: [round(teacher.times[i], 6) for i in partition(cost, n)] for n in steps}
    if weights is not None:
        key = {"cfg": sampler.cfg, "landing": sampler.landing}
        fitted.keep(weights, "adaptive", [{"n_steps": n, **key, "times": grids[n]} for n in steps])
    return torch.tensor(grids[n_steps], dtype=torch.float64)


def teacher_of(
    sampler: Sampler, n_noises: int, stream: str, n_steps: int, title: str, seed: int = 0
) -> tuple[Teacher, VelocityFor]:
    """Fine trajectories of a sampler's network from noises of a stream, and its velocity for those noises' labels."""
    import torch
    from tqdm import tqdm

    from common import generate
    from common.fitted import teach

    device = next(sampler.net.parameters()).device
    x0 = generate.noise_for(range(n_noises), sampler.shape, seed, stream).to(device)
    y = generate.labels_for(range(n_noises), generate.real_classes(sampler.net))
    y = None if y is None else y.to(device)
    net = generate.CountedNetwork(sampler.net, sampler.precision)

    def velocity_for(last: float) -> Any:
        return generate.velocity_of(net, sampler.method, y, sampler.cfg, last)

    with tqdm(total=n_steps, desc=title, unit="evaluation", dynamic_ncols=True) as bar:
        x0 = x0.contiguous(memory_format=torch.channels_last)
        teacher = teach(velocity_for, x0, n_steps, bar.update, sampler.landing)
    return teacher, velocity_for


def fit_main(folder: Folder, description: str, argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit samplers to the weights, test them on other noises, keep them beside the weights."""
    config, extra = cli.parse_with_extra(FitConfig, description=description, argv=argv)
    if min(config.n_noises, config.n_test) < 1 or min(config.n_steps) < 1 or config.search < 0:
        raise ValueError("--n_noises, --n_test and --n_steps must be at least 1, --search at least 0")
    if config.fine_steps < 2 * max(config.n_steps):
        raise ValueError(f"--fine_steps {config.fine_steps} is less than twice the {max(config.n_steps)} steps to fit")
    if config.smoke:
        config = replace(config, n_noises=2, n_test=2, fine_steps=2 * max(config.n_steps), search=0)
    import torch
    from tqdm import tqdm

    from common import checkpoint, fitted
    from common.cards import commit
    from common.commands import make_sampler
    from common.metrics import rms
    from common.solvers import integrate

    shared = {f.name: getattr(config, f.name) for f in fields(WeightsConfig)}
    asked = SampleConfig(**shared, solver="euler", grid="uniform")
    sampler, info = make_sampler(folder, asked, extra)
    weights = checkpoint.find(info["path"]) if Path(info["path"]).exists() else None
    teacher, velocity_for = teacher_of(
        sampler, config.n_noises, FIT_NOISE, config.fine_steps, "fine trajectories", config.seed
    )
    test, test_velocity = teacher_of(sampler, config.n_test, TEST_NOISE, config.fine_steps, "for the test", config.seed)

    @torch.no_grad()
    def error(method: Any, times: Any) -> float:
        x = integrate(test_velocity(float(times[-2])), test.states[0], times, method)
        return rms(x, test.states[-1])

    results = []
    for n in config.n_steps:
        with tqdm(total=(8 + config.search) * n, desc=f"{n} steps", unit="evaluation", dynamic_ncols=True) as bar:
            found = fitted.fit_sampler(velocity_for, teacher, n, config.search, bar.update)
        facts = {
            **found.facts,
            "rms": error(found, found.times),
            "rms_euler": error("euler", replace(sampler, n_steps=n).times()),
            "n_noises": config.n_noises,
            "n_test": config.n_test,
            "fine_steps": config.fine_steps,
            "search": config.search,
            "seed": config.seed,
            "commit": commit(),
        }
        results.append({"n_steps": n, **facts})
        print(f"{n} steps: RMS to the fine end {facts['rms']:.4f} on {config.n_test} other noises; ", end="")
        print(f"Euler {facts['rms_euler']:.4f}")
        if weights is not None and not (config.smoke and not config.weights):
            path = fitted.keep_fitted(weights, found, config.cfg, facts, sampler.landing)
            print(f"kept in {path}: use it with --solver fitted --n_steps {n}")
    return results
