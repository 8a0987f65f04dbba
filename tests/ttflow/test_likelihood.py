"""Held-out likelihoods: known densities, the usual estimates, MAF's files, a mixture as the frame of a train."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ive

from common.records.rows import JsonLines
from ttflow import baselines, densities, held_out, maf
from ttflow import recflow as rf
from ttflow.bases import Legendre
from ttflow.options import Options
from ttflow.tt import random_train

F64 = torch.float64


def draws(k=0):
    return np.random.default_rng(k)


# ---------------------------------------------------------------------------------------------------- known densities
@pytest.mark.parametrize("name", ["mixture-6", "mixture-8", "copula-6", "clayton-6"])
def test_draws_have_the_density(name):
    """E_p[q / p] = 1 for any q: here a narrow Gaussian in the bulk of p, so the variance is small."""
    density = densities.known(name)
    x = density.draw(40_000, draws(1))
    centre = density.means[0] if isinstance(density, densities.Mixture) else x.mean(0)
    q = stats.multivariate_normal(centre, 0.15 * np.diag(x.var(0)))
    ratio = np.exp(q.logpdf(x) - density.log_density(x))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 200 and ratio.std() / 200 < 0.05
    again = densities.known(name).draw(5, draws(1))
    assert np.array_equal(again, density.draw(5, draws(1)))


def test_the_density_of_circles_is_that_of_their_radii():
    """Bessel's: p(r) = sum_R exp(-(r^2 + R^2) / 2 s^2) I_0(r R / s^2) / (4 pi s^2)."""
    r = np.array([3.7, 4.05, 6.0, 8.2])
    want = sum(np.exp(-((r - R) ** 2) / 0.02) * ive(0, r * R / 0.01) for R in (4.0, 8.0)) / (4 * math.pi * 0.01)
    for angle in (0.0, 1.234):
        points = r[:, None] * [[math.cos(angle), math.sin(angle)]]
        np.testing.assert_allclose(np.exp(densities.known("circles").log_density(points)), want, rtol=1e-6)


@pytest.mark.parametrize(("name", "half"), [("moons", 3.5), ("swissroll", 14.0), ("blobs-sklearn", 13.0)])
def test_sets_of_the_plane_have_their_density(name, half):
    density, n = densities.known(name), 80
    axis = (np.arange(n) + 0.5) / n * 2 * half - half
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2) + (0.8 if name == "moons" else 0.0)
    x = density.draw(20_000, draws(2))
    p = np.exp(density.log_density(grid)) * (2 * half / n) ** 2
    assert p.sum() == pytest.approx(1, abs=2e-3)
    for f in (lambda x: np.cos(0.4 * x[:, 0]), lambda x: np.abs(x[:, 1]), lambda x: (x**2).sum(1)):
        values = f(x)
        assert abs((p * f(grid)).sum() - values.mean()) < 5 * values.std() / math.sqrt(len(x)) + 1e-3


def test_entropies_are_those_of_closed_forms():
    copula = densities.known("copula-6")
    value, error = copula.entropy()
    x = copula.draw(30_000, draws(3))
    log_p = copula.log_density(x)
    assert error == 0 and abs(value + log_p.mean()) < 5 * log_p.std() / math.sqrt(len(x))
    root = np.linalg.cholesky(np.array([[2.0, 0.6], [0.6, 0.5]]))
    one = densities.Mixture(np.ones(1), np.ones((1, 2)), root[None])
    value, error = one.entropy()
    assert abs(value - (1 + math.log(math.tau) + math.log(np.linalg.det(root)))) < 5 * error < 0.05
    both = densities.Clayton(2, 1.5)
    u = np.array([[0.3, 0.6], [0.9, 0.2]])
    cdf = lambda u, v: (u**-1.5 + v**-1.5 - 1) ** (-1 / 1.5)  # noqa: E731
    h = 1e-4
    for a, b in u:
        mixed = sum(s * t * cdf(a + s * h, b + t * h) for s in (-1, 1) for t in (-1, 1)) / (4 * h * h)
        point = stats.norm.ppf([[a, b]])
        assert both.log_density(point)[0] == pytest.approx(math.log(mixed) + stats.norm.logpdf(point).sum(), abs=1e-5)


