"""What trains give in closed form: marginals, conditionals, moments; a velocity as numpy; missing values by density."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.solvers import integrate, time_grid
from ttflow import bases, calibration, conditional, exported, integrals, tt
from ttflow import recflow as rf

F64 = torch.float64


def seeded(k=0):
    return torch.Generator().manual_seed(k)


def train_of(output, outside="clamp"):
    """Three variables with bases of three kinds and sizes, three outputs."""
    parts = [
        bases.BSplines(7, -1.5, 2.0, outside=outside),
        bases.Legendre(4, -1, 1, outside=outside),
        bases.Gaussians(5, -2, 1.5),
    ]
    return tt.random_train(parts, 3, 3, seeded(), (2, 0, 1), output)


def measures_of(train):
    by_variable = dict(zip(train.order, train.bases))
    return {
        0: integrals.uniform(by_variable[0], -2.0, 1.0),
        1: integrals.normal(by_variable[1], 0.3, 0.8),
        2: integrals.normal(by_variable[2], -0.2, 1.1),
    }


def on_nodes(train, measures):
    """f on the product of all nodes and the weights: no contraction of cores."""
    points = torch.cartesian_prod(*(measures[k].nodes for k in range(3)))
    weights = torch.cartesian_prod(*(measures[k].weights for k in range(3))).prod(1)
    return train(points), weights


def coarse(measure):
    """Every node of fewer panels: equal sums on the same nodes are enough to compare contractions."""
    kept = torch.linspace(0, len(measure.nodes) - 1, 12).long()
    return integrals.Measure(measure.nodes[kept], torch.full((12,), 1 / 12, dtype=F64))


# -------------------------------------------------------------------------------------------- integrals of one variable
def test_measures_are_those_of_their_names():
    basis = bases.BSplines(6, -1, 2)
    for measure, mean, variance in (
        (integrals.uniform(basis, -3.0, 2.5), -0.25, 5.5**2 / 12),
        (integrals.normal(basis, 0.4, 0.7), 0.4, 0.49),
        (integrals.normal(bases.Legendre(3, 0, 0.1), -2.0, 3.0), -2.0, 9.0),
        (integrals.point(0.3), 0.3, 0.0),
    ):
        centre = measure.weights @ measure.nodes
        assert measure.weights.sum().item() == pytest.approx(1, abs=1e-13) and centre.item() == pytest.approx(mean)
        assert (measure.weights @ (measure.nodes - centre).square()).item() == pytest.approx(variance, abs=1e-11)
    total = integrals.uniform(basis, -1.0, 2.0).mean(basis)  # of a spline: its support / (degree + 1)
    knots = torch.tensor([-1.0] * 4 + [0.0, 1.0] + [2.0] * 4, dtype=F64)
    torch.testing.assert_close(total, (knots[4:] - knots[:-4]) / 4 / 3, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------- marginals, conditionals, moments
@pytest.mark.parametrize("output", [0, 1, 2])
def test_moments_are_sums_over_all_nodes(output):
    train = train_of(output)
    measures = {k: coarse(m) for k, m in measures_of(train).items()}
    values, weights = on_nodes(train, measures)
    torch.testing.assert_close(integrals.mean(train, measures), weights @ values)
    torch.testing.assert_close(integrals.second_moments(train, measures), values.T @ (weights[:, None] * values))
    marginal = integrals.integrated(train, {0: measures[0], 2: measures[2]})
    inner = (weights[:, None] * values).view(12, 12, 12, 3).sum((0, 2)) * 12
    torch.testing.assert_close(marginal(measures[1].nodes[:, None]), inner)
    shares = integrals.variance_shares(train, measures)
    centre = weights @ values
    variance = weights @ (values - centre).square()
    torch.testing.assert_close(shares[:, 1], (inner - centre).square().mean(0) / variance)


def test_the_mean_is_that_of_draws():
    train, n = train_of(1), 40_000
    measures, g = measures_of(train), seeded(4)
    draws = [3 * torch.rand(n, generator=g, dtype=F64) - 2, 0.3 + 0.8 * torch.randn(n, generator=g, dtype=F64)]
    values = train(torch.stack([*draws, -0.2 + 1.1 * torch.randn(n, generator=g, dtype=F64)], 1))
    z = (integrals.mean(train, measures) - values.mean(0)) / (values.std(0) / math.sqrt(n))
    products = values[:, :, None] * values[:, None]
    zz = (integrals.second_moments(train, measures) - products.mean(0)) / (products.std(0) / math.sqrt(n))
    assert z.abs().max() < 4.5 and zz.abs().max() < 4.5


@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_conditional_is_the_train_with_values_fixed(output):
    train, x = train_of(output), torch.randn(20, 3, generator=seeded(1), dtype=F64)
    for fixed in ({0: 0.7}, {1: -0.4}, {2: 0.1}, {0: 0.7, 1: -0.4}, {1: 0.2, 2: 3.0}):
        left = [k for k in range(3) if k not in fixed]
        conditional = integrals.integrated(train, {k: integrals.point(value) for k, value in fixed.items()})
        whole = x.clone()
        whole[:, list(fixed)] = torch.tensor(list(fixed.values()), dtype=F64)
        torch.testing.assert_close(conditional(x[:, left]), train(whole))


def test_moments_of_a_velocity_are_those_of_draws():
    g = seeded(2)
    x1 = torch.randn(4000, 2, generator=g, dtype=F64) @ torch.tensor([[2.0, 1.0], [0.0, 0.4]], dtype=F64) + 1
    x1[::2, 0] += 3
    pairs = rf.data_pairs(x1, 4000)
    sweeps = replace(rf.SWEEPS, n_sweeps=3)
    velocity = rf.fit_velocity(
        rf.on_lines(pairs), rf.frame_of(*pairs(0)), rf.Shape(n_basis=8, n_time=4, rank=4), sweeps
    )[0]
    velocity = velocity.double()
    velocity.bound = 1e9 * torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64)
    bases_of = dict(zip(velocity.train_.order, velocity.train_.bases))
    mean, covariance = integrals.velocity_moments(
        velocity, 0.4, {0: integrals.normal(bases_of[0], 0.2, 0.9), 1: integrals.normal(bases_of[1])}
    )
    z = torch.randn(60_000, 2, generator=g, dtype=F64) * torch.tensor([0.9, 1.0]) + torch.tensor([0.2, 0.0])
    m, s, _ = velocity.frame.at(torch.tensor([0.4], dtype=F64))
    v = velocity(z * s @ velocity.frame.rotation.T + m, torch.tensor([0.4], dtype=F64))
    assert ((mean - v.mean(0)) / (v.std(0) / math.sqrt(len(v)))).abs().max() < 4.5
    products = (v - v.mean(0))[:, :, None] * (v - v.mean(0))[:, None]
    assert ((covariance - products.mean(0)) / (products.std(0) / math.sqrt(len(v)))).abs().max() < 4.5


def test_measures_that_do_not_fit_are_named():
    train = train_of(0)
    for call, said in (
        (lambda: integrals.mean(train, {0: integrals.point(1.0)}), "give those of each of 0 to 2"),
        (lambda: integrals.integrated(train, {3: integrals.point(1.0)}), "give those of some of 0 to 2"),
        (lambda: integrals.integrated(train, measures_of(train)), "no variable is left"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- numpy alone
ALONE = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "common", "ttflow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
sys.path.insert(0, sys.argv[1])
import importlib
import numpy as np
x, times = np.load(sys.argv[1] + "/x.npy"), json.loads(sys.argv[2])
for k in range(int(sys.argv[3])):
    model = importlib.import_module(f"model{k}")
    np.save(f"{sys.argv[1]}/v{k}.npy", np.stack([model.velocity(x, t) for t in times]))
    np.save(f"{sys.argv[1]}/y{k}.npy", model.sample(5, steps=4))
assert "torch" not in sys.modules
"""


