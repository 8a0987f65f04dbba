"""Students of a flow in the plane that sample in few steps: reflow, sequential reflow, consistency tuning, flow maps,
MeanFlow.

Each begins with the weights of a rectified flow (``rf``), its teacher, and is trained for as many steps more. Neither
the line x_t = (1 - t) x0 + t x1 nor the velocity E[x1 - x0 | x_t] asks for a Gaussian x0, so all of it holds from any
source; only a consistency sampler's new noise has to be drawn from that source, and independently of the data, as rf's
pairs are.

Why a teacher: consistency tuning's error is a norm, not its square. On pairs of data its gradient vanishes where the
mean of unit vectors does, which is not at the mean velocity unless x1 - x0 is symmetric around it given x_t; in
thousands of dimensions the norms of a time are nearly equal, in two they are not. On the teacher's pairs x1 - x0 is a
function of x_t, and norm and square have the same minimum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common import generate, solvers
from common.data import toys
from common.losses import squared_error
from common.methods import METHODS, edm, end_of_velocity, make_loss
from common.networks import MLP, with_second_time
from common.paths import LinearPath, expand
from common.runtime import generator
from common.training import small
from plane import reflow, reflow_pairs

Loss = Callable[..., Tensor]

SEGMENTS = 4  # of sequential reflow
LEVEL = (1.0, 2.0)  # ln s ~ N(1, 2^2): points of the plane are 7 times as wide as images, whose mean is -1.1

WEIGHTS = {"flowmap": {"weight_power": 0.0}}  # with the published 0.75 one step is 0.42 from the ODE's end, not 0.29


def student_of(teacher: MLP, method: str, source: str, target: str, n_steps: int, **how: Any) -> MLP:
    """A student (reflow, seqrf, ect, flowmap, meanflow), trained for n_steps; the teacher stays as it is.

    Args:
        teacher: of ``rf``, in eval mode.
        how: ``batch_size``, ``seed``, ``n_pairs`` (that the teacher makes for reflow and sequential reflow), ``lr``.
    """
    batch_size, seed, n_pairs = how.pop("batch_size", 128), how.pop("seed", 0), how.pop("n_pairs", 20_000)
    net = copy.deepcopy(teacher)
    if method == "reflow":
        reflow(net, *reflow_pairs(teacher, source, n_pairs, seed), n_steps, batch_size, seed, **how)
        return net
    if method != "ect":
        net, _ = with_second_time(net, net.description)  # type: ignore[assignment]
    pairs = small.fresh_pairs(source, target, "independent", batch_size, seed)
    if method == "seqrf":
        loss = chord_loss(net, segment_pairs(teacher, source, target, n_pairs, seed), batch_size, seed)
    else:
        loss = tuning_loss(net, teacher, method, pairs, n_steps, seed)
    net.train()
    small.fit(net, loss, n_steps, **how)
    return net.eval()


# ---- sequential reflow


def segment_pairs(teacher: MLP, source: str, target: str, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chords of SEGMENTS equal parts of time, n in all: starts and ends, (n, 2), and the time of the start, (n,).

    A start is a point of the line between source and target at the segment's first time, its end is where the
    teacher's flow takes it within the segment. Cost: a SEGMENTS-th of ``plane.reflow_pairs``.

    Source: Yoon & Lee 2024 (2402.06461), section 3.
    """
    velocity, g = generate.velocity_of(teacher, "rf"), generator(seed, "segments")
    starts, ends, times = [], [], []
    for i in range(SEGMENTS):
        a, b = i / SEGMENTS, (i + 1) / SEGMENTS
        x0, x1 = (toys.sample(name, n // SEGMENTS, g) for name in (source, target))
        starts.append((1 - a) * x0[torch.randperm(len(x0), generator=g)] + a * x1)  # rows alternate between parts
        nodes = torch.linspace(a, b, 1 + max(2, 50 // SEGMENTS))
        with torch.no_grad():
            ends.append(solvers.integrate(velocity, starts[-1], nodes, "midpoint", final_euler=b == 1))
        times.append(torch.full((len(x1),), a))
    return torch.cat(starts), torch.cat(ends), torch.cat(times)


def chord_loss(net: MLP, pairs: tuple[Tensor, Tensor, Tensor], batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """|| F(x_t, t, b) - (x_b - x_a) / (b - a) ||^2 on the chord from x_a to x_b; b tells the network its segment."""
    x_a, x_b, a = pairs

    def at(step: int) -> Tensor:
        g = generator(seed, "chords", step)
        rows, share = torch.randint(len(a), (batch_size,), generator=g), stratified(batch_size, g)
        chord = x_b[rows] - x_a[rows]
        x = x_a[rows] + expand(share, chord) * chord
        return squared_error(net(x, a[rows] + share / SEGMENTS, None, a[rows] + 1 / SEGMENTS), SEGMENTS * chord).mean()

    return at


def segment_end(t: Tensor) -> Tensor:
    """The end of the segment that begins at or before t."""
    return ((SEGMENTS * t + 1e-4).floor() + 1).clamp(max=SEGMENTS) / SEGMENTS


# ---- consistency tuning and flow maps


def taught(loss: Loss, teacher: Any) -> Loss:
    """A loss of straight pairs, on those that a teacher's velocity makes: x_t stays, x1 - x0 becomes v(x_t, t).

    A pair's second point is then an Euler step of the teacher away, so that the loss distils (Song et al. 2303.01469,
    algorithm 2) instead of learning from the data. Cost: a call of the teacher.
    """
    velocity, path = generate.velocity_of(teacher, "rf"), LinearPath(0.0)

    def at(net: Any, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any = None, **more: Any) -> Tensor:
        xt = path.xt(x0, x1, t, None)
        with torch.no_grad():
            v = velocity(xt, t)
        return loss(net, xt - expand(t, xt) * v, xt + expand(1 - t, xt) * v, t, noise, y, **more)

    return at


def tuning_loss(
    net: MLP, teacher: MLP, method: str, pairs: small.Pairs, n_steps: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of ``ect``, ``flowmap`` or ``meanflow``, taught, as a function of the step."""
    loss = taught(make_loss(method, **WEIGHTS.get(method, {})), teacher)
    times = {"flowmap": map_times, "meanflow": mean_times}.get(method)

    def at(step: int) -> Tensor:
        x0, x1 = pairs(step)
        g = generator(seed, "tuning", step)
        u, v = stratified(len(x1), g), torch.rand(len(x1), generator=g)
        t, r = times(u, v) if times else (edm(u, *LEVEL), None)
        more = {"progress": step / n_steps} if METHODS[method].staged else {}
        more |= {} if r is None else {"r": r}
        return loss(net, x0, x1, t, None, None, **more).mean()

    return at


def map_times(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Times t < r of a flow map of the plane, (B,): t = u^1.5, half of the intervals end at 1, the others anywhere.

    More often near the source than those of images, ``common.methods.flow_map_times``, which serves a single step.
    """
    t = 0.999 * u**1.5
    r = torch.where(v < 0.5, torch.ones_like(t), t + (1 - t) * (2 * v - 1))
    return t, torch.maximum(r, t + 1e-4).clamp(max=1)


def mean_times(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Those of MeanFlow: of half the pairs r = t, which keeps the velocity, the others as in :func:`map_times`."""
    t, r = map_times(u, 2 * (v - 0.5).abs())
    return t, t.where(v < 0.5, r)


def stratified(n: int, g: torch.Generator) -> Tensor:
    """n uniform numbers, one of each n-th part of [0, 1], in random order."""
    return (torch.randperm(n, generator=g) + torch.rand(n, generator=g)) / n


# ---- sampling


def sample_steps(net: MLP, method: str, x0: Tensor, times: Tensor, source: str, seed: int = 0) -> tuple[Tensor, int]:
    """States from x0 at all times, (n + 1, B, 2), and the network evaluations that they took; of ``ect`` start and end.

    Sequential reflow takes Euler steps, each of the segment that it begins in. Consistency steps start anew from the
    line between an end and fresh points of the source.

    Args:
        method: seqrf, ect, flowmap or meanflow; ``plane.sample_paths`` has all others.
    """
    counted = generate.CountedNetwork(net)
    out = generate.guided(counted)

    def noise(i: int, x: Tensor) -> Tensor:
        g = generator(seed, "noised again", i)
        return toys.sample(source, len(x), g)[torch.randperm(len(x), generator=g)]

    with torch.no_grad():
        if method == "ect":
            end = solvers.consistency(end_of_velocity(out), x0, times, lambda t: 1 - t, noise)
            return torch.stack([x0, end]), counted.nfe
        if method in ("flowmap", "meanflow"):
            return solvers.follow_map(out, x0, times, trajectory=True), counted.nfe
        chords = solvers.integrate(lambda x, t: out(x, t, segment_end(t)), x0, times, "euler", trajectory=True)
        return chords, counted.nfe
