"""Couplings: exact transport against known and brute-force answers, labels, entropic plans against POT."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from common.couplings import couple, entropic_plan


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(a, b):
    """Index in b of each row of a; every row of a must be in b exactly once."""
    same = (a.flatten(1)[:, None] == b.flatten(1)[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def total_cost(x0, x1):
    return (x0 - x1).square().sum().item()


@pytest.mark.parametrize("shape", [(50, 2), (64, 3, 8, 8), (1, 2), (30,)])
def test_ot_recovers_a_known_permutation(shape):
    x1 = torch.randn(shape, generator=gen())
    order = torch.randperm(shape[0], generator=gen(1))
    x0 = (x1 + 1e-3 * torch.randn(shape, generator=gen(2)) + 7.0)[order]  # a shift changes no assignment
    a, b = couple(x0, x1)
    assert b is x1 and a.shape == x0.shape and a.dtype == x0.dtype
    assert torch.equal(a, x0[order.argsort()])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ot_equals_brute_force(seed, dtype):
    n = 6
    x0 = torch.randn(n, 3, generator=gen(seed), dtype=dtype)
    x1 = 2 * torch.randn(n, 3, generator=gen(100 + seed), dtype=dtype) + 1
    best = min(total_cost(x0[list(order)], x1) for order in itertools.permutations(range(n)))
    assert total_cost(*couple(x0, x1)) == pytest.approx(best, rel=1e-5)


def test_ot_is_a_permutation_that_lowers_the_cost_and_is_deterministic():
    x0, x1 = torch.randn(128, 3, 8, 8, generator=gen(1)), torch.rand(128, 3, 8, 8, generator=gen(2))
    state = torch.get_rng_state()
    a, b = couple(x0, x1)
    assert sorted(rows_of(a, x0).tolist()) == list(range(128)) and b is x1
    assert total_cost(a, b) < total_cost(x0, x1)
    assert torch.equal(couple(x0, x1)[0], a)
    assert torch.equal(torch.get_rng_state(), state)  # draws nothing


def test_ot_far_from_the_origin_keeps_its_precision():
    x1 = 1e4 + torch.randn(64, 40, generator=gen(), dtype=torch.float64)
    x0 = 1e4 + torch.randn(64, 40, generator=gen(1), dtype=torch.float64)
    exact = total_cost(*couple(x0, x1))
    single = couple(x0.float(), x1.float())[0]
    assert total_cost(x0[rows_of(single, x0.float())], x1) == pytest.approx(exact, rel=1e-3)


def test_half_precision_and_channels_last():
    x0, x1 = torch.randn(16, 3, 4, 4, generator=gen()), torch.randn(16, 3, 4, 4, generator=gen(1))
    a = couple(x0.to(memory_format=torch.channels_last), x1)[0]
    assert torch.equal(a, couple(x0, x1)[0])
    assert couple(x0.bfloat16(), x1)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["ot", "sinkhorn"])
def test_nothing_is_paired_with_nothing(method):
    x0, x1 = couple(torch.zeros(0, 2), torch.zeros(0, 2), method)
    assert x0.shape == x1.shape == (0, 2)


def test_independent_changes_nothing():
    x0, x1, y = torch.randn(8, 2), torch.randn(8, 2), torch.arange(8)
    out = couple(x0, x1, "independent", y=y)
    assert out[0] is x0 and out[1] is x1 and out[2] is y


@pytest.mark.parametrize("method", ["ot", "sinkhorn"])
def test_labels_stay_with_their_data(method):
    x0, x1 = torch.randn(40, 2, generator=gen()), torch.randn(40, 2, generator=gen(1))
    y = torch.randint(4, (40,), generator=gen(2))
    a, b, labels = couple(x0, x1, method, gen(3), y=y)
    assert torch.equal(b, x1) and torch.equal(labels, y) and not torch.equal(a, x0)


@pytest.mark.parametrize("method", ["ot", "sinkhorn"])
def test_within_labels_moves_noise_inside_its_class_only(method):
    x0, x1 = torch.randn(60, 2, generator=gen()), torch.randn(60, 2, generator=gen(1))
    y = torch.randint(5, (60,), generator=gen(2)) * 3 - 2  # labels need not be 0, 1, ...
    a = couple(x0, x1, method, gen(3), y=y, within_labels=True)[0]
    source = rows_of(a, x0)
    assert torch.equal(y[source], y)
    assert not torch.equal(source, torch.arange(60))
    if method == "ot":
        for label in y.unique():
            rows = y == label
            assert torch.equal(a[rows], couple(x0[rows], x1[rows])[0])


def test_plain_ot_sorts_the_noise_by_class_and_within_labels_does_not():
    y = torch.arange(2).repeat_interleave(200)
    x1 = torch.where(y == 0, -5.0, 5.0)[:, None] + 0.1 * torch.randn(400, 1, generator=gen())
    x0 = torch.randn(400, 1, generator=gen(1))
    plain, inside = couple(x0, x1, y=y)[0], couple(x0, x1, y=y, within_labels=True)[0]
    assert plain[y == 0].max() < plain[y == 1].min()
    assert inside[y == 0].mean().abs() < 0.25 and inside[y == 0].std() > 0.85


# ------------------------------------------------------------------------------------------------------------ Sinkhorn
@pytest.mark.parametrize("reg", [30.0, 3.0, 1.0])
def test_entropic_plan_has_its_marginals_and_equals_pot(reg):
    import ot

    rng = np.random.default_rng(0)
    cost = rng.normal(size=(30, 30)) * 3 + 100 * rng.normal(size=(30, 1))
    plan = entropic_plan(cost, reg, tol=1e-9, iterations=100_000)
    uniform = np.full(30, 1 / 30)
    np.testing.assert_allclose(plan.sum(0), uniform, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(1), uniform, rtol=1e-5)
    reference = ot.sinkhorn(uniform, uniform, cost, reg, "sinkhorn_log", numItermax=20_000, stopThr=1e-9)
    np.testing.assert_allclose(plan, reference, atol=1e-7)


def test_entropic_plan_survives_a_tiny_reg():
    cost = 1e3 * np.random.default_rng(0).normal(size=(20, 20))
    plan = entropic_plan(cost, 1e-6)
    assert np.isfinite(plan).all() and plan.sum() == pytest.approx(1)
    assert entropic_plan(np.zeros((3, 3))) == pytest.approx(np.full((3, 3), 1 / 9))


def test_sinkhorn_tends_to_ot_and_to_independence():
    x0, x1 = torch.randn(40, 2, generator=gen()), torch.randn(40, 2, generator=gen(1))
    exact = couple(x0, x1)[0]
    sharp = couple(x0, x1, "sinkhorn", gen(), reg=1e-4)[0]
    assert (sharp == exact).all(1).float().mean() > 0.9
    blurred = torch.cat([couple(x0, x1, "sinkhorn", gen(k), reg=1e5)[0] for k in range(50)])
    counts = torch.bincount(rows_of(blurred, x0), minlength=40).double()
    chi2 = ((counts - 50) ** 2 / 50).sum()  # 39 degrees of freedom
    assert 15 < chi2 < 75


def test_sinkhorn_draws_follow_the_plan_and_the_generator():
    x0 = torch.tensor([[0.0], [1.0]])
    x1 = torch.tensor([[0.0], [1.0]])
    assert torch.equal(couple(x0, x1, "sinkhorn", gen(5))[0], couple(x0, x1, "sinkhorn", gen(5))[0])
    # symmetric 2 x 2 plan: p(x0 = 0 | x1 = 0) = 1 / (1 + exp(-|0 - 1|^2 / reg))
    hits = sum((couple(x0, x1, "sinkhorn", gen(k), reg=1.0)[0][0] == 0).item() for k in range(1000))
    expected = 1 / (1 + np.exp(-1.0))
    assert hits / 1000 == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 1000))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["ot", "sinkhorn"])
def test_values_that_are_not_finite_are_refused(method, bad):
    x0, x1 = torch.randn(8, 3), torch.randn(8, 3)
    x1[2, 1] = bad
    with pytest.raises(ValueError, match="x1 hold NaN or infinity"):
        couple(x0, x1, method)
    with pytest.raises(ValueError, match="x0 hold NaN or infinity"):
        couple(x1, x0, method)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "exact"}, "independent, ot, sinkhorn"),
        ({"x1": torch.zeros(3, 2)}, "cannot be paired"),
        ({"x0": torch.zeros(()), "x1": torch.zeros(())}, "cannot be paired"),
        ({"x1": torch.zeros(4, 3)}, "cannot be paired"),
        ({"y": torch.zeros(3)}, "one label for each"),
        ({"within_labels": True}, "needs labels"),
        ({"method": "sinkhorn", "reg": 0.0}, "must be positive"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        couple(**{"x0": torch.zeros(4, 2), "x1": torch.zeros(4, 2), **arguments})
