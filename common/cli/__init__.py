"""Command lines of the scripts: a frozen dataclass becomes flags, presets and configuration files.

tyro reads the flags and prints the help. What stands here before it knows the spellings that other projects use,
merges ``dataclass default < preset < -c FILE < flags`` and turns every mistake into one line. No torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from common.cli.configs import TrainConfig
from common.cli.values import (
    BOOLS,
    allowed,
    convert,
    field_types,
    find_config,
    index_range,
    load_config,
    split,
    to_yaml,
    validate,
)

__all__ = ["CONFIG_HELP", "Names", "index_range", "parse", "parse_with_extra", "read_flags", "to_yaml", "validate"]

T = TypeVar("T")

# Other projects' spellings (absl's, flow-matching-pytorch's, torchcfm's); used where the class has the field.
_ALIASES = {
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

# ---- the entry points


def parse(
    cls: type[T],
    presets: Mapping[str, T] | None = None,
    description: str = "",
    aliases: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> T:
    """Read a command line into an instance of a frozen dataclass.

    ``--preset NAME`` chooses the base (the first preset is the default), ``-c/--config FILE`` (.yaml, .json, or .py
    with ``get_config()``, or a run folder that holds config.yaml) comes on top, flags come last. Underscores and
    dashes, one dash or two, ``--flag/--no-flag`` and ``--flag=False``, ``1 2 2`` and ``1,2,2`` are all understood.

    Args:
        cls: Dataclass without required fields; the text under a field is its help.
        presets: Instances by name.
        description: First lines of the help.
        aliases: More spellings, ``{"--net": "--weights"}``.
        argv: The arguments without the program; None: those of this process.

    Raises:
        ValueError: an unknown flag or key, a value out of range, a file that cannot be read; one line.
        FileNotFoundError: no such configuration file.
        SystemExit: after ``--help``.
    """
    return _parse(cls, presets, description, aliases, argv, training_keys=False)[0]


def parse_with_extra(
    cls: type[T],
    presets: Mapping[str, T] | None = None,
    description: str = "",
    aliases: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[T, dict[str, Any]]:
    """:func:`parse` for a sampling script, whose ``-c FILE`` may also be the configuration of a training run.

    In such a file (one with keys that only :class:`TrainConfig` has) every key of ``TrainConfig`` describes the
    training, also those that both classes have: its batch size, seed and precision are not those of the sampling.

    Returns:
        The instance, and the training's keys: the network of weights that carry no description of their own.
    """
    return _parse(cls, presets, description, aliases, argv, training_keys=True)


def _parse(
    cls: type[T],
    presets: Mapping[str, T] | None,
    description: str,
    aliases: Mapping[str, str] | None,
    argv: Sequence[str] | None,
    training_keys: bool,
) -> tuple[T, dict[str, Any]]:
    names = Names(field_types(cls), {**_ALIASES, **(aliases or {})}, list(presets or ()))
    flags = read_flags(argv, names)
    base = presets[flags.pop("preset", next(iter(presets)))] if presets else cls()
    extra: dict[str, Any] = {}
    if "config" in flags:
        values, extra = _read_file(flags.pop("config"), names, training_keys)
        base = dataclasses.replace(base, **values)  # type: ignore[type-var]
    if flags.pop("help", False):
        _print_help(cls, names, base, description)
    config = _by_tyro(cls, base, flags)
    validate(config)
    return config, extra


def _by_tyro(cls: type[T], base: T, flags: dict[str, Any]) -> T:
    """Let tyro put the flags, whose names and values have been checked, over the base."""
    import tyro

    args = []
    for name, value in flags.items():
        if isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, tuple):
            args += [f"--{name}", *map(str, value)]
        else:
            args.append(f"--{name}={value}")
    return tyro.cli(cls, args=args, default=base, use_underscores=True)


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
        near = _nearest(_bare(name), [*among, *self.aliases])
        return f"; the nearest is {dashes}{self.aliases.get(near, near)}" if near else ""


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _nearest(name: str, among: Iterable[str]) -> str:
    """The most similar name, by the whole of it or by what follows its last dot; empty when none is similar."""

    def likeness(other: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, other, name).ratio()
        last = difflib.SequenceMatcher(None, other.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return max(whole, last), whole

    best, other = max(((likeness(other), other) for other in among), default=((0.0, 0.0), ""))
    return other if best[0] >= 0.6 else ""  # difflib's own threshold


# ---- flags


def read_flags(argv: Sequence[str] | None, names: Names) -> dict[str, Any]:
    """Checked values by field; a later flag replaces an earlier one, as in a shell alias with defaults.

    Args:
        argv: The arguments without the program; None: those of this process.
        names: The flags, and their spellings.

    Raises:
        ValueError: an unknown flag, or a value that does not fit.
    """
    tokens = sys.argv[1:] if argv is None else list(argv)
    flags: dict[str, Any] = {}
    while tokens:
        token = tokens.pop(0)
        if not _is_flag(token):
            raise ValueError(f"unexpected argument {token!r}: options begin with --, and --help lists them")
        flag, equals, attached = token.partition("=")
        name, negated = _resolve(flag, names)
        hint = names.flags[name]
        if hint is bool:
            value = attached if equals else _take_bool(tokens)
            flags[name] = convert(flag, hint, value) is not negated
        elif get_origin(hint) is tuple:
            flags[name] = convert(flag, hint, attached if equals else _take_all(tokens))
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


def _take_bool(tokens: list[str]) -> str:
    return tokens.pop(0) if tokens and tokens[0].lower() in BOOLS else "true"


def _take_all(tokens: list[str]) -> list[str]:
    taken = []
    while tokens and not _is_flag(tokens[0]):
        taken.append(tokens.pop(0))
    return [part for token in taken for part in split(token)]


# ---- configuration files


def _read_file(path: str, names: Names, training_keys: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values for the class, and the keys of a training run where those are welcome and the file is one's."""
    file = find_config(path)
    raw = {str(key): value for key, value in load_config(file).items()}
    training = Names(field_types(TrainConfig), _ALIASES) if training_keys else names
    is_training = any(names.key(key) is None and training.key(key) is not None for key in raw)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        owner, target = (training, extra) if is_training and training.key(key) else (names, values)
        field = owner.key(key)
        if field is None:
            raise ValueError(f"{file}: unknown key {key}{names.suggestion(key, [*names.hints, *training.hints])}")
        target[field] = convert(f"{file}: {key}", owner.hints[field], value)
    return values, extra


