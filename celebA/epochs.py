"""Training by epochs with the Flow Image Generator's files: ``epoch_N.pth`` after each, ``rf_best.pth`` for the best.

Of the epochs' files the last three are kept.

The loop, its batches and its resumption are those of ``common.training``; here is what happens when an epoch ends. An
epoch's file has that project's entries (``epoch``, ``ema_state``, ``model_state``, ``optimizer_state``, ``loss``)
beside ours (``format``, ``network``, ``method``, ``ema_model``, ...), so ``common.checkpoint.load_network`` builds its
network without being told anything. The tensors are the same, written once. In both, t = 0 is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.cli.configs import TrainConfig
from common.data.loading import ImageData, StreamingImages
from common.runtime import Processes
from common.training import train
from common.training.report import Event, HeldOut, Report, grids_and_state
from common.training.trainer import Trainer

BEST = "rf_best.pth"
KEPT = 3  # files of epochs: a thousand of them would be 100 GB


def epoch_events(report: Report, held_out: HeldOut | None, images: int) -> list[Event]:
    """Ends of epochs before all else, and the validation loss between them; arguments of ``usual_events``."""
    trainer = report.trainer

    def log_validation() -> None:
        if held_out is not None:
            report.write({"step": trainer.step, "val_loss": trainer.validation_loss(*held_out)})

    ends = Event(1, lambda: end_epoch(report, held_out))
    return [ends, Event(report.config.val_step, log_validation), *grids_and_state(report)]


def end_epoch(report: Report, held_out: HeldOut | None) -> None:
    """Write ``epoch_N.pth`` if this step ends an epoch or the run, and ``rf_best.pth`` if none was as good.

    Besides their last step epochs cost nothing. The validation loss is that of the averaged weights; where nothing is
    held out the training loss decides which is the best.
    """
    trainer, number = report.trainer, report.ended_epoch()
    if not number:
        return
    validation = None if held_out is None else trainer.validation_loss(*held_out)
    loss = report.epoch_loss(number)
    report.write({"step": trainer.step, "epoch": number, "epoch_loss": loss, "val_loss": validation})
    state = epoch_state(trainer, number, loss, validation)
    report.keep(f"epoch_{number}.pth", state, KEPT)
    for older in report.out.glob("epoch_*.pth"):
        digits = older.stem.removeprefix("epoch_")
        if digits.isdecimal() and int(digits) <= number - KEPT:
            older.unlink()
    score = loss if validation is None else validation
    if score < trainer.best:
        trainer.best = score
        report.keep(BEST, state)
    report.say_epoch(number, f"loss {loss:.4f}" + (f", held out {validation:.4f}" if validation else ""))


def epoch_state(trainer: Trainer, number: int, loss: float, validation: float | None) -> dict[str, Any]:
    """What an epoch's file holds: the entries of :meth:`Trainer.weights`, and that project's."""
    weights, net = trainer.weights(), trainer.net.state_dict()
    return weights | {
        "net_model": net,
        "epoch": number,
        "ema_state": weights["ema_model"],
        "model_state": net,
        "optimizer_state": trainer.optimizer.state_dict(),
        "loss": loss,
        "val_loss": validation,
    }


def train_epochs(
    config: TrainConfig, data: ImageData | StreamingImages, out: Path, weights_name: str, processes: Processes
) -> Path:
    """Train as ``common.training.train`` does, with the same arguments, and keep the last epochs' weights in ``out``.

    Raises:
        ValueError: as there; and class labels, which this recipe does not take.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    if config.num_classes:
        raise ValueError(
            f"--num_classes {config.num_classes}: this recipe has no labels; use celeba_train.py --method rf"
        )
    return train(config, data, out, weights_name, processes, epoch_events, by_epochs=True)
