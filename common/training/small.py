"""A small training loop, for networks that one process trains in minutes, and flows in the plane trained by it.

``common.training.loop`` has the large one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.couplings import couple
from common.data.toys import ALTERNATING, Draw, sample
from common.methods import METHODS, make_loss
from common.networks import MLP
from common.runtime import generator
from common.training.averages import EMA

Pairs = Callable[[int], tuple[Tensor, Tensor]]  # pairs(step) -> x0, x1, coupled


def fit(
    net: nn.Module,
    loss_at: Callable[[int], Tensor],
    n_steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    ema_decay: float = 0.999,
    progress: bool | str = False,
) -> list[float]:
    """Train a small network in place; it ends with its averaged weights. Returns the loss of every step.

    Args:
        loss_at: loss_at(step) -> scalar, a pure function of the step and the weights.
        n_steps, lr, weight_decay: AdamW's.
        schedule: "cosine" (to zero) or "constant".
        ema_decay: see :class:`common.ema.EMA`; 0: no average.
        progress: show a bar; a string is its title.

    Raises:
        ValueError: n_steps < 1, an unknown schedule, or the loss became NaN or infinite.
    """
    if n_steps < 1:
        raise ValueError(f"training for {n_steps} steps: give at least 1")
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"unknown schedule {schedule!r}: cosine or constant")
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    ema = EMA(net, ema_decay)
    losses: list[float] = []
    title = progress if isinstance(progress, str) else None
    for step in tqdm(range(n_steps), desc=title, unit="step", disable=not progress, dynamic_ncols=True, leave=False):
        if schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        optimizer.step()
        if ema_decay:
            ema.update()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step}: lower the learning rate ({lr:g}) or the sigma")
    if ema_decay:
        net.load_state_dict(ema.module_state_dict())
    return losses


# ------------------------------------------------------------------------------------------------- flows in the plane
def fresh_pairs(
    source: str | Draw, target: str | Draw, coupling: str, batch_size: int, seed: int, reg: float | None = None
) -> Pairs:
    """Coupled batches of fresh points: ``pairs(step) -> x0, x1``, a pure function of (seed, step).

    ``source`` and ``target`` are names of ``common.data.toys.DISTRIBUTIONS``, or functions like them; coupling and its
    ``reg`` those of :func:`common.couplings.couple`.
    """

    def draw(what: str | Draw, g: torch.Generator) -> Tensor:
        return sample(what, batch_size, g) if isinstance(what, str) else what(batch_size, g)

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        g = generator(seed, "pairs", step)
        x0, x1 = draw(source, g), draw(target, g)
        if {source, target} <= {*ALTERNATING}:  # else row k of both would always be of the same part
            x1 = x1[torch.randperm(batch_size, generator=g)]
        return couple(x0, x1, coupling, g, reg=reg) if coupling != "independent" else (x0, x1)  # type: ignore[return-value]

    return pairs


def flow_loss(net: nn.Module, pairs: Pairs, method: str, sigma: float, seed: int) -> Callable[[int], Tensor]:
    """The loss of a method as a function of the step, for ``fit``: fresh times and noise."""
    loss = make_loss(method, sigma)

    def at(step: int) -> Tensor:
        x0, x1 = pairs(step)
        g = generator(seed, "times", step)
        t = (torch.arange(len(x1)) + torch.rand(len(x1), generator=g)) / len(x1)  # stratified, as in batches.py
        t = t[torch.randperm(len(x1), generator=g)]  # the rows of some distributions alternate between their parts
        return loss(net, x0, x1, t, torch.randn(x1.shape, generator=g), None).mean()

    return at


def train_mlp(
    source: str | Draw,
    target: str | Draw,
    method: str = "otcfm",
    sigma: float = 0.0,
    n_steps: int = 5000,
    batch_size: int = 256,
    width: int = 64,
    seed: int = 0,
    reg: float | None = None,
    **options: Any,
) -> MLP:
    """An MLP trained by a method of ``common.losses`` from a 2D source to a 2D target; in eval mode.

    ``common.generate.velocity_of(net, method)`` is its velocity. Ends and ``reg`` are those of :func:`fresh_pairs`, the
    other options those of :func:`fit`.
    """
    torch.manual_seed(seed)
    heads = METHODS[method].heads
    net = MLP(2 * heads, width, out_dim=2 * heads)
    pairs = fresh_pairs(source, target, METHODS[method].coupling, batch_size, seed, reg)
    fit(net, flow_loss(net, pairs, method, sigma, seed), n_steps, **options)
    return net.eval()
