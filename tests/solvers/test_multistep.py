"""Multistep solvers: exact where they must be, order measured in float64, the exact flow of a Gaussian mixture."""

from __future__ import annotations

import math

import pytest
import torch

from common.networks import MLP
from common.solvers import GRIDS, CountNFE, integrate, time_grid
from common.solvers.multistep import IPNDM, MULTISTEP, adams_weights, unipc_weights
from problems import Gaussians, Mixture, Riccati, error_of, slope_of

LAMBDA = ("dpmpp2m", "dpmpp3m", "unipc2", "unipc3")

# What the table of docs/sampling.md says; on the grids that are not named as on the uniform one
SAID = {
    **{"euler": {"uniform": 1}, "midpoint": {"uniform": 2}, "heun": {"uniform": 2}, "rk4": {"uniform": 4}},
    **{"ab2": {"uniform": 2}, "ab4": {"uniform": 4}, "ipndm1": {"uniform": 1}, "ipndm2": {"uniform": 2}},
    **{"dpmpp2m": {"uniform": 2}, "dpmpp3m": {"uniform": 2, "cosine": 3}},
    **{"unipc2": {"uniform": 2, "cosine": 3}, "unipc3": {"uniform": 2, "cosine": 4}},
}


def graded(n, low, high):
    """Nodes whose first steps are so short that the low orders there do not show: u^2 between low and high."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 2
    return low + (high - low) * u


# ------------------------------------------------------------------------------------------------ order of convergence
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("method", "descending"),
    [(method, False) for method in SAID] + [(m, True) for m in ("euler", "midpoint", "heun", "rk4", "ab2", "ab4")],
)
def test_orders_are_as_said_on_every_grid(method, descending, grid):
    # rk4: before rounding shows; the grid whose steps differ most comes to its limit last
    counts, slopes = [48, 96, 192, 384] if method == "rk4" else [64, 128, 256, 512], []
    counts = counts if grid == "logsnr" else counts[:3]
    for problem in (Riccati(), Gaussians()):
        times = [time_grid(n, grid, torch.float64) for n in counts]
        errors = [error_of(problem, method, t.flip(0) if descending else t) for t in times]
        slopes.append(slope_of(counts, errors))
    said = SAID[method].get(grid, SAID[method]["uniform"])
    print(method, grid, slopes)
    # short of the limit: a log n, an order that falls from that within (0, 1) to 2, hardly any error left
    assert min(slopes) > said - (0.4 if method in (*LAMBDA, "ipndm2", "rk4") else 0.25)
    if grid == "uniform":  # what is said is not too little; on the others large errors hide those that fall slowest
        assert min(slopes) < said + 0.2


def test_ab4_starts_with_its_order_at_one_evaluation_a_step():
    """A velocity of t^2: Euler's first step misses h^3, which is made up for once three nodes are known."""
    seen = []

    def velocity(x, t):
        seen.append(t[0].item())
        return 3 * (t**2)[:, None] + 0 * x

    times = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    x = integrate(velocity, torch.zeros(1, 1, dtype=torch.float64), times, "ab4", trajectory=True)
    assert seen == pytest.approx(times[:-1].tolist()) and x[1] == 0  # the prediction
    torch.testing.assert_close(x[4:, 0, 0], times[4:] ** 3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "order"), [("ab2", 2), ("ab4", 4)])
@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
def test_adams_orders(method, order, descending):
    counts, errors = [32, 64, 128, 256], []
    for n in counts:
        times = graded(n, *((1.0, 0.0) if descending else (0.0, 1.0)))
        errors.append(error_of(Riccati(), method, times))
    assert slope_of(counts, errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    ("method", "order"), [("dpmpp2m", 2), ("dpmpp3m", 3), ("unipc2", 3), ("unipc3", 4)], ids=lambda v: str(v)
)
def test_orders_in_log_snr(method, order):
    # UniPC of order p with its corrector has order p + 1.
    counts, errors = [128, 256, 512], []  # with fewer steps some errors change their sign
    for n in counts:
        errors.append(error_of(Gaussians(), method, torch.sigmoid(graded(n, -3.0, 3.0))))
    assert slope_of(counts, errors) == pytest.approx(order, abs=0.35)


def test_adams_weights_integrate_polynomials():
    past, s = (0.5, 0.3, 0.25, 0.1), 0.9
    for k in range(1, 5):
        weights = adams_weights(past[:k], s)
        for degree in range(k):
            exact = (s ** (degree + 1) - past[0] ** (degree + 1)) / (degree + 1)
            assert sum(w * p**degree for w, p in zip(weights, past)) == pytest.approx(exact, rel=1e-10)
    assert adams_weights((1.0, 0.0), 2.0) == pytest.approx([1.5, -0.5])
    assert adams_weights((3.0, 2.0, 1.0, 0.0), 4.0) == pytest.approx(IPNDM[4])


