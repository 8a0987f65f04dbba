"""The training methods, one frozen record each: what is learnt, on which pairs and path, and how to sample from it.

Whatever depends on a method's name is looked up in METHODS. A new method is a loss in ``common.losses``, a record here
and a row in docs/methods.md. Torch is not needed to import this module: ``--help`` lists the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from common import losses
from common.paths import BridgePath, LinearPath, LipmanPath, Path, expand

if TYPE_CHECKING:
    from torch import Tensor

Output = Callable[..., "Tensor"]  # a network with its labels and guidance: out(x, t), or out(x, t, r)
Velocity = Callable[["Tensor", "Tensor"], "Tensor"]
Drift = tuple[Velocity, Callable[[float], float]]

# 1 / (1 - t) multiplies a data prediction's error near t = 1. Fixed grids never evaluate there (the last step lands
# on the prediction itself); for adaptive solvers the denominator is held at 0.005, where the noise is below one grey
# level. At 0.02 a Gaussian of spread 0.2 came out 4% too wide with 400 steps, at 0.005 within 0.5%.
SMALLEST_REMAINDER = 0.005


# ---- from a network's output to a velocity and an SDE


def own_velocity(out: Output, last: float) -> Velocity:
    """The output is the velocity."""
    return out


def data_heads(out: Output) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """IDFF's two heads: ``heads(x, t) -> (x1_hat, st)``, the estimate of the data and sigma^2/2 times the score."""

    def heads(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        x1_hat, st = out(torch.cat([x, x], dim=1), t).chunk(2, dim=1)
        return x1_hat, st

    return heads


def velocity_of_heads(out: Output, last: float) -> Velocity:
    """The velocity of IDFF's bridge x_t = t x1 + (1-t) x0 + s_t noise, exactly:

    u = E[x1 - x0 | x] + s_t' E[noise | x] = (x1_hat - x) / (1 - t) - st: the noise's share of the first term and of
    s_t' add up to s_t E[noise | x] / (2 t (1 - t)) = -st.

    Args:
        last: where a sampler's last step starts. The bridge keeps noise that vanishes like sqrt(1 - t): a straight
            last step would leave a seventh of what there is (2 grey levels with 10 steps). So from ``last`` on the
            velocity points at the data head, and an Euler step lands on it, for the same one evaluation.
    """
    heads = data_heads(out)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x1_hat, st = heads(x, t)
        landing = t >= last - 1e-6
        remaining = (1 - t).clamp(min=SMALLEST_REMAINDER).where(~landing, 1 - t)
        return (x1_hat - x) / expand(remaining, x) - expand((~landing).to(x.dtype), x) * st

    return velocity


def sde_of_velocity(out: Output, path: Path) -> Drift:
    """drift = u + g^2/2 score, which has the marginals of the ODE dx = u dt for any g (Song et al. 2011.13456).

    For an independent Gaussian source score = -(x - t u) / d(t), d = ``path.score_divisor``: 1 - t + sigma^2 for cfm,
    1 - (1 - sigma) t for fm, 1 - t for rf; derived in ``common.paths``. g^2 = 2 d(t) gives the bounded drift
    u - (x - t u), without a division.
    """

    def drift(x: Tensor, t: Tensor) -> Tensor:
        u = out(x, t)
        return u - (x - expand(t, x) * u)

    return drift, lambda t: math.sqrt(2 * path.score_divisor(t))


def sde_of_heads(out: Output, path: Path) -> Drift:
    """IDFF's bridge itself: with score = 2 st / sigma^2 and g = sigma the drift is u + st = (x1_hat - x) / (1 - t).

    The score is that of the path's own noise, so it holds for any coupling.
    """
    heads = data_heads(out)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        # Euler-Maruyama divides by no less than its step, and a larger divisor would leave its noise in the image.
        return (heads(x, t)[0] - x) / expand(1 - t, x).clamp(min=1e-6)

    return drift, lambda t: path.sigma


def no_velocity(out: Output, last: float) -> Velocity:
    """Raises ValueError: a network that knows the end of its paths does not know their velocity."""
    raise ValueError(
        "consistency-tuned weights (ect, ect_idff) know where a path ends, not its velocity: "
        "use --solver consistency, or the weights that they were tuned from"
    )


def no_sde(out: Output, path: Path) -> Drift:
    """Raises ValueError, as :func:`no_velocity` does."""
    return no_velocity(out, 1.0), lambda t: 0.0


def end_of_velocity(out: Output) -> Velocity:
    """D(x, t) = x + (1 - t) v(x, t): where the straight line along v ends; x itself at t = 1."""
    return lambda x, t: x + expand(1 - t, x) * out(x, t)


def end_of_heads(out: Output) -> Velocity:
    """The data head."""
    heads = data_heads(out)
    return lambda x, t: heads(x, t)[0]


# ---- times


def logit_normal(u: Tensor, mean: float, std: float) -> Tensor:
    """Logit t ~ N(mean, std^2) (Esser et al. 2024, 2403.03206, section 3.1)."""
    import torch

    return torch.sigmoid(mean + std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))


