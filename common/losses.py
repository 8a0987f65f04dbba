"""The training objectives, one function per method, each beside its paper's equation.

All have the signature ``loss(net, x0, x1, t, noise, y, sigma) -> per-sample losses, shape (B,)``: x0 source and
x1 data, already coupled, (B, ...); t (B,); noise (B, ...) standard normal, or None for methods without a spread;
y (B,) or None. Squared errors are means over the coordinates of a sample, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.paths import BridgePath, LinearPath, LipmanPath, expand

Network = Callable[..., Tensor]
Loss = Callable[[Network, Tensor, Tensor, Tensor, "Tensor | None", "Tensor | None"], Tensor]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, float32, shape (B,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def _regress_velocity(path: Any, net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any) -> Tensor:
    """E || v(x_t, t) - u_t(x_t | x0, x1) ||^2, the conditional flow matching objective (Lipman et al. 2023, eq. 9)."""
    xt = path.xt(x0, x1, t, noise)
    return squared_error(net(xt, t, y), path.ut(x0, x1, t, xt))


def cfm(net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any, sigma: float) -> Tensor:
    """Independent CFM: E || v(x_t, t) - (x1 - x0) ||^2, q(x0) q(x1). Source: Tong et al. 2024, section 3.2.2.

    OT-CFM (section 3.2.4) is the same regression on pairs drawn from a minibatch optimal transport plan.
    """
    return _regress_velocity(LinearPath(sigma), net, x0, x1, t, noise, y)


def fm(net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any, sigma: float) -> Tensor:
    """Flow matching with the OT path: E || v - (x1 - (1 - sigma) x0) ||^2. Source: Lipman et al. 2023, equation 23."""
    return _regress_velocity(LipmanPath(sigma), net, x0, x1, t, noise, y)


def sbcfm(net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any, sigma: float) -> Tensor:
    """Schrodinger-bridge CFM: the velocity of Brownian bridges on entropic-OT pairs (Tong et al. 2024, 3.2.5)."""
    return _regress_velocity(BridgePath(sigma), net, x0, x1, t, noise, y)


def rf(net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any, sigma: float) -> Tensor:
    """Rectified flow: E || (x1 - x0) - v(x_t, t) ||^2, x_t on the line itself. Source: Liu et al. 2023, eq. 1."""
    return _regress_velocity(LinearPath(0.0), net, x0, x1, t, None, y)


def idff(
    net: Network, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor, y: Any, sigma: float, flow_weight: float = 2.0
) -> Tensor:
    """IDFF: flow_weight || x1_hat - x1 ||^2 + || lambda_t st + noise ||^2, lambda_t = 2 s_t / sigma^2.

    The network sees the point twice along the channels and returns two heads: x1_hat estimates the data and st a
    multiple of the score, st = sigma^2/2 grad log p_t. Source: Rezaei et al. 2024 (2409.14599), section 3.
    """
    path = BridgePath(sigma)
    xt = path.xt(x0, x1, t, noise)
    x1_hat, st = net(torch.cat([xt, xt], dim=1), t, y).float().chunk(2, dim=1)
    scale = expand(2 * path.spread(t) / (sigma**2 + 1e-8), st)
    return flow_weight * squared_error(x1_hat, x1) + squared_error(scale * st, -noise)


def make_loss(method: str, sigma: float = 0.0, flow_weight: float = 2.0) -> Loss:
    """The loss of a method with its constants bound: ``loss(net, x0, x1, t, noise, y) -> (B,)``."""
    functions = {"cfm": cfm, "otcfm": cfm, "fm": fm, "sbcfm": sbcfm, "rf": rf, "idff": idff}
    if method not in functions:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(functions)}")
    if method in ("sbcfm", "idff") and sigma <= 0:
        raise ValueError(f"--method {method} needs --sigma > 0 (its bridge has a spread of sigma sqrt(t (1 - t)))")
    options = {"sigma": sigma, **({"flow_weight": flow_weight} if method == "idff" else {})}
    return lambda net, x0, x1, t, noise, y=None: functions[method](net, x0, x1, t, noise, y, **options)


def usual_coupling(method: str) -> str:
    """The coupling of a method's paper: exact OT for otcfm and idff, Sinkhorn for sbcfm, else independent."""
    return {"otcfm": "ot", "idff": "ot", "sbcfm": "sinkhorn"}.get(method, "independent")


def network_heads(method: str) -> int:
    """Outputs per image channel of the method's network: two for idff (data, score), one for a velocity."""
    return 2 if method == "idff" else 1
