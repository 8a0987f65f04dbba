"""Consistency tuning: pairs, schedule and loss against closed forms, the sampler, and a run from velocity to one step.

For x1 ~ N(m, c^2) the marginal at noise level s is x / t = x1 + s z ~ N(m, c^2 + s^2), and the probability flow keeps
the place in it: its end at t = 1 is D(x, t) = m + c (x / t - m) / sqrt(c^2 + s^2).
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from common import checkpoint, losses, solvers
from common.cli.configs import TrainConfig, check_objective, check_tuning
from common.data.loading import Batches, ImageData
from common.generate import Sampler, velocity_of
from common.methods import LEVEL_TIMES, METHODS, end_of_heads, end_of_velocity, make_loss
from common.networks import MLP
from common.paths import BridgePath, expand
from common.solvers import integrate, time_grid
from common.training.batches import Batch, CoupledBatches
from common.training.small import fit
from common.training.trainer import Trainer
from common.training.trajectories import AT_NOISE, TrajectoryBatches
from tiny import ALONE, difference, last, network, options, run, weights

F64 = torch.float64
MEAN, SPREAD, SIGMA = 0.2, 0.3, 0.4
METHOD_SIGMAS = [("ect", 0.0), ("ect_idff", SIGMA)]
each = pytest.mark.parametrize(("method", "sigma"), METHOD_SIGMAS)


def exact_end(x, t, sigma):
    """Where the probability flow through x ends; from the noise's variance S(t), not from a level."""
    t = expand(t, x)
    noise = (1 - t) ** 2 + sigma**2 * t * (1 - t)
    return MEAN + SPREAD * (x - t * MEAN) / (t**2 * SPREAD**2 + noise).sqrt()


class ExactEnd(nn.Module):
    """The network whose D is the exact one."""

    num_classes, null_class = 0, False

    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.dummy = sigma, nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y=None):
        if self.sigma == 0:
            return (exact_end(x, t, 0.0) - x) / expand(1 - t, x)
        end = exact_end(x.chunk(2, dim=1)[0], t, self.sigma)
        return torch.cat([end, torch.full_like(end, math.nan)], 1)  # the score head is not looked at


def pairs(n, dtype=F64):
    g = torch.Generator().manual_seed(5)
    x0, x1 = torch.randn(2, n, 3, dtype=dtype, generator=g)
    return x0, MEAN + SPREAD * x1, LEVEL_TIMES.of()(torch.rand(n, dtype=dtype, generator=g))


# ---- levels and pairs


@pytest.mark.parametrize("sigma", [0.0, 0.2, 1.0])
def test_the_time_of_a_level_has_that_level(sigma):
    path, level = BridgePath(sigma), torch.logspace(-3, 3, 50, dtype=F64)
    times = path.time_of(level)
    for s, t in zip(level.tolist(), times.tolist()):
        assert path.remaining(t) / t == pytest.approx(s, rel=1e-8)
    assert path.time_of(torch.zeros(1, dtype=F64)).item() == 1 and path.remaining(0.0) == path.start == 1
    if sigma == 0:
        assert torch.allclose(times, 1 / (1 + level))


def test_the_bridge_s_noise_as_one_has_the_variance_of_its_two_parts():
    path, t = BridgePath(SIGMA), torch.tensor(0.3)
    assert path.remaining(0.3) ** 2 == pytest.approx(0.7**2 + path.spread(t).item() ** 2)


def test_levels_are_those_of_the_paper():
    t = pairs(40_000)[2]
    s = ((1 - t) / t).log()
    assert s.mean().item() == pytest.approx(-1.1, abs=0.05) and s.std().item() == pytest.approx(2, rel=0.02)


