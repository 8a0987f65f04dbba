"""Data that mislead: splits in any spelling, folders that systems make, files that are no images, doubtful pixels."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import archives, splits
from common.data.loading import load_images
from common.data.sources import list_files
from common.images import decode, fit

S = 8
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(value: int = 100, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((S, S, 3), value, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def folder(root: Path, *names: str) -> str:
    """Images of these names; image k is grey of level 10 k."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(10 * k, "PNG"))
    return str(root)


def load(spec, split: str = "train", **options):
    return load_images(str(spec), S, 3, split=split, **{"progress": False, **options})


def levels(spec, split: str = "train") -> list[int]:
    """Which images of :func:`folder` are of a split."""
    return sorted(load(spec, split).images[:, 0, 0, 0].tolist())


# ---- splits


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("train", ("train", "")),
        ("Training", ("train", "")),
        ("TRAIN_SET", ("train", "SET")),
        ("seg_train", ("train", "seg")),
        ("trainA", ("train", "A")),
        ("train2017", ("train", "2017")),
        ("valid", ("val", "")),
        ("Validation", ("val", "")),
        ("ILSVRC2012_img_val", ("val", "ILSVRC_2012_img")),
        ("dev", ("val", "")),
        ("Testing", ("test", "")),
        ("test-00000-of-00002.parquet", ("test", "00000_of_00002_parquet")),
        ("unlabelled", ("unlabeled", "")),
        ("strain", ("", "strain")),
        ("contest", ("", "contest")),
        ("device", ("", "device")),
        ("0001", ("", "0001")),
    ],
)
def test_words_of_splits(part, expected):
    assert splits.split_of(part) == expected