# ---- help

CONFIG_HELP = "Options from a .yaml, .json or .py file, or a run folder; flags come on top of it"
_PRESET_HELP = "Where the options start; the defaults below are those of the preset given"


def _print_help(cls: type, names: Names, base: Any, description: str) -> None:
    """Print tyro's help, in the sections that the class's source is divided into, and leave with code 0."""
    import tyro

    def option(name: str, hint: Any, text: str, default: Any, **more: Any) -> tuple[str, Any, Any]:
        return name, Annotated[hint, tyro.conf.arg(help=text, **more)], default

    sections = {"configuration": [option("config", str, CONFIG_HELP, "", aliases=["-c"], metavar="FILE")]}
    if "preset" in names.flags:
        hint = names.flags["preset"]
        sections["configuration"].append(option("preset", hint, _PRESET_HELP, get_args(hint)[0]))
    texts = _texts(cls)
    for name, hint in names.hints.items():
        section, text = texts.get(name, ("script", ""))
        marked = option(name, hint, text, getattr(base, name), aliases=names.short(name))
        sections.setdefault(section, []).append(marked)
    boxes = []
    for index, (section, options) in enumerate(sections.items()):
        box = dataclasses.make_dataclass(f"Section{index}", options, frozen=True)
        boxes.append((f"section{index}", Annotated[box, tyro.conf.arg(name=section)], box()))
    whole = dataclasses.make_dataclass("Options", boxes, frozen=True)
    about = description or inspect.getdoc(cls)
    tyro.cli(whole, args=["--help"], description=about, use_underscores=True, config=(tyro.conf.OmitArgPrefixes,))


def _texts(cls: type) -> dict[str, tuple[str, str]]:
    """Section and help of each field, read from the source: ``# ---- section`` lines, and the text under a field."""
    texts: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            with contextlib.suppress(OSError, TypeError):  # no source: a class made in an interactive session
                texts |= _texts_of_source(textwrap.dedent(inspect.getsource(base)))
    return texts


def _texts_of_source(source: str) -> dict[str, tuple[str, str]]:
    body = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)).body
    titles = {number: m[1] for number, line in enumerate(source.splitlines(), 1) if (m := _SECTION.match(line))}
    texts = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = [title for number, title in titles.items() if number < node.lineno]
            value = following.value if isinstance(following, ast.Expr) else None
            text = str(value.value) if isinstance(value, ast.Constant) else ""
            texts[node.target.id] = (above[-1] if above else "script", text)
    return texts


_SECTION = re.compile(r"\s+# ---- (.+)")
