"""Training of students on the pairs of a folder: sequential reflow and distillation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common import training
from common.cli.configs import TrainConfig
from common.runtime import Processes, generator
from common.training.batches import Ahead
from common.training.report import Event, Report
from common.training.trainer import Trainer
from seqrf import models, networks, segments
from seqrf.options import DISTILL, Run
from seqrf.pairs import Pairs

if TYPE_CHECKING:
    from seqrf.models import Model

FINAL = "student_step_final.pt"
SNAPSHOTS = "checkpoints"  # folder of the weights kept under their step's name


@dataclass
class SegmentBatch:
    """One process's part of a batch of pairs, with the places along the chords."""

    x_a: Tensor
    x_b: Tensor
    t_a: Tensor
    t_b: Tensor
    segment: Tensor
    u: Tensor
    y: Tensor | None
    seconds: float = 0.0


class PairBatches(Ahead):
    """Batches of pairs from the disk, a function of (seed, step)."""

    def __init__(self, pairs: Pairs, run: Run, processes: Processes):
        super().__init__(processes.device, ahead=True)
        self.pairs, self.processes, self.seed = pairs, processes, run.config.seed
        self.training, self.flip = run.config.training, run.config.data.random_flip

    def make(self, step: int) -> SegmentBatch:
        """This process's pairs of a step, on its device."""
        rows, size = slice(self.processes.rank, None, self.processes.world), self.training.batch_size
        batch = self.pairs.at(step, size, self.seed, self.flip, rows)
        u = segments.draw_u(size, generator(self.seed, "u", step), self.training.t_density)[rows]
        fields = batch._asdict() | {"u": u}
        to = self.processes.device
        return SegmentBatch(**{key: x if x is None else x.to(to, non_blocking=True) for key, x in fields.items()})


class SegmentTrainer(Trainer):
    """Trains a student that begins as the network in ``model``: a teacher, or a student of the same segments.

    Args:
        run: the options.
        model: what the student begins as.
        pairs: what it learns; they say its segments.
        processes: this process among its peers.
    """

    again, elsewhere, size = "--resume", "--workdir", "--config.training.batch_size"
    length, parts = "--config.training.minutes", ""
    fixed = ("seed",)

    def __init__(self, run: Run, model: Model, pairs: Pairs, processes: Processes):
        self.run, self.model, self.edges, self.log_name = run, model, pairs.manifest.edges, run.log_name
        self.distils, self.teacher = run.config.training.reflow_mode == DISTILL, pairs.manifest.teacher.hash
        super().__init__(train_config(run, model), processes)
        self.data = f"{len(pairs)} pairs {hashlib.sha256(repr(pairs.manifest).encode()).hexdigest()[:16]}"

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The student with the model's weights, and its description."""
        if not self.model.is_student:
            make = {"heads": networks.with_heads, "edges": networks.with_edges}[self.run.config.model.condition]
            student = make(self.model.net.cpu(), self.edges, self.model.description)
            return student, student.description
        edges = self.model.edges
        if len(edges) != len(self.edges) or max(abs(a - b) for a, b in zip(edges, self.edges)) > 1e-6:
            raise ValueError(
                f"{self.model.path} has the segments {_shown(edges)}, the pairs {_shown(self.edges)}: make pairs for "
                "its segments, or start from the teacher's weights"
            )
        return self.model.net, self.model.description

    def losses(self, network: Callable[..., Tensor], batch: SegmentBatch) -> Tensor:
        """The loss of reflow or of distillation on a batch, (B,)."""
        method, kind = self.model.method["name"], self.run.config.training.loss

        def net(x: Tensor, t: Tensor, y: Tensor | None, segment: Tensor) -> Tensor:
            return segments.velocity_of(network, y, method=method)(x, t, segment)  # type: ignore[arg-type]

        pair = (batch.x_a, batch.x_b, batch.t_a, batch.t_b, batch.segment)
        if self.distils:
            return segments.distill_loss(net, *pair, batch.y, kind)
        return segments.reflow_loss(net, *pair, batch.u, batch.y, kind)

    def weights_method(self) -> dict[str, Any]:
        """The teacher's method, which says what the network's output is, and what the student has learnt."""
        method = {"sigma": 0.0, "source": self.model.source, **self.model.method}
        return method | {"teacher": self.teacher, "distilled": self.distils}

    def options(self) -> dict[str, Any]:
        """The options without paths."""
        config = asdict(self.run.config)
        config["data"] |= {
            "dataset": Path(config["data"]["dataset"]).name,
            "root": "",
            "classifier": "",
            "inception": "",
        }
        config["training"] |= {"import_torch": Path(config["training"]["import_torch"]).name, "pairs": ""}
        return config | ({"image_size": self.model.shape[-1]} if len(self.model.shape) == 3 else {})

    def as_model(self) -> Model:
        """The student with its averaged weights, to sample from; valid inside ``evaluating()``."""
        changes = {"method": self.weights_method(), "description": self.description, "step": self.step}
        changes["name"] = models.name_of(self.description, changes["method"])
        return replace(self.model, net=self.net, count=models.counter(self.net), **changes)


