"""Chaotic systems, their measures, and the propagator that learns them."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import started
from common import checkpoint
from common.cli import parse, validate
from common.data.series import roll_out
from timeseries_examples import attractors, lorenz, measures, systems
from timeseries_examples import propagator as flows
from tiny import ROOT

FOLDER = ROOT / "timeseries_examples"

LORENZ, ROSSLER = systems.SYSTEMS["lorenz"], systems.SYSTEMS["rossler"]


def run(script, *flags):
    """Run a script of the folder from the root; its output, errors included."""
    done = started.start(FOLDER / f"{script}.py", *flags, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


# ---- systems


@pytest.mark.parametrize("system", [LORENZ, ROSSLER], ids=lambda s: s.name)
def test_equations_at_their_fixed_points(system):
    if system.name == "lorenz":
        c = np.sqrt(8 / 3 * 27)
        point = np.array([c, c, 27.0])
    else:
        root = (5.7 - np.sqrt(5.7**2 - 4 * 0.2 * 0.2)) / 2
        point = np.array([root, -root / 0.2, root / 0.2])
    assert np.abs(system.rate(point)).max() < 1e-12


def test_trajectories_are_accurate_and_chaotic():
    """Tenfold tighter tolerances change nothing at first, and the distance then grows at the Lyapunov exponent."""
    a = systems.trajectories(LORENZ, 4, 200, seed=0, settle=2)
    again = systems.trajectories(LORENZ, 4, 200, seed=0, settle=2)
    assert np.array_equal(a, again) and a.shape == (4, 200, 3)
    assert not np.array_equal(a[0], a[1])
    tight = systems.trajectories(LORENZ, 4, 60, seed=0, settle=2, rtol=1e-12)
    assert np.abs(a[:, :60] - tight).max() < 1e-4


@pytest.mark.parametrize("system, most", [(LORENZ, 0.08), (ROSSLER, 0.015)], ids=["lorenz", "rossler"])
def test_exponent_by_the_growth_of_tangents(system, most):
    """Benettin's method: the mean logarithmic growth of a small difference, renormalised at every frame."""
    from scipy.integrate import solve_ivp

    x = systems.trajectories(system, 16, 2, seed=3)[:, 0].T
    y, growth, small = x + 1e-6 / np.sqrt(3), [], 1e-6
    step = 10 * system.frame
    for _ in range(60):
        both = np.concatenate([x, y], axis=1)
        solved = solve_ivp(
            lambda _, s: system.rate(s.reshape(3, 32)).ravel(), (0, step), both.ravel(), "DOP853", rtol=1e-9, atol=1e-11
        )
        x, y = np.split(solved.y[:, -1].reshape(3, 32), 2, axis=1)
        distance = np.linalg.norm(y - x, axis=0)
        growth.append(np.log(distance / small).mean() / step)
        y = x + (y - x) / distance * small
    assert np.mean(growth[10:]) == pytest.approx(system.exponent, abs=most)


def test_valid_time_of_a_known_error():
    """An error that grows as 1e-3 exp(lambda t) passes 0.4 after log(400) Lyapunov times."""
    step, exponent = 0.01, 0.9
    t = step * np.arange(1, 1001)
    truth = np.zeros((1000, 2, 3))
    forecast = truth + (1e-3 * np.exp(exponent * t))[:, None, None] * [2.0, 5.0, 9.0]
    spread = np.array([2.0, 5.0, 9.0])
    found = systems.valid_time(forecast, truth, spread, step, exponent)
    assert found == pytest.approx(log(400), abs=2 * step)
    forecast[5] = np.nan
    assert systems.valid_time(forecast, truth, spread, step, exponent)[0] == pytest.approx(5 * step * exponent)
    assert systems.valid_time(truth, truth, spread, step, exponent)[0] == pytest.approx(1000 * step * exponent)


def test_maxima_of_a_sine_of_growing_height():
    t = np.arange(0, 60, 0.3)
    pairs = systems.maxima((10 + t) * np.sin(t))
    tops = 10 + np.pi / 2 + 2 * np.pi * np.arange(len(pairs) + 1)
    assert pairs[:, 0] == pytest.approx(tops[:-1], abs=0.06) and pairs[:, 1] == pytest.approx(tops[1:], abs=0.06)


