"""race.py: its options, the processes that train and measure the methods, and the numbers of its page and table."""

from __future__ import annotations

import atexit
import csv
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from common.cli.ranges import AtLeast, Count, Positive, Seed
from common.runtime import atomic_write, generator
from race_gif import write_gif
from race_page import FRAMES, page, shown
from toy_flow import Distribution

if TYPE_CHECKING:
    from torch import Tensor

    from common.networks import MLP

HERE = Path(__file__).resolve().parent
NFE = (1, 2, 3, 4, 5, 8, 10, 20, 50, 100)
FINE = 100  # steps of the trajectories
REAL = 3  # fresh samples of the target whose W2 is the floor
PARTICLES = 300  # drawn on the page

# 0.1 is Tong et al.'s for points (2302.00482), 0.2 IDFF's; the bridge of sbcfm is as wide as a mode of the 8 Gaussians.
SIGMA = {"cfm": 0.1, "otcfm": 0.1, "fm": 0.1, "sbcfm": 0.5, "rf": 0.0, "idff": 0.2}
STUDENTS = ("reflow", "seqrf", "ect", "flowmap", "meanflow")  # they follow on rf, see students.py

# In the order of the page: name -> trained method, solver, what it is.
ENTRIES = {
    "cfm": ("cfm", "euler", f"independent pairs, spread {SIGMA['cfm']}"),
    "fm": ("fm", "euler", "Lipman's path: the source is its noise"),
    "rf": ("rf", "euler", "independent pairs, no spread"),
    "reflow": ("reflow", "euler", "rf, trained on with the pairs it makes"),
    "otcfm": ("otcfm", "euler", f"optimal-transport pairs, spread {SIGMA['otcfm']}"),
    "sbcfm": ("sbcfm", "euler", f"Brownian bridges ({SIGMA['sbcfm']}) on entropic pairs"),
    "idff": ("idff", "euler", f"data and score heads ({SIGMA['idff']}): their ODE"),
    "idff (its sampler)": ("idff", "idff", "the same network, its authors' sampler"),
    "cfm (AB2)": ("cfm", "ab2", "the cfm network, second-order steps"),
    "seqrf": ("seqrf", "euler", "rf, trained on with chords of a quarter of its paths"),
    "ect": ("ect", "consistency", "rf, tuned to know where its paths end"),
    "flowmap": ("flowmap", "flowmap", "rf, trained on to know where its paths are at any later time"),
    "meanflow": ("meanflow", "flowmap", "the same, by a derivative of the network in place of small steps"),
}
UNDRAWN = ("cfm (AB2)", "ect")  # with fine steps the one's paths are those of cfm; the other knows ends alone
JOBS = ("rf", "idff", "sbcfm", "cfm", "otcfm", "fm", "real")  # the longest first, so that two workers end together

How = tuple[str, float, int, str]  # solver, sigma, seed, source


