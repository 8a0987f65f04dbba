"""Lorenz_simulation.py: its options, and the run from trajectories to numbers and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common.runtime import write_json

if TYPE_CHECKING:
    from timeseries_examples.propagator import Propagator
    from timeseries_examples.systems import System

from common.cli import validate
from common.cli.configs import among, check_bridge
from common.cli.ranges import AtLeast, AtMost, Count, Matches, NoneFor, NotNegative, Positive, Seed

HERE = Path(__file__).resolve().parent
TRAINED_WITH = ("system", "frame", "method", "source", "sigma", "n_steps")  # what weights fix


@dataclass(frozen=True)
class Options:
    """A chaotic system learnt from its trajectories."""

    # ---- system
    system: Annotated[str, Matches("lorenz|rossler|dysts:.*", "choose one of lorenz, rossler, dysts:NAME")] = "lorenz"
    """lorenz: Lorenz 1963 (10, 28, 8/3); rossler: Rossler 1976 (0.2, 0.2, 5.7); dysts:NAME, e.g. dysts:Halvorsen: one
    of the package dysts (pip install dysts)"""
    points: Annotated[int, AtLeast(2)] = 30
    """dysts: frames in one period of the system, as dysts states it; others take 30 or 100"""
    frame: Annotated[Positive | None, NoneFor(0)] = None
    """Time between frames; none: 0.05 for lorenz, 0.2 for rossler, the period over --points for dysts"""
    n_trajectories: Count = 64
    """Training trajectories"""
    frames: Annotated[int, AtLeast(3)] = 1000
    """Frames of each"""

    # ---- flow
    method: Annotated[str, among("cfm", "idff")] = "cfm"
    """cfm: a velocity; idff: data and score heads"""
    source: Literal["frame", "noise"] = "frame"
    """Where the flow to the next frame starts: in the present frame, or in Gaussian noise"""
    sigma: NotNegative = 0.0
    """Noise on the way, in units of the increments; idff needs some, e.g. 0.02"""
    n_steps: Count = 1
    """Steps of the sampler; from the frame one is enough, from noise take 4 or more"""
    t_zero: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    """Share of the training times that are exactly 0, where one step evaluates the network"""

    # ---- network and training
    width: Count = 128
    """Units of each of its layers"""
    depth: Count = 3
    """Number of hidden layers"""
    total_steps: Count = 20_000
    """Updates"""
    batch_size: Count = 512
    """Frames of one update"""
    lr: Positive = 2e-3
    """Peak learning rate; decays to zero by a cosine"""
    weights: str = ""
    """Weights to evaluate; empty: train"""

    # ---- evaluation
    forecasts: Count = 200
    """Forecasts from exact states for the valid prediction time"""
    sets: Annotated[int, AtLeast(2)] = 16
    """Sets of 8 trajectories, made and real, between which distances are taken"""
    length: Annotated[int, AtLeast(100)] = 4000
    """Frames of each trajectory of a set"""

    # ---- run
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Run folder; empty: runs/SYSTEM here, a dash for the colon"""
    smoke: bool = False
    """Seconds: little data, few steps; writes to results/smoke-SYSTEM"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        check_bridge(self.method, self.sigma)


def completed(options: Options) -> Options:
    """The options, with what --smoke changes and the folder filled in."""
    if options.smoke:
        tiny = {"n_trajectories": 8, "total_steps": 60, "width": 32, "depth": 2, "forecasts": 8, "sets": 2}
        options = replace(options, **tiny, frames=min(options.frames, 100), length=300)
    name = label(options.system)
    folder = HERE / (f"results/smoke-{name}" if options.smoke else f"runs/{name}")
    return replace(options, out=options.out or str(folder))


def label(name: str) -> str:
    """A system's name for files: dysts-Halvorsen."""
    return name.replace(":", "-")


