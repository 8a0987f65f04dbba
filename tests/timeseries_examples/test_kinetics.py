"""Kinetics with known answers: a process that decorrelates at a known rate, and populations that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from timeseries_examples import kinetics

pytest.importorskip("deeptime")


def hopping(frames: int, stay: float, share: float, seed: int) -> np.ndarray:
    """Angles (T, 1, 2): psi hops between two basins, whose second has this share; phi is noise around one.

    The two-state chain forgets by ``stay`` a frame: its autocorrelation is stay^k.
    """
    rng = np.random.default_rng(seed)
    draws, keeps = rng.random(frames) < share, rng.random(frames) < stay
    state = np.empty(frames, bool)
    state[0] = draws[0]
    for k in range(1, frames):
        state[k] = state[k - 1] if keeps[k] else draws[k]
    psi = np.where(state, 1.5, -1.5) + 0.1 * rng.normal(size=frames)
    return np.stack([-1.5 + 0.3 * rng.normal(size=frames), psi], 1)[:, None]


STAY = 0.95


@pytest.fixture(autouse=True)
def _few_clusters(monkeypatch):
    monkeypatch.setattr(kinetics, "CLUSTERS", 20)
    monkeypatch.setattr(kinetics, "MOST", 1500)


def test_times_are_those_of_the_process():
    real = [hopping(4000, STAY, 0.5, seed) for seed in range(3)]
    made = [hopping(4000, STAY**2, 0.5, seed) for seed in (7, 8)]
    found: Any = kinetics.kinetics(made, real, step_ps=2.0)
    tau = -2.0 / np.log(STAY)  # ps; the noise within a basin takes 1% of the variance
    assert found["floor"]["psi_decorrelation_ps"] == pytest.approx(tau, rel=0.1)
    assert found["floor"]["implied_timescale_ps"] == pytest.approx(tau, rel=0.15)
    assert found["model"]["psi_decorrelation_ps"] == pytest.approx(tau / 2, rel=0.1)
    assert found["model"]["implied_timescale_ps"] == pytest.approx(tau / 2, rel=0.15)
    assert found["floor"]["phi_decorrelation_ps"] < 2.0  # one frame
    assert all(found["model"][name] < 1.5 * found["floor"][name] for name in ("psi", "phi_psi", "tic_0", "phi"))


def test_no_slow_mode_is_found_in_noise():
    """A mode of 40 features fitted to noise remembers that noise; on what it was not fitted on it remembers nothing."""
    rng = np.random.default_rng(0)
    real, made = (rng.uniform(-np.pi, np.pi, (4, 400, 10, 2)) for _ in range(2))
    found: Any = kinetics.kinetics(list(made), list(real), step_ps=10.0)
    reference = kinetics.Reference(list(real), 1)
    assert np.mean([reference.memory(x) for x in real]) > 0.15
    for who in ("model", "floor"):
        time = found[who]["implied_timescale_ps"]
        assert time is None or time < 4, who  # ps: less than 8% is left after a frame


def test_distances_tell_populations():
    real = [hopping(4000, STAY, 0.5, seed) for seed in range(3)]
    found: Any = kinetics.kinetics([hopping(4000, STAY, 0.9, 7)], real, step_ps=2.0)
    p, q = np.array([0.1, 0.9]), np.array([0.5, 0.5])
    m = (p + q) / 2
    exact = np.sqrt(((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2)
    for name in ("psi", "tic_0", "occupancies"):
        assert found["model"][name] == pytest.approx(exact, abs=0.06) and found["floor"][name] < 0.12, name
    assert found["model"]["phi"] < 0.1


def test_decorrelation_between_two_frames_and_never():
    angle = np.array([0.0, np.pi] * 20)  # from +1 to -1 in a frame: 1/e is crossed after (1 - 1/e) / 2 of it
    rho1 = -1.0
    assert kinetics.decorrelation([angle], 4) == pytest.approx((1 - np.exp(-1)) / (1 - rho1), rel=0.01)
    slow = np.concatenate([np.zeros(50), np.full(50, np.pi)])
    assert kinetics.decorrelation([slow], 10) is None


def test_too_short_or_too_few_for_slow_modes():
    x = hopping(300, STAY, 0.5, 0)
    assert kinetics.kinetics([x], [x, x], step_ps=0.5) is None  # 300 frames are 15 lags
    assert kinetics.kinetics([x], [x], step_ps=10.0) is None
    assert kinetics.kinetics([x], [x, x], step_ps=10.0) is not None
