"""Consistency tuning of the shipped CIFAR-10 weights, and what it is worth at 1, 2 and 4 evaluations; started by
fewstep_gpu.sh, with the machinery of gpu.py.

    benchmarks/fewstep_gpu.sh [--minutes 5] [--smoke] [--only PART]
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu import ROOT, Part, Row, Suite, called, main, parser_of, trained

WEIGHTS = ROOT / "cifar10/results/IDFF-2.0-0.2/IDFF_cifar10_weights_step_final.pt"
PIECE = 16 * 2**20  # bytes
# Two stages; a batch of 512 in place of 128, and a rate for it. The published short run: one stage, RAdam at 1e-4.
RECIPE = {"method": "ect_idff", "sigma": 0.2, "ect_q": 8, "lr": 3e-4, "warmup": 200, "lr_decay": "linear"}
RECIPE |= {"ema_decay": 0.999, "dropout": 0.0, "batch_size": 512, "mixed_precision": "bf16", "epochs": 0}


def tuning(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Train; the weights go to OUT in pieces before anything is measured."""
    given: dict[str, Any] = dict(RECIPE)
    flags = ["--smoke"] if smoke else ["--compile", f"--init={WEIGHTS}", f"--data={os.environ['DATA']}"]
    row = trained(given, folder / "tuned", [*flags, *shlex.split(os.environ.get("FLAGS", ""))])
    yield row | {"recipe": given, "flags": flags}
    (final,) = (folder / "tuned").glob("*_weights_step_final.pt")
    files = in_pieces(final, Path(os.environ["OUT"]))
    sha256 = hashlib.sha256(final.read_bytes()).hexdigest()
    yield {"what": "weights", "said": f"{final.name} in {len(files)} piece(s)", "files": files, "sha256": sha256}


def in_pieces(file: Path, folder: Path, size: int = PIECE) -> list[str]:
    """Copy a file in pieces of at most ``size`` bytes, NAME.part-00 and so on; their names. Older ones go."""
    for old in folder.glob(f"{file.name}.part-*"):
        old.unlink()
    data, names = file.read_bytes(), []
    for k, start in enumerate(range(0, len(data), size)):
        names.append(f"{file.name}.part-{k:02d}")
        (folder / names[-1]).write_bytes(data[start : start + size])
    return names


def measuring(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Recognised share and feature distance of 5,000 images at the evaluations that a part's name ends in."""
    _, which, steps = part.split("-")
    weights, solver = (folder / "tuned", "consistency") if which == "tuned" else (WEIGHTS, "euler")
    file = folder / f"{part}-figures.json"
    flags = ["--smoke", "--n_samples=10"] if smoke else [f"--data={os.environ['DATA']}", "-mp", "bf16"]
    called(
        "cifar10/measure.py",
        f"--weights={weights}",
        f"--solver={solver}",
        f"--n_steps={steps}",
        f"--out={file}",
        *flags,
    )
    result = json.loads(file.read_text())
    shown = f"{result['recognised']:.1%} recognised, feature distance {result['feature_distance']:.3f}"
    yield {"what": f"{which}, {result['nfe']} NFE", "said": shown} | result


PARTS = {
    "tune": Part(tuning, 170, trains=True),
    **{f"measure-{which}-{k}": Part(measuring, 100) for which in ("tuned", "before") for k in (1, 2, 4)},
}
REHEARSAL = ("tune", "measure-tuned-2")
SUITE = Suite(__file__, PARTS, "fewstep_gpu.json", REHEARSAL, total=535, minutes=5, variables=("DATA",))

if __name__ == "__main__":
    parser = parser_of(SUITE, __doc__)
    main(SUITE, parser.parse_args(), parser)