@pytest.mark.parametrize("order", IPNDM)
def test_ipndm_is_exact_for_polynomial_noise_on_even_sigmas(order):
    # e = sigma^(order - 1), whatever x: y = x / t gains the integral of a polynomial. sigma falls from 4 to 1 evenly.
    sigma = torch.linspace(4, 1, 7, dtype=torch.float64)
    times = 1 / (1 + sigma)

    def velocity(x, t):
        t = t[:, None]
        return (x - ((1 - t) / t) ** (order - 1)) / t

    x0 = torch.tensor([[0.3]], dtype=torch.float64)
    y = (integrate(velocity, x0, times, f"ipndm{order}", trajectory=True).squeeze() / times).diff()
    exact = (sigma**order / order).diff()
    torch.testing.assert_close(y[order - 1 :], exact[order - 1 :], rtol=1e-10, atol=1e-12)
    if order > 1:  # the start has lower orders
        assert (y[0] - exact[0]).abs() > 1e-3


def test_ipndm1_is_euler():
    problem, times = Gaussians(), time_grid(9, "edm", torch.float64)
    a, b = (integrate(problem.velocity, problem.start, times, m, trajectory=True) for m in ("ipndm1", "euler"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_unipc_weights_of_even_steps():
    # With steps of equal size and h -> 0 the corrector of order 2 is Adams-Moulton's: (5, 8, -1) / 12.
    old, new = unipc_weights((-1.0,), 1e-3, corrector=True)
    # D_0 + old (D_old - D_0) / (-1) + new (D' - D_0) against (5 D' + 8 D_0 - D_old) / 12
    assert (new, -old) == pytest.approx((5 / 12, -1 / 12), abs=1e-3)
    assert unipc_weights((-1.0,), 0.5, corrector=False) == [0.5] == unipc_weights((), 0.5, corrector=True)


# -------------------------------------------------------------------------------------------------- the exact mixture
@pytest.mark.parametrize("method", MULTISTEP)
def test_all_agree_on_a_gaussian_mixture(method):
    mixture, g = Mixture(), torch.Generator().manual_seed(0)
    x0 = torch.randn(64, 2, generator=g, dtype=torch.float64)
    exact = integrate(mixture.velocity, x0, [0.0, 1.0], "dopri5", rtol=1e-10, atol=1e-10)

    def rms(n, solver, grid):
        x = integrate(mixture.velocity, x0, time_grid(n, grid, torch.float64), solver)
        return (x - exact).square().mean().sqrt().item()

    grid = "logsnr" if method in LAMBDA else "uniform"
    coarse, fine = rms(20, method, grid), rms(320, method, grid)
    if method == "ipndm1":  # Euler's method
        assert fine < 0.02 and fine > 4e-4
    elif method.startswith("ipndm"):  # weights of even sigmas on even times: order 1, but closer than Euler's
        assert fine < 0.5 * rms(320, "euler", grid)
    else:
        assert fine < 4e-4 and fine < coarse / 30
    if method in ("unipc3", "ab4"):
        assert fine < 5e-5


def test_higher_orders_pay_on_the_mixture():
    mixture = Mixture()
    x0 = torch.randn(256, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = integrate(mixture.velocity, x0, [0.0, 1.0], "dopri5", rtol=1e-9, atol=1e-9)
    grid = time_grid(60, "logsnr", torch.float64)
    rms = {
        m: (integrate(mixture.velocity, x0, grid, m) - exact).square().mean().sqrt().item()
        for m in ("euler", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3")
    }
    assert rms["euler"] > 2 * rms["dpmpp2m"] > 3 * rms["dpmpp3m"] and rms["dpmpp2m"] > 3 * rms["unipc3"]


# ------------------------------------------------------------------------------------------------- evaluations and ends
@pytest.mark.parametrize("method", MULTISTEP)
def test_one_evaluation_a_step_at_the_nodes(method):
    seen = []
    net = MLP(2)

    def velocity(x, t):
        seen.append(t[0].item())
        return net(x, t)

    count = CountNFE(velocity)
    times = time_grid(7)
    assert integrate(count, torch.randn(5, 2), times, method).shape == (5, 2)
    assert count.nfe == 7 and count.rows == 35
    assert seen == pytest.approx(times[:-1].tolist())


@pytest.mark.parametrize("grid", ["uniform", "edm", "logsnr", "power"])
@pytest.mark.parametrize("method", MULTISTEP)
def test_ends_are_finite_in_both_directions(method, grid):
    problem = Gaussians()
    for n in (1, 2, 3, 5, 40):
        times = time_grid(n, grid, torch.float64)
        there = integrate(problem.velocity, problem.start, times, method)
        back = integrate(problem.velocity, problem.exact(1), times.flip(0), method)
        assert torch.isfinite(there).all() and torch.isfinite(back).all()
    if not method.startswith("ipndm"):
        torch.testing.assert_close(there, problem.exact(1), rtol=0, atol=0.05)
        torch.testing.assert_close(back, problem.start, rtol=0, atol=0.3)


@pytest.mark.parametrize("method", MULTISTEP)
def test_a_first_step_from_noise_is_euler(method):
    problem, times = Gaussians(), time_grid(1, dtype=torch.float64)
    euler = integrate(problem.velocity, problem.start, times)
    torch.testing.assert_close(integrate(problem.velocity, problem.start, times, method), euler)


@pytest.mark.parametrize("method", [*LAMBDA, "ipndm3"])
def test_times_outside_the_unit_interval_are_named(method):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        integrate(lambda x, t: x, torch.ones(1, 1), [0.0, 1.0, 2.0], method)
    assert math.isfinite(integrate(lambda x, t: x, torch.ones(1, 1), [0.0, 1.0, 2.0], "ab4").item())
