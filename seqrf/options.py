"""The options of sequential reflow: one tree of frozen dataclasses, filled by a configuration file and by flags.

Names and spellings are those of the paper's own program: --config=FILE, --config.training.reflow_t=4, --workdir.
Torch is not imported here, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from common.cli.configs import SolverName
from common.cli.ranges import Above, AtLeast, AtMost, Below, Device, Matches, MayBeEmpty, Minutes, OneOf, Whole

Count = Annotated[int, AtLeast(1, "give 1 or more")]
Seed = Annotated[int, AtLeast(0, "give 0 or more"), Below(2**63, "give 0 or more, below 2^63")]

_PHASES, _RATE = "give 1 (the teacher) or 2 (reflow)", "give 0 or more and less than 1, e.g. 0.999"
_TOLERANCE = "give more than 0 and less than 1, e.g. 1e-4"
_NO_FIXED_GRID = ("auto", "fitted", "dopri5", "torchdyn", "flowmap", "consistency", "idff", "euler_maruyama")
FIXED = tuple(name for name in get_args(SolverName) if name not in _NO_FIXED_GRID)
# What config.sampling.predictor may be, and its name in common.solvers; the first two are the paper's program's.
PREDICTORS = {"rf_solver": "euler", "rf_solver_heun": "heun", **{name: name for name in FIXED}}

GENERATE, REFLOW, DISTILL = "gen_reflow", "train_reflow", "train_distill"
PLANE = "toy2d:"  # begins the name of a data set of points


@dataclass(frozen=True)
class Data:
    """What is learnt: images, or points of the plane."""

    dataset: Annotated[
        str, Matches(".+", "give torchvision:NAME, a folder or zip of images, .npy/.npz, or toy2d:moons")
    ] = "toy2d:moons"
    """torchvision:NAME, a folder or zip of images, .npy/.npz, or toy2d:TARGET with a name of common.data.toys"""
    source: str = "gaussian"
    """Where the flow starts: gaussian, or for toy2d another distribution of common.data.toys"""
    root: str = ""
    """Where a torchvision data set lies or is downloaded to; empty: data/ in this folder"""
    image_size: Annotated[int, AtLeast(1, "give 1 or more, e.g. 32")] = 32
    """Side of the images; those of another size are resized"""
    channels: Annotated[int, AtLeast(1, "give 3 (colour) or 1 (grey)")] = 3
    """Channels of the images: 3 colour, 1 grey"""
    random_flip: bool = True
    """Mirror half of the training pairs, both ends together"""
    classifier: str = ""
    """Weights of a small classifier whose features measure images; empty: trained once, in the work folder"""
    inception: str = ""
    """Weights of the Inception network for FID and KID; empty: those in torch's cache, if they are there"""


@dataclass(frozen=True)
class Model:
    """The network; its shape is the teacher's."""

    rf_phase: Annotated[int, AtLeast(1, _PHASES), AtMost(2, _PHASES)] = 2
    """1: the teacher itself (toy2d only; image folders train theirs), 2: reflow and all that follows"""
    condition: Literal["heads", "edges"] = "heads"
    """How a student knows its segment: a time embedding for each, or the segment's edges as an input"""
    ema_rate: Annotated[float, AtLeast(0, _RATE), Below(1, _RATE)] = 0.999
    """Decay of the averaged weights"""
    variable_ema_rate: bool = True
    """Let the decay grow with the number of updates; False: constant from the first step"""
    num_scales: Count = 4
    """Steps of the fixed-grid solvers in all, shared among the segments"""
    width: Count = 128
    """Units of each hidden layer of a toy2d teacher"""


