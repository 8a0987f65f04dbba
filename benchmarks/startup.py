"""How long does ``python cifar10/train_cifar10.py --help`` take, and does it import torch?

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "cifar10" / "train_cifar10.py"


def main() -> None:
    """Time --help and ``import torch`` in turn: the ratio says what leaving torch out saves."""
    commands = {
        "--help": [sys.executable, str(SCRIPT), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(6):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:13s} {value:6.2f} s")
    print(f"ratio {medians['import torch'] / medians['--help']:.2f}x")


if __name__ == "__main__":
    main()
