"""A run of training, whatever the network, data and method: begin or go on, step by step to the end, weights and card.

Everything random about step k (images, flips, noise, times, coupling, dropout) is drawn from generators seeded with
(seed, k). A resumed run therefore needs only the step number, and on a CPU it equals the run that was never stopped
bit for bit; several processes draw the same global batch and take their own rows of it.

:func:`train` is the run of an image folder. Other runs call :func:`run` with a trainer and batches of their own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.cli import to_yaml
from common.cli.configs import TrainConfig
from common.data.loading import Batches, ImageData, StreamingImages, check_labels, mark_of, split_train_val
from common.methods import TIMES, method_of
from common.records.cards import commit, without_folders, write_card
from common.records.page import write_page
from common.records.rows import JsonLines
from common.runtime import Processes, atomic_write, computed_in, hardware, run_lock
from common.runtime.ending import end_lone_launcher, ending_with_others
from common.training import snapshots
from common.training.batches import Ahead, CoupledBatches
from common.training.plan import tell
from common.training.report import Event, HeldOut, Report, due, usual_events
from common.training.trainer import Trainer, in_words
from common.training.trajectories import TrajectoryBatches

STOP_CHECK = 10  # steps between agreements of several processes on whether to stop
SAME_SIGNAL = 2.0  # seconds: two signals that close are one Ctrl-C, a launcher passes on what the terminal sent already


def train(
    config: TrainConfig,
    data: ImageData | StreamingImages,
    out: Path,
    weights_name: str,
    processes: Processes,
    events: Callable[[Report, HeldOut | None, int], Sequence[Event]] = usual_events,
    by_epochs: bool = False,
) -> Path:
    """Train a network on images and leave in ``out`` its weights, checkpoints, metrics, sample grids and options.

    Args:
        out: the run folder.
        weights_name: name of the final weights in it, for example ``IDFF_weights_step_final.pt``.
        events: events(report, held-out batches, training images) -> what happens now and then, see :func:`loop`.
        by_epochs: count epochs, and say each one's loss, also where the run's length is given in steps.

    Returns:
        The file of the final weights (averaged, float16, with the description of the network).

    Raises:
        ValueError: options that do not fit the data, and what :func:`run` raises.
    """
    check_labels(data.labels if config.num_classes else None, config.num_classes)
    trainer = Trainer(config, processes)
    trainer.data, trainer.classes = mark_of(data), data.class_names if config.num_classes else ()
    trainer.read_from = {"data": _absolute(data.source), "data_root": _absolute(data.root)}

    # Data: a training and a held-out part of the same pixels.
    train_rows, val_rows = split_train_val(len(data), config.val_fraction, config.seed)
    trainer.epoch_images = len(train_rows) if config.epochs or by_epochs else 0
    # A dropped label becomes the class after the last one: the same network then also knows all classes together,
    # which classifier-free guidance needs (Ho & Salimans 2022).
    drop = (config.label_dropout, config.num_classes) if config.num_classes and config.label_dropout else None
    images = data if config.num_classes else _without_labels(data)
    batches = Batches(
        images, config.batch_size, config.seed, config.flip, processes.device, drop=drop, subset=train_rows
    )
    method = method_of(config.method)
    coupling = method.joint(config.coupling)
    reg = method.regularisation(coupling, config.sigma)
    given = {name: getattr(config, f"times_{name}") for name in ("mean", "std", "share", "rate")}
    quantile = (method.own_times or TIMES[config.times]).of(**given)
    source = CoupledBatches(
        batches, coupling, config.seed, processes, config.coupling_ahead, reg, method.times, quantile
    )

    if config.teacher_steps:
        source = TrajectoryBatches(trainer, source)

    held_out = held_out_part(config, data, val_rows, processes.device) if len(val_rows) else None
    facts = {"data": Path(data.source).name, "training_images": len(train_rows)}
    return run(
        trainer,
        source,
        out,
        weights_name,
        title=f"{config.method} with {coupling} coupling, {len(train_rows)} images",
        options=config,
        events=lambda report: events(report, held_out, len(train_rows)),
        final=lambda: (trainer.weights(torch.float16), facts),
    )


def held_out_part(config: TrainConfig, data: Any, rows: torch.Tensor, device: torch.device) -> HeldOut:
    """The batches of a run's validation loss, of the rows that it holds out.

    The first process validates alone, on whole batches, with the same noise, times and pairs whenever it does. They are
    coupled as in training: the loss of other pairs has another minimum. Their times are uniform whatever those of the
    training are, so that the losses of runs can be compared.
    """
    method, size = method_of(config.method), min(config.batch_size, len(rows))
    coupling = method.joint(config.coupling)
    reg = method.regularisation(coupling, config.sigma)
    batches = Batches(data if config.num_classes else _without_labels(data), size, 0, False, device, subset=rows)
    alone = Processes(0, 1, device)
    source = CoupledBatches(batches, coupling, config.seed + 1, alone, False, reg, method.times)
    return HeldOut(source, max(1, min(batches.n, 1024) // size))


def run(
    trainer: Trainer,
    source: Ahead,
    out: Path,
    weights_name: str,
    title: str,
    options: Any,
    events: Callable[[Report], Sequence[Event]],
    final: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
) -> Path:
    """Begin a run or go on with it, train to the end, and leave final weights, their card and a page in its folder.

    The rule of ranks: the first process writes, all wait, and nobody reads what another may still write. So the first
    one alone holds the lock and does what ``events`` and ``final`` do; the others only take their part of each step.

    Args:
        trainer: fresh; its options say how long the run is and whether one that is there may go on.
        source: its batches; closed in the end.
        out, weights_name: the run folder, and the name of the final weights in it.
        title: begins the line that the run begins with: method and data.
        options: a dataclass, for config.yaml.
        events: events(report) -> what happens now and then, see :func:`loop`.
        final: final() -> the final weights, and what their card says besides :func:`card_facts`.

    Returns:
        The file of the final weights; after --plan it is not there.

    Raises:
        ValueError: a folder that holds another run or is written to by one, or a loss that was not finite 20 steps in
            a row, which is seen when a row of the log is due.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    here, file = trainer.processes, out / weights_name
    if trainer.config.plan:
        tell(trainer, source, file, options, events)
        return file
    with run_lock(out) if here.is_main else contextlib.nullcontext():
        begin(trainer, out, options)
        parameters, size = sum(p.numel() for p in trainer.net.parameters()), trainer.config.batch_size
        here.say(
            f"{title}, {parameters / 1e6:.1f}M parameters, batch {size} over {here.world} process(es), "
            f"{hardware(trainer.device)}"
        )
        where = "the run is finished at" if trainer.step >= trainer.end else "continuing at"
        here.say(f"run folder: {out}" + (f", {where} step {trainer.step}" if trainer.step else ""))
        if trainer.config.ema_std:
            here.say(snapshots.announcement(out, trainer))
        source.prepare(out)
        report = Report(trainer, out)
        loop(trainer, source, report, events(report) if here.is_main else ())
        if trainer.step < trainer.config.warmup:
            here.say(
                f"note: the run ended in its warm-up: the learning rate reached {trainer.step} of "
                f"{trainer.config.warmup} steps; give a smaller --warmup"
            )
        if here.is_main:
            weights, facts = final()
            write_final(file, weights)
            write_card(file, facts | card_facts(trainer))
            write_page(out)
        here.wait()  # before anybody reads the weights, or begins another run here
    return file


