"""Numerical solvers of dx/dt = velocity(x, t), of IDFF's sampler and of SDEs, and the time grids they run on.

``velocity(x, t)`` gets t of shape (B,) and returns the shape of x. Times may ascend (noise to data) or descend.
The state keeps the dtype of x and is at least float32, whatever precision the network computes in. Gradients follow
the caller's mode: sample under ``torch.no_grad()`` or the whole path stays in memory. Only dopri5 waits for a GPU.

With D = x + (1 - t) v the data prediction of the linear path, dx/dt = v is d/dt [x / (1 - t)] = D / (1 - t)^2.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Slope = Callable[[Tensor, float], Tensor]  # a velocity that takes the time as a number
Heads = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[int, Tensor], Tensor]
Rate = Callable[[float], float]
Times = Tensor | Sequence[float]

GRIDS = ("uniform", "cosine", "power", "logsnr", "edm")
TORCHDYN = ("euler", "midpoint", "dopri5", "tsit5")

# EDM's range of noise levels sigma = (1 - t) / t (Karras et al. 2206.00364, table 1).
SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0


# ---------------------------------------------------------------------------------------------------- time grids
def time_grid(n_steps: int, kind: str = "uniform", dtype: torch.dtype = torch.float32) -> Tensor:
    """Times of a sampler: n_steps + 1 ascending nodes, the first 0 (noise) and the last 1 (data), on the CPU.

    With u_i = i / n_steps and the noise level sigma = (1 - t) / t:

    * uniform: t = u
    * cosine: t = (1 - cos(pi u)) / 2; fine at both ends
    * power: t = 1 - (1 - u)^2; fine near the data
    * logsnr: log sigma falls uniformly from log 80 to log 0.002
    * edm: sigma^(1/7) falls uniformly from 80^(1/7) to 0.002^(1/7) (Karras et al. 2206.00364, eq. 5)

    logsnr and edm then have their first node moved from t = 1/81 to 0 and their last one from 1/1.002 to 1. Unlike EDM,
    which appends sigma = 0, this wastes no evaluation on the last 0.002 of the way.

    Raises:
        ValueError: n_steps < 1 or an unknown kind.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}: a sampler needs at least 1 step; try --n_steps 10")
    u = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    if kind == "uniform":
        times = u
    elif kind == "cosine":
        times = (1 - torch.cos(math.pi * u)) / 2
    elif kind == "power":
        times = 1 - (1 - u) ** 2
    elif kind == "logsnr":
        times = torch.sigmoid(-math.log(SIGMA_MAX) + u * math.log(SIGMA_MAX / SIGMA_MIN))
    elif kind == "edm":
        sigma = (SIGMA_MAX ** (1 / RHO) + u * (SIGMA_MIN ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
        times = 1 / (1 + sigma)
    else:
        raise ValueError(f"unknown time grid {kind!r}: use one of {', '.join(GRIDS)}")
    times[0], times[-1] = 0.0, 1.0
    return times.to(dtype)


def nodes_of(times: Times) -> list[float]:
    """Times as Python numbers; ValueError unless there are two or more, finite, strictly ascending or descending."""
    nodes = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if len(nodes) < 2:
        raise ValueError(f"times has {len(nodes)} node(s): a solver needs at least 2; try time_grid(10)")
    steps = [s - t for t, s in pairwise(nodes)]
    if not all(map(math.isfinite, nodes)) or not (all(d > 0 for d in steps) or all(d < 0 for d in steps)):
        raise ValueError(f"times must ascend or descend strictly, but are {nodes[:6]}...; try time_grid(10)")
    return nodes


# ------------------------------------------------------------------------------------- solvers on a given time grid
def euler(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 1, one evaluation a step. On the linear path this is DDIM and DPM-Solver++(1)."""
    for t, s in pairwise(nodes):
        x = x + (s - t) * f(x, t)
        yield x


def midpoint(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 2, two evaluations a step, the second in the middle of it."""
    for t, s in pairwise(nodes):
        half = (s - t) / 2
        x = x + (s - t) * f(x + half * f(x, t), t + half)
        yield x


def heun(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 2, two evaluations a step, the second at its end: the trapezoidal rule."""
    for t, s in pairwise(nodes):
        v = f(x, t)
        x = x + (s - t) / 2 * (v + f(x + (s - t) * v, s))
        yield x


def rk4(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 4, four evaluations a step: the classical Runge-Kutta method."""
    for t, s in pairwise(nodes):
        h = s - t
        k1 = f(x, t)
        k2 = f(x + h / 2 * k1, t + h / 2)
        k3 = f(x + h / 2 * k2, t + h / 2)
        k4 = f(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        yield x


def ab2(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 2, one evaluation a step: Adams-Bashforth for variable steps, started by an Euler step."""
    v_last, h_last = None, 0.0
    for t, s in pairwise(nodes):
        h, v = s - t, f(x, t)
        if v_last is None:
            x = x + h * v
        else:
            w = h / (2 * h_last)
            x = x + h * ((1 + w) * v - w * v_last)
        v_last, h_last = v, h
        yield x


def dpmpp2m(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 2, one evaluation a step: DPM-Solver++(2M) for the linear path, with the data prediction D.

    x' = r x + c [D + (D - D_last) h / (2 h_last)], r = (1-s)/(1-t), c = (s-t)/(1-t), h the step in
    lambda = log(t / (1 - t)). Written as an Euler step and a correction, which divides by nothing that can be 0. There
    is no correction where lambda is infinite (t = 0 and t = 1, at either end of the step or of the last one) nor in
    the first step.

    Source: Lu et al. 2211.01095, algorithm 2.
    """
    past: tuple[Tensor, float] | None = None  # the last D and the step in lambda that followed it
    for t, s in pairwise(nodes):
        v = f(x, t)
        d, h = x + (1 - t) * v, _log_snr(s) - _log_snr(t)
        x = x + (s - t) * v
        if past is not None and math.isfinite(h):
            x = x + (s - t) / (1 - t) * h / (2 * past[1]) * (d - past[0])
        past = (d, h) if math.isfinite(h) else None
        yield x


def _log_snr(t: float) -> float:
    """log(t / (1 - t)), infinite at the ends of [0, 1]."""
    if not 0 <= t <= 1:
        raise ValueError(f"dpmpp2m needs times in [0, 1], but one is {t:g}; use another solver, as ab2")
    return -math.inf if t == 0 else math.inf if t == 1 else math.log(t / (1 - t))


ONE_STEP = {"midpoint": midpoint, "heun": heun, "rk4": rk4}
SOLVERS = {"euler": euler, **ONE_STEP, "ab2": ab2, "dpmpp2m": dpmpp2m}


def integrate(
    velocity: Velocity,
    x: Tensor,
    times: Times,
    method: str = "euler",
    trajectory: bool = False,
    final_euler: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Solves dx/dt = velocity(x, t) from times[0] to times[-1], with one step between neighbouring times.

    Network calls for n steps: euler, ab2, dpmpp2m n; midpoint, heun 2n; rk4 4n. "dopri5" and "torchdyn" are passed on
    to the functions of that name (torchdyn with its Euler method).

    Args:
        velocity: velocity(x, t) -> shape of x; t has shape (B,).
        x: State at times[0], shape (B, ...). float16 and bfloat16 are raised to float32.
        times: Nodes, ascending or descending; see time_grid.
        method: One of SOLVERS, "dopri5" or "torchdyn".
        trajectory: Return the states at all times, shape (n + 1, B, ...), instead of the last one.
        final_euler: midpoint, heun and rk4 take an Euler step into t = 1, where their later evaluations are worst
            (EDM's rule; Karras et al. 2206.00364, algorithm 1). Saves 1 (rk4: 3) evaluations.
        rtol, atol: Tolerances of dopri5; the other methods ignore them.

    Raises:
        ValueError: unknown method, times not monotone, or no batch dimension.
    """
    if method == "dopri5":
        return dopri5(velocity, x, times, rtol, atol, trajectory)
    if method == "torchdyn":
        return torchdyn_solve(velocity, x, times, trajectory=trajectory)
    if method not in SOLVERS:
        raise ValueError(f"unknown solver {method!r}: use one of {', '.join([*SOLVERS, 'dopri5', 'torchdyn'])}")
    nodes, x, f = nodes_of(times), _state(x), _at(velocity)
    if final_euler and method in ONE_STEP and math.isclose(nodes[-1], 1.0, abs_tol=1e-6):
        states = _then_euler(SOLVERS[method], f, x, nodes)
    else:
        states = SOLVERS[method](f, x, nodes)
    return _collect(x, states, trajectory)


def _then_euler(solver: Callable, f: Slope, x: Tensor, nodes: list[float]) -> Iterator[Tensor]:
    """All steps by the solver but the last, which is Euler's."""
    last = x
    for last in solver(f, x, nodes[:-1]):
        yield last
    yield from euler(f, last, nodes[-2:])


def _state(x: Tensor) -> Tensor:
    """x in at least float32."""
    if x.ndim == 0:
        raise ValueError("x has no batch dimension: its shape must be (B, ...)")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _at(velocity: Velocity) -> Slope:
    """The velocity as a function of (x, number), in the dtype of x."""
    return lambda x, t: velocity(x, x.new_full((x.shape[0],), t)).to(x.dtype)


def _collect(x: Tensor, states: Iterator[Tensor], trajectory: bool) -> Tensor:
    """The last state, or all of them with the first, stacked."""
    return torch.stack([x, *states]) if trajectory else deque(states, maxlen=1).pop()


class CountNFE:
    """Wraps a network or velocity and counts its use.

    ``nfe`` is the number of calls: evaluations per sample if every call has one row for each sample. Where batches
    follow one another, or guidance doubles the rows, use ``per_sample(n)``.
    """

    def __init__(self, velocity: Callable) -> None:
        self.velocity = velocity
        self.reset()

    def __call__(self, x: Tensor, *args, **kwargs):
        self.nfe += 1
        self.rows += x.shape[0]
        return self.velocity(x, *args, **kwargs)

    def reset(self) -> None:
        """Starts again from 0."""
        self.nfe, self.rows = 0, 0

    def per_sample(self, n_samples: int) -> float:
        """Evaluations of the network for each of n_samples samples."""
        return self.rows / n_samples


# ------------------------------------------------------------------------------------------- solvers of other packages
def dopri5(
    velocity: Velocity, x: Tensor, times: Times, rtol: float = 1e-5, atol: float = 1e-5, trajectory: bool = False
) -> Tensor:
    """Adaptive Dormand-Prince 5(4) of torchdiffeq from times[0] to times[-1]; inner times are interpolated for nothing.

    Six evaluations a step, as many steps as the tolerances ask for, none outside the range of times. The error is the
    root mean square over the *batch*, as usual, so within the tolerance a sample depends on its neighbours.

    Raises:
        ValueError: torchdiffeq is missing, tolerances not positive, or the step size became 0 (velocity not finite).
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ValueError("solver dopri5 needs torchdiffeq: pip install torchdiffeq, or use --solver heun") from error
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"tolerances must be positive, but rtol is {rtol:g} and atol {atol:g}; try 1e-5")
    nodes, x = nodes_of(times), _state(x)
    clock = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    span = torch.tensor(nodes if trajectory else [nodes[0], nodes[-1]], dtype=clock, device=x.device)
    # step_t: without it the last step runs past the end, where a velocity need not exist.
    options = {"dtype": clock, "step_t": span[-1:], "max_num_steps": 100_000}

    def slope(t: Tensor, x: Tensor) -> Tensor:
        return velocity(x, t.to(x.dtype).expand(x.shape[0])).to(x.dtype)

    try:
        states: Any = odeint(slope, x, span, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        reason = str(error).split(":")[0][:60]
        raise ValueError(f"dopri5 stopped ({reason}): velocity not finite, or rtol {rtol:g} too small") from error
    return states if trajectory else states[-1]


def torchdyn_solve(
    velocity: Velocity,
    x: Tensor,
    times: Times,
    solver: str = "euler",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trajectory: bool = False,
) -> Tensor:
    """torchdyn's NeuralODE, as in torchcfm's examples: euler and midpoint step over times, dopri5 and tsit5 adapt.

    Its rk4 is left out: it evaluates at the wrong times, so its order is 1 if the velocity depends on t (1.0.6).

    Raises:
        ValueError: torchdyn is missing or cannot be imported safely, or another solver is asked for.
    """
    if solver not in TORCHDYN:
        raise ValueError(f"torchdyn's solver is one of {', '.join(TORCHDYN)}, not {solver!r}; try --solver heun")
    if "tensorflow" in sys.modules and "torchdyn" not in sys.modules:
        # Both load LLVM; in this order the interpreter is killed without a traceback.
        raise ValueError("torchdyn cannot be imported after tensorflow: import torchdyn first, or use --solver euler")
    try:
        from torchdyn.core import NeuralODE
    except ImportError as error:
        raise ValueError("solver torchdyn needs torchdyn: pip install torchdyn, or use --solver euler") from error
    nodes, x = nodes_of(times), _state(x)

    def field(t: Tensor, x: Tensor, args: dict | None = None) -> Tensor:
        return velocity(x, t.to(x.dtype).expand(x.shape[0])).to(x.dtype)

    tolerances: dict = {"rtol": rtol, "atol": atol} if solver in ("dopri5", "tsit5") else {}
    unused = [torch.nn.Parameter(torch.zeros(1))]  # without one torchdyn prints a line at every call
    ode = NeuralODE(field, solver=solver, sensitivity="adjoint", optimizable_params=unused, **tolerances)
    states = ode.trajectory(x, torch.tensor(nodes, dtype=x.dtype, device=x.device))
    return states if trajectory else states[-1]


# --------------------------------------------------------------------------------------------------------- stochastic
def euler_maruyama(
    drift: Velocity, diffusion: float | Rate, x: Tensor, times: Times, noise: Noise, trajectory: bool = False
) -> Tensor:
    """Solves dx = drift dt + diffusion dW by x' = x + drift dt + diffusion(t) sqrt(|dt|) noise: order 1, 1 call a step.

    Args:
        drift: As the velocity of integrate, to which x, times and trajectory belong too.
        diffusion: A number, or a function of the time as a number.
        noise: noise(i, x) -> standard normal numbers like x for step i; a pure function of i makes a sample repeatable.
    """
    x = _state(x)
    g = diffusion if callable(diffusion) else lambda t: diffusion
    return _collect(x, _maruyama(_at(drift), g, x, nodes_of(times), noise), trajectory)


def _maruyama(f: Slope, g: Rate, x: Tensor, nodes: list[float], noise: Noise | None) -> Iterator[Tensor]:
    """Euler steps of the drift f, each with noise of size g sqrt(|dt|) where there is any."""
    for i, (t, s) in enumerate(pairwise(nodes)):
        x_next = x + (s - t) * f(x, t)
        if noise is not None and g(t) != 0:
            x_next = x_next + g(t) * math.sqrt(abs(s - t)) * noise(i, x).to(x.dtype)
        x = x_next
        yield x


def idff_sampler(
    heads: Heads, x: Tensor, times: Times, sigma: float, noise: Noise | None = None, trajectory: bool = False
) -> Tensor:
    """IDFF's own sampler, as published: Euler steps of a damped drift with a score term. One network call a step.

    With s^2 = sigma^2 t (1 - t) the drift is sqrt(1 - s^2) (x1_hat - x) / (1 - t) + s st, and x1_hat - x at t = 0; the
    diffusion is sigma s. Its authors sample with twice the sigma of the training and, for images, without noise.

    This drift does not keep the marginals of the bridge xt = t x1 + (1 - t) x0 + s e. Two others do: the ODE with
    velocity (x1_hat - x) / (1 - t) - st, and the SDE with drift (x1_hat - x) / (1 - t) and diffusion sigma. Because
    ut = x1 - x0 + s' e, x1_hat - x = (1 - t) E[ut | x] - (s + (1 - t) s') E[e | x], st = -sigma^2 E[e | x] / (2 s),
    and s + (1 - t) s' = s / (2 t).

    Args:
        heads: heads(x, t) -> (x1_hat, st), the prediction of the data and (sigma^2 / 2) times the score.
        x: Noise, shape (B, ...).
        times: Ascending nodes in [0, 1].
        sigma: The sampler's sigma, in [0, 2].
        noise: noise(i, x) as in euler_maruyama; None: the deterministic version.
        trajectory: Return the states at all times.

    Raises:
        ValueError: sigma or times out of range.

    Source: Rezaei et al. 2409.14599, as in the authors' code.
    """
    nodes, x = nodes_of(times), _state(x)
    if not 0 <= sigma <= 2:
        raise ValueError(f"sigma is {sigma:g}: idff's sampler needs 0 <= sigma <= 2; try 0.4")
    if not 0 <= nodes[0] < nodes[-1] <= 1:
        raise ValueError(
            f"idff's sampler runs from noise to data in [0, 1], but times go from {nodes[0]:g} to {nodes[-1]:g}"
        )

    def drift(x: Tensor, t: float) -> Tensor:
        x1_hat, st = heads(x, x.new_full((x.shape[0],), t))
        spread = sigma * math.sqrt(t * (1 - t))
        return math.sqrt(1 - spread**2) / (1 - t) * (x1_hat.to(x.dtype) - x) + spread * st.to(x.dtype)

    def diffusion(t: float) -> float:
        return sigma**2 * math.sqrt(t * (1 - t))

    return _collect(x, _maruyama(drift, diffusion, x, nodes, noise), trajectory)
