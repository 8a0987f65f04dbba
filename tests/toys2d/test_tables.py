"""The published 2D tables: their data, the couplings and networks that make them affordable, and the table itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import protocols as P
import published
import scoring as S
import table_text as M
import together as T
from common.couplings import entropic_plan
from common.losses import squared_error
from common.methods import METHODS, make_loss
from common.metrics import wasserstein2
from common.networks import MLP
from common.runtime import generator
from started import start
from tiny import ROOT

# ---- data


def test_the_data_have_the_documented_moments():
    n = 40_000
    ring = P.gaussians(n, generator(0))
    assert ring.mean(0).abs().max() < 0.06 and ring.square().sum(1).mean() == pytest.approx(27, rel=0.02)
    modes = torch.stack([5 * torch.cos(torch.arange(8) * math.pi / 4), 5 * torch.sin(torch.arange(8) * math.pi / 4)], 1)
    nearest = torch.cdist(P.gaussians(8000, generator(1)) * 1.0, modes).argmin(1).bincount()
    assert (nearest - 1000).abs().max() < 80  # equally many are made in each mode; some fall nearer to the next one
    wide = P.eight_gaussians(n, generator(2))
    assert wide.mean(0).abs().max() < 0.2 and wide.square().sum(1).mean() == pytest.approx(148.5, rel=0.02)
    moons = P.wide_moons(n, generator(3))
    assert moons.mean().abs() < 1e-4 and moons.std() == pytest.approx(7, rel=1e-4)
    assert moons[:, 0].std() > 1.5 * moons[:, 1].std()
    curve = P.s_curve(n, generator(4))
    assert curve.mean(0).abs().max() < 0.03 and curve[:, 1].abs().max() < 3.4
    assert curve[:, 0].var() == pytest.approx(2.25 * (0.5 + 0.05**2), rel=0.02)


def test_the_half_circles_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = torch.from_numpy(datasets.make_moons(101, shuffle=False)[0]).float()
    assert torch.allclose(P.even_moons(101, generator(0), 0.0).sort(0).values, theirs.sort(0).values, atol=1e-6)
    moons = P.moons(5000, generator(0))
    assert torch.allclose(moons.mean(0), torch.tensor([0.0, 0.5]), atol=0.02)


def test_the_curve_is_that_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = torch.from_numpy(1.5 * datasets.make_s_curve(1000, noise=0.05, random_state=0)[0][:, [0, 2]])
    two = [P.s_curve(1000, generator(k)) for k in range(2)]
    assert wasserstein2(two[0], theirs) < 2.5 * wasserstein2(two[0], two[1])


def test_a_seed_fixes_the_points_and_their_parts_do_not_overlap():
    one, again, other = (P.points_of("N-moons", seed, (50, 20, 20, 30)) for seed in (1, 1, 2))
    assert [len(part[1]) for part in (one.train, one.validation, one.test, one.large_test)] == [50, 20, 20, 30]
    assert torch.equal(one.test[1], again.test[1]) and not torch.equal(one.test[1], other.test[1])
    rows = torch.cat([one.train[1], one.validation[1], one.test[1], one.large_test[1]])
    assert len(rows.unique(dim=0)) == 120
    with pytest.raises(ValueError, match="choose from"):
        P.points_of("N-nothing", 1)


def test_the_plan_names_every_method_and_leaves_out_what_is_not_defined():
    assert set(P.planned("N-moons", 42)) >= {*P.METHODS, "OT-CFM + x1"}
    assert "FM" not in P.planned("moons-8gaussians", 42)
    assert set(P.planned("N-moons", 46)) == {*P.METHODS, *P.HEADLINE}
    assert all(key[0] in P.PAIRS and key[1] in P.METHODS for key in [*published.TONG, *published.DSBM])


# ---- couplings


@pytest.mark.parametrize("pair", ["N-8gaussians", "moons-8gaussians", "N-moons", "N-scurve"])
def test_assignments_with_carried_potentials_are_exact(pair):
    from scipy.optimize import linear_sum_assignment

    x0, x1 = P.points_of(pair, 0, (256, 1, 1, 1)).train
    transport, g = T.Transport(256), generator(0)
    for _ in range(12):
        rows, source = torch.randperm(256, generator=g)[:96], x0[torch.randperm(256, generator=g)[:96]]
        order = transport(source, x1[rows], rows)
        assert sorted(order.tolist()) == list(range(96))
        cost = torch.cdist(source.double(), x1[rows].double()).square().numpy()
        least = cost[linear_sum_assignment(cost)].sum()
        assert cost[order.numpy(), np.arange(96)].sum() == pytest.approx(least, rel=1e-6)


def test_drawn_pairs_follow_the_entropic_plan():
    g = generator(0)
    x0, x1 = torch.randn(48, 2, generator=g), 2 * torch.randn(48, 2, generator=g)
    cost = torch.cdist(x0, x1).square().numpy().astype(np.float64)
    plan = entropic_plan(cost, reg=0.5)
    transport, rows = T.Transport(48, reg=0.5, tol=1e-4), torch.arange(48)
    orders = torch.stack([transport(x0, x1, rows, g) for _ in range(600)])
    costs = cost[orders.numpy(), np.arange(48)].mean(1)
    assert costs.mean() == pytest.approx((plan * cost).sum(), abs=4 * costs.std() / 600**0.5)
    often = np.stack([(orders == i).float().mean(0).numpy() for i in range(48)])
    assert np.abs(often - 48 * plan).max() < 0.11  # five standard deviations of 600 draws


def test_blocks_are_assigned_by_themselves():
    g = generator(0)
    x0, x1, rows = torch.randn(64, 2, generator=g), torch.randn(64, 2, generator=g), torch.arange(64)
    order = T.Blocks(64, 16)(x0, x1, rows)
    for k in range(0, 64, 16):
        part = slice(k, k + 16)
        assert torch.equal(order[part] - k, T.Transport(64)(x0[part], x1[part], rows[part]))


def test_epochs_visit_every_point_in_whole_batches():
    points, g = torch.arange(20.0)[:, None], generator(0)
    batches = T.epochs(points, 6, g)
    for _ in range(3):
        epoch = [next(batches) for _ in range(3)]
        rows = torch.cat([rows for rows, _ in epoch])
        assert len(rows.unique()) == 18 and all(torch.equal(points[r], x) for r, x in epoch)


# ---- networks


def test_networks_trained_together_are_those_trained_alone():
    methods = {**P.METHODS, **P.VARIANTS}
    g = generator(0)
    batches = [
        tuple(torch.randn(32, 2, generator=g) for _ in range(3)) + (torch.rand(32, generator=g),) for _ in range(6)
    ]
    couplings = {method.coupling for method in methods.values()}
    classes = T.classes_of(methods, seed=3)
    for k, (x0, x1, noise, t) in enumerate(batches):
        for one in classes:
            one.step(k / 6, dict.fromkeys(couplings, x0), x1, t, noise)
    nets = {name: net for one in classes for name, net in one.finished(average=False).items()}
    averages = {name: net for one in classes for name, net in one.finished(average=True).items()}
    assert nets.keys() == methods.keys()
    for name, method in methods.items():
        net, average = alone(method, batches)
        for got, wanted in ((nets[name], net), (averages[name], average)):
            for a, b in zip(got.parameters(), wanted.parameters(), strict=True):
                assert torch.allclose(a, b, atol=1e-5), name


def alone(method, batches):
    """One network under autograd and AdamW with the losses of the library, and its average."""
    from common.ema import EMA

    heads = METHODS[method.loss].heads
    torch.manual_seed(3)
    net = MLP(2 * heads, out_dim=2 * heads)
    optimizer, ema = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-5), EMA(net, 0.999)
    for k, (x0, x1, noise, t) in enumerate(batches):
        if method.schedule == "cosine":
            optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * k / len(batches)))
        if method.predicts == "data":
            loss = squared_error(net((1 - t[:, None]) * x0 + t[:, None] * x1, t), x1)
        else:
            loss = make_loss(method.loss, method.sigma)(net, x0, x1, t, noise)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        ema.update()
    average = MLP(2 * heads, out_dim=2 * heads)
    average.load_state_dict(ema.module_state_dict())
    return net, average


def test_a_method_learns_the_same_whoever_is_trained_beside_it():
    points = P.points_of("N-moons", 0, (128, 1, 1, 1)).train[1]
    one, both = (
        T.train_together({name: P.METHODS[name] for name in names}, None, points, 0, 4, 32)["OT-CFM"]
        for names in (["OT-CFM"], ["OT-CFM", "SB-CFM", "CFM"])
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), both.parameters(), strict=True))


# ---- what is measured


class Exact(torch.nn.Module):
    """The optimal transport of N(0, I) to N(shift, scale^2 I) in the form of a network: a velocity, data, or heads."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.shift, self.scale = kind, torch.tensor([3.0, -1.0]), 0.5

    def forward(self, x, t, y=None):
        x = x[:, :2]
        x0 = (x - t[:, None] * self.shift) / (1 + t[:, None] * (self.scale - 1))
        x1 = self.shift + self.scale * x0
        return {"velocity": x1 - x0, "data": x1, "heads": torch.cat([x1, torch.zeros_like(x1)], 1)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "name"), [("velocity", "OT-CFM"), ("data", "OT-CFM + x1"), ("heads", "IDFF")], ids=lambda v: v
)
def test_the_optimal_map_between_gaussians_has_the_closed_form(kind, name):
    method = {**P.METHODS, **P.VARIANTS}[name]
    x0 = torch.randn(1500, 2, generator=generator(0))
    net = Exact(kind)
    x, energy, nfe = S.flow(net, method, x0, 20)
    assert nfe == 20
    assert torch.allclose(x, net.shift + net.scale * x0, atol=1e-4)
    assert energy == pytest.approx(wasserstein2(x0, x) ** 2, rel=1e-4)  # the map is optimal, for the samples as well
    assert energy == pytest.approx(10 + 2 * 0.5**2, rel=0.02)  # |shift|^2 + 2 (1 - scale)^2


