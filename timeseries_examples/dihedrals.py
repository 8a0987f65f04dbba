"""Backbone dihedrals: from coordinates to angles, from angles to features on the circle and back, and their files.

A trajectory file is an npz with ``angles`` (frames, residues, 2), float32 radians in [-pi, pi), the pairs (phi, psi);
``times`` (frames,), picoseconds; ``recipe``, JSON text. Read without pickle. Imports numpy only.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.runtime import atomic_write

Unit = Literal["auto", "radians", "degrees"]


@dataclass(frozen=True)
class Trajectory:
    """One simulation: angles (frames, residues, 2) in radians, picoseconds between two, and how it was made."""

    angles: np.ndarray
    lag: float
    recipe: dict[str, Any]
    name: str = ""


# ---- geometry


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Torsion about the bond b-c of four points, each (..., 3): radians in [-pi, pi], IUPAC's sign (cis = 0).

    Source: Blondel and Karplus 1996, J. Comput. Chem. 17, 1132: atan2 of the two plane normals, well-conditioned
    at every angle.
    """
    ab, bc, cd = b - a, c - b, d - c
    first, second = np.cross(ab, bc), np.cross(bc, cd)
    sine = np.linalg.norm(bc, axis=-1) * np.sum(ab * second, axis=-1)
    return np.arctan2(sine, np.sum(first * second, axis=-1))


def backbone(positions: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """(..., residues, 2) angles phi and psi of positions (..., atoms, 3) and atom indices quads (residues, 2, 4)."""
    a, b, c, d = np.moveaxis(positions[..., quads, :], -2, 0)
    return wrap(dihedral(a, b, c, d))


def wrap(angles: Any) -> Any:
    """The same angles in [-pi, pi), of an array or a tensor."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


# ---- files


def save_trajectory(path: Path, angles: np.ndarray, times: np.ndarray, recipe: Mapping[str, Any], **more: Any) -> None:
    """Write a trajectory file whole or not at all; ``more`` are further arrays."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            angles=np.asarray(angles, np.float32),
            times=np.asarray(times, np.float64),  # in float32, frames of half a picosecond blur after microseconds
            recipe=np.array(json.dumps(dict(recipe))),
            **more,
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, read without pickle.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz, torn, or with objects inside.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no trajectory {path}: make it with python make_md_data.py")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged or not an npz of arrays ({type(error).__name__}): delete it and make it again "
            "with python make_md_data.py"
        ) from None


def load_trajectory(path: Path, unit: Unit = "auto", frame: float | None = None) -> Trajectory:
    """Read and check one file.

    Args:
        path: The npz.
        unit: Of the angles in the file; auto: radians, or an error when they cannot be.
        frame: picoseconds between frames, for a file without times; of others it has to be what they say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, missing arrays, wrong shapes, times that do not grow evenly, a wrong unit.
    """
    arrays = read_arrays(path)
    if "angles" not in arrays:
        raise ValueError(f"{path} has no array 'angles' but {', '.join(arrays) or 'nothing'}: see README.md, Data")
    angles = arrays["angles"]
    if angles.ndim == 2 and angles.shape[1] % 2 == 0:
        angles = angles.reshape(len(angles), -1, 2)  # phi_1, psi_1, phi_2, ...
    if angles.ndim != 3 or angles.shape[2] != 2 or len(angles) < 2 or not angles.size or angles.dtype.kind != "f":
        raise ValueError(f"{path}: angles is {angles.dtype} {angles.shape}, not float (frames, residues, 2)")
    recipe = recipe_of(path, arrays)
    lag = lag_of(path, arrays.get("times"), len(angles), recipe, frame)
    return Trajectory(in_radians(angles, unit, str(path)), lag, recipe, path.stem)


def lag_of(path: Path, times: np.ndarray | None, frames: int, recipe: Mapping[str, Any], frame: float | None) -> float:
    """Picoseconds between two frames, by the times or, without any, as the user says: ``--frame``.

    Raises:
        ValueError: neither says, both do and differ, or what :func:`step_of` raises.
    """
    if times is None and frame is None:
        raise ValueError(f"{path} does not say how long a frame is: give --frame PICOSECONDS")
    if times is None:
        return float(frame or 0)
    if frame is not None:
        step_of(path, times, frames, {"frame": frame}, "--frame")
    return step_of(path, times, frames, recipe)


def recipe_of(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The recipe among a file's arrays, empty if there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    if "recipe" not in arrays:
        return {}
    try:
        recipe = json.loads(str(arrays["recipe"].item()))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: its recipe is not JSON ({error}): leave the array out, or make the file anew"
        ) from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: its recipe is a {type(recipe).__name__}, no JSON object: leave the array out")
    return recipe


