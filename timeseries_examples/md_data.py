"""make_md_data.py: its options, and the files that it makes, block by block."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.cli.ranges import Count, NotNegative, Positive, Seed
from common.runtime import run_lock

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).resolve().parent
BLOCK = 100.0  # ps between two saved states


@dataclass(frozen=True)
class Options:
    """Molecular dynamics of ACE-(ALA)n-NME with OpenMM."""

    # ---- molecule
    residues: Count = 10
    """Alanines between the caps"""
    start: Literal["both", "helix", "extended"] = "both"
    """Structure at the beginning; both: helix and extended in turn"""

    # ---- simulation
    n_trajectories: Count = 4
    """Independent trajectories, each with its own seed"""
    nanoseconds: Positive = 3.0
    """Length of each, after the equilibration"""
    frame: Positive = 0.5
    """Picoseconds between two frames"""
    equilibration: NotNegative = 100.0
    """Picoseconds run first and left out"""
    temperature: Positive = 300.0
    """Kelvin"""
    friction: Positive = 1.0
    """Of the Langevin thermostat, 1/ps"""
    timestep: Positive = 4.0
    """Femtoseconds; 4 needs the heavier hydrogens"""
    hydrogen_mass: Positive = 1.5
    """Daltons, taken from the atom that a hydrogen is bound to"""
    solvent: Literal["obc2", "gbn2"] = "obc2"
    """Generalised Born model of the solvent; gbn2 is about eight times as slow on a CPU"""

    # ---- run
    seed: Seed = 0
    """Of velocities and thermostat"""
    threads: Count = 1
    """CPU threads; the molecule is too small for more to help, and one of up to 60 atoms uses one only"""
    out: str = ""
    """Folder of the files; empty: trajectories/ here for 10 residues, in it dipeptide/ for 1 and alaN/ for N others"""
    smoke: bool = False
    """Two trajectories of 2 ps of 2 residues, into results/smoke-md-data"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        steps = self.frame * 1000 / self.timestep
        if abs(steps - round(steps)) > 1e-6 or steps < 1:
            raise ValueError(f"--frame {self.frame:g} ps is not a whole number of --timestep {self.timestep:g} fs")
        if self.nanoseconds * 1000 < 2 * self.frame:
            raise ValueError(f"--nanoseconds {self.nanoseconds:g}: shorter than two frames of {self.frame:g} ps")


def completed(options: Options) -> Options:
    """The options, with what --smoke changes and the folder filled in."""
    folder = HERE / "trajectories" / {10: "", 1: "dipeptide"}.get(options.residues, f"ala{options.residues}")
    if options.smoke:
        tiny = {"residues": 2, "n_trajectories": 2, "nanoseconds": 0.002, "frame": 0.2, "equilibration": 0.4}
        options, folder = replace(options, **tiny), HERE / "results" / "smoke-md-data"
    return replace(options, out=options.out or str(folder))


def run(options: Options) -> None:
    """Make every trajectory whose file does not exist yet."""
    options = completed(options)
    from timeseries_examples.peptide import Physics, need

    for name in ("openmm", "PeptideBuilder"):
        need(name)
    physics = Physics(*(getattr(options, name) for name in Physics.__dataclass_fields__))
    folder = Path(options.out)
    with run_lock(folder):
        for number in range(options.n_trajectories):
            path = folder / f"ala{options.residues}_{number + 1}.npz"
            simulate(path, options, physics, number)


def simulate(path: Path, options: Options, physics: object, number: int) -> None:
    """Make one file, block by block; after each block the state and the frames so far are in ``*.part``."""
    import numpy as np
    from tqdm import trange

    from timeseries_examples.dihedrals import save_trajectory, start_names
    from timeseries_examples.peptide import Dynamics

    start = start_names(options.n_trajectories, options.start)[number]
    recipe = {key: value for key, value in asdict(options).items() if key not in ("out", "smoke", "threads")}
    recipe |= {"start": start, "trajectory": number, "force_field": "amber ff14SB", "caps": "ACE, NME"}
    if is_done(path, recipe):
        print(f"{path.name} is there already")
        return
    dynamics = Dynamics(options.residues, start, physics, options.seed, number, options.threads)  # type: ignore[arg-type]
    stride = round(options.frame * 1000 / options.timestep)
    sizes = block_sizes(options)
    part = path.with_suffix(".part")
    block, angles, state = resume(part, recipe) or (0, np.zeros((0, options.residues, 2), np.float32), "")
    state = state or dynamics.begin()
    begun = time.perf_counter()
    bar = trange(block, len(sizes), initial=block, total=len(sizes), desc=f"{path.stem} ({start})", unit="block")
    for index in bar:
        rows, state = dynamics.run(state, index, sizes[index], stride)
        angles = np.concatenate([angles, rows if index else rows[:0]])  # block 0 is the equilibration
        resumable = {"state": np.array(state), "block": np.array(index + 1)}
        save_trajectory(part, angles, times_of(angles, options), recipe, **resumable)
        simulated = sum(sizes[block : index + 1]) * options.frame / 1000
        bar.set_postfix_str(f"{simulated * 86400 / (time.perf_counter() - begun):.0f} ns/day")
    save_trajectory(path, angles, times_of(angles, options), recipe)
    part.unlink()
    print(f"{path.name}: {len(angles)} frames, {options.residues} residues, from {start}")


def block_sizes(options: Options) -> list[int]:
    """Frames of each block, the equilibration first (which may have none)."""
    frames, most = round(options.nanoseconds * 1000 / options.frame), max(1, round(BLOCK / options.frame))
    whole, rest = divmod(frames, most)
    return [round(options.equilibration / options.frame), *[most] * whole, *([rest] if rest else [])]


def times_of(angles, options: Options):
    """Picoseconds since the end of the equilibration, one for each frame."""
    import numpy as np

    return options.frame * np.arange(1, len(angles) + 1)


def is_done(path: Path, recipe: dict) -> bool:
    """Whether a whole file of this recipe is there.

    Raises:
        ValueError: a file of another recipe has the name.
    """
    from timeseries_examples.dihedrals import load_trajectory

    if not path.exists():
        return False
    same_recipe(path, load_trajectory(path, "radians").recipe, recipe)
    return True


def resume(part: Path, recipe: dict) -> tuple[int, np.ndarray, str] | None:
    """(next block, angles so far, state as XML) of a run that was stopped; None when there is none.

    Raises:
        ValueError: a damaged file, or one of another recipe.
    """
    import numpy as np

    from timeseries_examples.dihedrals import read_arrays, recipe_of

    if not part.exists():
        return None
    arrays = read_arrays(part)
    frames = len(np.atleast_1d(arrays.get("angles", 0)))
    shapes = {"block": (), "state": (), "recipe": (), "angles": (frames, recipe["residues"], 2)}
    if wrong := [key for key, shape in shapes.items() if key not in arrays or arrays[key].shape != shape]:
        raise ValueError(f"{part} is damaged (no {', '.join(wrong)} of the right shape): delete it and start again")
    same_recipe(part, recipe_of(part, arrays), recipe)
    return int(arrays["block"]), arrays["angles"], str(arrays["state"])


def same_recipe(path: Path, stored: dict, wanted: dict) -> None:
    """Raise ValueError unless two recipes agree (the number of trajectories aside)."""
    for key, value in wanted.items():
        if key != "n_trajectories" and stored.get(key) != value:
            raise ValueError(
                f"{path} is of another recipe ({key} {stored.get(key)} there, {value} here): choose another --out"
            )
