"""A fitted train as two files that need numpy alone: NAME.npz, its numbers, and NAME.py, which evaluates them.

Splines and Legendre polynomials are polynomials between their knots. Multiplied into the cores they leave, for each
variable, one matrix-valued polynomial a piece: sum_q u^q C[piece, q], u counted from the piece's origin. So what has to
be evaluated knows nothing of bases.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.runtime import atomic_write
from ttflow.bases import BSplines, Legendre
from ttflow.recflow import LAST, TTVelocity
from ttflow.tt import FunctionalTT

if TYPE_CHECKING:
    from ttflow.bases import Basis

    Pieces = tuple[Any, Any, Any, Any, Any]


def check_path(path: str | Path) -> Path:
    """The path of an export.

    Raises:
        ValueError: it is not a .npz whose name Python can import.
    """
    path = Path(path)
    if path.suffix != ".npz" or not re.fullmatch(r"[A-Za-z_]\w*", path.stem):
        raise ValueError(f"--export {path}: give NAME.npz, NAME of letters, digits and _; NAME.py is written beside it")
    return path


def export(velocity: TTVelocity, path: str | Path) -> None:
    """Write NAME.npz and NAME.py, a copy of ``plain.py``; in float64 both give the same to rounding.

    Raises:
        ValueError: the path (see :func:`check_path`), separate trains, or a basis without polynomials.
    """
    import numpy as np

    path, train = check_path(path), velocity.train_
    if not isinstance(train, FunctionalTT):
        raise ValueError("separate trains cannot be exported: fit one for all outputs")
    numbers: dict[str, Any] = {name: value.double().cpu().numpy() for name, value in velocity.frame.named_buffers()}
    numbers |= {"bound": velocity.bound.double().cpu().numpy(), "last": LAST, "order": np.array(train.order)}
    for p, (basis, core) in enumerate(zip(train.bases, train.cores)):
        within, ends, origin, rate, table = _pieces(basis)
        matrices = torch.einsum("pqn,anob->pqoab", torch.from_numpy(table), core.double().cpu()).numpy()
        numbers |= {f"range{p}": within, f"ends{p}": ends, f"origin{p}": origin, f"rate{p}": rate, f"core{p}": matrices}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **numbers)
    with atomic_write(path.with_suffix(".py")) as temporary:
        shutil.copyfile(Path(__file__).with_name("plain.py"), temporary)


def _pieces(basis: Basis) -> Pieces:
    """Of a basis: the range that points are clamped to, the inner ends of its pieces, their origins and rates, and the
    coefficients (pieces, powers, n).

    Raises:
        ValueError: it is not made of polynomials.
    """
    if isinstance(basis, BSplines):
        return _of_splines(basis)
    if isinstance(basis, Legendre):
        return _of_polynomials(basis)
    raise ValueError(f"--export is for polynomials, not a basis of {basis.kind}: fit with --bases bsplines or legendre")


def _reach(basis: Basis) -> float:
    return basis.margin * (basis.high - basis.low) if basis.outside == "linear" else 0.0


def _of_splines(basis: BSplines) -> Pieces:
    """The intervals of the knots, and a piece for the continuation on either side."""
    import numpy as np

    nodes = basis.table("nodes", torch.zeros((), dtype=torch.float64)).numpy()
    flat = basis.table("0", torch.zeros((), dtype=torch.float64)).numpy().T
    local, last = flat.reshape(len(nodes) + 1, basis.width, basis.width), len(nodes) - 2
    table = np.zeros((*local.shape[:2], basis.n))
    inner = np.arange(-1, last + 2).clip(0, last)
    for piece, start in enumerate(inner):
        table[piece, :, start : start + basis.width] = local[piece]
    within = np.array([basis.low - _reach(basis), basis.high + _reach(basis)])
    return within, nodes, nodes[inner], 1 / np.diff(nodes)[inner], table


def _of_polynomials(basis: Legendre) -> Pieces:
    """One piece, u from -1 to 1, between the tangents at both ends."""
    import numpy as np
    from numpy.polynomial import legendre

    norm = np.sqrt(2 * np.arange(basis.n) + 1)
    middle = np.zeros((basis.n, basis.n))
    for k in range(basis.n):
        middle[: k + 1, k] = norm[k] * legendre.leg2poly(np.eye(basis.n)[k])[: k + 1]
    sides = []
    for u in (-1.0, 1.0):
        powers = np.arange(basis.n)
        value, slope = u**powers @ middle, (powers[1:] * u ** (powers[1:] - 1)) @ middle[1:]
        side = np.zeros_like(middle)
        side[0] = value - u * slope
        if basis.n > 1:
            side[1] = slope
        sides.append(side)
    half = (basis.high - basis.low) / 2
    origin, rate = np.full(3, basis.low + half), np.full(3, 1 / half)
    within = np.array([basis.low - _reach(basis), basis.high + _reach(basis)])
    return within, np.array([basis.low, basis.high]), origin, rate, np.stack([sides[0], middle, sides[1]])