def test_the_lower_level_of_each_stage():
    s = torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    for q, progress, power in ((2, 0.0, 1), (2, 0.124, 1), (2, 0.126, 2), (2, 0.99, 8), (2, 1.0, 8), (4, 0.5, 3)):
        factor = [1 - q**-power * (1 + 8 / (1 + math.exp(x))) for x in s.tolist()]
        wanted = torch.tensor([max(0, f) * x for f, x in zip(factor, s.tolist())], dtype=F64)
        torch.testing.assert_close(losses.lower_level(s, q, progress), wanted)
    for q in (256, 1000):  # one stage
        assert torch.equal(losses.lower_level(s, q, 0.0), losses.lower_level(s, q, 1.0))
    assert losses.lower_level(s, 2, 0.0)[0] == 0 < losses.lower_level(s, 2, 1.0)[0] < s[0]


# ---- the loss


def test_a_target_of_no_noise_is_the_denoising_loss():
    x0, x1, _ = pairs(50)
    level = torch.linspace(0.01, 1.0, 50, dtype=F64)  # all of these have r = 0 in the first stage
    t, net = 1 / (1 + level), lambda x, t, y: 0.3 * x
    loss = make_loss("ect")(net, x0, x1, t, None, progress=0.0)
    xt = expand(1 - t, x0) * x0 + expand(t, x1) * x1
    denoised = xt + expand(1 - t, xt) * (0.3 * xt)
    torch.testing.assert_close(loss, (denoised - x1).square().mean(1).sqrt() / level, rtol=1e-5, atol=1e-6)


@each
def test_a_pair_shares_its_data_and_noise_at_two_levels_and_the_target_has_no_gradient(method, sigma):
    x0, x1, t = pairs(200)
    path, scale = METHODS[method].path(sigma), torch.tensor(1.0, requires_grad=True)

    def net(x, t, y):
        return (scale * ExactEnd(sigma)(x, t).nan_to_num()).float()

    loss = make_loss(method, sigma)(net, x0, x1, t, None, progress=1.0)
    s = ((1 - t) / t).clamp(*losses.LEVELS)
    r = losses.lower_level(s, 2, 1.0)
    net_end = (end_of_velocity if sigma == 0 else end_of_heads)(lambda x, t: net(x, t, None))
    ends = []
    for level in (s, r):
        time = path.time_of(level)
        noise = ((1 - time) ** 2 + sigma**2 * time * (1 - time)).sqrt()
        ends.append(net_end(expand(time, x1) * x1 + expand(noise, x0) * x0, time))
    wanted = (ends[0] - ends[1].detach()).square().mean(1).sqrt() / (s - r)
    torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x.mean(), scale)[0] for x in (loss, wanted))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-3) and abs(ours.item()) > 1e-3


@pytest.mark.parametrize("q", [2, 8, 256])
def test_one_end_for_all_points_is_no_solution_in_any_stage(q):
    x0, x1, _ = pairs(4)
    t = torch.full((4,), 1 / (1 + losses.LEVELS[0]), dtype=F64)
    for progress in (0.0, 1.0):
        loss = make_loss("ect_idff", SIGMA, ect_q=q)(lambda x, t, y: 0 * x, x0, x1, t, None, progress=progress)
        torch.testing.assert_close(loss, x1.square().mean(1).sqrt() / losses.LEVELS[0], rtol=1e-4, atol=0)


def test_both_calls_drop_the_same():
    x0, x1, t = pairs(8)
    calls = []

    def net(x, t, y):
        calls.append((torch.rand(3), torch.is_grad_enabled()))
        return x

    make_loss("ect")(net, x0, x1, t, None, progress=0.5)
    (first, recorded), (second, learns) = calls
    assert torch.equal(first, second) and (recorded, learns) == (False, True)


@each
def test_close_pairs_are_at_rest_at_the_exact_ends_only(method, sigma):
    """Its gradient, times s - r, vanishes with it: D + theta (1 - t) x, which keeps the boundary, is best at 0."""
    x0, x1, t = pairs(40_000)
    s = ((1 - t) / t).clamp(*losses.LEVELS)
    r = losses.lower_level(s, 1000, 0.0)

    def slope(at):
        theta = torch.tensor(at, dtype=F64, requires_grad=True)

        def net(x, t, y):
            out = ExactEnd(sigma)(x, t).nan_to_num()
            return out + theta * (expand(1 - t, x) if sigma else 1) * x

        loss = make_loss(method, sigma, ect_q=1000)(net, x0, x1, t, None, progress=0.0)
        return torch.autograd.grad((loss * (s - r)).mean(), theta)[0].item()

    below, rest, above = slope(-0.5), slope(0.0), slope(0.5)
    print(below, rest, above)
    assert abs(rest) < 0.01 and below < -0.05 and above > 0.05


