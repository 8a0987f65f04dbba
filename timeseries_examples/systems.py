"""Chaotic systems: accurate trajectories, Lyapunov exponents, how well a forecast follows one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class System:
    """A system dx/dt = f(x) with its standard constants.

    Attributes:
        name: Its name.
        exponent: Largest Lyapunov exponent per unit of time.
        frame: A time between frames that a network can step over.
        start: The middle of where trajectories begin, D numbers.
        exponent_source: Who says so.
        rate: f(x) for states (D, ...), many at once.
        settle: Time before the first frame, in which trajectories reach the attractor and forget where they began.
        scatter: Standard deviations of the starts around ``start``, one or D.
        scale: Size of the smallest coordinate, which the integrator's absolute tolerance follows.
        axis: The coordinate whose successive maxima make the system's map.
        past: Frames that say where the system is: 2 where an angle is seen by its cosine alone.
        observe: What is seen of states (D, ...).
    """

    name: str
    exponent: float
    frame: float
    start: tuple[float, ...]
    exponent_source: str
    rate: Rate
    settle: float = 40.0
    scatter: float | tuple[float, ...] = 1.0
    scale: float = 1.0
    axis: int = 0
    past: int = 1
    observe: Rate = np.asarray

    def starts(self, count: int, seed: int) -> np.ndarray:
        """States near ``start``, (D, count)."""
        rng = np.random.default_rng([seed, 1963])
        scatter = np.reshape(self.scatter, (-1, 1))
        first = np.array(self.start)[:, None] + scatter * rng.normal(size=(len(self.start), count))
        if self.name == "rossler":
            first[2] = np.abs(first[2])  # its trajectories can run away from below z = 0
        return first

    def solve(self, first: np.ndarray, times: np.ndarray, rtol: float) -> np.ndarray:
        """States (D, count, T) at ascending times from those (D, count) at time 0, by DOP853, all as one system.

        Raises:
            ValueError: the integrator stopped.
        """
        from scipy.integrate import solve_ivp

        def rate(_: float, x: np.ndarray) -> np.ndarray:
            return self.rate(x.reshape(first.shape)).ravel()

        span = (0, times[-1])
        solved = solve_ivp(rate, span, first.ravel(), "DOP853", times, rtol=rtol, atol=rtol * self.scale)
        if not solved.success:
            raise ValueError(f"{self.name}: the integrator stopped: {solved.message}")
        return solved.y.reshape(*first.shape, len(times))


def lorenz(x: np.ndarray) -> np.ndarray:
    """Lorenz 1963 with sigma 10, rho 28, beta 8/3."""
    return np.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def rossler(x: np.ndarray) -> np.ndarray:
    """Rossler 1976 with a = b = 0.2, c = 5.7."""
    return np.stack([-x[1] - x[2], x[0] + 0.2 * x[1], 0.2 + x[2] * (x[0] - 5.7)])


SYSTEMS = {
    # Exponents: Sprott 2003, appendix A. Rossler's trajectories contract slowly.
    "lorenz": System("lorenz", 0.9056, 0.05, (0.0, 0.0, 25.0), "Sprott 2003", lorenz, axis=2),
    "rossler": System("rossler", 0.0714, 0.2, (0.0, -5.0, 0.0), "Sprott 2003", rossler, settle=200.0),
}


def find(name: str, points: int = 30) -> System:
    """The system of a name: one of :data:`SYSTEMS`, or dysts:NAME with so many frames in a period.

    Raises:
        ValueError: dysts is not installed, or has no such system.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    from timeseries_examples.zoo import load

    return load(name.removeprefix("dysts:"), points)


def trajectories(
    system: System,
    count: int,
    frames: int,
    seed: int,
    frame: float | None = None,
    settle: float | None = None,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Independent trajectories on the attractor, (count, frames, D), float64.

    Args:
        system: Which one.
        count, frames: Of the result.
        seed: Of the initial states, random ones around ``system.start``.
        frame: Time between frames; None: the system's.
        settle: Time before the first frame; None: the system's.
        rtol: Tolerance, relative, and absolute in units of ``system.scale``.

    Raises:
        ValueError: a trajectory does not stay finite, or the integrator stopped.
    """
    times = (system.settle if settle is None else settle) + (frame or system.frame) * np.arange(frames)
    solved = system.observe(system.solve(system.starts(count, seed), times, rtol))
    if not np.isfinite(solved).all():
        raise ValueError(f"{system.name}: a trajectory did not stay finite")
    return np.ascontiguousarray(solved.transpose(1, 2, 0))


def valid_time(
    forecast: np.ndarray, truth: np.ndarray, spread: np.ndarray, step: float, exponent: float, threshold: float = 0.4
) -> np.ndarray:
    """Lyapunov times until the normalised error exceeds the threshold, for each of B forecasts, (B,).

    The error at a frame is sqrt(mean over coordinates of ((forecast - truth) / spread)^2), spread the standard
    deviations on the attractor. A forecast that never errs so much gets the whole length, a lower bound.

    Args:
        forecast, truth: (T, B, D), frames 1 ... T after the common state.
        spread: (D,).
        step: Time between frames.
        exponent: Largest Lyapunov exponent.

    Source: Vlachas et al. 2020 (Neural Networks 126), section 3.3, which uses thresholds from 0.4.
    """
    error = np.sqrt(np.mean(((forecast - truth) / spread) ** 2, axis=-1))
    wrong = ~(error <= threshold)  # nan counts as wrong
    first = np.where(wrong.any(0), wrong.argmax(0), len(error))
    return first * step * exponent


def maxima(z: np.ndarray) -> np.ndarray:
    """Successive local maxima (z_n, z_{n+1}) of z (T,): Lorenz's map, (N - 1, 2).

    They are those of a cubic spline through the frames, so that the distance of the frames hardly matters.
    """
    from scipy.interpolate import CubicSpline

    curve = CubicSpline(np.arange(len(z)), z)
    turns = curve.derivative().roots(discontinuity=False, extrapolate=False)
    top = curve(turns[curve(turns, 2) < 0])
    return np.stack([top[:-1], top[1:]], axis=1)
