"""The length of a run's average, chosen after the run by the held-out loss; the work of ``python -m common.ema``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import checkpoint, cli
from common.cli.configs import TrainConfig
from common.data.loading import StreamingImages, mark_of, split_train_val
from common.plots import save
from common.records.cards import commit, without_folders, write_card
from common.records.compare import markdown
from common.runtime import Processes, hardware, pick_device
from common.runtime.kept import differences
from common.training import snapshots
from common.training.averages import combination
from common.training.loop import held_out_part, write_final
from common.training.report import HeldOut
from common.training.snapshots import Snapshot
from common.training.trainer import Trainer


class Length(NamedTuple):
    """An average of a run: what it is called, the losses of the held-out batches, the error of its profile."""

    name: str
    losses: Tensor
    error: float | None = None

    @property
    def loss(self) -> float:
        """The held-out loss."""
        return self.losses.mean().item()

    def gain(self, other: Length) -> tuple[float, float | None]:
        """How much higher the loss is than that of another average, and the standard error of that over batches."""
        difference = self.losses - other.losses
        count = len(difference)
        return difference.mean().item(), difference.std().item() / count**0.5 if count > 1 else None


def choose(
    run: Path, stds: Sequence[float], every: bool, data: str, data_root: str, device: str, command: Sequence[str]
) -> Path:
    """Measure averages of some lengths, print a table, draw a picture, and write the best as weights with a card.

    Args:
        run, stds: folder of a run with snapshots; lengths, as standard deviations relative to the run.
        every: write all, not only the best.
        data, data_root: where the run's data lies now; empty: where it was.
        command: what the card says was typed.

    Returns:
        The weights of the least held-out loss, ``ema_std_STD.pt`` in the run folder.

    Raises:
        FileNotFoundError: no snapshots, no data.
        ValueError: snapshots that are damaged or of another network, data that the run has not seen.
    """
    taken = snapshots.read(run)
    trainer = _trainer(run, taken[-1], device)
    held_out = _held_out(trainer, taken[-1], data, data_root)
    print(f"{run}: snapshots of steps {', '.join(str(each['step']) for each in taken)}; {hardware(trainer.device)}")
    own = _own(run, trainer, held_out)
    lengths = {}
    for std in stds:
        error = average(trainer, taken, std)
        lengths[std] = Length(f"std {std:g}", trainer.validation_losses(*held_out).cpu(), error)
    print(table([*lengths.values(), *own]), end="")
    best = min(stds, key=lambda std: lengths[std].loss)
    picture = run / snapshots.FOLDER / "lengths.png"
    draw({std: each.loss for std, each in lengths.items()}, own, picture)
    print(f"picture: {picture}")
    facts = {"source": run.name, "step": trainer.step, "snapshots": [each["step"] for each in taken]}
    facts |= {
        "own_average": {each.name: each.loss for each in own},
        "commit": commit(),
        "command": without_folders(command),
    }
    written = {}
    for std in stds if every else (best,):
        average(trainer, taken, std)
        written[std] = _write(run, trainer, taken[-1], std, lengths[std], facts)
    if best in (stds[0], stds[-1]) and len(stds) > 1:
        print(f"the best is an end of what was measured: lengths beyond std {best:g} may be better (--std)")
    if own and min(each.loss for each in own) <= lengths[best].loss:
        print(f"no length has a lower loss than the run's own average; the best is std {best:g}")
    return written[best]


def average(trainer: Trainer, taken: Sequence[Snapshot], std: float) -> float:
    """Put the average of a length that ends at the last snapshot into the trainer's; the error of its profile.

    Cost: each snapshot is read once.
    """
    parts = [(each["updates"], of, each["power"][of]) for each in taken if each["updates"] for of in each["power"]]
    factors, error = combination([of for _, of, _ in parts], [updates for updates, _, _ in parts], std)
    total: dict[str, Tensor] = {}
    for factor, (_, _, tensors) in zip(factors.tolist(), parts, strict=True):
        for name, tensor in tensors.items():
            total[name] = total[name].add_(tensor.float(), alpha=factor) if name in total else factor * tensor.float()
    trainer.ema.load_state_dict({"updates": taken[-1]["updates"], "shadow": total})
    return error


def _trainer(run: Path, last: Snapshot, device: str) -> Trainer:
    """The run's trainer at its last snapshot, with weights that are yet to be filled in."""
    config = cli.parse(TrainConfig, argv=["-c", str(run)])
    here = Processes(0, 1, pick_device(device))
    trainer = Trainer(replace(config, ema_std=(), compile=False), here)
    ours, theirs = trainer.description, last["network"]
    if different := differences(theirs, ours, {**ours, **theirs}):
        raise ValueError(
            f"the snapshots in {run / snapshots.FOLDER} are of another network than its config.yaml ({different})"
        )
    state: Any = last
    trainer.step, trainer.images_seen, trainer.seconds = (state[key] for key in ("step", "images_seen", "seconds"))
    trainer.classes = tuple(state.get("classes", ()))
    return trainer


