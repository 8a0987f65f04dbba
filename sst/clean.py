"""What the numbers of a file mean: temperatures in deg C, codes of ice and of missing values, order and gaps in time.

Nothing is guessed in silence: what is taken as missing, as land or as another unit is printed, what is doubtful stops
with one line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LEAST, MOST = -5.0, 50.0  # deg C: no sea is colder or warmer
KELVIN = ("k", "kelvin", "kelvins", "degk", "deg_k", "degree_kelvin", "degrees_kelvin")
CELSIUS = ("c", "celsius", "degc", "deg_c", "degreec", "degreesc", "degree_c", "degrees_c", "degree_celsius")
CELSIUS += ("degrees_celsius", "deg_celsius", "°c", "centigrade", "degree_centigrade", "degrees_centigrade")
FAHRENHEIT = (
    "f",
    "fahrenheit",
    "degf",
    "deg_f",
    "degree_f",
    "degrees_f",
    "degree_fahrenheit",
    "degrees_fahrenheit",
    "°f",
)
REPEATED = 10  # so often one number outside the range is a code, not a measurement
CODES = 6  # at most so many different ones
WARM = 5.0  # deg C: where it is always warmer, a zero now and then is no temperature
NAMES = {-1000.0: " (sea ice in HadISST)"}


@dataclass(frozen=True)
class Raw:
    """A field as a file has it.

    Args:
        where: for messages: the file, and the variable's name.
        values: (T, H, W), in the file's units.
        dates: (T,), datetime64[m].
        days: (T,), days since the first frame by the file's own calendar, in which months or years may be equally long.
        lat, lon: (H,) and (W,), degrees.
        units: as the file says; empty: it does not.
    """

    where: str
    values: np.ndarray
    dates: np.ndarray
    days: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    units: str


def cleaned(raw: Raw) -> Raw:
    """The field in deg C, with NaN for land and what is missing; frames in order of time, at most one a day.

    Raises:
        ValueError: shapes, places, dates or values that cannot be right.
    """
    _check_places(raw)
    raw = in_order(in_places(raw))
    raw = replace(raw, values=celsius(raw.where, raw.values, raw.units), units="degC")
    return without_repeated(without_empty(daily(raw)))


def _check_places(raw: Raw) -> None:
    """Raise ValueError unless shapes fit and places are on the globe."""
    t, h, w = raw.values.shape
    for name, part, n in (("time", raw.dates, t), ("lat", raw.lat, h), ("lon", raw.lon, w)):
        if part.shape != (n,):
            raise ValueError(
                f"{raw.where}: values of shape {raw.values.shape} with {name} of shape {part.shape}: give {name} ({n},)"
            )
    for name, part, least, most in (("latitude", raw.lat, -90, 90), ("longitude", raw.lon, -360, 720)):
        if not ((part >= least - 1e-3) & (part <= most + 1e-3)).all():
            span = f"{np.min(part):g} to {np.max(part):g}"
            raise ValueError(f"{raw.where}: {name}s from {span}: they must be degrees from {least} to {most}")
    for name, part, what in (("latitude", raw.lat, "rows"), ("longitude", raw.lon % 360, "columns")):
        if len(np.unique(part.round(6) % 360)) not in (1, len(part)):
            raise ValueError(f"{raw.where}: a {name} occurs twice: drop the repeated {what}")


def in_places(raw: Raw) -> Raw:
    """Rows and columns side by side: sorted where they are not in order; around the globe they may begin anywhere."""
    steps = np.diff(raw.lat), (np.diff(raw.lon) + 180) % 360 - 180
    if not _one_way(steps[0]):
        order = np.argsort(raw.lat)
        print(f"{raw.where}: the rows were not in order of latitude: sorted")
        raw = replace(raw, values=raw.values[:, order], lat=raw.lat[order])
    if not _one_way(steps[1]) or abs(steps[1].sum()) >= 360:
        order = np.argsort(raw.lon % 360)
        print(f"{raw.where}: the columns were not in order of longitude: sorted")
        raw = replace(raw, values=raw.values[:, :, order], lon=raw.lon[order])
    return raw


def _one_way(steps: np.ndarray) -> bool:
    """Whether all go up or all down; or there are no places."""
    return bool((steps > 0).all() or (steps < 0).all() or not steps.any())


# ---- time


def in_order(raw: Raw) -> Raw:
    """Frames by date.

    Raises:
        ValueError: fewer than two, or two of one date.
    """
    if len(raw.days) < 2:
        raise ValueError(f"{raw.where} has {len(raw.days)} frame: a forecast needs years of them")
    if np.isnat(raw.dates).any() or not np.isfinite(raw.days).all():
        raise ValueError(f"{raw.where}: frame {int(np.isnat(raw.dates).argmax()) + 1} has no date: drop it")
    order = np.argsort(raw.days, kind="stable")
    days = raw.days[order]
    if (twice := np.flatnonzero(np.diff(days) <= 0)).size:
        at = raw.dates[order][twice[0] + 1].astype("datetime64[D]")
        raise ValueError(f"{raw.where}: {twice.size + 1} frames share a date, first {at}: drop the repeated ones")
    if (order == np.arange(len(order))).all():
        return raw
    print(f"{raw.where}: the frames were not in order of time: sorted")
    return replace(raw, values=raw.values[order], dates=raw.dates[order], days=days - days[0])


def daily(raw: Raw) -> Raw:
    """Means of whole days, where the frames are closer than that; others as they are.

    A day that has fewer frames than the others is left out; a cell needs all of its day's.
    """
    if np.median(np.diff(raw.days)) > 0.95:
        return raw
    day = raw.dates[0].astype("datetime64[D]")
    day = np.floor(raw.days + (raw.dates[0] - day) / np.timedelta64(1, "D") + 1e-6)
    found, first, count = np.unique(day, return_index=True, return_counts=True)
    usual = int(np.bincount(count).argmax())
    whole = np.flatnonzero(count == usual)
    if usual < 2:
        raise ValueError(f"{raw.where}: some frames are closer than a day, most are not: give one frame a day")
    left_out = f", {len(found) - len(whole)} days with another number are left out" if len(whole) < len(found) else ""
    print(f"{raw.where}: {usual} frames a day are averaged to {len(whole)} days{left_out}")
    values = np.stack([raw.values[k : k + usual].mean(0, dtype=np.float64) for k in first[whole]])
    dates = raw.dates[first[whole]].astype("datetime64[D]").astype("datetime64[m]")
    return replace(raw, values=values.astype(np.float32), dates=dates, days=found[whole] - found[whole][0])


def without_empty(raw: Raw) -> Raw:
    """Without the frames that have no temperature, or one and the same everywhere, between frames that have."""
    flat = raw.values.reshape(len(raw.values), -1)
    finite = np.isfinite(flat)
    low, high = (
        part(flat, axis=1, initial=start, where=finite) for part, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    empty = ~finite.any(1) | ((low == high) & (finite.sum(1) > 1))
    if not empty.any() or empty.all():
        return raw
    first = raw.dates[empty][0].astype("datetime64[D]")
    print(f"{raw.where}: {int(empty.sum())} frames without a field are left out, first {first}")
    return replace(raw, values=raw.values[~empty], dates=raw.dates[~empty], days=raw.days[~empty])


def without_repeated(raw: Raw) -> Raw:
    """Without the frames that are the one before to the last digit: a stuck feed, or a coarser series filled up."""
    flat = raw.values.reshape(len(raw.values), -1)
    same = np.array([False, *(np.array_equal(a, b, equal_nan=True) for a, b in zip(flat, flat[1:]))])
    if not same.any() or same[1:].all():  # a field that never changes is refused later
        return raw
    first = raw.dates[same][0].astype("datetime64[D]")
    print(f"{raw.where}: {int(same.sum())} frames repeat the one before, first {first}: they are left out")
    return replace(raw, values=raw.values[~same], dates=raw.dates[~same], days=raw.days[~same])


def breaks(where: str, dates: np.ndarray, days: np.ndarray) -> tuple[int, ...]:
    """Frames that do not follow the one before at the usual distance: no window and no forecast reaches over them.

    Raises:
        ValueError: there is no usual distance.
    """
    steps = np.diff(days)
    usual = float(np.median(steps))
    found = np.flatnonzero((steps > 1.5 * usual) | (steps < 0.5 * usual)) + 1
    if len(found) > len(steps) / 3:
        raise ValueError(
            f"{where}: frames are {steps.min():g} to {steps.max():g} days apart: give them at equal distances"
        )
    if len(found):
        at, before = dates[found[0]].astype("datetime64[D]"), dates[found[0] - 1].astype("datetime64[D]")
        number = "a gap" if len(found) == 1 else f"{len(found)} gaps"
        print(f"{where}: {number} in time, first from {before} to {at}: no window or forecast reaches over")
    return tuple(found.tolist())


# ---- values


def celsius(where: str, values: np.ndarray, units: str) -> np.ndarray:
    """Temperatures in deg C, float32, NaN where there is none; codes of ice and of missing values are named.

    Raises:
        ValueError: units of something else, or values that no sea has.
    """
    unit = _unit(where, units)
    found = np.array(values, np.float64 if values.dtype.kind in "iu" else values.dtype, order="C")
    if (infinite := np.isinf(found)).any():
        print(f"{where}: {int(infinite.sum())} values are infinite: taken as missing")
        found[infinite] = np.nan
    unit = _unit(where, units) or _undeclared(where, found)
    for code, count in _codes(found, unit).items():
        print(f"{where}: {count} values are {code:.7g}{NAMES.get(code, '')}: taken as missing")
        found[found == code] = np.nan
    degrees = _converted(found, unit).astype(np.float32)
    _check_range(where, degrees, found, units or "no units")
    return _without_zeros(where, degrees)


def _unit(where: str, units: str) -> str:
    """K, C, F, or empty: not said."""
    key = units.lower().replace(" ", "_").replace("^", "")
    for unit, names in (("K", KELVIN), ("C", CELSIUS), ("F", FAHRENHEIT), ("", ("",))):
        if key in names:
            return unit
    raise ValueError(f"{where} is in {units}, no unit of temperature: choose with --variable, or give K, degC or degF")


def _converted(values: np.ndarray, unit: str) -> np.ndarray:
    if unit == "F":
        return (values - 32) / 1.8
    return values - values.dtype.type(273.15) if unit == "K" else values


def _outside(values: np.ndarray, unit: str) -> np.ndarray:
    """Where no sea is so cold or warm; NaN is not outside."""
    degrees = _converted(values, unit)
    return (degrees < LEAST) | (degrees > MOST)


def _codes(values: np.ndarray, unit: str) -> dict[Any, int]:
    """Numbers outside the plausible range that stand for something else, and how often each does."""
    numbers, counts = np.unique(values[_outside(values, unit)], return_counts=True)
    known = np.array([_is_usual(x) for x in numbers.tolist()], bool)
    several = counts >= (REPEATED if len(numbers) <= CODES else np.inf)  # many different ones are measurements
    return {x: int(n) for x, n in zip(numbers[known | several], counts[known | several])}


def _is_usual(number: float) -> bool:
    """Whether a number is nothing but a code: all nines, at least a thousand, or nothing at all."""
    digits = f"{abs(number):.6g}".replace(".", "").strip("0")
    return abs(number) >= 1000 or (len(digits) > 1 and set(digits) == {"9"}) or number == 0


def _undeclared(where: str, values: np.ndarray) -> str:
    """K where the middle of the values is a sea's in kelvin, else C."""
    rest = values[np.isfinite(values) & (values != 0) & (np.abs(values) < 900)]
    if not rest.size or _outside(np.median(rest), "K"):
        return "C"
    print(f"{where} has no units: values of about {np.median(rest):.4g} are taken as kelvin")
    return "K"


