"""The training objectives, each beside its paper's equation. Which method uses which: ``common.methods``.

All are called ``loss(net, path, x0, x1, t, noise, y) -> per-sample losses, shape (B,)``: x0 source and x1 data, already
coupled, (B, ...); t (B,); noise (B, ...) standard normal, or None for paths without a spread; y (B,) or None. Squared
errors are means over the coordinates of a sample, in float32. Torch is not needed to import this module.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.paths import expand

if TYPE_CHECKING:
    from torch import Tensor

Network = Callable[..., "Tensor"]

LEAST_REST = 0.05  # of 1 - t, by which the velocity's error divides that of the data: weights up to 400
LEVELS = (0.002, 80.0)  # noise levels of consistency tuning, those of Karras et al. 2022 (2206.00364), table 1
CLOSEST = 256  # the last of its pairs are 1 / CLOSEST of their level apart, and up to 5 times that near the data
LAST_SHARE = 3.125e-4  # of the interval that a flow map's intermediate time is away at the end of training: r_1


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, float32, shape (B,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def root_mean_square(error: Tensor) -> Tensor:
    """Of the coordinates of each sample, (B,)."""
    error = error.flatten(1)
    return error.norm(dim=1) / error.shape[1] ** 0.5


def at_level(path: Any, x0: Tensor, x1: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """The point of noise level s, (B,), of a ``BridgePath`` of x0 and x1, t' (x1 + s x0), and its time t', (B,)."""
    time = path.time_of(level)
    return expand(time, x1) * (x1 + expand(level, x1) * x0), time


@contextmanager
def repeatable(x: Tensor) -> Iterator[None]:
    """Without gradient, and the random numbers go back to where they were: the next call drops the same activations."""
    import torch

    with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        yield


def velocity(net: Network, path: Any, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any) -> Tensor:
    """E || v(x_t, t) - u_t(x_t | x0, x1) ||^2, the conditional flow matching objective (Lipman et al. 2023, eq. 9)."""
    xt = path.xt(x0, x1, t, noise)
    return squared_error(net(xt, t, y), path.ut(x0, x1, t, xt))


def idff(
    net: Network,
    path: Any,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Any,
    flow_weight: float = 2.0,
    data_loss: str = "data",
    score_target: str = "noise",
    score_weight: float = 1.0,
) -> Tensor:
    """IDFF: flow_weight || x1_hat - x1 ||^2 + score_weight || lambda_t st + noise ||^2, lambda_t = 2 s_t / sigma^2.

    The network sees the point twice along the channels and returns two heads: x1_hat estimates the data and st a
    multiple of the score, st = sigma^2/2 grad log p_t. Neither option below changes what minimises the loss.

    Args:
        net, path, x0, x1, t, noise, y: see above.
        flow_weight: of the data head's term.
        data_loss: "data", or "velocity": its term over max(1 - t, LEAST_REST)^2, the error that x1_hat makes in the
            velocity (x1_hat - x) / (1 - t) - st, so that times near the data count.
        score_target: "noise", or "conditional": E[noise | x_t, x1], which has the same mean given x_t and a smaller
            variance; for independent x0 and x1 only, see ``common.paths.BridgePath.noise_mean``.
        score_weight: of the score head's term.

    Source: Rezaei et al. 2024 (2409.14599), section 3, for the defaults.
    """
    import torch

    xt = path.xt(x0, x1, t, noise)
    x1_hat, st = net(torch.cat([xt, xt], dim=1), t, y).float().chunk(2, dim=1)
    data = squared_error(x1_hat, x1)
    if data_loss == "velocity":
        data = data / (1 - t).clamp(min=LEAST_REST).square()
    # st = -sigma^2/2 E[e | x_t] / s_t, so lambda_t st = -E[e | x_t]: the score head is regressed on the path's noise
    scale = expand(2 * path.spread(t) / (path.sigma**2 + 1e-8), st)
    target = path.noise_mean(x0, t, noise) if score_target == "conditional" else noise
    return flow_weight * data + score_weight * squared_error(scale * st, -target)


def flow_map(
    net: Network,
    path: Any,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    noise: Any,
    y: Any,
    r: Tensor,
    progress: float,
    weight_power: float | None = None,
) -> Tensor:
    """A flow map without Jacobian products: w / alpha || F(x_t, t, r) - target ||^2 for x_r = x_t + (r - t) F.

    With an intermediate time l = t + alpha (r - t) and x_l on the same straight line,

        target = alpha (x1 - x0) + (1 - alpha) sg F(x_l, l, r),    w = sg (|| (F - target) / alpha ||^2 + 1e-3)^-p:

    the mean velocity over (t, r) is that over (t, l), known from the data, and that over (l, r), known to the network.
    alpha falls from 1, which is flow matching, to LAST_SHARE as ``progress`` goes from 0 to 1; towards 0 it is
    MeanFlow, and r = 1 alone is consistency training. Both calls see the same dropout. Cost: a call with gradient and
    one without.

    Args:
        net: net(x, t, y, r), the mean velocity F from time t to r at x.
        path: of spread 0.
        r: second times, (B,), t < r <= 1.
        progress: share of the training that is done.
        weight_power: p; None: 0.75, as published. Above 0 it draws F from the mean of its targets towards their mode,
            in few dimensions so far that paths end elsewhere.

    Source: Luo et al. 2025 (SoFlow, 2512.15657), equation of the Euler parametrisation.
    """
    alpha = LAST_SHARE**progress
    middle = t + alpha * (r - t)
    xt, ut = path.xt(x0, x1, t, noise), x1 - x0
    with repeatable(xt):
        later = net(xt + expand(middle - t, xt) * ut, middle, y, r).float()
    target = alpha * ut + (1 - alpha) * later
    error = squared_error(net(xt, t, y, r), target)  # (B,)
    power = 0.75 if weight_power is None else weight_power
    return error / alpha * (error.detach() / alpha**2 + 1e-3) ** -power


def mean_flow(
    net: Network,
    path: Any,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    noise: Any,
    y: Any,
    r: Tensor,
    weight_power: float | None = None,
    bare: Network | None = None,
) -> Tensor:
    """MeanFlow as a regression: || V - (x1 - x0) ||^2 with V = u(x_t, t, r) - (r - t) sg du/dt.

    u is the mean velocity over (t, r). Along a path of the flow, dx/ds = v, it obeys

        (r - t) u(x_t, t, r) = int_t^r v(x_s, s) ds.

    Its derivative by t with r held is -u + (r - t) du/dt = -v, where du/dt = (v . grad_x) u + d_t u. So V = v where u
    is the mean velocity, and v is what the conditional velocity x1 - x0 is regressed on. The direction of du/dt is the
    network's own v = u(x_t, t, t), so V depends on x_t, t and r alone; at r = t it is flow matching.

    The value is the squared error; the gradient is that of S sg(S + 0.01)^-p, S the sum over coordinates. All calls
    see the same dropout. Cost: a call with gradient, one without and one forward derivative, in float32.

    Args:
        net: net(x, t, y, r), the mean velocity from time t to r at x.
        path: of spread 0.
        r: second times, (B,), t <= r <= 1.
        weight_power: p; None: 1, as published. See :func:`flow_map`.
        bare: the network itself, in float32, where ``net`` wraps it: ``DistributedDataParallel`` has no forward
            derivative, and a half's is rounding.

    Source: Geng et al. 2025 (iMF, 2512.02012), and their code for the weight.
    """
    import torch

    bare = bare or net
    xt, ut = path.xt(x0, x1, t, noise), x1 - x0
    with repeatable(xt):
        v = bare(xt, t, y, t)
    with repeatable(xt), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the compiler that its first jvp starts
        rate = torch.func.jvp(lambda x, t: bare(x, t, y, r), (xt, t), (v, torch.ones_like(t)))[1]  # du/dt
    error = squared_error(net(xt, t, y, r).float() - expand(r - t, xt) * rate, ut)  # (B,)
    fixed, size = error.detach(), xt[0].numel()
    power = 1.0 if weight_power is None else weight_power
    return fixed + (error - fixed) * size * (size * fixed + 0.01) ** -power


def taught(end: Network, path: Any, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and data on the straight line along a teacher's flow through x_t, in place of those that x_t was made of.

    The data are the line's end D(x_t), and x_t, of level s = (1 - t) / t, stays: the noise is x0 + (x1 - D) / s. The
    point of a later time on that line is an Euler step of the teacher away, so that losses of two times distil the
    teacher instead of learning from the data.

    Args:
        end: D(x, t) of the teacher.
        path: the ``BridgePath`` that the levels are of; of a flow map that of sigma 0.
        x0, x1, t: see above; 0 < t < 1.

    Source: Song et al. 2023 (2303.01469), algorithm 2.
    """
    import torch

    level = (1 - t) / t
    with torch.no_grad():
        data = end(*at_level(path, x0, x1, level))
    return x0 + (x1 - data) / expand(level, x1), data


