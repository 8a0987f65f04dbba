"""Capped polyalanine, ACE-(ALA)n-NME, in implicit solvent: structure, forces and blocks of dynamics with OpenMM.

OpenMM and PeptideBuilder are optional; every function that needs one says how to install it.
"""

from __future__ import annotations

import importlib
import io
import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from common.runtime import derive_seed
from timeseries_examples.dihedrals import backbone

# Ideal backbone angles in degrees, (phi, psi): alpha helix (Pauling) and antiparallel strand.
STARTS = {"helix": (-57.0, -47.0), "extended": (-139.0, 135.0)}
OFFSET = 0.009  # nm, the dielectric offset of Onufriev, Bashford and Case


def need(name: str) -> ModuleType:
    """An optional module.

    Raises:
        ModuleNotFoundError: it is not installed; the line says what to type.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"molecular dynamics needs {name.split('.')[0]}: pip install openmm PeptideBuilder"
        ) from None


@dataclass(frozen=True)
class Physics:
    """What the simulation obeys: kelvin, 1/ps, fs, the implicit solvent, and hydrogens' mass in daltons."""

    temperature: float = 300.0
    friction: float = 1.0
    timestep: float = 4.0
    solvent: str = "obc2"
    hydrogen_mass: float = 1.5


# ---- structure


def structure(residues: int, start: str) -> str:
    """PDB text of the heavy atoms of ACE-(ALA)n-NME with every (phi, psi) at the start's.

    PeptideBuilder makes n + 2 alanines; the first keeps its CA and C=O as acetyl, the last its N and CA as
    N-methyl, under the names of the Amber force fields.
    """
    builder, geometry, bio = need("PeptideBuilder"), need("PeptideBuilder.Geometry"), need("Bio.PDB")
    phi, psi = STARTS[start]
    chain = builder.initialize_res("A")
    for _ in range(residues + 1):
        alanine = geometry.geometry("A")
        alanine.phi, alanine.psi_im1 = phi, psi
        builder.add_residue(chain, alanine)
    writer, text = bio.PDBIO(), io.StringIO()
    writer.set_structure(chain)
    writer.save(text)
    atoms = [line for line in text.getvalue().splitlines() if line.startswith("ATOM")]
    return "\n".join([*filter(None, (_cap(line, residues + 2) for line in atoms)), "END"])


def _cap(line: str, last: int) -> str:
    """A PDB line with the first and last residue made into caps; empty for an atom that a cap has not."""
    number, atom = int(line[22:26]), line[12:16].strip()
    if number not in (1, last):
        return line
    name, names = ("ACE", {"CA": "CH3", "C": "C", "O": "O"}) if number == 1 else ("NME", {"N": "N", "CA": "C"})
    return f"{line[:12]} {names[atom]:<3}{line[16:17]}{name}{line[20:]}" if atom in names else ""


def quads(topology: Any) -> np.ndarray:
    """Atom indices (residues, 2, 4) of phi = C' N CA C and psi = N CA C N' for each alanine of a capped chain."""
    chain = list(topology.residues())
    index = [{atom.name: atom.index for atom in residue.atoms()} for residue in chain]
    rows = []
    for before, here, after in zip(index[:-2], index[1:-1], index[2:], strict=True):
        middle = [here["N"], here["CA"], here["C"]]
        rows.append([[before["C"], *middle], [*middle, after["N"]]])
    return np.array(rows)


# ---- forces


