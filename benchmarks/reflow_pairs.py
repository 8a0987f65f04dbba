"""What does a pair of sequential reflow cost, to make and to read?

    python benchmarks/reflow_pairs.py solvers     # error and network calls of each segment, by solver
    python benchmarks/reflow_pairs.py calls       # segments against the whole path, at the same tolerance
    python benchmarks/reflow_pairs.py calls --model 8gaussians --n_samples 250
    python benchmarks/reflow_pairs.py reading     # a million pairs of 3x32x32: 8.5 GB for a while, in --out

The teacher is the shipped MNIST network (labels of the images, no guidance), or a 2D model trained here. Errors are
root mean square differences to dopri5 at 1e-6 in each coordinate, on the same starts. Calls are counted at the network.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.ranges import Count, Positive, Seed
from common.runtime import run_main

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "mnist" / "results" / "RF-0.0" / "flow_matching_mnist.pth"


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    what: Literal["solvers", "calls", "reading"] = "solvers"
    """What to measure"""
    model: Literal["mnist", "8gaussians"] = "mnist"
    """The teacher"""
    k: Count = 4
    """Segments"""
    n_samples: Count = 16
    """Pairs of each segment"""
    tolerance: Positive = 1e-4
    """Tolerance of calls"""
    data: str = ""
    """Where torchvision's MNIST lies; empty: mnist/data"""
    n_pairs: Count = 1_000_000
    """Pairs of reading"""
    batch_size: Count = 512
    """Batch of reading"""
    n_batches: Count = 200
    """Batches of reading"""
    out: str = ""
    """Folder for the shards of reading; empty: a temporary one"""
    seed: Seed = 0
    """Seed of noise, choice of samples and 2D model"""


def teacher(options: Options) -> tuple[Any, Any, Any]:
    """Velocity, data and labels."""
    if options.model == "mnist":
        import torch

        from common.checkpoint import load_network
        from common.data.loading import load_images

        images = load_images("torchvision:MNIST", 28, 1, root=options.data or ROOT / "mnist" / "data", progress=False)
        return load_network(WEIGHTS)[0].to(memory_format=torch.channels_last), images.images, images.labels
    from common.data.toys import sample
    from common.runtime import generator
    from common.training.small import train_mlp

    net = train_mlp("gaussian", options.model, method="cfm", n_steps=5000, seed=options.seed)
    return net, sample(options.model, 10_000, generator(options.seed, "data")), None


def solvers(options: Options) -> None:
    """Error and calls of many solvers in each segment, and what the choice of pairs.py would be."""
    import torch

    from common.metrics import rms
    from common.solvers import CountNFE, integrate
    from seqrf.endpoints import Pool, choose_steps, follow, starts
    from seqrf.manifest import PairOptions, Teacher
    from seqrf.plan import plan
    from seqrf.segments import uniform_edges

    velocity, data, labels = teacher(options)
    pool, count = Pool(data, labels), CountNFE(velocity)
    total = options.n_samples * options.k
    pairs = PairOptions(total, uniform_edges(options.k), options.seed, tolerance=options.tolerance)
    manifest = plan(pool, Teacher("", tuple(data.shape[1:])), pairs)

    def ways(t_a: float, t_b: float) -> Iterator[tuple[str, Any]]:
        for tolerance in (1e-3, 1e-4, 1e-5):
            yield f"dopri5 {tolerance:g}", lambda x, y: follow(count, x, y, t_a, t_b, "dopri5", tolerance=tolerance)
        for name, numbers in (("rk4", (1, 2, 3, 4, 5, 6, 8)), ("heun", (4, 8)), ("ab4", (8, 16)), ("unipc3", (8, 16))):
            for n in numbers:
                yield f"{name}, {n} steps", lambda x, y: follow(count, x, y, t_a, t_b, name, n)
        for n in (4, 8):
            even = torch.linspace(t_a, t_b, n + 1, dtype=torch.float64)
            field = (lambda x, t: count(x, t, y)) if labels is not None else count
            yield f"rk4, {n} even steps", lambda x, y: integrate(field, x, even, "rk4", final_euler=True)

    with torch.no_grad():
        table: dict[str, list[str]] = {}
        for segment, (t_a, t_b) in enumerate(zip(manifest.edges, manifest.edges[1:])):
            x, _, y = starts(manifest, segment, range(segment, total, options.k), pool)
            exact = follow(velocity, x, y, t_a, t_b, "dopri5", tolerance=1e-6)
            for name, way in ways(t_a, t_b):
                count.reset()
                error = rms(way(x, y), exact)
                table.setdefault(name, []).append(f"{error:.1e} ({count.nfe})")
                print(segment, name, table[name][-1], flush=True)
            table.setdefault("rounding to float16", []).append(f"{rms(exact.half().float(), exact):.1e}")
        chosen = choose_steps(velocity, manifest, pool)
    print("| solver |", " | ".join(f"{a:g} to {b:g}" for a, b in zip(manifest.edges, manifest.edges[1:])), "|")
    print("|---" * (options.k + 1) + "|")
    print(*(f"| {name} | {' | '.join(row)} |" for name, row in table.items()), sep="\n")
    print(f"auto at {options.tolerance:g}: rk4 steps {chosen}, 0 is dopri5")


