"""Propagators of dihedrals: spaces on the circle, measures of angles, splits, the script on made-up trajectories."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import vonmises

from common.cli import parse, validate
from started import start
from timeseries_examples import dihedrals, ensemble, figures, formats, md, measures
from timeseries_examples import propagator as flows
from tiny import ROOT

FOLDER = ROOT / "timeseries_examples"

ALPHA, BETA = np.deg2rad([-65, -40]), np.deg2rad([-120, 170])  # beta's psi reaches over the end of the circle


def hopping(frames=400, residues=3, seed=0, stay=0.95, width=0.25):
    """Angles (frames, residues, 2) that hop between two basins, with an autoregressive motion inside them."""
    rng = np.random.default_rng(seed)
    state = rng.random(residues) < 0.5
    inside, rows = np.zeros((residues, 2)), []
    for _ in range(frames):
        state = np.where(rng.random(residues) < stay, state, ~state)
        inside = 0.5 * inside + np.sqrt(0.75) * width * rng.normal(size=inside.shape)
        rows.append(dihedrals.wrap(np.where(state[:, None], ALPHA, BETA) + inside))
    return np.array(rows, np.float32)


def folder_of(path, lengths=(300, 300, 300), **more):
    """A folder of made-up trajectories with half a picosecond between frames."""
    for k, frames in enumerate(lengths):
        angles = more.get("scale", 1.0) * hopping(frames, seed=k)
        dihedrals.save_trajectory(path / f"a{k}.npz", angles, 0.5 * np.arange(frames), {})
    return path


def run(*flags, code=0):
    """Run MD_simulation.py from its folder; its output, errors included."""
    done = start(FOLDER / "MD_simulation.py", *flags, cwd=FOLDER)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the script: its data, its folder, what it printed."""
    data, out = folder_of(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("md")
    return data, out, run("--smoke", "--data", data, "--held_out", 1, "--out", out)


def test_weights_are_not_tested_on_what_they_may_have_seen(trained, tmp_path):
    longer = folder_of(tmp_path / "longer", (300, 300, 300, 300))
    weights = ("--smoke", "--weights", trained[1] / "CFM_MD_v1.pt", "--out", tmp_path / "again")
    line = run(*weights, "--data", longer, code=2)
    assert "was trained on 40 stretches" in line and "these are 60 stretches" in line


# ---- measures of angles


def test_errors_know_the_circle():
    truth = np.deg2rad(np.array([[179.0, -90.0], [0.0, 45.0]]))
    errors = measures.circular_errors(np.deg2rad(np.array([[-179.0, -80.0], [4.0, 45.0]])), truth)
    assert errors["mae"] == pytest.approx((2 + 10 + 4 + 0) / 4)
    assert errors["rmse"] == pytest.approx(np.sqrt((4 + 100 + 16) / 4))


def test_circular_mean_and_correlation():
    rng = np.random.default_rng(0)
    angles = np.pi + 0.2 * rng.normal(size=(500, 2))
    assert np.abs(dihedrals.wrap(measures.circular_mean(angles) - np.pi)).max() < 0.05
    assert measures.circular_correlation(angles, angles + 2.5) == pytest.approx(1)
    assert measures.circular_correlation(angles, -angles) == pytest.approx(-1)
    assert abs(measures.circular_correlation(angles, rng.permuted(angles, axis=0))) < 0.1


def test_ramachandran_puts_phi_first():
    counts = measures.ramachandran(np.deg2rad(np.array([[[-179.0, 1.0], [179.9, -1.0]]])), bins=4)
    expected = np.zeros((4, 4))
    expected[0, 2] = expected[3, 1] = 1
    assert np.array_equal(counts, expected)


def von_mises_surface(kappas, centres, bins):
    """Exact free energy of the cells for independent von Mises angles, minimum 0, as the histogram has it."""
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    shares = [np.diff(vonmises.cdf(edges, k, loc=m)) % 1 for k, m in zip(kappas, centres)]
    energy = -np.log(np.outer(*shares))
    return energy - energy.min()


def test_free_energy_of_von_mises_angles_is_the_one_in_closed_form():
    """-log density is k (1 - cos(angle - centre)) each; quantiles in place of draws, so that chance has no part."""
    kappas, centres, bins = (2.0, 0.7), (-1.2, 2.5), 24
    quantiles = (np.arange(1200) + 0.5) / 1200
    phi, psi = (dihedrals.wrap(vonmises.ppf(quantiles, k, loc=m)) for k, m in zip(kappas, centres))
    surface = measures.free_energy(*np.meshgrid(phi, psi, indexing="ij"), bins=bins)
    assert surface.min() == 0 and np.abs(surface - von_mises_surface(kappas, centres, bins)).max() < 0.15
    middle = -np.pi + 2 * np.pi * (np.arange(bins) + 0.5) / bins
    phi_part, psi_part = (k * (1 - np.cos(middle - m)) for k, m in zip(kappas, centres))
    assert np.abs(surface - phi_part[:, None] - psi_part).max() < 0.2
    assert np.isnan(measures.free_energy(phi[:1], psi[:1], 5)).sum() == 24


def test_free_energy_error_of_a_turned_distribution():
    """Turned by d, k (1 - cos) changes by 2 k sin(d / 2) times a sine: its root mean square is sqrt(2) k sin(d / 2)."""
    grid = np.linspace(-np.pi, np.pi, 36, endpoint=False)
    kappa, turn = 1.5, 0.8

    def surface(centre):
        return kappa * (1 - np.cos(grid - centre))[:, None] + 0.5 * (1 - np.cos(grid))

    a, b = surface(0.0), surface(turn)
    expected = np.sqrt(2) * kappa * np.sin(turn / 2)
    assert measures.free_energy_error(a, b, within=9) == pytest.approx(expected)
    assert measures.free_energy_error(a, a) == 0
    assert measures.free_energy_error(a, a + 3) == pytest.approx(0, abs=1e-12)  # the constant that nobody knows


def test_free_energy_error_counts_what_the_reference_visits():
    """Six cells: one beyond 4 kT and one that is never visited do not count; one that only the other misses does."""
    reference = np.array([[0.0, 1.0, 3.0], [3.5, 5.0, np.nan]])
    other = np.array([[0.0, 1.0, 3.0], [np.nan, 0.0, 1.0]])
    missed = 3 + np.log(2) - 3.5  # as half a visit would have it
    assert measures.free_energy_error(reference, other) == pytest.approx(np.std([0, 0, 0, missed]))
    assert measures.free_energy_error(reference, other, within=3) == 0
    with pytest.raises(ValueError, match="need the same cells"):
        measures.free_energy_error(reference, other[:1])
    with pytest.raises(ValueError, match="not all NaN"):
        measures.free_energy_error(reference, np.full((2, 3), np.nan))


def test_left_handed_states_do_not_reach_into_the_extended_basin():
    angles = np.deg2rad(np.array([[[60.0, 40.0], [-60.0, -40.0]], [[175.0, 170.0], [119.0, -60.0]]]))
    assert measures.positive_phi_share(angles).tolist() == [0.5, 0.5]


def test_helix_needs_three_in_a_row():
    helix, strand = np.deg2rad([-60, -40]), np.deg2rad([-120, 130])

    def share(text):
        return measures.helix_share(np.array([helix if c == "h" else strand for c in text]))

    assert share("hhhhh") == 1 and share("sshhs") == 0 and share("shhhs") == pytest.approx(3 / 5)
    assert share("hhshhhh") == pytest.approx(4 / 7)
    assert share("h") == 1 and share("hs") == 0.5 and share("s") == 0  # too few for a row


def test_a_linear_regression_finds_the_best_linear_forecast():
    """Angles that turn on and hold on to a slow drift: one step ahead, sin and cos are linear in sin and cos."""
    turn = np.cumsum(np.full((300, 2, 2), 0.1), axis=0).astype(np.float32)
    angles = dihedrals.wrap(turn + np.array([[0.0, 1.0], [2.0, 3.0]], np.float32))
    for past, lead in ((1, 1), (2, 5)):
        given = np.stack([angles[k - past : k] for k in range(200, 250)])
        found = ensemble.linear([angles[:150], angles[:100]], given, lead)
        want = np.stack([angles[k - 1 + lead] for k in range(200, 250)])
        assert np.abs(dihedrals.wrap(found - want)).max() < 1e-3
    noise = np.random.default_rng(0).uniform(-np.pi, np.pi, (4000, 1, 2)).astype(np.float32)
    size = np.abs(ensemble.linear([noise], noise[:50, None], 1) - dihedrals.wrap(noise[1:51]))
    assert size.mean() > 1  # of what is independent it knows nothing


# ---- spaces


@pytest.mark.parametrize("kind", ["circle", "angle"])
def test_increment_and_move_are_inverse_over_the_end_of_the_circle(kind):
    series = [ensemble.as_states(hopping(100, seed=k), kind) for k in range(2)]
    space = flows.Space.of(kind, series)
    a, b = series[0][:-1], series[0][1:]
    moved = space.move(a, space.target(a, b))
    assert np.abs(dihedrals.wrap(ensemble.as_angles(moved, kind) - ensemble.as_angles(b, kind))).max() < 1e-4
    far = space.move(a, 50 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0)))
    angles = ensemble.as_angles(far, kind)
    assert np.abs(angles).max() <= np.pi + 1e-5
    if kind == "circle":
        sine, cosine = far.chunk(2, dim=1)
        assert torch.allclose(sine**2 + cosine**2, torch.ones(1), atol=1e-5)
    assert space.target(a, b).square().mean() == pytest.approx(1, abs=0.3)


