"""The flow of one time step: a network that turns noise, or the present field, into the next field.

In the coordinates d = (a' - damping a) / residual the next anomaly a' is a number of variance about one whose mean,
without knowing better, is 0: damped persistence. The flow runs from x0 to x1 = d, given the frames a:

* source noise: x0 is noise;
* source state: x0 = 0, that is the damped present field, so the flow goes from data to data. The path's own noise
  (sigma) makes the ensemble: for cfm it starts from x0 + sigma e, for idff the bridge is solved as an SDE with
  diffusion sigma, which from a point draws from p(x1 | a) exactly if the drift is exact (a Foellmer process).

Each pair (x0, x1) belongs to its own a. A transport plan over a batch would exchange x0 between different a, and change
p(x1 | a): the coupling stays independent. Noise has the innovations' power spectrum, so little is left to transport.

``--method crps`` is the rival without a flow: the same network turns noise into d in one call, and is trained on the
fair CRPS of a few members at each cell.
Source: Tong et al. 2302.00482; Rezaei et al. 2409.14599 for IDFF; Chen et al. 2403.13724 for forecasts by flows; Lang
et al. 2412.15832 for training on the CRPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli.configs import TrainConfig
from common.methods import METHODS
from common.networks import build_network
from common.paths import expand
from common.runtime import Processes, generator
from common.solvers import euler_maruyama, integrate, time_grid
from common.training.batches import Ahead
from common.training.trainer import Trainer
from sst.climate import Climate, coloured, month_of, origins, season_of, static_maps
from sst.config import Options, stored
from sst.data import Fields

WRAP = 4  # cells of the other side that the network sees beyond each edge of a torus
STATIC = 8  # channels of a condition besides the frames: static maps and season


# ---------------------------------------------------------------------------------------------------- network
def description(options: Options) -> dict[str, Any]:
    """Constructor arguments of the network."""
    heads = 1 if options.method == "crps" else METHODS[options.method].heads
    return {
        "name": "UNet",
        "image_size": options.box,
        "in_channels": 1 + options.past + STATIC,
        "out_channels": heads,
        "channels": options.num_channel,
        "channel_mult": list(options.channel_mult),
        "num_res_blocks": options.num_res_blocks,
        "attention_resolutions": [],
        "num_heads": 4,
        "head_channels": -1,
        "dropout": options.dropout,
        "num_classes": {"none": 0, "season": 12, "lead": options.horizon}[options.label_by],
        "patch_size": options.patch_size,
    }


def check(options: Options, torus: bool) -> None:
    """Raise ValueError where the options do not fit together, before anything is loaded."""
    if options.sigma == 0 and (options.method == "idff" or options.source == "state"):
        what = f"--method {options.method} --source {options.source}"
        raise ValueError(f"--sigma 0: {what} draws its ensemble from the path's noise, give a sigma above 0, e.g. 0.8")
    if options.method == "crps":
        given = {"source": options.source, "sigma": options.sigma, "n_steps": options.n_steps, "solver": options.solver}
        usual = {"source": "noise", "sigma": 0.0, "n_steps": 1, "solver": Options.solver}
        if wrong := [f"--{key} {value}" for key, value in given.items() if value != usual[key]]:
            raise ValueError(f"{wrong[0]} is not read by --method crps, which turns noise into a field in one call")
    multiple, side = options.patch_size * 2 ** (len(options.channel_mult) - 1), options.box + (2 * WRAP if torus else 0)
    if side % multiple:
        edges = f" and {WRAP} cells at each edge" if torus else ""
        raise ValueError(f"--box {options.box}{edges} must be divisible by {multiple} (patch_size times 2 a level)")


@dataclass(frozen=True)
class Method:
    """What is regressed and how a sample is drawn.

    Args:
        name: cfm, idff or crps.
        source: noise or state.
        sigma: noise of the path.
    """

    name: str
    source: str
    sigma: float

    def gains(self, t: Tensor) -> Tensor:
        """Slopes of the best outputs that are linear in x_t, for x1 of variance one; shape (B, heads).

        The network learns the rest. x_t = (1 - t) x0 + t x1 + s e, Cov(u, x_t) / Var(x_t) for each output u.
        """
        if self.name == "crps":  # damped persistence with its spread, to begin with
            return torch.ones_like(t)[:, None]
        source = 1.0 if self.source == "noise" else 0.0
        s = METHODS[self.name].path(self.sigma).spread(t)
        variance = (1 - t).square() * source + t.square() + s.square() + 1e-6
        if self.name == "cfm":
            return ((t - (1 - t) * source) / variance)[:, None]
        return torch.stack([t / variance, -(self.sigma**2) / 2 / variance], 1)  # x1, and sigma^2 / 2 times the score


@dataclass(frozen=True)
class Conditioned:
    """The network seen by a loss or a solver: it gets x_t and t only, and returns outputs that are zero on land.

    Args:
        call: the network, call(x, t, y).
        method: see :class:`Method`.
        condition: frames and maps, (B, past + STATIC, H, W).
        ocean: (B, 1, H, W).
        y: class labels, (B,) or None.
        torus: whether the network sees beyond the edges.
    """

    call: Callable[..., Tensor]
    method: Method
    condition: Tensor
    ocean: Tensor
    y: Tensor | None
    torus: bool

    def __call__(self, x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """Outputs at x_t, (B, heads, H, W); of IDFF's doubled input the first half is used, they are equal."""
        x = x[:, :1]
        seen = torch.cat([x, self.condition], 1)
        if self.torus:
            seen = F.pad(seen, (WRAP,) * 4, mode="circular")
        out = self.call(seen, t) if self.y is None else self.call(seen, t, self.y)
        if self.torus:
            out = out[..., WRAP:-WRAP, WRAP:-WRAP]
        return (out.float() + self.method.gains(t)[..., None, None] * x) * self.ocean


