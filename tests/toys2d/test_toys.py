"""The plane: distributions, the small training loop, toys.py and the higher-order samplers, against known answers."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import nn

import higher_orders
import plane
import toy_flow
from common import checkpoint, plots
from common.cli import validate
from common.data import toys
from common.metrics import straightness, wasserstein2
from common.networks import MLP
from common.runtime import generator
from common.solvers import GRIDS, SOLVERS, integrate, time_grid
from common.training import small
from started import start
from tiny import ROOT

FOLDER = ROOT / "2D-toys"
# The mean of the swiss roll: int a cos a and int a sin a over 1.5 pi < a < 4.5 pi are 6 pi and 2.
MEANS = {"moons": (0.5, -0.25), "swissroll": (0.4, 2 / (15 * math.pi))}


# ---- distributions


@pytest.mark.parametrize("name", toys.DISTRIBUTIONS)
def test_a_distribution_is_a_function_of_its_generator_with_the_documented_mean(name):
    x = toys.sample(name, 20_000, generator(3, name))
    assert x.shape == (20_000, 2) and x.dtype == torch.float32
    assert torch.equal(x, toys.sample(name, 20_000, generator(3, name)))
    assert not torch.equal(x, toys.sample(name, 20_000, generator(4, name)))
    error = (x.mean(0) - torch.tensor(MEANS.get(name, (0.0, 0.0)))).abs()
    assert (error < 4 * x.std(0) / math.sqrt(len(x))).all()
    assert 0.5 < x.std() < 4 and toys.sample(name, 1, generator(3)).shape == (1, 2)


def test_distributions_have_the_shapes_that_they_are_named_for():
    def draw(name):
        return toys.sample(name, 4000, generator(0, name))

    angle = torch.arange(8) * math.pi / 4
    modes = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    distance, nearest = torch.cdist(draw("8gaussians"), modes).min(1)
    assert distance.square().mean().item() == pytest.approx(2 * math.sqrt(0.1), rel=0.1)
    assert (torch.bincount(nearest) > 400).all()
    cell = torch.div(draw("checkerboard") + 4, 2, rounding_mode="floor")
    assert ((cell.sum(1) % 2) == 0).all() and cell.min() == 0 and cell.max() == 3
    radius = draw("circles").norm(dim=1)
    assert ((radius - torch.where(radius > 3, 4.0, 2.0)).abs() < 0.5).all()
    assert draw("gaussian").T.cov().sub(torch.eye(2)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "n", "message"), [("blob", 5, "unknown distribution 'blob'.*moons"), ("moons", 0, "0")]
)
def test_a_wrong_distribution_is_named_in_one_line(name, n, message):
    with pytest.raises(ValueError, match=message) as caught:
        toys.sample(name, n, generator(0))
    assert "\n" not in str(caught.value)


# ---- training


def test_pairs_and_losses_are_functions_of_the_step():
    net = MLP(2, 8, 1)
    for coupling in ("independent", "ot", "sinkhorn"):
        pairs = small.fresh_pairs("gaussian", "moons", coupling, 32, seed=5)
        first, other = pairs(7), pairs(8)
        assert all(torch.equal(a, b) for a, b in zip(first, pairs(7)))
        assert not torch.equal(first[0], other[0])
        loss = small.flow_loss(net, pairs, "cfm", 0.1, seed=5)
        assert loss(7).item() == loss(7).item() != loss(8).item()
    free, tied = (small.fresh_pairs("gaussian", "moons", c, 32, seed=5)(7) for c in ("independent", "ot"))
    assert torch.equal(free[1], tied[1]) and not torch.equal(free[0], tied[0])
    assert torch.equal(free[0].sort(0).values, tied[0].sort(0).values)
    assert (tied[1] - tied[0]).square().sum() < (free[1] - free[0]).square().sum()


@pytest.mark.parametrize("target", ["circles", "spirals", "moons"])
def test_independent_pairs_of_sets_in_two_parts_are_independent(target):
    x0, x1 = small.fresh_pairs("circles", target, "independent", 20_000, seed=3)(0)
    outer, rows = x0.norm(dim=1) > 3, torch.arange(20_000) % 2 == 0
    assert torch.equal(outer, rows), "the order of the source's rows means something"
    spread = x1.std(dim=0) / 100  # of a mean of 10,000
    assert ((x1[outer].mean(0) - x1[~outer].mean(0)).abs() < 5 * spread).all()
    if target == "circles":
        assert (x1.norm(dim=1)[outer] > 3).float().mean().item() == pytest.approx(0.5, abs=0.02)


class Slope(nn.Module):
    """One weight; the loss (weight - step)^2 pulls it along."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_fit_ends_with_the_average_of_the_weights_it_went_through():
    seen = []

    def learn(ema_decay):
        net = Slope()

        def loss(step):
            seen.append(net.weight.item())
            return (net.weight - step - 1).square().sum()

        small.fit(net, loss, 6, lr=0.5, schedule="constant", ema_decay=ema_decay)
        return net.weight.item()

    last = learn(0.0)
    weights = [*seen[1:6], last]  # what each of the six updates left
    average = 0.0
    for k, weight in enumerate(weights):
        decay = min(0.7, 1 - (1 + k) ** -0.75)
        average = decay * average + (1 - decay) * weight
    assert learn(0.7) == pytest.approx(average, rel=1e-5) and average < last


