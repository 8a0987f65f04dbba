"""Made-up images, for --smoke and tests."""

from __future__ import annotations

import torch

from common.data.loading import ImageData
from common.runtime import generator


def synthetic_images(n: int, image_size: int, channels: int, num_classes: int, seed: int) -> ImageData:
    """Soft coloured shapes: a class is a shape and a hue; place, size and shade vary.

    Returns:
        images (n,channels,image_size,image_size) uint8; labels 0, 1, 2, ... in turn, None when num_classes is 0.
    """
    g = generator(seed, "synthetic")
    kind = torch.arange(n) % max(num_classes, 1)
    axis = torch.linspace(-1, 1, image_size)
    centre, radius = torch.rand(n, 2, generator=g) * 0.8 - 0.4, torch.rand(n, generator=g) * 0.25 + 0.3
    dx = (axis[None, None, :] - centre[:, :1, None]).abs()
    dy = (axis[None, :, None] - centre[:, 1:, None]).abs()
    norm = 0.6 + 0.7 * kind[:, None, None].float()  # |x|^p + |y|^p: a star, a diamond, a disc, ... a square
    distance = (dx.clamp_min(1e-6) ** norm + dy.clamp_min(1e-6) ** norm) ** (1 / norm)
    inside = torch.sigmoid((radius[:, None, None] - distance) * 12)[:, None]
    hue = kind[:, None] / max(num_classes, 1) + torch.arange(channels) / 3 + 0.05 * torch.rand(n, 1, generator=g)
    colour = (0.55 + 0.45 * torch.cos(2 * torch.pi * hue))[:, :, None, None]
    ground = 0.1 + 0.1 * torch.rand(n, channels, 1, 1, generator=g)
    images = ((ground + inside * (colour - ground)).clamp(0, 1) * 255).round().to(torch.uint8)
    names = tuple(f"shape {k}" for k in range(num_classes))
    return ImageData(images, kind if num_classes else None, names, "synthetic")