def test_model_keeps_two_basins_that_are_far_apart():
    """Hops between basins: the share of each, and the time between hops, which is 20 frames."""
    train_set = [hopping(2000, residues=1, seed=k) for k in range(4)]
    series = [ensemble.as_states(x, "circle") for x in train_set]
    recipe = flows.Recipe("cfm", "noise", "ode", 0.0, n_steps=4, solver="heun")
    model = flows.build(flows.Space.of("circle", series), recipe, 64, 2, seed=0)
    flows.train(model, series, 800, 256, 3e-3, seed=0)
    options = md.Options(rollouts=16, length=400)
    made = ensemble.long_runs(model, [hopping(100, residues=1, seed=9), hopping(100, residues=1, seed=10)], options)
    assert made.shape == (32, 400, 1, 2)
    inside = (np.abs(dihedrals.wrap(made[..., 0, 1] - ALPHA[1])) < np.pi / 2).astype(float)
    assert inside.mean() == pytest.approx(0.5, abs=0.12)
    hops = np.abs(np.diff(inside, axis=1)).mean()
    assert hops == pytest.approx(0.05, abs=0.02)
    distance = ensemble.distances(made, train_set, [hopping(2000, residues=1, seed=20)], bins=18)
    assert distance["model_to_held_out"] < 0.25 and distance["training_to_held_out"] < 0.15


