"""Scores of ensembles, against closed forms, counts and scoringrules."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from common.metrics import crps_ensemble
from sst import scores
from sst.scores import crps_gaussian


def crps(members: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None, fair: bool = False) -> float:
    found = crps_ensemble(members, target, fair=fair, mean=False)
    assert isinstance(found, torch.Tensor)
    return scores.weighted_mean(found, weights)


def error(members: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    return scores.weighted_mean(scores.squared_error(members, target), weights)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- CRPS


def test_crps_gaussian_is_the_integral_of_the_squared_distance_of_the_distribution_functions():
    for mean, std, y in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0), (-1.0, 3.0, 4.0)):
        grid = torch.linspace(-60, 60, 1_200_001, dtype=torch.float64)
        cdf = 0.5 * (1 + torch.erf((grid - mean) / (std * math.sqrt(2))))
        integral = torch.trapezoid((cdf - (grid >= y).double()).square(), grid).item()
        value = crps_gaussian(torch.tensor(mean), std, torch.tensor(y)).item()
        assert value == pytest.approx(integral, abs=2e-4)
    assert crps_gaussian(torch.tensor([1.0]), 0.0, torch.tensor([-1.5])).item() == 2.5


def test_crps_of_a_gaussian_ensemble_is_the_closed_form():
    """The fair score averages to that of the distribution; the plain one to the expectation for M members."""
    m, n = 10, 40_000
    members, target = 1 + 2 * normal(m, n), 1 + 2 * normal(n, seed=1)
    exact = crps_gaussian(torch.ones(n), 2.0, target).mean().item()
    assert exact == pytest.approx(2 / math.sqrt(math.pi), rel=0.02)
    assert crps(members, target, fair=True) == pytest.approx(exact, rel=0.005)
    # E |x_i - x_j| = 2 s / sqrt(pi), and the plain score subtracts a share 1 / M less of half of it
    assert crps(members, target) == pytest.approx(exact + 2 / math.sqrt(math.pi) / m, rel=0.005)


def test_scores_agree_with_scoringrules():
    rules = pytest.importorskip("scoringrules")
    members, target = normal(7, 5, 6), normal(5, 6, seed=1)
    x, y = members.numpy(), target.numpy()
    weights = torch.rand(6, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    for fair, estimator in ((False, "nrg"), (True, "fair")):
        theirs = torch.from_numpy(rules.crps_ensemble(y, x, m_axis=0, estimator=estimator))
        assert torch.allclose(crps_ensemble(members, target, fair=fair, mean=False), theirs)
        wanted = (theirs * weights).sum() / weights.expand(5, 6).sum()
        assert crps(members, target, weights, fair) == pytest.approx(wanted.item())
        theirs = rules.es_ensemble(y, x, m_axis=0, v_axis=-1, estimator=estimator).mean() / math.sqrt(6)
        assert scores.energy_score(members, target, fair=fair) == pytest.approx(theirs)
    theirs = torch.from_numpy(rules.crps_normal(y, 0.3, 1.7))
    assert torch.allclose(crps_gaussian(torch.full((5, 6), 0.3, dtype=torch.float64), 1.7, target), theirs)
    p, happened = torch.rand(40, generator=torch.Generator().manual_seed(4)), torch.arange(40) % 3 == 0
    assert scores.brier(p, happened).numpy() == pytest.approx(rules.brier_score(happened.double().numpy(), p.numpy()))


def test_one_member_scores_its_absolute_error():
    assert crps(torch.tensor([[1.0, -2.0]]), torch.zeros(2)) == pytest.approx(1.5)


def test_what_the_mask_hides_does_not_count():
    members, target, mask = normal(6, 3, 8), normal(3, 8, seed=1), torch.arange(8) < 5
    other_members, other_target = members.clone(), target.clone()
    other_members[..., 5:], other_target[..., 5:] = 100.0, -100.0
    for score in (crps, error, scores.spread_skill_ratio, scores.energy_score):
        inside = score(members[..., :5], target[..., :5], None)
        assert score(other_members, other_target, mask) == pytest.approx(inside)
    ranks = partial(scores.rank_histogram, generator=None)
    assert torch.allclose(ranks(other_members, other_target, mask), ranks(members[..., :5], target[..., :5]))


@pytest.mark.parametrize("weights", [torch.zeros(4), -torch.ones(4), torch.ones(3)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        scores.weighted_mean(torch.ones(2, 4), weights)


# ---- whole fields


@pytest.mark.parametrize("d", [1, 3, 40])
def test_energy_score_of_gaussian_vectors_is_the_closed_form(d):
    """E |x - x'| of x, x' ~ N(0, s^2 I_d) is 2 s gamma((d + 1) / 2) / gamma(d / 2): the score is half of it."""
    m, n, s = 5, 4000, 1.5
    exact = s * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2)) / math.sqrt(d)  # of the root mean square
    members, target = s * normal(m, n, d), s * normal(n, d, seed=1)
    assert scores.energy_score(members, target, fair=True) == pytest.approx(exact, rel=0.02)
    assert scores.energy_score(members, target) == pytest.approx(exact * (1 + 1 / m), rel=0.02)
    if d == 1:
        assert scores.energy_score(members, target) == pytest.approx(crps(members, target))
        assert scores.energy_score(members[:1], target) == pytest.approx((members[0] - target).abs().mean().item())


def test_the_energy_score_sees_patterns_that_no_cell_sees():
    """Members that are right in each cell but not together score worse; the CRPS calls them equal."""
    n, d = 3000, 8
    same, other = normal(6, n, 1).expand(6, n, d), normal(6, n, d, seed=2)
    target = normal(n, 1, seed=1).expand(n, d)
    assert crps(same, target, fair=True) == pytest.approx(crps(other, target, fair=True), rel=0.05)
    assert scores.energy_score(same, target, fair=True) < 0.9 * scores.energy_score(other, target, fair=True)


def test_energy_score_under_weights_by_hand():
    members, target = torch.tensor([[[3.0, 9.0]], [[0.0, 9.0]]]), torch.zeros(1, 2)
    assert scores.energy_score(members, target, torch.tensor([1.0, 0.0])) == pytest.approx(1.5 - 3 / 4)
    two = torch.cat([members, 2 * members], 1), torch.zeros(2, 2)
    heavy = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # the second field has three times the water
    assert scores.energy_score(*two, heavy) == pytest.approx((0.75 + 3 * 1.5) / 4)


def wave(side: int, rows: int, columns: int, size: float = 1.0) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return size * torch.cos(2 * math.pi * (rows * i + columns * j) / side)


def test_power_is_found_in_the_ring_of_its_wave():
    side = 12
    for rows, columns, ring in ((0, 2, 2), (3, 0, 3), (-2, 2, 3), (3, 4, 5), (0, 6, 6), (6, 0, 6)):
        power = scores.ring_power(wave(side, rows, columns), torch.ones(side, side))
        assert power.argmax() == ring - 1 and power.sum() == pytest.approx(power.max().item())
    white = scores.ring_power(normal(4000, side, side), torch.ones(side, side)).mean(0)
    assert torch.allclose(white, torch.full((6,), float(side**2), dtype=torch.float64), rtol=0.03)  # sum |x|^2


def test_spectrum_ratio_is_that_of_the_powers():
    members = torch.stack([wave(12, 0, 2, 3.0) + wave(12, 4, 0, 0.5), wave(12, 2, 0, 1.0) + wave(12, 0, 4, 0.5)])
    target = wave(12, 0, 2) + wave(12, 0, 4)
    ratio = scores.spectrum_ratio(members[:, None], target[None], torch.ones(12, 12))
    assert ratio[[1, 3]].tolist() == pytest.approx([(9 + 1) / 2, 0.25])
    hidden = torch.ones(12, 12)
    hidden[:, 6:] = 0
    wild = members.clone()
    wild[:, :, 6:] = 99
    wanted = scores.spectrum_ratio(members[:, None], target[None], hidden)
    assert torch.allclose(scores.spectrum_ratio(wild[:, None], target[None], hidden), wanted)


# ---- events


def test_brier_scores_of_members_average_to_that_of_their_probability():
    """Of outcomes drawn with p: p (1 - p) on average, and the plain score of M members 1 / M more of it."""
    m, n = 4, 200_000
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(n, generator=draw, dtype=torch.float64)
    happened = torch.rand(n, generator=draw) < p
    share = (torch.rand(m, n, generator=draw) < p).double().mean(0)
    exact = 1 / 6  # of uniform p
    assert scores.brier(p, happened).mean().item() == pytest.approx(exact, rel=0.02)
    assert scores.brier(share, happened, m).mean().item() == pytest.approx(exact, rel=0.02)
    assert scores.brier(share, happened).mean().item() == pytest.approx(exact * (1 + 1 / m), rel=0.02)


# ---- reliability


@pytest.mark.parametrize("m", [2, 5, 50])
def test_spread_skill_ratio_is_one_for_a_calibrated_ensemble(m):
    n = 100_000
    centre = 3 * normal(n, seed=2)
    members, target = centre + 0.7 * normal(m, n), centre + 0.7 * normal(n, seed=1)
    assert scores.spread_skill_ratio(members, target) == pytest.approx(1, abs=0.012)
    half = centre + 0.35 * normal(m, n)
    assert scores.spread_skill_ratio(half, target) < 0.72


def test_spread_skill_ratio_by_hand():
    members, target = torch.tensor([[0.0], [2.0]]), torch.tensor([4.0])  # variance 2, error of the mean 3
    assert scores.spread_skill_ratio(members, target) == pytest.approx(math.sqrt(1.5 * 2) / 3)
    with pytest.raises(ValueError, match="M >= 2"):
        scores.spread_skill_ratio(members[:1], target)


def test_the_fair_error_is_that_of_the_mean_of_infinitely_many():
    """Members about 1, targets about 0, both of variance 4: the mean's error is 1 + 4, and 4 / M more of M members."""
    n, m = 100_000, 3
    members, target = 1 + 2 * normal(m, n), 2 * normal(n, seed=1)
    assert scores.squared_error(members, target, fair=True).mean().item() == pytest.approx(5, rel=0.02)
    assert scores.squared_error(members, target).mean().item() == pytest.approx(5 + 4 / m, rel=0.02)
    assert scores.expected_error(members, target).mean().item() == pytest.approx(4 * (1 + 1 / m), rel=0.02)