# ---- from a teacher


def exact_flow(sigma):
    """The flow itself, as a velocity or as IDFF's heads: the mean of the data given x, which is no path's end."""

    def net(x, t, y=None):
        u, x = expand(t, x), x if sigma == 0 else x.chunk(2, dim=1)[0]
        noise = (1 - u) ** 2 + sigma**2 * u * (1 - u)
        mean = MEAN + SPREAD**2 * u * (x - u * MEAN) / (u**2 * SPREAD**2 + noise)
        return (mean - x) / (1 - u) if sigma == 0 else torch.cat([mean, mean * math.nan], 1)

    return net


@each
def test_the_lower_point_of_a_teacher_s_pair_is_its_euler_step(method, sigma):
    """In noise levels d(x / t) / ds = (x / t - D) / s (Karras et al. 2206.00364, equation 4), and x_t itself stays."""
    x0, x1, t = pairs(200)
    taught = METHODS[method].taught(exact_flow(sigma), sigma, x0, x1, t)
    s = expand((1 - t) / t, x1)
    x = x1 + s * x0
    mean = MEAN + SPREAD**2 / (SPREAD**2 + s**2) * (x - MEAN)
    for r in (s, s / 2, 0 * s):
        torch.testing.assert_close(taught[1] + r * taught[0], x + (r - s) * (x - mean) / s)


@each
def test_from_the_exact_flow_exact_ends_have_no_loss(method, sigma):
    x0, x1, t = pairs(2000)

    def loss(x0, x1):
        net = lambda x, t, y: ExactEnd(sigma)(x, t)  # noqa: E731
        return make_loss(method, sigma, ect_q=1000)(net, x0, x1, t, None, progress=1.0).median().item()

    taught, of_data = loss(*METHODS[method].taught(exact_flow(sigma), sigma, x0, x1, t)), loss(x0, x1)
    print(taught, of_data)
    assert taught < 0.002 < 0.1 < of_data


