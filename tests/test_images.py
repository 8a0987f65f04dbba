"""Pixels and sets of images on disk: exact conversions and layouts, writers that continue and refuse to mix."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import images as images_module
from common.images import (
    HEADER,
    NpzWriter,
    PngFolder,
    class_rows,
    decode,
    fit,
    from_uint8,
    grid,
    open_writer,
    save_gif,
    save_png,
    to_uint8,
)
from common.runtime import generator

FINGERPRINT = {"weights": "abc", "seed": 0, "solver": "euler", "shape_of_times": (1, 2)}


def image(k: int, shape=(3, 4, 5)) -> torch.Tensor:
    """Image k: uint8, different everywhere and for every k."""
    return ((torch.arange(int(np.prod(shape))) * 7 + 13 * k) % 256).to(torch.uint8).reshape(shape)


# ---- conversions


def test_uint8_round_trip_is_exact():
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8))  # the input is untouched


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.7, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 0, 1]  # 127.5 rounds to even
    assert to_uint8(x.to(torch.bfloat16)).dtype == torch.uint8
    assert x[0] == -3


def test_fit_crops_the_centre():
    pixels = np.zeros((6, 10), np.uint8)
    pixels[:, 2:8] = 90
    assert (fit(Image.fromarray(pixels), 3, 1) == 90).all()
    assert fit(Image.fromarray(pixels), 3, 3).shape == (3, 3, 3)
    tall = fit(Image.fromarray(pixels.T.copy()), 6, 1)
    assert tall.dtype == np.uint8 and (tall == 90).all()


def test_fit_averages_when_it_shrinks():
    board = np.indices((32, 32)).sum(0) % 2 * 255  # without antialiasing it would come out black or white
    small = fit(Image.fromarray(board.astype(np.uint8)), 8, 1).astype(int)
    assert abs(small[:, 1:-1, 1:-1] - 127.5).max() < 10


def test_16_bit_grey_keeps_its_range(tmp_path):
    pixels = np.array([[0, 256, 32768, 65535]] * 4, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    assert fit(decode((tmp_path / "deep.png").read_bytes()), 4, 1)[0, 0].tolist() == [0, 1, 128, 255]
    with pytest.raises(ValueError, match="floating point"):
        fit(Image.fromarray(np.zeros((4, 4), np.float32)), 4, 1)


def test_decode_turns_photographs_upright(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 255  # right half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the right half comes to lie below
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    upright = fit(decode((tmp_path / "photo.png").read_bytes()), 8, 1)[0]
    assert (upright[:4] == 0).all() and (upright[4:] == 255).all()


# ---- grids


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_layout(channels):
    x = torch.stack([torch.full((channels, 2, 3), 10 * k + 10, dtype=torch.uint8) for k in range(5)])
    out = grid(x, n_columns=3, padding=1)
    assert out.shape == (2 * 3 + 1, 3 * 4 + 1, channels) and out.dtype == torch.uint8
    line = "0 {} {} {} 0 {} {} {} 0 {} {} {} 0"
    upper = [int(v) for v in line.format(*[10] * 3, *[20] * 3, *[30] * 3).split()]
    lower = [int(v) for v in line.format(*[40] * 3, *[50] * 3, *[0] * 3).split()]
    for channel in range(channels):
        assert out[:, :, channel].tolist() == [[0] * 13, upper, upper, [0] * 13, lower, lower, [0] * 13]


def test_grid_defaults_and_mistakes():
    assert grid(torch.zeros(5, 3, 2, 2)).shape == (2 * 4 + 2, 3 * 4 + 2, 3)
    assert grid(torch.zeros(2, 3, 2, 2), n_columns=8).shape == (6, 10, 3)  # no empty columns
    assert grid(torch.ones(1, 1, 2, 2), padding=0).tolist() == [[[255], [255]], [[255], [255]]]
    with pytest.raises(ValueError, match="B >= 1"):
        grid(torch.zeros(0, 3, 2, 2))
    with pytest.raises(ValueError, match="shape"):
        grid(torch.zeros(3, 2, 2))


def test_grid_enlarges_pixels_and_names_its_columns():
    x = torch.stack([image(k) for k in range(4)])
    plain, named = grid(x, 2, scale=3), grid(x, 2, scale=3, names=["a", "an airship of no use", "left out"])
    assert torch.equal(plain[2 : 2 + 12 : 3, 2 : 2 + 15 : 3], x[0].permute(1, 2, 0))
    assert torch.equal(plain[2:5, 2:5], x[0, :, 0, 0].expand(3, 3, -1))
    assert torch.equal(named[HEADER:], plain)
    header = named[:HEADER].amax(dim=(0, 2))
    assert header[2:19].any() and header[19:36].any() and named[:HEADER].float().std(dim=2).max() == 0  # grey letters
    assert header[[2, 18, -1]].tolist() == [0, 0, 0]  # a letter stands over the middle of its column


def test_classes_that_take_turns_have_a_row_each():
    x = torch.stack([image(k) for k in range(5)])
    out = class_rows(x, 2)
    assert out.shape == (2 * 6 + 2, 3 * 7 + 2, 3)
    for k in range(6):
        top, left = 2 + k % 2 * 6, 2 + k // 2 * 7
        cell = out[top : top + 4, left : left + 5]
        assert torch.equal(cell, x[k].permute(1, 2, 0)) if k < 5 else not cell.any()
    plain, named = class_rows(x, 2, scale=3), class_rows(x, 2, scale=3, beside=["a", "an airship"])
    assert torch.equal(named[:, -plain.shape[1] :], plain)
    left = named[:, : -plain.shape[1]].amax(dim=(1, 2))
    assert left[2:14].any() and left[16:28].any()  # a letter stands before the middle of its row


def test_a_moving_picture_keeps_its_end_and_stays_small(tmp_path):
    noise = torch.randint(0, 256, (40, 120, 120, 3), dtype=torch.uint8, generator=generator(0))
    frames = [*noise, torch.full((120, 120, 3), 77, dtype=torch.uint8)]
    size = save_gif(tmp_path / "a.gif", frames, 350_000)
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 24 and moving.info["loop"] == 0
        moving.seek(23)
        assert (np.asarray(moving.convert("RGB")) == 77).all() and moving.info["duration"] == 2500
    assert size == (tmp_path / "a.gif").stat().st_size <= 350_000 < save_gif(tmp_path / "b.gif", frames)
    save_gif(tmp_path / "grey.gif", [frames[0][..., :1], frames[1][..., :1]])
    assert Image.open(tmp_path / "grey.gif").n_frames == 2


def test_grid_keeps_pixels_in_place():
    x = torch.stack([image(k) for k in range(4)])
    out = grid(x, padding=2)
    for k in range(4):
        top, left = 2 + k // 2 * 6, 2 + k % 2 * 7
        assert torch.equal(out[top : top + 4, left : left + 5], x[k].permute(1, 2, 0))


def test_save_png(tmp_path):
    save_png(tmp_path / "new" / "colour.png", image(0).permute(1, 2, 0))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "colour.png")), image(0).permute(1, 2, 0).numpy())
    save_png(tmp_path / "grey.png", image(1, (4, 5, 1)).numpy())
    assert Image.open(tmp_path / "grey.png").mode == "L"
    with pytest.raises(ValueError, match="save_png takes uint8"):
        save_png(tmp_path / "bad.png", torch.zeros(4, 4, 3))
    assert {p.name for p in tmp_path.iterdir()} == {"new", "grey.png"}


def test_save_png_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", image(0).permute(1, 2, 0))
    before = (tmp_path / "a.png").read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk"):
        save_png(tmp_path / "a.png", image(1).permute(1, 2, 0))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# ---- writers: what both do


def read_back(path: Path, index: int) -> torch.Tensor:
    if path.suffix == ".npz":
        return torch.from_numpy(np.load(path)["arr_0"][index]).permute(2, 0, 1)
    return torch.from_numpy(np.array(Image.open(path / f"{index:06d}.png"))).permute(2, 0, 1)


@pytest.fixture(params=["folder", "set.npz"])
def target(request, tmp_path) -> Path:
    return tmp_path / "out" / request.param


def test_writer_continues(target):
    writer = open_writer(target, 10, (3, 4, 5), FINGERPRINT)
    assert writer.missing(0, 10) == list(range(10))
    for k in (3, 0, 7):
        writer.write(k, image(k))
    assert not writer.finish()
    writer = open_writer(target, 10, (3, 4, 5), FINGERPRINT)  # a later run
    assert writer.missing(0, 10) == [1, 2, 4, 5, 6, 8, 9] and writer.missing(2, 5) == [2, 4]
    for k in writer.missing(0, 10):
        writer.write(k, image(k).numpy())
    assert writer.missing(0, 10) == [] and writer.finish() and writer.finish()
    assert all(torch.equal(read_back(target, k), image(k)) for k in range(10))
    assert open_writer(target, 10, (3, 4, 5), FINGERPRINT).missing(0, 10) == []
    leftovers = [p.name for p in target.parent.rglob("*") if ".part" in p.name or ".done" in p.name or ".tmp" in p.name]
    assert leftovers == []


def test_other_settings_are_refused(target):
    writer = open_writer(target, 4, (3, 4, 5), FINGERPRINT)
    writer.write(0, image(0))
    with pytest.raises(ValueError, match=r"begun with other settings: seed 0 there and 1 now; give another --save_dir"):
        open_writer(target, 4, (3, 4, 5), {**FINGERPRINT, "seed": 1})
    with pytest.raises(ValueError, match=r"cfg None there and 2.0 now"):
        open_writer(target, 4, (3, 4, 5), {**FINGERPRINT, "cfg": 2.0})
    with pytest.raises(ValueError, match=r"shape \[3, 4, 5\] there and \[3, 8, 8\] now"):
        open_writer(target, 4, (3, 8, 8), FINGERPRINT)
    assert open_writer(target, 4, (3, 4, 5), FINGERPRINT).missing(0, 4) == [1, 2, 3]  # nothing was lost


def test_damaged_fingerprint(target):
    open_writer(target, 4, (3, 4, 5), FINGERPRINT)
    file = target.with_suffix(".samples.json") if target.suffix else target / "samples.json"
    assert json.loads(file.read_text())["seed"] == 0
    file.write_text('{"seed": ')
    with pytest.raises(ValueError, match="is damaged"):
        open_writer(target, 4, (3, 4, 5), FINGERPRINT)


def test_wrong_images_are_refused(target):
    writer = open_writer(target, 4, (3, 4, 5), FINGERPRINT)
    with pytest.raises(ValueError, match="must be uint8"):
        writer.write(0, torch.zeros(3, 4, 5))
    assert writer.missing(0, 4) == [0, 1, 2, 3]


def fill(path: Path, rank: int, world: int, count: int) -> None:
    """What each of several processes does: open the same set, write every world-th image, try to finish."""
    writer = open_writer(path, count, (3, 4, 5), FINGERPRINT)
    for k in range(rank, count, world):
        writer.write(k, image(k))
    writer.finish()


def test_several_processes_fill_one_set(target):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(target, rank, 3, 60)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert open_writer(target, 60, (3, 4, 5), FINGERPRINT).finish()
    assert all(torch.equal(read_back(target, k), image(k)) for k in range(60))


def write_forever(path: Path, count: int) -> None:
    writer = open_writer(path, count, (3, 4, 5), FINGERPRINT)
    for k in range(count):
        writer.write(k, image(k))


def test_killed_in_the_middle(target):
    count = 100_000
    worker = multiprocessing.get_context("fork").Process(target=write_forever, args=(target, count))
    worker.start()
    folder = target.with_suffix(".part") if target.suffix else target
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (folder / "000020.png").exists():
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL
    writer = open_writer(target, count, (3, 4, 5), FINGERPRINT)
    done = sorted(set(range(count)) - set(writer.missing(0, count)))
    assert 20 < len(done) < count and done == list(range(len(done)))
    assert all(torch.equal(read_back(folder, k), image(k)) for k in done)


# ---- the folder


def test_png_folder_counts_complete_files_only(tmp_path):
    folder = PngFolder(tmp_path, 3)
    folder.write(0, image(0))
    (tmp_path / "000001.png").touch()  # as after a power cut
    (tmp_path / ".000002.png.123-456.tmp").write_bytes(b"half")
    (tmp_path / "preview.png").write_bytes(b"x")
    assert folder.present() == {0} and folder.missing(0, 3) == [1, 2] and not folder.finish()
    folder.write(1, image(1))
    folder.write(2, image(2, (1, 4, 5)))
    assert folder.finish() and not list(tmp_path.glob(".*.tmp"))
    assert Image.open(tmp_path / "000002.png").mode == "L"


def test_png_folder_may_grow_and_goes_beyond_six_digits(tmp_path):
    open_writer(tmp_path, 2, (3, 4, 5), FINGERPRINT).write(0, image(0))
    writer = open_writer(tmp_path, 2_000_000, (3, 4, 5), FINGERPRINT)
    writer.write(1_234_567, image(1))
    assert writer.present() == {0, 1_234_567} and not writer.finish()


def test_foreign_images_and_files_are_refused(tmp_path):
    (tmp_path / "000000.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown origin"):
        open_writer(tmp_path, 4, (3, 4, 5), FINGERPRINT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        open_writer(tmp_path / "file", 4, (3, 4, 5), FINGERPRINT)
    np.savez(tmp_path / "other.npz", arr_0=np.zeros((4, 4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="unknown origin"):
        open_writer(tmp_path / "other.npz", 4, (3, 4, 5), FINGERPRINT)


# ---- the npz


def test_npz_content(tmp_path):
    writer = NpzWriter(tmp_path / "a.npz", 3, (1, 4, 5))
    for k in (2, 0, 1):
        writer.write(k, image(k, (1, 4, 5)))
    assert not (tmp_path / "a.npz").exists() and writer.finish()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].shape == (3, 4, 5, 1) and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"][2, ..., 0], image(2, (1, 4, 5))[0])


def test_npz_of_another_size_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    NpzWriter(path, 4, (3, 4, 5)).write(0, image(0))
    writer = NpzWriter(path, 4, (3, 4, 5))
    assert writer.missing(0, 4) == [1, 2, 3]
    with pytest.raises(ValueError, match="image 4 of shape"):
        writer.write(4, image(4))
    with pytest.raises(ValueError, match="image 1 of shape"):
        writer.write(1, image(1, (3, 5, 4)))
    for k in writer.missing(0, 4):
        writer.write(k, image(k))
    assert writer.finish()
    with pytest.raises(ValueError, match="holds another number or size"):
        NpzWriter(path, 5, (3, 4, 5))
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"not a .npz of images"):
        NpzWriter(path, 4, (3, 4, 5))


def test_npz_finished_by_another_process(tmp_path):
    mine, other = (NpzWriter(tmp_path / "a.npz", 2, (3, 4, 5)) for _ in range(2))
    for k in range(2):
        other.write(k, image(k))
    assert other.finish()
    assert mine.missing(0, 2) == []
    mine.write(0, image(1))  # too late, and harmless
    assert mine.finish() and torch.equal(read_back(tmp_path / "a.npz", 0), image(0))


def test_npz_survives_a_full_disk(tmp_path, monkeypatch):
    writer = NpzWriter(tmp_path / "a.npz", 2, (3, 4, 5))
    for k in range(2):
        writer.write(k, image(k))

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(images_module.zipfile.ZipFile, "open", full)
        with pytest.raises(OSError, match="disk"):
            writer.finish()
    assert not (tmp_path / "a.npz").exists()
    assert NpzWriter(tmp_path / "a.npz", 2, (3, 4, 5)).finish()
    assert torch.equal(read_back(tmp_path / "a.npz", 1), image(1))
