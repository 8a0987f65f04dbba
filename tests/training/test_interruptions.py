"""Runs that are stopped, killed, refused or run out of disk: nothing is lost and the next run goes on."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import checkpoint, runtime
from common.cli import parse
from common.cli.configs import TrainConfig
from common.data.loading import StreamingImages, load_images, mark_of
from common.images import save_png
from common.records.rows import JsonLines
from common.runtime import read_json, run_lock
from common.training import batches
from common.training import loop as training
from common.training.trainer import Trainer
from tiny import NAME, ROOT, difference, images, last, run, states_differ

CHANGES = {"method": "rf", "num_classes": 3, "dropout": 0.1, "total_steps": 8}

# A run as a script. "slow": the second checkpoint stays half written; else a step takes 50 ms.
CHILD = """
import sys, time
import torch
import tiny
from common.training.trainer import Trainer
from common.runtime import run_main

torch.set_num_threads(int(sys.argv[3]))
save, saved = torch.save, []

def slow_save(state, path):
    saved.append(path)
    if sys.argv[2] != "slow" or len(saved) < 2:
        return save(state, path)
    save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    print("half", flush=True)
    time.sleep(600)

torch.save = slow_save
update = Trainer.update

def slow_update(self, batch):
    time.sleep(0.05 if sys.argv[2] != "slow" else 0)
    return update(self, batch)

Trainer.update = slow_update
options = eval(sys.argv[4])
run_main(lambda: tiny.run(tiny.Path(sys.argv[1]), **options))
"""


def start(out: Path, mode: str, **changes) -> subprocess.Popen[str]:
    """A run in a process of its own, with as many threads as this one, so that both give the same bits."""
    command = [sys.executable, "-c", CHILD, str(out), mode, str(torch.get_num_threads()), repr({**CHANGES, **changes})]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run's log has a step; on a busy machine that may take a while."""
    for _ in range(3000):
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()[1][-2000:]}")
        log = out / "metrics.jsonl"
        if log.exists() and any(row["step"] >= step for row in JsonLines(log).read()):
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail("the run did not get there")


def test_kill_9_in_the_middle_of_a_checkpoint_loses_nothing(tmp_path):
    out = tmp_path / "killed"
    process = start(out, "slow")
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] not in ("half\n", ""):
        lines.append(process.stdout.readline())
    assert lines[-1] == "half\n"
    process.kill()
    process.wait()
    leftovers = list(out.glob(".checkpoint_last.pt.*.tmp"))
    assert len(leftovers) == 1 and last(out)["step"] == 2  # the second one, of step 4, was being written
    assert 0 < leftovers[0].stat().st_size < (out / "checkpoint_last.pt").stat().st_size
    with pytest.raises(ValueError, match="truncated or damaged"):
        checkpoint.load(leftovers[0])

    resumed, whole = run(out, **CHANGES, resume="auto"), run(tmp_path / "whole", **CHANGES)
    assert states_differ(last(tmp_path / "whole"), last(out)) == ""
    assert difference(checkpoint.load(whole)["ema_model"], checkpoint.load(resumed)["ema_model"]) == ""
    assert [row["step"] for row in JsonLines(out / "metrics.jsonl").read()] == list(range(1, 9))
    assert not list(out.glob(".*.tmp"))


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    out, moments = tmp_path / "killed", random.Random(0)
    for _ in range(4):
        process = start(out, "steady", total_steps=40, save_step=1, resume="auto")
        wait_for_step(out, last(out)["step"] + 2 if (out / "checkpoint_last.pt").exists() else 2, process)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.wait()
        assert last(out)["step"] >= 1
    options = {**CHANGES, "total_steps": 40}
    run(out, **options, resume="auto")
    run(tmp_path / "whole", **options)
    assert states_differ(last(tmp_path / "whole"), last(out)) == ""


def test_sigterm_saves_and_exits_with_130(tmp_path):
    process = start(tmp_path / "run", "steady", total_steps=100_000, save_step=100_000)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    step = last(tmp_path / "run")["step"]
    assert process.returncode == 130 and step >= 3
    assert f"saved at step {step}; the same command with --resume auto goes on from here\n" in out
    assert "stopping after this step (once more: at once) ...\n" in err
    assert err.endswith("stopped\n") and "Traceback" not in err
    assert not (tmp_path / "run" / NAME).exists()


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    make = batches.CoupledBatches.make
    flag = training.StopFlag

    def make_and_interrupt(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            assert len(list(flags)) == 1 and flags[0].on  # the first one only asks
            flags[0].asked -= 60
            signal.raise_signal(signal.SIGINT)
        return make(self, step)

    flags: list[training.StopFlag] = []
    monkeypatch.setattr(training, "StopFlag", lambda: flags.append(flag()) or flags[-1])
    monkeypatch.setattr(batches.CoupledBatches, "make", make_and_interrupt)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **CHANGES, save_step=100, coupling_ahead=False)
    assert not (tmp_path / "checkpoint_last.pt").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_one_ctrl_c_may_come_as_two_signals(tmp_path, monkeypatch):
    """A launcher passes on the Ctrl-C that the terminal has sent to the whole group already."""
    update = Trainer.update

    def twice(self, batch):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(Trainer, "update", twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **CHANGES, save_step=100)
    assert last(tmp_path)["step"] == 2


