"""Sequential reflow: time cut into segments; the losses, the sampler and the measures that go with them.

Edges 0 = t_0 < t_1 < ... < t_k = 1 make k segments, segment i from t_i to t_(i+1). A teacher's flow takes x_a at t_i to
x_b at t_(i+1); a student learns the chord between them, so that one Euler step per segment is enough. At an inner edge
two segments meet and the student's velocity jumps, so whatever evaluates it says for which segment:
``net(x, t, y, segment)``, ``velocity(x, t, segment)``, with one number for the batch or one for each sample, (B,).

Source: Yoon & Lee 2402.06461 (their time runs from data to noise, ours from noise to data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Edges = Sequence[float]
    Network = Callable[..., Tensor]  # net(x, t, y, segment)
    Velocity = Callable[..., Tensor]  # velocity(x, t, segment)

KINDS = ("mse", "huber")
DENSITIES = ("uniform", "u-shaped")
STEEPNESS = 4.0  # of the U-shaped density (Lee et al. 2405.20320)
HUBER = 0.00054  # c per coordinate (likewise)


# -------------------------------------------------------------------------------------------------------------- edges
def uniform_edges(k: int) -> list[float]:
    """The edges of k segments of equal length."""
    if k < 1:
        raise ValueError(f"{k} segments: sequential reflow needs at least 1; try 4")
    return [i / k for i in range(k + 1)]


def checked_edges(edges: Edges | Tensor) -> list[float]:
    """Edges as numbers; ValueError unless they ascend strictly from 0 to 1."""
    nodes = [float(t) for t in edges]
    if len(nodes) < 2 or nodes[0] != 0 or nodes[-1] != 1 or not all(t < s for t, s in pairwise(nodes)):
        text = ", ".join(f"{t:g}" for t in nodes[:8]) + (", ..." if len(nodes) > 8 else "")
        raise ValueError(f"edges must ascend from 0 to 1, but are ({text}); try 0 0.25 0.5 0.75 1")
    return nodes


def adaptive_edges(trajectory: Tensor, times: Edges | Tensor, k: int, shortest: float = 0.01) -> list[float]:
    """The edges, among the times of fine trajectories, whose k chords are straightest in sum.

    Args:
        trajectory: States at the times, shape (T + 1, B, ...). The paper takes T = 500 and up to 128 samples.
        times: T + 1 times from 0 to 1.
        k: Number of segments.
        shortest: Least part of the fine steps in a segment; one step at least.

    Raises:
        ValueError: k segments do not fit, times not from 0 to 1, or shapes that do not fit.

    Source: Yoon & Lee 2402.06461, as in the authors' code.
    """
    from common.solvers.grids import adaptive_grid

    steps = max(1, round(shortest * (len(times) - 1)))
    return checked_edges(adaptive_grid(trajectory, times, k, "straightness", steps))


# ------------------------------------------------------------------------------------------------------------- losses
def reflow_loss(
    net: Network,
    x_a: Tensor,
    x_b: Tensor,
    t_a: Tensor,
    t_b: Tensor,
    segment: Tensor,
    u: Tensor,
    y: Tensor | None = None,
    kind: str = "mse",
    c: float | None = None,
) -> Tensor:
    """How far net is from the chord's velocity (x_b - x_a) / (t_b - t_a), at the part u of the way along the chord.

    The error is that of the velocity, without a weight: pairs drawn equally often from all segments make a short
    segment count as much as a long one, as in the paper. (The end of a segment is missed by t_b - t_a times as much.)

    Args:
        net: net(x, t, y, segment) -> shape of x.
        x_a, x_b: Start and end of each pair, shape (B, ...).
        t_a, t_b: Their times, shape (B,).
        segment: Index of each pair's segment, shape (B,).
        u: In [0, 1], shape (B,); see :func:`draw_u`.
        y: Labels, shape (B,), or None.
        kind: "mse" or "huber"; see :func:`pseudo_huber`.
        c: The constant of "huber"; None: its usual value.

    Returns:
        Losses, shape (B,), float32. One evaluation of net.

    Source: Yoon & Lee 2402.06461, section 3.
    """
    from common.losses import squared_error
    from common.paths import expand

    if kind not in KINDS:
        raise ValueError(f"unknown loss {kind!r}: use one of {', '.join(KINDS)}")
    x = expand(1 - u, x_a) * x_a + expand(u, x_b) * x_b  # on the chord, not on the teacher's curve
    t = (1 - u) * t_a + u * t_b
    target = (x_b - x_a) / expand(t_b - t_a, x_a)
    prediction = net(x, t, y, segment)
    return squared_error(prediction, target) if kind == "mse" else pseudo_huber(prediction, target, c)


def distill_loss(
    net: Network,
    x_a: Tensor,
    x_b: Tensor,
    t_a: Tensor,
    t_b: Tensor,
    segment: Tensor,
    y: Tensor | None = None,
    kind: str = "mse",
    c: float | None = None,
) -> Tensor:
    """:func:`reflow_loss` at the starts of the segments only: all that one Euler step per segment asks of net.

    Its least value is 0 also where chords cross, since a start has one end; k evaluations then make a sample. Between
    the starts net is left to itself, so more steps do not help.
    """
    return reflow_loss(net, x_a, x_b, t_a, t_b, segment, t_a.new_zeros(t_a.shape), y, kind, c)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float | None = None) -> Tensor:
    """(sqrt(|e|^2 + c^2) - c) / d of each sample, |e| the norm of all d coordinates of the error; (B,), float32.

    |e|^2 / (2 c d) for small errors, |e| / d for large ones, so the gradient of a sample never exceeds 1 / d. Where
    chords cross its minimum is nearer their median than their mean, which a flow needs: it is meant for the pairs of a
    flow, which hardly cross, not for independent noise and data.

    Args:
        c: None: 0.00054 d.

    Source: Lee et al. 2405.20320 and the authors' code, which takes the norm over a whole sample and divides by d.
    """
    from common.losses import squared_error

    d = target[0].numel()
    c = HUBER * d if c is None else c
    if not c > 0:
        raise ValueError(f"the constant of the pseudo-Huber loss is {c:g}: it must be positive; try {HUBER * d:g}")
    square = squared_error(prediction, target) * d
    return square / ((square + c**2).sqrt() + c) / d  # the difference of roots, without cancellation


def draw_u(n: int, generator: torch.Generator, density: str = "uniform") -> Tensor:
    """n stratified places along the chords, in [0, 1], in random order, float32, on the generator's device.

    "u-shaped": the density a e^(a u) / (e^a - 1), a = 4, mirrored with probability 1/2, which together is
    a cosh(a (u - 1/2)) / (2 sinh(a / 2)), since the ends of a chord are harder than its middle. It takes the place of a
    weight; the authors' factors 1 - t and 1 / t (of their time) belong to their sum with LPIPS only.

    Source: Lee et al. 2405.20320 and the authors' code.
    """
    import torch

    if density not in DENSITIES:
        raise ValueError(f"unknown density {density!r}: use one of {', '.join(DENSITIES)}")
    order = torch.randperm(n, generator=generator, device=generator.device)
    q = (order + torch.rand(n, generator=generator, device=generator.device)) / n
    if density == "uniform":
        return q
    half = STEEPNESS / 2
    return (0.5 + torch.asinh((2 * q - 1) * math.sinh(half)) / STEEPNESS).clamp(0, 1)  # its distribution, inverted


# ------------------------------------------------------------------------------------------------------------ sampler
def segment_times(edges: Edges | Tensor, n_steps: int | None = None) -> list[list[float]]:
    """The sampler's times, a list for each segment with both of its edges.

    n_steps // k steps in every segment and one more in each of the first n_steps % k, the noisy ones; within a segment
    all are equal. None: one step per segment.

    Raises:
        ValueError: fewer steps than segments, or edges not from 0 to 1.

    Source: Yoon & Lee 2402.06461, as in the authors' code.
    """
    nodes = checked_edges(edges)
    k = len(nodes) - 1
    n_steps = k if n_steps is None else n_steps
    if n_steps < k:
        from common.runtime import number_of

        raise ValueError(f"{number_of(n_steps, 'step')} for {k} segments: each needs one; give --n_steps {k} or more")
    counts = [n_steps // k + (i < n_steps % k) for i in range(k)]
    return [[t + (s - t) * j / n for j in range(n)] + [s] for (t, s), n in zip(pairwise(nodes), counts, strict=True)]


def sample_times(edges: Edges | Tensor, n_steps: int | None = None) -> list[float]:
    """The n_steps + 1 times of :func:`sample`'s trajectory; see :func:`segment_times`."""
    return [0.0, *(t for times in segment_times(edges, n_steps) for t in times[1:])]


