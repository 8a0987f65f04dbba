"""Scores of ensembles, against closed forms, counts and properscoring."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from common.metrics import crps_ensemble
from sst import scores
from sst.scores import crps_gaussian


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
    assert scores.crps(members, target, fair=True) == pytest.approx(exact, rel=0.005)
    # E |x_i - x_j| = 2 s / sqrt(pi), and the plain score subtracts a share 1 / M less of half of it
    assert scores.crps(members, target) == pytest.approx(exact + 2 / math.sqrt(math.pi) / m, rel=0.005)


def test_crps_agrees_with_properscoring():
    properscoring = pytest.importorskip("properscoring")
    members, target = normal(7, 5, 6), normal(5, 6, seed=1)
    theirs = torch.from_numpy(properscoring.crps_ensemble(target.numpy(), members.numpy(), axis=0))
    assert torch.allclose(crps_ensemble(members, target, mean=False), theirs)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    wanted = (theirs * weights).sum() / weights.expand(5, 6).sum()
    assert scores.crps(members, target, weights) == pytest.approx(wanted.item())
    theirs = torch.from_numpy(properscoring.crps_gaussian(target.numpy(), mu=0.3, sig=1.7))
    assert torch.allclose(crps_gaussian(torch.full((5, 6), 0.3, dtype=torch.float64), 1.7, target), theirs)


def test_one_member_scores_its_absolute_error():
    assert scores.crps(torch.tensor([[1.0, -2.0]]), torch.zeros(2)) == pytest.approx(1.5)


def test_what_the_mask_hides_does_not_count():
    members, target, mask = normal(6, 3, 8), normal(3, 8, seed=1), torch.arange(8) < 5
    other_members, other_target = members.clone(), target.clone()
    other_members[..., 5:], other_target[..., 5:] = 100.0, -100.0
    for score in (scores.crps, scores.mse_of_mean, scores.spread_skill_ratio):
        inside = score(members[..., :5], target[..., :5], None)
        assert score(other_members, other_target, mask) == pytest.approx(inside)
    ranks = partial(scores.rank_histogram, generator=None)
    assert torch.allclose(ranks(other_members, other_target, mask), ranks(members[..., :5], target[..., :5]))


@pytest.mark.parametrize("weights", [torch.zeros(4), -torch.ones(4), torch.ones(3)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        scores.weighted_mean(torch.ones(2, 4), weights)


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
    assert scores.by_lead(scores.crps, members, target) == pytest.approx([1, 2, 4])
    with pytest.raises(ValueError, match="3 leads of members, 2 of targets"):
        scores.by_lead(scores.crps, members, target[:2])