def test_the_last_step_is_not_interrupted(tmp_path, monkeypatch):
    update = Trainer.update

    def at_the_end(self, batch):
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(Trainer, "update", at_the_end)
    assert checkpoint.load(run(tmp_path, **CHANGES))["step"] == 8


# ---- refusals


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(ValueError, match=rf"another run \(pid {os.getpid()}\) writes to {tmp_path}"),
    ):
        run(tmp_path, **CHANGES)
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock"}


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    run(tmp_path, **CHANGES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a run: continue it with --resume auto, or choose another folder"):
        run(tmp_path, **CHANGES, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channel": 64}, r"another network \(channels: 32 there, 64 here\)"),
        (
            {"channel_mult": (1, 2), "num_classes": 5},
            r"channel_mult: \[2\] there, \[1, 2\] here; num_classes: 4 there, 6",
        ),
        ({"network": "conditional_unet"}, "name: UNet there, ConditionalUNet here"),
        ({"method": "cfm"}, r"another method \(name: rf there, cfm here\)"),
        ({"sigma": 0.5}, r"another method \(sigma: 0.0 there, 0.5 here\)"),
    ],
    ids=str,
)
def test_resume_with_another_network_names_the_fields(tmp_path, changes, message):
    run(tmp_path, **{**CHANGES, "total_steps": 2})
    with pytest.raises(ValueError, match=f"{message}.*config.yaml, or another --out") as error:
        run(tmp_path, **{**CHANGES, **changes}, resume="auto")
    assert "\n" not in str(error.value) and last(tmp_path)["step"] == 2


def test_resume_from_weights_without_a_state_or_from_a_damaged_file_is_one_line(tmp_path):
    final = run(tmp_path, **{**CHANGES, "total_steps": 2})
    checkpoint_last = tmp_path / "checkpoint_last.pt"
    whole = checkpoint_last.read_bytes()
    checkpoint_last.write_bytes(final.read_bytes())
    with pytest.raises(ValueError, match="holds no state of a run"):
        run(tmp_path, **CHANGES, resume="auto")
    checkpoint_last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"checkpoint_last.pt is truncated or damaged"):
        run(tmp_path, **CHANGES, resume="auto")


def _changed(value, what):
    """A copy of a nested state in which the first tensor, or the first number, is another."""
    if isinstance(value, dict) and value:
        key = next(iter(value))
        return value | {key: _changed(value[key], what)}
    if isinstance(value, list) and value:
        return [_changed(value[0], what), *value[1:]]
    return what(value) if isinstance(value, torch.Tensor) else "x"


DAMAGE = {
    "moments of another shape": lambda s: s["optim"]["state"][0].update(exp_avg=torch.zeros(2)),
    "no moments": lambda s: s["optim"].pop("state"),
    "moments that are not finite": lambda s: s["optim"]["state"][0]["exp_avg"].fill_(math.nan),
    "options of the optimizer": lambda s: s["optim"]["param_groups"][0].update(betas="x"),
    "groups of the optimizer": lambda s: s["optim"].update(param_groups=[1]),
    "weights of another shape": lambda s: s.update(net_model=_changed(s["net_model"], lambda x: x[:1].clone())),
    "weights that are not finite": lambda s: s.update(net_model=_changed(s["net_model"], lambda x: x / 0)),
    "no averages": lambda s: s["ema"].pop("shadow"),
    "averages of another kind": lambda s: s["ema"].update(shadow=3),
    "updates": lambda s: s["ema"].update(updates="x"),
    "scaler": lambda s: s.update(scaler=[1]),
    "best": lambda s: s.update(best="x"),
    "skipped": lambda s: s.update(skipped=-1),
    "step": lambda s: s.update(step=2.5),
    "seconds": lambda s: s.pop("seconds"),
    "images seen": lambda s: s.update(images_seen=None),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    run(out, **{**CHANGES, "total_steps": 2})
    return out / "checkpoint_last.pt"


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_of_a_state_is_one_line_that_names_the_file(two_steps, tmp_path, what):
    state = torch.load(two_steps, weights_only=True)
    DAMAGE[what](state)
    torch.save(state, tmp_path / "checkpoint_last.pt")
    with pytest.raises(ValueError, match="checkpoint_last.pt is damaged") as error:
        run(tmp_path, **CHANGES, resume="auto")
    assert "\n" not in str(error.value)


def test_activation_checkpointing_may_change_on_resume(tmp_path):
    run(tmp_path, **{**CHANGES, "total_steps": 2})
    assert (
        checkpoint.load(run(tmp_path, **{**CHANGES, "total_steps": 3}, checkpointing=True, resume="auto"))["step"] == 3
    )


# ---- disk full


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_full_disk_is_one_line_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys, failing):
    save, sync, saves = torch.save, os.fsync, []

    def full_sync(descriptor):
        if saves and len(saves) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(descriptor)

    def full_save(state, path):
        saves.append(path)
        if failing == "write" and len(saves) >= 2:
            path.write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # as torch does
        return save(state, path)

    monkeypatch.setattr(torch, "save", full_save)
    if failing == "fsync":
        monkeypatch.setattr(runtime.os, "fsync", full_sync)
    with pytest.raises(SystemExit) as left:
        runtime.run_main(lambda: run(tmp_path / "out", **CHANGES))
    assert left.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the disk or quota is full: cannot write") and "an older file is kept" in line
    monkeypatch.undo()
    assert last(tmp_path / "out")["step"] == 2 and not list((tmp_path / "out").glob(".*"))
    run(tmp_path / "out", **CHANGES, resume="auto")
    run(tmp_path / "whole", **CHANGES)
    assert states_differ(last(tmp_path / "whole"), last(tmp_path / "out")) == ""