def test_the_teacher_of_a_mean_velocity_is_its_velocity():
    x0, x1, t = pairs(50)
    v = lambda x, t: 0.3 * x + expand(t, x)  # noqa: E731
    for method in ("flowmap", "meanflow"):
        noise, data = METHODS[method].taught(v, 0.0, x0, x1, t)
        xt = expand(1 - t, x0) * x0 + expand(t, x0) * x1
        torch.testing.assert_close(data - noise, v(xt, t), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(expand(1 - t, x0) * noise + expand(t, x0) * data, xt)


@pytest.mark.parametrize("method", ["ect_idff", "meanflow"])
def test_a_run_learns_from_its_guided_teacher_which_stays(tmp_path, method):
    more = {"sigma": SIGMA if method == "ect_idff" else 0.0, "num_classes": 3, "dropout": 0.1, "warmup": 0}
    flow = options(method="idff" if method == "ect_idff" else "rf", **more)
    config = options(method=method, init=str(weights(tmp_path / "a.pt", flow)), **more)
    g = torch.Generator().manual_seed(0)
    x0, x1, noise = torch.randn(3, 8, 1, 8, 8, generator=g)
    t = torch.linspace(0.1, 0.9, 8)
    batch = Batch(x0, x1, t, noise, torch.arange(8) % 4, r=t + 0.05 if METHODS[method].times else None)

    def learnt(**changes):
        trainer = Trainer(replace(config, **changes), ALONE)
        trainer.start_from(config.init)
        trainer.update(batch)
        return trainer

    one, other, plain = (learnt(teacher_cfg=cfg) for cfg in (1.0, 2.0, None))
    states = [trainer.net.state_dict() for trainer in (one, other, plain)]
    assert all(difference(states[i], states[i - 1]) for i in range(3))
    assert plain.teacher is None and one.teacher is not None and not one.teacher.training
    started = Trainer(config, ALONE)
    started.start_from(config.init)
    assert not difference(dict(one.teacher.state_dict()), dict(started.net.state_dict()))
    other.net.eval()  # held-out losses are of the data
    of_teacher, other.teacher = other.losses(other.net, batch), None
    assert torch.equal(of_teacher, other.losses(other.net, batch))
    again = Trainer(replace(config, teacher_cfg=1.0), ALONE)
    with pytest.raises(ValueError, match="teacher_cfg 2.0 there and 1.0 now"):
        again.restore(other.state(), tmp_path / "checkpoint_last.pt")


@each
def test_the_exact_end_is_where_a_teacher_s_trajectories_end(method, sigma):
    x0 = torch.randn(500, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    path, denoiser, seen = METHODS[method].path(sigma), METHODS[method].denoiser, []

    def teacher(x, t):
        seen.append(len(x))
        return exact_flow(sigma)(x, t)

    states, times = losses.trajectories(denoiser(teacher), path, x0, 64)
    assert seen == [500] * 64 and states.shape == (65, 500, 3) and times.shape == (64,)
    # the flow from the highest level keeps the place in the marginal
    most = losses.LEVELS[1]
    wanted = MEAN + SPREAD * (most * x0 - MEAN) / math.hypot(SPREAD, most)
    x, t, end = states[:-1].flatten(0, 1), times.repeat_interleave(500), states[-1].repeat(64, 1)
    assert (states[-1] - wanted).abs().max() < 0.003
    assert (exact_end(x, t, sigma) - wanted.repeat(64, 1)).abs().max() < 0.003

    def error(shift):
        def net(x, t, y):
            return ExactEnd(sigma)(x, t) + shift / (expand(1 - t, x) if sigma == 0 else 1)

        return losses.end_error(net, x, t, end, None, denoiser).mean().item()

    assert error(0.0) < 0.001 and [error(0.1), error(-0.1)] == pytest.approx([0.1, 0.1], abs=0.01)


class Labelled(nn.Module):
    """A velocity whose flow from x0 is known: x1 = x0 + y + 1 (an empty label is 3), whatever the time."""

    def forward(self, x, t, y=None):
        return torch.ones_like(x) * (3 if y is None else expand(y.to(x.dtype), x)) + 1


def test_batches_of_trajectories(tmp_path, monkeypatch):
    config = options(method="ect", num_classes=3, teacher_cfg=2.0, teacher_steps=4, teacher_noises=20)
    trainer = Trainer(config, ALONE)
    trainer.teacher = Labelled()
    images = ImageData(torch.zeros(30, 3, 8, 8, dtype=torch.uint8), torch.arange(30) % 3)
    noises = CoupledBatches(Batches(images, 8, 0, False, ALONE.device), "independent", 0, ALONE, False)
    source = TrajectoryBatches(trainer, noises)
    seconds, size = source.prepare(tmp_path)
    files = sorted(tmp_path.glob("trajectories/*.pt"))
    assert seconds > 0 and len(files) == 3 and size == 5 * 24 * 3 * 8 * 8 * 2
    batches = [source.make(k) for k in range(50)]
    x, end, t, y = (torch.cat([getattr(b, name) for b in batches]) for name in ("x0", "x1", "t", "y"))
    first = 1 / (1 + losses.LEVELS[1])
    grid = first + (1 - first) * torch.arange(4) / 4
    assert torch.isclose(t[:, None], grid).any(1).all() and t.unique().numel() == 4
    assert (t < grid[1] / 2).float().mean().item() == pytest.approx(AT_NOISE, abs=0.1)
    moved = (1 - expand(t, x)) * (expand(y, x) + 1 + (y[:, None, None, None] - 3))  # guided by 2: away + 2 (v - away)
    torch.testing.assert_close(end, x + moved, atol=0.02, rtol=0)
    start = x[t < grid[1] / 2] / (1 - first)  # as standard normal as the noises that the steps of data would have
    assert start.mean().abs() < 0.05 and start.std().item() == pytest.approx(1, abs=0.05)
    same = source.make(7)
    assert torch.equal(same.x0, batches[7].x0) and not torch.equal(batches[6].x0, batches[7].x0)

    # they are made once; those of another teacher, or a part that is not there, again
    again = TrajectoryBatches(trainer, noises)
    files[1].unlink()
    calls = []
    monkeypatch.setattr(trainer, "taught_by", lambda y, known=trainer.taught_by: calls.append(len(y)) or known(y))
    again.prepare(tmp_path)
    assert calls == [8] and torch.equal(again.states, source.states)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:3000])
    with pytest.raises(ValueError, match="00001_0.pt is truncated or damaged .*: delete it, and it is made again$"):
        again.prepare(tmp_path)
    files[1].write_bytes(whole)
    trainer.origin = {"sha256": "another"}
    again.prepare(tmp_path)
    assert calls == [8] * 4
    trainer.config = replace(config, label_dropout=0.5)  # other labels would be dropped
    again.prepare(tmp_path)
    assert calls == [8] * 7
    trainer.config = replace(trainer.config, sigma=0.5)  # the marginals are others
    again.prepare(tmp_path)
    assert calls == [8] * 10
    trainer.config = config
    again.prepare(None)
    assert calls == [8] * 11 and again.states.shape[1] == 8


