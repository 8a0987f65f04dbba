"""The words of a command line: which flag each spelling means, and the values that are given. No torch."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from common.cli.values import BOOLS, allowed, convert, kind_of, split

# Other projects' spellings (absl's, flow-matching-pytorch's, torchcfm's); used where the class has the field.
ALIASES = {
    "e": "out",
    "exp_dir": "out",
    "output_dir": "out",
    "mp": "mixed_precision",
    "model": "method",
    "sampling_steps": "n_steps",
    "integration_steps": "n_steps",
    "steps": "n_steps",
    "sampling_method": "solver",
    "integration_method": "solver",
    "bspp": "batch_size",
    "batch_size_fid": "batch_size",
    "num_channels": "num_channel",
}

# ---- names of flags and keys


class Names:
    """What each spelling of a flag or of a key in a file means.

    Args:
        hints: Types of the fields by name; a field inside a section has a dotted name, ``training.lr``.
        aliases: More spellings, ``{"mp": "mixed_precision"}``; those of fields that are not there are left out.
        presets: Choices of ``--preset``.
    """

    def __init__(
        self, hints: Mapping[str, Any], aliases: Mapping[str, str] | None = None, presets: Sequence[str] = ()
    ) -> None:
        self.hints = dict(hints)
        self.flags: dict[str, Any] = {**self.hints, "config": str, "help": bool}
        if presets:
            self.flags["preset"] = Literal[tuple(presets)]
        known = {"c": "config", "h": "help", **(aliases or {})}
        spellings = {_bare(name): _bare(field) for name, field in known.items()}
        self.aliases = {name: to for name, to in spellings.items() if to in self.flags and name not in self.hints}

    def flag(self, name: str) -> str | None:
        """The flag of a spelling such as ``--n-steps`` or ``-mp``; None when there is none."""
        name = self.aliases.get(_bare(name), _bare(name))
        return name if name in self.flags else None

    def key(self, name: str) -> str | None:
        """The field of a key in a file; None when there is none."""
        field = self.flag(name)
        return field if field in self.hints else None

    def short(self, field: str) -> list[str]:
        """The short flags of a field, for the help; the long ones of other projects would only fill it."""
        return [f"-{name}" for name, to in self.aliases.items() if to == field and len(name) <= 2]

    def suggestion(self, name: str, among: Iterable[str], dashes: str = "") -> str:
        """The end of an error line: the name most like the one given, if there is any."""
        full = {other: other for other in [*among, *self.aliases]}
        names = {_last(other): other for other in full} | full  # seqrf's --lr is --config.training.lr
        near = difflib.get_close_matches(_bare(name), names, 1) or difflib.get_close_matches(_last(name), names, 1)
        return f"; the nearest is {dashes}{self.aliases.get(names[near[0]], names[near[0]])}" if near else ""


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _last(name: str) -> str:
    return _bare(name).rpartition(".")[2]


# ---- flags


def read_flags(argv: Sequence[str] | None, names: Names, words: Sequence[str] = ()) -> dict[str, Any]:
    """Checked values by field; a later flag replaces an earlier one, as in a shell alias with defaults.

    Args:
        argv: The arguments without the program; None: those of this process.
        words: Flags that may be left out: a word where a flag should be is the value of the next of them. A list
            adds up, wherever it stands: ``a --runs b --out x c`` are three runs.

    Raises:
        ValueError: an unknown flag, or a value that does not fit.
    """
    tokens, unnamed = sys.argv[1:] if argv is None else list(argv), list(words)
    flags: dict[str, Any] = {}
    while tokens:
        bare = not _is_flag(tokens[0]) and bool(unnamed)  # an error does not name a flag that was not typed
        if bare:
            is_list = kind_of(names.flags[unnamed[0]]).element
            tokens.insert(0, f"--{unnamed[0] if is_list else unnamed.pop(0)}")
        token = tokens.pop(0)
        if not _is_flag(token):
            raise ValueError(f"unexpected argument {token!r}: options begin with --, and --help lists them")
        flag, equals, attached = token.partition("=")
        name, negated = _resolve(flag, names)
        hint, flag = names.flags[name], name if bare else flag
        if kind_of(hint).base is bool:
            stated = bool(tokens) and tokens[0].lower() in BOOLS
            value = attached if equals else tokens.pop(0) if stated else "true"
            flags[name] = convert(flag, hint, value) is not negated
        elif kind_of(hint).element:
            values = convert(flag, hint, attached if equals else _take_all(tokens))
            flags[name] = (*flags.get(name, ()), *values) if name in words else values
        elif equals or (tokens and not _is_flag(tokens[0])):
            flags[name] = convert(flag, hint, attached if equals else tokens.pop(0))
        else:
            raise ValueError(f"{flag} needs a value: {allowed(hint)}")
    return flags


def _resolve(flag: str, names: Names) -> tuple[str, bool]:
    """The field of a flag and whether the flag denies it: --no-flip, absl's --noflip, tyro's --data.no_flip."""
    name = names.flag(flag)
    if name is not None:
        return name, False
    match = re.fullmatch(r"(.*\.)?no_?(.+)", _bare(flag))
    name = names.key((match[1] or "") + match[2]) if match else None
    if name is not None and names.hints[name] is bool:
        return name, True
    raise ValueError(f"unknown flag {flag}{names.suggestion(flag, names.flags, '--')} (--help lists all)")


def _is_flag(token: str) -> bool:
    """Whether a token is a flag rather than a value such as -1 or -.5."""
    return re.match(r"--?[A-Za-z]", token) is not None


def _take_all(tokens: list[str]) -> list[str]:
    taken = []
    while tokens and not _is_flag(tokens[0]):
        taken.append(tokens.pop(0))
    return [part for token in taken for part in split(token)]
