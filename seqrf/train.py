"""Training of students on the pairs of a folder: sequential reflow and distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common import checkpoint
from common.cli.configs import TrainConfig
from common.cli.values import to_yaml
from common.records.cards import commit, write_card
from common.runtime import Processes, generator, hardware, run_lock
from common.training.batches import Ahead
from common.training.loop import begin, in_words, loop, write_final
from common.training.report import Report
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
        there = {key: x if x is None else x.to(self.processes.device, non_blocking=True) for key, x in fields.items()}
        return SegmentBatch(**there)


class SegmentTrainer(Trainer):
    """Trains a student that begins as the network in ``model``: a teacher, or a student of the same segments.

    Args:
        run: the options.
        model: what the student begins as.
        pairs: what it learns; they say its segments.
        processes: this process among its peers.
    """

    again, elsewhere = "--resume", "--workdir"

    def __init__(self, run: Run, model: Model, pairs: Pairs, processes: Processes):
        self.run, self.model, self.edges = run, model, pairs.manifest.edges
        self.distils, self.teacher = run.config.training.reflow_mode == DISTILL, pairs.manifest.teacher
        super().__init__(train_config(run, model), processes)

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The student with the model's weights, and its description."""
        if not self.model.is_student:
            make = {"heads": networks.with_heads, "edges": networks.with_edges}[self.run.config.model.condition]
            student = make(self.model.net.cpu(), self.edges, self.model.description)
            return student, student.description
        mine = self.model.edges
        if len(mine) != len(self.edges) or max(abs(a - b) for a, b in zip(mine, self.edges)) > 1e-6:
            raise ValueError(
                f"{self.model.path} has the segments {_shown(mine)}, the pairs {_shown(self.edges)}: make pairs for "
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
        kept = {"sigma": 0.0, "source": self.model.source, **self.model.method}
        return kept | {"teacher": self.teacher, "distilled": self.distils}

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
        """The student with its averaged weights, to sample from; valid inside ``ema.applied()``."""
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
        ValueError: segments that do not fit, a folder that holds another run, or a loss that was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    if run.config.training.batch_size % processes.world:
        raise ValueError(
            f"--config.training.batch_size {run.config.training.batch_size} cannot be split over {processes.world} "
            f"processes: make it a multiple of {processes.world}"
        )
    with run_lock(out) if processes.is_main else contextlib.nullcontext():
        trainer = SegmentTrainer(run, model, pairs, processes)
        log = begin(trainer, out, to_yaml(run))
        if processes.is_main:
            manifest, verb = pairs.manifest, "distillation" if trainer.distils else "reflow"
            print(f"{verb} of {manifest.k} segments {_shown(manifest.edges)}, {len(pairs)} pairs, {in_words(trainer)}")
            print(f"run folder: {out}" + (f", continuing at step {trainer.step}" if trainer.step else ""))
        report = Report(trainer.config, out, log, trainer, processes, run.log_name)

        def snapshot() -> None:
            checkpoint.save(snapshot_path(out, trainer.step), trainer.weights(torch.float16))
            if trainer.step:
                report.save()
            was_training = trainer.net.training
            trainer.net.eval()
            with trainer.ema.applied():
                figures = on_snapshot(trainer.as_model())
            trainer.net.train(was_training)
            if figures:
                report.write({"step": trainer.step, **figures})

        if processes.is_main and not snapshot_path(out, 0).exists():
            checkpoint.save(snapshot_path(out, 0), trainer.weights(torch.float16))
        events = [(run.config.training.snapshot_freq, snapshot)]
        loop(trainer, PairBatches(pairs, run, processes), report, events, "the same command")
        final = out / FINAL
        if processes.is_main:
            write_final(final, trainer.weights(torch.float16))
            write_card(final, card(trainer, pairs))
        processes.wait()
        return final


def snapshot_path(out: Path, step: int) -> Path:
    """Where the weights of a step are kept."""
    return out / SNAPSHOTS / f"weights_step_{step:07d}.pt"


def card(trainer: SegmentTrainer, pairs: Pairs) -> dict[str, Any]:
    """What the card says of a student: segments, pairs, length, hardware."""
    config = trainer.config
    return {
        "method": trainer.weights_method(),
        "edges": list(pairs.manifest.edges),
        "condition": trainer.description["condition"],
        "pairs": len(pairs),
        "teacher_evaluations_per_pair": pairs.nfe,
        "steps": trainer.step,
        "batch_size": config.batch_size,
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "hours": round(trainer.seconds / 3600, 3),
        "hardware": hardware(trainer.device),
        "seed": config.seed,
        "skipped_steps": trainer.skipped,
        "torch": torch.__version__,
        "commit": commit(),
    }


def _shown(edges: Any) -> str:
    return "(" + ", ".join(f"{t:.3g}" for t in edges) + ")"
