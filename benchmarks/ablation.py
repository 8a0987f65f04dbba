"""Which part of the recipe for IDFF does what? One network, equal minutes, a run for each variant and seed.

    python benchmarks/ablation.py                                     # MNIST, 10 minutes a run, three seeds
    python benchmarks/ablation.py --model cifar10 --data cifar10.zip --minutes 40 --variants paper all
    python benchmarks/ablation.py --table                             # what was measured, as Markdown
    python benchmarks/ablation.py --smoke                             # seconds, made-up images, nothing is kept

Trained by the project's own trainer with ``--minutes``: MNIST with the network of its preset ``default``, CIFAR-10 with
that of ``small``. Measured on the averaged weights: the feature distance to the real images by the folder's classifier,
as in measure.py, and the share that is recognised, of Euler with 20 steps and unipc2 with 10, no guidance, labels in
turn; and the held-out velocity error, || x1_hat - x1 ||^2 / max(1 - t, 0.05)^2 on images that the run has not seen,
with uniform times and independent noise. A network of another coupling is fitted to other pairs, so that error compares
runs of one coupling.

Each run leaves a row in benchmarks/ablation/MODEL.jsonl; runs that have one are not made again, and one that was
stopped goes on where it stood. Give each run the threads that it is to have: OMP_NUM_THREADS=2.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.configs import TrainConfig
from common.cli.ranges import Count, Device, Minutes, OneOf, Seed
from common.runtime import run_main
from common.scripts.folder import OBJECTIVE, Folder, load_data, smoke_preset

RESULTS = Path(__file__).resolve().parent / "ablation"
PAPER: dict[str, Any] = {  # the published objective; a variant says what differs
    "method": "idff",
    "sigma": 0.2,
    "flow_weight": 2.0,
    "data_loss": "data",
    "score_target": "noise",
    "score_weight": 1.0,
    "coupling": "ot",
    "times": "uniform",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "independent": {"coupling": "independent"},
    "data_loss": {"data_loss": "velocity", "flow_weight": 1.0},
    "score_target": {"score_target": "conditional", "score_weight": 0.1, "coupling": "independent"},
    "mixed": {"times": "mixed"},
    "logit-normal": {"times": "logit-normal"},
    "all": OBJECTIVE,
    "all-mixed": {**OBJECTIVE, "times": "mixed"},
    "muon": {**OBJECTIVE, "optimizer": "muon"},
}
SAMPLERS = {"euler": 20, "unipc2": 10}  # steps


@dataclass(frozen=True)
class Options:
    """Options of the ablation."""

    model: Literal["mnist", "cifar10"] = "mnist"
    """Which folder's network, data and classifier"""
    variants: tuple[Annotated[str, OneOf((*VARIANTS,))], ...] = (*VARIANTS,)
    """What is trained, in this order, for each seed"""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of the runs; the samples have the same one always"""
    minutes: Minutes = 10.0
    """Of each run, see --minutes of the train scripts"""
    total_steps: Count | None = None
    """Steps of each run instead of minutes: on a machine that does other work, too"""
    n_samples: Count = 2000
    """Images to measure"""
    data: str = ""
    """Images: a folder, zip, tar, LMDB or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies; empty: data/ beside its scripts"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    table: bool = False
    """Print what was measured, train nothing"""
    smoke: bool = False
    """Seconds on a CPU: four steps each on made-up images"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        if self.minutes is None and self.total_steps is None:
            raise ValueError("--minutes none: give a length by --total_steps, e.g. --total_steps 2000")


def folder_of(model: str) -> tuple[Folder, TrainConfig]:
    """A data set's folder and the preset whose network is trained."""
    from importlib import import_module

    folder = import_module(f"{model}.config").FOLDER
    return folder, folder.presets.get("small", folder.presets["default"])


def length_of(options: Options) -> str:
    """Of each run, in words."""
    return f"{options.total_steps} steps" if options.minutes is None else f"{options.minutes:g} minutes"


