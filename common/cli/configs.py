"""The options of a training run and of a sampling run, as frozen dataclasses without torch.

A folder's ``config.py`` holds its presets (instances of :class:`TrainConfig`); ``common.cli.parse`` turns a class
into a command line. The text under each field is its ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["cfm", "otcfm", "fm", "sbcfm", "rf", "idff"]
SolverName = Literal[
    "auto", "fitted",
    "euler", "midpoint", "heun", "rk4",
    "ab2", "ab4", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm1", "ipndm2", "ipndm3", "ipndm4",
    "dopri5", "torchdyn", "idff", "euler_maruyama",
]  # fmt: skip
GridName = Literal["auto", "uniform", "cosine", "power", "logsnr", "edm", "adaptive"]


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run."""

    # ---- what is learnt
    method: MethodName = "cfm"
    """cfm, otcfm, fm (Lipman), sbcfm, rf (rectified flow), idff (data and score heads)"""
    sigma: float = 0.0
    """Noise of the path: its constant spread (cfm, otcfm, fm) or the bridge's sigma (sbcfm, idff)"""
    flow_weight: float = 2.0
    """idff: weight of the data head's loss against the score head's"""
    coupling: Literal["auto", "independent", "ot", "sinkhorn"] = "auto"
    """Joint of noise and data in a batch; auto takes what the method's paper uses"""
    coupling_ahead: bool = True
    """Prepare the next batch (data, noise, coupling) in a thread while the network works"""

    # ---- network
    network: Literal["unet", "conditional_unet"] = "unet"
    """unet: the ADM U-Net of guided diffusion and torchcfm; conditional_unet: 4 levels, GroupNorm 8, SiLU"""
    image_size: int = 32
    """Side of the square images; data of another size is resized"""
    in_channels: int = 3
    """Channels of the images: 3 colour, 1 grey"""
    num_channel: int = 128
    """Channels of the network's first level"""
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    """Channel multiplier of each level, finest first"""
    num_res_blocks: int = 2
    """Residual blocks of each level"""
    attention_resolutions: tuple[int, ...] = (16,)
    """Feature map sides at which self-attention is used"""
    num_heads: int = 4
    """Attention heads, unless head_channels is given"""
    head_channels: int = 64
    """Channels of one attention head; -1: use num_heads"""
    dropout: float = 0.1
    """Dropout inside residual blocks"""
    patch_size: int = 1
    """Space-to-depth factor: 2 turns 32x32x3 into 16x16x12 before the network (4x less work)"""
    num_classes: int = 0
    """Classes of a conditional network; 0: unconditional"""
    label_dropout: float = 0.1
    """Share of labels hidden in training, so that --cfg works; used when num_classes > 0"""
    checkpointing: bool = False
    """Activation checkpointing: less memory for about a third more time"""

    # ---- optimisation
    total_steps: int = 400_000
    """Optimizer steps of the whole run"""
    epochs: int = 0
    """Passes over the training images instead of total_steps; 0: total_steps counts"""
    batch_size: int = 128
    """Global batch: over all processes and accumulation steps"""
    grad_accum: int = 1
    """Micro-batches of one optimizer step"""
    lr: float = 2e-4
    """Peak learning rate of AdamW"""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW"""
    warmup: int = 5000
    """Steps of linear learning-rate warm-up"""
    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Decay of the learning rate to zero after the warm-up"""
    grad_clip: float = 1.0
    """Gradient norm at which gradients are clipped; 0: off"""
    ema_decay: float = 0.9999
    """Decay of the averaged weights"""
    ema_warmup: float = 0.75
    """Power of the EMA warm-up: decay = min(ema_decay, 1 - (1 + step)^-power); 0: none"""

    # ---- data
    data: str = ""
    """torchvision:NAME, a folder, zip, tar or LMDB of images, or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    flip: bool = True
    """Random horizontal flips"""
    val_fraction: float = 0.02
    """Share of the data held out for the validation loss"""
    resident: Literal["auto", "ram", "device", "stream"] = "auto"
    """Where the uint8 images stay: memory, GPU memory, or decoded on the fly when they do not fit"""
    num_workers: int = 2
    """Threads that decode images"""

    # ---- running
    seed: int = 0
    """One seed for everything"""
    out: str = ""
    """Run folder; empty: results/METHOD-WEIGHT-SIGMA beside the script"""
    resume: Literal["no", "auto"] = "no"
    """auto: continue from the run folder's last checkpoint, if there is one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    channels_last: bool = True
    """Memory layout of images and convolutions"""
    compile: bool = False
    """torch.compile the network (minutes of warm-up on a CPU)"""
    parallel: bool = False
    """Relaunch under accelerate on all GPUs of this machine"""
    save_step: int = 5000
    """Steps between checkpoints"""
    sample_step: int = 5000
    """Steps between sample grids from fixed noise; 0: none"""
    val_step: int = 2000
    """Steps between validation losses; 0: none"""
    log_step: int = 50
    """Steps between rows of metrics.jsonl"""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """A logger beside metrics.jsonl"""
    smoke: bool = False
    """Seconds on a CPU: a tiny network, few steps, made-up data; writes to results/smoke"""