def mixed(u: Tensor, mean: float, std: float, share: float) -> Tensor:
    """A share of :func:`logit_normal`, the rest uniform; each part takes an interval of u, so it stays stratified."""
    return logit_normal(u / share, mean, std).where(u < share, (u - share) / (1 - share))


def edm(u: Tensor, mean: float, std: float) -> Tensor:
    """t = 1 / (1 + sigma), ln sigma ~ N(mean, std^2) (Karras et al. 2022, 2206.00364, table 1): logit t = -ln sigma."""
    return logit_normal(u, -mean, std)


def u_shaped(u: Tensor, rate: float) -> Tensor:
    """Density ~ exp(rate (t - 1/2)) + exp(-rate (t - 1/2)): both ends more often (Lee et al. 2024, 2405.20320).

    As their code has it, which mirrors exp(rate t) with probability 1/2. The distribution function
    1/2 + sinh(rate (t - 1/2)) / (2 sinh(rate / 2)) has a closed inverse.
    """
    import torch

    return 0.5 + torch.asinh((2 * u - 1) * math.sinh(rate / 2)) / rate


@dataclass(frozen=True)
class Times:
    """A distribution of training times; t = 1 is data.

    Attributes:
        quantile: from uniform numbers, (B,), and the parameters to times; it grows with them (``mixed``: in each of its
            parts), so that stratified numbers make stratified times.
        parameters: their usual values by name.
    """

    quantile: Callable[..., Tensor]
    parameters: Mapping[str, float]

    def of(self, **parameters: float | None) -> Callable[[Tensor], Tensor]:
        """The quantile function with its parameters; None: the usual value, and those of others are left out."""
        given = {key: value for key, value in parameters.items() if key in self.parameters and value is not None}
        return partial(self.quantile, **{**self.parameters, **given})


TIMES: dict[str, Times] = {
    "uniform": Times(lambda u: u, {}),
    "logit-normal": Times(logit_normal, {"mean": 0.6, "std": 1.2}),
    "mixed": Times(mixed, {"mean": 0.6, "std": 1.2, "share": 0.8}),
    "edm": Times(edm, {"mean": -1.2, "std": 1.2}),
    "u-shaped": Times(u_shaped, {"rate": 4.0}),
}


LEVEL_TIMES = Times(edm, {"mean": -1.1, "std": 2.0})  # of consistency tuning (Geng et al. 2024, 2406.14548)


