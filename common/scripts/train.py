"""The body of the training scripts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import cli
from common.cli.configs import TrainConfig
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
    if advice := folder.advice_on(here.device.type, config):
        here.say(advice)
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


def relaunch_parallel(argv: Sequence[str]) -> None:
    """Replace this process by ``accelerate launch`` over all GPUs of the machine, for ``--parallel``.

    Returns (and goes on as one process) when there are fewer than two GPUs, and at once in a process that a launcher
    started, so the flag may stay in ``argv``, which is like ``sys.argv``: the script and its arguments.
    """
    if "WORLD_SIZE" in os.environ or "LOCAL_RANK" in os.environ:
        return
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        print(f"--parallel: {count or 'no'} GPU on this machine, going on with one process")
        return
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    # named so that the launcher does not warn about defaults; the script itself chooses the precision; port 0: any
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    sys.stdout.flush()
    os.execv(sys.executable, [*launch, *argv])
