"""Forecasts from a date that is not trained for, and forecasts as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.cli import validate
from sst import climate as C
from sst import config as O
from sst import data as D
from sst import export, latest, netcdf, skill
from sst import forecast as P
from sst import synthetic as S

TINY = replace(O.smoke(O.DEFAULT), device="cpu")


class Silent(nn.Module):
    """A network that says 0: each step is an AR(1) process."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), 1, *x.shape[2:])


def months(years: int = 8) -> D.Fields:
    """Two degrees, monthly, 20 x 40 cells around a planet of 18 longitudes of degree; the first rows hold land."""
    made = [S.make(S.Ocean(side=20, years=2, seed=k)).regions[0].values[: 12 * years] for k in range(2)]
    ocean = np.ones((20, 40), bool)
    ocean[:6, 15:28] = False
    values = (np.concatenate(made, 2) * ocean).astype(np.float32)
    times = np.arange("2001-01", f"{2001 + years}-01", dtype="datetime64[M]").astype("datetime64[D]")
    region = D.Region("west", values, ocean, np.linspace(38, 0, 20), 2.0 * np.arange(40))
    return D.Fields("made", [region], times)


@pytest.fixture(scope="module")
def world() -> P.World:
    fields = months()
    return P.fitted(fields, C.split(fields, 1, 1), TINY)


@pytest.fixture(scope="module")
def drawn(world) -> P.Ensemble:
    return P.forecast(P.Forecaster(Silent(), TINY), world, world.starts(TINY), 3, 0, "")


# ---- from a date


def test_a_forecast_from_a_date_is_that_of_the_evaluation(world, drawn, monkeypatch):
    """Whatever the file has after the date, and before the training years."""
    known = latest.learnt(world)
    assert known == {"first": "2001-01-01", "last": "2006-12-01", "frames": 72, "spacing": [2.0, 2.0]}
    start = int(drawn.frame[0])
    for extra in (0, 5):  # frames before
        fields = months()
        before = np.arange("2000-08", "2001-01", dtype="datetime64[M]").astype("datetime64[D]")[:extra]
        region = fields.regions[0]
        longer = np.concatenate([np.full((extra, 20, 40), 20, np.float32), region.values[:]])
        longer[start + extra + 1 :] = 99  # the future
        more = replace(fields, regions=[replace(region, values=longer)], times=np.concatenate([before, fields.times]))
        monkeypatch.setattr(latest, "source", lambda options, more=more: more)
        data, now = latest.world_until(replace(TINY, init=str(fields.times[start])[:7]), known)
        assert now == start and len(data.fields.times) == start + 1 + TINY.horizon
        assert np.array_equal(data.fields.times, fields.times[: start + 1 + TINY.horizon])
        again = P.forecast(P.Forecaster(Silent(), TINY), data, torch.tensor([now]), 3, 0, "")
        rows = drawn.frame == start
        assert torch.allclose(again.members, drawn.members[:, :, rows], atol=1e-5)
        assert again.target[:, :, again.start[0] != 0].isnan().any() and len(again.box) == 2


def test_frames_to_come_have_the_dates_of_their_kind():
    ends = np.array(["2019-10-31", "2019-11-30", "2019-12-31"], "datetime64[D]")
    assert [str(day) for day in latest.times_after(D.Fields("", [], ends), 2, 3)] == [
        "2020-01-31",
        "2020-02-29",
        "2020-03-31",
    ]
    five = np.datetime64("2020-02-20") + 5 * np.arange(3)
    assert [str(day) for day in latest.times_after(D.Fields("", [], five), 2, 2)] == ["2020-03-06", "2020-03-11"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"init": "2008-02-30"}, "--init 2008-02-30 is no date"),
        ({"init": "yesterday"}, "--init yesterday is no date: give one such as"),
        ({"init": "2007"}, "--init 2007: here has 12 frames in it, from 2007-01-01: name the day"),
        ({"init": "2007-03-14"}, "has 2001-01-01 to 2008-12-01, but not that; the nearest frame is of 2007-03-01"),
        ({"init": "2019-01"}, "the nearest frame is of 2008-12-01"),
        ({"init": "2004-05"}, "learnt from 2001-01-01 to 2006-12-01, what they say of these years is no forecast"),
        ({"breaks": (90,), "init": "2008-07"}, "has a gap before 2008-07-01, within the 2 frames"),
        ({"spacing": [1.0, 1.0]}, "has a grid of 2 x 2 degrees, the weights learnt on 1 x 1"),
        ({"first": "1999-01-01"}, "has 72 frames from 1999-01-01 to 2006-12-01, the weights learnt from 96"),
    ],
)
def test_what_cannot_be_forecast_from_is_refused(world, monkeypatch, changes, line):
    known: Any = {**latest.learnt(world), **{key: changes[key] for key in ("first", "spacing") if key in changes}}
    known["frames"] += 24 * ("first" in changes)
    monkeypatch.setattr(latest, "source", lambda options: replace(months(), breaks=changes.get("breaks", ())))
    with pytest.raises(ValueError, match=line) as caught:
        latest.world_until(replace(TINY, data="here", past=2, init=changes.get("init", "latest")), known)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"init": "2020-01"}, "--init 2020-01 is not read by --mode all: add --mode forecast"),
        ({"mode": "forecast"}, "--mode forecast needs --init"),
        ({"mode": "train", "forecasts": "a.nc"}, "--mode train makes none"),
        ({"mode": "forecast", "init": "latest", "beside": ("a",)}, "--beside a is not read by --mode forecast"),
    ],
)
def test_options_that_contradict_the_mode(changes, line):
    with pytest.raises(ValueError, match=line):
        validate(replace(TINY, **changes))