def flow_map_times(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Times t < r of a flow map from uniform numbers, (B,): logit t ~ N(0.9, 1.6^2).

    Half of the intervals end near the data, logit r ~ N(4, 1.6^2), which serves a single step; the others anywhere
    after t, so that steps on any grid are known as well.

    Source: Luo et al. 2025 (2512.15657), their CIFAR-10 configuration with time reversed, for t and the first half.
    """
    import torch

    t = logit_normal(u, 0.9, 1.6).clamp(max=1 - 1e-4)
    r = torch.where(v < 0.5, logit_normal(2 * v, 4.0, 1.6), t + (1 - t) * (2 * v - 1))
    return t, torch.maximum(r, t + 1e-4).clamp(max=1)


def mean_flow_times(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Those of :func:`flow_map_times`, but half of the intervals are empty, r = t: there the velocity is learnt."""
    import torch

    t, r = flow_map_times(u, (2 * v - 1).clamp(min=0))
    return t, torch.where(v < 0.5, t, r)


# ---- the table


@dataclass(frozen=True)
class Method:
    """What is particular to a method.

    Attributes:
        loss: of ``common.losses``.
        path: the path of a sigma.
        coupling: how its paper pairs noise and data: a name of ``common.couplings``.
        entropy: regularisation of a Sinkhorn coupling, in squared distance, of a sigma; None: the coupling's own.
        constants: further arguments of the loss that are options of a run.
        needs_sigma: whether sigma has to be above 0.
        heads: outputs per channel of the data: 1 a velocity; 2 data and score, and the input is doubled, too.
        times: of a network with two times: (t, r) of two uniform numbers, (B,) each. None: one time.
        bare: whether the loss differentiates the network, which it is given as ``bare``, too.
        own_times: the distribution of its one time, in place of that of ``--times``; None: it takes what it is given.
        staged: whether the loss depends on the share of the training that is done, ``progress``.
        denoiser: of consistency-tuned networks: from the output to D(x, t), the end of the path through x.
        velocity: from the network's output to the velocity of its ODE; the number is where a last step starts.
        sde: drift and diffusion g(t) of an SDE with the same marginals, of output and path.
        any_coupling: whether ``sde`` holds for every coupling; False: only for independent noise and data, since
            elsewhere a velocity does not tell the score of its marginals.
        aliases: what other projects' checkpoints and command lines call it.
    """

    loss: Callable[..., Tensor]
    path: Callable[[float], Path]
    coupling: str = "independent"
    entropy: Callable[[float], float] | None = None
    constants: tuple[str, ...] = ()
    needs_sigma: bool = False
    heads: int = 1
    times: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    bare: bool = False
    own_times: Times | None = None
    staged: bool = False
    denoiser: Callable[[Output], Velocity] | None = None
    velocity: Callable[[Output, float], Velocity] = own_velocity
    sde: Callable[[Output, Path], Drift] = sde_of_velocity
    any_coupling: bool = False
    aliases: tuple[str, ...] = ()

    def held(self, velocity: Velocity) -> Velocity:
        """A velocity with a value at t = 1, too: a data head divides by 1 - t, and keeps its last one before that."""
        return (lambda x, t: velocity(x, t.clamp(max=1 - SMALLEST_REMAINDER))) if self.heads == 2 else velocity

    @property
    def own_solver(self) -> str:
        """The one that is made for such weights; empty: none is."""
        return "consistency" if self.denoiser else "flowmap" if self.times else ""

    def taught(self, teacher: Output, sigma: float, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of ``losses.taught``, by the output of a network as this method begins from."""
        end, path = (self.denoiser, self.path(sigma)) if self.denoiser else (end_of_velocity, BridgePath(0.0))
        return losses.taught(end(teacher), path, x0, x1, t)

    def trajectories(self, teacher: Output, sigma: float, x0: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Those of ``losses.trajectories``, by the output of a network as this method begins from."""
        assert self.denoiser
        return losses.trajectories(self.denoiser(teacher), self.path(sigma), x0, steps)

    def joint(self, coupling: str = "auto") -> str:
        """The coupling that ``--coupling`` means: "auto" is that of the method's paper."""
        return self.coupling if coupling == "auto" else coupling

    def regularisation(self, coupling: str, sigma: float) -> float | None:
        """Of a coupling, in squared distance; None: it has none, or ``common.couplings`` chooses it."""
        return self.entropy(sigma) if self.entropy and coupling == "sinkhorn" else None


def tuned(denoiser: Callable[[Output], Velocity], path: Callable[[float], Path], **more: Any) -> Method:
    """The record of a consistency-tuned network."""
    return Method(
        partial(losses.consistency, denoiser=denoiser),
        path,
        constants=("ect_q",),
        own_times=LEVEL_TIMES,
        staged=True,
        denoiser=denoiser,
        velocity=no_velocity,
        sde=no_sde,
        **more,
    )


def mapped(loss: Callable[..., Tensor], times: Callable[..., tuple[Tensor, Tensor]], **more: Any) -> Method:
    """The record of a network of the mean velocity between two times; at r = t it is the velocity."""
    return Method(loss, lambda sigma: LinearPath(0.0), constants=("weight_power",), times=times, **more)


METHODS: dict[str, Method] = {
    # Tong et al. 2024 (2302.00482): section 3.2.2 with independent pairs, 3.2.4 with those of optimal transport
    "cfm": Method(losses.velocity, LinearPath, aliases=("icfm",)),
    "otcfm": Method(losses.velocity, LinearPath, coupling="ot"),
    # Lipman et al. 2023 (2210.02747), equation 23
    "fm": Method(losses.velocity, LipmanPath),
    # Tong et al. 2024, section 3.2.5; a Schrodinger bridge of spread sigma has the entropic plan of 2 sigma^2
    "sbcfm": Method(
        losses.velocity, BridgePath, coupling="sinkhorn", entropy=lambda sigma: 2 * sigma**2, needs_sigma=True
    ),
    # Liu et al. 2023 (2209.03003), equation 1: the line itself, whatever sigma is
    "rf": Method(losses.velocity, lambda sigma: LinearPath(0.0)),
    # Rezaei et al. 2024 (2409.14599), section 3
    "idff": Method(
        losses.idff,
        BridgePath,
        coupling="ot",
        constants=("flow_weight", "data_loss", "score_target", "score_weight"),
        needs_sigma=True,
        heads=2,
        velocity=velocity_of_heads,
        sde=sde_of_heads,
        any_coupling=True,
    ),
    # Luo et al. 2025 (2512.15657)
    "flowmap": mapped(losses.flow_map, flow_map_times, staged=True),
    # Geng et al. 2025 (2512.02012)
    "meanflow": mapped(losses.mean_flow, mean_flow_times, bare=True),
    # Geng et al. 2024 (2406.14548), of a velocity network or of IDFF's; the latter's pairs share the bridge's noise
    "ect": tuned(end_of_velocity, lambda sigma: BridgePath(0.0)),
    "ect_idff": tuned(end_of_heads, BridgePath, needs_sigma=True, heads=2),
}
NAMES = {alias: name for name, method in METHODS.items() for alias in (name, *method.aliases)}


def method_of(name: str) -> Method:
    """The record of a method.

    Raises:
        ValueError: unknown method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def recorded_method(state: Mapping[str, Any]) -> dict[str, Any]:
    """Name, constants and coupling of a checkpoint's method; a file without the coupling has that of its options."""
    method = state["method"]
    if "coupling" in method:
        return dict(method)
    return {"coupling": method_of(method["name"]).joint((state.get("config") or {}).get("coupling", "auto")), **method}


def make_loss(name: str, sigma: float = 0.0, **constants: float | str) -> Callable[..., Tensor]:
    """The loss of a method with its path and constants bound: ``loss(net, x0, x1, t, noise, y=None) -> (B,)``.

    Args:
        name: of METHODS.
        sigma: noise of the path.
        constants: options of a run by name; those that the method's loss does not know are left out.

    Returns:
        The loss; with two times it takes ``r``, (B,), too, and of a ``staged`` method ``progress``.

    Raises:
        ValueError: unknown method, or a bridge without noise.
    """
    method = method_of(name)
    if method.needs_sigma and sigma <= 0:
        raise ValueError(f"--method {name} needs --sigma > 0 (its bridge has a spread of sigma sqrt(t (1 - t)))")
    path, options = method.path(sigma), {key: constants[key] for key in method.constants if key in constants}

    def loss(net: Any, x0: Tensor, x1: Tensor, t: Tensor, noise: Any, y: Any = None, **second: Any) -> Tensor:
        return method.loss(net, path, x0, x1, t, noise, y, **options, **second)

    return loss