def begin(trainer: Trainer, out: Path, options: Any) -> None:
    """Take up the run that a folder holds, or begin one there: its log ends at the trainer's step.

    The folder of --smoke is emptied first; config.yaml gets the options, and what was changed when a run was resumed.

    Raises:
        ValueError: a run that may not go on, or a folder in which the processes see different runs.
    """
    last = out / "checkpoint_last.pt"
    if options.smoke and not getattr(options, "out", "chosen") and trainer.config.resume == "no":
        if trainer.processes.is_main:
            empty(out)
        trainer.processes.wait()
    if last.exists() and trainer.config.resume == "no":
        raise ValueError(
            f"{out} holds a run: continue it with {trainer.again}, or choose another folder with {trainer.elsewhere}"
        )
    if last.exists():  # every process reads it: the first one writes the next only after a step that all have taken
        trainer.restore(checkpoint.load(last, map_location=trainer.device), last)
    elif trainer.config.init:
        trainer.start_from(trainer.config.init)
    if (first := int(trainer.processes.of_first(trainer.step))) != trainer.step:
        raise ValueError(
            f"{out} is at step {first} for the first process and at step {trainer.step} for process "
            f"{trainer.processes.rank}: all machines need the same folder, give a shared one with {trainer.elsewhere}"
        )
    if trainer.processes.is_main:
        JsonLines(out / "metrics.jsonl").truncate_after(trainer.step)
        snapshots.remove_after(out, trainer.step)
        # a run that is made again from the file is a new one, whatever this one is
        text = to_yaml(replace(options, resume=type(options).resume))
        changes = [(row["step"], in_words({k: v for k, v in row.items() if k != "step"})) for row in trainer.history]
        notes = "".join(f"# changed at step {step}: {words}\n" for step, words in changes)
        if trainer.origin and not trainer.config.init:
            notes += f"# began from {trainer.origin['weights']} by --init, which the options below do not name\n"
        with atomic_write(out / "config.yaml") as path:
            path.write_text(notes + text, encoding="utf-8")


