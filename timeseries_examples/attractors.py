"""How a propagator of a chaotic system is judged: valid prediction times of forecasts, statistics of long runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.data.series import roll_out
from timeseries_examples.measures import (
    against_floor,
    autocorrelation,
    cells,
    correlation_dimension,
    correlation_time,
    js_distance,
    smape,
    state_space_divergence,
    w1,
)
from timeseries_examples.propagator import Propagator, count_nfe
from timeseries_examples.systems import System, maxima, trajectories, valid_time

if TYPE_CHECKING:
    from timeseries_examples.lorenz import Options

SET = 8  # trajectories in each of the sets between which distances are taken
POINTS = 2000  # of a set for its dimension and density, spread over its frames
FAR = 10.0  # spreads from the mean: a run that gets so far has left, and is held there
APART = 0.2  # spreads; trajectories that have forgotten where they began are one apart
HORIZONS = (0.5, 1, 2, 4)  # Lyapunov times

Roll = Callable[[np.ndarray, int], np.ndarray]  # states that are known (B, past, D), frames -> what follows (B, T, D)


@dataclass(frozen=True)
class Truth:
    """Trajectories of a system, (count, frames, D): for training, for comparison, and beginnings of long runs."""

    training: np.ndarray
    real: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(system: System, options: Options, past: int) -> Truth:
        """Those of some options (n_trajectories, frames, sets, length, seed); ``past`` frames begin a long run.

        Prints a note where trajectories have not separated, which those of a chaotic system do.
        """
        count = SET * options.sets
        training = trajectories(system, options.n_trajectories, options.frames, options.seed)
        real = trajectories(system, count, options.length, options.seed + 1)
        apart = float(np.max(real[:, 0].std(0) / real.std((0, 1))))
        if apart < APART:
            print(
                f"note: trajectories of {system.name} are {apart:.1%} of its spread apart where they begin: they have "
                "hardly separated, so that what is tested is what was trained on; it may not be chaotic as it stands"
            )
        return Truth(training, real, trajectories(system, count, max(2, past), options.seed + 2)[:, :past])

    def middle_and_spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each coordinate on the attractor, (D,)."""
        flat = self.real.reshape(-1, self.real.shape[2])
        return flat.mean(0), flat.std(0)


