"""What is measured of a trained network: W2, path energy and NFE with Euler steps, as both protocols do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from common.networks import MLP
    from protocols import Method, Points


def measure(net: MLP, method: Method, points: Points) -> dict[str, float]:
    """Both protocols on the small test set, and W2 on the validation points, by which variants are chosen."""
    from common.metrics import wasserstein2

    row: dict[str, float] = {}
    transport = wasserstein2(*points.test) ** 2
    for n in (20, 100):
        x, energy, nfe = flow(net, method, points.test[0], n)
        row |= {f"w2_{n}": wasserstein2(x, points.test[1]), f"energy_{n}": energy, f"nfe_{n}": nfe}
        row[f"npe_{n}"] = abs(energy - transport) / transport
    row["w2_20_validation"] = wasserstein2(flow(net, method, points.validation[0], 20)[0], points.validation[1])
    return row


def flow(net: MLP, method: Method, x: Tensor, n_steps: int) -> tuple[Tensor, float, int]:
    """n_steps of Euler from x: the end points, the path energy E sum |v|^2 dt, and the network evaluations.

    IDFF's last step lands on its data head, as in ``common.generate.Sampler``.
    """
    import torch

    from common.solvers import CountNFE, time_grid

    counted = CountNFE(net)
    velocity = velocity_of(counted, method)
    times, energy = time_grid(n_steps), 0.0
    with torch.no_grad():
        for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            h = (s - t).item()
            if method.loss == "idff" and k == n_steps - 1:
                v = (counted(torch.cat([x, x], dim=1), t.expand(len(x)))[:, :2] - x) / h
            else:
                v = velocity(x, t.expand(len(x)))
            energy += h * v.square().sum(1).mean().item()
            x = x + h * v
    return x, energy, counted.nfe


def velocity_of(net: Any, method: Method) -> Any:
    """The velocity of a trained network; of a data prediction, v = (x1_hat - x) / (1 - t)."""
    from common import generate

    if method.predicts == "velocity":
        return generate.velocity_of(net, method.loss)
    return lambda x, t: (net(x, t) - x) / (1 - t[:, None])
