"""``--help``: what the script says of itself, then every option, in the sections of the source. No torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_args

from common.cli.flags import Names
from common.cli.values import field_types, kind_of

CONFIG_HELP = "Options from a .yaml, .json or .py file, or a run folder; flags come on top of it"
PRESET_HELP = "Where the options start; the defaults below are those of the preset given"
WIDEST = 110  # columns of prose
BARE: dict[str, Any] = {"frozen": True, "repr": False, "eq": False}  # methods take time to make
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
        box = dataclasses.make_dataclass("Box", fields, namespace={"__doc__": section.about or None}, **BARE)
        boxes.append((f"box{len(boxes)}", Annotated[box, tyro.conf.arg(name=section.title)], box()))
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
    lines: list[str] = []
    prose: list[str] = []

    def fill() -> None:
        lines.extend(textwrap.wrap(" ".join(prose), min(width, WIDEST), break_long_words=False, break_on_hyphens=False))
        prose.clear()

    for line in inspect.cleandoc(text).splitlines():
        if line and not _AS_IT_IS.match(line):
            prose.append(line)
            continue
        fill()
        lines.append(line)
    fill()
    return "\n".join([*lines, ""])


_AS_IT_IS = re.compile(r"\s|(python|pip|accelerate|torchrun)\b")


# ---- sections and texts of the source


def _options(cls: type, title: str = "", about: str = "") -> Iterator[tuple[str, Section, str]]:
    """Dotted name, section and text of each option; the options of a class within are a section of their own."""
    texts = _texts(cls)
    for name, hint in field_types(cls).items():
        dotted = f"{title}.{name}" if title else name
        if dataclasses.is_dataclass(hint):
            yield from _options(hint, dotted, inspect.getdoc(hint) or "")  # type: ignore[arg-type]
        else:
            section, text = texts.get(name, ("script", ""))
            yield dotted, Section(title or section, about), " ".join(text.split())


def _texts(cls: type) -> dict[str, tuple[str, str]]:
    """Section and help of each field, read from the source: ``# ---- section`` lines, and the text under a field."""
    texts: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _texts_of_module(base.__module__).get(base.__name__, {})
    return texts


@functools.cache
def _texts_of_module(name: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Those of the fields of each class of a module; nothing where there is no source."""
    try:
        source = inspect.getsource(sys.modules[name])
    except (OSError, TypeError, KeyError):  # a class made in an interactive session
        return {}
    titles = [(number, m[1]) for number, line in enumerate(source.splitlines(), 1) if (m := _SECTION.match(line))]
    return {node.name: _texts_of(node, titles) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _texts_of(class_: ast.ClassDef, titles: list[tuple[int, str]]) -> dict[str, tuple[str, str]]:
    texts = {}
    for node, following in zip(class_.body, [*class_.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = [title for number, title in titles if class_.lineno < number < node.lineno]
            value = following.value if isinstance(following, ast.Expr) else None
            text = str(value.value) if isinstance(value, ast.Constant) else ""
            texts[node.target.id] = (above[-1] if above else "script", text)
    return texts


_SECTION = re.compile(r"\s+# ---- (.+)")
