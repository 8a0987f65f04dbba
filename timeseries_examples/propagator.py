"""A generative one-step propagator: frame k (and some before it) -> a draw of frame k + 1, by flow matching.

The flow lives in scaled coordinates of the next frame, or of the increment to it (see :class:`Space`), given the
present frame. Two sources: ``noise``, w_0 ~ N(0, I), an ODE; and ``frame``, the present frame itself (data to data). A
flow that starts in one point needs noise on its way to end in a distribution: IDFF's bridge is then followed as an SDE,
and a deterministic system uses none (``sampler="ode"``).

Conditions are inputs of the network, so source and target are never coupled across conditions: the pairs are
independent draws even for IDFF, whose images are coupled by optimal transport.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from common import checkpoint
from common.cli import validate
from common.cli.files import read_values
from common.cli.ranges import AtLeast, AtMost, Count
from common.data.series import frames_at, windows
from common.generate import sde_of, velocity_of
from common.methods import METHODS, make_loss
from common.networks import MLP
from common.runtime import checked, generator, run_lock
from common.solvers import CountNFE, euler_maruyama, integrate, time_grid
from common.training.loop import write_final
from common.training.small import fit
from timeseries_examples.dihedrals import wrap

SpaceName = Literal["line", "circle", "angle"]


# ---- where the frames live


@dataclass(frozen=True)
class Space:
    """What frames, features and the coordinates w of the flow are.

    * line: frames x (D,); features (x - centre) / spread; w is the increment, next = x + scale w.
    * angle: frames are D angles in radians; features (sin, cos); next = x + scale w, wrapped to [-pi, pi).
    * circle: frames (sin, cos) of D / 2 angles; features are the frame; w is the next frame itself, next =
      centre + scale w, put back on the circles.

    A step of the first two is short against the spread of the frames; angles forget where they were within a basin in
    a frame or two, so that their increments would mostly undo the present frame.
    """

    kind: SpaceName
    scale: list[float]
    centre: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)

    def check(self, name: str) -> None:
        """Raises ValueError for numbers that no series gives; the line begins with the name."""
        numbers, n = torch.tensor([*self.scale, *self.centre, *self.spread]), len(self.scale)
        if not n or {len(self.centre), len(self.spread)} != {n} or (n % 2 and self.kind == "circle"):
            raise ValueError(f"{name} has {n} scales, {len(self.centre)} centres and {len(self.spread)} spreads")
        if not numbers.isfinite().all() or min(*self.scale, *self.spread) <= 0:
            raise ValueError(f"{name} has a scale that is not above 0, or a number that is not finite")

    def features(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., features), of order 1."""
        if self.kind == "circle":
            return x
        if self.kind == "angle":
            return torch.cat([x.sin(), x.cos()], dim=-1)
        return (x - x.new_tensor(self.centre)) / x.new_tensor(self.spread)

    def target(self, x: Tensor, following: Tensor) -> Tensor:
        """Where the flow ends, (..., D): the coordinates of the frame that follows x."""
        if self.kind == "circle":
            return (following - x.new_tensor(self.centre)) / x.new_tensor(self.scale)
        return _increment(self.kind, x, following) / x.new_tensor(self.scale)

    def source(self, x: Tensor) -> Tensor:
        """Where a flow from the present frame begins: the coordinates of x itself."""
        return self.target(x, x)

    def move(self, x: Tensor, w: Tensor) -> Tensor:
        """The frame at some coordinates, seen from x."""
        if self.kind == "circle":
            sine, cosine = (x.new_tensor(self.centre) + x.new_tensor(self.scale) * w).chunk(2, dim=-1)
            radius = torch.hypot(sine, cosine).clamp(min=1e-6)
            return torch.cat([sine / radius, cosine / radius], dim=-1)
        y = x + x.new_tensor(self.scale) * w
        return wrap(y) if self.kind == "angle" else y

    @staticmethod
    def of(kind: SpaceName, series: Sequence[Tensor]) -> Space:
        """The space of some trajectories, each (T, D): coordinates of the flow get the scale 1.

        Raises:
            ValueError: a coordinate never changes.
        """
        steps = torch.cat([_increment(kind, x[:-1], x[1:]) for x in series]).double().square().mean(0).sqrt()
        if not (steps > 0).all():
            raise ValueError(f"coordinate {int(steps.argmin())} of the series never changes: leave it out")
        x = torch.cat(list(series)).double()
        centre, spread = x.mean(0).tolist(), x.std(0).tolist()
        return Space(kind, spread if kind == "circle" else steps.tolist(), centre, spread)


