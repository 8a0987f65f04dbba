"""Kinetics and populations of a peptide as its field measures them, on torsion angles; slow modes by deeptime.

The set of MDGen (Jing et al. 2024, 2409.17808, section 4 and their analyze_peptide_sim.py), beside its floor: what real
trajectories of the same length score. Jensen-Shannon distances are scipy's, natural logarithm: 0 equal, 0.83 disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from timeseries_examples.dihedrals import to_features
from timeseries_examples.measures import autocorrelation, cells

MARGINAL, JOINT = 100, 50  # bins of a histogram of one number, and of each of two
TICA_PS, CLUSTERS, STATES = 10.0, 100, 5  # lag of TICA and Markov models; clusters, and metastable states made of them
MOST = 5000  # frames, about, that clusters are made of
SLOWEST = "implied_timescale_ps"
FEWEST = 40  # frames in the shortest trajectory, in lags of TICA


def kinetics(made: Sequence[np.ndarray], real: Sequence[np.ndarray], step_ps: float) -> dict[str, Any] | None:
    """Scores of generated trajectories against all real ones, and the floor: each real one against the others.

    Both are means over single trajectories, so that a model's are to be compared with real ones of their length.

    Args:
        made, real: angles (T, residues, 2) of about one length; two real ones or more.
        step_ps: picoseconds of a frame.

    Returns:
        ``model`` and ``floor``: {score: mean}; None where trajectories are too short or too few for slow modes, or
        deeptime is not there.
    """
    lag = max(1, round(TICA_PS / step_ps))
    if find_spec("deeptime") is None or len(real) < 2 or min(map(len, [*made, *real])) < FEWEST * lag:
        return None
    whole = Reference(real, lag)
    others = [Reference([*real[:i], *real[i + 1 :]], lag) for i in range(len(real))]
    model: dict[str, float | None] = _mean([whole.scores(x) for x in made])
    floor: dict[str, float | None] = _mean([reference.scores(x) for reference, x in zip(others, real)])
    model |= decorrelations(made, step_ps) | {SLOWEST: _timescale([whole.memory(x) for x in made], lag * step_ps)}
    memories = [reference.memory(x) for reference, x in zip(others, real)]
    floor |= decorrelations(real, step_ps) | {SLOWEST: _timescale(memories, lag * step_ps)}
    return {"model": model, "floor": floor}


class Reference:
    """Long trajectories, their slow modes (TICA fitted on them alone) and metastable states.

    Args:
        parts: angles (T, residues, 2).
        lag: frames of TICA and of the Markov model.
    """

    def __init__(self, parts: Sequence[np.ndarray], lag: int) -> None:
        from deeptime.clustering import KMeans
        from deeptime.decomposition import TICA

        self.parts, self.lag = parts, lag
        features = [to_features(x).astype(np.float64) for x in parts]
        self.tica: Any = TICA(lagtime=lag, dim=2).fit_from_timeseries(features).fetch_model()
        self.tics = [self.tica.transform(x) for x in features]
        self.whole, self.ours = np.concatenate(parts), np.concatenate(self.tics)
        points = self.ours[:: max(1, len(self.ours) // MOST)]
        count = min(CLUSTERS, len(points) // 10)
        clustering = KMeans(count, fixed_seed=13, n_jobs=1, max_iter=200)  # type: ignore[arg-type] a seed, it says
        self.clusters: Any = clustering.fit_fetch(points)
        self.member, self.states = self._states()
        self.occupied = self._occupied(self.tics)

    def _states(self) -> tuple[np.ndarray, int]:
        """Metastable state of each cluster, by PCCA+ of the reversible Markov model, and their number.

        Clusters outside the largest connected set are states of their own, one for all.
        """
        from deeptime.markov import TransitionCountEstimator
        from deeptime.markov.msm import MaximumLikelihoodMSM

        walks = [self.clusters.transform(x) for x in self.tics]
        estimator: Any = TransitionCountEstimator(self.lag, "sliding")
        counts = estimator.fit_fetch(walks).submodel_largest()
        model: Any = MaximumLikelihoodMSM(reversible=True).fit_fetch(counts)
        symbols = counts.state_symbols
        n = min(STATES, len(symbols))
        member = np.full(self.clusters.n_clusters, n)
        member[symbols] = model.pcca(n).assignments
        return member, n + 1

    def _occupied(self, tics: Sequence[np.ndarray]) -> np.ndarray:
        """Share of the frames in each metastable state."""
        walk = np.concatenate([self.member[self.clusters.transform(x)] for x in tics])
        return np.bincount(walk, minlength=self.states) / len(walk)

    def scores(self, x: np.ndarray) -> dict[str, float]:
        """Jensen-Shannon distances of one trajectory (T, residues, 2) to these; means over residues."""
        whole, ours, tics = self.whole, self.ours, self.tica.transform(to_features(x).astype(np.float64))
        low, high = _range(tics, ours)
        circle = (-np.pi, np.pi)
        residues = range(x.shape[1])
        found: dict[str, Any] = {
            name: np.mean([distance(x[:, r, [i]], whole[:, r, [i]], *circle, MARGINAL) for r in residues])
            for i, name in enumerate(("phi", "psi"))
        }
        found["phi_psi"] = np.mean([distance(x[:, r], whole[:, r], *circle, JOINT) for r in residues])
        found["tic_0"] = distance(tics[:, :1], ours[:, :1], low[:1], high[:1], MARGINAL)
        found["tic_0_1"] = distance(tics, ours, low, high, JOINT)
        found["occupancies"] = _js(self._occupied([tics]), self.occupied)
        return {name: float(value) for name, value in found.items()}

    def memory(self, x: np.ndarray) -> float:
        """Autocorrelation after ``lag`` frames of the slowest mode along one trajectory (T, residues, 2).

        A mode remembers the trajectories that it was fitted on for longer than others, the more so the shorter they
        are: ask for it of others.
        """
        tic = self.tica.transform(to_features(x).astype(np.float64))[:, 0]
        return float(autocorrelation(tic, self.lag)[self.lag])


def distance(x: np.ndarray, y: np.ndarray, low: Any, high: Any, bins: int) -> float:
    """Jensen-Shannon distance of histograms of points (N, D) and (M, D) in a box, ``bins`` a side."""
    start, end = (np.broadcast_to(side, x.shape[1:]) for side in (low, high))
    return _js(*(cells(points, start, end, bins).ravel() for points in (x, y)))


def decorrelation(angles: Sequence[np.ndarray], most: int) -> float | None:
    """Frames after which the autocorrelation of (sin, cos) of an angle in trajectories (T,) first is below 1/e.

    Between two frames it is taken as linear. None: not within ``most`` frames.
    """
    unit = [np.stack([np.sin(x), np.cos(x)], 1) for x in angles]
    rho = np.mean([autocorrelation(x, most) for x in unit], axis=0)
    below = np.flatnonzero(rho < np.exp(-1))
    if not len(below):
        return None
    k = int(below[0])
    return float(k - 1 + (rho[k - 1] - np.exp(-1)) / (rho[k - 1] - rho[k]))


def decorrelations(parts: Sequence[np.ndarray], step_ps: float) -> dict[str, float | None]:
    """Times in ps at which phi and psi of trajectories (T, residues, 2) decorrelate to 1/e, medians over residues.

    None where most do not within a quarter of the trajectory.
    """
    most = min(map(len, parts)) // 4
    found: dict[str, float | None] = {}
    for i, name in enumerate(("phi", "psi")):
        times = [decorrelation([x[:, r, i] for x in parts], most) for r in range(parts[0].shape[1])]
        middle = float(np.median([np.inf if time is None else time for time in times]))
        found[f"{name}_decorrelation_ps"] = middle * step_ps if np.isfinite(middle) else None
    return found


def _timescale(memories: Sequence[float], lag_ps: float) -> float | None:
    """Implied timescale -lag / ln rho in ps of the mean rho; None where nothing is remembered."""
    rho = float(np.mean(memories))
    return -lag_ps / float(np.log(rho)) if 0 < rho < 1 else None


def _range(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest of points (N, D)."""
    points = np.concatenate(parts)
    return points.min(0), points.max(0)


def _js(p: np.ndarray, q: np.ndarray) -> float:
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(p, q))


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float | None]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
