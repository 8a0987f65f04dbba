"""Sea surface temperatures from files: NetCDF, zarr, DYffusion's OISST boxes, npz.

Whatever the file, the result is :class:`Fields`: one or more regions over the same times, land marked, deg C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sst import clean, netcdf
from sst.clean import Raw
from sst.frames import Frames, chunks


@dataclass(frozen=True)
class Region:
    """One field over time.

    Args:
        name: for titles.
        values: (T, H, W), float32, deg C; 0 on land. Of files, read when asked for.
        ocean: (H, W), bool.
        lat: (H,), degrees.
        lon: (W,), degrees.
        cyclic: whether the last column is the first one's neighbour.
    """

    name: str
    values: np.ndarray | Frames
    ocean: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    cyclic: bool = False


@dataclass(frozen=True)
class Fields:
    """Regions over the same times (T,), datetime64[D].

    ``torus``: both sides are periodic. ``made``: the synthetic field's parameters, which the exact forecast needs.
    ``breaks``: frames that do not follow the one before at the usual distance, see ``clean.breaks``.
    """

    name: str
    regions: list[Region]
    times: np.ndarray
    torus: bool = False
    made: Any = None
    breaks: tuple[int, ...] = ()

    @property
    def per_year(self) -> float:
        """Frames in a year."""
        return 365.2425 / float(np.median(np.diff(self.times).astype(float)))

    @property
    def step(self) -> int:
        """Usual days between frames; of months 28 to 31."""
        return int(np.median(np.diff(self.times).astype(int)))

    @property
    def monthly(self) -> bool:
        """Whether the frames are months."""
        return 28 <= self.step <= 31

    @property
    def half(self) -> np.timedelta64:
        """Half a step: by so much less a date may differ from the one that is meant."""
        return np.timedelta64(int(365.2425 / self.per_year / 2), "D")

    def between(self, first: int, end: int, later: np.ndarray | None = None) -> Fields:
        """Frames [first, end), and empty ones of ``later`` dates."""
        later = self.times[:0] if later is None else later
        index = np.concatenate([np.arange(first, end), np.full(len(later), -1)])
        regions = [replace(region, values=Frames.of(region.values).take(index)) for region in self.regions]
        breaks = tuple(b - first for b in self.breaks if first < b < end)
        return replace(self, regions=regions, times=np.concatenate([self.times[first:end], later]), breaks=breaks)


def load(path: str, variable: str = "", gaps: str = "error") -> Fields:
    """Read temperatures.

    Args:
        path: NetCDF file, zarr group, folder of ``sst.day.mean.box*.nc``, or .npz with sst (T, H, W) and perhaps time,
            lat, lon.
        variable: of a NetCDF file or zarr group; empty: found.
        gaps: "error" or "land", for cells that are missing at some times only.

    Raises:
        FileNotFoundError: no such file, or no box in the folder.
        ValueError: unreadable, damaged, or not temperatures over time, latitude and longitude.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(
            f"no data at {file}: give a NetCDF file, a folder of boxes or a .npz, or leave --data out"
        )
    is_zarr = file.is_dir() and (file.suffix == ".zarr" or netcdf.is_zarr(file))
    if file.is_dir() and not is_zarr:
        return _load_boxes(file, variable, gaps)
    if not is_zarr and not file.is_file():
        raise ValueError(f"{file} is no regular file: give a NetCDF file, a folder of boxes or a .npz")
    if file.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{file} is a pickle, which may run any program when read: convert it to .npz (see README.md)")
    raw = _read_npz(file) if file.suffix == ".npz" else _read(file, variable)
    name = file.name.split(".nc")[0].removesuffix(".npz").removesuffix(".zarr")
    regions, breaks = [_region(file.stem, raw, gaps)], clean.breaks(raw.where, raw.dates, raw.days)
    return Fields(name, regions, _days(raw), breaks=breaks)


def _read(file: Path, variable: str) -> Raw:
    """The field of a NetCDF file or zarr group, cleaned."""
    with netcdf.opened(file, variable) as raw:
        return clean.cleaned(raw)


def _days(raw: Raw) -> np.ndarray:
    return raw.dates.astype("datetime64[D]")


