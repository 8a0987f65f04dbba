"""Configuration files: what ``-c`` finds and reads, and the YAML that it reads back. No torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli.flags import Names
from common.cli.values import convert, field_types, shown

LARGEST = 20_000  # bytes of a file of options, and values in it


def to_yaml(config: Any) -> str:
    """The options as YAML of plain scalars and lists; ``-c`` reads it back to an equal instance."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def find_config(path: str, beside: Path | None = None) -> Path:
    """The file of ``-c``: a path, or a run folder that holds config.yaml; what is not there is looked for ``beside``.

    Raises:
        FileNotFoundError: it is in neither.
    """
    given = Path(path).expanduser()
    tried = [given] if beside is None else [given, beside / given]
    tried = [file / "config.yaml" if file.is_dir() else file for file in tried]
    for file in tried:
        if file.is_file():
            return file
    raise FileNotFoundError(f"there is no configuration file {tried[0]}: give a .yaml, .json or .py, or a run folder")


def load_config(file: Path) -> Mapping[Any, Any]:
    """The mapping in a configuration file; whatever goes wrong in it becomes one line that names the file."""
    readers = {".yaml": _load_yaml, ".yml": _load_yaml, ".json": _load_json, ".py": _load_python}
    if file.suffix not in readers:
        raise ValueError(f"{file}: a configuration file ends in {', '.join(readers)}")
    try:
        raw = readers[file.suffix](file)
    except OSError:
        raise
    except (Exception, SystemExit) as error:  # how a script ends is not for its file of options to say
        raise ValueError(f"{file}: not readable as {file.suffix}: {_reason(error)}") from error
    if isinstance(raw, Mapping):
        return raw
    raise ValueError(f"{file}: it must hold a mapping, one `name: value` per line, not {shown(raw)}")


def _text(file: Path) -> str:
    """The text of a file of options, which is never large."""
    if file.stat().st_size > LARGEST:
        raise ValueError(f"it has {file.stat().st_size:,} bytes: a file of options has at most {LARGEST:,}")
    return file.read_text(encoding="utf-8")


def _load_yaml(file: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(_text(file))  # in C, if it is there: deep nesting is slow
    node = loader.get_single_node()
    if _values_in(node, {}) > LARGEST:
        raise ValueError(f"it holds more than {LARGEST:,} values, with its aliases written out")
    _check_plain(node)
    return None if node is None else loader.construct_document(node)


def _values_in(node: Any, known: dict[int, int]) -> int:
    """Values of a YAML node when each alias is written out, counted without doing so: ten short lines can make 10^9."""
    if id(node) not in known:
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        inner = (each for part in parts for each in (part if isinstance(part, tuple) else (part,)))
        known[id(node)] = 1 + sum(_values_in(each, known) for each in inner)
    return known[id(node)]


def _check_plain(node: Any) -> None:
    """Refuse (ValueError) a key that stands twice, and numbers that YAML reads in base 8 (010) or 60 (1:30)."""
    parts = node.value if isinstance(getattr(node, "value", None), list) else []
    pairs = [part for part in parts if isinstance(part, tuple)]
    _check_once([key.value for key, _ in pairs if isinstance(key.value, str) and key.value != "<<"])
    for part in parts:
        for each in part if isinstance(part, tuple) else (part,):
            _check_plain(each)
    text = "" if node is None or parts else str(node.value)
    if node is not None and node.tag.endswith((":int", ":float")) and re.match(r"[-+]?0[0-9_]+$|.*:", text):
        raise ValueError(f"{text} is read in base 8 or 60: write it as a plain number, or in quotes")


def _check_once(keys: Sequence[str]) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"{shown(twice[0])} stands in it {keys.count(twice[0])} times; leave one of them")


def _load_json(file: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once([key for key, _ in pairs])
        return dict(pairs)

    return json.loads(_text(file), object_pairs_hook=once)


def _load_python(file: Path) -> Any:
    """The result of the file's ``get_config()``: a mapping, a dataclass instance or ml_collections' ConfigDict."""
    import runpy

    names = runpy.run_path(str(file))
    if "get_config" not in names:
        raise ValueError("it has no function get_config()")
    config = names["get_config"]()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    to_dict = getattr(config, "to_dict", None)
    return to_dict() if to_dict else config


def _reason(error: BaseException) -> str:
    """One line; for YAML the place and the problem, without its quotation of the file."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'syntax error'}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# ---- values of a class


def read_values(
    cls: Any, raw: Mapping[Any, Any], where: str, aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Checked values of a mapping and of the sections in it, by dotted name; ``where`` begins an error's line.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    names = Names(field_types(cls), aliases)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        field = names.key(str(key))
        if field is None:
            raise ValueError(f"{where}: unknown key {shown(str(key))}{names.suggestion(str(key), names.hints)}")
        place, hint = f"{where}: {field}", names.hints[field]
        if dataclasses.is_dataclass(hint):
            inner = read_values(hint, _section(value, hint, place), place)
            values |= {f"{field}.{name}": each for name, each in inner.items()}
        else:
            values[field] = convert(place, hint, value)
    return values


def _section(value: Any, cls: Any, place: str) -> Mapping[Any, Any]:
    """The mapping of a section; nothing, as YAML reads an empty one, is an empty mapping."""
    to_dict = getattr(value, "to_dict", None)  # ml_collections' ConfigDict within a plain dict
    value = to_dict() if to_dict else {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: give a mapping of its options, which are {', '.join(field_types(cls))}")
    return value
