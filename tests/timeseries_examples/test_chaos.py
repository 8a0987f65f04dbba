"""Measures of forecasts and attractors against closed forms; delay equations; the systems of dysts, where it is."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import factorial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from common.cli import parse
from timeseries_examples import attractors, lorenz, measures, systems, zoo
from timeseries_examples import propagator as flows
from tiny import ROOT

RNG = np.random.default_rng(0)

# ---- measures


def test_smape_by_hand():
    """|1 - 3| / 4, then |2 - 2| / 4 and |0 - 0| counts as 0, then opposite signs, whose ratio is 1."""
    truth = np.array([[1.0], [2.0], [0.0], [-1.0]])
    forecast = np.array([[3.0], [2.0], [0.0], [1.0]])
    assert measures.smape(forecast, truth) == pytest.approx([100, 50, 100 / 3, 75])
    assert measures.smape(truth, forecast) == pytest.approx([100, 50, 100 / 3, 75])  # symmetric
    forecast[1:] = [[np.nan], [np.inf], [-np.inf]]
    assert measures.smape(forecast, truth) == pytest.approx([100, 150, 500 / 3, 175])
    two = np.concatenate([truth, truth], axis=1)
    assert measures.smape(np.array([[3.0, 1.0]] * 4), two)[0] == pytest.approx(50)  # mean over coordinates


def figure_of(dimension, count):
    """Uniform points of a line, square, cube or torus in three dimensions."""
    if dimension == "torus":
        a, b = RNG.uniform(0, 2 * np.pi, (2, count))
        return np.stack([(2 + np.cos(a)) * np.cos(b), (2 + np.cos(a)) * np.sin(b), np.sin(a)], axis=1)
    mix = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    return RNG.uniform(size=(count, dimension)) @ mix[:dimension] + [1, 2, 3]


@pytest.mark.parametrize("shape, right", [(1, 1), (2, 2), ("torus", 2), (3, 2.9)])
def test_correlation_dimension_of_figures(shape, right):
    """The cube's is below 3 by its faces: C(r) ~ r^3 (1 - 9 r / 8 + ...)."""
    found = [measures.correlation_dimension(figure_of(shape, 1200)) for _ in range(4)]
    assert np.mean(found) == pytest.approx(right, abs=0.06)


def test_correlation_dimension_of_lorenz_is_that_of_grassberger_and_procaccia():
    x = systems.trajectories(systems.SYSTEMS["lorenz"], 24, 500, seed=1, settle=8, rtol=1e-6)
    points = attractors.thinned(x, x.std((0, 1)))
    assert np.mean([measures.correlation_dimension(each) for each in points]) == pytest.approx(2.05, abs=0.08)


def test_correlation_dimension_of_what_came_to_rest():
    assert measures.correlation_dimension(np.ones((50, 3))) == 0
    assert measures.correlation_dimension(np.repeat(figure_of(1, 600), 2, axis=0)) == pytest.approx(1, abs=0.15)


def test_divergence_of_two_gaussians():
    """Single points are Gaussians: |a - b|^2 / (2 width^2). Samples of N(0, 1) and N(m, 1) blur to variance 1 + w^2."""
    a, b = np.zeros((1, 3)), np.array([[0.3, 0.0, 0.4]])
    found = measures.state_space_divergence(a, b, width=0.5, draws=40_000)
    assert found == pytest.approx(0.25 / (2 * 0.25), abs=0.02)
    assert measures.state_space_divergence(a, 100 * b, width=0.1, draws=100) == pytest.approx(2500 / 0.02, rel=0.02)
    x, y = RNG.normal(size=(2, 1000, 1))
    found = measures.state_space_divergence(x, y + 0.8, width=0.5)
    assert found == pytest.approx(0.8**2 / (2 * 1.25), abs=0.08)
    assert measures.state_space_divergence(x, 2 * y, width=0.5) == pytest.approx(
        0.5 * (np.log(4.25 / 1.25) + 1.25 / 4.25 - 1), abs=0.08
    )
    assert measures.state_space_divergence(x, x) == 0