def _load_boxes(folder: Path, variable: str, gaps: str) -> Fields:
    """All boxes of a folder in DYffusion's layout."""
    files = sorted(folder.glob("*box*.nc"), key=lambda f: (len(f.name), f.name))
    if not files:
        raise FileNotFoundError(f"no file like sst.day.mean.box84.nc in {folder}: give a NetCDF file or another folder")
    regions, first = [], _read(files[0], variable)
    for file in files:
        raw = first if file == files[0] else _read(file, variable)
        if not np.array_equal(raw.dates, first.dates):
            raise ValueError(f"{file} has other times than {files[0].name}: boxes must cover the same days")
        regions.append(_region(file.stem.rpartition(".")[2], raw, gaps))
    return Fields(folder.name, regions, _days(first), breaks=clean.breaks(str(folder), first.dates, first.days))


def _read_npz(file: Path) -> Raw:
    """What an npz holds, cleaned; what it lacks is counted up, and said. While it is read, it is in memory."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive may fail in any way
        raise ValueError(
            f"{file} is damaged or not an .npz of plain arrays ({type(error).__name__}): make it again"
        ) from error
    if "sst" not in arrays:
        raise ValueError(f"{file} has no array sst, but {', '.join(arrays) or 'nothing'}: name it sst, shape (T, H, W)")
    values = arrays["sst"]
    if values.ndim != 3 or values.dtype.kind not in "iuf" or not values.size:
        raise ValueError(
            f"{file}: sst is {values.dtype} {values.shape}: it must be numbers (time, latitude, longitude)"
        )
    lat, lon = (_degrees(file, arrays, key, n) for key, n in zip(("lat", "lon"), values.shape[1:]))
    dates = _dates(file, arrays.get("time"), len(values))
    days = (dates - dates[0]) / np.timedelta64(1, "D")
    return clean.cleaned(Raw(f"{file}: sst", Frames(values), dates, days, lat, lon, str(arrays.get("units", ""))))


def _dates(file: Path, time: np.ndarray | None, n: int) -> np.ndarray:
    """Dates (n,) of an npz."""
    if time is None:
        print(f"{file} has no time: its frames are taken as days from 2000-01-01")
        return (np.datetime64("2000-01-01") + np.arange(n)).astype("datetime64[m]")
    if time.shape != (n,):
        raise ValueError(f"{file}: sst has {n} frames, time has shape {time.shape}: give one date a frame, ({n},)")
    try:
        if time.dtype.kind not in "MUS":
            raise ValueError
        return time.astype("datetime64[m]")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: time is not of dates: store datetime64, or texts such as 2020-01-31") from error


def _degrees(file: Path, arrays: dict[str, np.ndarray], key: str, n: int) -> np.ndarray:
    """Latitudes or longitudes (n,) of an npz."""
    if key not in arrays:
        print(f"{file} has no {key}: " + ("all cells count alike" if key == "lat" else "taken as not cyclic"))
        return np.zeros(n)
    if arrays[key].dtype.kind not in "iuf" or arrays[key].shape != (n,):
        what = f"{key} is {arrays[key].dtype} {arrays[key].shape}"
        raise ValueError(
            f"{file}: {what}: give one number of degrees a cell, ({n},); a grid of two dimensions cannot be read"
        )
    return arrays[key].astype(np.float64)


def _region(name: str, raw: Raw, gaps: str) -> Region:
    """Mark the land of one field."""
    some, every = np.zeros(raw.values.shape[1:], bool), np.ones(raw.values.shape[1:], bool)
    first = np.full(raw.values.shape[1:], len(raw.values))  # frame that a cell is missing in
    for a, b in chunks(raw.values):
        missing = ~np.isfinite(raw.values[a:b])
        some, every = some | missing.any(0), every & missing.all(0)
        first = np.where(missing.any(0), np.minimum(first, a + missing.argmax(0)), first)
    land = some if gaps == "land" else every
    if (holes := some & ~land).any():
        t = first[holes].min()
        i, j = np.argwhere(holes & (first == t))[0]
        raise ValueError(
            f"{raw.where}: {int(holes.sum())} ocean cells are missing at some times (first {_days(raw)[t]}, row {i}, "
            f"column {j}): fill them, or take them as land with --gaps land"
        )
    if land.all():
        raise ValueError(f"{raw.where}: no cell has a temperature at all times: is it the right variable?")
    spacing = clean.eastward(raw.lon)
    even = len(raw.lon) > 2 and np.allclose(spacing, spacing[0], atol=1e-3)
    cyclic = bool(even and abs(abs(spacing[0]) * len(raw.lon) - 360) < 1e-2)
    return Region(name, raw.values.with_land(land), ~land, raw.lat.astype(float), raw.lon.astype(float), cyclic)
