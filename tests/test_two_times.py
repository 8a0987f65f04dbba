"""Networks of two times: weights of one time in them, forward derivatives, and a flow map from training to samples."""

from __future__ import annotations

import pytest
import torch

from common import checkpoint, networks
from common.cli.configs import TrainConfig
from common.generate import Sampler, guided, velocity_of
from common.losses import LAST_SHARE, flow_map, mean_flow, squared_error
from common.methods import METHODS, flow_map_times, make_loss, mean_flow_times
from common.networks import MLP, build_network, network_description, with_second_time
from common.paths import LinearPath
from common.solvers import CountNFE, follow_map, integrate, time_grid
from common.training.small import fit
from nets import randomised
from tiny import run

F64 = torch.float64
SMALL = {"image_size": 8, "num_channel": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "in_channels": 1}
NETWORKS = {
    "unet": TrainConfig(**SMALL, attention_resolutions=(8,), head_channels=32, num_classes=3, patch_size=2),
    "conditional_unet": TrainConfig(**SMALL, network="conditional_unet"),
    "mlp": MLP(2, 16, 2, torch.nn.SiLU, num_classes=3),  # smooth, for differences
}
every = pytest.mark.parametrize("name", NETWORKS)


def network_of(name):
    """A network of one time with random weights, its description, and x, t, y for it."""
    kind, g = NETWORKS[name], torch.Generator().manual_seed(1)
    description = kind.description if isinstance(kind, MLP) else network_description(kind)
    shape = (2,) if isinstance(kind, MLP) else (1, 8, 8)
    y = torch.arange(4) % 3 if description["num_classes"] else None
    x, t = torch.randn(4, *shape, generator=g), torch.rand(4, generator=g)
    return randomised(build_network(description)), description, x, t, y


@every
def test_weights_of_one_time_give_the_same_output_to_the_bit(name):
    net, description, x, t, y = network_of(name)
    wide, about = with_second_time(net, description)
    again = build_network(about).eval()
    again.load_state_dict(wide.state_dict())
    with torch.no_grad():
        for r in (None, t, torch.rand(4)):
            assert torch.equal(wide(x, t, y, r), net(x, t, y)) and torch.equal(again(x, t, y, r), net(x, t, y))
        randomised(wide.end_embed, seed=2)
        assert (wide(x, t, y, t + 0.3) - wide(x, t, y, t)).abs().max() > 1e-4, "it sees the second time"
        assert torch.equal(wide(x, t, y), wide(x, t, y, t)), "without one it is the first"
    with pytest.raises(ValueError, match="a second time was given to a network of one time"):
        net(x, t, y, t)


@every
def test_forward_derivatives_go_through(name):
    net, description, x, t, y = network_of(name)
    wide = randomised(with_second_time(net, description)[0], seed=3)
    g, h = torch.Generator().manual_seed(2), 1e-2
    r, v = torch.rand(4, generator=g), torch.randn(x.shape, generator=g)
    dt = torch.full_like(t, 1e-3 if name == "conditional_unet" else 1.0)  # it multiplies its time by 1000

    def at(x, t, r):
        return wide(x, t, y, r)

    value, derivative = torch.func.jvp(at, (x, t, r), (v, dt, torch.zeros_like(r)))
    with torch.no_grad():
        assert torch.allclose(value, at(x, t, r), rtol=1e-4, atol=1e-4), "plain attention is the fused one"
        difference = (at(x + h * v, t + h * dt, r) - at(x - h * v, t - h * dt, r)) / (2 * h)
    assert (derivative - difference).abs().max() < 0.01 * difference.abs().max()


def test_a_network_without_a_second_time_is_refused_by_name(monkeypatch):
    line = "has no second time r, which --method flowmap and meanflow need: choose --network unet"
    generator = {"name": "GeneratorUNet", "in_channels": 3, "out_channels": 3, "channels": 8, "time_channels": 8}
    with pytest.raises(ValueError, match=f"GeneratorUNet {line}"):
        with_second_time(build_network({**generator, "image_size": 8}), {**generator, "image_size": 8})
    for name in ("unet", "conditional_unet"):
        assert network_description(NETWORKS[name], two_times=True)["two_times"]
    plain = lambda config, heads, two_times: {"name": "Plain", "channels": 8}  # noqa: E731  as somebody adds one
    monkeypatch.setattr(networks, "_of_options", plain)
    with pytest.raises(ValueError, match=f"--network conditional_unet {line}"):
        network_description(NETWORKS["conditional_unet"], two_times=True)
    assert network_description(NETWORKS["conditional_unet"])["name"] == "Plain"