# ---- measures


def test_js_distance_is_scipys_and_knows_its_ends():
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 20, 50), rng.integers(0, 20, 50)
    assert measures.js_distance(p, 3 * q) == pytest.approx(jensenshannon(p, q, base=2))
    assert measures.js_distance(p, 7 * p) == 0 and measures.js_distance([1, 0], [0, 2]) == 1
    with pytest.raises(ValueError, match="need the same bins"):
        measures.js_distance([1, 2], [0, 0])


def test_w1_of_a_shift_and_the_floor_of_equal_sets():
    x = np.random.default_rng(0).normal(size=(6, 500))
    assert measures.w1(x[0], x[0] + 2.5) == pytest.approx(2.5)
    made, floor = measures.against_floor(x[:3], x[3:], measures.w1)
    assert 0.5 < made / floor < 2 and floor > 0
    assert measures.against_floor(x[:3] + 1, x[3:], measures.w1)[0] == pytest.approx(1, abs=0.2)


def test_cells_hold_every_point():
    points = np.array([[0.1, 0.1], [0.9, 0.1], [0.95, 0.05], [7.0, -3.0]])
    counts = measures.cells(points, [0, 0], [1, 1], 2)
    assert counts.tolist() == [[1, 0], [3, 0]]


def test_autocorrelation_of_an_autoregression():
    """x_{k+1} = a x_k + noise has rho(l) = a^l and an integrated time of 1/2 + a / (1 - a)."""
    rng, a = np.random.default_rng(0), 0.9
    noise, x = rng.normal(size=200_000), np.zeros(200_000)
    for k in range(1, len(x)):
        x[k] = a * x[k - 1] + noise[k]
    rho = measures.autocorrelation(x, 200)
    assert rho[:6] == pytest.approx(a ** np.arange(6), abs=0.01)
    assert measures.correlation_time(rho) == pytest.approx(0.5 + a / (1 - a), rel=0.06)
    direct = x - x.mean()
    assert rho[3] == pytest.approx(np.mean(direct[3:] * direct[:-3]) / np.mean(direct**2))
    with pytest.raises(ValueError, match="constant"):
        measures.autocorrelation(np.ones(9), 3)


# ---- propagator


def linear(frames=400, count=4, turn=0.3):
    """Trajectories of a rotation in the plane, x_{k+1} = R x_k: a step that a network must find to be linear."""
    rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]], dtype=torch.float32)
    x = [torch.randn(count, 2, generator=torch.Generator().manual_seed(0))]
    for _ in range(frames - 1):
        x.append(x[-1] @ rotation.T)
    return list(torch.stack(x, dim=1)), rotation


@pytest.mark.parametrize("method, source", [("cfm", "frame"), ("cfm", "noise"), ("idff", "frame"), ("idff", "noise")])
def test_propagator_learns_a_rotation(method, source):
    series, rotation = linear()
    sigma = 0.0 if method == "cfm" else 0.05
    recipe = flows.Recipe(method, source, "ode", sigma, n_steps=1 if source == "frame" else 8)
    p = flows.build(flows.Space.of("line", series), recipe, 32, 2, seed=0)
    losses = flows.train(p, series, 600, 128, 5e-3, seed=0)
    assert np.mean(losses[-50:]) < 0.7 * np.mean(losses[:20])
    x = torch.stack(series)[:, :50].reshape(-1, 2)
    drawn = p.step_from(torch.zeros(len(x)), seed=0)(x[:, None], 0)[:, 0]
    error = (drawn - x @ rotation.T).square().mean().sqrt() / (x @ rotation.T - x).square().mean().sqrt()
    assert error < (0.15 if source == "frame" else 0.3)


