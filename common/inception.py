"""Inception's features of images, for FID and KID: pytorch-fid's network, its weights read from a file.

Nothing is downloaded. The weights (91 MB) are those that pytorch-fid itself keeps in torch's cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIDE = 299  # of the images that the network sees


def find_weights(path: str | Path = "") -> Path | None:
    """The file of a given path; without one, that in torch's cache; None when it is not there.

    Raises:
        FileNotFoundError: a path was given and there is no such file.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    file = Path(path).expanduser() if path else cached
    if file.is_file():
        return file
    if path:
        raise FileNotFoundError(f"no Inception weights at {path}: download {URL} (91 MB) to there or to {cached}")
    return None


def load_inception(weights: Path) -> nn.Module:
    """The network of FID up to its 2048 pooled features, in eval mode: (B, 3, 299, 299) in [-1, 1] -> (B, 2048).

    It is torchvision's Inception v3 with pytorch-fid's changes, which follow TensorFlow's of 2015.

    Raises:
        ValueError: the file holds other weights.
    """
    from pytorch_fid import inception as fid
    from torchvision.models import inception_v3

    from common import checkpoint

    net: Any = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    net.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", fid.FIDInceptionC(768, channels_7x7=channels))
    net.Mixed_7b = fid.FIDInceptionE_1(1280)
    net.Mixed_7c = fid.FIDInceptionE_2(2048)
    try:
        net.load_state_dict(checkpoint.load(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights} holds no Inception weights of FID: download {URL} (91 MB)") from error
    net.fc = nn.Identity()
    return net.eval()


def features(images: Tensor, weights: Path, device: torch.device | str = "cpu", batch_size: int = 50) -> Tensor:
    """Inception's features of images, (N, 2048) float32 on the CPU.

    Grey images are repeated to three channels. All are resized to 299 x 299 as pytorch-fid does (bilinear, without
    antialiasing). Speed: some 20 images a second on a CPU core, thousands on a GPU.

    Args:
        images: uint8, (N, 1 or 3, H, W).
        weights: Their file; see :func:`find_weights`.
        device: Where to compute.
        batch_size: Images at a time.

    Raises:
        ValueError: other images, or a file of other weights.

    Source: Heusel et al. 1706.08500.
    """
    from tqdm import tqdm

    from common.features import inception_network

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Inception sees uint8 images (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
    network, parts = inception_network(weights, device), []
    for start in tqdm(range(0, len(images), batch_size), desc="Inception", unit="batch", dynamic_ncols=True):
        rows, _ = network.run(images[start : start + batch_size].expand(-1, 3, -1, -1))
        parts.append(rows.cpu())
    return torch.cat(parts)
