"""Tensor-train velocities: frames, flows with known velocities and densities, reflow and distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from common.solvers import CountNFE, integrate, time_grid
from ttflow import draws
from ttflow import recflow as rf
from ttflow.datasets import Data
from ttflow.experiment import Fitting, plan
from ttflow.options import Options
from ttflow.tt import SeparateTT

F64 = torch.float64


def seeded(k=0):
    return torch.Generator().manual_seed(k)


def normal_numbers(*shape, k=0):
    return torch.randn(*shape, generator=seeded(k), dtype=F64)


CENTRE, VARIANCE = 1.2, 0.5


def mixture(n, k=0, d=2):
    """Two Gaussians at -+ CENTRE along the first axis, with the same variance in all directions."""
    side = torch.where(torch.rand(n, generator=seeded(1000 + k), dtype=F64) < 0.5, -CENTRE, CENTRE)
    x = math.sqrt(VARIANCE) * normal_numbers(n, d, k=k)
    x[:, 0] += side
    return x


def mixture_log_density(x):
    shifted = torch.stack([x[:, 0] - CENTRE, x[:, 0] + CENTRE]).square() + x[:, 1:].square().sum(1)
    return torch.logsumexp(-shifted / (2 * VARIANCE), 0) - math.log(2) - x.shape[1] / 2 * math.log(math.tau * VARIANCE)


def mixture_velocity(x, t):
    """The exact velocity E[x1 - x0 | xt] of the independent coupling, for the mixture."""
    t = t[:, None]
    variance = (1 - t) ** 2 + VARIANCE * t**2
    gain = (VARIANCE * t - (1 - t)) / variance
    centre = torch.zeros_like(x)
    centre[:, :1] = CENTRE * torch.tanh(x[:, :1] * CENTRE * t / variance)
    return centre + gain * (x - t * centre)


def mixture_draw(n, d=2):
    """Points of the paths of the mixture with the exact velocity: a fit without noise."""

    def draw(k):
        t = rf.stratified(n, seeded(50 + k)).double()
        x = (1 - t)[:, None] * normal_numbers(n, d, k=200 + k) + t[:, None] * mixture(n, 300 + k, d)
        return x, t, mixture_velocity(x, t)

    return draw


EXACT = replace(rf.SWEEPS, n_sweeps=6, ridge=1e-6, smooth=0.1)  # for velocities without noise


def fitted(d=2, n_sweeps=6, **shape):
    frame = rf.frame_of(normal_numbers(20000, d, k=7), mixture(20000, 8, d), rotate=False)
    shape = rf.Shape(**{"n_basis": 30, "n_time": 10, "rank": 6} | shape)
    return rf.fit_velocity(mixture_draw(6000, d), frame, shape, replace(EXACT, n_sweeps=n_sweeps))


@pytest.fixture(scope="module")
def flow():
    return fitted()


def grid(low, high, n, d):
    axis = torch.linspace(low, high, n, dtype=F64)
    points = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    return points, ((high - low) / (n - 1)) ** d


# ---- frame


@pytest.mark.parametrize("scale", rf.SCALES)
def test_a_frame_is_normalised_and_its_slope_is_a_derivative(scale):
    turn = torch.linalg.qr(normal_numbers(3, 3, k=1))[0]
    x0 = normal_numbers(4000, 3, k=2)
    x1 = (normal_numbers(4000, 3, k=3) * torch.tensor([3.0, 1.0, 0.2])) @ turn.T + 0.3 * x0 + 5
    frame = rf.frame_of(x0, x1, scale=scale)
    torch.testing.assert_close(frame.rotation.T @ frame.rotation, torch.eye(3, dtype=F64))
    t, h = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=F64), 1e-6
    mean, s, slope = frame.at(t)
    torch.testing.assert_close(slope, (frame.at(t + h)[1] - frame.at(t - h)[1]) / (2 * h), rtol=0, atol=1e-7)
    torch.testing.assert_close(mean, torch.lerp(x0.mean(0)[None], x1.mean(0)[None], t[:, None]))
    for at in t:
        xt = torch.lerp(x0, x1, at)
        z = frame.rows(xt, at.expand(4000), x1 - x0)[0][:, :3]
        if scale == "moving":
            torch.testing.assert_close(z.var(0, correction=0), torch.ones(3, dtype=F64), rtol=1e-9, atol=0)
        if scale == "none":
            torch.testing.assert_close(z, (xt - xt.mean(0)) @ frame.rotation)
    if scale == "whitened":
        many = torch.cat(
            [frame.rows(torch.lerp(x0, x1, at), at.expand(4000), x1)[0] for at in torch.linspace(0, 1, 201)]
        )
        torch.testing.assert_close(many[:, :3].var(0), torch.ones(3, dtype=F64), rtol=0.02, atol=0)
    off = torch.linalg.multi_dot([frame.rotation.T, x1.T.cov(), frame.rotation]).fill_diagonal_(0)
    assert off.abs().max() < 1e-10


def test_for_gaussians_there_is_nothing_left_to_learn():
    """The mean of the targets given z is 0 at all z and t, whatever the coupling of the two Gaussians is."""
    x0 = normal_numbers(200_000, 1, k=2)
    for x1, straight in ((2.5 * normal_numbers(200_000, 1, k=3) + 1, True), (2.5 * x0 + 1, True)):
        frame = rf.frame_of(x0, x1, straight)
        for at in (0.0, 0.4, 1.0):
            t = torch.full((200_000,), at, dtype=F64)
            inputs, targets = frame.rows(torch.lerp(x0, x1, at), t, x1 - x0)
            assert (targets * inputs[:, :1]).mean().abs() < 1e-10 and targets.mean().abs() < 1e-10
            assert targets[inputs[:, 0] > 1].mean().abs() < 0.03


def test_a_coordinate_without_spread_does_no_harm():
    x1 = torch.cat([mixture(3000, 1, 1), torch.full((3000, 1), 7.0, dtype=F64)], 1)
    pairs = rf.data_pairs(x1, 3000)
    velocity, _ = rf.fit_velocity(
        rf.on_lines(pairs), rf.frame_of(*pairs(0)), rf.Shape(n_basis=10), replace(rf.SWEEPS, n_sweeps=4)
    )
    with torch.no_grad():
        y = integrate(velocity, torch.randn(500, 2, generator=seeded(1)), time_grid(100), "rk4")
    assert y.isfinite().all() and (y[:, 1] - 7).abs().max() < 0.2


# ---- fit and use


def test_the_exact_velocity_is_fitted(flow):
    velocity, history = flow
    x, t, u = mixture_draw(4000)(77)
    seen = ((x + (1 - t)[:, None] * u).abs() < velocity.bound.abs().amin(0)).all(1)  # no further out than the draws
    assert seen.double().mean() > 0.999
    x, t, u = x[seen], t[seen], u[seen]
    error = (velocity(x, t) - u).square().sum(1).mean().sqrt()
    assert error < 0.02 * u.square().sum(1).mean().sqrt() and history[-1]["parameters"] == velocity.n_parameters
    assert velocity.dim == 2 and velocity.n_bytes == 4 * (velocity.n_parameters + 4 + 4 + 6 + 4)


def test_it_is_a_velocity_like_any_other(flow):
    velocity = CountNFE(flow[0])
    x = torch.randn(2000, 2, generator=seeded(3))
    with torch.no_grad():
        y = integrate(velocity, x, time_grid(20), "heun")
        exact = integrate(mixture_velocity, x, time_grid(200), "rk4")
    assert velocity.nfe == 40 and y.dtype == torch.float32
    assert (y - exact).square().mean().sqrt() < 0.03
    t = torch.full((2000,), 0.3)
    mixed = torch.cat([t[:1000], t[1000:] + 0.2])
    with torch.no_grad():
        assert torch.equal(flow[0](x[:1000], t[:1000]), flow[0](x[:1000], t[:1]))
        torch.testing.assert_close(flow[0](x, mixed)[:1000], flow[0](x, t)[:1000], rtol=0, atol=2e-6)
        assert flow[0](x.double(), t.double()).dtype == F64


def carried(velocity, x, at=1.0):
    """Where the frame alone carries x from t = 0."""
    (m0, s0, _), (m1, s1, _) = (velocity.frame.at(torch.tensor([t], dtype=velocity.bound.dtype)) for t in (0.0, at))
    return ((x - m0) @ velocity.frame.rotation / s0 * s1) @ velocity.frame.rotation.T + m1


def test_it_cannot_explode(flow):
    far = torch.tensor([[1e4, -1e4], [30.0, 30.0], [-5.0, 5.0]])
    with torch.no_grad():
        y = integrate(flow[0], far, time_grid(50), "rk4")
    assert y.isfinite().all() and ((y - carried(flow[0], far)).abs() <= 10).all()


def test_the_ends_stay_among_those_of_the_data():
    """However wrong the train is: here it is random and large."""
    velocity, _ = fitted(n_sweeps=1)
    for core in velocity.train_.parameters():
        core.data = 30 * torch.randn(core.shape, generator=seeded(1))
    x = torch.randn(500, 2, generator=seeded(2))
    with torch.no_grad():
        states = integrate(velocity, x, time_grid(40), "euler", trajectory=True)
    low, high = velocity.bound
    assert (velocity(x, torch.zeros(500)) != 0).any() and (states[-1] - x).abs().mean() > 0.2
    ends = carried(velocity, x)
    assert (states[-1] >= ends.minimum(low) - 0.05).all() and (states[-1] <= ends.maximum(high) + 0.05).all()


@pytest.mark.parametrize("separate", [False, True])
def test_the_divergence_is_that_of_autograd(separate, flow):
    velocity = fitted(separate=True, n_sweeps=3)[0] if separate else flow[0]
    velocity = rf.TTVelocity.from_state(velocity.state()).double()
    assert isinstance(velocity.train_, SeparateTT) == separate
    x = (3 * normal_numbers(300, 2, k=5)).requires_grad_()  # within, at and beyond the bounds
    for t in (torch.rand(300, generator=seeded(6), dtype=F64), torch.full((300,), 0.7, dtype=F64)):
        v, divergence = velocity.with_divergence(x, t)
        torch.testing.assert_close(v, velocity(x, t))
        want = sum(torch.autograd.grad(v[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(2))
        torch.testing.assert_close(divergence, want, rtol=1e-9, atol=1e-9)


def test_the_divergence_does_not_depend_on_the_frame():
    x0 = normal_numbers(5000, 2, k=1)
    x1 = mixture(5000, 2) @ torch.tensor([[2.0, 0.5], [0.3, 1.0]], dtype=F64)
    draw, sweeps = rf.on_lines(lambda k: (x0, x1)), replace(rf.SWEEPS, n_sweeps=3)
    velocity, _ = rf.fit_velocity(draw, rf.frame_of(x0, x1), rf.Shape(n_basis=8), sweeps)
    velocity, x = velocity.double(), normal_numbers(50, 2, k=3)
    t, h = torch.full((50,), 0.6, dtype=F64), 1e-5
    shifts = h * torch.eye(2, dtype=F64)
    want = sum((velocity(x + e, t) - velocity(x - e, t))[:, k] / (2 * h) for k, e in enumerate(shifts))
    torch.testing.assert_close(velocity.with_divergence(x, t)[1], want, rtol=0, atol=1e-6)


# ---- likelihood


def test_the_likelihood_of_a_gaussian_is_exact():
    """A Gaussian is the frame alone: the train is fitted to 0, and the flow's density is known."""
    x1 = normal_numbers(3000, 2, k=1) * torch.tensor([2.0, 0.5], dtype=F64) + torch.tensor([1.0, -3.0], dtype=F64)
    x0 = normal_numbers(3000, 2, k=2)
    frame = rf.frame_of(x0, x1, straight=False)

    def draw(k):
        x, t, u = rf.on_lines(lambda k: (x0, x1))(k)
        mean, s, slope = frame.at(t)
        return x, t, ((x - mean) @ frame.rotation / s * slope) @ frame.rotation.T + (frame.means[1] - frame.means[0])

    velocity = rf.fit_velocity(draw, frame, rf.Shape(n_basis=6), replace(rf.SWEEPS, n_sweeps=2))[0].double()
    source = torch.distributions.MultivariateNormal(
        frame.means[0], (frame.rotation * frame.variances[0]) @ frame.rotation.T
    )
    target = torch.distributions.MultivariateNormal(
        frame.means[1], (frame.rotation * frame.variances[1]) @ frame.rotation.T
    )
    got = rf.log_likelihood(velocity, x1[:200], 100, log_source=source.log_prob)
    torch.testing.assert_close(got, target.log_prob(x1[:200]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", [1, 2])
def test_the_density_is_normalised_and_that_of_the_mixture(d, flow):
    velocity = (flow if d == 2 else fitted(d, rank=5))[0].double()
    points, cell = grid(-5.0, 5.0, 401 if d == 1 else 61, d)
    log_density = rf.log_likelihood(velocity, points, 40)
    assert log_density.exp().sum().item() * cell == pytest.approx(1, abs=2e-3)
    x = mixture(500, 999, d)
    difference = rf.log_likelihood(velocity, x, 40) - mixture_log_density(x)
    assert difference.abs().mean() < 0.05 and difference.mean().abs() < 0.03
    velocity.float()


GAUSSIAN = torch.tensor([[2.0, 1.8], [0.0, 0.3]], dtype=F64)


def gaussian_log_density(x):
    z = torch.linalg.solve(GAUSSIAN.T, x.T)
    return -z.square().sum(0) / 2 - math.log(math.tau) - torch.linalg.slogdet(GAUSSIAN)[1]


def mixture_tails(radius):
    """Points that many deviations from their own centre, away from the other one."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 33, dtype=F64)
    outward = torch.stack([angle.cos(), angle.sin()], 1) * radius * math.sqrt(VARIANCE) + torch.tensor([CENTRE, 0.0])
    return torch.cat([outward, -outward])


def gaussian_tails(radius):
    angle = math.tau * torch.arange(64, dtype=F64) / 64
    return radius * torch.stack([angle.cos(), angle.sin()], 1) @ GAUSSIAN


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_likelihood_holds_in_the_tails(name):
    """Of draws that nothing was fitted to, and beyond them all, as the experiment fits its trains.

    The flow goes on as the frame's outside the box of the data. With a straight continuation of the train, and ends
    that could not be beyond those of the data, points at 4.5 deviations were wrong by 130 and 99 nats, at six by up to
    3,600.
    """
    draw, log_density, tails = {
        "gaussian": (lambda n, k: normal_numbers(n, 2, k=k) @ GAUSSIAN, gaussian_log_density, gaussian_tails),
        "mixture": (mixture, mixture_log_density, mixture_tails),
    }[name]
    x = draw(20_000, 10).float()
    few = draw(2000, 11).float()
    options = Options(sweeps=6, n_pairs=20_000, verbose=0)
    velocity = Fitting(options, Data(name, x, few, few, few, few[None], few[None])).fit(*plan(options, 2))[0].double()
    fresh = draw(20_000, 12)
    error = rf.log_likelihood(velocity, fresh, 25) - log_density(fresh)
    assert error.abs().mean() < 0.3 and error.abs().max() < 8  # with the former flow 23 and 17
    for radius, most in ((4.5, 8), (6.0, 12)):  # log p is 10 and 18 below that of the centre
        points = tails(radius)
        assert (rf.log_likelihood(velocity, points, 25) - log_density(points)).abs().max() < most


# ---- draws


def test_data_pairs_use_each_row_equally_often_and_are_repeatable():
    x1 = torch.arange(30.0)[:, None].repeat(1, 2)
    pairs = rf.data_pairs(x1, 60, seed=3)
    x0, ends = pairs(0)
    assert torch.equal(ends[:, 0].sort().values, torch.arange(30.0).repeat_interleave(2)) and x0.shape == (60, 2)
    assert all(torch.equal(a, b) for a, b in zip(pairs(4), rf.data_pairs(x1, 60, seed=3)(4)))
    assert not torch.equal(pairs(0)[0], pairs(1)[0])
    data = mixture(512).float()
    plain, transported = rf.data_pairs(data, 512)(0), rf.data_pairs(data, 512, "ot", block=128)(0)
    assert torch.equal(plain[1], transported[1])
    for i in range(0, 512, 128):
        a, b = plain[0][i : i + 128], transported[0][i : i + 128]
        assert torch.equal(a[:, 0].sort().values, b[:, 0].sort().values), "coupled within its block"
    assert (transported[1] - transported[0]).square().sum() < 0.7 * (plain[1] - plain[0]).square().sum()


def test_points_lie_on_the_lines_and_times_are_stratified():
    x0, x1 = normal_numbers(50, 3), normal_numbers(50, 3, k=1)
    x, t, u = rf.on_lines(lambda k: (x0, x1), times=4)(0)
    assert x.shape == (200, 3) and torch.equal(u, (x1 - x0).repeat(4, 1))
    torch.testing.assert_close(x, x0.repeat(4, 1) + t[:, None] * u)
    assert torch.equal((t.sort().values * 200).floor().long(), torch.arange(200))


# ---- flows of flows


def crossing(velocity, d, n_steps, k):
    """How far one Euler step is from the flow's own end points (root mean square)."""
    x = torch.randn(2000, d, generator=seeded(k))
    with torch.no_grad():
        end = integrate(velocity, x, time_grid(50), "rk4")
        return (integrate(velocity, x, time_grid(n_steps), "euler") - end).square().mean().sqrt().item(), end


def test_reflow_makes_the_paths_straight(flow):
    pairs = rf.flow_pairs(flow[0], 2, 4000, 20, seed=1)
    x0, x1 = pairs(0)
    with torch.no_grad():
        assert torch.equal(x1, integrate(flow[0], x0, time_grid(20), "rk4")) and not x1.requires_grad
    shape = rf.Shape(n_basis=24, n_time=6, rank=6)
    again, _ = rf.fit_velocity(rf.on_lines(pairs), rf.frame_of(x0, x1, rotate=False), shape, EXACT)
    (before, ends), (after, new_ends) = crossing(flow[0], 2, 1, 5), crossing(again, 2, 1, 5)
    assert after < 0.15 * before
    assert (ends - new_ends).square().mean().sqrt() < 0.1, "and keep the coupling of the flow"


def test_a_train_learns_a_teachers_velocity():
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        for k, weight in enumerate(net.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=seeded(k)) * 0.7)

    def teacher(x, t):
        return net(torch.cat([x, t[:, None]], 1))

    draw = rf.on_trajectories(teacher, 2, 800, 10, seed=2)
    x, t, u = draw(0)
    assert x.shape == (800 * 12, 2) and t.min() == 0 and t.max() == 1 and not u.requires_grad
    assert not torch.equal(t, draw(1)[1]) and all(torch.equal(a, b) for a, b in zip(draw(3), draw(3)))
    with torch.no_grad():
        assert torch.equal(u[:800], teacher(x[:800], t[:800]))
    frame = rf.frame_of(x[:800], x[-800:], straight=False)
    velocity, _ = rf.fit_velocity(draw, frame, rf.Shape(rank=8, n_basis=16), EXACT)
    start = torch.randn(1000, 2, generator=seeded(9))
    with torch.no_grad():
        want, got = (integrate(v, start, time_grid(20), "heun") for v in (teacher, velocity))
    assert (want - got).square().mean().sqrt() < 0.02 * (want - start).square().mean().sqrt()


def test_a_warm_start_keeps_the_train(flow):
    frame = flow[0].frame
    state = rf.TTVelocity.from_state(flow[0].state())
    warm, history = rf.fit_velocity(mixture_draw(6000), state.frame, state, replace(EXACT, n_sweeps=1))
    assert history[0]["train"] < 2 * flow[1][-1]["train"] and history[0]["train"] < 0.2 * flow[1][0]["train"]
    assert warm.train_.ranks == flow[0].train_.ranks and frame.means.dtype == torch.float32


def test_saved_velocities_are_the_same_to_the_bit(flow, tmp_path):
    x, t = torch.randn(100, 2, generator=seeded(1)), torch.rand(100, generator=seeded(2))
    velocity = rf.TTVelocity(flow[0].frame, flow[0].train_, flow[0].bound, {"data": "mixture", "seed": 3})
    for one in (velocity, fitted(separate=True, n_sweeps=1)[0]):
        one.save(tmp_path / "a.pt")
        again = rf.TTVelocity.load(tmp_path / "a.pt")
        assert torch.equal(again(x, t), one(x, t)) and again.options == one.options
        assert all(torch.equal(a, b) for a, b in zip(again.with_divergence(x, t), one.with_divergence(x, t)))
    torch.save({"cores": x}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="holds no tensor-train velocity of version 1"):
        rf.TTVelocity.load(tmp_path / "b.pt")


# ---- bad input

X = normal_numbers(20, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rf.frame_of(X, X, scale="log"), "unknown scale 'log': use one of moving, whitened, none"),
        (lambda: rf.frame_of(X, X[:, :1]), r"x0 \(20, 2\) and x1 \(20, 1\): need two equal shapes"),
        (lambda: rf.frame_of(X[:1], X[:1]), "N of at least 2"),
        (lambda: rf.frame_of(X, X * math.nan), "NaN or infinity: look at the data"),
        (lambda: rf.data_pairs(X, 20, "best")(0), "unknown coupling 'best'"),
        (lambda: rf.fit_velocity(rf.on_lines(lambda k: (X, X * math.nan)), rf.frame_of(X, X)), "NaN or infinity"),
        (
            lambda: rf.fit_velocity(rf.on_lines(lambda k: (X, X)), rf.frame_of(X, X), rf.Shape("haar")),
            "unknown basis 'haar'",
        ),
        (lambda: rf.fit_velocity(rf.on_lines(lambda k: (X, X)), rf.frame_of(X, X), rf.Shape(rank=0)), "ranks"),
    ],
)
def test_mistakes_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- means over a block
def test_mean_velocities_are_the_weighted_means_of_the_definition():
    x0, x1 = normal_numbers(6, 3, k=1), normal_numbers(6, 3, k=2)
    t = torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9, 0.97], dtype=F64)[:, None]
    xt, u = draws._mean_velocity(x0, x1, t)
    assert torch.allclose(xt, (1 - t) * x0 + t * x1)
    for i in range(6):
        density = [math.exp(-float((xt[i] - t[i] * x1[j]).square().sum() / (2 * (1 - t[i]) ** 2))) for j in range(6)]
        end = sum(w * x1[j] for j, w in enumerate(density)) / sum(density)
        assert torch.allclose(u[i], (end - xt[i]) / (1 - t[i]), atol=1e-9)


