"""Moving averages of a network's weights, in float32, one fused operation per update and average.

The power-function average of relative standard deviation ``std`` weighs the weights at time tau <= t by
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1); its length is a share of the run, whatever that becomes. From a few
snapshots of two of them :func:`combination` makes the average of any length afterwards.

Source: Karras et al. 2024 (2312.02696), section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# ---- power functions


def exponent(std: float) -> float:
    """gamma of the power function whose standard deviation is ``std`` of the time that it reaches over.

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), so gamma is the largest root of
    gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2.

    Source: Karras et al. 2024, section 3.1 and appendix C.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"std {std}: give one above 0 and below {12**-0.5:.3f}, which is the plain mean of a run")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def power_decay(gamma: float, t: int) -> float:
    """Decay of update t = 1, 2, ...: (1 - 1/t)^(gamma + 1).

    The weights of step k, taken to hold from k - 1 to k, then count by the integral of p over that time, exactly.

    Source: Karras et al. 2024, section 3.1.
    """
    return (1 - 1 / t) ** (gamma + 1)


def inner_product(gamma_a: Any, t_a: Any, gamma_b: Any, t_b: Any) -> Any:
    """Integral of p_a p_b over time, of power functions that end at t_a and t_b; arrays are broadcast.

    (gamma_a + 1) (gamma_b + 1) (t_first / t_last)^gamma_last / ((gamma_a + gamma_b + 1) t_last).

    Source: Karras et al. 2024, appendix C.
    """
    first, last, of_last = np.minimum(t_a, t_b), np.maximum(t_a, t_b), np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * (first / last) ** of_last / ((gamma_a + gamma_b + 1) * last)


def combination(stds: Sequence[float], times: Sequence[float], std: float) -> tuple[np.ndarray, float]:
    """The sum of snapshots of power-function averages that is nearest to one of another length.

    Least squares between profiles, A X = B of their inner products, with sum X = 1: weights that do not change are
    their own average, of whatever length; without it (as published) the sum may be 2% short, and all weights with it.

    Args:
        stds, times: of n snapshots; the latest time is the end of the new average.
        std: of the new average.

    Returns:
        X of shape (n,), and the error of the profile, relative in the L2 norm.

    Source: Karras et al. 2024, section 3.2 and appendix C.
    """
    gammas, ends, gamma = np.array([exponent(each) for each in stds]), np.array(times) / max(times), exponent(std)
    products = inner_product(gammas[:, None], ends[:, None], gammas, ends)
    wanted, norm = inner_product(gammas, ends, gamma, 1.0), inner_product(gamma, 1.0, gamma, 1.0)
    system = np.pad(products, (0, 1), constant_values=1.0)  # the last row and column are Lagrange's
    system[-1, -1] = 0
    x = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=None)[0][:-1]
    error = max(0.0, x @ products @ x - 2 * x @ wanted + norm) / norm
    return x, float(error**0.5)


# ---- averages


