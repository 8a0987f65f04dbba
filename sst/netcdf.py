"""One variable of a NetCDF file or zarr group over time, latitude and longitude, with dates of any calendar.

Which variable and which dimension is meant is read from what the CF conventions say of them (standard_name, axis,
units), else from their names; what cannot be placed is refused. Source: CF conventions 1.11, sections 4 and 5.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sst.frames import Frames

if TYPE_CHECKING:
    from sst.clean import Raw

VARIABLES = ("sst", "analysed_sst", "tos", "sea_surface_temperature")
TIMES = ("time", "valid_time", "time_counter", "date", "t")
LATITUDES, LONGITUDES = ("lat", "latitude", "y", "nav_lat"), ("lon", "longitude", "x", "nav_lon")
STANDARD = {"time": TIMES, "latitude": LATITUDES, "longitude": LONGITUDES}
CALENDARS = {"360": "360_day", "365": "noleap", "365_day": "noleap", "366": "all_leap", "366_day": "all_leap"}
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 1, 9: 2, 10: 4, 11: 8}  # of NetCDF-3's types
REGRID = "interpolate it first, for example: cdo remapbil,r360x180 IN.nc OUT.nc"


@contextmanager
def opened(file: Path, variable: str = "") -> Iterator[Raw]:
    """The values, dates and places of a file or zarr group, with its own units; values are read while it is open.

    Raises:
        ValueError: damaged, or not a field over time, latitude and longitude; or a package is missing.
    """
    from sst.clean import Raw

    try:
        import xarray
    except ImportError as error:
        raise ValueError("NetCDF files need xarray and netCDF4: pip install xarray netCDF4, or give an .npz") from error
    how: dict[str, Any] = {}
    if file.is_dir():
        need_zarr(str(file), "a NetCDF file")
        how = {"engine": "zarr", "consolidated": False}
    with ExitStack() as stack:
        with _readable(file):
            if not how:
                _check_whole(file)
            data = stack.enter_context(xarray.open_dataset(file, decode_times=False, **how))
            array = _choose(file, data, variable)
            names = _dimensions(file, array)
            values = Stored(file, array, names)
            if array.dtype.kind not in "iuf" or not array.size:
                raise ValueError(
                    f"{file}: {array.name} is {array.dtype} {values.shape}: it must be numbers, some of them"
                )
            lat, lon = (_places(file, array, *which) for which in zip(names[1:], ("latitude", "longitude")))
            dates, days = _dates(file, array, names[0])
        units = str(array.attrs.get("units", "")).strip()
        yield Raw(f"{file}: {array.name}", Frames(values), dates, days, lat, lon, units)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr group of format 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def need_zarr(what: str, instead: str) -> None:
    """Raise ValueError if the package is missing."""
    if importlib.util.find_spec("zarr") is None:
        raise ValueError(f"{what} needs the package zarr: pip install zarr, or give {instead}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What goes wrong in xarray, in one line."""
    kind = "zarr" if file.is_dir() else "NetCDF"
    try:
        yield
    except (OSError, RuntimeError, LookupError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{file} is damaged or not {kind} ({type(error).__name__}): copy or download it again"
        ) from error
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} is not {kind} that xarray can read: copy or download it again") from error


def _check_whole(file: Path) -> None:
    """Raise ValueError if a NetCDF-3 file ends before its header says, for the library reads zeros past the end."""
    asked, size = _bytes_asked(file), file.stat().st_size
    if size < asked:
        raise ValueError(
            f"{file} is cut: it has {size:,} bytes, its header asks for {asked:,}: copy or download it again"
        )


def _bytes_asked(file: Path) -> int:
    """Where the last variable of a NetCDF-3 file ends, by its header; 0: the file is no NetCDF-3.

    Raises:
        EOFError, LookupError, OverflowError: the header itself is cut or damaged.

    Source: NetCDF classic, 64-bit offset and 64-bit data format specifications.
    """
    with file.open("rb") as stream:

        def number(size: int) -> int:
            data = stream.read(size)
            if len(data) < size:
                raise EOFError
            return int.from_bytes(data, "big")

        def listed() -> range:
            number(4)  # a tag
            return range(number(wide))

        def skip(size: int) -> None:
            stream.seek(_padded(size), 1)

        def skip_attributes() -> None:
            for _ in listed():
                skip(number(wide))  # its name
                skip(BYTES[number(4)] * number(wide))

        if stream.read(3) != b"CDF":
            return 0
        version = number(1)
        wide = 8 if version == 5 else 4
        records, lengths, ends, slabs = number(wide), [], [0], []
        if records == 256**wide - 1:  # as many as there are in the file
            records = 0
        for _ in listed():
            skip(number(wide))
            lengths.append(number(wide))
        skip_attributes()
        for _ in listed():
            skip(number(wide))
            shape = [lengths[number(wide)] for _ in range(number(wide))]
            skip_attributes()
            size = BYTES[number(4)]
            number(wide)  # the variable's size, which overflows where it is large
            begin = number(4 if version == 1 else 8)
            if shape[:1] == [0]:
                slabs.append((begin, size * math.prod(shape[1:])))
            else:
                ends.append(begin + size * math.prod(shape))
    record = slabs[0][1] if len(slabs) == 1 else sum(_padded(size) for _, size in slabs)
    return max(ends + [begin + (records - 1) * record + size for begin, size in slabs if records])


