"""Numbers of a table in a text file, whoever wrote it: delimiters, decimal commas, names, columns that are no data.

What is left out is printed; what could be read in two ways stops with one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".csv", ".tsv", ".txt")
COUNTERS = ("", "index", "unnamed: 0", "id", "row", "rownames", "row.names")  # what a column of row numbers is called
MISSING = ("", "na", "n/a", "nan", "null", "none", "-", "?")
SIGNED = r"[+-]?"
GROUPS = r"[1-9]\d{0,2}(?:%s\d{3})+"  # thousands: 1,234,567
END = r"(?:[eE][+-]?\d+)?"
SPACES = "[\u00a0\u202f' ]"  # between thousands, besides the other mark


@dataclass(frozen=True)
class Table:
    """Numbers (N, d), float64, NaN where a cell says that there is none, and the names of the columns."""

    rows: np.ndarray
    names: list[str]


def read(path: Path) -> Table:
    """The numbers of a file of comma, semicolon, tab or space separated values, with or without a line of names.

    Row numbers and dates are left out, and said.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, columns of text, or numbers that can be read in two ways.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a CSV file of numbers, one point a line")
    names, cells = _named(path, _cells(path))
    columns = list(map(list, zip(*cells)))
    read_as = _spelling(path, columns)
    numbers = [_numbers(path, column, name, k, read_as) for k, (name, column) in enumerate(zip(names, columns))]
    kept = [k for k, column in enumerate(numbers) if column is not None]
    if not kept:
        raise ValueError(f"{path} has no column of numbers: give one point a line")
    import numpy as np

    names = [names[k] or f"column {k + 1}" for k in kept]
    print(f"{path.name}: {len(cells)} rows, {len(kept)} columns ({', '.join(names[:8])}{', ...' if names[8:] else ''})")
    return Table(np.stack([numbers[k] for k in kept], 1), names)


# ---- cells


def _cells(path: Path) -> list[list[str]]:
    """All rows, of texts without spaces around them; the rows are equally long.

    Raises:
        ValueError: not text, empty, or rows of different lengths.
    """
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError(f"{path} holds no rows: give one point a line")
    rows = _parted(lines, _delimiter(lines[:50]))
    width = len(rows[-1])
    if len(rows) > 1 and len(rows[0]) == width - 1:  # R names its columns, but not that of the row names
        rows[0] = ["", *rows[0]]
    at = next((k for k, row in enumerate(rows) if len(row) != width), None)
    if at is not None:
        raise ValueError(f"{path}: row {at + 1} has {len(rows[at])} cells, the last has {width}: mend the delimiters")
    if width > 1 and not any(row[-1] for row in rows):  # a delimiter at the end of each row
        rows = [row[:-1] for row in rows]
    return rows


def _text(path: Path) -> str:
    """The file as text; a byte order mark says which kind."""
    raw = path.read_bytes()
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    if "\x00" in text:
        raise ValueError(f"{path} is not text: give a CSV file of numbers, one point a line")
    return text


def _parted(lines: list[str], mark: str) -> list[list[str]]:
    """The cells of lines, with quotes."""
    import csv

    if mark == " ":
        return [line.split() for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark, skipinitialspace=True)]


def _delimiter(lines: list[str]) -> str:
    """Semicolon, tab, comma or space: the first that parts all lines into as many cells, of two at least."""
    for mark in (";", "\t", ",", " "):
        counts = {len(row) for row in _parted(lines[1:] or lines, mark)}
        if len(counts) == 1 and counts != {1}:
            return mark
    return next((mark for mark in (";", "\t", ",") if any(mark in line for line in lines)), ",")


def _named(path: Path, cells: list[list[str]]) -> tuple[list[str | None], list[list[str]]]:
    """The names of the columns, None where there are none, and the rows."""
    first, rest = cells[0], cells[1:]
    if not any(map(_is_text, first)):
        if not (rest and _counts_up(first, rest)):
            return [None] * len(first), cells
        print(f"{path.name}: its first line ({', '.join(first)}) is taken as the names of the columns")
    if not rest:
        raise ValueError(f"{path} has names and no rows: give one point a line")
    return list(first), rest


def _is_text(cell: str) -> bool:
    """Whether a cell is neither number nor date nor missing."""
    return not (_is_number(cell) or cell.lower() in MISSING or _are_dates([cell]))


def _counts_up(first: list[str], rest: list[list[str]]) -> bool:
    """Whether a first line of numbers names the columns.

    It does if it is of ascending whole numbers, years for instance, and no other line is of whole numbers; or if it
    counts three columns or more from 0, as pandas writes it where there are no names.
    """
    counted = first[1:] if first[0].lower() in MISSING else first
    if len(counted) < 2 or not all(cell.isdecimal() for cell in counted):
        return False
    numbers = [int(cell) for cell in counted]
    whole = any(all(cell.lstrip("+-").isdecimal() for cell in row[-len(counted) :]) for row in rest)
    counts = len(numbers) > 2 and numbers == list(range(len(numbers)))
    return counts or (numbers == sorted(set(numbers)) and len(rest) > 1 and not whole)