def test_a_folder_learns_ends_first_and_goes_on_from_them(tmp_path):
    method, sigma = "ect_idff", SIGMA
    more = {"sigma": sigma, "num_classes": 3, "total_steps": 1}
    first = weights(tmp_path / "a.pt", options(method="idff", **more))
    ends = run(
        tmp_path / "b", method=method, init=str(first), teacher_cfg=1.5, teacher_steps=3, teacher_noises=8, **more
    )
    with pytest.raises(ValueError, match=f"^--teacher_cfg: --init {ends} was tuned by {method} and knows no flow"):
        run(tmp_path / "c", method=method, init=str(ends), teacher_cfg=1.5, **more)
    config = options(method=method, init=str(ends), **more)
    trainer = Trainer(config, ALONE)
    trainer.start_from(config.init)
    assert trainer.teacher is None and trainer.origin["weights"] == ends.name


# ---- the sampler


@each
@pytest.mark.parametrize("n", [1, 2, 5])
def test_steps_of_the_exact_end_have_the_distribution_of_the_data(method, sigma, n):
    made = Sampler(ExactEnd(sigma), method, (1, 32, 32), sigma, "consistency", n)
    images, nfe = made.sample(range(30))
    assert nfe == n and images.mean().item() == pytest.approx(MEAN, abs=0.01)
    # one step starts at level 80 from noise alone: m / 81 too low; clamped to 1: nothing of 30,000 x 2.7 deviations
    assert images.std().item() == pytest.approx(SPREAD, rel=0.02)
    # what is left of the first end after new noise at every later node t: corr(x_t, D(x_t)) is 1
    path = BridgePath(sigma)
    share = [t * SPREAD / math.hypot(t * SPREAD, path.remaining(t)) for t in (i / n for i in range(1, n))]
    both = torch.stack([replace(made, n_steps=1)(range(30)).flatten(), images.flatten()])
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(math.prod(share), abs=0.02)


def test_an_image_is_a_function_of_its_number_and_guidance_doubles_the_evaluations():
    config = options(method="rf", num_classes=3)
    made = Sampler(network(config), "ect", (1, 8, 8), solver="consistency", n_steps=3, cfg=2.0)
    y = torch.tensor([0, 1, 2])
    whole, nfe = made.sample([4, 5, 6], y)
    assert nfe == 6 and torch.allclose(made([6, 4], y[[2, 0]]), whole[[2, 0]], atol=1e-5)
    assert not torch.equal(replace(made, seed=1)([4], y[:1]), whole[:1])
    assert not torch.equal(replace(made, cfg=1.0)([4], y[:1]), whole[:1])


