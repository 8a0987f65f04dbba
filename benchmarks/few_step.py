"""Which sampler needs the fewest network evaluations? Error to a fine solution, and quality, at equal NFE.

    python benchmarks/few_step.py rms --model mnist          # every solver and grid, and fitted samplers
    python benchmarks/few_step.py quality --model mnist --n_samples 300 --solvers euler fitted --grids uniform
    python benchmarks/few_step.py table                      # the plot and the Markdown table of what was measured

Quality is the feature distance to real images (in 2D: W2 to real points).
Models: mnist, cifar10 (the shipped weights, labels in turn, no guidance), moons, 8gaussians (2D, trained here).
The error is the root mean square difference to 100 fine steps on the same noises, which no sampler was fitted to; the
fitted samplers are those beside the weights (fit_sampler.py), for the 2D models they are fitted here. NFE is counted at
the network. Rows go to benchmarks/few_step/MODEL.jsonl; what is there already is not measured again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Above, AtMost, Count, Seed
from common.runtime import run_main

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "few_step"
WEIGHTS = {
    "mnist": "mnist/results/RF-0.0/flow_matching_mnist.pth",
    "cifar10": "cifar10/results/IDFF-2.0-0.2/IDFF_cifar10_weights_step_final.pt",
}
TOYS = ("moons", "8gaussians")
NFES = (3, 4, 5, 6, 8, 10, 15, 20)
ONE_STEP = ("heun", "midpoint")
MULTISTEP = ("euler", "ab2", "ab4", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm2", "ipndm3", "ipndm4")
GRIDS = ("uniform", "cosine", "edm", "logsnr", "power", "adaptive")


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    what: Literal["rms", "quality", "table"] = "rms"
    """rms: errors to a fine solution; quality: distance to real data; table: what was measured, as text and picture"""
    model: Literal["mnist", "cifar10", "moons", "8gaussians"] = "mnist"
    """Which model"""
    n_samples: Count = 32
    """Noises; for quality images (2D: points)"""
    nfe: tuple[Count, ...] = NFES
    """Numbers of evaluations"""
    solvers: tuple[str, ...] = (*MULTISTEP, *ONE_STEP, "fitted")
    """Solvers"""
    grids: tuple[str, ...] = GRIDS
    """Time grids"""
    landing: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Time from which the last step goes straight to the predicted data; 1: no such rule"""
    data: str = ""
    """Real images: a folder or archive, or where torchvision's data set lies; empty: data/ beside the scripts"""
    precision: Literal["no", "bf16"] = "no"
    """Precision of the network"""
    seed: Seed = 0
    """Seed of the noises and of the 2D models"""


# -------------------------------------------------------------------------------------------------------------- models
def image_sampler(model: str, options: Options) -> tuple[Any, Path]:
    """A sampler of the shipped weights, and their file."""
    import torch

    from common import checkpoint
    from common.generate import Sampler

    path = checkpoint.find(ROOT / WEIGHTS[model])
    net, info = checkpoint.load_network(path)
    shape = (1, 28, 28) if model == "mnist" else (3, 32, 32)
    name, sigma = info["method"]["name"], info["method"].get("sigma", 0.0)
    net = net.to(memory_format=torch.channels_last)
    chosen = {"seed": options.seed, "precision": options.precision, "landing": options.landing}
    return Sampler(net, name, shape, sigma, **chosen), path


@dataclass(frozen=True)
class PointSampler:
    """A 2D model behind the interface of generate.Sampler: fields to replace, ``sample(indices)``."""

    net: Any
    seed: int
    solver: str = "euler"
    n_steps: int = 10
    grid: str = "uniform"
    fitted: Any = None
    nodes: Any = None

    def sample(self, indices: Any, labels: Any = None) -> Any:
        import torch

        from common.generate import Samples, noise_for
        from common.solvers import CountNFE, integrate, time_grid

        count = CountNFE(self.net)
        if self.fitted is not None:
            times, solver = self.fitted.times, self.fitted
        else:
            times, solver = time_grid(self.n_steps, self.grid) if self.nodes is None else self.nodes, self.solver
        with torch.no_grad():
            x = integrate(count, noise_for(indices, (2,), self.seed), times, solver, final_euler=True)
        return Samples(x, count.nfe)


def point_sampler(model: str, options: Options) -> PointSampler:
    """Rectified flow from a Gaussian to a 2D distribution, 5,000 steps."""
    from common.training.small import train_mlp

    return PointSampler(
        train_mlp("gaussian", model, "rf", n_steps=5000, seed=options.seed, progress=model), options.seed
    )


