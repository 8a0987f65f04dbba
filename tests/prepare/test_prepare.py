"""Preparing data: every kind of source gives the same images, whatever kills the run; damage gives one line."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import archives, sources
from common.data.loading import StreamingImages, load_images
from common.data.opening import open_source
from common.data.sources import Source
from common.images import decode, fit
from common.prepare import command as prepare
from common.prepare import containers, tfrecord
from common.prepare.command import PrepareConfig
from common.prepare.containers import read_header, verify
from common.prepare.inputs import open_input
from common.runtime import run_main
from tiny import ROOT

S, N = 8, 7  # side and number of the images prepared; the sources are 20 wide and 16 high


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PIXELS = np.stack([np.asarray(picture(k)) for k in range(N)])  # (N,16,20,3)
FILES = {f"{k}.png": png(picture(k)) for k in range(N)}
CROPPED = torch.from_numpy(PIXELS[:, 4:12, 6:14].transpose(0, 3, 1, 2).copy())  # the centre 8x8


def config(source, to, **changes) -> PrepareConfig:
    return replace(PrepareConfig(source=str(source), to=str(to), size=S, crop=S), **changes)


def run(source, to, **changes) -> dict:
    return prepare.prepare(config(source, to, **changes), progress=False)


def load(path, **options):
    return load_images(str(path), S, 3, progress=False, **options)


# ---- one writer for each kind of source; all hold picture(0) to picture(N - 1) in this order


def write_folder(path: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes] = FILES, extra: tuple = ()) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '').replace('tgz', 'gz')}") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def lmdb_of(path: Path, subdir: bool = False):
    import lmdb

    return lmdb.open(str(path), subdir=subdir, lock=False, map_size=2**24)


def write_lmdb(path: Path, files: dict[str, bytes] = FILES, subdir: bool = True) -> Path:
    with lmdb_of(path, subdir) as opened, opened.begin(write=True) as transaction:
        for name, data in files.items():
            transaction.put(name.encode(), data)
    return path


def write_pixel_lmdb(path: Path) -> Path:
    """Pixels (side, side, 3) instead of files; the square is one that the centre crop cuts out again."""
    squares = [np.zeros((16, 16, 3), np.uint8) for _ in range(N)]
    for square, pixels in zip(squares, PIXELS, strict=True):
        square[4:12, 4:12] = pixels[4:12, 6:14]
    return write_lmdb(path, {str(k): square.tobytes() for k, square in enumerate(squares)})


def write_npy(path: Path) -> Path:
    np.save(path, PIXELS)
    return path


def write_npz(path: Path) -> Path:
    np.savez(path, images=PIXELS)
    return path


def write_npy_folder(path: Path) -> Path:
    path.mkdir()
    for k in range(N):
        np.save(path / f"img{k:05d}.npy", PIXELS[k : k + 1].transpose(0, 3, 1, 2))
    return path


def write_parquet(path: Path, labels=None) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"image": [{"bytes": data, "path": name} for name, data in FILES.items()]}
    table = pa.table(columns | ({} if labels is None else {"label": labels}))
    features = {"info": {"features": {"label": {"names": ["a dog", "cat"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=3)
    return path


def write_parquet_folder(path: Path) -> Path:
    (path / "data").mkdir(parents=True)
    write_parquet(path / "data" / "validation-00000-of-00001.parquet").write_bytes(b"not opened")
    write_parquet(path / "data" / "train-00000-of-00001.parquet")
    return path


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def write_records(path: Path, features: list[dict[str, bytes | list[int]]]) -> Path:
    """A TFRecord file of tf.train.Example; whole numbers are packed."""
    content = b""
    for row in features:
        pairs = b""
        for name, value in row.items():
            if isinstance(value, bytes):
                feature = field(1, field(1, value))
            else:
                feature = field(3, field(1, b"".join(map(varint, value))))
            pairs += field(1, field(1, name.encode()) + field(2, feature))
        record = field(1, pairs)
        length = struct.pack("<Q", len(record))
        content += length + b"\0\0\0\0" + record + b"\0\0\0\0"
    path.write_bytes(content)
    return path


def write_encoded_records(path: Path) -> Path:
    return write_records(path, [{"image/height": [16], "image/encoded": data} for data in FILES.values()])


def write_pixel_records(path: Path) -> Path:
    """Channels first, as in the records of progressive GANs, with a smaller resolution beside it that is not read."""
    path.mkdir()
    planes = PIXELS.transpose(0, 3, 1, 2)
    write_records(path / "set-r03.tfrecords", [{"shape": [3, 2, 2], "data": bytes(12)}])
    write_records(path / "set-r04.tfrecords", [{"shape": [3, 16, 20], "data": p.tobytes()} for p in planes])
    return path


def write_channels_last_records(path: Path) -> Path:
    return write_records(path, [{"data": p.tobytes(), "shape": [16, 20, 3]} for p in PIXELS])


def write_partition(path: Path, suffix: str = ".txt", images: str = "img_align_set") -> Path:
    """N images, every second one for training, and two more for the other splits, as CelebA's files are."""
    files = {f"{k:06d}.png": FILES[f"{k}.png"] for k in range(N)}
    files |= {"000100.png": FILES["0.png"], "000101.png": FILES["1.png"]}
    write_zip(path / f"{images}.zip", {f"{images}/{n}": d for n, d in files.items()}) if suffix == ".csv" else (
        write_folder(path / images, files)
    )
    splits = ["0"] * N + ["1", "2"]
    attributes = [("1" if k % 2 else "-1", "-1") for k in range(len(files))]
    if suffix == ".csv":
        rows = ["image_id,partition", *(f"{n},{s}" for n, s in zip(files, splits, strict=True))]
        table = ["image_id,Smiling,Young", *(f"{n},{','.join(a)}" for n, a in zip(files, attributes, strict=True))]
    else:
        rows = [f"{n} {s}" for n, s in zip(files, splits, strict=True)]
        table = [str(len(files)), "Smiling Young", *(f"{n}  {' '.join(a)}" for n, a in zip(files, attributes))]
    (path / f"list_eval_partition{suffix}").write_text("\n".join(rows) + "\n")
    (path / f"list_attr_set{suffix}").write_text("\n".join(table) + "\n")
    return path