@dataclass(frozen=True)
class Training:
    """Pairs and training."""

    reflow_mode: Literal["gen_reflow", "train_reflow", "train_distill"] = "gen_reflow"
    """gen_reflow: make pairs; train_reflow: learn the chords; train_distill: learn one Euler step a segment"""
    reflow_t: Annotated[int, AtLeast(1, "give 1 (plain reflow) or more, e.g. 4")] = 4
    """Number of segments; 1: plain reflow (2-rectified flow)"""
    adaptive_interval: bool = False
    """Segments of equal curvature, by dynamic programming on teacher trajectories, instead of equal length"""
    adaptive_samples: Count = 128
    """Teacher trajectories that adaptive segments are chosen on"""
    adaptive_steps: Count = 500
    """Euler steps of these trajectories"""
    import_torch: str = "none"
    """Weights to start from, which made the pairs: a checkpoint of this repository or of another project; for
    train_distill also a reflow run. In evaluation: weights to evaluate; none: the run's own"""
    pairs: str = ""
    """Folder of the pairs; empty: samples/reflow_batch in the work folder"""
    n_reflow_data: Count = 1_000_000
    """Number of pairs, of all segments together"""
    gen_reflow_size: Count = 256
    """Pairs solved at a time when they are made"""
    batch_size: Count = 512
    """Pairs of a training step, over all processes"""
    n_iters: Count = 100_001
    """Training steps"""
    minutes: Minutes = None
    """Minutes of training of each student instead of n_iters: the learning rate's decay follows the time that has
    passed. Counted from the end of the first step, with snapshots, without pauses"""
    lr: Annotated[float, Above(0, "give more than 0, e.g. 2e-4")] = 2e-4
    """Peak learning rate of AdamW"""
    warmup: Annotated[int, AtLeast(0, "give 0 (none) or more, e.g. 5000")] = 5000
    """Steps of linear learning-rate warm-up"""
    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Decay of the learning rate to zero after the warm-up"""
    grad_clip: Annotated[float, AtLeast(0, "give 0 (off) or more, e.g. 1")] = 1.0
    """Gradient norm at which gradients are clipped; 0: off"""
    loss: Literal["mse", "huber"] = "mse"
    """Squared error, or pseudo-Huber"""
    t_density: Literal["uniform", "u-shaped"] = "uniform"
    """Where along the chord the velocity is learnt"""
    snapshot_freq: Count = 10_000
    """Steps between snapshots: weights under their step's name, and the state to resume from"""
    snapshot_sampling: bool = True
    """Draw a picture of samples at each snapshot"""
    snapshot_fid_sample: Annotated[int, AtLeast(0, "give 0 (none) or more, e.g. 10000")] = 0
    """Samples measured at each snapshot; 0: none"""
    log_freq: Count = 50
    """Steps between rows of metrics.jsonl"""


