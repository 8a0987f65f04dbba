"""The objectives: torchcfm's regressions, IDFF's closed form, and each method's known velocity when trained."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    SchrodingerBridgeConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
)

from common.generate import velocity_of
from common.methods import METHODS, make_loss
from common.paths import BridgePath

# The closed forms: x0 ~ N(0, 1), x1 ~ N(M, S^2), one dimension, so that all fields are linear in x.
M, S, SIGMA = 1.5, 0.6, 0.4


def images(seed: int = 0, batch: int = 8) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x0, x1, noise = (torch.randn(batch, 3, 4, 4, generator=g) for _ in range(3))
    return x0, x1, torch.linspace(0.05, 0.95, batch), noise


def pairs(n: int, coupling: str = "independent") -> tuple[Tensor, Tensor, Tensor]:
    """x0, x1 and noise of the closed forms, (n, 1), float64, with their first two moments made exact."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(n, 3, generator=g, dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T  # uncorrelated, of variance one
    x0, x1, noise = z[:, :1], M + S * z[:, 1:2], z[:, 2:]
    return x0, M + S * x0 if coupling == "ot" else x1, noise


def variance(t: float, spread: float) -> float:
    """Of x_t = (1 - t) x0 + t x1 + spread e, independent ends."""
    return (1 - t) ** 2 + t**2 * S**2 + spread**2


def line(x: Tensor, t: float, slope: float) -> Tensor:
    """The velocity of a Gaussian that moves: M + slope (x - t M)."""
    return M + slope * (x - t * M)


def slope(method: str, t: float) -> float:
    """d u / d x of the marginal velocity, Cov(u_t, x_t) / Var(x_t)."""
    bridge = SIGMA * (t * (1 - t)) ** 0.5
    shrink = 1 - (1 - SIGMA) * t
    return {
        "cfm": (t * S**2 - (1 - t)) / variance(t, SIGMA),
        "rf": (t * S**2 - (1 - t)) / variance(t, 0),
        "otcfm": (S - 1) * (1 - t + t * S) / ((1 - t + t * S) ** 2 + SIGMA**2),
        "fm": (t * S**2 - (1 - SIGMA) * shrink) / (t**2 * S**2 + shrink**2),
        "sbcfm": (t * S**2 - (1 - t) + SIGMA**2 * (1 - 2 * t) / 2) / variance(t, bridge),
        "idff": (t * S**2 - (1 - t) + SIGMA**2 * (1 - 2 * t) / 2) / variance(t, bridge),
    }[method]


def exact_heads(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x1 | x] and sigma^2 / 2 times the score of IDFF's bridge between the Gaussians."""
    v = (1 - t) ** 2 + t**2 * S**2 + SIGMA**2 * t * (1 - t)
    return M + t * S**2 / v * (x - t * M), SIGMA**2 / 2 * -(x - t * M) / v


