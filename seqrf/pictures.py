"""The same noises by a teacher and by its students, one row each: what few steps do to an image.

    python pictures.py exp/mnist/seed-0 --teacher ../mnist/results/RF-0.0/flow_matching_mnist.pth --n_steps 4

Reads the students of a folder of pipeline.py. Half a minute on a CPU for MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _repo import HERE  # noqa: F401
from common import cli
from common.cli.ranges import Count, Seed
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the pictures."""

    folder: str = ""
    """Folder with the students of pipeline.py; it may also stand without this flag"""
    teacher: str = ""
    """Weights of the teacher"""
    n_steps: Count = 4
    """Euler steps of the rows; distilled students take one for each of their segments"""
    fine: Count = 32
    """Euler steps of the teacher's last row"""
    n_samples: Count = 10
    """Images in a row"""
    seed: Seed = 0
    """Seed of the noises"""
    out: str = ""
    """Picture to write; empty: pictures.png in the folder"""


def main() -> None:
    """Load, draw, save."""
    options = cli.parse(Options, description=__doc__ or "", words=("folder",))
    folder = Path(options.folder)
    from common.generate import labels_for
    from common.plots import image_rows
    from seqrf.evaluate import Sampler, draw
    from seqrf.models import load
    from seqrf.train import FINAL

    files = sorted(folder.glob(f"*/{FINAL}"), key=lambda file: file.stat().st_mtime)
    if not options.teacher or not files:
        raise ValueError(f"{len(files)} students in {folder}: give --teacher WEIGHTS and a folder of pipeline.py")
    models = [load(options.teacher), *map(load, files)]
    if len(models[0].shape) != 3:
        raise ValueError(f"{options.teacher} makes points, not images: see the pictures beside the evaluations")
    rows = {}
    for model in models:
        k = len(model.edges) - 1
        n = k if model.method.get("distilled") else max(k, options.n_steps)
        y = labels_for(range(options.n_samples), model.num_classes)
        for steps in (n, options.fine) if not model.is_student else (n,):
            samples = draw(model, range(options.n_samples), y, Sampler("euler", steps, seed=options.seed))
            rows[f"{model.name}, {samples.nfe:g} NFE"] = samples.x
    out = Path(options.out) if options.out else folder / "pictures.png"
    image_rows(rows, out)
    print(f"picture: {out}")


if __name__ == "__main__":
    run_main(main)
