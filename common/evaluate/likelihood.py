"""Bits per dimension of images under a trained flow: ``python -m common.evaluate bits --weights W --data IMAGES``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import checkpoint, generate
from common.data.loading import load_images
from common.evaluate import scores
from common.evaluate.options import BitsConfig
from common.methods import METHODS
from common.records.compare import circumstances, write
from common.runtime import file_hash, generator, pick_device
from common.solvers import time_grid


def bits(config: BitsConfig, command: str = "") -> dict[str, Any]:
    """Bits per dimension of images under the flow of a checkpoint; see ``common.evaluate.scores.bits_per_dimension``.

    IDFF's velocity is held at its value of t = 0.995 from there on, as ``common.generate.invert`` does.
    """
    if not config.weights or not config.data:
        raise ValueError("give --weights FILE and --data IMAGES")
    started, device = time.perf_counter(), pick_device(config.device)
    velocity, noise, channels, size, step = _flow(config.weights, device)
    limit = config.n_samples
    images = load_images(config.data, size, channels, split=config.split, labels=False, limit=limit).images
    values, times, nfe = [], time_grid(config.n_steps), 0
    for start in tqdm(range(0, len(images), config.batch_size), desc="bits", unit="batch", dynamic_ncols=True):
        part = images[start : start + config.batch_size].to(device)
        draws = [generator(config.seed, "bits", start + k) for k in range(len(part))]
        per_image, density = scores.bits_per_dimension(
            velocity, part, times, config.solver, draws, probes=config.probes, start=noise
        )
        values.append(per_image)
        nfe = density.nfe
    per_image = torch.cat(values)
    error = per_image.std().item() / math.sqrt(len(per_image)) if len(per_image) > 1 else None
    metrics = {"bits_per_dimension": per_image.mean().item(), "bits_per_dimension_error": error, "nfe": nfe}
    about = {"name": Path(config.data).expanduser().resolve().name, "images": len(per_image), "side": size}
    card = {"kind": "bits", "b": {**about, "split": config.split}, "dequantisation": "uniform, one draw an image"}
    card |= {"weights": file_hash(checkpoint.find(config.weights)), "step": step, "seed": config.seed}
    card |= {"solver": config.solver, "n_steps": config.n_steps, "probes": config.probes, "metrics": metrics}
    return write({**card, **circumstances(config.device, command, started)}, config.out)


def _flow(weights: str, device: torch.device) -> tuple[Callable[..., Any], float, int, int, int | None]:
    """The velocity of a checkpoint's flow, the spread of its noise, channels and side of its images, and its step."""
    net, info = checkpoint.load_network(weights)
    size, method = info["network"].get("image_size"), info["method"]["name"]
    if not size:
        raise ValueError(f"{weights} is not a network of images: bits are those of pixels")
    if generate.real_classes(net) and not net.null_class:
        raise ValueError(f"{weights} needs a class for each image: bits are for weights that do without")
    record = METHODS[method]
    flow = record.held(generate.velocity_of(net.to(device).requires_grad_(False), method))
    path, channels = record.path(info["method"].get("sigma", 0.0)), info["network"]["in_channels"] // record.heads
    return flow, path.start, channels, size, info.get("step")