def trajectories(end: Network, path: Any, x0: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """A teacher's flow from noise x0, (n, ...): states x_t, (steps + 1, n, ...), the last at t = 1; times t, (steps,).

    Solved by UniPC of order 2 on the straight line of the same levels: z = (x1 + s x0) / (1 + s) has the velocity
    (D - z) / (1 - u) at u = 1 / (1 + s), whose equal steps begin at the highest of LEVELS, as samplers do. Cost: a call
    of the teacher for each step.

    Args:
        end: D(x, t) of the teacher.
        path: the ``BridgePath`` that the levels are of.
    """
    import torch

    from common.solvers import integrate

    first = 1 / (1 + LEVELS[1])
    nodes = torch.linspace(first, 1, steps + 1, dtype=torch.float64)

    def point(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        time = path.time_of(1 / u - 1)
        return expand(time / u, z) * z, time

    def slope(z: Tensor, u: Tensor) -> Tensor:
        return (end(*point(z, u)) - z) / expand(1 - u, z)

    with torch.no_grad():
        z = integrate(slope, (1 - first) * x0, nodes.tolist(), "unipc2", trajectory=True)
    at = nodes[:-1].to(x0)
    x = point(z[:-1].flatten(0, 1), at.repeat_interleave(len(x0)))[0]
    return torch.cat([x.view_as(z[:-1]), z[-1:]]), path.time_of(1 / at - 1)


def end_error(net: Network, x: Tensor, t: Tensor, end: Tensor, y: Any, denoiser: Any) -> Tensor:
    """Consistency mid-training: || D(x_t) - x_end || at points of a teacher's :func:`trajectories`, (B,).

    Args:
        x, t, end: points, (B, ...), their times, (B,), and where their trajectories end.
        denoiser: see :func:`consistency`.

    Source: Hu et al. 2025 (2509.24526).
    """
    return root_mean_square(denoiser(lambda x, t: net(x, t, y).float())(x, t) - end)


def lower_level(level: Tensor, q: float, progress: float) -> Tensor:
    """The lower noise level of a consistency pair: s (1 - q^-(stage + 1) (1 + 8 sigmoid(-s))).

    What would be below the least of LEVELS is 0, the data. So some pairs end there in every stage: without any, a
    denoiser that is not x itself at t = 1, as IDFF's head, could say the same of all points at no loss.

    The stages take equal shares of the training, as many as keep q^(stage + 1) <= CLOSEST: 8 for q = 2, which is the
    published schedule of long runs, and one for q = 256, that of short ones.

    Source: Geng et al. 2024 (2406.14548), section 4 and their code.
    """
    import torch

    stages = max(1, int(math.log(CLOSEST) / math.log(q) + 1e-9))
    stage = min(int(progress * stages), stages - 1)
    lower = level * (1 - q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-level)))
    return lower.where(lower >= LEVELS[0], 0)