SOURCES = {
    "set": write_folder,
    "set.zip": write_zip,
    "set.tar": write_tar,
    "set.tar.gz": write_tar,
    "set.tgz": write_tar,
    "set.tar.xz": write_tar,
    "set_lmdb": write_lmdb,
    "set.lmdb": lambda path: write_lmdb(path, subdir=False),
    "pixels_lmdb": write_pixel_lmdb,
    "set.npy": write_npy,
    "set.npz": write_npz,
    "npy": write_npy_folder,
    "set.parquet": write_parquet,
    "parquet": write_parquet_folder,
    "set.tfrecord-00000-of-00001": write_encoded_records,
    "records": write_pixel_records,
    "set.tfrecords": write_channels_last_records,
    "tree": write_partition,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same_images(tmp_path, name):
    source = SOURCES[name](tmp_path / name)
    header = run(source, tmp_path / "out.zip", num_workers=1)
    assert header["count"] == N and header["size"] == S and header["skipped"] == []
    data = load(tmp_path / "out.zip")
    assert torch.equal(data.images, CROPPED) and data.labels is None
    assert [path.name for path in tmp_path.glob(".*")] == []  # nothing is left behind


@pytest.mark.parametrize("suffix", [".zip", ".lmdb"])
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_both_kinds_of_file_are_read_by_training(tmp_path, suffix, encoding):
    files = {f"{'ab'[k % 2]}/{k}.png": data for k, data in enumerate(FILES.values())}
    source, out = write_folder(tmp_path / "set", files), tmp_path / f"out{suffix}"
    header = run(source, out, format=encoding)
    data = load(out)
    order = [0, 2, 4, 6, 1, 3, 5]
    error = (data.images.float() - CROPPED[order].float()).abs().mean()
    assert error == 0 if encoding == "png" else 0 < error < 20
    assert data.labels.tolist() == [0] * 4 + [1] * 3 and data.class_names == ("a", "b")
    stream, wanted = StreamingImages(str(out), S, 3, progress=False), torch.tensor([6, 0, 3])
    assert torch.equal(stream.read(wanted)[0], data.images[wanted])
    assert verify(out) == header == read_header(out) and header["source"]["kind"] == "folder"
    with zipfile.ZipFile(out) if suffix == ".zip" else open(os.devnull) as archive:
        if isinstance(archive, zipfile.ZipFile):
            names = archive.namelist()
            assert names == [*sorted(names[:-1]), "header.json"] and archive.infolist()[0].compress_type == 0


def test_the_file_depends_on_the_images_only(tmp_path):
    one = run(write_folder(tmp_path / "set"), tmp_path / "a.zip", num_workers=1)
    time.sleep(0.01)
    run(tmp_path / "set", tmp_path / "b.zip", num_workers=3)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert run(tmp_path / "set", tmp_path / "c.lmdb")["checksum"] == one["checksum"]
    assert run(write_zip(tmp_path / "set.zip"), tmp_path / "d.zip")["checksum"] == one["checksum"]
    changed = {**FILES, "3.png": png(picture(99))}
    assert run(write_zip(tmp_path / "e.zip", changed), tmp_path / "f.zip")["checksum"] != one["checksum"]


# ---- killed and continued


def killed(run_it) -> None:
    """Runs a function in a forked process, which must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            run_it()
        finally:
            os._exit(1)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the process was to kill itself")


def dies(function, when: int, after: bool):
    """The function, but its call number ``when`` kills the process, before or after its work."""
    calls = []

    def call(*args, **options):
        calls.append(1)
        if len(calls) == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


KILLS = {
    "within a chunk": (containers, "digest", 5, True),  # call 1 is the plan's
    "between the images and the journal": (prepare.JsonLines, "append", 2, False),
    "after the journal": (prepare.JsonLines, "append", 2, True),
    "before the end": (json, "dumps", 7, False),  # after the plan and five lines of the journal
    "before it gets its name": (Path, "replace", 1, False),
    "before the folder is removed": (prepare.shutil, "rmtree", 1, False),
}


@pytest.mark.parametrize("suffix", [".zip", ".lmdb"])
@pytest.mark.parametrize("kill", KILLS)
def test_kill_9_and_go_on(tmp_path, monkeypatch, suffix, kill):
    files = {**FILES, "2x.png": b"damaged", "5x.png": b""}
    source, out, whole = write_zip(tmp_path / "set.zip", files), tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    monkeypatch.setattr(prepare, "_CHUNK", 2)
    run(source, whole)
    with monkeypatch.context() as patch:
        where, name, when, after = KILLS[kill]
        patch.setattr(where, name, dies(getattr(where, name), when, after))
        killed(lambda: run(source, out))
    assert out.exists() == (kill == "before the folder is removed")
    assert (tmp_path / f".{out.name}.part").exists()
    encoded = []
    with monkeypatch.context() as patch:
        encode = prepare._encode_one
        patch.setattr(prepare, "_encode_one", lambda *args: encoded.append(args[2]) or encode(*args))
        header = run(source, out)
    left = {"within a chunk": 5, "between the images and the journal": 7, "after the journal": 5}  # of nine
    assert len(encoded) == left.get(kill, 0)
    assert header == read_header(whole) and len(header["skipped"]) == 2 and header["count"] == N
    assert verify(out)["checksum"] == header["checksum"]
    assert torch.equal(load(out).images, CROPPED)
    if suffix == ".zip":
        assert out.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_other_settings_do_not_mix(tmp_path, monkeypatch, capsys):
    source, out = write_zip(tmp_path / "set.zip"), tmp_path / "out.zip"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_CHUNK", 2)
        patch.setattr(prepare.JsonLines, "append", dies(prepare.JsonLines.append, 2, True))
        killed(lambda: run(source, out))
    with pytest.raises(ValueError, match=r"other settings: crop centre 8.* there and centre 10.*delete the folder"):
        run(source, out, crop=10)
    run(source, out)
    made = out.stat().st_mtime_ns
    assert prepare.prepare(config(source, out))["count"] == N and "is complete" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="other settings: size 8 there and 4 now, .*; give another --to"):
        run(source, out, size=4)
    (tmp_path / "own.zip").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match=r"own.zip: not a file of prepared images"):
        run(source, tmp_path / "own.zip")
    assert (tmp_path / "own.zip").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("suffix", [".zip", ".lmdb"])
def test_images_that_have_changed_are_prepared_anew(tmp_path, suffix, capsys):
    """A damaged image that was repaired, in a folder whose names and number of images are the same."""
    files = {**FILES, "3.png": FILES["3.png"][:100]}
    source, out = write_folder(tmp_path / "set", files), tmp_path / f"out{suffix}"
    assert run(source, out)["count"] == N - 1
    assert run(source, out)["count"] == N - 1
    (source / "3.png").write_bytes(FILES["3.png"])
    header = prepare.prepare(config(source, out))
    assert "the images have changed since" in capsys.readouterr().out
    assert header["count"] == N and header["skipped"] == [] and torch.equal(load(out).images, CROPPED)
    made = out.stat().st_mtime_ns
    os.utime(source / "3.png")  # another time, the same bytes
    assert run(source, out) == header and out.stat().st_mtime_ns == made
    (source / "new.png").write_bytes(FILES["0.png"])
    with pytest.raises(ValueError, match="other settings: source .*; give another --to"):
        run(source, out)


def test_images_that_change_while_they_are_prepared(tmp_path, monkeypatch):
    """A run was killed, an image was exchanged: what was written of the old ones does not go into the file."""
    source, out = write_folder(tmp_path / "set"), tmp_path / "out.zip"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_CHUNK", 2)
        patch.setattr(prepare.JsonLines, "append", dies(prepare.JsonLines.append, 2, True))
        killed(lambda: run(source, out))
    (source / "0.png").write_bytes(png(picture(99)))
    run(source, out)
    assert torch.equal(load(out).images[1:], CROPPED[1:]) and not torch.equal(load(out).images[0], CROPPED[0])
    packed = write_tar(tmp_path / "set.tar.gz")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_CHUNK", 2)
        patch.setattr(prepare.JsonLines, "append", dies(prepare.JsonLines.append, 2, True))
        killed(lambda: run(packed, tmp_path / "two.zip"))
    write_tar(packed, {**FILES, "6.png": png(picture(99))})  # unpacked again, too
    run(packed, tmp_path / "two.zip")
    assert not torch.equal(load(tmp_path / "two.zip").images[6], CROPPED[6])


@pytest.mark.parametrize("background", ["white", "black"])
def test_what_is_transparent_is_prepared_on_a_background(tmp_path, background, capsys):
    clear = Image.fromarray(np.full((16, 20, 4), (200, 10, 10, 0), np.uint8))
    source = write_folder(tmp_path / "set", {"0.png": png(clear)})
    header = prepare.prepare(config(source, tmp_path / "out.zip", background=background))
    assert header["background"] == background and f"1 transparent, shown on {background}" in capsys.readouterr().out
    assert (load(tmp_path / "out.zip").images == (255 if background == "white" else 0)).all()


def test_a_changed_file_is_noticed(tmp_path):
    out = tmp_path / "out.lmdb"
    run(write_folder(tmp_path / "set"), out)
    with archives.environment(out).begin() as transaction:
        image = transaction.get(b"3.png")
    changed = image.replace(b"IDAT", b"IDOT")
    (tmp_path / "bad.lmdb").write_bytes(out.read_bytes().replace(image, changed))
    with pytest.raises(ValueError, match=r"checksum .*, but its header says"):
        verify(tmp_path / "bad.lmdb")


# ---- images of all kinds


def test_modes_and_shapes(tmp_path):
    base, rng = picture(0), np.random.default_rng(1)
    images = {
        "grey": base.convert("L"),
        "palette": base.quantize(16),
        "rgba": Image.merge("RGBA", (*base.split(), picture(1, "L"))),
        "la": Image.merge("LA", (base.convert("L"), picture(1, "L"))),
        "deep": Image.fromarray(rng.integers(0, 65536, (16, 20), dtype=np.uint16)),
        "tall": picture(2, size=(9, 33)),
    }
    files = {f"{name}.png": png(image) for name, image in images.items()}
    run(write_folder(tmp_path / "set", files), tmp_path / "out.zip", crop=0, size=5)
    run(tmp_path / "set", tmp_path / "grey.zip", crop=0, size=5, channels=1)
    colour, grey = (load_images(str(tmp_path / f"{n}.zip"), 5, c, progress=False) for n, c in (("out", 3), ("grey", 1)))
    for row, name in enumerate(sorted(files)):
        assert np.array_equal(colour.images[row], fit(decode(files[name]), 5, 3)), name
        assert np.array_equal(grey.images[row], fit(decode(files[name]), 5, 1)), name


def test_box(tmp_path):
    run(write_folder(tmp_path / "set"), tmp_path / "out.zip", crop=0, box=(1, 2, 9, 10))
    assert np.array_equal(load(tmp_path / "out.zip").images, PIXELS[:, 2:10, 1:9].transpose(0, 3, 1, 2))


def test_images_that_cannot_be_read(tmp_path, capsys):
    small = png(picture(0, size=(7, 30)))
    source = write_folder(
        tmp_path / "set", {**FILES, "a.png": b"no image", "b.png": FILES["1.png"][:300], "c.png": small}
    )
    with pytest.raises(
        ValueError, match=r"more than 2 images cannot be read: a.png \(cannot identify.*; b.png .*; c.png"
    ):
        run(source, tmp_path / "out.zip", corrupt_limit=2)
    header = prepare.prepare(config(source, tmp_path / "out.zip", corrupt_limit=3))
    assert [line.split(" ")[0] for line in header["skipped"]] == ["a.png", "b.png", "c.png"]
    assert "7x30 is smaller than the crop" in header["skipped"][2] and " at 0x" not in str(header)
    assert capsys.readouterr().out.count("skipped an image that cannot be read") == 3
    assert torch.equal(load(tmp_path / "out.zip").images, CROPPED)
    with pytest.raises(ValueError, match="none of its 1 images can be read"):
        run(write_folder(tmp_path / "bad", {"a.png": b"x"}), tmp_path / "bad.zip")


# ---- names, labels, splits


def names(*given: str, labels=None, classes=()) -> list[str]:
    labels = None if labels is None else np.array(labels)
    source = Source("x", lambda k: None, len(given), given if given[0] else None, labels, classes)
    return prepare.output_names(source, ".png")


def test_names():
    assert names("train/a/1.jpg", "train/b/2.JPEG", labels=[0, 1]) == ["a/1.png", "b/2.png"]
    assert names("x/1.jpg", "x/2.jpg") == ["1.png", "2.png"]
    assert names("1.jpg", "1.png") == ["1.jpg.png", "1.png.png"]  # both would become 1.png
    assert names("", "", labels=[1, 0], classes=("cat", "dog")) == ["dog/00000000.png", "cat/00000001.png"]
    assert names("", "", labels=[1, 0], classes=("dog", "a cat")) == ["1_a_cat/00000000.png", "0_dog/00000001.png"]
    assert names("../../etc/1", "/abs/C:\\2", ".3") == ["_/_/etc/1.png", "abs/C__2.png", "_3.png"]
    both = names("Training/a/0.jpg", "Testing/a/0.jpg", "Testing/b/0.jpg", labels=[0, 0, 1], classes=("a", "b"))
    assert both == ["a/00000000.png", "a/00000001.png", "b/00000002.png"]  # one name in two splits
    assert names("b\udcff", "b\udcfe") == ["00000000.png", "00000001.png"]  # not text, and alike without that


def test_labels_of_parquet_and_arrays(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=np.array([2, 0, 1, 2, 0, 1, 10]))
    run(tmp_path / "set.npz", tmp_path / "out.zip")
    assert load(tmp_path / "out.zip").class_names == ("0", "1", "2", "10")
    run(write_parquet(tmp_path / "set.parquet", [1, 0, 0, 1, 0, 0, 1]), tmp_path / "parquet.zip")
    data = load(tmp_path / "parquet.zip")
    assert data.labels.tolist() == [0] * 4 + [1] * 3 and torch.equal(data.images[:4], CROPPED[[1, 2, 4, 5]])
    assert data.class_names == ("a_dog", "cat")


def test_classes_of_parquet_files_go_by_their_names(tmp_path, capsys):
    """A file that lacks a class, or names classes in words, does not lose or change the labels."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def write(folder: str, **columns) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        for k in range(2):
            images = [{"bytes": FILES[f"{2 * k + row}.png"], "path": None} for row in range(2)]
            own = {name: values[2 * k : 2 * k + 2] for name, values in columns.items()}
            pq.write_table(pa.table({"image": images} | own), tmp_path / folder / f"{k}.parquet")
        return tmp_path / folder

    for folder, values, expected in (
        ("numbers", [0, 2, 1, 0], [0, 2, 1, 0]),
        ("words", ["owl", "cat", "cat", "dog"], [2, 0, 0, 1]),
    ):
        prepare.prepare(config(write(folder, target=values, area=[1.5] * 4), tmp_path / f"{folder}.zip"))
        assert "labels: target; not read: area" in capsys.readouterr().out
        data = load(tmp_path / f"{folder}.zip")
        order = sorted(range(4), key=lambda k: (expected[k], k))
        assert data.labels.tolist() == sorted(expected) and torch.equal(data.images, CROPPED[order])
    with pytest.raises(ValueError, match="the labels label are int64, 1 of them missing"):
        run(write("holes", label=[0, None, 1, 1]), tmp_path / "x.zip")


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_partition_and_attributes(tmp_path, suffix):
    source = write_partition(tmp_path / "tree", suffix)
    for split, count in (("train", N), ("val", 1), ("test", 1), ("all", N + 2)):
        assert run(source, tmp_path / f"{split}.zip", split=split)["count"] == count
    assert torch.equal(load(tmp_path / "test.zip").images[0], CROPPED[1])
    run(source, tmp_path / "smiling.zip", attribute="Smiling")
    data = load(tmp_path / "smiling.zip")
    assert data.class_names == ("0_no_Smiling", "1_Smiling")
    assert torch.equal(data.images[data.labels == 1], CROPPED[1::2])
    with pytest.raises(ValueError, match="--attribute Hat: choose one of Smiling, Young"):
        run(source, tmp_path / "x.zip", attribute="Hat")
    with pytest.raises(ValueError, match="only for a folder that has list_eval_partition"):
        run(write_folder(tmp_path / "set"), tmp_path / "x.zip", attribute="Hat")


def test_files_of_splits(tmp_path):
    path = tmp_path / "records"
    path.mkdir()
    for split, seeds in (("train", [0, 1]), ("validation", [2])):
        rows = [{"image": FILES[f"{k}.png"]} for k in seeds]
        write_records(path / f"set-{split}.tfrecord-00000-of-00001", rows)
    run(path, tmp_path / "val.zip", split="val")
    assert torch.equal(load(tmp_path / "val.zip").images, CROPPED[2:3])
    with pytest.raises(ValueError, match="no test images in it, only train, val"):
        run(path, tmp_path / "test.zip", split="test")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_conversion_to_parquet_by_folders_of_splits(tmp_path, split):
    """As the Hugging Face hub lays them out: default/train/0000.parquet; in its cache they are links to elsewhere."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for k, name in enumerate(("train", "validation", "test")):
        (tmp_path / "set" / "default" / name).mkdir(parents=True)
        table = pa.table({"image": [{"bytes": FILES[f"{k}.png"], "path": None}], "labels": [k]})
        pq.write_table(table, tmp_path / f"blob{k}")
        os.symlink(tmp_path / f"blob{k}", tmp_path / "set" / "default" / name / "0000.parquet")
    run(tmp_path / "set", tmp_path / "out.zip", split=split)
    k = ("train", "val", "test").index(split)
    assert torch.equal(load(tmp_path / "out.zip").images, CROPPED[k : k + 1])
    assert run(tmp_path / "set", tmp_path / "all.zip", split="all")["count"] == 3
    (tmp_path / "set" / "default" / "extra").mkdir()
    os.symlink(tmp_path / "blob0", tmp_path / "set" / "default" / "extra" / "0000.parquet")
    with pytest.raises(ValueError, match="look like splits, but extra cannot be placed"):
        run(tmp_path / "set", tmp_path / "x.zip", split=split)
    (tmp_path / "set" / "logo.png").write_bytes(FILES["0.png"])
    with pytest.raises(ValueError, match=r"1 images, such as logo.png, and 4 files of many"):
        run(tmp_path / "set", tmp_path / "x.zip", split=split)


def test_classes_of_parquet_files_are_those_of_all_splits(tmp_path):
    """Words of one split must not give a class another number than in the other."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    images = [{"bytes": FILES[f"{k}.png"], "path": None} for k in range(2)]
    for name, labels in (("train", ["a", "b"]), ("validation", ["a", "c"])):
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "set" / f"{name}.parquet")
    for split, labels in (("train", [0, 1]), ("val", [0, 2])):
        source = open_input(str(tmp_path / "set"), split, "", tmp_path, print)
        assert source.class_names == ("a", "b", "c") and source.labels.tolist() == labels
    pq.write_table(pa.table({"image": images}), tmp_path / "set" / "train-2.parquet")
    source = open_input(str(tmp_path / "set"), "train", "", tmp_path, print)
    assert source.labels is None and "no labels, since 1 of 2 files have none" in source.notes[-1]
    pq.write_table(pa.table({"image": images, "label": [0, 10**12]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="reach 1000000000000; allowed are 0 to 99999"):
        open_input(str(tmp_path / "x.parquet"), "train", "", tmp_path, print)


# ---- archives that mean harm, or are damaged


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["set.tar", "set.tar.gz", "set.zip"])
def test_members_that_leave_the_archive_are_refused(tmp_path, name, kind):
    write = write_zip if kind == "set.zip" else write_tar
    source = write(tmp_path / "in" / kind if kind == "set.zip" else tmp_path / kind, {**FILES, name: FILES["0.png"]})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"^--from .*points outside of the archive; refused"):
        run(source, tmp_path / "out.zip")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_are_ignored(tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes(png(picture(9)))
    extra = []
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(f"x{number}.png")
        info.type, info.linkname = kind, str(tmp_path / "secret.png")
        extra.append(info)
    write_tar(tmp_path / "set.tar", extra=tuple(extra))
    with zipfile.ZipFile(write_zip(tmp_path / "set.zip"), "a") as archive:
        link = zipfile.ZipInfo("x0.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret.png"))
    for name, count in (("set.tar", 4), ("set.zip", 1)):
        data = load_images(str(tmp_path / name), 16, 3, progress=True)
        assert len(data) == N
        assert f"left out {count}: {count} links and special files" in capsys.readouterr().out


