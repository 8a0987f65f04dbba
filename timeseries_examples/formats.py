"""Trajectories as other programs write them: backbone angles of what mdtraj reads, and of MDGen's arrays.

A folder (or one file) is of one kind: our npz; xtc, trr, dcd, h5 or nc, by mdtraj, with a topology; or MDGen's npy,
(frames, residues, 14, 3), angstrom. All become a :class:`Trajectory`; only angles are kept of the frames that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from timeseries_examples.dihedrals import Trajectory, Unit, alike, backbone, in_radians, lag_of, load_trajectory

TIMED, UNTIMED = (".xtc", ".trr", ".h5", ".nc"), ".dcd"  # mdtraj tells no time of the latter
TOPOLOGIES = (".pdb", ".gro", ".prmtop", ".parm7", ".psf")
KINDS = (".npz", *TIMED, UNTIMED, ".npy")
CHUNK = 500  # frames at a time
N, CA, C = 0, 1, 2  # of the 14 atoms of a residue


def load_all(
    data: Path, unit: Unit = "auto", topology: str = "", frame: float | None = None, most: int | None = None
) -> list[Trajectory]:
    """The trajectories of a folder, by name, or of one file. Lengths may differ; residues and lag may not.

    Args:
        data: the folder or file.
        unit: of the angles in npz files; see ``in_radians``.
        topology: file of the molecule; empty: found by :func:`topology_of`.
        frame: picoseconds between frames, which dcd and npy files do not say; of others it has to be what they say.
        most: frames that are read of each; None: all.

    Raises:
        FileNotFoundError: none there, or no topology.
        ValueError: files of several kinds, damaged ones, no backbone, times that do not grow evenly or are not known,
            or trajectories of different molecules or lags.
    """
    files = files_of(data)
    if topology and files[0].suffix in (".npz", ".npy"):
        raise ValueError(f"--topology {topology}: {files[0].suffix} files need none; leave it out")
    return alike([load(file, unit, topology, frame, most) for file in files])


def files_of(data: Path) -> list[Path]:
    """The trajectory files of a folder, all of one kind."""
    if data.is_file():
        if data.suffix not in KINDS:
            raise ValueError(f"{data}: {data.suffix or 'no'} ending; a trajectory is one of {', '.join(KINDS)}")
        return [data]
    files = sorted(path for path in data.glob("*") if path.suffix in KINDS and not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(
            f"no trajectories in {data}, of {', '.join(KINDS)}: make some with python make_md_data.py"
        )
    if len(kinds := sorted({path.suffix for path in files})) > 1:
        raise ValueError(f"{data} has trajectories of several kinds, {', '.join(kinds)}: give a folder of one kind")
    return files


def load(file: Path, unit: Unit, topology: str, frame: float | None, most: int | None) -> Trajectory:
    """One trajectory file of any kind; see :func:`load_all`."""
    if file.suffix == ".npz":
        found = load_trajectory(file, unit, frame)
        return replace(found, angles=found.angles[:most])
    angles, times = (mdgen_angles(file), None) if file.suffix == ".npy" else by_mdtraj(file, topology, most)
    if len(angles) < 2:
        raise ValueError(f"{file} has {len(angles)} frame(s): a trajectory needs 2 at least")
    lag = lag_of(file, times, len(angles), {}, frame)
    return Trajectory(in_radians(angles[:most], "radians", str(file)), lag, {}, file.stem)


# ---- mdtraj's files


def by_mdtraj(file: Path, topology: str, most: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Backbone angles (frames, residues, 2) in radians, and times (frames,) in ps or None where the file has none."""
    mdtraj = imported(file)
    top = molecule(mdtraj, file, topology)
    quads, atoms = backbone_atoms(mdtraj, file, top)
    angles, times, count = [], [], 0
    for part in chunks(mdtraj, file, top, atoms):
        torsions = mdtraj.compute_dihedrals(part, quads)  # by the nearest image, where there is a box
        angles.append(torsions.reshape(len(torsions), -1, 2))
        times.append(part.time)
        count += len(torsions)
        if most is not None and count >= most:
            break
    if not angles:
        raise ValueError(f"{file} has no frames: it is damaged or empty")
    return np.concatenate(angles), None if file.suffix == UNTIMED else np.concatenate(times)


def imported(file: Path) -> Any:
    """The package that reads such files."""
    try:
        import mdtraj
    except ImportError as error:
        raise ValueError(f"{file}: {file.suffix} files need mdtraj: pip install mdtraj") from error
    return mdtraj


