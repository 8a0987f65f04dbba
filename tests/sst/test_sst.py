"""The sea surface temperature forecaster: synthetic field, climate, the flow's formulas, scores, scripts."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import started
from common import checkpoint
from common.cli import validate
from common.methods import method_of
from common.metrics import crps_ensemble
from common.networks import build_network
from common.runtime import generator
from sst import climate as C
from sst import config as O
from sst import data as D
from sst import flow as F
from sst import forecast as P
from sst import linear, maps, skill
from sst import sst_pipeline as pipeline
from sst import synthetic as S
from sst.frames import Frames
from sst.scores import crps_gaussian, spread_skill_ratio
from tiny import ALONE, ROOT

SST = ROOT / "sst"
OCEAN = S.Ocean(side=20, years=8)
TINY = replace(O.smoke(O.DEFAULT), device="cpu", starts=6)
MADE = S.make(OCEAN)


@pytest.fixture(scope="module")
def world() -> P.World:
    """The data of a smoke run."""
    return P.world(TINY)


class Silent(nn.Module):
    """A network that says 0: what is left are the best linear outputs, so each step is an AR(1) process."""

    def __init__(self, heads: int = 1):
        super().__init__()
        self.heads, self.unused = heads, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), self.heads, *x.shape[2:])


# ---- the synthetic field


def test_the_fields_spread_and_forecast_errors_are_those_of_the_formulas():
    anomaly = torch.from_numpy(MADE.regions[0].values).double() - OCEAN.climatology(MADE.times)
    assert anomaly.std().item() == pytest.approx(OCEAN.std, rel=0.05)
    for leads in (1, 3, 7):
        error = anomaly[leads:] - OCEAN.forecast_mean(anomaly[:-leads], leads)
        assert error.square().mean().sqrt().item() == pytest.approx(OCEAN.forecast_std(leads), rel=0.03)
        assert abs((error * anomaly[:-leads]).mean().item()) < 0.02  # what is left knows nothing of the start
    assert OCEAN.forecast_std(1) < OCEAN.forecast_std(7) < OCEAN.forecast_std(10_000)
    assert OCEAN.forecast_std(10_000) == pytest.approx(OCEAN.std)


def test_forecast_means_compose_and_a_current_moves_a_wave():
    a = torch.randn(20, 20, generator=generator(0), dtype=torch.float64)
    assert torch.allclose(OCEAN.forecast_mean(OCEAN.forecast_mean(a, 2), 3), OCEAN.forecast_mean(a, 5))
    still = replace(OCEAN, current=(2.0, 1.0), diffusion=0.0, damping=0.0)
    wave = torch.cos(2 * math.pi * torch.arange(20) / 20)[:, None].expand(20, 20)
    assert torch.allclose(still.forecast_mean(wave, 3), wave.roll(6, 0).double(), atol=1e-6)


def test_the_field_is_a_function_of_its_seed():
    short = replace(OCEAN, years=2)
    assert np.array_equal(S.make(short).regions[0].values, S.make(short).regions[0].values)
    assert not np.array_equal(S.make(short).regions[0].values, S.make(replace(short, seed=1)).regions[0].values)


# ---- climate


def region(values: np.ndarray, ocean: np.ndarray | None = None, cyclic: bool = False) -> D.Region:
    _, h, w = values.shape
    water = np.ones((h, w), bool) if ocean is None else ocean
    return D.Region("made", values.astype(np.float32), water, np.linspace(-60, 60, h), np.arange(w) * 2.0, cyclic)


def test_climate_of_a_known_cycle_and_a_known_ar1_process():
    rng, n, phi = np.random.default_rng(0), 4000, np.linspace(0.2, 0.9, 12).reshape(1, 3, 4)
    times = np.datetime64("1980-01-01") + 3 * np.arange(n)
    a = np.zeros((n, 3, 4))
    for k in range(1, n):
        a[k] = phi[0] * a[k - 1] + np.sqrt(1 - phi[0] ** 2) * rng.standard_normal((3, 4))
    wave = 5 * np.cos(2 * math.pi * S.season(times) - 1)[:, None, None]
    found = C.fit(region(10 + wave + 2 * a), times, n, 2, 4)
    assert (found.cycle[:].numpy() - 10 - wave).std() < 0.25 and torch.allclose(found.std, torch.tensor(2.0), rtol=0.12)
    for lead in (1, 2, 4):
        assert np.abs(found.damping[lead - 1].numpy() - phi[0] ** lead).max() < 0.09
        assert np.abs(found.residual[lead - 1].numpy() - np.sqrt(1 - phi[0] ** (2 * lead))).max() < 0.09


def test_the_climate_sees_the_training_years_only_and_no_land():
    n, ocean = 300, np.ones((4, 4), bool)
    ocean[1, 2] = False
    values = np.random.default_rng(0).standard_normal((n, 4, 4)) * ocean
    times = np.datetime64("2000-01-01") + 5 * np.arange(n)
    first = C.fit(region(values, ocean), times, 200, 2, 3)
    values[200:] = 1e3 * ocean
    second = C.fit(region(values, ocean), times, 200, 2, 3)
    for key in ("std", "damping", "residual"):
        assert torch.equal(getattr(first, key), getattr(second, key))
    assert torch.equal(first.cycle[:], second.cycle[:])
    assert (first.anomalies[:, 1, 2] == 0).all() and first.area[1, 2] == 0 and first.std[1, 2] == 1
    assert first.anomalies[:200].square().mean((0, 1, 2)).max() < 1.2
    with pytest.raises(ValueError, match="does not change"):
        C.fit(region(np.ones((n, 4, 4))), times, 200, 2, 3)


def test_boxes_go_around_the_globe_near_the_equator():
    ocean = np.ones((9, 12), bool)
    ocean[:, 8:] = False
    values = np.random.default_rng(0).standard_normal((100, 9, 12)) * ocean
    times = np.datetime64("2000-01-01") + 5 * np.arange(100)
    climate = C.fit(region(values, ocean, cyclic=True), times, 100, 1, 1)
    found = C.boxes(climate, 4)
    assert [box.region.lon[0] for box in found] == [0, 8]  # the third is land
    assert all(abs(box.region.lat.mean()) <= 8 for box in found)
    rows = found[0].region.lat
    assert torch.equal(
        found[1].anomalies[:], climate.anomalies[:, np.searchsorted(climate.region.lat, rows)][:, :, 4:8]
    )
    with pytest.raises(ValueError, match="--box 10 is larger"):
        C.boxes(climate, 10)


def test_coloured_noise_has_the_innovations_spectrum(world):
    """On a torus the estimate is the plain mean of |modes|^2, and near the known spectrum of the weather."""
    a, box = world.boxes[0].anomalies[: world.parts.val], world.boxes[0]
    innovation = ((a[1:] - box.damping[0] * a[:-1]) / box.residual[0]).double()
    power = torch.fft.rfft2(innovation).abs().square().mean(0)
    power = power / S.mean_power(power, 20)
    assert torch.allclose(world.amplitude.double().square(), power, rtol=1e-5)
    # A regression on the present cell knows nothing of the current: what it leaves is added to the weather.
    ratio = world.amplitude.double()[1:4, 5:] / OCEAN.innovation(1)[1:4, 5:] * OCEAN.forecast_std(1)
    assert ratio.std() / ratio.mean() < 0.2
    noise = C.coloured(world.amplitude, (400, 20, 20), generator(1))
    assert noise.var().item() == pytest.approx(1, rel=0.03)
    drawn = torch.fft.rfft2(noise).abs().square().mean(0) / 20**2
    for mode in ((0, 1), (1, 0), (2, 3)):
        assert drawn[mode].item() == pytest.approx(power[mode].item(), rel=0.25)
    white = C.coloured(C.spectrum(world.climates, 10, 20, False, True), (100, 20, 20), generator(2))
    assert (white[..., 1:] * white[..., :-1]).mean().abs() < 0.02


def open_sea(land: bool) -> tuple[C.Climate, Tensor]:
    """A box with edges: 20 cells out of 60 of an isotropic field that is new in every frame; the field's spectrum."""
    wide = S.Ocean(side=60, scale=9.0, slope=3.0)
    white = torch.randn(300, 60, 60, generator=generator(3), dtype=torch.float64)
    values = 5 * S.filtered(wide.amplitude(), white)[:, 20:40, 20:40].numpy()
    ocean = np.ones((20, 20), bool)
    ocean[:9, :6] = not land
    times = np.datetime64("2000-01-01") + 5 * np.arange(300)
    return C.fit(region(values * ocean, ocean), times, 300, 1, 1), wide.amplitude().square()[::3, ::3]


