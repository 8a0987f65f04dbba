"""Errors in one line, devices, seeds, processes, locks, and files that are written whole."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import numpy as np
import pytest
import torch

import started
from common import runtime
from common.runtime import checked, reading, run_main
from common.runtime.ending import ENDED
from common.scripts import train
from tiny import ROOT


def start(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    """A python process that runs some code from the repository root."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(autouse=True)
def keep_signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


# ---- errors of a script


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("n_steps 0:\n  give one"), "error: n_steps 0: give one"),
        (FileNotFoundError("no weights in x"), "error: no weights in x"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pt"),
            "error: No such file or directory: x.pt",
        ),
        (OSError(errno.ENOSPC, "the disk is full"), "error: the disk is full"),
        (ModuleNotFoundError("No module named 'wandb'"), "error: No module named 'wandb'"),
        (ValueError(), "error: ValueError"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(error, line, capsys):
    with pytest.raises(SystemExit) as left:
        runtime.run_main(raising(error))
    assert left.value.code == 2
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_flags_to_try(error, capsys):
    with pytest.raises(SystemExit) as left:
        runtime.run_main(raising(error))
    text = capsys.readouterr().err
    assert left.value.code == 2
    assert text.count("\n") == 1 and "--batch_size" in text and "Tried" not in text


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("x"), AssertionError()])
def test_our_own_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        runtime.run_main(raising(error))


def test_success_returns():
    done = []
    runtime.run_main(lambda: done.append(1))
    assert done == [1]