def _check_range(where: str, degrees: np.ndarray, values: np.ndarray, units: str) -> None:
    """Raise ValueError if a temperature is outside the plausible range."""
    outside = _outside(degrees, "C")
    if not outside.any():
        return
    ends = np.array([np.nanmin(values), np.nanmax(values)])
    names = {"K": "kelvin", "F": "degrees Fahrenheit", "C": "deg C"}
    guess = [name for unit, name in names.items() if not _outside(ends, unit).any()]
    hint = f"they look like {guess[0]}: correct its units" if guess else "mask what is none, or choose with --variable"
    count = f"{int(outside.sum())} of {int(np.isfinite(values).sum())} values"
    raise ValueError(
        f"{where} ({units}): {count}, for example {float(values[outside][0]):.6g}, are no temperatures of a sea "
        f"({LEAST:g} to {MOST:g} deg C): {hint}"
    )


def _without_zeros(where: str, degrees: np.ndarray) -> np.ndarray:
    """NaN for cells that are exactly 0 always, as land may be marked, and for zeros in cells that else are warm."""
    zero = degrees == 0
    if not zero.any():
        return degrees
    land = (zero | ~np.isfinite(degrees)).all(0) & zero.any(0)
    if land.any() and not land.all():
        print(f"{where}: {int(land.sum())} cells are exactly 0 at all times: taken as land")
        degrees[:, land] = np.nan
    cells = np.flatnonzero((zero & ~land).any(0).ravel())
    flat, wrong = degrees.reshape(len(degrees), -1), 0
    for cell in cells:
        column = flat[:, cell]
        rest = column[np.isfinite(column) & (column != 0)]
        if rest.size and rest.min() > WARM:
            wrong += int((column == 0).sum())
            column[column == 0] = np.nan
    if wrong:
        print(f"{where}: {wrong} values are exactly 0 in cells that are warm otherwise: taken as missing")
    return degrees
