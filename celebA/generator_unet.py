"""The network of the Flow Image Generator's own checkpoints, so that they can be sampled from here.

Its layers and their names are that project's; ``common.unet.ConditionalUNet``, which is trained here, is another
network of the same plan. Only sampling is meant: there is no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint, foreign
from common.unet import NO_LABELS, check_images


class TimeFeatures(nn.Module):
    """Sines, then cosines, of the time at geometrically spaced frequencies, and two layers: (B,) -> (B, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.count = dim // 2
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(self.count, device=t.device)
        angles = t[:, None] * torch.exp(-math.log(10_000) / (self.count - 1) * k)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class Residual(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time added between; plus the input."""

    def __init__(self, before: int, after: int, time: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, after), nn.Conv2d(after, after, 3, padding=1)
        self.time_mlp = nn.Linear(time, after)
        self.res_skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_mlp(emb)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.res_skip(x)


class Attention(nn.Module):
    """Self-attention over the pixels with one head, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class GeneratorUNet(nn.Module):
    """Four levels, 1, 2, 4 and 8 times as wide; called ``net(x, t)`` with t = 0 noise, as everywhere here.

    There time runs from data (0) to noise (1), and the network predicts noise - data; so this is -f(x, 1 - t).

    Args:
        in_channels, out_channels: of the images.
        channels: of the first level.
        time_channels: features of the time.
    """

    num_classes, null_class = 0, False

    def __init__(self, in_channels: int, out_channels: int, channels: int, time_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        c1, c2, c3, c4 = (channels * k for k in (1, 2, 4, 8))

        def pair(before: int, after: int) -> nn.ModuleList:
            return nn.ModuleList([Residual(before, after, time_channels), Residual(after, after, time_channels)])

        def up(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(before, after, 3, padding=1))

        self.time_emb = TimeFeatures(time_channels)
        self.enc1 = nn.Conv2d(in_channels, c1, 3, padding=1)
        self.enc2, self.enc3, self.enc4 = (
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((c1, c2), (c2, c3), (c3, c4))
        )
        self.enc_blocks = nn.ModuleList([Residual(c, c, time_channels) for c in (c1, c2, c3, c4)])
        self.enc_attn = nn.ModuleList([nn.Identity(), nn.Identity(), Attention(c3), Attention(c4)])
        self.middle_blocks, self.middle_attn = pair(c4, c4), Attention(c4)
        self.dec4_blocks, self.dec4_attn = pair(2 * c4, c4), Attention(c4)
        self.dec3_up, self.dec3_blocks, self.dec3_attn = up(c4, c3), pair(2 * c3, c3), Attention(c3)
        self.dec2_up, self.dec2_blocks = up(c3, c2), pair(2 * c2, c2)
        self.dec1_up, self.dec1_blocks = up(c2, c1), pair(2 * c1, c1)
        self.final_conv = nn.Conv2d(c1, out_channels, 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        check_images(x, self.in_channels, 8)
        if y is not None:
            raise ValueError(NO_LABELS)
        emb = self.time_emb(1 - t)

        def both(blocks: nn.ModuleList, h: Tensor) -> Tensor:
            for block in blocks:
                h = block(h, emb)
            return h

        h, levels = x, []
        for i, into in enumerate((self.enc1, self.enc2, self.enc3, self.enc4)):
            # The next level starts before the attention of this one.
            h = self.enc_blocks[i](into(h), emb)
            levels.append(self.enc_attn[i](h))
        h = self.middle_attn(both(self.middle_blocks, levels[3]))
        h = self.dec4_attn(both(self.dec4_blocks, torch.cat([h, levels[3]], dim=1)))
        h = self.dec3_attn(both(self.dec3_blocks, torch.cat([self.dec3_up(h), levels[2]], dim=1)))
        h = both(self.dec2_blocks, torch.cat([self.dec2_up(h), levels[1]], dim=1))
        h = both(self.dec1_blocks, torch.cat([self.dec1_up(h), levels[0]], dim=1))
        return -self.final_conv(h)


def load_network(path: str | PathLike[str], ema: bool = True, extra: Any = None) -> tuple[nn.Module, dict[str, Any]]:
    """``common.checkpoint.load_network``, which also knows the Flow Image Generator's network; same arguments.

    Raises:
        FileNotFoundError, ValueError: as there.
    """
    path = checkpoint.find(path)
    state = checkpoint.load(path)
    if state.get("format") != checkpoint.FORMAT:
        with_prefix = {"time_emb.mlp.0.weight", "module.time_emb.mlp.0.weight"}
        parts = [state, *(state[key] for key in ("ema_state", "model_state") if isinstance(state.get(key), Mapping))]
        if any(with_prefix & part.keys() for part in parts):
            return _theirs(path, foreign.unpack(state, ema), extra)
    return checkpoint.load_network(path, ema, extra)


def _theirs(path: Any, found: foreign.Foreign, extra: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The network around weights of that project, and what is known of it."""
    tensors, options = found.tensors, dict(extra or {})
    try:
        time, stem, last = (tensors[f"{n}.weight"] for n in ("time_emb.mlp.2", "enc1", "final_conv"))
        net = GeneratorUNet(stem.shape[1], last.shape[0], stem.shape[0], time.shape[0])
        net.load_state_dict({key: value.float() for key, value in tensors.items()})
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path}: not the network of the Flow Image Generator that its names say ({reason})"
        ) from error
    options.setdefault("image_size", 128)
    network = {"name": "GeneratorUNet", "in_channels": net.in_channels, "image_size": options["image_size"]}
    report = [f"{path.name}: weights of the Flow Image Generator, converted: t = 0 is noise here", *found.notes]
    method = {"name": "rf", "sigma": 0.0, "flow_weight": 2.0}
    info = {"config": options, "network": network, "method": method, "step": found.step, "report": report}
    return net.eval(), info
