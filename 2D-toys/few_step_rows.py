"""few_steps.py: its options, and its rows: students of a rectified flow, measured and never trained twice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from common.cli.configs import among
from common.cli.ranges import Count, Seed
from common.records.rows import JsonLines
from racing import STUDENTS, follow_on, learnt, real_samples, test_points
from racing import Options as Race
from toy_flow import Distribution

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
BUDGETS = (1, 2, 4)
FINE = 100  # midpoint steps of the solution that all are compared with
PAIRS = tuple(f"{a}-{b}" for a in get_args(Distribution) for b in get_args(Distribution) if a != b)


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    pairs: tuple[Annotated[str, among(*PAIRS)], ...] = ("8gaussians-moons",)
    """SOURCE-TARGET"""
    methods: tuple[Annotated[str, among(*STUDENTS)], ...] = STUDENTS
    """Which students"""
    steps: tuple[Count, ...] = (4000,)
    """Training steps of a student"""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of weights, batches and points"""
    teacher_steps: Count = 4000
    """Training steps of the teacher"""
    out: Path = HERE / "tables"
    """Folder of few_steps.jsonl"""
    smoke: bool = False
    """Seconds: tiny networks, few steps and points; rows go to results/smoke-few-steps"""


def run(options: Options) -> None:
    """Measure what is missing, print the table of what was asked for."""
    usual = options.out == HERE / "tables"
    if options.smoke:
        out = HERE / "results" / "smoke-few-steps" if usual else options.out
        options = replace(options, out=out, steps=(10,), teacher_steps=20, seeds=options.seeds[:1])
    log = JsonLines(options.out / "few_steps.jsonl")
    for seed in options.seeds:
        for pair in options.pairs:
            measure(pair, seed, options, log)
    print("\n".join(table(log.read(), options)))
    print(f"rows: {log.path}")


def race_of(pair: str, seed: int, options: Options) -> Race:
    """The race whose teacher, points and settings these are."""
    source, target = next((a, b) for a in get_args(Distribution) for b in get_args(Distribution) if f"{a}-{b}" == pair)
    race = Race(source=source, target=target, steps=options.teacher_steps, seed=seed)
    return replace(race, batch_size=32, width=16, n_samples=100) if options.smoke else race


def measure(pair: str, seed: int, options: Options, log: JsonLines) -> None:
    """Append the missing rows of a pair and a seed: of the teacher and of each student."""
    import torch

    from common.data import toys
    from common.runtime import generator, number_of

    torch.set_num_threads(1)
    wanted = [("rf", options.teacher_steps), *((m, n) for n in options.steps for m in options.methods)]
    there = {(r["method"], r["steps"]) for r in rows_of(log.read(), pair, seed, options.teacher_steps)}
    if not set(wanted) - there:
        return
    race = race_of(pair, seed, options)
    teacher, _ = learnt("rf", race)
    x0 = toys.sample(race.source, race.n_samples, generator(seed, "race", "start"))
    target, fine = test_points(race), fine_ends(teacher, x0)
    place = {"pair": pair, "seed": seed, "teacher_steps": options.teacher_steps}
    for method, steps in wanted:
        if (method, steps) in there:
            continue
        start = time.process_time()
        about = {"method": method, "steps": steps}
        if method == "rf":
            facts = results(teacher, method, x0, target, fine, race, (*BUDGETS, 100))
            facts |= {"floor": real_samples(race)["floor"]}
        else:
            student, seconds = follow_on(teacher, method, replace(race, steps=steps))
            facts = {"seconds": round(seconds, 1)} | results(student, method, x0, target, fine, race, BUDGETS)
        log.append(place | about | facts)
        print(
            f"{pair}, seed {seed}, {method}, {number_of(steps, 'step')}: {time.process_time() - start:.0f} s",
            flush=True,
        )


def fine_ends(teacher: Any, x0: Tensor) -> Tensor:
    """Where the teacher's flow takes x0, (N, 2)."""
    from common.solvers import time_grid
    from plane import sample_paths

    return sample_paths(teacher, "rf", x0, time_grid(FINE), "midpoint")[0][-1]


def results(
    net: Any, method: str, x0: Tensor, target: Tensor, fine: Tensor, race: Race, budgets: Sequence[int]
) -> dict[str, Any]:
    """By number of evaluations: W2 to the target, and the distance to the fine solution.

    Later consistency steps start from new noise, so their samples have other places than the fine solution's.
    """
    from common.metrics import wasserstein2
    from racing import walk

    found: dict[str, Any] = {"w2": {}, "rms": {}}
    for n in budgets:
        states, nfe = walk(net, method, x0, n, ("euler", 0.0, race.seed, race.source))
        found["w2"][str(nfe)] = wasserstein2(states[-1], target)
        if method != "ect" or n == 1:
            found["rms"][str(nfe)] = (states[-1] - fine).square().sum(1).mean().sqrt().item()
    return found


# ---- the table


def rows_of(rows: list[dict[str, Any]], pair: str, seed: int, teacher_steps: int) -> list[dict[str, Any]]:
    """Those of a pair, a seed and a teacher."""
    wanted = (pair, seed, teacher_steps)
    return [row for row in rows if (row["pair"], row["seed"], row["teacher_steps"]) == wanted]


def table(rows: list[dict[str, Any]], options: Options) -> list[str]:
    """Lines of Markdown: mean and standard deviation over the seeds asked for."""
    rows = [r for r in rows if r["seed"] in options.seeds and r["teacher_steps"] == options.teacher_steps]
    w2, rms = ([f"{what}, {n} NFE" for n in BUDGETS] for what in ("W2", "to the ODE's end"))
    lines = [f"| pair | method | steps | {' | '.join([*w2, *rms])} |", f"|{'---|' * 9}"]
    for pair in options.pairs:
        teachers = [r for r in rows if (r["pair"], r["method"]) == (pair, "rf")]
        floor = [sum(r["floor"]) / len(r["floor"]) for r in teachers]
        lines.append(f"| {pair} | real points | | {spread(floor)} | | | | | |")
        lines.append(
            f"| | rf, 100 Euler steps | {options.teacher_steps} | {spread([r['w2']['100'] for r in teachers])} "
            f"| | | {spread([r['rms']['100'] for r in teachers])} | | |"
        )
        wanted = [("rf", options.teacher_steps), *((m, n) for m in options.methods for n in options.steps)]
        for method, steps in wanted:
            found = [r for r in rows if (r["pair"], r["method"], r["steps"]) == (pair, method, steps)]
            cells = [
                spread([r[what][str(n)] for r in found if str(n) in r[what]]) for what in ("w2", "rms") for n in BUDGETS
            ]
            lines.append(f"| | {method} | {steps} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float]) -> str:
    """Mean and standard deviation of several, the value of one, nothing of none."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} +- {statistics.stdev(values):.3f}" if len(values) > 1 else mean
