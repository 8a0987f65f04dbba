"""What the options of a script may be: values of flags and files, their ranges, configuration files. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

_VALUE_ALIASES = {"icfm": "cfm"}  # other projects' names, where they are not themselves a choice
BOOLS = {"true": True, "t": True, "yes": True, "on": True, "1": True}
BOOLS |= {"false": False, "f": False, "no": False, "off": False, "0": False}


def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, in order."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


# ---- values


def convert(what: str, hint: Any, value: Any) -> Any:
    """A value of a flag (text) or of a file as the field's type; types that are not listed here are left to tyro.

    Raises:
        ValueError: the value does not fit; ``what`` names the flag, or the file and its key.
    """
    try:
        return _value(hint, value)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise ValueError(f"{what} {_shown(value)}: {allowed(hint)}") from None


def _value(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        return _to_choice(get_args(hint), value)
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        parts = split(value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(get_args(hint)[0], part) for part in parts)
    return _SCALARS[hint](value) if hint in _SCALARS else value


def split(text: str) -> list[str]:
    """Parts of ``1,2,2``, ``[1, 2, 2]`` or ``1 2 2``."""
    return re.sub(r"[\[\](),]", " ", text).split()


def _to_choice(choices: tuple[Any, ...], value: Any) -> str:
    if value is None or value is False:  # YAML's reading of `null` and of a bare `no`
        value = "none" if value is None else "no"
    if value not in choices:
        value = str(value).lower()  # IDFF's scripts say --model IDFF
        value = _VALUE_ALIASES.get(value, value)
    if value not in choices:
        raise ValueError
    return value


def _to_bool(value: Any) -> bool:
    """True and False in the spellings of absl, YAML and the shell."""
    return value if isinstance(value, bool) else BOOLS[str(value).lower()]


def _to_int(value: Any) -> int:
    """Whole numbers, also as 4e5 and 400_000."""
    if isinstance(value, bool):
        raise TypeError
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        if float(value) != int(float(value)):
            raise
        return int(float(value))


def _to_float(value: Any) -> float:
    """Numbers, also those that YAML takes for text, such as 2e-4."""
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _to_str(value: Any) -> str:
    """Text; nothing (YAML's null) is the empty one, and a list or mapping is a mistake."""
    if not isinstance(value, (str, int, float, Path, type(None))) or isinstance(value, bool):
        raise TypeError
    return "" if value is None else str(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}


def allowed(hint: Any) -> str:
    """What a field takes, in words."""
    if get_origin(hint) is Literal:
        return f"choose one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return "give whole numbers such as 1,2,2" if int in get_args(hint) else "give values such as a,b"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return f"give {words.get(hint, 'a value')}"


def _shown(value: Any) -> str:
    """A value for an error line, not longer than it needs to be."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = value if isinstance(value, str) and value else repr(value)
    return textwrap.shorten(text, 60, placeholder="...")


# ---- configuration files


def to_yaml(config: Any) -> str:
    """The options as YAML of plain scalars and lists; ``-c`` reads it back to an equal instance."""
    import yaml

    values = dataclasses.asdict(config)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def find_config(path: str, beside: Path | None = None) -> Path:
    """The file of ``-c``: a path, or a run folder that holds config.yaml.

    Args:
        path: As it was given.
        beside: Folder in which a relative path is looked for when it is not there from the current directory.

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
    except Exception as error:
        raise ValueError(f"{file}: not readable as {file.suffix}: {_reason(error)}") from error
    if isinstance(raw, Mapping):
        return raw
    raise ValueError(f"{file}: it must hold a mapping, one `name: value` per line, not {_shown(raw)}")


def _load_yaml(file: Path) -> Any:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _load_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


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


def _reason(error: Exception) -> str:
    """One line; for YAML the place and the problem, without its quotation of the file."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'syntax error'}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# ---- ranges

_ONE_OR_MORE = (
    *("batch_size", "n_steps", "total_steps", "grad_accum", "image_size", "in_channels", "num_channel", "channel_mult"),
    *("num_res_blocks", "num_heads", "patch_size", "attention_resolutions", "save_step", "log_step"),
)
_ZERO_OR_MORE = (
    *("warmup", "sample_step", "val_step", "seed", "num_classes", "num_workers", "weight_decay", "grad_clip", "cfg"),
    *("ema_warmup", "sigma", "flow_weight", "ema_decay", "dropout", "label_dropout", "val_fraction"),
    *("epochs", "side"),
)
_AT_LEAST: dict[str, int] = {
    **dict.fromkeys(_ONE_OR_MORE, 1),
    **dict.fromkeys(_ZERO_OR_MORE, 0),
    "label": -1,
    "columns": 2,
}
_ABOVE_ZERO = ("lr", "rtol", "atol")
_BELOW = {"ema_decay": 1, "dropout": 1, "label_dropout": 1, "val_fraction": 1, "seed": 2**63}


def validate(config: Any) -> None:
    """Check the ranges of an instance's fields, whichever of the known ones it has.

    Raises:
        ValueError: one line that names the flag, what was given and what is allowed.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, hint in field_types(type(config)).items():
        if get_origin(hint) is Literal:
            convert(f"--{name}", hint, values[name])
        for value in values[name] if isinstance(values[name], tuple) else (values[name],):
            _check_range(name, value)
    _check_training(values)
    _check_network(values)
    least = min(1, getattr(type(config), "n_samples", 1))  # 0 means all images where it is the default
    if values.get("n_samples", 1) < least:
        raise ValueError(f"--n_samples {values['n_samples']}: must be at least {least}")
    if values.get("range"):
        index_range(values["range"], values.get("n_samples"))


def check_least(options: Any, **least: float) -> None:
    """Raises ValueError, in one line that names the flag, for a field below the least that is given for its name."""
    for name, low in least.items():
        if getattr(options, name) < low:
            raise ValueError(f"--{name} {getattr(options, name)}: must be at least {low}")


def _check_range(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{name} {value}: must be a finite number")
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        raise ValueError(f"--{name} {value}: must be at least {_AT_LEAST[name]}")
    if name in _ABOVE_ZERO and value <= 0:
        raise ValueError(f"--{name} {value}: must be above 0")
    if name in _BELOW and value >= _BELOW[name]:
        raise ValueError(f"--{name} {value}: must be below {_BELOW[name]}")


def _check_training(values: dict[str, Any]) -> None:
    method, batch_size, accumulated = values.get("method"), values.get("batch_size", 1), values.get("grad_accum", 1)
    if method in ("idff", "sbcfm") and values.get("sigma") == 0:
        raise ValueError(f"--sigma 0: --method {method} is a bridge with noise, give a sigma above 0, e.g. 0.2")
    if batch_size % accumulated:
        raise ValueError(f"--grad_accum {accumulated}: must divide --batch_size {batch_size}")
    check_device(values.get("device", "auto"))


def check_device(name: str) -> None:
    """Raise ValueError unless --device is the name of a device, on whatever machine."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"--device {name}: choose auto, cpu, cuda, mps or a numbered GPU such as cuda:1")


def _check_network(values: dict[str, Any]) -> None:
    if values.get("head_channels", 1) < 1 and values["head_channels"] != -1:
        raise ValueError(f"--head_channels {values['head_channels']}: must be at least 1, or -1 to use --num_heads")
    if values.get("channel_mult") == ():
        raise ValueError("--channel_mult: give one whole number per level, e.g. 1,2,2,2")
    if "image_size" in values and "channel_mult" in values:
        _check_size(values["image_size"], values["channel_mult"], values.get("patch_size", 1))


def _check_size(size: int, mult: tuple[int, ...], patch: int) -> None:
    """Every level halves the sides, and the first one works on patches."""
    unit = patch * 2 ** (len(mult) - 1)
    if size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        raise ValueError(
            f"--image_size {size}: must be divisible by {unit} (patch_size {patch}, {len(mult)} levels), "
            f"e.g. {' or '.join(map(str, near))}; or give fewer levels by --channel_mult"
        )


def index_range(text: str, n_samples: int | None = None) -> tuple[int, int]:
    """Start and stop of ``--range START:STOP`` within ``n_samples``; an empty text is all of them.

    Raises:
        ValueError: not of that form, empty, or beyond ``n_samples``.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text or ":")
    if not match:
        raise ValueError(f"--range {text}: write START:STOP, e.g. 0:10000")
    stop = match[2] or n_samples
    if stop is None:
        raise ValueError(f"--range {text}: STOP is missing, write e.g. 0:10000")
    start, stop = int(match[1] or 0), int(stop)
    if start >= stop:
        raise ValueError(f"--range {text}: START must be below STOP, which is {stop}")
    if n_samples is not None and stop > n_samples:
        raise ValueError(f"--range {text}: there are only --n_samples {n_samples}; raise it to {stop} or more")
    return start, stop
