"""How near generated points are to real ones, beside how near two samples of real points are.

Sinkhorn's divergence is ttrecflow's metric (p = 2, blur 0.05, 2,000 points). Two samples of one distribution are never
0 apart: that is the floor, and what counts is the excess over it. One pair of samples says little: for swissroll-3d the
standard deviation is a fifth of the floor, more than a good flow's excess. Hence several pairs.

What is below the floor is not better than the data: where clusters are far apart, chance puts more points into one of a
sample than of another, and points strewn between the clusters make up for that cheaply. Hence the outliers beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ttflow.datasets import Data

BLUR = 0.05
MMD_POINTS = 2000
OUTSIDE = 1e-3  # part of the test points that count as outliers: 3 to 20 of them, of few rows none


def sample(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, solver: str, n_steps: int
) -> tuple[Tensor, float, int]:
    """Points that a flow makes of noise (n, d), in its dtype and on its device, the seconds, and the counted NFE."""
    import time

    import torch

    from common.solvers import CountNFE, integrate, time_grid

    count, begin = CountNFE(velocity), time.perf_counter()
    with torch.no_grad():
        points = integrate(count, noise, time_grid(n_steps), solver).cpu()
    seconds = time.perf_counter() - begin
    if not points.isfinite().all():
        raise ValueError(f"{solver} with {n_steps} steps made points that are not finite: give more --n-steps")
    return points, seconds, count.nfe


def distances(points: Tensor, few: Tensor, data: Data) -> dict[str, Any]:
    """Distances of generated points to the test set.

    Args:
        points: As many as ``data.test`` has; W2 of 10,000 takes half a minute and 5 GB.
        few: For Sinkhorn's divergence, of the shape of ``data.few``; each takes about three seconds.
        data: The sets.

    Returns:
        "sinkhorn", the mean over the draws, "sinkhorns", each of them, "w2", "mmd" and "outliers".
    """
    from common.metrics import mmd, sinkhorn_divergence, wasserstein2

    each = [sinkhorn_divergence(ours, real, BLUR) for ours, real in zip(few, data.few, strict=True)]
    return {
        "sinkhorn": sum(each) / len(each),
        "sinkhorns": each,
        "w2": wasserstein2(points, data.test),
        "mmd": mmd(points[:MMD_POINTS], data.test[:MMD_POINTS]),
        "outliers": outliers(points, data),
    }


def outliers(points: Tensor, data: Data) -> float:
    """The part of points (n, d) farther from all training points than all but 1 in 1,000 test points are."""
    import torch
    from scipy.spatial import KDTree

    tree = KDTree(data.train)
    usual, ours = (torch.from_numpy(tree.query(x)[0]) for x in (data.test, points))
    return float((ours > usual.quantile(1 - OUTSIDE)).double().mean())


def log_density(velocity: Any, x: Tensor, n_steps: int = 100) -> Tensor:
    """log p(x) in nats for each row (n, d): (n,).

    The divergence of a train is exact, that of a network the trace of its Jacobian, one backward pass for each column.
    """
    from ttflow.recflow import TTVelocity, log_likelihood

    exact: Any = velocity if isinstance(velocity, TTVelocity) else _WithTrace(velocity)
    return log_likelihood(exact, x, n_steps)


def negative_log_likelihood(velocity: Any, x: Tensor, n_steps: int = 100) -> float:
    """The mean of -:func:`log_density`."""
    return -float(log_density(velocity, x, n_steps).mean())


class _WithTrace:
    """A network's velocity with the exact divergence, for ``recflow.log_likelihood``."""

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.velocity = velocity

    def with_divergence(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, d) and its divergence (B,)."""
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self.velocity(x, t)
            columns = [torch.autograd.grad(v[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(x.shape[1])]
        return v.detach(), torch.stack(columns).sum(0)
