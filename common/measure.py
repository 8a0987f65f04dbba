"""Measure a folder's generated images with a small classifier trained on its real ones (``measure.py``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.commands import Folder, load_data, make_sampler
from common.config import MeasureConfig

if TYPE_CHECKING:
    from torch import Tensor

    from common.classifier import Classifier
    from common.data import ImageData


def measure_main(
    folder: Folder, description: str, has_test: bool = True, argv: list[str] | None = None, residual: bool = False
) -> dict[str, Any]:
    """Share of class-conditional samples recognised as their class, and the feature distance to real images.

    Args:
        has_test: whether the data has a test split; else a part of the training images is held out.
        residual: the classifier, when it has to be trained: ResNet-9 rather than a plain one.
    """
    config, extra = cli.parse_with_extra(MeasureConfig, description=description, argv=argv)
    import torch
    from tqdm import tqdm

    from common import checkpoint, generate
    from common.cards import add_measurement, commit
    from common.images import to_uint8
    from common.page import refresh
    from common.runtime import write_json

    if config.inception:
        from common.features import find_inception

        inception = find_inception("" if config.inception == "cache" else config.inception)
    preset = next(iter(folder.presets.values()))
    sampler, info = make_sampler(folder, config, extra)  # first, since missing weights end it here

    def load(split: str) -> ImageData:
        return load_data(folder, config, preset.image_size, preset.in_channels, split=split)

    train, test = real_images(load, has_test and not config.smoke)
    keep = None if config.smoke else folder.here / "results" / "classifier.pt"
    options = {"residual": residual and not config.smoke, "precision": config.mixed_precision}
    recogniser = make_recogniser(train, test, keep, config.epochs, preset.flip, config.seed, **options)
    images, labels = [], []
    with tqdm(total=config.n_samples, unit="image", desc="samples", dynamic_ncols=True) as bar:
        for indices, part in generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label):
            images.append(to_uint8(part))
            wanted = generate.labels_for(indices, generate.real_classes(sampler.net), config.label)
            labels += [] if wanted is None else [wanted]
            bar.update(len(indices))
    measured = recogniser.measure(torch.cat(images), torch.cat(labels) if labels else None)
    result = {
        "weights": info["path"],
        "step": info.get("step"),
        "solver": sampler.solver,
        "n_steps": config.n_steps,
        "grid": sampler.grid,
        "landing": sampler.landing,
        "nfe": sampler.nfe,
        "cfg": config.cfg,
        "seed": config.seed,
        "generated": config.n_samples,
        "commit": commit(),
        "real": len(recogniser.real),
        "classifier_accuracy": recogniser.accuracy,
        **measured,
        "feature_distance_real": recogniser.floor,
    }
    if config.inception:
        known = None if config.smoke else folder.here / "data" / "statistics"
        result |= inception_figures(torch.cat(images), train.images, inception, known)
    print(json.dumps(result, indent=2))
    if config.out:
        write_json(config.out, result)
    if config.card:
        del result["weights"]
        card = add_measurement(checkpoint.find(info["path"]), result)
        print(f"card: {card}")
        refresh(card.parent)
    return result


def inception_figures(images: Tensor, real: Tensor, weights: Path, known: Path | None) -> dict[str, Any]:
    """FID, KID, precision, recall and Inception score of uint8 images (N, C, S, S) against real ones.

    Args:
        images, real: generated and real images.
        weights: file of FID's Inception.
        known: folder that keeps the statistics of real images by their content; None: keep nothing.
    """
    from common import evaluate, feature_sets, features

    network, config = features.inception_network(weights), evaluate.EvaluateConfig()
    b = feature_sets.set_of(real, "the real images")
    options = (config.kept, config.seed, config.batch_size, config.num_workers)
    if known is not None:
        reference = feature_sets.cached(b, network, known, *options)
    else:
        reference = feature_sets.collect(b.batches(*options[2:]), network, *options[:2], len(b))
    a = feature_sets.set_of(images, "the generated images")
    found = feature_sets.collect(a.batches(*options[2:]), network, *options[:2], len(a))
    figures = evaluate.measure(found, reference, config)
    flat = {key: value for key, value in figures.items() if isinstance(value, float)}
    return flat | {"fid_real": reference.count, "inception": network.weights}


def real_images(load: Callable[[str], ImageData], has_test: bool) -> tuple[ImageData, ImageData]:
    """Training and test images; without a test split, one image in five of the training images is held out.

    Args:
        load: load(split) -> the images of "train" or "test".
        has_test: whether there is a test split.
    """
    from dataclasses import replace

    import torch

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
        from common.classifier import classify, feature_distance

        fake, classes = classify(self.net, images)
        share = None if labels is None else (classes == labels).float().mean().item()
        return {"recognised": share, "feature_distance": feature_distance(fake, self.real)}


def make_recogniser(
    train: ImageData,
    test: ImageData,
    path: Path | None,
    epochs: int = 0,
    flip: bool = False,
    seed: int = 0,
    **options: Any,
) -> Recogniser:
    """The classifier of a file; where there is none yet, one trained on the training images and kept there.

    Args:
        path: the file; None: train and keep nothing.
        epochs, flip, seed, options: of the training, see ``common.classifier.train_classifier``.

    Raises:
        ValueError: images without labels and no classifier yet, or a classifier of images with other channels.
    """
    import torch

    from common.classifier import classify, feature_distance, load_classifier
    from common.runtime import generator

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
    from common.classifier import classify, load_classifier, save_classifier, train_classifier

    net = train_classifier(train, **options)
    _, predicted = classify(net, test.images)
    accuracy = (predicted == test.labels).float().mean().item()
    print(f"classifier: {accuracy:.2%} of {len(test)} test images")
    if path is None:
        return net, accuracy
    save_classifier(path, net, accuracy, Path(train.source).name)
    return load_classifier(path)  # in float16, as the next measurement will have it
