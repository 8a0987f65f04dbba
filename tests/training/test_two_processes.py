"""Two processes give what one gives: the same optimisation at the same global batch, the same files, images, scores."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from common import checkpoint
from common.records.rows import JsonLines
from common.scripts.gen import gen_main
from common.training.trainer import Trainer
from seqrf import all_stages, flags, stages
from sst import config as sst_config
from sst import sst_pipeline
from started import start
from tiny import ALONE, NAME, ROOT, difference, folder, last, options, run, weights

COMMON = {"num_classes": 3, "total_steps": 3, "dropout": 0.0, "val_step": 3, "sample_step": 3}
RUNS = {
    "plain": {**COMMON, "method": "rf", "ema_std": (0.05, 0.1)},
    "accumulated": {**COMMON, "method": "idff", "sigma": 0.2, "grad_accum": 2, "channel_mult": (1, 2)},
    "derivative": {**COMMON, "method": "meanflow"},
}
TIMED = {**RUNS["plain"], "minutes": 0.1, "lr_decay": "cosine"}
SST = replace(sst_config.smoke(sst_config.DEFAULT), device="cpu", spread="validation")
# One process with the whole batch draws these pairs; the plan goes through every kind of student.
SEQRF = ["--config=configs/rf/toy2d.py", "--smoke", "--device=cpu", "--config.training.snapshot_sampling=False"]
SEQRF += [
    f"--config.pipeline.{name}" for name in ("segments=2", "adaptive=2", "distill=2", "steps=2", "teacher_steps=6")
]
GEN = ["--weights", "", "--n_samples", "9", "--n_steps", "2", "--batch_size", "2", "--device", "cpu"]
SHARED = f"RUNS, TIMED, GEN, SEQRF = {RUNS!r}, {TIMED!r}, {GEN!r}, {SEQRF!r}"

# Once for everything, and in forks that a launcher would have started: starting takes longer than what they do.
CHILD = """
import os, socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
second = os.fork()
rank = "0" if second else "1"
os.environ.update(place, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
import itertools
import sys
from pathlib import Path
import time
from dataclasses import replace
import tiny
from common.scripts.gen import gen_main
from common.runtime import processes, run_main
from common.solvers import fitted
from common.training.trainer import Trainer
from celebA.epochs import train_epochs
from seqrf import all_stages, flags, stages
from sst import sst_pipeline
from sst.config import Options

def timed(out, here):
    seconds, clock = itertools.count(0, 1 + 4 * here.rank), Trainer.now  # the second one's runs five times as fast
    Trainer.now = staticmethod(lambda: float(next(seconds)))
    tiny.run(out, here, **TIMED)
    print(f"rank {here.rank} read its clock {next(seconds) // (1 + 4 * here.rank)} times", flush=True)
    Trainer.now = clock

def main():
    here, out = processes("cpu"), Path(sys.argv[1])
    print(f"rank {here.rank} of {here.world}", flush=True)
    with here.main_first():
        print("in turn", flush=True)
        seen = (out / "first").exists()
        if here.is_main:
            time.sleep(0.5)
            (out / "first").touch()
    print(f"rank {here.rank} sees the first one's work: {seen}", flush=True)
    for name, changes in RUNS.items():
        tiny.run(out / name, here, **changes)
    train_epochs(tiny.options(), tiny.images(), out / "epochs", tiny.NAME, here)
    timed(out / "timed", here)

    GEN[1] = str(out / "weights.pt")
    gen_main(tiny.folder(out), "", [*GEN, "--save_dir", str(out / "png")])
    gen_main(tiny.folder(out), "", [*GEN, "--save_dir", str(out / "set.npz")])
    keep = fitted.keep
    fitted.keep = lambda *arguments: print("an adaptive grid is kept", flush=True) or keep(*arguments)
    gen_main(tiny.folder(out), "", [*GEN, "--grid", "adaptive", "--save_dir", str(out / "adaptive.npz")])

    scores = sst_pipeline.run(replace(SST, out=str(out / "sst")))
    print(f"rank {here.rank} has scores: {bool(scores)}", flush=True)
    here.wait()  # so that both come to the teacher at once
    run = flags.parse([*SEQRF, f"--workdir={out / 'seqrf'}", "--config.model.rf_phase=1"])
    stages.execute(run)
    all_stages.whole(stages.smoke(run), here)

try:
    run_main(main)
finally:
    assert not second or os.waitpid(second, 0)[1] == 0
"""

STOPPED = """
import sys
import tiny
from common.runtime import processes, run_main

tiny.slow_updates(0.05)
here = processes("cpu")
run_main(lambda: tiny.run(tiny.Path(sys.argv[1]), here, **RUNS["plain"] | dict(total_steps=10**6, save_step=10**6)))
"""


PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def written(tmp_path: Path, code: str) -> Path:
    """The script of a process."""
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nsys.path += {PATHS.split(os.pathsep)!r}\n{SHARED}\n{code}")
    return script


def launch(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """Two processes by torch's launcher, in a process group of their own as in a terminal."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [sys.executable, *command, str(written(tmp_path, code)), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    code = CHILD.replace("import itertools\n", f"from sst.config import Options\nSST = {SST!r}\nimport itertools\n", 1)
    done = start(written(out, code), out, cwd=out)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rank 0 of 2" in done.stdout and "rank 1 of 2" in done.stdout
    (out / "stdout").write_text(done.stdout)
    return out


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], lr: float = 1e-3) -> None:
    """Weights are equal but for the order in which gradients are summed."""
    errors = torch.cat([(one[key] - two[key]).abs().flatten() for key in one]) / lr
    # Adam divides by gradients that are nearly zero: there the order of a sum shows, once in a thousand weights
    assert errors.mean() < 1e-3 and (errors < 1e-2).float().mean() > 0.999