def test_fit_lowers_the_loss_and_refuses_what_cannot_work():
    net = Slope()
    losses = small.fit(net, lambda step: (net.weight - 3).square().sum(), 200, lr=0.1)
    assert len(losses) == 200 and losses[0] == 9 and losses[-1] < 0.01
    with pytest.raises(ValueError, match="loss is nan at step 0: lower the learning rate"):
        small.fit(net, lambda step: net.weight.sum() * math.nan, 3)
    with pytest.raises(ValueError, match="0 steps"):
        small.fit(net, lambda step: net.weight.sum(), 0)
    with pytest.raises(ValueError, match="schedule 'linear'"):
        small.fit(net, lambda step: net.weight.sum(), 3, schedule="linear")


def test_a_short_training_comes_near_the_floor():
    net = small.train_mlp("gaussian", "8gaussians", "otcfm", n_steps=400, batch_size=64, lr=5e-3)
    x0 = toys.sample("gaussian", 500, generator(0, "x0"))
    target, other = (toys.sample("8gaussians", 500, generator(0, what)) for what in ("x1", "other"))
    end = plane.sample_paths(net, "otcfm", x0, time_grid(20), "ab2")[0][-1]
    floor = wasserstein2(other, target)
    assert wasserstein2(x0, target) > 3.5 and wasserstein2(end, target) < floor + 0.8


# ---- pictures


def test_histogram_and_mesh_describe_the_same_cells():
    cells = plane.mesh(2.0, 4)
    assert cells[:4].tolist() == [[-1.5, -1.5], [-0.5, -1.5], [0.5, -1.5], [1.5, -1.5]]
    weights = torch.arange(16)
    density = plane.histogram(cells.repeat_interleave(weights, 0), 2.0, 4)
    assert torch.allclose(density.flatten(), weights / 120)  # cells of area 1
    half = plane.histogram(torch.tensor([[0.1, 0.1], [9.0, 0.0]]), 2.0, 4)
    assert half.sum() == 0.5 and half[2, 2] == 0.5


def test_a_figure_has_an_axis_a_title_and_is_a_picture(tmp_path):
    figure, axes = plots.panels(["one", "two", "three"], limit=3.0)
    assert [axis.get_title() for axis in axes] == ["one", "two", "three"] and axes[0].get_xlim() == (-3, 3)
    x = torch.randn(5, 40, 2, generator=generator(0))
    plots.points(axes[0], x[0])
    plots.paths(axes[1], x)
    plane.image(axes[2], plane.histogram(x[0], 3.0, 10), 3.0)
    (lines,) = [c for c in axes[1].collections if hasattr(c, "get_segments")]
    assert len(lines.get_segments()) == 40 and lines.get_segments()[3].shape == (5, 2)
    plots.save(figure, tmp_path / "figure.png", dpi=50, crop=False)
    assert Image.open(tmp_path / "figure.png").size == (330, 122)
    assert plots.limit_of(x[0], torch.tensor([[0.0, -10.0]])) == pytest.approx(10.8)


