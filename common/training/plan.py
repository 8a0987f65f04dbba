"""``--plan``: what a run will take on this machine, measured on some of its steps; nothing is written."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.cli import to_yaml
from common.data.loading import free_memory
from common.images import grid, png
from common.runtime import computes
from common.training import snapshots
from common.training.batches import Ahead, part
from common.training.report import Event, Report, due
from common.training.trainer import Trainer

STEPS, WARM_UP = 20, 3
PATIENCE = 180.0  # seconds after which fewer steps have to do
SPARE = 0.9  # share of the memory that a run may take
ROW, OTHERS = 260, 15_000  # bytes of a row of metrics.jsonl; of card and page without pictures
PICTURES = "samples/step_*.png"


class Dry(Report):
    """A report that writes nothing: it does what a run does now and then, and counts the bytes that it would leave."""

    def __init__(self, trainer: Trainer, out: Path, batch: Any):
        self.config, self.out, self.trainer, self.processes = trainer.config, out, trainer, trainer.processes
        self.batch = batch
        self.files: dict[str, tuple[int, int]] = {}  # name -> bytes of one, and how many are kept at most

    def keep(self, name: str, state: dict[str, Any], copies: int = 1) -> None:
        self.files[re.sub(r"\d+", "*", name)] = (bytes_of(state), copies)

    def sample(self) -> None:
        count = len(self.trainer.sample_grid())  # noise does not pack as the images of a trained network will
        self.files[PICTURES] = (len(png(grid(self.batch.x1[:count]))), self.config.total_steps)

    def snapshot(self) -> None:
        if self.config.ema_std:
            every, end = snapshots.spacing(self.config.total_steps), self.config.total_steps
            self.keep("ema/step_*.pt", self.trainer.ema.snapshot(), end // every + (end % every > 0))  # type: ignore[arg-type]

    def ended_epoch(self) -> int:
        return int(self.trainer.epoch_images > 0)

    def epoch_loss(self, number: int) -> float:
        return math.inf

    def say_epoch(self, number: int, figures: str) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def due_in(self, event: Event, steps: int) -> int:
        """How often an event happens in so many steps; one of every step looks whether an epoch has ended."""
        if event.every == 1:
            images = self.trainer.epoch_images  # the last epoch may be shorter than the others
            return self.config.epochs or math.ceil(steps * self.config.batch_size / images) if images else 0
        if event.action == self.snapshot:
            multiples = sum(k % snapshots.spacing(k) == 0 for k in range(event.every, steps + 1, event.every))
            return multiples + (steps % snapshots.spacing(steps) > 0)
        return sum(due(k, event.every, steps, event.early) for k in range(1, steps + 1))


class _Counter(io.RawIOBase):
    """A file that keeps nothing but the number of its bytes."""

    count = 0

    def write(self, data: Any) -> int:
        self.count += (size := memoryview(data).nbytes)
        return size


def bytes_of(state: dict[str, Any]) -> int:
    """Bytes of a checkpoint, as ``torch.save`` writes it."""
    torch.save(state, file := _Counter())  # type: ignore[arg-type]
    return file.count


class Measured(NamedTuple):
    """How many steps, seconds of one and of it at work on a CPU, bytes of memory, the parts of a batch that fit into
    it, the largest batch (a power of two; 0: not known) that would, the last batch."""

    steps: int
    seconds: float
    at_work: float
    memory: int
    grad_accum: int
    room: int
    batch: Any


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of memory that this process has taken, and how many it could have."""
    if device.type == "cuda":
        free, reserved = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
        return torch.cuda.max_memory_reserved(device), free + reserved
    import psutil

    taken = psutil.Process().memory_info().rss
    return taken, taken + free_memory()