def build(residues: int, start: str, physics: Physics) -> tuple[Any, Any, Any]:
    """(topology, system, positions) with ff14SB, constrained bonds to hydrogen and heavier hydrogens.

    Sources: ff14SB, Maier et al. 2015 (JCTC 11, 3696); OBC2, Onufriev, Bashford and Case 2004 (Proteins 55, 383);
    GBn2, Nguyen, Roe and Simmerling 2013 (JCTC 9, 2020); hydrogen mass repartitioning, Hopkins et al. 2015
    (JCTC 11, 1864).
    """
    app, unit = need("openmm.app"), need("openmm.unit")
    pdb = app.PDBFile(io.StringIO(structure(residues, start)))
    field = app.ForceField("amber14/protein.ff14SB.xml", f"implicit/{physics.solvent}.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    add_hydrogens(model, field)
    system = field.createSystem(
        model.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=physics.hydrogen_mass * unit.amu,
    )
    if physics.solvent == "obc2":
        use_compiled_obc(system)
    return model.topology, system, model.positions


def add_hydrogens(model: Any, field: Any) -> None:
    """Add hydrogens, the same way each time: OpenMM places them by python's global generator and minimises."""
    before = random.getstate()
    random.seed(0)
    try:
        model.addHydrogens(field, platform=need("openmm").Platform.getPlatformByName("Reference"))
    finally:
        random.setstate(before)


def use_compiled_obc(system: Any) -> None:
    """Replace the OBC2 force that OpenMM interprets by its compiled one: the same energy, four times the speed.

    The interpreted force holds radius - offset and scale * (radius - offset) for each atom.
    """
    openmm = need("openmm")
    forces = system.getForces()
    where = next(i for i, force in enumerate(forces) if isinstance(force, openmm.CustomGBForce))
    old, new = forces[where], openmm.GBSAOBCForce()
    for atom in range(old.getNumParticles()):
        charge, reduced, scaled = old.getParticleParameters(atom)
        new.addParticle(charge, reduced + OFFSET, scaled / reduced)
    new.setSoluteDielectric(1.0)
    new.setSolventDielectric(78.5)
    new.setNonbondedMethod(new.NoCutoff)
    system.removeForce(where)
    system.addForce(new)


# ---- dynamics


def platform_name(atoms: int) -> str:
    """OpenMM's platform for a molecule of so many atoms on one thread of a CPU.

    "CPU" pays for its neighbour lists and threads at every step, "Reference" has none of them and does every pair in
    double precision: 3.4 times as fast for the 22 atoms of one alanine, equal at 55 to 60, slower beyond.
    """
    return "Reference" if atoms <= 60 else "CPU"


class Dynamics:
    """Blocks of Langevin dynamics whose outcome is a function of (state, seed, trajectory, block).

    Each block starts a fresh context from the text of the state and a seed of its own, so a run that was stopped
    between two blocks ends as the run that was not.

    Args:
        residues: Alanines.
        start: A key of ``STARTS``.
        physics: Constants of the simulation.
        seed: Of the run.
        trajectory: Number of the trajectory.
        threads: Of the CPU; with one, forces are summed in a fixed order, and the same machine gives the same bits.
    """

    def __init__(
        self, residues: int, start: str, physics: Physics, seed: int, trajectory: int, threads: int = 1
    ) -> None:
        self.physics, self.keys, self.threads = physics, (seed, "md", trajectory), threads
        self.topology, self.system, self.positions = build(residues, start, physics)
        self.quads = quads(self.topology)

    def _seed(self, *what: int | str) -> int:
        return derive_seed(*self.keys, *what) % (2**31 - 2) + 1  # OpenMM draws its own for 0

    def _context(self, block: int) -> Any:
        openmm = need("openmm")
        p = self.physics
        integrator = openmm.LangevinMiddleIntegrator(p.temperature, p.friction, p.timestep / 1000)
        integrator.setRandomNumberSeed(self._seed("noise", block))
        name = platform_name(self.system.getNumParticles())
        threads = {"Threads": str(self.threads)} if name == "CPU" else {}  # the other has no such property
        return openmm.Context(self.system, integrator, openmm.Platform.getPlatformByName(name), threads)

    def begin(self) -> str:
        """The minimised structure with velocities of the temperature, as XML."""
        openmm = need("openmm")
        context = self._context(-1)
        context.setPositions(self.positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
        context.setVelocitiesToTemperature(self.physics.temperature, self._seed("velocities"))
        return _text(context)

    def run(self, state: str, block: int, frames: int, stride: int) -> tuple[np.ndarray, str]:
        """Go on from a state: angles (frames, residues, 2) after each ``stride`` steps, and the last state.

        Raises:
            ValueError: the atoms flew apart.
        """
        openmm, unit = need("openmm"), need("openmm.unit")
        context = self._context(block)
        context.setState(openmm.XmlSerializer.deserialize(state))
        rows = []
        try:
            for _ in range(frames):
                context.getIntegrator().step(stride)
                positions = context.getState(getPositions=True).getPositions(asNumpy=True)
                rows.append(backbone(positions.value_in_unit(unit.nanometer), self.quads))
            if not np.isfinite(rows).all():
                raise openmm.OpenMMException("coordinate is nan")
        except openmm.OpenMMException as error:
            raise ValueError(
                f"the dynamics blew up in block {block} ({' '.join(str(error).split())[:80]}): "
                f"try a smaller --timestep than {self.physics.timestep:g} fs"
            ) from None
        return np.array(rows, np.float32).reshape(-1, len(self.quads), 2), _text(context)


def _text(context: Any) -> str:
    state = context.getState(getPositions=True, getVelocities=True)
    return need("openmm").XmlSerializer.serialize(state)
