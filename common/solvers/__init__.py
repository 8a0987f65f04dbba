"""Numerical solvers of dx/dt = velocity(x, t), of IDFF's sampler and of SDEs.

``velocity(x, t)`` gets t of shape (B,) and returns the shape of x. Times may ascend (noise to data) or descend.
The state keeps the dtype of x and is at least float32, whatever precision the network computes in. Gradients follow
the caller's mode: sample under ``torch.no_grad()`` or the whole path stays in memory. Only dopri5 waits for a GPU.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from common.solvers.adaptive import dopri5
from common.solvers.grids import GRIDS, Times, nodes_of, time_grid
from common.solvers.multistep import MULTISTEP, Slope

__all__ = [
    "GRIDS", "SOLVERS", "CountNFE", "consistency", "dopri5", "euler_maruyama", "follow_map", "idff_sampler",
    "integrate", "time_grid",
]  # fmt: skip

Velocity = Callable[[Tensor, Tensor], Tensor]
Heads = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[int, Tensor], Tensor]
Rate = Callable[[float], float]
Solver = Callable[[Slope, Tensor, list[float]], Iterator[Tensor]]
Trajectory = bool | Callable[[Tensor], object]


# ------------------------------------------------------------------------------------- solvers on a given time grid
def euler(f: Slope, x: Tensor, nodes: Iterable[float]) -> Iterator[Tensor]:
    """Order 1, one evaluation a step. On the linear path this is DDIM and DPM-Solver++(1)."""
    for t, s in pairwise(nodes):
        x = x.add(f(x, t), alpha=s - t)
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


ONE_STEP = {"midpoint": midpoint, "heun": heun, "rk4": rk4}
SOLVERS: dict[str, Solver] = {"euler": euler, **ONE_STEP, **MULTISTEP}


def integrate(
    velocity: Velocity,
    x: Tensor,
    times: Times,
    method: str | Solver = "euler",
    trajectory: Trajectory = False,
    final_euler: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Solves dx/dt = velocity(x, t) from times[0] to times[-1], with one step between neighbouring times.

    Network calls for n steps: euler and the multistep solvers n; midpoint, heun 2n; rk4 4n. "dopri5" and "torchdyn"
    are passed on to the functions of that name.

    Args:
        velocity: velocity(x, t) -> shape of x; t has shape (B,).
        x: State at times[0], shape (B, ...). float16 and bfloat16 are raised to float32.
        times: Nodes, ascending or descending; see time_grid.
        method: One of SOLVERS, "dopri5" or "torchdyn"; or a function like those of SOLVERS, as a fitted sampler is.
        trajectory: Return the states at all times, shape (n + 1, B, ...), instead of the last one; or a function that
            gets each but the first as it is made (those of dopri5 and torchdyn at the end).
        final_euler: midpoint, heun and rk4 take an Euler step into t = 1, where their later evaluations are worst
            (EDM's rule; Karras et al. 2206.00364, algorithm 1). Saves 1 (rk4: 3) evaluations.
        rtol, atol: Tolerances of dopri5; the other methods ignore them.

    Raises:
        ValueError: unknown method, times not monotone, or no batch dimension.
    """
    if method in ("dopri5", "torchdyn"):
        how: dict = {"rtol": rtol, "atol": atol} if method == "dopri5" else {}
        states = (dopri5 if how else torchdyn_solve)(velocity, x, times, trajectory=bool(trajectory), **how)
        return _collect(x, iter(states[1:]), trajectory) if callable(trajectory) else states
    solver = method if callable(method) else SOLVERS.get(method)
    if solver is None:
        raise ValueError(f"unknown solver {method!r}: use one of {', '.join([*SOLVERS, 'dopri5', 'torchdyn'])}")
    # A solver is a generator over nodes t_0, ..., t_n that yields x(t_1), ..., x(t_n): whoever wants the end only keeps
    # one state in memory, whoever wants the path keeps all. Times are plain numbers, so that no step waits for a GPU.
    nodes, x, f = nodes_of(times), _state(x), _at(velocity)
    if final_euler and method in ONE_STEP and math.isclose(nodes[-1], 1.0, abs_tol=1e-6):
        return _collect(x, _then_euler(solver, f, x, nodes), trajectory)
    return _collect(x, solver(f, x, nodes), trajectory)


def _then_euler(solver: Solver, f: Slope, x: Tensor, nodes: list[float]) -> Iterator[Tensor]:
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
    return lambda x, t: velocity(x, _times(x, t)).to(x.dtype)


def _times(x: Tensor, t: float) -> Tensor:
    """A time for each row, (B,); in a graph that is exported one for all of them, (1,), whose value stays known."""
    return torch.tensor([t], dtype=x.dtype) if torch.compiler.is_exporting() else x.new_full((x.shape[0],), t)