def test_every_row_of_a_log_is_json(tmp_path):
    run(tmp_path, **CHANGES)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 8 and all(isinstance(json.loads(line), dict) for line in lines)


# ---- what a resumed run must share with its past, and what it may change


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"seed": 1}, images(), "seed 0 there and 1 now"),
        ({"val_fraction": 0.3}, images(), "val_fraction 0.1 there and 0.3 now"),
        ({}, images(41), "data 40 images [0-9a-f]+ there and 41 images [0-9a-f]+ now"),
        ({}, replace(images(), images=255 - images().images), "data 40 images [0-9a-f]+ there and 40 images"),
        ({}, replace(images(), labels=images().labels.flip(0)), "data 40 images [0-9a-f]+ there and 40 images"),
        ({"total_steps": 1}, images(), "is at step 2, beyond the 1"),
    ],
    ids=str,
)
def test_resume_refuses_what_changes_the_split_or_the_past(tmp_path, changes, data, message):
    run(tmp_path, **{**CHANGES, "total_steps": 2})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "run.lock"}
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, data=data, **{**CHANGES, **changes}, resume="auto")
    assert "another --out" in str(error.value) and "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "run.lock"} == before


def test_what_may_change_is_recorded_and_the_files_stay_true(tmp_path, capsys):
    run(tmp_path, **{**CHANGES, "total_steps": 2})
    text = (tmp_path / "config.yaml").read_text()
    run(tmp_path, **{**CHANGES, "total_steps": 2}, resume="auto")
    assert (tmp_path / "config.yaml").read_text() == text and last(tmp_path)["history"] == []
    run(tmp_path, **{**CHANGES, "total_steps": 4, "batch_size": 12, "lr": 5e-4}, resume="auto")
    final = run(tmp_path, **{**CHANGES, "total_steps": 5, "batch_size": 4, "lr": 5e-4}, resume="auto")
    first = {"step": 2, "total_steps": [2, 4], "batch_size": [8, 12], "lr": [1e-3, 5e-4]}
    history = [first, {"step": 4, "total_steps": [4, 5], "batch_size": [12, 4]}]
    assert last(tmp_path)["history"] == read_json(final.with_suffix(".json"))["history"] == history
    seen = 2 * 8 + 2 * 12 + 4
    assert last(tmp_path)["images_seen"] == read_json(final.with_suffix(".json"))["images_seen"] == seen
    rows = JsonLines(tmp_path / "metrics.jsonl").read()
    assert [row["images_seen"] for row in rows] == [8, 16, 28, 40, 44]
    config = parse(TrainConfig, argv=["-c", str(tmp_path / "config.yaml")])
    assert (config.total_steps, config.batch_size, config.lr, config.resume) == (5, 4, 5e-4, "no")
    line = "changed at step 4: total_steps 4 -> 5, batch_size 12 -> 4"
    assert f"# {line}\n" in (tmp_path / "config.yaml").read_text()
    assert "changed since step 4: total_steps 4 -> 5, batch_size 12 -> 4" in capsys.readouterr().out


def test_a_run_of_before_the_marks_goes_on_and_that_is_said(tmp_path, capsys):
    run(tmp_path, **{**CHANGES, "total_steps": 2})
    state = last(tmp_path)
    del state["data"], state["history"]
    checkpoint.save(tmp_path / "checkpoint_last.pt", state)
    run(tmp_path, **{**CHANGES, "total_steps": 3}, resume="auto")
    assert "does not say what data it has seen" in capsys.readouterr().out and last(tmp_path)["data"]


def test_images_that_are_decoded_when_used_have_the_mark_of_those_in_memory(tmp_path):
    for k, image in enumerate(images(6).images):
        save_png(tmp_path / f"{k}.png", image.permute(1, 2, 0).numpy())
    streamed = StreamingImages(str(tmp_path), 8, 1, progress=False)
    assert mark_of(streamed) == mark_of(load_images(str(tmp_path), 8, 1, progress=False))
