"""Measure a folder's generated images with a small classifier trained on its real ones (``measure.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import cli
from common.commands import Folder, load_data, make_sampler
from common.config import MeasureConfig


def measure_main(
    folder: Folder, description: str, has_test: bool = True, argv: list[str] | None = None
) -> dict[str, Any]:
    """Share of class-conditional samples recognised as their class, and the feature distance to real images.

    Args:
        has_test: whether the data has a test split; else a part of the training images is held out.
    """
    config, extra = cli.parse_with_extra(MeasureConfig, description=description, argv=argv)
    import torch
    from tqdm import tqdm

    from common import checkpoint, generate
    from common.cards import add_measurement, commit
    from common.classifier import classify, feature_distance
    from common.images import to_uint8
    from common.runtime import atomic_write, generator

    preset = next(iter(folder.presets.values()))
    sampler, info = make_sampler(folder, config, extra)  # first, since missing weights end it here
    train, test = _real_images(folder, config, preset, has_test)
    net, accuracy = _classifier(folder, config, train, test, preset.flip)
    images, labels = [], []
    with tqdm(total=config.n_samples, unit="image", desc="samples", dynamic_ncols=True) as bar:
        for indices, part in generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label):
            images.append(to_uint8(part))
            wanted = generate.labels_for(indices, generate.real_classes(sampler.net), config.label)
            labels.append(torch.zeros(0) if wanted is None else wanted)
            bar.update(len(indices))
    fake, fake_classes = classify(net, torch.cat(images))
    real, _ = classify(net, test.images)
    order = torch.randperm(len(train), generator=generator(config.seed, "measure"))
    other, _ = classify(net, train.images[order[: len(real)].sort().values])
    wanted = torch.cat(labels)
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
        "real": len(real),
        "classifier_accuracy": accuracy,
        "recognised": (fake_classes == wanted).float().mean().item() if len(wanted) else None,
        "feature_distance": feature_distance(fake, real),
        "feature_distance_real": feature_distance(other, real),
    }
    print(json.dumps(result, indent=2))
    if config.out:
        with atomic_write(config.out) as path:
            path.write_text(json.dumps(result, indent=2) + "\n")
    if config.card:
        del result["weights"]
        print(f"card: {add_measurement(checkpoint.find(info['path']), result)}")
    return result


def _real_images(folder: Folder, config: MeasureConfig, preset: Any, has_test: bool) -> tuple[Any, Any]:
    """Training and test images; without a test split, one image in five of the training images is held out."""
    from dataclasses import replace

    import torch

    data = load_data(folder, config, preset.image_size, preset.in_channels)
    if has_test and not config.smoke:
        return data, load_data(folder, config, preset.image_size, preset.in_channels, split="test")
    if data.labels is None:
        raise ValueError(f"{data.source} has no labels: a classifier needs class folders, or labels in the .npz")
    held = torch.arange(len(data)) % 5 == 4
    parts = [replace(data, images=data.images[mask], labels=data.labels[mask]) for mask in (~held, held)]
    return parts[0], parts[1]


def _classifier(folder: Folder, config: MeasureConfig, train: Any, test: Any, flip: bool) -> tuple[Any, float]:
    """The folder's classifier, trained and kept if there is none yet."""
    from common.classifier import classify, load_classifier, save_classifier, train_classifier

    path = folder.here / "results" / "classifier.pt"
    if path.exists() and not config.smoke:
        return load_classifier(path)
    net = train_classifier(train, config.epochs, flip, config.seed)
    _, predicted = classify(net, test.images)
    accuracy = (predicted == test.labels).float().mean().item()
    print(f"classifier: {accuracy:.2%} of {len(test)} test images")
    if not config.smoke:
        save_classifier(path, net, accuracy, Path(train.source).name)
    return net, accuracy
