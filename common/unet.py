"""U-Nets: the ADM network of guided diffusion and torchcfm, and a lighter conditional one.

``UNet`` keeps the parameter names of torchcfm's ``UNetModel``, so weights trained with torchcfm, IDFF or
flow-matching-pytorch load unchanged and give the same output; it differs in how it computes (channels-last
tensors, fused attention, on a CPU nearest-neighbour upsampling folded into the convolution that follows it).
Source of the architecture: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

# What a file may say of a network; far above what is trained, low enough to be built in a moment (without its weights).
Count = Annotated[int, Meta(ge=1, le=2**14)]
Blocks = Annotated[int, Meta(ge=1, le=32)]
Whole = Annotated[int, Meta(ge=0, le=2**20)]
Share = Annotated[float, Meta(ge=0, lt=1)]
HeadWidth = Annotated[int, Meta(ge=-1, le=2**14)]
Multipliers = Annotated[Sequence[Annotated[int, Meta(ge=1, le=64)]], Meta(min_length=1, max_length=12)]

ONE_TIME = "a second time was given to a network of one time: leave r out, or train with a method of two times"
NO_LABELS = "labels were given to an unconditional network: leave y out, or train with --num_classes"


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of times (B,), used unscaled as in torchcfm: (B, dim) float32, cosines, then sines.

    The frequencies are spaced geometrically, with periods from 1 to nearly 10,000 units of t / (2 pi); an odd ``dim``
    is padded with a zero.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000.0) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t.float()[:, None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(features, (0, dim % 2))


class GroupNorm(nn.GroupNorm):
    """GroupNorm whose arithmetic is float32 also under autocast: exact, and four times faster in bf16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return super().forward(x.float()).to(x.dtype)


class Dropout(nn.Dropout):
    """Dropout that needs a quarter of the random numbers on a CPU, where drawing them is not parallel.

    16 random bits decide for an element, so p is rounded to a multiple of 2^-16; the scale makes up for it exactly.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        dropped = round(self.p * 65536)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()]
        keep = (bits >= dropped - 32768).to(x.dtype).mul_(65536 / (65536 - dropped))
        dense = x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
        return dense * keep.as_strided(dense.shape, dense.stride())


def group_norm(channels: int, groups: int = 32) -> GroupNorm:
    """GroupNorm with at most ``groups`` groups (fewer when they do not divide the channels)."""
    return GroupNorm(math.gcd(groups, channels), channels)


M = TypeVar("M", bound=nn.Module)


def zeroed(module: M) -> M:
    """Set all parameters to zero: a residual branch then starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def end_embedding(features: int, channels: int) -> nn.Sequential:
    """The embedding of a second time, which is added to the first's. Its last layer starts as zero: weights trained
    with one time give the same output to the bit."""
    return nn.Sequential(nn.Linear(features, channels), nn.SiLU(), zeroed(nn.Linear(channels, channels)))


class Stage(nn.Sequential):
    """A sequence whose residual blocks also receive the embedding of time and class."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution; plus the embedding; GroupNorm, SiLU, dropout, convolution; plus the input.

    Shapes: (B, channels, H, W) and (B, emb_channels) -> (B, out_channels, H, W).
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int, dropout: float, groups: int = 32):
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(channels, groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, groups),
            nn.SiLU(),
            Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention; on a CPU in float32, since its bf16 kernel is several times slower than its float32 one.

    Fused kernels have no forward derivative: under ``torch.func.jvp`` it is computed by its plain form.
    """
    if forward_ad._current_level >= 0:
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return weights @ v
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with a residual connection; shape (B, C, H, W) is kept.

    The ``qkv`` channels are ordered head by head as [q, k, v] (the "legacy" order of guided diffusion).
    """

    def __init__(self, channels: int, num_heads: int, head_channels: int = -1, groups: int = 32):
        super().__init__()
        if head_channels > 0:
            if channels % head_channels:
                raise ValueError(
                    f"{channels} channels cannot be split into attention heads of {head_channels}: "
                    f"choose --head_channels among the divisors of {channels}, or -1 and --num_heads"
                )
            num_heads = channels // head_channels
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be split into {num_heads} heads: change --num_heads")
        self.num_heads = num_heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        # As 1x1 convolutions: on a CPU these go through oneDNN, which is faster here than torch's matrix products.
        qkv = F.conv2d(self.norm(x), self.qkv.weight[..., None], self.qkv.bias).permute(0, 2, 3, 1)
        qkv = qkv.reshape(b, height * width, self.num_heads, 3, c // self.num_heads)  # a view if channels-last
        h = attend(*qkv.permute(3, 0, 2, 1, 4))  # (B, heads, HW, C / heads)
        h = h.transpose(1, 2).reshape(b, height, width, c).permute(0, 3, 1, 2)
        return x + F.conv2d(h, self.proj_out.weight[..., None], self.proj_out.bias)


class Downsample(nn.Module):
    """Halve the sides by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the sides by nearest-neighbour repetition, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return F.conv_transpose2d(x, repeated_kernel(self.conv.weight), self.conv.bias, stride=2, padding=1)