SEG = ("seg_train/seg_train/a/0.png", "seg_train/seg_train/b/1.png", "seg_test/seg_test/a/2.png", "seg_test/x/3.png")
LAYOUTS = {
    "upper case": ("Training/a/0.png", "Training/b/1.png", "Testing/a/2.png", "Testing/b/3.png"),
    "twice": SEG,
    "below one folder": ("set/train/a/0.png", "set/train/b/1.png", "set/test/a/2.png", "set/test/b/3.png"),
    "below the classes": ("a/train/0.png", "b/train/1.png", "a/test/2.png", "b/test/3.png"),
    "of domains": ("trainA/0.png", "trainB/1.png", "testA/2.png", "testB/3.png"),
    "in files": ("train_0.png", "train_1.png", "test_2.png", "test_3.png"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_the_whole_path_says_the_split(tmp_path, layout, kind):
    spec = folder(tmp_path / "set", *LAYOUTS[layout])
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name in LAYOUTS[layout]:
                archive.write(tmp_path / "set" / name, name)
    if kind == "tar":
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(tmp_path / "set", ".")  # names begin with ./
    spec = spec if kind == "folder" else f"{spec}.{kind}"
    assert levels(spec) == [0, 10] and levels(spec, "test") == [20, 30]
    with pytest.raises(splits.NoSplit, match="no val images in it, only test, train"):
        load(spec, "val")
    if layout in ("upper case", "below one folder", "below the classes"):
        assert load(spec, "test").class_names == ("a", "b")


def test_unlabelled_images_are_none_of_the_training_ones_and_no_class(tmp_path):
    spec = folder(tmp_path, "train/a/0.png", "train/b/1.png", "test/b/2.png", "unlabeled/3.png")
    assert levels(spec) == [0, 10]
    data = load(spec, "test")
    assert data.class_names == ("a", "b") and data.labels.tolist() == [1]  # the class's number is the training set's


@pytest.mark.parametrize(
    "names",
    [
        ("train/0.png", "test/1.png", "misc/2.png"),
        ("Train/0.png", "extra/1.png"),
        ("train/0.png", "test/1.png", "preview.png"),
        ("set/train_images/0.png", "set/other/1.png"),
        ("mydata_train/0.png", "mydata_extra/1.png"),
    ],
)
def test_what_cannot_all_be_placed_is_asked_about(tmp_path, names):
    with pytest.raises(ValueError, match="look like splits, but .* cannot be placed") as caught:
        load(folder(tmp_path, *names))
    assert not isinstance(caught.value, splits.NoSplit)
    stranger = names[-1].rpartition("/")[0].rpartition("/")[2] or "files beside them"
    assert stranger in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_which_some_look_like_splits_are_asked_about(tmp_path):
    """A few test images among many training images are found, too; most names without such words are no splits."""
    names = [f"train_{k}.png" for k in range(200)] + ["test_0.png"]
    for name in names:
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(encoded())
    assert len(load(tmp_path / "a")) == 200 and len(load(tmp_path / "a", "test")) == 1
    (tmp_path / "a" / "other.png").write_bytes(encoded())
    with pytest.raises(ValueError, match="test_0.png, train_0.png, .* but other.png cannot be placed"):
        load(tmp_path / "a")
    assert len(load(tmp_path / "a", "all")) == 202
    assert levels(folder(tmp_path / "b", "train_a.png", "test_b.png", "x.png", "y.png", "z.png")) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    "names", [("\u8bad\u7ec3\u96c6", "\u6d4b\u8bd5\u96c6"), ("Trainingsdaten", "Testdaten"), ("trn", "tst")]
)
def test_splits_in_other_words(tmp_path, names):
    spec = folder(tmp_path, f"{names[0]}/a/0.png", f"{names[1]}/a/1.png")
    assert levels(spec) == [0] and levels(spec, "test") == [10]


def test_a_class_called_train_when_all_are_asked_for(tmp_path):
    spec = folder(tmp_path, "bus/0.png", "train/1.png")
    with pytest.raises(ValueError, match="--split all"):
        load(spec)
    assert load(spec, "all").class_names == ("bus", "train")


def test_classes_that_sound_like_splits_stay_classes(tmp_path):
    names = [f"{name}/0.png" for name in ("test_tube", "bullet_train", "flask", "lens", "scale", "clock")]
    assert load(folder(tmp_path / "a", *names)).num_classes == 6
    assert load(folder(tmp_path / "b", "bullet_train/0.png", "steam_train/1.png")).num_classes == 2


def test_a_split_is_not_made_up(tmp_path):
    spec = folder(tmp_path, "a/0.png", "b/1.png")
    assert levels(spec, "all") == [0, 10]
    np.save(tmp_path / "x.npy", np.zeros((2, S, S), np.uint8))
    for source in (spec, tmp_path / "x.npy"):
        with pytest.raises(splits.NoSplit, match="test"):
            load(source, "test")


def test_arrays_of_splits_and_labels_of_other_names(tmp_path, capsys):
    images = np.zeros((4, S, S, 3), np.uint8)
    for names in (
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ):
        values = (images, np.arange(4), images[:2], np.array([[3], [1]]))
        np.savez(tmp_path / "set.npz", **dict(zip(names, values, strict=True)))
        assert load(tmp_path / "set.npz").labels.tolist() == [0, 1, 2, 3]
        assert load(tmp_path / "set.npz", "test").labels.tolist() == [3, 1]
        with pytest.raises(splits.NoSplit, match="no val arrays in it, only test, train"):
            load(tmp_path / "set.npz", "val")
    for name in ("targets", "Y", "classes", "fine_labels", "my_classes"):
        np.savez(tmp_path / "one.npz", images=images, **{name: np.array([0, 1, 1, 0], np.uint8)})
        assert load(tmp_path / "one.npz", progress=True).labels.tolist() == [0, 1, 1, 0]
        assert f"labels: {name}" in capsys.readouterr().out
    np.savez(tmp_path / "two.npz", images=images, fine_labels=np.arange(4), coarse_labels=np.zeros(4, int), kind="x")
    assert load(tmp_path / "two.npz", progress=True).num_classes == 4
    assert "not read: coarse_labels, kind" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(12, 12, 3), (5, 3, 12, 3), (5, 3, 3, 3), (5, 1, 4, 3)])
def test_arrays_whose_axes_are_doubtful_are_asked_about(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"give \(N,H,W"):
        load(tmp_path / "x.npy")


