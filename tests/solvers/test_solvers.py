"""Solvers: order of convergence measured in float64, evaluations counted, SDEs against known marginals."""

from __future__ import annotations

import inspect
import math
import sys

import pytest
import torch

from common.cli.configs import SampleConfig
from common.generate import Sampler
from common.networks import MLP
from common.solvers import (
    GRIDS,
    SOLVERS,
    CountNFE,
    dopri5,
    euler_maruyama,
    idff_sampler,
    integrate,
    time_grid,
    torchdyn_solve,
)
from problems import Bridge, Gaussians, Mixture, Riccati, error_of, slope_of

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2, "dpmpp2m": 2}
COST = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1, "dpmpp2m": 1}


# ------------------------------------------------------------------------------------------------ order of convergence
@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("problem", [Riccati(), Gaussians()], ids=["riccati", "gaussians"])
@pytest.mark.parametrize("method", ORDERS)
def test_order_of_convergence(method, problem, descending):
    counts, errors = [64, 128, 256, 512], []
    for n in counts:
        times = time_grid(n, dtype=torch.float64)
        errors.append(error_of(problem, method, times.flip(0) if descending else times))
    # The third-order error of midpoint vanishes on every Gaussian path, whose variance is quadratic in t.
    order = 3 if method == "midpoint" and isinstance(problem, Gaussians) else ORDERS[method]
    # dpmpp2m weighs by log(t / (1 - t)), whose steps near 0 and 1 stay long however many there are: 2 up to log n.
    slack = 0.3 if method == "dpmpp2m" else 0.2 if method == "rk4" else 0.05
    assert slope_of(counts, errors) == pytest.approx(order, abs=slack)


@pytest.mark.parametrize("method", ["ab2", "dpmpp2m"])
def test_multistep_keeps_its_order_on_uneven_steps(method):
    counts, errors = [32, 64, 128, 256], []
    for n in counts:
        steps = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(n // 2)  # weights of even steps would give order 1
        u = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0) / steps.sum()])
        times = torch.sigmoid(-3 + 7 * u)
        errors.append(error_of(Gaussians(), method, times))
    assert slope_of(counts, errors) == pytest.approx(2, abs=0.06)


def test_dopri5_meets_its_tolerance_inside_the_times():
    problem, errors, calls, seen = Gaussians(), [], [], []

    def velocity(x, t):
        seen.append(t[0].item())
        return problem.velocity(x, t)

    for tol in (1e-3, 1e-6, 1e-9):
        count = CountNFE(velocity)
        x = dopri5(count, problem.start, [0.0, 1.0], rtol=tol, atol=tol)
        errors.append((x - problem.exact(1)).abs().max().item())
        calls.append(count.nfe)
        assert errors[-1] < 10 * tol
    assert calls == sorted(calls) and calls[0] < calls[-1]
    assert 0 <= min(seen) and max(seen) <= 1
    x = dopri5(problem.velocity, problem.exact(1), [1.0, 0.4, 0.0], rtol=1e-9, atol=1e-9, trajectory=True)
    torch.testing.assert_close(x[1], problem.exact(0.4), rtol=0, atol=1e-6)
    torch.testing.assert_close(x[2], problem.start, rtol=0, atol=1e-7)
    assert integrate(problem.velocity, problem.start, time_grid(3), "dopri5", trajectory=True).shape == (4, 4, 1)


def test_dopri5_steps_each_sample_for_itself():
    """Alone or among others, and against another package's at the same tolerance."""
    from torchdiffeq import odeint

    problem, x0 = Mixture(), torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nodes = [0.0, 0.35, 0.6, 1.0]
    exact = dopri5(problem.velocity, x0, nodes, 1e-12, 1e-12, trajectory=True)
    for tol in (1e-3, 1e-5, 1e-7):
        path = dopri5(problem.velocity, x0, nodes, tol, tol, trajectory=True)
        alone = torch.cat([dopri5(problem.velocity, x[None], nodes, tol, tol, True) for x in x0], dim=1)
        torch.testing.assert_close(path, alone, rtol=0, atol=1e-14)
        one = CountNFE(problem.velocity)
        for k in (0, 7):
            one.reset()
            dopri5(one, x0[k : k + 1], [0.0, 1.0], tol, tol)
            count = CountNFE(problem.velocity)
            theirs = odeint(
                lambda t, x: count(x, t.expand(1)), x0[k : k + 1], torch.tensor([0.0, 1.0]).double(),
                rtol=tol, atol=tol, method="dopri5", options={"step_t": torch.tensor([1.0]).double()},
            )  # fmt: skip
            assert one.nfe <= 1.5 * count.nfe
            bound = max(20 * tol, 3 * (theirs[-1] - exact[-1, k]).abs().max().item())
            assert (path[-1, k] - exact[-1, k]).abs().max() < bound
        assert (path - exact).abs().max() < 200 * tol


