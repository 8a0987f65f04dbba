"""Make the README's pictures from the shipped weights.

python assets/make_figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from celebA.config import FOLDER as CELEBA
from cifar10.config import FOLDER as CIFAR10
from common import cli
from common.cli.configs import SampleConfig
from common.cli.ranges import NotNegative, Seed
from common.runtime import run_main
from common.scripts.folder import Folder
from common.scripts.sampling import make_sampler
from mnist.config import FOLDER as MNIST

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
SOLVERS = {"euler": 10, "midpoint": 5, "heun": 5, "ab2": 10, "dpmpp2m": 10, "unipc2": 10, "rk4": 3, "idff": 10}
SOLVERS |= {"euler_maruyama": 10, "dopri5": 2}  # with their steps: about ten evaluations, where they are not adaptive


@dataclass(frozen=True)
class Options:
    """Options of the figures."""

    seed: Seed = 0
    """Seed of the noise"""
    cfg: NotNegative = 1.5
    """Guidance scale of the guided CIFAR-10 pictures"""


def main() -> None:
    """MNIST grid; CIFAR-10 at several NFE; few evaluations and solvers side by side on the same noises; losses."""
    options = cli.parse(Options, description=__doc__)
    from common.images import grid, save_png
    from common.plots import image_rows
    from common.records.rows import JsonLines

    def draw(folder: Folder, count: int, title: str, **how: Any) -> tuple[str, Tensor]:
        """Images 0 to count - 1 as the folder's scripts draw them, after the title with their evaluations."""
        from common.generate import sample_many

        sampler, _ = make_sampler(folder, SampleConfig(seed=options.seed, **how))
        _, images, nfe = next(sample_many(sampler, range(count), count))
        return f"{title}, NFE {nfe}", images

    def few_steps(folder: Folder, count: int, steps: Sequence[int], fine: int) -> dict[str, Tensor]:
        """The same noises by Euler's method and by the fitted sampler, at few evaluations and at many."""
        rows = [("ab4", fine), *((solver, n) for n in steps for solver in ("fitted", "euler"))]
        return dict(draw(folder, count, solver, solver=solver, n_steps=n) for solver, n in rows)

    digits = draw(MNIST, 100, "", solver="euler", n_steps=20)[1]
    save_png(HERE / "mnist_samples.png", grid(digits, n_columns=10))
    faces = draw(CELEBA, 64, "", n_steps=10)[1]
    save_png(HERE / "celeba_samples.png", grid(faces, n_columns=8))
    image_rows(few_steps(MNIST, 16, (8, 5, 3), 100), HERE / "mnist_few_steps.png")
    image_rows(few_steps(CIFAR10, 10, (10, 8, 5), 50), HERE / "cifar10_few_steps.png")
    panels = [draw(CIFAR10, 64, f"{n} fitted steps", solver="fitted", n_steps=n) for n in (5, 10)]
    title = f"10 fitted steps, guidance {options.cfg:g}"
    panels.append(draw(CIFAR10, 64, title, solver="fitted", n_steps=10, cfg=options.cfg))
    image_grids(dict(panels), HERE / "cifar10_nfe.png")
    save_png(HERE / "cifar10_samples.png", grid(panels[-1][1], 10, scale=2, names=CIFAR10.classes))
    rows = dict(draw(CIFAR10, 10, solver, solver=solver, n_steps=n) for solver, n in SOLVERS.items())
    image_rows(rows, HERE / "cifar10_solvers.png")
    runs = {"MNIST, rf": MNIST, "CIFAR-10, idff": CIFAR10}
    logs = {name: (folder.here / folder.weights).with_name("metrics.jsonl") for name, folder in runs.items()}
    loss_curves({name: JsonLines(log).read() for name, log in logs.items()}, HERE / "losses.png")
    print(f"pictures: {HERE}")


def image_grids(grids: Mapping[str, Tensor], path: Path) -> None:
    """Titled grids side by side, for example the same noises at several NFE.

    Args:
        grids: title -> images in [-1, 1], shape (B, C, H, W).
    """
    from common.images import grid
    from common.plots import pyplot, save

    figure, axes = pyplot().subplots(1, len(grids), figsize=(3 * len(grids), 3.3), squeeze=False)
    for axis, (title, images) in zip(axes[0], grids.items()):
        axis.imshow(grid(images, n_columns=8).numpy(), interpolation="nearest", cmap="gray")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save(figure, path)


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Training and validation loss against images seen.

    Args:
        runs: label -> rows of a run's metrics.jsonl.
        path: picture to write.
    """
    from common.plots import pyplot, save

    figure, axis = pyplot().subplots(figsize=(5, 3))
    for label, rows in runs.items():
        steps = {row["step"]: row["images_seen"] for row in rows if "images_seen" in row}
        train = [(row["images_seen"], row["loss"]) for row in rows if row.get("loss") is not None]
        held_out = [(steps[row["step"]], row["val_loss"]) for row in rows if "val_loss" in row and row["step"] in steps]
        (line,) = axis.plot(*zip(*train), lw=0.8, label=label)
        if held_out:
            axis.plot(*zip(*held_out), "o", ms=3, color=line.get_color(), label=f"{label}, held out (EMA)")
    axis.set_xlabel("images seen")
    axis.set_ylabel("loss")
    axis.loglog()
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    axis.grid(alpha=0.3)
    save(figure, path)


if __name__ == "__main__":
    run_main(main)