@dataclass(frozen=True)
class Sampling:
    """Numerical methods, of the teacher when pairs are made and of the student in evaluation."""

    method: Literal["ode", "pc"] = "ode"
    """ode: adaptive, at the tolerance; pc: a fixed number of steps (model.num_scales) by the predictor"""
    tol: Annotated[float, Above(0, _TOLERANCE), Below(1, _TOLERANCE)] = 1e-4
    """Tolerance of the adaptive solver, relative and absolute"""
    predictor: Annotated[str, OneOf((*PREDICTORS,), "the adaptive solver is --config.sampling.method=ode")] = (
        "rf_solver"
    )
    """Solver of a fixed number of steps: rf_solver (Euler), rf_solver_heun (Heun, two evaluations a step), or a name of
    common.solvers, e.g. rk4"""
    pairs_solver: Annotated[str, OneOf(("auto", "dopri5", *FIXED))] = "auto"
    """Solver of the pairs: auto (rk4 where it is as good as dopri5 for less), dopri5, or a name of common.solvers with
    fixed steps"""
    landing: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Time from which pairs go straight to the predicted data, for teachers whose velocity near it is mostly error"""
    cfg: Annotated[float, AtLeast(0, "give 1 (no guidance) or another number from 0, e.g. 2")] = 1.0
    """Guidance scale of a class-conditional teacher when pairs are made, and in evaluation of a teacher"""


@dataclass(frozen=True)
class Eval:
    """Evaluation."""

    reflow_mode: Literal["eval_reflow"] = "eval_reflow"
    """Kind of evaluation"""
    num_samples: Count = 50_000
    """Samples to draw"""
    batch_size: Count = 500
    """Samples drawn at a time"""
    begin_step: Annotated[int, AtLeast(-1, "give -1 (only the last weights), 0 or more")] = -1
    """First snapshot to evaluate; -1: only the last weights"""
    end_step: Whole = 10_000_000
    """Last snapshot to evaluate"""
    interval_step: Annotated[int, AtLeast(1, "give 1 (every snapshot) or more, e.g. 10000")] = 1
    """Evaluate only snapshots whose step is a multiple of this"""
    save_trajectory: bool = False
    """Keep the trajectories of 64 samples as .npz, and a picture of them"""


@dataclass(frozen=True)
class Pipeline:
    """What pipeline.py goes through."""

    seeds: tuple[Seed, ...] = (0,)
    """Seeds; each has its own teacher (toy2d), pairs, students and noises"""
    segments: tuple[Count, ...] = (1, 2, 4)
    """Numbers of segments to reflow with; 1: plain reflow (2-RF)"""
    adaptive: Annotated[tuple[Count, ...], MayBeEmpty()] = (4,)
    """Numbers of adaptive segments to reflow with"""
    distill: Annotated[tuple[Count, ...], MayBeEmpty()] = (1, 4)
    """Students to distil, by their number of segments, which must be among the ones above; 1: one-step distillation"""
    steps: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Steps of Euler's method to evaluate everything at; students at no fewer than their segments"""
    teacher_steps: Annotated[tuple[Count, ...], MayBeEmpty()] = (100,)
    """More steps to evaluate the teacher at"""


@dataclass(frozen=True)
class Config:
    """A configuration file holds any part of this, as nested mappings, in get_config()."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    eval: Eval = field(default_factory=Eval)
    pipeline: Pipeline = field(default_factory=Pipeline)
    seed: Seed = 0
    """One seed for everything: pairs, training, samples"""


@dataclass(frozen=True)
class Run:
    """One command."""

    config: Config = field(default_factory=Config)
    mode: Literal["train", "eval"] = "train"
    """train: make pairs or train, see config.training.reflow_mode; eval: draw samples and measure"""
    workdir: str = ""
    """The run's folder; empty: exp/NAME in this folder, NAME being that of the configuration file"""
    eval_folder: str = "eval"
    """Folder of an evaluation, inside the work folder"""
    log_name: str = ""
    """Name of the run for wandb and TensorBoard"""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """A logger beside metrics.jsonl"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic in training"""
    resume: bool = True
    """Continue a run that was stopped; --noresume refuses a folder that holds one"""
    plan: bool = False
    """Make some pairs, take 20 steps, keep nothing, and say what the stages would take: hours, memory, disk. main.py:
    the pairs and the training that follows (by reflow_mode: training alone); pipeline.py: those of all students"""
    smoke: bool = False
    """Seconds on a CPU: few pairs, steps and samples"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        training, evaluation = self.config.training, self.config.eval
        if training.minutes and self.config.model.rf_phase == 1:
            raise ValueError(
                f"--config.training.minutes {training.minutes:g} with --config.model.rf_phase 1: a teacher of the "
                "plane is trained in steps, give --config.training.n_iters"
            )
        if training.n_reflow_data < training.reflow_t:
            raise ValueError(
                f"--config.training.n_reflow_data {training.n_reflow_data}: give {training.reflow_t} or more, one pair "
                f"for each of the {training.reflow_t} segments of --config.training.reflow_t"
            )
        if evaluation.begin_step > evaluation.end_step:
            raise ValueError(
                f"--config.eval.begin_step {evaluation.begin_step}: give {evaluation.end_step} "
                "(--config.eval.end_step) or less"
            )
