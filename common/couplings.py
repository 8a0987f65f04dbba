"""Couplings: which noise x0 of a batch is paired with which data x1.

Minibatch optimal transport pairs them so that the paths cross less (Tong et al. 2302.00482; Pooladian et al.
2304.14772). For squared distances only the inner products <x0_i, x1_j> matter: what depends on i or j alone adds the
same to every pairing. So the cost is one matrix product, of the centred batches (less rounding, the same plan).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.metrics import entropic_potentials

METHODS = ("independent", "ot", "sinkhorn")


def couple(
    x0: Tensor,
    x1: Tensor,
    method: str = "ot",
    generator: torch.Generator | None = None,
    y: Tensor | None = None,
    reg: float | None = None,
    within_labels: bool = False,
) -> tuple[Tensor, ...]:
    """Pairs x0 with x1 row by row. x1 and its labels y stay in place; x0 is reordered.

    * independent: as they are; two independent batches are an independent coupling.
    * ot: the exact assignment of least squared distance, a permutation of x0 without repeats. No randomness.
    * sinkhorn: for each x1 an x0 drawn from the entropic plan, so an x0 may repeat or be missing.

    Cost for B rows of D numbers: B^2 D for the distances, on the device; then the assignment on the CPU, about B^3 at
    worst (128: half a millisecond, 1024: some tens of milliseconds), which waits for a GPU.

    With labels, plain "ot" makes the noise depend on the label: a class gets the noise nearest to it, but a sampler
    starts every class from all of N(0, I). ``within_labels`` transports inside each class: p(x0 | y) stays normal.

    Args:
        x0, x1: Noise or source, and data, (B, ...) with as many numbers a row.
        generator: Draws of "sinkhorn", on the CPU; None: torch's global one.
        y: Labels of x1, shape (B,); returned as they are.
        reg: Entropic regularisation in units of the squared distance (Schroedinger bridge with sigma: 2 sigma^2); None:
            a tenth of the standard deviation of the inner part -2 <x0, x1> of the squared distances.
        within_labels: Transport inside each class of y only.

    Returns:
        x0, x1, or x0, x1, y if y is given.

    Raises:
        ValueError: unknown method, shapes that do not fit, reg <= 0, no labels for within_labels, or NaN or infinity
            in x0 or x1.

    Source: Tong et al. 2302.00482, section 3.2; Fatras et al. 1910.04091 for minibatches.
    """
    _check(x0, x1, method, y, reg, within_labels)
    if method != "independent" and len(x0) > 0:
        cost, order = _cost(x0, x1), np.empty(len(x0), dtype=np.int64)
        labels = y.cpu().numpy() if within_labels and y is not None else np.zeros(len(x0))
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels)):
            block = cost if len(rows) == len(cost) else cost[np.ix_(rows, rows)]
            order[rows] = rows[_assign(block) if method == "ot" else _draw(block, reg, generator)]
        x0 = x0[torch.from_numpy(order).to(x0.device)]
    return (x0, x1) if y is None else (x0, x1, y)


def _check(x0: Tensor, x1: Tensor, method: str, y: Tensor | None, reg: float | None, within_labels: bool) -> None:
    """Raises ValueError for arguments that do not fit together."""
    if method not in METHODS:
        raise ValueError(f"unknown coupling {method!r}: use one of {', '.join(METHODS)}")
    if x0.ndim == 0 or len(x0) != len(x1) or x0[:1].numel() != x1[:1].numel():
        raise ValueError(f"x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)} cannot be paired: give equal shapes")
    if y is not None and y.shape != x1.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}: give one label for each of the {len(x1)} rows of x1")
    if within_labels and y is None:
        raise ValueError("within_labels needs labels: give y, or leave within_labels off")
    if reg is not None and not reg > 0:
        raise ValueError(f"reg is {reg:g}: it must be positive; leave it out for the default")


@torch.no_grad()
def _cost(x0: Tensor, x1: Tensor) -> np.ndarray:
    """-2 <x0_i - mean, x1_j - mean>, C-contiguous (B, B): squared distances up to a term of i and one of j."""
    dtype = torch.promote_types(torch.promote_types(x0.dtype, x1.dtype), torch.float32)
    a, b = (x.reshape(len(x), -1).to(dtype) for x in (x0, x1))
    a, b = a - a.mean(0), b - b.mean(0)
    cost = torch.mm(a, b.T).mul_(-2).cpu().numpy()
    if not np.isfinite(cost).all():
        bad = [name for name, x in (("x0", x0), ("x1", x1)) if not torch.isfinite(x).all()]
        what = f"{' and '.join(bad)} hold NaN or infinity" if bad else "the squared distances overflow"
        raise ValueError(f"cannot couple: {what}; look at the data and the noise, or use --coupling independent")
    return cost


def _assign(cost: np.ndarray) -> np.ndarray:
    """The row for each column in the assignment of least cost."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost)
    order = np.empty_like(rows)
    order[columns] = rows
    return order


def entropic_plan(cost: np.ndarray, reg: float | None = None, tol: float = 1e-3, iterations: int = 1000) -> np.ndarray:
    """The plan with uniform marginals that minimises <plan, cost> - reg * entropy; shape (n, m), float64, sum 1.

    See :func:`common.metrics.entropic_potentials` for ``tol`` and ``iterations``, at the end of which the plan is used
    as it is; ``reg`` None: 0.1 std(cost).
    """
    reg = reg if reg is not None else max(0.1 * float(cost.std()), np.finfo(float).tiny)
    return entropic_potentials(cost, reg, tol, iterations)[2]


def _draw(cost: np.ndarray, reg: float | None, generator: torch.Generator | None) -> np.ndarray:
    """For each column a row drawn from the entropic plan, by inversion of its distribution function."""
    below = np.cumsum(entropic_plan(cost, reg), axis=0)
    u = torch.rand(cost.shape[1], generator=generator, dtype=torch.float64).numpy() * below[-1]
    return np.minimum((below <= u).sum(axis=0), cost.shape[0] - 1)