def _increment(kind: str, x: Tensor, following: Tensor) -> Tensor:
    return wrap(following - x) if kind == "angle" else following - x


# ---- the propagator


@dataclass(frozen=True)
class Recipe:
    """What is learnt and how it is sampled; a checkpoint holds it."""

    method: Literal["idff", "cfm"] = "idff"
    source: Literal["noise", "frame"] = "noise"
    sampler: Literal["ode", "sde"] = "ode"
    sigma: float = 0.2
    condition: Literal["frame", "time"] = "frame"
    past: Count = 1
    n_steps: Count = 4
    solver: Literal["euler", "heun", "dpmpp2m"] = "euler"
    n_frames: int = 1  # length of the training trajectories, the unit of time of condition="time"
    lag: Count = 1  # frames of the data in one step
    t_zero: Annotated[float, AtLeast(0), AtMost(1)] = 0.0  # share of the training times that are exactly 0

    def check_together(self) -> None:
        """Raise ValueError for combinations that cannot work."""
        if self.sampler == "sde" and (self.method, self.source) != ("idff", "frame"):
            raise ValueError("the SDE follows IDFF's bridge from the frame: it needs --method idff --source frame")
        if self.method == "idff" and self.sigma <= 0:
            raise ValueError(f"--sigma {self.sigma:g}: idff's bridge needs one above 0, e.g. 0.2")


