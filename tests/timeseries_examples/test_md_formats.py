"""Trajectories as other programs write them: angles and lags come out as put in, or one line says why not."""

from __future__ import annotations

import numpy as np
import pytest

from timeseries_examples import dihedrals, formats

mdtraj = pytest.importorskip("mdtraj")
FRAMES, RESIDUES = 30, 4


def molecule(residues: int = RESIDUES):
    """A chain of glycines: N, CA, C, O each."""
    top = mdtraj.Topology()
    chain = top.add_chain()
    for _ in range(residues):
        residue = top.add_residue("GLY", chain)
        for name, element in (("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O")):
            top.add_atom(name, mdtraj.element.get_by_symbol(element), residue)
    return top


def positions(residues: int = RESIDUES, seed: int = 0) -> np.ndarray:
    """Nanometres, (frames, atoms, 3), of a random chain that moves a little."""
    rng = np.random.default_rng(seed)
    chain = np.cumsum(rng.normal(size=(4 * residues, 3)), axis=0)
    return (0.1 * (chain + 0.3 * rng.normal(size=(FRAMES, 4 * residues, 3)))).astype(np.float32)


def angles_of(xyz: np.ndarray) -> np.ndarray:
    """Phi and psi of the inner residues, spelt out."""
    atoms = xyz.reshape(len(xyz), -1, 4, 3)
    n, ca, c = atoms[:, :, 0], atoms[:, :, 1], atoms[:, :, 2]
    phi = dihedrals.dihedral(c[:, :-2], n[:, 1:-1], ca[:, 1:-1], c[:, 1:-1])
    psi = dihedrals.dihedral(n[:, 1:-1], ca[:, 1:-1], c[:, 1:-1], n[:, 2:])
    return np.stack([phi, psi], -1)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(dihedrals.wrap(a - b)).max())


