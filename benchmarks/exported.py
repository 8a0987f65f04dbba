"""How fast is a sampler as one ONNX graph in onnxruntime, against the same sampler in eager torch, float32?

    python -m common.export mnist/results/RF-0.0 build/mnist.onnx
    python -m common.export mnist/results/RF-0.0 build/mnist8.onnx --int8
    python benchmarks/exported.py mnist/results/RF-0.0 --graphs build/mnist.onnx build/mnist8.onnx
    python benchmarks/exported.py ... --judged 2000 --classifier mnist/results/classifier.pt --real torchvision:MNIST

One thread each, in turn, the same noises; images a second of processor time (other work on the machine counts less),
medians of the turns, and the ratio's median. --judged images of each are compared with real ones by a classifier's
features, as measure.py does. The graphs have to be of the weights' usual sampler of --n_steps.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.configs import SampleConfig
from common.cli.ranges import Count, Whole
from common.runtime import run_main
from common.scripts.folder import Folder


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    weights: str = ""
    """Checkpoint file or run folder; may stand without this flag"""
    graphs: tuple[str, ...] = ()
    """Files that python -m common.export has written"""
    n_steps: Count = 10
    """Steps of the sampler"""
    n_samples: Count = 8
    """Images of a turn"""
    runs: Count = 5
    """Timed turns of each, after one for warming up"""
    judged: Whole = 0
    """Images of each to be compared with real ones; 0: none"""
    classifier: str = ""
    """The judge: a classifier.pt of measure.py"""
    real: str = ""
    """Real test images, as --data elsewhere"""
    data_root: str = "data"
    """Where torchvision's sets are"""


def main() -> None:
    """Run all samplers in turn, and print images a second and what the judge says."""
    options = cli.parse(Options, description=__doc__ or "", words=("weights",))
    import torch

    from common import checkpoint
    from common.export.graphs import read
    from common.generate import labels_for, noise_for, real_classes
    from common.scripts.sampling import make_sampler

    torch.set_num_threads(1)
    source = checkpoint.find(options.weights, "WEIGHTS")
    folder = Folder(here=source.parent, presets={}, data="", weights=source.name, weights_name="")
    config = SampleConfig(weights=str(source), n_steps=options.n_steps, device="cpu")
    sampler, _ = make_sampler(folder, config)
    classes = real_classes(sampler.net)

    def inputs(indices: range) -> tuple[Any, ...]:
        labels = labels_for(indices, classes)
        noise = noise_for(indices, sampler.shape, 0)
        return (noise,) if labels is None else (noise, labels)

    samplers: dict[str, Callable[..., Any]] = {
        "torch": lambda noise, *labels: sampler.from_noise(noise, range(len(noise)), *labels).images
    }
    samplers |= {file: read(Path(file), "onnx", threads=1) for file in options.graphs}
    given, images = inputs(range(options.n_samples)), {}
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(options.runs + 1):
        for name, sample in samplers.items():
            start = time.process_time()
            images[name] = sample(*given)
            seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"][1:], values[1:]))
        miss = (images[name] - images["torch"]).abs().max()
        speed = options.n_samples / statistics.median(values[1:])
        print(f"{name:30s} {speed:7.2f} images/s, {ratio:.2f}x, largest difference {miss:.1e}", flush=True)
    if options.judged:
        judge(options, samplers, inputs, classes)


def judge(options: Options, samplers: dict[str, Callable[..., Any]], inputs: Callable[..., Any], classes: int) -> None:
    """Print the feature distance to real images, and the recognised share."""
    import torch

    from common.data.loading import load_images
    from common.evaluate.classifier import Recogniser, classify, load_classifier
    from common.generate import labels_for
    from common.images import to_uint8

    net, accuracy, _ = load_classifier(Path(options.classifier))
    side, channels = inputs(range(1))[0].shape[-1], net.arguments["channels"]
    real = load_images(options.real, side, channels, root=options.data_root, split="test")
    judge = Recogniser(net, accuracy, classify(net, real.images)[0], 0.0)
    for name, sample in samplers.items():
        parts = [range(k, min(k + 50, options.judged)) for k in range(0, options.judged, 50)]
        images = torch.cat([to_uint8(sample(*inputs(part))) for part in parts])
        found = judge.measure(images, labels_for(range(len(images)), classes))
        print(f"{name:30s} {found}", flush=True)


if __name__ == "__main__":
    run_main(main)