def test_both_protocols_are_measured():
    points = P.points_of("N-moons", 0, (60, 40, 40, 40))
    row = S.measure(MLP(2).eval(), P.METHODS["OT-CFM"], points)
    assert (row["nfe_20"], row["nfe_100"]) == (20, 100)
    transport = wasserstein2(*points.test) ** 2
    assert row["npe_100"] == pytest.approx(abs(row["energy_100"] - transport) / transport)
    x = S.flow(MLP(2).eval(), P.METHODS["OT-CFM"], points.test[0], 20)[0]
    assert x.shape == (40, 2) and row["w2_20"] > 0 and row["w2_20_validation"] > 0


# ---- the table


def rows():
    """Two seeds of two networks and the floor, and a shorter training that must not count."""
    found = []
    for seed, plus in ((42, 0.0), (43, 0.02)):
        place = {
            "pair": "N-moons",
            "seed": seed,
            "steps": 100,
            "command": "python x.py",
            "commit": "abc",
            "seconds": 1800,
        }
        place["hardware"] = "one core"
        for name, w2 in (("OT-CFM", 0.3), ("OT-CFM + sigma 0 + cosine", 0.24)):
            numbers = {key: w2 + plus for key in ("w2_20", "w2_100", "w2_20_validation")}
            found.append(place | numbers | {"name": name, "energy_20": 1.5, "npe_100": 0.25, "trained_together": 2})
        found.append(place | {"name": "floor", "w2_20": 0.2, "w2_20_large": 0.09, "seconds": 0})
        found.append(place | {"name": "OT-CFM", "w2_20_large": 0.13 + plus, "seconds": 0})
        found.append(place | {"name": "OT-CFM + sigma 0 + cosine", "w2_20_large": 0.1 + plus / 2, "seconds": 0})
    return [*found, found[0] | {"steps": 50, "w2_20": 99.0}]


