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
    free_energy,
    free_energy_error,
    helix_share,
    js_distance,
    positive_phi_share,
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
    unseen: Sequence[np.ndarray] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers, and what the pictures need.

    Args:
        model: The propagator.
        train_set, held_out: Stretches of angles, (T, residues, 2).
        lag: Picoseconds of a step.
        options: With leads, forecasts, members, rollouts, length and seed.
        learnt: what the model and its rivals learn from, if that is more than the training part.
        unseen: all frames of the held-out part, if those are more.
    """
    learnt, unseen = learnt or train_set, unseen or held_out
    leads, pictures = forecasts(model, learnt, held_out, lag, options)
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
        "free_energy_error": free_energy_errors(made, learnt, unseen),
        "positive_phi": {
            "model": mean_share(made),
            "training": mean_share(learnt),
            "held_out": mean_share(unseen),
            **{f"held_out_{name}_half": mean_share(half) for name, half in zip(("first", "second"), halves(unseen))},
        },
        "slow": {
            "model": slow(list(made), lag),
            "held out": slow(held_out, lag),
            "training": slow(train_set, lag),
        },
        "kinetics": kinetics(list(made), [*train_set, *held_out], lag),
        "rollout_steps": int(made.shape[0] * made.shape[1]),
    }
    surfaces = {"dynamics, training": surface(learnt), "dynamics, held out": surface(unseen), "model": surface(made)}
    return result, {"made": made, "real": list(held_out), "surfaces": surfaces, **pictures}


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
    first, second = halves(real)
    model, ours, theirs = counts(list(made)), counts(train_set), counts(held_out)
    return {
        "model_to_held_out": js_distance(model, theirs),
        "model_to_training": js_distance(model, ours),
        "model_to_all_real": js_distance(model, ours + theirs),
        "training_to_held_out": js_distance(ours, theirs),
        "first_to_second_halves_of_real": js_distance(counts(first), counts(second)),
        "even_to_odd_real_stretches": js_distance(counts(real[::2]), counts(real[1::2])),
    }


def surface(parts: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Free energy of (phi, psi) in kT, all frames of stretches (T, residues, 2) and all residues together."""
    angles = np.concatenate([x.reshape(-1, 2) for x in parts])
    return free_energy(angles[:, 0], angles[:, 1])


def halves(parts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first and the second halves of stretches (T, ...)."""
    return [x[: len(x) // 2] for x in parts], [x[len(x) // 2 :] for x in parts]


def free_energy_errors(
    made: np.ndarray, learnt: Sequence[np.ndarray], unseen: Sequence[np.ndarray]
) -> dict[str, float]:
    """Errors in kT against the held-out part, and against the training part; beside the model's what real parts have.

    A model that had learnt its training part exactly would be as far from the held-out part as that. The halves are
    what chance leaves of a trajectory half as long.
    """
    ours, theirs, model = surface(learnt), surface(unseen), surface(made)
    first, second = map(surface, halves(unseen))
    return {
        "model_to_held_out": free_energy_error(theirs, model),
        "training_to_held_out": free_energy_error(theirs, ours),
        "second_to_first_half_of_held_out": free_energy_error(first, second),
        "model_to_training": free_energy_error(ours, model),
        "held_out_to_training": free_energy_error(ours, theirs),
    }


def mean_share(parts: Sequence[np.ndarray] | np.ndarray) -> float:
    """Share of residues in the left-handed states, over all frames of stretches (T, residues, 2)."""
    return float(np.mean(np.concatenate([positive_phi_share(x) for x in parts])))


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