def topology_of(file: Path, given: str) -> Path:
    """The topology of a trajectory: the one given, the one of its name, or the only one in its folder, said aloud."""
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(f"--topology {given}: no such file; give a {', '.join(TOPOLOGIES)} of the molecule")
        return Path(given)
    found = sorted(path for path in file.parent.glob("*") if path.suffix in TOPOLOGIES)
    own = [path for path in found if path.stem == file.stem] or found
    if len(own) != 1:
        what = f"{len(own)} could be ({', '.join(path.name for path in own[:3])})" if own else "none is beside it"
        raise FileNotFoundError(f"{file} needs the molecule's topology and {what}: give --topology FILE")
    print(f"topology of {file.name}: {own[0]}")
    return own[0]


def molecule(mdtraj: Any, file: Path, given: str) -> Any:
    """mdtraj's topology; an h5 file holds its own."""
    source = file if file.suffix == ".h5" and not given else topology_of(file, given)
    try:
        return mdtraj.load_topology(str(source))
    except Exception as error:  # parsers raise anything on damaged text
        raise ValueError(f"{source}: not a topology that mdtraj reads ({_said(error)})") from error


def backbone_atoms(mdtraj: Any, file: Path, top: Any) -> tuple[np.ndarray, np.ndarray]:
    """The four atoms of each phi and psi, (2 residues, 4), of residues that have both, and which atoms those count.

    The numbers are places in the second, ascending, which is what has to be read of a frame.
    """
    blank = mdtraj.Trajectory(np.zeros((1, top.n_atoms, 3), np.float32), top)
    phi, psi = (find(blank)[0] for find in (mdtraj.compute_phi, mdtraj.compute_psi))
    psi_at = {quad[1]: quad for quad in psi}  # by their alpha carbon, which is the second atom of psi, the third of phi
    both = [(quad, psi_at[quad[2]]) for quad in phi if quad[2] in psi_at]
    if not both:
        raise ValueError(f"{file}: the topology has no residue with phi and psi; a peptide of 3 residues or caps has")
    quads = np.array(both).reshape(-1, 4)
    atoms = np.unique(quads)
    return np.searchsorted(atoms, quads), atoms


def chunks(mdtraj: Any, file: Path, top: Any, atoms: np.ndarray) -> Iterator[Any]:
    """The frames of a file, these atoms of them, some at a time.

    Raises:
        ValueError: a damaged file, or one of another molecule.
    """
    more = {} if file.suffix == ".h5" else {"top": top}
    try:
        next(mdtraj.iterload(str(file), chunk=1, **more))  # a whole frame: of some atoms only, no number is checked
        yield from mdtraj.iterload(str(file), chunk=CHUNK, atom_indices=atoms, **more)
    except Exception as error:  # readers raise anything on damaged bytes
        wrong = f"{file} cannot be read, or is not of its topology's {top.n_atoms} atoms"
        raise ValueError(f"{wrong}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# ---- MDGen's arrays


def mdgen_angles(file: Path) -> np.ndarray:
    """Angles (frames, residues - 2, 2) of positions (frames, residues, 14, 3): the end residues have only one each.

    Raises:
        ValueError: another array, or residues without backbone.
    """
    try:
        positions = np.load(file, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged or not an array without objects ({type(error).__name__})") from None
    if positions.ndim != 4 or positions.shape[2:] != (14, 3) or positions.shape[1] < 3 or positions.dtype.kind != "f":
        what = f"{positions.dtype} {positions.shape}"
        raise ValueError(f"{file} is {what}, not float (frames, residues, 14, 3) with 3 residues or more")
    kept = np.ascontiguousarray(positions[:, :, :3]).astype(np.float32)
    if not kept.any(-1).all():
        raise ValueError(f"{file}: {int((~kept.any(-1)).any((0, 2)).sum())} residues have no backbone atoms (zeros)")
    if positions.dtype == np.float16:
        grain = float(np.spacing(np.float16(np.abs(kept).max())))
        missed = np.rad2deg(grain / 3)  # as of bonds of 1.5 angstrom
        print(f"{file.name}: float16 angstrom, rounded to {grain:g}: angles err by about {missed:.1f} degrees")
    return backbone(kept.reshape(len(kept), -1, 3), mdgen_quads(kept.shape[1]))


def mdgen_quads(residues: int) -> np.ndarray:
    """(residues - 2, 2, 4) places of the atoms of phi and psi in (residues x (N, CA, C))."""
    at = lambda k, atom: 3 * k + atom  # noqa: E731
    inner: Sequence[int] = range(1, residues - 1)
    phi = [[at(k - 1, C), at(k, N), at(k, CA), at(k, C)] for k in inner]
    psi = [[at(k, N), at(k, CA), at(k, C), at(k + 1, N)] for k in inner]
    return np.array([phi, psi]).swapaxes(0, 1)