MODELS = [
    ("bsplines", {"outside": "clamp"}, False),
    ("bsplines", {"outside": "linear", "breaks": [-1.5, -1.0, 0.2, 0.5, 1.1, 1.8]}, True),
    ("legendre", {"outside": "linear"}, False),
]


def test_exported_trains_need_numpy_alone(tmp_path):
    x, times, models = 1.5 * torch.randn(400, 2, generator=seeded(5), dtype=F64), [0.0, 0.31, 0.995, 1.0], []
    np.save(tmp_path / "x.npy", x.numpy())
    for k, (basis, options, components) in enumerate(MODELS):
        parts = [bases.make(basis, 8, -1.5, 1.8, **options) for _ in range(2)]
        parts.append(bases.Legendre(9, 0, 1, outside="clamp"))
        train = tt.random_train(parts, 3, 2, seeded(3), (0, 2, 1), 1)
        bound = torch.tensor([[-2.0, -2.0], [2.5, 2.5]], dtype=F64)
        models.append(rf.TTVelocity(small_frame(components), train, bound))
        exported.export(models[-1], tmp_path / f"model{k}.npz")
    words = [sys.executable, "-c", ALONE, str(tmp_path), json.dumps(times), str(len(models))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for k, velocity in enumerate(models):
        want = torch.stack([velocity(x, torch.tensor([t], dtype=F64)) for t in times]).numpy()
        assert np.abs(np.load(tmp_path / f"v{k}.npy") - want).max() < 1e-10 and np.ptp(want) > 1
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 2)))
        path = integrate(velocity, noise, time_grid(4), "rk4").numpy()
        assert np.abs(np.load(tmp_path / f"y{k}.npy") - path).max() < 1e-10


