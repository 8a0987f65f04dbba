"""The small classifier of a data folder as a judge: recognised share and feature distance of generated images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.loading import ImageData
from common.evaluate.classifier import (
    Classifier,
    classify,
    feature_distance,
    load_classifier,
    save_classifier,
    train_classifier,
)
from common.runtime import generator


def real_images(load: Callable[[str], ImageData], has_test: bool) -> tuple[ImageData, ImageData]:
    """Training and test images; without a test split, one image in five of the training images is held out.

    Args:
        load: load(split) -> the images of "train" or "test".
        has_test: whether there is a test split.
    """

    data = load("train")
    if has_test:
        return data, load("test")
    held = torch.arange(len(data)) % 5 == 4

    def part(mask: Tensor) -> ImageData:
        return replace(data, images=data.images[mask], labels=None if data.labels is None else data.labels[mask])

    return part(~held), part(held)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A classifier, and the features of the real images that generated ones are compared with.

    Attributes:
        net, accuracy: the classifier, and its accuracy on test images.
        real: features of the test images, (N, F).
        floor: the feature distance of as many training images to them: what perfect samples would get.
    """

    net: Classifier
    accuracy: float
    real: Tensor
    floor: float

    def measure(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float | None]:
        """Recognised share and feature distance of uint8 images (N, C, H, W), N >= 2; without labels no share."""
        fake, classes = classify(self.net, images)
        share = None if labels is None else (classes == labels).float().mean().item()
        return {"recognised": share, "feature_distance": feature_distance(fake, self.real)}


def make_recogniser(
    train: ImageData,
    test: ImageData,
    path: Path | None,
    epochs: int | None = None,
    flip: bool = False,
    seed: int = 0,
    **options: Any,
) -> Recogniser:
    """The classifier of a file; where there is none yet, one trained on the training images and kept there.

    Args:
        path: the file; None: train and keep nothing.
        epochs, flip, seed, options: of the training, see ``common.evaluate.classifier.train_classifier``.

    Raises:
        ValueError: images without labels and no classifier yet, or a classifier of images with other channels.
    """
    if path and path.exists():
        net, accuracy = load_classifier(path)
    else:
        net, accuracy = _trained(train, test, path, epochs=epochs, flip=flip, seed=seed, **options)
    channels = test.images.shape[1]
    if net.arguments["channels"] != channels:
        raise ValueError(f"the classifier {path} is for images of {net.arguments['channels']} channels, not {channels}")
    real, _ = classify(net, test.images)
    order = torch.randperm(len(train), generator=generator(seed, "measure"))
    other, _ = classify(net, train.images[order[: len(real)].sort().values])
    return Recogniser(net, accuracy, real, feature_distance(other, real))


def _trained(train: ImageData, test: ImageData, path: Path | None, **options: Any) -> tuple[Classifier, float]:
    """A new classifier and its accuracy, written to the file if there is to be one."""
    net = train_classifier(train, **options)
    _, predicted = classify(net, test.images)
    accuracy = (predicted == test.labels).float().mean().item()
    print(f"classifier: {accuracy:.2%} of {len(test)} test images")
    if path is None:
        return net, accuracy
    save_classifier(path, net, accuracy, Path(train.source).name)
    return load_classifier(path)  # in float16, as the next measurement will have it