def test_bombs(tmp_path, monkeypatch):
    """An image that is too large is left out, whatever it lies in; the others are read."""
    bomb = {**FILES, "8.png": FILES["0.png"] + bytes(10_000)}
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 10_000)
    writers = {"set": write_folder, "set.zip": write_zip, "set.tar": write_tar, "set.lmdb": write_lmdb}
    for k, (name, write) in enumerate(writers.items()):
        header = run(write(tmp_path / name, bomb), tmp_path / f"out{k}.zip")
        assert header["count"] == N and "it has 0 MiB, more than the 0" in header["skipped"][0], name


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def write_text(path: Path) -> Path:
    path.write_text("x" * 9000)
    return path


DAMAGED = {
    "cut.tar": (lambda p: cut(write_tar(p), 0.55), "not a readable uncompressed tar"),
    "between.tar": (lambda p: cut(write_tar(p), 0.6), "ends without the mark of its end"),  # between two members
    "cut.tar.gz": (lambda p: cut(write_tar(p)), "damaged, or not compressed"),
    "text.tar": (write_text, "not a readable uncompressed tar"),
    "text.tgz": (write_text, "damaged, or not compressed"),
    "cut.zip": (lambda p: cut(write_zip(p)), "not a readable zip"),
    "lmdb.zip": (lambda p: write_zip(p, {"x/data.mdb": b""}), "a zipped LMDB; unzip it"),
    "cut.lmdb": (lambda p: cut(write_lmdb(p, subdir=False)), "the LMDB is cut off"),
    "text.lmdb": (write_text, "not a readable LMDB"),
    "empty.lmdb": (lambda p: write_lmdb(p, {}, subdir=False), "no images in it"),
    "text.parquet": (lambda p: pytest.importorskip("pyarrow") and write_text(p), "not a readable parquet"),
    "cut.tfrecords": (lambda p: cut(write_encoded_records(p)), "ends within record 4"),
    "text.tfrecords": (write_text, "is not an uncompressed TFRecord file"),
    "empty": (lambda p: p.mkdir() or p, "no images in it"),
    "notes.txt": (write_text, "cannot read a .txt file"),
    "nowhere.zip": (lambda p: p, "no such file or folder"),
    "empty.tar": (lambda p: write_tar(p, {"notes.txt": b"x"}), "no images in it"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_source_is_one_line_and_code_2(tmp_path, capsys, name):
    make, message = DAMAGED[name]
    source = make(tmp_path / name)
    argv = ["images", "--size", "8", "--from", str(source), "--to", str(tmp_path / "out" / "x.zip")]
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: prepare.main(argv))
    shown = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and shown[-1].startswith("error: --from ") and message in shown[-1]
    assert not list((tmp_path / "out").iterdir())


def test_zip_as_tar_of_training_is_hinted(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read a .gz file.*convert it by python -m common.prepare"):
        open_source(str(write_tar(tmp_path / "set.tar.gz")))


# ---- LMDB


def pixels_of(source: Source) -> int:
    return int(np.asarray(source.load(3)).sum())


def test_lmdb_opened_twice_and_replaced(tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", subdir=False)
    train, val = open_source(str(path)), open_source(str(path))  # LMDB itself forbids a second environment
    assert pixels_of(train) == pixels_of(val) and train.names == val.names and list(train.names) == sorted(FILES)
    other = write_lmdb(tmp_path / "other.lmdb", {"3.png": png(picture(9))}, subdir=False)
    assert open_source(str(other)).names != train.names
    other.replace(path)
    assert open_source(str(path)).count == 1 and pixels_of(val) == PIXELS[3].sum()


@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_keys_from_the_pages_are_those_of_the_package(tmp_path, count):
    import lmdb

    draw = np.random.default_rng(0)
    with lmdb.open(str(tmp_path / "x"), subdir=False, lock=False, map_size=2**28, sync=False) as opened:
        for part in range(3):  # the third transaction's page of roots is the first again
            with opened.begin(write=True) as transaction:
                for _ in range(count):
                    transaction.put(draw.bytes(int(draw.integers(1, 200))), bytes(int(draw.integers(0, 5000))))
                if part == 2:
                    transaction.put(b"k", b"")
                    transaction.delete(b"k")
        with opened.begin() as transaction:
            expected = list(transaction.cursor().iternext(keys=True, values=False))
            depth = opened.stat()["depth"]
    assert archives.walk_keys(tmp_path / "x") == expected and len(expected) <= 3 * count
    assert count < 2000 or (len(expected) > 5000 and depth > 2)


def test_a_layout_that_is_not_known_is_left_to_the_package(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "set")
    monkeypatch.setattr(archives, "walk_keys", lambda path: None)
    assert list(open_source(str(path)).names) == sorted(FILES)


def test_any_bytes_may_be_a_key(tmp_path):
    keys = (b"a", b"b\xff", b"c\0")
    path = write_lmdb(tmp_path / "set.lmdb", {}, subdir=False)
    with lmdb_of(path) as opened, opened.begin(write=True) as transaction:
        for k, key in enumerate(keys):
            transaction.put(key, FILES[f"{k}.png"])
    source = open_source(str(path))
    assert list(source.names) == ["a", "b\udcff", "c\0"]
    assert [int(np.asarray(source.load(k)).sum()) for k in range(3)] == [int(PIXELS[k].sum()) for k in range(3)]


def test_an_lmdb_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAP_BYTES", 2**15)
    noise = {f"{k}.png": png(picture(k, size=(64, 64))) for k in range(9)}  # 12 kB each
    run(write_folder(tmp_path / "set", noise), tmp_path / "out.lmdb", crop=0, size=64)
    assert (tmp_path / "out.lmdb").stat().st_size > 9 * 2**13 and verify(tmp_path / "out.lmdb")["count"] == 9
    with pytest.raises(ValueError, match="longer than an LMDB's 511 bytes; write a .zip"):
        containers.LmdbWriter(tmp_path / "x.lmdb", []).write([("x" * 512, b"")])


def test_a_full_disk_is_one_line_that_names_the_lmdb(tmp_path, monkeypatch):
    import lmdb

    writer = containers.LmdbWriter(tmp_path / "x.lmdb", [])

    def full(*args, **options):
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(writer, "_environment", type("Full", (), {"begin": full})())
    with pytest.raises(
        OSError, match=r"cannot write .*x.lmdb \(mdb_txn_commit: No space left on device\): is the disk full"
    ):
        writer.write([("a", b"b")])
    (tmp_path / "y.lmdb").write_text("x" * 9000)
    with pytest.raises(OSError, match=r"cannot write .*y.lmdb .*delete its folder"):
        containers.LmdbWriter(tmp_path / "y.lmdb", [])


def test_packages_that_are_not_there(tmp_path, monkeypatch, capsys):
    source = write_lmdb(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = write_text(tmp_path / "x.parquet")
    for name, go in (("lmdb", lambda: open_source(str(source))), ("pyarrow", lambda: run(text, tmp_path / "x.zip"))):
        with pytest.raises(SystemExit):
            run_main(go)
        assert f"the package {name} is not installed: pip install -r" in capsys.readouterr().err


# ---- TFRecord


def test_features_of_a_record():
    unpacked = varint(1 << 3) + varint(300)
    pair = field(1, b"n") + field(2, field(3, unpacked + varint(1 << 3) + varint(7)))
    floats = field(1, b"f") + field(2, field(2, field(1, struct.pack("<2f", 1, 2))))
    assert tfrecord.example(field(1, field(1, pair) + field(1, floats))) == {"n": [300, 7], "f": []}
    with pytest.raises(Exception, match="pars|truncated|damaged"):
        tfrecord.example(field(1, b"x" * 50)[:-10])


# ---- the command line


def test_presets_of_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    write_folder(tmp_path / "faces", {"prepare.json": b'{"crop": 8, "size": 8}', "photos/0.png": FILES["0.png"]})
    files = ["--from", str(tmp_path / "faces" / "photos"), "--to", str(tmp_path / "out.zip")]
    header = prepare.main(["faces", *files, "--check"])
    assert header["crop"].startswith("centre 8, ") and torch.equal(load(tmp_path / "out.zip").images[0], CROPPED[0])
    with pytest.raises(ValueError, match="nobody: choose one of images, faces"):
        prepare.main(["nobody", *files])
    (tmp_path / "faces" / "prepare.json").write_text('{"corp": 8}')
    with pytest.raises(ValueError, match="faces.prepare.json: unknown key corp; the nearest is crop"):
        prepare.main(["faces", *files])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "give --from PATH and --to"),
        ({"to": "x.tar"}, "--to x.tar: give a name that ends in .zip or .lmdb"),
        ({"size": 0}, "--size 0: give the side"),
        ({"channels": 2}, "--channels 2"),
        ({"quality": 0}, "--quality 0: give 1 to 100"),
        ({"box": (1, 2, 3, 4)}, "exclude each other"),
        ({"crop": 0, "box": (4, 2, 3, 4)}, "--box 4,2,3,4: give LEFT"),
        ({"crop": 0, "box": (4, 2)}, "--box 4,2: give LEFT"),
        ({"num_workers": 0}, "--num_workers 0: must be at least 1"),
    ],
)
def test_wrong_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(replace(PrepareConfig(source="x", to=str(tmp_path / "x.zip"), size=8, crop=8), **changes))
    assert not list(tmp_path.iterdir())


def test_help_answers_without_torch():
    code = "import sys, common.prepare.command; print({'torch', 'numpy', 'PIL', 'tqdm'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
    shown = subprocess.run([sys.executable, "-m", "common.prepare", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "--corrupt_limit" in shown.stdout and "--box" in shown.stdout
