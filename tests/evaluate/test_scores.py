"""Scores with known answers: streamed statistics, Inception score, precision and recall, spread, log densities."""

from __future__ import annotations

import math

import pytest
import torch

from common import metrics
from common.evaluate import scores
from common.metrics import Moments, frechet_distance, gaussian_statistics
from common.paths import LinearPath
from common.runtime import generator
from common.solvers import time_grid
from problems import Gaussians, slope_of


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def moments(rows, size):
    m = Moments(rows.shape[1])
    for part in rows.split(size):
        m.add(part)
    return m.statistics()


# ---- statistics


@pytest.mark.parametrize("size", [1, 7, 100])
def test_streamed_statistics_are_those_of_all_rows_at_once(size):
    x = randn(50, 6) * torch.arange(1, 7) + 1e6  # a sum of squares would lose all digits of the first variance
    mean, cov = moments(x, size)
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(cov, x.T.cov(), rtol=1e-8, atol=1e-8)
    other = moments(x[torch.randperm(50, generator=generator(1))], size)
    torch.testing.assert_close(cov, other[1], rtol=1e-8, atol=1e-8)


def test_frechet_distance_of_streamed_statistics():
    from scipy.linalg import sqrtm

    a, b = randn(40, 5) @ randn(5, 5, seed=2), randn(30, 5, seed=1) + 0.3
    (mu, s), (nu, t) = moments(a, 7), moments(b, 8)
    root = torch.as_tensor(sqrtm((s @ t).numpy()))
    want = (mu - nu).square().sum() + s.trace() + t.trace() - 2 * root.trace().real
    assert frechet_distance(mu, s, nu, t) == pytest.approx(want.item(), rel=1e-9)
    one = torch.tensor([1.0, 2.0, 3.0]).double()  # of diagonal covariances: sum (a - b)^2 of means and of spreads
    same = frechet_distance(one, one.square().diag(), 0 * one, (one + 0.5).square().diag())
    assert same == pytest.approx(14 + 3 * 0.25, rel=1e-12)


def test_features_that_are_not_finite_are_counted():
    x = torch.ones(4, 2)
    x[1, 0], x[3, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match="features of 2 of 4 images hold NaN or infinity"):
        Moments(2).add(x)
    with pytest.raises(ValueError, match="at least 2"):
        moments(torch.ones(1, 2), 1)


def test_the_sample_is_the_rows_of_the_smallest_keys_and_stays_small():
    keys = torch.randperm(500, generator=generator(0))
    rows = keys[:, None].float() * torch.ones(3)
    kept, most = scores.Kept(20), 0
    for start in range(0, 500, 10):
        kept.add(keys[start : start + 10], rows[start : start + 10])
        most = max(most, sum(len(part) for part in kept._rows))
    assert torch.equal(kept.rows(), torch.arange(20)[:, None].expand(-1, 3).float()) and most <= 2 * 20 + 10


# ---- Inception score


