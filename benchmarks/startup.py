"""How long does ``python cifar10/train_cifar10.py --help`` take, and does it import torch?

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.cli.ranges import Count
from common.runtime import run_main

SCRIPT = Path(__file__).resolve().parents[1] / "cifar10" / "train_cifar10.py"


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    rounds: Count = 5
    """Starts of each kind, after one that warms up"""


def main() -> None:
    """Time --help and ``import torch`` in turn: the ratio says what leaving torch out saves."""
    rounds = cli.parse(Options, description=__doc__ or "").rounds
    commands = {
        "--help": [sys.executable, str(SCRIPT), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:13s} {value:6.2f} s")
    print(f"ratio {medians['import torch'] / medians['--help']:.2f}x")


if __name__ == "__main__":
    run_main(main)
