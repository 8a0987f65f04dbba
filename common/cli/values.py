"""Values: from the text of a flag, or what a file holds, to the type of the field; and their checks. No torch.

``X | None`` also takes the word none, which is YAML's null; to a list that may be empty it is the empty one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from common.cli.ranges import MayBeEmpty, NoneFor, OneOf

# ---- kinds of fields


@dataclass(frozen=True)
class Kind:
    """An annotation taken apart."""

    base: Any  # the type without Annotated and | None
    ranges: tuple[Any, ...]  # what a value must be, beside being of this type
    names: OneOf | None  # to choose from, where these are all that there is
    element: Kind | None  # of a tuple, where it is one of any length
    optional: bool  # None is a value
    nothing: tuple[float, ...]  # numbers that stand for None
    may_be_empty: bool  # a list without values is one


@functools.cache
def kind_of(hint: Any) -> Kind:
    """An annotation taken apart."""
    marks: list[Any] = []
    optional = False
    while (origin := get_origin(hint)) in (Annotated, Union, types.UnionType):
        if origin is Annotated:
            hint, *more = get_args(hint)
            marks += more
        else:
            optional = True
            hint = next(each for each in get_args(hint) if each is not type(None))
    listed = (mark for mark in marks if isinstance(mark, OneOf) and hint is str)
    return Kind(
        base=hint,
        ranges=tuple(mark for mark in marks if hasattr(mark, "allows")),
        names=OneOf(get_args(hint)) if origin is Literal else next(listed, None),
        element=kind_of(get_args(hint)[0]) if origin is tuple and get_args(hint)[1:] == (...,) else None,
        optional=optional,
        nothing=tuple(mark.number for mark in marks if isinstance(mark, NoneFor)),
        may_be_empty=any(isinstance(mark, MayBeEmpty) for mark in marks),
    )


def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """The annotations of all options below a dataclass; one inside a section has a dotted name, ``training.lr``."""
    hints: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        hints |= leaves(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {prefix + name: hint}  # type: ignore[arg-type]
    return hints


# ---- conversion

BOOLS = {"true": True, "t": True, "yes": True, "on": True, "1": True}
BOOLS |= {"false": False, "f": False, "no": False, "off": False, "0": False}


def convert(what: str, hint: Any, value: Any) -> Any:
    """A value of a flag (text) or of a file as the field's type; its range is left to :func:`validate`.

    Raises:
        ValueError: the value does not fit; ``what`` names the flag, or the file and its key.
    """
    try:
        return _value(kind_of(hint), value)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise ValueError(f"{what} {shown(value)}: {allowed(hint)}") from None


def _value(kind: Kind, value: Any) -> Any:
    if kind.optional and str(value).lower() in ("none", "null"):
        return None
    if kind.names:
        return _to_choice(kind.names, value)
    if kind.element:
        parts = split(value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if kind.may_be_empty and [str(part).lower() for part in parts] in (["none"], ["null"]):
            return ()
        return tuple(_value(kind.element, part) for part in parts)
    value = _SCALARS[kind.base](value) if kind.base in _SCALARS else value
    return None if value in kind.nothing else value


def split(text: str) -> list[str]:
    """Parts of ``1,2,2``, ``[1, 2, 2]`` or ``1 2 2``."""
    return re.sub(r"[\[\](),]", " ", text).split()


def _to_choice(names: OneOf, value: Any) -> str:
    if value is None or value is False:  # YAML's reading of `null` and of a bare `no`
        value = "none" if value is None else "no"
    if value not in names.choices:
        value = str(value).lower()  # IDFF's scripts say --model IDFF
        value = dict(names.others).get(value, value)
    if value not in names.choices:
        raise ValueError
    return value


def _to_int(value: Any) -> int:
    """Whole numbers, also as 4e5 and 400_000."""
    value = _plain(value)
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        if float(value) != int(float(value)):
            raise
        return int(float(value))


def _plain(value: Any) -> Any:
    """What may be read as a number: no bool, and no text in other scripts' digits, which Python would read, too."""
    if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()):
        raise ValueError
    return value


def _to_str(value: Any) -> str:
    """Text; nothing (YAML's null) is the empty one, and a list or mapping is a mistake."""
    if not isinstance(value, (str, int, float, Path, type(None))) or isinstance(value, bool):
        raise TypeError
    return "" if value is None else str(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: value if isinstance(value, bool) else BOOLS[str(value).lower()],  # absl's, YAML's, the shell's
    int: _to_int,
    float: lambda value: float(_plain(value)),  # also those that YAML takes for text, such as 2e-4
    str: _to_str,
    Path: lambda value: Path(_to_str(value)),
}


def allowed(hint: Any) -> str:
    """What a field takes, in words."""
    kind = kind_of(hint)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    text = f"give {words.get(kind.base, 'a value')}"
    if kind.element:
        examples = {int: "whole numbers such as 1,2,2", float: "numbers such as 0.9,0.99"}
        text = f"give {examples.get(kind.element.base, 'values such as a,b')}"
    return str(kind.names or (kind.element and kind.element.names) or text) + (
        ", or none" if kind.optional or kind.may_be_empty else ""
    )


def shown(value: Any) -> str:
    """A value for an error line, not longer than it needs to be."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = value if isinstance(value, str) and value else repr(value)
    return textwrap.shorten(text, 60, placeholder="...")


# ---- checks


def validate(config: Any, prefix: str = "") -> None:
    """Check types and ranges of an instance's options, and of those in its sections; then its own ``check_together()``.

    Raises:
        ValueError: one line that names the flag, what was given and what is allowed.
    """
    for name, hint in field_types(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            validate(value, f"{prefix}{name}.")
            continue
        flag = f"--{prefix}{name}"
        if convert(flag, hint, value) not in (value,):  # made by hand; nan is itself, though not equal to itself
            raise ValueError(f"{flag} {value!r}: {allowed(hint)}")
        usual = getattr(type(config), name, ())
        if value == () != usual and not kind_of(hint).may_be_empty:
            raise ValueError(f"{flag}: give one value or more, e.g. {shown(usual)}")
        _check_ranges(flag, kind_of(hint), value)
    if hasattr(config, "check_together"):
        config.check_together()


def _check_ranges(flag: str, kind: Kind, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag} {value}: must be a finite number")
    for each in kind.ranges if value is not None else ():
        if not each.allows(value):
            raise ValueError(f"{flag} {shown(value)}: {each}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{flag} {shown(value)}: must be below 2^63")
    if kind.element and isinstance(value, tuple):
        for part in value:
            _check_ranges(flag, kind.element, part)