def inception_score(logits, groups):
    """The score over consecutive groups."""
    sums = scores.ClassSums(groups, logits.shape[1])
    sums.add(logits, torch.arange(len(logits)) * groups // len(logits))
    return sums.score()


def test_inception_score_of_known_logits():
    sure = 1e4 * torch.eye(5).repeat(6, 1)
    assert inception_score(sure, 3) == (pytest.approx(5), pytest.approx(0, abs=1e-9))
    assert inception_score(randn(1, 5).expand(30, 5), 3)[0] == pytest.approx(1)
    assert inception_score(sure[:2].repeat(10, 1), 1) == (pytest.approx(2), 0)


def test_inception_score_is_its_definition():
    logits = 3 * randn(60, 7)
    values = []
    for part in logits.softmax(1).split(20):
        values.append((part * (part.log() - part.mean(0).log())).sum(1).mean().exp())
    mean, std = inception_score(logits, 3)
    assert mean == pytest.approx(torch.stack(values).mean().item(), rel=1e-12)
    assert std == pytest.approx(torch.stack(values).std(correction=0).item(), rel=1e-12)
    sums, groups = scores.ClassSums(4, 7), torch.arange(60) // 20  # in other batches, and with a group of nobody
    for part in torch.randperm(60, generator=generator(0)).split(13):
        sums.add(logits[part], groups[part])
    assert sums.score() == (pytest.approx(mean, rel=1e-12), pytest.approx(std, rel=1e-12))


# ---- precision and recall


def test_precision_and_recall_by_hand():
    """Balls of k = 1 on a line: real reach 1 around 0, 1 and 3 (to its neighbour at 1: 2); fake 10 around both."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[4.9], [14.9]])
    precision, recall = scores.precision_recall(real, fake, 1)
    assert (precision, recall) == (0.5, 1.0)  # 4.9 lies within 2 of 3; all real lie within 10 of 4.9
    assert scores.precision_recall(fake, real, 1) == (1.0, 0.5)


def brute(real, fake, k):
    def inside(x, others):
        hits = 0
        for p in x:
            radii = [sorted((q - r).norm().item() for j, r in enumerate(others) if j != i)[k - 1] for i, q in
                     enumerate(others)]  # fmt: skip
            hits += any((p - q).norm().item() <= radius for q, radius in zip(others, radii))
        return hits / len(x)

    return inside(fake, real), inside(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(k, monkeypatch):
    real, fake = randn(17, 2), 0.5 * randn(12, 2, seed=1) + 0.8
    want = brute(real, fake, k)
    assert scores.precision_recall(real, fake, k) == pytest.approx(want, abs=1e-12) and 0 < want[1] < 1
    monkeypatch.setattr(metrics, "BLOCK", 30)  # several blocks
    assert scores.precision_recall(real + 1e5, fake + 1e5, k) == pytest.approx(want, abs=1e-12)


def test_precision_and_recall_at_the_ends():
    x = randn(40, 3)
    assert scores.precision_recall(x, x) == (1, 1) and scores.precision_recall(x, x + 100) == (0, 0)
    copies = x[:2].repeat(5, 1)  # radius 0: equal rows must count although distances round
    assert scores.precision_recall(copies * 1e3, x[:4].repeat(5, 1) * 1e3) == (0.5, 1)
    with pytest.raises(ValueError, match="neighbour 3 of 40 and 3 images"):
        scores.precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="a has 3 features and b 2"):
        scores.precision_recall(x, x[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        scores.precision_recall(x, x * math.nan)


# ---- spread


@pytest.mark.parametrize("d", [3, 30])  # a half has more rows than features, and fewer
def test_distances_of_halves(d):
    rows, (mean, cov) = randn(40, d), moments(randn(50, d, seed=1) + 0.2, 50)
    draw, values = generator(3), []
    for _ in range(3):
        half = rows[torch.randperm(40, generator=draw)[:20]]
        values.append(frechet_distance(*gaussian_statistics(half), mean, cov))
    found = scores.frechet_of_halves(rows, mean, cov, 3, generator(3))
    want = torch.tensor(values, dtype=torch.float64)
    assert found == pytest.approx((want.mean().item(), want.std().item()), rel=1e-6)
    with pytest.raises(ValueError, match="2 halves of 3 images"):
        scores.frechet_of_halves(rows[:3], mean, cov, 2)


def test_the_spread_of_halves_is_that_of_fresh_sets():
    mean, cov = torch.full((2,), 0.5).double(), torch.eye(2).double()
    sets = [randn(400, 2, seed=k) for k in range(120)]
    fresh = torch.tensor([frechet_distance(*gaussian_statistics(x), mean, cov) for x in sets]).std().item()
    halves = [scores.frechet_of_halves(x, mean, cov, 30, generator(k))[1] for k, x in enumerate(sets[:20])]
    assert sum(halves) / 20 == pytest.approx(fresh, rel=0.2)


# ---- likelihood

A = torch.tensor([[0.3, -0.8, 0.1], [0.5, -0.2, 0.4], [0.0, 0.6, 0.1]], dtype=torch.float64)


def linear(x, t):
    return x @ A.T


def exact_linear(x):
    """dx/dt = A x takes N(0, I) to N(0, e^A e^A')."""
    e = torch.linalg.matrix_exp(A)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), e @ e.T)
    return normal.log_prob(x)


def test_density_starts_from_the_spread_of_the_noise():
    """Of cfm with sigma 0.75 it is 1.25: a flow that leaves everything where it is has the density of its noise."""
    x, start = randn(6, 3), LinearPath(0.75).start
    found = scores.log_likelihood(lambda x, t: 0 * x, x, time_grid(2), start=start)
    want = torch.distributions.Normal(0, 1.25).log_prob(x).sum(1)
    torch.testing.assert_close(found.log_density, want.double())
    torch.testing.assert_close(found.noise, x / 1.25)


