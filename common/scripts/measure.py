"""Measure a folder's generated images (``measure.py``): by a small classifier trained on its real ones, by ImageNet
features (EfficientNet-Lite0) and by Inception, which makes FID."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.cli.configs import MeasureConfig
from common.cli.values import shown
from common.runtime import silent
from common.scripts.folder import Folder, load_data

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.loading import ImageData
    from common.evaluate.classifier import Recogniser
    from common.evaluate.features import FeatureNetwork
    from common.generate import Sampler

SMOKE_SAMPLES = 64  # at most


def measure_main(
    folder: Folder, description: str, has_test: bool = True, argv: list[str] | None = None, residual: bool = False
) -> dict[str, Any] | list[dict[str, Any]]:
    """Share of class-conditional samples recognised as their class, and distances of features to real images.

    Images without labels have no classifier: their figures are those of the other features. A sweep is a list of them.

    Args:
        has_test: whether the folder's own data has a test split; where there is none a part of the images is held out.
        residual: the classifier, when it has to be trained: ResNet-9 rather than a plain one.
    """
    config, extra = cli.parse_with_extra(MeasureConfig, description=description, argv=argv)
    if config.card and config.smoke:
        raise ValueError("--card with --smoke: made-up images measure nothing; leave one of them out")
    if config.smoke:
        config = replace(config, n_samples=min(config.n_samples, SMOKE_SAMPLES))
    from common import checkpoint
    from common.data.loading import mark_of
    from common.evaluate.classifier import classify, make_recogniser, real_images
    from common.records.cards import add_measurement
    from common.records.page import refresh
    from common.runtime import write_json
    from common.scripts.sampling import make_sampler
    from common.scripts.sweep import first_point, sweep

    networks = feature_networks(config)  # before hours of work: what is missing ends it here
    preset = next(iter(folder.presets.values()))
    sampler, info = make_sampler(folder, first_point(config), extra)  # missing weights, too

    load = cache(lambda split: load_data(folder, config, preset.image_size, preset.in_channels, split=split))
    train, test = real_images(load, (has_test or bool(config.data)) and not config.smoke)
    recogniser = None
    if train.labels is not None:
        keep = None if config.smoke else folder.here / "results" / "classifier.pt"
        options = {"epochs": config.epochs, "flip": preset.flip, "precision": config.mixed_precision}
        options["residual"] = residual and not config.smoke
        recogniser = make_recogniser(train, test, keep, config.seed, **options)
    elif not networks:
        text = "has no labels: a classifier needs class folders, or labels in the .npz; or give --features effnet-lite0"
        raise ValueError(f"{train.source} {text}")
    known = None if config.smoke else folder.here / "data" / "statistics"
    by = (lambda x: classify(recogniser.net, x)[0]) if recogniser else partial(rows_of, networks[0])
    figures = partial(figures_of, config, info, train, recogniser, networks, known)
    if config.sweep_cfg:
        judged = {"real_images": mark_of(train, len(train)), "features": [network.weights for network in networks]}
        judged["classifier_accuracy"] = recogniser.accuracy if recogniser else None
        return sweep(folder, config, sampler, info, judged, figures)
    images: list[Tensor] = []
    result = {
        "weights": info["path"],
        "step": info.get("step"),
        "solver": sampler.solver,
        "n_steps": sampler.n_steps,
        "grid": sampler.grid,
        "landing": sampler.landing,
        "cfg": config.cfg,
        **sampler.guidance(),
        "seed": config.seed,
        "generated": config.n_samples,
        **figures(sampler, keep=images.append),
    }
    if config.nearest:
        result["nearest"] = memorised(config.nearest, images[0], learnt_and_held_out(info, load, train, test), by)
    print(json.dumps(result, indent=2))
    if config.out:
        write_json(config.out, result)
    if config.card:
        del result["weights"]
        card = add_measurement(checkpoint.find(info["path"]), result)
        print(f"card: {card}")
        refresh(card.parent)
    return result


def figures_of(
    config: MeasureConfig,
    info: dict[str, Any],
    train: ImageData,
    recogniser: Recogniser | None,
    networks: Sequence[FeatureNetwork],
    known: Path | None,
    sampler: Sampler,
    keep: Callable[[Tensor], object] = silent,
) -> dict[str, Any]:
    """The figures of a sampler's images, the evaluations that one took (their mean) and the commit; ``keep`` gets the
    images, uint8."""
    import torch

    from common import generate
    from common.images import to_uint8
    from common.records.cards import commit
    from common.scripts.sampling import with_bar

    batches = generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label)
    parts = [(to_uint8(part), nfe * len(part)) for _, part, nfe in with_bar(batches, config.n_samples, "samples")]
    images, nfe = torch.cat([part for part, _ in parts]), sum(nfe for _, nfe in parts) / config.n_samples
    keep(images)
    result = {"nfe": int(nfe) if nfe.is_integer() else nfe, "commit": commit()}
    if recogniser is not None:
        asked = generate.real_classes(sampler.net)
        labels = generate.labels_for(range(len(images)), asked, config.label)
        result |= by_classifier(recogniser, images, labels, asked, train, info)
    for network in networks:
        result |= by_features(network, images, train.images, known)
    return result


def learnt_and_held_out(
    info: dict[str, Any], load: Callable[[str], ImageData], train: ImageData, test: ImageData
) -> tuple[Tensor, Tensor]:
    """The images that weights have learnt from, and others: by the split of their run, where their file says it."""
    from common.data.loading import split_train_val

    config = info.get("config", {})
    if config.get("val_fraction"):
        images = load("train").images
        learnt, held = split_train_val(len(images), config["val_fraction"], config.get("seed", 0))
        return images[learnt], images[held]
    print(f"note: the weights do not say what their run has held out: taken are {len(test)} images of {test.source}")
    return train.images, test.images


def memorised(
    picture: str, images: Tensor, parts: tuple[Tensor, Tensor], features: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Figures of the samples' nearest training images, and their picture."""
    from common.evaluate import nearest

    training, held_out = parts
    figures, found, real = nearest.compare(*map(features, (images, training, held_out)))
    nearest.draw(Path(picture), images, training, found, real)
    print(
        f"{figures['nearer_than_1_percent']:.1%} of the samples are nearer to a training image than 99% of "
        f"{len(held_out)} held-out images are; copies: {figures['copies']}; picture: {picture}"
    )
    return figures