def evaluate(model: Propagator, system: System, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers, and what the pictures need; everything in float64."""
    model.net.double()
    past = model.recipe.past
    result, pictures = judged(
        partial(rolled, model, options.seed, progress="roll-out"), system, Truth.of(system, options, past), options
    )
    named = {"system": system.name, "method": model.recipe.method, "source": model.recipe.source}
    named["nfe"] = count_nfe(model, torch.tensor(pictures["real"][:1, :past]))
    tops = {
        name: [maxima(row[:, system.axis]) for row in pictures[name][:SET] if np.ptp(row[:, system.axis]) > 0]
        for name in ("real", "made")
    }
    pictures["maxima"] = {name: np.concatenate([*rows, np.zeros((0, 2))]) for name, rows in tops.items()}
    return named | result, pictures


def judged(roll: Roll, system: System, truth: Truth, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Forecasts and long runs of whatever continues trajectories, beside the system's own.

    Args:
        roll: Given the frames that begin ``truth.known``, it continues them.
        system: What is forecast.
        truth: Its trajectories.
        options: Those used are seed, forecasts and length.
    """
    middle, spread = truth.middle_and_spread()
    made = roll(truth.known, options.length)
    left = ~(np.abs(made - middle) <= FAR * spread).all((1, 2))
    made = np.clip(np.nan_to_num(made, nan=np.inf), middle - FAR * spread, middle + FAR * spread)
    result, forecast = forecasts(roll, system, truth, options)
    result |= {"runs_that_left": float(left.mean())} | compared(system, made, truth.real, spread)
    return result, {"made": made, "real": truth.real, "axis": system.axis, **forecast}


def rolled(model: Propagator, seed: int, known: np.ndarray, frames: int, progress: str = "") -> np.ndarray:
    """What follows states (B, past or more, D) by the model, (B, frames, D)."""
    step = model.step_from(torch.zeros(len(known), dtype=torch.float64), seed)
    state = torch.tensor(known[:, -model.recipe.past :], dtype=torch.float64)
    made = roll_out(step, state, frames, progress=progress)
    return made[:, :, -1].transpose(0, 1).numpy()


# ---- forecasts


def stretches(real: np.ndarray, system: System, options: Options, past: int) -> np.ndarray:
    """Frames known and to forecast, spread over the real trajectories: (forecasts, past + horizon, D)."""
    horizon = min(round(16 / system.exponent / system.frame), options.length // 2)
    rng = np.random.default_rng([options.seed, 16])
    rows = rng.integers(0, len(real), options.forecasts)
    first = rng.integers(0, options.length - horizon - past, options.forecasts)
    return np.stack([real[r, f : f + past + horizon] for r, f in zip(rows, first)])


def forecasts(roll: Roll, system: System, truth: Truth, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Valid prediction times and errors of forecasts, and the errors of one step."""
    middle, spread = truth.middle_and_spread()
    past = truth.known.shape[1]
    stretch = stretches(truth.real, system, options, past)
    known, right = stretch[:, :past], stretch[:, past:]
    made = roll(known, right.shape[1])
    after = right.transpose(1, 0, 2)
    straight = linear(truth.training, known[:, -1], len(after))
    unit = system.frame * system.exponent

    def times_of(forecast: np.ndarray) -> np.ndarray:
        return valid_time(forecast, after, spread, system.frame, system.exponent)

    def first_error(forecast: np.ndarray) -> float:
        return float(np.sqrt(np.mean(((forecast - right[:, 0]) / spread) ** 2)))

    times = times_of(made.transpose(1, 0, 2))
    percent = smape((made.transpose(1, 0, 2) - middle) / spread, (after - middle) / spread)
    ends = {horizon: max(1, round(horizon / unit)) for horizon in HORIZONS}
    result = {
        "frame": system.frame,
        "lyapunov_exponent": system.exponent,
        "forecasts": len(times),
        "valid_time_mean": float(times.mean()),
        "valid_time_median": float(np.median(times)),
        "valid_time_10th_percentile": float(np.quantile(times, 0.1)),
        "smape": {f"{horizon:g}": float(percent[end - 1]) for horizon, end in ends.items() if end <= len(percent)},
        "one_step_rmse": first_error(made[:, 0]),
        "one_step_rmse_persistence": first_error(known[:, -1]),
        "one_step_rmse_linear": first_error(straight[0]),
        "valid_time_mean_linear": float(times_of(straight).mean()),
    }
    shown = int(np.argsort(times)[len(times) // 2])  # the median forecast
    return result, {"truth": right[shown], "forecast": made[shown], "valid_time": float(times[shown])}


def linear(data: np.ndarray, starts: np.ndarray, frames: int) -> np.ndarray:
    """Forecasts (frames, B, D) of a linear regression of the next frame on the present one, step by step.

    Args:
        data: Trajectories that it is fitted to, (N, T, D).
        starts: States (B, D), which are not among the forecasts.
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
    axis, lags = system.axis, min(200, real.shape[1] // 3)
    result: dict[str, Any] = {
        name: {"model": a, "real": b, "ratio": a / b if b > 0 else None}
        for name, (a, b) in distances(made, real, spread, axis).items()
    }
    result["w1_ratio_mean"] = float(np.mean([result[f"w1_{name}"]["ratio"] for name in letters(real)]))
    result |= geometry(made, real, spread)
    for name, x in (("model", made), ("real", real)):
        moving = [row[:, axis] for row in x[:16] if np.ptp(row[:, axis]) > 0]
        rho = np.mean([autocorrelation(row, lags) for row in moving] or [np.ones(lags + 1)], axis=0)
        result[f"moments_{name}"] = {"mean": x.mean((0, 1)).tolist(), "std": x.std((0, 1)).tolist()}
        result[f"correlation_time_{name}"] = correlation_time(np.abs(rho)) * system.frame
    return result


def letters(x: np.ndarray) -> list[str]:
    """Names of coordinates (..., D): x, y, z, or x1, x2, ..."""
    return list("xyz") if x.shape[-1] == 3 else [f"x{i + 1}" for i in range(x.shape[-1])]


def geometry(made: np.ndarray, real: np.ndarray, spread: np.ndarray) -> dict[str, dict[str, float]]:
    """Errors of the correlation dimension with the dimensions, and state-space divergences, beside real to real."""
    points = thinned(made, spread), thinned(real, spread)
    sizes = [[correlation_dimension(x) for x in each] for each in points]
    error = against_floor(*sizes, lambda a, b: abs(a - b))
    divergence = against_floor(*points, lambda a, b: state_space_divergence(b, a))
    of = {"of_model": float(np.mean(sizes[0])), "of_real": float(np.mean(sizes[1]))}
    return {
        "correlation_dimension": {"model": error[0], "real": error[1], **of},
        "state_space_divergence": {"model": divergence[0], "real": divergence[1]},
    }


def thinned(x: np.ndarray, spread: np.ndarray) -> list[np.ndarray]:
    """Points (POINTS, D) of the first four sets of trajectories (count, T, D), far apart in time, of spread 1."""
    sets = (x / spread).reshape(-1, SET * x.shape[1], x.shape[2])[:4]
    return [points[:: max(1, len(points) // POINTS)][:POINTS] for points in sets]


def distances(made: np.ndarray, real: np.ndarray, spread: np.ndarray, axis: int) -> dict[str, tuple[float, float]]:
    """(model to real, real to real) of the marginals, the invariant measure and the map of successive maxima.

    The invariant measure is that of the first three coordinates.
    """
    flat = real.reshape(-1, real.shape[2])
    low, high = flat.min(0), flat.max(0)

    def sets(x: np.ndarray) -> list[np.ndarray]:
        return list(x.reshape(-1, SET * x.shape[1], x.shape[2]))

    def maps(x: np.ndarray) -> list[np.ndarray]:
        pairs = [np.concatenate([maxima(row[:, axis]) for row in group]) for group in x.reshape(-1, SET, *x.shape[1:])]
        return [cells(p, [low[axis]] * 2, [high[axis]] * 2, 40) for p in pairs]

    marginals = {
        f"w1_{name}": against_floor(
            [x[:, i] / spread[i] for x in sets(made)], [x[:, i] / spread[i] for x in sets(real)], w1
        )
        for i, name in enumerate(letters(real))
    }
    boxes = [[cells(x[:, :3], low[:3], high[:3], 24) for x in sets(y)] for y in (made, real)]
    return marginals | {
        "invariant_measure_js": against_floor(boxes[0], boxes[1], js_distance),
        # a run that came to rest has no maxima: as far from the real ones as can be
        "maxima_map_js": against_floor(
            maps(made), maps(real), lambda p, q: js_distance(p, q) if p.any() and q.any() else 1.0
        ),
    }
