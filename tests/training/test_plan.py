"""What --plan says of a run is what the run takes and leaves; it writes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from celebA.epochs import train_epochs
from common.scripts.train import train_main
from common.training import loop, plan
from common.training.trainer import Trainer
from sst.flow import FieldTrainer
from tiny import ALONE, NAME, folder, images, options, run

OFTEN = {"channel_mult": (1,), "save_step": 6, "sample_step": 12, "val_step": 12}


@pytest.fixture
def told(monkeypatch):
    """The plans that runs make, with few steps."""
    made = []
    monkeypatch.setattr(plan, "STEPS", 2)
    monkeypatch.setattr(loop, "tell", lambda *args: made.append(plan.tell(*args)))
    return made


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps move on, a second each, which do nothing else; it counts them."""
    now = SimpleNamespace(seconds=0.0, rows=[])

    def one(self, batch):
        now.seconds += 1.0
        now.rows.append(len(batch.x0) // self.config.grad_accum)
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(Trainer, "update", one)
    monkeypatch.setattr(
        plan, "time", SimpleNamespace(perf_counter=lambda: now.seconds, process_time=lambda: now.seconds / 4)
    )
    return now


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("by_epochs", [False, True])
def test_the_disk_is_that_of_the_run_and_nothing_is_written(tmp_path, told, by_epochs):
    changes = {**OFTEN, "total_steps": 12} | ({} if by_epochs else {"ema_std": (0.05, 0.1)})
    train = train_epochs if by_epochs else loop.train
    out = tmp_path / "run"
    train(options(**changes, plan=True), images(), out, NAME, ALONE)
    assert not out.exists()
    train(options(**changes), images(), out, NAME, ALONE)
    left, kinds = contents(out), told[0].files
    total = sum(map(len, left.values()))
    assert sum(kinds.values()) == pytest.approx(total, rel=0.1)
    for kind, size in kinds.items():
        if kind.endswith((".pt", ".pth")):
            assert size == pytest.approx(sum(len(left[path]) for path in out.glob(kind)), rel=0.02), kind
    train(options(**changes, plan=True), images(), out, NAME, ALONE)
    assert contents(out) == left and told[1].files == kinds


def test_the_time_is_that_of_twenty_steps_for_all(tmp_path, clock, monkeypatch, capsys):
    plans = []
    monkeypatch.setattr(loop, "tell", lambda *args: plans.append(plan.tell(*args)))
    monkeypatch.setattr(plan, "computes", lambda precision: False)
    run(tmp_path / "run", plan=True, total_steps=5000)
    assert clock.rows == [1, 1, 2, 2] + [8] * 23 and plans[0].seconds == 5000
    printed = capsys.readouterr().out
    assert "20 measured, 1 s each, 8 images/s" in printed and "time     1:23:20: 5000 steps" in printed
    assert f"{1 - 0.25 / torch.get_num_threads():.0%} of the processor" in printed
    assert any(flag.startswith("--minutes 60: about 3600 of the 5000 steps") for flag in plans[0].flags)
    run(tmp_path / "run", plan=True, total_steps=5000, minutes=10.0)
    assert (plans[1].steps, plans[1].seconds) == (600, 600)
    monkeypatch.setattr(plan, "PATIENCE", 5.0)
    clock.rows.clear()
    run(tmp_path / "run", plan=True)
    assert len(clock.rows) == 4 + 1 + 5 and not tmp_path.joinpath("run").exists()  # a step is slow: five seconds do


def test_a_batch_that_does_not_fit_is_taken_in_parts(tmp_path, told, clock, monkeypatch):
    monkeypatch.setattr(plan, "memory", lambda device: (100 + 10 * clock.rows[-1], 160))  # 144 are room for 4 rows
    run(tmp_path, plan=True)
    assert max(clock.rows) == 4 and told[0].memory == 140
    assert told[0].flags[0].startswith("--grad_accum 2: the batch does not fit")
    monkeypatch.setattr(plan, "memory", lambda device: (100 + 10 * clock.rows[-1], 900))
    run(tmp_path, plan=True)
    assert told[1].flags[0] == "--batch_size: the memory has room for 64"  # (810 - 100) / 10 = 71
    monkeypatch.setattr(plan, "memory", lambda device: (100 + 10 * clock.rows[-1], 160))
    monkeypatch.setattr(Trainer, "parts", FieldTrainer.parts)  # sst and seqrf have no such flag
    run(tmp_path, plan=True)
    assert told[2].flags[0] == "--batch_size 4: the batch does not fit into memory"


def test_a_gpu_that_runs_out_of_memory_gets_parts(tmp_path, told, clock, monkeypatch):
    update = Trainer.update

    def little(self, batch):
        if len(batch.x0) // self.config.grad_accum > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, batch)

    monkeypatch.setattr(Trainer, "update", little)
    run(tmp_path, plan=True)
    assert told[0].flags[0].startswith("--grad_accum 2: ")


def test_the_faster_precision_and_processes_for_all_cores_are_named(tmp_path, told, clock, monkeypatch):
    update = Trainer.update

    def slow(self, batch):
        clock.seconds += 2.0 * (self.config.mixed_precision == "no")
        return update(self, batch)

    monkeypatch.setattr(Trainer, "update", slow)
    monkeypatch.setattr(plan, "computes", lambda precision: True)
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda pid: range(5), raising=False)
    run(tmp_path, plan=True)
    assert "-mp bf16: 3.00 times as fast here" in told[0].flags
    assert any("torchrun --nproc_per_node 4" in flag for flag in told[0].flags)  # five do not share a batch of 8
    run(tmp_path, plan=True, mixed_precision="bf16")
    assert not any(flag.startswith("-mp") for flag in told[1].flags)


def test_plan_is_a_flag_of_the_scripts(tmp_path, told):
    place = folder(tmp_path, options(channel_mult=(1,), num_classes=3))
    train_main(place, "", ["--smoke", "--plan"])
    assert told[0].steps == 4 and list(tmp_path.iterdir()) == []