def test_ctrl_c_is_130(capsys):
    with pytest.raises(SystemExit) as left:
        runtime.run_main(raising(KeyboardInterrupt()))
    assert left.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setenv("FLOW_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        runtime.run_main(raising(ValueError("bad")))
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith("error: bad\n")


SLEEPER = """
import time
from common.runtime import run_main
def main():
    print("ready", flush=True)
    time.sleep(60)
run_main(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_script_with_130(number):
    process = start(SLEEPER)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, _, err = finish(process)
    assert (code, err) == (130, "stopped\n")


def test_a_handler_of_the_script_is_left_alone():
    def mine(*_):
        pass

    signal.signal(signal.SIGTERM, mine)
    runtime.run_main(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_closed_pipe_is_silent():
    code = "from common.runtime import run_main\nrun_main(lambda: print('x' * 10**6, flush=True))"
    process = start(code)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), err) == (141, "")


def test_import_is_light():
    code = """
import sys
from common import runtime
try:
    runtime.run_main(lambda: int("x"))
except SystemExit as left:
    print(left.code, sorted({"torch", "numpy", "accelerate"} & set(sys.modules)))
"""
    assert finish(start(code))[1] == "2 []\n"


# ---- device and seeds


def test_pick_device():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match=r"device 'gpu' is not on this machine, which has cpu.*--device auto"):
        runtime.pick_device("gpu")
    with pytest.raises(ValueError, match="cuda:99"):
        runtime.pick_device("cuda:99")


def test_auto_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(runtime, "_devices_here", lambda: ["cpu", "cuda", "cuda:0", "mps"])
    assert runtime.pick_device("auto") == torch.device("cuda")
    assert runtime.pick_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setattr(runtime, "_devices_here", lambda: ["cpu", "mps"])
    assert runtime.pick_device("auto") == torch.device("mps")


def test_derive_seed_never_changes():
    # published runs and shipped samples depend on these numbers
    assert runtime.derive_seed(5) == 1390720528990373735
    assert runtime.derive_seed(0, "flip", 3) == 8451884514392552669
    assert runtime.derive_seed(0, "flip", "3") == 661812580005428567
    assert runtime.derive_seed(0, "flip", numpy.int64(3)) == 8451884514392552669


def test_derive_seed_tells_keys_apart():
    seeds = [runtime.derive_seed(seed, name, k) for seed in range(10) for name in ("a", "b") for k in range(100)]
    seeds += [runtime.derive_seed(0, "ab", "c"), runtime.derive_seed(0, "a", "bc"), runtime.derive_seed(0, "abc")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62 and min(seeds) < 2**60  # all bits are used
    with pytest.raises(TypeError):
        runtime.derive_seed(0, 1.5)  # type: ignore[arg-type]


def test_generator_is_a_function_of_its_keys():
    first = torch.randn(4, generator=runtime.generator(1, "x", 2))
    again = torch.randn(4, generator=runtime.generator(1, "x", 2))
    other = torch.randn(4, generator=runtime.generator(1, "x", 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- processes


def forked(tmp_path: Path, code: str) -> list[str]:
    """The lines that a script with such a code prints, from the tests' server: what importing takes is not tested."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\nsys.path.append({str(ROOT)!r})\n{code}")
    done = started.start(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_alone_without_accelerate(tmp_path):
    code = """
from common.runtime import processes
us = processes("cpu")
us.wait()
print(us.rank, us.world, us.device, us.is_main, "accelerate" in sys.modules)
"""
    assert forked(tmp_path, code) == ["0 1 cpu True False"]


def test_two_processes_meet(tmp_path):
    code = """
import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = str(probe.getsockname()[1])
second = os.fork()
rank = "0" if second else "1"
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
import torch
from common.runtime import processes
us = processes("cpu")
us.wait()
total = torch.tensor([us.rank + 1.0])
torch.distributed.all_reduce(total)
seen = us.rank, us.world, us.device == torch.device("cpu"), us.is_main, total.item()
os.write(1, (" ".join(map(str, seen)) + "\\n").encode())  # at once: both write to one file
torch.distributed.destroy_process_group()
assert not second or os.waitpid(second, 0)[1] == 0
"""
    assert sorted(forked(tmp_path, code)) == ["0 2 True True 3.0", "1 2 True False 3.0"]


def test_several_processes_refuse_one_numbered_gpu(monkeypatch):
    monkeypatch.setattr(runtime, "_devices_here", lambda: ["cpu", "cuda", "cuda:0"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use --device cuda"):
        runtime.processes("cuda:0")


def test_relaunch_parallel(monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(train.os, "execv", lambda program, args: launched.append((program, args)))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    train.relaunch_parallel(["train.py", "--parallel"])
    assert launched == []
    assert capsys.readouterr().out == "--parallel: 1 GPU on this machine, going on with one process\n"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    train.relaunch_parallel(["train.py", "--parallel"])
    ((program, args),) = launched
    assert program == args[0] == sys.executable
    assert args[args.index("--num_processes") + 1] == "4" and "--multi_gpu" in args
    assert args[-2:] == ["train.py", "--parallel"]

    monkeypatch.setenv("WORLD_SIZE", "4")
    train.relaunch_parallel(["train.py", "--parallel"])
    assert len(launched) == 1


# ---- lock

HOLDER = """
import sys, time
from common.runtime import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    folder = tmp_path / "runs" / "a"
    holder = start(HOLDER, folder)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    refused = pytest.raises(ValueError, match=rf"another run \(pid {holder.pid}\) writes to {folder}.*--out")
    with refused, runtime.run_lock(folder):
        pytest.fail("two runs in one folder")
    with runtime.run_lock(tmp_path / "other"):
        pass
    holder.kill()  # kill -9: the operating system frees the lock
    finish(holder)
    with runtime.run_lock(folder):
        assert (folder / "run.lock").read_text() == f"{os.getpid()}\n"


def test_a_refused_script_ends_with_one_line(tmp_path):
    code = """
import sys
from common.runtime import run_lock, run_main
def main():
    with run_lock(sys.argv[1]):
        print("in")
run_main(main)
"""
    with runtime.run_lock(tmp_path):
        code_, out, err = finish(start(code, tmp_path))
    assert (code_, out) == (2, "")
    assert err.startswith(f"error: another run (pid {os.getpid()})") and err.count("\n") == 1


def test_lock_is_freed_after_an_error_and_clears_leftovers(tmp_path):
    leftover = tmp_path / ".checkpoint_last.pt.123-4.tmp"
    leftover.write_text("half")
    (tmp_path / "keep.tmp").write_text("not ours")
    with pytest.raises(RuntimeError, match="inside"), runtime.run_lock(tmp_path):
        raise RuntimeError("inside")
    assert not leftover.exists() and (tmp_path / "keep.tmp").exists()
    with runtime.run_lock(tmp_path):
        pass


# ---- files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_atomic_write(tmp_path, sync):
    path = tmp_path / "new" / "a.bin"
    for content in (b"first", b"second"):
        with runtime.atomic_write(path, sync=sync) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".tmp"
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_a_failure_midway_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as raised, runtime.atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert raised.value is error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_kill_9_midway_leaves_the_old_file(tmp_path):
    code = """
import os, signal, sys
from common.runtime import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    assert finish(start(code, path))[0] == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    with runtime.run_lock(tmp_path):
        assert names(tmp_path) == ["a.bin", "run.lock"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("writer", ["python", "torch", "torch, by name"])
def test_disk_full_is_one_line_and_loses_nothing(tmp_path, writer, capsys):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def main() -> None:
        with runtime.atomic_write(path) as temporary:
            temporary.symlink_to("/dev/full")  # every write fails with ENOSPC
            if writer == "python":
                temporary.write_bytes(b"x" * 10**5)
            elif writer == "torch":
                with open(temporary, "wb") as file:
                    torch.save({"a": torch.zeros(10**5)}, file)
            else:
                torch.save({"a": torch.zeros(10**5)}, temporary)

    with pytest.raises(SystemExit) as left:
        runtime.run_main(main)
    text = capsys.readouterr().err
    assert left.value.code == 2
    assert text.startswith(f"error: the disk or quota is full: cannot write {path}") and text.count("\n") == 1
    assert path.read_bytes() == b"old" and names(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cpu_without_half_precision_computes_in_float32_and_says_so_once(precision, monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: False, raising=False)
    cached = runtime.computes
    cached.cache_clear()
    x = torch.eye(2)
    for _ in range(2):
        with runtime.autocast(torch.device("cpu"), precision):
            assert (x @ x).dtype == torch.float32
    assert (
        runtime.computed_in(torch.device("cpu"), precision)
        == "no"
        != runtime.computed_in(torch.device("cuda"), precision)
    )
    assert capsys.readouterr().err.count("float32") == 1
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # a build without that library
    cached.cache_clear()
    assert not cached(precision)
    cached.cache_clear()  # the tests that follow ask the machine again
    monkeypatch.setattr(runtime, "computes", lambda precision: True)
    with runtime.autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]


# ---- what a terminal would obey


def test_control_characters_of_names_are_shown_and_not_obeyed(capsys):
    evil = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\u202ee\x00f\ud800"
    shown = r"a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\u202ee\x00f\ud800"

    def main():
        print(f"{evil}: größer → 3σ\tand more")
        print(evil, file=sys.stderr)
        raise ValueError(f"{evil} is no name")

    with pytest.raises(SystemExit):
        run_main(main)
    out, err = capsys.readouterr()
    assert out == f"{shown}: größer → 3σ\tand more\n" and err == f"{shown}\nerror: {shown} is no name\n"


# ---- values of a kind


def test_a_value_of_another_kind_is_named_by_its_place():
    kind = dict[str, list[int]]
    assert checked({"a": [1]}, kind, "x.json") == {"a": [1]}
    for bad, line in [
        ({"a": [1, "b"]}, r"^x\.json, \[\.\.\.\]\[1\]: expected `int`, got `str`$"),
        ([1], r"^x\.json: expected `object`, got `array`$"),
    ]:
        with pytest.raises(ValueError, match=line):
            checked(bad, kind, "x.json")


@pytest.mark.parametrize("kind", [IndexError, AttributeError, RuntimeError, KeyError, OverflowError])
def test_an_entry_that_only_looks_like_a_mapping_is_refused_however_it_fails(kind):
    """Some tensors did: which error they raise depends on what else is loaded."""

    class Indexed:
        def keys(self):
            return ["name"]

        def __getitem__(self, _):
            raise kind("too many\nindices")

    with pytest.raises(ValueError, match=r"^x\.pt: an entry is no plain value \(.*too many.*indices.*\)$"):
        checked({"a": Indexed()}, dict[str, dict[str, int]], "x.pt")


def test_what_goes_wrong_in_a_file_is_the_files_fault(tmp_path):
    for error, line in [
        (KeyError("w"), "w.pt is damaged (KeyError: 'w'): copy it again"),
        (RuntimeError("shapes"), "w.pt is damaged (RuntimeError: shapes): copy it again"),
        (ValueError("too\nlong"), "w.pt is damaged (too long): copy it again"),
        (ValueError("w.pt is of another network"), "w.pt is of another network"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"), reading("w.pt", "copy it again"):
            raise error
    with pytest.raises(FileNotFoundError), reading("w.pt", "copy it again"):
        open(tmp_path / "gone")


# ---- other systems


def as_script(tmp_path, body: str, before: str = "", redirect: str = "", **environment) -> subprocess.CompletedProcess:
    """Runs a script whose main function is ``body``, after a sitecustomize ``before``."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(before)
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    script = tmp_path / "script.py"
    script.write_text(f"from common.runtime import run_main\ndef main():\n{lines}run_main(main)\n", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {redirect}"
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)


def test_what_a_code_page_lacks_is_escaped(tmp_path):
    body = "print('\u732b_0.png is 12x8')\nraise ValueError('\u732b is damaged')"
    ended = as_script(tmp_path, body, PYTHONIOENCODING="cp1252")
    assert ended.returncode == 2 and ended.stdout.split() == [rb"\u732b_0.png", b"is", b"12x8"]
    assert ended.stderr.strip() == rb"error: \u732b is damaged"


@pytest.mark.parametrize("redirect", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_take_all(tmp_path, redirect):
    out = tmp_path / "out.txt"
    body = (
        "import sys\nfrom tqdm import tqdm\n"
        f"with open({str(out)!r}, 'w') as file:\n"
        "    for _ in tqdm(range(3)): print('a line', file=sys.stderr)\n"
        "    print('shown')\n    file.write('whole')\nraise ValueError('a mistake')"
    )
    assert as_script(tmp_path, body, redirect=redirect).returncode == 2
    assert out.read_text() == "whole"  # nothing of the messages is in it


WINDOWS = """
import os, pathlib, sys
del os.sysconf
sys.modules["fcntl"] = None
read = pathlib.Path.read_text
def read_text(self, *args, **options):
    if str(self).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read(self, *args, **options)
pathlib.Path.read_text = read_text
"""


def test_images_load_where_the_system_says_nothing_of_memory_and_locks(tmp_path):
    np.save(tmp_path / "set.npy", np.zeros((3, 8, 8), np.uint8))
    body = (
        "from common.data.loading import load_images\nfrom common.runtime import run_lock\n"
        f"with run_lock({str(tmp_path / 'run')!r}): print(len(load_images({str(tmp_path / 'set.npy')!r}, 8, 1)))"
    )
    ended = as_script(tmp_path, body, WINDOWS)
    assert ended.returncode == 0 and ended.stdout.split()[-1] == b"3", ended.stderr


def test_what_a_killed_process_has_begun_is_removed_by_the_next_one(tmp_path):
    begun = """
import os, signal, sys
from common.runtime import atomic_write
with atomic_write(sys.argv[1]) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", begun, str(tmp_path / "a.json")], cwd=ROOT, check=False)
    (dead,) = tmp_path.iterdir()
    other = dead.with_name(dead.name.replace(runtime._machine(), "0" * 8))  # of a machine with the same disk
    alive = dead.with_name(re.sub(r"-\d+-", f"-{os.getpid()}-", dead.name))
    for path in (other, alive):
        path.write_text("half")
    runtime.write_json(tmp_path / "b.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", other.name, alive.name}


def test_a_devices_generator_is_seeded_as_torch_does():
    runtime.seed_device(torch.device("cpu"), 2**62 + 5)
    ours = torch.rand(3), torch.randn(2)
    torch.manual_seed(2**62 + 5)
    assert all(torch.equal(x, y) for x, y in zip(ours, (torch.rand(3), torch.randn(2)), strict=True))


LOST = """
import os, threading, time
from types import SimpleNamespace
from common.runtime import ending, run_main

class Slow(ending.Started):
    def end(self):
        time.sleep(0.5)

def main():
    other = os.fork()
    if not other:
        os._exit(0)
    run = Slow(None, [SimpleNamespace(pid=other)])
    threading.Thread(target=ending._wait_for_end, args=(run, threading.Event()), daemon=True).start()
    time.sleep(0.2)
    raise RuntimeError("gloo: connection closed by peer")

run_main(main)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only")
def test_the_end_of_another_process_is_said_once_by_whoever_sees_it_first():
    """The thread that waits for it and the next message between the processes, which fails, may come together."""
    code, _, err = finish(start(LOST, WORLD_SIZE="2"))
    assert (code, err.split("\n")) == (2, ["", f"error: {ENDED}", ""])


SILENT = """
import threading, time
from common.runtime import ending

class Store(dict):
    clone, set = (lambda self: self), dict.__setitem__
    multi_get = lambda self, keys: [self.get(key) for key in keys]

ending.SILENCE, ending.BEAT = 0.4, 0.02
store = Store({"alive/2": ending.LEFT})
ending.end_if_others_fall_silent(store, 0, 3)
for beat in range(16):
    store["alive/1"] = beat
    time.sleep(0.05)
print(type(store["alive/0"]).__name__, flush=True)
time.sleep(60)
"""


def test_a_process_that_falls_silent_ends_the_others_and_one_that_has_left_does_not():
    code, out, err = finish(start(SILENT))
    assert (code, out) == (2, "str\n")  # it lived for twice as long as the others may be silent, and gave its own signs
    assert (
        err.startswith("\nerror: process 1 of this run has given no sign of life for 0.4 s: ") and err.count("\n") == 2
    )
    left = (
        SILENT.split("for beat")[0].replace("0, 3)", "0, 1)") + "import atexit; atexit._run_exitfuncs(); print(store)"
    )
    assert "'alive/0': b'left'" in finish(start(left))[1]
