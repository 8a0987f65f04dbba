"""The one training loop: any method, data set and network; one process or many; stop it and go on where it was.

Everything random about step k (images, flips, noise, times, coupling, dropout) is drawn from generators seeded with
(seed, k). A resumed run therefore needs only the step number, and on a CPU it equals the run that was never stopped
bit for bit; several processes draw the same global batch and take their own rows of it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import checkpoint
from common.cli import to_yaml
from common.cli.configs import TrainConfig
from common.data.loading import Batches, ImageData, StreamingImages, check_labels, split_train_val
from common.losses import usual_coupling
from common.records.cards import commit, without_folders, write_card
from common.records.page import write_page
from common.runtime import JsonLines, Processes, atomic_write, hardware, run_lock
from common.training.batches import Ahead, CoupledBatches
from common.training.report import Event, Report, due
from common.training.trainer import Trainer

STOP_CHECK = 10  # steps between agreements of several processes on whether to stop
SAME_SIGNAL = (
    2.0  # seconds within which two signals are one Ctrl-C: a launcher passes on what the terminal sent already
)


class StopFlag:
    """Remembers Ctrl-C and SIGTERM, so that the loop can finish its step, save, and leave. A second one interrupts."""

    def __init__(self) -> None:
        self.on, self.asked = False, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Handle the two signals inside the block."""
        old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.on:
            if time.monotonic() - self.asked < SAME_SIGNAL:
                return
            raise KeyboardInterrupt
        self.on, self.asked = True, time.monotonic()
        print("\nstopping after this step (once more: at once) ...", file=sys.stderr)

    def agreed(self, processes: Processes, step: int) -> bool:
        """Whether to stop: with several processes all of them decide together, every few steps."""
        if processes.world == 1:
            return self.on
        if step % STOP_CHECK:
            return False
        flag = torch.tensor(float(self.on), device=processes.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def card_facts(trainer: Trainer, source: str, train_rows: Tensor) -> dict[str, Any]:
    """What a card says of a run: method, data, recipe, length, hardware, command."""
    c = trainer.config
    steps = trainer.step
    return {
        "method": trainer.weights_method(),
        "data": Path(source).name,
        "training_images": len(train_rows),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "steps": steps,
        "batch_size": c.batch_size,
        "images_seen": steps * c.batch_size,
        "processes": trainer.processes.world,
        "hours": round(trainer.seconds / 3600, 3),
        "hardware": hardware(trainer.device),
        "precision": c.mixed_precision,
        "seed": c.seed,
        "skipped_steps": trainer.skipped,
        "best_validation_loss": trainer.best if math.isfinite(trainer.best) else None,
        "torch": torch.__version__,
        "commit": commit(),
        "command": without_folders(["python", *sys.argv]),
        "recipe": "config.yaml beside the weights; train again with -c config.yaml",
    }


def train(
    config: TrainConfig,
    data: ImageData | StreamingImages,
    out: Path,
    weights_name: str,
    processes: Processes,
    report_type: type[Report] = Report,
) -> Path:
    """Train a network and leave in ``out`` its weights, checkpoints, metrics, sample grids and options.

    Args:
        config: options of the run.
        data: images and labels (uint8).
        out: the run folder; see the README for what it holds.
        weights_name: name of the final weights, for example ``IDFF_weights_step_final.pt``.
        processes: from ``common.runtime.processes``.
        report_type: what the run writes and when, see ``Report.events``.

    Returns:
        The file of the final weights (averaged, float16, with the description of the network).

    Raises:
        ValueError: options that do not fit the data, a folder that holds another run, or a loss that was not finite
            20 steps in a row.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    world = processes.world
    if config.batch_size % (world * config.grad_accum):
        raise ValueError(
            f"--batch_size {config.batch_size} cannot be split over {world} processes with --grad_accum "
            f"{config.grad_accum}: make it a multiple of {world * config.grad_accum}"
        )
    check_labels(data.labels if config.num_classes else None, config.num_classes)
    with run_lock(out) if processes.is_main else contextlib.nullcontext():
        trainer = Trainer(config, processes)
        log = begin(trainer, out, to_yaml(config))

        # Data: a training and a held-out part of the same pixels.
        train_rows, val_rows = split_train_val(len(data), config.val_fraction, config.seed)
        drop = (config.label_dropout, config.num_classes) if config.num_classes and config.label_dropout else None
        labelled = data if config.num_classes else _without_labels(data)
        batches = Batches(
            labelled, config.batch_size, config.seed, config.flip, processes.device, drop=drop, subset=train_rows
        )
        coupling = usual_coupling(config.method) if config.coupling == "auto" else config.coupling
        # The entropic plan of a Schrodinger bridge with spread sigma (Tong et al. 2024, proposition 3.5).
        reg = 2 * config.sigma**2 if config.method == "sbcfm" and coupling == "sinkhorn" else None
        source = CoupledBatches(batches, coupling, config.seed, processes, config.coupling_ahead, reg)

        if processes.is_main:
            print(f"{config.method} with {coupling} coupling, {len(train_rows)} images, {in_words(trainer)}")
            print(f"run folder: {out}" + (f", continuing at step {trainer.step}" if trainer.step else ""))
        report = report_type(config, out, log, trainer, processes)
        fixed, count = None, 0
        if len(val_rows):
            size = min(config.batch_size, len(val_rows))
            held_out = Batches(labelled, size, 0, False, processes.device, subset=val_rows)
            alone = Processes(0, 1, processes.device)
            fixed = CoupledBatches(held_out, "independent", config.seed + 1, alone, ahead=False)
            count = max(1, min(held_out.n, 1024) // size)
        events = report.events(fixed, count, len(train_rows))
        loop(trainer, source, report, events, "the same command with --resume auto")
        final = out / weights_name
        if processes.is_main:
            write_final(final, trainer.weights(torch.float16))
            write_card(final, card_facts(trainer, data.source, train_rows))
            write_page(out)
        processes.wait()
        return final


def in_words(trainer: Trainer) -> str:
    """Size, batch and hardware of a run, for the line that it begins with."""
    count = sum(p.numel() for p in trainer.net.parameters())
    size, world = trainer.config.batch_size, trainer.processes.world
    return f"{count / 1e6:.1f}M parameters, batch {size} over {world} process(es), {hardware(trainer.device)}"


def begin(trainer: Trainer, out: Path, options: str) -> JsonLines:
    """Take up the run in a folder, or begin one there; returns its log.

    Args:
        trainer: fresh; ``trainer.config.resume`` says whether a run that is there may go on.
        out: the run folder.
        options: the run's options as text, for config.yaml.

    Raises:
        ValueError: the folder holds another run, or one that must not be resumed.
    """
    last = out / "checkpoint_last.pt"
    if last.exists() and trainer.config.resume == "no":
        raise ValueError(
            f"{out} holds a run: continue it with {trainer.again}, or choose another folder with {trainer.elsewhere}"
        )
    if last.exists():
        trainer.restore(checkpoint.load(last, map_location=trainer.device), last)
    log = JsonLines(out / "metrics.jsonl")
    if trainer.processes.is_main:
        log.truncate_after(trainer.step)
        if trainer.step == 0 or not (out / "config.yaml").exists():
            with atomic_write(out / "config.yaml") as path:
                path.write_text(options)
    return log


def loop(trainer: Trainer, source: Ahead, report: Report, events: Sequence[Event], again: str) -> None:
    """Train to the end, or until Ctrl-C or SIGTERM, which saves the state and raises KeyboardInterrupt.

    Args:
        trainer: where the run is; its network is left in training mode.
        source: its batches; closed in the end.
        report: its bar and log; closed in the end.
        events: (n, what is done on the first process every n steps and at the end), in order; n = 0: never.
        again: what to type to go on, for the line after an interruption.
    """
    processes, total = trainer.processes, trainer.config.total_steps
    trainer.net.train()
    try:
        with StopFlag().listening() as stop:
            while trainer.step < total:
                batch = source.at(trainer.step)
                loss, norm = trainer.update(batch)
                report.after_step(loss, norm, batch, source)
                step = trainer.step
                if processes.is_main:
                    for every, event in events:
                        if due(step, every, total):
                            event()
                if stop.agreed(processes, step) and step < total:
                    if processes.is_main:
                        report.save()
                        print(f"saved at step {step}; {again} goes on from here")
                    raise KeyboardInterrupt
    finally:
        source.close()
        report.close()


def _without_labels(data: Any) -> Any:
    """The same images for an unconditional run."""
    if isinstance(data, ImageData):
        return replace(data, labels=None)
    plain = copy.copy(data)
    plain.labels = None
    return plain


def write_final(final: Path, weights: dict[str, Any]) -> None:
    """Write the final weights; other ones that have the name, for example the shipped ones, are kept under another."""
    if final.exists() and not _holds(final, weights):
        number, previous = 1, final.with_suffix(f".previous{final.suffix}")
        while previous.exists():
            number += 1
            previous = final.with_suffix(f".previous{number}{final.suffix}")
        os.replace(final, previous)
        print(f"the weights that were there are kept as {previous.name}")
    checkpoint.save(final, weights)
    print(f"weights: {final}")


def _holds(path: Path, weights: dict[str, Any]) -> bool:
    """Whether a file holds these very weights: the run that is resumed had ended already."""
    try:
        there = checkpoint.load(path).get("ema_model", {})
    except ValueError:
        return False
    mine = weights["ema_model"]
    return there.keys() == mine.keys() and all(torch.equal(there[key], mine[key].cpu()) for key in mine)
