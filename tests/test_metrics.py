"""Metrics against closed forms and independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common import metrics
from common.metrics import (
    crps_ensemble,
    frechet_distance,
    gaussian_statistics,
    mmd,
    sinkhorn_divergence,
    straightness,
    wasserstein2,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d, seed, rank=None):
    factor = randn(d, rank or 2 * d, seed=seed)
    return factor @ factor.T / factor.shape[1]


# ------------------------------------------------------------------------------------------------------------- Frechet
def test_frechet_of_diagonal_covariances():
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 0.25, 2.0])
    expected = 14 + (a.sqrt() - b.sqrt()).square().sum().item()
    mean = torch.tensor([1.0, 2.0, 3.0])
    assert frechet_distance(torch.zeros(3), a.diag(), mean, b.diag()) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(0.0, 4.0, 1.0, 9.0) == pytest.approx(2.0)  # numbers: one feature


@pytest.mark.parametrize("seed", range(3))
def test_frechet_equals_scipy(seed):
    from scipy.linalg import sqrtm

    a, b, mu = covariance(20, seed), covariance(20, seed + 50), randn(20, seed=seed + 90)
    cross = np.trace(sqrtm((a @ b).numpy())).real
    expected = mu.square().sum().item() + (a.trace() + b.trace()).item() - 2 * cross
    assert frechet_distance(torch.zeros(20), a, mu, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mu.numpy(), b.numpy(), np.zeros(20), a.numpy()) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_covariances_without_full_rank():
    mu = torch.zeros(60)
    low = covariance(60, 1, rank=10)
    assert frechet_distance(mu, low, mu, low) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mu, low, mu, 4 * low) == pytest.approx(low.trace().item(), rel=1e-9)  # (2 - 1)^2 tr
    assert frechet_distance(mu, low, mu, torch.zeros(60, 60)) == pytest.approx(low.trace().item(), rel=1e-9)
    q = torch.linalg.qr(randn(60, 60, seed=2)).Q
    left, right = q[:, :5] @ q[:, :5].T, q[:, 5:9] @ q[:, 5:9].T  # disjoint supports: the cross term is 0
    assert frechet_distance(mu, left, mu, right) == pytest.approx(9, abs=1e-6)


def test_statistics_are_those_of_numpy_in_blocks():
    x = (1000 + randn(9000, 3)).float()  # more rows than a block; a large mean
    mu, cov = gaussian_statistics(x)
    assert mu.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mu.numpy(), x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------------ W2
def test_wasserstein2_on_the_line_and_under_a_shift():
    a, b = randn(200, 1), 2 * randn(200, 1, seed=1) + 1
    expected = (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
    assert wasserstein2(a, b) == pytest.approx(expected, rel=1e-9)
    x, shift = randn(100, 3, 2), torch.tensor([[1.0, -2.0]] * 3, dtype=torch.float64)
    assert wasserstein2(x, x[torch.randperm(100)] + shift) == pytest.approx(shift.norm().item(), rel=1e-9)
    assert wasserstein2(x, x.flip(0)) == 0
    assert wasserstein2(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]])) == pytest.approx(math.sqrt(5))


# ------------------------------------------------------------------------------------------------------------ Sinkhorn
def test_sinkhorn_tends_to_half_the_squared_distance():
    a, b = randn(60, 2), 0.5 * randn(80, 2, seed=1) + torch.tensor([1.0, 0.0])
    limit = wasserstein2(a, b) ** 2 / 2
    errors = [abs(sinkhorn_divergence(a, b, blur, tol=1e-4) - limit) for blur in (1.0, 0.3, 0.1, 0.03)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.003 * limit


def test_sinkhorn_equals_pot():
    import ot

    a, b, eps = randn(30, 2), randn(40, 2, seed=1) + 0.5, 0.3**2

    def entropic(x, y):  # POT's <plan, cost> + eps KL(plan | product), the primal of the same problem
        cost = torch.cdist(x, y).square().numpy() / 2
        p, q = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        plan = ot.sinkhorn(p, q, cost, eps, "sinkhorn", numItermax=20_000, stopThr=1e-10, warn=False)
        return (plan * cost).sum() + eps * (plan * np.log(plan / (p[:, None] * q) + 1e-300)).sum()

    expected = entropic(a, b) - entropic(a, a) / 2 - entropic(b, b) / 2
    assert sinkhorn_divergence(a, b, 0.3, tol=1e-6) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blur", [0.02, 0.2, 2.0])
def test_sinkhorn_is_not_negative_zero_on_equals_and_half_a_squared_shift(blur):
    a, b = randn(50, 3), randn(50, 3, seed=1)
    assert 0 < sinkhorn_divergence(a, b, blur) == pytest.approx(sinkhorn_divergence(b, a, blur), rel=1e-3, abs=1e-6)
    assert sinkhorn_divergence(a, a.flip(0), blur) == pytest.approx(0, abs=1e-6)
    assert sinkhorn_divergence(a, a + 2, blur) == pytest.approx(6, rel=1e-3)


def test_blocks_do_not_change_the_result(monkeypatch):
    a, b = randn(70, 2), randn(50, 2, seed=1) + 0.3
    whole = mmd(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 200)  # 4 rows at a time
    assert mmd(a, b) == pytest.approx(whole, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------- MMD
def test_mmd_is_unbiased_on_equal_distributions():
    values = torch.tensor([mmd(randn(30, 2, seed=2 * k), randn(40, 2, seed=2 * k + 1)) for k in range(300)])
    error = values.std() / math.sqrt(300)
    assert values.mean().abs() < 4 * error and (values < 0).any()


def test_mmd_against_closed_forms():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    k = [math.exp(-(d**2) / 2) for d in range(5)]
    cross = (k[2] + k[4] + k[1] + k[3]) / 4
    assert mmd(a, b, sigmas=(1.0,)) == pytest.approx(k[1] + k[2] - 2 * cross)
    # N(0, 1) and N(m, 1) with bandwidth 1: 2 / sqrt(3) (1 - exp(-m^2 / 6))
    value = mmd(randn(4000, 1), randn(4000, 1, seed=1) + 2, sigmas=(1.0,))
    assert value == pytest.approx(2 / math.sqrt(3) * (1 - math.exp(-4 / 6)), rel=0.06)


# ---------------------------------------------------------------------------------------------------------------- CRPS
def gaussian_crps(mean, std, y):
    """Closed form of the score of N(mean, std^2) (Gneiting and Raftery 2007, eq. 22)."""
    z = (y - mean) / std
    normal = torch.distributions.Normal(0.0, 1.0)
    return std * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi))


def test_crps_of_a_gaussian_ensemble():
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    y = torch.tensor([[-1.0, 0.0], [0.5, 3.0]], dtype=torch.float64)
    members = (1 + 2 * torch.special.ndtri(levels))[:, None, None].expand(-1, 2, 2)
    expected = gaussian_crps(1.0, 2.0, y)
    torch.testing.assert_close(crps_ensemble(members, y, mean=False), expected, rtol=1e-3, atol=1e-4)
    assert crps_ensemble(members, y) == pytest.approx(expected.mean().item(), rel=1e-3)


def test_fair_crps_is_unbiased_in_the_ensemble_size():
    y = torch.full((20_000,), 0.7, dtype=torch.float64)
    expected = gaussian_crps(0.0, 1.0, y[:1]).item()
    members = randn(3, 20_000)
    assert crps_ensemble(members, y, fair=True) == pytest.approx(expected, abs=0.015)
    assert crps_ensemble(members, y) == pytest.approx(expected + 1 / math.sqrt(math.pi) / 3, abs=0.015)


def test_crps_by_hand():
    x, y = randn(7, 4), randn(4, seed=1)
    pairs = (x[:, None] - x[None]).abs()
    first = (x - y).abs().mean(0)
    torch.testing.assert_close(crps_ensemble(x, y, mean=False), first - pairs.sum((0, 1)) / (2 * 49))
    torch.testing.assert_close(crps_ensemble(x, y, fair=True, mean=False), first - pairs.sum((0, 1)) / (2 * 42))
    assert crps_ensemble(x[:1], y) == pytest.approx((x[0] - y).abs().mean().item())


# -------------------------------------------------------------------------------------------------------- straightness
def test_straightness():
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    line = randn(1, 5, 3) + t[:, None, None] * randn(1, 5, 3, seed=1)
    assert straightness(line, t) == pytest.approx(0, abs=1e-20)
    assert straightness(line.flip(0), t.flip(0)) == pytest.approx(0, abs=1e-20)
    uneven = t**2
    assert straightness(line[0] + uneven[:, None, None] * randn(1, 5, 3, seed=2), uneven) == pytest.approx(0, abs=1e-20)
    # x = t^2 in each of 3 features: int (1 - 2 t)^2 dt = 1/3 each
    curve = (t**2)[:, None, None].expand(-1, 5, 3)
    assert straightness(curve, t) == pytest.approx(1, rel=1e-4)
    assert straightness(curve.flip(0), t.flip(0)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_statistics(torch.zeros(1, 4)), "at least 2"),
        (lambda: gaussian_statistics(torch.full((5, 2), float("nan"))), "features of 5 of 5 images hold NaN"),
        (lambda: frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(2), torch.eye(2)), "must be"),
        (lambda: frechet_distance(torch.zeros(2), torch.eye(2) / 0, torch.zeros(2), torch.eye(2)), "NaN or infinity"),
        (lambda: wasserstein2(torch.zeros(3, 2), torch.zeros(3, 4)), "2 features and b 4"),
        (lambda: wasserstein2(torch.zeros(0, 2), torch.zeros(3, 2)), "at least one row"),
        (lambda: sinkhorn_divergence(torch.zeros(3, 2), torch.zeros(3, 2), blur=0), "blur > 0"),
        (lambda: mmd(torch.zeros(1, 2), torch.zeros(3, 2)), "at least 2"),
        (lambda: crps_ensemble(torch.zeros(3, 4), torch.zeros(5)), "members and target"),
        (lambda: crps_ensemble(torch.zeros(1, 4), torch.zeros(4), fair=True), "M >= 2"),
        (lambda: straightness(torch.zeros(3, 2, 2), [0.0, 1.0]), "2 times"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
