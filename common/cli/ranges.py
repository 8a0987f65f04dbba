"""Ranges; they stand beside the field that they belong to: ``columns: Annotated[int, AtLeast(2)] = 8``. No torch.

Those that many fields have are named below (:data:`Count`, :data:`Share`, ...).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar


@dataclass(frozen=True)
class Range:
    """What a number must be; ``words`` replace the end of the error's line, ``besides`` is allowed, too."""

    bound: float
    words: str = ""
    besides: float | None = None
    compare: ClassVar[Callable[[float, float], bool]] = operator.eq
    text: ClassVar[str] = "must be"

    def allows(self, value: float) -> bool:
        return value == self.besides or self.compare(value, self.bound)

    def __str__(self) -> str:
        besides = "" if self.besides is None else f", or {self.besides}"
        return self.words or f"{self.text} {self.bound}{besides}"


class AtLeast(Range):
    """``bound`` or more."""

    compare, text = operator.ge, "must be at least"


class AtMost(Range):
    """``bound`` or less."""

    compare, text = operator.le, "must be at most"


class Above(Range):
    """More than ``bound``."""

    compare, text = operator.gt, "must be above"


class Below(Range):
    """Less than ``bound``."""

    compare, text = operator.lt, "must be below"


@dataclass(frozen=True)
class OneOf:
    """One of some values; ``words`` follow their list in the error's line, ``others`` are more names for some."""

    choices: tuple[Any, ...]
    words: str = ""
    others: tuple[tuple[str, str], ...] = ()

    def allows(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"choose one of {', '.join(map(str, self.choices))}" + (f"; {self.words}" if self.words else "")


@dataclass(frozen=True)
class Matches:
    """A text of a form, given as a regular expression; ``words`` say it to people."""

    pattern: str
    words: str

    def allows(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class NoneFor:
    """A number that is read as None: older command lines and files have it in its place."""

    number: float


@dataclass(frozen=True)
class MayBeEmpty:
    """A list that says something without a value, too; others need one."""


# ---- those of many fields

Count = Annotated[int, AtLeast(1)]
Whole = Annotated[int, AtLeast(0)]
Seed = Annotated[int, AtLeast(0), Below(2**63)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Minutes = Annotated[float | None, Above(0), AtMost(10**7)]
AverageStd = Annotated[float, AtLeast(0.01), AtMost(0.28)]  # 0.289 is that of the plain mean of a run
Share = Annotated[float, AtLeast(0), Below(1)]
Split = Annotated[
    str,
    OneOf(
        ("train", "val", "test", "all"),
        others=(("training", "train"), ("validation", "val"), ("valid", "val"), ("dev", "val"), ("testing", "test")),
    ),
]
Device = Annotated[
    str, Matches(r"auto|cpu|mps|cuda(:\d+)?", "choose auto, cpu, cuda, mps or a numbered GPU such as cuda:1")
]
