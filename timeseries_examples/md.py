"""MD_simulation.py: its options, what is held out, and the run from trajectories to numbers and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common.runtime import number_of, write_json

if TYPE_CHECKING:
    import numpy as np

    from timeseries_examples.dihedrals import Trajectory
    from timeseries_examples.propagator import Propagator

from common.cli import validate
from common.cli.configs import among, check_bridge
from common.cli.ranges import AtLeast, Count, NoneFor, NotNegative, Positive, Seed

HERE = Path(__file__).resolve().parent
SHIPPED = {"": ("trajectories", "runs/md"), "dipeptide": ("trajectories/dipeptide", "runs/dipeptide")}  # data and runs
FEWEST = 8  # frames of a stretch: correlation times are taken over a quarter of them
SPLIT = ("split", "held_out", "lag")
FLOW = ("method", "source", "space", "sigma", "condition", "past", "n_steps", "solver")  # besides, what weights fix


@dataclass(frozen=True)
class Options:
    """Backbone dihedrals of a peptide, learnt from molecular dynamics."""

    # ---- data
    data: str = ""
    """Folder of trajectories, or one file: npz, xtc, trr, dcd, h5, nc, or MDGen's npy; dipeptide: alanine dipeptide,
    trajectories/dipeptide/ here; empty: trajectories/ here, of ten alanines"""
    topology: str = ""
    """The molecule of xtc, trr, dcd and nc files (pdb, gro, prmtop, psf); empty: the one beside them"""
    frame: Annotated[Positive | None, NoneFor(0)] = None
    """Picoseconds from frame to frame, for files that do not say: dcd, npy"""
    unit: Literal["auto", "radians", "degrees"] = "auto"
    """Of the angles in the files; auto: radians, and an error if they cannot be"""
    lag: Count = 20
    """Frames of the data in one step of the model, 10 ps of the ten alanines (for the dipeptide give 10); shorter steps
    see few crossings and forget too soon"""
    split: Literal["trajectories", "blocks"] = "trajectories"
    """What is held out: whole trajectories, or every so many blocks of time of all of them"""
    held_out: Count = 1
    """Held-out trajectories (the last ones), or of ten blocks of each trajectory so many"""

    # ---- flow
    method: Annotated[str, among("cfm", "idff")] = "cfm"
    """cfm: a velocity; idff: data and score heads"""
    source: Literal["noise", "frame"] = "noise"
    """Where the flow to the next frame starts: in Gaussian noise, or in the present frame (idff: followed as an SDE)"""
    space: Literal["circle", "angle"] = "circle"
    """circle: (sin, cos) of the next frame, put back on the circle; angle: wrapped increments of the angles"""
    sigma: NotNegative = 0.0
    """Noise on the way; idff needs some: 0.2 from noise, 1 from the frame"""
    condition: Literal["frame", "time"] = "frame"
    """What the network is given: the present frame, or only the absolute time"""
    past: Count = 1
    """Frames that are given; more than one lets the model know how the angles move"""
    n_steps: Count = 4
    """Steps of the sampler"""
    solver: Literal["euler", "heun", "dpmpp2m"] = "heun"
    """Of the ODE: heun has two network evaluations a step, the others one; an SDE is followed by Euler-Maruyama"""

    # ---- network and training
    width: Count = 256
    """Units of each of its layers"""
    depth: Count = 3
    """Number of hidden layers"""
    total_steps: Count = 12_000
    """Updates"""
    batch_size: Count = 256
    """Frames of one update"""
    lr: Positive = 2e-3
    """Peak learning rate; decays to zero by a cosine"""
    weight_decay: NotNegative = 0.01
    """AdamW's; frames are few and the network is large"""
    weights: str = ""
    """Weights to evaluate; empty: train"""

    # ---- evaluation
    leads: tuple[Count, ...] = (1, 2, 5, 10, 20)
    """Steps ahead at which forecasts are scored"""
    forecasts: Annotated[int, AtLeast(2)] = 256
    """Forecasts from held-out frames"""
    members: Count = 32
    """Members of the ensemble of each"""
    rollouts: Count = 8
    """Long runs from the first frame of each held-out trajectory or block"""
    length: Annotated[int | None, AtLeast(FEWEST), NoneFor(0)] = None
    """Steps of these; none: as long as the held-out trajectories"""

    # ---- run
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Run folder; empty: runs/md here, or runs/dipeptide"""
    smoke: bool = False
    """Seconds: a tiny network on a little of the data, or on made-up angles; writes to results/smoke-md"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        check_bridge(self.method, self.sigma)
        if list(self.leads) != sorted(set(self.leads)) or self.leads[0] != 1:
            raise ValueError(f"--leads {','.join(map(str, self.leads))}: give growing numbers that begin with 1")


