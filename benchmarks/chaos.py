"""Forecasts of chaotic systems: the flow against persistence, an echo-state network, and its own network as regression.

    python benchmarks/chaos.py                       # measure what is not measured yet
    python benchmarks/chaos.py table                 # the Markdown tables of what was measured
    python benchmarks/chaos.py figure                # forecast ensembles of three systems, trained for it

Models: flow (timeseries_examples/Lorenz_simulation.py's, from the present frame, one evaluation a step), flow-noise
(from Gaussian noise, --n_steps evaluations: an ensemble), regression (the same network with the mean squared error of
the increment, which is the flow whose training times are all 0), esn (an echo-state network of reservoirpy, its
hyperparameters chosen on trajectories held out of the training), persistence. All see the same training trajectories
and forecast from the same states; the echo-state network is given the --washout frames before, the others one or two.
Rows go to benchmarks/chaos/rows.jsonl; what is there already is not measured again.
Needs pip install dysts reservoirpy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import AtLeast, Count, Positive, Seed
from common.runtime import run_main

if TYPE_CHECKING:
    import numpy as np

    from timeseries_examples.attractors import Roll, Truth
    from timeseries_examples.systems import System

RESULTS = Path(__file__).resolve().parent / "chaos"
SYSTEMS = (
    "Lorenz",
    "Rossler",
    "Halvorsen",
    "Chua",
    "Thomas",
    "Aizawa",
    "Lorenz96",
    "Duffing",
    "IkedaDelay",
    "HyperCai",
)
MODELS = ("persistence", "esn", "regression", "flow", "flow-noise")
FIGURE = ("Lorenz", "Halvorsen", "Lorenz96")


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    what: Literal["run", "table", "figure"] = "run"
    """run: measure; table: what was measured, as text; figure: forecast ensembles"""
    systems: tuple[str, ...] = SYSTEMS
    """Systems of dysts"""
    models: tuple[Literal["persistence", "esn", "regression", "flow", "flow-noise"], ...] = MODELS
    """Models"""
    points: Annotated[int, AtLeast(2)] = 30
    """Frames in a period"""
    n_trajectories: Annotated[int, AtLeast(8)] = 16
    """Training trajectories"""
    frames: Annotated[int, AtLeast(100)] = 1000
    """Frames of each"""
    forecasts: Count = 64
    """Forecasts"""
    sets: Annotated[int, AtLeast(2)] = 2
    """Sets of 8 long runs"""
    length: Annotated[int, AtLeast(200)] = 1500
    """Frames of each"""
    total_steps: Count = 3000
    """Updates of a network"""
    batch_size: Count = 256
    """Frames of one update"""
    width: Count = 128
    """Units of each of its three layers"""
    lr: Positive = 2e-3
    """Peak learning rate; decays to zero by a cosine"""
    n_steps: Count = 4
    """flow-noise: steps of its sampler"""
    units: Count = 300
    """esn: units of its reservoir"""
    washout: Count = 100
    """esn: frames that it is driven by before it forecasts"""
    seed: Seed = 0
    """One seed for everything"""


def main() -> None:
    """Measures, prints or draws."""
    options = cli.parse(Options, description=__doc__ or "", words=("what",))
    {"run": run, "table": table, "figure": figure}[options.what](options)


# ---- models


def roll_of(name: str, system: System, truth: Truth, options: Options) -> tuple[Roll, dict[str, Any]]:
    """A model fitted to the training trajectories, and what its row says of it."""
    import numpy as np

    if name == "persistence":
        return lambda known, frames: np.repeat(known[:, -1:], frames, 1), {"nfe": 0}
    if name == "esn":
        return echo_state_network(system, truth.training, options)
    return propagator(name, system, truth.training, options)


def propagator(name: str, system: System, training: np.ndarray, options: Options) -> tuple[Roll, dict[str, Any]]:
    """The flow's network, trained as a flow from the frame or from noise, or as a regression."""
    from functools import partial

    import torch

    from timeseries_examples.attractors import rolled
    from timeseries_examples.propagator import Recipe, Space, build, count_nfe, train

    kinds: dict[str, dict[str, Any]] = {
        "flow": {"source": "frame", "n_steps": 1, "t_zero": 0.5},
        "regression": {"source": "frame", "n_steps": 1, "t_zero": 1.0},
        "flow-noise": {"source": "noise", "n_steps": options.n_steps, "t_zero": 0.0},
    }
    recipe = Recipe(method="cfm", sampler="ode", sigma=0.0, past=system.past, **kinds[name])
    series = [torch.tensor(x, dtype=torch.float32) for x in training]
    model = build(Space.of("line", series), recipe, options.width, 3, options.seed)
    train(model, series, options.total_steps, options.batch_size, options.lr, options.seed)
    model.net.double()
    known = torch.tensor(training[:1, : system.past])
    return partial(rolled, model, options.seed), {"nfe": count_nfe(model, known)}


