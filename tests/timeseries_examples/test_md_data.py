"""Dihedrals, their files, and the molecular dynamics that makes them (the last only where OpenMM is installed)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import started
from timeseries_examples import dihedrals, formats, md_data, peptide
from tiny import ROOT

FOLDER = ROOT / "timeseries_examples"

HAS_OPENMM = all(importlib.util.find_spec(name) for name in ("openmm", "PeptideBuilder"))
needs_openmm = pytest.mark.skipif(not HAS_OPENMM, reason="OpenMM and PeptideBuilder are optional")


def run(*flags, code=0, **environment):
    """Run make_md_data.py; its output, errors included."""
    command = [sys.executable, "make_md_data.py", *map(str, flags)]
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, timeout=200, env={**os.environ, **environment}
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


def saved(path, angles, **more):
    """A trajectory file with half a picosecond between frames."""
    times = 0.5 * np.arange(1, len(angles) + 1)
    dihedrals.save_trajectory(path, angles, more.pop("times", times), {"seed": 1}, **more)
    return path


def some_angles(frames=50, residues=3, seed=0):
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, (frames, residues, 2)).astype(np.float32)


# ---- geometry


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.5, 3.1, np.pi / 2])
def test_dihedral_of_a_known_turn(angle):
    """Looking along b-c, d is turned clockwise against a by the angle (IUPAC)."""
    b, c = np.zeros(3), np.array([0.0, 0.0, 1.5])
    a = np.array([1.0, 0.0, -0.4])
    d = c + [np.cos(angle), np.sin(angle), 0.3]
    # seen from b to c the x axis turns to the y axis clockwise
    assert dihedrals.dihedral(a, b, c, d) == pytest.approx(angle, abs=1e-12)


def test_dihedral_does_not_change_with_rotation_and_changes_sign_in_a_mirror():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(100, 4, 3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    angle = dihedrals.dihedral(*points.transpose(1, 0, 2))
    assert dihedrals.dihedral(*(points @ turn + 3).transpose(1, 0, 2)) == pytest.approx(angle)
    assert dihedrals.dihedral(*(points * [1, 1, -1]).transpose(1, 0, 2)) == pytest.approx(-angle)


def test_features_and_back():
    angles = some_angles()
    features = dihedrals.to_features(angles)
    assert features.shape == (50, 12)
    assert dihedrals.to_angles(3 * features) == pytest.approx(angles, abs=1e-5)  # their length carries nothing


# ---- files


def test_file_comes_back(tmp_path):
    angles = some_angles()
    found = dihedrals.load_trajectory(saved(tmp_path / "a.npz", angles))
    assert np.allclose(found.angles, angles, atol=1e-6) and found.angles.dtype == np.float32
    assert found.lag == pytest.approx(0.5) and found.recipe == {"seed": 1} and found.name == "a"


def test_degrees_are_noticed(tmp_path):
    path = saved(tmp_path / "a.npz", np.rad2deg(some_angles()))
    with pytest.raises(ValueError, match="these are degrees, not radians: give --unit degrees"):
        dihedrals.load_trajectory(path)
    assert np.allclose(dihedrals.load_trajectory(path, "degrees").angles, some_angles(), atol=1e-5)
    with pytest.raises(ValueError, match="these are radians, not degrees: give --unit radians"):
        dihedrals.load_trajectory(saved(tmp_path / "b.npz", some_angles()), "degrees")


@pytest.mark.parametrize("low, high", [(0, 2 * np.pi), (-np.pi, np.pi)])
def test_radians_from_zero_to_two_pi_are_radians_too(tmp_path, low, high):
    angles = np.random.default_rng(1).uniform(low, high, (40, 2, 2))
    found = dihedrals.load_trajectory(saved(tmp_path / "a.npz", angles)).angles
    assert np.abs(np.exp(1j * found) - np.exp(1j * angles)).max() < 1e-5 and np.abs(found).max() <= np.pi + 1e-6


def test_bad_files_get_one_clear_line(tmp_path):
    good = saved(tmp_path / "good.npz", some_angles())
    torn = tmp_path / "torn.npz"
    torn.write_bytes(good.read_bytes()[:300])
    text = tmp_path / "text.npz"
    text.write_text("no zip")
    objects = tmp_path / "objects.npz"
    np.savez(objects, angles=np.array([{}], dtype=object))
    for path in (torn, text, objects):
        with pytest.raises(ValueError, match="damaged or not an npz"):
            dihedrals.load_trajectory(path)
    with pytest.raises(FileNotFoundError, match="python make_md_data.py"):
        dihedrals.load_trajectory(tmp_path / "none.npz")
    np.savez(objects, other=np.zeros(3))
    with pytest.raises(ValueError, match="no array 'angles' but other"):
        dihedrals.load_trajectory(objects)


def test_bad_contents_get_one_clear_line(tmp_path):
    path, angles = tmp_path / "a.npz", some_angles()
    for wrong, line in {
        "nan": "1 of 50 frames hold nan or inf",
        "odd": r"not float \(frames, residues, 2\)",
        "times": r"times is float64 \(49,\), for 50 frames",
        "instant": r"times is float64 \(\), for 50 frames",
        "coarse": "float32 does not tell times",
        "gap": "do not grow by equal steps .0.5 to 1 ps",
        "stated": "the times grow by 0.5 ps, its recipe says 0.2",
        "text": "its recipe is not JSON",
        "list": "its recipe is a list, no JSON object",
        "backwards": "do not grow by equal steps",
    }.items():
        bad, times = angles.copy(), 0.5 * np.arange(1, 51)
        if wrong == "nan":
            bad[7, 1, 0] = np.nan
        if wrong == "odd":
            bad = bad[:, :, :1]
        more = {"stated": '{"frame": 0.2}', "text": "{", "list": "[1]"}
        shift, gap = np.float32(0.5e8) + times.astype(np.float32), times + 0.5 * (times > 10)
        times = {
            "times": times[:-1],
            "backwards": times[::-1],
            "instant": np.array(1.0),
            "coarse": shift,
            "gap": gap,
        }.get(wrong, times)
        recipe = {"recipe": np.array(more[wrong])} if wrong in more else {}
        np.savez(path, angles=bad, times=times, **recipe)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=line) as error:
            dihedrals.load_trajectory(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("step, start", [(0.5, 1e6), (0.2, 123_456.7), (2.0, 0.0), (10.0, 5e7), (0.1, 4e5)])
def test_times_that_a_type_resolves_coarsely_are_steps_of_the_recipe(tmp_path, kind, step, start):
    """A microsecond in float32 has numbers 0.06 ps apart: the steps between frames are uneven, and are equal."""
    times = (start + step * np.arange(50)).astype(kind)
    for recipe in ({}, {"frame": step}):
        np.savez(tmp_path / "a.npz", angles=some_angles(), times=times, recipe=np.array(json.dumps(recipe)))
        found = dihedrals.load_trajectory(tmp_path / "a.npz").lag
        assert found == step if recipe or kind is np.float64 else found == pytest.approx(step, rel=0.01)


def test_a_program_that_adds_up_its_times_in_float32(tmp_path):
    times = np.cumsum(np.full(20_000, 0.002, np.float32), dtype=np.float32)
    np.savez(tmp_path / "a.npz", angles=np.zeros((20_000, 1, 2), np.float32), times=times)
    assert dihedrals.load_trajectory(tmp_path / "a.npz").lag == pytest.approx(0.002, rel=1e-3)


def test_our_own_times_are_exact(tmp_path):
    times = 4e6 + 0.5 * np.arange(50)
    saved(tmp_path / "a.npz", some_angles(), times=times)
    assert np.array_equal(np.load(tmp_path / "a.npz")["times"], times)


@pytest.mark.parametrize("wrong", ["block", "angles", "recipe", "state"])
def test_a_damaged_state_is_named(tmp_path, wrong):
    arrays = {"angles": some_angles(), "block": np.array(1), "state": np.array("x"), "recipe": np.array("{}")}
    for value in (None, np.zeros(3)):
        arrays |= {wrong: value}
        np.savez(tmp_path / "a.npz", **{key: x for key, x in arrays.items() if x is not None})
        with pytest.raises(ValueError, match=f"damaged .no {wrong} of the right shape"):
            md_data.resume(tmp_path / "a.npz", {"residues": 3})


def test_trajectories_of_a_folder_may_differ_in_length_only(tmp_path):
    with pytest.raises(FileNotFoundError, match="make_md_data.py"):
        formats.load_all(tmp_path)
    saved(tmp_path / "a.npz", some_angles(50))
    saved(tmp_path / "b.npz", some_angles(70))
    assert [len(t.angles) for t in formats.load_all(tmp_path)] == [50, 70]
    saved(tmp_path / "c.npz", some_angles(50, residues=4))
    with pytest.raises(ValueError, match="c has 4 residues, a 3: one folder, one molecule"):
        formats.load_all(tmp_path)
    saved(tmp_path / "c.npz", some_angles(50), times=np.arange(50) * 1.0)
    with pytest.raises(ValueError, match="c has a frame each 1 ps, a each 0.5 ps"):
        formats.load_all(tmp_path)


def test_shipped_trajectories():
    """Independent ones of 3 ns, from a helix and a strand in turn, at a lag of half a picosecond, below 5 MB."""
    found = formats.load_all(FOLDER / "trajectories")
    assert len(found) >= 3 and all(t.angles.shape == (6000, 10, 2) and t.lag == pytest.approx(0.5) for t in found)
    assert {t.recipe["start"] for t in found} == {"helix", "extended"}
    assert len({t.angles[-1].tobytes() for t in found}) == len(found)
    assert sum(path.stat().st_size for path in (FOLDER / "trajectories").glob("*.npz")) < 5e6


def test_shipped_dipeptide():
    """Independent ones of 20 ns with a frame each picosecond, below a megabyte."""
    found = formats.load_all(FOLDER / "trajectories" / "dipeptide")
    assert len(found) == 4 and all(t.angles.shape == (20_000, 1, 2) and t.lag == 1 for t in found)
    assert [t.recipe["start"] for t in found] == ["helix", "extended"] * 2
    assert {t.recipe["residues"] for t in found} == {1} and len({t.angles[-1].tobytes() for t in found}) == 4
    assert sum(path.stat().st_size for path in (FOLDER / "trajectories" / "dipeptide").glob("*.npz")) < 1e6


@pytest.mark.parametrize(
    "residues, folder", [(10, "trajectories"), (1, "trajectories/dipeptide"), (5, "trajectories/ala5")]
)
def test_each_molecule_has_its_own_folder(residues, folder):
    assert md_data.completed(md_data.Options(residues=residues)).out == str(FOLDER / folder)


# ---- options


@pytest.mark.parametrize(
    "flags, line",
    [
        (("--frame", 0.33), "--frame 0.33 ps is not a whole number of --timestep 4 fs"),
        (("--residues", 0), "--residues 0: must be at least 1"),
        (("--temperature", -3), "--temperature -3.0: must be above 0"),
        (("--nanoseconds", 1e-4), "shorter than two frames"),
        (("--solvent", "water"), "choose one of obc2, gbn2"),
    ],
)
def test_options_that_make_no_sense(flags, line):
    done = started.start(FOLDER / "make_md_data.py", *flags, cwd=FOLDER)
    assert done.returncode == 2 and line in done.stderr


def test_missing_openmm_gets_one_line(tmp_path):
    """A module named openmm that fails to import stands for one that is not installed."""
    (tmp_path / "openmm.py").write_text("raise ModuleNotFoundError('openmm')")
    printed = run("--smoke", "--out", tmp_path, code=2, PYTHONPATH=str(tmp_path))
    assert printed.strip() == "error: molecular dynamics needs openmm: pip install openmm PeptideBuilder"


def test_blocks_cover_the_run():
    options = md_data.Options(nanoseconds=0.25, frame=0.5, equilibration=10)
    assert md_data.block_sizes(options) == [20, 200, 200, 100]


# ---- dynamics


def test_small_molecules_take_the_platform_without_neighbour_lists():
    assert [peptide.platform_name(atoms) for atoms in (22, 52, 62, 112)] == ["Reference"] * 2 + ["CPU"] * 2


@needs_openmm
@pytest.mark.parametrize("residues", [1, 5])
def test_both_platforms_run(residues):
    dynamics = peptide.Dynamics(residues, "helix", peptide.Physics(), seed=0, trajectory=0)
    angles, state = dynamics.run(dynamics.begin(), 0, 3, 5)
    again, _ = dynamics.run(dynamics.begin(), 0, 3, 5)
    assert angles.shape == (3, residues, 2) and np.array_equal(angles, again) and "Position" in state


@needs_openmm
def test_structures_have_the_angles_asked_for():
    from timeseries_examples.peptide import STARTS, Physics, build, quads

    for start, expected in STARTS.items():
        topology, system, positions = build(4, start, Physics())
        assert system.getNumParticles() == 52  # 4 x 10, acetyl 6, N-methyl 6
        xyz = np.array(positions._value)
        assert np.rad2deg(dihedrals.backbone(xyz, quads(topology))) == pytest.approx(np.tile(expected, (4, 1)), abs=0.1)


@needs_openmm
def test_compiled_solvent_has_the_energy_of_the_interpreted_one(monkeypatch):
    import openmm

    energies = []
    for replace in (peptide.use_compiled_obc, lambda system: None):
        monkeypatch.setattr(peptide, "use_compiled_obc", replace)
        _, system, positions = peptide.build(2, "helix", peptide.Physics())
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(positions)
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    assert energies[0] == pytest.approx(energies[1], abs=1e-3)


@needs_openmm
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    from timeseries_examples.peptide import Dynamics, Physics

    monkeypatch.setattr(md_data, "BLOCK", 0.4)  # ps
    options = md_data.completed(md_data.Options(smoke=True, n_trajectories=1, out=str(tmp_path)))
    md_data.simulate(tmp_path / "whole.npz", options, Physics(), 0)
    whole = dihedrals.load_trajectory(tmp_path / "whole.npz")
    assert whole.angles.shape == (10, 2, 2) and whole.recipe["start"] == "helix"

    real, calls = Dynamics.run, []

    def stops(self, *arguments):
        calls.append(arguments[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Dynamics, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        md_data.simulate(tmp_path / "parts.npz", options, Physics(), 0)
    assert not (tmp_path / "parts.npz").exists()
    md_data.simulate(tmp_path / "parts.npz", options, Physics(), 0)
    assert calls == [0, 1, 2, 3, 3, 4, 5] and not (tmp_path / "parts.part").exists()
    assert np.array_equal(dihedrals.load_trajectory(tmp_path / "parts.npz").angles, whole.angles)


@needs_openmm
def test_smoke_then_again_then_another_recipe(tmp_path):
    assert "10 frames" in run("--smoke", "--out", tmp_path)
    found = formats.load_all(tmp_path)
    assert [t.recipe["start"] for t in found] == ["helix", "extended"] and json.dumps(found[0].recipe)
    assert not np.array_equal(found[0].angles, found[1].angles)
    assert run("--smoke", "--out", tmp_path).count("is there already") == 2
    done = started.start(FOLDER / "make_md_data.py", "--smoke", "--seed", 1, "--out", tmp_path, cwd=FOLDER)
    assert done.returncode == 2 and "of another recipe (seed 0 there, 1 here)" in done.stderr