def completed(options: Options) -> Options:
    """The options, with what --smoke changes and the folders filled in."""
    if options.smoke:
        tiny = {
            "width": 32,
            "depth": 1,
            "total_steps": 40,
            "forecasts": 16,
            "members": 4,
            "rollouts": 1,
            "n_steps": 2,
            "solver": "euler",
        }
        options = replace(options, **tiny, leads=(1, 2), length=50)
    data, runs = SHIPPED.get(options.data, ("", "runs/md"))
    if not data and not Path(options.data).exists():
        names = ", ".join(filter(None, SHIPPED))
        raise FileNotFoundError(
            f"--data {options.data}: no such folder or file; give one of trajectories (python make_md_data.py makes "
            f"some), or a name of what is here: {names}"
        )
    folder = HERE / ("results/smoke-md" if options.smoke else runs)
    return replace(options, out=options.out or str(folder), data=str(HERE / data) if data else options.data)


def run(options: Options) -> None:
    """Train or load, forecast, roll out, compare, draw."""
    options = completed(options)
    from timeseries_examples import figures
    from timeseries_examples.ensemble import as_states, evaluate
    from timeseries_examples.propagator import check_data, load_as_trained

    model, seconds = None, 0.0
    if options.weights:
        model, options = load_as_trained(options, (*SPLIT, *FLOW), "dihedrals")
    learnt, train_set, held_out, lag, unseen = parts(options)
    if model is None:
        model, seconds = trained(options, learnt)
    else:
        check_data(Path(options.weights), [as_states(x, options.space) for x in learnt])
    out = Path(options.out)
    result, pictures = evaluate(model, train_set, held_out, lag, options, learnt, unseen)
    write_json(out / "md.json", {"training_seconds": round(seconds, 1), **result})
    figures.free_energy(pictures["surfaces"], out / "md_free_energy.png")
    figures.traces(pictures, lag, out / "md_traces.png")
    figures.slow(pictures, lag, out / "md_statistics.png")
    show(result)
    print(f"figures and numbers: {out}")


def trained(options: Options, train_set: list[np.ndarray]) -> tuple[Propagator, float]:
    """A propagator trained on the stretches (weights kept in float16), and the seconds of its training."""
    import torch

    from timeseries_examples.ensemble import as_states
    from timeseries_examples.propagator import Recipe, Space, train_and_save

    recipe = Recipe(
        options.method,  # type: ignore[arg-type] one of the two, as the option's range says
        options.source,
        "sde" if (options.method, options.source) == ("idff", "frame") else "ode",
        options.sigma,
        options.condition,
        options.past,
        options.n_steps,
        options.solver,
        n_frames=max(map(len, train_set)),
        lag=options.lag,
    )
    validate(recipe)
    series = [as_states(x, options.space) for x in train_set]
    space = Space.of(options.space, series)
    return train_and_save(space, recipe, series, options, "MD_v1.pt", torch.float16, options.weight_decay)


# ---- data


def parts(
    options: Options,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], float, list[np.ndarray]]:
    """Stretches of angles (T, residues, 2): to learn from, the training part, the held-out part; and ps of one step.

    All are of every ``lag``-th frame. What is learnt from begins at each of the first ``lag`` frames, so that no pair
    of frames a step apart is left out; the other two begin at the first, as trajectories do. At the end the held-out
    part again, with all its frames, for what has no steps: populations.

    Raises:
        FileNotFoundError: no trajectories.
        ValueError: damaged or unfitting files, or too few frames.
    """
    from timeseries_examples.formats import load_all

    most = 400 if options.smoke else None
    trajectories = load_all(Path(options.data), options.unit, options.topology, options.frame, most)
    whole, lag = [t.angles for t in trajectories], options.lag
    window = options.past + options.leads[-1]
    full, rest = by_trajectory(whole, options) if options.split == "trajectories" else by_block(whole, options)
    learnt = [x[k::lag] for x in full for k in range(lag)]
    train_set, held_out = ([x[::lag] for x in part] for part in (full, rest))
    for name, stretches in (("training", train_set), ("held-out", held_out)):
        longest, shortest = max(map(len, stretches)), min(map(len, stretches))
        if longest < window:
            raise ValueError(
                f"{options.data}: the longest {name} stretch has {number_of(longest, 'frame')}, but --past "
                f"{options.past} and --leads up to {options.leads[-1]} need {window}: give longer trajectories, or "
                "fewer --leads"
            )
        if shortest < FEWEST + options.past:
            raise ValueError(
                f"{options.data}: a {name} stretch has {shortest} frames, but correlation times and --past "
                f"{options.past} need {FEWEST + options.past}: give longer trajectories or a smaller --lag"
            )
    describe(trajectories, learnt, held_out, options)
    return learnt, train_set, held_out, trajectories[0].lag * lag, rest