class EMA:
    """A float32 shadow of a network's weights: shadow <- decay_k shadow + (1 - decay_k) weights.

    The decay warms up, decay_k = min(decay, 1 - (1 + k)^-warmup) for update k = 0, 1, ...: update 0 copies the
    weights and the average forgets the random start at any length of run. Parameters are averaged, buffers copied.

    Make it after the network is on its device and in its memory layout, and give it the bare network, not its
    compiled or distributed wrapper. Cost: 4 bytes per parameter; an update reads the weights and the shadow once.

    Args:
        model: its present weights are what the shadow starts as.
        decay: after the warm-up, in [0, 1).
        warmup: power of the warm-up; 0: none, constant decay.
        std: relative standard deviations of power-function averages that are kept beside it, see :meth:`snapshot`;
            each costs as much memory and time again.

    Source: Polyak & Juditsky 1992 for averaging; Karras et al. 2024 (2312.02696), section 3, for why the length of
    the average should grow with the run.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, warmup: float = 0.75, std: Sequence[float] = ()
    ) -> None:
        self.model, self.decay, self.warmup = model, decay, warmup
        self.updates = 0
        self._backup: list[Tensor] | None = None
        self._parameters = list(model.parameters())
        self._shadow = self._copies()
        self._exponents = {each: exponent(each) for each in std}
        self._power = {each: self._copies() for each in std}

    def _copies(self) -> list[Tensor]:
        """The weights in float32; a copy keeps the strides: updates and applied() need the same layout."""
        return [p.detach().to(torch.float32, copy=True) for p in self._parameters]

    def _named(self, shadow: Sequence[Tensor]) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, shadow, strict=True))

    def decay_at(self, k: int) -> float:
        """The decay of update k, counted from 0."""
        return min(self.decay, 1 - (1 + k) ** -self.warmup) if self.warmup > 0 else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the present weights; call once after every optimizer step."""
        if self._backup is not None:
            raise RuntimeError("EMA.update() inside applied(): the network holds the averaged weights there")
        # .float() is the tensor itself when it is float32 already
        weights = [p.detach().float() for p in self._parameters]
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        lerp(self._shadow, weights, 1 - self.decay_at(self.updates))
        self.updates += 1
        for std, shadow in self._power.items():
            lerp(shadow, weights, 1 - power_decay(self._exponents[std], self.updates))

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Let the network compute with the averaged weights: ``with ema.applied(): ...``; undone on errors too.

        Parameters are redirected to the shadow's memory, nothing is copied; do not train inside.
        """
        if self._backup is not None:
            raise RuntimeError("EMA.applied() is already in force")
        self._backup = [p.data for p in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._shadow, strict=True):
                parameter.data = average.to(parameter.dtype)
            yield self.model
        finally:
            for parameter, weight in zip(self._parameters, self._backup, strict=True):
                parameter.data = weight
            self._backup = None

    def module_state_dict(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A state dict for the network that holds the averaged weights (and the network's buffers as they are).

        Args:
            dtype: type of the floating-point tensors, e.g. torch.float16 for small files. None: float32 weights that
                share the shadow's memory, so that saving them beside ``state_dict()`` costs no space.
        """
        averages = {id(p): average for p, average in zip(self._parameters, self._shadow, strict=True)}
        tensors: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        state = {key: averages.get(id(value), value).detach() for key, value in tensors.items()}
        if dtype is None:
            return state
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of updates and the shadow by parameter name (shared, not copied).

        Where there are power-function averages these, too: "power", by std.
        """
        power = {std: self._named(shadow) for std, shadow in self._power.items()}
        return {"updates": self.updates, "shadow": self._named(self._shadow)} | ({"power": power} if power else {})

    def snapshot(self) -> dict[float, dict[str, Tensor]]:
        """The power-function averages by std, copied to float16."""
        return {std: {k: x.half() for k, x in self._named(shadow).items()} for std, shadow in self._power.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, bit for bit; decay and warm-up stay those of this object.

        Raises:
            ValueError: the state belongs to another network, or has other power functions.
        """
        ours, power = self.state_dict(), state.get("power", {})
        if list(power) != list(self._power):
            raise ValueError(f"the EMA state has power functions {list(power)}, these are {list(self._power)}")
        for std, shadow in self._power.items():
            self._load(self._named(shadow), power[std])
        self._load(ours["shadow"], state["shadow"])
        self.updates = int(state["updates"])

    @staticmethod
    def _load(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
        """Copy one average into another."""
        names = ours | theirs
        wrong = [n for n in names if getattr(ours.get(n), "shape", None) != getattr(theirs.get(n), "shape", None)]
        if wrong:
            raise ValueError(
                f"the EMA state belongs to another network: {len(wrong)} parameters differ, first {wrong[0]}; "
                f"continue with the network options of the run that wrote it, or start a new run with another --out"
            )
        for name, average in ours.items():
            average.copy_(theirs[name])