def names(path: Path) -> list[str]:
    """All that lies in a folder."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def lines(together: Path, words: str) -> int:
    """How often two processes said something."""
    return (together / "stdout").read_text().count(words)


def test_the_first_process_goes_alone_and_speaks_alone(together):
    assert lines(together, "rank 0 sees the first one's work: False") == 1
    assert lines(together, "rank 1 sees the first one's work: True") == 1
    assert lines(together, "in turn") == 1
    for words in ("run folder: ", "over 2 process(es)", "weights: ", "page: "):
        assert lines(together, words) == len(RUNS) + 6, words  # epochs, minutes, forecaster, three students


@pytest.mark.parametrize("name", list(RUNS))
def test_training_equals_one_process_with_the_same_global_batch(together, tmp_path, name):
    run(tmp_path, ALONE, **RUNS[name])
    one, two = last(tmp_path), last(together / name)
    assert one["step"] == two["step"] == 3
    for part in ("net_model", "ema_model"):
        assert_close(one[part], two[part])
    for std in RUNS[name].get("ema_std", ()):
        assert_close(one["ema"]["power"][std], two["ema"]["power"][std])
    moments = [torch.cat([s["exp_avg"].flatten() for s in run["optim"]["state"].values()]) for run in (one, two)]
    assert (moments[0] - moments[1]).abs().max() < 1e-5 < 1e-3 < moments[0].abs().max()
    rows = [JsonLines(path / "metrics.jsonl").read() for path in (tmp_path, together / name)]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows[1] if key in row] == pytest.approx(
            [row[key] for row in rows[0] if key in row], rel=1e-4
        )
    assert rows[1][-1]["val_loss"] == pytest.approx(rows[0][-1]["val_loss"], rel=1e-4)
    files = [names(path) for path in (tmp_path, together / name)]
    assert files[0] == files[1] and NAME in files[0]
    assert ("ema/step_00000003.pt" in files[0]) == ("ema_std" in RUNS[name])


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


def test_an_adaptive_grid_is_chosen_once(together):
    assert lines(together, "an adaptive grid is kept") == 1 and (together / "adaptive.npz").exists()
    assert lines(together, "weights.pt: averaged rf weights") == 3  # as often as images were made


def test_the_first_ones_clock_decides_on_learning_rate_and_end_of_both(together, tmp_path, monkeypatch):
    assert lines(together, "read its clock 7 times") == 2
    seconds = itertools.count(0.0)
    monkeypatch.setattr(Trainer, "now", staticmethod(lambda: next(seconds)))
    run(tmp_path, ALONE, **TIMED)
    one, two = (
        [row["lr"] for row in JsonLines(out / "metrics.jsonl").read() if "lr" in row]
        for out in (tmp_path, together / "timed")
    )
    assert one == two and len(one) == 7
    assert_close(last(tmp_path)["net_model"], last(together / "timed")["net_model"])


def test_epochs_end_once(together):
    assert [file.name for file in (together / "epochs").glob("*.pth")]
    rows = [row["epoch"] for row in JsonLines(together / "epochs" / "metrics.jsonl").read() if "epoch" in row]
    assert rows == [1] and checkpoint.load(together / "epochs" / "epoch_1.pth")["step"] == 4


def test_the_forecaster_equals_that_of_one_process(together, tmp_path):
    scores = sst_pipeline.run(replace(SST, out=str(tmp_path)))
    assert names(tmp_path) == names(together / "sst")  # one final file, none renamed
    final = "CFM_sst_weights_step_final.pt"
    one, two = (checkpoint.load(path / final) for path in (tmp_path, together / "sst"))
    assert one["step"] == two["step"] and two["spread"] == pytest.approx(one["spread"], rel=1e-5)
    assert_close(last(tmp_path)["net_model"], last(together / "sst")["net_model"], SST.lr)
    rows = [JsonLines(path / "metrics.jsonl").read() for path in (tmp_path, together / "sst")]
    losses = [[row["val_loss"] for row in part if "val_loss" in row] for part in rows]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    others = json.loads((together / "sst" / "scores.json").read_text())
    for name, values in scores["units"]["deg_C"].items():
        assert others["units"]["deg_C"][name]["crps"] == pytest.approx(values["crps"], rel=1e-5), name
    assert lines(together, "rank 0 has scores: True") == lines(together, "rank 1 has scores: False") == 1
    for words in ("training frames", "CRPS, deg C", "CRPS below", "members, NFE", "figures: "):
        assert lines(together, words) == 1, words


def test_sequential_reflow_equals_that_of_one_process(together, tmp_path):
    run = stages.smoke(flags.parse([*SEQRF, f"--workdir={tmp_path}"]))
    all_stages.whole(run, ALONE)
    assert names(tmp_path) == names(together / "seqrf")
    one, two = (checkpoint.load(path / stages.TEACHER) for path in (tmp_path, together / "seqrf"))
    assert difference(one["ema_model"], two["ema_model"]) == ""
    for student in ("2-SeqRF", "2-SeqRF-Ada", "2-SeqRF-Distill"):
        assert_close(*(last(path / student)["net_model"] for path in (tmp_path, together / "seqrf")))
    rows = [JsonLines(path / "eval" / "rows.jsonl").read() for path in (tmp_path, together / "seqrf")]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]
    assert [row["w2"] for row in rows[0]] == pytest.approx([row["w2"] for row in rows[1]], rel=1e-5)
    for words in ("teacher: ", "the teacher is there: ", "adaptive segments: ", "---- 2-SeqRF,", "---- 2-SeqRF-Ada"):
        assert lines(together, words) == 1, words
    assert lines(together, "evaluate it: ") == 3


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
    out, err = process.communicate(timeout=200)
    step = last(tmp_path)["step"]
    assert step > 3 and f"saved at step {step};" in out and process.returncode != 0
    assert "Traceback" not in err and err.count("stopped") >= 1


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_is_killed_ends_the_others_with_one_line_and_the_run_goes_on(tmp_path, rank):
    process = launch(tmp_path, STOPPED.replace("save_step=10**6", "save_step=5"))
    log = JsonLines(tmp_path / "metrics.jsonl")
    for _ in range(2000):
        if process.poll() is not None or len(log.read()) > 7:
            break
        time.sleep(0.1)
    ranks = {p.environ().get("RANK"): p for p in psutil.Process(process.pid).children()}
    ranks[str(rank)].kill()
    err = process.communicate(timeout=200)[1].replace("\r", "\n")
    lines = [line for line in err.splitlines() if line.strip() and "step/s" not in line]
    assert lines == ["error: another process of this run has ended: the run can be resumed from its last checkpoint"]
    assert process.returncode != 0
    for survivor in ranks.values():
        survivor.wait(timeout=60)
    step = last(tmp_path)["step"]
    assert step % 5 == 0 and step >= 5
    run(tmp_path, ALONE, **{**RUNS["plain"], "total_steps": step + 1, "save_step": 5, "resume": "auto"})
    assert last(tmp_path)["step"] == step + 1


def test_a_mistake_under_a_launcher_is_one_line(tmp_path):
    process = launch(tmp_path, STOPPED.replace('RUNS["plain"]', '{"batch_size": 7}'))
    err = process.communicate(timeout=200)[1]
    assert "Traceback" not in err and "--batch_size 7 cannot be split over 2 processes" in err
    assert process.returncode != 0
