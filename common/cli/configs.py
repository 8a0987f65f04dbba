"""The options of a training run and of a sampling run, as frozen dataclasses without torch.

A folder's ``config.py`` holds its presets (instances of :class:`TrainConfig`); ``common.cli.parse`` turns a class
into a command line. The text under each field is its ``--help``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from common.cli.ranges import (
    Above,
    AtLeast,
    AtMost,
    AverageStd,
    Below,
    Count,
    Device,
    Matches,
    MayBeEmpty,
    Minutes,
    NoneFor,
    NotNegative,
    OneOf,
    Positive,
    Seed,
    Share,
    Split,
    Whole,
)
from common.methods import METHODS, NAMES, TIMES


def among(*names: str) -> OneOf:
    """Some methods, by any of their names."""
    return OneOf(names, others=(*NAMES.items(),))


MethodName = Annotated[str, among(*METHODS)]
SolverName = Literal[
    "auto", "fitted",
    "euler", "midpoint", "heun", "rk4",
    "ab2", "ab4", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm1", "ipndm2", "ipndm3", "ipndm4",
    "dopri5", "torchdyn", "flowmap", "consistency", "idff", "euler_maruyama",
]  # fmt: skip
TimesName = Annotated[
    str, OneOf((*TIMES,), others=(("logit_normal", "logit-normal"), ("u_shaped", "u-shaped"), ("ushaped", "u-shaped")))
]
GridName = Literal["auto", "uniform", "cosine", "power", "logsnr", "edm", "adaptive"]


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run."""

    # ---- what is learnt
    method: MethodName = "cfm"
    """cfm, otcfm, fm (Lipman), sbcfm, rf (rectified flow), idff (data and score heads); flowmap, meanflow: the
    mean velocity between two times, for one step or more; ect and ect_idff: consistency tuning of --init, the weights
    of a velocity and of idff, for one to four steps"""
    sigma: NotNegative = 0.0
    """Noise of the path: its constant spread (cfm, otcfm, fm) or the bridge's sigma (sbcfm, idff)"""
    flow_weight: NotNegative = 2.0
    """idff: weight of the data head's loss"""
    data_loss: Literal["data", "velocity"] = "data"
    """idff: error of the data head as its paper has it, or over max(1 - t, 0.05)^2: the velocity's"""
    score_target: Literal["noise", "conditional"] = "noise"
    """idff: what the score head is regressed on: the noise, or its mean given x_t and x1 (independent coupling only)"""
    score_weight: NotNegative = 1.0
    """idff: weight of the score head's loss"""
    ect_q: Annotated[float, AtLeast(2), AtMost(1e6)] = 2.0
    """ect, ect_idff: noise levels of a pair are about 1/q apart, closer in every stage of the run, down to 1/256. 2:
    eight stages; 256: one, as published for short runs"""
    weight_power: Annotated[float | None, AtLeast(0), AtMost(1)] = None
    """flowmap, meanflow: their losses are divided by this power of themselves; none: 0.75 and 1, as published. 0: not
    at all, for data of few dimensions, whose mean velocity is otherwise drawn towards their mode"""
    teacher_cfg: NotNegative | None = None
    """ect, ect_idff, flowmap, meanflow: learn from steps of the frozen weights of --init, with this guidance scale (1:
    none), which is learnt with them; none: from the data"""
    teacher_steps: Count | None = None
    """ect, ect_idff: learn where the teacher's trajectories of this many steps from noise end, at all their points
    (CMT, 12 to 16 steps). None: consistency"""
    teacher_noises: Count = 8192
    """With teacher steps: how many trajectories are made before the first step; they are kept in trajectories/ of the
    run folder, and the time that they take is not of --minutes"""
    times: TimesName = "uniform"
    """Distribution of the training times t (0 noise, 1 data), stratified over a batch. logit-normal: logit t is normal;
    mixed: a share of that, the rest uniform; edm: t = 1 / (1 + s) with ln s normal; u-shaped: both ends more often"""
    times_mean: Annotated[float | None, AtLeast(-10), AtMost(10)] = None
    """Mean of logit t (logit-normal, mixed; none: 0.6; above 0 is towards the data) or of ln s (edm; none: -1.2; ect:
    -1.1)"""
    times_std: Annotated[float | None, Above(0), AtMost(10)] = None
    """Standard deviation of logit t or ln s; none: 1.2, ect: 2"""
    times_share: Annotated[float | None, Above(0), Below(1)] = None
    """mixed: share of the logit-normal times; none: 0.8"""
    times_rate: Annotated[float | None, Above(0), AtMost(100)] = None
    """u-shaped: a of the density exp(a (t - 1/2)) + exp(-a (t - 1/2)); none: 4"""
    coupling: Literal["auto", "independent", "ot", "sinkhorn"] = "auto"
    """Joint of noise and data in a batch; auto takes what the method's paper uses"""
    coupling_ahead: bool = True
    """Prepare the next batch (data, noise, coupling) in a thread while the network works"""

    # ---- network
    network: Literal["unet", "conditional_unet"] = "unet"
    """unet: the ADM U-Net of guided diffusion and torchcfm; conditional_unet: 4 levels, GroupNorm 8, SiLU"""
    image_size: Count = 32
    """Side of the square images; data of another size is resized"""
    in_channels: Count = 3
    """Channels of the images: 3 colour, 1 grey"""
    num_channel: Count = 128
    """Channels of the network's first level"""
    channel_mult: tuple[Count, ...] = (1, 2, 2, 2)
    """Channel multiplier of each level, finest first"""
    num_res_blocks: Count = 2
    """Residual blocks of each level"""
    attention_resolutions: Annotated[tuple[Count, ...], MayBeEmpty()] = (16,)
    """Feature map sides at which self-attention is used"""
    num_heads: Count = 4
    """Attention heads, unless head_channels is given"""
    head_channels: Annotated[int, AtLeast(1, besides=-1)] = 64
    """Channels of one attention head; -1: use num_heads"""
    dropout: Share = 0.1
    """Dropout inside residual blocks"""
    patch_size: Count = 1
    """Space-to-depth factor: 2 turns 32x32x3 into 16x16x12 before the network (4x less work)"""
    num_classes: Whole = 0
    """Classes of a conditional network; 0: unconditional"""
    label_dropout: Share = 0.1
    """Share of labels hidden in training, so that --cfg works; used when num_classes > 0"""
    checkpointing: bool = False
    """Activation checkpointing: less memory for about a third more time"""

    # ---- optimisation
    init: str = ""
    """Weights that training starts from, a checkpoint (of any project) or run folder; empty: random ones"""
    total_steps: Count = 400_000
    """Optimizer steps of the whole run"""
    epochs: Annotated[Count | None, NoneFor(0)] = None
    """Passes over the training images instead of total_steps; none, or steps given later: total_steps counts"""
    minutes: Minutes = None
    """Minutes of training instead of total_steps or epochs: the learning rate's decay follows the time that has passed.
    Counted from the end of the first step, which compiles, with validation, grids and checkpoints, without pauses"""
    batch_size: Count = 128
    """Global batch: over all processes and accumulation steps"""
    grad_accum: Count = 1
    """Micro-batches of one optimizer step"""
    lr: Positive = 2e-4
    """Peak learning rate of the optimizer"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; muon: orthogonalised momentum for the hidden convolutions, AdamW for the rest, both at lr"""
    betas: tuple[Share, ...] = (0.9, 0.999)
    """Decays of AdamW's averages of the gradient and of its square"""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of the optimizer"""
    warmup: Whole = 5000
    """Steps of linear learning-rate warm-up"""
    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Decay of the learning rate to zero after the warm-up"""
    grad_clip: NotNegative = 1.0
    """Gradient norm at which gradients are clipped; 0: off"""
    ema_decay: Share = 0.9999
    """Decay of the averaged weights"""
    ema_warmup: NotNegative = 0.75
    """Power of the EMA warm-up: decay = min(ema_decay, 1 - (1 + step)^-power); 0: none"""
    ema_std: Annotated[tuple[AverageStd, ...], MayBeEmpty()] = ()
    """Keep power-function averages, too, e.g. 0.05 0.10, for python -m common.ema RUN, which then gives one of any
    length: standard deviations as shares of the run. Up to 16 snapshots in ema/ take as many times 2 bytes a parameter
    and value (2.3 GB for 35.7M parameters and two values), memory 4 bytes; none: off"""

    # ---- data
    data: str = ""
    """torchvision:NAME, a folder, zip, tar or LMDB of images, or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    flip: bool = True
    """Random horizontal flips"""
    val_fraction: Share = 0.02
    """Share of the data held out for the validation loss"""
    resident: Literal["auto", "ram", "device", "stream"] = "auto"
    """Where the uint8 images stay: memory, GPU memory, or decoded on the fly when they do not fit"""
    num_workers: Whole = 2
    """Threads that decode images"""

    # ---- running
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Run folder; empty: runs/METHOD-WEIGHT-SIGMA beside the script"""
    resume: Literal["no", "auto"] = "no"
    """auto: continue from the run folder's last checkpoint, if there is one"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    channels_last: bool = True
    """Memory layout of images and convolutions"""
    compile: bool = False
    """torch.compile the network (minutes of warm-up on a CPU)"""
    parallel: bool = False
    """Relaunch under accelerate on all GPUs of this machine"""
    save_step: Count = 5000
    """Steps between checkpoints"""
    sample_step: Whole = 5000
    """Steps between sample grids from fixed noise; 0: none"""
    val_step: Whole = 2000
    """Steps between validation losses; 0: none"""
    log_step: Count = 50
    """Steps between rows of metrics.jsonl"""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """A logger beside metrics.jsonl"""
    plan: bool = False
    """Run 20 steps on the data, write nothing, and say what the run would take: hours, memory, disk, and which flags
    would help"""
    smoke: bool = False
    """Seconds on a CPU: a tiny network, few steps, made-up data; writes to results/smoke-METHOD"""

    def check_together(self) -> None:
        check_bridge(self.method, self.sigma)
        if self.minutes and self.epochs:
            raise ValueError(f"--minutes {self.minutes:g} and --epochs {self.epochs}: give one length of the run")
        check_objective(self)
        check_tuning(self)
        check_logger(self.logger)
        if len(self.betas) != 2:
            raise ValueError(f"--betas {' '.join(map(str, self.betas))}: give two numbers, e.g. 0.9 0.99")
        if len(set(self.ema_std)) < len(self.ema_std):
            raise ValueError(f"--ema_std {' '.join(map(str, self.ema_std))}: give each value once, e.g. 0.05 0.1")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"--grad_accum {self.grad_accum}: must divide --batch_size {self.batch_size}")
        levels, size = len(self.channel_mult), self.image_size
        if levels > 12:
            raise ValueError(f"--channel_mult has {levels} levels: give at most 12, e.g. 1,2,2,2")
        unit = self.patch_size * 2 ** (levels - 1)  # every level halves the sides, and the first one works on patches
        if size % unit:
            near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
            raise ValueError(
                f"--image_size {size}: must be divisible by {unit} (patch_size {self.patch_size}, {levels} levels), "
                f"e.g. {' or '.join(map(str, near))}; or give fewer levels by --channel_mult"
            )


def check_bridge(method: str, sigma: float) -> None:
    """Raises ValueError for a bridge without noise."""
    if METHODS[method].needs_sigma and sigma == 0:
        raise ValueError(f"--sigma 0: --method {method} is a bridge with noise, give a sigma above 0, e.g. 0.2")


def check_objective(config: TrainConfig) -> None:
    """Raises ValueError for terms that a method does not have, a biased target, and times that it does not draw."""
    method, name = METHODS[config.method], config.method
    for key in sorted({key for each in METHODS.values() for key in each.constants} - {*method.constants}):
        if getattr(config, key) != getattr(TrainConfig, key):
            others = ", ".join(other for other, each in METHODS.items() if key in each.constants)
            given = f"--{key} {getattr(config, key)}"
            raise ValueError(f"{given}: --method {name} has no such term, only {others} has; leave it out")
    joint = method.joint(config.coupling)
    if config.score_target == "conditional" and joint != "independent":
        whose = f"--coupling auto is {joint} for {name}" if config.coupling == "auto" else f"--coupling is {joint}"
        raise ValueError(
            f"--score_target conditional holds for independent noise and data only, and {whose}: "
            "add --coupling independent, or give --score_target noise"
        )
    if method.times and config.times != "uniform":
        raise ValueError(f"--times {config.times}: --method {name} draws its two times itself, leave it out")
    if method.own_times and config.times != "uniform":
        raise ValueError(
            f"--times {config.times}: --method {name} draws noise levels, leave it out (--times_mean and --times_std "
            "are those of their logarithm)"
        )
    known = (method.own_times or TIMES[config.times]).parameters
    for key in ("mean", "std", "share", "rate"):
        if (value := getattr(config, f"times_{key}")) is not None and key not in known:
            has = f"has {' and '.join(f'--times_{each}' for each in known)}" if known else "has no parameters"
            raise ValueError(f"--times_{key} {value:g}: --times {config.times} {has}; leave it out")


def check_tuning(config: TrainConfig) -> None:
    """Raises ValueError for consistency tuning of nothing, or of pairs that are not independent; for no teacher."""
    name, scale = config.method, config.teacher_cfg
    if (steps := config.teacher_steps) is not None and (scale is None or not METHODS[name].denoiser):
        raise ValueError(f"--teacher_steps {steps}: needs --method ect or ect_idff and a teacher, by --teacher_cfg 1")
    if scale is not None:
        own = [other for other, method in METHODS.items() if method.own_solver]
        if name not in own:
            raise ValueError(f"--teacher_cfg {scale:g}: --method {name} has no teacher, only {', '.join(own)} have")
        if not config.init and not config.smoke:
            raise ValueError(f"--teacher_cfg {scale:g}: give the teacher's weights or run folder by --init")
        if scale != 1 and not (config.num_classes and config.label_dropout):
            raise ValueError(
                f"--teacher_cfg {scale:g}: guidance needs labels, some of them dropped: give --num_classes and "
                "--label_dropout as the teacher's, or --teacher_cfg 1"
            )
    if not METHODS[name].denoiser:
        return
    if not config.init and not config.smoke:
        raise ValueError(f"--method {name} tunes a trained network: give its weights or run folder by --init")
    if config.coupling not in ("auto", "independent"):
        raise ValueError(
            f"--coupling {config.coupling}: --method {name} needs independent noise and data, leave it out"
        )


def check_logger(name: str) -> None:
    """Raises ValueError for a logger that is not installed, before hours of training have nowhere to be logged."""
    spec = None if name == "none" else importlib.util.find_spec(name)
    if name != "none" and (spec is None or spec.origin is None):  # without an origin: the folder that wandb leaves
        raise ValueError(f"--logger {name} is not installed: pip install {name}")


WHOLE = (0.0, 1.0)  # all times


@dataclass(frozen=True)
class WeightsConfig:
    """Options of all that samples from a network: which weights, how they are run."""

    weights: str = ""
    """Checkpoint file or run folder; empty: those of the newest run in runs/, else the shipped ones"""
    cfg: NotNegative = 1.0
    """Guidance scale of conditional weights, or by a guide; 1: none, 0: unconditional, or the guide's own images"""
    cfg_interval: tuple[Annotated[float, AtLeast(0), AtMost(1)], ...] = WHOLE
    """Times FROM TO (0 noise, 1 data) that --cfg guides; at others a step costs one evaluation"""
    guide: str = ""
    """Worse weights for the same task, a smaller network or an earlier step, that --cfg leads away from, in place of
    images without a class (autoguidance)"""
    landing: Annotated[float | None, Above(0), AtMost(1), NoneFor(0)] = None
    """Time from which the last step goes straight to the predicted data; none: the folder's choice, 1: no such rule"""
    ema: bool = True
    """Averaged weights; --no-ema: the raw ones, when the file has them"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    compile: bool = False
    """torch.compile the network"""
    seed: Seed = 0
    """Seed of the noises; image k is a function of the weights, this seed and k"""
    smoke: bool = False
    """Seconds on a CPU, with a tiny untrained network when there are no weights"""

    def check_together(self) -> None:
        check_interval(self.cfg_interval, "--cfg_interval " + " ".join(f"{time:g}" for time in self.cfg_interval))
        for flag, given in (("--cfg_interval", self.cfg_interval != WHOLE), ("--guide", self.guide)):
            if given and self.cfg == 1:
                raise ValueError(f"{flag} without guidance: give a scale by --cfg, e.g. --cfg 1.5, or leave {flag} out")


INTERVAL = r"\d*\.?\d+\.\.\d*\.?\d+"


def times_of(text: str) -> tuple[float, float]:
    """The times of "FROM..TO"."""
    start, _, stop = text.partition("..")
    return float(start), float(stop)


def check_interval(interval: Sequence[float], given: str) -> None:
    """Raises ValueError for what is no interval of times; ``given`` is what was typed."""
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"{given}: give two times from 0 (noise) to 1 (data), the smaller first, e.g. 0.1 0.9")


@dataclass(frozen=True)
class SampleConfig(WeightsConfig):
    """Options of sampling: a grid (simple_gen_test) or many images (gen)."""

    usual_steps: ClassVar[int] = 10
    n_samples: Count = 64
    """Number of images"""
    solver: SolverName = "auto"
    """Numerical method; auto: the sampler fitted to these weights and n_steps if there is one, else a good plain one"""
    n_steps: Count | None = None
    """Intervals of the time grid; none: 10, or 4 of weights that were tuned for few (ect). The NFE is counted and
    printed"""
    grid: GridName = "auto"
    """Time grid; adaptive: made for these weights by dynamic programming and kept beside them"""
    rtol: Positive = 1e-5
    """Tolerances of the adaptive solvers"""
    atol: Positive = 1e-5
    """Tolerances of the adaptive solvers"""
    label: Annotated[int | None, AtLeast(-1), NoneFor(-1)] = None
    """Class to draw; none (or -1): all classes in turn"""
    batch_size: Count = 100
    """Images at a time and process; changes speed and memory only"""


@dataclass(frozen=True)
class GridConfig(SampleConfig):
    """Options of simple_gen_test.py."""

    interpolate: bool = False
    """Rows of images from noise 2k to noise 2k + 1 on the sphere, --columns in a row, --n_samples in all"""
    columns: Annotated[int, AtLeast(2)] = 8
    """Images in a row of --interpolate, with its two ends"""
    invert: str = ""
    """An image to follow back to its noise and forth again; the error is printed. auto: rk4 on the power grid"""
    gif: bool = False
    """A moving picture from noise to the images, step by step; at most 1.5 MB of 64 images of 32 pixels a side"""
    out: str = ""
    """Picture to write; empty: samples/ beside the script"""

    def check_together(self) -> None:
        super().check_together()
        for flag, given in (("--interpolate", self.interpolate), ("--invert", self.invert)):
            if self.gif and given:
                raise ValueError(f"--gif shows how images are made of noise: leave {flag} out")
        if self.gif and self.out and not self.out.endswith(".gif"):
            raise ValueError(f"--out {self.out}: with --gif give a name that ends in .gif")


@dataclass(frozen=True)
class GenConfig(SampleConfig):
    """Options of gen_*.py: many images, resumable and splittable."""

    n_samples: Count = 50_000
    """Number of images"""
    save_dir: str = ""
    """Folder of numbered PNG files, or a .npz file; empty: samples/gen beside the script"""
    range: str = ""
    """Indices to make, START:STOP; empty: 0:n_samples. Parts of one set can be made on several machines"""

    def check_together(self) -> None:
        super().check_together()
        index_range(self.range, self.n_samples)


def index_range(text: str, n_samples: int) -> tuple[int, int]:
    """Start and stop of ``--range START:STOP`` within ``n_samples``; an empty text is all of them."""
    match = re.fullmatch(r"([0-9]*):([0-9]*)", text or ":")
    if not match:
        raise ValueError(f"--range {text}: write START:STOP, e.g. 0:10000")
    start, stop = int(match[1] or 0), int(match[2] or n_samples)
    if start >= stop:
        raise ValueError(f"--range {text}: START must be below STOP, which is {stop}")
    if stop > n_samples:
        raise ValueError(f"--range {text}: there are only --n_samples {n_samples}; raise it to {stop} or more")
    return start, stop


@dataclass(frozen=True)
class TrueConfig:
    """Options of gen_true_*.py: the real images as numbered PNG files."""

    data: str = ""
    """torchvision:NAME, a folder, zip, tar or LMDB of images, or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    save_dir: str = ""
    """Folder of numbered PNG files, or a .npz file; empty: samples/true beside the script"""
    n_samples: Whole = 0
    """Number of images; 0: all"""
    split: Split = "train"
    """Split of a torchvision data set, or of data whose folders or files name splits"""
    side: Annotated[Count | None, NoneFor(0)] = None
    """Side of the images; none: that of the folder's first preset"""
    smoke: bool = False
    """A few made-up images"""


