"""How a propagator of a chaotic system is judged: valid prediction times of forecasts, statistics of long runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.data.series import roll_out
from timeseries_examples.measures import against_floor, autocorrelation, cells, correlation_time, js_distance, w1
from timeseries_examples.propagator import Propagator, count_nfe
from timeseries_examples.systems import System, maxima, trajectories, valid_time

if TYPE_CHECKING:
    from timeseries_examples.lorenz import Options

SET = 8  # trajectories in each of the sets between which distances are taken


def evaluate(model: Propagator, system: System, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers, and what the pictures need; everything in float64."""
    model.net.double()
    count = SET * options.sets
    real = trajectories(system, count, options.length, options.seed + 1)  # (count, length, 3)
    spread = real.reshape(-1, 3).std(0)
    starts = trajectories(system, count, 2, options.seed + 2)[:, 0]
    made = rolled(model, starts, options.length, options.seed)
    result, forecast = forecasts(model, system, real, spread, options)
    result |= compared(system, made, real, spread)
    axis = axis_of(system)
    tops = {name: [maxima(row[:, axis]) for row in x[:8]] for name, x in (("real", real), ("made", made))}
    pictures = {"made": made, "real": real, "axis": axis, **forecast}
    return result, pictures | {"maxima": {name: np.concatenate(rows) for name, rows in tops.items()}}


def axis_of(system: System) -> int:
    """The coordinate whose maxima make the system's map: z of Lorenz, x of Rossler."""
    return 2 if system.name == "lorenz" else 0


def rolled(model: Propagator, starts: np.ndarray, frames: int, seed: int) -> np.ndarray:
    """Trajectories (B, frames, 3) of the model from exact states (B, 3), which are not among them."""
    step = model.step_from(torch.zeros(len(starts), dtype=torch.float64), seed)
    state = torch.tensor(starts, dtype=torch.float64)[:, None]
    return roll_out(step, state, frames, progress="roll-out")[:, :, 0].transpose(0, 1).numpy()


# ---- forecasts


def forecasts(
    model: Propagator, system: System, real: np.ndarray, spread: np.ndarray, options: Options
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Valid prediction times of forecasts from states spread over the real trajectories, and the errors of one step."""
    horizon = min(round(16 / system.exponent / system.frame), options.length // 2)
    rng = np.random.default_rng([options.seed, 16])
    rows = rng.integers(0, len(real), options.forecasts)
    first = rng.integers(0, options.length - horizon - 1, options.forecasts)
    stretch = np.stack([real[r, f : f + horizon + 1] for r, f in zip(rows, first)])  # (forecasts, horizon + 1, 3)
    made = rolled(model, stretch[:, 0], horizon, options.seed)
    after = stretch[:, 1:].transpose(1, 0, 2)
    times = valid_time(made.transpose(1, 0, 2), after, spread, system.frame, system.exponent)
    error = np.sqrt(np.mean(((made[:, 0] - stretch[:, 1]) / spread) ** 2))
    still = np.sqrt(np.mean(((stretch[:, 0] - stretch[:, 1]) / spread) ** 2))
    data = trajectories(system, options.n_trajectories, options.frames, options.seed)  # what a model is trained on
    straight = linear(data, stretch[:, 0], horizon)
    linear_times = valid_time(straight, after, spread, system.frame, system.exponent)
    result = {
        "system": system.name,
        "method": model.recipe.method,
        "source": model.recipe.source,
        "nfe": count_nfe(model, torch.tensor(stretch[:1, :1])),
        "frame": system.frame,
        "lyapunov_exponent": system.exponent,
        "forecasts": len(times),
        "valid_time_mean": float(times.mean()),
        "valid_time_median": float(np.median(times)),
        "valid_time_10th_percentile": float(np.quantile(times, 0.1)),
        "one_step_rmse": float(error),
        "one_step_rmse_persistence": float(still),
        "one_step_rmse_linear": float(np.sqrt(np.mean(((straight[0] - after[0]) / spread) ** 2))),
        "valid_time_mean_linear": float(linear_times.mean()),
    }
    shown = int(np.argsort(times)[len(times) // 2])  # the median forecast
    return result, {"truth": stretch[shown, 1:], "forecast": made[shown], "valid_time": float(times[shown])}


def linear(data: np.ndarray, starts: np.ndarray, frames: int) -> np.ndarray:
    """Forecasts (frames, B, 3) of a linear regression of the next frame on the present one, step by step.

    Args:
        data: Trajectories that it is fitted to, (N, T, 3).
        starts: States (B, 3), which are not among the forecasts.
        frames: Their number.
    """

    def inputs(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    now, following = (part.reshape(-1, data.shape[2]) for part in (data[:, :-1], data[:, 1:]))
    weights = np.linalg.lstsq(inputs(now), following, rcond=None)[0]
    states = [starts]
    for _ in range(frames):
        states.append(inputs(states[-1]) @ weights)
    return np.stack(states[1:])


# ---- statistics


def compared(system: System, made: np.ndarray, real: np.ndarray, spread: np.ndarray) -> dict[str, Any]:
    """Statistics of the two attractors, each distance beside that between real sets of the same size."""
    axis, lags = axis_of(system), min(200, real.shape[1] // 3)
    result: dict[str, Any] = {
        name: {"model": a, "real": b, "ratio": a / b if b > 0 else None}
        for name, (a, b) in distances(made, real, spread, axis).items()
    }
    ratios = [result[f"w1_{name}"]["ratio"] for name in "xyz"]
    result["w1_ratio_mean"] = float(np.mean(ratios))
    for name, x in (("model", made), ("real", real)):
        rho = np.mean([autocorrelation(row[:, axis], lags) for row in x[:16]], axis=0)
        result[f"moments_{name}"] = {"mean": x.mean((0, 1)).tolist(), "std": x.std((0, 1)).tolist()}
        result[f"correlation_time_{name}"] = correlation_time(np.abs(rho)) * system.frame
    return result


def distances(made: np.ndarray, real: np.ndarray, spread: np.ndarray, axis: int) -> dict[str, tuple[float, float]]:
    """(model to real, real to real) of the marginals, the invariant measure and the map of successive maxima."""
    low, high = real.reshape(-1, 3).min(0), real.reshape(-1, 3).max(0)

    def sets(x: np.ndarray) -> list[np.ndarray]:
        return list(x.reshape(-1, SET * x.shape[1], 3))

    def maps(x: np.ndarray) -> list[np.ndarray]:
        pairs = [np.concatenate([maxima(row[:, axis]) for row in group]) for group in x.reshape(-1, SET, *x.shape[1:])]
        return [cells(p, [low[axis]] * 2, [high[axis]] * 2, 40) for p in pairs]

    marginals = {
        f"w1_{name}": against_floor(
            [x[:, i] / spread[i] for x in sets(made)], [x[:, i] / spread[i] for x in sets(real)], w1
        )
        for i, name in enumerate("xyz")
    }
    boxes = [[cells(x, low, high, 24) for x in sets(y)] for y in (made, real)]
    return marginals | {
        "invariant_measure_js": against_floor(boxes[0], boxes[1], js_distance),
        # a run that came to rest has no maxima: as far from the real ones as can be
        "maxima_map_js": against_floor(
            maps(made), maps(real), lambda p, q: js_distance(p, q) if p.any() and q.any() else 1.0
        ),
    }