def consistency(
    net: Network,
    path: Any,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    noise: Any,
    y: Any,
    progress: float,
    ect_q: float = 2.0,
    *,
    denoiser: Callable[..., Callable[[Tensor, Tensor], Tensor]],
) -> Tensor:
    """Consistency tuning: || D(x_s) - sg D(x_r) || / (s - r) for levels s > r of the same x0 and x1.

    The norm is the root of the mean square over the coordinates.
    At level s = (1 - t) / t the point is t' (x1 + s x0), where t' is the path's time of that level: t itself on the
    line; a bridge's x0 stands for all its noise. The target of r = 0 is x1. Both calls see the same dropout. Cost: a
    call with gradient and one without.

    Args:
        net, path, x0, x1, y: see above; x0 standard normal and independent of x1. The path is a ``BridgePath``.
        t: (B,); levels are held within LEVELS.
        progress: share of the training that is done.
        ect_q: see :func:`lower_level`.
        denoiser: from the network with its labels to D(x, t), the end of the path through x.

    Source: Geng et al. 2024 (2406.14548), with the constant of their norm at 0.
    """
    import torch

    denoise = denoiser(lambda x, t: net(x, t, y).float())

    def end(level: Tensor) -> Tensor:
        return denoise(*at_level(path, x0, x1, level))

    upper = ((1 - t) / t).clamp(*LEVELS)
    lower = lower_level(upper, ect_q, progress)
    with repeatable(x1):
        target = torch.where(expand(lower > 0, x1), end(lower), x1)
    return root_mean_square(end(upper) - target) / (upper - lower)
