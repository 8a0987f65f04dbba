"""The small classifier of a data folder as a judge: recognised share and feature distance of generated images.

Its Frechet distance is not FID (another network, other features): it compares models of one folder with each other
and with the distance between two sets of real images, and needs no download.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Required, TypedDict

from common import checkpoint
from common.data.loading import Batches, ImageData, mark_of
from common.data.splits import NoSplit
from common.metrics import frechet_distance, gaussian_statistics
from common.runtime import autocast, checked, generator, reading


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
        epochs: None: 4, or 10 of a residual network.
        flip: mirror images at random.
        width, residual: of the network.
        precision: "no" or "bf16", of its arithmetic.

    Raises:
        ValueError: no labels.
    """
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


Count = Annotated[int, Meta(ge=1, le=10_000)]


class Arguments(TypedDict, total=False):
    """Those of a :class:`Classifier`."""

    channels: Required[Count]
    num_classes: Required[Count]
    width: Count
    residual: bool


class Saved(TypedDict, total=False):
    """What the file of a classifier holds."""

    classifier: Required[Arguments]
    weights: Required[dict[str, Tensor]]
    accuracy: Required[Annotated[float, Meta(ge=0, le=1)]]
    data: str


def save_classifier(path: Path, net: Classifier, accuracy: float, source: str, data: str) -> None:
    """Write weights with what they are: float16, but float32 for vectors, since variances may be small.

    ``source`` is the name of the training images, ``data`` their mark (``common.data.loading.mark_of``).
    """
    half = {k: v.half() if v.ndim > 1 else v for k, v in net.state_dict().items()}
    checkpoint.save(
        path, {"classifier": net.arguments, "weights": half, "accuracy": accuracy, "source": source, "data": data}
    )


def load_classifier(path: Path) -> tuple[Classifier, float, str]:
    """A saved classifier in eval mode, its test accuracy, and the mark of its training images.

    Raises:
        ValueError: the file is something else.
    """
    state = checkpoint.load(path)
    if "classifier" not in state:
        raise ValueError(f"{path} holds no classifier: remove it, the next measurement trains one")
    with reading(path, "remove it, the next measurement trains one"):
        checked(state, Saved, "its entries")
        with torch.device("meta"), checkpoint.NothingDrawn():
            net = Classifier(**state["classifier"])
        checkpoint.take_weights(net, state["weights"])
        return net.eval(), state["accuracy"], state.get("data", "")


@torch.no_grad()
def classify(net: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, F) and predicted classes (N,) of uint8 images (N, C, H, W)."""
    parts = ((part.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last) for part in images.split(500))
    features = torch.cat([net.features(x) for x in parts])
    return features, net.head(features).argmax(1)


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features."""
    return frechet_distance(*gaussian_statistics(a), *gaussian_statistics(b))


# ---- the judge of a data folder


def real_images(load: Callable[[str], ImageData], has_test: bool) -> tuple[ImageData, ImageData]:
    """Training and test images; without a test split, one image in five of the training images is held out.

    ``load(split)`` gives the images of "train" or "test" and raises NoSplit where there are none; ``has_test``: whether
    a test split is to be used, where there is one.
    """
    data = load("train")
    if has_test:
        with contextlib.suppress(NoSplit):
            return data, load("test")
    print(f"{data.source}: every fifth image is held out, to measure on")
    held = torch.arange(len(data)) % 5 == 4

    def part(mask: Tensor) -> ImageData:
        return replace(data, images=data.images[mask], labels=None if data.labels is None else data.labels[mask])

    return part(~held), part(held)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A classifier, and the features of the real images that generated ones are compared with."""

    net: Classifier
    accuracy: float | None  # on test images
    real: Tensor  # features of the test images, (N, F)
    floor: float  # feature distance of as many training images to them: what perfect samples would get

    def measure(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float | None]:
        """Recognised share and feature distance of uint8 images (N, C, H, W), N >= 2; without labels no share."""
        fake, classes = classify(self.net, images)
        share = None if labels is None else (classes == labels).float().mean().item()
        return {"recognised": share, "feature_distance": feature_distance(fake, self.real)}


def make_recogniser(
    train: ImageData,
    test: ImageData,
    path: Path | None,
    seed: int = 0,
    asked_for: bool = False,
    **options: Any,
) -> Recogniser:
    """The classifier of a file; where there is none yet, one trained on the training images and kept there.

    A classifier that was trained on other images is not used, and another one is kept beside it.

    Args:
        path: the file; None: train and keep nothing.
        seed, options: of the training, see :func:`train_classifier`.
        asked_for: the user named this file: it is used, whatever it was trained on.

    Raises:
        ValueError: images without labels and no classifier yet, or a classifier of images with other channels.
    """
    mark = mark_of(train, len(train))
    if path and path.exists() and not asked_for and load_classifier(path)[2] != mark:
        print(f"{path} was trained on other images than {train.source}: it is left alone")
        path = path.with_stem(f"{path.stem}-{mark.split()[-1]}")
    if path and path.exists():
        net, accuracy, trained_on = load_classifier(path)
        known, channels = net.arguments["channels"], test.images.shape[1]
        if known != channels:
            raise ValueError(f"the classifier {path} is for images of {known} channels, not {channels}")
        if trained_on != mark:
            print(f"note: {path} was trained on other images than {train.source}")
            accuracy = None if test.labels is None else _accuracy(net, test)
    else:
        net, accuracy = _trained(train, test, path, seed=seed, **options)
    real, _ = classify(net, test.images)
    order = torch.randperm(len(train), generator=generator(seed, "measure"))
    other, _ = classify(net, train.images[order[: len(real)].sort().values])
    return Recogniser(net, accuracy, real, feature_distance(other, real))


def _trained(train: ImageData, test: ImageData, path: Path | None, **options: Any) -> tuple[Classifier, float]:
    """A new classifier and its accuracy, written to the file if there is to be one."""
    net = train_classifier(train, **options)
    accuracy = _accuracy(net, test)
    print(f"classifier: {accuracy:.2%} of {len(test)} test images")
    if path:
        save_classifier(path, net, accuracy, Path(train.source).name, mark_of(train, len(train)))
        return load_classifier(path)[:2]  # in float16, as the next measurement will have it
    return net, accuracy


def _accuracy(net: Classifier, data: ImageData) -> float:
    """The share of images that are recognised as what their labels say."""
    return (classify(net, data.images)[1] == data.labels).float().mean().item()
