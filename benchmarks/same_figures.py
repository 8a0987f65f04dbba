"""Did a change of the code change any figure? Twelve things that users do, in two checkouts, compared bit for bit.

    git worktree add ../old COMMIT
    python benchmarks/same_figures.py ../old                       # against the checkout that holds this file
    python benchmarks/same_figures.py ../old ../new --only seqrf --keep ../figures

Each row runs its command lines in a folder of its own, on the CPU, with one thread: sampling from the shipped weights,
short trainings on made-up images, --smoke where data or hours would be needed. What both checkouts leave must be the
same files with the same figures: pixels of pictures, tensors and numbers of weights, all numbers of .json, .jsonl and
.csv (losses, gradient norms, scores), bytes of seqrf's pairs. Not compared: texts, clocks and speeds, and what a run
was given. Pictures have 8 bits: what changes a sampler by less shows in the samplers fitted to two of the trainings.
Exit code 1 where a row differs or fails. Three minutes for each checkout on one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
NO_FIGURES = re.compile(r"seconds?$|^seconds|^hours$|_per_s$|_share$|^(config|options|param_groups|version)$")  # keys
NO_RESULTS = (".html", ".yaml", ".lock", "ttflow/figure.png")  # pages, options and a picture with clocks and paths
NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?|nan|-?inf")


@dataclass(frozen=True)
class Row:
    """Command lines, as a user types them at the checkout's root; run in turn in the folder that they write to."""

    name: str
    lines: tuple[str, ...]
    old: tuple[str, ...] = ()  # how the old checkout spells them; empty: the same


TRAIN = (  # on the images that main() makes up, as a row's folder sees them
    "mnist/mnist_train.py --data ../../images.npz --val_fraction 0.1 --num_channel 32 --channel_mult 1 --patch_size 4 "
    "--device cpu --total_steps 6 --warmup 2 --batch_size 16 --log_step 1 --save_step 3 --sample_step 3 --val_step 3"
)
MNIST = (
    "mnist/simple_gen_test.py --n_samples 9 --n_steps 6 --cfg 1.5 --device cpu --out grid.png",
    "mnist/simple_gen_test.py --invert grid.png --n_steps 3 --device cpu --out inverted.png",
    "mnist/measure.py --smoke --n_samples 20 --n_steps 2 --device cpu --out measured.json",
)
TOY2D = "seqrf/main.py --config=configs/rf/toy2d.py --smoke --device cpu --workdir=run --config.training.reflow_t=2"
SEQRF = (
    f"{TOY2D} --config.model.rf_phase=1",
    *(f"{TOY2D} --config.training.reflow_mode={mode}" for mode in ("gen_reflow", "train_reflow")),
    f"{TOY2D} --mode=eval --config.sampling.method=pc --config.model.num_scales=4",
)
SERIES = tuple(f"timeseries_examples/{name}_simulation.py --smoke -e {name}" for name in ("MD", "Lorenz"))
CIFAR10 = "cifar10/gen_cifar10.py --n_samples 4 --n_steps 4 --device cpu"
OWN = tuple(f"{CIFAR10} --solver {name} --save_dir {name}" for name in ("idff", "euler_maruyama"))
FIT = "mnist/fit_sampler.py --n_steps 3 --cfg 1.5 --n_noises 4 --n_test 4 --fine_steps 12 --search 2 --weights"
ALONE = (f"{TRAIN} --method rf -e rf", f"{TRAIN} --method fm --sigma 0.1 -mp no -e fm", f"{FIT} fm --device cpu")
PAIRED = tuple(f"{TRAIN} --method {name} --sigma 0.2 -mp no -e {name}" for name in ("otcfm", "sbcfm", "idff"))
ROWS = (
    Row("cifar10, fitted sampler", ("cifar10/simple_gen_test.py --n_samples 4 --device cpu --out grid.png",)),
    Row("cifar10, euler with guidance", (f"{CIFAR10} --solver euler --cfg 2 --save_dir gen",)),
    Row("cifar10, idff, euler_maruyama", OWN),
    Row("mnist, guidance, inversion, measure", MNIST),
    Row("mnist, training and fit: rf, fm", ALONE),
    Row("mnist, the same: otcfm, sbcfm, idff", (*PAIRED, f"{FIT} idff --device cpu")),
    Row("celebA, rectified flow", ("celebA/rectified_flow_train.py --smoke --device cpu -e run",)),
    Row("2D-toys", ("2D-toys/toys.py --smoke -e toys", "2D-toys/race.py --smoke --workers 1 -e race")),
    Row("seqrf, points", SEQRF),
    Row("sst", ("sst/sst_forecaster.py --smoke --device cpu -e run",)),
    Row("timeseries_examples", SERIES),
    Row("ttflow", ("ttflow/train_eval_linear_recflow.py --smoke -e ttflow",)),
)