def test_the_table_holds_what_the_rows_say():
    text = M.markdown(rows())
    assert "| N-moons | 0.111 | 0.090 ± 0.000 | 0.140 ± 0.014 | no | 0.105 ± 0.007 | yes | 2 |" in text
    assert (
        "| N-moons | OT-CFM | 0.310 ± 0.014 | 0.200 ± 0.000 | 0.110 ± 0.014 | 0.239 | 0.250 ± 0.000 | – | 2 |" in text
    )
    assert "1.0 hours" in text and "100 steps" in text and "seeds 42, 43" in text and "99.0" not in text
    assert text.count("| sigma 0 + cosine | 0.806 | 0.806 ± 0.009 | 2 |") == 2  # test and validation points
    assert "| sigma 0 + cosine | 0.751 | 0.751 ± 0.025 | 2 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines if "N-moons | OT-CFM |" in line}) == 2  # the two protocols' tables


def test_verdicts_daggers_and_spreads():
    assert M.spread({}) == "–" and M.spread({1: 0.25}) == "0.250" and M.spread({1: 1.0, 2: 3.0}, 1) == "2.0 ± 1.4"
    assert M.figure(None) == "–" and M.figure(0.1) == "0.1"
    floor = {1: 0.19, 2: 0.21}
    assert M.figure(0.15, floor) == "0.15 †" and M.figure(0.18, floor) == "0.18"
    assert M.verdict({1: 0.1, 2: 0.18}, 0.15) == "yes" and M.verdict({1: 0.1, 2: 0.22}, 0.15) == "within the spread"
    assert M.verdict({1: 0.2, 2: 0.21}, 0.15) == "no" and M.verdict({}, 0.15) == "–"


# ---- the script

SCRIPT = ROOT / "2D-toys" / "tables.py"


def test_smoke_and_resume(tmp_path: Path):
    flags = ("--smoke", "--out", tmp_path, "--pairs", "N-moons", "--methods")
    first = start(SCRIPT, *flags, "OT-CFM", cwd=ROOT)
    assert first.returncode == 0, first.stderr
    assert f"table: {tmp_path / 'README.md'}" in first.stdout
    before = (tmp_path / "rows.jsonl").read_text()
    names = [json.loads(line)["name"] for line in before.splitlines()]
    assert names == ["OT-CFM", "OT-CFM + EMA", "floor", "OT-CFM", "OT-CFM + EMA"]
    again = start(SCRIPT, *flags, "OT-CFM", "IDFF", "--no_large", cwd=ROOT)
    assert again.returncode == 0, again.stderr
    after = (tmp_path / "rows.jsonl").read_text()
    assert after.startswith(before), "a finished row was touched"
    assert [json.loads(line)["name"] for line in after[len(before) :].splitlines()] == ["IDFF"]
    assert "| N-moons | IDFF |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pairs", "N-circles"), "'N-circles' is not known: choose from N-8gaussians"),
        (("--methods", "OTCFM"), "choose from OT-CFM; CFM"),
        (("--steps", "0"), "at least 1 step"),
        (("--table", "--out", "/nonexistent/tables"), "has no rows yet"),
        (("--stepz", "3"), "--steps"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(flags, said):
    result = start(SCRIPT, *flags, cwd=ROOT)
    assert result.returncode == 2 and said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