def train_config(run: Run, model: Model) -> TrainConfig:
    """The options of a run in the words of the common training loop."""
    c, t = run.config, run.config.training
    return TrainConfig(
        method=model.method["name"],
        sigma=model.method.get("sigma", 0.0),
        total_steps=t.n_iters,
        minutes=t.minutes,
        batch_size=t.batch_size,
        lr=t.lr,
        warmup=t.warmup,
        lr_decay=t.lr_decay,
        grad_clip=t.grad_clip,
        ema_decay=c.model.ema_rate,
        ema_warmup=0.75 if c.model.variable_ema_rate else 0.0,
        flip=c.data.random_flip,
        seed=c.seed,
        resume="auto" if run.resume else "no",
        device=run.device,
        mixed_precision=run.mixed_precision,
        save_step=t.snapshot_freq,
        log_step=t.log_freq,
        logger=run.logger,
    )


def train_student(
    run: Run,
    model: Model,
    pairs: Pairs,
    out: Path,
    processes: Processes,
    on_snapshot: Callable[[Model], dict[str, Any]],
) -> Path:
    """Train a student and leave in ``out`` its weights, snapshots, state, metrics and options.

    Args:
        run: the options; ``config.training.reflow_mode`` says what is learnt.
        model: what the student begins as.
        pairs: what it learns.
        out: the run folder.
        processes: from ``common.runtime.processes``.
        on_snapshot: called at each snapshot with the student; what it returns is logged.

    Returns:
        The file of the final weights (averaged, float16).

    Raises:
        ValueError: segments that do not fit; and see ``common.training.run``.
        KeyboardInterrupt: see there.
    """
    trainer, manifest = SegmentTrainer(run, model, pairs, processes), pairs.manifest
    facts = {"edges": list(manifest.edges), "condition": trainer.description["condition"]}
    facts |= {"pairs": len(pairs), "teacher_evaluations_per_pair": pairs.nfe}
    verb = "distillation" if trainer.distils else "reflow"
    return training.run(
        trainer,
        PairBatches(pairs, run, processes),
        out,
        FINAL,
        title=f"{verb} of {manifest.k} segments {_shown(manifest.edges)}, {len(pairs)} pairs",
        options=run,
        events=partial(snapshots, trainer, on_snapshot),
        final=lambda: (trainer.weights(torch.float16), facts),
    )


def snapshots(trainer: SegmentTrainer, on_snapshot: Callable[[Model], dict[str, Any]], report: Report) -> list[Event]:
    """What happens now and then in a run; that of step 0, what the student begins as, at once."""

    def keep() -> None:
        name = snapshot_path(Path(), trainer.step).as_posix()
        report.keep(name, trainer.weights(torch.float16), trainer.config.total_steps)

    def snapshot() -> None:
        keep()
        report.save()
        with trainer.evaluating():
            figures = on_snapshot(trainer.as_model())
        if figures:
            report.write({"step": trainer.step, **figures})

    if trainer.step == 0:
        keep()
    return [Event(trainer.config.save_step, snapshot)]


def snapshot_path(out: Path, step: int) -> Path:
    """Where the weights of a step are kept."""
    return out / SNAPSHOTS / f"weights_step_{step:07d}.pt"


def _shown(edges: Any) -> str:
    return "(" + ", ".join(f"{t:.3g}" for t in edges) + ")"
