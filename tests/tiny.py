"""What the tests of training, sampling and scripts share: options, data and networks that take milliseconds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import checkpoint
from common.cli.configs import TrainConfig
from common.data.loading import ImageData
from common.data.synthetic import synthetic_images
from common.methods import METHODS
from common.networks import build_network, network_description
from common.runtime import Processes, generator
from common.scripts.folder import Folder
from common.training.loop import train
from common.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
NAME = "weights_step_final.pt"
ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))

TINY = TrainConfig(
    method="rf",
    image_size=8,
    in_channels=1,
    num_channel=32,
    channel_mult=(2,),  # of 32 channels GroupNorm would make 32 groups, and take the embedding out again
    num_res_blocks=1,
    attention_resolutions=(),
    head_channels=32,
    dropout=0.0,
    total_steps=4,
    batch_size=8,
    lr=1e-3,
    warmup=2,
    ema_decay=0.9,
    val_fraction=0.1,
    save_step=2,
    sample_step=0,
    val_step=0,
    log_step=1,
    device="cpu",
    num_workers=1,
)


def options(**changes: Any) -> TrainConfig:
    """Options of a tiny run with some of them changed."""
    return replace(TINY, **changes)


def images(n: int = 40, size: int = 8, channels: int = 1, classes: int = 3) -> ImageData:
    """Synthetic images with labels."""
    return synthetic_images(n, size, channels, classes, seed=0)


def run(out: Path, processes: Processes = ALONE, data: ImageData | None = None, **changes: Any) -> Path:
    """Train a tiny network in a folder; the file of its final weights."""
    return train(options(**changes), images() if data is None else data, out, NAME, processes)


def last(out: Path) -> dict[str, Any]:
    """The state that a run left."""
    return checkpoint.load(out / "checkpoint_last.pt")


STATE = ("step", "network", "method", "net_model", "ema_model", "ema", "optim", "scaler", "skipped", "best")


def difference(a: Any, b: Any, where: str = "state") -> str:
    """The first place where two nested structures differ in any bit; empty when they are equal."""
    if isinstance(a, Tensor):
        return "" if isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: keys"
        return next((d for key in a if (d := difference(a[key], b[key], f"{where}[{key}]"))), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return next((d for i in range(len(a)) if (d := difference(a[i], b[i], f"{where}[{i}]"))), "")
    return "" if a == b else where


def states_differ(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Where two runs' states differ, besides their options and the clock."""
    return difference({key: a[key] for key in STATE}, {key: b[key] for key in STATE})


def network(config: TrainConfig = TINY, seed: int = 0) -> torch.nn.Module:
    """The network of some options with weights that are all random: a fresh one predicts zero."""
    net = build_network(network_description(config, METHODS[config.method].heads)).eval()
    draw = generator(seed, "weights")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return net


def slow_updates(seconds: float) -> None:
    """Every step of this process's trainers takes so much longer: time for a test to stop it."""
    update = Trainer.update

    def slow(self: Trainer, batch: Any) -> Any:
        time.sleep(seconds)
        return update(self, batch)

    Trainer.update = slow  # type: ignore[method-assign]


def weights(path: Path, config: TrainConfig = TINY, seed: int = 0) -> Path:
    """A checkpoint of such a network."""
    method = {"name": config.method, "sigma": config.sigma, "flow_weight": config.flow_weight}
    state = {"format": "flow-checkpoint", "version": 1, "step": 7, "config": {}, "method": method}
    state["network"] = network_description(config, METHODS[config.method].heads)
    checkpoint.save(path, state | {"ema_model": network(config, seed).state_dict()})
    return path


def folder(here: Path, config: TrainConfig = TINY) -> Folder:
    """A data set's folder for the bodies of the scripts, with made-up images as its data."""
    return Folder(
        here=here,
        presets={"default": config},
        data=str(here / "images.npz"),
        weights="results/shipped.pt",
        weights_name="{METHOD}_weights_step_final.pt",
    )