# ---- files


def as_they_came(world: P.World, drawn: P.Ensemble) -> P.Ensemble:
    """Members that are what happened, so that a file must hold the temperatures of the data."""
    return replace(drawn, members=drawn.target[:, None].expand_as(drawn.members))


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_files_hold_temperatures_at_their_dates_and_places(world, drawn, tmp_path, name):
    xarray = pytest.importorskip("xarray")
    if name == "a.zarr":
        pytest.importorskip("zarr")
    export.check_name(tmp_path / name)
    for _ in range(2):  # an older file is replaced
        found = export.datasets(world, as_they_came(world, drawn), {"card": json.dumps({"steps": 4}), "seed": 0})
        assert export.save(tmp_path / name, found) == [tmp_path / name]
        export.check_name(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with xarray.open_dataset(
        tmp_path / name, **({"engine": "zarr", "consolidated": False} if name == "a.zarr" else {})
    ) as file:
        file.load()
    assert file.sst.dims == export.DIMENSIONS and file.sst.shape == (3, 2, 3, 20, 40)
    truth, times = world.fields.regions[0], world.fields.times
    assert np.array_equal(file.longitude, truth.lon) and np.array_equal(file.latitude, truth.lat)
    for i, start in enumerate(file.init_time.values.astype("datetime64[D]")):
        for lead in (1, 2, 3):
            date = file.valid_time.values[i, lead - 1].astype("datetime64[D]")
            assert date == (start.astype("datetime64[M]") + lead).astype("datetime64[D]")
            field = file.sst.isel(member=1, init_time=i).sel(lead_time=lead).values
            wanted = np.where(truth.ocean, truth.values[np.searchsorted(times, date)], np.nan)
            assert np.allclose(field, wanted, atol=1e-4, equal_nan=True)
    assert (file.sst.attrs["units"], file.sst.attrs["standard_name"]) == ("degree_Celsius", "sea_surface_temperature")
    kinds = {key: file[key].attrs.get("standard_name") for key in file.coords}
    assert kinds["init_time"] == "forecast_reference_time" and kinds["valid_time"] == "time"
    assert kinds["member"] == "realization" and file.latitude.attrs["units"] == "degrees_north"
    assert json.loads(file.attrs["card"]) == {"steps": 4} and file.attrs["Conventions"].startswith("CF-")
    one = file.sst.isel(member=0, init_time=0).swap_dims(lead_time="valid_time").drop_encoding().to_dataset()
    if name == "a.zarr":
        one.to_zarr(tmp_path / "one.zarr", consolidated=False)
    else:
        one.to_netcdf(tmp_path / "one.nc")
    again = D.load(str(tmp_path / f"one{Path(name).suffix}"))  # what was written is read as data, too
    k = np.searchsorted(times, file.init_time.values[0].astype("datetime64[D]")) + 1
    assert np.array_equal(again.times, times[k : k + 3]) and np.array_equal(again.regions[0].ocean, truth.ocean)
    assert np.allclose(again.regions[0].values[:], truth.values[k : k + 3], atol=1e-4)
    with pytest.raises(
        ValueError, match="member, init_time, lead_time, latitude, longitude.: they must be time, lat, lon"
    ):
        D.load(str(tmp_path / name))


def test_days_are_leads_of_a_unit_and_regions_have_files_of_their_own(drawn, tmp_path):
    xarray = pytest.importorskip("xarray")
    data = P.world(TINY)
    twin = replace(data.boxes[0], region=replace(data.boxes[0].region, name="east"))
    data = replace(data, boxes=[data.boxes[0], twin])
    made = P.forecast(P.Forecaster(Silent(), TINY), data, data.starts(TINY), 2, 0, "")
    files = export.save(tmp_path / "a.nc", export.datasets(data, made, {}))
    assert [file.name for file in files] == ["a-synthetic.nc", "a-east.nc"]
    with xarray.open_dataset(files[1], decode_timedelta=True) as file:
        step = (file.valid_time - file.init_time).transpose("init_time", "lead_time").values
        assert (step == file.lead_time.values).all() and step[0, 0] == np.timedelta64(5, "D")
        assert np.array_equal(file.latitude, np.arange(20)) and "standard_name" not in file.latitude.attrs


@pytest.mark.parametrize(
    ("name", "line"),
    [("a.grib", "a.grib: give a name that ends in .nc"), ("b.nc", "b.nc is a folder"), ("b.zarr", "no zarr group")],
)
def test_names_of_files_that_cannot_be_written(tmp_path, monkeypatch, name, line):
    monkeypatch.setattr(netcdf.importlib.util, "find_spec", lambda name: name)
    for folder in ("b.nc", "b.zarr"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=line):
        export.check_name(tmp_path / name)
    monkeypatch.setattr(netcdf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package zarr: pip install zarr, or give a name that ends in .nc"):
        export.check_name(Path("c.zarr"))


def test_the_outlook_is_the_mean_over_the_area(world, drawn):
    one = P.forecast(P.Forecaster(Silent(), TINY), world, drawn.frame[:1], 3, 0, "")
    found = skill.outlook(world, replace(one, members=torch.ones_like(one.members)))
    assert list(found) == [str(day) for day in world.fields.times[int(one.frame[0]) + 1 :][:3]]
    std, area = world.maps("std")[one.box], world.maps("area")[one.box]
    row = found[str(world.fields.times[int(one.frame[0]) + 1])]
    assert row["anomaly"] == pytest.approx(((std * area).sum() / area.sum()).item(), rel=1e-5) and row["spread"] == 0
    assert 0 <= row["warm"] <= 1
