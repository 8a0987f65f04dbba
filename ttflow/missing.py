"""Missing values of a table from a train's density, and whether they are calibrated.

    python missing.py --names wine breast-cancer-8        # minutes; a picture and a table
    python missing.py --smoke

Some entries of each test row are taken away and drawn again given the others, conditional.py says how. Intervals of 50,
80 and 95% should hold as many true values, and P(X < x) at the true value x be uniform (PIT). Beside the train on a
mixture are the mixture that proposes and a single Gaussian, both in closed form. Writes results/missing/: missing.png,
missing.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from _repo import HERE
from common import cli
from common.cli.ranges import Count, Seed
from common.runtime import run_main, write_json


@dataclass(frozen=True)
class Options:
    """Options of the demonstration."""

    names: tuple[str, ...] = ("wine", "breast-cancer-8")
    """Tables of scikit-learn, NAME or NAME-N for its first N columns"""
    n_missing: Count = 3
    """Entries that are taken away from each test row"""
    n_draws: Count = 100
    """Proposals for each row"""
    seeds: tuple[Seed, ...] = (0, 1)
    """Seeds of splits, fits and draws"""
    n_pairs: Count = 5000
    """Pairs of a sweep of the train"""
    n_steps: Count = 12
    """Runge-Kutta steps of the density"""
    smoke: bool = False
    """Seconds: shows only that it runs; writes to results/smoke-missing"""
    out: str = ""
    """Folder; empty: results/missing"""


def main() -> None:
    """Fit, take away, draw, count; print and draw."""
    options = cli.parse(Options, description=__doc__ or "")
    from ttflow.calibration import draw, measure, table

    out = Path(options.out) if options.out else HERE / "results" / ("smoke-missing" if options.smoke else "missing")
    sizes = {"n_draws": 20, "n_pairs": 500, "n_steps": 3} if options.smoke else {}
    sizes = {name: getattr(options, name) for name in ("n_missing", "n_draws", "n_pairs", "n_steps")} | sizes
    results = {
        name: measure(name, seeds=options.seeds[: 1 if options.smoke else None], **sizes) for name in options.names
    }
    print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    draw(results, out / "missing.png")
    write_json(out / "missing.json", {"results": results, "options": asdict(options) | {"out": ""}})
    print(f"wrote {out}: missing.png, missing.json")


if __name__ == "__main__":
    run_main(main)
