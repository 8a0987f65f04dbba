"""Sequences: windows of them, and roll-outs of one-step maps.

A series is a list of trajectories, each of shape (T, ...) with the same trailing shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

Step = Callable[[Tensor, int], Tensor]


# ------------------------------------------------------------------------------------------------------------- windows
def windows(series: Sequence[Tensor], past: int, horizon: int) -> Tensor:
    """Where each stretch of ``past + horizon`` frames begins; none reaches from one trajectory into another.

    Trajectories are (T, ...); those too short for ``past`` given frames and ``horizon`` predicted ones are passed over.

    Returns:
        (trajectory, first frame) of each window, int64, shape (N, 2); see ``frames_at``.

    Raises:
        ValueError: numbers out of range, or every trajectory is too short.
    """
    if past < 1 or horizon < 0:
        raise ValueError(f"windows of {past} + {horizon} frames: need past >= 1, horizon >= 0")
    length = past + horizon
    starts = [(k, start) for k, x in enumerate(series) for start in range(len(x) - length + 1)]
    if not starts:
        longest = max(map(len, series), default=0)
        raise ValueError(
            f"no window of {past} + {horizon} frames in {len(series)} trajectories of at most {longest} frames: "
            "give longer ones, or fewer frames"
        )
    return torch.tensor(starts, dtype=torch.int64)


def frames_at(series: Sequence[Tensor], index: Tensor, past: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The given frames, (B, past, ...), and those that follow, (B, horizon, ...), of rows (B, 2) of ``windows``."""
    stretches = torch.stack([series[k][start : start + past + horizon] for k, start in index.tolist()])
    return stretches[:, :past], stretches[:, past:]


# ------------------------------------------------------------------------------------------------------------ roll-out
@torch.no_grad()
def roll_out(step: Step, start: Tensor, n_steps: int, progress: str = "", shown: int = 1) -> Tensor:
    """Applies a one-step map again and again to states (B, ...). Memory: the result, on the device of ``start``.

    Args:
        step: step(state, k) -> the next state; k = 0, 1, ... counts the steps.
        progress: Text before a progress bar on stderr; empty: no bar.
        shown: What a step counts for in the bar, for example its rows.

    Returns:
        The states after each step, shape (n_steps, B, ...). ``start`` is not among them.

    Raises:
        ValueError: a state is not finite (the line names the step) or changes its shape, or n_steps < 1.
    """
    if n_steps < 1:
        raise ValueError(f"a roll-out of {n_steps} steps: ask for at least 1")
    state, states = start, start.new_empty(n_steps, *start.shape)
    with tqdm(total=n_steps * shown, desc=progress, disable=not progress, dynamic_ncols=True, mininterval=0.5) as bar:
        for k in range(n_steps):  # x_{k+1} = step(x_k, k): errors of a step are what the next one starts from
            state = step(state, k)
            _check_state(state, start, k, n_steps)  # nan spreads silently: better to stop where it begins
            states[k] = state
            bar.update(shown)
    return states


def _check_state(state: Tensor, start: Tensor, k: int, n_steps: int) -> None:
    """Raises ValueError unless a state has the shape of the first one and is finite."""
    if state.shape != start.shape:
        raise ValueError(f"step {k + 1} made {tuple(state.shape)} of {tuple(start.shape)}: a state must keep its shape")
    if not torch.isfinite(state).all():
        bad = (~torch.isfinite(state.reshape(len(state), -1))).any(1).sum().item()
        raise ValueError(
            f"the roll-out is not finite at step {k + 1} of {n_steps}, in {bad} of {len(state)} rows: "
            "train longer, with a smaller --lr, or take fewer steps"
        )
