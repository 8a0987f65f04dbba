"""How fast is sampling on the paper's CIFAR-10 network, against torchdyn's NeuralODE on torchcfm's U-Net?

    python benchmarks/sampling.py                      # CPU: 16 images, 10 Euler steps
    python benchmarks/sampling.py --n_samples 256 --precision bf16 --compile     # a GPU

The same weights, noise and time grid; both results are compared before the times are. Runs are interleaved.
"""

from __future__ import annotations

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

    n_samples: Count = 8
    """Images of a run"""
    n_steps: Count = 10
    """Euler steps, which is the NFE"""
    runs: Count = 3
    """Timed runs of each, after one for warming up"""
    precision: Literal["no", "bf16"] = "no"
    """Our network's precision"""
    compile: bool = False
    """torch.compile our network"""
    device: Device = "auto"
    """cpu or cuda"""


def main() -> None:
    """Run both samplers in turn and print the ratio of their median times."""
    options = cli.parse(Options, description=__doc__)
    import torch
    from torchcfm.models.unet.unet import UNetModelWrapper
    from torchdyn.core import NeuralODE

    from common.generate import CountedNetwork
    from common.runtime import pick_device
    from common.solvers import integrate, time_grid
    from common.unet import UNet

    device = pick_device(options.device)
    torch.manual_seed(0)
    shape = {"num_res_blocks": 2, "channel_mult": [1, 2, 2, 2], "num_heads": 4, "dropout": 0.1}
    peer = UNetModelWrapper(
        dim=(3, 32, 32), num_channels=128, num_head_channels=64, attention_resolutions="16", **shape
    )
    for parameter in peer.parameters():  # the zero-initialised branches would hide differences
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    ours = UNet(32, 3, 3, 128, head_channels=64, attention_resolutions=(16,), **shape)
    ours.load_state_dict(peer.state_dict())
    peer, ours = peer.to(device).eval(), ours.to(device, memory_format=torch.channels_last).eval()
    counted = CountedNetwork(torch.compile(ours) if options.compile else ours, options.precision)
    node = NeuralODE(peer, solver="euler", sensitivity="adjoint")
    noise = torch.randn(options.n_samples, 3, 32, 32, device=device)
    times = time_grid(options.n_steps).to(device)

    def torchdyn() -> torch.Tensor:
        return node.trajectory(noise, t_span=times)[-1]

    def repository() -> torch.Tensor:
        return integrate(counted, noise.contiguous(memory_format=torch.channels_last), times, "euler")

    seconds: dict[str, list[float]] = {"torchdyn": [], "this repository": []}
    results = {}
    with torch.no_grad():
        for _ in range(options.runs + 1):
            for name, sample in (("torchdyn", torchdyn), ("this repository", repository)):
                start = time.perf_counter()
                results[name] = sample()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
    print(f"largest difference of the images: {(results['torchdyn'] - results['this repository']).abs().max():.1e}")
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:16s} {value:8.2f} s for {options.n_samples} images at {options.n_steps} NFE")
    print(f"ratio {medians['torchdyn'] / medians['this repository']:.2f}x")


if __name__ == "__main__":
    run_main(main)
