"""tables.py: its options, and the rows of a table: networks trained together, measured, and never trained twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from common.cli.ranges import AtLeast, Seed
from common.records.rows import JsonLines
from common.runtime import atomic_write, run_lock
from protocols import METHODS, PAIRS, SEEDS, STEPS, VARIANTS

if TYPE_CHECKING:
    from protocols import Points

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Options:
    """Options of the tables."""

    pairs: tuple[str, ...] = tuple(PAIRS)
    """Source and target"""
    seeds: tuple[Seed, ...] = SEEDS
    """Seeds of data, weights and batches; the outer loop, so that a run that is stopped leaves whole seeds"""
    methods: tuple[str, ...] = ()
    """Names of protocols.METHODS and VARIANTS; none given: the plan of protocols.planned()"""
    steps: Annotated[int, AtLeast(1, "train for at least 1 step")] = STEPS
    """Training steps: 1000 epochs of the 19 whole batches in 10,000 points"""
    large: bool = True
    """Also test on 10,000 points, the second protocol; a quarter of a minute for each network, the less needed last"""
    table: bool = False
    """Only write README.md from the rows that are there"""
    smoke: bool = False
    """Few steps and points of the first seed, in results/smoke-tables"""
    out: Path = HERE / "tables"
    """Folder of rows.jsonl and README.md"""

    def check_together(self) -> None:
        """Raises ValueError for names that do not exist."""
        for names, choices in ((self.pairs, PAIRS), (self.methods, {**METHODS, **VARIANTS})):
            for name in names:
                if name not in choices:
                    raise ValueError(f"{name!r} is not known: choose from {'; '.join(choices)}")


def run(options: Options) -> None:
    """Train and measure what is missing, then write the table."""
    usual = options.out == HERE / "tables"
    out = HERE / "results" / "smoke-tables" if options.smoke and usual else options.out
    log = JsonLines(out / "rows.jsonl")
    weights = HERE / "results" / "tables" if usual and not options.smoke else out
    if not options.table:
        with run_lock(weights):
            work(options, log, weights)
    from table_text import markdown

    rows = log.read()
    if not rows:
        raise ValueError(f"{log.path} has no rows yet: run it without --table first")
    with atomic_write(out / "README.md") as path:
        path.write_text(markdown(rows), encoding="utf-8")
    print(f"table: {out / 'README.md'}")


@dataclass(frozen=True)
class Job:
    """A pair and a seed: what is trained and measured together, and where the results go."""

    pair: str
    seed: int
    names: tuple[str, ...]
    steps: int
    batch: int
    points: tuple[int, int, int, int]
    log: JsonLines
    weights: Path

    def done(self, name: str, key: str = "w2_20") -> bool:
        """Whether a row has this number of a network."""
        wanted = (self.pair, self.seed, name, self.steps)
        return any((r["pair"], r["seed"], r["name"], r["steps"]) == wanted and key in r for r in self.log.read())

    def untrained(self) -> list[str]:
        """The networks without a row."""
        return [name for name in self.names if not self.done(name)]

    def without_large_test(self, names: Sequence[str]) -> list[str]:
        """Those of the names, and of the floor, that are to be tested on the large set and have not been."""
        trained = [name for name in names if name.removesuffix(" + EMA") in self.names]
        return [name for name in ("floor", *trained) if not self.done(name, "w2_20_large")]

    def checkpoint(self, name: str) -> Path:
        """The weights of a network."""
        return self.weights / f"checkpoint_{self.pair}_{self.seed}_{self.steps}_{name.replace(' + ', '_')}.pt"

    def write(self, name: str, numbers: dict[str, Any], seconds: float) -> None:
        """Append a row."""
        place = {"pair": self.pair, "seed": self.seed, "name": name, "steps": self.steps}
        self.log.append(place | numbers | {"seconds": round(seconds, 1)} | provenance())


def work(options: Options, log: JsonLines, weights: Path) -> None:
    """All seeds and pairs, without what has its rows; large tests that can wait come last."""
    import torch
    from tqdm import tqdm

    from common.runtime import keep_freed_memory
    from protocols import BATCH, LARGE, SPLIT, planned

    torch.set_num_threads(1)
    keep_freed_memory()
    size = (6, 64, (256, 64, 64, 128)) if options.smoke else (options.steps, BATCH, SPLIT)
    jobs = []
    for seed in options.seeds[:1] if options.smoke else options.seeds:
        for pair in options.pairs:
            jobs.append(Job(pair, seed, options.methods or tuple(planned(pair, seed)), *size, log, weights))
    total = sum(job.steps for job in jobs if job.untrained())
    with tqdm(total=total, unit="step", dynamic_ncols=True, mininterval=10) as bar:
        for job in jobs:
            bar.set_description(f"{job.pair} {job.seed}")
            train_and_measure(job, bar.update)
            if options.large:
                measure_large(job, LARGE[0])
        for job, names in [(job, names) for names in LARGE[1:] for job in jobs if options.large]:
            bar.set_description(f"{job.pair} {job.seed}, {job.points[-1]:,} points")
            measure_large(job, names)


def train_and_measure(job: Job, on_step: Callable[[], object]) -> None:
    """Train the missing networks together, and append a row for each and for its average."""
    import torch

    from protocols import AVERAGED, points_of
    from scoring import measure
    from together import train_together

    names = job.untrained()
    if not names:
        return
    methods = {name: {**METHODS, **VARIANTS}[name] for name in names}
    points, started = points_of(job.pair, job.seed, job.points), time.perf_counter()
    source = None if job.pair.startswith("N-") else points.train[0]
    averaged = [name for name in names if name in AVERAGED]
    nets = train_together(methods, source, points.train[1], job.seed, job.steps, job.batch, averaged, on_step)
    seconds = time.perf_counter() - started
    measured = {name: measure(net, methods[name.removesuffix(" + EMA")], points) for name, net in nets.items()}
    for name, numbers in measured.items():  # written at once: a network and its average belong together
        with atomic_write(job.checkpoint(name)) as path:
            torch.save(nets[name].state_dict(), path)
        job.write(name, numbers | {"trained_together": len(names)}, seconds)


def measure_large(job: Job, names: Sequence[str]) -> None:
    """W2 on the large test set with 20 Euler steps: of real points (the floor), and of the named networks."""
    import torch

    from common.methods import method_of
    from common.metrics import wasserstein2
    from common.networks import MLP
    from protocols import points_of
    from scoring import flow

    missing = job.without_large_test(names)
    if not missing:
        return
    points = points_of(job.pair, job.seed, job.points)
    for name in missing:
        started = time.perf_counter()
        if name == "floor":
            numbers = {"w2_20_large": wasserstein2(points.train[1], points.large_test[1])}
            numbers |= {"w2_20": small_floor(points)}
        elif job.checkpoint(name).exists():
            method = {**METHODS, **VARIANTS}[name.removesuffix(" + EMA")]
            heads = method_of(method.loss).heads
            net = MLP(2 * heads, out_dim=2 * heads).eval()
            net.load_state_dict(torch.load(job.checkpoint(name), weights_only=True))
            x = flow(net, method, points.large_test[0], 20)[0]
            numbers = {"w2_20_large": wasserstein2(x, points.large_test[1])}
        else:
            raise FileNotFoundError(
                f"no weights {job.checkpoint(name)} for the large test: give --no-large, or remove the rows of "
                f"{job.pair}, seed {job.seed} from {job.log.path} to train again"
            )
        job.write(name, numbers, time.perf_counter() - started)


def small_floor(points: Points) -> float:
    """W2 between the test set and as many training points, averaged over all such parts of the training set."""
    from common.metrics import wasserstein2

    real, n = points.train[1], len(points.test[1])
    parts = [part for part in real.split(n) if len(part) == n]
    return sum(wasserstein2(part, points.test[1]) for part in parts) / len(parts)


def provenance() -> dict[str, str]:
    """Command, commit and machine."""
    import platform

    from common.records.cards import commit

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    command = " ".join(["python", f"{HERE.name}/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "commit": commit(), "hardware": f"one core of {model}"}