def _padded(size: int) -> int:
    return -(-size // 4) * 4


class Stored:
    """A variable as a store of fields (N, H, W), see ``frames.Frames``; ``packed``: frames of a compressed piece."""

    def __init__(self, file: Path, array: Any, names: tuple[str, str, str]):
        self.file, self.array, self.names, self.dtype = file, array, names, array.dtype
        self.shape = tuple(array.sizes[name] for name in names)
        pieces = dict(zip(array.dims, array.encoding.get("chunksizes") or array.encoding.get("chunks") or ()))
        self.packed = pieces.get(names[0], 1)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Fields (n, H, W) of an index (n,)."""
        step = np.diff(index)
        key = slice(index[0], index[-1] + 1) if len(index) and (step == 1).all() else index
        with _readable(self.file):  # loaded before it is transposed: the other way round it is read cell by cell
            return self.array.isel({self.names[0]: key}).load().transpose(*self.names).values


# ---- which variable, which dimensions


def _choose(file: Path, data: Any, variable: str) -> Any:
    """The variable that is meant, without levels of height 1, as OISST has."""
    there = [str(key) for key in data.data_vars if data[key].ndim >= 3] or [str(key) for key in data.data_vars]
    if not there:
        raise ValueError(f"{file} holds no variables: copy or download it again, or give another file")
    if variable and variable not in data.data_vars:
        raise ValueError(f"{file} has no variable {variable}, but {', '.join(there)}: choose with --variable")
    found = [variable] if variable else [key for key in VARIABLES if key in data.data_vars] or there
    if not variable and found[0] not in VARIABLES and len(found) != 1:
        raise ValueError(f"{file} has no variable sst, but {', '.join(there)}: choose with --variable")
    chosen = data[found[0]]
    # two-dimensional latitudes that no "coordinates" attribute names are still those of this field
    loose = [key for key in data.data_vars if _kind(data[key]) or (_by_name(key) and data[key].ndim < 3)]
    chosen = chosen.assign_coords({key: data[key] for key in loose if set(data[key].dims) < set(chosen.dims)})
    return chosen.squeeze([d for d in chosen.dims if chosen.sizes[d] == 1 and not _meant(chosen, d)])


def _kind(array: Any) -> str | None:
    """time, latitude or longitude, by standard_name or units; None: it does not say."""
    standard, units = (str(array.attrs.get(key, "")) for key in ("standard_name", "units"))
    if standard in STANDARD:
        return standard
    for kind, end in (("latitude", "n|north"), ("longitude", "e|east")):
        if re.fullmatch(rf"degrees?_?({end})", units, re.I):
            return kind
    return "time" if " since " in units else None


def _meant(array: Any, name: Any) -> str | None:
    """What a dimension is, by its coordinate, else by its name."""
    return (_kind(array[name]) if name in array.coords else None) or _by_name(name)


def _by_name(name: Any) -> str | None:
    return next((kind for kind, names in STANDARD.items() if str(name).lower() in names), None)


def _dimensions(file: Path, array: Any) -> tuple[str, str, str]:
    """The names of time, latitude and longitude."""
    found = {_meant(array, name): str(name) for name in array.dims}
    if array.ndim == 3 and set(STANDARD) <= set(found):
        return found["time"], found["latitude"], found["longitude"]
    plane = [str(key) for key, c in array.coords.items() if c.ndim == 2 and (_kind(c) or _by_name(key))]
    if array.ndim == 3 and plane:
        raise ValueError(f"{file}: {' and '.join(plane)} have two dimensions (a curvilinear grid): {REGRID}")
    dims = ", ".join(map(str, array.dims))
    raise ValueError(f"{file}: {array.name} has dimensions ({dims}): they must be time, lat, lon")


def _places(file: Path, array: Any, name: str, kind: str) -> np.ndarray:
    """Latitudes or longitudes in degrees of a dimension, (n,).

    Raises:
        ValueError: there are none, or they have two dimensions, or they are no degrees.
    """
    there = [c for c in array.coords.values() if name in c.dims]
    # y and x are also what projections and mere counts are called: their numbers need the units to be degrees
    known = [c for c in there if kind == (_kind(c) or (_by_name(c.name) if len(str(c.name)) > 1 else None))]
    found = next((c for c in known if c.name == name), known[0] if known else there[0] if there else None)
    if found is None:
        raise ValueError(f"{file}: dimension {name} has no {kind}: add a coordinate in degrees")
    units = str(found.attrs.get("units", ""))
    if units and not units.lower().startswith("deg") or not known and not units:
        raise ValueError(f"{file}: {found.name} is in {units or 'no units'}, not in degrees of {kind}: {REGRID}")
    values = np.asarray(found.values, np.float64)
    return values if values.ndim < 2 else _along(file, np.moveaxis(values, found.dims.index(name), 0), str(found.name))


def _along(file: Path, values: np.ndarray, name: str) -> np.ndarray:
    """The one value of each row of a grid (n, m) that is regular, although its places have two dimensions."""
    if values.ndim > 2 or not np.ptp(values, axis=1).max() < 1e-4:
        raise ValueError(f"{file}: {name} has two dimensions (a curvilinear grid): {REGRID}")
    return values[:, 0]


# ---- dates


def _dates(file: Path, array: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Dates, datetime64[m], and days since the first one by the file's own calendar, float64; both (T,)."""
    if name not in array.coords:
        raise ValueError(f"{file}: {name} has no dates: give it units such as 'days since 2000-01-01'")
    time = array[name]
    values, units = np.asarray(time.values), str(time.attrs.get("units", ""))
    numbers = values.dtype.kind in "iuf"
    if numbers and not np.isfinite(values).all():
        raise ValueError(f"{file}: {name} has missing dates: drop these frames")
    if numbers and (found := re.match(r"\s*(month|year)s?\s+since\s+(.*)", units, re.I)):
        return _from_months(file, values * (12 if found[1].lower() == "year" else 1), found[2])
    if numbers and units.lower().startswith("day as %y%m%d"):  # 20000131.5: dates that are spelled as numbers
        digits = [f"{int(v):08d}" for v in values]
        values, numbers = np.array([f"{x[:-4]}-{x[-4:-2]}-{x[-2:]}" for x in digits]), False
    if numbers and " since " in units:
        return _by_calendar(file, values, units, str(time.attrs.get("calendar", "standard")))
    try:
        if numbers:
            raise ValueError
        dates = values.astype(str).astype("datetime64[m]")
    except ValueError:
        raise ValueError(
            f"{file}: {name} is not of dates ({values.dtype}, units {units!r}): give it units such as "
            "'days since 2000-01-01'"
        ) from None
    return dates, (dates - dates[0]) / np.timedelta64(1, "D")


def _from_months(file: Path, months: np.ndarray, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Dates of months, whole and parts, after an origin: a part is that of the calendar's month."""
    import cftime

    try:
        begin = _standard(cftime.num2date(0, f"days since {origin}", only_use_cftime_datetimes=True))
    except (ValueError, TypeError):  # the latter of dates without a month or a day
        raise ValueError(f"{file}: time counts from {origin!r}, which is no date") from None
    begin = begin.astype("datetime64[D]")
    first = begin.astype("datetime64[M]")
    exact = months.astype(np.float64) + (begin - first.astype("datetime64[D]")).astype(int) / 30.4375
    whole = np.floor(exact + 1e-6).astype(int)
    start, end = (first + whole).astype("datetime64[m]"), (first + whole + 1).astype("datetime64[m]")
    dates = start + ((exact - whole).clip(0) * (end - start).astype(int)).astype(int).astype("timedelta64[m]")
    return dates, (dates - dates[0]) / np.timedelta64(1, "D")


def _by_calendar(file: Path, values: np.ndarray, units: str, calendar: str) -> tuple[np.ndarray, np.ndarray]:
    """Dates that a calendar gives; of 360_day those of the same part of the year."""
    import cftime

    calendar = CALENDARS.get(calendar.lower(), calendar.lower())
    try:
        found = np.atleast_1d(cftime.num2date(values, units, calendar, only_use_cftime_datetimes=True))
    except (ValueError, TypeError, OverflowError) as error:
        why = "no whole date" if isinstance(error, TypeError) else error
        raise ValueError(f"{file}: time in {units!r}, calendar {calendar}, cannot be read ({why})") from None
    days = cftime.date2num(found, "days since 0001-01-01", calendar).astype(np.float64)
    return np.array([_standard(date) for date in found]), days - days[0]


def _standard(date: Any) -> np.datetime64:
    """A date of any calendar in the standard one; of a year of 360 days that at the same part of the year."""
    if date.calendar == "360_day":
        year = np.datetime64(f"{date.year:04d}", "Y")
        first, end = year.astype("datetime64[m]"), (year + 1).astype("datetime64[m]")
        part = (date.dayofyr - 1 + date.hour / 24 + date.minute / 1440) / 360
        return first + np.timedelta64(int(part * (end - first).astype(int)), "m")
    day = np.datetime64(f"{date.year:04d}-{date.month:02d}", "D") + (date.day - 1)  # 29 February may be 1 March here
    return day.astype("datetime64[m]") + 60 * date.hour + date.minute