# ---- toys.py


def test_the_choices_are_those_of_the_library():
    assert get_args(toy_flow.Distribution) == tuple(toys.DISTRIBUTIONS)
    assert set(get_args(toy_flow.Grid)) <= set(GRIDS)
    others = {"auto", "dopri5", "torchdyn", "idff", "euler_maruyama"}
    assert others < set(get_args(toy_flow.Solver)) <= {*SOLVERS, *others}


def test_log_density_is_exact_for_an_affine_flow():
    def velocity(x, t):  # x(1) = 2 R x(0) + (1, 1), R a rotation: N((1, 1), 4 I)
        centred = x - t[:, None]
        return math.log(2) * centred + 0.7 * torch.stack([-centred[:, 1], centred[:, 0]], 1) + 1

    x = torch.tensor([[1.0, 1.0], [3.0, 0.0], [-2.0, 5.0]])
    expected = -(x - 1).square().sum(1) / 8 - math.log(8 * math.pi)
    assert torch.allclose(plane.log_density(velocity, x, time_grid(20)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "solver", "nfe"),
    [
        ("cfm", "euler", 5),
        ("cfm", "midpoint", 9),
        ("cfm", "rk4", 17),
        ("cfm", "unipc3", 5),
        ("cfm", "ipndm4", 5),
        ("cfm", "euler_maruyama", 5),
        ("idff", "idff", 5),
        ("idff", "euler", 5),
        ("idff", "heun", 9),
        ("idff", "euler_maruyama", 5),
    ],
)
def test_paths_begin_at_the_source_and_count_their_evaluations(method, solver, nfe):
    torch.manual_seed(0)
    net, x0, times = plane.network(method, 8, 1), torch.randn(6, 2), time_grid(5)
    states, counted = plane.sample_paths(net, method, x0, times, solver, seed=1)
    assert states.shape == (6, 6, 2) and torch.equal(states[0], x0) and counted == nfe
    again, other = (plane.sample_paths(net, method, x0, times, solver, seed=seed)[0] for seed in (1, 2))
    assert torch.equal(states, again)
    assert torch.equal(states, other) == (solver not in ("idff", "euler_maruyama"))
    assert plane.sample_paths(net, method, x0, time_grid(1), solver)[1] == 1


def test_reflow_straightens_the_paths():
    torch.manual_seed(0)
    net = plane.network("rf", 32, 2)
    pairs = small.fresh_pairs("gaussian", "8gaussians", "independent", 128, 0)
    small.fit(net, small.flow_loss(net, pairs, "rf", 0.0, 0), 300, lr=5e-3)
    x0, times = toys.sample("gaussian", 300, generator(0)), time_grid(50)

    def measure():
        return straightness(plane.sample_paths(net, "rf", x0, times, "euler")[0], times)

    before = measure()
    made = plane.reflow_pairs(net, "gaussian", 1000, seed=0)
    assert torch.equal(made[0], plane.reflow_pairs(net, "gaussian", 1000, seed=0)[0])
    losses = plane.reflow(net, *made, n_steps=200, lr=5e-3)
    assert len(losses) == 200 and measure() < before / 3 and before > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fm", "source": "moons"}, "fm starts from a Gaussian, not from moons: use --method cfm"),
        ({"sigma": 0.1}, "--sigma belongs to the bridges.*for otcfm give --spread"),
        ({"method": "idff", "spread": 0.1}, "--spread belongs to cfm, otcfm and fm, not to idff"),
        ({"method": "rf", "solver": "idff"}, "--solver idff needs --method idff, not rf"),
        ({"method": "cfm", "source": "moons", "solver": "euler_maruyama"}, "the score, unknown for cfm from moons"),
        ({"method": "reflow", "solver": "euler_maruyama"}, "the score, unknown for reflow"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
    ],
)
def test_what_cannot_work_together_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        options = toy_flow.Options(**changes)
        validate(options)
        toy_flow.check(options)
    assert "\n" not in str(caught.value)
    toy_flow.check(toy_flow.Options())


