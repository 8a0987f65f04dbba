"""What missing.py measures and draws: the calibration of conditional draws on held-out rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.runtime import generator
from ttflow.baselines import mixture
from ttflow.conditional import Filled, Gaussians, coverage, fill
from ttflow.datasets import Data
from ttflow.experiment import Fitting, plan
from ttflow.options import Options
from ttflow.recflow import log_likelihood

LEVELS = (0.5, 0.8, 0.95)
WHO = {"gaussian": "Gaussian", "mixture": "mixture", "train": "train"}
COLOURS = {"gaussian": "0.6", "mixture": "#2a78b5", "train": "#c8553d"}
RIDGES = (1e-2, 1e-1, 1.0)
SHARES = 10  # bars of a PIT histogram


def rows_of(name: str) -> Tensor:
    """A table of scikit-learn with standardised columns, float64; NAME-N: its first N columns.

    Raises:
        ValueError: unknown name, or as many columns as there are not.
    """
    from sklearn import datasets

    table, _, n = name.rpartition("-") if name.rpartition("-")[2].isdecimal() else (name, "", "")
    if table not in ("wine", "breast-cancer"):
        raise ValueError(f"unknown table {name!r}: choose wine or breast-cancer, or the first columns, as in wine-8")
    rows = torch.from_numpy(getattr(datasets, f"load_{table.replace('-', '_')}")().data).double()
    count = int(n) if n else rows.shape[1]
    if not 2 <= count <= rows.shape[1]:
        raise ValueError(f"{name}: {table} has {rows.shape[1]} columns; give {table}-2 to {table}-{rows.shape[1]}")
    rows = rows[:, :count]
    return (rows - rows.mean(0)) / rows.std(0)


def measure(
    name: str, n_missing: int, n_draws: int, seeds: Sequence[int], n_pairs: int, n_steps: int
) -> dict[str, Any]:
    """Coverage, PIT values and error of the conditional mean, over the test rows of all seeds.

    Args:
        name: See :func:`rows_of`. A fifth of the rows is the test, a tenth for choices, the rest to fit.
        n_missing: Entries taken away from each test row, at random.
        n_draws: Proposals of a row.
        seeds: Of splits.
        n_pairs, n_steps: Pairs of a sweep of the train; steps of its density.
    """
    rows = rows_of(name)
    if n_missing > rows.shape[1]:
        raise ValueError(f"--n_missing {n_missing}: {name} has {rows.shape[1]} columns")
    of_all: dict[str, dict[str, list[Any]]] = {who: {"below": [], "errors": [], "nats": []} for who in WHO}
    effective: list[Tensor] = []
    for seed in seeds:
        order, n = torch.randperm(len(rows), generator=generator(seed, "split")), len(rows) // 10
        test, validation, train = (rows[part] for part in order.split([2 * n, n, len(rows) - 3 * n]))
        g = generator(seed, "missing")
        places = torch.rand(test.shape, generator=g).argsort(1)[:, :n_missing]
        missing = torch.zeros(test.shape, dtype=torch.bool).scatter_(1, places, True)
        asked = test.masked_fill(missing, math.nan)
        log_density, of_fit, one = _fitted(train, validation, seed, n_pairs, n_steps)
        draws = {"gaussian": fill(one.log_density, one, asked, n_draws, g)}
        draws["mixture"] = fill(of_fit.log_density, of_fit, asked, n_draws, g)
        draws["train"] = fill(log_density, of_fit, asked, n_draws, g)
        effective.append(draws["train"].effective)
        for who, filled in draws.items():
            _count(of_all[who], filled, test, missing)
    return {who: _summary(values) for who, values in of_all.items()} | {
        "effective": torch.cat(effective).quantile(torch.tensor([0.05, 0.5], dtype=torch.float64)).tolist(),
        "values": sum(len(part) for part in of_all["train"]["below"]),
        "n_draws": n_draws,
    }


def _fitted(
    train: Tensor, validation: Tensor, seed: int, n_pairs: int, n_steps: int
) -> tuple[Any, Gaussians, Gaussians]:
    """log p of a train on a mixture, the mixture, and one Gaussian; the ridge is chosen on the validation rows."""
    chosen = mixture(train.numpy(), seed=seed)
    of_fit = Gaussians(*map(torch.from_numpy, (chosen.weights_, chosen.means_, chosen.covariances_)))
    one = Gaussians(torch.ones(1, dtype=torch.float64), train.mean(0)[None], train.T.cov()[None])
    options = Options(n_pairs=n_pairs, sweeps=6, verbose=0, seed=seed)
    x, held, few = train.float(), validation.float(), validation.float()[None]
    fitting = Fitting(options, Data("", x, held, held, held, few, few))
    fitting.put_on(chosen)
    best: tuple[float, Any] = (-math.inf, None)
    for ridge in RIDGES:
        shape, sweeps = plan(Options(n_pairs=n_pairs, sweeps=6, verbose=0, seed=seed, reg_coeff=ridge), x.shape[1])
        velocity = fitting.fit(shape, sweeps)[0].double()
        best = max(best, (log_likelihood(velocity, validation, n_steps).mean().item(), velocity), key=lambda at: at[0])
    velocity = best[1]
    return lambda points: log_likelihood(velocity, points, n_steps), of_fit, one


def _count(into: dict[str, list[Any]], filled: Filled, truth: Tensor, missing: Tensor) -> None:
    """Adds P(X < x) and the squared errors of the means at the entries that were taken away."""
    into["below"].append(filled.below(truth)[missing])
    into["errors"].append((filled.mean() - truth).square()[missing])


def _summary(values: dict[str, list[Any]]) -> dict[str, Any]:
    """Coverage, root mean squared error, and the PIT histogram with its largest deviation from uniform."""
    below, errors = (torch.cat(values[key]) for key in ("below", "errors"))
    counts = torch.histc(below, SHARES, 0, 1)
    return {
        "coverage": coverage(below, LEVELS),
        "rmse": errors.mean().sqrt().item(),
        "pit": (counts / len(below)).tolist(),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the parts of the true values in the intervals."""
    heads = [f"{level:.0%}" for level in LEVELS]
    lines = [f"| table | values | | {' | '.join(heads)} | RMSE of the mean |", "|---|---|---|" + "---|" * 4]
    for name, result in results.items():
        for who, title in WHO.items():
            inside = " | ".join(f"{part:.3f}" for part in result[who]["coverage"])
            lines.append(f"| {name} | {result['values']} | {title} | {inside} | {result[who]['rmse']:.3f} |")
        low, middle = result["effective"]
        lines.append(f"| | | effective draws of {result['n_draws']} | median {middle:.0f} | 5%: {low:.0f} | | |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """PIT histograms, a row for each table, with the band that 95% of uniform ones are in."""
    from common.plots import pyplot, save

    figure, axes = pyplot().subplots(
        len(results), len(WHO), figsize=(9.0, 2.5 * len(results)), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    edges = [k / SHARES for k in range(SHARES)]
    for axes_of, (name, result) in zip(axes, results.items()):
        for axis, (who, title) in zip(axes_of, WHO.items()):
            half = 1.96 * math.sqrt((1 / SHARES) * (1 - 1 / SHARES) / result["values"])
            for height, style in ((1 / SHARES - half, ":"), (1 / SHARES, "-"), (1 / SHARES + half, ":")):
                axis.axhline(height, color="0.2", lw=0.8, linestyle=style, zorder=3)
            axis.bar(edges, result[who]["pit"], width=1 / SHARES, align="edge", color=COLOURS[who], edgecolor="white")
            inside = ", ".join(f"{part:.0%}" for part in result[who]["coverage"])
            axis.set_title(f"{name}, {title}\n50, 80, 95% hold {inside}", fontsize=9)
            axis.set_xlim(0, 1)
        axes_of[0].set_ylabel("part of the true values")
    for axis in axes[-1]:
        axis.set_xlabel("P(X < true value)")
    save(figure, path)
