"""Two processes give what one gives: the same optimisation at the same global batch, the same images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.runtime import JsonLines
from common.scripts.gen import gen_main
from tiny import ALONE, NAME, ROOT, folder, last, options, run, weights

COMMON = {"num_classes": 3, "total_steps": 3, "dropout": 0.0, "val_step": 3, "sample_step": 3}
RUNS = {
    "plain": {**COMMON, "method": "rf"},
    "accumulated": {**COMMON, "method": "idff", "sigma": 0.2, "grad_accum": 2, "channel_mult": (1, 2)},
}
GEN = ["--weights", "", "--n_samples", "9", "--n_steps", "2", "--batch_size", "2", "--device", "cpu"]
SHARED = f"RUNS, GEN = {RUNS!r}, {GEN!r}"

# Launched once for everything, since starting processes takes longer than what they do.
CHILD = """
import sys
from pathlib import Path
import tiny
from common import generate
from common.scripts.gen import gen_main
from common.runtime import processes, run_main

def main():
    here, out = processes("cpu"), Path(sys.argv[1])
    print(f"rank {here.rank} of {here.world}", flush=True)
    for name, changes in RUNS.items():
        tiny.run(out / name, here, **changes)
    GEN[1] = str(out / "weights.pt")
    gen_main(tiny.folder(out), "", [*GEN, "--save_dir", str(out / "png")])
    gen_main(tiny.folder(out), "", [*GEN, "--save_dir", str(out / "set.npz")])

run_main(main)
"""

STOPPED = """
import sys, time
import tiny
from common.training.trainer import Trainer
from common.runtime import processes, run_main

update = Trainer.update

def slow_update(self, batch):
    time.sleep(0.05)
    return update(self, batch)

Trainer.update = slow_update
here = processes("cpu")
run_main(lambda: tiny.run(tiny.Path(sys.argv[1]), here, **RUNS["plain"] | dict(total_steps=10**6, save_step=10**6)))
"""


def launch(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """Two processes by torch's launcher, in a process group of their own as in a terminal."""
    script = tmp_path / "child.py"
    script.write_text(f"{SHARED}\n{code}")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes leave."""
    out = tmp_path_factory.mktemp("two")
    weights(out / "weights.pt", options(num_classes=3))
    process = launch(out, CHILD)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-4000:]
    assert "rank 0 of 2" in stdout and "rank 1 of 2" in stdout
    assert stdout.count("batch 8 over 2 process(es)") == len(RUNS)  # one of them speaks
    return out


@pytest.mark.parametrize("name", list(RUNS))
def test_training_equals_one_process_with_the_same_global_batch(together, tmp_path, name):
    run(tmp_path, ALONE, **RUNS[name])
    one, two = last(tmp_path), last(together / name)
    assert one["step"] == two["step"] == 3
    for part in ("net_model", "ema_model"):
        errors = torch.cat([(one[part][key] - two[part][key]).abs().flatten() for key in one[part]])
        # Adam divides by gradients that are nearly zero: there the order of a sum shows, once in a thousand weights
        assert errors.mean() < 1e-6 and (errors < 1e-5).float().mean() > 0.999
    moments = [torch.cat([s["exp_avg"].flatten() for s in run["optim"]["state"].values()]) for run in (one, two)]
    assert (moments[0] - moments[1]).abs().max() < 1e-5 < 1e-3 < moments[0].abs().max()
    rows = [JsonLines(path / "metrics.jsonl").read() for path in (tmp_path, together / name)]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows[1] if key in row] == pytest.approx(
            [row[key] for row in rows[0] if key in row], rel=1e-4
        )
    assert rows[1][-1]["val_loss"] == pytest.approx(rows[0][-1]["val_loss"], rel=1e-4)
    files = [sorted(p.name for p in path.iterdir()) for path in (tmp_path, together / name)]
    assert files[0] == files[1] and NAME in files[0]


def test_images_equal_those_of_one_process(together, tmp_path):
    argv = ["--weights", str(together / "weights.pt"), *GEN[2:]]
    gen_main(folder(tmp_path), "", [*argv, "--save_dir", str(tmp_path / "png")])
    gen_main(folder(tmp_path), "", [*argv, "--save_dir", str(tmp_path / "set.npz")])
    names = sorted(path.name for path in (tmp_path / "png").glob("*.png"))
    assert names == [f"{k:06d}.png" for k in range(9)]
    assert names == sorted(path.name for path in (together / "png").glob("*.png"))
    for name in names:
        assert (tmp_path / "png" / name).read_bytes() == (together / "png" / name).read_bytes()
    assert (tmp_path / "set.npz").read_bytes() == (together / "set.npz").read_bytes()
    assert not list(together.glob("*.part.npy")) and not list(together.glob("*.done"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_terminal_and_sigterm_to_the_launcher_save(tmp_path, number):
    process = launch(tmp_path, STOPPED)
    log = JsonLines(tmp_path / "metrics.jsonl")
    for _ in range(2000):
        if process.poll() is not None or len(log.read()) > 3:
            break
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # the terminal sends it to all of the group
    else:
        process.send_signal(number)
    out = process.communicate(timeout=200)[0]
    step = last(tmp_path)["step"]
    assert step > 3 and f"saved at step {step};" in out and process.returncode != 0
