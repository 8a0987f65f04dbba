"""How much faster is one EMA update than torchcfm's loop over two state dicts, for the paper's CIFAR-10 network?

    python benchmarks/ema_update.py

Prints the medians of interleaved updates and their ratio (target: 3). Seconds on a CPU; uses the GPU if there is one.
torchcfm's loop is that of its examples/images/cifar10/utils_cifar.py: for every key, target * decay + source *
(1 - decay), copied back.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from common import cli
from common.cli.ranges import Count
from common.ema import EMA
from common.runtime import run_main
from common.unet import UNet


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    rounds: Count = 20
    """Updates of each kind, after three that warm up"""


@torch.no_grad()
def torchcfm_update(source: nn.Module, target: nn.Module, decay: float) -> None:
    """One update as torchcfm does it."""
    new, averaged = source.state_dict(), target.state_dict()
    for key in new:
        averaged[key].data.copy_(averaged[key].data * decay + new[key].data * (1 - decay))


def seconds(function: Callable[[], None]) -> float:
    """Wall time of one call, with the device's queue empty before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Compare one update of each kind, interleaved."""
    rounds = cli.parse(Options, description=__doc__ or "").rounds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    net = UNet(32, 3, 3, 128, (1, 2, 2, 2), 2, (16,), 4, 64).to(device, memory_format=layout)
    target = copy.deepcopy(net)
    ours = EMA(net, 0.9999)
    times: dict[str, list[float]] = {"torchcfm": [], "EMA.update": []}
    for _ in range(rounds + 3):
        times["torchcfm"].append(seconds(lambda: torchcfm_update(net, target, 0.9999)))
        times["EMA.update"].append(seconds(ours.update))
    middle = {name: 1e3 * median(values[3:]) for name, values in times.items()}  # the first rounds warm up
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"EMA update, {millions:.1f} M parameters, {where}, median of {rounds}:")
    print("  " + ", ".join(f"{name} {value:.2f} ms" for name, value in middle.items()))
    print(f"  ratio {middle['torchcfm'] / middle['EMA.update']:.2f}x")


if __name__ == "__main__":
    run_main(main)