def draw_innovation(
    network: Callable[..., Tensor], method: Method, noise: Callable[[int], Tensor], n_steps: int, solver: str
) -> Tensor:
    """Draw x1 = d. Evaluations: n_steps for euler and for the SDE, twice as many for midpoint and heun, one for crps.

    Args:
        network: see :class:`Conditioned`.
        method: see :class:`Method`.
        noise: noise(0) for the start, noise(1), noise(2), ... for the steps of an SDE; each (B, 1, H, W).
        n_steps: steps from t = 0 to t = 1.
        solver: euler, midpoint or heun, for the ODE.
    """
    if method.name == "crps":
        return member(network, noise(0))
    times = time_grid(n_steps)
    if method.name == "cfm":
        start = noise(0) * (math.hypot(1, method.sigma) if method.source == "noise" else method.sigma)
        return integrate(network, start, times, solver)

    def rate(t: Tensor) -> Tensor:
        return 1 / (1 - t).clamp(min=1e-3)  # heun evaluates at t = 1

    if method.source == "noise":

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            x1_hat, st = network(x, t).chunk(2, 1)
            return expand(rate(t), x) * (x1_hat - x) - st

        return integrate(velocity, noise(0), times, solver)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return expand(rate(t), x) * (network(x, t)[:, :1] - x)

    start = torch.zeros_like(noise(0))
    return euler_maruyama(drift, method.sigma, start, times, lambda i, x: noise(i + 1))


def member(network: Callable[..., Tensor], noise: Tensor) -> Tensor:
    """The member of a network without a flow that some noise (B, 1, H, W) stands for."""
    return network(noise, noise.new_zeros(len(noise)))


def fair_crps(members: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS of each cell, mean |x_i - y| - sum_ij |x_i - x_j| / (2 K (K - 1)), averaged over cells: (B,).

    On average over the members it is that of the distribution they are drawn from, whatever K is, and so least for the
    right one. ``common.metrics.crps_ensemble`` is the same in float64, by sorting, for large K.

    Args:
        members: (B, K, H, W), K >= 2.
        target: (B, 1, H, W).

    Source: Ferro 2014; Lang et al. 2024 (2412.15832), eq. 3.
    """
    k = members.shape[1]
    pairs = (members[:, :, None] - members[:, None]).abs().sum((1, 2)) / (2 * k * (k - 1))
    return ((members - target).abs().mean(1) - pairs).flatten(1).mean(1)


# ---------------------------------------------------------------------------------------------------- batches
@dataclass
class FieldBatch:
    """Pairs of frames in the flow's coordinates, with all that the network is told; of crps x0 are a row's noises."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    noise: Tensor
    condition: Tensor
    ocean: Tensor
    y: Tensor | None
    seconds: float = 0.0


class FieldBatches(Ahead):
    """Boxes at random places and times of some frames, a function of (seed, step).

    Args:
        climates: regions.
        fields: what they are of.
        amplitude: of the noise, see ``climate.spectrum``.
        options: the options.
        first, end: frames; targets lie in [first, end).
        processes: this process among its peers.
        name: of the random numbers: other names, other batches.
    """

    def __init__(
        self,
        climates: list[Climate],
        fields: Fields,
        amplitude: Tensor,
        options: Options,
        first: int,
        end: int,
        processes: Processes,
        name: str = "step",
    ):
        super().__init__(processes.device, ahead=name == "step")
        self.climates, self.amplitude, self.options = climates, amplitude, options
        self.device, self.processes, self.name = processes.device, processes, name
        self.maps = [static_maps(c) for c in climates]
        self.season, self.month = season_of(fields.times), month_of(fields.times)
        self.noises = options.train_members if options.method == "crps" else 2
        self.leads = options.horizon if options.label_by == "lead" else 1
        self.frames = origins(max(0, first - options.past), end, options.past, self.leads, fields.breaks)

    def make(self, step: int) -> FieldBatch:
        """This process's boxes of a step, on its device."""
        o, draw = self.options, generator(self.options.seed, self.name, step)
        rows = [self._row(draw) for _ in range(o.batch_size)]
        x1, condition, ocean, y = (torch.stack(part) for part in zip(*rows, strict=True))
        noises = [coloured(self.amplitude, tuple(x1.shape), draw) * ocean for _ in range(self.noises)]
        e, x0 = noises[0], noises[1] if o.source == "noise" else torch.zeros_like(x1)
        if o.method == "crps":
            x0 = torch.cat(noises, 1)
        t = (torch.arange(len(x1)) + torch.rand(len(x1), generator=draw)) / len(x1)  # stratified
        mine = slice(self.processes.rank, None, self.processes.world)
        x0, x1, t, e, condition, ocean, y = (p[mine].to(self.device) for p in (x0, x1, t, e, condition, ocean, y))
        return FieldBatch(x0, x1, t, e, condition, ocean, None if o.label_by == "none" else y)

    def _row(self, draw: torch.Generator) -> tuple[Tensor, ...]:
        """One box: innovation, condition, ocean, label."""

        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=draw))

        o = self.options
        k, i = divmod(below(len(self.climates) * len(self.frames)), len(self.frames))
        now, lead = int(self.frames[i]), 1 + below(self.leads)
        climate, maps = self.climates[k], self.maps[k]
        height, width = climate.ocean.shape
        i = torch.arange(o.box) + below(height - o.box + 1)
        j = torch.arange(o.box) + below(width if climate.region.cyclic else width - o.box + 1)

        def cut(x: Tensor) -> Tensor:
            return x[..., i, :][..., j % width]

        anomalies = climate.anomalies.crop(i, j % width)
        frames, later = anomalies[now - o.past + 1 : now + 1], anomalies[now + lead][None]
        damping, residual = (cut(x)[None] for x in (climate.damping[lead - 1], climate.residual[lead - 1]))
        x1, ocean = (later - damping * frames[-1:]) / residual, cut(climate.ocean)[None]
        label = self.month[now + lead] if o.label_by == "season" else torch.tensor(lead - 1)
        return x1 * ocean, condition_of(frames, cut(maps), self.season[now]), ocean, label


