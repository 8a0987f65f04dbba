"""How a propagator of dihedrals is judged on trajectories it has not seen: forecasts, long runs, their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.series import frames_at, roll_out, windows
from common.runtime import generator
from timeseries_examples.dihedrals import to_angles, to_features
from timeseries_examples.kinetics import kinetics
from timeseries_examples.measures import (
    autocorrelation,
    circular_errors,
    circular_mean,
    correlation_time,
    helix_share,
    js_distance,
    ramachandran,
)
from timeseries_examples.propagator import Propagator, count_nfe, examples


def as_states(angles: np.ndarray, space: str) -> Tensor:
    """Angles (..., residues, 2) as states of a space, (..., D)."""
    if space == "circle":
        return torch.from_numpy(to_features(angles))
    return torch.from_numpy(np.ascontiguousarray(angles.reshape(*angles.shape[:-2], -1)))


def as_angles(states: Tensor, space: str) -> np.ndarray:
    """States of a space as angles (..., residues, 2)."""
    if space == "circle":
        return to_angles(states.numpy())
    return states.numpy().reshape(*states.shape[:-1], -1, 2)


def evaluate(
    model: Propagator,
    train_set: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    lag: float,
    options: Any,
    learnt: Sequence[np.ndarray] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers, and what the pictures need.

    Args:
        model: The propagator.
        train_set, held_out: Stretches of angles, (T, residues, 2).
        lag: Picoseconds of a step.
        options: With leads, forecasts, members, rollouts, length and seed.
        learnt: what the model and its rivals learn from, if that is more than the training part.
    """
    leads, pictures = forecasts(model, learnt or train_set, held_out, lag, options)
    made = long_runs(model, held_out, options)
    result = {
        "method": model.recipe.method,
        "source": model.recipe.source,
        "space": model.space.kind,
        "condition": model.recipe.condition,
        "past": model.recipe.past,
        "nfe": count_nfe(model, as_states(held_out[0][: model.recipe.past], model.space.kind)[None]),
        "step_ps": lag,
        "leads": leads,
        "ramachandran_js": distances(made, train_set, held_out),
        "slow": {
            "model": slow(list(made), lag),
            "held out": slow(held_out, lag),
            "training": slow(train_set, lag),
        },
        "kinetics": kinetics(list(made), [*train_set, *held_out], lag),
        "rollout_steps": int(made.shape[0] * made.shape[1]),
    }
    return result, {"made": made, "real": list(held_out), **pictures}


# ---- forecasts


