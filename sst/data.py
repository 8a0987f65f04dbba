"""Sea surface temperatures from files: NetCDF, DYffusion's OISST boxes, npz.

Whatever the file, the result is :class:`Fields`: one or more regions over the same times, land marked, deg C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LATITUDES, LONGITUDES = ("lat", "latitude", "y", "nav_lat"), ("lon", "longitude", "x", "nav_lon")
NAMES = ("sst", "analysed_sst", "tos", "sea_surface_temperature")


@dataclass(frozen=True)
class Region:
    """One field over time.

    Args:
        name: for titles.
        values: (T, H, W), float32, deg C; 0 on land.
        ocean: (H, W), bool.
        lat: (H,), degrees.
        lon: (W,), degrees.
        cyclic: whether the last column is the first one's neighbour.
    """

    name: str
    values: np.ndarray
    ocean: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    cyclic: bool = False


@dataclass(frozen=True)
class Fields:
    """Regions over the same times (T,), datetime64[D].

    ``torus``: both sides are periodic. ``made``: the synthetic field's parameters, which the exact forecast needs.
    """

    name: str
    regions: list[Region]
    times: np.ndarray
    torus: bool = False
    made: Any = None

    @property
    def per_year(self) -> float:
        """Frames in a year."""
        return 365.2425 / float(np.median(np.diff(self.times).astype(float)))


def load(path: str, variable: str = "", gaps: str = "error") -> Fields:
    """Read temperatures.

    Args:
        path: NetCDF file, folder of ``sst.day.mean.box*.nc``, or .npz with sst (T, H, W) and perhaps time, lat, lon.
        variable: of a NetCDF file; empty: found.
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
    if file.is_dir():
        return _load_boxes(file, variable, gaps)
    if file.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{file} is a pickle, which may run any program when read: convert it to .npz (see README.md)")
    raw = _read_npz(file) if file.suffix == ".npz" else _read_netcdf(file, variable)
    values, times, lat, lon = raw
    return Fields(
        file.name.split(".nc")[0].removesuffix(".npz"), [_region(file, file.stem, values, times, lat, lon, gaps)], times
    )


def _load_boxes(folder: Path, variable: str, gaps: str) -> Fields:
    """All boxes of a folder in DYffusion's layout."""
    files = sorted(folder.glob("*box*.nc"), key=lambda f: (len(f.name), f.name))
    if not files:
        raise FileNotFoundError(f"no file like sst.day.mean.box84.nc in {folder}: give a NetCDF file or another folder")
    regions, first = [], None
    for file in files:
        values, times, lat, lon = _read_netcdf(file, variable)
        first = times if first is None else first
        if not np.array_equal(times, first):
            raise ValueError(f"{file} has other times than {files[0].name}: boxes must cover the same days")
        regions.append(_region(file, file.stem.rpartition(".")[2], values, times, lat, lon, gaps))
    assert first is not None
    return Fields(folder.name, regions, first)


def _read_npz(file: Path) -> tuple[np.ndarray, ...]:
    """Values, times, latitudes and longitudes of an npz; what it lacks is counted up."""
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
    if values.ndim != 3:
        raise ValueError(f"{file}: sst has shape {values.shape}: it must be (time, latitude, longitude)")
    days = np.datetime64("2000-01-01") + np.arange(len(values))
    try:
        times = arrays["time"].astype("datetime64[D]") if "time" in arrays else days
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: time is not of dates: store datetime64, or texts such as 2020-01-31") from error
    lat, lon = (arrays.get(key, np.zeros(n)) for key, n in (("lat", values.shape[1]), ("lon", values.shape[2])))
    return values.astype(np.float32), times, lat, lon


