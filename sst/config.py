"""Options of the sea surface temperature forecaster, and its presets. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from common.cli import validate
from common.cli.configs import among
from common.cli.files import read_values
from common.cli.ranges import AtLeast, Count, Device, Minutes, NoneFor, NotNegative, Positive, Seed, Share, Whole

HERE = Path(__file__).resolve().parent


WEIGHTS = "results/CFM-synthetic/CFM_sst_weights_step_final.pt"  # what simple_gen_test.py draws from


@dataclass(frozen=True)
class Options:
    """Options of sst_forecaster.py."""

    # ---- what to do
    mode: Literal["all", "train", "evaluate", "forecast"] = "all"
    """all: train, then forecast and evaluate; evaluate: with weights that are there; forecast: with them from --init"""
    weights: str = ""
    """evaluate, forecast: checkpoint file or run folder; empty: the run folder, or the shipped weights where no run has
    ended"""
    init: str = ""
    """forecast: date of the last field that is known, 2020-01-31 or 2020-01, or latest. --data need not be what the
    weights were trained on, but must have the same years, since anomalies are counted from their climate"""
    forecasts: str = ""
    """File for the forecasts themselves, NetCDF (.nc) or zarr (.zarr); empty: none, or of forecast the run folder's
    forecast.nc"""

    # ---- data
    data: str = ""
    """NetCDF file, zarr group, folder of sst.day.mean.box*.nc, or .npz; empty: the synthetic field"""
    variable: str = ""
    """Variable of a NetCDF file or zarr group; empty: sst, or the only one over time, latitude and longitude"""
    gaps: Literal["error", "land"] = "error"
    """Cells that are missing at some times only: an error, or taken as land"""
    box: Count = 60
    """Side of the square boxes, in cells; larger fields are cut at random in training, at fixed places in evaluation"""
    test_years: Positive = 1.0
    """Years at the end that are forecast and scored"""
    val_years: Positive = 1.0
    """Years before them: validation loss, choice of the weights, spread factors"""
    train_years: Annotated[float | None, AtLeast(1)] = None
    """So many years before these are learnt from, earlier ones left out; none: all"""
    harmonics: Count = 2
    """Harmonics of the seasonal cycle, which is fitted to the training years and removed"""

    # ---- what is learnt
    method: Annotated[str, among("cfm", "idff", "crps")] = "cfm"
    """cfm: the velocity; idff: data and score heads on a Brownian bridge; crps: no flow, the same network with noise as
    its input, trained on the fair CRPS of a few members"""
    train_members: Annotated[int, AtLeast(2)] = 2
    """crps: members of a training sample, each a call of the network"""
    source: Literal["noise", "state"] = "noise"
    """What the flow starts from: noise, or the present field (data to data)"""
    sigma: NotNegative = 0.0
    """Noise of the path, in standard deviations of the innovation; above 0 for idff and for --source state"""
    flow_weight: NotNegative = 2.0
    """idff: weight of the data head's loss against the score head's"""
    colour: bool = True
    """Noise with the innovations' power spectrum; --no-colour: white noise"""
    label_by: Literal["none", "season", "lead"] = "none"
    """Class label: month of the target; or lead, and each lead is then drawn directly from the start, not rolled out"""
    past: Count = 1
    """Frames that the network sees"""
    horizon: Count = 7
    """Leads to forecast"""

    # ---- network
    num_channel: Count = 32
    """Channels of the first level"""
    channel_mult: tuple[Count, ...] = (1, 2)
    """Channel multiplier of each level, finest first"""
    num_res_blocks: Count = 1
    """Residual blocks of each level"""
    patch_size: Count = 2
    """Space-to-depth factor: the first level works on cells of so many grid points"""
    dropout: Share = 0.0
    """Dropout inside residual blocks"""

    # ---- optimisation
    total_steps: Count = 400
    """Optimizer steps of the whole run"""
    minutes: Minutes = None
    """Minutes of training instead of total_steps: the learning rate's decay follows the time that has passed. Counted
    from the end of the first step, with validation and checkpoints, without pauses"""
    batch_size: Count = 12
    """Boxes in a step"""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW; it decays to zero as a cosine"""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of AdamW"""
    warmup: Whole = 50
    """Steps of linear learning-rate warm-up"""
    grad_clip: NotNegative = 1.0
    """Gradient norm at which gradients are clipped; 0: off"""
    ema_decay: Share = 0.998
    """Decay of the averaged weights"""
    val_step: Whole = 100
    """Steps between validation losses; the best weights are used in the end"""
    save_step: Count = 200
    """Steps between checkpoints of the whole state"""
    log_step: Count = 20
    """Steps between rows of metrics.jsonl"""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """A logger beside metrics.jsonl"""

    # ---- forecast
    members: Annotated[int, AtLeast(2)] = 50
    """Members of an ensemble"""
    starts: Whole = 12
    """Forecasts in the evaluation, evenly spread over the test years; 0: from every frame"""
    solver: Literal["euler", "midpoint", "heun"] = "midpoint"
    """Of the flow's ODE; idff from a state solves its SDE by Euler-Maruyama"""
    n_steps: Count = 1
    """Steps of the solver for each lead; the NFE is counted and printed"""
    beside: tuple[str, ...] = ()
    """Other weights, files or run folders, whose forecasts from the same starts get rows in the same tables"""
    spread: Literal["none", "validation"] = "none"
    """validation: scale the spread at each lead by a factor fitted to forecasts of the validation years"""
    chunk: Count = 100
    """Fields given to the network at a time; changes speed and memory only"""

    # ---- running
    out: str = ""
    """Run folder; empty: runs/METHOD-DATA beside the script"""
    resume: Literal["no", "auto"] = "no"
    """auto: continue from the run folder's last checkpoint, if there is one"""
    seed: Seed = 0
    """One seed for everything"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's arithmetic"""
    plan: bool = False
    """Run 20 steps of the training, write nothing, and say what it would take: time, memory, disk, flags that help"""
    smoke: bool = False
    """Seconds on a CPU: few frames and steps of the synthetic field; writes to results/smoke"""

    def check_together(self) -> None:
        """Raises ValueError for what would not be read, and for a forecast from nowhere."""
        if self.weights and self.mode not in ("evaluate", "forecast"):
            raise ValueError(
                f"--weights {self.weights} is not read where --mode {self.mode} trains: add --mode evaluate"
            )
        if self.init and self.mode != "forecast":
            raise ValueError(f"--init {self.init} is not read by --mode {self.mode}: add --mode forecast")
        if self.mode == "forecast" and not self.init:
            raise ValueError("--mode forecast needs --init: the date of the last field that is known, or latest")
        if self.forecasts and self.mode == "train":
            raise ValueError(f"--forecasts {self.forecasts}: --mode train makes none: leave it out")
        if self.beside and self.mode in ("train", "forecast"):
            raise ValueError(f"--beside {self.beside[0]} is not read by --mode {self.mode}: add --mode evaluate")


