"""Power-function averages: their constants, the recursion, and sums of snapshots that make one of another length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from common.training.averages import EMA, combination, exponent, inner_product

STDS = (0.05, 0.1, 0.2)


class Numbers(nn.Module):
    """Weights that are a path over time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(n))


def averages(path: torch.Tensor, stds: tuple[float, ...] = STDS, every: int = 10**9):
    """The averages of weights (T, n) at the end, by std; and snapshots as (updates, std, float16 weights)."""
    net = Numbers(path.shape[1])
    ema, taken = EMA(net, std=stds), []
    for k, x in enumerate(path, 1):
        net.x.data = x
        ema.update()
        if k % every == 0:
            taken += [(k, std, tensors["x"]) for std, tensors in ema.snapshot().items()]
    return {std: shadow["x"] for std, shadow in ema.state_dict()["power"].items()}, taken


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_exponent_gives_its_standard_deviation_back(std):
    gamma = exponent(std)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)  # moments of p on [0, 1]
    assert math.sqrt(square - mean**2) == pytest.approx(std, rel=1e-9)


def test_exponents_that_were_published_and_those_that_there_are_not():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005) and exponent(0.1) == pytest.approx(6.94, abs=0.005)
    assert exponent(12**-0.5 - 1e-9) == pytest.approx(0, abs=1e-6)  # the plain mean
    for std in (0, -0.1, 0.3):
        with pytest.raises(ValueError, match="above 0 and below 0.289"):
            exponent(std)


def test_the_recursion_weighs_each_step_by_the_integral_over_it():
    steps = 30
    found, _ = averages(torch.eye(steps))  # component k is the weight of step k
    ends = torch.arange(steps + 1, dtype=torch.float64) / steps
    for std, weights in found.items():
        torch.testing.assert_close(weights.double(), (ends ** (exponent(std) + 1)).diff(), rtol=1e-5, atol=1e-8)


def test_the_average_of_a_polynomial_is_its_closed_form():
    steps, powers = 400, torch.arange(4, dtype=torch.float64)
    t = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    found, _ = averages((t**powers).float())
    for std, average in found.items():
        excess = average - (exponent(std) + 1) / (exponent(std) + 1 + powers)  # a step's weights are those of its end
        assert (excess > -1e-6).all() and (excess <= powers / steps + 1e-6).all()
        assert excess[3] > 0.3 / steps


def test_inner_products_are_integrals():
    nodes = (np.arange(200_000) + 0.5) / 200_000
    for (a, end_a), (b, end_b) in [((0.05, 1.0), (0.1, 1.0)), ((0.05, 0.6), (0.2, 1.0)), ((0.2, 1.0), (0.1, 0.3))]:
        p, q = (
            (exponent(s) + 1) * nodes ** exponent(s) / end ** (exponent(s) + 1) * (nodes < end)
            for s, end in ((a, end_a), (b, end_b))
        )
        assert inner_product(exponent(a), end_a, exponent(b), end_b) == pytest.approx((p * q).mean(), rel=1e-4)


def test_a_sum_of_snapshots_keeps_constants_and_is_the_nearest_one():
    stds, times = [0.05, 0.1] * 8, [t for t in range(100, 900, 100) for _ in range(2)]
    x, error = combination(stds, times, 0.1)  # it is there
    assert error < 1e-6 and x == pytest.approx(np.eye(16)[-1], abs=1e-6)
    x, error = combination(stds, times, 0.15)
    assert x.sum() == pytest.approx(1, abs=1e-9) and 0.01 < error < 0.05
    gammas, ends, gamma = np.array([exponent(s) for s in stds]), np.array(times) / 800, exponent(0.15)
    for direction in np.eye(16) - 1 / 16:  # sums of 0
        slope = inner_product(gammas[:, None], ends[:, None], gammas, ends) @ x - inner_product(
            gammas, ends, gamma, 1.0
        )
        assert abs(direction @ slope) < 1e-8


def test_a_length_made_of_snapshots_is_the_one_that_was_tracked():
    """Within the bound of Cauchy and Schwarz: the error of the profile times the path's deviation, and float16's."""
    path = torch.randn(480, 64, generator=torch.Generator().manual_seed(0)).cumsum(0) / 10 + 1
    tracked, _ = averages(path, (0.04, 0.075, 0.15, 0.2))
    _, taken = averages(path, (0.05, 0.1), every=40)
    for std, truth in tracked.items():
        x, error = combination([s for _, s, _ in taken], [k for k, _, _ in taken], std)
        made = sum(factor * tensor.double() for factor, (_, _, tensor) in zip(x.tolist(), taken))
        norm = inner_product(exponent(std), 1.0, exponent(std), 1.0) ** 0.5
        deviation = path.double().var(0, correction=0).sqrt()
        rounding = 2.0**-11 * sum(abs(f) * tensor.double().abs() for f, (_, _, tensor) in zip(x.tolist(), taken))
        assert ((made - truth).abs() <= error * norm * deviation + rounding + 1e-5).all()
        # how near it is: 0.07% of the path's deviation between the two lengths, 0.5% at twice the longer one
        assert (made - truth).pow(2).mean() < (0.006 if std > 0.15 else 0.0025) ** 2 * deviation.pow(2).mean()


def test_power_functions_beside_the_usual_average_leave_it_alone_and_go_on_from_its_state():
    path = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    plain, both = (EMA(Numbers(3), 0.9, std=std) for std in ((), (0.1,)))
    for x in path:
        for ema in (plain, both):
            ema.model.x.data = x
            ema.update()
    assert torch.equal(plain.state_dict()["shadow"]["x"], both.state_dict()["shadow"]["x"])
    assert "power" not in plain.state_dict() and both.snapshot()[0.1]["x"].dtype == torch.float16
    other = EMA(Numbers(3), 0.9, std=(0.1,))
    other.load_state_dict(both.state_dict())
    for ema in (both, other):
        ema.model.x.data = path[0]
        ema.update()
    assert torch.equal(*(ema.state_dict()["power"][0.1]["x"] for ema in (both, other)))
    with pytest.raises(ValueError, match=r"power functions \[0.1\], these are \[\]"):
        plain.load_state_dict(both.state_dict())