@dataclass(frozen=True)
class Options:
    """Options of a race."""

    # ---- what is learnt
    source: Distribution = "gaussian"
    """Distribution at t = 0"""
    target: Distribution = "8gaussians"
    """Distribution at t = 1"""

    # ---- training
    steps: Count = 4000
    """Training steps of each method; reflow, seqrf, ect, flowmap, meanflow: as many again after rf's"""
    batch_size: Count = 128
    """Pairs of a step; the exact coupling's time grows with the square and more"""
    lr: Positive = 5e-3
    """Learning rate at the start; it falls to 0 as a cosine"""
    width: Count = 64
    """Units of each of the three hidden layers"""

    # ---- running
    n_samples: Annotated[int, AtLeast(2)] = 2000
    """Points of each W2"""
    workers: Count = 2
    """Processes, of one thread each"""
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Folder of the results; empty: results/race-SOURCE-TARGET beside the script"""
    smoke: bool = False
    """Seconds: a tiny race; writes to results/smoke-race"""


def run(options: Options) -> None:
    """Train, measure, write the page, the moving picture and the table."""
    name, command = f"race-{options.source}-{options.target}", typed(options)
    if options.smoke:
        options, name = replace(options, steps=20, batch_size=32, width=16, n_samples=100), "smoke-race"
    out = Path(options.out) if options.out else HERE / "results" / name
    start = time.perf_counter()
    results, real = race(options)
    data = {"command": command, "seconds": round(time.perf_counter() - start, 1), **summary(options, results, real)}
    with atomic_write(out / "race.csv") as path:
        write_csv(data, path)
    with atomic_write(out / "race.html") as path:
        path.write_text(page(data, results, real["target"]), encoding="utf-8")
    with atomic_write(out / "race.gif") as path:
        write_gif(data, results, real["target"], path)
    print(f"{len(data['methods'])} methods in {data['seconds']:.0f} s")
    print(f"results: {out}")


def typed(options: Options) -> str:
    """The command line of a race, without the folder of its results."""
    names = [f.name for f in fields(options) if f.name not in ("out", "smoke")]
    always = ("source", "target", "seed")
    flags = [f"--{k} {getattr(options, k)}" for k in names if k in always or getattr(options, k) != getattr(Options, k)]
    return " ".join(["python 2D-toys/race.py", *flags, *(["--smoke"] if options.smoke else [])])


# ---- the processes


def race(options: Options) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The measurements by entry, in the order of the page, and those of real samples."""
    from tqdm import tqdm

    jobs = [job for job in JOBS if job != "fm" or options.source == "gaussian"]
    results: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(jobs), unit="job", dynamic_ncols=True, postfix="starting") as bar:
        for rows in finished(jobs, options):
            results.update(rows)
            bar.set_postfix_str(", ".join(rows))
            bar.update()
    real = results.pop("real")
    return {name: results[name] for name in ENTRIES if name in results}, real


def finished(jobs: list[str], options: Options) -> Iterator[dict[str, dict[str, Any]]]:
    """The jobs' results as they come, from processes that end with the last of them or with this one."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which read it when they start
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context, initializer=prepare) as pool:
        try:
            for future in as_completed([pool.submit(compete, job, options) for job in jobs]):
                yield future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def prepare() -> None:
    """Start a worker: one thread, Ctrl-C left to its parent, and everything imported before a clock runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import ot  # noqa: F401
    import torch

    from common.training import small

    atexit.register(os._exit, 0)  # to take torch down in order costs each worker more than a second
    torch.set_num_threads(1)
    small.train_mlp("gaussian", "moons", "otcfm", n_steps=2, batch_size=8)


def compete(job: str, options: Options) -> dict[str, dict[str, Any]]:
    """Train one method and measure each entry that samples from its network (and rf's students, which follow on it)."""
    if job == "real":
        return {"real": real_samples(options)}
    net, seconds = learnt(job, options)
    results = measured(net, job, seconds, options)
    for method in STUDENTS if job == "rf" else ():
        student, more = follow_on(net, method, options)
        results |= measured(student, method, seconds + more, options)
    return results


# ---- training


def learnt(method: str, options: Options) -> tuple[MLP, float]:
    """A trained network and the CPU seconds that it took."""
    from common.training import small

    start = time.process_time()
    how = {"n_steps": options.steps, "lr": options.lr, "batch_size": options.batch_size, "width": options.width}
    if method == "sbcfm":
        how["reg"] = 2 * SIGMA[method] ** 2  # as its sigma asks (Tong et al. 2302.00482, section 3.2.5)
    net = small.train_mlp(options.source, options.target, method, SIGMA[method], seed=options.seed, **how)
    return net, time.process_time() - start


def follow_on(teacher: MLP, method: str, options: Options) -> tuple[MLP, float]:
    """A student of rf's network, and the CPU seconds of its pairs and of its training."""
    from students import student_of

    start = time.process_time()
    how = {"batch_size": options.batch_size, "seed": options.seed, "n_pairs": 10 * options.n_samples, "lr": options.lr}
    student = student_of(teacher, method, options.source, options.target, options.steps, **how)
    return student, time.process_time() - start


# ---- measuring


def measured(net: MLP, method: str, seconds: float, options: Options) -> dict[str, dict[str, Any]]:
    """W2 at every NFE, straightness, energy and trajectories of the entries of one network."""
    from common.data import toys

    x0 = toys.sample(options.source, options.n_samples, generator(options.seed, "race", "start"))
    target = test_points(options)
    about = {"seconds": seconds, "parameters": sum(p.numel() for p in net.parameters())}
    results = {}
    for name, (trained, solver, _) in ENTRIES.items():
        if trained == method:
            how = (solver, SIGMA.get(method, 0.0), options.seed, options.source)
            results[name] = about | transport(net, trained, x0, target, how, NFE[:3] if options.smoke else NFE)
    return results


