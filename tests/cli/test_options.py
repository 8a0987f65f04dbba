"""The options of every script: each number has a range beside it, and each range refuses what is outside."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from common.cli import parse, validate, with_values
from common.cli.ranges import Above, AtLeast, AtMost, Below, Matches, OneOf
from common.cli.values import Kind, kind_of, leaves
from tiny import ROOT

FREE = {"gammas"}  # numbers that may be any
CODE = [file for file in sorted(ROOT.glob("*/**/*.py")) if file.relative_to(ROOT).parts[0] not in ("tests", ".venv")]


def classes() -> list[Any]:
    """The classes that command lines are parsed into, of all folders."""
    texts = {file: file.read_text(encoding="utf-8") for file in CODE}
    parsed = {name for text in texts.values() for name in re.findall(r"parse\w*\((?:\w+\.)?([A-Z]\w+)", text)}
    found = []
    for file, text in texts.items():
        names = parsed.intersection(re.findall(r"^class (\w+)", text, re.MULTILINE))
        module = load(file) if names else None
        found += [cls for name in sorted(names) if is_dataclass(cls := getattr(module, name))]
    return found


def load(file: Path) -> Any:
    """A module from its file; the names of some folders no import can say."""
    path, name = list(sys.path), f"options of {file.relative_to(ROOT).as_posix()}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


each = pytest.mark.parametrize("cls", classes(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}".split()[-1])


def refused(kind: Kind) -> list[tuple[Any, str]]:
    """Values of a field that its ranges refuse, one for each range, and the ends of the lines that say so."""
    found = []
    for mark in kind.ranges:
        match mark:
            case AtLeast():
                value = mark.bound - (1 if mark.besides != mark.bound - 1 else 2)
            case AtMost():
                value = mark.bound + 1
            case Above() | Below():
                value = mark.bound
            case OneOf() | Matches():
                value = "" if mark.allows("77") else "77"
            case _:
                raise AssertionError(f"say what is outside of {mark}")
        value = kind.base(value)
        found += [(value, str(mark))] if value not in kind.nothing else []
    return found + ([((value,), text) for value, text in refused(kind.element)] if kind.element else [])


def test_the_classes_of_all_folders_are_here():
    names = [cls.__name__ for cls in each.args[1]]
    assert names.count("Options") > 20 and {"TrainConfig", "GenConfig", "EvaluateConfig", "PrepareConfig"} <= {*names}


@each
def test_every_number_has_a_range(cls):
    for name, hint in leaves(cls).items():
        kind = kind_of(hint).element or kind_of(hint)
        assert kind.base not in (int, float) or kind.ranges or name in FREE, f"--{name} may be any number: say which"


@each
def test_ranges_refuse_what_is_outside(cls):
    for name, hint in leaves(cls).items():
        for value, text in refused(kind_of(hint)):
            words = ",".join(map(str, value)) if isinstance(value, tuple) else value
            with pytest.raises(ValueError) as made:
                validate(with_values(cls(), {name: value}))
            with pytest.raises(ValueError) as typed:
                parse(cls, argv=[f"--{name}={words}"])
            for line in (str(made.value), str(typed.value)):
                assert re.match(rf"--{re.escape(name)}\b", line) and line.endswith(text) and "\n" not in line


@each
def test_numbers_that_stand_for_none(cls):
    for name, hint in leaves(cls).items():
        for number in kind_of(hint).nothing:
            options = parse(cls, argv=[f"--{name}={number}"])
            assert reduce(getattr, name.split("."), options) is None
            assert parse(cls, argv=[f"--{name}=none"]) == options


def test_checks_return_nothing():
    """What changes options has another name."""
    heads = re.compile(r"^ *def ((?:_check|check|check_together)\([^)]*\)[^:]*):", re.MULTILINE)
    found = [head for file in CODE for head in heads.findall(file.read_text(encoding="utf-8"))]
    assert len(found) > 8 and all(head.endswith(") -> None") for head in found), found


def test_methods_have_their_other_names_in_every_folder():
    found = [cls for cls in classes() if "method" in cls.__dataclass_fields__]
    assert {"sst", "timeseries_examples", "2D-toys"} <= {
        Path(sys.modules[c.__module__].__file__ or "").parent.name for c in found
    }
    for cls in found:
        assert parse(cls, argv=["--method", "icfm"]).method == "cfm"


@each
def test_a_list_without_values_is_refused_where_it_says_nothing(cls):
    for name, hint in leaves(cls).items():
        kind, usual = kind_of(hint), reduce(getattr, name.split("."), cls())
        if kind.element and usual and not kind.may_be_empty:
            with pytest.raises(ValueError, match=f"--{re.escape(name)}: give one value or more, e.g. "):
                parse(cls, argv=[f"--{name}="])
