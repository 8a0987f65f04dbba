"""Chaotic systems of three equations: accurate trajectories, Lyapunov exponents, how well a forecast follows one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class System:
    """A system dx/dt = f(x) with its standard constants.

    ``exponent`` is the largest Lyapunov exponent per unit of time; ``frame`` a time between frames that a network can
    step over; ``start`` the middle of where trajectories begin.
    """

    name: str
    exponent: float
    frame: float
    start: tuple[float, float, float]
    exponent_source: str

    def rate(self, x: np.ndarray) -> np.ndarray:
        """f(x) for states (3, ...)."""
        if self.name == "lorenz":
            return np.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])
        return np.stack([-x[1] - x[2], x[0] + 0.2 * x[1], 0.2 + x[2] * (x[0] - 5.7)])


SYSTEMS = {
    # Lorenz 1963, sigma 10, rho 28, beta 8/3; Rossler 1976, a = b = 0.2, c = 5.7. Exponents: Sprott 2003, appendix A.
    "lorenz": System("lorenz", 0.9056, 0.05, (0.0, 0.0, 25.0), "Sprott 2003"),
    "rossler": System("rossler", 0.0714, 0.2, (0.0, -5.0, 0.0), "Sprott 2003"),
}


def trajectories(
    system: System,
    count: int,
    frames: int,
    seed: int,
    frame: float | None = None,
    settle: float = 40.0,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Independent trajectories on the attractor, (count, frames, 3), float64.

    All are solved as one system by DOP853 with relative and absolute tolerance ``rtol``, from random states around
    ``system.start`` and after ``settle`` units of time (Rossler's contract slowly: it gets five times as many).

    Args:
        system: Which one.
        count, frames: Of the result.
        seed: Of the initial states.
        frame: Time between frames; None: the system's.
        settle: Time before the first frame.
        rtol: Tolerance.
    """
    from scipy.integrate import solve_ivp

    rng = np.random.default_rng([seed, 1963])
    first = np.array(system.start)[:, None] + rng.normal(size=(3, count))
    first[2] = np.abs(first[2])  # Rossler's trajectories can run away from below z = 0
    settle *= 5 if system.name == "rossler" else 1
    step = frame or system.frame
    times = settle + step * np.arange(frames)

    def rate(_: float, x: np.ndarray) -> np.ndarray:
        return system.rate(x.reshape(3, count)).ravel()

    solved = solve_ivp(rate, (0, times[-1]), first.ravel(), "DOP853", times, rtol=rtol, atol=rtol)
    if not solved.success:
        raise ValueError(f"the integrator stopped: {solved.message}")
    return np.ascontiguousarray(solved.y.reshape(3, count, frames).transpose(1, 2, 0))


def valid_time(
    forecast: np.ndarray, truth: np.ndarray, spread: np.ndarray, step: float, exponent: float, threshold: float = 0.4
) -> np.ndarray:
    """Lyapunov times until the normalised error exceeds the threshold, for each of B forecasts, (B,).

    The error at a frame is sqrt(mean over coordinates of ((forecast - truth) / spread)^2), spread the standard
    deviations on the attractor. A forecast that never errs so much gets the whole length, a lower bound.

    Args:
        forecast, truth: (T, B, 3), frames 1 ... T after the common state.
        spread: (3,).
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
