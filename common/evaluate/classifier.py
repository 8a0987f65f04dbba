"""A small image classifier: it recognises generated images, and its features measure how far they are from real ones.

Its Frechet distance is not FID (another network, other features): it compares models of one folder with each other
and with the distance between two sets of real images, and needs no download.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint
from common.data.loading import Batches, ImageData
from common.metrics import frechet_distance, gaussian_statistics
from common.runtime import autocast, generator


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, batch norm and ReLU."""
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class Residual(nn.Module):
    """Two convolutions added to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """Convolutions with batch norm; mean over pixels; linear.

    Shapes: (B, C, H, W) in [-1, 1] -> logits (B, num_classes); ``features`` gives (B, 4 * width), residual 7 * width.

    Args:
        channels: of the images.
        num_classes: of the labels.
        width: of the first convolution.
        residual: False: three stages of two convolutions, each halving the sides, for digits. True: ResNet-9, for
            colour photographs: width, 2, 4 and 7 times that, with a residual pair at the second and the last.

    Source: Page 2018, "How to train your ResNet", for the plan of ResNet-9; narrower here.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32, residual: bool = False):
        super().__init__()
        self.arguments = {"channels": channels, "num_classes": num_classes, "width": width, "residual": residual}
        layers: list[nn.Module] = []
        if residual:
            a, b, c, d = (k * width for k in (1, 2, 4, 7))
            layers += [*_convolution(channels, a), *_convolution(a, b), nn.MaxPool2d(2), Residual(b)]
            layers += [*_convolution(b, c), nn.MaxPool2d(2), *_convolution(c, d), nn.MaxPool2d(2), Residual(d)]
        else:
            d = 4 * width
            for before, after in ((channels, width), (width, 2 * width), (2 * width, d)):
                layers += _convolution(before, after) + _convolution(after, after, 2)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(d, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Mean activations of the last stage, (B, F)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def shifted(x: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each moved by up to ``most`` pixels along both sides; what comes in from outside is -1."""
    count, _, height, width = x.shape
    dy, dx = torch.randint(0, 2 * most + 1, (2, count), generator=draw)
    rows = (dy[:, None] + torch.arange(height))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(width))[:, None, None, :]
    padded = F.pad(x, (most,) * 4, value=-1.0)
    return padded[torch.arange(count)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]


def train_classifier(
    data: ImageData,
    epochs: int | None = None,
    flip: bool = False,
    seed: int = 0,
    batch_size: int = 128,
    width: int = 32,
    residual: bool = False,
    precision: str = "no",
) -> Classifier:
    """Train on uint8 images with labels: AdamW, one-cycle learning rate, random shifts by up to an eighth of the side.

    Args:
        data: with labels.
        epochs: None: 4, or 10 of a residual network.
        flip: mirror images at random.
        seed, batch_size: of the batches.
        width, residual: of the network.
        precision: "no" or "bf16", of its arithmetic.

    Raises:
        ValueError: no labels.
    """
    from tqdm import tqdm

    if data.labels is None:
        raise ValueError(f"{data.source} has no labels: a classifier needs class folders, or labels in the .npz")
    torch.manual_seed(seed)
    channels, side = data.images.shape[1], data.images.shape[-1]
    net = Classifier(channels, data.num_classes, width, residual).to(memory_format=torch.channels_last)
    batches = Batches(data, batch_size, seed, flip)
    steps = max(1, (epochs or (10 if residual else 4)) * len(data) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    bar = tqdm(range(steps), unit="step", desc="classifier", dynamic_ncols=True)
    for step in bar:
        x, y = batches.at(step)
        assert y is not None
        x = shifted(x, side // 8, generator(seed, "shift", step)).contiguous(memory_format=torch.channels_last)
        with autocast(x.device, precision):
            logits = net(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


def save_classifier(path: Path, net: Classifier, accuracy: float, source: str) -> None:
    """Write weights with what they are: float16, but float32 for vectors, since variances may be small."""
    half = {k: v.half() if v.ndim > 1 else v for k, v in net.state_dict().items()}
    checkpoint.save(path, {"classifier": net.arguments, "weights": half, "accuracy": accuracy, "source": source})


def load_classifier(path: Path) -> tuple[Classifier, float]:
    """A saved classifier in eval mode and its test accuracy.

    Raises:
        ValueError: the file is something else.
    """
    state = checkpoint.load(path)
    if "classifier" not in state:
        raise ValueError(f"{path} holds no classifier: remove it, the next measurement trains one")
    net = Classifier(**state["classifier"])
    net.load_state_dict(state["weights"])
    return net.float().eval(), state["accuracy"]


@torch.no_grad()
def classify(net: Classifier, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Features (N, F) and predicted classes (N,) of uint8 images (N, C, H, W)."""
    features, classes = [], []
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].float() / 127.5 - 1
        f = net.features(x.contiguous(memory_format=torch.channels_last))
        features.append(f)
        classes.append(net.head(f).argmax(1))
    return torch.cat(features), torch.cat(classes)


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features; nan-free, float64."""
    distance = frechet_distance(*gaussian_statistics(a), *gaussian_statistics(b))
    assert math.isfinite(distance)
    return distance
