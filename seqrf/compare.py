"""Compare evaluations: one table and one figure, quality against network evaluations, out of many rows.jsonl.

    python compare.py exp/toy2d/eval exp/toy2d_teacher/eval --out exp/comparison
    python compare.py exp --out exp/comparison --metric straightness

Reads every rows.jsonl below the folders. A row that was measured again replaces the older one; rows that differ in the
seed alone are shown as mean and spread. Seconds on a CPU; needs neither weights nor data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _repo import HERE  # noqa: F401
from common import cli
from common.runtime import run_main
from seqrf.comparison import compare


@dataclass(frozen=True)
class Options:
    """Options of a comparison."""

    runs: tuple[str, ...] = ()
    """Folders of runs or of evaluations; they may also stand without this flag"""
    out: str = ""
    """Folder for table.csv and quality_against_nfe.png"""
    metric: str = "auto"
    """Column of the rows to draw, such as w2, fid, feature_distance; auto: the first of these that is there"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, write, print."""
    options = cli.parse(Options, description=__doc__ or "", argv=argv, words=("runs",))
    if not options.runs or not options.out:
        raise ValueError("give folders with evaluations and --out FOLDER: compare.py exp/toy2d --out exp/comparison")
    compare(options.runs, Path(options.out), options.metric)


if __name__ == "__main__":
    run_main(main)