def echo_state_network(system: System, training: np.ndarray, options: Options) -> tuple[Roll, dict[str, Any]]:
    """An echo-state network whose readout sees reservoir and input, by reservoirpy, in coordinates of spread 1.

    Of 18 choices of spectral radius, scale of the input and ridge it takes the one with the longest valid prediction
    times in 16 forecasts on the last quarter of the trajectories; the readout is then fitted to all.
    """
    import numpy as np

    from timeseries_examples.attractors import stretches
    from timeseries_examples.systems import valid_time

    middle, spread = training.mean((0, 1)), training.std((0, 1))
    scaled = (training - middle) / spread
    inner, outer = np.split(scaled, [3 * len(scaled) // 4])
    choose: Any = replace(options, forecasts=16, length=training.shape[1])
    parts = stretches(outer, system, choose, options.washout)
    known, right = np.split(parts, [options.washout], axis=1)
    best: tuple[float, Any] = (-1.0, None)
    for radius, scale in product((0.1, 0.4, 0.9), (0.3, 1.0)):
        reservoir = new_reservoir(training.shape[2], radius, scale, options)
        states = reservoir.run(inner[:, :-1])
        for ridge in (1e-9, 1e-7, 1e-5):
            made = free_run(reservoir, readout(states, inner, ridge, options), known, right.shape[1])
            times = valid_time(made.swapaxes(0, 1), right.swapaxes(0, 1), 1.0, system.frame, system.exponent)
            best = max(best, (float(times.mean()), (radius, scale, ridge)), key=lambda pair: pair[0])
    radius, scale, ridge = best[1]
    reservoir = new_reservoir(training.shape[2], radius, scale, options)
    weights = readout(reservoir.run(scaled[:, :-1]), scaled, ridge, options)

    def roll(known: np.ndarray, frames: int) -> np.ndarray:
        return free_run(reservoir, weights, (known - middle) / spread, frames) * spread + middle

    return roll, {"nfe": 1, "esn": {"radius": radius, "input": scale, "ridge": ridge, "held_out": best[0]}}


def new_reservoir(dim: int, radius: float, scale: float, options: Options) -> Any:
    """A reservoir whose units all see the input, with a bias."""
    from reservoirpy.mat_gen import uniform
    from reservoirpy.nodes import Reservoir

    how = {"sr": radius, "input_scaling": scale, "input_connectivity": 1.0, "bias": uniform, "Win": uniform}
    return Reservoir(options.units, **how, input_dim=dim, seed=options.seed)


def readout(states: Any, scaled: np.ndarray, ridge: float, options: Options) -> Any:
    """reservoirpy's ridge regression of the next frame on reservoir and input, the washout left out."""
    import numpy as np
    from reservoirpy.nodes import Ridge

    inputs = np.concatenate([np.asarray(states), scaled[:, :-1]], axis=2)
    return Ridge(ridge=ridge).fit(inputs, scaled[:, 1:], warmup=options.washout)


def free_run(reservoir: Any, weights: Any, known: np.ndarray, frames: int) -> np.ndarray:
    """What follows frames (B, washout, D): driven by them from rest, then by its own output, all B at once."""
    import numpy as np

    bias = np.reshape(reservoir.bias, (-1, 1))
    state = np.zeros((reservoir.units, len(known)))

    def advance(x: np.ndarray) -> np.ndarray:
        return reservoir.activation(reservoir.W @ state + reservoir.Win @ x.T + bias)

    for x in known[:, :-1].swapaxes(0, 1):
        state = advance(x)
    x, made = known[:, -1], []
    for _ in range(frames):
        state = advance(x)
        x = np.concatenate([state.T, x], axis=1) @ weights.Wout + np.ravel(weights.bias)
        x = np.clip(x, -1e3, 1e3)  # a run that leaves stays finite
        made.append(x)
    return np.stack(made, axis=1)


# ---- measurements


def run(options: Options) -> None:
    """Measure what is not measured yet; one row for each system and model."""
    from common.records.rows import JsonLines
    from timeseries_examples.attractors import Truth, judged
    from timeseries_examples.systems import find

    log = JsonLines(RESULTS / "rows.jsonl")
    setup = setup_of(options)
    done = {(row["system"], row["model"]) for row in log.read() if row["setup"] == setup}
    for name in options.systems:
        wanted = [model for model in options.models if (name, model) not in done]
        if not wanted:
            continue
        system = find(f"dysts:{name}", options.points)
        seconds, truth = timed(lambda: Truth.of(system, options, options.washout))
        print(f"{name}: trajectories in {seconds:.0f} s of processor time", flush=True)
        for model in wanted:
            fitting, (roll, said) = timed(lambda: roll_of(model, system, truth, options))
            judging, (result, _) = timed(lambda: judged(roll, system, truth, options))
            log.append({"system": name, "model": model, **said, "fit_s": fitting, **result, "setup": setup})
            valid, s = result["valid_time_mean"], result["state_space_divergence"]["model"]
            print(f"{name} {model}: valid {valid:.2f}, divergence {s:.3f}, {fitting:.0f} + {judging:.0f} s", flush=True)


def setup_of(options: Options) -> dict[str, Any]:
    """What rows of one table have in common."""
    return {name: value for name, value in vars(options).items() if name not in ("what", "systems", "models")}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, and the result."""
    start = time.process_time()
    result = work()
    return round(time.process_time() - start, 1), result


# ---- tables


def table(options: Options) -> None:
    """One table for each measure: systems by models, the best in bold, the floor beside the distances."""
    from common.records.rows import JsonLines

    log, setup = JsonLines(RESULTS / "rows.jsonl").read(), setup_of(options)
    rows = {(row["system"], row["model"]): row for row in log if row["setup"] == setup}
    models = [model for model in options.models if any(key[1] == model for key in rows)]
    measures: tuple[tuple[str, bool, Callable[[dict[str, Any]], float]], ...] = (
        ("valid prediction time (Lyapunov times)", True, lambda row: row["valid_time_mean"]),
        ("sMAPE up to one Lyapunov time", False, lambda row: row["smape"]["1"]),
        ("error of the correlation dimension", False, lambda row: row["correlation_dimension"]["model"]),
        ("state-space divergence (nats)", False, lambda row: row["state_space_divergence"]["model"]),
    )
    floors = ("correlation_dimension", "state_space_divergence")
    for (title, most, measure), floor in zip(measures, (None, None, *floors)):
        print(f"\n| {title} | {' | '.join(models)} |" + (" real to real |" if floor else ""))
        print("|---" * (len(models) + 1 + bool(floor)) + "|")
        for name in options.systems:
            found = {model: measure(rows[name, model]) for model in models if (name, model) in rows}
            best = (max if most else min)(found.values(), default=0.0)
            cells = [cell(found.get(model), best) for model in models]
            cells += [f"{next(rows[name, m] for m in found)[floor]['real']:.2f}"] if floor and found else []
            print(f"| {name} | {' | '.join(cells)} |")


def cell(value: float | None, best: float) -> str:
    """A number with two places, bold if none is better."""
    if value is None:
        return "-"
    return f"**{value:.2f}**" if f"{value:.2f}" == f"{best:.2f}" else f"{value:.2f}"


# ---- figure


def figure(options: Options) -> None:
    """Sixteen members of flow-noise, the echo-state network and the truth, from one state of each of three systems."""
    import numpy as np

    from timeseries_examples.attractors import Truth, stretches
    from timeseries_examples.figures import ensembles
    from timeseries_examples.systems import find

    names = options.systems if options.systems != SYSTEMS else FIGURE
    drawn = []
    for name in names:
        system = find(f"dysts:{name}", options.points)
        truth = Truth.of(system, options, options.washout)
        part = stretches(truth.real, system, options, options.washout)[:1]
        known, right = np.split(part, [options.washout], axis=1)
        frames = min(right.shape[1], round(10 / system.exponent / system.frame))
        many = np.repeat(known, 16, 0)
        lines = {
            model: roll_of(model, system, truth, options)[0](many if model == "flow-noise" else known, frames)
            for model in ("esn", "flow-noise")
        }
        times = system.frame * system.exponent * np.arange(1, frames + 1)
        drawn.append((name, times, right[0, :frames, 0], lines["esn"][0, :, 0], lines["flow-noise"][:, :, 0]))
        print(f"{name} done", flush=True)
    path = Path(__file__).resolve().parent.parent / "timeseries_examples" / "samples" / "chaos_ensembles.png"
    ensembles(drawn, path)
    print(path)


if __name__ == "__main__":
    run_main(main)
