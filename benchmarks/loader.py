"""How fast does the streaming reader deliver training batches, against torchvision's ImageFolder and DataLoader?

    python benchmarks/loader.py                        # 256x256 JPEG, two threads against two worker processes
    python benchmarks/loader.py --store folder         # the same files for both, instead of a zip for ours
    taskset -c 0,1 python benchmarks/loader.py         # on two cores

Random crops of the photographs that ship with scikit-learn. Both end in shuffled batches of float32 in [-1, 1] with
random flips. Whole epochs are timed in turn, so that a change of the machine's speed meets both; medians are compared,
and processor time (with that of the workers), which other work on the machine disturbs less. Last, the cost of a batch
of 64x64 images that are resident in memory, as a share of a training step of a small network.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import AtLeast, AtMost, Count, Seed
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    n_images: Count = 384
    """Images of an epoch"""
    size: Count = 256
    """Their side"""
    quality: Annotated[int, AtLeast(1), AtMost(100)] = 90
    """Of the JPEG files"""
    batch_size: Count = 32
    """Images of a batch"""
    rounds: Count = 5
    """Timed epochs of each loader, after one for warming up"""
    num_workers: Count = 2
    """Threads of ours, processes of torchvision's"""
    store: Literal["zip", "folder", "lmdb"] = "zip"
    """What ours reads; torchvision's reads a folder"""
    seed: Seed = 0
    """Of the crops"""


def write_photographs(folder: Path, options: Options) -> None:
    """JPEG files: crops of scikit-learn's photographs at random places."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs, draw = load_sample_images().images, np.random.default_rng(options.seed)
    folder.mkdir(parents=True)
    for k in range(options.n_images):
        pixels = photographs[k % len(photographs)]
        top, left = (draw.integers(side - options.size) for side in pixels.shape[:2])
        crop = pixels[top : top + options.size, left : left + options.size]
        Image.fromarray(crop).save(folder / f"{k:05d}.jpg", quality=options.quality)


def packed(folder: Path, store: str) -> Path:
    """The same files in one zip or LMDB beside the folder."""
    files = sorted(folder.rglob("*.jpg"))
    target = folder.with_suffix(f".{store}")
    if store == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for file in files:
                archive.write(file, file.name)
    elif store == "lmdb":
        from common.prepare.containers import LmdbWriter

        writer = LmdbWriter(target, [])
        writer.write([(file.name, file.read_bytes()) for file in files])
        writer.close()
    return folder if store == "folder" else target


def our_epochs(path: Path, options: Options) -> Iterator[Callable[[], list[int]]]:
    """Functions that each draw one epoch and return its processes: ours is one."""
    from common.data.loading import Batches, StreamingImages

    data = StreamingImages(str(path), options.size, 3, num_workers=options.num_workers, progress=False)
    batches, count = Batches(data, options.batch_size, seed=0), options.n_images // options.batch_size
    epoch = 0
    while True:
        steps = range(epoch * count, (epoch + 1) * count)
        yield lambda steps=steps: [len(batches.at(step)[0]) for step in steps] and []
        epoch += 1


def torchvision_epochs(path: Path, options: Options) -> Iterator[Callable[[], list[int]]]:
    """The same by torchvision and torch, as their tutorials do it, with workers that stay."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    data = datasets.ImageFolder(str(path), transforms.Compose(steps))
    kept: dict[str, Any] = {"num_workers": options.num_workers, "persistent_workers": True}
    loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=True, **kept)

    def epoch() -> list[int]:
        iterator = iter(loader)
        for _ in iterator:
            pass
        return [worker.pid for worker in iterator._workers]  # type: ignore[attr-defined]

    while True:
        yield epoch


def processor_seconds(workers: Sequence[int]) -> float:
    """Processor time of this process and of some others, where /proc tells it."""
    ticks = 0
    for pid in workers:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def compare(options: Options, root: Path) -> None:
    """Draw epochs in turn; print images a second, processor time of an image and the ratios."""
    folder = root / "photographs"
    write_photographs(folder / "all", options)
    loaders = {
        "torchvision": torchvision_epochs(folder, options),
        "this repository": our_epochs(packed(folder, options.store), options),
    }
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    work: dict[str, list[float]] = {name: [] for name in loaders}
    pids: dict[str, list[int]] = {name: next(epochs)() for name, epochs in loaders.items()}  # warms up
    for _ in range(options.rounds):
        for name, epochs in loaders.items():
            start, before = time.perf_counter(), processor_seconds(pids[name])
            next(epochs)()
            wall[name].append(time.perf_counter() - start)
            work[name].append(processor_seconds(pids[name]) - before)
    images = options.n_images // options.batch_size * options.batch_size
    for name in loaders:
        rate, cost = images / statistics.median(wall[name]), 1000 * statistics.median(work[name]) / images
        print(f"{name:16s} {rate:8.0f} images/s, {cost:6.2f} ms of processor time an image")
    pairs = list(zip(*wall.values(), strict=True)), list(zip(*work.values(), strict=True))
    ratios = [statistics.median(theirs / ours for theirs, ours in pair) for pair in pairs]
    print(f"ratio {ratios[0]:.2f}x in time, {ratios[1]:.2f}x in processor time (medians of {options.rounds} pairs)")


def resident(rounds: int) -> None:
    """Cost of a batch of resident 64x64 images, and of the training step that it is for."""
    import torch

    from common.cli.configs import TrainConfig
    from common.data.loading import Batches
    from common.data.synthetic import synthetic_images
    from common.runtime import Processes
    from common.training.batches import Batch
    from common.training.trainer import Trainer

    config = TrainConfig(method="rf", image_size=64, num_channel=32, batch_size=16, num_res_blocks=1)
    batches = Batches(synthetic_images(512, 64, 3, 0, seed=0), config.batch_size, seed=0)
    trainer = Trainer(config, Processes(0, 1, torch.device("cpu")))
    trainer.net.train()
    loading, training = [], []
    for step in range(rounds + 1):
        start = time.process_time()
        x1, y = batches.at(step)
        middle = time.process_time()
        noise = torch.randn_like(x1)
        trainer.update(Batch(noise, x1, torch.rand(len(x1)), noise, y))
        loading, training = [*loading, middle - start], [*training, time.process_time() - middle]
    cost, step_cost = (1000 * statistics.median(times[1:]) / config.batch_size for times in (loading, training))
    print(f"resident 64x64   {1000 / cost:8.0f} images/s, {100 * cost / step_cost:.2f}% of a small network's step")


def main() -> None:
    """Run the comparison in a temporary folder."""
    options = cli.parse(Options, description=__doc__ or "")
    from common.runtime import keep_freed_memory

    keep_freed_memory()  # as training does
    with tempfile.TemporaryDirectory() as root:
        compare(options, Path(root))
    resident(options.rounds)


if __name__ == "__main__":
    run_main(main)
