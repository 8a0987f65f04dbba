"""How fast is FID's pipeline, from files to statistics, against pytorch-fid's own on the same images?

    python benchmarks/fid.py                                  # 200 noise images of 32x32, random weights
    python benchmarks/fid.py --n_samples 10000 --folder PNGS --inception pt_inception-2015-12-05-6726825d.pth

Both read the same folder and run in turn in one process: reading, resizing, Inception, mean and covariance. The
statistics are compared before the times are. The matrix root that follows is timed by ``--root``.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Count
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    n_samples: Count = 200
    """Images; of a folder its first"""
    side: Count = 32
    """Side of the noise images"""
    folder: str = ""
    """PNG files; empty: noise images, written for the occasion"""
    inception: str = ""
    """Weights of Inception; empty: random ones"""
    batch_size: Count = 50
    """Images at a time, of both"""
    runs: Count = 3
    """Timed runs of each, after one of four images for warming up"""
    root: bool = False
    """Time the Frechet distance, too: SciPy's matrix root takes minutes"""


def main() -> None:
    """Run both pipelines in turn and print the ratio of their median times."""
    options = cli.parse(Options, description=__doc__ or "")
    import torch

    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        files, weights = image_files(options, here / "images"), inception_file(options, here / "weights.pth")
        pipelines = {"pytorch-fid": pytorch_fid(weights, options), "ours": ours(weights, options)}
        found = {name: run(files[:4]) for name, run in pipelines.items()}
        seconds: dict[str, list[float]] = {name: [] for name in pipelines}
        busy: dict[str, list[float]] = {
            name: [] for name in pipelines
        }  # of the processor: a shared machine's clock lies
        for _ in range(options.runs):
            for name, run in pipelines.items():
                start, began = time.perf_counter(), time.process_time()
                found[name] = run(files)
                seconds[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - began)
        (mu, cov), (mean, covariance) = found.values()
        scale = torch.as_tensor(cov).diagonal().sum().sqrt()
        print(f"means differ by {float((torch.as_tensor(mu) - mean).norm() / scale):.1e} of the features' spread")
        for kind, times in (("wall", seconds), ("processor", busy)):
            medians = {name: statistics.median(values) for name, values in times.items()}
            told = ", ".join(
                f"{name} {value:.2f} s, {len(files) / value:.2f} images/s" for name, value in medians.items()
            )
            pairs = sorted(round(a / b, 2) for a, b in zip(*times.values()))
            print(f"{kind} time: {told}; ratio {medians['pytorch-fid'] / medians['ours']:.2f}, of pairs {pairs}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{torch.get_num_threads()} threads, peak {peak:.2f} GiB")
        if options.root:
            time_roots(mu, cov, mean, covariance)


def image_files(options: Options, folder: Path) -> list[Path]:
    """The files of a folder, or noise images written to one."""
    import torch

    from common.images import save_png

    if options.folder:
        return sorted(Path(options.folder).glob("*.png"))[: options.n_samples]
    draw = torch.Generator().manual_seed(0)
    for k in range(options.n_samples):
        pixels = torch.randint(0, 256, (options.side, options.side, 3), generator=draw, dtype=torch.uint8)
        save_png(folder / f"{k:06d}.png", pixels, sync=False)
    return sorted(folder.glob("*.png"))


def inception_file(options: Options, file: Path) -> Path:
    """The weights that were given; else random ones of a size that keeps activations of order one."""
    import torch
    from pytorch_fid import inception
    from torch import nn

    if options.inception:
        return Path(options.inception)
    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda url, progress: {}),
        mock.patch.object(nn.Module, "load_state_dict", lambda self, state: None),
    ):
        state = inception.fid_inception_v3().state_dict()
    draw = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.5, 1.5, generator=draw)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draw)
    torch.save(state, file)
    return file


Pipeline = Callable[[Sequence[Path]], tuple[Any, Any]]


def pytorch_fid(weights: Path, options: Options) -> Pipeline:
    """pytorch-fid's reader, network and statistics, with its own number of workers."""
    import torch
    from pytorch_fid import fid_score, inception

    state = torch.load(weights, weights_only=True)
    with mock.patch.object(inception, "load_state_dict_from_url", lambda url, progress: state):
        net = inception.InceptionV3().eval()
    workers = min(8, len(os.sched_getaffinity(0)))

    def pipeline(files: Sequence[Path]) -> tuple[Any, Any]:
        return fid_score.calculate_activation_statistics(files, net, options.batch_size, 2048, "cpu", workers)

    return pipeline


def ours(weights: Path, options: Options) -> Pipeline:
    """The pipeline of ``python -m common.evaluate``."""
    from common.data.sources import named_source
    from common.evaluate import features
    from common.evaluate import sets as feature_sets

    net = features.inception_network(weights)

    def pipeline(files: Sequence[Path]) -> tuple[Any, Any]:
        folder, names = files[0].parent, [file.name for file in files]
        source = named_source(folder, names, "train", "folder", lambda name: (folder / name).read_bytes())
        images = feature_sets.ImageSet(source, 0, source.load(0).width)
        found = feature_sets.collect(images.batches(options.batch_size), net, total=len(files))
        return found.mean, found.cov

    return pipeline


def load(file: Path) -> Any:
    """One decoded image."""
    from common.images import decode

    return decode(file.read_bytes())


def time_roots(mu: Any, cov: Any, mean: Any, covariance: Any) -> None:
    """Frechet distance of the images to the standard normal, by both."""
    import numpy as np
    import torch
    from pytorch_fid import fid_score

    from common.metrics import frechet_distance

    d = len(mu)
    start = time.perf_counter()
    theirs = fid_score.calculate_frechet_distance(mu, cov, np.zeros(d), np.eye(d))
    middle = time.perf_counter()
    mine = frechet_distance(mean, covariance, torch.zeros(d), torch.eye(d))
    end = time.perf_counter()
    print(f"distance to N(0, I): {theirs:.6g} in {middle - start:.1f} s, ours {mine:.6g} in {end - middle:.1f} s")


if __name__ == "__main__":
    run_main(main)