@dataclass(frozen=True)
class MeasureConfig(SampleConfig):
    """Options of measure.py: how far are generated images from real ones?"""

    n_samples: Count = 5000
    """Generated images"""
    usual_steps: ClassVar[int] = 20
    n_steps: Count | None = None
    """Intervals of the time grid; none: 20, or 4 of weights that were tuned for few (ect). The NFE is counted and
    printed"""
    data: str = ""
    """Real images: torchvision:NAME, a folder, zip, tar, LMDB or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    epochs: Annotated[Count | None, NoneFor(0)] = None
    """Epochs of the classifier, when it has to be trained; none: 4, or 10 of a residual one"""
    features: Literal["none", "effnet-lite0"] = "none"
    """effnet-lite0: Frechet distance, KID, precision and recall by ImageNet features of pip packages, to as many
    training images, and what real images get; 45 images a second on a CPU core"""
    inception: str = ""
    """Weights of FID's Inception: FID, KID, precision and recall to all training images, too (20 images a second on a
    CPU core, once for the training images); empty: done without being asked where torch's cache has them, as "python
    -m common.evaluate inception" tells; cache: they must be there; none: without"""
    out: str = ""
    """JSON file for the result; empty: print it only"""
    card: bool = False
    """Add the result to the JSON card beside the weights"""
    nearest: str = ""
    """Picture to write: the samples nearest to training images, each with its three nearest, and the distances of all
    beside those of held-out images. Are training images made again?"""

    # ---- sweep of guidance
    sweep_cfg: tuple[NotNegative, ...] = ()
    """Guidance scales, each to be measured in each interval: rows in the file of --out (.jsonl), a table, and a picture
    beside the file; goes on where it was stopped"""
    sweep_interval: tuple[Annotated[str, Matches(INTERVAL, "write FROM..TO, e.g. 0.1..0.9")], ...] = ("0..1",)
    """Intervals of the sweep, e.g. 0..1 0.1..0.9"""
    sweep_seed: Seed = 1
    """Seed of the sweep's noises, which is not that of the figures that are reported"""

    def check_together(self) -> None:
        if not self.sweep_cfg:
            super().check_together()
            for name in ("sweep_interval", "sweep_seed"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"--{name} without a sweep: give scales, e.g. --sweep_cfg 1 1.5 2")
            return
        for text in self.sweep_interval:
            check_interval(times_of(text), f"--sweep_interval {text}")
        if self.cfg != 1 or self.cfg_interval != WHOLE:
            raise ValueError("--sweep_cfg goes through scales and intervals itself: leave --cfg and --cfg_interval out")
        if all(cfg == 1 for cfg in self.sweep_cfg):
            raise ValueError("--sweep_cfg 1 alone is no guidance: give more scales, e.g. --sweep_cfg 1 1.5 2")
        if self.nearest:
            raise ValueError("--nearest is for one measurement: leave it out of a sweep")
        if self.card:
            raise ValueError(
                "--card is for one measurement: leave it out of a sweep, and measure what you choose by --cfg"
            )
        if self.out and not self.out.endswith(".jsonl"):
            raise ValueError(f"--out {self.out}: the rows of a sweep go to a name that ends in .jsonl")
        if self.sweep_seed == self.seed:
            raise ValueError(
                f"--sweep_seed {self.seed} is --seed, that of reported figures: choose scales on another one"
            )


@dataclass(frozen=True)
class FitConfig(WeightsConfig):
    """Options of fit_sampler.py: a sampler of few steps, fitted to a network's own fine trajectories; --smoke of the
    shipped weights keeps nothing."""

    n_steps: tuple[Count, ...] = (8,)
    """Numbers of steps to fit a sampler for, each with as many evaluations"""
    n_noises: Count = 32
    """Noises to fit on"""
    n_test: Count = 32
    """Other noises, to report the error on"""
    fine_steps: Count = 100
    """Steps of the fine trajectories"""
    search: Whole = 20
    """Fits that the search for times may take; 0: the best of four grids"""

    def check_together(self) -> None:
        super().check_together()
        most = max(self.n_steps)
        if self.fine_steps < 2 * most:
            raise ValueError(f"--fine_steps {self.fine_steps} is less than twice the {most} steps to fit")