# -------------------------------------------------------------------------------------------------------- baselines
def test_the_usual_estimates_are_scikit_learns():
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KernelDensity

    x = densities.known("blobs-sklearn").draw(400, draws(0))
    x, test = x[:300], x[300:]
    estimate, bandwidth = baselines.kernel(x)
    assert np.array_equal(estimate(test), KernelDensity(bandwidth=bandwidth).fit(x).score_samples(test))
    plain = np.logaddexp.reduce(stats.norm.logpdf(test[:, None], x[None], bandwidth).sum(2), axis=1) - math.log(300)
    np.testing.assert_allclose(estimate(test), plain, atol=1e-9)
    scores = {h: _folded(x, h * 300 ** (-1 / 6)) for h in baselines.BANDWIDTHS}
    assert bandwidth == max(scores, key=scores.__getitem__) * 300 ** (-1 / 6)
    fit = baselines.mixture(x)
    assert fit.n_components == 3 and fit.bic(x) < GaussianMixture(2, random_state=0).fit(x).bic(x)
    assert baselines.mixture(x, 1).n_components == 1
    normal = stats.multivariate_normal(x.mean(0), np.cov(x.T, ddof=0)).logpdf(test)
    np.testing.assert_allclose(baselines.gaussian(x)(test), normal, atol=1e-9)


def _folded(x, bandwidth):
    """Five-fold log-likelihood of a kernel estimate."""
    from sklearn.model_selection import KFold

    total = 0.0
    for kept, left in KFold(5, shuffle=True, random_state=0).split(x):
        parts = stats.norm.logpdf(x[left][:, None], x[kept][None], bandwidth).sum(2)
        total += (np.logaddexp.reduce(parts, axis=1) - math.log(len(kept))).sum()
    return total


# -------------------------------------------------------------------------------------------------- a mixture's frame
def mixture_frame(d=2):
    g = torch.Generator().manual_seed(3)
    roots = torch.randn(3, d, d, generator=g, dtype=F64) * 0.4 + 0.5 * torch.eye(d, dtype=F64)
    weights, means = torch.tensor([0.5, 0.3, 0.2], dtype=F64), 1.5 * torch.randn(3, d, generator=g, dtype=F64)
    covariances = roots @ roots.mT + 0.05 * torch.eye(d, dtype=F64)
    parts = densities.Mixture(weights.numpy(), means.numpy(), np.linalg.cholesky(covariances.numpy()))
    x1 = torch.from_numpy(parts.draw(20_000, draws(1)))
    x0 = torch.randn(20_000, d, generator=g, dtype=F64)
    return rf.on_mixture(rf.frame_of(x0, x1), weights, means, covariances), parts, x0, x1


def test_the_flow_of_a_mixtures_frame_has_the_mixtures_density():
    """Its train has nothing to learn: fitted to the rows without noise it is 0."""
    frame, parts, x0, x1 = mixture_frame()

    def draw(k):
        t = rf.stratified(2000, torch.Generator().manual_seed(k)).double()
        x = (1 - t)[:, None] * x0[:2000] + t[:, None] * x1[:2000]
        return x, t, frame.mixed((x @ frame.rotation).T, t)[0].T @ frame.rotation.T

    sweeps = replace(rf.SWEEPS, n_sweeps=2)
    velocity = rf.fit_velocity(draw, frame, rf.Shape(n_basis=6, n_time=3, rank=2), sweeps)[0].double()
    points = torch.from_numpy(parts.draw(200, draws(5)))
    want = torch.from_numpy(parts.log_density(points.numpy()))
    torch.testing.assert_close(rf.log_likelihood(velocity, points, 60), want, rtol=0, atol=2e-3)
    assert velocity.n_parameters == velocity.train_.n_parameters + 3 * 6
    again = rf.TTVelocity.from_state(velocity.state())
    t = torch.full((200,), 0.4, dtype=F64)
    assert torch.equal(again(points, t), velocity(points, t))


def test_the_velocity_of_a_mixtures_frame_is_the_conditional_mean():
    """E[x1 - x0 | xt]: orthogonal to every function of xt in the residual, and its slopes are those of autograd."""
    frame, _, x0, x1 = mixture_frame(3)
    t = torch.linspace(0.05, 0.95, len(x0), dtype=F64)
    xt = (1 - t)[:, None] * x0 + t[:, None] * x1
    inputs, left = frame.rows(xt, t, x1 - x0)
    features = torch.cat([torch.ones(len(t), 1), inputs, inputs.sin(), inputs[:, :1] * inputs], dim=1)
    z = features.T @ left / (features.square().T @ left.square()).sqrt()
    assert z.abs().max() < 4.5
    turned = (xt[:50] @ frame.rotation).T.requires_grad_()
    v, diagonal = frame.mixed(turned, t[:50])
    want = torch.stack([torch.autograd.grad(v[k].sum(), turned, retain_graph=True)[0][k] for k in range(3)])
    torch.testing.assert_close(diagonal, want)


# --------------------------------------------------------------------------------------------------------- MAF's files
def power_rows(n=1000):
    """As in power/data.npy: columns 1 and 3 are to be left out, all values are on grids."""
    columns = [draws(k).integers(1, 9, n) for k in range(7)]
    rows = np.stack([*columns, np.arange(n)], axis=1).astype(float)
    rows[:, [1, 3]] = 777
    rows[:, 0] /= 1000
    rows[:, 2] /= 100
    return rows


