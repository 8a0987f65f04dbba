"""Command lines of the scripts: a frozen dataclass becomes flags, presets and configuration files. No torch.

:func:`parse` merges ``dataclass default < preset < -c FILE < flags`` and turns every mistake into one line. ``flags``
reads the words, ``files`` the file, ``values`` says what they may be (ranges stand beside the fields, see ``ranges``),
``help`` draws ``--help``, ``configs`` holds the classes of training and sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from common.cli.configs import TrainConfig, index_range
from common.cli.files import find_config, load_config, read_values, to_yaml
from common.cli.flags import ALIASES, Names, read_flags
from common.cli.values import field_types, leaves, shown, validate
from common.methods import METHODS

__all__ = ["index_range", "parse", "parse_with_extra", "to_yaml", "validate", "with_values"]

T = TypeVar("T")
LENGTHS = ("minutes", "epochs", "total_steps", "n_iters")  # options that say how long a run is


def parse(
    cls: type[T],
    presets: Mapping[str, T] | None = None,
    description: str = "",
    aliases: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
    words: Sequence[str] = (),
    read_file: Callable[[str], dict[str, Any]] | None = None,
) -> T:
    """Read a command line into an instance of a frozen dataclass.

    ``--preset NAME`` chooses the base (the first preset is the default), ``-c/--config FILE`` (.yaml, .json, or .py
    with ``get_config()``, or a run folder that holds config.yaml) comes on top, flags come last. Underscores and
    dashes, one dash or two, ``--flag/--no-flag`` and ``--flag=False``, ``1 2 2`` and ``1,2,2`` are all understood.
    Fields that are dataclasses are sections: ``--training.lr 1``, and mappings in a file. A length of the run that a
    file or a flag gives (steps, epochs, minutes) sets aside that of a preset, and of a file; another method sets aside
    what a preset says of its own (coupling, terms of the loss).

    Args:
        cls: Dataclass without required fields; the text under a field is its help, its ranges stand beside it, and a
            method ``check_together()`` raises ValueError where options do not fit together.
        presets: Instances by name.
        description: First lines of the help.
        aliases: More spellings, ``{"--net": "--weights"}``.
        argv: The arguments without the program; None: those of this process.
        words: Fields, or "preset", whose values may stand without their flags, in this order.
        read_file: Reads what ``-c`` names into values by dotted name, where :func:`read_values` is not enough.

    Raises:
        ValueError: an unknown flag or key, a value out of range, a file that cannot be read; one line.
        FileNotFoundError: no such configuration file.
    """
    spellings = {**ALIASES, **(aliases or {})}
    names = Names(leaves(cls), spellings, list(presets or ()))
    flags = read_flags(argv, names, words)
    base = presets[flags.pop("preset", next(iter(presets)))] if presets else cls()
    read = (read_file or partial(_read_file, cls, spellings))(flags.pop("config")) if "config" in flags else {}
    base = with_values(base, _of_other_methods(base, read | flags) | _one_length(names, read))
    if flags.pop("help", False):
        from common.cli.help import print_help

        print_help(cls, names, base, description)
    _check_one_length(flags)
    config = with_values(base, _one_length(names, flags))
    validate(config)
    return config


def _read_file(cls: type, aliases: Mapping[str, str], path: str) -> dict[str, Any]:
    file = find_config(path)
    return read_values(cls, load_config(file), f"{file}", aliases)


def _lengths(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of some values says how long a run is: section and name."""
    named = (name.rpartition(".") for name, value in values.items() if value is not None)
    return [(section + dot, name) for section, dot, name in named if name in LENGTHS]


def _one_length(names: Names, values: dict[str, Any]) -> dict[str, Any]:
    """Values that say how long a run is set aside the epochs and minutes of what they are laid over."""
    sections = {section for section, _ in _lengths(values)}
    others = (section + name for section in sections for name in ("epochs", "minutes"))
    return {name: None for name in others if name in names.hints} | values


def _check_one_length(flags: Mapping[str, Any]) -> None:
    """Refuse (ValueError) minutes beside steps or epochs on one command line."""
    given = _lengths(flags)
    for section, name in given:
        if (section, "minutes") in given and name != "minutes":
            both = " and ".join(f"--{section}{each} {shown(flags[section + each])}" for each in ("minutes", name))
            raise ValueError(f"{both}: give one length of the run")


def _of_other_methods(preset: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The class's values of what a preset says for its own method, where ``values`` give another one."""
    name = values.get("method")
    if name not in METHODS or name == getattr(preset, "method", name):
        return {}
    constants = {key for method in METHODS.values() for key in method.constants}
    own = METHODS[name].times or METHODS[name].own_times
    times = {key for key in field_types(type(preset)) if key.startswith("times") and own}
    theirs = {"coupling", *constants} | times
    return {key: getattr(type(preset), key) for key in theirs if hasattr(preset, key) and key not in values}


def with_values(tree: T, values: Mapping[str, Any]) -> T:
    """A dataclass with other values, given by dotted name."""
    for name, value in values.items():
        first, _, rest = name.partition(".")
        value = with_values(getattr(tree, first), {rest: value}) if rest else value
        tree = dataclasses.replace(tree, **{first: value})  # type: ignore[type-var]
    return tree


def parse_with_extra(
    cls: type[T], description: str = "", argv: Sequence[str] | None = None
) -> tuple[T, dict[str, Any]]:
    """:func:`parse` for a sampling script, whose ``-c FILE`` may also be the configuration of a training run.

    In such a file (one with keys that only :class:`TrainConfig` has) every key of ``TrainConfig`` describes the
    training, also those that both classes have: its batch size, seed and precision are not those of the sampling.

    Returns:
        The instance, and the training's keys: the network of weights that carry no description of their own.
    """
    extra: dict[str, Any] = {}

    def read(path: str) -> dict[str, Any]:
        file = find_config(path)
        raw = load_config(file)
        own, training = (Names(field_types(each), ALIASES) for each in (cls, TrainConfig))
        if any(own.key(str(key)) is None and training.key(str(key)) for key in raw):
            theirs = {key: value for key, value in raw.items() if training.key(str(key))}
            extra.update(read_values(TrainConfig, theirs, f"{file}", ALIASES))
            raw = {key: value for key, value in raw.items() if key not in theirs}
        return read_values(cls, raw, f"{file}", ALIASES)

    return parse(cls, description=description, argv=argv, read_file=read), extra
