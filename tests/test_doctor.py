"""``python -m common.doctor`` on machines that are made up: packages, programs, folders not as they should be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from common.doctor import checks, probe
from common.doctor.__main__ import main
from tiny import ROOT, folder, weights

TORCH = """
from types import SimpleNamespace
__version__ = "2.14.1+cpu"
version = SimpleNamespace(cuda=None, hip=None)
cuda = SimpleNamespace(is_available=lambda: False, device_count=lambda: 1)
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
get_num_threads = lambda: 2
"""
MISFIT = 'raise RuntimeError("operator torchvision::nms does not exist")'
KNOWN = {"torch": "2.14.1+cpu", "cuda": None, "gpus": [], "old_gpus": False, "warnings": "", "mps": False, "threads": 2}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Packages that a process of this test imports instead of the installed ones: fakes(torch="their text")."""

    def make(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / "fakes" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "fakes" / name / "__init__.py").write_text(text)

    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    return make


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program on PATH: program("nvidia-smi", "a shell script")."""

    def make(name: str, script: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return make


def package(place: Path, name: str, version: str, text: str = "") -> None:
    """An installed package of a version, as importlib.metadata finds it."""
    module = name.replace("-", "_")
    about = place / f"{module}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (place / module).mkdir()
    (place / module / "fid_score.py").write_text(text)


def one(findings) -> tuple[str, str, str]:
    """The only finding."""
    (found,) = findings
    return found


def test_torch_that_cannot_be_imported_stops_all_but_the_doctor(fakes, capsys):
    fakes(torch='raise ImportError("libcudart.so.13: cannot open shared object file")')
    assert main([], ROOT) == 1
    out = capsys.readouterr().out
    assert "stop  torch cannot be imported: ImportError: libcudart.so.13" in out
    assert f"to mend: {checks.PAIR}" in out and out.endswith("1 thing(s) stop sampling or training\n")
    assert "weights of cifar10" in out  # it has gone on


def test_it_needs_nothing_but_the_standard_library(fakes):
    fakes(torch="raise ImportError('no')")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from common.doctor.__main__ import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert "stop  packages that sampling and training need: torch missing (needs 2.11)" in done.stdout


def test_an_old_python_is_told_before_anything_else(monkeypatch, capsys):
    Version = namedtuple("Version", "major minor micro")
    monkeypatch.setattr(sys, "version_info", Version(3, 9, 2))
    monkeypatch.setattr(checks, "look", lambda root: pytest.fail("too early"))
    assert main([]) == 1 and "is too old, 3.10 or newer is needed\n      to mend: uv venv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torchvision", "level", "words"),
    [
        (MISFIT, "stop", "nms does not exist; it would take torchvision 0.29"),
        ('__version__ = "0.29.1"', "ok", "0.29.1"),
    ],
)
def test_a_torchvision_that_does_not_fit_stops(fakes, torchvision, level, words):
    fakes(torch=TORCH, torchvision=torchvision)
    found = checks.ask_torch(ROOT, {})
    assert {key: found[key] for key in KNOWN} == KNOWN
    finding = one(checks.pair(found))
    assert finding[0] == level and words in finding[1] and (finding[2] == checks.PAIR) is (level == "stop")


def test_a_torch_that_ends_its_process_or_never_answers_is_named(fakes, monkeypatch):
    fakes(torch="import os; os._exit(7)")
    assert one(checks.pair(checks.ask_torch(ROOT, {})))[1] == "torch cannot be imported: exit code 7"
    fakes(torch="import time; time.sleep(60)")
    monkeypatch.setattr(checks, "SECONDS", 0.5)
    assert "no answer within 0.5 seconds" in one(checks.pair(checks.ask_torch(ROOT, {})))[1]


SEES = 'case "$1" in --query*) echo "Tesla T4, 535.10";; *) echo "| CUDA Version: 12.2  |";; esac'


@pytest.mark.parametrize(
    ("script", "changes", "hidden", "words", "mend"),
    [
        (SEES, {}, None, "does not see Tesla T4, 535.10: torch 2.14.1+cpu is for CPUs", checks.PAIR),
        (SEES, {"cuda": "13.0"}, None, "its driver knows CUDA 12.2, torch 2.14.1+cpu is for 13.0", "a driver for CUDA"),
        (SEES, {"cuda": "13.0"}, "", "CUDA_VISIBLE_DEVICES='' hides it", "unset CUDA_VISIBLE_DEVICES"),
        (SEES, {"cuda": "12.1", "warnings": "reason"}, None, "does not see Tesla T4, 535.10: reason", checks.PAIR),
        ("echo no driver; exit 9", {"cuda": "13.0"}, None, "nvidia-smi fails, no GPU is used: no driver", "modprobe"),
    ],
)
def test_a_gpu_that_torch_does_not_see(program, monkeypatch, script, changes, hidden, words, mend):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    program("nvidia-smi", script)
    monkeypatch.setattr(sys, "platform", "linux")
    finding = one(checks.gpu(KNOWN | changes))
    assert finding[0] == "note" and words in finding[1] and mend in finding[2]
    assert one(checks.gpu(KNOWN | {"gpus": ["H200"]})) == ("ok", "torch sees H200", "")


def test_packages_that_are_missing_or_old_and_what_flags_need(tmp_path, monkeypatch):
    package(tmp_path / "site", "present", "2.9.1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    needed = 'dependencies = [\n    "present>={}",\n    "nowhere-at-all",\n]\n'
    (tmp_path / "pyproject.toml").write_text(needed.format("2.11"))
    text = "present>=2.11\nnowhere-at-all\nalso-nowhere   # --flag of something\n"
    (tmp_path / "requirements.txt").write_text(text)
    stop, note = checks.packages(tmp_path)
    assert stop[:2] == (
        "stop",
        "packages that sampling and training need: present 2.9.1 (needs 2.11), nowhere-at-all missing",
    )
    assert stop[2] == 'python -m pip install "present>=2.11" nowhere-at-all'
    assert note == ("note", "also-nowhere is missing: --flag of something", "python -m pip install also-nowhere")
    assert one(checks.packages(tmp_path / "site"))[0] == "note"  # no checkout
    assert {level for level, *_ in checks.packages(ROOT)} <= {"ok", "note"}


@pytest.mark.parametrize(
    ("scipy", "text", "fails"),
    [
        *[("1.18.1", "sqrtm(x, disp=False)", True), ("1.11.4", "sqrtm(x, disp=False)", True)],
        *[("1.17.1", "sqrtm(x, disp=False)", False), ("1.18.1", "sqrtm(x)", False)],  # the second is mended already
    ],
)
def test_pytorch_fid_with_a_scipy_that_it_does_not_work_with(tmp_path, monkeypatch, scipy, text, fails):
    package(tmp_path, "pytorch-fid", "0.3.0", text)
    package(tmp_path, "scipy", scipy)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = list(checks.fid())
    assert len(found) == fails
    if fails:
        assert f"SciPy {scipy}" in found[0][1] and found[0][2] == 'python -m pip install "scipy>=1.13,<1.18"'


@pytest.mark.parametrize(
    ("given", "taken", "count", "allowed", "mend"),
    [
        *[("64", 64, 8, None, "export OMP_NUM_THREADS=8"), ("1", 1, 8, None, "unset OMP_NUM_THREADS")],
        *[("", 64, 64, 2, "export OMP_NUM_THREADS=2"), ("", 8, 8, None, ""), ("2", 2, 8, 2, "")],
    ],
)
def test_threads_and_cores(monkeypatch, given, taken, count, allowed, mend):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    level, _, command = one(checks.threads({"threads": taken}, count, allowed))
    assert (level, command) == ("note" if mend else "ok", mend)


def test_the_time_that_a_container_allows(tmp_path):
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert checks.quota(tmp_path / "cpu.max") == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks.quota(tmp_path / "cpu.max") is checks.quota(tmp_path / "none") is None


def test_bf16_is_advised_against_where_it_is_slower():
    levels = [one(checks.arithmetic({"bf16": can, "seconds": [1.0, half]})) for can, half in ((1, 0.6), (1, 3), (0, 9))]
    assert [level for level, *_ in levels] == ["ok", "note", "ok"]
    assert levels[1][2] == "give training scripts --mixed_precision no" and "3 times" in levels[1][1]
    assert list(checks.arithmetic({"bf16": True, "seconds": [1.0, 3], "gpus": ["H200"]})) == []
    found = probe.about_halves()
    assert found["bf16"] in (True, False) and min(found["seconds"]) > 0


def test_data_and_weights_of_folders(tmp_path):
    place = folder(tmp_path)
    zips = replace(place, data="", places=("a.zip", "b.zip"), advice="fetch a.zip")
    assert one(checks.data_of("faces", zips, {})) == (
        "note",
        f"data of faces: none in {tmp_path / 'data'} (looked for a.zip, b.zip)",
        "fetch a.zip",
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.zip").touch()
    assert one(checks.data_of("faces", zips, {}))[:2] == ("ok", f"data of faces: {tmp_path / 'data' / 'b.zip'}")
    fetched = replace(place, data="torchvision:FakeData")
    assert one(checks.data_of("faces", fetched, {"faces": "not found"}))[0] == "note"
    assert one(checks.data_of("faces", fetched, {"faces": ""}))[0] == "ok"
    assert one(checks.weights_of("faces", place))[1:] == (
        "weights of faces: none are shipped",
        "python faces/train.py, or give --weights",
    )
    weights(tmp_path / "results" / "shipped.pt")
    assert one(checks.weights_of("faces", place))[0] == "ok"
    tuned = replace(place, few="results/few/tuned.pt")
    assert [level for level, *_ in checks.weights_of("faces", tuned)] == ["ok", "note"]
    weights(tmp_path / tuned.few)
    assert [text.split(",")[0] for _, text, _ in checks.weights_of("faces", tuned)] == [
        "weights of faces: shipped.pt",
        "weights for few steps of faces: tuned.pt",
    ]
    assert checks.folders_of(ROOT).keys() >= {"cifar10", "mnist", "lsun_church"}


def test_programs_and_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [mend for *_, mend in checks.launchers()][0] == "type python -m torch.distributed.run instead"
    Usage = namedtuple("Usage", "free")
    for free, level in ((1e8, "stop"), (1e9, "note"), (9e9, "ok")):
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda path, free=free: Usage(free))
        assert next(iter(checks.room(tmp_path)))[0] == level