def repeated_kernel(weight: Tensor) -> Tensor:
    """The 4x4 kernel whose stride-2 transposed convolution repeats the pixels, then convolves with ``weight``.

    A 3x3 kernel meets only 2x2 different pixels of a repeated image, so its taps can be added up beforehand: 16
    multiplications for each input pixel instead of 36. Shapes: (out, in, 3, 3) -> (in, out, 4, 4).
    """
    a, b, c = weight.flip(2).unbind(2)  # rows, then columns; the last tap first
    a, b, c = torch.stack([a, a + b, b + c, c], dim=2).flip(3).unbind(3)
    return torch.stack([a, a + b, b + c, c], dim=3).transpose(0, 1)


def check_images(x: Tensor, channels: int, multiple: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W) with sides divisible by ``multiple``."""
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        raise ValueError(
            f"this network takes images of shape (B, {channels}, H, W) with H and W divisible by {multiple}; "
            f"got {tuple(x.shape)}"
        )


class ImageNetwork(nn.Module):
    """What the U-Nets share: the check of their input, the embedding of times and labels, checkpointing."""

    channels: int
    in_channels: int
    multiple: int  # of what the sides are to be
    num_classes: int
    null_class: bool
    checkpointing: bool
    end_embed: nn.Sequential | None

    def embed(
        self, x: Tensor, t: Tensor, y: Tensor | None, r: Tensor | None, time: nn.Module, labels: nn.Module | None
    ) -> Tensor:
        """The sum of the embeddings, (B, 4 channels); without a label that of "no label", if there is one."""
        check_images(x, self.in_channels, self.multiple)
        emb = time(timestep_embedding(t, self.channels).to(x.dtype))
        if self.end_embed is not None:
            emb = emb + self.end_embed(timestep_embedding(t if r is None else r, self.channels).to(x.dtype))
        elif r is not None:
            raise ValueError(ONE_TIME)
        if labels is None:
            if y is not None:
                raise ValueError(NO_LABELS)
            return emb
        if y is None:
            if not self.null_class:
                raise ValueError("this network is class-conditional and knows no 'no label': give y")
            y = torch.full((x.shape[0],), self.num_classes - 1, device=x.device, dtype=torch.long)
        return emb + labels(y)

    def run(self, stage: Callable[..., Tensor], h: Tensor, emb: Tensor) -> Tensor:
        """A stage, its activations computed again in the backward pass if ``checkpointing`` says so."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, use_reentrant=False)
        return stage(h, emb)


class UNet(ImageNetwork):
    """The ADM U-Net, called ``net(x, t, y=None, r=None)``.

    Args:
        image_size: side of the images, before space-to-depth; it only decides where attention is used.
        channels: channels of the first level.
        channel_mult: multiplier of each level, finest first; every level but the last ends in a downsampling.
        num_res_blocks: residual blocks of a level on the way down (one more on the way up).
        attention_resolutions: sides of the feature maps that get self-attention (the lowest level always has one).
        num_heads: heads of an attention, used when head_channels, the channels of a head, is -1.
        dropout: dropout in the residual blocks.
        num_classes: rows of the class embedding; 0 for an unconditional network.
        null_class: whether the last row stands for "no label" (classifier-free guidance).
        patch_size: space-to-depth factor; 2 turns (C, H, W) into (4C, H/2, W/2) before the first convolution.
        checkpointing: recompute activations in the backward pass.
        two_times: whether there is an embedding of a second time ``r``, where a flow map's interval or a segment ends.

    Shapes: x (B, in_channels, H, W), t (B,) in [0, 1], y (B,) integers, r (B,) -> (B, out_channels, H, W). A network of
    two times takes r = t when r is not given.
    """

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        out_channels: Count,
        channels: Count = 128,
        channel_mult: Multipliers = (1, 2, 2, 2),
        num_res_blocks: Blocks = 2,
        attention_resolutions: Sequence[Whole] = (16,),
        num_heads: Count = 4,
        head_channels: HeadWidth = 64,
        dropout: Share = 0.0,
        num_classes: Whole = 0,
        null_class: bool = False,
        patch_size: Count = 1,
        checkpointing: bool = False,
        two_times: bool = False,
    ):
        super().__init__()
        self.channels, self.in_channels, self.out_channels = channels, in_channels, out_channels
        self.num_classes, self.null_class, self.checkpointing = num_classes, null_class, checkpointing
        self.patch_size = patch_size
        self.multiple = patch_size * 2 ** (len(channel_mult) - 1)

        emb_channels = 4 * channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, num_heads, head_channels)

        size = image_size // patch_size
        width = channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels * patch_size**2, width, 3, padding=1))])
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block: list[nn.Module] = [ResBlock(width, emb_channels, channels * mult, dropout)]
                width = channels * mult
                if size in attention_resolutions:
                    block.append(attention(width))
                self.input_blocks.append(Stage(*block))
                skips.append(width)
            if level + 1 < len(channel_mult):
                self.input_blocks.append(Stage(Downsample(width)))
                skips.append(width)
                size //= 2

        self.middle_block = Stage(
            ResBlock(width, emb_channels, width, dropout),
            attention(width),
            ResBlock(width, emb_channels, width, dropout),
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = [ResBlock(width + skips.pop(), emb_channels, channels * mult, dropout)]
                width = channels * mult
                if size in attention_resolutions:
                    block.append(attention(width))
                if level and i == num_res_blocks:
                    block.append(Upsample(width))
                    size *= 2
                self.output_blocks.append(Stage(*block))
        self.out = nn.Sequential(
            group_norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))
        )
        self.end_embed = end_embedding(channels, emb_channels) if two_times else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        emb = self.embed(x, t, y, r, self.time_embed, self.label_emb if self.num_classes else None)
        h = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x
        skips = []
        for stage in self.input_blocks:
            h = self.run(stage, h, emb)
            skips.append(h)
        h = self.run(self.middle_block, h, emb)
        for stage in self.output_blocks:
            h = self.run(stage, torch.cat([h, skips.pop()], dim=1), emb)
        h = self.out(h)
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h