def test_bridge_from_the_frame_has_the_right_spread():
    """x_{k+1} = 0.8 x_k + 0.6 noise: stationary variance 1, autocorrelation 0.8^l; only noise on the way keeps it."""
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(64, 1, generator=g)]
    for _ in range(199):
        x.append(0.8 * x[-1] + 0.6 * torch.randn(64, 1, generator=g))
    series = list(torch.stack(x, dim=1))
    recipe = flows.Recipe("idff", "frame", "sde", sigma=1.0, n_steps=12)
    p = flows.build(flows.Space.of("line", series), recipe, 32, 2, seed=0)
    flows.train(p, series, 1500, 256, 3e-3, seed=0)
    rolled = roll_out(p.step_from(torch.zeros(256), 0), torch.randn(256, 1, 1, generator=g), 60)[20:, :, 0, 0]
    assert rolled.var() == pytest.approx(1, abs=0.15)
    assert (rolled[1:] * rolled[:-1]).mean() / rolled.var() == pytest.approx(0.8, abs=0.06)


def test_draws_are_a_function_of_the_seed():
    series, _ = linear(20)
    p = flows.build(flows.Space.of("line", series), flows.Recipe("cfm", "noise", "ode", 0.0, past=2), 8, 1, seed=0)
    state = torch.stack([x[:2] for x in series])
    a, b, c = (roll_out(p.step_from(torch.zeros(4), seed), state, 5) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (5, 4, 2, 2)
    assert torch.equal(a[:-1, :, 1], a[1:, :, 0])  # the newest frame becomes the one before


def test_recipes_that_cannot_work():
    for changes, line in {
        ("cfm", "frame", "sde", 0.2): "needs --method idff --source frame",
        ("idff", "frame", "ode", 0.0): "idff's bridge needs one above 0",
    }.items():
        with pytest.raises(ValueError, match=line):
            validate(flows.Recipe(*changes))
    with pytest.raises(ValueError, match="--past 0: must be at least 1"):
        validate(flows.Recipe(past=0))
    with pytest.raises(ValueError, match="coordinate 1 of the series never changes"):
        flows.Space.of("line", [torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]])])


def test_checkpoint_comes_back(tmp_path):
    from common import checkpoint

    series, _ = linear(20)
    p = flows.build(flows.Space.of("line", series), flows.Recipe("cfm", "frame", "ode", 0.0, n_steps=1), 8, 1, seed=0)
    checkpoint.save(tmp_path / "a.pt", flows.state_of(p, {"seed": 3}, 7, None))
    again, config = flows.load(tmp_path / "a.pt")
    x = torch.stack([s[:1] for s in series])
    assert torch.equal(p.step_from(torch.zeros(4), 0)(x, 0), again.step_from(torch.zeros(4), 0)(x, 0))
    assert config == {"seed": 3} and again.recipe == p.recipe and again.space == p.space


# ---- the script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of the script with a seed of its own, and what it printed."""
    out = tmp_path_factory.mktemp("lorenz")
    return out, run("Lorenz_simulation", "--smoke", "--seed", 1, "--out", out)


def test_script(trained, tmp_path):
    out, printed = trained
    assert "valid prediction time" in printed
    found = json.loads((out / "lorenz.json").read_text())
    assert found["system"] == "lorenz" and found["nfe"] == 1 and np.isfinite(found["valid_time_mean"])
    assert (out / "lorenz_attractor.png").stat().st_size > 5000
    flags = ("--smoke", "--weights", out / "CFM_lorenz_v1.pt", "--seed", 1, "--out", tmp_path / "b")
    again = started.start(FOLDER / "Lorenz_simulation.py", *flags, cwd=ROOT)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "steps of" not in again.stdout + again.stderr  # nothing was trained
    assert json.loads((tmp_path / "b" / "lorenz.json").read_text())["valid_time_mean"] == found["valid_time_mean"]


def start(*flags):
    """The script in this process."""
    lorenz.run(parse(lorenz.Options, argv=["--smoke", *map(str, flags)]))


def test_script_with_the_other_system_and_method(tmp_path):
    start("--system", "rossler", "--method", "idff", "--sigma", 0.05, "--out", tmp_path)
    found = json.loads((tmp_path / "rossler.json").read_text())
    assert found["method"] == "idff" and (tmp_path / "IDFF_rossler_v1.pt").exists()