def by_trajectory(whole: list[np.ndarray], options: Options) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All but the last trajectories, and those."""
    if len(whole) <= options.held_out:
        raise ValueError(
            f"{len(whole)} trajectories, {options.held_out} of them held out: nothing is left to train on; "
            "give --held_out 1, or --split blocks"
        )
    return whole[: -options.held_out], whole[-options.held_out :]


def by_block(whole: list[np.ndarray], options: Options) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of ten blocks of each trajectory the ``held_out`` in the middle of equal parts, and what lies between them."""
    import numpy as np

    if options.held_out > 5:
        raise ValueError(f"--held_out {options.held_out}: of ten blocks hold out 5 at most")
    train_set, held_out = [], []
    numbers = {round((i + 0.5) * 10 / options.held_out) % 10 for i in range(options.held_out)}
    for x in whole:
        for number, block in enumerate(np.array_split(x, 10)):
            (held_out if number in numbers else train_set).append(block)
    return train_set, held_out


def describe(trajectories: list[Trajectory], learnt: list, held_out: list, options: Options) -> None:
    """Say what there is."""
    frames, first = ", ".join(str(len(t.angles)) for t in trajectories), trajectories[0]
    print(
        f"{len(trajectories)} trajectories of {first.angles.shape[1]} residues, {frames} frames of {first.lag:g} ps; "
        f"{sum(map(len, learnt))} steps to train on, {sum(map(len, held_out))} held out (--split {options.split})"
    )


# ---- the numbers


def show(result: dict[str, Any]) -> None:
    """The numbers as lines."""
    print(
        "lead (ps)   RMSE model  linear  persistence  climatology   MAE model  linear  persistence   CC model  linear"
    )
    for row in result["leads"]:
        m, p, c, r = (row[name] for name in ("model", "persistence", "climatology", "linear"))
        print(
            f"{row['ps']:9.2f}   {m['rmse']:10.2f}  {r['rmse']:6.2f}  {p['rmse']:11.2f}  {c['rmse']:11.2f}   "
            f"{m['mae']:9.2f}  {r['mae']:6.2f}  {p['mae']:11.2f}   {m['cc']:8.3f}  {r['cc']:6.3f}"
        )
    print("(degrees; the model's forecast is the circular mean of its ensemble; linear: least squares on sin and cos)")
    for name, value in result["ramachandran_js"].items():
        print(f"Ramachandran JS distance, {name.replace('_', ' ')}: {value:.4f}")
    for name, value in result["free_energy_error"].items():
        print(f"free energy error, {name.replace('_', ' ')}: {value:.2f} kT")
    shares = (f"{name.replace('_', ' ')} {value:.3%}" for name, value in result["positive_phi"].items())
    print(f"phi from 0 to 120 degrees: {', '.join(shares)}")
    for name, row in result["slow"].items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    show_kinetics(result["kinetics"])
    print(f"NFE per step {result['nfe']}; {result['rollout_steps']} steps rolled out, all finite")


def show_kinetics(found: dict[str, Any] | None) -> None:
    """The scores of single trajectories, the model's beside real ones of their length, or why there are none."""
    if found is None:
        print(
            "no slow modes: they need deeptime (pip install deeptime) and trajectories of 0.4 ns or more, also --length"
        )
        return
    print(f"{'one trajectory to all real ones':<32}model   another real one")
    for name, value in found["model"].items():
        words = [f"{x:<8.3g}" if x is not None else "longer  " for x in (value, found["floor"][name])]
        print(f"{name.replace('_', ' '):<32}{words[0]}{words[1]}")
