"""Temperatures from files of every kind, made small on the fly; and one clear line for each way they can be wrong."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch

from sst import climate as C
from sst import data as D
from sst import netcdf

xarray = pytest.importorskip("xarray")
MONTHS = np.arange("2000-01", "2010-01", dtype="datetime64[M]").astype("datetime64[ns]")


def values(t: int = 120, h: int = 6, w: int = 8) -> np.ndarray:
    """Numbers that name their place: time in the tens, row and column in the decimals; the first column is land."""
    t_, i, j = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    field = (t_ % 12 + 0.1 * i + 0.01 * j + 0.003 * t_).astype(np.float32)
    field[:, :, 0] = np.nan
    return field


def dataset(field: np.ndarray | None = None, times: np.ndarray = MONTHS, name: str = "sst", **attributes: str):
    field = values() if field is None else field
    lat, lon = np.linspace(50, -50, field.shape[1]), np.arange(field.shape[2]) * 360 / field.shape[2]
    array = xarray.DataArray(field, dims=("time", "lat", "lon"), coords={"time": times, "lat": lat, "lon": lon})
    return xarray.Dataset({name: array.assign_attrs(attributes)})


def test_netcdf(tmp_path):
    dataset().to_netcdf(tmp_path / "sst.mnmean.nc")
    fields = D.load(str(tmp_path / "sst.mnmean.nc"))
    (region,) = fields.regions
    assert np.array_equal(region.values[:, :, 1:], values()[:, :, 1:]) and (region.values[:, :, 0] == 0).all()
    assert not region.ocean[:, 0].any() and region.ocean[:, 1:].all() and region.cyclic and fields.name == "sst.mnmean"
    assert fields.times[13] == np.datetime64("2001-02-01") and fields.per_year == pytest.approx(12, abs=0.3)


def test_dimensions_of_other_names_and_orders_a_level_and_kelvin(tmp_path):
    data = dataset(values() + 273.15, name="analysed_sst", units="kelvin").rename(lat="latitude", lon="longitude")
    data = data.expand_dims(zlev=[0.0]).transpose("longitude", "time", "zlev", "latitude")
    data["second"] = data["analysed_sst"] + 5
    data.to_netcdf(tmp_path / "a.nc")
    (region,) = D.load(str(tmp_path / "a.nc")).regions
    assert np.allclose(region.values[:, :, 1:], values()[:, :, 1:], atol=1e-4)
    chosen = D.load(str(tmp_path / "a.nc"), variable="second").regions[0]
    assert np.allclose(chosen.values[:, :, 1:], values()[:, :, 1:] + 5, atol=1e-4)


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize("pieces", [7, 120])
def test_zarr_groups_are_read_as_the_same_file_is(tmp_path, capsys, kind, pieces):
    """Codes, units and order are looked at as those of NetCDF files."""
    pytest.importorskip("zarr")
    data = dataset(np.nan_to_num(values() + 273.15, nan=-999)[::-1], MONTHS[::-1], units="K")
    data.to_netcdf(tmp_path / "sst.mnmean.nc")
    packed = {"sst": {"chunks": (pieces, 6, 8)}}
    data.to_zarr(tmp_path / "sst.mnmean.zarr", zarr_format=kind, consolidated=False, encoding=packed)
    found = {}
    for name in ("sst.mnmean.nc", "sst.mnmean.zarr"):
        fields = D.load(str(tmp_path / name))
        found[name] = capsys.readouterr().out.replace(str(tmp_path / name), "")
        assert fields.name == "sst.mnmean" and fields.times[13] == np.datetime64("2001-02-01")
        (region,) = fields.regions
        assert np.allclose(region.values[:, :, 1:], values()[:, :, 1:], atol=1e-4) and not region.ocean[:, 0].any()
    assert len(set(found.values())) == 1 and "720 values are -999" in found["sst.mnmean.nc"]
    with netcdf.opened(tmp_path / "sst.mnmean.zarr") as raw:
        assert raw.values.store.packed == pieces


def test_a_zarr_group_without_its_package_or_damaged(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)
    for file in (tmp_path / "a.zarr" / "sst").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="a.zarr is (damaged or )?not zarr"):
        D.load(str(tmp_path / "a.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="empty.zarr is (damaged or )?not zarr"):
        D.load(str(tmp_path / "empty.zarr"))
    monkeypatch.setattr(netcdf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="a.zarr needs the package zarr: pip install zarr, or give a NetCDF file"):
        D.load(str(tmp_path / "a.zarr"))


def test_boxes_of_dyffusion(tmp_path):
    for k, shift in ((84, 0.0), (108, 5.0), (9, 1.0)):
        dataset(values() + shift).to_netcdf(tmp_path / f"sst.day.mean.box{k}.nc")
    fields = D.load(str(tmp_path))
    assert [region.name for region in fields.regions] == ["box9", "box84", "box108"]
    assert fields.regions[2].values[3, 2, 2] == pytest.approx(values()[3, 2, 2] + 5)
    dataset(times=MONTHS + np.timedelta64(1, "D")).to_netcdf(tmp_path / "sst.day.mean.box85.nc")
    with pytest.raises(ValueError, match="other times"):
        D.load(str(tmp_path))


def test_npz(tmp_path):
    field = values()
    np.savez(tmp_path / "a.npz", sst=field, time=MONTHS.astype("datetime64[D]").astype(str), lat=np.arange(6.0))
    fields = D.load(str(tmp_path / "a.npz"))
    assert np.array_equal(fields.regions[0].values[:, :, 1:], field[:, :, 1:])
    assert fields.times[1] == np.datetime64("2000-02-01") and fields.regions[0].lat[3] == 3
    np.savez(tmp_path / "b.npz", sst=field)
    assert np.diff(D.load(str(tmp_path / "b.npz")).times).astype(int).tolist() == [1] * 119


def _gaps():
    field = values()
    field[5, 2, 3] = np.nan
    return dataset(field)


UNEVEN = MONTHS[0] + np.timedelta64(1, "D") * np.cumsum([1, 9, 40] * 40)


def _projected():
    data = dataset().rename(lat="y", lon="x").assign_coords(y=1e4 * np.arange(6), x=1e4 * np.arange(8))
    data["y"].attrs.update(units="m", standard_name="projection_y_coordinate")
    return data


def _curved(rows: str, columns: str):
    """Places with two dimensions: each row's latitude changes along it."""
    lat, lon = np.meshgrid(np.linspace(50, -50, 6), np.arange(8.0) * 45, indexing="ij")
    data = dataset().rename(lat=rows, lon=columns).drop_vars([rows, columns])
    return data.assign_coords(lat=((rows, columns), lat + lon / 90), lon=((rows, columns), lon))