@pytest.mark.parametrize(
    "flags, line",
    [
        (("--system", "duffing"), "choose one of lorenz, rossler, dysts:NAME"),
        (("--frames", 1), "--frames 1"),
        (("--weights", "none.pt"), "no weights at none.pt"),
        (("--sigma", 0, "--method", "idff"), "--sigma 0"),
    ],
)
def test_mistakes_get_one_line(flags, line):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        start(*flags)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_linear_regression_follows_a_linear_system_for_ever():
    rng = np.random.default_rng(0)
    turn, shift = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=3)
    states = [rng.normal(size=(4, 3))]
    for _ in range(60):
        states.append(states[-1] @ turn + shift)
    series = np.stack(states, 1)
    found = attractors.linear(series[:, :30], series[:, 30], 30)
    assert np.abs(found.transpose(1, 0, 2) - series[:, 31:]).max() < 1e-9


def shipped(name):
    """Weights of the folder, as a dict that may be damaged."""
    return checkpoint.load(FOLDER / "results" / name)


SPACE = {"kind": "line", "scale": [1.0] * 3, "centre": [0.0] * 3, "spread": [1.0] * 3}


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"space": None}, "its space"),
        ({"space": {"kind": "line"}}, "its space.*scale"),
        ({"space": SPACE | {"kind": "cube"}}, "its space.*'cube'"),
        ({"space": SPACE | {"scale": "abc"}}, "its space.*scale"),
        ({"space": SPACE | {"scale": [1.0, float("nan"), 1.0]}}, "not finite"),
        ({"space": SPACE | {"scale": [1.0, 0.0, 1.0]}}, "not above 0"),
        ({"space": SPACE | {"centre": [0.0]}}, "3 scales, 1 centres"),
        ({"space": SPACE | {key: [1.0] * 4 for key in ("scale", "centre", "spread")}}, "its network has"),
        ({"past": 3}, "its network has"),
        ({"past": 0}, "past"),
        ({"n_steps": "many"}, "n_steps"),
        ({"solver": "magic"}, "solver"),
        ({"name": "rf"}, "rf"),
    ],
)
def test_weights_of_another_space_or_recipe_are_named(tmp_path, changes, line):
    state = shipped("lorenz/CFM_lorenz_v1.pt")
    path = tmp_path / "a.pt"
    checkpoint.save(path, state | {"method": state["method"] | changes})
    with pytest.raises(ValueError, match=line) as error:
        flows.load(path)
    assert str(path) in str(error.value) or "past" in changes


@pytest.mark.parametrize("key, value", [("system", "double pendulum"), ("n_steps", -1), ("frame", "x"), ("method", 3)])
def test_options_of_weights_are_checked(tmp_path, key, value):
    state = shipped("lorenz/CFM_lorenz_v1.pt")
    checkpoint.save(tmp_path / "a.pt", state | {"config": state["config"] | {key: value}})
    options = lorenz.Options(weights=str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match=f"a.pt, its options: (--)?{key}"):
        flows.load_as_trained(options, lorenz.TRAINED_WITH, "a chaotic system")


def test_options_that_weights_set_aside_are_told(capsys):
    file = str(FOLDER / "results" / "lorenz" / "CFM_lorenz_v1.pt")
    options = lorenz.Options(weights=file, system="rossler")
    assert flows.load_as_trained(options, lorenz.TRAINED_WITH, "a chaotic system")[1].system == "lorenz"
    assert f"note: --system rossler is not what {file} has learnt; it is lorenz here" in capsys.readouterr().out
    flows.load_as_trained(lorenz.Options(weights=file), lorenz.TRAINED_WITH, "a chaotic system")
    assert "note" not in capsys.readouterr().out


def test_weights_are_not_tested_on_the_trajectories_of_their_training(trained, tmp_path):
    flags = ("--smoke", "--weights", trained[0] / "CFM_lorenz_v1.pt", "--out", tmp_path / "b", "--seed", 0)
    done = started.start(FOLDER / "Lorenz_simulation.py", *flags, cwd=ROOT)
    assert done.returncode == 2 and "was trained on what it would be tested on, use --seed 1" in done.stderr