def variants(sampler: Any, options: Options, fits: Callable, grids: Callable) -> Iterator[tuple[dict, Any]]:
    """Every (solver, grid, steps) to measure as (key of its row, sampler).

    Args:
        fits, grids: n -> the model's fitted sampler (None: there is none), its adaptive grid.
    """
    for solver in options.solvers:
        # Two evaluations a step but one for the last, which is Euler's: the most steps within the evaluations
        counts = {(nfe + 1) // 2 for nfe in options.nfe} if solver in ONE_STEP else set(options.nfe)
        for n in sorted(counts):
            for grid in ("own",) if solver == "fitted" else options.grids:
                key = {"solver": solver, "grid": grid, "n_steps": n}
                fields: dict[str, Any] = {"solver": solver, "n_steps": n}
                if solver == "fitted":
                    fields["fitted"] = fits(n)
                    if fields["fitted"] is None:
                        continue
                elif grid == "adaptive":
                    fields["nodes"] = grids(n)
                else:
                    fields["grid"] = grid
                yield key, replace(sampler, **fields)


# --------------------------------------------------------------------------------------------------------- measurements
def run(options: Options) -> None:
    """Measure what is not measured yet; one row for each sampler."""
    from tqdm import tqdm

    from common.records.rows import JsonLines
    from common.runtime import keep_freed_memory

    keep_freed_memory()
    RESULTS.mkdir(exist_ok=True)
    log = JsonLines(RESULTS / f"{options.model}.jsonl")
    keys = ("what", "solver", "grid", "n_steps", "n_samples", "seed", "precision", "landing")
    done = {tuple(row.get(k) for k in keys) for row in log.read()}
    if options.model in TOYS:
        sampler: Any = point_sampler(options.model, options)
        fits, grids = own_of_points(sampler)
    else:
        sampler, weights = image_sampler(options.model, options)
        fits, grids = own_of_weights(sampler, weights)
    measure = rms_measure(sampler, options) if options.what == "rms" else quality_measure(sampler, options)
    common = {"what": options.what, "n_samples": options.n_samples, "seed": options.seed}
    common |= {"precision": options.precision, "landing": options.landing}
    for key, made in tqdm(list(variants(sampler, options, fits, grids)), unit="sampler", dynamic_ncols=True):
        row = {**common, **key}
        if tuple(row.get(k) for k in keys) in done:
            continue
        start = time.perf_counter()
        value, nfe = measure(made)
        log.append({**row, "nfe": nfe, "value": value, "seconds": round(time.perf_counter() - start, 2)})


def own_of_weights(sampler: Any, weights: Path) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """The fitted samplers and adaptive grids beside a weights file, by their number of steps."""
    from common.scripts.sampling import adaptive_nodes
    from common.solvers.fitted import fitted_for, key_of

    return lambda n: fitted_for(weights, key_of(n, 1.0, sampler.landing)), lambda n: adaptive_nodes(sampler, n, weights)


def own_of_points(sampler: PointSampler) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """The same for a 2D model, fitted to 512 noises of another stream when they are asked for."""
    from functools import cache

    from common.generate import noise_for
    from common.solvers.fitted import fit_sampler, teach
    from common.solvers.grids import adaptive_grid

    teacher = teach(lambda last: sampler.net, noise_for(range(512), (2,), sampler.seed, "fit"), 200)
    fits = cache(lambda n: fit_sampler(lambda last: sampler.net, teacher, n))
    return fits, lambda n: adaptive_grid(teacher.states, teacher.times, n)


def rms_measure(sampler: Any, options: Options) -> Callable[[Any], tuple[float, int]]:
    """(value, evaluations) of a sampler: its root mean square difference to the fine solution.

    That is 100 steps of AB4, see common.solvers.fitted.teach.
    """
    from common import generate
    from common.metrics import rms
    from common.scripts.sampling import teacher_of
    from common.solvers.fitted import teach

    n = options.n_samples
    if isinstance(sampler, PointSampler):
        fine = teach(lambda last: sampler.net, generate.noise_for(range(n), (2,), sampler.seed), 400).states[-1]
        labels = None
    else:
        fine = teacher_of(sampler, n, "x0", 100, "fine", options.seed)[0].states[-1].clamp(-1, 1)
        labels = generate.labels_for(range(n), generate.real_classes(sampler.net))
    indices = list(range(n))

    def measure(made: Any) -> tuple[float, int]:
        images, nfe = made.sample(indices, labels)
        return rms(images, fine), nfe

    return measure


def quality_measure(sampler: Any, options: Options) -> Callable[[Any], tuple[float, int]]:
    """2D: W2 to as many real points. Images: feature distance to the real images by the folder's classifier."""
    import torch

    from common import generate
    from common.metrics import wasserstein2

    n = options.n_samples
    if isinstance(sampler, PointSampler):
        from common.data.toys import sample
        from common.runtime import generator

        real = sample(options.model, n, generator(options.seed, "real"))

        def distance(made: Any) -> tuple[float, int]:
            points, nfe = made.sample(range(n))
            return wasserstein2(points, real), nfe

        return distance
    from common.evaluate.classifier import classify, feature_distance, load_classifier
    from common.images import to_uint8

    folder = ROOT / options.model
    classifier, *_ = load_classifier(folder / "results" / "classifier.pt")
    real, _ = classify(classifier, real_images(options.model, options.data))

    def measure(made: Any) -> tuple[float, int]:
        parts, nfes = zip(*((to_uint8(part), nfe) for _, part, nfe in generate.sample_many(made, range(n), 100)))
        return feature_distance(classify(classifier, torch.cat(parts))[0], real), nfes[-1]

    return measure


def real_images(model: str, data: str) -> Any:
    """The real images that the folder's measure.py compares with: uint8, (N, C, H, W)."""
    from common.data.loading import load_images

    root = Path(data) if data and model == "mnist" else ROOT / model / "data"
    if model == "mnist":
        return load_images("torchvision:MNIST", 28, 1, root=root, split="test").images
    images = load_images(data or "torchvision:CIFAR10", 32, 3, root=root, split="train" if data else "test").images
    return images[4::5] if data else images


# ---------------------------------------------------------------------------------------------------------------- table
def table() -> None:
    """Markdown and plot of all rows: the error of each family's best grid against NFE."""
    from common.records.rows import JsonLines

    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = JsonLines(path).read()
        print(f"\n### {path.stem}\n")
        for what in ("rms", "quality"):
            for landing in sorted({row["landing"] for row in rows}, reverse=True):
                if part := [row for row in rows if (row["what"], row["landing"]) == (what, landing)]:
                    print(f"landing {landing:g}\n\n{markdown(part, what)}")
    print(summary())
    print(f"picture: {plot()}")


def summary() -> str:
    """The table of docs/sampling.md: for each model Euler, the best usual and of all plain solvers, and the fitted one.

    Two evaluations a step give no even NFE; at one, the best with fewer evaluations counts too.
    """
    from common.records.rows import JsonLines

    usual = (*ONE_STEP, "dpmpp2m")
    groups = {
        "Euler, uniform grid": ("euler",),
        "Heun, midpoint, DPM++(2M)": usual,
        "best plain": (*MULTISTEP, *ONE_STEP),
    }
    lines = ["| model | sampler | " + " | ".join(map(str, NFES)) + " |", "|---" * (len(NFES) + 2) + "|"]
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = [row for row in JsonLines(path).read() if (row["what"], row["landing"]) == ("rms", 1.0)]
        for name, solvers in (*groups.items(), ("fitted", ("fitted",))):
            part = [row for row in rows if row["solver"] in solvers]
            part = [row for row in part if row["grid"] == "uniform"] if name.startswith("Euler") else part
            best = [min((row for row in part if row["nfe"] <= n), key=lambda row: row["value"]) for n in NFES]
            tags = [f" {row['solver']}" if name == "best plain" else "" for row in best]
            cells = [f"{row['value']:.2g}{tag}" for row, tag in zip(best, tags)]
            lines.append(f"| {path.stem} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_rows(rows: list[dict[str, Any]], solver: str) -> dict[int, dict[str, Any]]:
    """For each NFE the row of a solver with the least value, whatever its grid."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["solver"] == solver and (row["nfe"] not in best or row["value"] < best[row["nfe"]]["value"]):
            best[row["nfe"]] = row
    return best


def markdown(rows: list[dict[str, Any]], what: str) -> str:
    """Solvers down, NFE across; the least value over the grids, with the grid's initial."""
    solvers = sorted({row["solver"] for row in rows})
    counts = sorted({row["nfe"] for row in rows})
    lines = [f"| {what} at NFE | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    uniform = [row for row in rows if row["solver"] == "euler" and row["grid"] == "uniform"]
    parts = [("euler, uniform", best_rows(uniform, "euler")), *((s, best_rows(rows, s)) for s in solvers)]
    for name, best in parts:
        cells = [f"{best[n]['value']:.4f} {best[n]['grid'][:2]}" if n in best else "" for n in counts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot() -> Path:
    """Error against NFE for each model, one line a solver with its best grid."""
    from common.plots import curves
    from common.records.rows import JsonLines

    panels = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = [row for row in JsonLines(path).read() if (row["what"], row["landing"]) == ("rms", 1.0)]
        lines = {}
        for solver in ("euler", "midpoint", "heun", "ab2", "dpmpp2m", "unipc2", "ipndm3", "fitted"):
            best = best_rows(rows, solver)
            lines[solver] = [(n, best[n]["value"]) for n in sorted(best)]
        panels[path.stem] = lines
    out = ROOT / "assets" / "few_step.png"
    curves(panels, out, "network evaluations", "RMS to a fine solution", "fitted")
    return out


def main() -> None:
    """Measure, or show what was measured."""
    options = cli.parse(Options, description=__doc__, words=("what",))
    table() if options.what == "table" else run(options)


if __name__ == "__main__":
    run_main(main)
