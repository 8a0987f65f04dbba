"""Multistep solvers: one evaluation a step, the past ones used again.

Each takes ``f(x, t)`` with t a number, the state and the nodes, and yields the states after each step. All of them are
an Euler step and a correction, which is left out where it would divide by zero: at t = 0 and t = 1.

With D = x + (1 - t) v the prediction of the data, e = x - t v that of the noise, lambda = log(t / (1 - t)) and
h = lambda(s) - lambda(t), a step from t to s is exactly x' = (1-s)/(1-t) x + s int exp(lambda - lambda(s)) D dlambda on
the linear path (Lu et al. 2211.01095, section 4, with alpha = t, sigma = 1 - t).

DPM-Solver++ and UniPC take D for a polynomial in lambda, which is infinite at both ends of [0, 1]: next to them the
steps in lambda are log 2, log 3/2, ... however many there are, and each misses about t^2 (near the data (1 - t)^2). So
on [0, 1] their order is 2 on every grid that begins or ends in proportion to i / n: uniform and power, and in the limit
logsnr and edm, where those steps are small; on cosine, which begins and ends with (i / n)^2, and within (0, 1) it is
their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from torch import Tensor

Slope = Callable[[Tensor, float], Tensor]  # a velocity that takes the time as a number


def adams(order: int) -> Callable[[Slope, Tensor, list[float]], Iterator[Tensor]]:
    """Adams-Bashforth of an order, up to 4, for variable steps on the velocity.

    The start keeps the order and costs no evaluation. Euler's first step misses h^2, which would make the order 2. So
    the first states are predictions: the velocities there correct them, by the integral from the first node on of the
    polynomial through all velocities so far. Those at the nodes 1, 2, 3 are off by h^2, h^3, h^3; in an integral they
    count h times. For order 4 the one at node 1 is therefore left out as soon as there are two better ones. Yielded are
    the states that the velocities belong to, the first ones as predicted.
    """

    def solver(f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
        past: list[tuple[float, Tensor]] = []  # (t_i, v_i), latest first
        start = x
        for i, (t, s) in enumerate(pairwise(nodes)):
            past = [(t, f(x, t)), *past[: order - 1]]
            if 2 < order > i > 0:
                if i == 3:
                    del past[2]  # v_1
                x = _integral(start, past[::-1], t)
            x = _integral(x, past, s)
            yield x

    return solver


def _integral(x: Tensor, velocities: Sequence[tuple[float, Tensor]], s: float) -> Tensor:
    """x and the integral from the first of these times to s of the polynomial through the velocities."""
    times, values = zip(*velocities)
    return _combined(x, adams_weights(times, s), values)


@lru_cache(maxsize=4096)  # every batch of a sampler asks for the same ones
def adams_weights(past: tuple[float, ...], s: float) -> list[float]:
    """Weights w with sum_j w_j p(past_j) = int_past[0]^s p(u) du for polynomials p of degree < len(past)."""
    t, h = past[0], s - past[0]
    powers = np.arange(len(past))
    vandermonde = ((np.asarray(past) - t) / h)[None, :] ** powers[:, None]
    return (h * np.linalg.solve(vandermonde, 1 / (powers + 1.0))).tolist()


def _combined(x: Tensor, weights: Sequence[float], directions: Sequence[Tensor]) -> Tensor:
    """x + sum_j weights_j directions_j; out of place, so that gradients pass."""
    for w, v in zip(weights, directions):
        x = x.add(v, alpha=w)
    return x


def log_snr(t: float) -> float:
    """log(t / (1 - t)), infinite at the ends of [0, 1]."""
    if not 0 <= t <= 1:
        raise ValueError(f"this solver needs times in [0, 1], but one is {t:g}; use another one, as ab2")
    return -math.inf if t == 0 else math.inf if t == 1 else math.log(t / (1 - t))


def dpmpp2m(f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
    """Order 2, on the uniform grid up to a factor of log n: DPM-Solver++(2M) for the linear path, on D.

    x' = r x + c [D + (D - D_last) h / (2 h_last)], r = (1-s)/(1-t), c = (s-t)/(1-t), h the step in lambda. There is no
    correction where lambda is infinite, at either end of the step or of the last one, nor in the first step.

    Source: Lu et al. 2211.01095, algorithm 2.
    """
    past: tuple[Tensor, float] | None = None  # the last D and the step in lambda that followed it
    for t, s in pairwise(nodes):
        v = f(x, t)
        d, h = x + (1 - t) * v, log_snr(s) - log_snr(t)
        x = x.add(v, alpha=s - t)
        if past is not None and math.isfinite(h):
            x = x + (s - t) / (1 - t) * h / (2 * past[1]) * (d - past[0])
        past = (d, h) if math.isfinite(h) else None
        yield x


def dpmpp3m(f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
    """Order 3: DPM-Solver++(3M) for the linear path, on the data prediction D.

    The derivatives h D' and h^2 D'' come from divided differences in lambda, as many as there are past predictions at
    finite lambda, and enter with the weights phi_2 and phi_3 of the exponential integrator. Into t = 1 the orders fall
    to 2 and 1 ("lower order final").

    The published code (and those that follow it) takes half of the D'' term; with it the order is 2, as measured in
    tests/solvers/test_multistep.py, with all of it 3.

    Source: Lu et al. 2211.01095, appendix.
    """
    past: list[tuple[float, Tensor]] = []  # (lambda, D) of finite lambda, latest first
    for (t, s), remaining in zip(pairwise(nodes), _steps_left(nodes), strict=True):
        v = f(x, t)
        d, start, h = x + (1 - t) * v, log_snr(t), log_snr(s) - log_snr(t)
        x = x.add(v, alpha=s - t)
        order = min(len(past) + 1, remaining, 3) if math.isfinite(h) else 1
        if order > 1:
            x = x + s * _exponential_correction(d, start, h, past[: order - 1])
        past = [(start, d), *past[:1]] if math.isfinite(start) else []
        yield x


def _exponential_correction(d: Tensor, start: float, h: float, past: Sequence[tuple[float, Tensor]]) -> Tensor:
    """phi_2 h D' - phi_3 h^2 D'', the part of a step beyond constant D, with D' and D'' from one or two past D."""
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    first = (d - past[0][1]) * (h / (start - past[0][0]))
    if len(past) == 1:
        return phi2 * first
    r0, r1 = (start - past[0][0]) / h, (past[0][0] - past[1][0]) / h
    second = (past[0][1] - past[1][1]) / r1
    bend = (first - second) / (r0 + r1)  # h^2 D'' / 2
    return phi2 * (first + r0 * bend) - (2 * phi2 / h - 1) * bend


def _steps_left(nodes: Sequence[float]) -> list[int]:
    """For each step the order it may have: the steps that are left if the way ends at t = 1, else no limit."""
    n = len(nodes) - 1
    return list(range(n, 0, -1)) if nodes[-1] == 1 else [n + 9] * n


def unipc(order: int) -> Callable[[Slope, Tensor, list[float]], Iterator[Tensor]]:
    """UniPC of an order (with its corrector the next one) for the linear path, data prediction, B(h) = exp(h) - 1.

    A predictor, and a corrector that uses the evaluation at the predicted point, which is the next step's own: one
    evaluation a step. No corrector at the end. Where lambda is infinite the order is 1, and the corrector the
    trapezoidal rule in D.

    Source: Zhao et al. 2302.04867, section 3.
    """

    def solver(f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
        past: list[tuple[float, Tensor]] = []  # (lambda, D) of finite lambda, latest first
        t, v = nodes[0], f(x, nodes[0])
        d = x + (1 - t) * v
        for s, remaining in zip(nodes[1:], _steps_left(nodes), strict=True):
            start, h = log_snr(t), log_snr(s) - log_snr(t)
            old = past[: min(order, remaining) - 1] if math.isfinite(h) else []
            ratios = [(u - start) / h for u, _ in old]
            slopes = [(m - d) / r for (_, m), r in zip(old, ratios)]
            c = (s - t) / (1 - t) if t < 1 else 0.0
            base = (1 - s) / (1 - t) * x + c * d if t < 1 else x + (s - t) * v
            x = _combined(base, [c * w for w in unipc_weights(tuple(ratios), h, False)], slopes) if old else base
            if s != nodes[-1]:
                v = f(x, s)
                new = x + (1 - s) * v
                if t < 1:
                    x = _combined(base, [c * w for w in unipc_weights(tuple(ratios), h, True)], [*slopes, new - d])
                past = [(start, d), *past[: order - 2]] if math.isfinite(start) and order > 1 else []
                t, d = s, new
            yield x

    return solver


@lru_cache(maxsize=4096)
def unipc_weights(ratios: tuple[float, ...], h: float, corrector: bool) -> list[float]:
    """Weights of (D_j - D_0) / r_j, j = 1..p-1, r_j = ``ratios``; for the corrector also of D' - D_0, last.

    They solve sum_j w_j r_j^(k-1) = k! phi_(k+1)(-h) / B for k = 1, 2, ...; with one unknown it is 1/2 for B = bh2.
    """
    r = [*ratios, 1.0] if corrector else list(ratios)
    if len(r) == 1:
        return [0.5]
    b, phi, base = [], math.expm1(-h) / -h - 1, math.expm1(-h)
    for k in range(1, len(r) + 1):
        b.append(phi * math.factorial(k) / base)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = np.arange(len(r))
    return np.linalg.solve(np.asarray(r)[None, :] ** powers[:, None], np.asarray(b)).tolist()


IPNDM = {
    1: (1.0,),
    2: (1.5, -0.5),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(order: int) -> Callable[[Slope, Tensor, list[float]], Iterator[Tensor]]:
    """iPNDM: Adams-Bashforth with the weights of even steps, on the noise prediction e over sigma = (1 - t) / t.

    dy/dsigma = e for y = x / t. The weights are those of even steps in sigma on any grid, on purpose: published
    comparisons found the exact weights of uneven steps worse. Lower orders at the start; at t = 0, where e is x
    itself, an Euler step. Order 1 is Euler's method.

    Source: Zhang & Chen 2204.13902; Liu et al. 2202.09778 (PNDM).
    """
    if order not in IPNDM:
        raise ValueError(f"ipndm has the orders 1 to 4, not {order}")

    def solver(f: Slope, x: Tensor, nodes: Sequence[float]) -> Iterator[Tensor]:
        past: list[Tensor] = []
        for t, s in pairwise(nodes):
            v = f(x, t)
            _ = log_snr(t), log_snr(s)  # names a time outside [0, 1]
            past = [x - t * v, *past[: order - 1]]
            x = x.add(v, alpha=s - t)
            if t > 0 and len(past) > 1:
                weights = IPNDM[len(past)]
                scale = (t - s) / t
                x = _combined(x, [scale * (weights[0] - 1), *(scale * w for w in weights[1:])], past)
            yield x

    return solver


MULTISTEP: dict[str, Callable[[Slope, Tensor, list[float]], Iterator[Tensor]]] = {
    "ab2": adams(2),
    "ab4": adams(4),
    "dpmpp2m": dpmpp2m,
    "dpmpp3m": dpmpp3m,
    "unipc2": unipc(2),
    "unipc3": unipc(3),
    **{f"ipndm{order}": ipndm(order) for order in IPNDM},
}
