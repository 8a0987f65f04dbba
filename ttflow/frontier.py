"""Quality against size and against time, for trains of several ranks and networks of several widths.

    python frontier.py --dataset-name swissroll-3d-sklearn        # minutes on one core
    python frontier.py --dataset-name circles-sklearn --budgets 400 1600 --widths 25 100

Writes results/frontier/NAME/: frontier.png, frontier.json. Finished points are kept, an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _repo import HERE
from common import cli
from common.runtime import read_json, run_main, write_json
from ttflow.train_eval_linear_recflow import Options as Experiment

if TYPE_CHECKING:
    from ttflow.datasets import Data


@dataclass(frozen=True)
class Options:
    """Options of the picture."""

    dataset_name: str = "swissroll-3d-sklearn"
    """Data: as for train_eval_linear_recflow.py"""
    budgets: tuple[int, ...] = (450, 900, 1800, 3600, 7200)
    """Most parameters of the trains, whose ranks adapt"""
    widths: tuple[int, ...] = (25, 50, 100, 200)
    """Of the two hidden layers of the networks"""
    seed: int = 42
    """Seed of data, fits and test noise"""
    n_test: int = 5000
    """Test points"""
    smoke: bool = False
    """Seconds: shows only that it runs"""
    out: str = ""
    """Folder; empty: results/frontier/NAME"""


def main() -> None:
    """Fit what is missing, draw."""
    options = cli.parse(Options, description=__doc__ or "")
    out = Path(options.out) if options.out else HERE / "results" / "frontier" / Path(options.dataset_name).stem
    rows = points(options, out / "frontier.json")
    draw(rows, options.dataset_name, out / "frontier.png")
    print(f"wrote {out / 'frontier.png'}")


def points(options: Options, path: Path) -> list[dict[str, Any]]:
    """The floor, then each train and network, as rows of frontier.json."""
    from ttflow.datasets import load
    from ttflow.experiment import SMOKE, Fitting

    experiment = Experiment(options.dataset_name, options.seed, n_test=options.n_test, verbose=0)
    if options.smoke:
        experiment = replace(experiment, **SMOKE)  # type: ignore[arg-type]
    data = load(options.dataset_name, experiment.n_train, experiment.n_test, options.seed)
    rows = read_json(path) if path.is_file() else []
    fitting: list[Fitting] = []
    for kind, size in [
        ("floor", 0),
        *(("train", n) for n in options.budgets),
        *(("network", n) for n in options.widths),
    ]:
        if any(row["kind"] == kind and row["size"] == size for row in rows):
            continue
        if kind == "train" and not fitting:
            fitting.append(Fitting(experiment, data))
        rows.append({"kind": kind, "size": size} | _point(kind, size, experiment, data, fitting))
        print(
            " ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in rows[-1].items()
            )
        )
        write_json(path, rows)
    return rows


def _point(kind: str, size: int, experiment: Experiment, data: Data, fitting: list[Any]) -> dict[str, Any]:
    """Half the squared W2, bytes, parameters and seconds of one fit."""
    from time import perf_counter

    from common.metrics import wasserstein2
    from ttflow import network
    from ttflow.experiment import choices, noise_like
    from ttflow.score import sample

    if kind == "floor":
        return {"distance": wasserstein2(data.again, data.test) ** 2 / 2}
    if kind == "train":
        begin = perf_counter()
        flow: Any = fitting[0].fit(choices(replace(experiment, budget=size), data.dim) | {"rank": 2})[0]
        seconds, n_bytes = perf_counter() - begin, flow.n_bytes
    else:
        flow, seconds = network.train(data.train, width=size, n_steps=experiment.nn_steps, seed=experiment.seed)
        n_bytes = 4 * flow.n_parameters
    made, sampling, nfe = sample(flow, noise_like(data.test, experiment, "test"), "rk4", experiment.n_steps)
    facts = {"parameters": flow.n_parameters, "bytes": n_bytes, "fit_seconds": seconds, "sampling_seconds": sampling}
    return facts | {"nfe": nfe, "distance": wasserstein2(made, data.test) ** 2 / 2}


def draw(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Distance against bytes and against seconds of the fit, with the floor."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    from common.plots import pyplot, save
    from ttflow.panels import COLOURS

    figure, axes = pyplot().subplots(1, 2, figsize=(9.5, 4.0), sharey=True, layout="constrained")
    floor = next(row["distance"] for row in rows if row["kind"] == "floor")
    for axis, key, label in zip(axes, ("bytes", "fit_seconds"), ("size in bytes", "seconds to fit")):
        for kind, colour, mark, below in (("train", COLOURS["tt"], "o", 1), ("network", COLOURS["network"], "s", 0)):
            found = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["size"])
            x, y = [row[key] for row in found], [row["distance"] for row in found]
            axis.plot(x, y, mark + "-", color=colour, label=f"tensor {kind}" if kind == "train" else kind)
            for row, a, b in zip(found, x, y):
                place = {"xytext": (-4, -5) if below else (4, 5), "textcoords": "offset points"}
                sides = {"ha": "right", "va": "top"} if below else {"ha": "left", "va": "bottom"}
                axis.annotate(f"{row['parameters']:,}", (a, b), **place, **sides, fontsize=7, color=colour)
        axis.axhline(floor, color="0.5", linestyle=":", label="two samples of the data")
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.margins(0.16)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ticks.set_major_formatter(EngFormatter(sep="") if ticks is axis.xaxis else "{x:g}")
            ticks.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25, which="both")
    axes[0].set_ylabel(r"$W_2^2/2$ to the data")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{name}: numbers are parameters", fontsize=10)
    save(figure, path)


if __name__ == "__main__":
    run_main(main)
