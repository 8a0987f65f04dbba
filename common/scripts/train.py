"""The body of the training scripts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import cli
from common.cli.configs import TrainConfig
from common.runtime import relaunch_parallel
from common.scripts.folder import FLAGS, Folder, load_data, smoke_preset, too_large


def train_main(
    folder: Folder, description: str, argv: list[str] | None = None, run: Callable[..., Path] | None = None
) -> Path:
    """Train: parse the command line, load the data, call ``common.training.train`` or what is given as ``run``."""
    config = cli.parse(TrainConfig, folder.presets, description, FLAGS, argv)
    if config.smoke:
        config = smoke_preset(config)
    if config.parallel:
        relaunch_parallel(sys.argv)
    from common.runtime import processes

    if run is None:
        from common.training import train as run
    here = processes(config.device)
    out = folder.run_folder(config)
    shape = (config.image_size, config.in_channels)
    with here.main_first():  # which downloads where it has to
        stream = config.resident == "stream" or (config.resident == "auto" and too_large(folder, config, *shape))
        images = load_data(folder, config, *shape, stream=stream, progress=here.is_main)
    if config.resident == "device" or (config.resident == "auto" and _fits_device(images, here.device)):
        images = images.to(here.device)
    config = epochs_as_steps(config, len(images))
    return run(config, images, out, folder.weights_name.format(METHOD=config.method.upper()), here)


def epochs_as_steps(config: TrainConfig, count: int) -> TrainConfig:
    """The options with ``epochs``, where given, as ``total_steps`` of ``count`` images less the held-out ones."""
    from common.data.loading import split_train_val

    if not config.epochs:
        return config
    training = len(split_train_val(count, config.val_fraction, config.seed)[0])
    return replace(config, total_steps=math.ceil(config.epochs * training / config.batch_size))


def _fits_device(images: Any, device: Any) -> bool:
    """Whether the pixels are in memory and take less than a fifth of a GPU's free memory."""
    import torch

    pixels = getattr(images, "images", None)
    return pixels is not None and device.type == "cuda" and pixels.nbytes < 0.2 * torch.cuda.mem_get_info(device)[0]