# ---- the loss


def exact(x, t, r):
    """The mean velocity from t to r of the flow of independent N(0, 1) and N(0, 1/4): x_t has spread s(t)."""
    s = lambda t: ((1 - t) ** 2 + t**2 / 4).sqrt()  # noqa: E731
    return x * ((s(r) / s(t) - 1) / (r - t))[:, None]


def pairs(n):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, generator=g, dtype=F64), 0.5 * torch.randn(n, 1, generator=g, dtype=F64)


def test_at_the_start_it_is_flow_matching_and_its_weight_is_as_published():
    x0, x1 = pairs(64)
    t, r = torch.rand(64, dtype=F64) * 0.5, torch.rand(64, dtype=F64) * 0.5 + 0.5
    net = lambda x, t, y, r: 0.3 * x  # noqa: E731
    plain = squared_error(net((1 - t)[:, None] * x0 + t[:, None] * x1, t, None, r), x1 - x0)
    loss = make_loss("flowmap")(net, x0, x1, t, None, r=r, progress=0.0)
    assert torch.allclose(loss, plain * (plain + 1e-3) ** -0.75)


@pytest.mark.parametrize("progress", [0.1, 0.5, 1.0])
def test_the_gradient_vanishes_at_the_exact_flow_map(progress):
    """Of the unweighted loss, which is linear in the target: E[F (F - target) | x_t] is 0 where F is the flow map."""
    x0, x1 = pairs(400_000)
    t, r = (torch.full((len(x0),), value, dtype=F64) for value in (0.3, 0.9))
    alpha = LAST_SHARE**progress
    slope = torch.zeros((), dtype=F64, requires_grad=True)
    seen = []

    def net(x, t, y, r):
        seen.append(t[0].item())
        return exact(x, t, r) + slope * x

    xt = (1 - t)[:, None] * x0 + t[:, None] * x1
    middle = t + alpha * (r - t)
    with torch.no_grad():
        target = alpha * (x1 - x0) + (1 - alpha) * exact(xt + (middle - t)[:, None] * (x1 - x0), middle, r)
    error = exact(xt, t, r) - target
    residual = (error * xt).mean() / alpha
    # the intermediate point leaves the flow's own path by a distance of order alpha: so does the minimum
    assert abs(residual) < 0.25 * alpha + 0.01
    loss = flow_map(net, LinearPath(0.0), x0, x1, t, None, None, r, progress)
    assert loss.shape == (len(x0),) and seen == pytest.approx([middle[0].item(), 0.3])
    weighted = (error.square() / alpha * (error.square() / alpha**2 + 1e-3) ** -0.75)[:, 0]
    assert torch.allclose(loss.double(), weighted, rtol=1e-4, atol=1e-5)


def test_both_calls_drop_the_same_activations():
    x0, x1 = (x.float() for x in pairs(8))
    calls = []

    def net(x, t, y, r):
        calls.append(torch.rand(3))
        return x

    torch.manual_seed(0)
    flow_map(net, LinearPath(0.0), x0, x1, torch.full((8,), 0.2), None, None, torch.full((8,), 0.8), 0.5)
    assert len(calls) == 2 and torch.equal(*calls)


def test_times_are_ordered_logit_normal_and_reach_everywhere():
    u, v = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    t, r = flow_map_times(u, v)
    assert (t < r).all() and (t > 0).all() and (r <= 1).all()
    inner = torch.logit(t[(t > 1e-3) & (t < 1 - 1e-3)].double())
    assert inner.mean().item() == pytest.approx(0.9, abs=0.05) and inner.std().item() == pytest.approx(1.6, rel=0.05)
    assert (r > 0.97).float().mean() > 0.35, "half of the intervals end near the data"
    ends = torch.logit(r[(v < 0.5) & (t < 0.5)].double())  # 2 v is uniform: the whole normal, not its lower half
    assert ends.median().item() == pytest.approx(4.0, abs=0.1) and ends.quantile(0.9).item() > 4 + 1.5
    place = ((r - t) / (1 - t))[v >= 0.5]
    assert place.mean().item() == pytest.approx(0.5, abs=0.02), "the others anywhere"


LINE = LinearPath(0.0)


def toy(seed=0, dropout=0.0):
    """A network of two times in float64, smooth, with random weights."""
    net = MLP(2, 16, 2, torch.nn.SiLU, two_times=True)
    net.net.insert(2, torch.nn.Dropout(dropout))
    return randomised(net, seed).double().train()