def _read_netcdf(file: Path, variable: str) -> tuple[np.ndarray, ...]:
    """Values (T, H, W) in deg C, times, latitudes and longitudes of a NetCDF file."""
    try:
        import xarray
    except ImportError as error:
        raise ValueError("NetCDF files need xarray and netCDF4: pip install xarray netCDF4, or give an .npz") from error
    try:
        with xarray.open_dataset(file) as data:
            array = _choose(file, data, variable)
            dims = _dimensions(file, array)
            array = array.transpose(*dims).load()
            times, lat, lon = (array[d].values if d in array.coords else np.zeros(array.sizes[d]) for d in dims)
    except (OSError, RuntimeError, KeyError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged or not NetCDF ({type(error).__name__}): copy or download it again"
        ) from error
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} is not NetCDF that xarray can read: copy or download it again") from error
    if not np.issubdtype(times.dtype, np.datetime64):
        raise ValueError(
            f"{file}: {dims[0]} is not of dates ({times.dtype}): give it units such as 'days since 2000-01-01'"
        )
    values = array.values.astype(np.float32)
    kelvin = str(array.attrs.get("units", "")).lower() in ("k", "kelvin", "degk")
    return values - (273.15 if kelvin else 0), times.astype("datetime64[D]"), lat, lon


def _choose(file: Path, data: Any, variable: str) -> Any:
    """The variable that is meant."""
    there = [str(key) for key in data.data_vars if data[key].ndim >= 3] or [str(key) for key in data.data_vars]
    if variable and variable not in data.data_vars:
        raise ValueError(f"{file} has no variable {variable}, but {', '.join(there) or 'none'}: choose with --variable")
    found = [variable] if variable else [key for key in NAMES if key in data.data_vars] or there
    if not variable and found[0] not in NAMES and len(found) != 1:
        raise ValueError(f"{file} has no variable sst, but {', '.join(there) or 'none'}: choose with --variable")
    chosen = data[found[0]]
    single = [d for d in chosen.dims if chosen.sizes[d] == 1 and d not in ("time", *LATITUDES, *LONGITUDES)]
    return chosen.squeeze(single)  # a level of height 1, as OISST has


def _dimensions(file: Path, array: Any) -> tuple[str, str, str]:
    """The names of time, latitude and longitude."""
    by_kind = [
        next((d for d in array.dims if str(d).lower() in names), None) for names in (("time",), LATITUDES, LONGITUDES)
    ]
    if array.ndim != 3 or None in by_kind:
        raise ValueError(
            f"{file}: {array.name} has dimensions ({', '.join(map(str, array.dims))}): they must be time, lat, lon"
        )
    return tuple(map(str, by_kind))  # type: ignore[return-value]


def _region(
    file: Path, name: str, values: np.ndarray, times: np.ndarray, lat: np.ndarray, lon: np.ndarray, gaps: str
) -> Region:
    """Check one field, and mark its land."""
    if len(times) != len(values) or len(lat) != values.shape[1] or len(lon) != values.shape[2]:
        raise ValueError(f"{file}: sst of shape {values.shape} with {len(times)} times, {len(lat)} lat, {len(lon)} lon")
    steps = np.diff(times).astype(int)
    if len(times) < 2 or (steps <= 0).any():
        at = times[int(np.argmax(steps <= 0)) + 1] if len(times) > 1 else "the only one"
        raise ValueError(f"{file}: times must ascend without repeats, but do not at {at}: sort the file, or cut it")
    missing = ~np.isfinite(values)
    land = missing.all(0)
    if gaps == "land":
        land = missing.any(0)
    elif (count := int((missing.any(0) & ~land).sum())) > 0:
        t, i, j = np.argwhere(missing & ~land)[0]
        raise ValueError(
            f"{file}: {count} ocean cells are missing at some times (first {times[t]}, row {i}, column {j}): "
            "fill them, or take them as land with --gaps land"
        )
    if land.all():
        raise ValueError(f"{file}: no cell has a temperature at all times: is it the right variable?")
    spacing = np.diff(lon.astype(float))
    cyclic = (
        len(lon) > 2 and bool(np.allclose(spacing, spacing[0], atol=1e-3)) and abs(spacing[0] * len(lon) - 360) < 1e-2
    )
    return Region(
        name,
        np.where(land, 0, values).astype(np.float32),
        np.asarray(~land),
        lat.astype(float),
        lon.astype(float),
        cyclic,
    )