@pytest.mark.parametrize("land", [False, True], ids=["sea", "coast"])
def test_the_spectrum_of_a_box_with_edges_is_that_of_the_field(land):
    """The same in all directions, at the known level; by the torus's estimate the axes have ten times too much."""
    climate, truth = open_sea(land)
    found = C.spectrum([climate], 300, 20, True, False).square()
    naive = C.spectrum([climate], 300, 20, True, True).square()
    assert S.mean_power(found.double(), 20) == pytest.approx(1, rel=1e-5)
    rings = (((3, 0), (0, 3)), ((5, 0), (0, 5), (3, 4), (4, 3)), ((10, 0), (0, 10), (6, 8), (8, 6)))
    for ring in rings:  # modes of the same wavelength
        seen, known = (torch.stack([x[mode] for mode in ring]) for x in (found, truth))
        assert torch.allclose(known, known[0].expand_as(known))
        assert (seen / known).min() > 0.9 and (seen / known).max() < (1.6 if land else 1.35)
    assert min((naive / truth)[10, 0], (naive / truth)[0, 10]) > 5  # what the jumps between edges make of the axes


# ---- the flow

METHODS = [F.Method("cfm", "noise", 0.0), F.Method("cfm", "state", 0.8)]
METHODS += [F.Method("idff", "noise", 0.3), F.Method("idff", "state", 0.8)]
M, SPREAD = 0.7, 0.5
CRPS = F.Method("crps", "noise", 0.0)


def ends(method: F.Method, t: Tensor, scale: float, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """x_t and the two regression targets of many pairs, x1 ~ N(mean, scale^2)."""
    n, draw = len(t), generator(0)
    x0, e, z = (torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(3))
    x0, x1 = (x0 if method.source == "noise" else 0 * x0), mean + scale * z
    s = method_of(method.name).path(method.sigma).spread(t)
    target = x1 - x0 if method.name == "cfm" else x1
    return (1 - t) * x0 + t * x1 + s * e, target, -(method.sigma**2) / (2 * s).clamp(min=1e-9) * e


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.source}")
def test_gains_are_the_slopes_of_regression(method):
    for time in (0.15, 0.5, 0.9):
        t = torch.full((200_000,), time, dtype=torch.float64)
        x, *targets = ends(method, t, 1.0)
        gains = method.gains(t[:1])[0]
        assert len(gains) == (2 if method.name == "idff" else 1)
        for gain, target in zip(gains, targets):
            assert gain.item() == pytest.approx(((target * x).mean() / x.square().mean()).item(), abs=0.02)


