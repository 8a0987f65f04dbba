"""What the numbers of a file mean: temperatures in deg C, codes of ice and of missing values, order and gaps in time.

Nothing is guessed in silence: what is taken as missing, as land or as another unit is printed, what is doubtful stops
with one line.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sst import frames
from sst.frames import Frames, Temporary, chunks, fields

LEAST, MOST = -5.0, 50.0  # deg C: no sea is colder or warmer
UNITS = {
    "k": "K",
    "kelvin": "K",
    "kelvins": "K",
    "c": "C",
    "celsius": "C",
    "centigrade": "C",
    "f": "F",
    "fahrenheit": "F",
}
REPEATED = 10  # so often one number outside the range is a code, not a measurement
CODES = 6  # at most so many different ones
WARM = 5.0  # deg C: where it is always warmer, a zero now and then is no temperature
NAMES = {-1000.0: " (sea ice in HadISST)"}


@dataclass(frozen=True)
class Raw:
    """A field as a file has it.

    Args:
        where: for messages: the file, and the variable's name.
        values: (T, H, W), in the file's units, read when asked for.
        dates: (T,), datetime64[m].
        days: (T,), days since the first frame by the file's own calendar, in which months or years may be equally long.
        lat, lon: (H,) and (W,), degrees.
        units: as the file says; empty: it does not.
    """

    where: str
    values: Frames
    dates: np.ndarray
    days: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    units: str


def cleaned(raw: Raw) -> Raw:
    """The field in deg C, with NaN for land and what is missing; frames in order of time, at most one a day.

    Two passes over the file, which is not needed afterwards, and three over what is kept of it.

    Raises:
        ValueError: shapes, places, dates or values that cannot be right.
    """
    _check_places(raw)
    raw = in_order(in_places(raw))
    return without_repeated(without_empty(daily(celsius(raw))))


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
    around = eastward(raw.lon)
    if not _one_way(np.diff(raw.lat)):
        order = np.argsort(raw.lat)
        print(f"{raw.where}: the rows were not in order of latitude: sorted")
        raw = replace(raw, values=raw.values.crop(order, np.arange(len(raw.lon))), lat=raw.lat[order])
    if not _one_way(around) or abs(around.sum()) >= 360:
        order = np.argsort(raw.lon % 360)
        print(f"{raw.where}: the columns were not in order of longitude: sorted")
        raw = replace(raw, values=raw.values.crop(np.arange(len(raw.lat)), order), lon=raw.lon[order])
    return raw


def eastward(lon: np.ndarray) -> np.ndarray:
    """Degrees from each longitude to the next, (W - 1,), -180 to 180: 359 and 0 are neighbours."""
    return (np.diff(lon) + 180) % 360 - 180


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
    return replace(raw, values=raw.values.take(order), dates=raw.dates[order], days=days - days[0])


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
    means = Temporary((len(whole), *raw.values.shape[1:]))
    for i, k in enumerate(first[whole].tolist()):
        means.write(i, raw.values[k : k + usual].mean(0, dtype=np.float64))
    dates = raw.dates[first[whole]].astype("datetime64[D]").astype("datetime64[m]")
    return replace(raw, values=Frames(means), dates=dates, days=found[whole] - found[whole][0])


def without_empty(raw: Raw) -> Raw:
    """Without the frames that have no temperature, or one and the same everywhere, between frames that have."""
    empty = np.array([_is_empty(field[np.isfinite(field)]) for field in fields(raw.values)])
    return raw if empty.all() else _left_out(raw, empty, "frames without a field are left out, first {}")


def _is_empty(found: np.ndarray) -> bool:
    return not found.size or (found.size > 1 and found.min() == found.max())


def without_repeated(raw: Raw) -> Raw:
    """Without the frames that are the one before to the last digit: a stuck feed, or a coarser series filled up."""
    same, last = np.zeros(len(raw.values), bool), None
    for k, field in enumerate(fields(raw.values)):
        same[k], last = last is not None and np.array_equal(field, last, equal_nan=True), field
    if same[1:].all():  # a field that never changes is refused later
        return raw
    return _left_out(raw, same, "frames repeat the one before, first {}: they are left out")


def _left_out(raw: Raw, which: np.ndarray, line: str) -> Raw:
    """Without some frames, (T,) bool, aloud."""
    if not which.any():
        return raw
    print(f"{raw.where}: {int(which.sum())} {line.format(raw.dates[which][0].astype('datetime64[D]'))}")
    values = raw.values.take(np.flatnonzero(~which))
    return replace(raw, values=values, dates=raw.dates[~which], days=raw.days[~which])


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


def celsius(raw: Raw) -> Raw:
    """Temperatures in deg C, float32, NaN where there is none; codes of ice and of missing values are named.

    Raises:
        ValueError: units of something else, or values that no sea has.
    """
    where, values = raw.where, raw.values
    unit = _unit(where, raw.units) or _undeclared(where, values)
    infinite, codes = _codes(values, unit)
    if infinite:
        print(f"{where}: {infinite} values are infinite: taken as missing")
    for code, count in codes.items():
        print(f"{where}: {count} values are {code:.7g}{NAMES.get(code, '')}: taken as missing")
    kept, seen = Temporary(values.shape), []
    zeros = np.zeros(values.shape[1:], int)
    least = np.full(values.shape[1:], np.inf, np.float32)  # of each cell, but for zeros
    for a, b in chunks(values):
        found = _numbers(values[a:b])
        found[np.isinf(found)] = np.nan
        for code in codes:
            found[found == code] = np.nan
        degrees = _converted(found, unit).astype(np.float32)
        seen.append(_range(degrees, found))
        zeros += (degrees == 0).sum(0)
        least = np.fmin(least, np.where(degrees == 0, np.inf, degrees).min(0, initial=np.inf, where=degrees == degrees))
        kept.write(a, degrees)
    _check_range(where, raw.units or "no units", seen)
    _without_zeros(where, kept, zeros, least)
    return replace(raw, values=Frames(kept), units="degC")


def _numbers(values: np.ndarray) -> np.ndarray:
    """A copy that can hold NaN."""
    return np.array(values, np.float64 if values.dtype.kind in "iu" else values.dtype, order="C")


def _unit(where: str, units: str) -> str:
    """K, C, F, or empty: not said."""
    key = re.sub(r"^(deg(ree)?s?|°)(?=.)", "", re.sub("[_^ ]", "", units.lower()))
    if key and key not in UNITS:
        raise ValueError(
            f"{where} is in {units}, no unit of temperature: choose with --variable, or give K, degC or degF"
        )
    return UNITS.get(key, "")


def _converted(values: np.ndarray, unit: str) -> np.ndarray:
    if unit == "F":
        return (values - 32) / 1.8
    return values - values.dtype.type(273.15) if unit == "K" else values


def _outside(values: np.ndarray, unit: str) -> np.ndarray:
    """Where no sea is so cold or warm; NaN is not outside."""
    degrees = _converted(values, unit)
    return (degrees < LEAST) | (degrees > MOST)


def _codes(values: Frames, unit: str) -> tuple[int, dict[Any, int]]:
    """How many values are infinite; numbers out of range that stand for something else, and how often each does."""
    infinite, usual, others = 0, Counter(), Counter()
    for a, b in chunks(values):
        found = _numbers(values[a:b])
        infinite += int(np.isinf(found).sum())
        numbers, counts = np.unique(found[_outside(found, unit) & np.isfinite(found)], return_counts=True)
        for x, n in zip(numbers.tolist(), counts.tolist()):
            if x in others or x not in usual and len(others) <= CODES and not _is_usual(x):
                others[x] += n
            elif x in usual or _is_usual(x):
                usual[x] += n
    if len(usual) + len(others) <= CODES:  # many different ones are measurements
        usual.update({x: n for x, n in others.items() if n >= REPEATED})
    return infinite, dict(sorted(usual.items()))


def _is_usual(number: float) -> bool:
    """Whether a number is nothing but a code: all nines, at least a thousand, or nothing at all."""
    digits = f"{abs(number):.6g}".replace(".", "").strip("0")
    return abs(number) >= 1000 or (len(digits) > 1 and set(digits) == {"9"}) or number == 0


def _undeclared(where: str, values: Frames) -> str:
    """K where the middle of the values is a sea's in kelvin, else C; of many frames some of all times are seen."""
    step = -(-values.shape[0] * values.shape[1] * values.shape[2] // frames.CHUNK)
    found = values[::step]
    rest = found[np.isfinite(found) & (found != 0) & (np.abs(found) < 900)]
    if not rest.size or _outside(_numbers(np.median(rest)), "K"):
        return "C"
    print(f"{where} has no units: values of about {np.median(rest):.4g} are taken as kelvin")
    return "K"


def _range(degrees: np.ndarray, values: np.ndarray) -> tuple[int, int, Any, Any, np.ndarray]:
    """Of temperatures in deg C, which a file has as values: how many are implausible, and how many there are; the least
    and the largest value, and an implausible one, (1,) or (0,)."""
    outside, there = _outside(degrees, "C"), np.isfinite(values)
    ends = values.min(initial=np.inf, where=there), values.max(initial=-np.inf, where=there)
    return int(outside.sum()), int(there.sum()), *ends, values[outside][:1]


def _check_range(where: str, units: str, seen: list[tuple[int, int, Any, Any, np.ndarray]]) -> None:
    """Raise ValueError if a temperature is outside the plausible range; ``seen``: what ``_range`` says of chunks."""
    outside, finite, least, most, examples = zip(*seen)
    if not sum(outside):
        return
    ends, example = np.array([min(least), max(most)]), np.concatenate(examples)[0]
    names = {"K": "kelvin", "F": "degrees Fahrenheit", "C": "deg C"}
    guess = [name for unit, name in names.items() if not _outside(ends, unit).any()]
    hint = f"they look like {guess[0]}: correct its units" if guess else "mask what is none, or choose with --variable"
    raise ValueError(
        f"{where} ({units}): {sum(outside)} of {sum(finite)} values, for example {example:.6g}, are "
        f"no temperatures of a sea ({LEAST:g} to {MOST:g} deg C): {hint}"
    )


def _without_zeros(where: str, kept: Temporary, zeros: np.ndarray, least: np.ndarray) -> None:
    """NaN for cells that are exactly 0 always, as land may be marked, and for zeros in cells that else are warm.

    ``zeros``: how many a cell has; ``least``: the lowest of its other temperatures, infinite where it has none.
    """
    land, warm = (zeros > 0) & np.isinf(least), (zeros > 0) & np.isfinite(least) & (least > WARM)
    land &= not land.all()
    if land.any():
        print(f"{where}: {int(land.sum())} cells are exactly 0 at all times: taken as land")
    if warm.any():
        count = int(zeros[warm].sum())
        print(f"{where}: {count} values are exactly 0 in cells that are warm otherwise: taken as missing")
    if (wrong := land | warm).any():
        for a, b in chunks(kept):
            found = kept[np.arange(a, b)]
            found[(found == 0) & wrong] = np.nan
            kept.write(a, found)
