"""Training by epochs with the Flow Image Generator's files: ``epoch_N.pth`` after each, ``rf_best.pth`` for the best.

The loop, its batches and its resumption are those of ``common.training``; here is what happens when an epoch ends. An
epoch's file has that project's entries (``epoch``, ``ema_state``, ``model_state``, ``optimizer_state``, ``loss``)
beside ours (``format``, ``network``, ``method``, ``ema_model``, ...), so ``common.checkpoint.load_network`` builds its
network without being told anything. The tensors are the same, written once. In both, t = 0 is noise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common import checkpoint
from common.cli.configs import TrainConfig
from common.data.loading import ImageData, StreamingImages
from common.runtime import Processes
from common.training.batches import Ahead
from common.training.loop import train
from common.training.report import Event, Report
from common.training.trainer import Trainer

BEST = "rf_best.pth"


def epochs_done(step: int, batch_size: int, images: int) -> int:
    """Whole passes over ``images`` after so many steps; a batch may reach into the next pass."""
    return step * batch_size // images


class EpochReport(Report):
    """A report that also ends epochs; where nothing is held out the training loss decides which is the best."""

    def events(self, held_out: Ahead | None, count: int, images: int) -> list[Event]:
        """Ends of epochs before all else, and the validation loss between them."""
        self.held_out, self.count, self.images = held_out, count, images
        often = super().events(None, count, images)
        return [(1, self.end_epoch), (self.config.val_step, self.log_validation), *often]

    def end_epoch(self) -> None:
        """Write ``epoch_N.pth`` if this step ends an epoch or the run, and ``rf_best.pth`` if none was as good.

        Besides their last step epochs cost nothing. The validation loss is that of the averaged weights.
        """
        trainer, size = self.trainer, self.config.batch_size
        step, images = trainer.step, self.images
        done, before = (epochs_done(k, size, images) for k in (step, step - 1))
        if done == before and step < self.config.total_steps:
            return
        number = done if done > before else done + 1  # the last epoch of a run may be shorter than the others
        held_out = None if self.held_out is None else trainer.validation_loss(self.held_out, self.count)
        loss = self.training_loss(math.ceil((number - 1) * images / size))
        self.write({"step": step, "epoch": number, "epoch_loss": loss, "val_loss": held_out})
        state = epoch_state(trainer, number, loss, held_out)
        checkpoint.save(self.out / f"epoch_{number}.pth", state)
        score = loss if held_out is None else held_out
        if score < trainer.best:
            trainer.best = score
            checkpoint.save(self.out / BEST, state)
        self.bar.write(f"epoch {number}: loss {loss:.4f}" + (f", held out {held_out:.4f}" if held_out else ""))

    def log_validation(self) -> None:
        """Write the validation loss to the log, between the ends of epochs."""
        if self.held_out is not None:
            loss = self.trainer.validation_loss(self.held_out, self.count)
            self.write({"step": self.trainer.step, "val_loss": loss})

    def training_loss(self, start: int) -> float:
        """Mean of the losses logged after a step; of the last one logged when there are none."""
        rows = [row for row in self.log.read() if row.get("loss") is not None]
        losses = [row["loss"] for row in rows if row["step"] > start] or [row["loss"] for row in rows[-1:]]
        return sum(losses) / len(losses) if losses else math.inf


def epoch_state(trainer: Trainer, number: int, loss: float, held_out: float | None) -> dict[str, Any]:
    """What an epoch's file holds."""
    mine = trainer.weights()
    theirs = {
        "epoch": number,
        "ema_state": mine["ema_model"],
        "model_state": trainer.net.state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "loss": loss,
        "val_loss": held_out,
    }
    return mine | {"net_model": theirs["model_state"]} | theirs


def train_epochs(
    config: TrainConfig, data: ImageData | StreamingImages, out: Path, weights_name: str, processes: Processes
) -> Path:
    """Train as ``common.training.loop.train`` does, with the same arguments, and keep every epoch's weights in ``out``.

    Raises:
        ValueError: as there; and class labels, which this recipe does not take.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    if config.num_classes:
        raise ValueError(
            f"--num_classes {config.num_classes}: this recipe has no labels; use celeba_train.py --method rf"
        )
    world = processes.world * config.grad_accum
    if config.batch_size % world:
        raise ValueError(f"--batch_size {config.batch_size}: make it a multiple of {world} (processes x --grad_accum)")
    return train(config, data, out, weights_name, processes, EpochReport)
