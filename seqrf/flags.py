"""The command line of sequential reflow: what its configuration files mean beside what all files mean. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.cli.files import find_config, load_config, read_values
from common.cli.values import field_types
from seqrf.options import Config, Run

HERE = Path(__file__).resolve().parent

# Values of a file that name something on disk: relative to the current directory, or to this folder.
_PATHS = (
    *("config.training.import_torch", "config.training.pairs"),
    *("config.data.dataset", "config.data.classifier", "config.data.inception"),
)


def parse(argv: Sequence[str] | None = None, description: str = "") -> Run:
    """Read a command line, see :func:`common.cli.parse`.

    ``-c/--config FILE`` is looked for from the current directory, then from this folder. It holds parts of a Config, of
    a Run, or both.
    """
    return cli.parse(Run, description=description, argv=argv, read_file=_read_file)


def _read_file(path: str) -> dict[str, Any]:
    """Checked values of a file by dotted name, its paths resolved.

    A configuration names its runs' folder; a Run, as the config.yaml of a run folder, says itself where it was.
    """
    file = _find(path)
    raw = load_config(file)
    if "config" in raw:
        values = read_values(Run, raw, f"{file}")
    else:
        outer = {key: value for key, value in raw.items() if key in field_types(Run)}
        inner = read_values(Config, {key: value for key, value in raw.items() if key not in outer}, f"{file}")
        values = {"workdir": str(HERE / "exp" / file.stem)} if file.name != "config.yaml" else {}
        values |= read_values(Run, outer, f"{file}") | {f"config.{name}": value for name, value in inner.items()}
    return {name: _on_disk(value) if name in _PATHS else value for name, value in values.items()}


def _find(path: str) -> Path:
    """The file; when there is none, the error names those of this folder."""
    try:
        return find_config(path, beside=HERE)
    except FileNotFoundError as error:
        shipped = ", ".join(f"configs/rf/{file.name}" for file in sorted((HERE / "configs/rf").glob("*.py")))
        raise FileNotFoundError(f"{error}; here are {shipped}") from None


def _on_disk(value: str) -> str:
    """A path as it is, unless it leads nowhere from the current directory and somewhere from this folder."""
    if value in ("", "none") or Path(value).expanduser().exists() or not (HERE / value).exists():
        return value
    return str((HERE / value).resolve())