def test_weights_come_back_and_contradicting_flags_do_not(tmp_path):
    options = toy_flow.Options(source="moons", method="idff", width=8, depth=2)
    net = plane.network("idff", 8, 2)
    toy_flow.save(tmp_path / "weights.pt", net, options)
    torch.load(tmp_path / "weights.pt", weights_only=True)
    found, again = toy_flow.loaded(toy_flow.Options(weights=str(tmp_path), seed=4))
    assert found == toy_flow.Options(source="moons", method="idff", width=8, depth=2, weights=str(tmp_path), seed=4)
    x, t = torch.randn(3, 4), torch.rand(3)
    assert torch.equal(net(x, t), again(x, t))
    with pytest.raises(ValueError, match="--target circles, but .* has 8gaussians: drop --target"):
        toy_flow.loaded(toy_flow.Options(target="circles", weights=str(tmp_path)))
    checkpoint.save(tmp_path / "other.pt", {"net_model": {}})
    with pytest.raises(ValueError, match="holds no flow of toys.py"):
        toy_flow.loaded(toy_flow.Options(weights=str(tmp_path / "other.pt")))


# ---- IDFF's higher orders


def linear(x, t):
    """x1_hat = A x + b: g1 is the sum of A's rows, g2 = g3 = 0."""
    return x @ torch.tensor([[2.0, -1.0], [0.5, 3.0]]).T + torch.tensor([1.0, -2.0])


def test_gradients_of_a_linear_prediction():
    x, t = torch.randn(4, 2, generator=generator(0)), torch.full((4,), 0.3)
    drift = higher_orders.Drift(linear, (0.2, -0.5, 0.1), sigma=0.5)
    s2, g1 = 0.5**2 * 0.3 * 0.7, torch.tensor([2.5, 2.0])
    expected = math.sqrt(1 + 0.2 * s2) * (linear(x, t) - x) / 0.7 + (0.2 - 0.5) * g1 * s2 / 0.5**2
    assert torch.allclose(drift(x, t), expected, atol=1e-6)
    assert (drift.forward, drift.backward) == (1, 3)


def test_gradients_of_a_cubic_prediction():
    """x1_hat = x^3: g1 = 3 x^2, g2 = 6 x, g3 = 6."""
    x, t = torch.randn(5, 2, generator=generator(0)), torch.full((5,), 0.25)
    a, b, c = 0.9, -0.4, 0.3
    drift = higher_orders.Drift(lambda x, t: x**3, (a, b, c), sigma=0.2)
    rate = math.sqrt(1 - (a + b + c) * 0.04 * 0.1875)
    expected = rate * (x**3 - x) / 0.75 + 0.1875 * ((a - 0.5) * 3 * x**2 + b * 6 * x + c * 6)
    assert torch.allclose(drift(x, t), expected, atol=1e-5)


def test_the_plain_flow_has_no_gradient_and_the_published_drift_at_zero_does():
    x, t = torch.randn(4, 2, generator=generator(0)), torch.full((4,), 0.4)
    plain, zero = higher_orders.Drift(linear, ()), higher_orders.Drift(linear, (0.0, 0.0))
    assert torch.allclose(plain(x, t), (linear(x, t) - x) / 0.6) and (plain.forward, plain.backward) == (1, 0)
    assert torch.allclose(zero(x, t), plain(x, t) - 0.5 * 0.24 * torch.tensor([2.5, 2.0]), atol=1e-6)
    assert (zero.forward, zero.backward) == (1, 1)  # the second gradient has the weight 0


def test_the_plain_flow_of_two_gaussians_ends_on_the_known_map():
    """N(0, I) to N(m, s^2 I), independent: x(t) = t m + sqrt((1-t)^2 + s^2 t^2) x(0)."""
    m, s = torch.tensor([3.0, -1.0]), 0.5

    def data(x, t):
        t = t[:, None]
        return m + s**2 * t / ((1 - t) ** 2 + s**2 * t**2) * (x - t * m)

    x0 = torch.randn(20, 2, generator=generator(0))
    states, drift = higher_orders.sampled(data, (), 0.2, x0, 40, "rk4")
    assert torch.allclose(states[-1], m + s * x0, atol=0.02)
    assert torch.allclose(states[20], m / 2 + math.sqrt(0.25 + 0.25 * s**2) * x0, atol=1e-4)
    assert drift.backward == 0

    def velocity(x, t):
        return (data(x, t) - x) / (1 - t)[:, None]

    assert torch.equal(states[-1], integrate(velocity, x0, time_grid(40), "rk4", final_euler=True))