def small_frame(components):
    x0, x1 = torch.randn(500, 2, generator=seeded(1), dtype=F64), torch.randn(500, 2, generator=seeded(2), dtype=F64)
    x1 = x1 @ torch.tensor([[1.4, 0.5], [0.0, 0.6]], dtype=F64) + 0.3
    frame = rf.frame_of(x0, x1)
    if not components:
        return frame
    weights, means = torch.tensor([0.6, 0.4], dtype=F64), torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=F64)
    return rf.on_mixture(frame, weights, means, torch.stack([x1.T.cov(), 0.3 * torch.eye(2, dtype=F64)]))


def test_what_cannot_be_exported_is_named(tmp_path):
    parts = [bases.Gaussians(5, -1, 1), bases.Legendre(3, 0, 1)]
    train = tt.random_train(parts, 2, 1, seeded(), None, 1)
    one = torch.ones(1, 1, dtype=F64)
    frame = rf.Frame(one, torch.zeros(2, 1, dtype=F64), torch.ones(3, 1, dtype=F64))
    velocity = rf.TTVelocity(frame, train, torch.tensor([[-9.0], [9.0]], dtype=F64))
    for path, said in (
        ("a.npz", "not a basis of rbf: fit with --bases bsplines"),
        ("a b.npz", "give NAME.npz"),
        ("a.pt", "NAME.npz"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            exported.export(velocity, tmp_path / path)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ missing values
def gaussian_pair():
    """A Gaussian in three dimensions, and another one that is proposed from: shifted and too narrow."""
    root = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.6, 0.0], [-0.5, 0.4, 0.8]], dtype=F64)
    one, cov = torch.ones(1, dtype=F64), root @ root.T
    true = conditional.Gaussians(one, torch.tensor([[0.5, -1.0, 2.0]], dtype=F64), cov[None])
    wrong = conditional.Gaussians(one, true.means + 0.2, 0.8 * cov[None] + 0.1 * torch.eye(3, dtype=F64))
    return true, wrong


def closed_form(true, row):
    """Mean and covariance of the missing entries of a Gaussian, by the precision matrix: no S_oo^-1 anywhere."""
    missing = row.isnan()
    precision = torch.linalg.inv(true.covariances[0])
    covariance = torch.linalg.inv(precision[missing][:, missing])
    away = (row - true.means[0])[~missing]
    return true.means[0][missing] - covariance @ precision[missing][:, ~missing] @ away, covariance


ROWS = torch.tensor([[1.0, math.nan, 2.5], [math.nan, 0.3, math.nan], [0.1, -1.5, 2.0]], dtype=F64)


