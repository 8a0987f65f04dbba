"""How long does optimal-transport coupling take, against torchcfm's OTPlanSampler, and as a share of a step?

python benchmarks/coupling.py                      # batch 128 of 32x32x3
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Count, Device
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    batch_size: Count = 128
    """Rows to couple"""
    runs: Count = 15
    """Timed runs of each, after two for warming up"""
    device: Device = "auto"
    """cpu or cuda"""


def main() -> None:
    """Couple the same batches both ways in turn and print the ratio of the median times."""
    options = cli.parse(Options, description=__doc__)
    import torch
    from torchcfm.optimal_transport import OTPlanSampler

    from common.couplings import couple
    from common.runtime import pick_device

    device = pick_device(options.device)
    torch.manual_seed(0)
    peer = OTPlanSampler(method="exact")
    seconds: dict[str, list[float]] = {"torchcfm": [], "this repository": []}
    for _ in range(options.runs + 2):
        x0, x1 = (torch.randn(options.batch_size, 3, 32, 32, device=device) for _ in range(2))
        for name, function in (("torchcfm", peer.sample_plan), ("this repository", couple)):
            start = time.perf_counter()
            function(x0, x1)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:16s} {1000 * value:8.2f} ms for a batch of {options.batch_size}")
    print(f"ratio {medians['torchcfm'] / medians['this repository']:.2f}x")


if __name__ == "__main__":
    run_main(main)
