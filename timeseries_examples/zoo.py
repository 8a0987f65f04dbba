"""The systems of dysts (Gilpin 2021, 2110.05266) by their equations alone: --system dysts:NAME. No file is fetched.

Frames are ``points`` to a period, as dysts and those who forecast its systems have them; the period (of the strongest
peak in the spectrum) and the largest Lyapunov exponent are those that dysts states.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np

from timeseries_examples.systems import Rate, System

EFOLDS = 20.0  # Lyapunov times before the first frame
NEAR = 1e-3  # starts around dysts's own, in standard deviations: energies of Hamiltonian systems hardly differ


def load(name: str, points: int) -> System:
    """The system of dysts of this name, with so many frames in a period.

    Trajectories begin close to dysts's initial state, which is on the attractor, and are e^20 times further apart when
    the first frame is taken. Coordinates that grow without bound (angles, phases) are seen as dysts shows them, by a
    sine or cosine: two frames then say where the system is. Delay equations are seen at ten delays in [0, tau].

    Raises:
        ValueError: dysts is not installed; it has no such system; the rate of this one is a function of time.
    """
    flows, names = _dysts()
    if name not in names:
        near = get_close_matches(name.lower(), (lower := {n.lower(): n for n in names}), 3, 0.3)
        known = ", ".join(f"dysts:{lower[n]}" for n in near) or "as dysts.systems.get_attractor_list() lists them"
        raise ValueError(f"--system dysts:{name}: no such system in dysts; the nearest of its {len(names)}: {known}")
    model = getattr(flows, name)()
    exponent, start = float(model.maximum_lyapunov_estimated), np.ravel(model.ic).astype(float)
    common: dict[str, Any] = {
        "name": f"dysts:{name}",
        "exponent": exponent,
        "frame": float(model.period) / points,
        "exponent_source": "dysts",
        "settle": EFOLDS / exponent,
    }
    if hasattr(model, "delayed_rhs"):
        return Delayed(
            **common, start=(start[0],), rate=np.asarray, scatter=NEAR * float(model.std[0]), **_delay(model)
        )
    sizes = np.where(np.isin(np.arange(len(start)), model.unbounded_indices), 1.0, model.std)
    seen = hasattr(model, "_postprocessing")
    return System(
        **common,
        start=tuple(start),
        rate=batched(model, start),
        scatter=tuple(NEAR * sizes),
        scale=float(sizes.min()),
        past=2 if seen else 1,
        observe=partial(_seen, model) if seen else np.asarray,
    )


def _dysts() -> tuple[Any, list[str]]:
    """dysts's module of flows and the names of its systems.

    Raises:
        ValueError: it is not installed, or lacks a package itself.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that numba is not installed
            from dysts import flows
            from dysts.systems import get_attractor_list
    except ImportError as error:
        raise ValueError(f"--system dysts:NAME needs dysts ({error}): pip install dysts") from error
    return flows, get_attractor_list()


# ---- ordinary differential equations


def batched(model: Any, start: np.ndarray) -> Rate:
    """f(x) of a model of dysts for states (D, count).

    Its functions are written for one state, and most take many just as well, by rows or by columns: which of both is
    tried on states near ``start``. The others are called state by state.

    Raises:
        ValueError: f depends on time besides the state.
    """

    def singly(x: np.ndarray, t: float = 0.0) -> np.ndarray:
        return np.stack([np.asarray(model.rhs(row, t), float) for row in x.T], axis=1)

    def by_rows(x: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(*model.rhs(x.T, 0.0)))

    def by_columns(x: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(*model.rhs(x, 0.0)))

    rng = np.random.default_rng(0)
    x = start[:, None] * (1 + 0.1 * rng.normal(size=(len(start), 17)))  # 17: not the dimension of any
    right = singly(x)
    if not np.allclose(right, singly(x, 7.7), equal_nan=True):
        raise ValueError(
            f"--system dysts:{type(model).__name__}: its rate is a function of time, which no step from a state can "
            "learn: give another"
        )
    for rate in (by_rows, by_columns):
        try:
            found = rate(x)
        except (ValueError, TypeError, IndexError):
            continue
        if found.shape == right.shape and np.allclose(found, right, rtol=1e-10, equal_nan=True):
            return rate
    return singly


def _seen(model: Any, x: np.ndarray) -> np.ndarray:
    """What dysts shows of states (D, ...): bounded coordinates."""
    return np.stack(np.broadcast_arrays(*model._postprocessing(*x)))


# ---- delay equations


def _delay(model: Any) -> dict[str, Any]:
    """What a delayed system has besides: its right-hand side f(x, x delayed), delay, and number of delays seen."""

    def delayed_rate(x: np.ndarray, before: np.ndarray) -> np.ndarray:
        return model._rhs(x, before, 0.0, *model.param_list)

    return {"delay": float(model.tau), "delayed_rate": delayed_rate, "seen": int(model.dimension)}


@dataclass(frozen=True)
class Delayed(System):
    """dx/dt = f(x(t), x(t - delay)) of one variable, seen at ``seen`` delays from 0 to ``delay``.

    Solved by the method of steps, one delay after the other: the delayed value is known, a cubic Hermite spline, so
    that each is an ordinary equation, for which the classical Runge-Kutta method takes ``STEPS`` steps.
    """

    delay: float = 1.0
    delayed_rate: Any = None
    seen: int = 10
    STEPS = 500

    def solve(self, first: np.ndarray, times: np.ndarray, rtol: float) -> np.ndarray:
        """States (seen, count, T) at ascending times; before time 0 all is as in first (1, count)."""
        from scipy.interpolate import CubicHermiteSpline

        nodes = np.linspace(0, self.delay, self.STEPS + 1)
        x, slope = np.repeat(first, len(nodes), 0), np.zeros((len(nodes), first.shape[1]))
        lags, frames, begin = np.linspace(0, self.delay, self.seen), [], 0.0
        while begin < times[-1]:
            before = CubicHermiteSpline(nodes, x, slope)
            after, new_slope = self._segment(x[-1], before(np.linspace(0, self.delay, 2 * self.STEPS + 1)))
            here = times[(times > begin) & (times <= begin + self.delay)] - begin
            now = CubicHermiteSpline(nodes, after, new_slope)
            at = here[:, None] - lags  # (frames, lags), in (-delay, delay]
            frames.append(np.where(at[..., None] > 0, now(at), before(at + self.delay)))
            x, slope, begin = after, new_slope, begin + self.delay
        return np.concatenate(frames).transpose(1, 2, 0)

    def _segment(self, x: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States and slopes (STEPS + 1, count) over one delay; ``before``: values at nodes and their middles."""
        f, h = self.delayed_rate, self.delay / self.STEPS
        states, slopes = [x], [f(x, before[0])]
        for a, b, c in zip(before[:-2:2], before[1:-1:2], before[2::2]):
            k1 = f(x, a)
            k2 = f(x + h / 2 * k1, b)
            k3 = f(x + h / 2 * k2, b)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3, c))
            states.append(x)
            slopes.append(f(x, c))
        return np.stack(states), np.stack(slopes)
