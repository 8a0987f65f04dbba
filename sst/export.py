"""Forecasts as the field keeps them: xarray data sets with named dimensions and CF attributes, NetCDF or zarr.

Dimensions are (member, init_time, lead_time, latitude, longitude), temperatures in deg C, NaN on land. The card of the
weights goes along as the attribute ``card``. Source: CF conventions 1.11, sections 3 to 5, and their standard names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.runtime import atomic_folder, atomic_write
from sst.netcdf import is_zarr, need_zarr

if TYPE_CHECKING:
    import xarray

    from sst.data import Fields
    from sst.forecast import Ensemble, World

DIMENSIONS = ("member", "init_time", "lead_time", "latitude", "longitude")


def check_name(path: str | Path) -> None:
    """Raise ValueError unless forecasts can be written under that name; before they are made."""
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"--forecasts {path}: give a name that ends in .nc (NetCDF) or .zarr")
    if path.suffix == ".zarr":
        need_zarr(f"--forecasts {path}", "a name that ends in .nc")
    if path.suffix == ".nc" and path.is_dir():
        raise ValueError(f"--forecasts {path} is a folder: give another name")
    if path.suffix == ".zarr" and path.exists() and not is_zarr(path):
        raise ValueError(f"--forecasts {path} is there and no zarr group: give another name")


def datasets(data: World, drawn: Ensemble, facts: Mapping[str, Any]) -> dict[str, xarray.Dataset]:
    """The forecasts of each region, by its name; boxes of one region are joined along the longitudes.

    Args:
        data: the data.
        drawn: forecasts, all starts of the first box first.
        facts: attributes of the whole, texts and numbers.
    """
    names = list(dict.fromkeys(box.region.name for box in data.boxes))
    return {name: _dataset(data, drawn, name, facts) for name in names}


def _dataset(data: World, drawn: Ensemble, name: str, facts: Mapping[str, Any]) -> xarray.Dataset:
    """Of one region."""
    import xarray

    boxes = [k for k, box in enumerate(data.boxes) if box.region.name == name]
    parts = [_fields(data, drawn, k) for k in boxes]
    values, cycle = (np.concatenate(part, -1) for part in zip(*parts))
    frames, leads = drawn.frame[drawn.box == boxes[0]].numpy(), np.arange(1, len(drawn.target) + 1)
    valid = data.fields.times[frames[:, None] + leads]
    lat, lon = data.boxes[boxes[0]].region.lat, np.concatenate([data.boxes[k].region.lon for k in boxes])
    member = {"standard_name": "realization", "units": "1"}
    init = {"standard_name": "forecast_reference_time", "long_name": "date of the last field that is known"}
    date = {"standard_name": "time", "long_name": "date of the forecast"}
    coords = {
        "member": ("member", np.arange(len(values), dtype=np.int32), member),
        "init_time": ("init_time", data.fields.times[frames].astype("datetime64[ns]"), init),
        "lead_time": _lead_time(data.fields, valid, frames, leads),
        "valid_time": (("init_time", "lead_time"), valid.astype("datetime64[ns]"), date),
        "latitude": _places("latitude", lat, "north", "Y"),
        "longitude": _places("longitude", lon, "east", "X"),
    }
    about = {"units": "degree_Celsius", "standard_name": "sea_surface_temperature", "coordinates": "valid_time"}
    known = {"long_name": "seasonal cycle of the training years, from which anomalies are counted"}
    variables = {
        "sst": (DIMENSIONS, values, about | {"long_name": "forecast of the sea surface temperature"}),
        "climatology": (DIMENSIONS[1:], cycle, about | known),
    }
    title = {"Conventions": "CF-1.11", "title": f"Ensemble forecasts of sea surface temperature, {name}"}
    return xarray.Dataset(variables, coords, title | dict(facts))


def _fields(data: World, drawn: Ensemble, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Temperatures (member, init, lead, H, W) of one box and its seasonal cycle (init, lead, H, W); NaN on land."""
    box, rows = data.boxes[k], drawn.box == k
    leads = torch.arange(1, len(drawn.target) + 1)
    land = torch.where(box.ocean.bool(), 0.0, torch.nan)
    cycle = box.cycle[drawn.frame[rows][:, None] + leads] + land
    members = drawn.members[:, :, rows].permute(1, 2, 0, 3, 4) * box.std + cycle
    return members.float().numpy(), cycle.float().numpy()


def _lead_time(fields: Fields, valid: np.ndarray, frames: np.ndarray, leads: np.ndarray) -> tuple[Any, ...]:
    """Days where they are the same from every start; months and uneven frames are counted."""
    days = (valid - fields.times[frames][:, None]).astype("timedelta64[D]").astype(np.int64)
    about = {"standard_name": "forecast_period", "long_name": "time since the last field that is known"}
    if not fields.monthly and (days == days[0]).all():
        return ("lead_time",), days[0], about | {"units": "days"}
    unit = "calendar months" if fields.monthly else "frames"  # no unit of CF: valid_time has the dates
    return ("lead_time",), leads, {"long_name": f"{about['long_name']}, in {unit}", "units": "1"}


def _places(name: str, values: np.ndarray, way: str, axis: str) -> tuple[Any, ...]:
    """Degrees; a field without places has its rows and columns counted."""
    if np.ptp(values) == 0:
        return (name,), np.arange(len(values)), {"long_name": f"cells along the {name}", "units": "1"}
    return (name,), values, {"standard_name": name, "units": f"degrees_{way}", "axis": axis}


def card_of(weights: Path) -> str:
    """The card beside weights, as one line of JSON; empty: there is none."""
    card = weights.with_suffix(".json")
    return json.dumps(json.loads(card.read_text(encoding="utf-8"))) if card.exists() else ""


def save(path: str | Path, found: Mapping[str, xarray.Dataset]) -> list[Path]:
    """Write data sets, whole or not at all: one under the name given, several with their regions' names in it."""
    path = Path(path)
    files = [path if len(found) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}") for name in found]
    for file, data in zip(files, found.values(), strict=True):
        _save(file, data)
    return files


def _save(path: Path, data: xarray.Dataset) -> None:
    days = {"dtype": "int32", "units": "days since 1970-01-01", "calendar": "standard"}
    encoding: dict[str, dict[str, Any]] = {"init_time": days, "valid_time": days}
    if path.suffix == ".nc":
        packed = {"zlib": True, "complevel": 1, "dtype": "float32"}
        with atomic_write(path) as temporary:
            data.to_netcdf(temporary, engine="netcdf4", encoding=encoding | {name: packed for name in data.data_vars})
        return
    with atomic_folder(path) as temporary:
        data.to_zarr(temporary, mode="w", encoding=encoding, consolidated=False)