class ConditionalUNet(ImageNetwork):
    """A plain time- and class-conditional U-Net: GroupNorm with 8 groups, SiLU, attention at low resolutions.

    Four levels by default (128 -> 64 -> 32 -> 16), as in the Flow Image Generator.

    Args:
        out_channels: channels of the output; None: in_channels.
        num_res_blocks: residual blocks of a level, each way.
        attention_levels: how many of the coarsest levels get self-attention.

    All others are as in :class:`UNet`.

    Shapes: x (B, in_channels, H, W), t (B,), y (B,), r (B,) -> (B, out_channels, H, W); H, W divisible by 2^(levels-1).
    """

    def __init__(
        self,
        in_channels: Count = 1,
        out_channels: Count | None = None,
        channels: Count = 64,
        channel_mult: Multipliers = (1, 2, 2, 4),
        num_res_blocks: Blocks = 1,
        attention_levels: Whole = 2,
        num_heads: Count = 4,
        dropout: Share = 0.1,
        num_classes: Whole = 0,
        null_class: bool = False,
        checkpointing: bool = False,
        two_times: bool = False,
    ):
        super().__init__()
        self.channels, self.in_channels, self.out_channels = channels, in_channels, out_channels or in_channels
        self.num_classes, self.null_class, self.checkpointing = num_classes, null_class, checkpointing
        self.multiple = 2 ** (len(channel_mult) - 1)
        emb = 4 * channels
        self.time_mlp = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes, emb)
        widths = [channels * m for m in channel_mult]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        levels = len(widths)

        def stage(before: int, after: int, level: int) -> Stage:
            layers: list[nn.Module] = []
            for i in range(num_res_blocks):
                layers.append(ResBlock(before if i == 0 else after, emb, after, dropout, groups=8))
                if level >= levels - attention_levels:
                    layers.append(AttentionBlock(after, num_heads, groups=8))
            return Stage(*layers)

        self.encoder = nn.ModuleList(stage(widths[max(i - 1, 0)], widths[i], i) for i in range(levels))
        self.downs = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.bottleneck = Stage(
            ResBlock(widths[-1], emb, widths[-1], dropout, groups=8),
            AttentionBlock(widths[-1], num_heads, groups=8),
            ResBlock(widths[-1], emb, widths[-1], dropout, groups=8),
        )
        self.decoder = nn.ModuleList(stage(2 * widths[i], widths[max(i - 1, 0)], i) for i in reversed(range(levels)))
        self.ups = nn.ModuleList(Upsample(widths[i - 1]) for i in reversed(range(1, levels)))
        self.head = nn.Sequential(
            group_norm(widths[0], 8), nn.SiLU(), zeroed(nn.Conv2d(widths[0], self.out_channels, 3, padding=1))
        )
        self.end_embed = end_embedding(channels, emb) if two_times else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        # A factor of 1000 spreads t over the sinusoids' periods, as for the integer steps of diffusion models.
        t, r = 1000 * t, None if r is None else 1000 * r
        emb = self.embed(x, t, y, r, self.time_mlp, self.class_embedding if self.num_classes else None)
        h = self.stem(x)
        skips = []
        for i, stage in enumerate(self.encoder):
            h = self.run(stage, h, emb)
            skips.append(h)
            if i < len(self.downs):
                h = self.downs[i](h)
        h = self.run(self.bottleneck, h, emb)
        for i, stage in enumerate(self.decoder):
            h = self.run(stage, torch.cat([h, skips.pop()], dim=1), emb)
            if i < len(self.ups):
                h = self.ups[i](h)
        return self.head(h)
