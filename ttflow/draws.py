"""What a velocity is fitted to: straight paths between coupled points, or a teacher's trajectories.

A draw is a function draw(k) -> x (N, d), t (N,), u (N, d): points, times and the velocities to learn, fresh for each k.
``on_lines`` makes one of pairs, a function pairs(k) -> x0 (N, d), x1 (N, d); ``posterior_means`` one with less noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Velocity = Callable[[Tensor, Tensor], Tensor]
    Pairs = Callable[[int], tuple[Tensor, Tensor]]
    Draw = Callable[[int], tuple[Tensor, Tensor, Tensor]]


LATE = 0.98  # time from which the mean over other data is left out


def data_pairs(x1: Tensor, n: int, coupling: str = "independent", seed: int = 0, block: int = 256) -> Pairs:
    """pairs(k) -> x0, x1: n pairs of normal noise with rows of the data, each row as often as any other.

    Args:
        x1: Data (N, d).
        n: Pairs of a draw.
        coupling: Of ``common.couplings``, within blocks of the pairs.
        seed: Draws are a function of seed and k.
        block: Pairs that are coupled at once; an exact coupling of 256 takes about a millisecond.
    """
    import torch

    from common.couplings import couple
    from common.runtime import generator

    def pairs(k: int) -> tuple[Tensor, Tensor]:
        g = generator(seed, "pairs", k)
        order = torch.cat([torch.randperm(len(x1), generator=g) for _ in range(-(-n // len(x1)))])[:n]
        ends = x1[order.to(x1.device)]
        starts = torch.randn(ends.shape, generator=g, dtype=x1.dtype).to(x1.device)
        if coupling == "independent":
            return starts, ends
        parts = [couple(a, b, coupling, g) for a, b in zip(starts.split(block), ends.split(block))]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    return pairs


def flow_pairs(velocity: Velocity, dim: int, n: int, n_steps: int = 50, method: str = "rk4", seed: int = 0) -> Pairs:
    """pairs(k) -> x0, x1: n pairs of normal noise with what a flow makes of it, for reflow.

    Args:
        velocity: Of the flow.
        dim: Numbers of a point.
        n: Pairs of a draw.
        n_steps, method: For ``common.solvers.integrate``.
        seed: Draws are a function of seed and k.

    Source: Liu et al. 2209.03003, section 2.2.
    """
    import torch

    from common.runtime import generator
    from common.solvers import integrate, time_grid

    @torch.no_grad()
    def pairs(k: int) -> tuple[Tensor, Tensor]:
        x0 = torch.randn(n, dim, generator=generator(seed, "reflow", k))
        return x0, integrate(velocity, x0, time_grid(n_steps), method)

    return pairs


def on_lines(pairs: Pairs, seed: int = 0, times: int = 1) -> Draw:
    """The draw of straight paths: x = (1 - t) x0 + t x1, u = x1 - x0, with stratified t, ``times`` for each pair."""
    from common.paths import LinearPath
    from common.runtime import generator

    def draw(k: int) -> tuple[Tensor, Tensor, Tensor]:
        x0, x1 = (x.repeat(times, 1) for x in pairs(k))
        t = stratified(len(x0), generator(seed, "times", k)).to(x0)
        xt = LinearPath().xt(x0, x1, t, None)
        return xt, t, LinearPath().ut(x0, x1, t, xt)

    return draw


def posterior_means(x1: Tensor, n: int, seed: int = 0, block: int = 512) -> Draw:
    """The draw of straight paths from normal noise whose velocity is E[x1 - x0 | xt, block] instead of x1 - x0.

    The pairs are drawn in blocks. Given a block's data, a point xt of it may have come from any of them: the mean over
    them, with weights exp(-|xt - t x1_j|^2 / (2 (1 - t)^2)), has the conditional mean of x1 - x0 by the tower property,
    without bias whatever the size of the block, and less variance. For independent coupling only. Cost of a draw: n
    times block distances, about 0.5 s for 60,000 pairs in three dimensions.

    Args:
        x1: Data (N, d).
        n: Pairs of a draw.
        seed: Draws are a function of seed and k.
        block: Data that a mean is over.

    Source: Xu et al. 2302.00670, eq. 4, for the score; here the source of a point is always among the data.
    """
    import torch

    from common.runtime import generator

    pairs = data_pairs(x1, n, seed=seed)

    def draw(k: int) -> tuple[Tensor, Tensor, Tensor]:
        x0, ends = pairs(k)
        t = stratified(len(x0), generator(seed, "times", k)).to(x0)
        parts = zip(x0.split(block), ends.split(block), t[:, None].split(block))
        rows = [_mean_velocity(*part) for part in parts]
        return torch.cat([xt for xt, _ in rows]), t, torch.cat([u for _, u in rows])

    return draw


def _mean_velocity(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """xt (N, d) and (E[x1 | xt] - xt) / (1 - t), for t (N, 1); beyond LATE, where it rounds to x1 - x0, that."""
    import torch

    xt, early = (1 - t) * x0 + t * x1, t.clamp(1e-6, LATE)
    distance = torch.cdist(xt / early, x1, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.softmax(distance.square_() * (-0.5 * (early / (1 - early)).square()), 1)
    return xt, torch.where(t < LATE, (weights @ x1 - xt) / (1 - early), x1 - x0)


def on_trajectories(
    velocity: Velocity, dim: int, n: int, n_steps: int = 20, method: str = "heun", seed: int = 0
) -> Draw:
    """The draw of a teacher's trajectories: its velocity at n (n_steps + 1) points of n paths, without any noise.

    The inner times are shifted by a random part of a step in each draw. For its end points see :func:`flow_pairs`.

    Args:
        velocity: The teacher, a network for instance.
        dim: Numbers of a point.
        n: Paths of a draw, from normal noise.
        n_steps, method: For ``common.solvers.integrate``.
        seed: Draws are a function of seed and k.
    """
    import torch

    from common.runtime import generator
    from common.solvers import integrate

    @torch.no_grad()
    def draw(k: int) -> tuple[Tensor, Tensor, Tensor]:
        g = generator(seed, "trajectories", k)
        x0, shift = torch.randn(n, dim, generator=g), float(torch.rand((), generator=g))
        nodes = [0.0, *((i + shift) / n_steps for i in range(n_steps)), 1.0]
        nodes = [t for i, t in enumerate(nodes) if i == 0 or t > nodes[i - 1]]
        states = integrate(velocity, x0, nodes, method, trajectory=True)
        t = torch.tensor(nodes)[:, None].expand(-1, n)
        u = torch.stack([velocity(x, at) for x, at in zip(states, t)])
        return states.flatten(0, 1), t.flatten(), u.flatten(0, 1)

    return draw


def stratified(n: int, g: torch.Generator) -> Tensor:
    """n times in [0, 1], one in each n-th part, in random order."""
    import torch

    return (torch.randperm(n, generator=g) + torch.rand(n, generator=g)) / n