@pytest.mark.parametrize("block", [2, 16, 256])
def test_mean_velocities_have_no_bias_and_less_variance(block):
    """Regressed on functions of (x, t) they give what the exact velocity gives, however small the block."""
    n, data = 60_000, mixture(60_000, k=5).float()
    x, t, u = rf.posterior_means(data, n, seed=3, block=block)(0)
    exact = mixture_velocity(x.double(), t.double())
    plain = rf.on_lines(rf.data_pairs(data, n, seed=3), seed=3)(0)
    assert torch.equal(x, plain[0]) and torch.equal(t, plain[1])
    error, noise = (u - exact).square().sum(1), (plain[2] - exact).square().sum(1)
    assert error.mean() < (0.95 if block == 2 else 0.5) * noise.mean()
    features = torch.stack([torch.ones_like(t), x[:, 0], t, t * x[:, 0], x[:, 0].tanh(), x[:, 1]], 1).double()
    z = features.T @ (u - exact) / ((features.T.square() @ (u - exact).square()).sqrt())
    assert z.abs().max() < 4.5


def test_late_mean_velocities_are_the_pairs_own():
    data = torch.tensor([[0.0, 0.0], [1e-7, 0.0], [5.0, 1.0]])
    _, t, u = rf.posterior_means(data, 3000, seed=1)(0)
    pairs = rf.data_pairs(data, 3000, seed=1)(0)
    late = t > draws.LATE
    assert late.sum() > 30 and torch.equal(u[late], (pairs[1] - pairs[0])[late]) and u.isfinite().all()


def test_damaged_files_of_velocities_are_named(flow, tmp_path):
    def train(**changes):
        return {"train": flow[0].state()["train"] | changes}

    cores = flow[0].state()["train"]["cores"]
    bases = flow[0].state()["train"]["bases"]
    for changes, line in (
        ({"frame": {}}, "damaged"),
        ({"frame": None}, "its contents, frame"),
        ({"bound": torch.zeros(2, 3)}, "no one dimension"),
        ({"bound": torch.full((2, 2), math.nan)}, "no finite number"),
        ({"options": 3}, "its contents, options"),
        ({"train": {}}, "damaged"),
        (train(cores=[core * math.inf for core in cores]), "no finite number"),
        (train(cores=cores[:2]), "do not fit"),
        (train(order=[0, 1, 1]), "order"),
        (train(bases=[{**bases[0], "n": 2**40}, *bases[1:]]), "do not fit"),
        (train(bases=[{**bases[0], "kind": "magic"}, *bases[1:]]), "unknown basis"),
        (train(output="x"), "damaged|output"),
    ):
        torch.save(flow[0].state() | changes, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=line) as error:
            rf.TTVelocity.load(tmp_path / "a.pt")
        assert "a.pt" in str(error.value) and "\n" not in str(error.value), changes