def _npz(path, **arrays):
    np.savez(path, **arrays)


def _truncated(path):
    dataset().to_netcdf(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


BAD = {  # name: (what writes the file, options, what the line says)
    "pipe.nc": (os.mkfifo, {}, "no regular file"),
    "missing.nc": (None, {}, "no data at .*missing.nc"),
    "pickle.pkl": (lambda p: p.write_bytes(pickle.dumps([1])), {}, "is a pickle.*convert it to .npz"),
    "other.nc": (lambda p: dataset(name="ice").assign(wind=dataset()["sst"]).to_netcdf(p), {}, "no variable sst, but"),
    "named.nc": (lambda p: dataset().to_netcdf(p), {"variable": "tos"}, "no variable tos, but sst"),
    "empty.nc": (lambda p: xarray.Dataset().to_netcdf(p), {}, "holds no variables"),
    "flat.nc": (lambda p: dataset().isel(lat=0).to_netcdf(p), {}, "dimensions .time, lon.*must be time, lat, lon"),
    "deep.nc": (lambda p: xarray.concat([dataset()] * 2, "level").to_netcdf(p), {}, "must be time, lat, lon"),
    "gaps.nc": (
        lambda p: _gaps().to_netcdf(p),
        {},
        "1 ocean cells are missing.*2000-06-01, row 2, column 3.*--gaps land",
    ),
    "twice.nc": (lambda p: dataset(times=np.r_[MONTHS[:5], MONTHS[4:-1]]).to_netcdf(p), {}, "share a date.*2000-05-01"),
    "uneven.nc": (lambda p: dataset(times=UNEVEN).to_netcdf(p), {}, "1 to 40 days apart"),
    "none.nc": (lambda p: dataset(values(0), MONTHS[:0]).to_netcdf(p), {}, r"sst is float32 \(0, 6, 8\)"),
    "letters.nc": (lambda p: dataset(values().astype(str)).to_netcdf(p), {}, "must be numbers"),
    "celsius.nc": (lambda p: dataset(units="K").to_netcdf(p), {}, "they look like deg C: correct its units"),
    "one.nc": (lambda p: dataset(values(1), MONTHS[:1]).to_netcdf(p), {}, "has 1 frame"),
    "unit.nc": (lambda p: dataset(units="m s-1").to_netcdf(p), {}, "is in m s-1, no unit of temperature"),
    "wrong.nc": (lambda p: dataset(values() + 273.15, units="degC").to_netcdf(p), {}, "they look like kelvin"),
    "warm.nc": (lambda p: dataset(1.8 * values() + 45).to_netcdf(p), {}, "they look like degrees Fahrenheit"),
    "ice.nc": (lambda p: dataset(values() * 7).to_netcdf(p), {}, "no temperatures of a sea .-5 to 50 deg C"),
    "pole.nc": (
        lambda p: dataset().assign_coords(lat=np.linspace(95, 40, 6)).to_netcdf(p),
        {},
        "latitudes from 40 to 95",
    ),
    "metres.nc": (lambda p: _projected().to_netcdf(p), {}, "y is in m, not in degrees.*remapbil"),
    "index.nc": (lambda p: dataset().rename(lat="y", lon="x").to_netcdf(p), {}, "y is in no units, not in degrees"),
    "nowhere.nc": (lambda p: dataset().drop_vars("lat").to_netcdf(p), {}, "dimension lat has no latitude"),
    "curved.nc": (lambda p: _curved("y", "x").to_netcdf(p), {}, "lat has two dimensions .a curvilinear grid.*remapbil"),
    "rotated.nc": (lambda p: _curved("j", "i").to_netcdf(p), {}, "lat and lon have two dimensions"),
    "undated.nc": (lambda p: dataset(times=np.arange(120)).to_netcdf(p), {}, "not of dates"),
    "land.nc": (lambda p: dataset(values() * np.nan).to_netcdf(p), {}, "no cell has a temperature"),
    "cut.nc": (_truncated, {}, "damaged or not NetCDF"),
    "text.nc": (lambda p: p.write_text("hello"), {}, "not NetCDF|no NetCDF|damaged"),
    "empty.npz": (lambda p: p.write_bytes(b""), {}, "damaged or not an .npz"),
    "unnamed.npz": (lambda p: _npz(p, a=np.zeros(3)), {}, "no array sst, but a"),
    "shape.npz": (lambda p: _npz(p, sst=np.zeros((3, 4))), {}, r"sst is float64 \(3, 4\)"),
    "dates.npz": (lambda p: _npz(p, sst=values(), time=np.array(["x"] * 120)), {}, "time is not of dates"),
    "numbers.npz": (lambda p: _npz(p, sst=values(), time=np.arange(120)), {}, "time is not of dates"),
    "none.npz": (lambda p: _npz(p, sst=np.zeros((0, 3, 3))), {}, r"sst is float64 \(0, 3, 3\)"),
    "text.npz": (lambda p: _npz(p, sst=values().astype(str)), {}, "sst is <U"),
    "plane.npz": (lambda p: _npz(p, sst=values(), lat=np.ones((6, 8))), {}, r"lat is float64 \(6, 8\)"),
    "instant.npz": (lambda p: _npz(p, sst=values(), time=np.datetime64("2000-01-01")), {}, r"time has shape \(\)"),
    "objects.npz": (lambda p: _npz(p, sst=np.array([{}], dtype=object)), {}, "damaged or not an .npz of plain"),
    "count.npz": (
        lambda p: _npz(p, sst=values(), time=MONTHS[:7].astype("datetime64[D]")),
        {},
        r"time has shape \(7,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line(tmp_path, name):
    write, options, line = BAD[name]
    if write:
        write(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        D.load(str(tmp_path / name), **options)
    assert "\n" not in str(error.value)


# ---- NetCDF-3 files that are cut: the library reads zeros past the end


def classic(path, version: int, last: str, records: bool, cells: int = 4):
    """A NetCDF-3 file by another writer than the reader's; ``last``: what its end holds, without records."""
    field = (100 * np.nan_to_num(values(120, 3, cells + 1))[:, :, 1:]).astype(np.int16)
    places = {"lat": ("lat", np.linspace(50, 0, 3)), "lon": ("lon", 10.0 * np.arange(cells))}
    days = ("time", (MONTHS - MONTHS[0]) / np.timedelta64(1, "D"))
    written = places | {key: days if key == "time" else (("time", "lat", "lon"), field) for key in ("time", "sst")}
    with scipy.io.netcdf_file(path, "w", version=version) as file:
        for name, n in (("time", None if records else 120), ("lat", 3), ("lon", cells)):
            file.createDimension(name, n)
        for name in sorted(written, key=lambda name: name == last):
            dims, data = written[name]
            variable = file.createVariable(name, data.dtype.char, (dims,) if isinstance(dims, str) else dims)
            variable[:] = data
            if name == "time":
                variable.units = b"days since 2000-01-01"
            if name == "sst":
                variable.scale_factor, variable.units = 0.01, b"degC"
    return field / 100


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("last", ["time", "sst"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_classic_file_that_is_cut_is_refused(tmp_path, version, last, records):
    """In its last date, its last field, in the middle, and in its header; the fields have an odd number of numbers."""
    path = tmp_path / "a.nc"
    field = classic(path, version, last, records, cells=5)
    (region,) = D.load(str(path)).regions
    assert np.allclose(region.values[:], field, atol=1e-4)
    whole, pad = path.read_bytes(), 2 if records and last == "sst" else 0
    for size in {len(whole) - pad - 1, len(whole) - pad - 5, len(whole) * 2 // 3}:
        path.write_bytes(whole[:size])
        line = (
            f"a.nc is cut: it has {size:,} bytes, its header asks for {len(whole) - pad:,}: copy or download it again"
        )
        with pytest.raises(ValueError, match=line) as error:
            D.load(str(path))
        assert "\n" not in str(error.value)
    path.write_bytes(whole[:90])
    with pytest.raises(ValueError, match="damaged or not NetCDF"):
        D.load(str(path))
    path.write_bytes(whole[: len(whole) - pad])  # not all writers pad the last record
    assert np.allclose(D.load(str(path)).regions[0].values[:], field, atol=1e-4)


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"])
def test_the_library_s_own_classic_files_are_whole_and_cut(tmp_path, kind):
    path, data = tmp_path / "a.nc", dataset(units="degC").assign(other=dataset().sst.astype("f8"))
    data.to_netcdf(path, format=kind, engine="netcdf4", unlimited_dims=["time"])
    assert np.array_equal(D.load(str(path)).regions[0].values[:, :, 1:], values()[:, :, 1:])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is cut: it has .* bytes"):
        D.load(str(path))


def test_cells_with_gaps_can_be_land(tmp_path):
    _gaps().to_netcdf(tmp_path / "a.nc")
    region = D.load(str(tmp_path / "a.nc"), gaps="land").regions[0]
    assert not region.ocean[2, 3] and region.ocean.sum() == 6 * 7 - 1 and (region.values[:, 2, 3] == 0).all()


# ---- values that are no temperatures


def written(tmp_path, data, said="", capsys=None, gaps="error", **encoding):
    """The region of a data set that went through a file, and what was said about it."""
    data.to_netcdf(tmp_path / "f.nc", encoding=encoding or None)
    fields = D.load(str(tmp_path / "f.nc"), gaps=gaps)
    if capsys:
        assert said in capsys.readouterr().out
    return fields


@pytest.mark.parametrize("code", [-1000.0, -999.0, 9999.0, 1e20, -1e30, -99.99, -32768.0, 123.25])
def test_a_code_that_no_attribute_declares_is_named_and_masked(tmp_path, capsys, code):
    field = values()
    field[:, 2:4, 3] = code
    (region,) = written(tmp_path, dataset(field, units="degC"), f"240 values are {code:.7g}", capsys).regions
    assert not region.ocean[2:4, 3].any() and region.ocean.sum() == 6 * 7 - 2
    assert np.array_equal(region.values[:, :2, 1:], values()[:, :2, 1:])


def test_a_code_at_some_times_is_a_gap(tmp_path):
    field = values()
    field[::2, 2, 3] = -1000
    with pytest.raises(ValueError, match="1 ocean cells are missing at some times"):
        written(tmp_path, dataset(field, units="degC"))
    (region,) = written(tmp_path, dataset(field, units="degC"), gaps="land").regions
    assert not region.ocean[2, 3] and region.ocean.sum() == 6 * 7 - 1


@pytest.mark.parametrize("units", ["K", ""])
def test_kelvin_with_codes_and_packed(tmp_path, capsys, units):
    """A fill code of the packed numbers is scaled with them: -32768 becomes -27.68 K, as no attribute names it."""
    field = np.nan_to_num(values() + 273.15, nan=-27.68)
    encoding = {"sst": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 300.0, "_FillValue": None}}
    fields = written(
        tmp_path, dataset(field, units=units) if units else dataset(field), "-27.68", capsys, "error", **encoding
    )
    assert not fields.regions[0].ocean[:, 0].any() and fields.regions[0].ocean[:, 1:].all()
    assert np.abs(fields.regions[0].values[:, :, 1:] - values()[:, :, 1:]).max() < 0.006


def test_fahrenheit(tmp_path):
    (region,) = written(tmp_path, dataset(1.8 * values() + 32, units="degrees_Fahrenheit")).regions
    assert np.allclose(region.values[:, :, 1:], values()[:, :, 1:], atol=1e-5)


def test_infinite_values_are_missing(tmp_path, capsys):
    field = values()
    field[:, 0, 1] = np.inf
    assert not written(tmp_path, dataset(field), "120 values are infinite", capsys).regions[0].ocean[0, 1]


def test_land_that_is_zero_and_zeros_in_warm_water(tmp_path, capsys):
    field = np.nan_to_num(values() + 10, nan=0.0)
    (region,) = written(tmp_path, dataset(field), "6 cells are exactly 0 at all times", capsys).regions
    assert not region.ocean[:, 0].any() and region.ocean[:, 1:].all()
    field[7, 4, 4] = 0
    (region,) = written(tmp_path, dataset(field), "1 values are exactly 0", capsys, gaps="land").regions
    assert not region.ocean[4, 4]


def test_water_at_zero_degrees_is_water(tmp_path):
    field = values()
    field[3, 2, 2] = 0
    assert written(tmp_path, dataset(field)).regions[0].ocean[2, 2]


# ---- dates


def test_frames_in_any_order_are_sorted_aloud(tmp_path, capsys):
    fields = written(tmp_path, dataset(values()[::-1], MONTHS[::-1]), "sorted", capsys)
    assert np.array_equal(fields.regions[0].values[:, :, 1:], values()[:, :, 1:]) and fields.breaks == ()


def test_rows_and_columns_in_any_order_are_sorted_aloud(tmp_path, capsys):
    rows, columns = [3, 0, 5, 1, 4, 2], [0, 7, 2, 5, 4, 3, 6, 1]
    dataset().isel(lat=rows, lon=columns).to_netcdf(tmp_path / "a.nc")
    (region,) = D.load(str(tmp_path / "a.nc")).regions
    assert np.array_equal(region.values[:, ::-1, 1:], values()[:, :, 1:]) and region.cyclic
    assert (np.diff(region.lat) > 0).all() and (np.diff(region.lon) > 0).all()
    printed = capsys.readouterr().out
    assert "not in order of latitude: sorted" in printed and "not in order of longitude: sorted" in printed
    turned = dataset().isel(lon=[5, 6, 7, 0, 1, 2, 3, 4])  # the same globe, begun elsewhere
    turned.assign_coords(lon=(turned.lon + 180) % 360 - 180).to_netcdf(tmp_path / "b.nc")
    (region,) = D.load(str(tmp_path / "b.nc")).regions
    assert region.cyclic and not region.ocean[:, 3].any() and not capsys.readouterr().out
    twice = dataset().isel(lon=[0, 1, 2, 3, 4, 5, 6, 7, 0])
    twice.assign_coords(lon=[0, 45, 90, 135, 180, 225, 270, 315, 360]).to_netcdf(tmp_path / "c.nc")
    with pytest.raises(ValueError, match="a longitude occurs twice: drop the repeated columns"):
        D.load(str(tmp_path / "c.nc"))


def test_frames_that_repeat_the_one_before_are_left_out_aloud(tmp_path, capsys):
    stuck = values()
    stuck[[50, 51]] = stuck[49]
    dataset(stuck).to_netcdf(tmp_path / "a.nc")
    fields = D.load(str(tmp_path / "a.nc"))
    assert "2 frames repeat the one before, first 2004-03-01: they are left out" in capsys.readouterr().out
    assert len(fields.times) == 118 and fields.breaks == (50,)
    filled = dataset(values()[:40].repeat(3, 0))  # quarters filled up to months
    filled.to_netcdf(tmp_path / "b.nc")
    fields = D.load(str(tmp_path / "b.nc"))
    assert len(fields.times) == 40 and fields.breaks == () and fields.times[1] == np.datetime64("2000-04-01")


def test_missing_months_and_empty_frames_are_gaps(tmp_path, capsys):
    keep = np.r_[0:40, 53:120]
    fields = written(tmp_path, dataset(values()[keep], MONTHS[keep]), "a gap in time, first from 2003-04-01", capsys)
    assert fields.breaks == (40,) and len(fields.times) == 107
    field = values()
    field[40:43] = np.nan
    field[60] = 17
    fields = written(tmp_path, dataset(field), "4 frames without a field are left out, first 2003-05-01", capsys)
    assert fields.breaks == (40, 57) and len(fields.times) == 116


def test_no_window_and_no_score_reaches_over_a_gap():
    found = C.origins(0, 20, past=2, horizon=3, breaks=(8,))
    assert found.tolist() == [*range(1, 5), *range(9, 17)]
    assert C.origins(0, 20, 1, 1).tolist() == list(range(19))
    x = torch.arange(20.0)
    x[8:] += 1000
    found = [(now, later) for lead, now, later in C.pairs(x, 2, (8,)) if lead == 2]
    now, later = map(torch.cat, zip(*found))
    assert len(now) == 6 + 10 and (later - now == 2).all()
    assert C.starts(10, 20, 1, 3, 0, breaks=(8, 14)).tolist() == [9, 10, 14, 15, 16]


def test_persistence_is_fitted_between_frames_that_follow_each_other():
    """An AR(1) process in many pieces: the pairs over its gaps are independent, and would lower its memory."""
    draw = torch.Generator().manual_seed(0)
    pieces = []
    for _ in range(300):
        x = [torch.randn(4, 4, generator=draw)]
        for _ in range(4):
            x.append(0.9 * x[-1] + 0.19**0.5 * torch.randn(4, 4, generator=draw))
        pieces += x
    series, breaks = torch.stack(pieces), tuple(range(5, 1500, 5))
    right, wrong = (C.persistence(series, 2, b)[0].mean((1, 2)) * (1 + C.RIDGE) for b in (breaks, ()))
    assert right[0] == pytest.approx(0.9, abs=0.02) and right[1] == pytest.approx(0.81, abs=0.03) and wrong[1] < 0.6


def calendar_file(path, months, units, calendar, name="time"):
    """A file whose time is written as numbers."""
    data = dataset(values(len(months)), np.asarray(months))
    data["time"].attrs.update(units=units, calendar=calendar)
    (data if name == "time" else data.rename(time=name)).to_netcdf(path / "c.nc")
    return D.load(str(path / "c.nc"))


@pytest.mark.parametrize("name", ["time", "valid_time"])
def test_calendars_without_leap_days_and_of_equal_months(tmp_path, name):
    """Ten years of months end in the tenth December, whatever the calendar; no month is missing."""
    middle = np.array([15.5, 45, 74.5, 105, 135.5, 166, 196.5, 227.5, 258, 288.5, 319, 349.5])
    times = (365 * np.arange(10)[:, None] + middle).ravel()
    fields = calendar_file(tmp_path, times, "days since 2000-01-01", "noleap", name)
    assert fields.times[-1] == np.datetime64("2009-12-16") and fields.times[2] == np.datetime64("2000-03-16")
    fields = calendar_file(tmp_path, 30.0 * np.arange(120) + 15, "days since 2000-01-01", "360_day", name)
    assert fields.times[-1].astype("datetime64[M]") == np.datetime64("2009-12") and fields.breaks == ()
    for calendar in ("360", "360_day", "standard"):
        fields = calendar_file(tmp_path, np.arange(120) + 0.5, "months since 1960-1-1 0:0:0", calendar, name)
        assert (fields.times.astype("datetime64[M]") == np.arange("1960-01", "1970-01", dtype="datetime64[M]")).all()
    seconds = (MONTHS - np.datetime64("1970-01-01")) // np.timedelta64(1, "s")
    fields = calendar_file(tmp_path, seconds, "seconds since 1970-01-01", "proleptic_gregorian", name)
    assert (fields.times == MONTHS.astype("datetime64[D]")).all()
    fields = calendar_file(tmp_path, 20000100 + np.arange(1, 29), "day as %Y%m%d.%f", "standard", name)
    assert fields.times[-1] == np.datetime64("2000-01-28")


@pytest.mark.parametrize("units", ["days since 2000-01", "months since 2000", "days since 2000-13-01", "days since x"])
def test_dates_that_count_from_no_date(tmp_path, units):
    with pytest.raises(ValueError, match=r"c.nc: time (in 'days since|counts from '2000', which is no date)"):
        calendar_file(tmp_path, np.arange(120), units, "standard")


def test_days_of_a_year_of_360_have_no_gaps(tmp_path):
    fields = calendar_file(tmp_path, np.arange(800.0), "days since 2000-01-01", "360_day")
    assert fields.breaks == () and len(np.unique(fields.times)) == 800


def test_hourly_means_become_days(tmp_path, capsys):
    hours = np.datetime64("2000-01-01T00:30", "ns") + np.arange(240) * np.timedelta64(1, "h")
    field = values(240)
    fields = written(tmp_path, dataset(field[:-3], hours[:-3]), "24 frames a day are averaged to 9 days", capsys)
    assert (np.diff(fields.times).astype(int) == 1).all() and fields.breaks == ()
    assert np.allclose(
        fields.regions[0].values[:, :, 1:], field[:216].reshape(9, 24, 6, 8).mean(1)[:, :, 1:], atol=1e-4
    )


def test_a_regular_grid_with_two_dimensional_places_is_read(tmp_path):
    lat, lon = np.meshgrid(np.linspace(50, -50, 6), np.arange(8.0) * 45 - 180, indexing="ij")
    data = dataset().rename(lat="y", lon="x").drop_vars(["y", "x"])
    (region,) = written(tmp_path, data.assign_coords(lat=(("y", "x"), lat), lon=(("y", "x"), lon))).regions
    assert region.lat[0] == 50 and region.lon[0] == -180 and region.cyclic


def test_what_an_npz_lacks_is_said(tmp_path, capsys):
    np.savez(tmp_path / "b.npz", sst=values() + 273.15)
    (region,) = D.load(str(tmp_path / "b.npz")).regions
    said = capsys.readouterr().out
    assert "no time" in said and "no lat" in said and "taken as kelvin" in said
    assert np.allclose(region.values[:, :, 1:], values()[:, :, 1:], atol=1e-4)


def test_a_folder_without_boxes(tmp_path):
    with pytest.raises(FileNotFoundError, match="box84.nc"):
        D.load(str(tmp_path))


# ---- splits by the calendar


def fields_of(times: np.ndarray) -> D.Fields:
    return D.Fields("made", [], times.astype("datetime64[D]"))


def test_split_of_months():
    times = np.arange("2010-01", "2020-09", dtype="datetime64[M]").astype("datetime64[D]")
    parts = C.split(fields_of(times), 2, 2)
    assert times[parts.test] == np.datetime64("2018-09-01") and times[parts.val] == np.datetime64("2016-09-01")
    assert (parts.val, parts.test - parts.val, parts.end - parts.test) == (80, 24, 24)


@pytest.mark.parametrize("last", ["2020-02", "2020-03", "2020-06", "2020-12"])
def test_split_of_months_does_not_depend_on_their_lengths(last):
    times = np.arange("2010-01", np.datetime64(last) + 1, dtype="datetime64[M]").astype("datetime64[D]")
    parts = C.split(fields_of(times), 1, 2)
    assert (parts.test - parts.val, parts.end - parts.test) == (12, 24)


def test_split_of_days_is_that_of_dyffusion():
    times = np.arange("1982-01-01", "2021-01-01", dtype="datetime64[D]")
    parts = C.split(fields_of(times), 1, 1)
    assert times[parts.test] == np.datetime64("2020-01-01") and times[parts.val] == np.datetime64("2019-01-01")


def test_a_split_needs_years_to_train_on():
    times = np.arange("2010-01", "2013-01", dtype="datetime64[M]").astype("datetime64[D]")
    with pytest.raises(ValueError, match="36 frames, 3.* years: 12 frames are left"):
        C.split(fields_of(times), 1, 1)


@pytest.mark.parametrize("step", ["M", "D"])
def test_the_last_years_before_the_validation_years_can_be_learnt_from_alone(step):
    """Frames, gaps and split move together, so that the same dates are validated and tested."""
    times = np.arange("2010-01", "2020-01", dtype=f"datetime64[{step}]").astype("datetime64[D]")
    values = np.arange(len(times), dtype=np.float32)[:, None, None]
    ones = np.ones(1)
    region = D.Region("made", values, ones[None] > 0, ones, ones)
    late, early = np.searchsorted(times, [np.datetime64("2016-01-01"), np.datetime64("2011-01-01")])
    fields = replace(fields_of(times), regions=[region], breaks=(int(early), int(late)))
    parts = C.split(fields, 1, 2)
    for years in (1, 3, 7):
        cut, now = C.last_years(fields, parts, years)
        assert cut.times[0] == np.datetime64(f"{2017 - years}-01-01") and cut.times[now.val] == times[parts.val]
        assert cut.times[now.test] == times[parts.test] and now.end == len(cut.times)
        k = parts.val - now.val
        assert np.array_equal(cut.regions[0].values[:], values[k:])
        assert cut.breaks == tuple(b - k for b in fields.breaks if b > k)
    line = "--train_years 8: made begins on 2010-01-01, with 7.0 years before its validation years from 2017-01-01"
    with pytest.raises(ValueError, match=line):
        C.last_years(fields, parts, 8)


def test_starts_have_all_their_targets_in_the_years():
    found = C.starts(100, 124, past=2, horizon=7, count=0)
    assert found.tolist() == list(range(99, 117))
    assert C.starts(100, 124, 2, 7, 4).tolist() == [99, 105, 110, 116] or len(C.starts(100, 124, 2, 7, 4)) == 4
    with pytest.raises(ValueError, match="no window"):
        C.starts(100, 105, past=1, horizon=7, count=0)
