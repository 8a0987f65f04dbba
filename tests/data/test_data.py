"""Data: every source on small files made here, damaged ones too, and batches as a function of (seed, step)."""

import gzip
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import arrays, opening, sources
from common.data import loading as data_module
from common.data.loading import (
    Batches,
    ImageData,
    StreamingImages,
    check_labels,
    fits_in_memory,
    load_images,
    split_train_val,
)
from common.data.synthetic import synthetic_images
from common.images import to_uint8
from mnist import by_keras

S = 8


def picture(seed: int, size: int = S, channels: int = 3) -> np.ndarray:
    """Random uint8 pixels (H,W,C), or (H,W) for one channel."""
    shape = (size, size, 3) if channels == 3 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


CLASSES = ("cat", "dog", "owl")


def class_files(count: int = 12) -> dict[str, bytes]:
    """count images in three class folders; image k of class c is picture(10 c + k)."""
    return {f"{c}/{k}.png": encode(picture(10 * CLASSES.index(c) + k)) for c in CLASSES for k in range(count // 3)}


def write_folder(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def write_zip(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def load(spec, size=S, channels=3, **options) -> ImageData:
    return load_images(str(spec), size, channels, **{"progress": False, **options})


# ---- folders and zip files


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_class_folders(tmp_path, kind):
    files = {**class_files(), "__MACOSX/cat/0.png": b"x", "cat/.hidden.png": b"x", "notes.txt": b"x"}
    spec = write_folder(tmp_path / "set", files) if kind == "folder" else write_zip(tmp_path / "set.zip", files)
    data = load(spec)
    assert data.images.shape == (12, 3, S, S) and data.images.dtype == torch.uint8
    assert data.class_names == CLASSES and data.num_classes == 3
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for row, seed in enumerate([0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]):  # exact pixels, sorted by name
        assert torch.equal(data.images[row], torch.from_numpy(picture(seed)).permute(2, 0, 1))
    assert load(spec, labels=False).labels is None


def test_zip_and_folder_stream_alike(tmp_path):
    files = class_files()
    whole = load(write_folder(tmp_path / "set", files))
    stream = StreamingImages(write_zip(tmp_path / "set.zip", files), S, 3, num_workers=3, progress=False)
    order = torch.tensor([7, 0, 7, 11, 3])
    for _ in range(3):
        images, labels = stream.read(order)
        assert torch.equal(images, whole.images[order]) and torch.equal(labels, whole.labels[order])
    assert len(stream) == 12 and stream.class_names == CLASSES


def test_one_folder_means_no_labels_and_numbers_sort_by_value(tmp_path):
    one = load(write_folder(tmp_path / "a", {f"all/{k}.png": encode(picture(k)) for k in range(3)}))
    assert one.labels is None and one.class_names == ()
    digits = load(write_folder(tmp_path / "b", {f"{k}/x.png": encode(picture(k)) for k in (0, 2, 10)}))
    assert digits.class_names == ("0", "2", "10")
    assert torch.equal(digits.images[digits.labels == 2][0], torch.from_numpy(picture(10)).permute(2, 0, 1))


def test_split_folders(tmp_path):
    files = {f"train/{c}/{k}.png": encode(picture(k)) for c in "ab" for k in range(2)}
    spec = write_folder(tmp_path, {**files, "test/a/0.png": encode(picture(5)), "test/b/0.png": encode(picture(6))})
    assert load(spec).class_names == ("a", "b") and len(load(spec)) == 4
    assert len(load(spec, split="test")) == 2
    with pytest.raises(ValueError, match=r"no val images in it, only test, train"):
        load(spec, split="val")


def test_links_do_not_loop(tmp_path):
    write_folder(tmp_path / "set", {"a/0.png": encode(picture(0)), "b/0.png": encode(picture(1))})
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "loop")
    assert len(load(tmp_path / "set")) == 2


def test_limit_is_spread_over_the_classes(tmp_path):
    data = load(write_folder(tmp_path, class_files(12)), limit=6)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(data.images[1], torch.from_numpy(picture(2)).permute(2, 0, 1))  # every second image
    assert len(load(tmp_path, limit=100)) == 12
    with pytest.raises(ValueError, match="limit 0"):
        load(tmp_path, limit=0)


def test_resized_with_one_line(tmp_path, capsys):
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, 10:30] = 200  # the centre square is grey 200 throughout
    spec = write_folder(tmp_path, {"0.png": encode(half), "1.png": encode(picture(1)), "2.png": encode(half)})
    data = load(spec, progress=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "resized" in line]
    assert lines == [f"{spec}: 3 images, no classes; 2 resized to {S}x{S} (0.png is 40x20)"]
    assert (data.images[0] == 200).all()
    assert torch.equal(data.images[1], torch.from_numpy(picture(1)).permute(2, 0, 1))


def test_grey_and_colour(tmp_path):
    flat = np.full((S, S, 3), (10, 100, 250), np.uint8)
    spec = write_folder(tmp_path, {"0.png": encode(picture(0, channels=1)), "1.png": encode(flat)})
    colour, grey = load(spec), load(spec, channels=1)
    assert torch.equal(colour.images[0], torch.from_numpy(picture(0, channels=1)).expand(3, S, S))
    assert grey.images.shape == (2, 1, S, S)
    assert (grey.images[1] == round(0.299 * 10 + 0.587 * 100 + 0.114 * 250)).all()  # ITU-R 601 luma


# ---- bad input


def damaged(files: dict[str, bytes]) -> dict[str, bytes]:
    """One file that is no image and one that ends too early."""
    jpeg = encode(picture(2, 64), "JPEG")
    return {**files, "cat/1.png": b"not an image", "dog/2.png": jpeg[: len(jpeg) // 2]}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_damaged_images_are_named_and_left_out(tmp_path, kind, capsys):
    files = damaged(class_files())
    spec = write_folder(tmp_path / "set", files) if kind == "folder" else write_zip(tmp_path / "set.zip", files)
    data = load(spec, progress=True)
    out = capsys.readouterr().out
    assert out.count("skipped an image that cannot be read") == 2 and "cat/1.png" in out and "dog/2.png" in out
    assert data.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    for row, seed in enumerate([0, 2, 3, 10, 11, 13, 20, 21, 22, 23]):
        assert torch.equal(data.images[row], torch.from_numpy(picture(seed)).permute(2, 0, 1))


def test_gaps_close_over_many_chunks():
    pixels = np.arange(1000).repeat(2).reshape(1000, 2).copy()
    kept = data_module._close_gaps(pixels, [0, 5, 300, 301, 999])
    expected = [k for k in range(1000) if k not in (0, 5, 300, 301, 999)]
    assert kept.tolist() == expected and pixels[: len(kept), 1].tolist() == expected


def test_too_many_damaged_images(tmp_path, monkeypatch):
    spec = write_folder(tmp_path, damaged(class_files()))
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "CORRUPT_LIMIT", 1)
        with pytest.raises(ValueError, match=r"more than 1 images cannot be read: .*cat/1.png.*dog/2.png"):
            load(spec)
    with pytest.raises(ValueError, match="none of its 2 images can be read"):
        load(write_folder(tmp_path / "bad", {"0.png": b"x", "1.png": b"y"}))


def test_too_many_damaged_images_stop_the_threads(monkeypatch):
    calls = []
    source = arrays.array_source("x", np.zeros((5000, 4, 4), np.uint8))
    source.load = lambda index: calls.append(index) or (_ for _ in ()).throw(OSError("bad"))
    monkeypatch.setattr(data_module, "open_source", lambda *_: source)
    monkeypatch.setattr(data_module, "CORRUPT_LIMIT", 3)
    with pytest.raises(ValueError, match="more than 3"):
        load("x", num_workers=1)
    assert len(calls) == 1 + 4  # the first image is also read to see how large it is


def test_streaming_replaces_damaged_images(tmp_path, monkeypatch, capsys):
    spec = write_folder(tmp_path, damaged(class_files()))
    stream = StreamingImages(spec, S, 3, num_workers=2)
    images, labels = stream.read(torch.tensor([1, 0, 1]))
    assert torch.equal(images[0], torch.from_numpy(picture(2)).permute(2, 0, 1))  # cat/2 for cat/1
    assert torch.equal(images[0], images[2]) and labels.tolist() == [0, 0, 0]
    assert "cat/1.png" in capsys.readouterr().out
    monkeypatch.setattr(data_module, "CORRUPT_LIMIT", 0)
    with pytest.raises(ValueError, match="more than 0 images cannot be read"):
        StreamingImages(spec, S, 3, progress=False).read(torch.tensor([1]))


def test_paths_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(FileNotFoundError, match="no such file or folder; give torchvision:NAME"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="--data ''"):
        load("")
    with pytest.raises(ValueError, match="no images in it"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="no images in it"):
        load(write_zip(tmp_path / "text.zip", {"a.txt": b"x"}))
    with pytest.raises(ValueError, match="not a readable zip"):
        load(tmp_path / "broken.zip")
    with pytest.raises(ValueError, match="cannot read a .txt file"):
        load(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="channels 2"):
        load(tmp_path / "empty", channels=2)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
def test_zip_members_that_leave_the_archive_are_refused(tmp_path, name):
    spec = write_zip(tmp_path / "set.zip", {**class_files(), name: encode(picture(0))})
    with pytest.raises(ValueError, match="points outside of the archive; refused"):
        load(spec)


def test_zip_bomb_and_damaged_member(tmp_path, monkeypatch, capsys):
    spec = write_zip(tmp_path / "set.zip", class_files())
    content = bytearray(Path(spec).read_bytes())
    content[content.index(b"owl/0.png") + 60] ^= 255  # inside the stored pixels: the checksum fails
    Path(spec).write_bytes(content)
    assert len(load(spec, progress=True)) == 11 and "owl/0.png (Bad CRC-32" in capsys.readouterr().out
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(
        ValueError, match=r"more than 10 images cannot be read: cat/0.png \(it has 0 MiB, more than the 0"
    ):
        load(spec)


def test_more_than_memory_holds(tmp_path, monkeypatch):
    assert fits_in_memory(100, 3, 32, 32) and not fits_in_memory(10**9, 3, 1024, 1024)
    monkeypatch.setattr(data_module, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="do not fit in memory; give --resident stream"):
        load(write_folder(tmp_path, class_files()))


# ---- arrays

LAYOUTS = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", ["npy", "npy-fortran", "npz", "npz-compressed"])
def test_arrays(tmp_path, layout, save):
    pixels = np.stack([picture(k) for k in range(5)])
    stored, path = np.ascontiguousarray(pixels.transpose(LAYOUTS[layout])), tmp_path / f"set.{save[:3]}"
    if save.startswith("npy"):
        np.save(path, np.asfortranarray(stored) if save.endswith("fortran") else stored)
    else:
        writer = np.savez if save == "npz" else np.savez_compressed
        writer(path, arr_0=stored, labels=np.array([2, 0, 1, 2, 0], np.uint8))
    data = load(path)
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert (data.labels is None) == save.startswith("npy")
    if data.labels is not None:
        assert data.labels.tolist() == [2, 0, 1, 2, 0] and data.class_names == ("0", "1", "2")
    images, _ = StreamingImages(str(path), S, 3, progress=False).read(torch.tensor([4, 1]))
    assert torch.equal(images, data.images[[4, 1]])


def test_grey_array_resized_and_coloured(tmp_path):
    np.save(tmp_path / "grey.npy", np.full((3, 5, 5), 77, np.uint8))
    assert load(tmp_path / "grey.npy", size=5, channels=1).images.shape == (3, 1, 5, 5)
    assert (load(tmp_path / "grey.npy", size=8).images == 77).all()


def test_array_in_memory_is_not_copied_and_a_mapped_one_is(tmp_path, monkeypatch):
    planes = np.zeros((4, 3, S, S), np.uint8)  # channels-last view of channels-first memory, as in torchvision's CIFAR
    source = arrays.array_source("x", planes.transpose(0, 2, 3, 1))
    monkeypatch.setattr(data_module, "open_source", lambda *_: source)
    assert np.shares_memory(load("x").images.numpy(), planes)
    np.save(tmp_path / "x.npy", planes)
    source = arrays.open_npy(tmp_path / "x.npy", "train")
    images = load("x").images.numpy()
    assert images.flags.writeable and not np.shares_memory(images, source.rows)  # training flips in place


class Payload:
    def __reduce__(self):
        return (os.mkdir, (str(Payload.target),))


def test_object_arrays_are_refused_and_do_not_run(tmp_path):
    Payload.target = tmp_path / "ran"
    np.save(tmp_path / "evil.npy", np.array([Payload()], object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", images=np.array([Payload()], object))
    np.savez(tmp_path / "labels.npz", images=np.zeros((1, S, S), np.uint8), labels=np.array([Payload()], object))
    for name in ("evil.npy", "evil.npz", "labels.npz"):
        with pytest.raises(
            ValueError, match="not a readable .np[yz] array of numbers .*(Python objects|Object arrays)"
        ):
            load(tmp_path / name)
    assert not Payload.target.exists()


def test_bad_arrays(tmp_path):
    good = np.zeros((4, S, S, 3), np.uint8)

    def refused(message, **arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "set.npz")

    refused(r"labels have shape \(3,\)", images=good, labels=np.zeros(3, int))
    refused("labels have shape .* float64", images=good, labels=np.zeros(4))
    refused("labels reach from -1 to 2", images=good, labels=np.array([0, 1, 2, -1]))
    refused("labels reach from 0 to 1000000000", images=good, labels=np.array([0, 1, 2, 10**9]))
    refused("no array 'images' or 'arr_0' in it, only a, b", a=good, b=good)
    refused("dtype float64; give uint8", images=good / 255)
    refused(r"shape \(4, 8, 8, 7\)", images=np.zeros((4, S, S, 7), np.uint8))
    refused("no images in it", images=good[:0])


@pytest.mark.parametrize("name", ["set.npy", "set.npz", "small.npz"])
def test_truncated_arrays(tmp_path, name):
    pixels = np.stack([picture(k) for k in range(20)])
    {"set.npy": np.save, "set.npz": np.savez, "small.npz": np.savez_compressed}[name](tmp_path / name, pixels)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable"):
        load(tmp_path / name)


def test_damaged_compressed_array(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=np.stack([picture(k) for k in range(20)]))
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable .np[yz] array"):
        load(tmp_path / "set.npz")


def test_array_that_lies_about_its_shape(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**62, 2**62, 8, 3)}
    )
    (tmp_path / "lie.npy").write_bytes(header.getvalue() + bytes(100))
    write_zip(tmp_path / "lie.npz", {"images.npy": header.getvalue() + bytes(100)})
    for name in ("lie.npy", "lie.npz"):
        with pytest.raises(ValueError, match="not a readable .np[yz] array"):
            load(tmp_path / name)


def test_check_labels():
    check_labels(torch.tensor([0, 9]), 10)
    check_labels(None, 0)
    with pytest.raises(ValueError, match="labels reach from 0 to 10; --num_classes 10 allows 0 to 9"):
        check_labels(torch.tensor([0, 10]), 10)
    with pytest.raises(ValueError, match="the data has no labels"):
        check_labels(None, 10)


# ---- torchvision


def write_idx(root: Path, split: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4i", 0x803, *pixels.shape)
    (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())


def write_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.stack([picture(k, 28, 1) for k in range(6)])
    labels = np.array([3, 1, 4, 1, 5, 9], np.uint8)
    write_idx(root, "train", pixels, labels)
    write_idx(root, "t10k", pixels[:2], labels[:2])
    return pixels, labels


def test_torchvision_idx(tmp_path):
    pixels, labels = write_mnist(tmp_path)
    data = load("torchvision:MNIST", 28, 1, root=tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels)) and data.labels.tolist() == labels.tolist()
    assert len(data.class_names) == 10 and data.class_names[3] == "3 - three"
    assert len(load("torchvision:MNIST", 28, 1, root=tmp_path, split="test")) == 2
    assert load("torchvision:MNIST", 64, 3, root=tmp_path, limit=3).images.shape == (3, 3, 64, 64)


def test_torchvision_cifar(tmp_path, monkeypatch):
    from torchvision import datasets

    folder, rows = tmp_path / "cifar-10-batches-py", np.arange(20 * 3072, dtype=np.int64).reshape(20, 3072) % 251
    folder.mkdir()
    for k in range(5):
        batch = {"data": rows[4 * k : 4 * k + 4].astype(np.uint8), "labels": [k, 1, 2, 9]}
        (folder / f"data_batch_{k + 1}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": rows[:2].astype(np.uint8), "labels": [7, 8]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # these files have other checksums
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    data = load("torchvision:CIFAR10", 32, 3, root=tmp_path)
    assert data.images.shape == (20, 3, 32, 32) and data.class_names[9] == "class 9"
    assert torch.equal(data.images.flatten(1), torch.from_numpy(rows.astype(np.uint8)))
    assert data.labels[:8].tolist() == [0, 1, 2, 9, 1, 1, 2, 9]
    assert load("torchvision:CIFAR10", 32, 3, root=tmp_path, split="test").labels.tolist() == [7, 8]


def no_network(monkeypatch):
    import socket
    import urllib.request

    def refuse(*_args, **_options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_torchvision_mistakes(tmp_path, monkeypatch, capsys):
    no_network(monkeypatch)
    with pytest.raises(ValueError, match="no such set; did you mean CIFAR10?"):
        load("torchvision:CIFAR1O", 32, 3, root=tmp_path)
    with pytest.raises(ValueError, match="give --data-root"):
        load("torchvision:MNIST", 28, 1)
    with pytest.raises(opening.DownloadError, match=r"could not download MNIST .*by hand, or give --data"):
        load("torchvision:MNIST", 28, 1, root=tmp_path, progress=True)
    assert "MNIST is not (whole) in" in capsys.readouterr().out
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="--data torchvision:MNIST in") as caught:
        load("torchvision:MNIST", 28, 1, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_download_size(monkeypatch):
    import urllib.request

    class Reply(io.BytesIO):
        headers = types.MappingProxyType({"Content-Length": "2500000"})

    class Fake:
        mirrors, resources = ["https://example.org/"], [("a.gz", "md5"), ("b.gz", "md5")]

    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: asked.append(request) or Reply())
    assert opening._download_size(Fake) == "5 MB"
    assert [(r.full_url, r.get_method()) for r in asked] == [
        ("https://example.org/a.gz", "HEAD"),
        ("https://example.org/b.gz", "HEAD"),
    ]
    no_network(monkeypatch)
    assert opening._download_size(Fake) == "as much as its server has, which does not say how much"


# ---- MNIST by Keras

TENSORFLOW = """
import numpy as np
class mnist:
    @staticmethod
    def load_data():
        {body}
class keras:
    class datasets:
        pass
keras.datasets.mnist = mnist
"""
PARTS = "return tuple((np.full((n, 28, 28), n, np.uint8), np.arange(n, dtype=np.uint8)) for n in (6, 3))"


def fake_tensorflow(monkeypatch, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "tensorflow.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_mnist_by_keras(tmp_path, monkeypatch, capsys):
    no_network(monkeypatch)
    fake_tensorflow(monkeypatch, tmp_path / "fake", TENSORFLOW.format(body=PARTS))
    data = by_keras.load_mnist(tmp_path / "data", 28, 1, progress=False)
    assert data.images.shape == (6, 1, 28, 28) and (data.images == 6).all() and data.labels.tolist() == list(range(6))
    assert "trying Keras" in capsys.readouterr().out
    test = by_keras.fetch(tmp_path / "data", "test")
    assert np.load(test)["labels"].tolist() == [0, 1, 2]
    assert {p.name for p in (tmp_path / "data").iterdir()} >= {"mnist_train.npz", "mnist_test.npz"}
    assert "tensorflow" not in sys.modules or not sys.modules["tensorflow"].__file__.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ImportError('no module')", r"tensorflow is missing \(no module\): pip install tensorflow"),
        (TENSORFLOW.format(body="raise OSError('no network\\nat all')"), "the download failed: no network at all"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_keras_failures_are_one_line(tmp_path, monkeypatch, text, message):
    fake_tensorflow(monkeypatch, tmp_path / "fake", text)
    with pytest.raises(opening.DownloadError, match=message) as caught:
        by_keras.fetch(tmp_path / "data")
    assert "\n" not in str(caught.value) and "IDX files" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


# ---- batches


def numbered(n: int, channels: int = 1) -> ImageData:
    """Image k is k everywhere; its label is k."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, channels, 2, 2).contiguous()
    return ImageData(images, torch.arange(n))


def ids(batch) -> list[int]:
    return to_uint8(batch[0])[:, 0, 0, 0].tolist()


def test_batches_are_a_function_of_seed_and_step():
    data = synthetic_images(50, 8, 3, 5, seed=0)
    first, second = Batches(data, 16, seed=3), Batches(data, 16, seed=3)
    forward = [first.at(k) for k in range(12)]
    for k in (11, 4, 7, 0, 4):  # any order, and a fresh object: what a resumed run does
        x1, y = second.at(k)
        assert torch.equal(x1, forward[k][0]) and torch.equal(y, forward[k][1])
    other = Batches(data, 16, seed=4).at(0)
    assert not torch.equal(other[0], forward[0][0])
    assert forward[0][0].dtype == torch.float32 and forward[0][0].abs().max() <= 1


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_every_image_once_an_epoch(batch_size):
    batches = Batches(numbered(10), batch_size, seed=0, flip=False)
    steps = -(-40 // batch_size)
    stream = [index for k in range(steps) for index in ids(batches.at(k))]
    epochs = [stream[10 * e : 10 * e + 10] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each epoch has its own order
    for k in range(steps):  # labels travel with their images
        batch = batches.at(k)
        assert ids(batch) == batch[1].tolist()


def test_flips_mirror_half_of_the_images():
    row = torch.tensor([0, 1, 2], dtype=torch.uint8).expand(1, 1, 3, 3).contiguous()
    data = ImageData(row.expand(200, 1, 3, 3).contiguous())
    x1, y = Batches(data, 200, seed=0).at(0)
    x1 = to_uint8(x1)
    flipped = (x1[:, 0, 0, 0] == 2).sum().item()
    assert y is None and 70 < flipped < 130
    assert set(map(tuple, x1[:, 0, 1].tolist())) == {(0, 1, 2), (2, 1, 0)}
    assert (to_uint8(Batches(data, 200, seed=0, flip=False).at(0)[0]) == row).all()


def test_hidden_labels():
    batches = Batches(numbered(200), 200, seed=0, drop=(0.25, 1000), flip=False)
    images, labels = to_uint8(batches.at(0)[0]), batches.at(0)[1]
    hidden = labels == 1000
    assert 25 < hidden.sum() < 75
    assert torch.equal(images[~hidden, 0, 0, 0].long(), labels[~hidden])


def test_subset_and_split():
    train, val = split_train_val(100, 0.1, seed=0)
    assert len(val) == 10 and sorted(torch.cat([train, val]).tolist()) == list(range(100))
    assert torch.equal(split_train_val(100, 0.1, seed=0)[1], val)
    assert not torch.equal(split_train_val(100, 0.1, seed=1)[1], val)
    batches = Batches(numbered(100), 9, seed=0, flip=False, subset=train)
    assert sorted(index for k in range(10) for index in ids(batches.at(k))) == train.tolist()
    assert [len(part) for part in split_train_val(5, 0.0, 0)] == [5, 0]
    assert [len(part) for part in split_train_val(1, 0.5, 0)] == [1, 0]
    assert [len(part) for part in split_train_val(50, 0.001, 0)] == [49, 1]
    with pytest.raises(ValueError, match="--val_fraction 1.0"):
        split_train_val(10, 1.0, 0)


def test_streamed_batches_equal_resident_ones(tmp_path):
    spec = write_zip(tmp_path / "set.zip", class_files())
    resident, stream = load(spec), StreamingImages(spec, S, 3, num_workers=3, progress=False)
    for k in range(4):
        a, b = Batches(resident, 5, seed=0).at(k), Batches(stream, 5, seed=0).at(k)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_batches_refuse_nothing():
    with pytest.raises(ValueError, match="--batch_size 0"):
        Batches(numbered(3), 0, seed=0)
    with pytest.raises(ValueError, match="no images"):
        Batches(numbered(3), 2, seed=0, subset=torch.tensor([], dtype=torch.int64))


def test_synthetic_images():
    data = synthetic_images(40, 16, 3, 10, seed=0)
    assert data.images.shape == (40, 3, 16, 16) and data.labels.tolist() == [k % 10 for k in range(40)]
    assert torch.equal(synthetic_images(40, 16, 3, 10, seed=0).images, data.images)
    assert not torch.equal(synthetic_images(40, 16, 3, 10, seed=1).images, data.images)
    pixels = data.images.float()
    within = (pixels[:10] - pixels[10:20]).pow(2).mean()  # same classes, other places
    between = (pixels[:10] - pixels[11:21]).pow(2).mean()
    assert within < between and data.images.float().std() > 20
    assert synthetic_images(4, 8, 1, 0, seed=0).labels is None


def test_moving_to_a_device_keeps_everything():
    data = synthetic_images(4, 8, 3, 2, seed=0).to("cpu")
    assert data.class_names == ("shape 0", "shape 1") and data.source == "synthetic" and len(data) == 4


def test_gzip_is_not_taken_for_an_array(tmp_path):
    (tmp_path / "set.npy").write_bytes(gzip.compress(b"x" * 100))
    with pytest.raises(ValueError, match=r"not a readable .npy array"):
        load(tmp_path / "set.npy")
