"""Files are read a chunk at a time: the same temperatures and climate as of the whole in memory, in the same memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sst import climate as C
from sst import data as D
from sst import frames, linear, skill
from sst.synthetic import season

xarray = pytest.importorskip("xarray")


def temperatures(frames: int, side: int) -> np.ndarray:
    """Seasons and noise that remembers, deg C; land is NaN."""
    rng = np.random.default_rng(0)
    field = np.empty((frames, side, side), np.float32)
    noise = np.zeros((side, side))
    for k in range(frames):
        noise = 0.8 * noise + rng.standard_normal((side, side))
        field[k] = 18 + 5 * np.cos(2 * np.pi * k / 365.25) + noise
    field[:, : side // 3, : side // 4] = np.nan
    return field


def write(path: Path, field: np.ndarray, first: str = "2000-01-01", **attributes: str) -> str:
    """A file as OISST's are: int16 with a scale, an offset and a fill value."""
    days = np.datetime64(first, "ns") + np.arange(len(field)) * np.timedelta64(1, "D")
    places = {"lat": np.linspace(-20, 20, field.shape[1]), "lon": 2.0 * np.arange(field.shape[2])}
    array = xarray.DataArray(field, {"time": days, **places}, ("time", "lat", "lon"), attrs=attributes)
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 5.0, "_FillValue": -999}
    array.to_dataset(name="sst").to_netcdf(path, encoding={"sst": packed})
    return str(path)


def spoilt(field: np.ndarray) -> np.ndarray:
    """With all that is to be found at some place of a file: codes, zeros, empty and repeated frames, gaps."""
    field = field.copy()
    field[:, 9, 9] = -99.99
    field[:, 10, 10] = 0
    field[[5, 400], 8, 8] = 0  # in warm water
    field[300:303] = np.nan
    field[[610, 611]] = field[609]
    field[700, 11, 2] = np.nan
    return field


def in_memory(values: np.ndarray, ocean: np.ndarray, times: np.ndarray, n: int, horizon: int, breaks: tuple[int, ...]):
    """Anomalies, damping and residual of a field by the formulas as they stand in a book, all at once."""
    angle = 2 * np.pi * season(times)[:, None] * np.arange(1, 3)
    basis = np.concatenate([np.ones((len(times), 1)), np.cos(angle), np.sin(angle)], 1)
    flat = values.reshape(len(values), -1).astype(np.float64)
    off = (flat - basis @ np.linalg.lstsq(basis[:n], flat[:n], rcond=None)[0]).reshape(values.shape) * ocean
    std = np.sqrt((off[:n] ** 2).mean(0))
    std = np.where(ocean, np.maximum(std, C.FLOOR * np.median(std[ocean])), 1)
    anomalies, maps = off / std, []
    for lead in range(1, horizon + 1):
        now = C.origins(0, n, 1, lead, breaks).numpy()
        a, b = anomalies[now], anomalies[now + lead]
        damping = (a * b).mean(0) / np.maximum((a**2).mean(0) * (1 + C.RIDGE), 1e-12)
        maps.append((damping, np.where(ocean, np.maximum(np.sqrt(((b - damping * a) ** 2).mean(0)), 0.05), 1)))
    return anomalies, *(np.stack(part) for part in zip(*maps))