def run(checkout: Path, lines: tuple[str, ...], folder: Path) -> tuple[float, str]:
    """Run command lines in a fresh folder; the seconds, and the last line of the one that failed."""
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    environment = {**os.environ, **alone, "PYTHONDONTWRITEBYTECODE": "1"}
    folder.mkdir(parents=True)
    begun = time.perf_counter()
    for line in lines:
        command = [sys.executable, *shlex.split(f"{shlex.quote(str(checkout))}/{line}")]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "nothing said").splitlines()[-1]
            return time.perf_counter() - begun, f"{line} ended with {done.returncode}: {said}"
    return time.perf_counter() - begun, ""


def figures(value: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors and numbers of nested lists and dicts, with their places; texts and ``NO_FIGURES`` are left out."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, (bool, int, float)):
        yield where, torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not NO_FIGURES.search(str(key)):
                yield from figures(item, f"{where}, {key}")


def read(path: Path) -> Any:
    """What a file holds: nested lists and dicts of tensors and numbers."""
    if path.suffix == ".png":
        return torch.from_numpy(np.array(Image.open(path)))
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return [{key: float(cell) for key, cell in row.items() if NUMBER.fullmatch(cell)} for row in rows]
    content = path.read_bytes()
    header = content.index(b"\n") + 1 if path.suffix == ".pairs" else 0  # with a hash of options
    return torch.from_numpy(np.frombuffer(content[header:], np.uint8).copy())


def difference(a: Tensor, b: Tensor) -> str:
    """How two tensors differ; empty when they are the same bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}"
    bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    if torch.equal(*bits):
        return ""
    if a.dim() == 0:
        return f"{a.item()!r} against {b.item()!r}"
    other = int((bits[0] != bits[1]).reshape(a.numel(), -1).any(1).sum())
    return f"{other:,} of {a.numel():,} values, by at most {(a.double() - b.double()).abs().max().item():.3g}"


def compare(old: Path, new: Path) -> tuple[int, int, str]:
    """Numbers of files and figures of two folders, and the first difference; empty when there is none."""
    files, found = [], []
    for folder in (old, new):
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files.append({name: path for name, path in paths.items() if not name.endswith(NO_RESULTS)})
        found.append(dict(pair for name, path in files[-1].items() for pair in figures(read(path), name)))
    a, b = found
    texts = [] if a else ["nothing to compare"]
    for x, y in (files, found):
        texts += [f"{place}: only in the {'old' if place in x else 'new'} one" for place in sorted(x.keys() ^ y.keys())]
    texts += [f"{place}: {text}" for place in a if place in b and (text := difference(a[place], b[place]))]
    text = "".join(texts[:1]) + (f" (and {len(texts) - 1:,} more)" if texts[1:] else "")
    return len(files[0]), sum(value.numel() for value in a.values()), text


def main() -> int:
    """Run all rows in both checkouts and print a line for each; 1 when any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout before the change")
    parser.add_argument("new", type=Path, nargs="?", default=ROOT, help="checkout after it; default: that of this file")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="rows with this in their name")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs in this new folder")
    given = parser.parse_args()
    checkouts = {"old": given.old.resolve(), "new": given.new.resolve()}
    if not all((checkout / "common").is_dir() for checkout in checkouts.values()):
        parser.error(f"not two checkouts of this repository: {', '.join(map(str, checkouts.values()))}")
    if not (rows := [row for row in ROWS if given.only in row.name]):
        parser.error(f"no row has {given.only!r} in its name: {'; '.join(row.name for row in ROWS)}")
    if given.keep and given.keep.exists():
        parser.error(f"{given.keep} is there already: give a new folder")
    total, equal = {"old": 0.0, "new": 0.0}, 0
    with tempfile.TemporaryDirectory() as temporary:
        home = (given.keep or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        images = np.random.default_rng(0).integers(0, 256, (160, 28, 28, 1), np.uint8)
        np.savez(home / "images.npz", images=images, labels=np.arange(160) % 10)
        for row in rows:
            folders, clock, failed = [], "", ""
            for side, lines in (("old", row.old or row.lines), ("new", row.lines)):
                folders.append(home / side / re.sub(r"\W+", "_", row.name))
                seconds, why = run(checkouts[side], lines, folders[-1])
                total[side], clock = total[side] + seconds, f"{clock} {seconds:5.1f} s"
                failed += f"{side}: {why} " if why else ""
            files, numbers, text = (0, 0, failed) if failed else compare(*folders)
            equal += not text
            print(f"{row.name:36s} {files:3d} files {numbers:10,} numbers {clock}  {text or 'equal'}", flush=True)
    print(f"{equal} of {len(rows)} rows equal; old checkout {total['old']:.0f} s, new {total['new']:.0f} s")
    return int(equal < len(rows))


if __name__ == "__main__":
    sys.exit(main())