@pytest.mark.parametrize("solver", ["euler", "rk4"])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_calls_are_counted_exactly_and_fit_the_budget(solver, order):
    for budget in (1, 10, 20, 41):
        n_steps = higher_orders.steps_within(budget, solver, order)
        _, drift = higher_orders.sampled(linear, (0.1,) * order, 0.2, torch.zeros(2, 2), n_steps, solver)
        evaluations = n_steps if solver == "euler" else 4 * n_steps - 3
        assert (drift.forward, drift.backward) == (evaluations, order * (evaluations - 1))  # t = 0 needs none
        assert drift.forward + drift.backward <= budget < higher_orders.calls_of(solver, order, n_steps + 1)


def test_gammas_are_chosen_on_validation_points_only(monkeypatch):
    def data(x, t):
        return x + torch.sin(x) + torch.tensor([1.0, 2.0])

    options, asked, points = higher_orders.Options(n_samples=100), [], higher_orders.points

    def watched(options, what, n):
        asked.append(what)
        x0, _ = points(options, what, n)
        states, _ = higher_orders.sampled(data, (0.8, -0.2), options.sigma, x0, 6, "euler")
        return x0, states[-1]  # what these gammas make

    monkeypatch.setattr(higher_orders, "points", watched)
    assert higher_orders.choose(data, options, order=2, n_steps=6) == (0.8, -0.2)
    assert set(asked) == {"validation"}
    draws = [points(options, what, 50) for what in ("validation", "test", "other test")]
    assert len({tuple(x.flatten().tolist()) for pair in draws for x in pair}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": (2, 4)}, "--orders 2 4: choose among 1, 2 and 3"),
        ({"gammas": (0.2, -0.5)}, "2 gammas belong to order 2: give --orders 2"),
        ({"calls": (0,)}, "--calls 0: must be at least 1"),
        ({"gammas": (99.0, 2.0), "orders": (2,)}, "sum must be at most 4 / sigma\\^2 = 100"),
        ({"sigma": 0.0}, "--sigma 0.0: must be above 0"),
    ],
)
def test_orders_refuses_what_cannot_work_together(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        validate(higher_orders.Options(**changes))
    assert "\n" not in str(caught.value)
    validate(higher_orders.Options(gammas=(0.2, -0.5), orders=(2,)))


# ---- the scripts


def test_the_scripts_run_from_the_folder_and_from_the_root(tmp_path):
    flags = ("--smoke", "--out")
    plane = start(FOLDER / "toys.py", *flags, tmp_path / "a", "--method", "reflow", cwd=FOLDER)
    higher = start(FOLDER / "idff_orders.py", *flags, tmp_path / "b", "--calls", 10, "--orders", "2", cwd=ROOT)
    assert plane.returncode == 0, plane.stderr[-3000:]
    assert "gaussian -> 8gaussians, reflow: 40 steps" in plane.stdout and "midpoint, 20 steps: NFE 39" in plane.stdout
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"figure.png", "results.json", "weights.pt"}
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["nfe"] == 39 and results["options"]["method"] == "reflow" and results["straightness"] >= 0
    assert Image.open(tmp_path / "a" / "figure.png").width == 5 * 264
    assert higher.returncode == 0, higher.stderr[-3000:]
    assert "plain flow                     calls 10 = 10 forward + 0 backward" in higher.stdout
    rows = json.loads((tmp_path / "b" / "results.json").read_text())["rows"]
    assert [(row["forward"], row["steps"]) for row in rows] == [(10, 10), (4, 4), (4, 4), (4, 4)]
    assert all(row["forward"] + row["backward"] <= 10 for row in rows)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("toys.py", ("--method", "fm", "--source", "moons"), "fm starts from a Gaussian"),
        ("toys.py", ("--target", "blob"), "choose one of gaussian"),
        ("idff_orders.py", ("--orders", "5"), "choose among 1, 2 and 3"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(script, flags, message):
    result = start(FOLDER / script, *flags, cwd=ROOT)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1