def step_of(path: Path, times: np.ndarray, frames: int, recipe: Mapping[str, Any], whose: str = "its recipe") -> float:
    """Picoseconds between two frames: the recipe's, where the times are those within what their type resolves.

    Programs count time in float32, also MDAnalysis' readers: after a microsecond its numbers are 0.06 ps apart.

    Raises:
        ValueError: times of another number, uneven, too coarse, or not the recipe's.
    """
    if times.shape != (frames,) or times.dtype.kind not in "iuf":
        raise ValueError(f"{path}: times is {times.dtype} {times.shape}, for {frames} frames: each needs one number")
    exact = times.astype(np.float64)
    steps, mean = np.diff(exact), (exact[-1] - exact[0]) / (frames - 1)
    resolved = float(np.spacing(np.abs(times).max())) if times.dtype.kind == "f" else 0.0
    if not np.isfinite(exact).all() or not mean > 0 or np.abs(steps - mean).max() > 0.01 * mean + 2 * resolved:
        raise ValueError(f"{path}: the times do not grow by equal steps ({steps.min():g} to {steps.max():g} ps)")
    if resolved > mean / 2:
        raise ValueError(f"{path}: {times.dtype} does not tell times {mean:.3g} ps apart at {exact[-1]:g}: use float64")
    stated = recipe.get("frame")
    if isinstance(stated, float | int) and not isinstance(stated, bool):
        if abs(mean - stated) > 0.01 * mean + 2 * resolved / (frames - 1):
            raise ValueError(f"{path}: the times grow by {mean:g} ps, {whose} says {stated:g}: correct one of them")
        return float(stated)
    short = float(f"{mean:.4g}")
    return short if abs(short - mean) <= 2 * resolved / (frames - 1) + 1e-6 * mean else mean


def in_radians(angles: np.ndarray, unit: Unit, where: str) -> np.ndarray:
    """Angles as float32 radians in [-pi, pi); the unit given is checked against the values.

    Backbone angles fill most of the circle, so a largest absolute value beyond 2 pi means degrees, and one below
    2 pi in something said to be degrees means radians.

    Raises:
        ValueError: values that are not finite, or do not fit the unit.
    """
    if not np.isfinite(angles).all():
        bad = int((~np.isfinite(angles)).any(axis=tuple(range(1, angles.ndim))).sum())
        raise ValueError(f"{where}: {bad} of {len(angles)} frames hold nan or inf; leave them out")
    largest = float(np.abs(angles).max())
    likely = "degrees" if largest > 2 * np.pi + 1e-3 else "radians"
    stated = "radians" if unit == "auto" else unit
    if likely != stated:
        raise ValueError(
            f"{where}: the largest angle is {largest:.4g}, so these are {likely}, not {stated}: give --unit {likely}"
        )
    return wrap(np.deg2rad(angles) if stated == "degrees" else angles).astype(np.float32)


def alike(trajectories: list[Trajectory]) -> list[Trajectory]:
    """The trajectories, if they are of one molecule and one lag; lengths may differ.

    Raises:
        ValueError: they are not.
    """
    first = trajectories[0]
    for other in trajectories[1:]:
        if other.angles.shape[1:] != first.angles.shape[1:]:
            raise ValueError(
                f"{other.name} has {other.angles.shape[1]} residues, {first.name} {first.angles.shape[1]}: "
                "one folder, one molecule"
            )
        if abs(other.lag - first.lag) > 0.01 * first.lag:
            raise ValueError(f"{other.name} has a frame each {other.lag:g} ps, {first.name} each {first.lag:g} ps")
    return trajectories


# ---- features


def to_features(angles: np.ndarray) -> np.ndarray:
    """Angles (..., residues, 2) -> (..., 4 residues): sines of all angles, then cosines."""
    flat = angles.reshape(*angles.shape[:-2], -1)
    return np.concatenate([np.sin(flat), np.cos(flat)], axis=-1).astype(np.float32)


def to_angles(features: np.ndarray) -> np.ndarray:
    """Features (..., 4 residues) -> angles (..., residues, 2); each pair (sin, cos) may have any length but zero."""
    sine, cosine = np.split(features, 2, axis=-1)
    return np.arctan2(sine, cosine).reshape(*sine.shape[:-1], -1, 2)


def start_names(count: int, start: str) -> Sequence[str]:
    """The starting structure of each trajectory: one kind, or helix and extended in turn for ``both``."""
    return [start if start != "both" else ("helix", "extended")[k % 2] for k in range(count)]
