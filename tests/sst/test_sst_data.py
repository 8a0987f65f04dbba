"""Temperatures from files of every kind, made small on the fly; and one clear line for each way they can be wrong."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sst import climate as C
from sst import data as D

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
    data["error"] = data["analysed_sst"] * 0
    data.to_netcdf(tmp_path / "a.nc")
    (region,) = D.load(str(tmp_path / "a.nc")).regions
    assert np.allclose(region.values[:, :, 1:], values()[:, :, 1:], atol=1e-4)
    chosen = D.load(str(tmp_path / "a.nc"), variable="error").regions[0]
    assert np.allclose(chosen.values[:, :, 1:], -273.15)


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


def _npz(path, **arrays):
    np.savez(path, **arrays)


def _truncated(path):
    dataset().to_netcdf(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


BAD = {  # name: (what writes the file, options, what the line says)
    "missing.nc": (None, {}, "no data at .*missing.nc"),
    "pickle.pkl": (lambda p: p.write_bytes(pickle.dumps([1])), {}, "is a pickle.*convert it to .npz"),
    "other.nc": (lambda p: dataset(name="ice").assign(wind=dataset()["sst"]).to_netcdf(p), {}, "no variable sst, but"),
    "named.nc": (lambda p: dataset().to_netcdf(p), {"variable": "tos"}, "no variable tos, but sst"),
    "flat.nc": (lambda p: dataset().isel(lat=0).to_netcdf(p), {}, "dimensions .time, lon.*must be time, lat, lon"),
    "deep.nc": (lambda p: xarray.concat([dataset()] * 2, "level").to_netcdf(p), {}, "must be time, lat, lon"),
    "gaps.nc": (
        lambda p: _gaps().to_netcdf(p),
        {},
        "1 ocean cells are missing.*2000-06-01, row 2, column 3.*--gaps land",
    ),
    "back.nc": (lambda p: dataset(times=MONTHS[::-1]).to_netcdf(p), {}, "must ascend.*2009-11-01"),
    "twice.nc": (lambda p: dataset(times=np.r_[MONTHS[:5], MONTHS[4:-1]]).to_netcdf(p), {}, "ascend without repeats"),
    "undated.nc": (lambda p: dataset(times=np.arange(120)).to_netcdf(p), {}, "not of dates"),
    "land.nc": (lambda p: dataset(values() * np.nan).to_netcdf(p), {}, "no cell has a temperature"),
    "cut.nc": (_truncated, {}, "damaged or not NetCDF"),
    "text.nc": (lambda p: p.write_text("hello"), {}, "not NetCDF|no NetCDF|damaged"),
    "empty.npz": (lambda p: p.write_bytes(b""), {}, "damaged or not an .npz"),
    "unnamed.npz": (lambda p: _npz(p, a=np.zeros(3)), {}, "no array sst, but a"),
    "shape.npz": (lambda p: _npz(p, sst=np.zeros((3, 4))), {}, r"shape \(3, 4\)"),
    "dates.npz": (lambda p: _npz(p, sst=values(), time=np.array(["x"] * 120)), {}, "time is not of dates"),
    "objects.npz": (lambda p: _npz(p, sst=np.array([{}], dtype=object)), {}, "damaged or not an .npz of plain"),
    "count.npz": (lambda p: _npz(p, sst=values(), time=MONTHS[:7].astype("datetime64[D]")), {}, "with 7 times"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line(tmp_path, name):
    write, options, line = BAD[name]
    if write:
        write(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        D.load(str(tmp_path / name), **options)
    assert "\n" not in str(error.value)


def test_cells_with_gaps_can_be_land(tmp_path):
    _gaps().to_netcdf(tmp_path / "a.nc")
    region = D.load(str(tmp_path / "a.nc"), gaps="land").regions[0]
    assert not region.ocean[2, 3] and region.ocean.sum() == 6 * 7 - 1 and (region.values[:, 2, 3] == 0).all()


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


def test_starts_have_all_their_targets_in_the_years():
    found = C.starts(100, 124, past=2, horizon=7, count=0)
    assert found.tolist() == list(range(99, 117))
    assert C.starts(100, 124, 2, 7, 4).tolist() == [99, 105, 110, 116] or len(C.starts(100, 124, 2, 7, 4)) == 4
    with pytest.raises(ValueError, match="no window"):
        C.starts(100, 105, past=1, horizon=7, count=0)