def test_power_is_preprocessed_as_mafs(tmp_path, capsys):
    (tmp_path / "power").mkdir()
    rows = power_rows()
    np.save(tmp_path / "power" / "data.npy", rows)
    train, validation, test = maf.load("power", str(tmp_path))
    assert [len(part) for part in (train, validation, test)] == [810, 90, 100] and train.dtype == np.float32
    assert "1,000 rows, MAF's has 2,049,280" in capsys.readouterr().out
    fitted = np.concatenate([train, validation]).astype(float)
    assert np.abs(fitted.mean(0)).max() < 1e-6 and np.abs(fitted.std(0) - 1).max() < 1e-6
    order = np.arange(1000)
    np.random.RandomState(42).shuffle(order)  # the last column, the time, has no noise: it tells the order
    time = order[:900].mean() + order[:900].std() * np.concatenate([fitted, test])[:, 5]
    np.testing.assert_allclose(time, order, atol=1e-2)
    kept = rows[order][:, [0, 2, 4, 5, 6, 7]]
    draw = np.random.RandomState(42)
    draw.shuffle(np.arange(1000))
    noise = {1: draw.rand(1000) / 100, 0: draw.rand(1000) / 1000}  # the voltage's is drawn first
    for column, more in noise.items():
        values = kept[:, column] + more
        want = (values - values[:900].mean()) / values[:900].std()
        np.testing.assert_allclose(np.concatenate([fitted, test])[:, column], want, atol=1e-5)


def test_gas_drops_sensors_that_are_alike(tmp_path, capsys):
    (tmp_path / "gas").mkdir()
    base = draws(0).normal(size=(500, 8))
    rows = np.concatenate([base + 0.01 * draws(1).normal(size=base.shape), 3 * base + 5], axis=1)
    np.save(tmp_path / "gas" / "data.npy", rows)
    train, validation, test = maf.load("gas", str(tmp_path))
    assert [len(part) for part in (train, validation, test)] == [405, 45, 50]
    want = (base - base.mean(0)) / base.std(0, ddof=1)  # the first of two that are alike goes
    np.testing.assert_allclose(np.concatenate([train, validation, test]), want, atol=1e-5)
    np.save(tmp_path / "gas" / "data.npy", draws(0).normal(size=(500, 16)))
    with pytest.raises(ValueError, match="16 sensors are left without correlations above 0.98, MAF's table has 8"):
        maf.load("gas", str(tmp_path))


def test_tables_that_are_preprocessed_are_taken_as_they_are(tmp_path):
    (tmp_path / "gas").mkdir()
    for k, part in enumerate(maf.SPLITS):
        np.save(tmp_path / "gas" / f"{part}.npy", draws(k).normal(size=(100 + k, 8)).astype(np.float32))
    parts = maf.load("gas", str(tmp_path))
    assert [len(part) for part in parts] == [100, 101, 102]
    assert np.array_equal(parts[2], np.load(tmp_path / "gas" / "test.npy"))