def test_a_step_ends_where_the_next_begins():
    """x_t = t D + spread(t) noise, at the nodes, none before the earliest time."""
    seen = []

    def end(x, t):
        seen.append((t[0].item(), x.item()))
        return 0 * x + len(seen)

    x = torch.tensor([[2.0]])
    out = solvers.consistency(end, x, torch.tensor([0.0, 0.5, 0.8, 1.0]), lambda t: 1 - t, lambda i, x: x * 0 + i, 0.1)
    assert out.item() == 3
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([[0.1, 1.8], [0.5, 0.5 + 0.5], [0.8, 1.6 + 0.4]]))


# ---- refusals


def test_what_has_no_meaning_is_refused():
    net = ExactEnd(0.0)
    with pytest.raises(ValueError, match="--solver consistency needs weights tuned by --method ect, these are rf"):
        Sampler(net, "rf", (1, 4, 4), solver="consistency")([0])
    for solver in ("euler", "unipc2", "euler_maruyama", "dopri5", "fitted"):
        with pytest.raises(ValueError, match="needs a|--solver consistency"):
            Sampler(net, "ect", (1, 4, 4), solver=solver)([0])
    for call in (lambda: velocity_of(net, "ect"), lambda: METHODS["ect_idff"].sde(net, BridgePath(0.2))):
        with pytest.raises(ValueError, match="where a path ends, not its velocity: use --solver consistency"):
            call()
    config = TrainConfig(method="ect", init="a.pt")
    check_tuning(config)
    with pytest.raises(ValueError, match="^--method ect tunes a trained network: give its weights or run folder by"):
        check_tuning(replace(config, init=""))
    with pytest.raises(ValueError, match="^--coupling ot: --method ect needs independent noise and data, leave it out"):
        check_tuning(replace(config, coupling="ot"))
    with pytest.raises(ValueError, match="^--times edm: --method ect draws noise levels, leave it out"):
        check_objective(replace(config, times="edm"))
    with pytest.raises(ValueError, match="^--ect_q 3.0: --method rf has no such term, only ect, ect_idff has"):
        check_objective(TrainConfig(method="rf", ect_q=3.0))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"method": "rf", "teacher_cfg": 1.0},
            "--teacher_cfg 1: --method rf has no teacher, only flowmap, meanflow, ect,",
        ),
        (
            {"init": "a.pt", "teacher_steps": 4},
            "--teacher_steps 4: needs --method ect or ect_idff and a teacher, by --teacher_cfg 1",
        ),
        (
            {"method": "flowmap", "teacher_cfg": 1.0},
            "--teacher_cfg 1: give the teacher's weights or run folder by --init",
        ),
        (
            {"init": "a.pt", "teacher_cfg": 2.0},
            "--teacher_cfg 2: guidance needs labels, some of them dropped: give --num",
        ),
        (
            {"init": "a.pt", "teacher_cfg": 2.0, "num_classes": 3, "label_dropout": 0.0},
            "--teacher_cfg 2: guidance needs",
        ),
    ],
)
def test_a_teacher_that_there_is_not_is_refused(changes, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        check_tuning(replace(TrainConfig(method="ect"), **changes))


def test_what_holds_no_flow_to_begin_from_is_refused(tmp_path):
    two, none = weights(tmp_path / "two.pt", options(method="rf", num_channel=64)), tmp_path / "none.pt"
    torch.save({"net.0.weight": torch.zeros(3, 3), "net.0.bias": torch.zeros(3)}, none)  # knows no time
    for method in ("ect", "meanflow"):
        with pytest.raises(ValueError, match=f"^--init {two} is of another network .channels: 64 there, 32 here"):
            run(tmp_path / "b", method=method, init=str(two))
        with pytest.raises(ValueError, match=f"^{none}: "):
            run(tmp_path / "b", method=method, init=str(none))
        with pytest.raises(FileNotFoundError, match="gone.pt.*or give --init with a checkpoint file or a run folder"):
            run(tmp_path / "b", method=method, init=str(tmp_path / "gone.pt"))
    assert not list((tmp_path / "b").glob("*.pt"))


def test_weights_of_another_sigma_are_refused(tmp_path):
    first = weights(tmp_path / "a.pt", options(method="idff", sigma=0.2))
    line = f"^--sigma 0.3: --init {first} was trained with sigma 0.2, give --sigma 0.2$"
    with pytest.raises(ValueError, match=line):
        run(tmp_path / "b", method="ect_idff", sigma=0.3, init=str(first))
    assert not list((tmp_path / "b").glob("*.pt"))


@each
def test_weights_of_torchcfm_and_idff_are_tuned(tmp_path, method, sigma):
    """Their files say neither the images' size, nor the width of a head, nor the sigma of a bridge."""
    flow = options(method={"ect": "rf", "ect_idff": "idff"}[method], attention_resolutions=(8,))
    state = network(flow).state_dict()
    first = tmp_path / "otcfm_weights_step_3.pt"
    torch.save({"net_model": state, "ema_model": state, "sched": {}, "optim": {}, "step": 3}, first)
    final = run(tmp_path / "b", method=method, sigma=sigma, init=str(first), total_steps=1, attention_resolutions=(8,))
    assert checkpoint.load(final)["init"]["weights"] == first.name


# ---- from a flow to one step


def test_a_flow_becomes_its_own_end():
    """1-D: a short training of a flow on N(m, c^2), then of its ends: one step is the affine map of the noise."""
    torch.manual_seed(0)
    net, mean, spread = MLP(1, 32, 2, nn.SiLU), 0.5, 0.3

    def loss_of(method, steps, level_times=lambda u: u, **more):
        loss = make_loss(method, **more)

        def loss_at(step):
            g = torch.Generator().manual_seed(step)
            x0, x1 = torch.randn(2, 256, 1, generator=g)
            t = level_times((torch.arange(256) + torch.rand(256, generator=g)) / 256)
            progress = {"progress": step / steps} if METHODS[method].staged else {}
            return loss(net, x0, mean + spread * x1, t, None, **progress).mean()

        return loss_at

    x = torch.linspace(-2, 2, 41)[:, None]

    def error():
        with torch.no_grad():
            one = solvers.consistency(end_of_velocity(net), x, time_grid(1), lambda t: 1 - t, lambda i, x: x, 1 / 81)
        return (one - (mean + spread * x)).abs().mean().item()

    fit(net, loss_of("rf", 200), 200, lr=5e-3)
    with torch.no_grad():
        fine = integrate(velocity_of(net, "rf"), x, time_grid(50), "heun")
    before = error()
    fit(net, loss_of("ect", 400, LEVEL_TIMES.of()), 400, lr=3e-3)
    print("fine ODE", (fine - (mean + spread * x)).abs().mean().item(), "one step before", before, "after", error())
    assert before > 0.25 and error() < 0.06


@each
def test_a_folder_tunes_its_own_flow_and_samples_it(tmp_path, method, sigma):
    flow = {"ect": "rf", "ect_idff": "idff"}[method]
    more = {"sigma": sigma, "num_classes": 3}
    first = run(tmp_path / "a", method=flow, total_steps=1, **more)
    final = run(tmp_path / "b", method=method, init=str(first), total_steps=3, sample_step=3, val_step=3, **more)
    net, info = checkpoint.load_network(final)
    assert info["method"] == {"name": method, "sigma": sigma, "ect_q": 2.0, "coupling": "independent"}
    assert "val_loss" in (tmp_path / "b" / "metrics.jsonl").read_text()
    made = Sampler(net, method, (1, 8, 8), sigma, "consistency", 2)
    assert made(range(2), torch.arange(2)).isfinite().all()
    assert difference(last(tmp_path / "b")["init"]["weights"], first.name) == ""
    other = {"ect": "ect_idff", "ect_idff": "ect"}[method]
    with pytest.raises(
        ValueError, match=f"is of another network .*in_channels: .*; method: {flow} there, {other} here"
    ):
        run(tmp_path / "c", method=other, init=str(first), total_steps=1, **(more | {"sigma": SIGMA}))