def condition_of(frames: Tensor, maps: Tensor, season: Tensor) -> Tensor:
    """Channels that the network sees besides x_t: frames (past, H, W), static maps (6, H, W), season (2,)."""
    return torch.cat([frames, maps, season[:, None, None].expand(2, *frames.shape[-2:])])


# ---------------------------------------------------------------------------------------------------- training
class FieldTrainer(Trainer):
    """Trains the flow, or the network without one.

    Args:
        options: of the run.
        torus: whether the boxes are periodic.
        processes: this process among its peers.
    """

    parts = ""  # no flag cuts a batch into parts here
    learnt: Mapping[str, Any] = {}  # what data the weights learn from, see ``forecast.Learnt``
    fixed = ("seed", "test_years", "val_years", "train_years", "harmonics", "variable", "gaps", "box", "colour")

    def __init__(self, options: Options, torus: bool, processes: Processes):
        self.forecaster, self.torus = options, torus
        self.method = method_of(options)
        super().__init__(train_config(options), processes)

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network and its description."""
        return build_network(description(self.forecaster)), description(self.forecaster)

    def losses(self, network: Callable[..., Tensor], batch: FieldBatch) -> Tensor:
        """The method's losses, (B,); land has target and output 0, so its weight is 0."""
        seen = Conditioned(network, self.method, batch.condition, batch.ocean, batch.y, self.torus)
        if self.method.name != "crps":
            return self.loss(seen, batch.x0, batch.x1, batch.t, batch.noise, None)
        *first, last = batch.x0.split(1, 1)
        members = [self._as_the_next(seen, noise) for noise in first] + [member(seen, last)]
        return fair_crps(torch.cat(members, 1), batch.x1)

    @staticmethod
    def _as_the_next(network: Callable[..., Tensor], noise: Tensor) -> Tensor:
        """A member that drops the same activations as the next one: other ones would be spread that forecasts lack."""
        with torch.random.fork_rng([noise.device] if noise.device.type == "cuda" else []):
            return member(network, noise)

    def weights_method(self) -> dict[str, Any]:
        """Name and constants of the method."""
        more = {"name": self.forecaster.method, "source": self.forecaster.source, "torus": self.torus}
        return super().weights_method() | more

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What forecasts need."""
        return super().weights(dtype) | ({"learnt": dict(self.learnt)} if self.learnt else {})

    def options(self) -> dict[str, Any]:
        """The options without paths."""
        return stored(self.forecaster)


def method_of(options: Options) -> Method:
    """The method that the options name."""
    return Method(options.method, options.source, options.sigma)


def train_config(options: Options) -> TrainConfig:
    """The options in the words of the common training loop."""
    shared = "sigma flow_weight total_steps minutes batch_size lr weight_decay warmup grad_clip ema_decay"
    shared += " val_step save_step log_step logger seed device mixed_precision resume plan"
    return TrainConfig(
        **{key: getattr(options, key) for key in shared.split()},
        method="cfm" if options.method == "crps" else options.method,  # whose loss is FieldTrainer's own
        coupling="independent",
        lr_decay="cosine",
        image_size=options.box,
    )
