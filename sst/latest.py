"""Forecasts from a user's own latest frame: data up to a date, with the climate of the years the weights learnt from.

The file need not be the one that the weights were trained on. It must hold the same years, on a grid of the same
spacing, since anomalies are against its own climate of these years: so another product's bias does no harm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sst.clean import eastward
from sst.climate import Split
from sst.config import Options
from sst.data import Fields, Region
from sst.forecast import Learnt, World, fitted, source

LATEST = "latest"


def learnt(data: World) -> Learnt:
    """What weights say that learn from these data."""
    days = data.fields.times[[0, data.parts.val - 1]]
    return Learnt(
        first=str(days[0]), last=str(days[1]), frames=data.parts.val, spacing=_spacing(data.fields.regions[0])
    )


def world_until(options: Options, known: Learnt) -> tuple[World, int]:
    """The data from the training years to ``--init``, with empty frames after it, and the frame of that date.

    Raises:
        FileNotFoundError, ValueError: see ``data.load``; and a date that is not there, or years that are not.
    """
    fields = source(options)
    where = options.data or "the synthetic field"
    now = frame_of(fields, options.init, where)
    begin, end = _training(fields, known, where)
    if now < end:
        raise ValueError(
            f"--init {options.init}: the weights learnt from {known['first']} to {known['last']}, what they say "
            "of these years is no forecast: give a later date"
        )
    if gap := [k for k in fields.breaks if now - options.past + 1 < k <= now]:
        raise ValueError(
            f"--init {options.init}: {where} has a gap before {fields.times[gap[0]]}, within the {options.past} frames "
            "that the network sees: give a later date"
        )
    later = times_after(fields, now, options.horizon)
    cut = replace(fields.between(begin, now + 1, later), made=None)
    return fitted(cut, Split(end - begin, now - begin + 1, len(cut.times)), options), now - begin


def frame_of(fields: Fields, date: str, where: str) -> int:
    """The frame of a date: 2020-01-31, or 2020-01 where a month has one frame; the last one of "latest".

    Raises:
        ValueError: no frame is of that date, or several.
    """
    if date == LATEST:
        return len(fields.times) - 1
    try:
        unit = {4: "Y", 7: "M", 10: "D"}[len(date)]
        found = np.flatnonzero(fields.times.astype(f"datetime64[{unit}]") == np.datetime64(date, unit))
    except (KeyError, ValueError):
        raise ValueError(f"--init {date} is no date: give one such as 2020-01-31 or 2020-01, or latest") from None
    if len(found) == 1:
        return int(found[0])
    first, last = fields.times[[0, -1]]
    if len(found):
        raise ValueError(
            f"--init {date}: {where} has {len(found)} frames in it, from {fields.times[found[0]]}: name the day"
        )
    near = fields.times[np.abs((fields.times - np.datetime64(date, "D")).astype(int)).argmin()]
    raise ValueError(f"--init {date}: {where} has {first} to {last}, but not that; the nearest frame is of {near}")


def _training(fields: Fields, known: Learnt, where: str) -> tuple[int, int]:
    """First frame of the training years and of what follows them; a date may differ by less than half a step."""
    first, last = (np.datetime64(known[key], "D") for key in ("first", "last"))
    begin, end = np.searchsorted(fields.times, [first - fields.half, last + fields.half + np.timedelta64(1, "D")])
    if end - begin != known["frames"]:
        raise ValueError(
            f"{where} has {end - begin} frames from {first} to {last}, the weights learnt from {known['frames']}: "
            "the climate of these years is needed, give a file that has them, at the same distances"
        )
    if not np.allclose(spacing := _spacing(fields.regions[0]), known["spacing"], atol=1e-3):
        there, here = (" x ".join(f"{x:g}" for x in s) for s in (spacing, known["spacing"]))
        raise ValueError(f"{where} has a grid of {there} degrees, the weights learnt on {here}: interpolate it first")
    return int(begin), int(end)


def _spacing(region: Region) -> list[float]:
    """Degrees between rows and columns; longitudes may begin anew."""
    return [round(float(np.median(np.abs(x))), 4) for x in (np.diff(region.lat), eastward(region.lon))]


def times_after(fields: Fields, now: int, horizon: int) -> np.ndarray:
    """Dates of the frames that follow: of monthly ones the same day of the months, else at the usual distance."""
    last = fields.times[now]
    if not fields.monthly:
        return last + fields.step * np.arange(1, horizon + 1)
    month = last.astype("datetime64[M]")
    day = last - month.astype("datetime64[D]")
    later = month + np.arange(1, horizon + 1)
    ends = (later + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
    return np.minimum(later.astype("datetime64[D]") + day, ends)
