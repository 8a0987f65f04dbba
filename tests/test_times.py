"""Distributions of training times: stratified draws follow the closed distribution functions."""

from __future__ import annotations

import pytest
import torch

from common.methods import TIMES

N = 400
GRID = torch.linspace(0, 1, 100_001, dtype=torch.float64)


def normal_in_logit(t, mean, std):
    return torch.special.ndtr((torch.logit(t) - mean) / std)


def integrated(t, rate):
    """The distribution function by quadrature of the mixture of two exponentials that the paper's code draws."""
    one = torch.exp(rate * GRID)
    density = one / torch.trapezoid(one, GRID) / 2
    below = torch.cumulative_trapezoid(density + density.flip(0), GRID)
    return below[(t * 100_000).round().long().clamp(1, 100_000) - 1]


CASES = {
    "uniform": ({}, lambda t: t),
    "logit-normal": ({"mean": 0.6, "std": 1.2}, lambda t: normal_in_logit(t, 0.6, 1.2)),
    "logit-normal of others": ({"mean": -1.0, "std": 0.5}, lambda t: normal_in_logit(t, -1.0, 0.5)),
    "mixed": ({"share": 0.8}, lambda t: 0.8 * normal_in_logit(t, 0.6, 1.2) + 0.2 * t),
    "mixed of others": (
        {"share": 0.3, "mean": 2.0, "std": 0.8},
        lambda t: 0.3 * normal_in_logit(t, 2.0, 0.8) + 0.7 * t,
    ),
    # ln sigma ~ N(-1.2, 1.2^2) is above its value at t where t is below
    "edm": ({"mean": -1.2, "std": 1.2}, lambda t: 1 - torch.special.ndtr((torch.log((1 - t) / t) + 1.2) / 1.2)),
    "u-shaped": ({"rate": 4.0}, lambda t: integrated(t, 4.0)),
    "u-shaped of others": ({"rate": 9.0}, lambda t: integrated(t, 9.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_stratified_draws_follow_the_distribution(case):
    """Kolmogorov's distance of N stratified draws is 1 / N at most, in each part of a mixture; of others about 0.04."""
    name, (parameters, below) = case.split(" of")[0], CASES[case]
    u = (torch.arange(N) + torch.rand(N, generator=torch.Generator().manual_seed(0))) / N
    t = TIMES[name].of(**parameters)(u).double().sort().values
    exact, steps = below(t), torch.arange(N + 1) / N
    distance = torch.maximum((exact - steps[:-1]).abs(), (exact - steps[1:]).abs()).max().item()
    assert distance <= (2 if name == "mixed" else 1) / N + 1e-4
    assert 0 <= t.min() and t.max() <= 1
    if case == name:  # these are the usual parameters, and None stands for them
        usual = dict.fromkeys(("mean", "std", "share", "rate"))
        assert torch.equal(TIMES[name].of(**usual)(u), TIMES[name].of(**parameters)(u))
        assert name != "uniform" or TIMES[name].of(**usual)(u) is u


@pytest.mark.parametrize("name", TIMES)
def test_times_are_numbers_at_the_ends_of_the_uniform_ones(name):
    t = TIMES[name].of()(torch.tensor([0.0, 1e-7, 0.5, 1 - 6e-8, 1.0]))
    assert t.isfinite().all() and 0 <= t.min() and t.max() <= 1
