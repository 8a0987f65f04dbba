"""``--help``: what the script says of itself, then every option, in the sections of the source. No torch."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_args

from common.cli.flags import Names
from common.cli.values import field_types, kind_of

CONFIG_HELP = "Options from a .yaml, .json or .py file (which is run), or a run folder; flags come on top of it"
PRESET_HELP = "Where the options start; the defaults below are those of the preset given"
WIDEST = 110  # columns of prose
BARE: dict[str, Any] = {"frozen": True, "repr": False, "eq": False, "namespace": {"__doc__": "-"}}  # the rest is slow
PROSE = re.compile(r"(?!(python|pip|accelerate|torchrun)\b)\S")  # how a line begins that is no command
LONGEST = 60  # characters of names that stand beside a flag; more are told in its text


class Section(NamedTuple):
    """A box of options."""

    title: str
    about: str = ""


def print_help(cls: type, names: Names, base: Any, description: str) -> NoReturn:
    """Print the description and tyro's list of options, with the values of ``base`` as defaults; leave with code 0."""
    import tyro

    sections = {Section("configuration"): [_option("config", str, CONFIG_HELP, "", aliases=["-c"], metavar="FILE")]}
    if "preset" in names.flags:
        hint = names.flags["preset"]
        sections[Section("configuration")].append(_option("preset", hint, PRESET_HELP, get_args(hint)[0]))
    for name, section, text in _options(cls):
        value = functools.reduce(getattr, name.split("."), base)
        option = _option(name, names.hints[name], text, value, aliases=names.short(name))
        sections.setdefault(section, []).append(option)
    boxes = []
    for section, options in sections.items():
        fields = [(f"option{k}", hint, value) for k, (hint, value) in enumerate(options)]
        box = dataclasses.make_dataclass("Box", fields, **BARE)
        about = tyro.conf.arg(name=section.title, help=section.about)  # else tyro looks for a text in the source
        boxes.append((f"box{len(boxes)}", Annotated[box, about], box()))
    whole = dataclasses.make_dataclass("Options", boxes, **BARE)
    print(laid_out(description or inspect.getdoc(cls) or "", shutil.get_terminal_size().columns))
    tyro.cli(whole, args=["--help"], description="", use_underscores=True, config=(tyro.conf.OmitArgPrefixes,))
    raise SystemExit(0)


def _option(name: str, hint: Any, text: str, default: Any, **more: Any) -> tuple[Any, Any]:
    """Annotation and value of a field for tyro: a bool, a Literal or a str, for other types it imports typeguard."""
    import tyro

    kind = kind_of(hint)
    choices = ", ".join(map(str, kind.names.choices)) if kind.names else ""
    if kind.base is bool or 0 < len(choices) <= LONGEST:
        plain = Literal[kind.names.choices] if kind.names else bool
        return Annotated[plain, tyro.conf.arg(name=name, help=text, **more)], default
    text += f". One of {choices}" if choices else ""
    word = "NAME" if choices else (kind.element or kind).base.__name__.upper()
    word = f"[{word} [{word} ...]]" if kind.element else word
    more = {"metavar": word, "help_behavior_hint": f"(default: {_as_typed(default)})", **more}
    return Annotated[str, tyro.conf.arg(name=name, help=text, **more)], ""


def _as_typed(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value is None else str(value) or "''"


def laid_out(text: str, width: int) -> str:
    """A description for a terminal: prose is filled, a command or an indented line stays a line of its own."""
    fill = textwrap.TextWrapper(min(width, WIDEST), break_long_words=False, break_on_hyphens=False).wrap
    lines: list[str] = []
    for is_prose, group in itertools.groupby(inspect.cleandoc(text).splitlines(), lambda line: bool(PROSE.match(line))):
        part = list(group)
        lines += fill(" ".join(part)) if is_prose else part
    return "\n".join([*lines, ""])


# ---- sections and texts of the source


def _options(cls: type, title: str = "", about: str = "") -> Iterator[tuple[str, Section, str]]:
    """Dotted name, section and text of each option; the options of a class within are a section of their own."""
    texts: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        texts |= _texts(base) if dataclasses.is_dataclass(base) else {}
    for name, hint in field_types(cls).items():
        dotted = f"{title}.{name}" if title else name
        if dataclasses.is_dataclass(hint):
            yield from _options(hint, dotted, inspect.getdoc(hint) or "")  # type: ignore[arg-type]
        else:
            section, text = texts.get(name, ("script", ""))
            yield dotted, Section(title or section, about), " ".join(text.split())


def _texts(cls: type) -> dict[str, tuple[str, str]]:
    """Section and help of a class's fields, from its source: ``# ---- section`` lines, and the text under a field."""
    texts, section = {}, "script"
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # a class made in an interactive session
        return {}
    for title, name, text in _SECTION_OR_FIELD.findall(source):
        section = title or section
        if name:
            texts[name] = (section, text)
    return texts


# a field may go on in lines further in, up to a closing bracket; its text stands under it
_SECTION_OR_FIELD = re.compile(
    r'^    (?:# ---- (.+)|(\w+): .*\n(?:     .*\n|    [\])}].*\n)*(?:    """((?:.|\n)*?)""")?)', re.MULTILINE
)