# ---- data


def options(path, **changes):
    words: dict[str, Any] = {"lag": 1} | changes
    given = md.Options(data=str(path), **words)
    validate(given)
    return md.completed(given)


def test_splits(tmp_path, capsys):
    folder = folder_of(tmp_path, (300, 200, 250))
    learnt, train_set, held_out, lag, unseen = md.parts(options(folder, held_out=1))
    assert len(unseen) == 1 and np.array_equal(unseen[0], held_out[0])
    assert [len(x) for x in train_set] == [300, 200] and [len(x) for x in held_out] == [250]
    assert lag == pytest.approx(0.5) and "500 steps to train on" in capsys.readouterr().out
    assert all(map(np.array_equal, learnt, train_set))
    learnt, train_set, held_out, lag, unseen = md.parts(
        options(folder, held_out=2, split="blocks", lag=2, leads=(1, 2))
    )
    assert len(held_out) == 6 and len(train_set) == 24 and lag == pytest.approx(1.0)
    assert sum(map(len, train_set)) + sum(map(len, held_out)) == 10 * (15 + 10 + 13)
    assert sum(map(len, unseen)) == 2 * (30 + 20 + 25) and all(map(np.array_equal, (x[::2] for x in unseen), held_out))
    assert sum(map(len, learnt)) == 8 * (30 + 20 + 25)  # no frame is left out
    assert all(map(np.array_equal, learnt[::2], train_set))


def test_a_step_of_several_frames_is_learnt_from_all_pairs_of_frames_that_far_apart(tmp_path):
    lengths, lag = (50, 47), 5
    folder = folder_of(tmp_path, (*lengths, 60))
    learnt, *_ = md.parts(options(folder, lag=lag, leads=(1, 2)))
    whole = [t.angles for t in formats.load_all(folder)[:2]]
    pairs = {(a.tobytes(), b.tobytes()) for x in learnt for a, b in zip(x[:-1], x[1:])}
    assert pairs == {(x[i].tobytes(), x[i + lag].tobytes()) for x in whole for i in range(len(x) - lag)}


def test_no_window_reaches_over_a_gap(tmp_path):
    _, train_set, *_ = md.parts(options(folder_of(tmp_path), held_out=2, split="blocks", leads=(1, 2)))
    series = [ensemble.as_states(x, "angle") for x in train_set]
    p = flows.build(flows.Space.of("angle", series), flows.Recipe(past=2), 8, 1, seed=0)
    given, following, k = flows.examples(p, series)
    assert len(given) == sum(len(x) - 2 for x in train_set) and int(k.min()) == 1


