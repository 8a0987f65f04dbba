"""Ensemble forecasts: a trained flow, rolled out from the fields of some dates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from typing_extensions import TypedDict

from common import checkpoint
from common.data.series import roll_out
from common.runtime import autocast, checked, generator, keep_freed_memory
from common.solvers import CountNFE
from sst import climate as C
from sst import synthetic
from sst.climate import Climate
from sst.config import Options, restored
from sst.data import Fields, load
from sst.flow import Conditioned, Method, condition_of, description, draw_innovation, method_of
from sst.frames import chunks


class Learnt(TypedDict):
    """What weights say of the data that they learnt from: dates, frames, and degrees between rows and columns."""

    first: str
    last: str
    frames: Annotated[int, Meta(ge=1)]
    spacing: list[float]


Positive = Annotated[float, Meta(gt=0, le=100)]  # a factor of a spread


# ---------------------------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class World:
    """The data of a run with its climate.

    Args:
        fields: temperatures.
        parts: first frames of validation and test years.
        climates: one a region.
        boxes: those of the evaluation, of all regions.
        amplitude: of the noise.
    """

    fields: Fields
    parts: C.Split
    climates: list[Climate]
    boxes: list[Climate]
    amplitude: Tensor

    def mark(self) -> str:
        """A mark of frames, times and split, by which other data are told."""
        digest = hashlib.sha256(repr((self.fields.times.tolist(), self.parts)).encode())
        for values in (climate.anomalies.values for climate in self.climates):
            for a, b in chunks(values):
                digest.update(values[a:b].tobytes())
        return f"{len(self.fields.times)} frames {digest.hexdigest()[:16]}"

    def maps(self, name: str) -> Tensor:
        """A map of ``Climate``, or one a lead, of every box: (boxes, ..., H, W)."""
        return torch.stack([getattr(box, name) for box in self.boxes])

    def starts(self, options: Options, validation: bool = False) -> Tensor:
        """Frames from which the test years (or the validation years) are forecast."""
        first, end = (self.parts.val, self.parts.test) if validation else (self.parts.test, self.parts.end)
        return C.starts(first, end, options.past, options.horizon, options.starts, self.fields.breaks)


def world(options: Options) -> World:
    """The data of the options with the climate of its training years.

    Raises:
        FileNotFoundError, ValueError: see ``data.load``; and years or boxes that do not fit.
    """
    fields = source(options)
    parts = C.split(fields, options.val_years, options.test_years)
    if options.train_years:
        fields, parts = C.last_years(fields, parts, options.train_years)
    return fitted(fields, parts, options)


def source(options: Options) -> Fields:
    """The fields of a file, see ``data.load``, or the synthetic ones."""
    if options.data:
        return load(options.data, options.variable, options.gaps)
    return synthetic.make(synthetic.Ocean(years=4 if options.smoke else 12, side=options.box))


def fitted(fields: Fields, parts: C.Split, options: Options) -> World:
    """Fields with the climate of their training years."""
    how = (fields.times, parts.val, options.harmonics, options.horizon, fields.breaks)
    climates = [C.fit(region, *how) for region in fields.regions]
    found = [box for region in climates for box in C.boxes(region, options.box)]
    amplitude = C.spectrum(climates, parts.val, options.box, options.colour, fields.torus, fields.breaks)
    return World(fields, parts, climates, found, amplitude)


# ---------------------------------------------------------------------------------------------------- forecasts
@dataclass(frozen=True)
class Forecaster:
    """A trained flow.

    Args:
        net: the network, in eval mode on its device.
        options: those it was trained with, and those of the forecast.
        spread: factor of the spread at each lead; empty: none.
        step: training step of the weights.
        learnt: what data they learnt from, see ``latest.Learnt``; empty: older weights do not say.
    """

    net: nn.Module
    options: Options
    spread: tuple[float, ...] = ()
    step: int = 0
    learnt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """What the network's output is."""
        return method_of(self.options)


def load_forecaster(path: str | Path, device: torch.device, **changes: Any) -> Forecaster:
    """The forecaster of a weights file; ``changes`` are options of this forecast.

    Raises:
        FileNotFoundError, ValueError: no weights, damaged ones, or not a forecaster's.
    """
    net, info = checkpoint.load_network(path)
    file = checkpoint.find(path)
    try:
        options = restored(info["config"], **changes)
        differences = [key for key, value in description(options).items() if info["network"].get(key, value) != value]
        if differences:
            raise ValueError(f"its network is not that of its options ({', '.join(differences)})")
        state = checkpoint.load(file)
        spread = tuple(checked(state.get("spread", []), list[Positive], "its spread"))
        learnt = checked(state.get("learnt"), Learnt | None, "what it learnt from") or {}
        if len(spread) not in (0, options.horizon):
            raise ValueError(f"its spread has {len(spread)} factors for {options.horizon} leads")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if device.type == "cpu":
        keep_freed_memory()
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Forecaster(net, options, spread if options.spread == "validation" else (), info["step"] or 0, learnt)


@dataclass(frozen=True)
class Ensemble:
    """Forecasts of some dates for all boxes, as anomalies in standard deviations.

    Args:
        members: (L, M, N, H, W); N dates and boxes, all dates of the first box first.
        target: (L, N, H, W), what happened.
        start: (N, H, W), the fields that the forecasts start from.
        box, frame: (N,), box and frame of each.
        nfe: network evaluations for one member and lead.
        seconds: time taken.
    """

    members: Tensor
    target: Tensor
    start: Tensor
    box: Tensor
    frame: Tensor
    nfe: float
    seconds: float