class Heads(nn.Module):
    """A linear network that takes a point (twice, for IDFF) and gives one or two heads a + b x."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, 2, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([w[0] + w[1] * x[:, :1] for w in self.weight], dim=1)


def train(net: nn.Module, loss) -> None:
    """Minimise a quadratic loss to the end."""
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=60, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


# ---- targets


@pytest.mark.parametrize("sigma", [0.05, 0.7])
@pytest.mark.parametrize(
    ("method", "matcher"),
    [
        ("cfm", ConditionalFlowMatcher),
        ("otcfm", ConditionalFlowMatcher),
        ("fm", TargetConditionalFlowMatcher),
        ("sbcfm", SchrodingerBridgeConditionalFlowMatcher),
        ("rf", lambda sigma: ConditionalFlowMatcher(sigma=0.0)),
    ],
)
def test_loss_is_the_squared_error_to_torchcfms_target_at_torchcfms_point(method, matcher, sigma):
    x0, x1, t, noise = images()
    theirs = matcher(sigma=sigma)
    xt = theirs.sample_xt(x0, x1, t, x0 if method == "fm" else noise)
    ut = theirs.compute_conditional_flow(x0, x1, t, xt)
    seen = []

    def net(x, times, y):
        seen.append((x, times, y))
        return 0.3 * x - 1

    y = torch.arange(8)
    value = make_loss(method, sigma)(net, x0, x1, t, noise, y)
    assert value.shape == (8,) and value.dtype == torch.float32
    torch.testing.assert_close(value, (0.3 * xt - 1 - ut).square().flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][0], xt, rtol=1e-5, atol=1e-6)
    assert len(seen) == 1 and seen[0][1] is t and seen[0][2] is y
    perfect = make_loss(method, sigma)(lambda x, times, y: ut, x0, x1, t, noise)
    assert perfect.max() < 1e-6


def test_idff_is_the_sum_of_its_two_terms():
    x0, x1, t, noise = images()
    sigma, weight = 0.3, 2.5
    spread = (sigma * (t * (1 - t)).sqrt())[:, None, None, None]
    xt = SchrodingerBridgeConditionalFlowMatcher(sigma=sigma).sample_xt(x0, x1, t, noise)

    def net(x, times, y):
        assert x.shape == (8, 6, 4, 4)
        torch.testing.assert_close(x[:, :3], xt)
        assert torch.equal(x[:, :3], x[:, 3:])
        return torch.cat([0.5 * x[:, :3], 0.1 * x[:, 3:]], dim=1)

    value = make_loss("idff", sigma, flow_weight=weight)(net, x0, x1, t, noise)
    data = (0.5 * xt - x1).square().flatten(1).mean(1)
    score = (2 * spread / sigma**2 * 0.1 * xt + noise).square().flatten(1).mean(1)
    torch.testing.assert_close(value, weight * data + score, rtol=1e-4, atol=1e-5)
    assert value.shape == (8,)
    torch.testing.assert_close(make_loss("idff", sigma)(net, x0, x1, t, noise), 2 * data + score)  # as published


@pytest.mark.parametrize("method", ["cfm", "otcfm", "fm", "sbcfm", "rf", "idff"])
def test_losses_are_finite_at_both_ends_of_time_and_float32_under_bf16(method):
    x0, x1, _, noise = images()
    heads = METHODS[method].heads

    def net(x, t, y):
        return torch.zeros(8, 3 * heads, 4, 4, dtype=torch.bfloat16)

    recipe = {"data_loss": "velocity", "score_target": "conditional", "score_weight": 0.1}
    for end, constants in itertools.product((0.0, 1.0), ({}, recipe)):
        value = make_loss(method, 0.2, **constants)(net, x0, x1, torch.full((8,), end), noise)
        assert value.isfinite().all() and value.dtype == torch.float32


# ---- closed forms


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", ["cfm", "otcfm", "fm", "sbcfm", "rf"])
def test_training_reaches_the_known_velocity(method, t):
    """Every method between two Gaussians, at three times; the moments are exact, so the minimiser is, too."""
    n = 2000
    x0, x1, noise = pairs(n, "ot" if method == "otcfm" else "independent")
    times = torch.full((n,), t, dtype=torch.float64)
    net = Heads()
    train(net, lambda: make_loss(method, SIGMA)(net, x0, x1, times, noise).double().mean())
    x = torch.linspace(-2, 3, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(net(x, times).detach(), line(x, t, slope(method, t)), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_idff_training_reaches_data_and_score(t):
    n = 2000
    x0, x1, noise = pairs(n)
    times = torch.full((n,), t, dtype=torch.float64)
    net = Heads(2)
    train(net, lambda: make_loss("idff", SIGMA)(net, x0, x1, times, noise).double().mean())
    x = torch.linspace(-2, 3, 11, dtype=torch.float64)[:, None]
    x1_hat, st = net(x, times).detach().chunk(2, dim=1)
    expected, score = exact_heads(x, torch.tensor(t))
    torch.testing.assert_close(x1_hat, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(st, score, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_exact_idff_heads_have_the_known_loss(t):
    """weight Var(x1 | x_t) + Var(noise | x_t)."""
    n, weight = 2000, 2.0
    x0, x1, noise = pairs(n)
    times = torch.full((n,), t, dtype=torch.float64)
    spread = SIGMA * (t * (1 - t)) ** 0.5
    v = variance(t, spread)
    least = weight * (S**2 - t**2 * S**4 / v) + 1 - spread**2 / v

    def net(x, times, y, shift=0.0):
        return torch.cat(exact_heads(x[:, :1], torch.tensor(t)), dim=1) + shift

    loss = make_loss("idff", SIGMA, flow_weight=weight)
    assert loss(net, x0, x1, times, noise).mean().item() == pytest.approx(least, rel=1e-4)
    assert loss(partial(net, shift=0.1), x0, x1, times, noise).mean().item() > least + 0.01


TIMES = torch.tensor([0.02, 0.3, 0.6, 0.9, 0.97], dtype=torch.float64)  # the last is nearer than LEAST_REST


def pairs_at_times(n: int = 200, coupling: str = "independent") -> tuple[Tensor, ...]:
    """x0, x1, t, noise: the same pairs at each of TIMES, so that the moments are exact at each."""
    x0, x1, noise = (x.repeat(len(TIMES), 1) for x in pairs(n, coupling))
    return x0, x1, TIMES.repeat_interleave(n), noise


class SlopeOfEachTime(nn.Module):
    """A data head linear in x with a slope of its own at each of TIMES, beside the exact score head."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(len(TIMES), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x, t = x[:, :1], t[:, None]
        slope = self.slope[torch.searchsorted(TIMES, t)]
        return torch.cat([M + slope * (x - t * M), exact_heads(x, t)[1]], dim=1)