def forecasts(
    model: Propagator, train_set: Sequence[np.ndarray], held_out: Sequence[np.ndarray], lag: float, options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Errors at each lead of the ensemble's circular mean and of its rivals.

    They are persistence, the training set's circular mean (climatology), and linear least squares.
    """
    kind, most = model.space.kind, options.leads[-1]
    frames, following, k = examples(model, [as_states(x, kind) for x in held_out], most)
    rows = torch.randperm(len(frames), generator=generator(options.seed, "forecasts"))[: options.forecasts]
    frames, following, k = frames[rows], following[rows], k[rows]
    members, count = options.members, len(rows)
    step = model.step_from(k.repeat(members), options.seed)
    states = roll_out(step, frames.repeat(members, 1, 1), most, progress="forecasts")[:, :, -1]
    made = as_angles(states, kind).reshape(most, members, count, -1)
    truth = as_angles(following, kind).swapaxes(0, 1).reshape(most, count, -1)
    now = as_angles(frames[:, -1], kind).reshape(count, -1)
    given = as_angles(frames, kind)
    usual = circular_mean(np.concatenate(train_set).reshape(-1, now.shape[1]))
    scores = []
    for lead in options.leads:
        target = truth[lead - 1]
        scores.append(
            {
                "lead": lead,
                "ps": lead * lag,
                "model": circular_errors(circular_mean(made[lead - 1]), target),
                "persistence": circular_errors(now, target),
                "climatology": circular_errors(np.broadcast_to(usual, target.shape), target),
                "linear": circular_errors(linear(train_set, given, lead).reshape(count, -1), target),
            }
        )
    return scores, {"forecast": made[:, :, 0], "truth": truth[:, 0]}


def linear(train_set: Sequence[np.ndarray], given: np.ndarray, lead: int) -> np.ndarray:
    """Angles (B, residues, 2) that a linear regression forecasts, a rival that costs nothing.

    Least squares of the sines and cosines ``lead`` steps later on those of the given frames, fitted for this lead.

    Args:
        train_set: Stretches of angles (T, residues, 2).
        given: Frames to forecast from, (B, past, residues, 2).
        lead: Steps.
    """
    past = given.shape[1]
    series = [torch.from_numpy(to_features(x)).double() for x in train_set]
    frames, following = frames_at(series, windows(series, past, lead), past, lead)

    def inputs(x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), x.new_ones(len(x), 1)], 1)

    weights = torch.linalg.lstsq(inputs(frames), following[:, -1]).solution
    now = torch.from_numpy(to_features(given)).double()
    return to_angles((inputs(now) @ weights).numpy())


# ---- long runs


def long_runs(model: Propagator, held_out: Sequence[np.ndarray], options: Any) -> np.ndarray:
    """Angles (runs, T, residues, 2) of runs from the first frames of each held-out stretch."""
    past, kind = model.recipe.past, model.space.kind
    length = options.length or max(map(len, held_out)) - past
    firsts = torch.stack([as_states(x[:past], kind) for x in held_out]).repeat_interleave(options.rollouts, 0)
    k = torch.full((len(firsts),), past - 1)
    states = roll_out(model.step_from(k, options.seed + 1), firsts, length, progress="roll-out")[:, :, -1]
    return as_angles(states.transpose(0, 1), kind)


def distances(
    made: np.ndarray, train_set: Sequence[np.ndarray], held_out: Sequence[np.ndarray], bins: int = 36
) -> dict[str, float]:
    """Jensen-Shannon distances of Ramachandran histograms, the model's beside those between real parts."""

    def counts(parts: Sequence[np.ndarray]) -> np.ndarray:
        return sum((ramachandran(x, bins) for x in parts), np.zeros((bins, bins)))

    real = [*train_set, *held_out]
    first, second = ([x[: len(x) // 2] for x in real], [x[len(x) // 2 :] for x in real])
    model, ours, theirs = counts(list(made)), counts(train_set), counts(held_out)
    return {
        "model_to_held_out": js_distance(model, theirs),
        "model_to_training": js_distance(model, ours),
        "model_to_all_real": js_distance(model, ours + theirs),
        "training_to_held_out": js_distance(ours, theirs),
        "first_to_second_halves_of_real": js_distance(counts(first), counts(second)),
        "even_to_odd_real_stretches": js_distance(counts(real[::2]), counts(real[1::2])),
    }


def slow(parts: Sequence[np.ndarray], lag: float) -> dict[str, float]:
    """Correlation times in ps of phi and psi (means over residues and stretches), and the share of helix."""
    lags = min(2000, min(map(len, parts)) // 4)
    times = {}
    for i, name in enumerate(("phi", "psi")):
        rho = mean_autocorrelation(parts, i, lags)
        times[f"{name}_time_ps"] = correlation_time(rho) * lag
    return times | {"helix_share": float(np.mean([helix_share(x).mean() for x in parts]))}


def mean_autocorrelation(parts: Sequence[np.ndarray], which: int, lags: int) -> np.ndarray:
    """Autocorrelation of (sin, cos) of phi (0) or psi (1), mean over residues and stretches (T, residues, 2)."""
    rows = []
    for x in parts:
        for residue in range(x.shape[1]):
            angle = x[:, residue, which]
            rows.append(autocorrelation(np.stack([np.sin(angle), np.cos(angle)], axis=1), lags))
    return np.mean(rows, axis=0)