def test_dopri5s_tolerance_is_that_of_the_flags():
    defaults = [inspect.signature(f).parameters for f in (dopri5, integrate, Sampler)]
    assert {p[name].default for p in defaults for name in ("rtol", "atol")} == {SampleConfig().rtol} == {1e-5}


def test_dopri5_reports_a_velocity_that_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        dopri5(lambda x, t: x / 0, torch.ones(2, 1), [0.0, 1.0])
    with pytest.raises(ValueError, match="tolerances"):
        dopri5(Riccati().velocity, torch.ones(2, 1), [0.0, 1.0], rtol=0)


def test_torchdyn_agrees_with_ours(capsys):
    problem, times = Riccati(), time_grid(20, dtype=torch.float64)
    for nodes in (times, times.flip(0)):
        start = problem.exact(nodes[0].item())
        ours = integrate(problem.velocity, start, nodes, "euler", trajectory=True)
        theirs = torchdyn_solve(problem.velocity, start, nodes, trajectory=True)
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    count = CountNFE(problem.velocity)
    x = integrate(count, problem.start, times, "torchdyn")
    torch.testing.assert_close(x, integrate(problem.velocity, problem.start, times), rtol=1e-10, atol=1e-10)
    assert count.nfe == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("grid", GRIDS)
def test_torchdyn_takes_steps_of_any_length(grid):
    """Its own check takes neighbouring times of the cosine and power grids with 400 to 500 steps for one."""
    problem, times = Riccati(), time_grid(500, grid)  # float32, as samplers have it
    ours = integrate(problem.velocity, problem.start, times)
    theirs = torchdyn_solve(problem.velocity, problem.start, times)
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)


def test_torchdyn_is_not_imported_after_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchdyn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="tensorflow"):
        torchdyn_solve(Riccati().velocity, torch.ones(1, 1), [0.0, 1.0])


# -------------------------------------------------------------------------------------------- evaluations, ends, dtypes
@pytest.mark.parametrize("method", COST)
def test_evaluations_are_counted_exactly(method):
    net = CountNFE(MLP(2))
    x = integrate(net, torch.randn(5, 2), time_grid(7), method)
    assert net.nfe == 7 * COST[method] and net.rows == 5 * net.nfe and x.shape == (5, 2)
    net.reset()
    integrate(net, torch.randn(5, 2), time_grid(7), method, final_euler=True)
    assert net.nfe == 6 * COST[method] + 1
    net.reset()
    integrate(net, torch.randn(5, 2), time_grid(7).flip(0), method, final_euler=True)  # ends at t = 0: no such rule
    assert net.nfe == 7 * COST[method]


def test_rows_give_evaluations_per_sample_under_guidance():
    net = CountNFE(MLP(2))
    for batch in (4, 4, 2):
        integrate(lambda x, t: net(torch.cat([x, x]), torch.cat([t, t]))[: len(x)], torch.randn(batch, 2), time_grid(3))
    assert net.nfe == 9 and net.per_sample(10) == 6


@pytest.mark.parametrize("method", ["midpoint", "heun", "rk4"])
def test_final_euler_step(method):
    problem, seen, times = Gaussians(), [], time_grid(5, dtype=torch.float64)

    def velocity(x, t):
        seen.append(t[0].item())
        return problem.velocity(x, t)

    x = integrate(velocity, problem.start, times, method, final_euler=True)
    inner = integrate(problem.velocity, problem.start, times[:-1], method)
    torch.testing.assert_close(x, integrate(problem.velocity, inner, times[-2:], "euler"), rtol=0, atol=0)
    assert max(seen) == times[-2]


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("method", ["euler", "ab2", "dpmpp2m"])
def test_nothing_divides_by_zero_at_the_ends(method, kind):
    target = torch.tensor([[0.7, -0.2]])

    def velocity(x, t):  # of a data set with one point: infinite at t = 1
        assert (t < 1).all()
        return (target - x) / (1 - t)[:, None]

    x0 = torch.tensor([[2.0, -3.0], [0.1, 0.4]])
    for n in (1, 2, 3, 10):
        x = integrate(velocity, x0, time_grid(n, kind), method)
        assert torch.isfinite(x).all()
        if method != "ab2":
            torch.testing.assert_close(x, target.expand(2, 2), rtol=0, atol=1e-5)
        back = integrate(Gaussians().velocity, x0[:, :1], time_grid(n, kind).flip(0), method)
        assert torch.isfinite(back).all()