def _held_out(trainer: Trainer, last: Snapshot, data: str, data_root: str) -> HeldOut:
    """The batches of the run's validation loss."""
    config, was = trainer.config, last["read_from"]
    if config.smoke and not data:
        raise ValueError(
            "the run was one of --smoke: its made-up images are not kept, so there is nothing to measure on"
        )
    spec, root = data or was.get("data", ""), data_root or was.get("data_root", "")
    images: Any = StreamingImages(
        spec, config.image_size, config.in_channels, root=root, num_workers=config.num_workers, progress=False
    )
    if mark_of(images) != last["data"]:
        images = images.resident()  # images that cannot be read are left out there
    if (mark := mark_of(images)) != last["data"]:
        raise ValueError(f"{spec} is not the data of the run ({mark} here, {last['data']} there): give it by --data")
    rows = split_train_val(len(images), config.val_fraction, config.seed)[1]
    if not len(rows):
        raise ValueError("the run held nothing out (--val_fraction 0): there is no loss to choose by")
    return held_out_part(config, images, rows, trainer.device)


def _own(run: Path, trainer: Trainer, held_out: HeldOut) -> list[Length]:
    """The run's own average, where its last checkpoint is there."""
    path = run / "checkpoint_last.pt"
    if not path.exists():
        return []
    state = checkpoint.load(path)
    trainer.ema.load_state_dict({"updates": state["ema"]["updates"], "shadow": state["ema"]["shadow"]})
    config = trainer.config
    name = f"its own average, decay {config.ema_decay:g}" + f", step {state['step']}" * (state["step"] != trainer.step)
    return [Length(name, trainer.validation_losses(*held_out).cpu())]


def table(lengths: Sequence[Length]) -> str:
    """The averages in Markdown: held-out loss, that against the last one's with its standard error, profile's error."""
    rows = []
    for each in lengths:
        gain, error = each.gain(lengths[-1])
        against = f"{gain:+.5f}" + (f" +- {error:.5f}" if error is not None else "")
        rows.append({"average": each.name, "held-out loss": f"{each.loss:.5f}"})
        rows[-1]["against the last row"] = against if each is not lengths[-1] else ""
        rows[-1]["error of the profile"] = "" if each.error is None else f"{each.error:.1%}"
    return markdown(rows)


def draw(losses: dict[float, float], own: Sequence[Length], path: Path) -> None:
    """The held-out loss over std, and the run's own average as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="tight")
    axis = figure.subplots()
    axis.plot(*zip(*sorted(losses.items())), marker="o")
    for each in own:
        axis.axhline(each.loss, color="black", ls="--", lw=0.8, label=each.name)
        axis.legend(frameon=False)
    axis.set(xlabel="length of the average: std as a share of the run", ylabel="held-out loss")
    axis.grid(alpha=0.3)
    save(figure, path, crop=False)


def _write(run: Path, trainer: Trainer, last: Snapshot, std: float, length: Length, facts: dict[str, Any]) -> Path:
    """Write the average that the trainer holds, with the run's options, and its card."""
    path = run / f"ema_std_{std:g}.pt"
    write_final(path, trainer.weights(torch.float16) | {"config": last["config"]})
    measured = {"method": trainer.weights_method(), "std": std, "held_out_loss": length.loss}
    write_card(path, measured | {"profile_error": length.error} | facts)
    return path