@pytest.mark.parametrize(
    "lengths, changes, line",
    [
        ((300, 300), {"held_out": 2}, "nothing is left to train on"),
        ((300, 15), {"held_out": 1}, "longest held-out stretch has 15 frames.* need 21"),
        ((300, 300), {"held_out": 7, "split": "blocks"}, "of ten blocks hold out 5 at most"),
        ((60, 60), {"held_out": 2, "split": "blocks"}, "longest training stretch has 6 frames"),
        ((300, 300), {"held_out": 1, "leads": (2, 1)}, "growing numbers that begin with 1"),
    ],
)
def test_data_that_do_not_suffice(tmp_path, lengths, changes, line):
    with pytest.raises(ValueError, match=line):
        md.parts(options(folder_of(tmp_path, lengths), **changes))


def test_the_shipped_dipeptide_has_a_name(tmp_path, monkeypatch):
    """The name goes before a folder of that name; its runs have a folder of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dipeptide").mkdir()
    found = md.completed(md.Options(data="dipeptide"))
    assert found.data == str(FOLDER / "trajectories" / "dipeptide") and found.out == str(FOLDER / "runs" / "dipeptide")
    assert md.completed(md.Options(data="./dipeptide")).data == "./dipeptide"
    assert md.completed(md.Options()).out == str(FOLDER / "runs" / "md")
    _, train_set, held_out, step, unseen = md.parts(md.completed(md.Options(data="dipeptide", lag=10)))
    assert (len(train_set), len(held_out), step) == (3, 1, 10.0) and unseen[0].shape[1:] == (1, 2)


# ---- the script


def test_script_trains_and_evaluates(trained, tmp_path):
    folder, out, printed = trained
    assert "RMSE model" in printed and "steps rolled out, all finite" in printed
    found = json.loads((out / "md.json").read_text())
    assert found["nfe"] == 2 and found["condition"] == "frame" and len(found["leads"]) == 2
    for name in ("free_energy", "traces", "statistics"):
        assert (out / f"md_{name}.png").stat().st_size > 5000
    weights = next(out.glob("*_MD_v1.pt"))
    assert weights.stat().st_size < 2e6
    again = run("--smoke", "--data", folder, "--held_out", 1, "--weights", weights, "--out", tmp_path / "b")
    assert "steps of" not in again
    assert json.loads((tmp_path / "b" / "md.json").read_text())["leads"] == found["leads"]


def test_traces_have_a_row_for_each_residue_that_there_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "save", lambda figure, path, dpi: seen.append(figure))
    for residues in (1, 2, 5):
        x, members = hopping(50, residues), np.zeros((4, 3, 2 * residues))
        figures.traces({"forecast": members, "truth": members[:, 0], "real": [x], "made": [x]}, 1.0, tmp_path / "x.png")
    assert [len(figure.axes) for figure in seen] == [3, 6, 9]
    assert all(axis.lines for figure in seen for axis in figure.axes)


@pytest.mark.parametrize(
    "flags",
    [
        ("--condition", "time"),
        ("--method", "idff", "--sigma", 1.0, "--source", "frame", "--space", "angle"),
        ("--method", "idff", "--sigma", 0.2, "--past", 2, "--lag", 2),
    ],
)
def test_other_ways(tmp_path, flags, capsys):
    start = ("--smoke", "--data", folder_of(tmp_path / "data"), "--out", tmp_path)
    md.run(parse(md.Options, argv=[*map(str, start), *map(str, flags)]))
    assert "all finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            ("--data", "nowhere"),
            "--data nowhere: no such folder or file; give one of trajectories (python make_md_data.py makes some), or "
            "a name of what is here: dipeptide",
        ),
        (("--unit", "degrees"), "these are radians, not degrees: give --unit radians"),
        (("--past", 0), "--past 0"),
        (("--weights", "none.pt"), "no weights at none.pt"),
        (("--held_out", 0), "--held_out 0: must be at least 1"),
    ],
)
def test_mistakes_get_one_line(tmp_path, flags, line):
    data = () if "--data" in flags else ("--data", folder_of(tmp_path / "data"))
    words = list(map(str, ("--smoke", *data, "--out", tmp_path / "a", *flags)))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        md.run(parse(md.Options, argv=words))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_ends_the_script_with_code_2(tmp_path):
    printed = run("--smoke", "--data", tmp_path / "nowhere", code=2)
    assert printed.startswith("error: --data ") and printed.count("\n") == 1