def test_dpmpp2m_is_its_published_formula():
    problem, (t0, t1, t2) = Gaussians(), (0.2, 0.5, 0.7)
    data = [
        lambda x, t=t: x + (1 - t) * problem.velocity(x, torch.full((4,), t, dtype=torch.float64)) for t in (t0, t1)
    ]
    x1 = (1 - t1) / (1 - t0) * problem.start + (t1 - t0) / (1 - t0) * data[0](problem.start)
    h0, h1 = (math.log(b / (1 - b)) - math.log(a / (1 - a)) for a, b in ((t0, t1), (t1, t2)))
    d0, d1 = data[0](problem.start), data[1](x1)
    x2 = (1 - t2) / (1 - t1) * x1 + (t2 - t1) / (1 - t1) * (d1 + (d1 - d0) / (2 * h0 / h1))
    ours = integrate(problem.velocity, problem.start, [t0, t1, t2], "dpmpp2m")
    torch.testing.assert_close(ours, x2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", SOLVERS)
def test_state_is_float32_whatever_the_network_computes_in(method):
    x0 = torch.linspace(-1, 1, 6).view(3, 2)
    half = integrate(lambda x, t: (-x).bfloat16(), x0, time_grid(4), method)
    assert half.dtype == torch.float32
    raised = integrate(lambda x, t: -x, x0.bfloat16(), time_grid(4), method, trajectory=True)
    assert raised.dtype == torch.float32 and raised.shape == (5, 3, 2)
    assert torch.equal(raised[0], x0.bfloat16().float())
    assert torch.equal(raised[-1], integrate(lambda x, t: -x, x0.bfloat16(), time_grid(4), method))


# -------------------------------------------------------------------------------------------------------- grids, errors
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_time_grid_ascends_from_0_to_1(kind, n):
    times = time_grid(n, kind)
    assert times.shape == (n + 1,) and times.dtype == torch.float32
    assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()


def test_time_grid_values():
    torch.testing.assert_close(time_grid(4), torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    assert time_grid(4, "cosine")[1].item() == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert time_grid(2, "power")[1] == pytest.approx(0.75)
    log_sigma = (1 / time_grid(8, "logsnr", torch.float64) - 1).log()[1:-1]
    torch.testing.assert_close(log_sigma.diff(), torch.full((6,), math.log(0.002 / 80) / 8).double())
    sigma = 1 / time_grid(2, "edm", torch.float64)[1] - 1
    assert sigma.item() == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_grid(0), "n_steps is 0"),
        (lambda: time_grid(5, "linear"), "uniform, cosine, power, logsnr, edm"),
        (lambda: integrate(lambda x, t: x, torch.ones(1, 1), time_grid(2), "rk5"), ", ".join(SOLVERS)),
        (lambda: integrate(lambda x, t: x, torch.ones(1, 1), [0.0]), "at least 2"),
        (lambda: integrate(lambda x, t: x, torch.ones(1, 1), [0.0, 0.5, 0.5, 1.0]), "strictly"),
        (lambda: integrate(lambda x, t: x, torch.ones(1, 1), [0.0, float("nan")]), "strictly"),
        (lambda: integrate(lambda x, t: x, torch.tensor(1.0), [0.0, 1.0]), "batch"),
        (lambda: integrate(lambda x, t: x, torch.ones(1, 1), [0.0, 2.0], "dpmpp2m"), "0, 1"),
        (lambda: idff_sampler(lambda x, t: (x, x), torch.ones(1, 1), [0.0, 1.0], 2.5), "sigma is 2.5"),
        (lambda: idff_sampler(lambda x, t: (x, x), torch.ones(1, 1), [1.0, 0.0], 0.4), "noise to data"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------------------- SDEs and IDFF
def randn(seed):
    def noise(i, x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 * seed + i), dtype=x.dtype)

    return noise


def test_euler_maruyama_matches_ornstein_uhlenbeck():
    n, h, size = 20, 0.05, 100_000
    net = CountNFE(lambda x, t: -x)
    x = euler_maruyama(net, math.sqrt(2), torch.full((size, 1), 2.0), [h * i for i in range(n + 1)], randn(1))
    mean, variance = 2.0, 0.0
    for _ in range(n):  # the scheme's own moments, exactly
        mean, variance = (1 - h) * mean, (1 - h) ** 2 * variance + 2 * h
    assert net.nfe == n
    assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / size))
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / size))
    assert variance == pytest.approx(1 - math.exp(-2 * n * h), rel=0.05)


