"""Adaptive grids: costs against their definitions, the programme against brute force, grids that must come out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from common.solvers import integrate
from common.solvers.grids import adaptive_grid, partition, segment_costs, time_grid


def walk(nodes=7, batch=3, seed=0):
    """Random trajectories on uneven times."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.rand(nodes - 1, generator=g, dtype=torch.float64) + 0.2
    times = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0) / steps.sum()])
    return torch.randn(nodes, batch, 2, generator=g, dtype=torch.float64).cumsum(0), times


@pytest.mark.parametrize("flip", [False, True], ids=["up", "down"])
def test_costs_are_their_definitions(flip):
    x, t = walk()
    if flip:
        x, t = x.flip(0), t.flip(0)
    v = x.diff(dim=0) / t.diff()[:, None, None]
    straight, euler = segment_costs(x, t, "straightness"), segment_costs(x, t, "euler")
    for i, j in itertools.combinations(range(len(t)), 2):
        chord = (x[j] - x[i]) / (t[j] - t[i])
        want = sum(abs(t[s + 1] - t[s]) * (chord - v[s]).square().sum(1).mean() for s in range(i, j))
        assert straight[i, j] == pytest.approx(want.item(), rel=1e-9, abs=1e-9)
        missed = x[j] - x[i] - (t[j] - t[i]) * v[i]
        assert euler[i, j] == pytest.approx(missed.square().mean().sqrt().item(), rel=1e-6, abs=1e-6)
    assert np.isinf(straight[np.tril_indices(len(t))]).all() and np.isinf(euler[np.tril_indices(len(t))]).all()


@pytest.mark.parametrize(("n_segments", "shortest"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (6, 1)])
def test_partition_is_the_best_of_all(n_segments, shortest):
    cost = np.triu(np.random.default_rng(n_segments).random((8, 8)), 1)
    cost[np.tril_indices(8)] = np.inf

    def total(path):
        return sum(cost[i, j] for i, j in itertools.pairwise(path))

    every = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), n_segments - 1)]
    every = [p for p in every if all(j - i >= shortest for i, j in itertools.pairwise(p))]
    found = partition(cost, n_segments, shortest)
    assert all(j - i >= shortest for i, j in itertools.pairwise(found))
    assert total(found) == pytest.approx(min(map(total, every)))


def test_a_curve_gets_its_nodes_where_it_bends():
    # x(t) = |t - 1/2| scaled: two straight pieces, so the one inner node must be the corner
    times = torch.linspace(0, 1, 41)
    x = (times - 0.5).abs()[:, None, None].repeat(1, 2, 3)
    for cost in ("euler", "straightness"):
        torch.testing.assert_close(adaptive_grid(x, times, 2, cost).float(), torch.tensor([0, 0.5, 1]))
    # x(t) = t^4 bends late, and its best Euler grid is finer there
    grid = adaptive_grid((times**4)[:, None, None], times, 4)
    assert (grid.diff() > 0).all() and grid[1] > 0.35 and grid[0] == 0 and grid[-1] == 1


def test_euler_on_the_adaptive_grid_beats_the_closed_forms_where_it_should():
    def velocity(x, t):  # independent of x: the missed steps add up, and their sum is what the programme minimises
        return (4 * t**3 + 8 * (1 - t) ** 7)[:, None].expand_as(x)

    fine = time_grid(400, dtype=torch.float64)
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    trajectory = integrate(velocity, x0, fine, "rk4", trajectory=True)

    def sum_of_missed(times):
        x = torch.stack([trajectory[(fine - t).abs().argmin()] for t in times])
        v = torch.stack([velocity(a, t.expand(2)) for a, t in zip(x[:-1], times)])
        return (x.diff(dim=0) - times.diff()[:, None, None] * v)[:, 0].abs().sum()

    ours = sum_of_missed(adaptive_grid(trajectory, fine, 6))
    others = [sum_of_missed(time_grid(6, kind, torch.float64)) for kind in ("uniform", "cosine", "power", "edm")]
    assert ours < 0.97 * min(others)


def test_five_hundred_nodes():
    grid = adaptive_grid(torch.randn(501, 16, 8).cumsum(0), torch.linspace(0, 1, 501), 8, "straightness", shortest=5)
    assert len(grid) == 9 and grid.diff().min() > 0.0099


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition(np.zeros((5, 5)), 0), "1 to 4"),
        (lambda: partition(np.zeros((5, 5)), 3, shortest=2), "1 to 2"),
        (lambda: segment_costs(torch.zeros(3, 2), [0.0, 1.0]), "need"),
        (lambda: segment_costs(torch.zeros(2, 2), [0.0, 1.0], "length"), "euler, straightness"),
        (lambda: adaptive_grid(torch.zeros(3, 2, 1), [0.0, 1.0, 0.5], 2), "ascend or descend"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
