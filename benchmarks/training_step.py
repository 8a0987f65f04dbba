"""How fast is a training step on the paper's CIFAR-10 network, against torchcfm's own loop?

    python benchmarks/training_step.py                             # CPU, float32, batch 16
    python benchmarks/training_step.py --batch_size 128 --precision bf16 --compile     # a GPU

Same network, method (OT-CFM), batch, optimizer and data; both loops include coupling, loss, backward pass, clipping,
optimizer and EMA. Steps are interleaved, so that a change of the machine's speed meets both; medians are compared.
``--peer_precision bf16`` gives torchcfm's loop plain autocast, ``no`` leaves it as published.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Count, Device
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    batch_size: Count = 16
    """Images of a step"""
    steps: Count = 7
    """Timed steps of each loop, after two for warming up"""
    precision: Literal["no", "bf16"] = "no"
    """Our network's precision"""
    peer_precision: Literal["no", "bf16"] = "no"
    """torchcfm's network's precision"""
    compile: bool = False
    """torch.compile our network"""
    num_channel: Count = 128
    """Channels of the first level; 128 is the paper's"""
    device: Device = "auto"
    """cpu or cuda"""


def torchcfm_step(device, images, precision: str, channels: int):
    """One step of torchcfm's CIFAR-10 example, as a function: OT-CFM, Adam, clipping, EMA over the state dict."""
    import torch
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
    from torchcfm.models.unet.unet import UNetModelWrapper

    net = UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=2,
        num_channels=channels,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    ).to(device)
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def step(k: int) -> None:
        optimizer.zero_grad()
        x1 = images[k].to(device)
        x0 = torch.randn_like(x1)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            vt = net(t, xt)
        loss = torch.mean((vt - ut) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        source, target = net.state_dict(), average.state_dict()
        for key in source:
            target[key].data.copy_(target[key].data * 0.9999 + source[key].data * (1 - 0.9999))

    return step


def our_step(device, images, options: Options):
    """One step of ``common.training``."""
    import torch

    from common.cli.configs import TrainConfig
    from common.data.loading import Batches, ImageData
    from common.runtime import Processes
    from common.training.batches import CoupledBatches
    from common.training.trainer import Trainer

    config = TrainConfig(
        method="otcfm",
        num_channel=options.num_channel,
        batch_size=options.batch_size,
        mixed_precision=options.precision,
        compile=options.compile,
    )
    here = Processes(0, 1, device)
    pixels = ((torch.cat(images) + 1) * 127.5).round().to(torch.uint8)
    batches = Batches(ImageData(pixels, None, (), "noise").to(device), options.batch_size, 0, True, device)
    source = CoupledBatches(batches, "ot", 0, here, ahead=True)
    trainer = Trainer(config, here)
    trainer.net.train()
    return lambda k: trainer.update(source.at(k))


def worker(pipe, which: str, options: Options) -> None:
    """A process of its own for each loop, so that neither meets the other's allocator state: steps on demand."""
    import torch

    from common.runtime import pick_device

    device = pick_device(options.device)
    torch.manual_seed(0)
    images = [torch.rand(options.batch_size, 3, 32, 32) * 2 - 1 for _ in range(options.steps + 2)]
    if which == "torchcfm":
        step = torchcfm_step(device, images, options.peer_precision, options.num_channel)
    else:
        step = our_step(device, images, options)
    pipe.send("ready")
    while (k := pipe.recv()) is not None:
        start = time.perf_counter()
        step(k)
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)


def main() -> None:
    """Run both loops in turn and print the ratio of their median times."""
    options = cli.parse(Options, description=__doc__)
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in ("torchcfm", "this repository"):
        pipes[name], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, name, options), daemon=True).start()
    for pipe in pipes.values():
        pipe.recv()
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for k in range(options.steps + 2):
        for name, pipe in pipes.items():
            pipe.send(k)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:16s} {1000 * seconds:9.1f} ms a step, {options.batch_size / seconds:8.1f} images/s")
    print(f"ratio {medians['torchcfm'] / medians['this repository']:.2f}x")


if __name__ == "__main__":
    run_main(main)