def test_euler_maruyama_repeats_and_takes_a_function_of_time():
    x = torch.ones(3, 2)
    path = euler_maruyama(lambda x, t: 0 * x, lambda t: 2 * t, x, [0.0, 0.5, 1.0], randn(3), trajectory=True)
    assert torch.equal(path[1], x)  # no noise at t = 0
    torch.testing.assert_close(path[2], x + 1.0 * math.sqrt(0.5) * randn(3)(1, x))
    again = euler_maruyama(lambda x, t: 0 * x, lambda t: 2 * t, x, [0.0, 0.5, 1.0], randn(3))
    assert torch.equal(again, path[2])


def test_idff_bridge_sde_and_ode_have_the_same_marginals():
    """Drift (x1_hat - x) / (1 - t) with diffusion sigma, and less st without noise: N(mean, variance) at each t."""
    bridge, size, times = Bridge(), 50_000, time_grid(100, dtype=torch.float64)
    x0 = torch.randn(size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def drift(x, t):
        return (bridge.heads(x, t)[0] - x) / (1 - t)[:, None]

    def velocity(x, t):
        return drift(x, t) - bridge.heads(x, t)[1]

    sde = euler_maruyama(drift, bridge.sigma, x0, times, randn(2), trajectory=True)
    ode = integrate(velocity, x0, times, "heun", trajectory=True, final_euler=True)
    for path in (sde, ode):
        for i in (25, 50, 75, 100):
            t = times[i].item()
            assert path[i].mean().item() == pytest.approx(bridge.mean(t), abs=0.02)
            assert path[i].var().item() == pytest.approx(bridge.variance(t), rel=0.04)


def test_idff_heads_give_the_probability_flow():
    bridge = Bridge()
    x, t = torch.randn(64, 1, dtype=torch.float64), torch.rand(64, dtype=torch.float64) * 0.99
    x1_hat, st = bridge.heads(x, t)
    torch.testing.assert_close((x1_hat - x) / (1 - t)[:, None] - st, bridge.velocity(x, t), rtol=1e-9, atol=1e-9)


def test_idff_sampler_is_its_published_formula():
    bridge, sigma, times = Bridge(), 0.4, [0.0, 0.3, 0.8, 1.0]
    for noise in (None, randn(4)):
        x = bridge.start
        for i in range(3):
            t, dt = times[i], times[i + 1] - times[i]
            x1_hat, st = bridge.heads(x, torch.full((4,), t, dtype=torch.float64))
            spread = math.sqrt(t * (1 - t))
            drift = math.sqrt(1 - sigma**2 * t * (1 - t)) * (x1_hat - x) / (1 - t) + st * sigma * spread
            x_next = x + dt * (x1_hat - x if i == 0 else drift)
            x = x_next + (sigma**2 * spread * math.sqrt(dt) * noise(i, x) if noise else 0)
        heads = CountNFE(bridge.heads)
        ours = idff_sampler(heads, bridge.start, times, sigma, noise)
        assert heads.nfe == 3
        torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_idff_sampler_without_sigma_is_euler():
    bridge = Bridge()
    ours = idff_sampler(bridge.heads, bridge.start, time_grid(10), 0.0)
    plain = integrate(lambda x, t: (bridge.heads(x, t)[0] - x) / (1 - t)[:, None], bridge.start, time_grid(10))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------- MLP
def test_mlp_is_the_published_network_and_takes_labels():
    plain = MLP(2)
    assert sum(p.numel() for p in plain.parameters()) == (3 * 64 + 64) + 2 * (64 * 64 + 64) + (64 * 2 + 2)
    x = torch.randn(6, 2)
    assert not torch.equal(plain(x, torch.zeros(6)), plain(x, torch.ones(6)))
    assert torch.equal(plain(x, torch.tensor(0.5)), plain(x, torch.full((6,), 0.5)))
    net, t, y = MLP(2, num_classes=3, out_dim=4), torch.rand(6), torch.tensor([0, 1, 2, 0, 1, 2])
    assert net(x, t, y).shape == (6, 4)
    assert not torch.equal(net(x, t, y), net(x, t, (y + 1) % 3))
    assert torch.equal(net(x, t), net(x, t, torch.full((6,), 3)))
    with pytest.raises(ValueError, match="at least 1"):
        MLP(0)
