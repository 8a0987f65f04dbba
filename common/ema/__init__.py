"""Averages of weights: :class:`EMA`; ``python -m common.ema``, which chooses the length of a run's afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.training.averages import EMA

__all__ = ["EMA"]


def __getattr__(name: str) -> Any:
    """``EMA``, imported when it is asked for: the command's ``--help`` must not wait for torch."""
    if name != "EMA":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from common.training.averages import EMA

    return EMA
