"""Snapshots of a run's power-function averages, ``ema/step_*.pt`` in its folder: taken, thinned out, read again.

Which are there after a step is a function of the step: multiples of a spacing that doubles as the run gets longer, and
the end. So their number is bounded however long a run becomes, and one that was killed and resumed has those of a run
that never stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import TypedDict

from common import checkpoint
from common.runtime import checked

if TYPE_CHECKING:
    from common.training.trainer import Trainer

FOLDER = "ema"
FIRST = 10  # steps between snapshots at first
MOST = 16  # snapshots of a run


class Snapshot(TypedDict):
    """What a snapshot holds besides what every checkpoint does."""

    step: int
    updates: int
    config: dict[str, Any]
    network: dict[str, Any]
    power: dict[float, dict[str, Tensor]]  # parameters by std
    data: str  # mark of the data
    read_from: dict[str, str]  # --data and --data_root that it was read from


def spacing(step: int) -> int:
    """Steps between the snapshots of a run that is at a step: 10, 20, 40, ...; fewer than 16 before the end."""
    return next(every for k in range(64) if step < MOST * (every := FIRST * 2**k))


def files(out: Path) -> dict[int, Path]:
    """The snapshots of a run folder by step, in order."""
    found = {path.stem.removeprefix("step_"): path for path in (out / FOLDER).glob("step_*.pt")}
    return {
        step: found[digits] for step, digits in sorted((int(digits), digits) for digits in found if digits.isdecimal())
    }


def take(out: Path, trainer: Trainer) -> None:
    """Write a snapshot where one is due, and remove those that the spacing leaves out by now."""
    step, every = trainer.step, spacing(trainer.step)
    if not trainer.config.ema_std or (step % every and step < trainer.end):
        return
    own = {"updates": trainer.ema.updates, "power": trainer.ema.snapshot()}
    own |= {"data": trainer.data, "read_from": trainer.read_from}
    state = {key: value for key, value in trainer.weights().items() if key != "ema_model"}
    checkpoint.save(out / FOLDER / f"step_{step:08d}.pt", state | own)
    for older, path in files(out).items():
        if older < step and older % every:
            path.unlink()


def remove_after(out: Path, step: int) -> None:
    """Remove the snapshots that are later than a step: those of a run that goes on from it will be others."""
    for later, path in files(out).items():
        if later > step:
            path.unlink()


def announcement(out: Path, trainer: Trainer) -> str:
    """Where snapshots go and what they take of the disk."""
    stds, parameters = trainer.config.ema_std, sum(p.numel() for p in trainer.net.parameters())
    size = 2 * len(stds) * parameters / 1e6
    return (
        f"power-function averages of std {', '.join(map(str, stds))}: up to {MOST} snapshots of {size:.3g} MB in "
        f"{out / FOLDER}, {MOST * size:.3g} MB together; python -m common.ema {out} makes one of any length of them"
    )


def read(out: Path) -> list[Snapshot]:
    """The snapshots of a run folder, in order, checked against their checksums; tensors are read when used.

    Raises:
        FileNotFoundError: there is no such folder, or no snapshot in it.
        ValueError: one is damaged, of another network than the last, or no snapshot.
    """
    paths = files(out)
    if not paths:
        raise FileNotFoundError(
            f"{out / FOLDER} holds no snapshots of averages (step_*.pt): give the folder of a run that was trained "
            "with --ema_std 0.05 0.1"
        )
    states = [_read(path) for path in paths.values()]
    for path, state in zip(paths.values(), states, strict=True):
        if state["network"] != states[-1]["network"]:
            raise ValueError(f"{path} is of another network than the later snapshots: remove it")
    return states


def _read(path: Path) -> Any:
    try:
        state = checked(checkpoint.load(path), Snapshot, f"{path} is no snapshot")
        for shadow in state["power"].values():
            checkpoint.check_finite(shadow)
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ValueError(f"{where}{error}; remove it: the others serve without it") from error
    return state