def test_rank_histogram_is_flat_for_a_calibrated_ensemble_and_only_then():
    n, m = 60_000, 9
    members, target = normal(m, n), normal(n, seed=1)
    flat = scores.rank_histogram(members, target)
    error = math.sqrt(0.1 * 0.9 / n)
    assert flat.shape == (m + 1,) and flat.sum().item() == pytest.approx(1)
    assert ((flat - 0.1).abs() < 4.5 * error).all()
    narrow = scores.rank_histogram(members / 2, target)
    assert narrow[0] > 0.2 and narrow[-1] > 0.2
    biased = scores.rank_histogram(members - 1, target)
    assert biased[-1] > 0.25 and biased[0] < 0.05


def test_ranks_count_the_members_below_and_ties_are_broken_evenly():
    members = torch.tensor([[1.0], [2.0], [3.0]])
    for y, rank in ((0.5, 0), (1.5, 1), (2.5, 2), (9.0, 3)):
        assert scores.rank_histogram(members, torch.tensor([y])).argmax() == rank
    equal = scores.rank_histogram(torch.zeros(4, 20_000), torch.zeros(20_000))
    assert ((equal - 0.2).abs() < 0.015).all()


# ---- leads


def test_scores_by_lead():
    leads = torch.tensor([1.0, 2.0, 4.0])
    members, target = leads[:, None, None] * torch.ones(3, 1, 10), torch.zeros(3, 10)
    assert scores.by_lead(crps, members, target) == pytest.approx([1, 2, 4])
    with pytest.raises(ValueError, match="3 leads of members, 2 of targets"):
        scores.by_lead(crps, members, target[:2])