def test_runs_that_leave_are_counted_and_held(capsys):
    """Half of the runs explode: counted, with finite distances; persistence has dimension 0 and a floor beside it."""
    system, options = systems.SYSTEMS["lorenz"], lorenz.Options(forecasts=4, sets=2, length=100)
    options = replace(options, n_trajectories=2, frames=20)
    truth = attractors.Truth.of(replace(system, settle=1.0), options, 1)
    assert "note" not in capsys.readouterr().out

    def roll(known, frames):
        made = np.repeat(known, frames, axis=1)
        made[: len(made) // 2, 40:] = np.nan
        return made

    result, pictures = attractors.judged(roll, system, truth, options)
    assert result["runs_that_left"] == 0.5 and np.isfinite(pictures["made"]).all()
    assert result["correlation_dimension"]["of_model"] < 0.5 < result["correlation_dimension"]["of_real"]
    assert result["state_space_divergence"]["model"] > 10 * result["state_space_divergence"]["real"]
    assert 100 < result["smape"]["0.5"] <= 200


# ---- delay equations


def test_method_of_steps_has_the_polynomials_of_the_linear_equation():
    """x' = -x(t - 1), x = 1 before 0: sum over k <= t + 1 of (-1)^k (t - k + 1)^k / k!, seen at t, t - 1/2, t - 1."""
    delayed = zoo.Delayed(
        "linear", 1.0, 0.3, (1.0,), "", np.asarray, scatter=0.0, delay=1.0, delayed_rate=lambda x, b: -b, seen=3
    )
    found = systems.trajectories(delayed, 2, 14, seed=0, settle=0.3)
    assert found.shape == (2, 14, 3)

    def exact(t):
        k = np.arange(7)
        bases = np.maximum(t - k + 1, 0)
        return 1.0 if t <= 0 else float(sum((-1) ** j * bases[j] ** j / factorial(j) for j in k))

    times = 0.3 + 0.3 * np.arange(14)
    right = [[exact(t - lag) for lag in (0, 0.5, 1)] for t in times]
    assert np.abs(found - right).max() < 1e-6  # the kink of the beginning bends the first spline


# ---- dysts


class Rows:
    """dysts's usual form: _rhs of scalars, x.T unpacked."""

    ic, std, unbounded_indices = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 0.5]), []
    period, maximum_lyapunov_estimated = 3.0, 2.0

    def rhs(self, x, t):
        a, b, _ = x.T
        return -b, a, b


class Columns(Rows):
    """The form that unpacks x itself."""

    def rhs(self, x, t):
        a, b, _ = x
        return -b, a, b


class Singly(Rows):
    """A branch, which takes one state only."""

    def rhs(self, x, t):
        return -x[1], x[0], x[1] if x[2] > 99 else x[1]


class Timed(Rows):
    """A rate that is a function of time."""

    def rhs(self, x, t):
        return np.sin(t) + 0 * x[0], 0 * x[0], 0 * x[0]


class Angle(Rows):
    """A phase without bound, seen by its cosine."""

    unbounded_indices = [2]

    def rhs(self, x, t):
        a, b, _ = x.T
        return -b, a, 4.0

    @staticmethod
    def _postprocessing(x, y, z):
        return x, y, np.cos(z)


@pytest.fixture
def stand_in(monkeypatch):
    """A package with dysts's interface."""
    package, flows, names = ModuleType("dysts"), ModuleType("dysts.flows"), ModuleType("dysts.systems")
    classes = (Rows, Columns, Singly, Timed, Angle)
    vars(flows).update({each.__name__: each for each in classes})
    names.get_attractor_list = lambda: [each.__name__ for each in classes]  # type: ignore[attr-defined]
    package.flows = flows  # type: ignore[attr-defined]
    for name, module in {"dysts": package, "dysts.flows": flows, "dysts.systems": names}.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name, how", [("Rows", "by_rows"), ("Columns", "by_columns"), ("Singly", "singly")])
def test_rates_of_many_states_in_either_form(stand_in, name, how):
    """A turn in the plane in three forms: x(t) = R(t) x(0)."""
    system = systems.find(f"dysts:{name}", 100)
    assert system.rate.__name__ == how and system.frame == pytest.approx(0.03) and system.past == 1
    x = systems.trajectories(system, 4, 5, seed=0)
    turn = np.array([[np.cos(0.03), -np.sin(0.03)], [np.sin(0.03), np.cos(0.03)]])
    assert np.abs(x[:, 1:, :2] - x[:, :-1, :2] @ turn.T).max() < 1e-8
    near = x[:, 0] - x[0, 0]
    assert 0 < np.abs(near).max() < 0.02  # begun at dysts's state, and not in it


def test_angles_are_seen_by_their_cosine_and_two_frames(stand_in):
    system = systems.find("dysts:Angle", 30)
    x = systems.trajectories(system, 2, 40, seed=0)
    assert system.past == 2 and np.abs(x[..., 2]).max() <= 1
    recurrence = x[:, 2:, 2] + x[:, :-2, 2] - 2 * np.cos(0.4) * x[:, 1:-1, 2]  # of a cosine with steps of 4 * 0.1
    assert np.abs(recurrence).max() < 1e-6


def test_trajectories_that_do_not_separate_are_named(stand_in, capsys):
    """A turn in the plane is not chaotic: what begins 0.1% apart stays so."""
    options = lorenz.Options(sets=2, length=100, n_trajectories=1, frames=3)
    attractors.Truth.of(systems.find("dysts:Rows"), options, 1)
    assert "note: trajectories of dysts:Rows are 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, line",
    [
        ("dysts:rowz", "no such system in dysts; the nearest of its 5: dysts:Rows"),
        ("dysts:", "no such system in dysts"),
        ("dysts:Timed", "its rate is a function of time"),
    ],
)
def test_names_that_dysts_does_not_have(stand_in, name, line):
    with pytest.raises(ValueError, match=line) as caught:
        systems.find(name)
    assert "\n" not in str(caught.value)