def run(options: Options) -> None:
    """Train or load, forecast, compare, draw."""
    options = completed(options)
    from timeseries_examples import attractors
    from timeseries_examples.propagator import load, load_as_trained
    from timeseries_examples.systems import find

    model, seconds = None, 0.0
    if options.weights:
        model, options = load_as_trained(options, TRAINED_WITH, "a chaotic system")
        seed = load(Path(options.weights))[1].get("seed")
        if seed in (options.seed + 1, options.seed + 2):  # those of the trajectories that it is compared with
            raise ValueError(
                f"--seed {options.seed}: {options.weights} was trained on what it would be tested on, use --seed {seed}"
            )
    system = find(options.system, options.points)
    system = replace(system, frame=options.frame or system.frame)
    if model is None:
        model, seconds = trained(system, options)
    result, pictures = attractors.evaluate(model, system, options)
    out = Path(options.out)
    write_json(out / f"{label(system.name)}.json", {"training_seconds": round(seconds, 1), **result})
    draw(system, pictures, out)
    show(result)
    print(f"figures and numbers: {out}")


def trained(system: System, options: Options) -> tuple[Propagator, float]:
    """A propagator trained on fresh trajectories, and the seconds of its training."""
    import torch

    from timeseries_examples.propagator import Recipe, Space, train_and_save
    from timeseries_examples.systems import trajectories

    flow: dict[str, Any] = {"past": system.past, "n_steps": options.n_steps, "t_zero": options.t_zero}
    recipe = Recipe(options.method, options.source, "ode", options.sigma, **flow)
    validate(recipe)
    if system.name.startswith("dysts:"):
        options = replace(options, frame=system.frame)  # what it has learnt, however --points is given later
    data = trajectories(system, options.n_trajectories, options.frames, options.seed)
    series = [torch.tensor(x, dtype=torch.float32) for x in data]
    return train_and_save(Space.of("line", series), recipe, series, options, f"{label(system.name)}_v1.pt")


def draw(system: System, pictures: dict[str, Any], out: Path) -> None:
    """The attractors, a forecast, and the statistics, of the first three coordinates."""
    from timeseries_examples import figures
    from timeseries_examples.attractors import letters

    name, names = label(system.name), letters(pictures["real"])
    first = {key: pictures[key][..., :3] for key in ("real", "made", "truth", "forecast")}
    figures.attractors(first["real"][0], first["made"][0], names, out / f"{name}_attractor.png")
    scale = system.frame * system.exponent
    figures.forecast(first["truth"], first["forecast"], names, scale, pictures["valid_time"], out, name)
    figures.statistics(
        first["real"][:8],
        first["made"][:8],
        pictures["maxima"],
        names,
        pictures["axis"],
        out / f"{name}_statistics.png",
    )


def show(result: dict[str, Any]) -> None:
    """The numbers as lines."""
    print(
        f"valid prediction time in Lyapunov times: mean {result['valid_time_mean']:.2f}, "
        f"median {result['valid_time_median']:.2f} over {result['forecasts']} forecasts; linear regression: mean "
        f"{result['valid_time_mean_linear']:.2f}"
    )
    print(
        f"one step: RMSE {result['one_step_rmse']:.2e} of the spread, persistence "
        f"{result['one_step_rmse_persistence']:.2e}, linear regression {result['one_step_rmse_linear']:.2e}, "
        f"NFE {result['nfe']}"
    )
    percent = ", ".join(f"{value:.1f} up to {horizon}" for horizon, value in result["smape"].items())
    print(f"sMAPE by Lyapunov times: {percent}; runs that left the attractor: {result['runs_that_left']:.0%}")
    size = result["correlation_dimension"]
    print(f"correlation dimension: model {size['of_model']:.3f}, real {size['of_real']:.3f}; distances of long runs:")
    for name, row in result.items():
        if isinstance(row, dict) and {"model", "real"} <= set(row):
            ratio = f"{row['model'] / row['real']:.3f}" if row["real"] > 0 else "-"
            print(f"{name:22s} model {row['model']:.4f}  real to real {row['real']:.4f}  ratio {ratio}")