def exact_network(method: F.Method):
    """The outputs that a perfect network has for x1 ~ N(M, SPREAD^2)."""
    v0 = 1.0 if method.source == "noise" else 0.0

    def net(x: Tensor, t: Tensor) -> Tensor:
        time = t[:, None, None, None]
        s = method_of(method.name).path(method.sigma).spread(t)[:, None, None, None]
        variance = (1 - time) ** 2 * v0 + time**2 * SPREAD**2 + s**2 + 1e-12
        off = (x - time * M) / variance
        if method.name == "cfm":
            return M + (time * SPREAD**2 - (1 - time) * v0) * off
        return torch.cat([M + time * SPREAD**2 * off, -(method.sigma**2) / 2 * off], 1)

    return net


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.source}")
def test_a_perfect_network_draws_the_right_distribution(method):
    """N(M, SPREAD^2), but for cfm from the state, whose path ends with its noise on top."""
    noise = [torch.randn(20_000, 1, 1, 1, generator=generator(k)) for k in range(101)]
    drawn = F.draw_innovation(exact_network(method), method, lambda i: noise[i], 100, "midpoint")
    extra = method.sigma if (method.name, method.source) == ("cfm", "state") else 0.0
    assert drawn.mean().item() == pytest.approx(M, abs=0.02)
    assert drawn.std().item() == pytest.approx(math.hypot(SPREAD, extra), rel=0.03)


@pytest.mark.parametrize("k", [2, 4])
def test_the_fair_crps_is_least_for_the_right_mean_and_spread(k):
    """Of members shift + scale e for x1 ~ N(M, SPREAD^2); the plain score of two would end at SPREAD / sqrt(7)."""
    shift, scale = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer, draw = torch.optim.Adam([shift, scale], lr=0.05), generator(0)
    found = []
    for _ in range(120):
        noise, target = (torch.randn(256, n, 4, 4, generator=draw) for n in (k, 1))
        optimizer.zero_grad()
        F.fair_crps(shift + scale * noise, M + SPREAD * target).mean().backward()
        optimizer.step()
        found.append([shift.item(), scale.item()])
    mean, spread = np.mean(found[60:], 0)
    assert mean == pytest.approx(M, abs=0.02) and spread == pytest.approx(SPREAD, rel=0.03)


def test_the_fair_crps_is_that_of_common_metrics():
    members, target = (torch.randn(5, n, 3, 3, generator=generator(n)) for n in (4, 1))
    theirs = crps_ensemble(members.transpose(0, 1), target[:, 0], fair=True, mean=False)
    assert isinstance(theirs, Tensor)
    assert torch.allclose(F.fair_crps(members, target), theirs.mean((1, 2)).float(), atol=1e-6)


def test_members_of_a_training_sample_drop_the_same_activations():
    trainer = F.FieldTrainer(replace(TINY, method="crps", train_members=3, dropout=0.5), True, ALONE)
    x = torch.randn(2, 1, 20, 20, generator=generator(0))
    batch = F.FieldBatch(
        x.repeat(1, 3, 1, 1), torch.zeros_like(x), torch.rand(2), x, torch.randn(2, 9, 20, 20), 1 + 0 * x, None
    )
    made = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        made.append(nn.functional.dropout(x[:, :1], 0.5))
        return made[-1]

    losses = trainer.losses(net, batch)
    assert len(made) == 3 and torch.equal(made[0], made[1]) and torch.equal(made[1], made[2])
    assert not torch.equal(net(x, x), made[0]) and losses.shape == (2,)  # the next step drops others