class Propagator:
    """A network with its space and recipe. ``step`` is what ``common.data.series.roll_out`` takes.

    Args:
        net: An MLP over (point of the flow, condition).
        space: Of the frames.
        recipe: Of the flow.
    """

    def __init__(self, net: nn.Module, space: Space, recipe: Recipe) -> None:
        validate(recipe)
        self.net, self.space, self.recipe = net, space, recipe

    def condition(self, frames: Tensor, k: Tensor) -> Tensor:
        """What the network knows: frames (B, past, D), the newest last, and the frame numbers k (B,) -> (B, C).

        The newest frame's features and the frames before it; or, as the first IDFF program did, nothing but the
        absolute time.
        """
        if self.recipe.condition == "time":
            return (2 * k.to(frames.dtype) / self.recipe.n_frames - 1)[:, None]
        parts = [self.space.features(frames[:, -1])]
        parts += [self.space.target(frames[:, i + 1], frames[:, i]) for i in range(self.recipe.past - 1)]
        return torch.cat(parts, dim=1)

    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of the network."""
        dim, heads = len(self.space.scale), METHODS[self.recipe.method].heads
        conditions = self.condition(torch.zeros(1, self.recipe.past, dim), torch.zeros(1)).shape[1]
        return heads * dim + conditions, heads * dim

    def conditional(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network as losses and solvers call it; y is the condition."""
        return self.net(torch.cat([x, y], dim=1), t)

    @torch.no_grad()
    def draw(self, frames: Tensor, k: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """One draw of each next frame, (B, D). ``recipe.n_steps`` network calls.

        Args:
            frames: (B, past, D).
            k: Number of the newest frame, (B,).
            noise: noise(i) -> standard normal (B, D): i = 0 for the start, i + 1 for step i.
        """
        recipe, y = self.recipe, self.condition(frames, k)
        start = noise(0) if recipe.source == "noise" else self.space.source(frames[:, -1])
        if recipe.source == "frame" and recipe.method == "cfm" and recipe.sigma > 0:
            start = start + recipe.sigma * noise(0)  # where the path of constant spread begins
        times = time_grid(recipe.n_steps)
        if recipe.sampler == "sde":
            drift, diffusion = sde_of(self.conditional, recipe.method, recipe.sigma, y)
            w = euler_maruyama(drift, diffusion, start, times, lambda i, x: noise(i + 1))
        else:
            landing = recipe.method == "idff"  # its last step goes to the data head
            velocity = velocity_of(self.conditional, recipe.method, y, last=float(times[-2]))
            w = integrate(velocity, start, times, recipe.solver, final_euler=landing)
        return self.space.move(frames[:, -1], w)

    def step_from(self, k: Tensor, seed: int) -> Callable[[Tensor, int], Tensor]:
        """The one-step map for roll-outs from frame numbers k (B,): state (B, past, D), a function of the seed."""

        def step(state: Tensor, j: int) -> Tensor:
            g = generator(seed, "step", j)

            def noise(_: int) -> Tensor:
                return torch.randn(state.shape[0], state.shape[2], generator=g).to(state)

            new = self.draw(state, k + j, noise)
            return torch.cat([state[:, 1:], new[:, None]], dim=1)

        return step


def count_nfe(model: Propagator, state: Tensor) -> int:
    """Network evaluations of one step from a state (B, past, D), counted at the network."""
    counter = CountNFE(model.net)
    counted = Propagator(counter, model.space, model.recipe)  # type: ignore[arg-type]
    counted.step_from(torch.zeros(len(state)), 0)(state, 0)
    return counter.nfe


# ---- training


def build(space: Space, recipe: Recipe, width: int, depth: int, seed: int) -> Propagator:
    """An untrained propagator with a fully connected network."""
    torch.manual_seed(seed)
    inputs, outputs = Propagator(nn.Identity(), space, recipe).sizes()
    return Propagator(MLP(inputs, width, depth, nn.SiLU, out_dim=outputs), space, recipe)


def examples(propagator: Propagator, series: Sequence[Tensor], lead: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """All stretches of trajectories (T, D): frames (N, past, D), ``lead`` that follow, numbers of the newest (N,)."""
    past = propagator.recipe.past
    index = windows(series, past, lead)
    frames, following = frames_at(series, index, past, lead)
    return frames, following, index[:, 1] + past - 1


def train(
    propagator: Propagator,
    series: Sequence[Tensor],
    total_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: str = "",
    weight_decay: float = 0.0,
    ema_decay: float = 0.999,
) -> list[float]:
    """Train the network in place, on windows of trajectories (T, D); it ends with its averaged weights.

    Returns:
        The loss of every step.
    """
    frames, following, k = examples(propagator, series)
    conditions = propagator.condition(frames, k)
    target, source = propagator.space.target(frames[:, -1], following[:, 0]), propagator.space.source(frames[:, -1])
    recipe, loss = propagator.recipe, make_loss(propagator.recipe.method, propagator.recipe.sigma)

    def loss_at(step: int) -> Tensor:
        g = generator(seed, "batch", step)
        rows = torch.randint(len(target), (batch_size,), generator=g)
        x1, noise = target[rows], torch.randn(batch_size, target.shape[1], generator=g)
        x0 = torch.randn(x1.shape, generator=g) if recipe.source == "noise" else source[rows]
        t = (torch.arange(batch_size) + torch.rand(batch_size, generator=g)) / batch_size  # stratified
        t = torch.where(torch.rand(batch_size, generator=g) < recipe.t_zero, 0.0, t)
        return loss(propagator.conditional, x0, x1, t, noise, conditions[rows]).mean()

    losses = fit(propagator.net, loss_at, total_steps, lr, weight_decay, "cosine", ema_decay, progress or False)
    propagator.net.eval()
    return losses


# ---- files


def train_and_save(
    space: Space,
    recipe: Recipe,
    series: Sequence[Tensor],
    options: Any,
    name: str,
    dtype: torch.dtype | None = None,
    weight_decay: float = 0.0,
) -> tuple[Propagator, float]:
    """Train a fresh propagator and write its averaged weights to the run folder, as METHOD_NAME.

    Args:
        space, recipe, series: Of :func:`build` and :func:`train`.
        options: A script's options: width, depth, total_steps, batch_size, lr, seed and out are used, all but the
            places of files are kept beside the weights.
        name: End of the file's name.
        dtype: Of the weights in the file; None: as they are.
        weight_decay: AdamW's.

    Returns:
        The propagator as anybody else will load it, and the seconds that training took.
    """
    start, out = time.perf_counter(), Path(options.out)
    model = build(space, recipe, options.width, options.depth, options.seed)
    title = f"{options.total_steps} steps of {recipe.method}"
    how = (options.total_steps, options.batch_size, options.lr, options.seed, title)
    losses = train(model, series, *how, weight_decay)
    seconds = time.perf_counter() - start
    print(f"{title}: loss {losses[0]:.4g} to {sum(losses[-100:]) / len(losses[-100:]):.4g}, {seconds:.0f} s")
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
    config = {key: value for key, value in config.items() if key not in ("out", "data", "weights", "smoke")}
    config["data"] = mark_of(series)
    path = out / f"{recipe.method.upper()}_{name}"
    with run_lock(out):
        write_final(path, state_of(model, config, options.total_steps, dtype))
    return load(path)[0], seconds


def state_of(propagator: Propagator, config: dict[str, Any], step: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """What ``common.checkpoint.save`` writes; ``dtype`` of the weights, None: as they are."""
    tensors = propagator.net.state_dict()
    recipe = asdict(propagator.recipe)
    return {
        "format": checkpoint.FORMAT,
        "version": 1,
        "step": step,
        "config": config,
        "network": propagator.net.description,
        "method": {"name": recipe.pop("method"), **recipe, "space": asdict(propagator.space)},
        "ema_model": {key: value.to(dtype) if dtype else value for key, value in tensors.items()},
    }


def load(path: Path) -> tuple[Propagator, dict[str, Any]]:
    """A propagator from its checkpoint, and the options that it was trained with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of a propagator.
    """
    net, info = checkpoint.load_network(path)
    method = dict(info["method"])
    if "space" not in method:
        raise ValueError(f"{path} holds no propagator: give --weights of a run of this script")
    space = _restored(Space, method.pop("space"), f"{path} is damaged, its space")
    space.check(f"{path} is damaged: its space")
    model = Propagator(
        net.eval(), space, _restored(Recipe, method | {"method": method["name"]}, f"{path} is damaged, its recipe")
    )
    stated = info["network"]
    given = (stated.get("dim"), stated.get("out_dim"))
    if given != (sizes := model.sizes()):
        raise ValueError(f"{path} is damaged: its network has {given} inputs and outputs, its space and recipe {sizes}")
    return model, info["config"]


def _restored(cls: Any, values: Any, name: str) -> Any:
    """A record from primitives of a file, once they are of its kinds; entries that are not its are left out."""
    checked(values, cls, name)
    return cls(**{key: values[key] for key in cls.__dataclass_fields__ if key in values})


def mark_of(series: Sequence[Tensor]) -> str:
    """A mark of trajectories (T, D), by which others are told."""
    digest = hashlib.sha256()
    for x in series:
        digest.update(x.contiguous().numpy().tobytes())
    return f"{len(series)} stretches {digest.hexdigest()[:16]}"


def check_data(path: Path, series: Sequence[Tensor]) -> None:
    """Refuse weights that were trained on others than these: what is held out beside these they may have seen.

    Raises:
        ValueError: they were.
    """
    there, here = load(path)[1].get("data"), mark_of(series)
    if not there:
        print(
            f"note: {path} does not say what it was trained on: that it has not seen the held-out part is not checked"
        )
    elif there != here:
        raise ValueError(f"{path} was trained on {there}, these are {here}: give its data and split, or train anew")


def load_as_trained(options: Any, names: Sequence[str], subject: str) -> tuple[Propagator, Any]:
    """The propagator of ``options.weights``, and the options with those names as they were when it was trained.

    What was asked for otherwise is told: weights hold for what they have learnt.

    Raises:
        ValueError: weights of something else than the subject.
    """
    model, config = load(Path(options.weights))
    if not set(names) <= set(config):
        raise ValueError(f"{options.weights} is no model of {subject}: give one of this script's")
    name = f"{options.weights}, its options"
    asked, default = options, type(options)()
    options = replace(options, **read_values(type(options), {key: config[key] for key in names}, name))
    for key in names:
        value, learnt = getattr(asked, key), getattr(options, key)
        if value not in (getattr(default, key), learnt):
            print(f"note: --{key} {value} is not what {options.weights} has learnt; it is {learnt} here")
    try:
        validate(options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return model, options
