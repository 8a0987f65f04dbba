"""Draw one digit of each class from the shipped MNIST weights with RK4: the smallest example of inference.

python mnist_test.py
python mnist_test.py --weights results/RF-0.0/flow_matching_mnist.pth --steps 50
"""

from __future__ import annotations

from dataclasses import dataclass

from _repo import HERE  # noqa: F401
from common import cli
from common.cli.ranges import Count, Device, Seed
from common.methods import METHODS, own_velocity
from common.runtime import run_main
from mnist.config import FOLDER


@dataclass(frozen=True)
class Options:
    """Options of mnist_test.py."""

    weights: str = ""
    """Checkpoint file or run folder; empty: the newest run's, else the shipped ones"""
    n_steps: Count = 100
    """RK4 steps; four network evaluations each"""
    seed: Seed = 0
    """Seed of the noise"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    out: str = ""
    """Picture to write; empty: samples/mnist_test.png here"""
    smoke: bool = False
    """Two steps"""


def main() -> None:
    """Load the network, draw ten digits, save the picture."""
    options = cli.parse(Options, description=__doc__)
    import torch

    from common.checkpoint import load_network
    from common.images import grid, save_png
    from common.runtime import pick_device
    from mnist.mnist_train import generate_sample

    model, info = load_network(FOLDER.find_weights(options.weights))
    if METHODS[info["method"]["name"]].velocity is not own_velocity:
        other = f"python mnist/simple_gen_test.py --weights {options.weights}"
        raise ValueError(f"{options.weights} does not hold a velocity but {info['method']['name']} weights: {other}")
    model = model.to(pick_device(options.device))
    size = info["config"].get("image_size", 28)
    torch.manual_seed(options.seed)
    steps = 2 if options.smoke else options.n_steps
    labels = range(10) if model.num_classes else [None] * 10  # a network without classes draws any ten
    digits = [generate_sample(model, (1, size, size), steps, label) for label in labels]
    out = options.out or FOLDER.samples(options, "mnist_test.png")
    names = "0123456789" if model.num_classes else ()
    save_png(out, grid(torch.cat(digits), n_columns=10, scale=2, names=names))
    print(f"ten digits, {4 * steps} network evaluations each: {out}")


if __name__ == "__main__":
    run_main(main)
