"""Snapshots of a run's power-function averages, and the length that is chosen of them after the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.cli import parse
from common.cli.configs import TrainConfig
from common.data.loading import load_images
from common.records.rows import JsonLines
from common.scripts import lengths
from common.training import snapshots
from common.training.trainer import Trainer
from tiny import difference, images, last, run, states_differ

POWER = {"ema_std": (0.05, 0.1), "total_steps": 8, "save_step": 5, "val_step": 8, "log_step": 8}


@pytest.fixture
def often(monkeypatch):
    """Runs of few steps with several snapshots."""
    monkeypatch.setattr(snapshots, "FIRST", 1)
    monkeypatch.setattr(snapshots, "MOST", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on images in a file, of steps 4 and 8."""
    out = tmp_path_factory.mktemp("lengths")
    data = images(60)
    np.savez(out / "images.npz", images=data.images.numpy().transpose(0, 2, 3, 1), labels=data.labels.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "FIRST", 1)
        patch.setattr(snapshots, "MOST", 4)
        run(out / "run", data=load_images(str(out / "images.npz"), 8, 1, progress=False), **POWER)
    return out / "run"


def copied(trained: Path, tmp_path: Path) -> Path:
    """The run's folder, to be spoiled."""
    for path in (trained / "config.yaml", *snapshots.files(trained).values()):
        (tmp_path / path.relative_to(trained)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(trained)).write_bytes(path.read_bytes())
    return tmp_path


def choose(*words: object) -> Path:
    """The command."""
    return lengths.main([*map(str, words), "--device", "cpu"])


# ---- snapshots


