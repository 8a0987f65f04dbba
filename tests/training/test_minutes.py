"""Runs of so many minutes, by a clock that goes a second a reading: schedule, end, card, resumption, bad input."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
import yaml

from common import checkpoint
from common.cli import parse
from common.cli.configs import TrainConfig
from common.records.rows import JsonLines
from common.runtime import read_json
from common.scripts.folder import smoke_preset
from common.training.report import Report
from common.training.trainer import Trainer, learning_rate
from tiny import ALONE, difference, last, options, run, states_differ

SIX = {"minutes": 0.1, "total_steps": 400_000}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that is read once a step: step k of a process ends at second k - 1."""
    seconds = itertools.count(1000.0)
    monkeypatch.setattr(Trainer, "now", staticmethod(lambda: next(seconds)))
    return seconds


def rows(out):
    return [row for row in JsonLines(out / "metrics.jsonl").read() if "loss" in row]


def test_the_learning_rate_follows_the_share_of_the_time(tmp_path):
    run(tmp_path, **SIX, lr=2e-3, warmup=3, lr_decay="cosine")
    shares = [seconds / 6 for seconds in (0, 0, 1, 2, 3, 4, 5)]  # that have passed when steps 0, 1, ... begin
    wanted = [2e-3 * min(1, (k + 1) / 3) * (1 + math.cos(math.pi * s)) / 2 for k, s in enumerate(shares)]
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx(wanted, rel=1e-12)
    assert [row["seconds"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]


def test_decay_is_over_where_the_time_is():
    config = TrainConfig(minutes=2, lr=1.0, warmup=0, lr_decay="linear")
    assert [learning_rate(config, 7, share) for share in (0, 0.25, 1)] == [1, 0.75, 0]
    constant = TrainConfig(minutes=2, lr=1.0, warmup=4, lr_decay="none")
    assert [learning_rate(constant, 1, share) for share in (0, 0.25, 1)] == [0.5, 0.5, 0.5]


def test_the_run_ends_with_the_time_as_any_run_does(tmp_path, monkeypatch):
    saved, save = [], Report.save
    monkeypatch.setattr(Report, "save", lambda self: saved.append(self.trainer.step) or save(self))
    final = run(tmp_path, **SIX, save_step=4, val_step=3, sample_step=100)
    assert saved == [4, 7]
    assert last(tmp_path)["step"] == checkpoint.load(final)["step"] == 7 and last(tmp_path)["seconds"] == 6
    values = [row["step"] for row in JsonLines(tmp_path / "metrics.jsonl").read() if "val_loss" in row]
    assert values == [3, 6, 7] and [p.name for p in (tmp_path / "samples").iterdir()] == ["step_0000007.png"]
    card = read_json(final.with_suffix(".json"))
    assert card["minutes"] == {"asked": 0.1, "run": 0.1} and (card["steps"], card["images_seen"]) == (7, 56)
    assert "minutes" not in read_json(run(tmp_path / "steps", total_steps=1).with_suffix(".json"))


def test_a_resumed_run_goes_on_with_the_clock_where_it_stood(tmp_path, monkeypatch, clock, capsys):
    changes = {**SIX, "num_classes": 3, "dropout": 0.1, "lr_decay": "cosine", "save_step": 3}
    update = Trainer.update

    def killed(self, batch):
        if self.step == 4:
            raise MemoryError
        return update(self, batch)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "update", killed)
        run(tmp_path, **changes)
    assert last(tmp_path)["seconds"] == 2  # after step 3
    list(itertools.islice(clock, 500))  # a pause
    run(tmp_path, **changes, resume="auto")
    # its first step, the fourth, compiles again: it is not counted
    assert [row["seconds"] for row in rows(tmp_path)] == [0, 1, 2, 2, 3, 4, 5, 6]
    shares = [0, 0, 1, 2, 2, 3, 4, 5]
    wanted = [1e-3 * min(1, (k + 1) / 2) * (1 + math.cos(math.pi * s / 6)) / 2 for k, s in enumerate(shares)]
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx(wanted, rel=1e-12)

    capsys.readouterr()
    state = last(tmp_path)
    run(tmp_path, **changes, resume="auto")
    assert "the run is finished at step 8" in capsys.readouterr().out and states_differ(state, last(tmp_path)) == ""


