"""The neural velocity that a train is compared with: two recipes for one multilayer perceptron.

"seed": ttrecflow's. Two hidden layers of 100, ReLU; each point of the data keeps one noise; 20,000 steps of 4,096
pairs, a constant learning rate of 5e-3 and weight decay 1e-6; by AdamW, where ttrecflow has Adam. "better": the same
layers with SiLU, fresh noise in every step, learning rate falling to zero along a cosine, averaged weights, points
divided by their deviation; it takes a tenth of the pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint
from common.networks import MLP
from common.paths import LinearPath
from common.runtime import generator
from common.training.small import fit

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


class Velocity(nn.Module):
    """velocity(x, t) = scale net(x / scale, t).

    Args:
        net: Of ``common.networks``.
        scale: A length of the data.
        recipe: How it was trained.
    """

    def __init__(self, net: MLP, scale: float, recipe: str) -> None:
        super().__init__()
        self.net, self.scale, self.recipe = net, scale, recipe

    @property
    def n_parameters(self) -> int:
        """Weights."""
        return sum(p.numel() for p in self.net.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, d)."""
        return self.scale * self.net(x / self.scale, t)

    def save(self, path: Path) -> None:
        """Write it to a file of tensors and primitives; see :func:`load`."""
        method = {"name": "fm", "scale": self.scale, "recipe": self.recipe}
        state = {"format": checkpoint.FORMAT, "version": 1, "step": 0, "config": {}}
        checkpoint.save(
            path, state | {"network": self.net.description, "method": method, "net_model": self.net.state_dict()}
        )


def load(path: Path) -> Velocity:
    """The velocity of a :meth:`Velocity.save`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file.
    """
    net, info = checkpoint.load_network(path)
    method = info["method"]
    if not isinstance(net, MLP) or "scale" not in method:
        raise ValueError(f"{path} holds no network of this folder: give a network.pt that a run here wrote")
    return Velocity(net, method["scale"], method["recipe"]).eval()


def train(
    x1: Tensor,
    recipe: str = "better",
    width: int = WIDTH,
    depth: int = DEPTH,
    n_steps: int | None = None,
    seed: int = 0,
    progress: bool | str = False,
) -> tuple[Velocity, float]:
    """A network fitted to x1 - x0 on straight paths from normal noise to the data, and the seconds it took.

    Args:
        x1: Data (N, d).
        recipe: A name of RECIPES.
        width, depth: Of the hidden layers.
        n_steps: In place of the recipe's; None: that.
        seed: Of weights, pairs and times.
        progress: Show a bar; a string is its title.

    Returns:
        velocity(x, t) in eval mode, and the seconds.

    Raises:
        ValueError: unknown recipe, or the loss became NaN or infinite.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    plan, dim = RECIPES[recipe], x1.shape[1]
    torch.manual_seed(seed)
    net = MLP(dim, width, depth, getattr(nn, plan.activation)).to(x1.device)
    velocity = Velocity(net, float(x1.std(0).mean()) if plan.fresh else 1.0, recipe)
    draw = _pairs(x1, plan, seed)

    def loss_at(step: int) -> Tensor:
        x0, x1, t = draw(step)
        return (velocity(LinearPath().xt(x0, x1, t, None), t) - (x1 - x0)).square().mean()

    begin = time.perf_counter()
    options: dict[str, Any] = {"lr": plan.lr, "schedule": plan.schedule, "ema_decay": plan.ema_decay}
    fit(net, loss_at, n_steps or plan.n_steps, **options, weight_decay=1e-6, progress=progress)
    return velocity.eval(), time.perf_counter() - begin


def _pairs(x1: Tensor, plan: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """x0, x1, t of a step: a function of seed and step."""
    noise = torch.randn(x1.shape, generator=generator(seed, "noise"))

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor]:
        g = generator(seed, "batch", step)
        rows = torch.randint(len(x1), (plan.batch_size,), generator=g)
        x0 = torch.randn(len(rows), x1.shape[1], generator=g) if plan.fresh else noise[rows]
        return x0.to(x1), x1[rows.to(x1.device)], torch.rand(len(rows), generator=g).to(x1)

    return draw