def measure(trainer: Trainer, source: Ahead) -> Measured:
    """Warm up and take steps of a run, in as many parts of a batch (``grad_accum``) as the memory needs.

    What the whole batch takes is first foretold from steps of an eighth and a quarter of it, so that a machine whose
    memory is too small does not find out by running out of it.
    """
    c, here = trainer.config, trainer.processes
    accum, own = c.grad_accum, c.batch_size // here.world
    rows, few, taken = own // accum, max(1, own // accum // 8), [0, 0]
    if foretold := not c.compile and rows >= 8:
        trainer.config = replace(c, grad_accum=1)
        for i, size in enumerate((few, few, 2 * few, 2 * few)):
            trainer.update(part(source.at(0), 0, own // size))
            taken[i // 2] = memory(trainer.device)[0]
        growth, limit = max(0, taken[1] - taken[0]) / few, SPARE * memory(trainer.device)[1]
        while here.of_first(taken[0] + growth * (rows - few) > limit) and rows % 2 == 0:
            rows, accum = rows // 2, accum * 2
    while True:
        trainer.config = replace(c, grad_accum=accum)
        try:
            steps, seconds, at_work, batch = _timed(trainer, source, STEPS, WARM_UP)
            break
        except torch.OutOfMemoryError:
            if rows % 2 or here.world > 1:
                raise
            rows, accum = rows // 2, accum * 2
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    used, limit = memory(trainer.device)
    growth = (used - taken[0]) / (rows - few) if foretold and rows > few else 0
    room = (SPARE * limit - used) / growth + rows if growth > 0 else 0
    room = here.world * 2 ** int(math.log2(room)) if room >= 1 else 0
    return Measured(steps, seconds, at_work, used, accum, room, batch)


def _timed(trainer: Trainer, source: Ahead, steps: int, warm_up: int) -> tuple[int, float, float, Any]:
    """Steps after warm-up: how many there was patience for, seconds of one, of the threads at work, the last batch."""
    here, start, first = trainer.processes, time.perf_counter(), 0
    while first < warm_up and here.of_first(time.perf_counter() - start) < PATIENCE / 10:
        trainer.update(source.at(first))[0].item()  # waits for a GPU
        first += 1
    start, work, done = time.perf_counter(), time.process_time(), 0
    while done < steps and (done < 2 or here.of_first(time.perf_counter() - start) < PATIENCE):
        batch = source.at(first + done)
        loss, _ = trainer.update(batch)
        done += 1
    loss.item()
    work = (time.process_time() - work) / torch.get_num_threads()
    return done, (time.perf_counter() - start) / done, work / done, batch


def _other_precision(trainer: Trainer, source: Ahead) -> tuple[str, float] | None:
    """The other precision that this device computes in, and seconds of a step in it."""
    c, name = trainer.config, "bf16" if trainer.config.mixed_precision == "no" else "no"
    if c.compile or c.mixed_precision == "fp16" or (trainer.device.type == "cpu" and not computes("bf16")):
        return None
    trainer.config = replace(c, mixed_precision=name)
    return name, _timed(trainer, source, 4, 1)[1]


class Plan(NamedTuple):
    """What a run will take: steps, seconds, bytes of memory, bytes of each kind of file, and flags that would help."""

    steps: int
    seconds: float
    memory: int
    files: dict[str, int]
    flags: list[str]


def tell(
    trainer: Trainer, source: Ahead, final: Path, options: Any, events: Callable[[Report], Sequence[Event]]
) -> Plan:
    """Measure a run and say what it will take. All processes take part, the first one speaks.

    Args:
        trainer, source, options, events: as in ``common.training.loop.run``.
        final: the file of the final weights that a run would leave.
    """
    c, here = trainer.config, trainer.processes
    if c.init:
        trainer.start_from(c.init)
    here.say(f"plan: up to {STEPS} steps after {WARM_UP} of warm-up, on this data and network; nothing is written")
    try:
        before, kept = source.prepare(None)
        found = measure(trainer, source)
        other = _other_precision(trainer, source)
    finally:
        source.close()
    steps = max(1, round(60 * c.minutes / found.seconds)) if c.minutes else c.total_steps
    trainer.config = replace(c, total_steps=steps, grad_accum=found.grad_accum)
    dry, files, between, picture = Dry(trainer, final.parent, found.batch), {}, 0.0, 0
    for event in events(dry) if here.is_main else ():
        dry.files, start, times = {}, time.perf_counter(), dry.due_in(event, steps)
        if times:
            event.action()
        between += times * (time.perf_counter() - start)
        files |= {name: size * min(copies, times) for name, (size, copies) in dry.files.items()}
        picture = dry.files.get(PICTURES, (picture, 0))[0]
    if c.minutes:  # of which validation and so on take their part
        steps = max(1, round(steps * 60 * c.minutes / (60 * c.minutes + between)))
        between = 60 * c.minutes - steps * found.seconds
    shown = min(6, files.get(PICTURES, 0) // max(1, picture)) * picture * 4 // 3  # base64
    files |= {final.name: bytes_of(trainer.weights(torch.float16)), "metrics.jsonl": ROW * (steps // c.log_step + 1)}
    files |= {"trajectories/": kept} if kept else {}
    files["page, card, options"] = OTHERS + shown + len(to_yaml(options))
    between += before
    plan = Plan(steps, steps * found.seconds + between, found.memory, files, [])
    plan.flags.extend(_flags(trainer, c.grad_accum, found, plan.seconds, other))
    if here.is_main:
        _print(plan, found, trainer, final.parent, between)
    return plan


def _flags(trainer: Trainer, asked: int, found: Measured, seconds: float, other: tuple[str, float] | None) -> list[str]:
    """Flags that would help here, with what they bring; ``asked`` is the --grad_accum that was given."""
    c, here, flags = trainer.config, trainer.processes, []
    if found.grad_accum > asked:
        size = f"{trainer.size} {c.batch_size // found.grad_accum * asked}"
        flag = f"{trainer.parts} {found.grad_accum}" if trainer.parts else size
        same = "; the training is the same" * bool(trainer.parts)
        flags.append(f"{flag}: the batch does not fit into memory{same}")
    elif found.room > c.batch_size:
        flags.append(f"{trainer.size}: the memory has room for {found.room}")
    if other and other[1] < 0.95 * found.seconds:
        flags.append(f"-mp {other[0]}: {found.seconds / other[1]:.2f} times as fast here")
    if not c.minutes and seconds > 3600:
        share = f"about {round(3600 / seconds * c.total_steps)} of the {c.total_steps} steps"
        flags.append(f"{trainer.length} 60: {share}, and the decay of the learning rate to its end")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = max(n for n in range(1, cores + 1) if c.batch_size % (n * found.grad_accum) == 0)
    if trainer.device.type == "cpu" and here.world == 1 and at_once > 1:
        words = f"OMP_NUM_THREADS=1 torchrun --nproc_per_node {at_once} SCRIPT ..."
        flags.append(f"{words}: a process a core was a third faster than threads, on two cores")
    if trainer.device.type == "cuda":
        flags += [] if c.compile else ["--compile: faster steps for a minute or two at the start"]
        gpus = torch.cuda.device_count()
        flags += [f"--parallel: {gpus} GPUs are here"] if gpus > here.world else []
    return flags


def _print(plan: Plan, found: Measured, trainer: Trainer, out: Path, between: float) -> None:
    c, mb, limit = trainer.config, 1e6, memory(trainer.device)[1]
    total, where = sum(plan.files.values()), next(f for f in (out, *out.absolute().parents) if f.exists())
    free, largest = shutil.disk_usage(where).free, sorted(plan.files.items(), key=lambda item: -item[1])[:4]
    print(f"steps    {found.steps} measured, {found.seconds:.3g} s each, {c.batch_size / found.seconds:.3g} images/s")
    length = f"{plan.steps} steps, {100 * between / plan.seconds:.2g}% of it for validation, pictures, files"
    print(f"time     {timedelta(seconds=round(plan.seconds))}: {length}")
    if trainer.device.type == "cpu" and found.at_work < 0.7 * found.seconds:
        idle = timedelta(seconds=round(plan.seconds * found.at_work / found.seconds))
        print(f"note: other work takes {1 - found.at_work / found.seconds:.0%} of the processor: {idle} without it")
    whose = " of each process" if trainer.processes.world > 1 else ""
    print(f"memory   {plan.memory / mb:,.0f} MB{whose}, of {limit / mb:,.0f}, at batch {c.batch_size}")
    print(f"disk     {total / mb:,.3g} MB in {out}: {', '.join(f'{name} {size / mb:.3g}' for name, size in largest)}")
    if total > free:
        print(f"note: only {free / mb:,.0f} MB are free there: give --out on another disk")
    for flag in plan.flags:
        print(f"flag     {flag}")
