"""What is looked at: a function each, of what was found, as (level, text, command that mends it).

Levels: "ok", "note" (works, could be better or is for somebody else), "stop" (sampling or training does not work).
Nothing but the standard library is imported here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Finding = tuple[str, str, str]

PIP = "python -m pip install"
PAIR = f"{PIP} --upgrade --force-reinstall torch torchvision"
SECONDS = 180  # that the probe may take


def look(root: Path) -> Iterator[Finding]:
    """All findings of a checkout, the fundamental ones first."""
    yield "ok", f"Python {sys.version.split()[0]}", ""
    yield from packages(root)
    folders = folders_of(root)
    sets = {name: [f.data.split(":")[1], str(f.here / "data")] for name, f in folders.items() if ":" in f.data}
    probe = ask_torch(root, sets)
    yield from pair(probe)
    yield from gpu(probe)
    yield from arithmetic(probe)
    yield from threads(probe, cores(), quota())
    yield from fid()
    yield from launchers()
    yield from room(root)
    for name, folder in folders.items():
        yield from data_of(name, folder, probe.get("sets", {}))
        yield from weights_of(name, folder)


# ---- packages


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, to compare it."""
    return tuple(int(each) for each in re.findall(r"\d+", version.split("+")[0])[:3])


def installed(name: str) -> str:
    """The version of an installed package; empty: it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def packages(root: Path) -> Iterator[Finding]:
    """What the library needs (pyproject.toml), and what single flags need (the comments of requirements.txt)."""
    project, listed = root / "pyproject.toml", root / "requirements.txt"
    if not project.exists() or not listed.exists():
        yield "note", f"{root} is no checkout: its packages are not looked at", ""
        return
    block = re.search(r"^dependencies = \[(.*?)^\]", project.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    needed = dict(re.findall(r'"([\w-]+)(?:>=)?([\d.]*)"', block[1] if block else ""))
    found = {name: installed(name) for name in needed}
    bad = [name for name, least in needed.items() if not found[name] or numbers(found[name]) < numbers(least)]
    words = [f"{name} {found[name] or 'missing'}" + f" (needs {needed[name]})" * bool(needed[name]) for name in bad]
    if bad:
        wanted = " ".join(f'"{name}>={needed[name]}"' if needed[name] else name for name in bad)
        yield "stop", f"packages that sampling and training need: {', '.join(words)}", f"{PIP} {wanted}"
    else:
        yield "ok", f"the {len(needed)} packages that sampling and training need", ""
    lines = re.findall(r"^([\w-]+)\S*[ \t]+#[ \t]*(.+)$", listed.read_text(encoding="utf-8"), re.MULTILINE)
    for name, use in lines:
        if name not in needed and not installed(name):
            yield "note", f"{name} is missing: {use}", f"{PIP} {name}"


# ---- torch


def ask_torch(root: Path, sets: dict[str, list[str]]) -> dict[str, Any]:
    """What the probe found; what it did not get to is not in it."""
    command = [sys.executable, "-c", "from common.doctor import probe; probe.run()"]
    try:
        given, options = json.dumps(sets), {"cwd": root, "capture_output": True, "text": True, "timeout": SECONDS}
        done = subprocess.run(command, input=given, **options)
        out, end = done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as late:
        out, end = (late.stdout or b"").decode(), f"no answer within {SECONDS} seconds"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    facts = {key: value for line in lines for key, value in line.items()}
    return {"torch": None, "torch_error": end, "torchvision": None, "torchvision_error": end} | facts


def pair(probe: dict[str, Any]) -> Iterator[Finding]:
    """Whether torch and torchvision can be imported, and fit together."""
    if not probe["torch"]:
        yield "stop", f"torch cannot be imported: {probe['torch_error']}", PAIR
        return
    if probe["torchvision"]:
        yield "ok", f"torch {probe['torch']} and torchvision {probe['torchvision']}", ""
        return
    there = installed("torchvision") or "none"
    fits = f"0.{numbers(probe['torch'])[1] + 15}"  # 2.11 and 0.26, and so on
    text = f"torchvision ({there}) cannot be imported beside torch {probe['torch']}: {probe['torchvision_error']}"
    yield "stop", f"{text}; it would take torchvision {fits} from the same place", PAIR


def gpu(probe: dict[str, Any]) -> Iterator[Finding]:
    """Whether torch sees the GPUs that nvidia-smi sees."""
    if probe.get("gpus"):
        yield "ok", f"torch sees {', '.join(probe['gpus'])}", ""
        if probe["old_gpus"]:
            yield "note", "a GPU here has no bf16 arithmetic", "give scripts -mp fp16"
        return
    program = shutil.which("nvidia-smi")
    ask = [program or "", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    seen = subprocess.run(ask, capture_output=True, text=True) if program else None
    if seen is None:
        device = "mps" if probe.get("mps") else "the CPU"
        yield "ok", f"no NVIDIA GPU here: {device} computes", ""
    elif seen.returncode:
        words = " ".join((seen.stdout + seen.stderr).split())[:200]
        yield "note", f"nvidia-smi fails, no GPU is used: {words}", "sudo modprobe nvidia, or install the driver again"
    elif probe["torch"]:
        yield "note", *_unseen(", ".join(seen.stdout.strip().splitlines()), probe, program or "")


def _unseen(names: str, probe: dict[str, Any], program: str) -> tuple[str, str]:
    """Why torch does not see a GPU, and what to do."""
    hidden, text = os.environ.get("CUDA_VISIBLE_DEVICES"), f"torch does not see {names}"
    if hidden in ("", "-1"):
        return f"{text}: CUDA_VISIBLE_DEVICES={hidden!r} hides it", "unset CUDA_VISIBLE_DEVICES"
    if not probe["cuda"]:
        page = "the command for CUDA of pytorch.org/get-started"  # where pip's own wheels are for CPUs
        return f"{text}: torch {probe['torch']} is for CPUs", PAIR if sys.platform == "linux" else page
    shown = subprocess.run([program], capture_output=True, text=True).stdout
    known = re.search(r"CUDA Version:\s*([\d.]+)", shown)
    if known and numbers(known[1]) < numbers(probe["cuda"]):
        why = f"its driver knows CUDA {known[1]}, torch {probe['torch']} is for {probe['cuda']}"
        return f"{text}: {why}", f"a driver for CUDA {probe['cuda']} from nvidia.com/drivers"
    return f"{text}: {probe['warnings'] or 'torch does not say why'}", PAIR


def arithmetic(probe: dict[str, Any]) -> Iterator[Finding]:
    """Whether bf16, which some presets ask for, is faster on this CPU."""
    if "bf16" not in probe or probe.get("gpus"):
        return
    plain, half = probe["seconds"]
    ratio = f"a step of a convolution takes {half / plain:.2g} times float32's"
    if not probe["bf16"]:
        yield "ok", f"this CPU has no bf16 arithmetic ({ratio}): -mp bf16 computes in float32 here", ""
    elif half > plain:
        yield "note", f"bf16 is slower on this CPU: {ratio}", "give training scripts --mixed_precision no"
    else:
        yield "ok", f"this CPU computes in bf16: {ratio}", ""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores' worth of time that a container allows; None: no limit."""
    try:
        most, period = file.read_text().split()
        return max(1, round(int(most) / int(period)))
    except (OSError, ValueError):
        return None