@dataclass(frozen=True)
class DrawOptions:
    """Options of simple_gen_test.py."""

    weights: str = ""
    """Checkpoint file or run folder; empty: the newest run's, else the shipped ones"""
    data: str = ""
    """The data that the weights were trained on; empty: the synthetic field"""
    members: Annotated[int, AtLeast(2)] = 50
    """Members of the ensemble"""
    start: Whole = 0
    """Which of the forecasts that fit into the test years"""
    solver_steps: Annotated[Count | None, NoneFor(0)] = None
    """Steps of the solver for each lead; none: as in the weights' options"""
    out: str = ""
    """Picture to write; empty: samples/forecast_DATA.png beside the script"""
    seed: Seed = 0
    """Seed of the ensemble"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    smoke: bool = False
    """Few members, and an untrained network when there are no weights"""


DEFAULT = Options()

# ERSST v5, monthly, 2 degrees: few months, so a network that is held back.
ERSST = replace(DEFAULT, test_years=2.0, val_years=2.0, starts=0, spread="validation", dropout=0.1, weight_decay=0.05)
ERSST = replace(ERSST, lr=1e-3, total_steps=300, batch_size=16, val_step=25)

# OISST v2 boxes as in DYffusion: training to 2018, validation 2019, test 2020. Three levels halve 60 cells twice, not
# three times: no patches.
OISST = replace(DEFAULT, harmonics=3, num_channel=64, channel_mult=(1, 2, 4), patch_size=1, total_steps=20_000)
OISST = replace(OISST, warmup=500, ema_decay=0.999, batch_size=64, val_step=1000, save_step=1000, starts=100)

PRESETS = {"default": DEFAULT, "ersst": ERSST, "oisst": OISST}


def smoke(options: Options) -> Options:
    """A run of seconds that goes through every part."""
    minutes = options.minutes and min(options.minutes, 0.05)
    options = replace(options, total_steps=min(options.total_steps, 4), minutes=minutes, batch_size=4, warmup=2)
    options = replace(options, box=min(options.box, 20), num_channel=32, channel_mult=(1, 1), patch_size=2)
    options = replace(options, val_step=2, save_step=2, log_step=1)
    return replace(options, members=4, starts=2, horizon=min(options.horizon, 3), smoke=True)


def run_folder(options: Options) -> Path:
    """Where a run goes."""
    if options.out:
        return Path(options.out)
    return HERE / ("results/smoke" if options.smoke else f"runs/{run_name(options)}")


def run_name(options: Options) -> str:
    """Name of a run: method and data."""
    name = Path(options.data).name.split(".nc")[0].removesuffix(".zarr") if options.data else "synthetic"
    return f"{options.method.upper()}-{name}"


def stored(options: Options) -> dict[str, Any]:
    """The options as primitives for a checkpoint, without this machine's paths."""
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(options).items()}
    paths = dict.fromkeys(("out", "weights", "init", "forecasts"), "")
    return plain | paths | {"beside": [], "data": Path(options.data).name, "resume": "no"}


def restored(plain: dict[str, Any], **changes: Any) -> Options:
    """The options that a checkpoint holds, with some of them changed.

    Raises:
        ValueError: they are not a forecaster's.
    """
    known = {field.name for field in fields(Options)}
    if "horizon" not in plain or (unknown := sorted(set(plain) - known)):
        what = unknown[0] if "horizon" in plain else "no horizon"
        raise ValueError(f"these weights are not of a forecaster ({what}): train them with sst_forecaster.py")
    options = replace(Options(), **(read_values(Options, plain, "its options") | changes))
    validate(options)
    return options
