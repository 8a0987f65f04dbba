"""Are adaptive segments straighter than equal ones, on trajectories that they were not chosen on?

    python benchmarks/adaptive_segments.py --model 8gaussians
    python benchmarks/adaptive_segments.py --model mnist --n_samples 16 --n_steps 200

Prints the sequential straightness of a teacher's own trajectories cut into k segments, equal and adaptive: chosen on
some noises, measured on others.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402
from common.cli.ranges import Count  # noqa: E402
from common.runtime import run_main  # noqa: E402


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    model: Literal["8gaussians", "mnist"] = "8gaussians"
    """A small network from 8 gaussians to moons, trained here, or the shipped MNIST weights"""
    n_samples: Count = 128
    """Trajectories to choose on, and as many others to measure on"""
    n_steps: Count = 500
    """Euler steps of a trajectory"""
    segments: tuple[Count, ...] = (1, 2, 4, 8, 12)
    """Numbers of segments"""


def trajectories(options: Options):
    """States of twice n_samples noises at all times, (n_steps + 1, 2 n_samples, ...)."""
    import torch

    from common.checkpoint import load_network
    from common.data import toys
    from common.generate import labels_for, noise_for, real_classes
    from common.runtime import generator
    from common.solvers import integrate, time_grid
    from common.training import small

    n, y = 2 * options.n_samples, None
    if options.model == "mnist":
        net, info = load_network(ROOT / "mnist" / "results" / "RF-0.0" / "flow_matching_mnist.pth")
        x, y = noise_for(range(n), (1, 28, 28), 0), labels_for(range(n), real_classes(net))
    else:
        net = small.train_mlp("8gaussians", "moons", "rf", n_steps=5000, batch_size=512, width=128, progress="teacher")
        x = toys.sample("8gaussians", n, generator(0, "x0"))
    with torch.no_grad():
        return integrate(lambda x, t: net(x, t, y), x, time_grid(options.n_steps), "euler", trajectory=True)


def main() -> None:
    """Choose, measure, print."""
    options = cli.parse(Options, description=__doc__)
    from seqrf.segments import adaptive_edges, sequential_straightness, uniform_edges

    path = trajectories(options)
    times = [i / options.n_steps for i in range(options.n_steps + 1)]
    seen, held = path[:, : options.n_samples], path[:, options.n_samples :]
    print("| k | equal | adaptive | ratio | seconds | adaptive edges |\n| --- | --- | --- | --- | --- | --- |")
    for k in options.segments:
        start = time.perf_counter()
        edges = adaptive_edges(seen, times, k)
        seconds = time.perf_counter() - start
        nearest = [min(times, key=lambda t: abs(t - edge)) for edge in uniform_edges(k)]
        equal, adaptive = (sequential_straightness(held, times, e) for e in (nearest, edges))
        shown = " ".join(f"{edge:.3f}" for edge in edges)
        print(f"| {k} | {equal:.4g} | {adaptive:.4g} | {adaptive / equal:.2f} | {seconds:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    run_main(main)