def velocity_of(net: Network, y: Tensor | None = None, cfg: float = 1.0, method: str = "rf") -> Velocity:
    """velocity(x, t, segment) of a student; guidance and ``method`` as in ``common.generate.velocity_of``."""
    from common import generate

    def velocity(x: Tensor, t: Tensor, segment: int | Tensor) -> Tensor:
        return generate.velocity_of(lambda x, t, y: net(x, t, y, segment), method, y, cfg)(x, t)

    return velocity


def sample(
    velocity: Velocity,
    x: Tensor,
    edges: Edges | Tensor,
    n_steps: int | None = None,
    method: str = "euler",
    trajectory: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Solves dx/dt = velocity(x, t, i) through the segments i = 0, 1, ..., each with a solver that starts afresh.

    So no multistep formula reaches over an edge, where the velocity jumps, and a step that ends at an edge evaluates
    there with its own segment. Evaluations, counted at the velocity, for n steps: euler and the multistep solvers n;
    midpoint, heun 2n; rk4 4n. dopri5 chooses its steps in each segment; n_steps are then only the times returned.

    Args:
        velocity: velocity(x, t, segment) with t of shape (B,) and a number for the segment; see :func:`velocity_of`.
        x: Noise, shape (B, ...).
        edges: From 0 to 1.
        n_steps: Steps in all; None: one per segment. See :func:`segment_times`.
        method: A name known to ``common.solvers.integrate``.
        trajectory: Return the states at :func:`sample_times`, shape (n_steps + 1, B, ...), instead of the last one.
        rtol, atol: Tolerances of dopri5.

    Raises:
        ValueError: unknown method, fewer steps than segments, or edges not from 0 to 1.
    """
    import torch

    from common.solvers import integrate

    states = []
    for i, times in enumerate(segment_times(edges, n_steps)):
        part = integrate(partial(_within, velocity, i), x, times, method, trajectory, rtol=rtol, atol=atol)
        x = part[-1] if trajectory else part
        states.append(part[i > 0 :])  # the first state of a segment is the last of the one before
    return torch.cat(states) if trajectory else x


def _within(velocity: Velocity, segment: int, x: Tensor, t: Tensor) -> Tensor:
    return velocity(x, t, segment)


# ----------------------------------------------------------------------------------------------------------- measures
def sequential_straightness(trajectory: Tensor, times: Edges | Tensor, edges: Edges | Tensor) -> float:
    """sum_i int_(t_i)^(t_(i+1)) E |(x_(t_(i+1)) - x_(t_i)) / (t_(i+1) - t_i) - dx/dt|^2 dt; 0 for straight segments.

    It never grows when a segment is divided. dx/dt is the chord of each interval of the times: use many.

    Args:
        trajectory: States at the times, shape (n + 1, B, ...); summed over features, averaged over the batch.
        times: Ascending from 0 to 1, the edges among them, as :func:`sample_times` has them.
        edges: With one segment this is ``common.metrics.straightness``.

    Raises:
        ValueError: an edge that is not among the times, or shapes that do not fit.

    Source: Yoon & Lee 2402.06461.
    """
    from common.metrics import straightness

    nodes = [float(t) for t in times]
    if len(nodes) != len(trajectory):
        raise ValueError(f"trajectory has shape {tuple(trajectory.shape)} for {len(nodes)} times: need (times, B, ...)")
    at = [_index(nodes, edge) for edge in checked_edges(edges)]
    return sum(straightness(trajectory[i : j + 1], nodes[i : j + 1]) for i, j in pairwise(at))


def _index(nodes: Sequence[float], edge: float) -> int:
    """Where an edge is among the times, which may be float32."""
    i = min(range(len(nodes)), key=lambda i: abs(nodes[i] - edge))
    if abs(nodes[i] - edge) > 1e-6:
        raise ValueError(f"the edge {edge:g} is not among the {len(nodes)} times: integrate at sample_times(edges, n)")
    return i


def truncation_error(
    velocity: Velocity,
    x: Tensor,
    edges: Edges | Tensor,
    n_steps: int | None = None,
    method: str = "euler",
    fine: int = 50,
    reference: Velocity | None = None,
) -> tuple[list[float], list[float]]:
    """What a sampler's few steps lose against the exact solution: within each segment, and in all up to its end.

    The first starts each segment on the fine solution, the second goes on from its own states; both are root mean
    squares over samples and coordinates at the ends of the segments.

    Args:
        velocity, x, edges, n_steps, method: As for :func:`sample`.
        fine: rk4 steps per segment of the fine solution; 4 evaluations each.
        reference: Velocity of the fine solution, a teacher's for instance; None: the same velocity.

    Returns:
        Errors of each segment, and those accumulated at its end: two lists of k numbers.
    """
    import torch

    from common.metrics import rms
    from common.solvers import integrate

    within, in_all, coarse = [], [], x
    with torch.no_grad():
        for i, times in enumerate(segment_times(edges, n_steps)):
            span = [times[0] + (times[-1] - times[0]) * j / fine for j in range(fine)] + [times[-1]]
            exact = integrate(partial(_within, reference or velocity, i), x, span, "rk4")
            own = partial(_within, velocity, i)
            coarse = integrate(own, coarse, times, method)
            within.append(rms(integrate(own, x, times, method), exact))
            in_all.append(rms(coarse, exact))
            x = exact
    return within, in_all