def forecast(
    model: Forecaster, data: World, starts: Tensor, members: int, seed: int, progress: str = "forecast"
) -> Ensemble:
    """Draw ensembles from some frames for every box.

    Each member is a function of (weights, seed, box, frame, member), whatever else is forecast with it.

    Args:
        model: the flow.
        data: the data.
        starts: frames, (S,).
        members: M.
        seed: of the noise.
        progress: text of the bar; empty: none.

    Raises:
        ValueError: a field is not finite; the line names the lead.
    """
    import time

    begin, o = time.perf_counter(), model.options
    box = torch.arange(len(data.boxes)).repeat_interleave(len(starts))
    frame = starts.repeat(len(data.boxes))
    series = [(data.boxes[b].anomalies, k + 1) for b, k in zip(box.tolist(), frame.tolist())]
    past = torch.stack([anomalies[k - o.past : k] for anomalies, k in series])
    target = torch.stack([anomalies[k : k + o.horizon] for anomalies, k in series], 1)
    step = _Step(model, data, box, frame, members, seed, past)
    rows = roll_out(step, past.repeat_interleave(members, 0), o.horizon, progress=progress, shown=len(box) * members)
    drawn = rows[:, :, -1].unflatten(1, (len(box), members)).transpose(1, 2)
    if model.spread:
        drawn = rescaled(drawn, model.spread)
    nfe = step.count.per_sample(len(box) * members * o.horizon)
    return Ensemble(drawn, target, past[:, -1], box, frame, nfe, time.perf_counter() - begin)


def rescaled(members: Tensor, factors: tuple[float, ...]) -> Tensor:
    """Members (L, M, ...) with their distances from the mean of M multiplied at each lead."""
    mean = members.mean(1, keepdim=True)
    return mean + torch.tensor(factors).reshape(-1, *[1] * (members.ndim - 1)) * (members - mean)


class _Step:
    """One lead for all members of all forecasts, a chunk of rows at a time: step(state, k) of ``roll_out``."""

    def __init__(
        self, model: Forecaster, data: World, box: Tensor, frame: Tensor, members: int, seed: int, past: Tensor
    ):
        self.model, self.data, self.members, self.seed, self.past = model, data, members, seed, past
        self.box, self.frame = box, frame
        self.device = next(model.net.parameters()).device
        self.count = CountNFE(model.net)
        self.maps = torch.stack([C.static_maps(b) for b in data.boxes])
        self.damping, self.residual = data.maps("damping"), data.maps("residual")
        self.season, self.month = C.season_of(data.fields.times), C.month_of(data.fields.times)
        self.names = [f"{r.name} {r.lat[0]:g} {r.lon[0]:g}" for r in (box.region for box in data.boxes)]

    def __call__(self, state: Tensor, k: int) -> Tensor:
        """The frames (B, past, H, W) one lead on."""
        parts = torch.arange(len(state)).split(self.model.options.chunk)
        new = torch.cat([self._rows(state, rows, k) for rows in parts])
        return torch.cat([state[:, 1:], new], 1)

    def _rows(self, state: Tensor, rows: Tensor, k: int) -> Tensor:
        """The next frame of some rows, (rows, 1, H, W)."""
        o = self.model.options
        n = rows // self.members
        direct = o.label_by == "lead"
        frames, lead = (self.past[n], k) if direct else (state[rows], 0)
        box, season = self.box[n], self.season[self.frame[n] + (0 if direct else k)]
        condition = torch.stack([condition_of(*row) for row in zip(frames, self.maps[box], season, strict=True)])
        ocean = self.maps[box][:, :1]
        y = {"none": None, "season": self.month[self.frame[n] + k + 1], "lead": torch.full((len(rows),), k)}[o.label_by]

        def noise(i: int) -> Tensor:
            draws = (self._draw(r, k, i) for r in rows.tolist())
            white = torch.stack([torch.randn(1, *ocean.shape[2:], generator=draw) for draw in draws])
            return (synthetic.filtered(self.data.amplitude, white) * ocean).to(self.device)

        seen = [None if x is None else x.to(self.device) for x in (condition, ocean, y)]
        network = Conditioned(self._network, self.model.method, seen[0], seen[1], seen[2], self.data.fields.torus)  # type: ignore[arg-type]
        d = draw_innovation(network, self.model.method, noise, o.n_steps, o.solver).cpu()
        return self.damping[box][:, lead : lead + 1] * frames[:, -1:] + self.residual[box][:, lead : lead + 1] * d

    def _network(self, x: Tensor, *conditions: Any) -> Tensor:
        with autocast(self.device, self.model.options.mixed_precision):
            return self.count(x.contiguous(memory_format=torch.channels_last), *conditions)

    def _draw(self, row: int, k: int, i: int) -> torch.Generator:
        n, member = divmod(row, self.members)
        return generator(self.seed, "member", self.names[self.box[n]], int(self.frame[n]), member, k, i)


def fit_spread(model: Forecaster, data: World, members: int) -> tuple[float, ...]:
    """Factors that make the spread-skill ratio 1 at each lead of forecasts of the validation years."""
    from sst.scores import by_lead, spread_skill_ratio

    plain = replace(model, spread=())
    starts = data.starts(replace(model.options, starts=min(model.options.starts or 24, 24)), validation=True)
    drawn = forecast(plain, data, starts, min(members, 20), model.options.seed, progress="validation years")
    ratios = by_lead(spread_skill_ratio, drawn.members, drawn.target, data.maps("area")[drawn.box])
    return tuple(1 / r for r in ratios)
