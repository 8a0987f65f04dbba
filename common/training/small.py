"""A small training loop, for networks that one process trains in minutes; training.py has the large one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.training.averages import EMA


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
        net: the network.
        loss_at: loss_at(step) -> scalar, a pure function of the step and the weights.
        n_steps: updates by AdamW.
        lr, weight_decay: AdamW's.
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
    from tqdm import tqdm

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
