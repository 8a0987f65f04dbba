"""Probability paths: the velocity is the derivative of the path, and both are torchcfm's."""

from __future__ import annotations

import pytest
import torch
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
    SchrodingerBridgeConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
)

from common.paths import BridgePath, LinearPath, LipmanPath, expand

PATHS = [LinearPath(0.0), LinearPath(0.3), LipmanPath(0.0), LipmanPath(0.1), BridgePath(0.2), BridgePath(1.0)]
SHAPES = [(6, 1), (6, 2), (6, 3, 4, 4)]


def points(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x0, x1, noise of the shape, and one time per row, well inside (0, 1); float64."""
    g = torch.Generator().manual_seed(seed)
    x0, x1, noise = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    return x0, x1, noise, torch.linspace(0.03, 0.97, shape[0], dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_velocity_is_the_time_derivative_of_the_point(path, shape):
    x0, x1, noise, t = points(shape)
    xt, derivative = torch.func.jvp(lambda s: path.xt(x0, x1, s, noise), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.ut(x0, x1, t, xt), derivative, rtol=1e-6, atol=1e-6)
    assert xt.shape == shape


@pytest.mark.parametrize("path", [p for p in PATHS if p.sigma > 0], ids=repr)
def test_velocity_field_follows_theorem_3_at_points_off_the_sampled_one(path):
    """u(x) = spread' / spread (x - mean) + mean'; LipmanPath gives it only at the path's own point."""
    x0, x1, noise, t = points((6, 2))
    ones = torch.ones_like(t)
    mean, mean_rate = torch.func.jvp(lambda s: path.mean(x0, x1, s), (t,), (ones,))
    spread, spread_rate = torch.func.jvp(path.spread, (t,), (ones,))
    own = isinstance(path, LipmanPath)
    x = path.xt(x0, x1, t, noise) if own else mean + noise
    field = expand(spread_rate / spread, x) * (x - mean) + mean_rate
    torch.testing.assert_close(path.ut(x0, x1, t, x), field, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_ends_of_the_path(path):
    x0, x1, noise, _ = points((6, 2))
    zeros, ones = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    constant = path.sigma if isinstance(path, LinearPath) else 0.0
    torch.testing.assert_close(path.xt(x0, x1, zeros, noise), x0 + constant * noise)
    if isinstance(path, LipmanPath):
        torch.testing.assert_close(path.xt(x0, x1, ones, noise), x1 + path.sigma * x0)
    else:
        torch.testing.assert_close(path.xt(x0, x1, ones, noise), x1 + constant * noise)
    for t in (zeros, ones):
        assert path.ut(x0, x1, t, path.xt(x0, x1, t, noise)).isfinite().all()


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_points_have_the_mean_and_spread_that_the_path_states(path):
    """Over the noise (LipmanPath: over x0, its noise) at fixed ends."""
    g = torch.Generator().manual_seed(0)
    n, t = 200_000, 0.7
    draw = torch.randn(n, 1, generator=g)
    x0 = draw if isinstance(path, LipmanPath) else torch.full((n, 1), -1.0)
    times = torch.full((n,), t)
    x = path.xt(x0, torch.full((n, 1), 2.0), times, draw)
    mean = 2.0 * t if isinstance(path, LipmanPath) else -1.0 * (1 - t) + 2.0 * t
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(path.spread(times[:1]).item(), abs=0.01)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("make", "matcher"),
    [
        (LinearPath, ConditionalFlowMatcher),
        (LinearPath, ExactOptimalTransportConditionalFlowMatcher),  # the same path, on pairs that are fixed here
        (LipmanPath, TargetConditionalFlowMatcher),
        (BridgePath, SchrodingerBridgeConditionalFlowMatcher),
    ],
)
def test_points_and_targets_equal_torchcfm(make, matcher, shape, sigma):
    x0, x1, noise, t = points(shape)
    theirs, ours = matcher(sigma=sigma), make(sigma)
    epsilon = x0 if make is LipmanPath else noise  # torchcfm draws Lipman's noise anew and leaves x0 unused
    xt = theirs.sample_xt(x0, x1, t, epsilon)
    torch.testing.assert_close(ours.xt(x0, x1, t, noise), xt)
    torch.testing.assert_close(ours.ut(x0, x1, t, xt), theirs.compute_conditional_flow(x0, x1, t, xt))
    torch.testing.assert_close(ours.mean(x0, x1, t), theirs.compute_mu_t(x0, x1, t))


def test_rectified_flow_is_the_line_itself_and_needs_no_noise():
    x0, x1, noise, t = points((6, 2))
    theirs = ConditionalFlowMatcher(sigma=0.0)
    xt = LinearPath().xt(x0, x1, t, None)
    torch.testing.assert_close(xt, theirs.sample_xt(x0, x1, t, torch.randn_like(x0)))
    assert torch.equal(LinearPath().ut(x0, x1, t, xt), x1 - x0)
    assert torch.equal(LinearPath().xt(x0, x1, t, noise), xt) and torch.equal(LinearPath(0.3).xt(x0, x1, t, None), xt)


def test_expand_makes_times_multiply_rows():
    t = torch.tensor([1.0, 2.0])
    assert expand(t, torch.zeros(2, 3, 4, 5)).shape == (2, 1, 1, 1)
    assert torch.equal(expand(t, torch.ones(2, 3)) * torch.ones(2, 3), torch.tensor([[1.0] * 3, [2.0] * 3]))