def written(path, xyz=None, lag: float = 0.5, start: float = 0.0, box=None):
    """A trajectory file by mdtraj, and its topology beside it; water after the peptide."""
    xyz = positions() if xyz is None else xyz
    top = molecule(xyz.shape[1] // 4)
    made = mdtraj.Trajectory(xyz, top, time=start + lag * np.arange(len(xyz)))
    if box is not None:
        made.unitcell_vectors = np.tile(box * np.eye(3), (len(xyz), 1, 1))
    made.save(str(path))
    made[0].save(str(path.with_suffix(".pdb")))
    return xyz


@pytest.mark.parametrize("suffix", [*formats.TIMED, formats.UNTIMED])
def test_angles_and_lag_of_every_kind(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", 7)  # several chunks
    path = tmp_path / f"a{suffix}"
    xyz = written(path)
    frame = 0.5 if suffix == formats.UNTIMED else None
    (found,) = formats.load_all(tmp_path, frame=frame)
    assert found.angles.shape == (FRAMES, RESIDUES - 2, 2) and found.lag == pytest.approx(0.5) and found.name == "a"
    assert apart(found.angles, angles_of(xyz)) < (0.2 if suffix == ".xtc" else 1e-3)  # xtc rounds to 0.001 nm
    (few,) = formats.load_all(path, frame=frame, most=9)
    assert np.array_equal(few.angles, found.angles[:9])


def test_times_after_a_microsecond_and_a_wrong_frame(tmp_path):
    written(tmp_path / "a.trr", lag=0.5, start=1e6)  # float32 there: 0.0625 ps apart
    assert formats.load_all(tmp_path)[0].lag == pytest.approx(0.5)
    assert formats.load_all(tmp_path, frame=0.5)[0].lag == pytest.approx(0.5)
    with pytest.raises(ValueError, match="the times grow by 0.5 ps, --frame says 2: correct one of them"):
        formats.load_all(tmp_path, frame=2.0)


def test_a_peptide_across_the_border_of_its_box_is_whole(tmp_path):
    xyz = 0.3 * positions() / np.abs(positions()).max()  # bonds below half a box
    box = 1.0
    written(tmp_path / "a.nc", xyz % box, box=box)
    assert apart(formats.load_all(tmp_path)[0].angles, angles_of(xyz)) < 1e-3
    assert apart(angles_of(xyz % box), angles_of(xyz)) > 0.5  # what the bare positions would say


def test_a_topology_is_found_or_asked_for(tmp_path, capsys):
    written(tmp_path / "a.xtc")
    (tmp_path / "a.pdb").rename(tmp_path / "peptide.pdb")
    first = formats.load_all(tmp_path)[0].angles
    assert f"topology of a.xtc: {tmp_path / 'peptide.pdb'}" in capsys.readouterr().out
    (tmp_path / "other.pdb").write_bytes((tmp_path / "peptide.pdb").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"2 could be \(other.pdb, peptide.pdb\): give --topology FILE"):
        formats.load_all(tmp_path)
    given = formats.load_all(tmp_path, topology=str(tmp_path / "other.pdb"))[0].angles
    assert np.array_equal(given, first)
    for path in tmp_path.glob("*.pdb"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none is beside it: give --topology FILE"):
        formats.load_all(tmp_path)
    with pytest.raises(FileNotFoundError, match="--topology no.pdb: no such file"):
        formats.load_all(tmp_path, topology="no.pdb")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_mdgen_s_arrays(tmp_path, kind, capsys):
    xyz = positions()
    atoms = np.zeros((FRAMES, RESIDUES, 14, 3), kind)
    atoms[:, :, :4] = 10 * xyz.reshape(FRAMES, RESIDUES, 4, 3)
    np.save(tmp_path / "AAAA.npy", atoms)
    with pytest.raises(ValueError, match="does not say how long a frame is: give --frame PICOSECONDS"):
        formats.load_all(tmp_path)
    (found,) = formats.load_all(tmp_path, frame=100.0)
    assert found.lag == 100 and found.angles.shape == (FRAMES, RESIDUES - 2, 2)
    assert apart(found.angles, angles_of(xyz)) < (1e-3 if kind is np.float32 else 0.2)
    assert ("float16 angstrom" in capsys.readouterr().out) == (kind is np.float16)
    for wrong, line in (
        (atoms[..., :13, :], r"not float \(frames, residues, 14, 3\)"),
        (np.where(np.arange(RESIDUES)[:, None, None] == 2, 0, atoms), "1 residues have no backbone atoms"),
    ):
        np.save(tmp_path / "AAAA.npy", wrong)
        with pytest.raises(ValueError, match=line):
            formats.load_all(tmp_path, frame=100.0)
    (tmp_path / "AAAA.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="AAAA.npy is damaged or not an array"):
        formats.load_all(tmp_path, frame=100.0)


def test_bad_files_get_one_clear_line(tmp_path):
    a = tmp_path / "a.xtc"
    written(a)
    with pytest.raises(ValueError, match="ending; a trajectory is one of .npz, .xtc"):
        formats.load_all(tmp_path / "a.pdb")
    whole = a.read_bytes()
    a.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="a.xtc"):
        formats.load_all(tmp_path)
    a.write_bytes(whole)
    written(tmp_path / "b.xtc", positions(5))  # another molecule with the topology of the first
    with pytest.raises(ValueError, match=r"b.xtc cannot be read, or is not of its topology's 16 atoms"):
        formats.load_all(tmp_path / "b.xtc", topology=str(tmp_path / "a.pdb"))
    with pytest.raises(ValueError, match="b has 3 residues, a 2: one folder, one molecule"):
        formats.load_all(tmp_path)
    (tmp_path / "a.pdb").write_text("no atoms")
    with pytest.raises(ValueError, match="a.pdb: not a topology that mdtraj reads|has no residue with phi and psi"):
        formats.load_all(a)
    np.savez(tmp_path / "c.npz", angles=np.zeros((9, 2, 2)))
    with pytest.raises(ValueError, match="several kinds, .npz, .xtc: give a folder of one kind"):
        formats.load_all(tmp_path)
    with pytest.raises(ValueError, match="--topology x.pdb: .npz files need none"):
        formats.load_all(tmp_path / "c.npz", topology="x.pdb")
    with pytest.raises(ValueError, match="does not say how long a frame is"):
        formats.load_all(tmp_path / "c.npz")
    assert formats.load_all(tmp_path / "c.npz", frame=2.0)[0].lag == 2
