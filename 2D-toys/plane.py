"""Flows in the plane: the network, the pairs of reflow, paths by any solver, the density and its picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import generate, solvers
from common.data import toys
from common.methods import METHODS
from common.networks import MLP
from common.runtime import generator
from common.training import small


def flow_of(method: str) -> str:
    """The method whose flow a network has: a reflow is another training of rf, no other flow."""
    return "rf" if method == "reflow" else method


def network(method: str, width: int, depth: int) -> MLP:
    """The network of a method, with fresh weights: one head, or IDFF's two.

    GELU, since with SELU the same training blurs the spirals to a disc (from the Gaussian by rf: W2 0.30, not 0.25).
    """
    heads = METHODS[flow_of(method)].heads
    return MLP(2 * heads, width, depth, nn.GELU, out_dim=2 * heads)


def reflow_pairs(net: MLP, source: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n fresh points of the source and where the flow takes them: 50 midpoint steps, 99 evaluations."""
    x0 = toys.sample(source, n, generator(seed, "reflow", "x0"))
    return x0, sample_paths(net, "rf", x0, solvers.time_grid(50), "midpoint")[0][-1]


def reflow(
    net: MLP, x0: Tensor, x1: Tensor, n_steps: int, batch_size: int = 256, seed: int = 0, **options: Any
) -> list[float]:
    """Train a rectified flow further, in place, on fixed pairs (x0, x1): the next rectified flow. Returns its losses.

    Args:
        options: of ``common.training.small.fit``.

    Source: Liu et al. 2209.03003, section 2.2, equation 3 with the pairs of the flow before.
    """

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x0), (batch_size,), generator=generator(seed, "reflow", step))
        return x0[rows], x1[rows]

    net.train()
    losses = small.fit(net, small.flow_loss(net, pairs, "rf", 0.0, seed), n_steps, **options)
    net.eval()
    return losses


def sample_paths(
    net: Any, method: str, x0: Tensor, times: Tensor, solver: str = "midpoint", sigma: float = 0.2, seed: int = 0
) -> tuple[Tensor, int]:
    """States at all times, (n + 1, B, 2), from x0 by a solver, and the network evaluations that it took.

    The last step lands on the prediction at t = 1 (of a velocity: an Euler step), where velocities are least accurate.

    Args:
        sigma: that of the training's path; idff's sampler runs at twice the value, with noise.
        seed: of the noise of the stochastic solvers.
    """
    net, method = generate.CountedNetwork(net), flow_of(method)

    def noise(i: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator(seed, "path", i))

    with torch.no_grad():
        velocity = generate.velocity_of(net, method)
        if solver == "idff":
            states = solvers.idff_sampler(generate.heads_of(net), x0, times, 2 * sigma, noise, trajectory=True)
        elif method == "idff" or solver == "euler_maruyama":
            # the bridge's velocity is infinite at t = 1, an SDE's last noise would stay: land on the prediction
            states = x0[None]
            if len(times) > 2 and solver == "euler_maruyama":
                sde = generate.sde_of(net, method, sigma)
                states = solvers.euler_maruyama(*sde, x0, times[:-1], noise, trajectory=True)
            elif len(times) > 2:
                states = solvers.integrate(velocity, x0, times[:-1], solver, trajectory=True)
            if method == "idff":
                end = generate.heads_of(net)(states[-1], times[-2].expand(len(x0)))[0]
            else:
                end = solvers.integrate(velocity, states[-1], times[-2:])
            states = torch.cat([states, end[None]])
        else:
            states = solvers.integrate(velocity, x0, times, solver, trajectory=True, final_euler=True)
    return states, net.nfe


def log_density(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor, solver: str = "rk4") -> Tensor:
    """log p_1(x) of a flow from N(0, I), by the change of variables; (B,).

    log p_1(x(1)) = log p_0(x(0)) - int_0^1 div v(x(t), t) dt along the path that ends in x, followed backwards. The
    divergence is exact: D backward passes for D features at each evaluation of the velocity.

    Args:
        velocity: velocity(x, t), differentiable, rows independent of each other.
        x: (B, D).
        times: ascending nodes from 0 to 1.

    Source: Chen et al. 1806.07366, theorem 1.
    """

    def slope(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            z = state[:, :-1].detach().requires_grad_()
            v = velocity(z, t)
            rows = [torch.autograd.grad(v[:, k].sum(), z, retain_graph=True)[0][:, k] for k in range(z.shape[1])]
        return torch.cat([v, torch.stack(rows).sum(0)[:, None]], dim=1).detach()

    with torch.no_grad():
        end = solvers.integrate(slope, torch.cat([x, x.new_zeros(len(x), 1)], dim=1), times.flip(0), solver)
    x0, change = end[:, :-1], end[:, -1]
    return change - x0.square().sum(1) / 2 - x0.shape[1] / 2 * math.log(2 * math.pi)


def image(axis: Any, density: Tensor, limit: float) -> None:
    """A density on [-limit, limit]^2 as a picture: (rows of y ascending, columns of x ascending)."""
    axis.imshow(density.detach().cpu().numpy(), extent=(-limit, limit) * 2, origin="lower", cmap="magma")


def histogram(x: Tensor, limit: float, bins: int) -> Tensor:
    """The density of points (N, 2) on [-limit, limit]^2, (bins, bins), rows of y; what lies outside is left out."""
    cell = 2 * limit / bins
    inside = x[(x.abs() < limit).all(1)]
    column, row = ((inside + limit) / cell).long().clamp(max=bins - 1).T
    counts = torch.bincount(row * bins + column, minlength=bins**2)
    return counts.reshape(bins, bins) / (len(x) * cell**2)


def mesh(limit: float, bins: int) -> Tensor:
    """Centres of the cells of :func:`histogram`, (bins^2, 2); values at them reshape to (bins, bins), rows of y."""
    centres = (torch.arange(bins) + 0.5) * (2 * limit / bins) - limit
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
