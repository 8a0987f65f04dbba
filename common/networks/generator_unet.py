"""The network of the Flow Image Generator's own checkpoints, so that they can be sampled from here.

Its layers and their names are that project's; ``common.unet.ConditionalUNet``, which is trained here, is another
network of the same plan. Only sampling is meant: there is no dropout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.unet import NO_LABELS, Count, check_images


def time_frequencies(count: int) -> Tensor:
    """Its frequencies, from 1 to 1/10000, (count,)."""
    return torch.exp(-math.log(10_000) / (count - 1) * torch.arange(count))


class TimeFeatures(nn.Module):
    """Sines, then cosines, of the time at geometrically spaced frequencies, and two layers: (B,) -> (B, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.count = dim // 2
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * time_frequencies(self.count).to(t.device)
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
    """Four levels, 1, 2, 4 and 8 times as wide: net(x, t) -> (B, out_channels, H, W), H and W multiples of 8.

    In that project's files time runs from data (0) to noise (1): ``reverse_time`` turns the weights.
    ``image_size`` is for those who draw; the network takes any.
    """

    num_classes, null_class = 0, False

    def __init__(
        self, in_channels: Count, out_channels: Count, channels: Count, time_channels: Count, image_size: Count = 128
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.image_size = in_channels, out_channels, image_size
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
        emb = self.time_emb(t)

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
        return self.final_conv(h)
