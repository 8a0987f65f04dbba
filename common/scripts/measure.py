"""Measure a folder's generated images with a small classifier trained on its real ones (``measure.py``)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

from common import cli
from common.cli.configs import MeasureConfig
from common.cli.values import shown
from common.scripts.folder import Folder, load_data
from common.scripts.sampling import make_sampler, with_bar

SMOKE_SAMPLES = 64  # at most


def measure_main(
    folder: Folder, description: str, has_test: bool = True, argv: list[str] | None = None, residual: bool = False
) -> dict[str, Any]:
    """Share of class-conditional samples recognised as their class, and the feature distance to real images.

    Args:
        has_test: whether the folder's own data has a test split; where there is none a part of the images is held out.
        residual: the classifier, when it has to be trained: ResNet-9 rather than a plain one.
    """
    config, extra = cli.parse_with_extra(MeasureConfig, description=description, argv=argv)
    if config.card and config.smoke:
        raise ValueError("--card with --smoke: made-up images measure nothing; leave one of them out")
    if config.smoke:
        config = replace(config, n_samples=min(config.n_samples, SMOKE_SAMPLES))
    import torch

    from common import checkpoint, generate
    from common.evaluate.classifier import make_recogniser, real_images
    from common.images import to_uint8
    from common.records.cards import add_measurement, commit
    from common.records.page import refresh
    from common.runtime import write_json

    if config.inception:
        from common.evaluate.features import find_inception
        from common.evaluate.figures import inception_reference

        inception = find_inception("" if config.inception == "cache" else config.inception)
    preset = next(iter(folder.presets.values()))
    sampler, info = make_sampler(folder, config, extra)  # first, since missing weights end it here

    load = partial(load_data, folder, config, preset.image_size, preset.in_channels)
    train, test = real_images(lambda split: load(split=split), (has_test or bool(config.data)) and not config.smoke)
    keep = None if config.smoke else folder.here / "results" / "classifier.pt"
    options = {"epochs": config.epochs, "flip": preset.flip, "precision": config.mixed_precision}
    options["residual"] = residual and not config.smoke
    recogniser = make_recogniser(train, test, keep, config.seed, **options)
    batches = generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label)
    parts = [(to_uint8(part), nfe) for _, part, nfe in with_bar(batches, config.n_samples, "samples")]
    images, nfe = torch.cat([part for part, _ in parts]), parts[-1][1]
    asked, known = generate.real_classes(sampler.net), recogniser.net.arguments["num_classes"]
    labels = generate.labels_for(range(len(images)), asked, config.label)
    if labels is not None and asked != known:
        labels = None
        print(f"the weights know {asked} classes, the classifier of {train.source} {known}: no share of recognised")
    elif labels is not None and (named := info.get("classes")) and list(train.class_names) != list(named):
        print(f"note: classes of the weights: {shown(named)}; of {train.source}: {shown(train.class_names)}")
    measured = recogniser.measure(images, labels)
    result = {
        "weights": info["path"],
        "step": info.get("step"),
        "solver": sampler.solver,
        "n_steps": config.n_steps,
        "grid": sampler.grid,
        "landing": sampler.landing,
        "nfe": nfe,
        "cfg": config.cfg,
        **sampler.guidance(),
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
        reference = inception_reference(train.images, inception, known)
        result |= {**reference.measure(images), "inception": reference.network.weights}
    print(json.dumps(result, indent=2))
    if config.out:
        write_json(config.out, result)
    if config.card:
        del result["weights"]
        card = add_measurement(checkpoint.find(info["path"]), result)
        print(f"card: {card}")
        refresh(card.parent)
    return result
