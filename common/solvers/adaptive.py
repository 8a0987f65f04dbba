"""Dormand-Prince 5(4) whose samples step each for itself, so that no sample depends on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.paths import expand
from common.solvers.grids import Times, nodes_of

# Stages, their times, and the difference to the order 4 (Dormand & Prince 1980, RK5(4)7M); the state in the middle of
# a step (Shampine 1986). The last stage is the first of the next step.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
MIDDLE = (
    *(6025192743 / 60170723104, 0, 51252292925 / 130801643196, -2691868925 / 90256659456),
    *(187940372067 / 3189068634112, -1776094331 / 39487288512, 11237099 / 470086768),
)
MAX_STEPS = 100_000


def dopri5(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Times,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trajectory: bool = False,
) -> Tensor:
    """Adaptive Dormand-Prince 5(4) from times[0] to times[-1]; inner times are interpolated for nothing (order 4).

    Six evaluations a step and two before the first, none outside the range of times. Each sample has its own times
    and steps, by the root mean square of its own error, and those that have arrived wait for the others; so the calls
    are those of the sample that needs most.

    Args:
        velocity, x, times, trajectory: as in ``common.solvers.integrate``; t differs from row to row.
        rtol, atol: the error of a step is to be below atol + rtol |x|.

    Raises:
        ValueError: tolerances not positive, or a step that became 0 (velocity not finite).
    """
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"tolerances must be positive, but rtol is {rtol:g} and atol {atol:g}; try 1e-5")
    nodes, x = nodes_of(times), x.to(torch.promote_types(x.dtype, torch.float32))
    clock = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    t = torch.full((len(x),), nodes[0], dtype=clock, device=x.device)
    sign, tiny = 1.0 if nodes[-1] > nodes[0] else -1.0, 10 * torch.finfo(clock).eps

    def f(x: Tensor, t: Tensor) -> Tensor:
        return velocity(x, t.to(x.dtype)).to(x.dtype)

    v = f(x, t)
    h = _first_step(f, x, t, v, sign, rtol, atol).clamp(max=abs(nodes[-1] - nodes[0]))
    states = [x.clone() for _ in nodes] if trajectory else []
    for _ in range(MAX_STEPS):
        left = sign * (nodes[-1] - t)
        if not bool((left > 0).any()):
            return torch.stack(states) if trajectory else x
        h = h.minimum(left)
        if bool(((h <= tiny) & (left > tiny)).any()):
            break
        after = torch.where(h < left, t + sign * h, nodes[-1])
        step, k, y = expand(sign * h, x).to(x.dtype), [v], x
        for row, c in zip(STAGES, TIMES):
            y = x + step * _sum(row, k)
            k.append(f(y, after if c == 1 else t + c * sign * h))
        ratio = _rms(step * _sum(ERROR, k) / (atol + rtol * x.abs().maximum(y.abs()))).to(clock)
        good = (left > 0) & (ratio <= 1)
        for i, node in enumerate(nodes[1:], 1) if trajectory else ():
            inside = good & (sign * (node - t) > 0) & (sign * (node - after) <= 0)
            if bool(inside.any()):
                share = expand(sign * (node - t) / h.clamp(min=1e-300), x).to(x.dtype)
                states[i] = torch.where(expand(inside, x), _within(x, y, step, k, share), states[i])
        factor = (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 10).nan_to_num(0.2)
        x, v = (torch.where(expand(good, x), new, old) for new, old in ((y, x), (k[-1], v)))
        t, h = torch.where(good, after, t), torch.where(left > 0, h * factor, h)
    raise ValueError(f"dopri5 stopped (step size 0): velocity not finite, or rtol {rtol:g} too small")


def _sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return sum((w * v for w, v in zip(weights[1:], values[1:]) if w), weights[0] * values[0])


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B,)."""
    return x.flatten(1).square().mean(1).sqrt() if x.ndim > 1 else x.abs()


def _within(x: Tensor, y: Tensor, step: Tensor, k: Sequence[Tensor], u: Tensor) -> Tensor:
    """The state at the share u of a step: the cubic of both ends, and a quartic for what it misses in the middle."""
    chord = y - x
    cubic = x + u * chord + u * (1 - u) * ((1 - u) * (step * k[0] - chord) - u * (step * k[-1] - chord))
    missed = step * _sum(MIDDLE, k) - chord / 2 - step * (k[0] - k[-1]) / 8
    return cubic + 16 * (u * (1 - u)).square() * missed


def _first_step(
    f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, v: Tensor, sign: float, rtol: float, atol: float
) -> Tensor:
    """How long the first step may be, (B,); one evaluation. Source: Hairer, Norsett & Wanner, section II.4."""
    scale = atol + rtol * x.abs()
    size, speed = _rms(x / scale), _rms(v / scale)
    h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).to(t.dtype)
    bend = _rms((f(x + expand(sign * h, x).to(x.dtype) * v, t + sign * h) - v) / scale).to(t.dtype) / h
    fastest = bend.maximum(speed.to(t.dtype))
    usual = torch.where(fastest <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / fastest) ** 0.2)
    return usual.minimum(100 * h).nan_to_num(1e-3)