# ---- numbers


def _plain(cell: str) -> bool:
    return re.fullmatch(rf"{SIGNED}(\d+\.?\d*|\.\d+){END}|{SIGNED}inf(inity)?|nan", cell, re.I) is not None


def _is_number(cell: str) -> bool:
    """Whether a cell is a number in any spelling."""
    return _plain(cell) or any(_matches(cell, *marks) for marks in ((".", ","), (",", ".")))


def _matches(cell: str, decimal: str, thousands: str) -> bool:
    """Whether a cell is a number with these marks."""
    groups, end = GROUPS % f"(?:{re.escape(thousands)}|{SPACES})", re.escape(decimal)
    return re.fullmatch(rf"{SIGNED}(?:\d+|{groups})(?:{end}\d*)?{END}|{SIGNED}{end}\d+{END}", cell) is not None


def _spelling(path: Path, columns: list[list[str]]) -> Callable[[str], float]:
    """How the numbers of a table are read: with a decimal point, or with other marks that all of them fit.

    Raises:
        ValueError: two ways fit.
    """
    if all(_floats(column) is not None or not any(map(_is_number, column)) for column in columns):
        return float
    there = [cell for column in columns for cell in column if _is_number(cell)]
    marked = [cell for cell in there if not _plain(cell)]
    if not marked:
        return float
    ways = [marks for marks in ((".", ","), (",", ".")) if all("n" in cell or _matches(cell, *marks) for cell in there)]
    if len(ways) != 1:
        what = f"{marked[0]} may have a decimal comma or thousands" if ways else f"{marked[0]} beside {there[0]}"
        raise ValueError(f"{path}: {what}: write the numbers with a decimal point and without marks between thousands")
    decimal, thousands = ways[0]
    print(f"{path.name}: numbers such as {marked[0]} are read with a decimal {'comma' if decimal == ',' else 'point'}")
    return lambda cell: float(re.sub(f"{re.escape(thousands)}|{SPACES}", "", cell).replace(decimal, "."))


def _floats(column: list[str]) -> np.ndarray | None:
    """The numbers of plainly written cells; None if some are not."""
    import numpy as np

    try:
        return np.array([cell if cell.lower() not in MISSING else "nan" for cell in column], np.float64)
    except ValueError:
        return None


def _numbers(
    path: Path, column: list[str], name: str | None, place: int, read_as: Callable[[str], float]
) -> np.ndarray | None:
    """The numbers of a column, (N,); None: it counts the rows or holds dates, and is left out.

    Raises:
        ValueError: a column of text.
    """
    import numpy as np

    where = f"column {place + 1}" + (f" ({name})" if name else "")
    cells = [cell for cell in column if cell.lower() not in MISSING]
    if not cells:
        raise ValueError(f"{path}: {where} is empty: drop it")
    if _are_dates(cells):
        print(f"{path.name}: {where} holds dates ({cells[0]}): left out")
        return None
    numbers = _floats(column) if read_as is float else None
    if numbers is None:
        if (text := next((cell for cell in cells if not _is_number(cell)), None)) is not None:
            at = f"{text!r:.40} in row {column.index(text) + 1}"
            raise ValueError(f"{path}: {where} holds text ({at}): drop or encode such columns")
        numbers = np.array([np.nan if cell.lower() in MISSING else read_as(cell) for cell in column])
    if place == 0 and _counts_rows(numbers, name):
        print(f"{path.name}: {where} counts the rows: left out")
        return None
    return numbers


def _counts_rows(numbers: np.ndarray, name: str | None) -> bool:
    """Whether a first column is row numbers: 0, 1, 2, ...; under such a name also whole numbers without repeats."""
    import numpy as np

    if len(numbers) < 3 or not (numbers == np.round(numbers)).all():
        return False
    consecutive = bool((np.diff(numbers) == 1).all()) and numbers[0] in (0, 1)
    return consecutive or (name is not None and name.lower() in COUNTERS and len(np.unique(numbers)) == len(numbers))


def _are_dates(cells: list[str]) -> bool:
    """Whether all cells are dates, with or without a time, also 20200131."""
    import pandas as pd

    if all(re.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d", cell) for cell in cells):
        return bool(pd.to_datetime(pd.Series(cells), format="%Y%m%d", errors="coerce").notna().all())
    if _is_number(cells[0]) or not re.search(r"\d.*\d", cells[0]):
        return False
    return bool(pd.to_datetime(pd.Series(cells), errors="coerce", format="mixed", utc=True).notna().all())