def _saved(path, rows, **options):
    path.parent.mkdir(exist_ok=True)
    np.save(path, rows, **options)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("power", lambda p: None, "no .*power/data.npy: unpack data.tar.gz of zenodo.org/records/1161203, it is its"),
        ("gas", lambda p: None, "no .*gas/data.npy: .*gas/ethylene_CO.pickle, converted by: python -c"),
        ("gas", lambda p: _saved(p / "gas" / "x", 1) or (p / "gas" / "ethylene_CO.pickle").touch(), "is not read here"),
        ("power", lambda p: _saved(p / "power" / "data.npy", np.zeros((200, 6))), r"holds float64 \(200, 6\), not num"),
        (
            "power",
            lambda p: _saved(p / "power" / "data.npy", np.array([{}], dtype=object), allow_pickle=True),
            "data.npy is damaged",
        ),
        ("power", lambda p: _saved(p / "power" / "data.npy", np.full((200, 8), np.nan)), "or NaN among them"),
    ],
)
def test_what_is_not_mafs_is_named_in_one_line(name, make, message, tmp_path):
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        maf.load(name, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_root_is_asked_for():
    with pytest.raises(ValueError, match="power needs --data-root FOLDER"):
        held_out.load("power", 0, 100, 100)


# --------------------------------------------------------------------------------------------------------------- rows
def test_a_row_keeps_what_it_has(monkeypatch):
    one = lambda points, *_: {"kde": lambda: (lambda x: x[:, 0] * 0 - 3.0, {}), "train": lambda: 1 / 0}  # noqa: E731
    monkeypatch.setattr(held_out, "_fits", one)
    before = {"nats": {"train": -2.0}, "errors": {"train": 0.1}, "facts": {"train": {"ridge": 1.0}}}
    row = held_out.measure("copula-6", 0, Options(n_train=50, n_test=20), 5, "", before)
    assert (
        row["nats"]["train"] == -2.0
        and row["facts"]["train"] == {"ridge": 1.0}
        and set(row["nats"]) == {"train", "kde"}
    )


def test_a_train_is_shrunk_to_what_other_rows_confirm():
    g = torch.Generator().manual_seed(0)
    parts = [Legendre(4, -1, 1) for _ in range(2)]
    train = random_train(parts, 2, 3, g, None, 1)
    x = 2 * torch.rand(2000, 2, generator=g, dtype=F64) - 1
    values = train(x)
    targets = values * torch.tensor([0.3, -0.5, 1.2]) + 0.1 * torch.randn(2000, 3, generator=g, dtype=F64)
    ratio = rf._shrunk(train, x, targets)(x) / values
    assert (ratio.median(0).values - torch.tensor([0.3, 0.0, 1.0])).abs().max() < 0.02
    assert torch.allclose(ratio.amax(0), ratio.amin(0))


def test_likelihoods_are_in_the_units_of_the_set():
    points = held_out.load("copula-6", 0, 400, 50)
    assert points.train.mean(0).abs().max() < 1e-9 and points.exact is not None
    values = torch.from_numpy(baselines.gaussian(points.train.numpy())(points.test.numpy())) - points.scale.log().sum()
    density = densities.known("copula-6")
    train = density.draw(400, np.random.default_rng([0, 7, 0]))
    test = density.draw(50, np.random.default_rng([0, 7, 2]))
    want = stats.multivariate_normal(train.mean(0), np.cov(train.T, ddof=0)).logpdf(test)
    np.testing.assert_allclose(values.numpy(), want, atol=1e-9)
    np.testing.assert_allclose(points.exact.numpy(), density.log_density(test))


def test_a_gaussian_is_estimated_alike_by_all(monkeypatch):
    """The log-likelihood of a Gaussian is the closed form; what flows of a few sweeps miss is small."""
    root = np.linalg.cholesky(np.array([[2.0, 0.8], [0.8, 0.5]]))
    monkeypatch.setitem(densities.KNOWN, "normal", lambda: densities.Mixture(np.ones(1), np.ones((1, 2)), root[None]))
    monkeypatch.setattr(held_out, "FEW_STEPS", 40)
    options = Options(n_train=600, n_test=60, n_pairs=1000, nn_steps=5, sweeps=2, budget=300)
    row = held_out.measure("normal", 0, options, 5)
    assert row["facts"]["mixture"]["components"] == 1
    assert row["nats"]["mixture"] == pytest.approx(row["nats"]["gaussian"], abs=1e-4)
    for method in ("gaussian", "train", "both"):
        assert row["exact"] - row["nats"][method] < 0.02, method
    assert row["exact"] - row["nats"]["kde"] < 0.1
    assert row["exact"] - row["nats"]["network"] < 0.4 and row["facts"]["network"]["steps"] == 40
    assert held_out._jittered(torch.ones(3, 2), 0.5, 0).std(0).sub(0.5).abs().max() < 0.15
    shown = held_out.table([row, {**row, "seed": 1}])  # type: ignore[list-item]
    assert f"| normal | 600 | 2 | {row['exact']:.2f} ± 0.00 |" in shown
    assert f"{-row['nats']['kde'] / 2 / math.log(2):.2f}" in held_out.table([row], bits=True)  # type: ignore[list-item]


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    rows, made = tmp_path / "rows.jsonl", []

    def measure(name, seed, *_):
        made.append((name, seed))
        known = {"set": name, "seed": seed, "dim": 2, "n_train": 9, "n_test": 9, "exact": -1.0, "entropy": None}
        values = {"nats": dict.fromkeys(held_out.METHODS, -1.5 - seed), "errors": dict.fromkeys(held_out.METHODS, 0.25)}
        return known | values

    monkeypatch.setattr(held_out, "measure", measure)
    for seeds in ((0,), (0, 1)):
        held_out.add_missing(rows, ["a", "b"], seeds, Options(), 5, "")
    assert made == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    nats = {method: -1.0 for method in held_out.METHODS if method != "train"}
    JsonLines(rows).append(measure("b", 1) | {"nats": nats})  # a row that lacks a method
    made.clear()
    held_out.add_missing(rows, ["a", "b"], (0, 1), Options(), 5, "")
    assert made == [("b", 1)]
    shown = held_out.report(held_out.read(rows))
    assert shown.count("| a | 9 | 2 | -1.00 ± 0.00 | -2.00 ± 0.50 |") == 1 and "| b | 1.000 ± 0.500 |" in shown
    assert "| b | 0.500 ± 0.250 |" in held_out.gaps(held_out.read(rows)[1:2])
