"""State of a run and the arithmetic of one step; ``loop`` is what goes around it."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint
from common.cli.configs import TrainConfig
from common.generate import Sampler, guided, sample_many
from common.losses import end_error
from common.methods import make_loss, method_of
from common.networks import build_network, network_description
from common.runtime import Processes, autocast, derive_seed, file_hash, keep_freed_memory, reading, seed_device
from common.runtime.kept import check_same, differences
from common.training.averages import EMA
from common.training.batches import Ahead, part
from common.training.muon import Muon

FATAL_AFTER = 20  # non-finite steps in a row, when they are read


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options and those of sections within, by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in options.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def in_words(changes: Mapping[str, Any]) -> str:
    """Changes of options, ``{"lr": [1, 2]}``, as "lr 1 -> 2"."""
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())


def learning_rate(config: TrainConfig, step: int, progress: float = 0.0) -> float:
    """Linear warm-up to ``lr``, then constant or decaying to zero at the end of the run.

    Over ``total_steps`` the decay begins after the warm-up. Of a run of ``minutes`` it follows ``progress``, the share
    of the time that has passed, from the start: lr min(1, (step + 1) / warmup) decay(progress).
    """
    lr = config.lr * (step + 1) / config.warmup if step < config.warmup else config.lr
    share = progress
    if config.minutes is None:
        share = max(0, step - config.warmup) / max(1, config.total_steps - config.warmup)
    decays = {"none": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share}
    return lr * decays[config.lr_decay]


class Trainer:
    """State of a run (network, EMA, optimizer, counters) and the arithmetic of one step.

    Other kinds of training inherit from it: what they change is the network (:meth:`build`), the losses of a batch
    (:meth:`losses`) and what a checkpoint says of them (:meth:`weights_method`, :meth:`options`).
    """

    again, elsewhere, size = "--resume auto", "--out", "--batch_size"  # flags, for the lines that say what to do
    length, parts = "--minutes", "--grad_accum"  # likewise; empty: there is no such flag
    log_name = ""  # of the run for wandb and TensorBoard; empty: that of its folder
    # options that a resumed run must share: they choose what is seen, and what is learnt from it
    fixed: tuple[str, ...] = ("seed", "val_fraction", "teacher_cfg", "teacher_steps")
    classes: tuple[str, ...] = ()  # names of the labels
    epoch_images = 0  # training images, where the run counts its passes over them
    data = ""  # a mark of what the run learns from, of which the same holds
    now = staticmethod(time.perf_counter)  # the clock of the run, in seconds
    read_from: dict[str, str] = {}  # --data and --data_root of it, for who reads it again

    def __init__(self, config: TrainConfig, processes: Processes):
        self.config, self.processes, self.device = config, processes, processes.device
        if config.batch_size % (parts := processes.world * config.grad_accum):
            among = f"{processes.world} processes" + f" with --grad_accum {config.grad_accum}" * (config.grad_accum > 1)
            raise ValueError(
                f"{self.size} {config.batch_size} cannot be split over {among}: make it a multiple of {parts}"
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        elif self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(derive_seed(config.seed, "init"))
        self.net, self.description = self.build()
        self.loss = make_loss(config.method, config.sigma, **self.constants())
        self.held_out_loss = make_loss(config.method, config.sigma)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.net = self.net.to(self.device).to(memory_format=self.layout)
        self.ema, self.teacher = self._average(), self._frozen()
        options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
        options["fused"] = self.device.type in ("cpu", "cuda")
        muon = config.optimizer == "muon"
        self.optimizer = Muon(self.net, **options) if muon else torch.optim.AdamW(self.net.parameters(), **options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        self.call: Callable[..., Tensor] = torch.compile(self.net) if config.compile else self.net
        if processes.world > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self.call = nn.parallel.DistributedDataParallel(self.call, device_ids=ids)
        self.step, self.images_seen = 0, 0
        # steps that were not finite: all, the last ones in a row, most in a row; on the device, where they are found
        self.bad = torch.zeros(3, dtype=torch.int64, device=self.device)
        self.seconds, self.best = 0.0, math.inf
        self.origin: dict[str, str] = {}  # name and hash of the weights that the run started from
        self._began = math.nan  # when the clock of the run showed 0, had this process run it alone
        self.history: list[dict[str, Any]] = []  # of options that changed when the run was resumed

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network with the weights that training starts from, and its description for the checkpoint."""
        method = method_of(self.config.method)
        description = network_description(self.config, method.heads, method.times is not None)
        return build_network(description), description

    def _average(self) -> EMA:
        c = self.config
        return EMA(self.net, c.ema_decay, c.ema_warmup, c.ema_std)

    def start_from(self, weights: str) -> None:
        """Begin with the weights of a file instead of random ones."""
        self.origin = self._fill(self.net, weights)
        self.ema = self._average()

    def _fill(self, net: nn.Module, weights: str, flow: bool = False) -> dict[str, str]:
        """Give a network of the run the weights of a file, which are to be a flow's; what the run's record says."""
        method, sigma = method_of(self.config.method), self.config.sigma
        sigma = sigma if method.denoiser and method.needs_sigma else None  # tuning goes on from what was learnt
        return checkpoint.start_from(weights, net, self.description, self.config.method, sigma, flow)

    def _frozen(self) -> nn.Module | None:
        """The teacher, in eval mode; None: the run learns from the data."""
        if self.config.teacher_cfg is None:
            return None
        teacher = copy.deepcopy(self.net)
        if self.config.init:
            self._fill(teacher, self.config.init, flow=True)
        return teacher.eval().requires_grad_(False)

    def taught_by(self, y: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The output of the teacher for labels, with the guidance that is learnt with it."""
        assert self.teacher is not None
        out = guided(partial(self.run_network, self.teacher), y, self.config.teacher_cfg or 0.0)
        return lambda x, t: out(x, t).float()

    def losses(self, network: Callable[..., Tensor], batch: Any) -> Tensor:
        """The method's losses on a batch, (B,).

        Held-out losses, in eval mode, are to be compared with each other and between runs: they are the published ones,
        of the data, whatever the weights and targets of the training, and those of its end.
        """
        loss = self.loss if self.net.training else self.held_out_loss
        more = {} if batch.r is None else {"r": batch.r}
        method, x0, x1 = method_of(self.config.method), batch.x0, batch.x1
        if self.teacher is not None and self.net.training:
            if self.config.teacher_steps:  # a batch of TrajectoryBatches
                return end_error(network, x0, batch.t, x1, batch.y, method.denoiser)
            x0, x1 = method.taught(self.taught_by(batch.y), self.config.sigma, x0, x1, batch.t)
        if method.bare:
            more["bare"] = self.net
        if method.staged:
            more["progress"] = self.progress if self.net.training else 1.0
        return loss(network, x0, x1, batch.t, batch.noise, batch.y, **more)

    def _optimize(self, bad: Tensor) -> None:
        """A step of the optimizer unless it is bad; fused kernels of CPU and CUDA learn that on the device."""
        if self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()

    def bad_steps(self) -> int:
        """Steps of the run that were not finite; waits for the device.

        Raises:
            ValueError: 20 in a row, in this process.
        """
        count, _, most = self.bad.tolist()
        if most >= FATAL_AFTER:
            raise ValueError(
                f"the loss or its gradient was not finite in {most} steps in a row (till step {self.step}): the last "
                "checkpoint is kept; try a smaller --lr, --grad_clip 1, -mp no or bf16, and --resume auto"
            )
        return count

    @property
    def progress(self) -> float:
        """The share of the run that has passed: of its time where that is given, else of its steps."""
        if self.config.minutes is None:
            return self.step / self.config.total_steps
        return min(1.0, self.seconds / (60 * self.config.minutes))

    @property
    def end(self) -> float:
        """The step that ends the run; of a run of so many minutes the present one once they are over, before: inf."""
        if self.config.minutes is None:
            return self.config.total_steps
        return self.step if self.progress == 1 else math.inf

    def pass_time(self) -> None:
        """Read the clock, after a step: ``seconds`` of the run, what it was stopped for not counted.

        Neither is a process's first step, which compiles and makes caches: how long depends on what ran here before.
        What happens between the steps is counted. Several processes take the first one's time, so that they have the
        same learning rate and end at the same step.
        """
        now = self.now()
        if math.isnan(self._began):
            self._began = now - self.seconds
        seconds = now - self._began
        self.seconds = seconds if self.config.minutes is None else self.processes.of_first(seconds)

    def run_network(self, call: Callable[..., Tensor], x: Tensor, *conditions: Any) -> Tensor:
        """A network under the run's precision and memory layout; ``conditions`` are its time, labels and so on."""
        layout = self.layout if x.ndim == 4 else torch.contiguous_format
        with autocast(self.device, self.config.mixed_precision):
            return call(x.contiguous(memory_format=layout), *conditions)

    def update(self, batch: Any) -> tuple[Tensor, Tensor]:
        """One optimizer step on a batch: returns the mean loss and the gradient norm (before clipping).

        A step with a non-finite loss or gradient changes no weight and is counted, in ``bad``; the average then takes
        the weights as they have stayed. Nothing here is read from a CPU or CUDA, which would make every step wait.
        """
        config, parts = self.config, self.config.grad_accum
        # Dropout, too, is a function of the step: a resumed run drops what the run that never stopped has dropped.
        seed_device(self.device, derive_seed(config.seed, "dropout", self.step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.progress)
        total = torch.zeros((), device=self.device)
        for i in range(parts):
            micro = part(batch, i, parts)  # batch_size / (world grad_accum) rows
            # The processes average their gradients once a step, in the backward pass of the last part.
            early = self.processes.world > 1 and i + 1 < parts
            with self.call.no_sync() if early else contextlib.nullcontext():  # type: ignore[union-attr]
                # 1 / parts makes the sum over the parts the mean over the batch.
                loss = self.losses(partial(self.run_network, self.call), micro).mean() / parts
                self.scaler.scale(loss).backward()  # fp16: small gradients would be 0; else the scale is 1
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)  # before the norm, which is that of the true gradient
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.grad_clip or math.inf)
        bad = ~torch.isfinite(norm)  # the same on all processes, for it has been averaged
        self._optimize(bad)
        self.ema.update()
        in_row = (self.bad[1] + 1) * bad
        self.bad = torch.stack([self.bad[0] + bad, in_row, torch.maximum(self.bad[2], in_row)])
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.images_seen += config.batch_size
        return total, norm

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network with its averaged weights, in eval mode."""
        self.net.eval()
        with self.ema.applied():
            yield
        self.net.train()

    def validation_loss(self, source: Ahead, count: int) -> float:
        """Mean loss of the averaged weights over the first ``count`` batches of a held-out source.

        Its times are uniform and its terms weighted as published, see :meth:`losses`; its pairs are coupled as those of
        the training, so it compares runs of one coupling.
        """
        return self.validation_losses(source, count).mean().item()

    @torch.no_grad()
    def validation_losses(self, source: Ahead, count: int) -> Tensor:
        """The same by batch, (count,)."""
        with self.evaluating():
            network = partial(self.run_network, self.net)
            return torch.stack([self.losses(network, source.make(i)).mean() for i in range(count)])

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Images of the averaged weights from fixed noise in 10 steps, (N, C, H, W) in [-1, 1].

        N is 64, or 16 of more than 64 pixels a side, and no more than two batches. They are made no more at a time than
        a training step takes, so that memory which is enough for training is enough here.
        """
        c = self.config
        count = min(64 if c.image_size <= 64 else 16, 2 * c.batch_size)
        at_once = max(1, c.batch_size // (c.grad_accum * self.processes.world))
        shape = (c.in_channels, c.image_size, c.image_size)
        solver = method_of(c.method).own_solver or "euler"
        sampler = Sampler(self.net, c.method, shape, c.sigma, solver, seed=c.seed, precision=c.mixed_precision)
        with self.evaluating():
            return torch.cat([part for _, part, _ in sample_many(sampler, range(count), at_once)])

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What sampling needs: the averaged weights and the description of network, method and run."""
        return {
            "format": checkpoint.FORMAT,
            "version": 1,
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            **({"classes": list(self.classes)} if self.classes else {}),
            **({"init": self.origin} if self.origin else {}),
            "config": self.options(),
            "network": self.description,
            "method": self.weights_method(),
            "ema_model": self.ema.module_state_dict(dtype),
        }

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on, besides its options."""
        return self.weights() | {
            "net_model": self.net.state_dict(),
            "optim": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.bad[0].item(),
            "best": self.best,
            "data": self.data,
            "history": self.history,
            "minutes": self.config.minutes,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take a run's state up again; options that have changed since are recorded in ``history``.

        Raises:
            ValueError: the checkpoint's network, method, data or split is not this run's, or it is further than that.
        """
        if gaps := [key for key in ("net_model", "optim", "ema", "scaler") if key not in state]:
            raise ValueError(
                f"{path} holds no state of a run (no {gaps[0]}): choose another folder with {self.elsewhere}"
            )
        for key, ours in (("network", self.description), ("method", self.weights_method())):
            theirs = state.get(key, {})
            if key == "method":  # older files: their options tell the coupling, or it is not known
                asked = (state.get("config") or {}).get("coupling", self.config.coupling)
                usual = {name: getattr(TrainConfig, name) for name in self.constants()}
                theirs = {"coupling": method_of(self.config.method).joint(asked), **usual, **theirs}
            if different := differences(theirs, ours, ours, free=("checkpointing",)):
                raise ValueError(
                    f"{path} is of another {key} ({different}): use its config.yaml, or another {self.elsewhere}"
                )
        self._compare(state, path)
        with reading(path, f"restore it from a copy, or choose another folder with {self.elsewhere}"):
            checkpoint.check_finite(state["net_model"])
            for shadow in (state["ema"]["shadow"], *state["ema"].get("power", {}).values()):
                checkpoint.check_finite(shadow)
            self.net.load_state_dict(state["net_model"])
            if len(state["optim"]["param_groups"]) != len(self.optimizer.param_groups):
                raise ValueError(
                    f"{path} is of another optimizer than --optimizer {self.config.optimizer}: give the same, or "
                    f"another {self.elsewhere}"
                )
            self._restore_optimizer(state["optim"])
            self.ema.load_state_dict(state["ema"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.best, self.bad[0] = state["step"], state["best"], state["skipped"]
            self.seconds, self.images_seen = state["seconds"], state["images_seen"]
            self.origin = state.get("init", {})

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Take its options and moments up again, which torch does not compare with the parameters."""
        groups = [{key: type(value) for key, value in group.items()} for group in self.optimizer.param_groups]
        ours = [{key: group[key] for key in ("betas", "weight_decay")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        if groups != [{key: type(value) for key, value in group.items()} for group in self.optimizer.param_groups]:
            raise ValueError("the options of its optimizer are of other types")
        for group, options in zip(self.optimizer.param_groups, ours, strict=True):
            group.update(options)  # those of the run as it is now
        for parameter, moments in self.optimizer.state.items():
            checkpoint.check_finite(moments)
            if {x.shape for x in moments.values()} - {parameter.shape, torch.Size()}:
                raise ValueError("the moments of its optimizer are of other shapes than the parameters")

    def _compare(self, state: dict[str, Any], path: Path) -> None:
        """Refuse a run whose past or split would be another one; note what else differs."""
        self._check_length(state, path)
        self._check_origin(state, path)
        # as JSON has them: tuples are lists
        old, new = (json.loads(json.dumps(flat(options))) for options in (state.get("config", {}), self.options()))
        before, now = ({key: options.get(key) for key in self.fixed} for options in (old, new))
        before["ema_std"], now["ema_std"] = list(state["ema"].get("power", {})), list(self.config.ema_std)
        if state.get("data") and self.data:
            before, now = before | {"data": state["data"]}, now | {"data": self.data}
        else:
            self.processes.say(f"note: {path} does not say what data it has seen: that they are these is not checked")
        check_same(path, before, now, f"give the same, or another {self.elsewhere}")
        changes = {key: [old[key], new[key]] for key in new if key in old and old[key] != new[key]}
        self.history = list(state.get("history", []))
        if changes:
            self.history.append({"step": state["step"], **changes})
            self.processes.say(f"changed since step {state['step']}: {in_words(changes)}")

    def _check_length(self, state: dict[str, Any], path: Path) -> None:
        """Refuse a run that is further than what is asked for; one of minutes ends a little after them."""
        c, minutes = self.config, state["seconds"] / 60
        there, asked, unit = f"at step {state['step']}", c.total_steps, "steps"
        beyond = state["step"] > c.total_steps
        if c.minutes is not None:
            there, asked, unit = f"at minute {minutes:.3g}", f"{c.minutes:g}", "minutes"
            beyond = minutes > c.minutes != state.get("minutes")
        if beyond:
            raise ValueError(
                f"{path} is {there}, beyond the {asked} that are asked for: give more {unit}, or another "
                f"{self.elsewhere}"
            )

    def _check_origin(self, state: dict[str, Any], path: Path) -> None:
        """Refuse ``--init`` of other weights than the run began from; without it the run goes on in any case."""
        if not self.config.init:
            return
        given, was = Path(self.config.init), state.get("init", {})
        file = checkpoint.find(given) if given.exists() else given  # they may be gone by now
        if file.name != was.get("weights") or (given.exists() and file_hash(file) != was.get("sha256")):
            raise ValueError(
                f"--init {given}: {path} began from {was.get('weights') or 'random weights'}, other ones than these; "
                f"leave it out, or choose another {self.elsewhere}"
            )

    def constants(self) -> dict[str, Any]:
        """The options that are constants of the method's loss."""
        return {name: getattr(self.config, name) for name in method_of(self.config.method).constants}

    def weights_method(self) -> dict[str, Any]:
        """Name, constants and coupling of the method, as a checkpoint holds them."""
        c = self.config
        coupling = method_of(c.method).joint(c.coupling)
        return {"name": c.method, "sigma": c.sigma, **self.constants(), "coupling": coupling}

    def options(self) -> dict[str, Any]:
        """The options as primitives, without this machine's paths, which are nobody's business but the run folder's."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}
        return options | {"out": "", "data_root": "", "data": Path(self.config.data).name, "init": "", "resume": "no"}
