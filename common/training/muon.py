"""Muon for a network's hidden kernels, AdamW for all else, as one optimizer with one learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

MOMENTUM = 0.95
SERIES = (3.4445, -4.7750, 2.0315)  # of X, X X' X and (X X')^2 X: singular values go to 0.7 to 1.2 in five iterations


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the hidden convolutions, AdamW for the other parameters.

    A kernel is seen as a matrix W (out, in k k) with gradient G and momentum B:

        B <- m B + (1 - m) G,    W <- (1 - lr decay) W - 0.2 lr sqrt(max(out, in k k)) NS((1 - m) G + m B)

    where NS moves all singular values to about 1. The factor gives the update the size of AdamW's, hence one ``lr``. A
    step that ``found_inf`` says is bad changes nothing. As :class:`torch.optim.Muon` with ``match_rms_adamw``, which
    takes matrices only and iterates in bfloat16 on every device: 17 times the time on a CPU without that arithmetic.

    Args:
        net: the network.
        lr: of both, for one step.
        betas, fused: AdamW's.
        weight_decay: of both.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the factor: Liu et al. 2025 (2502.16982), 2.2.
    """

    found_inf: Tensor | None = None

    def __init__(self, net: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, fused: bool):
        kernels = hidden_kernels(net)
        hidden = {id(kernel) for kernel in kernels}
        rest = [p for p in net.parameters() if id(p) not in hidden]
        options: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "fused": fused}
        self.adamw = torch.optim.AdamW(rest, **options)
        super().__init__([self.adamw.param_groups[0], {"params": kernels}], options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        # a loaded state is another object: AdamW works on what this optimizer keeps
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[:1]
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        group, alike = self.param_groups[1], dict[torch.Size, list[Tensor]]()
        for kernel in group["params"]:
            alike.setdefault(kernel.shape, []).append(kernel)
        for kernels in alike.values():
            self._step_kernels(kernels, group["lr"], group["weight_decay"])

    def _step_kernels(self, kernels: list[Tensor], lr: float, decay: float) -> None:
        """A step of kernels of one shape."""
        bad = torch.zeros_like(kernels[0][0, 0]).sum() if self.found_inf is None else self.found_inf
        updates = []
        for kernel in kernels:
            if "momentum" not in self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
            momentum = self.state[kernel]["momentum"]
            gradient = kernel.grad if kernel.grad is not None else torch.zeros_like(kernel)
            gradient = torch.where(bad > 0, momentum, gradient)  # towards itself it does not move
            momentum.lerp_(gradient, 1 - MOMENTUM)
            updates.append(gradient.lerp(momentum, MOMENTUM).flatten(1))
        size = 0.2 * lr * math.sqrt(max(updates[0].shape))
        for kernel, update in zip(kernels, orthogonalised(torch.stack(updates)), strict=True):
            moved = (1 - lr * decay) * kernel - size * update.view_as(kernel)
            kernel.copy_(torch.where(bad > 0, kernel, moved))


def hidden_kernels(net: nn.Module) -> list[Tensor]:
    """Kernels of all convolutions but the first and the last, which see and make images."""
    return [module.weight for module in net.modules() if isinstance(module, _ConvNd)][1:-1]


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and all singular values near 1, by Newton-Schulz."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT, iterations).mT
    a, b, c = SERIES
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