def calls(options: Options) -> None:
    """Network calls of 1,000 pairs: k segments from real samples against the whole path, at the same tolerance."""
    from seqrf.endpoints import Pool
    from seqrf.manifest import PairOptions, Teacher
    from seqrf.pairs import Pairs, generate
    from seqrf.segments import uniform_edges

    velocity, data, labels = teacher(options)
    pool, facts = Pool(data, labels), Teacher("", tuple(data.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        for solver in ("dopri5", "auto"):
            nfe = {}
            for k in (1, options.k):
                edges, total = uniform_edges(k), options.n_samples * k
                pairs = PairOptions(total, edges, options.seed, solver, tolerance=options.tolerance)
                generate(f"{folder}/{solver}{k}", velocity, pool, facts, pairs)
                pairs = Pairs.open(f"{folder}/{solver}{k}")
                nfe[k] = pairs.nfe
                print(f"{solver}, k = {k}: {1000 * pairs.nfe:,.0f} calls for 1,000 pairs", pairs.manifest.n_steps or "")
            print(f"{solver}: {nfe[1] / nfe[options.k]:.2f} times fewer")


def reading(options: Options) -> None:
    """Memory and time of training batches from many pairs of 3x32x32 with labels."""
    import numpy as np
    import torch

    from seqrf import shards as store
    from seqrf.endpoints import Pool
    from seqrf.manifest import PairOptions, Teacher, write_manifest
    from seqrf.pairs import Pairs
    from seqrf.plan import plan
    from seqrf.segments import uniform_edges

    torch.set_num_threads(1)
    pool = Pool(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    with tempfile.TemporaryDirectory(dir=options.out or None) as folder:
        records = PairOptions(options.n_pairs, uniform_edges(options.k), options.seed, solver="rk4", n_steps=1)
        manifest = plan(pool, Teacher("", (3, 32, 32)), records)
        write_manifest(Path(folder), manifest)
        content = np.random.default_rng(0).integers(0, 60, manifest.size(0), np.uint8)  # no float16 is infinite
        for shard in range(manifest.n_shards):
            store.write_shard(Path(folder), manifest, shard, content[: manifest.size(shard)], nfe=0)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{options.n_pairs:,} pairs, {size / 1e9:.2f} GB in {manifest.n_shards} shards")
        before, begun = _peak(), time.perf_counter()
        pairs = Pairs.open(folder)
        print(f"open: {time.perf_counter() - begun:.2f} s")
        seconds, processor = [], time.process_time()
        for step in range(options.n_batches):
            begun = time.perf_counter()
            pairs.at(step, options.batch_size, options.seed, flip=True)
            seconds.append(time.perf_counter() - begun)
        used = (time.process_time() - processor) / options.n_batches
        clock = f"{used * 1e3:.0f} ms of a core each, {np.median(seconds) * 1e3:.0f} ms by the clock (median)"
        print(f"{options.n_batches} batches of {options.batch_size}: {clock}")
        print(f"peak memory {before} MB before, {_peak()} MB after: +{_peak() - before} MB")


def _peak() -> int:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure one of the three."""
    options = cli.parse(Options, description=__doc__, words=("what",))
    {"solvers": solvers, "calls": calls, "reading": reading}[options.what](options)


if __name__ == "__main__":
    run_main(main)
