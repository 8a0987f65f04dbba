"""What a run shows and writes beside its weights: progress bar, metrics, sample grids, checkpoints, loggers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common import checkpoint
from common.cli.configs import TrainConfig
from common.images import grid, save_png
from common.records.rows import JsonLines
from common.training import snapshots
from common.training.batches import Ahead

if TYPE_CHECKING:
    from common.training.trainer import Trainer


EARLY = 50  # steps after which a run first shows what it does
BAR_OF_MINUTES = "{percentage:3.0f}%|{bar}| {desc}{postfix}"


class Event(NamedTuple):
    """What is done every n steps and at the end (n = 0: never); early: also after 50, 100, 200, ... steps, up to n."""

    every: int
    action: Callable[[], object]
    early: bool = False


class HeldOut(NamedTuple):
    """Batches for the validation loss, and how many of them."""

    batches: Ahead
    count: int


def due(step: int, every: int, end: float, early: bool = False) -> bool:
    """Whether an :class:`Event` happens after a step."""
    doublings = step // EARLY if early and step < every and step % EARLY == 0 else 0
    return every > 0 and (step % every == 0 or step == end or doublings.bit_count() == 1)


def epochs_done(step: int, batch_size: int, images: int) -> int:
    """Whole passes over ``images`` after so many steps; a batch may reach into the next pass."""
    return step * batch_size // images


class Report:
    """The bar, log, grids and checkpoints of a run folder, from the step on at which the trainer is."""

    def __init__(self, trainer: Trainer, out: Path):
        config, processes = trainer.config, trainer.processes
        self.config, self.out, self.trainer, self.processes = config, out, trainer, processes
        self.log = JsonLines(out / "metrics.jsonl")
        shown = {"disable": not processes.is_main, "dynamic_ncols": True, "mininterval": 1.0, "smoothing": 0.05}
        if config.minutes is None:
            shown |= {"total": config.total_steps, "initial": trainer.step, "unit": "step"}
        else:  # seconds
            whole = 60 * config.minutes
            shown |= {"total": whole, "initial": min(trainer.seconds, whole), "bar_format": BAR_OF_MINUTES}
        self.bar = tqdm(**shown)
        self.logger = _logger(config, out, trainer.log_name) if processes.is_main else None
        self.figures: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of the steps since the last row
        self.coupling_seconds = 0.0
        self.window_start, self.window_wait = time.perf_counter(), 0.0

    def after_step(self, loss: Tensor, norm: Tensor, batch: Any, source: Ahead) -> None:
        """Collect a step's figures; write a row every ``log_step`` steps and where an epoch ends."""
        self.advance()
        self.figures.append((loss, norm))  # not read here: that would wait for a GPU at every step
        self.coupling_seconds += batch.seconds
        step = self.trainer.step
        if not due(step, self.config.log_step, self.trainer.end) and not self.ended_epoch():
            return
        bad_steps = self.trainer.bad_steps()
        mean = torch.stack([loss for loss, _ in self.figures]).mean()
        if self.processes.world > 1:  # the norm needs none: it is that of the gradient that all have averaged
            torch.distributed.all_reduce(mean)
            mean /= self.processes.world
        now = time.perf_counter()
        elapsed = max(now - self.window_start, 1e-9)
        row = {
            "step": step,
            "images_seen": self.trainer.images_seen,
            "loss": mean.item(),
            "grad_norm": torch.stack([norm for _, norm in self.figures]).mean().item(),
            "lr": self.trainer.optimizer.param_groups[0]["lr"],
            "images_per_s": len(self.figures) * self.config.batch_size / elapsed,
            "coupling_share": self.coupling_seconds / elapsed,
            "waited_share": (source.wait_seconds - self.window_wait) / elapsed,
            "skipped": bad_steps,
            "seconds": self.trainer.seconds,
        }
        self.figures, self.coupling_seconds = [], 0.0
        self.window_start, self.window_wait = now, source.wait_seconds
        if self.processes.is_main:
            text = {"loss": f"{row['loss']:.4f}", "img/s": f"{row['images_per_s']:.0f}"}
            if share := row["coupling_share"]:
                text["coupling"] = f"{100 * share:.1f}%" + ", hidden" * self.config.coupling_ahead
            if row["skipped"]:
                text["skipped"] = str(row["skipped"])
            self.bar.set_postfix(text)
            self.write(row)

    def advance(self) -> None:
        """Move the bar on: a step, or to the seconds that have passed, with the time that is left."""
        if self.config.minutes is None:
            self.bar.update(1)
            return
        left = max(0.0, 60 * self.config.minutes - self.trainer.seconds)
        self.bar.set_description_str(f"{self.bar.format_interval(left)} left, step {self.trainer.step}", refresh=False)
        self.bar.update(60 * self.config.minutes - left - self.bar.n)

    def ended_epoch(self) -> int:
        """The number of the epoch that ended with the last step, or with the run; 0: none, or they are not counted."""
        step, size, images = self.trainer.step, self.config.batch_size, self.trainer.epoch_images
        if not images:
            return 0
        before, now = (epochs_done(steps, size, images) for steps in (step - 1, step))
        if step == self.trainer.end:  # the last one of a run in steps or minutes may be shorter than the others
            now = self.config.epochs or max(now, before + 1)
        return now if now > before else 0

    def epoch_loss(self, number: int) -> float:
        """Mean training loss of an epoch that has just ended, by the rows of the log; inf: no loss was finite."""
        start = math.ceil((number - 1) * self.trainer.epoch_images / self.config.batch_size)
        start = min(start, self.trainer.step - 1)  # of few images a step takes several epochs
        rows = [row for row in self.log.read() if row.get("loss") is not None and row["step"] > start]
        steps = [start, *(row["step"] for row in rows)]  # a row ends each epoch
        total = sum((end - begin) * row["loss"] for begin, end, row in zip(steps, steps[1:], rows, strict=False))
        return total / (steps[-1] - start) if rows else math.inf

    def end_epoch(self) -> None:
        """Print an epoch's mean loss, if one has just ended."""
        if number := self.ended_epoch():
            self.say_epoch(number, f"loss {self.epoch_loss(number):.4f}")

    def say_epoch(self, number: int, figures: str) -> None:
        """Print an epoch's line, above the bar."""
        self.bar.write(f"epoch {number}" + (f" of {self.config.epochs}" if self.config.epochs else "") + f": {figures}")

    def validate(self, held_out: HeldOut) -> None:
        """Validation loss of the averaged weights; a new best is saved."""
        value = self.trainer.validation_loss(*held_out)
        self.write({"step": self.trainer.step, "val_loss": value})
        if value < self.trainer.best:
            self.trainer.best = value
            self.keep("checkpoint_best.pt", self.trainer.weights())

    def keep(self, name: str, state: dict[str, Any], copies: int = 1) -> None:
        """Write a checkpoint of the run folder; ``copies`` of the kind are kept, which the caller sees to."""
        checkpoint.save(self.out / name, state)

    def sample(self) -> None:
        """A grid of images from fixed noise."""
        path = self.out / "samples" / f"step_{self.trainer.step:07d}.png"
        save_png(path, grid(self.trainer.sample_grid()))

    def save(self) -> None:
        """The whole state, replacing the last one only when it is written."""
        self.keep("checkpoint_last.pt", self.trainer.state())

    def snapshot(self) -> None:
        """The power-function averages, where there are any and it is time."""
        snapshots.take(self.out, self.trainer)

    def close(self) -> None:
        self.bar.close()
        if self.logger is not None:
            self.logger(None)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl, and to the logger."""
        self.log.append(row)
        if self.logger is not None:
            self.logger(row)


def usual_events(report: Report, held_out: HeldOut | None, images: int) -> list[Event]:
    """What a run on images does now and then, in order: ends of epochs, validation, where something is held out, grids
    and its state.
    """
    validation = [] if held_out is None else [Event(report.config.val_step, lambda: report.validate(held_out), True)]
    return [Event(1, report.end_epoch), *validation, *grids_and_state(report)]


def grids_and_state(report: Report) -> list[Event]:
    """Sample grids, snapshots of averages, and the run's state, which is saved after all else."""
    config = report.config
    grids = Event(config.sample_step, report.sample, early=True)
    return [grids, Event(snapshots.FIRST, report.snapshot), Event(config.save_step, report.save)]


def _logger(config: TrainConfig, out: Path, name: str) -> Callable[[dict[str, Any] | None], None] | None:
    """A function that sends rows to TensorBoard or wandb (None ends it), or None."""
    if config.logger == "none":
        return None
    if config.logger == "wandb":
        import wandb

        run = wandb.init(project=out.parent.parent.name, name=name or out.name, dir=str(out), config=asdict(config))
        return lambda row: run.finish() if row is None else run.log(row, step=row["step"])
    # tensorboard's switch for its own file writer: it would import tensorflow, which can end the interpreter
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard" / name))

    def send(row: dict[str, Any] | None) -> None:
        if row is None:
            return writer.close()
        for key in row.keys() - {"step"}:
            writer.add_scalar(key, row[key], row["step"])

    return send