@pytest.mark.parametrize("last", [False, True])
def test_axes_that_a_square_tells(tmp_path, last):
    """(N,4,4,3) has its channels last, (N,3,4,4) first, though 4 might be red, green, blue and transparency."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images if last else images.transpose(0, 3, 1, 2))
    data = load_images(str(tmp_path / "x.npy"), 4, 3, progress=False)
    assert np.array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))


def test_labels_without_images_are_told(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, S, S), np.uint8), labels=np.array([1, 2, 4, 4]))
    load(tmp_path / "x.npz", progress=True)
    assert "5 classes (0, 1, 2, 3, 4), 2 of them without images" in capsys.readouterr().out


# ---- folders and files


def test_images_of_one_name_and_images_by_other_names_are_told(tmp_path, capsys):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/0.png", "a/0.png", "./a/0.png", "b/1.png", "b/2.dat", "labels.csv"):
            archive.writestr(name, encoded())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a/0.png", "a/0.png", "./a/0.png", "b/1.png", "b/2.dat", "labels.csv"):
            member = tarfile.TarInfo(name)
            member.size = len(encoded())
            archive.addfile(member, io.BytesIO(encoded()))
    for name in ("x.zip", "x.tar"):
        assert len(load(tmp_path / name, progress=True)) == 2
        told = capsys.readouterr().out
        assert "2 no images by their names (.dat, .csv), 2 of a name that comes again later" in told


def test_names_that_break_the_line_are_shown(tmp_path, capsys):
    load(folder(tmp_path, "a\nb/0.png", "c/1.png"), progress=True)
    assert r"2 classes (a\nb, c)" in capsys.readouterr().out


def test_folders_of_the_system_are_left_out_and_counted(tmp_path, capsys):
    hidden = (
        "@eaDir/1.jpg/THUMB.jpg",
        "a/@eaDir/x.png",
        "a/.AppleDouble/0.png",
        "__MACOSX/a/._0.png",
        "lost+found/9.png",
    )
    spec = folder(tmp_path, "a/0.png", "b/1.png", *hidden, "$RECYCLE.BIN/3.png", "a/._0.png")
    data = load(spec, progress=True)
    assert data.class_names == ("a", "b") and len(data) == 2
    assert "2 images, 2 classes (a, b); left out 7: 7 hidden or of the system" in capsys.readouterr().out


def test_formats_are_read_or_counted(tmp_path, capsys):
    for name, kind in (
        ("0.jfif", "JPEG"),
        ("1.avif", "AVIF"),
        ("2.jp2", "JPEG2000"),
        ("3.JPE", "JPEG"),
        ("4.pbm", "PPM"),
    ):
        (tmp_path / name).write_bytes(encoded(100, kind))
    for name in ("5.heic", "6.HEIF", "7.svg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    data = load(tmp_path, progress=True)
    assert len(data) == 5 and (data.images.int() - 100).abs().max() <= 3
    line = next(line for line in capsys.readouterr().out.splitlines() if "5 images" in line)
    assert "left out 4:" in line and "1 no images by their names (.txt)" in line
    assert all(f"1 {suffix} (not read" in line for suffix in (".heic", ".heif", ".svg"))
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "0.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no images in it; left out 1: 1 .heic \(not read here: convert them\)"):
        load(tmp_path / "only")
    for name in ("train/0.parquet", "README.md"):  # as a hub's data set
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"it holds .parquet files: convert them by python -m common.prepare images .* --from /"
    ):
        load(tmp_path / "hub")


def test_pipes_devices_and_links_out_of_the_folder_are_not_opened(tmp_path, capsys):
    outside = tmp_path / "outside"
    folder(outside, "secret.png")
    spec = folder(tmp_path / "set", "0.png", "below/1.png")
    os.mkfifo(tmp_path / "set" / "2.png")  # opening it would wait for ever
    os.symlink("/dev/zero", tmp_path / "set" / "3.png")
    os.symlink(outside / "secret.png", tmp_path / "set" / "4.png")
    os.symlink(outside, tmp_path / "set" / "5")
    os.symlink("../0.png", tmp_path / "set" / "below" / "6.png")  # within
    os.symlink("7.png", tmp_path / "set" / "7.png")  # to itself
    assert len(load(spec, progress=True)) == 3
    assert "2 links and special files, 3 links that lead out of the folder" in capsys.readouterr().out
    names, _ = list_files(tmp_path / "set", outside=True)
    assert {"4.png", "5/secret.png"} <= set(names) and "2.png" not in names
    for name in ("x.zip", "x.npz", "x.lmdb"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="no regular file"):
            load(tmp_path / name)


def test_backslashes_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "win.zip", "w") as archive:
        for name in ("imgs\\cat\\0.png", "imgs\\dog\\0.png"):
            archive.writestr(zipfile.ZipInfo("x"), b"")
            archive.filelist[-1].filename = name  # ZipInfo itself would turn them
            archive.writestr(archive.filelist.pop(), encoded())
    names = [b"imgs\\cat\\0.png", b"imgs\\dog\\0.png"]
    content = (tmp_path / "win.zip").read_bytes()
    assert all(name in content for name in names)
    assert load(tmp_path / "win.zip").class_names == ("cat", "dog")


# ---- LMDB


def write_lmdb(path: Path, items: dict[str, bytes]) -> Path:
    import lmdb

    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=2**24) as opened,
        opened.begin(write=True) as transaction,
    ):
        for key, value in items.items():
            transaction.put(key.encode(), value)
    return path


def sized(side: int, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_lmdb_with_several_sizes_of_one_image(tmp_path, capsys):
    items = {f"{side}-{k:05d}": sized(side, 10 * k) for side in (8, 16) for k in range(3)} | {"length": b"3"}
    assert levels(write_lmdb(tmp_path / "set.lmdb", items)) == [0, 10, 20]
    load(tmp_path / "set.lmdb", progress=True)
    assert "3 smaller copies of the same images, 1 values called length (no images)" in capsys.readouterr().out
    classes = {f"{c}-{k:05d}": sized(8, 10 * k) for c in (0, 1) for k in range(3)}  # the first number is no size
    assert len(load(write_lmdb(tmp_path / "classes.lmdb", classes))) == 6


def test_an_lmdb_with_texts_beside_the_images(tmp_path):
    items = {f"image-{k:09d}": sized(8, 10 * k) for k in range(12)} | {f"label-{k:09d}": b"word" for k in range(12)}
    assert levels(write_lmdb(tmp_path / "set.lmdb", items)) == [10 * k for k in range(12)]


def damaged_lmdbs() -> dict[str, tuple[int, bytes]]:
    """Bytes to write over a page of keys: where in the page, and what."""
    return {
        "number of nodes": (12, struct.pack("<H", 4000)),
        "kind of page": (10, struct.pack("<H", 64)),
        "place of a node": (16, struct.pack("<H", 4095)),
        "length of a key": (None, struct.pack("<H", 60000)),
    }  # type: ignore[dict-item]


@pytest.mark.parametrize("damage", damaged_lmdbs())
def test_a_damaged_lmdb_is_one_line(tmp_path, damage):
    path = write_lmdb(tmp_path / "set.lmdb", {f"{k:03d}": sized(8, k) for k in range(40)})
    content = bytearray(path.read_bytes())
    leaf = next(at for at in range(8192, len(content), 4096) if struct.unpack_from("<H", content, at + 10)[0] == 2)
    at, value = damaged_lmdbs()[damage]
    if at is None:  # of the first node: its length stands behind six bytes of its head
        at = struct.unpack_from("<H", content, leaf + 16)[0] + 6
    content[leaf + at : leaf + at + 2] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"--data .*set.lmdb: a damaged LMDB \(") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_lmdb_that_leads_in_circles(tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", {f"{k:03d}": sized(8, k % 256) for k in range(400)})
    content = bytearray(path.read_bytes())
    root = next(at for at in range(8192, len(content), 4096) if struct.unpack_from("<H", content, at + 10)[0] == 1)
    node = root + struct.unpack_from("<H", content, root + 16)[0]
    content[node : node + 6] = (root // 4096).to_bytes(6, "little")  # its first child is the page itself
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a damaged LMDB"):
        load(path)
    with pytest.raises(struct.error):
        archives.walk_keys(path)


# ---- pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values: np.ndarray, significant: int = 0, colour: int = 0) -> bytes:
    """A PNG of 16 bits with these samples (H,W) or (H,W,3), and a chunk of significant bits if they are given."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    sbit = chunk(b"sBIT", bytes([significant] * (3 if colour else 1))) if significant else b""
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + sbit + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_depth_by_what_the_file_says():
    ramp = np.array([[0, 2048, 4095, 4095]] * 4)
    assert fit(decode(deep_png(ramp, 12)), 4, 1)[0, 0].tolist() == [0, 128, 255, 255]
    assert fit(decode(deep_png(ramp * 16)), 4, 1)[0, 0].tolist() == [0, 128, 255, 255]
    assert fit(decode(deep_png(ramp * 16, 12)), 4, 1)[0, 0].tolist() == [0, 128, 255, 255]  # as the format has it
    assert (fit(decode(deep_png(ramp * 0)), 4, 1) == 0).all()
    with pytest.raises(ValueError, match="from 0 to 4095 of 65535; are they of other bits"):
        decode(deep_png(ramp))
    with pytest.raises(ValueError, match="16 bits that use the lower 12"):
        decode(deep_png(np.stack([ramp] * 3, -1), colour=2))
    assert fit(decode(deep_png(np.stack([ramp * 16] * 3, -1), colour=2)), 4, 3)[2, 0].tolist() == [0, 128, 255, 255]


