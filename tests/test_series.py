"""Windows, roll-outs and the scores of ensembles, against counts, closed forms and properscoring."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from common import series
from common.metrics import crps_ensemble
from common.series import crps_gaussian


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- windows


def test_windows_are_all_those_inside_a_trajectory():
    """Frames carry (trajectory, time): every window must hold consecutive times of one trajectory."""
    lengths = [7, 3, 4, 12]
    trajectories = [torch.stack([torch.full((n,), k), torch.arange(n)], 1) for k, n in enumerate(lengths)]
    index = series.windows(trajectories, past=3, horizon=1)
    assert len(index) == sum(max(0, n - 3) for n in lengths) == len({tuple(row) for row in index.tolist()})
    past, future = series.frames_at(trajectories, index, 3, 1)
    assert past.shape == (len(index), 3, 2) and future.shape == (len(index), 1, 2)
    whole = torch.cat([past, future], 1)
    assert (whole[:, :, 0] == index[:, :1]).all()
    assert (whole[:, :, 1] == index[:, 1:] + torch.arange(4)).all()


def test_windows_with_a_stride_and_without_a_future():
    index = series.windows([torch.zeros(10, 2)], 2, 0, stride=3)
    assert index.tolist() == [[0, 0], [0, 3], [0, 6]]
    past, future = series.frames_at([torch.zeros(10, 2)], index, 2, 0)
    assert past.shape == (3, 2, 2) and future.shape == (3, 0, 2)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_windows_refuse_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="need past >= 1"):
        series.windows([torch.zeros(10)], *arguments)


def test_a_series_that_is_too_short_gives_one_line():
    with pytest.raises(ValueError, match="no window of 3 . 5 frames in 2 trajectories of at most 7 frames") as error:
        series.windows([torch.zeros(7), torch.zeros(2)], 3, 5)
    assert "\n" not in str(error.value)


# ---- roll-out


def test_roll_out_of_a_rotation_is_its_power():
    angle = 0.1
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    start = normal(5, 2)
    path = series.roll_out(lambda x, k: x @ turn.T, start, 40)
    assert path.shape == (40, 5, 2)
    assert torch.allclose(path[-1], start @ torch.linalg.matrix_power(turn, 40).T)
    assert torch.equal(series.roll_out(lambda x, k: x @ turn.T, start, 40, every=8), path[7::8])
    assert torch.allclose(series.roll_out(lambda x, k: x @ turn.T, start, 40, chunk=2), path)


def test_roll_out_counts_its_steps_and_chunks():
    seen = []

    def step(x, k):
        seen.append((k, len(x)))
        return x + k

    path = series.roll_out(step, torch.zeros(5, 1), 3, chunk=2)
    assert seen == [(k, n) for k in range(3) for n in (2, 2, 1)]
    assert path[:, 0, 0].tolist() == [0, 1, 3]


def test_roll_out_names_the_step_that_is_not_finite():
    def step(x, k):
        return torch.where(torch.arange(3) < 2, x, math.nan) if k == 4 else x

    with pytest.raises(ValueError, match="not finite at step 5 of 9, in 1 of 3 rows"):
        series.roll_out(step, torch.zeros(3), 9)


def test_roll_out_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="keep its shape"):
        series.roll_out(lambda x, k: x[:, :1], torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="every 5"):
        series.roll_out(lambda x, k: x, torch.zeros(2), 4, every=5)


def test_the_progress_bar_is_on_request(capsys):
    series.roll_out(lambda x, k: x, torch.zeros(2), 3)
    assert capsys.readouterr().err == ""
    series.roll_out(lambda x, k: x, torch.zeros(2), 3, progress="forecast")
    assert "forecast" in capsys.readouterr().err


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
    assert series.crps(members, target, fair=True) == pytest.approx(exact, rel=0.005)
    # E |x_i - x_j| = 2 s / sqrt(pi), and the plain score subtracts a share 1 / M less of half of it
    assert series.crps(members, target) == pytest.approx(exact + 2 / math.sqrt(math.pi) / m, rel=0.005)


def test_crps_agrees_with_properscoring():
    properscoring = pytest.importorskip("properscoring")
    members, target = normal(7, 5, 6), normal(5, 6, seed=1)
    theirs = torch.from_numpy(properscoring.crps_ensemble(target.numpy(), members.numpy(), axis=0))
    assert torch.allclose(crps_ensemble(members, target, mean=False), theirs)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    wanted = (theirs * weights).sum() / weights.expand(5, 6).sum()
    assert series.crps(members, target, weights) == pytest.approx(wanted.item())
    theirs = torch.from_numpy(properscoring.crps_gaussian(target.numpy(), mu=0.3, sig=1.7))
    assert torch.allclose(crps_gaussian(torch.full((5, 6), 0.3, dtype=torch.float64), 1.7, target), theirs)


def test_one_member_scores_its_absolute_error():
    assert series.crps(torch.tensor([[1.0, -2.0]]), torch.zeros(2)) == pytest.approx(1.5)


def test_what_the_mask_hides_does_not_count():
    members, target, mask = normal(6, 3, 8), normal(3, 8, seed=1), torch.arange(8) < 5
    other_members, other_target = members.clone(), target.clone()
    other_members[..., 5:], other_target[..., 5:] = 100.0, -100.0
    for score in (series.crps, series.mse_of_mean, series.spread_skill_ratio):
        inside = score(members[..., :5], target[..., :5], None)
        assert score(other_members, other_target, mask) == pytest.approx(inside)
    ranks = partial(series.rank_histogram, generator=None)
    assert torch.allclose(ranks(other_members, other_target, mask), ranks(members[..., :5], target[..., :5]))


@pytest.mark.parametrize("weights", [torch.zeros(4), -torch.ones(4), torch.ones(3)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        series.weighted_mean(torch.ones(2, 4), weights)


# ---- reliability


@pytest.mark.parametrize("m", [2, 5, 50])
def test_spread_skill_ratio_is_one_for_a_calibrated_ensemble(m):
    n = 100_000
    centre = 3 * normal(n, seed=2)
    members, target = centre + 0.7 * normal(m, n), centre + 0.7 * normal(n, seed=1)
    assert series.spread_skill_ratio(members, target) == pytest.approx(1, abs=0.012)
    plain = series.spread_skill_ratio(members, target, finite=False)
    assert plain == pytest.approx(math.sqrt(m / (m + 1)), abs=0.012)
    half = centre + 0.35 * normal(m, n)
    assert series.spread_skill_ratio(half, target) < 0.72


def test_spread_skill_ratio_by_hand():
    members, target = torch.tensor([[0.0], [2.0]]), torch.tensor([4.0])  # variance 2, error of the mean 3
    assert series.spread_skill_ratio(members, target) == pytest.approx(math.sqrt(1.5 * 2) / 3)
    with pytest.raises(ValueError, match="M >= 2"):
        series.spread_skill_ratio(members[:1], target)


def test_rank_histogram_is_flat_for_a_calibrated_ensemble_and_only_then():
    n, m = 60_000, 9
    members, target = normal(m, n), normal(n, seed=1)
    flat = series.rank_histogram(members, target)
    error = math.sqrt(0.1 * 0.9 / n)
    assert flat.shape == (m + 1,) and flat.sum().item() == pytest.approx(1)
    assert ((flat - 0.1).abs() < 4.5 * error).all()
    narrow = series.rank_histogram(members / 2, target)
    assert narrow[0] > 0.2 and narrow[-1] > 0.2
    biased = series.rank_histogram(members - 1, target)
    assert biased[-1] > 0.25 and biased[0] < 0.05


def test_ranks_count_the_members_below_and_ties_are_broken_evenly():
    members = torch.tensor([[1.0], [2.0], [3.0]])
    for y, rank in ((0.5, 0), (1.5, 1), (2.5, 2), (9.0, 3)):
        assert series.rank_histogram(members, torch.tensor([y])).argmax() == rank
    equal = series.rank_histogram(torch.zeros(4, 20_000), torch.zeros(20_000))
    assert ((equal - 0.2).abs() < 0.015).all()


# ---- leads


def test_scores_by_lead():
    leads = torch.tensor([1.0, 2.0, 4.0])
    members, target = leads[:, None, None] * torch.ones(3, 1, 10), torch.zeros(3, 10)
    assert series.by_lead(series.crps, members, target) == pytest.approx([1, 2, 4])
    with pytest.raises(ValueError, match="3 leads of members, 2 of targets"):
        series.by_lead(series.crps, members, target[:2])