@pytest.mark.parametrize(("method", "evaluations"), [(METHODS[0], 2), (METHODS[3], 1), (CRPS, 1)])
def test_one_step_suffices_where_the_network_has_nothing_to_add(method, evaluations):
    """The midpoint rule for x1 of variance one; the SDE for a diffusion as large as x1's spread."""
    calls = []
    net = replace(method, sigma=1.0) if method.source == "state" else method

    def call(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return net.gains(t)[..., None, None] * x

    noise = [torch.randn(20_000, 1, 1, 1, generator=generator(k)) for k in range(2)]
    drawn = F.draw_innovation(call, net, lambda i: noise[i], 1, "midpoint")
    assert drawn.std().item() == pytest.approx(1, rel=0.02) and len(calls) == evaluations


def masked_world(**changes) -> tuple[P.World, O.Options]:
    """A field with land at a corner and cyclic columns, cut into boxes of 20 from 24 x 40."""
    options = replace(TINY, **changes)
    ocean = np.ones((24, 40), bool)
    ocean[:14, :13] = False
    made = [S.make(replace(OCEAN, years=5, seed=k)) for k in range(4)]
    top, bottom = (np.concatenate([x.regions[0].values for x in pair], 2) for pair in (made[:2], made[2:]))
    values = np.concatenate([top, bottom], 1)[:, :24]
    fields = D.Fields("masked", [region(values * ocean, ocean, cyclic=True)], made[0].times)
    parts = C.split(fields, 1, 1)
    climates = [C.fit(fields.regions[0], fields.times, parts.val, 2, options.horizon)]
    amplitude = C.spectrum(climates, parts.val, 20, True, False)
    return P.World(fields, parts, climates, C.boxes(climates[0], 20), amplitude), options


@pytest.mark.parametrize("label", ["none", "season", "lead"])
def test_batches_are_pairs_of_frames_of_one_place(label):
    """Each cell's anomaly says its time, row and column, so that pairs can be read off."""
    data, options = masked_world(label_by=label, past=2)
    t, i, j = torch.meshgrid(torch.arange(200), torch.arange(24), torch.arange(40), indexing="ij")
    named = (t * 10_000 + i * 100 + j).float()
    flat = {"damping": torch.full((3, 24, 40), 0.5), "residual": torch.full((3, 24, 40), 2.0)}
    plain = replace(data.climates[0].anomalies, values=Frames(named.numpy()), std=torch.ones(24, 40))
    plain = replace(plain, cycle=replace(plain.cycle, waves=torch.zeros(1, 24, 40)), ocean=torch.ones(24, 40) > 0)
    climate = replace(data.climates[0], anomalies=plain, **flat)
    source = F.FieldBatches([climate], data.fields, data.amplitude, options, 100, 140, ALONE, "held out")
    leads, columns = set(), set()
    for step in range(10):
        batch = source.make(step)
        labels = [0] * options.batch_size if batch.y is None else batch.y.tolist()
        for k in range(options.batch_size):
            before, now = batch.condition[k, :2]
            ocean = batch.ocean[k, 0].bool()
            later = 2 * batch.x1[k, 0] + 0.5 * now
            lead = labels[k] + 1 if label == "lead" else 1
            time, row, column = int(now[0, 0]) // 10_000, int(now[0, 0]) // 100 % 100, int(now[0, 0]) % 100
            assert torch.equal(now - before, torch.full((20, 20), 10_000.0))
            assert torch.equal((later - now)[ocean], torch.full((20, 20), lead * 10_000.0)[ocean])
            assert 100 <= time + lead < 140
            assert torch.equal(now[0] % 100, (column + torch.arange(20.0)) % 40)  # around the globe
            assert torch.equal(ocean, climate.ocean.roll(-column, 1)[row : row + 20, :20].bool())
            for field in (batch.x0, batch.x1, batch.noise):
                assert (field[k, 0][~ocean] == 0).all()
            if label == "season":
                assert labels[k] == int(data.fields.times[time + 1].astype("datetime64[M]").astype(int) % 12)
            leads.add(lead)
            columns.add(column)
    assert leads == ({1, 2, 3} if label == "lead" else {1}) and max(columns) > 20
    again = source.make(9)
    assert torch.equal(again.x1, batch.x1) and torch.equal(again.noise, batch.noise)
    assert not torch.equal(source.make(8).noise, batch.noise)


@pytest.mark.parametrize("method", [*METHODS, CRPS], ids=lambda m: f"{m.name}-{m.source}")
def test_land_has_no_weight_in_the_loss(method):
    data, options = masked_world(method=method.name, source=method.source, sigma=method.sigma)
    source = F.FieldBatches(data.climates, data.fields, data.amplitude, options, 0, 100, ALONE, "held out")
    trainer = F.FieldTrainer(options, False, ALONE)
    batch = source.make(0)
    assert 0 < batch.ocean.mean() < 1
    wild = lambda x, t, y=None: 100 * (1 - batch.ocean).expand(-1, trainer.description["out_channels"], -1, -1)  # noqa: E731
    assert torch.equal(trainer.losses(wild, batch), trainer.losses(Silent(trainer.description["out_channels"]), batch))
    assert not torch.equal(trainer.losses(wild, batch), trainer.losses(lambda x, t, y=None: 1 + wild(x, t), batch))


def test_a_torus_has_no_edges():
    """What the network sees beyond an edge is the other side, so a shift of all inputs shifts the output."""
    net = nn.Conv2d(2, 1, 5, padding=2)
    x, condition, ocean = torch.randn(1, 1, 12, 12), torch.randn(1, 1, 12, 12), torch.ones(1, 1, 12, 12)

    def out(shift: int, torus: bool) -> Tensor:
        moved = [f.roll((shift, shift), (2, 3)) for f in (x, condition)]
        seen = F.Conditioned(lambda z, t: net(z), METHODS[0], moved[1], ocean, None, torus)
        return seen(moved[0], torch.full((1,), 0.5)).roll((-shift, -shift), (2, 3))

    assert torch.allclose(out(0, True), out(5, True), atol=1e-5) and not torch.allclose(out(0, False), out(5, False))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": "idff"}, "--sigma 0: --method idff"),
        ({"source": "state"}, "--sigma 0"),
        ({"method": "crps", "source": "state", "sigma": 0.5}, "--source state is not read by --method crps"),
        ({"method": "crps", "n_steps": 2}, "--n_steps 2 is not read by --method crps"),
        ({"train_members": 1}, "--train_members 1: must be at least 2"),
        ({"weights": "w.pt"}, "--weights w.pt is not read where --mode all trains: add --mode evaluate"),
        ({"weights": "w.pt", "mode": "train"}, "where --mode train trains"),
        ({"members": 1}, "--members 1: must be at least 2"),
        ({"box": 22}, "--box 22 and 4 cells at each edge must be divisible by 4"),
        ({"starts": -1}, "--starts -1: must be at least 0"),
        ({"train_years": 0.5}, "--train_years 0.5: must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, line):
    options = replace(TINY, **changes)
    with pytest.raises(ValueError, match=line):
        validate(options)
        F.check(options, torus=True)


def test_fewer_years_of_training_are_tested_on_the_same_fields(world):
    """The climate, too, is that of the years that are learnt from."""
    less = P.world(replace(TINY, train_years=1))
    whole, part = world.starts(TINY), less.starts(TINY)
    assert less.parts.val == 73 and np.array_equal(world.fields.times[whole], less.fields.times[part])
    first = world.parts.val - 73
    wanted = C.fit(less.fields.regions[0], world.fields.times[first:], 73, TINY.harmonics, TINY.horizon)
    assert torch.equal(less.boxes[0].anomalies[:], wanted.anomalies[:])
    assert np.array_equal(less.fields.regions[0].values[:], world.fields.regions[0].values[first:])
    with pytest.raises(ValueError, match="--train_years 3: synthetic begins on 2009-01-01, with 2.0 years before"):
        P.world(replace(TINY, train_years=3))


def test_training_lowers_the_validation_loss(world, tmp_path):
    options = replace(TINY, total_steps=25, val_step=25, save_step=25, lr=3e-3, batch_size=8, out=str(tmp_path))
    trainer = F.FieldTrainer(options, True, ALONE)
    parts = world.parts
    held_out = F.FieldBatches(world.climates, world.fields, world.amplitude, options, parts.val, parts.test, ALONE, "v")
    source = F.FieldBatches(world.climates, world.fields, world.amplitude, options, 0, parts.val, ALONE, "s")
    before = trainer.validation_loss(held_out, 6)
    for step in range(25):
        trainer.update(source.make(step))
    assert trainer.validation_loss(held_out, 6) < 0.99 * before


# ---- forecasts


def test_a_silent_network_forecasts_damped_persistence_with_its_spread(world):
    model = P.Forecaster(Silent(), replace(TINY, horizon=3))
    drawn = P.forecast(model, world, world.starts(TINY)[:3], 400, seed=0, progress="")
    damping, residual = world.boxes[0].damping[0], world.boxes[0].residual[0]
    assert drawn.members.shape == (3, 400, 3, 20, 20) and drawn.nfe == 2
    for lead in (1, 2, 3):
        mean, spread = drawn.members[lead - 1].mean(0), drawn.members[lead - 1].std(0)
        assert (mean - damping**lead * drawn.start).abs().mean() < 0.05
        wanted = residual * sum(damping ** (2 * k) for k in range(lead)) ** 0.5
        assert (spread / wanted - 1).abs().mean() < 0.05
    later = world.boxes[0].anomalies[drawn.frame + 3]
    assert torch.equal(drawn.target[2], later)


def test_a_member_does_not_depend_on_what_else_is_forecast(world):
    torch.manual_seed(0)
    net = F.build_network(F.description(TINY)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    starts = world.starts(TINY)
    many = P.forecast(P.Forecaster(net, replace(TINY, chunk=7)), world, starts, 4, seed=1, progress="")
    few = P.forecast(P.Forecaster(net, TINY), world, starts[2:3], 2, seed=1, progress="")
    assert torch.allclose(many.members[:, :2, 2:3], few.members, atol=1e-4)
    assert not torch.allclose(many.members[:, 0], many.members[:, 1], atol=1e-2)
    assert not torch.allclose(P.forecast(P.Forecaster(net, TINY), world, starts[2:3], 2, 2, "").members, few.members)


def test_leads_can_be_drawn_directly(world):
    model = P.Forecaster(Silent(), replace(TINY, label_by="lead"))
    drawn = P.forecast(model, world, world.starts(TINY)[:2], 300, seed=0, progress="")
    box = world.boxes[0]
    for k in range(3):
        assert (drawn.members[k].mean(0) - box.damping[k] * drawn.start).abs().mean() < 0.06
        assert (drawn.members[k].std(0) / box.residual[k] - 1).abs().mean() < 0.06


def test_the_spread_is_fitted_to_the_validation_years(world):
    model = P.Forecaster(Silent(), replace(TINY, starts=0))
    narrow = replace(model, options=replace(model.options, method="cfm", source="state", sigma=0.4))
    factors = P.fit_spread(narrow, world, 10)
    assert len(factors) == TINY.horizon and min(factors) > 1.05
    starts = world.starts(narrow.options, validation=True)
    fitted = P.forecast(replace(narrow, spread=factors), world, starts, 10, 0, "")
    ratio = spread_skill_ratio(fitted.members[1], fitted.target[1])
    assert ratio == pytest.approx(1, abs=0.1)
    plain = P.forecast(narrow, world, starts, 10, 0, "")
    assert torch.allclose(plain.members.mean(1), fitted.members.mean(1), atol=1e-5)


# ---- scores


def test_members_of_the_exact_forecast_score_like_it(world):
    starts = world.starts(replace(TINY, starts=24))
    drawn = P.forecast(P.Forecaster(Silent(), TINY), world, starts, 2, 0, "")
    mean, std = skill.exact(world, drawn)
    noise = [C.coloured(OCEAN.innovation(k).float(), (40, len(starts), 20, 20), generator(k)) for k in (1, 2, 3)]
    members = torch.stack([m + e / world.boxes[0].std for m, e in zip(mean, noise)], 0).float()
    result = skill.evaluate(world, replace(drawn, members=members))
    assert result["exact_ratio_mean"] == pytest.approx(1 + 1 / 40, abs=0.02)
    table, others = result["units"]["normalised"], result["without_units"]
    assert others["flow"]["ssr_mean"] == pytest.approx(1, abs=0.08)
    assert others["exact"]["ssr_mean"] == pytest.approx(1, abs=0.08)
    assert table["exact"]["crps_mean"] < min(table[name]["crps_mean"] for name in skill.POINT + skill.GAUSSIAN)
    assert np.abs(np.mean(others["flow"]["ranks"], 0) * 41 - 1).mean() < 0.25
    assert np.abs(np.log(np.array(others["flow"]["spectrum_ratio"])[:, 1:])).max() < 0.35  # as rough as the truth
    assert np.abs(np.log(np.array(others["exact"]["spectrum_ratio"])[:, 1:])).max() < 0.35
    assert np.max(others["damped persistence"]["spectrum_ratio"]) < 1  # a mean is smoother
    for lead in range(3):  # members say no less than what they are drawn from
        for key, least in (("brier_skill", 0.02), ("energy", 0.01)):
            rows = others if key == "brier_skill" else table
            assert rows["flow"][key][lead] == pytest.approx(rows["exact"][key][lead], abs=least)
        assert others["exact"]["brier_skill"][lead] > max(others[n]["brier_skill"][lead] for n in skill.POINT)
        assert table["exact"]["energy"][lead] < min(table[n]["energy"][lead] for n in skill.GAUSSIAN)
    fair = np.mean(table["flow"]["crps_fair"])
    assert fair == pytest.approx(table["exact"]["crps_mean"], rel=0.02)
    assert skill.below_everywhere(result, ["persistence"]) == {"persistence": True}


def test_baselines_by_hand():
    data, options = masked_world()
    drawn = P.forecast(P.Forecaster(Silent(), options), data, data.starts(options)[:2], 3, 0, "")
    result, area = skill.evaluate(data, drawn), data.maps("area")[drawn.box]
    assert 0 < area.mean() < 1 and len(drawn.box) == 2 * len(data.boxes)
    box, lead = data.boxes[0], 2
    weights = area / area.sum()
    table, units = result["units"]["normalised"], result["units"]["deg_C"]
    error = (drawn.start - drawn.target[lead - 1]).abs()
    assert table["persistence"]["crps"][lead - 1] == pytest.approx((error * weights).sum().item(), rel=1e-5)
    std = data.maps("std")[drawn.box]
    assert units["persistence"]["crps"][lead - 1] == pytest.approx((error * std * weights).sum().item(), rel=1e-5)
    assert units["climatology"]["mse"][0] == pytest.approx(
        ((drawn.target[0] * std) ** 2 * weights).sum().item(), rel=1e-5
    )
    damped = torch.stack([data.boxes[k].damping[lead - 1] for k in drawn.box.tolist()]) * drawn.start
    spread = torch.stack([data.boxes[k].residual[lead - 1] for k in drawn.box.tolist()])
    wanted = (crps_gaussian(damped, spread, drawn.target[lead - 1]) * weights).sum().item()
    assert table["damped persistence, Gaussian"]["crps"][lead - 1] == pytest.approx(wanted, rel=1e-5)
    assert "exact" not in table and (drawn.members[..., :, :] * (1 - box.ocean)).abs().max() >= 0
    land = torch.stack([data.boxes[k].ocean for k in drawn.box.tolist()]) == 0
    assert land.any() and (drawn.members[:, :, land] == 0).all()


def test_the_climatological_ensemble_is_of_the_training_years_and_of_the_season(world):
    """Each frame's field says when it was."""
    times = world.fields.times
    named = torch.arange(len(times), dtype=torch.float32)[:, None, None].expand(len(times), 20, 20)
    told = replace(world, boxes=[replace(world.boxes[0], anomalies=named)])
    start = told.starts(replace(TINY, starts=3))
    drawn: Any = SimpleNamespace(members=torch.zeros(3, 30, 3, 20, 20), target=torch.zeros(3, 3, 20, 20))
    drawn.frame, drawn.box = start, torch.zeros(3, dtype=torch.int64)
    frames = skill.climatological(told, drawn)[..., 0, 0].long()  # (L, M, N)
    assert frames.shape[1] == 30 and frames.max() < world.parts.val
    later = start + torch.arange(1, 4)[:, None]
    days = S.season(times)
    off = np.abs((days[frames.numpy()] - days[later.numpy()][:, None] + 0.5) % 1 - 0.5)
    assert 0.1 < off.max() <= skill.NEAR + 1e-6
    assert len(frames[0, :, 0].unique()) == 30 and frames[0, :, 0].min() < 73 <= frames[0, :, 0].max()  # of all years


def test_the_warm_decile_is_that_of_the_training_years(world):
    limits = skill.warm_of(world, torch.tensor([0, 0]))
    training = world.boxes[0].anomalies[: world.parts.val]
    assert limits.shape == (2, 20, 20) and (training > limits[0]).float().mean().item() == pytest.approx(0.1, abs=0.01)
    ground = skill.Ground(
        target=training[None], area=torch.ones(len(training), 20, 20), std=torch.ones(1), warm=limits[0],
        window=torch.ones(1), amplitude=world.amplitude, members=2, seed=0,
    )  # fmt: skip
    always = skill.Normal(torch.full_like(training, -99.0), None)  # never warm: the score is the share of warm cells
    assert ground.warm_skill(always, 0) == pytest.approx(1 - 0.1 / (0.1 * 0.9), abs=0.01)
    assert ground.warm_skill(skill.Normal(training, None), 0) == 1
    known = skill.Normal(torch.zeros_like(training), limits[0].expand_as(training) / 1.2815516)
    assert ground.warm_skill(known, 0) == pytest.approx(0, abs=1e-3)  # a normal distribution of that decile


def rotating(frames: int, noise: float, draw: torch.Generator) -> Tensor:
    """Two patterns (T, 12, 12) whose amplitudes turn into each other: no cell's own past says what comes."""
    turn = 0.95 * torch.tensor([[math.cos(0.7), math.sin(0.7)], [-math.sin(0.7), math.cos(0.7)]])
    states = [torch.randn(2, generator=draw)]
    for _ in range(frames - 1):
        states.append(states[-1] @ turn + 0.3 * torch.randn(2, generator=draw))
    places = torch.linalg.qr(torch.randn(144, 2, generator=draw))[0].T.reshape(2, 12, 12) * 12
    return torch.einsum("tk,kij->tij", torch.stack(states), places) + noise * torch.randn(
        frames, 12, 12, generator=draw
    )


def test_a_linear_inverse_model_finds_patterns_that_turn_into_each_other():
    """Its errors are what is new in each step, and its spread is as large."""
    draw = torch.Generator().manual_seed(0)
    a = rotating(1200, 0.05, draw)
    box: Any = SimpleNamespace(anomalies=a, damping=C.persistence(a[:900], 3)[0])
    model = linear.fit(box, linear.patterns(a[:900], 2), 900, 3)
    for lead in (1, 3):
        error = a[900 + lead :] - model.mean(a[900:-lead], lead)
        new = 0.3 * math.sqrt(2 * sum(0.95 ** (2 * k) for k in range(lead)))  # of two patterns
        assert error.std().item() == pytest.approx(new, rel=0.1)
        assert model.residual[lead - 1].square().mean().sqrt().item() == pytest.approx(error.std().item(), rel=0.1)
        still = (a[900 + lead :] - a[900:-lead] * box.damping[lead - 1]).std()
        assert error.std() < 0.8 * still


def test_patterns_are_those_of_the_covariance(world):
    for a in (world.boxes[0].anomalies[:50], world.boxes[0].anomalies[:, :5, :5]):
        found = linear.patterns(a, 4).flatten(1)
        assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-4)
        power = (a.flatten(1) @ found.T).square().sum(0)
        assert power[0].item() == pytest.approx(torch.linalg.matrix_norm(a.flatten(1), 2).item() ** 2, rel=1e-4)
        assert (power.diff() <= 1e-3).all()


def parts(forecast: skill.Forecast) -> tuple[Tensor, Any]:
    assert isinstance(forecast, skill.Normal)
    return forecast.mean, forecast.std


def test_the_linear_inverse_model_is_no_worse_than_damped_persistence(world):
    drawn = P.forecast(P.Forecaster(Silent(), TINY), world, world.starts(replace(TINY, starts=0)), 2, 0, "")
    found = skill.baselines(world, drawn)
    (mean, std), (damped, _) = (parts(found[name]) for name in (skill.LINEAR, "damped persistence"))
    assert mean.shape == std.shape == drawn.target.shape and (std > 0).all()
    area = world.maps("area")[drawn.box]
    assert ((mean - drawn.target).square() * area).sum() < 1.05 * ((damped - drawn.target).square() * area).sum()


def test_damped_persistence_can_have_its_spread_fitted(world):
    frames = torch.arange(world.parts.val - 3)
    factors = skill.fitted_spread(world, frames, 3)
    assert torch.allclose(factors, torch.ones(3), atol=0.01)  # the training years' own spread
    wild = [replace(box, anomalies=2 * box.anomalies[:]) for box in world.boxes]
    assert torch.allclose(skill.fitted_spread(replace(world, boxes=wild), frames, 3), 2 * factors)
    drawn = P.forecast(P.Forecaster(Silent(), TINY), world, frames[:2], 2, 0, "")
    found = skill.baselines(world, drawn, frames)
    mean, std = parts(found[skill.FITTED])
    assert torch.equal(mean, parts(found["damped persistence"])[0])
    assert skill.FITTED not in skill.baselines(world, drawn)
    assert torch.allclose(std[1], factors[1] * world.boxes[0].residual[1].expand_as(std[1]))


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"config": {"horizon": "x"}}, "its options: horizon"),
        ({"config": {"past": 0}}, "past"),
        ({"config": {"past": 5}}, "its network is not that of its options .in_channels"),
        ({"config": {"method": "idff", "sigma": 0.5}}, "its network is not that of its options .out_channels"),
        ({"spread": 3}, "its spread"),
        ({"spread": [1.0, -1.0]}, "its spread"),
        ({"spread": [1.0, 1.0]}, "its spread has 2 factors for 7 leads"),
        ({"spread": [float("nan")] * 7}, "its spread"),
    ],
)
def test_weights_that_contradict_themselves_are_named(tmp_path, changes, line):
    state = checkpoint.load(SST / "results" / "CFM-synthetic")
    state |= {key: state[key] | value if key == "config" else value for key, value in changes.items()}
    checkpoint.save(tmp_path / "a.pt", state)
    with pytest.raises(ValueError, match=f"a.pt: .*{line}"):
        P.load_forecaster(tmp_path / "a.pt", torch.device("cpu"))