def test_points(options: Options, k: int = 0) -> Tensor:
    """Fresh points of the target: k = 0 those that everything is compared with, others to compare with them."""
    from common.data import toys

    return toys.sample(options.target, options.n_samples, generator(options.seed, "race", "test", k))


def transport(net: MLP, method: str, x0: Tensor, target: Tensor, how: How, budgets: tuple[int, ...]) -> dict[str, Any]:
    """What happens to x0, (N, 2): W2 to the target after each number of evaluations, and the paths with fine steps.

    Straightness and energy are those of an ODE's paths: None for samplers that draw noise, ``idff`` and
    ``consistency``; the latter has no paths.

    Args:
        how: see ``How``.
    """
    from common.metrics import straightness, wasserstein2
    from common.solvers import time_grid

    w2 = {}
    for n in budgets:
        states, nfe = walk(net, method, x0, n, how)
        w2[nfe] = wasserstein2(states[-1], target)
    times, (states, _) = time_grid(FINE), walk(net, method, x0, FINE, how)
    smooth = how[0] not in ("idff", "consistency")
    return {
        "w2": w2,
        "straightness": straightness(states, times) if smooth else None,
        "energy": states.diff(dim=0).square().sum(2).mean(1).sum().item() * FINE if smooth else None,
        "paths": states[:: FINE // (FRAMES - 1), :PARTICLES] if len(states) > FINE else None,
    }


def walk(net: MLP, method: str, x0: Tensor, n: int, how: How) -> tuple[Tensor, int]:
    """States of x0 at the ends of n steps, and the evaluations that they took."""
    from common.solvers import time_grid
    from plane import sample_paths
    from students import sample_steps

    solver, sigma, seed, source = how
    if method in STUDENTS and method != "reflow":
        return sample_steps(net, method, x0, time_grid(n), source, seed)
    return sample_paths(net, method, x0, time_grid(n), solver, sigma, seed)


def real_samples(options: Options) -> dict[str, Any]:
    """The floor of every W2, the squared W2 of source and target (the least energy of any flow), points to draw."""
    from common.data import toys
    from common.metrics import wasserstein2

    target = test_points(options)
    source = toys.sample(options.source, options.n_samples, generator(options.seed, "race", "start"))
    floor = [wasserstein2(test_points(options, k), target) for k in range(1, REAL + 1)]
    return {"floor": floor, "energy": wasserstein2(source, target) ** 2, "target": target}


# ---- the numbers


def summary(options: Options, results: dict[str, dict[str, Any]], real: dict[str, Any]) -> dict[str, Any]:
    """The page's and the table's numbers, rounded once for both."""
    return {
        **{f.name: getattr(options, f.name) for f in fields(options) if f.name != "out"},
        "fine": FINE,
        "nfe": list(next(iter(results.values()))["w2"]),
        "floor": [shown(v) for v in (sum(real["floor"]) / REAL, min(real["floor"]), max(real["floor"]))],
        "energy": shown(real["energy"]),
        "left_out": [] if "fm" in results else [f"fm: its path needs a Gaussian source, not {options.source}"],
        "methods": [
            {
                "name": name,
                "look": list(ENTRIES).index(name),  # a method keeps its colour and mark on every page
                "about": ENTRIES[name][2],
                "solver": ENTRIES[name][1],
                **{key: shown(row[key]) for key in ("seconds", "parameters", "straightness", "energy")},
                "w2": [shown(v) for v in row["w2"].values()],
                "drawn": name not in UNDRAWN,
            }
            for name, row in results.items()
        ],
    }


def write_csv(data: dict[str, Any], path: Path) -> None:
    """One row for each method; empty where there is no number."""
    columns = ("name", "solver", "seconds", "parameters", "straightness", "energy")
    w2 = [f"w2_nfe_{n}" for n in data["nfe"]]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["source", "target", "seed", *columns, "floor", "floor_low", "floor_high", *w2])
        for row in data["methods"]:
            pair = [data[key] for key in ("source", "target", "seed")]
            table.writerow([*pair, *(row[key] for key in columns), *data["floor"], *row["w2"]])
