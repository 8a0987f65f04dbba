"""Alternating least squares (ALS) for functional tensor trains: sweeps over the cores until the error stalls.

A sweep solves one core after the other, see ``sweeper``; here is when to stop and which train is the best.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ttflow.normal import ROWS, Blocks
from ttflow.sweeper import Adapt, Sweeper, Sweeps
from ttflow.tt import FunctionalTT, SeparateTT

if TYPE_CHECKING:
    from ttflow.normal import Data, Draw, Rows

SWEEPS = Sweeps()


def fit(
    train: FunctionalTT,
    draw: Draw,
    sweeps: Sweeps = SWEEPS,
    validation: Rows | None = None,
    progress: bool | str = False,
) -> tuple[FunctionalTT, list[dict[str, Any]]]:
    """Fits a train to rows of inputs and targets by sweeps to the right and back, each over all cores.

    With moves=False and the same data in all sweeps the error never rises. With moves=True a local problem has all
    outputs at once and one matrix for them; a step to the next core then cuts off what exceeds the rank.

    Cost of a sweep for N rows, D variables, width w of the bases: about N D r^4 w^2 / 8 products and D solutions of
    r^2 n equations. Memory: the rows of a sweep and, up to ``cache`` bytes, their interfaces; if ``draw`` gives a lazy
    sequence of blocks and cache is 0, one block.

    Args:
        train: The start, its ranks, bases and order; see ``tt.random_train``. Not changed.
        draw: draw(sweep) -> inputs (N, D) and targets (N, o), or a sequence of such blocks. A new draw in each sweep
            makes the noise in the targets average out; the same object again is not evaluated twice.
        sweeps: How it is fitted.
        validation: Held-out inputs and targets: stop when their error does not fall any more, and go back to the best.
            None: the same with the error of the fit, but if each draw is a new one all sweeps are made.
        progress: Show a bar; a string is its title.

    Returns:
        The fitted train in float64 and a row for each sweep: train and validation (mean squared errors, summed over the
        outputs), ranks, parameters, seconds.

    Raises:
        ValueError: a budget that rank 1 exceeds, or data that do not fit: wrong shape, NaN, a single row.
    """
    _check_budget(train, sweeps.adapt)
    data = draw(0)
    blocks = Blocks(train, data, sweeps.cache)
    sweeper = Sweeper(train, blocks.inputs(), sweeps)
    key, least, best, history = "validation" if validation else "train", math.inf, train, []
    begin = time.perf_counter()
    for k in _bar(sweeps.n_sweeps, progress):
        new = draw(k) if k else data
        fresh = k == 0 or new is not data
        blocks, data = (Blocks(train, new, sweeps.cache) if new is not data else blocks), new
        grows = sweeps.adapt is not None and k < sweeps.n_sweeps - 2  # the last two only solve and cut off
        error = _sweep(sweeper, blocks, k % 2 == 1, fresh, grows)
        now = sweeper.result()
        history.append(_row(k, now, error, validation, begin))
        comparable = validation is not None or not fresh  # errors of the fit to different rows are not
        if not comparable or history[-1][key] < least:
            least, best = history[-1][key], now
        if comparable and _stalled(history, key, sweeps.tolerance, sweeps.patience):
            break
    return best, history


def _row(k: int, train: FunctionalTT, error: float, validation: Rows | None, begin: float) -> dict[str, Any]:
    """What :func:`fit` says about a sweep."""
    row = {"sweep": k, "train": error, "validation": None if validation is None else _error(train, validation)}
    return row | {"ranks": train.ranks, "parameters": train.n_parameters, "seconds": time.perf_counter() - begin}


def _sweep(sweeper: Sweeper, blocks: Blocks, back: bool, fresh: bool, grow: bool) -> float:
    """Solves all cores from one end to the other; returns the mean squared error after the last.

    The first core was the last of the sweep before: on the same rows it is solved already.
    """
    path = range(len(sweeper.cores))
    path = list(reversed(path) if back else path)
    if fresh or len(path) == 1:
        sweeper.solve(path[0], blocks)
    for p, q in pairwise(path):
        sweeper.move(p, q, blocks, grow)
        sweeper.solve(q, blocks)
    return sweeper.error(path[-1], blocks)


def _stalled(history: list[dict[str, Any]], key: str, tolerance: float, patience: int) -> bool:
    """Whether the best error is as good as that of ``patience`` sweeps ago."""
    errors = [row[key] for row in history]
    return len(errors) > patience and min(errors[-patience:]) > (1 - tolerance) * min(errors[:-patience])


def _error(train: FunctionalTT, rows: Rows) -> float:
    """Mean squared error, summed over the outputs."""
    parts = zip(rows[0].split(8 * ROWS), rows[1].split(8 * ROWS))
    return sum((train(x) - y).square().sum().item() for x, y in parts) / len(rows[0])


def _bar(sweeps: int, progress: bool | str):
    """range(sweeps), with a progress bar if asked for."""
    from tqdm import tqdm

    title = progress if isinstance(progress, str) else None
    return tqdm(range(sweeps), desc=title, unit="sweep", disable=not progress, dynamic_ncols=True, leave=False)


def _check_budget(train: FunctionalTT, adapt: Adapt | None) -> None:
    """Raises ValueError for a budget that no train on these bases keeps to."""
    least = sum(basis.n for basis in train.bases) + (train.outputs - 1) * max(b.n for b in train.bases)
    if adapt and adapt.budget < least:
        raise ValueError(
            f"a budget of {adapt.budget:g} parameters: rank 1 alone needs {least}; give more, or smaller bases"
        )


def fit_each(
    trains: SeparateTT,
    draw: Draw,
    sweeps: Sweeps = SWEEPS,
    validation: Rows | None = None,
    progress: bool | str = False,
) -> tuple[SeparateTT, list[dict[str, Any]]]:
    """:func:`fit` of one train for each output; ``draw`` is asked once for each of them.

    Returns:
        The fitted trains, and the rows of all fits with the number of their output.
    """
    results, history = [], []
    for k, train in enumerate(trains.trains):
        held_out = None if validation is None else (validation[0], validation[1][:, k : k + 1])
        best, rows = fit(train, _one_output(draw, k), sweeps, held_out, progress)
        results.append(best)
        history += [{"output": k} | row for row in rows]
    return SeparateTT(results), history


def _one_output(draw: Draw, k: int) -> Draw:
    """The draw with output k as the only target; where the draw repeats an object, so does this."""
    last: list[Any] = [None, None]

    def only(sweep: int) -> Data:
        data: Any = draw(sweep)
        if data is not last[0]:
            single = isinstance(data, tuple)
            parts = [(x, y[:, k : k + 1]) for x, y in ([data] if single else data)]
            last[:] = [data, parts[0] if single else parts]
        return last[1]

    return only
