"""Fitted samplers: known weights recovered, never worse than Euler, other noises, files, command lines."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import tiny
from common import generate
from common.cli.configs import SampleConfig
from common.generate import Sampler, velocity_of
from common.networks import MLP
from common.scripts import fit, sampling
from common.scripts.gen import gen_main
from common.scripts.grid import grid_main
from common.solvers import SOLVERS, CountNFE, fitted, integrate, time_grid
from common.solvers.fitted import FittedSampler, Teacher, fit_sampler, fit_weights, key_of, rms, teach
from nets import randomised
from problems import Mixture
from tiny import TINY, network

MLP_FIELD = randomised(MLP(6, width=32), seed=3)
CONDITIONAL = replace(TINY, num_classes=3)


def field(x, t):
    """A smooth velocity in 6 dimensions whose trajectories bend."""
    with torch.no_grad():
        return MLP_FIELD(x.float(), t.float()).to(x.dtype)


def noises(n=64, dim=6, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def taught_by(method, times):
    """A teacher whose states are those of a solver on the same times."""
    x = integrate(field, noises(), times, method, trajectory=True)
    v = torch.stack([field(a, t.expand(len(a))) for a, t in zip(x[:-1], times)])
    return Teacher(times.tolist(), x, v)


@pytest.mark.parametrize(("method", "order"), [("ab2", 2), ("euler", 1), ("ab4", 4)])
def test_it_is_the_solver_that_is_optimal(method, order, monkeypatch):
    # On states that Adams-Bashforth itself made, its weights have no error: they must come out, whatever the prior.
    monkeypatch.setattr(fitted, "RIDGE", 1e-14)
    times = torch.tensor([0, 0.1, 0.35, 0.6, 0.8, 1.0], dtype=torch.float64)
    sampler, error = fit_weights(field, taught_by(method, times), times.tolist())
    assert error < 1e-6
    for i, row in enumerate(sampler.weights):
        assert row == pytest.approx(fitted._adams_row(times.tolist(), i, order), abs=2e-3)


def test_times_are_found_again_from_the_logarithms_of_their_steps_over_the_last_one():
    times = [0.0, 0.1, 0.35, 0.6, 1.0]
    z = fitted._log_ratios(times)
    assert z == pytest.approx([math.log(step / 0.4) for step in (0.1, 0.25, 0.25)])
    assert fitted._from_log_ratios(z) == pytest.approx(times)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_rows_add_up_to_the_solver(order):
    times = [0.0, 0.1, 0.35, 0.6, 1.0]
    sampler = fitted.adams_sampler(times, order)
    ours = integrate(field, noises(), times, sampler, trajectory=True)
    plain = integrate(field, noises(), times, {1: "euler", 2: "ab2", 4: "ab4"}[order], trajectory=True)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_steps", [1, 2, 4, 7])
@pytest.mark.parametrize("velocity", [Mixture().velocity, field], ids=["mixture", "network"])
def test_never_worse_than_euler_on_the_fitting_set_and_better_on_others(velocity, n_steps):
    dim = 2 if velocity is not field else 6
    teacher, other = (teach(lambda last: velocity, noises(96, dim, seed)) for seed in (0, 1))
    sampler = fit_sampler(lambda last: velocity, teacher, n_steps, search=5)

    def error(method, times, t):
        return rms(integrate(velocity, t.states[0], times, method), t.states[-1])

    assert sampler.facts["rms_fit"] == pytest.approx(error(sampler, sampler.times, teacher), rel=1e-6)
    for method in ("euler", "ab2"):
        assert sampler.facts["rms_fit"] <= error(method, time_grid(n_steps, dtype=torch.float64), teacher) + 1e-12
    if n_steps > 1:
        assert error(sampler, sampler.times, other) < 0.8 * error("euler", time_grid(n_steps), other)


def test_euler_is_returned_where_the_greedy_fit_is_worse(monkeypatch):
    def worse(*args):
        sampler, error = fit_weights(*args)
        return FittedSampler(sampler.times, tuple(tuple(2 * w for w in row) for row in sampler.weights)), 10.0

    teacher = teach(lambda last: field, noises())
    monkeypatch.setattr(fitted, "fit_weights", worse)
    sampler = fit_sampler(lambda last: field, teacher, 3, search=0)
    assert sampler.weights in [fitted.adams_sampler(sampler.times, order).weights for order in (1, 2)]


def test_search_and_progress_count_what_they_promise():
    teacher, seen = teach(lambda last: field, noises(16)), []
    count = CountNFE(field)
    fit_sampler(lambda last: count, teacher, 4, search=12, on_progress=seen.append)
    assert count.nfe == sum(seen) == 4 * (4 + 12 + 4)
    plain, searched = (fit_sampler(lambda last: field, teacher, 4, search) for search in (0, 25))
    assert searched.facts["rms_fit"] < 0.98 * plain.facts["rms_fit"]


def test_teacher_interpolates_cubics_exactly():
    times = torch.linspace(0, 1, 6, dtype=torch.float64)
    x = (times**3 - times)[:, None, None].expand(6, 2, 1)
    v = (3 * times**2 - 1)[:5, None, None].expand(5, 2, 1)
    teacher = Teacher(times.tolist(), x, v)
    for t in (0.0, 0.07, 0.2, 0.5, 0.79):
        torch.testing.assert_close(teacher.at(t), torch.full((2, 1), t**3 - t, dtype=torch.float64))
    torch.testing.assert_close(teacher.at(1.0), x[-1])
    torch.testing.assert_close(teacher.at(0.9), (x[-1] + x[-2]) / 2)


def test_teacher_is_fine_and_lands():
    exact = integrate(Mixture().velocity, noises(32, 2), [0.0, 1.0], "dopri5", rtol=1e-9, atol=1e-9)
    teacher = teach(lambda last: Mixture().velocity, noises(32, 2), 200)
    assert rms(teacher.states[-1], exact) < 2e-3 and len(teacher.velocities) == 200
    asked = []
    teach(lambda last: asked.append(last) or field, noises(4), 10)
    assert asked == [pytest.approx(0.9**1.25)]


def test_mistakes_are_named():
    sampler = fitted.adams_sampler([0.0, 0.4, 1.0], 2)
    with pytest.raises(ValueError, match="its own 2 steps"):
        integrate(field, noises(), time_grid(3), sampler)
    with pytest.raises(ValueError, match="its own 2 steps"):
        integrate(field, noises(), time_grid(2), sampler)
    with pytest.raises(ValueError, match="fit it again"):
        FittedSampler((0.0, 1.0), ((1.0, 0.5), (1.0, 0.5, 0.5)))
    with pytest.raises(ValueError, match="NaN"):
        FittedSampler((0.0, 1.0), ((1.0, float("nan")),))
    with pytest.raises(ValueError, match="ascend"):
        FittedSampler((0.0, 0.0, 1.0), ((1.0, 0.5), (1.0, 0.5, 0.5)))
    with pytest.raises(ValueError, match="same ends"):
        fit_weights(field, teach(lambda last: field, noises(4), 10), [0.0, 0.5])


# ------------------------------------------------------------------------------------------------------ with a network
@pytest.mark.parametrize("method", ["rf", "idff"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_sampler_takes_exactly_its_evaluations(method, cfg):
    net = network(replace(CONDITIONAL, method=method, sigma=0.2 if method == "idff" else 0.0))
    plan = fitted.adams_sampler([0.0, 0.3, 0.8, 1.0], 1)
    made = Sampler(net, method, (1, 8, 8), solver="fitted", grid="fitted", fitted=plan, cfg=cfg)
    x, evaluations = made.sample([0, 1, 5], torch.tensor([0, 1, 2]))
    assert evaluations == 3 * (1 if cfg == 1 else 2)
    euler = replace(made, solver="euler", grid="adaptive", fitted=None, nodes=torch.tensor(plan.times))
    torch.testing.assert_close(x, euler([0, 1, 5], torch.tensor([0, 1, 2])), rtol=0, atol=2e-5)
    assert len({made.times_hash(), euler.times_hash(), replace(euler, nodes=None).times_hash()}) == 3


def test_idff_velocity_lands_on_the_data_head_from_the_last_node_on():
    net = network(replace(TINY, method="idff", sigma=0.2))
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.9)
    with torch.no_grad():
        x1_hat = net(torch.cat([x, x], 1), t, None)[:, :1]
        landing, plain = (velocity_of(net, "idff", last=last)(x, t) for last in (0.9, 0.95))
    torch.testing.assert_close(x + 0.1 * landing, x1_hat, rtol=0, atol=1e-5)
    assert (landing - plain).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------------------- files
def test_file_beside_the_weights(tmp_path):
    weights = tiny.weights(tmp_path / "w.pt")
    plans = [fitted.adams_sampler(time_grid(n, dtype=torch.float64), 2) for n in (4, 2)]
    for plan in plans:
        path = fitted.keep_fitted(weights, plan, key_of(plan.n_steps, 1.0), {"rms": 0.1})
    assert path == tmp_path / "w.samplers.json"
    found = fitted.find_fitted(weights, key_of(4, 1.0))
    assert found == plans[0] and found.facts["rms"] == 0.1
    better = fitted.adams_sampler(time_grid(4, "power", torch.float64), 1)
    fitted.keep_fitted(weights, better, key_of(better.n_steps, 1.0))
    fitted.keep_fitted(weights, plans[1], key_of(plans[1].n_steps, 2.0))
    found = json.loads(path.read_text())["fitted"]
    assert [(e["cfg"], e["n_steps"]) for e in found] == [(1.0, 2), (1.0, 4), (2.0, 2)]
    assert fitted.find_fitted(weights, key_of(4, 1.0)) == better and fitted.fitted_for(weights, key_of(3, 1.0)) is None
    with pytest.raises(ValueError, match=r"are: 2, 4, 2 --cfg 2; fit one with .* --n_steps 6 --cfg 3"):
        fitted.find_fitted(weights, key_of(6, 3.0))


def _grids(n_steps, times, **more):
    entry = {"n_steps": n_steps, "cfg": 1.0, "landing": 1.0, "times": times, **more}
    return json.dumps(
        {"weights_sha256": "0", "adaptive": [], "fitted": []} | {"fitted" if more else "adaptive": [entry]}
    )


def _plan(weights):
    return _grids(2, [0, 0.5, 1], weights=weights, facts={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"weights_sha256": 1, "adaptive": [], "fitted": []}', "weights_sha256: expected `str`, got `int`"),
        ('{"weights_sha256": "0", "adaptive": [3], "fitted": []}', ": expected `object`, got `int`"),
        (_grids(3, [0, 0.5, 1]), "3 times for 3 steps"),
        (_grids(2, [-3, 0.5, 1]), ": expected `float` >= 0.0"),
        (_plan([[1, 1e300], [1, 0, 1]]), ": expected `float` <= 1000000.0"),
        ('{"weights_sha256": "0", "adaptive": [], "fitted": [{"cfg": 1.0, "n_steps": 2, "times": [0, 1]}]}', "damaged"),
        ('{"weights_sha256": "0", "adaptive": [], "fitted": []}', "other weights than w.pt"),
    ],
)
def test_foreign_and_damaged_files_are_named(tmp_path, text, message, capsys):
    weights = tiny.weights(tmp_path / "w.pt")
    fitted.samplers_path(weights).write_text(text)
    with pytest.raises(ValueError, match=message):
        fitted.find_fitted(weights, key_of(4, 1.0))
    made = sampling.resolved(Sampler(network(), "rf", (1, 8, 8)), SampleConfig(), weights)  # auto goes on without it
    assert made.solver == sampling.SOLVER and message in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- command lines
FIT = ["--n_noises", "4", "--n_test", "2", "--fine_steps", "12", "--search", "2"]


def test_fit_then_sample(tmp_path, capsys):
    folder = tiny.folder(tmp_path, CONDITIONAL)
    weights = tiny.weights(tmp_path / "runs" / "mine" / "RF_weights_step_final.pt", CONDITIONAL)
    results = fit.fit_main(folder, "", [*FIT, "--n_steps", "3", "5"])
    assert [r["n_steps"] for r in results] == [3, 5] and all(r["rms"] < r["rms_euler"] for r in results)
    assert "use it with --solver fitted --n_steps 5\n" in capsys.readouterr().out
    pictures = {}
    for flags in ("", "--solver fitted", "--solver euler", "--n_steps 4", "--grid edm", "--grid adaptive"):
        argv = ["--n_samples", "4", "--out", str(tmp_path / "a.png"), *flags.split()]
        grid_main(folder, "", [*argv, *([] if "n_steps" in flags else ["--n_steps", "3"])])
        pictures[flags] = (tmp_path / "a.png").read_bytes(), capsys.readouterr().out
    assert (
        pictures[""][0] == pictures["--solver fitted"][0] and "fitted, 3 steps, grid fitted, NFE 3" in pictures[""][1]
    )
    assert f"{sampling.SOLVER}, 4 steps, grid {sampling.GRID}, NFE 4" in pictures["--n_steps 4"][1]
    assert f"{sampling.SOLVER}, 3 steps, grid edm" in pictures["--grid edm"][1]
    assert f"{sampling.SOLVER}, 3 steps, grid adaptive" in pictures["--grid adaptive"][1]
    assert len({picture for picture, _ in pictures.values()}) == 5
    kept = fitted.read_samplers(weights)["adaptive"]
    assert len(kept) == sampling.LARGEST and all(e["times"][0] == 0 and e["times"][-1] == 1 for e in kept)
    grid_main(folder, "", [*argv, "--n_steps", "3"])  # the second time the grid is read
    assert (tmp_path / "a.png").read_bytes() == pictures["--grid adaptive"][0]


def test_a_set_is_not_continued_with_another_fit(tmp_path):
    folder = tiny.folder(tmp_path)
    weights = tiny.weights(tmp_path / "results" / "shipped.pt")
    argv = ["--n_samples", "2", "--n_steps", "2", "--solver", "fitted", "--save_dir", str(tmp_path / "set")]
    fitted.keep_fitted(weights, fitted.adams_sampler([0.0, 0.5, 1.0], 2), key_of(2, 1.0))
    gen_main(folder, "", argv)
    gen_main(folder, "", argv)
    fitted.keep_fitted(weights, fitted.adams_sampler([0.0, 0.4, 1.0], 2), key_of(2, 1.0))
    with pytest.raises(ValueError, match="times"):
        gen_main(folder, "", argv)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (
            grid_main,
            "--solver fitted --n_steps 7",
            "no sampler was fitted to shipped.pt for --n_steps 7; there are: none",
        ),
        (grid_main, "--solver fitted --grid edm", "leave --grid edm out"),
        (fit.fit_main, "--n_steps 0", "at least 1"),
        (fit.fit_main, "--fine_steps 10 --n_steps 8", "less than twice the 8 steps"),
        (fit.fit_main, "--n_noises 0", "at least 1"),
        (fit.fit_main, "--cfg 2", "class-conditional"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, main, flags, message):
    tiny.weights(tmp_path / "results" / "shipped.pt")
    with pytest.raises(ValueError, match=message):
        main(tiny.folder(tmp_path), "", flags.split())


def test_every_plain_solver_can_be_asked_for():
    from typing import get_args

    from common.cli.configs import GridName, SolverName
    from common.solvers.grids import GRIDS

    others = {"auto", "fitted", "dopri5", "torchdyn", "flowmap", "consistency", "idff", "euler_maruyama"}
    assert set(get_args(SolverName)) == {*SOLVERS, *others}
    assert set(get_args(GridName)) == {*GRIDS, "auto", "adaptive"}


# ------------------------------------------------------------------------------------------------------------- landing
@pytest.mark.parametrize(("solver", "nfe"), [("euler", 5), ("ab2", 5), ("unipc2", 5), ("heun", 9)])
def test_landing_is_the_flow_to_there_and_one_straight_step(solver, nfe):
    net = network()
    made = Sampler(net, "rf", (1, 8, 8), solver=solver, n_steps=5, landing=0.8)
    times = made.times()
    torch.testing.assert_close(times, torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    x, evaluations = made.sample([0, 1])
    with torch.no_grad():
        start = generate.noise_for([0, 1], (1, 8, 8), 0)
        y = integrate(lambda x, t: net(x, t, None), start, times[:-1], solver)
        y = (y + 0.2 * net(y, torch.full((2,), 0.8), None)).clamp(-1, 1)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    assert evaluations == nfe


def test_fits_and_grids_of_several_landings_lie_side_by_side(tmp_path, capsys):
    folder = replace(tiny.folder(tmp_path), landing=0.8)
    weights = tiny.weights(tmp_path / "results" / "shipped.pt")
    for flags in ([], ["--landing", "1"]):  # the folder's choice, and none
        fit.fit_main(folder, "", [*FIT, "--n_steps", "3", *flags])
    ours, plain = (fitted.find_fitted(weights, key_of(3, 1.0, landing)) for landing in (0.8, 1.0))
    assert ours.times[-2] < 0.82 and ours != plain
    pictures = []
    for flags in ("", "--landing 1", "--solver euler", "--solver euler --landing 1", f"--weights {weights}"):
        grid_main(folder, "", ["--n_samples", "4", "--n_steps", "3", "--out", str(tmp_path / "a.png"), *flags.split()])
        pictures.append((tmp_path / "a.png").read_bytes())
    assert len(set(pictures)) == 4 and pictures[1] == pictures[4]  # the folder's choice is for its own weights
    for wrong in ("-0.1", "1.5"):
        with pytest.raises(ValueError, match="--landing"):
            grid_main(folder, "", ["--n_samples", "4", "--landing", wrong])


def test_a_sampler_fitted_in_less_precision_is_not_used_in_more(tmp_path):
    weights = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, weights)
    rough, exact = (fitted.adams_sampler([0.0, middle, 1.0], 1) for middle in (0.3, 0.6))
    full, half = (key_of(2, 1.0, 1.0, precision) for precision in ("no", "bf16"))
    fitted.keep_fitted(weights, rough, half)
    assert fitted.fitted_for(weights, full) is None and fitted.fitted_for(weights, half) == rough
    fitted.keep_fitted(weights, exact, full)
    assert fitted.fitted_for(weights, full) == exact and fitted.fitted_for(weights, half) == rough
    assert fitted.fitted_for(weights, key_of(2, 1.0, 1.0, "fp16")) == exact  # what holds in full holds in half
