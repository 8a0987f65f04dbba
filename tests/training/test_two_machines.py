"""Two machines, each with its own launcher and address, do what two processes on one do: docs/machines.sh."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from common.records.rows import JsonLines
from common.runtime import Processes
from common.training.loop import begin
from started import start
from tiny import ALONE, ROOT, last, options, states_differ

RUN = {"method": "rf", "num_classes": 3, "dropout": 0.0, "total_steps": 10**6, "save_step": 5, "resume": "auto"}
SCRIPT = f"""
import sys
sys.path += {[str(ROOT), str(ROOT / "tests")]!r}
import tiny
from common.runtime import processes, run_main

tiny.slow_updates(0.05)
here = processes("cpu")
run_main(lambda: tiny.run(tiny.Path(sys.argv[1]), here, **{RUN!r} | dict(total_steps=int(sys.argv[2]))))
"""
FORKED = """
import os
second = os.fork()
rank = "0" if second else "1"
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="@", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
"""


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
        return str(one.getsockname()[1])


def machines(script: Path, out: Path, steps: int) -> list[subprocess.Popen[str]]:
    """Two machines, 127.0.0.2 and 127.0.0.3, that train together."""
    port = free_port()
    command = ["bash", str(ROOT / "docs" / "machines.sh"), "--local_addr"]
    place = {"NODES": "2", "FIRST": "127.0.0.2", "PORT": port, "PROCESSES": "1", "PYTHON": sys.executable}
    return [
        subprocess.Popen(
            [*command, f"127.0.0.{2 + node}", str(script), str(out), str(steps)],
            env={**os.environ, **place, "NODE": str(node), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for node in range(2)
    ]


def started_and_logging(script: Path, out: Path) -> list[subprocess.Popen[str]]:
    """Two machines that have trained for some steps."""
    both, log = machines(script, out, 10**6), JsonLines(out / "metrics.jsonl")
    for _ in range(2000):
        if both[0].poll() is not None or (log.path.exists() and len(log.read()) > 7):
            break
        time.sleep(0.1)
    return both


def lines_of(err: str) -> list[str]:
    """What was said but for the bar."""
    return [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "step/s" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_one_that_goes_down_ends_the_other_with_one_line_and_both_go_on(tmp_path, dead):
    script, out = tmp_path / "child.py", tmp_path / "run"
    script.write_text(SCRIPT)
    both = started_and_logging(script, out)
    launcher = psutil.Process(both[dead].pid)
    for process in (launcher, *launcher.children(recursive=True)):  # all of it, as when a machine goes down
        process.kill()
    died = time.monotonic()
    err = both[1 - dead].communicate(timeout=60)[1]
    print(f"the other machine ended after {time.monotonic() - died:.1f} s")
    assert lines_of(err) == [
        "error: another process of this run has ended: the run can be resumed from its last checkpoint"
    ]
    assert both[1 - dead].returncode != 0
    both[dead].communicate()

    step = last(out)["step"]
    assert step % 5 == 0 and step >= 5
    for machine in (again := machines(script, out, step + 3)):
        assert machine.communicate(timeout=200) and machine.returncode == 0
    assert len(again) == 2 and last(out)["step"] == step + 3
    one = tmp_path / "forked.py"  # as many processes on one machine, never stopped
    one.write_text(FORKED.replace("@", free_port()) + SCRIPT)
    assert start(one, tmp_path / "one", step + 3, cwd=tmp_path).returncode == 0
    assert states_differ(last(out), last(tmp_path / "one")) == ""


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_one_that_stands_still_ends_the_other_with_one_line(tmp_path, dead):
    """Its connections stay open, as those of a machine whose cable was pulled."""
    script = tmp_path / "child.py"
    shorter = "from common.runtime import ending\nending.SILENCE, ending.BEAT = 6, 1\n"
    script.write_text(SCRIPT.replace("tiny.slow", f"{shorter}tiny.slow", 1))
    both = started_and_logging(script, tmp_path / "run")
    launcher = psutil.Process(both[dead].pid)
    family = [launcher, *launcher.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        stopped = time.monotonic()
        err = both[1 - dead].communicate(timeout=60)[1]
        print(f"the other machine ended after {time.monotonic() - stopped:.1f} s")
    finally:
        for process in family:
            process.kill()
    lost = f"error: process {dead} of this run has given no sign of life for 6 s: its machine or the way to it is down"
    assert [line[: len(lost)] for line in lines_of(err)] == [lost]
    assert both[1 - dead].returncode != 0
    both[dead].communicate()


def test_a_folder_that_only_the_first_one_sees_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "of_first", lambda self, number: 2.0)  # where the first one's checkpoint ends
    second, config = Processes(rank=1, world=2, device=ALONE.device), options(resume="auto")
    trainer: Any = SimpleNamespace(config=config, processes=second, step=0, elsewhere="--out")
    with pytest.raises(
        ValueError, match="at step 2 for the first process and at step 0 for process 1: all machines .* --out"
    ):
        begin(trainer, tmp_path, config)
    trainer.step = 2
    begin(trainer, tmp_path, config)
