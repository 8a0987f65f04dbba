"""What frontier.py draws: half the squared W2 of trains and networks of several sizes, their bytes and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypedDict

from common.runtime import read_json, write_json

if TYPE_CHECKING:
    from ttflow.datasets import Data
    from ttflow.experiment import Fitting
    from ttflow.options import Options


class Row(TypedDict):
    """A row of frontier.json, as far as it is read again."""

    kind: str
    size: int


def points(options: Options, budgets: Sequence[int], widths: Sequence[int], path: Path) -> list[dict[str, Any]]:
    """The floor, then each train and network, as rows of frontier.json; those that it holds are not made again."""
    from ttflow.datasets import load
    from ttflow.experiment import Fitting

    data = load(options.dataset_name, options.n_train, options.n_test, options.seed)
    rows = read_json(path, list[Row]) if path.is_file() else []
    done = {(row["kind"], row["size"]) for row in rows}
    fitting = cache(lambda: Fitting(options, data))  # its draws take seconds: one for all trains, none without any
    for kind, size in [("floor", 0), *(("train", n) for n in budgets), *(("network", n) for n in widths)]:
        if (kind, size) not in done:
            rows.append({"kind": kind, "size": size} | _point(kind, size, options, data, fitting))
            row = rows[-1].items()
            print(*(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row))
            write_json(path, rows)
    return rows


def _point(kind: str, size: int, options: Options, data: Data, fitting: Callable[[], Fitting]) -> dict[str, Any]:
    """Half the squared W2, bytes, parameters and seconds of one fit."""
    from common.metrics import wasserstein2
    from ttflow import network
    from ttflow.experiment import noise_like, plan
    from ttflow.score import sample

    if kind == "floor":
        return {"distance": wasserstein2(data.again, data.test) ** 2 / 2}
    if kind == "train":
        shape, sweeps = plan(replace(options, budget=size), data.dim)
        fit, begin = fitting(), perf_counter()
        flow: Any = fit.fit(replace(shape, rank=2), sweeps)[0]
        seconds, n_bytes = perf_counter() - begin, flow.n_bytes
    else:
        flow, seconds = network.train(data.train, width=size, n_steps=options.nn_steps, seed=options.seed)
        n_bytes = 4 * flow.n_parameters
    x, sampling, nfe = sample(flow, noise_like(data.test, options, "test"), "rk4", options.n_steps)
    facts = {"parameters": flow.n_parameters, "bytes": n_bytes, "fit_seconds": seconds, "sampling_seconds": sampling}
    return facts | {"nfe": nfe, "distance": wasserstein2(x, data.test) ** 2 / 2}


def draw(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Distance against bytes and against seconds of the fit, with the floor."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    from common.plots import pyplot, save
    from ttflow.panels import COLOURS

    figure, axes = pyplot().subplots(1, 2, figsize=(9.5, 4.0), sharey=True, layout="constrained")
    floor = next(row["distance"] for row in rows if row["kind"] == "floor")
    for axis, key, label in zip(axes, ("bytes", "fit_seconds"), ("size in bytes", "seconds to fit")):
        for kind, colour, mark, below in (("train", COLOURS["tt"], "o", 1), ("network", COLOURS["network"], "s", 0)):
            fits = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["size"])
            x, y = [row[key] for row in fits], [row["distance"] for row in fits]
            axis.plot(x, y, mark + "-", color=colour, label=f"tensor {kind}" if kind == "train" else kind)
            for row, a, b in zip(fits, x, y):
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
