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
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint
from common.batches import Batch, CoupledBatches
from common.cards import commit, write_card
from common.cli import to_yaml
from common.config import TrainConfig
from common.data import Batches, ImageData, StreamingImages, check_labels, split_train_val
from common.ema import EMA
from common.generate import Sampler, sample_many
from common.losses import make_loss, network_heads, usual_coupling
from common.report import Report, due
from common.runtime import JsonLines, Processes, atomic_write, derive_seed, keep_freed_memory, run_lock
from common.unet import build_network, network_description

FATAL_AFTER = 20  # non-finite steps in a row
STOP_CHECK = 10  # steps between agreements of several processes on whether to stop
SAME_SIGNAL = (
    2.0  # seconds within which two signals are one Ctrl-C: a launcher passes on what the terminal sent already
)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up to ``lr``, then constant or decaying to zero at ``total_steps``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.lr_decay == "none":
        return config.lr
    done = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return config.lr * (0.5 * (1 + math.cos(math.pi * done)) if config.lr_decay == "cosine" else 1 - done)


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


class Trainer:
    """State of a run (network, EMA, optimizer, counters) and the arithmetic of one step.

    Args:
        config: the run's options.
        processes: this process among its peers.
    """

    def __init__(self, config: TrainConfig, processes: Processes):
        self.config, self.processes, self.device = config, processes, processes.device
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(derive_seed(config.seed, "init"))
        self.description = network_description(config, network_heads(config.method))
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.net = build_network(self.description).to(self.device).to(memory_format=layout)
        self.loss = make_loss(config.method, config.sigma, config.flow_weight)
        self.ema = EMA(self.net, config.ema_decay, config.ema_warmup)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
        self.layout = layout
        self.call: Callable[..., Tensor] = torch.compile(self.net) if config.compile else self.net
        if processes.world > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self.call = nn.parallel.DistributedDataParallel(self.call, device_ids=ids)
        self.step, self.skipped, self.bad_in_row = 0, 0, 0
        self.seconds, self.best = 0.0, math.inf

    def network(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network under the run's precision and memory layout."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.call(x.contiguous(memory_format=self.layout), t, y)

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step on a batch: returns the mean loss and the gradient norm (before clipping).

        A step with a non-finite loss or gradient changes nothing and is counted.

        Raises:
            ValueError: after 20 such steps in a row.
        """
        config, parts = self.config, self.config.grad_accum
        torch.manual_seed(derive_seed(config.seed, "dropout", self.step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        total = torch.zeros((), device=self.device)
        for i in range(parts):
            micro = batch.part(i, parts)
            waits = self.processes.world > 1 and i + 1 < parts
            with self.call.no_sync() if waits else contextlib.nullcontext():  # type: ignore[union-attr]
                loss = self.loss(self.network, micro.x0, micro.x1, micro.t, micro.noise, micro.y).mean() / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.grad_clip or math.inf)
        if self._finite(norm):
            self.scaler.step(self.optimizer)
            self.ema.update()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, norm

    def _finite(self, norm: Tensor) -> bool:
        """Whether the gradient is finite (the same on all processes, for it has been averaged); counts if not."""
        if bool(torch.isfinite(norm)):
            self.bad_in_row = 0
            return True
        self.bad_in_row += 1
        self.skipped += 1
        if self.bad_in_row >= FATAL_AFTER:
            raise ValueError(
                f"the loss or its gradient was not finite in {FATAL_AFTER} steps in a row (step {self.step}): "
                "the last checkpoint is kept; try a smaller --lr, --grad_clip 1, -mp no or bf16, and --resume auto"
            )
        return False

    @torch.no_grad()
    def validation_loss(self, batches: Batches, count: int) -> float:
        """Mean loss of the averaged weights over ``count`` held-out batches with fixed noise and times."""
        was_training = self.net.training
        self.net.eval()
        source = CoupledBatches(batches, "independent", self.config.seed + 1, Processes(0, 1, self.device), ahead=False)

        def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                return self.net(x.contiguous(memory_format=self.layout), t, y)

        losses = []
        with self.ema.applied():
            for i in range(count):
                b = source.make(i)
                losses.append(self.loss(network, b.x0, b.x1, b.t, b.noise, b.y).mean())
        self.net.train(was_training)
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def sample_grid(self, count: int = 64, n_steps: int = 10) -> Tensor:
        """Images of the averaged weights from fixed noise, (count, C, H, W) in [-1, 1]."""
        c = self.config
        shape = (c.in_channels, c.image_size, c.image_size)
        was_training = self.net.training
        self.net.eval()
        with self.ema.applied():
            sampler = Sampler(
                self.net, c.method, shape, c.sigma, n_steps=n_steps, seed=c.seed, precision=c.mixed_precision
            )
            images = torch.cat([part for _, part in sample_many(sampler, range(count), count)])
        self.net.train(was_training)
        return images

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What sampling needs: the averaged weights and the description of network, method and run."""
        c = self.config
        return {
            "format": "flow-checkpoint",
            "version": 1,
            "step": self.step,
            "images_seen": self.step * c.batch_size,
            "seconds": self.seconds,
            "config": portable(c),
            "network": self.description,
            "method": {"name": c.method, "sigma": c.sigma, "flow_weight": c.flow_weight},
            "ema_model": self.ema.module_state_dict(dtype),
        }

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on, besides its options."""
        return self.weights() | {
            "net_model": self.net.state_dict(),
            "optim": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take a run's state up again.

        Raises:
            ValueError: when the checkpoint's network or method is not this run's.
        """
        if missing := [key for key in ("net_model", "optim", "ema", "scaler") if key not in state]:
            raise ValueError(f"{path} holds no state of a run (no {missing[0]}): choose another folder with --out")
        for key, mine in (("network", self.description), ("method", self.weights_method())):
            theirs = state.get(key, {})
            wrong = [f"{k}: {theirs.get(k)} there, {mine[k]} here" for k in mine if theirs.get(k) != mine[k]]
            wrong = [w for w in wrong if not w.startswith("checkpointing")]
            if wrong:
                raise ValueError(
                    f"{path} is of another {key} ({'; '.join(wrong)}): use its config.yaml, or another --out"
                )
        self.net.load_state_dict(state["net_model"])
        self.optimizer.load_state_dict(state["optim"])
        self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped, self.best = state["step"], state["skipped"], state["best"]
        self.seconds = state["seconds"]

    def weights_method(self) -> dict[str, Any]:
        """Name and constants of the method, as a checkpoint holds them."""
        return {"name": self.config.method, "sigma": self.config.sigma, "flow_weight": self.config.flow_weight}


def portable(config: TrainConfig) -> dict[str, Any]:
    """The options as primitives and without this machine's paths, which are nobody's business but the run folder's."""
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return options | {"out": "", "data_root": "", "data": Path(config.data).name, "resume": "no"}


def hardware(device: torch.device) -> str:
    """The device in words, for cards and logs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


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
        "recipe": "config.yaml beside the weights; train again with -c config.yaml",
    }


def train(
    config: TrainConfig, data: ImageData | StreamingImages, out: Path, weights_name: str, processes: Processes
) -> Path:
    """Train a network and leave in ``out`` its weights, checkpoints, metrics, sample grids and options.

    Args:
        config: options of the run.
        data: images and labels (uint8).
        out: the run folder; see the README for what it holds.
        weights_name: name of the final weights, for example ``IDFF_weights_step_final.pt``.
        processes: from ``common.runtime.processes``.

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
    if processes.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True

    with run_lock(out) if processes.is_main else contextlib.nullcontext():
        # Resume, or begin.
        last = out / "checkpoint_last.pt"
        if last.exists() and config.resume == "no":
            raise ValueError(f"{out} holds a run: continue it with --resume auto, or choose another folder with --out")
        trainer = Trainer(config, processes)
        if last.exists():
            trainer.restore(checkpoint.load(last, map_location=processes.device), last)
        log = JsonLines(out / "metrics.jsonl")
        if processes.is_main:
            log.truncate_after(trainer.step)
            if trainer.step == 0 or not (out / "config.yaml").exists():
                with atomic_write(out / "config.yaml") as path:
                    path.write_text(to_yaml(config))

        # Data: a training and a held-out part of the same pixels.
        train_rows, val_rows = split_train_val(len(data), config.val_fraction, config.seed)
        drop = (config.label_dropout, config.num_classes) if config.num_classes and config.label_dropout else None
        labelled = data if config.num_classes else _without_labels(data)
        batches = Batches(
            labelled, config.batch_size, config.seed, config.flip, processes.device, drop=drop, subset=train_rows
        )
        val_batch = min(config.batch_size, max(1, len(val_rows)))
        held_out = Batches(labelled, val_batch, 0, False, processes.device, subset=val_rows) if len(val_rows) else None
        coupling = usual_coupling(config.method) if config.coupling == "auto" else config.coupling
        # The entropic plan of a Schrodinger bridge with spread sigma (Tong et al. 2024, proposition 3.5).
        reg = 2 * config.sigma**2 if config.method == "sbcfm" and coupling == "sinkhorn" else None
        source = CoupledBatches(batches, coupling, config.seed, processes, config.coupling_ahead, reg)

        if processes.is_main:
            count = sum(p.numel() for p in trainer.net.parameters())
            print(
                f"{config.method} with {coupling} coupling, {len(train_rows)} images, {count / 1e6:.1f}M parameters, "
                f"batch {config.batch_size} over {world} process(es), {hardware(processes.device)}"
            )
            print(f"run folder: {out}" + (f", continuing at step {trainer.step}" if trainer.step else ""))

        report = Report(config, out, log, trainer, processes)
        trainer.net.train()
        try:
            with StopFlag().listening() as stop:
                while trainer.step < config.total_steps:
                    batch = source.at(trainer.step)
                    loss, norm = trainer.update(batch)
                    report.after_step(loss, norm, batch, source)
                    step = trainer.step
                    if processes.is_main:
                        if due(step, config.val_step, config.total_steps) and held_out is not None:
                            report.validate(held_out, val_batch)
                        if due(step, config.sample_step, config.total_steps):
                            report.sample()
                        if due(step, config.save_step, config.total_steps):
                            report.save()
                    if stop.agreed(processes, step) and step < config.total_steps:
                        if processes.is_main:
                            report.save()
                            print(f"saved at step {step}; the same command with --resume auto goes on from here")
                        raise KeyboardInterrupt
        finally:
            source.close()
            report.close()
        final = out / weights_name
        if processes.is_main:
            _write_final(final, trainer.weights(torch.float16))
            write_card(final, card_facts(trainer, data.source, train_rows))
        processes.wait()
        return final


def _without_labels(data: Any) -> Any:
    """The same images for an unconditional run."""
    if isinstance(data, ImageData):
        return replace(data, labels=None)
    plain = copy.copy(data)
    plain.labels = None
    return plain


def _write_final(final: Path, weights: dict[str, Any]) -> None:
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