def toy_pairs(n=6):
    x0, x1 = torch.randn(2, n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    return x0, x1, torch.linspace(0.05, 0.7, n, dtype=F64), torch.linspace(0.9, 1.0, n, dtype=F64)


def gradient(loss, net):
    return torch.cat([p.flatten() for p in torch.autograd.grad(loss.mean(), [*net.parameters()])])


def test_the_end_one_of_a_flow_map_is_consistency_training():
    """(1 - t) (F - target) = D(x_t, t) - D(x_l, l) for D(x, t) = x + (1 - t) F(x, t, 1)."""
    net, (x0, x1, t, _) = toy(), toy_pairs()
    alpha = LAST_SHARE**0.3
    later = t + alpha * (1 - t)

    def end(t):
        x, one = (1 - t)[:, None] * x0 + t[:, None] * x1, torch.ones_like(t)
        return x + (1 - t)[:, None] * net(x, t, None, one)

    error = squared_error(end(t), end(later).detach()) / (1 - t) ** 2
    wanted = error / alpha * (error.detach() / alpha**2 + 1e-3) ** -0.75
    loss = flow_map(net, LINE, x0, x1, t, None, None, torch.ones_like(t), 0.3)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(loss, net), gradient(wanted, net), rtol=1e-3, atol=1e-5)


def test_the_limit_of_a_flow_map_is_mean_flow():
    """With data that x_t tells, x1 = 3 x0, and the exact velocity at r = t, both residuals are the same."""
    rest, (x0, _, t, r) = toy(), toy_pairs(1)
    x1 = 3 * x0

    def net(x, t, y, r):
        return 2 * x / (1 + 2 * t)[:, None] + (r - t)[:, None] * rest(x, t, y, r)

    a = gradient(flow_map(net, LINE, x0, x1, t, None, None, r, 1.0), rest)
    b = gradient(mean_flow(net, LINE, x0, x1, t, None, None, r), rest)
    assert torch.cosine_similarity(a, b, dim=0) > 1 - 1e-5 and a.norm() > 1e-3


def test_without_an_interval_mean_flow_is_flow_matching_to_the_bit():
    net, (x0, x1, t, _) = toy(), toy_pairs()
    plain = make_loss("rf")(lambda x, t, y: net(x, t, y), x0, x1, t, None)
    loss = make_loss("meanflow")(net, x0, x1, t, None, r=t)
    assert torch.equal(loss, plain)
    weighted = plain / (plain.detach() + 0.01 / 2)  # of the sum over 2 coordinates: S / (S + 0.01)
    torch.testing.assert_close(gradient(loss, net), gradient(weighted, net))


def test_the_exact_mean_velocity_is_where_mean_flow_rests():
    """There V is the velocity x s' / s itself, and the gradient is 0 in any direction."""
    x0, x1 = pairs(200_000)
    t, r = (torch.full((len(x0),), value, dtype=F64) for value in (0.3, 0.9))

    def slope(at):
        theta = torch.tensor(at, dtype=F64, requires_grad=True)

        def net(x, t, y, r):
            velocity = x * ((t / 4 - (1 - t)) / ((1 - t) ** 2 + t**2 / 4))[:, None]
            mean = velocity if torch.equal(t, r) else exact(x, t, r)
            return mean + theta * (r - t)[:, None] * x

        loss = mean_flow(net, LINE, x0, x1, t, None, None, r)
        return torch.autograd.grad(loss.mean(), theta)[0].item(), loss.detach(), net

    below, rest, above = slope(-0.5), slope(0.0), slope(0.5)
    xt = (1 - t)[:, None] * x0 + t[:, None] * x1
    v = rest[2](xt, t, None, t).detach()
    torch.testing.assert_close(rest[1], squared_error(v, x1 - x0), rtol=1e-4, atol=1e-5)
    print(below[0], rest[0], above[0])
    assert abs(rest[0]) < 0.01 and below[0] < -0.1 and above[0] > 0.1


def test_its_derivative_is_that_of_differences_along_the_network_s_own_velocity():
    net, (x0, x1, t, r) = toy(dropout=0.5), toy_pairs()
    xt, h = (1 - t)[:, None] * x0 + t[:, None] * x1, 1e-5

    def u(x, t, r):
        torch.manual_seed(0)  # the same dropout in every call
        return net(x, t, None, r)

    v = u(xt, t, t)
    rate = (u(xt + h * v, t + h, r) - u(xt - h * v, t - h, r)) / (2 * h)
    wanted = squared_error(u(xt, t, r) - (r - t)[:, None] * rate.detach(), x1 - x0)
    torch.manual_seed(0)
    loss = mean_flow(net, LINE, x0, x1, t, None, None, r)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient(loss, net), gradient(wanted / (wanted.detach() + 0.005), net), rtol=1e-3, atol=1e-5
    )


