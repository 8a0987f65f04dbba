"""What the tests of networks and their files share: random weights, images, comparisons."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

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


def random_inception(file: Path) -> dict[str, Tensor]:
    """Random weights for pytorch-fid's network, of a size that keeps activations of order one; also written."""
    from pytorch_fid import inception as fid

    nothing = mock.patch.object(fid, "load_state_dict_from_url", lambda url, progress: {})
    with nothing, mock.patch.object(nn.Module, "load_state_dict", lambda self, state: None), torch.device("meta"):
        shapes = {name: value.shape for name, value in fid.fid_inception_v3().state_dict().items()}
    g, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 0.5 + torch.rand(shape, generator=g)
        else:
            scale = (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.1
            state[name] = torch.randn(shape, generator=g) * scale
    torch.save(state, file)
    return state
