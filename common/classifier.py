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
from common.data import Batches, ImageData
from common.metrics import frechet_distance, gaussian_statistics
from common.runtime import generator


class Classifier(nn.Module):
    """Three stages of two 3x3 convolutions with batch norm, each halving the sides; mean over pixels; linear.

    Shapes: (B, C, H, W) in [-1, 1] -> logits (B, num_classes); ``features`` gives (B, 4 * width).
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32):
        super().__init__()
        self.arguments = {"channels": channels, "num_classes": num_classes, "width": width}
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            for a, b, stride in ((before, after, 1), (after, after, 2)):
                layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Mean activations of the last stage, (B, 4 * width)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_classifier(
    data: ImageData, epochs: int = 3, flip: bool = False, seed: int = 0, batch_size: int = 128, width: int = 32
) -> Classifier:
    """Train on uint8 images with labels: AdamW, one-cycle learning rate, random shifts by up to two pixels."""
    from tqdm import tqdm

    if data.labels is None:
        raise ValueError(f"{data.source} has no labels: a classifier needs class folders, or labels in the .npz")
    torch.manual_seed(seed)
    net = Classifier(data.images.shape[1], data.num_classes, width).to(memory_format=torch.channels_last)
    batches = Batches(data, batch_size, seed, flip)
    steps = max(1, epochs * len(data) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for step in tqdm(range(steps), unit="step", desc="classifier", dynamic_ncols=True):
        x, y = batches.at(step)
        assert y is not None
        dy, dx = torch.randint(0, 5, (2,), generator=generator(seed, "shift", step)).tolist()
        x = F.pad(x, (2, 2, 2, 2), value=-1.0)[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
        loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def save_classifier(path: Path, net: Classifier, accuracy: float, source: str) -> None:
    """Write weights in float16 with what they are; batch-norm counters stay integers."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
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