def test_the_same_as_all_at_once(tmp_path, monkeypatch, capsys):
    """Of a file with everything that is to be found in one; a chunk is of seven frames, and of all."""
    path = write(tmp_path / "a.nc", spoilt(temperatures(1200, 16)), units="degC")
    found, said = {}, {}
    for size in (1 << 20, 7 * 256):
        monkeypatch.setattr(frames, "CHUNK", size)
        with pytest.raises(ValueError, match=r"cells are missing.*first 2000-01-06, row 8, column 8") as caught:
            D.load(path)
        fields = D.load(path, gaps="land")
        said[size] = (str(caught.value), capsys.readouterr().out)
        (region,) = fields.regions
        climate = C.fit(region, fields.times, 800, 2, 3, fields.breaks)
        warm, eof = skill.quantile(climate.anomalies, 0.9, 800), linear.patterns(climate.anomalies, 3, 800)
        amplitude = C.spectrum([climate], 800, 16, True, False, fields.breaks)
        found[size] = (fields, climate, [climate.anomalies[:], climate.damping, climate.residual, warm, amplitude], eof)
    assert len(set(said.values())) == 1
    for text in (
        "1197 values are -99.99",
        "1 cells are exactly 0",
        "2 values are exactly 0",
        "3 frames without a field",
    ):
        assert text in said[7 * 256][1]
    assert "2 frames repeat the one before, first 2001-09-02" in said[7 * 256][1]
    whole, _, maps, eof = found[1 << 20]
    values, ocean = whole.regions[0].values[:], whole.regions[0].ocean
    assert np.isfinite(values).all() and len(values) == 1195 and whole.breaks == (300, 607)
    fields, _, others, patterns = found[7 * 256]
    assert np.array_equal(fields.regions[0].values[:], values) and fields.breaks == whole.breaks
    for a, b in zip(maps, others):
        assert torch.allclose(a, b, atol=2e-6)
    assert torch.allclose((eof * patterns).sum((1, 2)).abs(), torch.ones(3), atol=1e-3)
    known = in_memory(values, ocean, whole.times, 800, 3, whole.breaks)
    for a, b in zip(maps, known):
        assert np.abs(a.numpy() - b).max() < 5e-6
    assert np.allclose(maps[3].numpy(), np.quantile(maps[0][:800].numpy(), 0.9, axis=0), atol=1e-6)


def test_what_is_wrong_at_some_time_is_told_with_all_its_count(tmp_path, monkeypatch):
    """Kelvin in a file that says deg C: all of its values are counted, in chunks as at once."""
    path = write(tmp_path / "k.nc", temperatures(400, 12) + 273.15, units="degC")
    lines = set()
    for size in (1 << 20, 500):
        monkeypatch.setattr(frames, "CHUNK", size)
        with pytest.raises(ValueError, match=r"52800 of 52800 values.*they look like kelvin") as caught:
            D.load(path)
        lines.add(str(caught.value))
    assert len(lines) == 1


def test_memory_does_not_grow_with_the_frames(tmp_path, monkeypatch):
    """From the file to the scores' maps: twice and four times as many frames, a few kB more for their dates."""
    monkeypatch.setattr(frames, "CHUNK", 20_000)
    peaks, field = [], temperatures(2000, 32)
    for n in (500, 1000, 2000):
        path = write(tmp_path / f"{n}.nc", field[:n], units="degC")
        D.load(path)  # what is imported or kept once
        tracemalloc.start()
        fields = D.load(path)
        climate = C.fit(fields.regions[0], fields.times, n - 300, 2, 3, fields.breaks)
        C.spectrum([climate], n - 300, 32, True, False)
        skill.quantile(climate.anomalies, 0.9, n - 300)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    decoded = 4 * 32 * 32 * 500
    assert peaks[1] - peaks[0] < 0.2 * decoded and peaks[2] - peaks[1] < 0.4 * decoded


def test_frames_are_an_array_that_is_read(tmp_path):
    values = np.random.default_rng(0).standard_normal((20, 5, 6)).astype(np.float32)
    store = frames.Temporary(values.shape)
    store.write(0, values[:12])
    store.write(12, values[12:])
    for lazy in (frames.Frames(store), frames.Frames(values)):
        for key in (3, slice(4, 9), np.array([[1, 2], [7, 0]]), [5, 5], torch.tensor([3, 1])):
            assert np.array_equal(lazy[key], values[key])
        assert np.array_equal(lazy[2:8, 1, 2:4], values[2:8, 1, 2:4]) and np.array_equal(np.asarray(lazy), values)
        part = lazy.crop(np.array([4, 1]), np.array([5, 0, 1])).take(np.array([2, -1, 0]))
        assert part.shape == (3, 2, 3) and np.array_equal(part[0], values[2][[4, 1]][:, [5, 0, 1]])
        assert np.isnan(part[1]).all() and np.array_equal(part.take(np.array([2]))[0], part[2])
    with pytest.raises(ValueError, match="GB free, the decoded fields take .* set TMPDIR"):
        frames.Temporary((10**9, 1000, 1000))
