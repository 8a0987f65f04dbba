"""Logs of one JSON object per line: a run's metrics, rows of tables, journals. No torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Required, TypedDict

from common.runtime import atomic_write, checked, reading


class Row(TypedDict, total=False):
    """A row of a log that is cut where a run goes on."""

    step: int


class Metrics(TypedDict, total=False):
    """A row of a run's metrics.jsonl, as far as it is drawn."""

    step: Required[int]
    images_seen: int
    loss: float | None
    val_loss: float | None
    images_per_s: float | None
    seconds: float | None


class JsonLines:
    """A log of one JSON object per line. Each row is with the operating system when :meth:`append` returns."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Numbers of numpy and torch become plain ones; nan and inf become null, as JSON has neither."""
        text = json.dumps(_plain(row)) + "\n"
        if not self._checked:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = ("\n" if self._is_torn() else "") + text
            self._checked = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)

    def read(self, kind: Any = dict) -> list[dict[str, Any]]:
        """All complete rows; an empty list when there is no file.

        Raises:
            ValueError: a row is not of the kind, as ``common.runtime.checked`` takes it, or the file is not text.
        """
        if not self.path.exists():
            return []
        rows = []
        with reading(self.path, "delete the line, or restore the file from a copy"):
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
                with contextlib.suppress(json.JSONDecodeError):  # torn by a crash
                    rows.append(checked(json.loads(line), kind, f"line {number}"))
        return rows

    def truncate_after(self, step: int) -> None:
        """Drop the rows beyond a step and a line torn by a crash, so that a resumed run logs each step once."""
        if not self.path.exists():
            return
        lines = [json.dumps(row) + "\n" for row in self.read(Row) if row.get("step", step) <= step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def _is_torn(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0 and self.path.read_bytes()[-1:] != b"\n"


def _plain(value: Any) -> Any:
    """A value that JSON can hold: python numbers for numpy's and torch's scalars, None for nan and inf."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