def test_the_derivative_is_the_bare_network_s_in_float32():
    """What wraps it (processes, a half) is asked once, with gradient."""
    net, (x0, x1, t, r) = toy(), toy_pairs()
    calls = []

    def wrapped(*inputs):
        calls.append(torch.is_grad_enabled())
        return net(*inputs).half()

    loss = mean_flow(wrapped, LINE, x0, x1, t, None, None, r, bare=net)
    assert calls == [True]
    torch.testing.assert_close(loss, mean_flow(net, LINE, x0, x1, t, None, None, r), rtol=1e-2, atol=1e-2)


def test_half_of_its_intervals_are_empty_and_the_others_those_of_a_flow_map():
    u, v = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
    t, r = mean_flow_times(u, v)
    t_map, r_map = flow_map_times(u, 2 * v - 1)
    empty = v < 0.5
    assert torch.equal(t, t_map) and torch.equal(r[empty], t[empty]) and torch.equal(r[~empty], r_map[~empty])


# ---- from training to samples


def test_jumps_of_the_exact_map_are_exact_on_any_grid():
    x = torch.randn(50, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
    for times in (time_grid(1), time_grid(3), torch.tensor([0.0, 0.2, 0.95, 1.0])):
        count = CountNFE(exact)
        path = follow_map(count, x, times.double(), trajectory=True)
        assert torch.allclose(path[-1], 0.5 * x, atol=1e-6) and count.nfe == len(times) - 1 == len(path) - 1
    with pytest.raises(ValueError, match="a flow map goes to later times only: it knows no step from 1 to 0"):
        follow_map(exact, x, [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="a sampler needs at least 1 step"):
        time_grid(0)


@pytest.mark.parametrize(("method", "steps", "lr"), [("flowmap", 500, 1e-2), ("meanflow", 300, 2e-2)])
def test_a_flow_map_is_learnt_and_one_step_is_the_fine_solution(method, steps, lr):
    torch.manual_seed(0)
    net, loss = MLP(1, 64, 2, torch.nn.SiLU, two_times=True), make_loss(method)

    def loss_at(step):
        g = torch.Generator().manual_seed(step)
        x0, x1 = torch.randn(256, 1, generator=g), 0.5 * torch.randn(256, 1, generator=g)
        u, v = torch.rand(256, generator=g), torch.rand(256, generator=g)
        t, r = METHODS[method].times(u, v)
        progress = {"progress": step / steps} if METHODS[method].staged else {}
        return loss(net, x0, x1, t, None, r=r, **progress).mean()

    fit(net, loss_at, steps, lr=lr, ema_decay=0.99)
    x = torch.linspace(-2, 2, 41)[:, None]
    with torch.no_grad():
        fine = integrate(velocity_of(net, method), x, time_grid(100), "heun")
        one = follow_map(guided(net), x, time_grid(1))
        euler = integrate(velocity_of(net, method), x, time_grid(1), "euler")
    errors = [(y - 0.5 * x).abs().mean().item() for y in (fine, one, euler)]
    assert errors[0] < 0.1, "F(x, t, t) is the velocity"
    assert errors[1] < 0.1 and errors[2] > 0.3, "one jump is the whole way, one Euler step is not"


@pytest.mark.parametrize("method", ["flowmap", "meanflow"])
def test_a_folder_trains_and_samples_one(tmp_path, method):
    more = {"num_classes": 3, "total_steps": 2, "sample_step": 2, "val_step": 1, "attention_resolutions": (8,)}
    final = run(tmp_path / "run", method=method, mixed_precision="bf16", dropout=0.1, **more)
    net, info = checkpoint.load_network(final)
    assert net.end_embed is not None and info["network"]["two_times"] is True
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert rows.count("val_loss") == 2 and list((tmp_path / "run" / "samples").glob("*.png"))
    for steps in (1, 3):
        sampler = Sampler(net, method, (1, 8, 8), solver="flowmap", n_steps=steps, grid="cosine", cfg=2.0)
        images, nfe = sampler.sample(range(3), torch.arange(3))
        assert images.shape == (3, 1, 8, 8) and images.isfinite().all() and nfe == 2 * steps
    with pytest.raises(ValueError, match="needs weights of two times; rf has one: use euler"):
        Sampler(net, "rf", (1, 8, 8), solver="flowmap")(range(2))