# ---- scripts


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """A smoke run's folder, and its scores."""
    out = tmp_path_factory.mktemp("sst") / "run"
    return out, pipeline.run(replace(TINY, out=str(out)))


def test_the_forecaster_trains_scores_and_draws(trained):
    out, result = trained
    final = "CFM_sst_weights_step_final.pt"
    files = {"forecast.png", "verification.png", "scores.json", "config.yaml", "metrics.jsonl", "run.lock", final}
    files |= {"checkpoint_best.pt", "checkpoint_last.pt", final.replace(".pt", ".json"), "page.html"}
    assert {path.name for path in out.iterdir()} == files
    scores = json.loads((out / "scores.json").read_text())
    assert scores == result and scores["networks"]["flow"]["nfe"] == 2 and scores["members"] == 4
    assert len(scores["without_units"]["flow"]["ssr"]) == 3 and (out / "verification.png").stat().st_size > 50_000
    assert scores["exact_ratio_mean"] == pytest.approx(np.mean(scores["exact_ratio"]), rel=0.1)
    _, info = checkpoint.load_network(out / final)
    assert info["config"]["box"] == 20 and info["method"]["source"] == "noise"


def test_weights_are_used_again(trained, tmp_path, monkeypatch, capsys):
    out, _ = trained
    picture = tmp_path / "a.png"
    pipeline.draw(O.DrawOptions(weights=str(out), out=str(picture), start=3, smoke=True))
    printed = capsys.readouterr().out
    assert picture.exists() and f"picture: {picture}" in printed and "NFE 2 a lead" in printed
    drawn = []
    for name in ("forecast_maps", "verification"):
        monkeypatch.setattr(maps, name, lambda path, *_, **__: drawn.append(path.name))
    options = replace(TINY, mode="evaluate", weights=str(out), out=str(tmp_path), members=3, n_steps=2)
    assert pipeline.run(options)["networks"]["flow"]["nfe"] == 4 and drawn == ["forecast.png", "verification.png"]
    printed = capsys.readouterr().out
    assert "CRPS / CRPS of the exact forecast" in printed and "spread-skill ratio" in printed
    again = replace(options, mode="forecast", init="latest", forecasts=str(tmp_path / "b.nc"), n_steps=1)
    assert list(pipeline.run(again)) == ["2012-12-31", "2013-01-05", "2013-01-10"] and drawn[2:] == ["forecast.png"]
    printed = capsys.readouterr().out
    assert "from 2012-12-26, 3 members, NFE 2 a lead" in printed and f"forecasts: {tmp_path / 'b.nc'}" in printed
    with pytest.raises(ValueError, match="was trained with --box 20"):
        pipeline.run(replace(options, box=24))
    with pytest.raises(ValueError, match="--start 400: "):
        pipeline.draw(O.DrawOptions(weights=str(out), start=400, smoke=True))