def setting_of(options: Options) -> dict[str, Any]:
    """What runs must share besides their data to stand in one table, and to be gone on with."""
    import torch

    facts = {"length": length_of(options), "threads": torch.get_num_threads(), "precision": options.mixed_precision}
    return facts | {"n_samples": options.n_samples}


def config_of(options: Options, variant: str, seed: int) -> TrainConfig:
    """The options of a run."""
    preset = folder_of(options.model)[1]
    length = {"minutes": options.minutes, "total_steps": options.total_steps or preset.total_steps}
    config = replace(preset, **{**PAPER, **VARIANTS[variant]}, **length, seed=seed, resume="auto")
    config = replace(config, val_step=0, sample_step=0, mixed_precision=options.mixed_precision, device=options.device)
    config = replace(smoke_preset(config), minutes=None, resume="no") if options.smoke else config
    cli.validate(config)
    return config


# --------------------------------------------------------------------------------------------------------- measurements
def measures(options: Options, data: Any) -> Callable[[Path, TrainConfig], dict[str, Any]]:
    """measure(weights, config) -> the figures of a run."""
    from common.evaluate.classifier import make_recogniser, real_images

    folder, preset = folder_of(options.model)
    load = partial(load_data, folder, options, preset.image_size, preset.in_channels)
    has_test = not options.smoke and (options.model == "mnist" or not options.data)
    train, test = real_images(lambda split: data if split == "train" else load(split=split), has_test)
    keep = None if options.smoke else folder.here / "results" / "classifier.pt"
    recogniser = make_recogniser(train, test, keep, epochs=1 if options.smoke else None)

    def measure(weights: Path, config: TrainConfig) -> dict[str, Any]:
        from common import checkpoint

        net = checkpoint.load_network(weights)[0].to(config.device if config.device != "auto" else "cpu")
        row: dict[str, Any] = {"velocity_error": velocity_error(net, data, config)}
        for solver, n_steps in SAMPLERS.items():
            images, labels = samples(net, config, solver, n_steps, options.n_samples)
            figures = recogniser.measure(images, labels)
            row |= {f"{solver}_{n_steps}": figures["feature_distance"], f"recognised_{solver}": figures["recognised"]}
        return row

    return measure


def samples(net: Any, config: TrainConfig, solver: str, n_steps: int, count: int) -> tuple[Any, Any]:
    """Images, uint8, and their labels."""
    import torch

    from common.generate import Sampler, labels_for, real_classes, sample_many
    from common.images import to_uint8

    shape = (config.in_channels, config.image_size, config.image_size)
    chosen = {"solver": solver, "n_steps": n_steps, "precision": config.mixed_precision}
    sampler = Sampler(net, config.method, shape, config.sigma, **chosen)
    parts = [to_uint8(part).cpu() for _, part, _ in sample_many(sampler, range(count), 100)]
    return torch.cat(parts), labels_for(range(count), real_classes(net))


def velocity_error(net: Any, data: Any, config: TrainConfig) -> float:
    """The data head's error as one of the velocity, over up to 1,000 images that the run holds out."""
    import torch

    from common.data.loading import split_train_val
    from common.methods import make_loss
    from common.runtime import generator

    loss = make_loss("idff", config.sigma, flow_weight=1.0, score_weight=0.0, data_loss="velocity")
    rows = split_train_val(len(data), config.val_fraction, config.seed)[1][:1000]
    device = next(net.parameters()).device
    x1, y = data.images[rows].float() / 127.5 - 1, data.labels[rows].long()
    draw, n = generator(0, "held out"), len(rows)
    x0, noise = (torch.randn(x1.shape, generator=draw) for _ in range(2))
    t = ((torch.arange(n) + 0.5) / n)[torch.randperm(n, generator=draw)]
    with torch.no_grad():
        parts = zip(*(x.to(device).split(100) for x in (x0, x1, t, noise, y)), strict=True)
        return torch.cat([loss(net, *part) for part in parts]).mean().item()