def test_a_hidden_level_of_16_bits_shows_the_background():
    values = np.array([[30000, 60000, 60000, 60000]] * 4)
    end = deep_png(values).index(b"IDAT") - 4
    data = deep_png(values)[:end] + chunk(b"tRNS", struct.pack(">H", 30000)) + deep_png(values)[end:]
    assert fit(decode(data), 4, 1)[0, 0].tolist() == [255, 234, 234, 234]
    assert fit(decode(data), 4, 1, "black")[0, 0].tolist() == [0, 234, 234, 234]


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "WEBP", "TIFF", "PNG"])
def test_dark_images_of_8_bits_are_read(kind):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 9, 9)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert abs(fit(decode(file.getvalue()), 16, 3).astype(int) - 9).max() <= 1


def test_a_pgm_says_its_largest_value():
    values = np.array([[0, 2048, 4095, 4095]] * 4, ">u2")
    assert fit(decode(b"P5 4 4 4095\n" + values.tobytes()), 4, 1)[0, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize(("kind", "scale"), [(np.int32, 1), (np.float32, 1 / 255)])
def test_pixels_of_unknown_range_are_refused_and_counted(tmp_path, kind, scale, capsys):
    Image.fromarray((np.arange(64).reshape(8, 8) * 4 * scale).astype(kind)).save(tmp_path / "0.tif")
    (tmp_path / "1.png").write_bytes(encoded())
    assert len(load(tmp_path, progress=True)) == 1
    out = capsys.readouterr().out
    assert "0.tif (floating point or 32 bit pixels" in out and "left out 1: 1 unreadable" in out


def test_a_tiff_says_its_largest_value(tmp_path):
    Image.fromarray(np.full((8, 8), 1023, np.uint16)).save(tmp_path / "0.tif", tiffinfo={281: 1023})
    assert (load(tmp_path).images == 255).all()


@pytest.mark.parametrize("background", ["white", "black"])
def test_what_is_transparent_shows_the_background(background):
    hidden = np.zeros((S, S, 4), np.uint8)
    hidden[..., 0] = 255  # red that nobody is to see
    hidden[:, 4:, 3] = 51  # a fifth is there
    level = 255 if background == "white" else 0
    expected = np.stack([np.full((S, 4), level + (255 - level) * share / 5) for share in (0, 1)])
    for image in (Image.fromarray(hidden), Image.fromarray(hidden[..., [0, 3]])):
        grey = image.mode == "LA"
        pixels = fit(image, S, 3, background).astype(float)
        assert np.abs(pixels[0, :, :4] - expected[0]).max() <= 1 and np.abs(pixels[0, :, 4:] - expected[1]).max() <= 1
        other = expected[1] if grey else np.full((S, 4), level * 4 / 5)
        assert np.abs(pixels[2, :, 4:] - other).max() <= 1
    palette = Image.fromarray(np.tile(np.arange(2, dtype=np.uint8), (S, S // 2)), "P")
    palette.putpalette([255, 0, 0, 10, 20, 30])
    palette.info["transparency"] = 0
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    pixels = fit(decode(buffer.getvalue()), S, 3, background)
    assert (pixels[:, :, 0] == level).all() and pixels[:, 0, 1].tolist() == [10, 20, 30]


def test_transparency_and_frames_are_told(tmp_path, capsys):
    Image.fromarray(np.full((S, S, 4), 7, np.uint8)).save(tmp_path / "0.png")
    frames = [Image.fromarray(np.full((S, S), 50 * k, np.uint8)) for k in range(3)]
    for name in ("1.tif", "2.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    load(tmp_path, progress=True)
    line = capsys.readouterr().out
    assert "3 images, no classes; 2 of several frames, the first is read; 1 transparent, shown on white" in line


def test_what_was_read_is_the_same_in_every_container(tmp_path):
    names = ("a/0.png", "b/1.png")
    spec = folder(tmp_path / "set", *names)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "set" / name, name)
    write_lmdb(tmp_path / "set.lmdb", {name: (tmp_path / "set" / name).read_bytes() for name in names})
    whole = load(spec)
    for suffix in (".zip", ".lmdb"):
        data = load(spec + suffix)
        assert torch.equal(data.images, whole.images) and data.labels.tolist() == whole.labels.tolist()
