"""What does a solver cost beside the network's calls, and against torchdiffeq's and torchdyn's fixed-grid Euler?

    python benchmarks/solver_overhead.py

The 2D network (3 hidden layers of 64) at batch 4096, where a call is short and bookkeeping shows most. All variants run
interleaved; printed are the medians over their time divided by that of as many bare network calls.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from typing import Annotated

from common import cli
from common.cli.ranges import Count, NoneFor
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    batch_size: Count = 4096
    """Points"""
    n_steps: Count = 20
    """Steps of each solve, one evaluation each"""
    runs: Count = 30
    """Rounds, each with every variant once"""
    threads: Annotated[Count | None, NoneFor(0)] = None
    """Threads of torch; none: its default"""


def main() -> None:
    """Time bare calls, our solvers and the two peers in turn."""
    options = cli.parse(Options, description=__doc__)
    import torch
    from torchdiffeq import odeint
    from torchdyn.core import NeuralODE

    from common.networks import MLP
    from common.solvers import integrate, time_grid
    from common.solvers.fitted import adams_sampler

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net, x = MLP(2).eval(), torch.randn(options.batch_size, 2)
    times = time_grid(options.n_steps)
    fitted = adams_sampler(times, 2)
    node = NeuralODE(lambda t, x, args=None: net(x, t), solver="euler", optimizable_params=[torch.nn.Parameter(x[:1])])
    t = torch.full((options.batch_size,), 0.5)

    def bare() -> None:
        for _ in range(options.n_steps):
            net(x, t)

    variants: dict[str, Callable[[], object]] = {"bare calls": bare}
    for method in ("euler", "ab2", "dpmpp2m", "unipc2"):
        variants[method] = lambda method=method: integrate(net, x, times, method)
    variants["fitted"] = lambda: integrate(net, x, fitted.times, fitted)
    variants["torchdiffeq euler"] = lambda: odeint(lambda t, x: net(x, t), x, times, method="euler")
    variants["torchdyn euler"] = lambda: node.trajectory(x, times)

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for _ in range(options.runs + 3):
            for name, run in variants.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    base = seconds["bare calls"][3:]
    for name, values in seconds.items():
        ratio = statistics.median(v / b for v, b in zip(values[3:], base))
        print(f"{name:20} {statistics.median(values[3:]) * 1e3:8.2f} ms   {ratio:6.3f} of the bare calls")


if __name__ == "__main__":
    run_main(main)