def feature_networks(config: MeasureConfig) -> list[FeatureNetwork]:
    """Those that are asked for, and Inception where torch's cache has its weights.

    Raises:
        FileNotFoundError: weights or packages that are asked for and not there.
        ValueError: too few images for a distance.
    """
    from common.evaluate import features
    from common.runtime import pick_device

    device = pick_device(config.device)
    if config.features != "none" and config.n_samples < 2:
        raise ValueError(f"--n_samples {config.n_samples}: --features {config.features} compares sets of 2 or more")
    networks = [] if config.features == "none" else [features.effnet_network(device)]
    match config.inception:
        case "none":
            weights = None
        case "cache":
            weights = features.find_inception()
        case "":
            weights = None if config.smoke else features.find_weights()
        case path:
            weights = features.find_inception(path)
    return networks if weights is None else [*networks, features.inception_network(weights, device)]


def rows_of(network: FeatureNetwork, images: Tensor) -> Tensor:
    """A network's features of uint8 images, (N, F)."""
    import torch

    return torch.cat([network.run(part.expand(-1, 3, -1, -1))[0].cpu() for part in images.split(100)])


def by_features(network: FeatureNetwork, images: Tensor, real: Tensor, known: Path | None) -> dict[str, Any]:
    """The figures of a network's features, and what it is: Inception's against all real images, as FID is meant,
    another's against as many as were generated."""
    from common.evaluate.features import INCEPTION
    from common.evaluate.figures import against_equally_many, reference

    if network.backend != INCEPTION:
        return {**against_equally_many(network, images, real, known), "effnet": network.about()}
    return {**reference(network, real, known).measure(images), "inception": network.weights}


def by_classifier(
    recogniser: Recogniser, images: Tensor, labels: Tensor | None, asked: int, train: ImageData, info: dict[str, Any]
) -> dict[str, Any]:
    """Recognised share and feature distance; no share where the weights know other classes than the classifier."""
    known = recogniser.net.arguments["num_classes"]
    if labels is not None and asked != known:
        labels = None
        print(f"the weights know {asked} classes, the classifier of {train.source} {known}: no share of recognised")
    elif labels is not None and (named := info.get("classes")) and list(train.class_names) != list(named):
        print(f"note: classes of the weights: {shown(named)}; of {train.source}: {shown(train.class_names)}")
    return {
        "real": len(recogniser.real),
        "classifier_accuracy": recogniser.accuracy,
        **recogniser.measure(images, labels),
        "feature_distance_real": recogniser.floor,
    }