# ----------------------------------------------------------------------------------------------------------------- runs
def run(options: Options) -> None:
    """Train and measure what has no row yet."""
    from common.records.rows import JsonLines

    here = JsonLines(RESULTS / f"{options.model}.jsonl")
    folder, preset = folder_of(options.model)
    setting = setting_of(options)
    wanted = [(variant, seed) for seed in options.seeds for variant in options.variants]
    done = {(row["variant"], row["seed"]) for row in here.read() if setting.items() <= row.items()}
    left = [each for each in wanted if options.smoke or each not in done]
    print(f"{len(wanted)} runs of {setting['length']}, {len(wanted) - len(left)} of them measured already")
    if not left:
        return
    data = load_data(folder, options, preset.image_size, preset.in_channels)
    measure = measures(options, data)
    with tempfile.TemporaryDirectory() as scratch:
        for variant, seed in left:
            runs = Path(scratch) if options.smoke else RESULTS / "runs" / options.model
            name = "-".join(str(setting[key]) for key in ("length", "threads", "precision")).replace(" ", "-")
            row = one(options, variant, seed, data, measure, runs / f"{variant}-{seed}-{name}")
            print(row)
            if not options.smoke:
                here.append(row)


def one(options: Options, variant: str, seed: int, data: Any, measure: Callable, out: Path) -> dict[str, Any]:
    """Train a variant in a folder, or go on there, and measure it: its row."""
    from common import checkpoint
    from common.records.cards import commit
    from common.runtime import hardware, processes
    from common.training import train

    config, here = config_of(options, variant, seed), processes(options.device)
    weights = train(config, data, out, "weights_step_final.pt", here)
    state = checkpoint.load(weights)
    facts = {"variant": variant, "seed": seed, **setting_of(options)}
    facts |= {key: state[key] for key in ("step", "images_seen", "seconds")}
    facts |= {"hardware": hardware(here.device), "commit": commit()}
    figures = measure(weights, replace(config, device=str(here.device)))
    return {**facts, "data": Path(data.source).name, **figures}


# ---------------------------------------------------------------------------------------------------------------- table
COLUMNS = {
    "distance, euler 20": "euler_20",
    "distance, unipc2 10": "unipc2_10",
    "recognised, unipc2 10": "recognised_unipc2",
    "held-out velocity error": "velocity_error",
    "images seen": "images_seen",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of each variant; its distance over the paper's, seed by seed."""
    lines = [f"| variant | runs | {' | '.join(COLUMNS)} | euler 20 against paper |", "|---" * (len(COLUMNS) + 3) + "|"]
    for variant in dict.fromkeys([*VARIANTS, *(row["variant"] for row in rows)]):
        part = {row["seed"]: row for row in rows if row["variant"] == variant}
        paper = {row["seed"]: row for row in rows if row["variant"] == "paper"}
        ratios = [part[seed]["euler_20"] / paper[seed]["euler_20"] for seed in part.keys() & paper.keys()]
        if part:
            cells = [spread([row[name] for row in part.values()]) for name in COLUMNS.values()]
            lines.append(f"| `{variant}` | {len(part)} | {' | '.join(cells)} | {spread(ratios)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation of some numbers, in four digits."""
    if not values:
        return ""
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def print_tables() -> None:
    """One table for each model, length, number of threads, precision and number of images."""
    from common.records.rows import JsonLines

    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = JsonLines(path).read()
        keys = ("length", "threads", "precision", "n_samples")
        settings = [tuple(row[key] for key in keys) for row in rows]
        for setting in sorted({*settings}):
            part = [row for row, own in zip(rows, settings, strict=True) if own == setting]
            title = "{}, {} threads, precision {}, {} images".format(*setting)
            print(f"\n### {path.stem}, {title}\n\n{table(part)}")


def main() -> None:
    """Train and measure, or show what was measured."""
    options = cli.parse(Options, description=__doc__)
    if options.smoke:
        options = replace(options, n_samples=min(options.n_samples, 32), seeds=options.seeds[:1])
    print_tables() if options.table else run(options)


if __name__ == "__main__":
    run_main(main)