def test_density_of_a_linear_flow():
    x = randn(5, 3)
    found = scores.log_likelihood(linear, x, time_grid(40), "rk4")
    torch.testing.assert_close(found.log_density, exact_linear(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.noise, x @ torch.linalg.matrix_exp(-A).T, rtol=0, atol=1e-7)
    assert (found.forwards, found.backwards, found.nfe) == (160, 480, 640)


@pytest.mark.parametrize(("method", "order", "calls"), [("euler", 1, 1), ("heun", 2, 2), ("rk4", 4, 4)])
def test_the_error_of_the_density_falls_with_the_solvers_order(method, order, calls):
    flow = Gaussians()
    x = torch.tensor([[1.0], [1.6], [2.4]], dtype=torch.float64)
    m1, s1 = (torch.tensor(value, dtype=torch.float64) for value in (flow.m1, flow.s1))
    want = torch.distributions.Normal(m1, s1).log_prob(x)[:, 0]
    errors, counts = [], [20, 40, 80]
    for n in counts:
        found = scores.log_likelihood(flow.velocity, x, time_grid(n), method)
        errors.append((found.log_density - want).abs().max().item())
        assert (found.forwards, found.backwards) == (calls * n, calls * n)
    assert slope_of(counts, errors) == pytest.approx(order, abs=0.5) and errors[-1] < 0.1


def test_hutchinsons_estimate_is_unbiased_and_one_backward_pass_a_probe():
    x = randn(1, 3).expand(4000, 3)
    found = scores.log_likelihood(linear, x, time_grid(4), "rk4", probes=1, draw=generator(0))
    want = scores.log_likelihood(linear, x[:1], time_grid(4), "rk4").log_density.item()
    error = found.log_density.std().item() / 4000**0.5
    assert found.log_density.mean().item() == pytest.approx(want, abs=4 * error) and 0.001 < error < 0.1
    assert (found.forwards, found.backwards) == (16, 16)
    two = scores.log_likelihood(linear, x, time_grid(4), "rk4", probes=2, draw=generator(0))
    assert two.backwards == 32 and two.log_density.var().item() == pytest.approx(
        found.log_density.var().item() / 2, rel=0.15
    )


def test_many_coordinates_are_estimated_and_images_keep_their_shape():
    x = randn(2, 1, 9, 9).float()
    found = scores.log_likelihood(lambda x, t: 0.5 * x, x, time_grid(30), draw=generator(0))
    want = torch.distributions.Normal(0, math.exp(0.5)).log_prob(x.double()).flatten(1).sum(1)  # e.Je is exact here
    torch.testing.assert_close(found.log_density, want, rtol=1e-4, atol=0)
    assert found.noise.shape == x.shape and found.noise.dtype == x.dtype and found.backwards == found.forwards == 60


def test_densities_that_cannot_be_computed():
    frozen = torch.no_grad()(lambda x, t: 2 * x)
    with pytest.raises(ValueError, match="no derivative: call the network outside torch.no_grad"):
        scores.log_likelihood(frozen, randn(2, 3), time_grid(2))
    with pytest.raises(ValueError, match="times go from 0.5 to 1"):
        scores.log_likelihood(linear, randn(2, 3), [0.5, 1.0])
    with pytest.raises(ValueError, match="uint8 images, not torch.float32"):
        scores.bits_per_dimension(linear, torch.zeros(2, 1, 2, 2), time_grid(2))


def test_bits_of_a_standard_normal_are_those_of_its_density_on_the_grid_of_bytes():
    images = torch.randint(0, 256, (6, 1, 3, 3), generator=generator(1), dtype=torch.uint8)
    draws = [generator(7, k) for k in range(6)]
    found, density = scores.bits_per_dimension(lambda x, t: 0 * x, images, time_grid(2), draw=draws)
    e = torch.stack([torch.rand(1, 1, 3, 3, generator=generator(7, k))[0] for k in range(6)]) - 0.5
    y = (images + e) / 127.5 - 1
    mass = torch.distributions.Normal(0.0, 1.0).log_prob(y).exp() / 127.5  # of a bin, which is 1 / 127.5 wide
    torch.testing.assert_close(found, -mass.log2().flatten(1).mean(1).double(), rtol=1e-6, atol=0)
    assert density.nfe == 4 * (1 + 9)
    draws = [generator(7, k) for k in (4, 5)]  # a row does not depend on the others
    alone = scores.bits_per_dimension(lambda x, t: 0 * x, images[4:], time_grid(2), draw=draws)[0]
    torch.testing.assert_close(alone, found[4:], rtol=0, atol=0)


def test_a_flow_to_the_uniform_density_needs_8_bits():
    """dx/dt of the quantile map's straight path, near enough uniform on [-1, 1]: log2 256 bits for any image."""

    def velocity(x, t):  # normal at 0 to uniform at 1: x(t) = (1 - t) z + t erf(z / sqrt 2), solved for z by Newton
        s = t.reshape(-1, 1)
        z = x.detach()
        for _ in range(15):
            slope = (1 - s) + s * math.sqrt(2 / math.pi) * (-z.square() / 2).exp()
            z = z - ((1 - s) * z + s * torch.erf(z / 2**0.5) - x.detach()) / slope
        slope = (1 - s) + s * math.sqrt(2 / math.pi) * (-z.square() / 2).exp()
        z = z + (x - x.detach()) / slope  # the derivative of the solution
        return torch.erf(z / 2**0.5) - z

    images = torch.tensor([[100, 127, 150, 120]], dtype=torch.uint8)
    bits, _ = scores.bits_per_dimension(velocity, images, time_grid(20), "rk4", draw=generator(0))
    assert bits.item() == pytest.approx(math.log2(255), abs=0.02)  # the 255 steps between the ends of [-1, 1]
