"""Make the README's pictures from the shipped weights.

python assets/make_figures.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import NotNegative, Seed
from common.runtime import run_main

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Options:
    """Options of the figures."""

    seed: Seed = 0
    """Seed of the noise"""
    cfg: NotNegative = 2.0
    """Guidance scale of the CIFAR-10 pictures"""


def main() -> None:
    """MNIST grid; CIFAR-10 at several NFE; solvers side by side on the same noises."""
    options = cli.parse(Options, description=__doc__)
    import torch

    from common.checkpoint import load_network
    from common.generate import Sampler, sample_many
    from common.images import grid, save_png
    from common.plots import image_grids, image_rows, loss_curves
    from common.runtime import JsonLines
    from common.solvers.fitted import find_fitted

    def draw(sampler: Sampler, count: int) -> torch.Tensor:
        return torch.cat([images for _, images in sample_many(sampler, range(count), count)])

    def few_steps(base: Sampler, weights: Path, path: Path) -> None:
        """The same noises by Euler's method and by the fitted sampler, at few evaluations and at many."""
        rows = {"ab4, NFE 100": draw(replace(base, solver="ab4", n_steps=100), 16)}
        for n in (8, 5, 3):
            rows[f"fitted, NFE {n}"] = draw(
                replace(base, solver="fitted", fitted=find_fitted(weights, n, 1.0, base.landing)), 16
            )
            rows[f"euler, NFE {n}"] = draw(replace(base, n_steps=n), 16)
        image_rows(rows, path)

    weights = HERE.parent / "mnist" / "results" / "RF-0.0" / "flow_matching_mnist.pth"
    net, info = load_network(weights)
    mnist = Sampler(net, info["method"]["name"], (1, 28, 28), n_steps=20, seed=options.seed)
    save_png(HERE / "mnist_samples.png", grid(draw(mnist, 100), n_columns=10))
    few_steps(mnist, weights, HERE / "mnist_few_steps.png")

    folder = HERE.parent / "cifar10" / "results" / "IDFF-2.0-0.2"
    weights = folder / "IDFF_cifar10_weights_step_final.pt"
    net, info = load_network(weights)
    method = info["method"]
    base = Sampler(net, method["name"], (3, 32, 32), method["sigma"], cfg=options.cfg, seed=options.seed)
    few_steps(replace(base, cfg=1.0, landing=0.85), weights, HERE / "cifar10_few_steps.png")
    grids = {}
    for n_steps in (5, 10, 20, 50):
        images = draw(sampler := replace(base, n_steps=n_steps), 64)
        grids[f"{n_steps} Euler steps, NFE {sampler.nfe}"] = images
    image_grids(grids, HERE / "cifar10_nfe.png")
    save_png(HERE / "cifar10_samples.png", grid(grids[next(title for title in grids if title.startswith("20 "))]))

    rows = {}
    plain = replace(base, cfg=1.0)
    for solver, n_steps in (
        ("euler", 10),
        ("midpoint", 5),
        ("heun", 5),
        ("ab2", 10),
        ("dpmpp2m", 10),
        ("unipc2", 10),
        ("rk4", 3),
        ("idff", 10),
        ("euler_maruyama", 10),
        ("dopri5", 1),
    ):
        images = draw(sampler := replace(plain, solver=solver, n_steps=n_steps), 16)
        rows[f"{solver}, NFE {sampler.nfe}"] = images
    image_rows(rows, HERE / "cifar10_solvers.png")
    logs = {"MNIST, rf": HERE.parent / "mnist" / "results" / "RF-0.0", "CIFAR-10, idff": folder}
    loss_curves({name: JsonLines(run / "metrics.jsonl").read() for name, run in logs.items()}, HERE / "losses.png")
    print(f"pictures: {HERE}")


if __name__ == "__main__":
    run_main(main)