def test_without_dysts(monkeypatch):
    monkeypatch.setitem(sys.modules, "dysts", None)
    with pytest.raises(ValueError, match=r"--system dysts:NAME needs dysts \(.*\): pip install dysts") as caught:
        lorenz.run(parse(lorenz.Options, argv=["--smoke", "--system", "dysts:Lorenz"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Lorenz96", "Duffing", "CellCycle"])
def test_systems_of_dysts_are_solved_as_dysts_has_them(name):
    """One state by scipy's LSODA on dysts's own function, over a tenth of a period."""
    dysts = pytest.importorskip("dysts.flows", exc_type=ImportError)
    from scipy.integrate import solve_ivp

    system, model = systems.find(f"dysts:{name}", 30), getattr(dysts, name)()
    span = model.period / 10
    right = solve_ivp(lambda t, x: model.rhs(x, t), (0, span), model.ic, "LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
    found = system.solve(np.repeat(model.ic[:, None], 3, axis=1), np.array([span]), 1e-9)[..., 0]
    assert np.abs(found - right[:, None]).max() < 1e-5 * np.abs(right).max()
    seen = systems.trajectories(replace(system, settle=0.0), 2, 3, seed=0)
    assert seen.shape == (2, 3, len(model.ic)) and not np.array_equal(seen[0], seen[1])


def test_mackey_glass_is_seen_at_its_delays():
    """Coordinate j is the first one j frames ago where a frame is a ninth of the delay; it moves as published."""
    pytest.importorskip("dysts.flows", exc_type=ImportError)
    system = systems.find("dysts:MackeyGlass", 30)
    x = systems.trajectories(replace(system, settle=150.0), 2, 120, seed=0, frame=16 / 9)
    assert x.shape == (2, 120, 10) and np.abs(x[:, 9:, 9] - x[:, :-9, 0]).max() < 1e-4
    assert 0.2 < x[..., 0].min() < 0.6 and 1.2 < x[..., 0].max() < 1.5


def test_dysts_lorenz_is_ours():
    dysts = pytest.importorskip("dysts.flows", exc_type=ImportError)
    found, x = systems.find("dysts:Lorenz"), 10 * RNG.normal(size=(3, 5))
    assert found.exponent == pytest.approx(0.9056, rel=0.02) and found.frame == pytest.approx(0.05, rel=0.01)
    assert found.rate(x) == pytest.approx(systems.lorenz(x), rel=2e-3, abs=0.01)  # its beta is 2.667
    assert len(zoo._dysts()[1]) == 135 and dysts.Lorenz().period == 30 * found.frame


def test_weights_know_their_frame_and_that_an_angle_needs_two(stand_in, tmp_path):
    options = lorenz.Options(system="dysts:Angle", points=12, n_trajectories=2, frames=9, width=4, depth=1)
    options = replace(options, total_steps=2, batch_size=4, out=str(tmp_path))
    model, _ = lorenz.trained(systems.find(options.system, options.points), options)
    model.net.double()
    assert model.recipe.past == 2 and model.sizes() == (3 + 2 * 3, 3)
    again = lorenz.Options(weights=str(tmp_path / "CFM_dysts-Angle_v1.pt"), points=30)
    _, learnt = flows.load_as_trained(again, lorenz.TRAINED_WITH, "a chaotic system")
    assert learnt.system == "dysts:Angle" and learnt.frame == 0.25
    known = RNG.normal(size=(5, 7, 3))
    made = attractors.rolled(model, 0, known, 3)
    assert made.shape == (5, 3, 3)


# ---- the benchmark's echo-state network


def test_echo_state_network_goes_on_with_a_sine():
    pytest.importorskip("reservoirpy", exc_type=ImportError)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import chaos

    t = np.arange(400) * 0.2 + np.linspace(0, 6, 8)[:, None]
    data = np.stack([np.sin(t), 3 * np.cos(t) + 5], axis=2)
    options = chaos.Options(units=60, washout=50)
    system = SimpleNamespace(exponent=0.5, frame=0.2)
    roll, said = chaos.echo_state_network(system, data[:, :300], options)  # type: ignore[arg-type]
    assert np.abs(roll(data[:, 250:300], 100) - data[:, 300:]).max() < 0.05
    assert said["esn"]["radius"] in (0.1, 0.4, 0.9)


def test_choices_of_the_benchmark_are_models(tmp_path, capsys, monkeypatch):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import chaos

    from common.records.rows import JsonLines

    monkeypatch.setattr(chaos, "RESULTS", tmp_path)
    options = replace(chaos.Options(), systems=("Lorenz",), models=("esn", "flow"))
    for model, valid, extent in (("esn", 4.0, 0.3), ("flow", 2.0, 0.1)):
        floor = {"model": extent, "real": 0.05}
        JsonLines(tmp_path / "rows.jsonl").append(
            {"system": "Lorenz", "model": model, "setup": chaos.setup_of(options), "valid_time_mean": valid}
            | {"smape": {"1": 9.0}, "correlation_dimension": floor, "state_space_divergence": floor}
        )
    chaos.table(options)
    printed = capsys.readouterr().out
    assert "| Lorenz | **4.00** | 2.00 |" in printed and "| Lorenz | 0.30 | **0.10** | 0.05 |" in printed
