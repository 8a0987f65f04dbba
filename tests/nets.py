"""What the tests of networks and their files share: random weights, images, comparisons."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that keeps activations of order one, also in layers that start as zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return net.eval()


def images(channels: int = 3, size: int = 16, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Noise images (batch, channels, size, size) and times (batch,)."""
    g = torch.Generator().manual_seed(5)
    return torch.randn(batch, channels, size, size, generator=g), torch.rand(batch, generator=g)


def same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether a network holds exactly these weights."""
    return all(torch.equal(v, state[k].to(v.dtype)) for k, v in net.state_dict().items())