def threads(probe: dict[str, Any], count: int, allowed: int | None) -> Iterator[Finding]:
    """Whether as many threads compute as there are cores."""
    use, given = min(count, allowed or count), os.environ.get("OMP_NUM_THREADS", "")
    n = int(given) if given.isdecimal() else probe.get("threads", use)
    what = f"OMP_NUM_THREADS={given}" if given else f"torch takes {n} threads"
    if n > use:
        yield "note", f"{what}: there are {use} cores, threads wait for each other", f"export OMP_NUM_THREADS={use}"
    elif n < use:
        yield "note", f"{what}: {use - n} of {use} cores stay idle in a run of one process", "unset OMP_NUM_THREADS"
    else:
        yield "ok", f"{what} for {use} core(s)", ""


# ---- the rest


def fid() -> Iterator[Finding]:
    """pytorch-fid's own command with a SciPy that it does not work with; our figures do not use SciPy."""
    scipy = installed("scipy")
    if not scipy or not installed("pytorch-fid"):
        return
    file = Path(str(importlib.metadata.distribution("pytorch-fid").locate_file("pytorch_fid/fid_score.py")))
    calls = file.is_file() and "disp=False" in file.read_text(encoding="utf-8")
    wrong = numbers(scipy) >= (1, 18) and "has no sqrtm(disp=)"
    wrong = wrong or ((1, 11, 2) <= numbers(scipy) < (1, 13) and 'gives it "Imaginary component"')
    if calls and wrong:
        text = f"python -m pytorch_fid fails: SciPy {scipy} {wrong}; python -m common.evaluate does not"
        yield "note", text, f'{PIP} "scipy>=1.13,<1.18"'