@pytest.mark.parametrize("data_loss", ["data", "velocity"])
def test_both_errors_of_the_data_head_have_the_same_minimiser(data_loss):
    x0, x1, t, noise = pairs_at_times()
    net, loss = SlopeOfEachTime(), make_loss("idff", SIGMA, data_loss=data_loss)
    train(net, lambda: loss(net, x0, x1, t, noise).mean())
    v = (1 - TIMES) ** 2 + TIMES**2 * S**2 + SIGMA**2 * TIMES * (1 - TIMES)
    torch.testing.assert_close(net.slope.detach(), TIMES * S**2 / v, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("data_loss", ["data", "velocity"])
def test_the_weight_of_the_velocitys_error_on_a_network_that_cannot_fit_is_that_of_least_squares(data_loss):
    """One line a + b x for all times: the normal equations of the closed moments, weighted by 1 / max(1 - t, 0.05)^2.

    The weights differ by a factor of 384, and the lines with them.
    """
    x0, x1, t, noise = pairs_at_times()
    net, loss = Heads(2), make_loss("idff", SIGMA, data_loss=data_loss)
    train(net, lambda: loss(net, x0, x1, t, noise).mean())
    v = (1 - TIMES) ** 2 + TIMES**2 * S**2 + SIGMA**2 * TIMES * (1 - TIMES)
    weights = {"data": torch.ones(5).double(), "velocity": 1 / torch.tensor([0.98, 0.7, 0.4, 0.1, 0.05]).double() ** 2}

    def line(w: Tensor) -> Tensor:
        one, x, xx = w.sum(), (w * TIMES * M).sum(), (w * (v + TIMES**2 * M**2)).sum()
        return torch.linalg.solve(
            torch.stack([torch.stack([one, x]), torch.stack([x, xx])]),
            torch.stack([(w * M).sum(), (w * TIMES * (S**2 + M**2)).sum()]),
        )

    torch.testing.assert_close(net.weight[0].detach(), line(weights[data_loss]), rtol=2e-3, atol=2e-3)
    assert (line(weights["data"]) - line(weights["velocity"])).abs().min() > 0.2


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_conditional_target_has_the_known_smaller_loss(t):
    """weight Var(E[noise | x_t, x1] | x_t) = s^2 / ((1 - t)^2 + s^2) - s^2 / V, where the noise's is 1 - s^2 / V."""
    x0, x1, noise = pairs(2000)
    times, spread = torch.full((2000,), t, dtype=torch.float64), SIGMA * (t * (1 - t)) ** 0.5
    v, known = variance(t, spread), (1 - t) ** 2 + spread**2
    r = BridgePath(SIGMA).xt(x0, x1, times, noise) - t * x1
    torch.testing.assert_close(BridgePath(SIGMA).noise_mean(x0, times, noise), spread * r / known)

    def net(x, times, y):
        return torch.cat(exact_heads(x[:, :1], torch.tensor(t)), dim=1)

    losses = {
        target: make_loss("idff", SIGMA, flow_weight=0.0, score_target=target, score_weight=0.5)(
            net, x0, x1, times, noise
        )
        for target in ("noise", "conditional")
    }
    assert losses["noise"].mean().item() == pytest.approx(0.5 * (1 - spread**2 / v), rel=1e-4)
    assert losses["conditional"].mean().item() == pytest.approx(0.5 * spread**2 * (1 / known - 1 / v), rel=1e-4)
    assert losses["conditional"].mean() < losses["noise"].mean()


@pytest.mark.parametrize("coupling", ["independent", "ot"])
def test_both_targets_of_the_score_have_the_same_gradient_of_independent_pairs(coupling):
    x0, x1, t, noise = pairs_at_times(coupling=coupling)
    gradients = []
    for target in ("noise", "conditional"):
        net = Heads(2)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
        make_loss("idff", SIGMA, score_target=target)(net, x0, x1, t, noise).mean().backward()
        gradients.append(net.weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5) == (coupling == "independent")  # of others it is biased


@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 0.7, 0.97])
def test_idff_probability_flow_velocity_is_exact(t):
    """(x1_hat - x) / (1 - t) - st equals M + V'/(2 V) (x - t M), the velocity of the moving Gaussian."""
    x = torch.linspace(-3, 4, 15, dtype=torch.float64)[:, None]
    times = torch.full((15,), t, dtype=torch.float64)

    def net(pair, times, y):
        return torch.cat(exact_heads(pair[:, :1], times[:, None]), dim=1)

    torch.testing.assert_close(velocity_of(net, "idff")(x, times), line(x, t, slope("idff", t)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["cfm", "rf", "sbcfm", "idff"])
def test_the_known_velocity_is_half_the_growth_of_the_variance(method):
    """Another way to the same slopes: the continuity equation of a Gaussian gives V' / (2 V)."""
    for t in (0.2, 0.6):

        def v(time: Tensor) -> Tensor:
            spread2 = SIGMA**2 * (time * (1 - time) if method in ("sbcfm", "idff") else float(method == "cfm"))
            return (1 - time) ** 2 + time**2 * S**2 + spread2

        value, rate = torch.func.jvp(v, (torch.tensor(t).double(),), (torch.ones((), dtype=torch.float64),))
        assert slope(method, t) == pytest.approx(float(rate / (2 * value)), rel=1e-6)


# ---- names


def test_unknown_methods_and_bridges_without_a_spread_are_refused():
    with pytest.raises(ValueError, match="unknown method 'ddpm': choose one of cfm, .*idff"):
        make_loss("ddpm")
    for method in ("sbcfm", "idff"):
        with pytest.raises(ValueError, match=f"--method {method} needs --sigma > 0"):
            make_loss(method, 0.0)


def test_couplings_and_heads_are_those_of_the_papers():
    methods = ("cfm", "otcfm", "fm", "sbcfm", "rf", "idff")
    usual = ["independent", "ot", "independent", "sinkhorn", "independent", "ot"]
    assert [METHODS[m].coupling for m in methods] == usual
    assert [METHODS[m].heads for m in methods] == [1, 1, 1, 1, 1, 2]