def test_other_minutes_are_noted_as_other_steps_are(tmp_path, capsys):
    run(tmp_path, **SIX)
    with pytest.raises(ValueError, match=r"checkpoint_last.pt is at minute 0.1, beyond the 0.05 that are asked for"):
        run(tmp_path, **{**SIX, "minutes": 0.05}, resume="auto")
    run(tmp_path, **{**SIX, "minutes": 0.15}, resume="auto")
    assert last(tmp_path)["history"] == [{"step": 7, "minutes": [0.1, 0.15]}] and last(tmp_path)["seconds"] == 9
    assert "changed since step 7: minutes 0.1 -> 0.15" in capsys.readouterr().out
    run(tmp_path, total_steps=12, resume="auto")  # the length in steps again
    assert last(tmp_path)["step"] == 12 and last(tmp_path)["history"][1]["minutes"] == [0.15, None]


def test_a_flow_map_takes_the_share_of_the_time_for_its_progress(tmp_path):
    trainer = Trainer(options(method="flowmap", **SIX), ALONE)
    assert (trainer.progress, trainer.end) == (0, math.inf)
    seen = []
    trainer.loss = lambda *args, progress, **more: seen.append(progress) or args[0](args[1], args[3]).flatten(1).mean(1)
    batch = torch.zeros(8, 1, 8, 8)
    for seconds in (1.5, 3.0, 7.0):
        trainer.seconds = seconds
        trainer.losses(lambda x, t: x, type("", (), dict(x0=batch, x1=batch, t=batch, noise=batch, y=None, r=batch))())
    assert seen == [0.25, 0.5, 1] and trainer.end == trainer.step


def test_the_bar_shows_the_time_that_is_left(tmp_path, monkeypatch):
    texts, advance = [], Report.advance
    monkeypatch.setattr(Report, "advance", lambda self: advance(self) or texts.append(str(self.bar)))
    run(tmp_path, **{**SIX, "minutes": 0.05})
    assert re.match(r" *0%\|.*\| 00:03 left, step 1", texts[0]) and re.match(
        r" *67%\|.*\| 00:01 left, step 3", texts[2]
    )
    assert re.match(r"100%\|.*\| 00:00 left, step 4", texts[-1])


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "ten", "1e9"])
def test_minutes_out_of_range_are_one_line(value):
    with pytest.raises(ValueError, match=r"^--minutes [^\n]*: (must be|give)[^\n]*$"):
        parse(TrainConfig, argv=["--minutes", value])


def test_one_length_of_the_run_counts(tmp_path):
    for other in ("--total_steps 9", "--epochs 2"):
        line = rf"^--minutes 5.0 and {other}: give one length of the run$"
        with pytest.raises(ValueError, match=line):
            parse(TrainConfig, argv=["--minutes", "5", *other.split()])
    file = tmp_path / "run.yaml"
    file.write_text("total_steps: 9\nepochs: null\nminutes: 3\n")  # as a run's own file has it
    presets = {"default": TrainConfig(epochs=20), "timed": TrainConfig(minutes=7)}
    lines = ["", "--minutes 5", f"-c {file}", f"-c {file} --epochs 2", f"-c {file} --total_steps 5"]
    lines += ["--preset timed", "--preset timed --epochs 2", "--preset timed --total_steps 5", "--minutes none"]
    found = [parse(TrainConfig, presets, argv=line.split()) for line in lines]
    assert [(c.epochs, c.minutes) for c in found] == [
        (20, None), (None, 5), (None, 3), (2, None), (None, None), (None, 7), (2, None), (None, None), (20, None),
    ]  # fmt: skip
    file.write_text("epochs: 2\nminutes: 3\n")
    with pytest.raises(ValueError, match=r"^--minutes 3 and --epochs 2: give one length of the run$"):
        parse(TrainConfig, argv=["-c", str(file)])


def test_smoke_makes_minutes_short(tmp_path):
    assert smoke_preset(TrainConfig(minutes=40)).minutes == 0.05 and smoke_preset(TrainConfig()).minutes is None
    run(tmp_path, **SIX)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["minutes"] == 0.1
    run(tmp_path / "steps", total_steps=7)  # the same steps without a decay: nothing else is another
    assert difference(last(tmp_path)["net_model"], last(tmp_path / "steps")["net_model"]) == ""


def test_a_run_that_ends_in_its_warm_up_says_so(tmp_path, capsys):
    run(tmp_path / "short", minutes=0.05, warmup=5)
    assert "the learning rate reached 4 of 5 steps; give a smaller --warmup" in capsys.readouterr().out
    run(tmp_path / "enough", minutes=0.05, warmup=4)
    assert "warm-up" not in capsys.readouterr().out
