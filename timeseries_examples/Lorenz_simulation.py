"""A generative one-step propagator of the Lorenz and Rossler systems: train, forecast, compare the attractors, draw.

python Lorenz_simulation.py
python Lorenz_simulation.py --system rossler
python Lorenz_simulation.py --weights results/lorenz/CFM_lorenz_v1.pt

Without a GPU; README.md has times and figures. ``--weights`` evaluates and draws without training. Writes weights,
SYSTEM.json and three pictures to the run folder.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _repo import HERE
from common.cli import parse
from common.cli.values import check_least
from common.runtime import run_main, write_json

if TYPE_CHECKING:
    import numpy as np

    from timeseries_examples.propagator import Propagator
    from timeseries_examples.systems import System


@dataclass(frozen=True)
class Options:
    """A chaotic system learnt from its trajectories."""

    # ---- system
    system: Literal["lorenz", "rossler"] = "lorenz"
    """Lorenz 1963 (10, 28, 8/3) or Rossler 1976 (0.2, 0.2, 5.7)"""
    frame: float = 0.0
    """Time between frames; 0: 0.05 for lorenz, 0.2 for rossler"""
    n_trajectories: int = 64
    """Training trajectories"""
    frames: int = 1000
    """Frames of each"""

    # ---- flow
    method: Literal["cfm", "idff"] = "cfm"
    """cfm: a velocity; idff: data and score heads"""
    source: Literal["frame", "noise"] = "frame"
    """Where the flow to the next frame starts: in the present frame, or in Gaussian noise"""
    sigma: float = 0.0
    """Noise on the way, in units of the increments; idff needs some, e.g. 0.02"""
    n_steps: int = 1
    """Steps of the sampler; from the frame one is enough, from noise take 4 or more"""
    t_zero: float = 0.5
    """Share of the training times that are exactly 0, where one step evaluates the network"""

    # ---- network and training
    width: int = 128
    """Units of each of its layers"""
    depth: int = 3
    """Number of hidden layers"""
    total_steps: int = 20_000
    """Updates"""
    batch_size: int = 512
    """Frames of one update"""
    lr: float = 2e-3
    """Peak learning rate; decays to zero by a cosine"""
    weights: str = ""
    """Weights to evaluate; empty: train"""

    # ---- evaluation
    forecasts: int = 200
    """Forecasts from exact states for the valid prediction time"""
    sets: int = 16
    """Sets of 8 trajectories, made and real, between which distances are taken"""
    length: int = 4000
    """Frames of each trajectory of a set"""

    # ---- run
    seed: int = 0
    """One seed for everything"""
    out: str = ""
    """Run folder; empty: results/SYSTEM here"""
    smoke: bool = False
    """Seconds: little data, few steps; writes to results/smoke_SYSTEM"""


def check(options: Options) -> Options:
    """The options, with what --smoke changes and the folder filled in.

    Raises:
        ValueError: a number out of range.
    """
    if options.smoke:
        tiny = {"n_trajectories": 8, "total_steps": 60, "width": 32, "depth": 2, "forecasts": 8, "sets": 2}
        options = replace(options, **tiny, frames=min(options.frames, 100), length=300)
    check_least(options, n_trajectories=1, frames=3, width=1, depth=1, forecasts=1, sets=2, length=100)
    if options.frame < 0:
        raise ValueError(f"--frame {options.frame:g}: must be above 0, or 0 for the system's own")
    folder = HERE / "results" / (f"smoke_{options.system}" if options.smoke else options.system)
    return replace(options, out=options.out or str(folder))


def main() -> None:
    """Train or load, forecast, compare, draw."""
    options = check(parse(Options, description=__doc__ or ""))
    from timeseries_examples.systems import SYSTEMS

    out = Path(options.out)
    propagator, options, seconds = trained(options) if not options.weights else loaded(options)
    system = SYSTEMS[options.system]
    system = replace(system, frame=options.frame or system.frame)
    result, pictures = evaluate(propagator, system, options)
    write_json(out / f"{system.name}.json", {"training_seconds": round(seconds, 1), **result})
    draw(system, pictures, out)
    show(result)
    print(f"figures and numbers: {out}")


def trained(options: Options) -> tuple[Propagator, Options, float]:
    """A propagator trained on fresh trajectories; its weights are written to the run folder."""
    import torch

    from common.runtime import run_lock
    from common.training.loop import write_final
    from timeseries_examples import propagator as flows
    from timeseries_examples.systems import SYSTEMS, trajectories

    system, start = SYSTEMS[options.system], time.perf_counter()
    recipe = flows.Recipe(
        options.method, options.source, "ode", options.sigma, n_steps=options.n_steps, t_zero=options.t_zero
    )
    recipe.check()
    data = trajectories(system, options.n_trajectories, options.frames, options.seed, options.frame)
    series = [torch.tensor(x, dtype=torch.float32) for x in data]
    model = flows.build(flows.Space.of("line", series), recipe, options.width, options.depth, options.seed)
    title = f"{options.total_steps} steps of {options.method}"
    losses = flows.train(model, series, options.total_steps, options.batch_size, options.lr, options.seed, title)
    seconds, out = time.perf_counter() - start, Path(options.out)
    print(f"{title}: loss {losses[0]:.3g} to {sum(losses[-50:]) / len(losses[-50:]):.3g}, {seconds:.0f} s")
    config = {key: value for key, value in asdict(options).items() if key not in ("out", "weights", "smoke")}
    with run_lock(out):
        name = f"{options.method.upper()}_{options.system}_v1.pt"
        write_final(out / name, flows.state_of(model, config, options.total_steps, None))
    return model, options, seconds


def loaded(options: Options) -> tuple[Propagator, Options, float]:
    """The propagator of --weights, and the options with the system that it belongs to.

    Raises:
        ValueError: weights of something else.
    """
    from timeseries_examples import propagator as flows

    model, config = flows.load(Path(options.weights))
    if "system" not in config:
        raise ValueError(f"{options.weights} is no model of a chaotic system: give one of this script's")
    there = {key: config[key] for key in ("system", "frame", "method", "source", "sigma")}
    return model, replace(options, **there, n_steps=model.recipe.n_steps), 0.0


def evaluate(model: Propagator, system: System, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers, and what the pictures need; everything in float64."""
    import numpy as np

    from timeseries_examples.systems import maxima, trajectories

    model.net.double()
    count = 8 * options.sets
    real = trajectories(system, count, options.length, options.seed + 1)
    spread = real.reshape(-1, 3).std(0)
    starts = trajectories(system, count, 2, options.seed + 2)[:, 0]
    made = rolled(model, starts, options.length, options.seed)
    result, forecast = forecasts(model, system, real, spread, options)
    result |= compared(system, made, real, spread)
    axis = 2 if system.name == "lorenz" else 0
    pictures = {"made": made, "real": real, "axis": axis, **forecast}
    tops = {name: [maxima(row[:, axis]) for row in x[:8]] for name, x in (("real", real), ("made", made))}
    return result, pictures | {"maxima": {name: np.concatenate(rows) for name, rows in tops.items()}}