@dataclass(frozen=True)
class WeightsConfig:
    """Options of all that samples from a network: which weights, how they are run."""

    weights: str = ""
    """Checkpoint file or run folder; empty: the shipped weights"""
    cfg: float = 1.0
    """Guidance scale of conditional weights; 1: none, 0: unconditional"""
    landing: float = 0.0
    """Time from which the last step goes straight to the predicted data; 0: the folder's choice, 1: no such rule"""
    ema: bool = True
    """Averaged weights; --no-ema: the raw ones, when the file has them"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    compile: bool = False
    """torch.compile the network"""
    seed: int = 0
    """Seed of the noises; image k is a function of the weights, this seed and k"""
    smoke: bool = False
    """Seconds on a CPU, with a tiny untrained network when there are no weights"""


@dataclass(frozen=True)
class SampleConfig(WeightsConfig):
    """Options of sampling: a grid (simple_gen_test) or many images (gen)."""

    n_samples: int = 64
    """Number of images"""
    solver: SolverName = "auto"
    """Numerical method; auto: the sampler fitted to these weights and n_steps if there is one, else a good plain one"""
    n_steps: int = 10
    """Intervals of the time grid; the NFE is counted and printed"""
    grid: GridName = "auto"
    """Time grid; adaptive: made for these weights by dynamic programming and kept beside them"""
    rtol: float = 1e-5
    """Tolerances of the adaptive solvers"""
    atol: float = 1e-5
    """Tolerances of the adaptive solvers"""
    label: int = -1
    """Class to draw; -1: all classes in turn"""
    batch_size: int = 100
    """Images at a time and process; changes speed and memory only"""


@dataclass(frozen=True)
class GridConfig(SampleConfig):
    """Options of simple_gen_test.py."""

    interpolate: bool = False
    """Rows of images from noise 2k to noise 2k + 1 on the sphere, --columns in a row, --n_samples in all"""
    columns: int = 8
    """Images in a row of --interpolate, with its two ends"""
    invert: str = ""
    """An image to follow back to its noise and forth again; the error is printed. auto: rk4 on the power grid"""
    out: str = ""
    """Picture to write; empty: samples/ beside the script"""


@dataclass(frozen=True)
class GenConfig(SampleConfig):
    """Options of gen_*.py: many images, resumable and splittable."""

    n_samples: int = 50_000
    """Number of images"""
    save_dir: str = ""
    """Folder of numbered PNG files, or a .npz file; empty: samples/gen beside the script"""
    range: str = ""
    """Indices to make, START:STOP; empty: 0:n_samples. Parts of one set can be made on several machines"""


@dataclass(frozen=True)
class TrueConfig:
    """Options of gen_true_*.py: the real images as numbered PNG files."""

    data: str = ""
    """torchvision:NAME, a folder, zip, tar or LMDB of images, or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    save_dir: str = ""
    """Folder of numbered PNG files, or a .npz file; empty: samples/true beside the script"""
    n_samples: int = 0
    """Number of images; 0: all"""
    split: Literal["train", "test"] = "train"
    """Split of a torchvision data set"""
    side: int = 0
    """Side of the images; 0: that of the folder's first preset"""
    smoke: bool = False
    """A few made-up images"""


@dataclass(frozen=True)
class MeasureConfig(SampleConfig):
    """Options of measure.py: how far are generated images from real ones?"""

    n_samples: int = 5000
    """Generated images"""
    n_steps: int = 20
    """Intervals of the time grid; the NFE is counted and printed"""
    data: str = ""
    """Real images: torchvision:NAME, a folder, zip, tar, LMDB or .npy/.npz; empty: the folder's own data set"""
    data_root: str = ""
    """Where the folder's own data set lies, or torchvision's is downloaded to; empty: data/ beside the script"""
    epochs: int = 0
    """Epochs of the classifier, when it has to be trained; 0: 4, or 10 of a residual one"""
    inception: str = ""
    """Weights of FID's Inception: FID, KID, precision and recall to the training images, too; "cache": torch's cache"""
    out: str = ""
    """JSON file for the result; empty: print it only"""
    card: bool = False
    """Add the result to the JSON card beside the weights"""


@dataclass(frozen=True)
class FitConfig(WeightsConfig):
    """Options of fit_sampler.py: a sampler of few steps, fitted to a network's own fine trajectories; --smoke of the
    shipped weights keeps nothing."""

    n_steps: tuple[int, ...] = (8,)
    """Numbers of steps to fit a sampler for, each with as many evaluations"""
    n_noises: int = 32
    """Noises to fit on"""
    n_test: int = 32
    """Other noises, to report the error on"""
    fine_steps: int = 100
    """Steps of the fine trajectories"""
    search: int = 20
    """Fits that the search for times may take; 0: the best of four grids"""
