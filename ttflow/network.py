"""The neural velocity that a train is compared with: two recipes for one multilayer perceptron.

"seed": ttrecflow's. Two hidden layers of 100, ReLU; each point of the data keeps one noise; 20,000 steps of 4,096
pairs, a constant learning rate of 5e-3 and weight decay 1e-6; by AdamW, where ttrecflow has Adam. "better": the same
layers with SiLU, fresh noise in every step, learning rate falling to zero along a cosine, averaged weights, points
divided by their deviation; it takes a tenth of the pairs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

WIDTH, DEPTH = 100, 2


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    n_steps: int
    batch_size: int
    fresh: bool
    activation: str
    schedule: str
    ema_decay: float
    lr: float = 5e-3


RECIPES = {
    "seed": Recipe(20_000, 4096, fresh=False, activation="ReLU", schedule="constant", ema_decay=0.0),
    "better": Recipe(8_000, 1024, fresh=True, activation="SiLU", schedule="cosine", ema_decay=0.998),
}


def train(
    x1: Tensor,
    recipe: str = "better",
    width: int = WIDTH,
    depth: int = DEPTH,
    n_steps: int = 0,
    seed: int = 0,
    progress: bool | str = False,
) -> tuple[torch.nn.Module, float]:
    """A network fitted to x1 - x0 on straight paths from normal noise to the data, and the seconds it took.

    Args:
        x1: Data (N, d).
        recipe: A name of RECIPES.
        width, depth: Of the hidden layers.
        n_steps: In place of the recipe's; 0: that.
        seed: Of weights, pairs and times.
        progress: Show a bar; a string is its title.

    Returns:
        velocity(x, t) in eval mode; its ``n_parameters`` counts the weights.

    Raises:
        ValueError: unknown recipe, or the loss became NaN or infinite.
    """
    import torch

    from common import toys
    from common.mlp import MLP
    from common.paths import LinearPath

    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    plan, dim = RECIPES[recipe], x1.shape[1]
    torch.manual_seed(seed)
    net = MLP(dim, width, depth, getattr(torch.nn, plan.activation)).to(x1.device)
    velocity = _scaled(net, float(x1.std(0).mean()) if plan.fresh else 1.0)
    draw = _pairs(x1, plan, seed)

    def loss_at(step: int) -> Tensor:
        x0, x1, t = draw(step)
        return (velocity(LinearPath().xt(x0, x1, t, None), t) - (x1 - x0)).square().mean()

    begin = time.perf_counter()
    options: dict[str, Any] = {"lr": plan.lr, "schedule": plan.schedule, "ema_decay": plan.ema_decay}
    toys.fit(net, loss_at, n_steps or plan.n_steps, **options, weight_decay=1e-6, progress=progress)
    return velocity.eval(), time.perf_counter() - begin


def _scaled(net: torch.nn.Module, scale: float) -> torch.nn.Module:
    """velocity(x, t) = scale net(x / scale, t)."""
    import torch

    class Velocity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.n_parameters = net, sum(p.numel() for p in net.parameters())

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return scale * self.net(x / scale, t)

    return Velocity()


def _pairs(x1: Tensor, plan: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """x0, x1, t of a step: a function of seed and step."""
    import torch

    from common.runtime import generator

    kept = torch.randn(x1.shape, generator=generator(seed, "noise"))

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
        g = generator(seed, "batch", step)
        rows = torch.randint(len(x1), (plan.batch_size,), generator=g)
        x0 = torch.randn(len(rows), x1.shape[1], generator=g) if plan.fresh else kept[rows]
        return x0.to(x1), x1[rows.to(x1.device)], torch.rand(len(rows), generator=g).to(x1)

    return draw