def rolled(model: Propagator, starts: np.ndarray, frames: int, seed: int) -> np.ndarray:
    """Trajectories (B, frames, 3) of the model from exact states (B, 3), which are not among them."""
    import torch

    from common.series import roll_out

    step = model.step_from(torch.zeros(len(starts), dtype=torch.float64), seed)
    state = torch.tensor(starts, dtype=torch.float64)[:, None]
    return roll_out(step, state, frames, progress="roll-out")[:, :, 0].transpose(0, 1).numpy()


def forecasts(
    model: Propagator, system: System, real: np.ndarray, spread: np.ndarray, options: Options
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Valid prediction times of forecasts from states spread over the real trajectories, and the errors of one step."""
    import numpy as np

    from timeseries_examples.systems import valid_time

    horizon = min(round(16 / system.exponent / system.frame), options.length // 2)
    rng = np.random.default_rng([options.seed, 16])
    rows = rng.integers(0, len(real), options.forecasts)
    first = rng.integers(0, options.length - horizon - 1, options.forecasts)
    stretch = np.stack([real[r, f : f + horizon + 1] for r, f in zip(rows, first)])
    made = rolled(model, stretch[:, 0], horizon, options.seed)
    found = valid_time(
        made.transpose(1, 0, 2), stretch[:, 1:].transpose(1, 0, 2), spread, system.frame, system.exponent
    )
    error = np.sqrt(np.mean(((made[:, 0] - stretch[:, 1]) / spread) ** 2))
    still = np.sqrt(np.mean(((stretch[:, 0] - stretch[:, 1]) / spread) ** 2))
    result = {
        "system": system.name,
        "method": model.recipe.method,
        "source": model.recipe.source,
        "nfe": nfe(model, stretch[:1, 0]),
        "frame": system.frame,
        "lyapunov_exponent": system.exponent,
        "forecasts": len(found),
        "valid_time_mean": float(found.mean()),
        "valid_time_median": float(np.median(found)),
        "valid_time_10th_percentile": float(np.quantile(found, 0.1)),
        "one_step_rmse": float(error),
        "one_step_rmse_persistence": float(still),
    }
    shown = int(np.argsort(found)[len(found) // 2])  # the median forecast
    return result, {"truth": stretch[shown, 1:], "forecast": made[shown], "valid_time": float(found[shown])}


def nfe(model: Propagator, start: np.ndarray) -> int:
    """Network evaluations of one step, counted."""
    import torch

    from common.solvers import CountNFE
    from timeseries_examples.propagator import Propagator

    counter = CountNFE(model.net)
    counted = Propagator(counter, model.space, model.recipe)  # type: ignore[arg-type]
    rolled(counted, torch.as_tensor(start).numpy(), 1, 0)
    return counter.nfe


def compared(system: System, made: np.ndarray, real: np.ndarray, spread: np.ndarray) -> dict[str, Any]:
    """Statistics of the two attractors, each distance beside that between real sets of the same size."""
    import numpy as np

    from timeseries_examples.measures import against_floor, autocorrelation, cells, correlation_time, js_distance, w1
    from timeseries_examples.systems import maxima

    def sets(x: np.ndarray) -> list[np.ndarray]:
        return list(x.reshape(-1, 8 * x.shape[1], 3))

    low, high = real.reshape(-1, 3).min(0), real.reshape(-1, 3).max(0)
    lags = min(200, real.shape[1] // 3)
    axis = 2 if system.name == "lorenz" else 0

    def map_of(x: np.ndarray) -> list[np.ndarray]:
        pairs = [np.concatenate([maxima(row[:, axis]) for row in group]) for group in x.reshape(-1, 8, *x.shape[1:])]
        return [cells(p, [low[axis]] * 2, [high[axis]] * 2, 40) for p in pairs]

    distances = {
        f"w1_{name}": against_floor(
            [x[:, i] / spread[i] for x in sets(made)], [x[:, i] / spread[i] for x in sets(real)], w1
        )
        for i, name in enumerate("xyz")
    }
    boxes = [[cells(x, low, high, 24) for x in sets(y)] for y in (made, real)]
    distances["invariant_measure_js"] = against_floor(boxes[0], boxes[1], js_distance)
    # a run that came to rest has no maxima: as far from the real ones as can be
    distances["maxima_map_js"] = against_floor(
        map_of(made), map_of(real), lambda p, q: js_distance(p, q) if p.any() and q.any() else 1.0
    )
    result: dict[str, Any] = {
        name: {"model": a, "real": b, "ratio": a / b if b > 0 else None} for name, (a, b) in distances.items()
    }
    ratios = [result[f"w1_{name}"]["ratio"] for name in "xyz"]
    result["w1_ratio_mean"] = float(np.mean(ratios))
    for name, x in (("model", made), ("real", real)):
        rho = np.mean([autocorrelation(row[:, axis], lags) for row in x[:16]], axis=0)
        result[f"moments_{name}"] = {"mean": x.mean((0, 1)).tolist(), "std": x.std((0, 1)).tolist()}
        result[f"correlation_time_{name}"] = correlation_time(np.abs(rho)) * system.frame
    return result


def draw(system: System, pictures: dict[str, Any], out: Path) -> None:
    """The attractors, a forecast, and the statistics."""
    from timeseries_examples import figures

    figures.attractors(pictures["real"][0], pictures["made"][0], out / f"{system.name}_attractor.png")
    scale = system.frame * system.exponent
    figures.forecast(pictures["truth"], pictures["forecast"], scale, pictures["valid_time"], out, system.name)
    figures.statistics(
        pictures["real"][:8],
        pictures["made"][:8],
        pictures["maxima"],
        "xyz"[pictures["axis"]],
        out / f"{system.name}_statistics.png",
    )


def show(result: dict[str, Any]) -> None:
    """The numbers as lines."""
    print(
        f"valid prediction time in Lyapunov times: mean {result['valid_time_mean']:.2f}, "
        f"median {result['valid_time_median']:.2f} over {result['forecasts']} forecasts"
    )
    print(
        f"one step: RMSE {result['one_step_rmse']:.2e} of the spread, persistence "
        f"{result['one_step_rmse_persistence']:.2e}, NFE {result['nfe']}"
    )
    for name in ("w1_x", "w1_y", "w1_z", "invariant_measure_js", "maxima_map_js"):
        row = result[name]
        print(f"{name:22s} model {row['model']:.4f}  real to real {row['real']:.4f}  ratio {row['ratio']:.3f}")


if __name__ == "__main__":
    run_main(main)