def launchers() -> Iterator[Finding]:
    """The commands that start several processes."""
    instead = {
        "torchrun": "python -m torch.distributed.run",
        "accelerate-launch": "python -m accelerate.commands.launch",
    }
    for name, command in instead.items():
        if not shutil.which(name):
            yield "note", f"{name} is not on PATH", f"type {command} instead"


def room(root: Path) -> Iterator[Finding]:
    """Disk and memory."""
    free = shutil.disk_usage(root).free / 1e9
    level = "stop" if free < 0.2 else "note" if free < 2 else "ok"
    yield level, f"{free:.1f} GB of disk free for runs", "give --out on another disk" if level != "ok" else ""
    try:
        pages = {key: os.sysconf(key) for key in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES", "SC_PAGE_SIZE")}
    except (AttributeError, ValueError, OSError):
        return
    memory = pages["SC_PHYS_PAGES"] * pages["SC_PAGE_SIZE"] / 1e9
    small = "smaller batches, or --checkpointing: --plan of a training script finds what fits"
    yield ("note", f"{memory:.1f} GB of memory", small) if memory < 4 else ("ok", f"{memory:.1f} GB of memory", "")


def folders_of(root: Path) -> dict[str, Any]:
    """The folders of image data by name; empty where their options cannot be read, for want of packages."""
    try:
        from common.scripts.folder import data_folders
    except ImportError:
        return {}
    return data_folders(root)


def data_of(name: str, folder: Any, sets: dict[str, str]) -> Iterator[Finding]:
    """Whether a folder's data is there, where it is looked for, how to get it."""
    root = folder.here / "data"
    there = [str(root / place) for place in folder.places if (root / place).exists()]
    if there or sets.get(name) == "":
        yield "ok", f"data of {name}: {(there or [root])[0]}", ""
    elif folder.places:
        yield "note", f"data of {name}: none in {root} (looked for {', '.join(folder.places)})", folder.advice
    elif name in sets:
        text = f"data of {name}: {folder.data} not in {root} ({sets[name]})"
        yield "note", text, "the first training fetches it; or give --data_root FOLDER, or --data FOLDER_OR_ZIP"


def weights_of(name: str, folder: Any) -> Iterator[Finding]:
    """The weights that sampling takes without being told any."""
    script = min(folder.here.glob("*train*.py"), default=folder.here / "train.py").name
    kinds = [("weights", folder.weights, f"python {name}/{script}, or give --weights")]
    if folder.few:
        kinds.append(("weights for few steps", folder.few, f"git checkout {name}/{folder.few}, or more --n_steps"))
    for what, path, mend in kinds:
        file = folder.here / path
        if file.is_file():
            yield "ok", f"{what} of {name}: {file.name}, {file.stat().st_size / 1e6:.1f} MB", ""
        else:
            missing = "none are shipped" if path == folder.weights else f"{path} is missing"
            yield "note", f"{what} of {name}: {missing}", mend