def empty(folder: Path) -> None:
    """Remove what a run left in its folder, except for its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "run.lock":
            path.unlink()


def loop(trainer: Trainer, source: Ahead, report: Report, events: Sequence[Event]) -> None:
    """Train to the end, or until Ctrl-C or SIGTERM, which saves the state and raises KeyboardInterrupt.

    The network is left in training mode, batches and report are closed. Events, in order, are of the first process.
    """
    processes = trainer.processes
    trainer.net.train()
    try:
        with StopFlag().listening() as stop, ending_with_others() as alone:
            while trainer.step < trainer.end:
                batch = source.at(trainer.step)  # this process's rows of the global batch; the next is made meanwhile
                loss, norm = trainer.update(batch)
                trainer.pass_time()
                report.after_step(loss, norm, batch, source)
                step, end = trainer.step, trainer.end
                # Events follow the step, so that what they save has all of it; the others wait in the next gradient.
                for event in events:
                    if due(step, event.every, end, event.early):
                        event.action()
                if stop.agreed(processes, step) and step < end:  # after the last step nothing is left to stop
                    alone()
                    if processes.is_main:
                        report.save()
                        print(f"saved at step {step}; the same command with {trainer.again} goes on from here")
                    processes.wait()
                    raise KeyboardInterrupt
    finally:
        source.close()
        report.close()


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
        end_lone_launcher()

    def agreed(self, processes: Processes, step: int) -> bool:
        """Whether to stop: with several processes all of them decide together, every few steps."""
        if processes.world == 1:
            return self.on
        if step % STOP_CHECK:
            return False
        # A signal reaches the processes at different steps; one that left alone would leave the others waiting for its
        # gradients. Asking costs a round of messages, hence not after every step.
        flag = torch.tensor(float(self.on), device=processes.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def card_facts(trainer: Trainer) -> dict[str, Any]:
    """What a card says of every run: method, recipe, length, hardware, command."""
    c, steps = trainer.config, trainer.step
    return {
        "method": trainer.weights_method(),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "steps": steps,
        "batch_size": c.batch_size,
        "images_seen": trainer.images_seen,
        "processes": trainer.processes.world,
        "hours": round(trainer.seconds / 3600, 3),
        **({"minutes": {"asked": c.minutes, "run": round(trainer.seconds / 60, 2)}} if c.minutes else {}),
        "hardware": hardware(trainer.device),
        "precision": computed_in(trainer.device, c.mixed_precision),
        "seed": c.seed,
        "skipped_steps": trainer.bad_steps(),
        "best_validation_loss": trainer.best if math.isfinite(trainer.best) else None,
        "torch": torch.__version__,
        "commit": commit(),
        "command": without_folders(["python", *sys.argv]),
        "recipe": "config.yaml beside the weights; train again with -c config.yaml",
        **({"init": trainer.origin} if trainer.origin else {}),
        **({"history": trainer.history} if trainer.history else {}),
    }


def write_final(final: Path, weights: dict[str, Any]) -> None:
    """Write the final weights; other ones that have the name, for example the shipped ones, are kept under another."""
    if final.exists() and not _holds(final, weights):
        names = (final.with_suffix(f".previous{number}{final.suffix}") for number in ("", *range(2, 10_000)))
        previous = next(path for path in names if not path.exists())
        os.replace(final, previous)
        print(f"the weights that were there are kept as {previous.name}")
    checkpoint.save(final, weights)
    print(f"weights: {final}")


def _holds(path: Path, weights: dict[str, Any]) -> bool:
    """Whether a file holds these very weights: the run that is resumed had ended already."""
    try:
        old = checkpoint.load(path).get("ema_model", {})
    except ValueError:
        return False
    new = weights["ema_model"]
    return old.keys() == new.keys() and all(torch.equal(old[key], new[key].cpu()) for key in new)


def _absolute(path: str) -> str:
    """A path from wherever one stands; a text that is none stays as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _without_labels(data: Any) -> Any:
    """The same images for an unconditional run."""
    if isinstance(data, ImageData):
        return replace(data, labels=None)
    plain = copy.copy(data)
    plain.labels = None
    return plain