def test_the_conditional_of_a_gaussian_is_the_closed_form():
    true, wrong = gaussian_pair()
    flow = gaussian_flow(true)
    filled = conditional.fill(lambda x: rf.log_likelihood(flow, x, 8), wrong, ROWS, 3000, seeded(1))
    for k, row in enumerate(ROWS[:2]):
        mean, covariance = closed_form(true, row)
        missing, n = row.isnan(), filled.effective[k].item()
        given = true.given(row, missing)
        torch.testing.assert_close(given.means[0], mean)
        torch.testing.assert_close(given.covariances[0], covariance)
        assert n > 1000
        away = filled.points[k][:, missing] - mean
        z = (filled.mean()[k][missing] - mean) / (covariance.diagonal() / n).sqrt()
        spread = (filled.weights[k][:, None, None] * away[:, :, None] * away[:, None]).sum(0)
        assert z.abs().max() < 4.5 and (spread / covariance - 1).abs().max() < 0.2
        assert (filled.points[k][:, ~missing] == row[~missing]).all()
    assert torch.allclose(filled.mean()[2], ROWS[2]) and filled.effective[2].item() == pytest.approx(3000)


def gaussian_flow(true):
    """A flow whose density is that of a Gaussian: its frame's, with a train that is 0."""
    x = torch.randn(50, 3, generator=seeded(0), dtype=F64)
    frame = rf.on_mixture(rf.frame_of(x, x), true.weights, true.means, true.covariances)
    parts = [*(bases.Legendre(2, -3, 3, outside="clamp") for _ in range(3)), bases.Legendre(1, 0, 1)]
    train = tt.random_train(parts, 1, 3, seeded(1), None, 3)
    for core in train.cores:
        core.zero_()
    return rf.TTVelocity(frame, train, torch.tensor([[-99.0] * 3, [99.0] * 3], dtype=F64))


def test_the_conditional_of_a_mixture_is_its_density_over_the_marginal():
    g = seeded(2)
    roots = torch.randn(3, 3, 3, generator=g, dtype=F64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    parts = conditional.Gaussians(
        weights, torch.randn(3, 3, generator=g, dtype=F64), roots @ roots.mT + 0.1 * torch.eye(3, dtype=F64)
    )
    row = torch.tensor([0.4, math.nan, math.nan], dtype=F64)
    given, x = parts.given(row, row.isnan()), torch.randn(7, 2, generator=g, dtype=F64)
    marginal = conditional.Gaussians(weights, parts.means[:, :1], parts.covariances[:, :1, :1])
    whole = torch.cat([torch.full((7, 1), 0.4, dtype=F64), x], 1)
    torch.testing.assert_close(given.log_density(x), parts.log_density(whole) - marginal.log_density(row[None, :1]))
    draws = parts.draw(20_000, g)
    z = (draws.mean(0) - weights @ parts.means) / (draws.std(0) / math.sqrt(20_000))
    assert z.abs().max() < 4.5


def test_right_conditionals_are_calibrated_and_wrong_ones_are_seen():
    true, wrong = gaussian_pair()
    x = true.draw(300, seeded(3))
    asked = x.clone()
    asked[:, 1] = math.nan
    filled = conditional.fill(true.log_density, wrong, asked, 200, seeded(4))
    for level, part in zip((0.5, 0.8, 0.95), conditional.coverage(filled.below(x)[:, 1])):
        assert abs(part - level) < 4.5 * math.sqrt(level * (1 - level) / 300) + 0.005
    narrow = conditional.Gaussians(true.weights, true.means, 0.5 * true.covariances)
    below = conditional.fill(narrow.log_density, wrong, asked, 200, seeded(4)).below(x)[:, 1]
    assert conditional.coverage(below)[1] < 0.72


def test_the_calibration_of_a_table_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "RIDGES", (1.0,))
    result = calibration.measure("wine-3", n_missing=2, n_draws=10, seeds=(0,), n_pairs=200, n_steps=3)
    assert result["values"] == 2 * 34 and all(sum(result[who]["pit"]) == pytest.approx(1) for who in calibration.WHO)
    assert result["train"]["rmse"] < 1.2 and result["effective"][0] > 1
    calibration.draw({"wine-3": result}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000 and "| wine-3 | 68 | train |" in calibration.table(
        {"wine-3": result}
    )
    with pytest.raises(ValueError, match="choose wine or breast-cancer"):
        calibration.rows_of("iris")
    with pytest.raises(ValueError, match="wine has 13 columns"):
        calibration.rows_of("wine-14")