def test_their_number_is_bounded_and_their_steps_are_a_function_of_the_step():
    assert [snapshots.spacing(step) for step in (1, 159, 160, 319, 320, 400_000)] == [10, 10, 20, 20, 40, 40_960]
    counts = {step // snapshots.spacing(step) for step in range(160, 20_000)}
    assert min(counts) == snapshots.MOST // 2 and max(counts) == snapshots.MOST - 1


def test_a_run_that_was_killed_and_resumed_has_the_snapshots_of_one_that_never_stopped(tmp_path, often, monkeypatch):
    run(tmp_path / "whole", **POWER)
    assert list(snapshots.files(tmp_path / "whole")) == [4, 8]
    update = Trainer.update

    def killed(self, batch):
        if self.step == 7:
            raise RuntimeError("killed")
        return update(self, batch)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "update", killed)
        run(tmp_path / "parts", **POWER)
    assert list(snapshots.files(tmp_path / "parts")) == [2, 4, 6] and last(tmp_path / "parts")["step"] == 5
    (tmp_path / "parts" / "ema" / "step_00000007.pt").write_bytes(b"of a past that is no more")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "update", killed)
        run(tmp_path / "parts", **POWER, resume="auto")
    assert max(snapshots.files(tmp_path / "parts")) == 6, "later snapshots go when a run goes on"
    run(tmp_path / "parts", **POWER, resume="auto")
    whole, parts = (snapshots.files(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and states_differ(last(tmp_path / "whole"), last(tmp_path / "parts")) == ""
    for step in whole:
        one, two = ({**checkpoint.load(files[step]), "seconds": 0, "config": {}} for files in (whole, parts))
        assert difference(one, two) == ""


def test_averages_do_not_change_the_run_and_cannot_change_within_it(tmp_path):
    run(tmp_path / "with", **{**POWER, "total_steps": 4})
    run(tmp_path / "without", **{**POWER, "total_steps": 4, "ema_std": ()})
    assert not (tmp_path / "without" / "ema").exists()
    one, two = last(tmp_path / "with"), last(tmp_path / "without")
    assert difference(one["ema_model"], two["ema_model"]) == "" and list(one["ema"]["power"]) == [0.05, 0.1]
    with pytest.raises(ValueError, match=r"ema_std \[0.05, 0.1\] there and \[\] now; give the same, or another --out"):
        run(tmp_path / "with", total_steps=6, resume="auto")


def test_a_run_of_minutes_ends_with_a_snapshot(tmp_path):
    run(tmp_path, **{**POWER, "minutes": 1e-4})
    assert max(snapshots.files(tmp_path)) == last(tmp_path)["step"]


@pytest.mark.parametrize(
    ("words", "line"),
    [("0.3", "--ema_std 0.3: must be at most 0.28"), ("0.1 0.1", "--ema_std 0.1 0.1: give each value once")],
)
def test_lengths_that_cannot_be_kept_are_refused(words, line):
    with pytest.raises(ValueError, match=line):
        parse(TrainConfig, argv=["--ema_std", *words.split()])


# ---- the choice


def test_the_best_length_is_measured_as_the_run_measures_and_written_with_its_card(trained, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    best = choose(trained, "--std", "0.05", "0.1", "0.15..0.18", "--write", "all")
    out = capsys.readouterr().out
    losses = {float(std): float(loss) for std, loss in re.findall(r"\| std (\S+) \| (\S+) \|", out)}
    assert list(losses) == [0.05, 0.1, 0.15, 0.155, 0.16, 0.165, 0.17, 0.175, 0.18]
    assert best == trained / f"ema_std_{min(losses, key=losses.__getitem__):g}.pt"
    card = json.loads(best.with_suffix(".json").read_text())
    assert card["std"] == min(losses, key=losses.__getitem__) and card["source"] == "run" and card["step"] == 8
    assert card["held_out_loss"] == pytest.approx(min(losses.values()), abs=1e-5)
    logged = [row["val_loss"] for row in JsonLines(trained / "metrics.jsonl").read() if "val_loss" in row]
    assert card["own_average"] == {"its own average, decay 0.9": pytest.approx(logged[-1], rel=1e-6)}
    assert (trained / "ema" / "lengths.png").stat().st_size > 5000
    assert all(path.read_bytes() == content for path, content in before.items()), "the old files stay"

    tracked = checkpoint.load(trained / "ema" / "step_00000008.pt")["power"][0.1]
    written = checkpoint.load(trained / "ema_std_0.1.pt")
    for name, tensor in tracked.items():
        assert torch.allclose(written["ema_model"][name], tensor, rtol=2e-3, atol=1e-6)
    assert written["config"]["ema_std"] == [0.05, 0.1] and checkpoint.load_network(best)[1]["step"] == 8


def test_data_that_moved_is_given_and_other_data_refused(trained, tmp_path):
    spoiled, moved = copied(trained, tmp_path / "run"), tmp_path / "b.npz"
    moved.write_bytes((trained.parent / "images.npz").read_bytes())
    assert choose(spoiled, "--std", "0.1", "--data", moved) == spoiled / "ema_std_0.1.pt"
    data = images(60).images.numpy().transpose(0, 2, 3, 1)
    np.savez(moved, images=255 - data, labels=images(60).labels.numpy())
    with pytest.raises(ValueError, match=r"b.npz is not the data of the run \(60 images"):
        choose(spoiled, "--data", moved)


def test_what_cannot_be_chosen_from_is_one_line(trained, tmp_path):
    with pytest.raises(ValueError, match="give a run folder: python -m common.ema RUN_FOLDER"):
        choose()
    with pytest.raises(ValueError, match="--std 0.05..0.4: must be from 0.01 to 0.28"):
        choose(trained, "--std", "0.05..0.4")
    with pytest.raises(ValueError, match="--std long: give a number such as 0.1, or a range such as 0.05..0.2"):
        choose(trained, "--std", "long")
    with pytest.raises(
        FileNotFoundError, match=r"holds no snapshots of averages \(step_\*.pt\): give the folder of a run"
    ):
        choose(tmp_path)
    out = copied(trained, tmp_path)
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("num_channel: 32", "num_channel: 64"))
    with pytest.raises(ValueError, match=r"of another network than its config.yaml \(channels: 32 there, 64 here\)"):
        choose(out)
    (out / "config.yaml").write_text(config)
    path = out / "ema" / "step_00000004.pt"
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(ValueError, match=r"step_00000004.pt is damaged .*; remove it: the others serve without it"):
        choose(out)
    path.unlink()
    other = checkpoint.load(out / "ema" / "step_00000008.pt")
    checkpoint.save(path, {**other, "network": {**other["network"], "channels": 64}})
    with pytest.raises(ValueError, match="step_00000004.pt is of another network than the later snapshots: remove it"):
        choose(out)
    checkpoint.save(path, {key: value for key, value in other.items() if key != "power"})
    with pytest.raises(ValueError, match="step_00000004.pt is no snapshot: .*`power`; remove it: the others serve"):
        choose(out)