def test_a_file_with_land_from_training_to_figures(tmp_path):
    changes = {"method": "idff", "source": "state", "sigma": 0.9, "label_by": "season", "past": 2}
    xarray = pytest.importorskip("xarray")
    data, _ = masked_world()
    r = data.fields.regions[0]
    field = np.where(r.ocean, r.values, np.nan)
    coords = {"time": data.fields.times.astype("datetime64[ns]"), "lat": r.lat[::-1], "lon": r.lon * 4.5}
    array = xarray.DataArray(field, dims=("time", "lat", "lon"), coords=coords)
    array.to_dataset(name="sst").to_netcdf(tmp_path / "sst.nc")
    options = replace(TINY, data=str(tmp_path / "sst.nc"), out=str(tmp_path / "run"), spread="validation", **changes)
    result = pipeline.run(options)
    assert result["boxes"] == 2 and math.isfinite(result["without_units"]["flow"]["ssr_mean"])
    assert "exact_ratio" not in result
    assert skill.FITTED in result["units"]["deg_C"]
    state = checkpoint.load(tmp_path / "run" / "IDFF_sst_weights_step_final.pt")
    assert len(state["spread"]) == 3 and min(state["spread"]) > 0 and state["config"]["data"] == "sst.nc"
    assert (tmp_path / "run" / "forecast.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="trained on sst.nc: give it with --data"):
        pipeline.draw(O.DrawOptions(weights=str(tmp_path / "run"), smoke=True))


def test_a_rival_trained_on_the_crps_for_some_minutes_and_its_row(trained, tmp_path, monkeypatch):
    seconds = itertools.count(0.0)
    options = replace(TINY, out=str(tmp_path), method="crps", train_members=3, minutes=0.05, warmup=1)
    with monkeypatch.context() as patch:
        patch.setattr(F.FieldTrainer, "now", staticmethod(lambda: next(seconds)))
        pipeline.run(replace(options, mode="train"))
    state = checkpoint.load(tmp_path / "checkpoint_last.pt")
    assert (state["step"], state["seconds"], state["config"]["minutes"]) == (4, 3, 0.05)
    assert state["method"]["name"] == "crps" and O.smoke(O.DEFAULT).minutes is None
    assert O.smoke(replace(O.DEFAULT, minutes=9)).minutes == 0.05
    for name in ("forecast_maps", "verification"):
        monkeypatch.setattr(maps, name, lambda *_, **__: None)
    result = pipeline.run(replace(options, mode="evaluate", beside=(str(trained[0]),)))
    assert {name: cost["nfe"] for name, cost in result["networks"].items()} == {"CRPS network": 1, "flow": 2}
    for score in ("crps", "energy"):  # the same forecasts as in its own run
        own, flow = (x["units"]["deg_C"]["flow"][score] for x in (trained[1], result))
        assert flow == pytest.approx(own)
    assert result["row"] == "CRPS network"
    again = pipeline.run(replace(options, mode="evaluate", weights=str(trained[0]), beside=(str(tmp_path),)))
    assert again["units"]["deg_C"]["CRPS network"]["crps"] == result["units"]["deg_C"]["CRPS network"]["crps"]
    with pytest.raises(ValueError, match="two rows would be called CRPS network"):
        pipeline.run(replace(options, mode="evaluate", beside=(str(tmp_path),)))


def test_a_run_goes_on_where_it_was(tmp_path):
    def go(folder: str, steps: int, resume: str = "no") -> dict:
        options = replace(TINY, mode="train", out=str(tmp_path / folder), total_steps=4, warmup=1, resume=resume)
        if steps < 4:
            data, trainer = P.world(options), F.FieldTrainer(options, True, ALONE)
            source = F.FieldBatches(
                data.climates, data.fields, data.amplitude, options, 0, data.parts.val, ALONE, "step"
            )
            for k in range(steps):
                trainer.update(source.make(k))
            source.close()
            checkpoint.save(tmp_path / folder / "checkpoint_last.pt", trainer.state())
        else:
            pipeline.run(options)
        return checkpoint.load(tmp_path / folder / "checkpoint_last.pt")

    whole = go("whole", 4)
    go("parts", 2)
    resumed = go("parts", 4, "auto")
    assert all(torch.equal(whole["net_model"][key], resumed["net_model"][key]) for key in whole["net_model"])
    with pytest.raises(ValueError, match="holds a run"):
        go("whole", 4)


def test_a_run_goes_on_with_its_own_data_and_split_only(tmp_path, monkeypatch, capsys):
    begun = replace(TINY, mode="train", out=str(tmp_path), total_steps=2, warmup=1)
    pipeline.run(begun)
    again = replace(begun, total_steps=3, resume="auto")
    for changes in ({"seed": 1}, {"val_years": 0.5}, {"harmonics": 1}, {"train_years": 1.0}):
        ((key, value),) = changes.items()
        with pytest.raises(ValueError, match=f"{key} .* there and {value} now.*another --out"):
            pipeline.run(replace(again, **changes))
    warmer = P.synthetic.make
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="data .* frames .* there and"):
        patch.setattr(P.synthetic, "make", lambda ocean: warmer(replace(ocean, seed=5)))
        pipeline.run(again)
    pipeline.run(replace(again, batch_size=8))
    state = checkpoint.load(tmp_path / "checkpoint_last.pt")
    assert state["history"] == [{"step": 2, "total_steps": [2, 3], "batch_size": [TINY.batch_size, 8]}]
    assert state["images_seen"] == 2 * TINY.batch_size + 8


@pytest.mark.parametrize("name", O.PRESETS)
def test_presets_fit_the_boxes_that_they_are_for(name):
    """OISST's boxes are of 60 x 60 cells, as are the tiles of ERSST; only the synthetic field has no edges."""
    options = O.PRESETS[name]
    validate(options)
    F.check(options, torus=name == "default")
    F.check(O.smoke(options), torus=True)  # of the synthetic field
    with torch.device("meta"):
        network = build_network(F.description(options))
    assert options.box == 60 and (60 + 2 * F.WRAP * (name == "default")) % network.multiple == 0


def test_mistakes_end_with_one_line():
    done = started.start(SST / "sst_forecaster.py", "--data", "none.nc", cwd=SST)
    assert done.returncode == 2 and done.stderr.startswith("error: no data at none.nc")
    assert done.stderr.strip().count("\n") == 0
    with pytest.raises(ValueError, match="config.py is not NetCDF"):
        pipeline.run(replace(TINY, data=str(SST / "config.py")))
    with pytest.raises(FileNotFoundError, match="no weights at nowhere.pt"):
        pipeline.draw(O.DrawOptions(weights="nowhere.pt"))
    with pytest.raises(ValueError, match="not of a forecaster"):
        O.restored({"method": "rf"})
