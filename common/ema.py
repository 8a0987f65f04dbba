"""Exponential moving average of a network's weights, in float32, one fused operation per update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """A float32 shadow of a network's weights: shadow <- decay_k shadow + (1 - decay_k) weights.

    The decay warms up, decay_k = min(decay, 1 - (1 + k)^-warmup) for update k = 0, 1, ...: update 0 copies the
    weights and the average forgets the random start at any length of run. Parameters are averaged, buffers copied.

    Make it after the network is on its device and in its memory layout, and give it the bare network, not its
    compiled or distributed wrapper. Cost: 4 bytes per parameter; an update reads the weights and the shadow once.

    Args:
        model: network to average; the shadow starts as its present weights.
        decay: decay after the warm-up, in [0, 1).
        warmup: power of the warm-up; 0: none, constant decay.

    Source: Polyak & Juditsky 1992 for averaging; Karras et al. 2024 (2312.02696), section 3, for why the length of
    the average should grow with the run.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: float = 0.75) -> None:
        self.model, self.decay, self.warmup = model, decay, warmup
        self.updates = 0
        self._backup: list[Tensor] | None = None
        self._parameters = list(model.parameters())
        # clone() keeps the strides: the fused update and applied() need weights and shadow in the same layout
        self._shadow = [p.detach().to(torch.float32, copy=True) for p in self._parameters]

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
        weight = 1 - self.decay_at(self.updates)
        torch._foreach_lerp_(self._shadow, weights, weight)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

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
        """What a resumed run needs: the number of updates and the shadow by parameter name (shared, not copied)."""
        names = [name for name, _ in self.model.named_parameters()]
        return {"updates": self.updates, "shadow": dict(zip(names, self._shadow, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, bit for bit; decay and warm-up stay those of this object.

        Raises:
            ValueError: the state belongs to another network.
        """
        ours, theirs = self.state_dict()["shadow"], state["shadow"]
        names = ours | theirs
        wrong = [n for n in names if getattr(ours.get(n), "shape", None) != getattr(theirs.get(n), "shape", None)]
        if wrong:
            raise ValueError(
                f"the EMA state belongs to another network: {len(wrong)} parameters differ, first {wrong[0]}; "
                f"continue with the network options of the run that wrote it, or start a new run with another --out"
            )
        for name, average in ours.items():
            average.copy_(theirs[name])
        self.updates = int(state["updates"])