def _collect(x: Tensor, states: Iterator[Tensor], trajectory: Trajectory) -> Tensor:
    """The last state, or all of them with the first, stacked; a function gets them one by one."""
    if callable(trajectory):
        for x in states:
            trajectory(x)
        return x
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
def torchdyn_solve(velocity: Velocity, x: Tensor, times: Times, trajectory: bool = False) -> Tensor:
    """Euler's method by torchdyn's NeuralODE, as in torchcfm's examples.

    Raises:
        ValueError: torchdyn is missing or cannot be imported safely.
    """
    if "tensorflow" in sys.modules and "torchdyn" not in sys.modules:
        # Both load LLVM; in this order the interpreter is killed without a traceback.
        raise ValueError("torchdyn cannot be imported after tensorflow: import torchdyn first, or use --solver euler")
    try:
        from torchdyn.core import NeuralODE
    except ImportError as error:
        raise ValueError("solver torchdyn needs torchdyn: pip install torchdyn, or use --solver euler") from error
    nodes, x, f = nodes_of(times), _state(x), _at(velocity)

    def field(t: Tensor, x: Tensor, args: dict | None = None) -> Tensor:
        """Its solvers refuse times closer than 1e-5 to each other: this clock counts steps."""
        i = min(int(t), len(nodes) - 2)
        h = nodes[i + 1] - nodes[i]
        return h * f(x, nodes[i] + (float(t) - i) * h)

    unused = [torch.nn.Parameter(torch.zeros(1))]  # without one torchdyn prints a line at every call
    ode = NeuralODE(field, solver="euler", sensitivity="adjoint", optimizable_params=unused)
    states = ode.trajectory(x, torch.arange(len(nodes), dtype=x.dtype, device=x.device))
    return states if trajectory else states[-1]


# --------------------------------------------------------------------------------------------------------- stochastic
def euler_maruyama(
    drift: Velocity, diffusion: float | Rate, x: Tensor, times: Times, noise: Noise, trajectory: Trajectory = False
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


def follow_map(flow_map: Callable[..., Tensor], x: Tensor, times: Times, trajectory: Trajectory = False) -> Tensor:
    """Jumps of a flow map from node to node: x' = x + (s - t) F(x, t, s), one network call each, exact if F is.

    ``flow_map(x, t, s)`` gives the mean velocity from t to s at x, both of shape (B,); all else is as in integrate.

    Raises:
        ValueError: steps back in time, of which no network has learnt any.
    """
    nodes, x = nodes_of(times), _state(x)
    if nodes[-1] < nodes[0]:
        raise ValueError(f"a flow map goes to later times only: it knows no step from {nodes[0]:g} to {nodes[-1]:g}")

    def jumps(x: Tensor) -> Iterator[Tensor]:
        for t, s in pairwise(nodes):
            x = x + (s - t) * flow_map(x, _times(x, t), _times(x, s)).to(x.dtype)
            yield x

    return _collect(x, jumps(x), trajectory)


def consistency(
    denoiser: Velocity,
    x: Tensor,
    times: Times,
    spread: Rate,
    noise: Noise,
    earliest: float = 0.0,
    trajectory: Trajectory = False,
) -> Tensor:
    """The end of the path through x, again noised to each later time but the last: x_t = t D + spread(t) noise.

    One network call a step: n nodes and the end. With an exact D each step gives samples of the data.

    Args:
        denoiser: denoiser(x, t) -> D(x, t), the end at t = 1 of the path through x (normal noise, (B, ...)); t is (B,).
        times: ascending nodes in [0, 1]; the last one is where D ends.
        spread: standard deviation of the noise of a time.
        earliest: time at which earlier ones are taken: D is not trained before it.
        trajectory: Return x and all D, shape (n + 1, B, ...).

    Source: Song et al. 2023 (2303.01469), algorithm 1.
    """
    x = _state(x)

    def ends() -> Iterator[Tensor]:
        end = torch.zeros_like(x)
        for i, t in enumerate(max(node, earliest) for node in nodes_of(times)[:-1]):
            end = _at(denoiser)(t * end + spread(t) * (noise(i, x).to(x.dtype) if i else x), t)
            yield end

    return _collect(x, ends(), trajectory)


def idff_sampler(
    heads: Heads, x: Tensor, times: Times, sigma: float, noise: Noise | None = None, trajectory: Trajectory = False
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
        times: Ascending nodes in [0, 1].
        sigma: The sampler's sigma, in [0, 2].
        noise: As in euler_maruyama; None: the deterministic version.

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
        x1_hat, st = heads(x, _times(x, t))
        spread = sigma * math.sqrt(t * (1 - t))
        return math.sqrt(1 - spread**2) / (1 - t) * (x1_hat.to(x.dtype) - x) + spread * st.to(x.dtype)

    def diffusion(t: float) -> float:
        return sigma**2 * math.sqrt(t * (1 - t))

    return _collect(x, _maruyama(drift, diffusion, x, nodes, noise), trajectory)
