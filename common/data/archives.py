"""Archives that are read in place, image by image: zip, tar and LMDB.

What an archive says about paths is never followed: members are read by their offset or key and nothing is extracted.
Members that point outside of the archive are refused, links and devices are left out with a line.
Every ``load`` may be called by several threads. What is damaged or is not what its name says, holds no images or asks
for a password is a ValueError.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import stat
import struct
import tarfile
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from common.data.sources import AGAIN, SPECIAL, Source, arranged, check_size, named_source
from common.images import decode
from common.runtime import in_one_line

HEADER = "header.json"  # member or key with the description of a prepared file; not an image
_TWICE = "of a name that comes again later"
_FEW = 16  # kinds of keys, or sizes of one image, at most


def _tidy(path: Path, name: str) -> str:
    """A member's name with "/" between its parts, whatever wrote it; ValueError when it points outside."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or parts[0][1:2] == ":" or ".." in parts:
        raise ValueError(f"--data {path}: member {name!r} points outside of the archive; refused")
    return "/".join(part for part in parts if part not in ("", "."))


# ---- zip


def open_zip(path: Path, split: str) -> Source:
    """A source from the images in a zip file; class folders give labels."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"--data {path}: not a readable zip file ({error}); {AGAIN}") from error
    members, skipped = {}, Counter[str]()
    for member in archive.infolist():
        name = _tidy(path, member.filename)
        if member.flag_bits & 1:
            raise ValueError(f"--data {path}: member {name!r} is encrypted; make a zip without a password")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            skipped[SPECIAL] += 1
        elif not member.is_dir():
            skipped[_TWICE] += name in members
            members[name] = member
    if any(name.endswith("data.mdb") for name in members):
        raise ValueError(f"--data {path}: a zipped LMDB; unzip it and give the folder that has data.mdb")

    def read(name: str) -> bytes:
        check_size(members[name].file_size)
        return archive.read(members[name])  # ZipFile locks its file handle: safe from threads

    return named_source(path, list(members), split, "zip", read, skipped)


# ---- tar


def open_tar(path: Path, split: str) -> Source:
    """A source from the images in an uncompressed tar file; class folders give labels. Cost: one pass over headers."""
    places: dict[str, tuple[int, int]] = {}
    skipped = Counter[str]()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = _tidy(path, member.name)
                if member.isreg() and not member.issparse():
                    skipped[_TWICE] += name in places
                    places[name] = member.offset_data, member.size
                elif not member.isdir():
                    skipped[SPECIAL] += 1
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            end = archive.offset
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"--data {path}: not a readable uncompressed tar file ({error}); {AGAIN}") from error
    if end + 512 > path.stat().st_size:  # what was cut off between two members looks whole otherwise
        raise ValueError(f"--data {path}: the tar file ends without the mark of its end; {AGAIN}")

    def read(name: str) -> bytes:
        check_size(places[name][1])
        return read_range(path, *places[name])

    return named_source(path, list(places), split, "tar", read, skipped)


def read_range(path: Path, start: int, size: int) -> bytes:
    """Bytes [start, start + size) of a file; EOFError when it is shorter."""
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise EOFError(f"the file ends {size - len(data)} bytes too early")
    return data


# ---- LMDB

# LMDB forbids to open a file twice in one process, and its package makes that an error: whoever reads a file shares
# its environment, which closes when the last reader is gone. By device and inode, as the package does.
_ENVIRONMENTS: weakref.WeakValueDictionary[tuple[int, int], Any] = weakref.WeakValueDictionary()


def environment(path: Path) -> Any:
    """The read-only LMDB environment of a data file, shared by all readers of this process.

    Raises:
        ValueError: Not an LMDB, or shorter than it says (reading beyond the end would kill the process).
    """
    import lmdb

    status = os.stat(path)
    opened = _ENVIRONMENTS.get((status.st_dev, status.st_ino))
    if opened is not None:
        return opened
    try:
        opened = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        needed = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    except lmdb.Error as error:
        raise ValueError(f"--data {path}: not a readable LMDB ({error}); {AGAIN}") from error
    if status.st_size < needed:
        opened.close()
        raise ValueError(f"--data {path}: the LMDB is cut off, {status.st_size} of {needed} bytes are there; {AGAIN}")
    return _ENVIRONMENTS.setdefault((status.st_dev, status.st_ino), opened)


def open_lmdb(path: Path, split: str) -> Source:
    """A source from an LMDB whose values are image files, or square pixels of three channels.

    Keys such as cat/0.png give labels; of keys SIDE-NUMBER, one image in several sizes, the largest is taken. Cost: one
    pass over the keys, 3 s a million.
    """
    opened = environment(path)
    keys = {key.decode("utf-8", "surrogateescape"): key for key in keys_of(path) if key != HEADER.encode()}

    def read(name: str) -> bytes:
        with _damage_named(path), opened.begin() as transaction:
            value = transaction.get(keys[name], b"")
        check_size(len(value))
        return value

    images, skipped = _image_keys(list(keys), read)
    if not images:
        raise ValueError(f"--data {path}: no images in it")
    image_of = _image_reader(read(images[0])) or decode
    names, labels, class_names = arranged(images, split, str(path))
    files = [path]

    def load(index: int) -> Image.Image:
        return image_of(read(names[index]))

    return Source(str(path), load, len(names), names, labels, class_names, None, "lmdb", skipped, files)


def _image_keys(names: list[str], read: Callable[[str], bytes]) -> tuple[list[str], Counter[str]]:
    """The keys of images, each in its largest size, and how many others there are, by reason."""
    skipped = Counter[str]()
    first = {re.sub(r"\d+", "#", name): name for name in reversed(names)}  # the first of image-0001, label-0001, length
    if 1 < len(first) <= _FEW:
        for pattern in [pattern for pattern, name in first.items() if _image_reader(read(name)) is None]:
            others = {name for name in names if re.sub(r"\d+", "#", name) == pattern}
            skipped[f"values called {pattern} (no images)"] += len(others)
            names = [name for name in names if name not in others]
    sizes = [name.partition("-")[0] for name in names] if names and re.fullmatch(r"\d+-\d+", names[0]) else []
    if 1 < len(set(sizes)) <= _FEW and all(_has_side(read(names[sizes.index(size)]), size) for size in set(sizes)):
        largest = max(sizes, key=int)
        skipped["smaller copies of the same images"] = len(sizes) - sizes.count(largest)
        names = [name for name, size in zip(names, sizes, strict=True) if size == largest]
    return names, skipped


def _has_side(value: bytes, side: str) -> bool:
    """Whether a value is an image of that side."""
    reader = _image_reader(value)
    return reader is not None and str(max(reader(value).size)) == side


def _image_reader(value: bytes) -> Callable[[bytes], Image.Image] | None:
    """What makes images of such values: they are files, or pixels, as some converters write them; None: no images."""
    try:
        Image.open(io.BytesIO(value))
    except UnidentifiedImageError:
        return _pixels if len(value) > 0 and 3 * math.isqrt(len(value) // 3) ** 2 == len(value) else None
    except Exception:  # noqa: BLE001  an image file, but damaged: it is reported when it is read
        return decode
    return decode


def _pixels(value: bytes) -> Image.Image:
    """The image of pixels (side, side, 3)."""
    side = math.isqrt(len(value) // 3)
    return Image.frombytes("RGB", (side, side), value)


def keys_of(path: Path) -> list[bytes]:
    """The keys of an LMDB in order.

    Raises:
        ValueError: It is damaged.
    """
    opened = environment(path)
    with _damage_named(path):
        keys = walk_keys(path)
        if keys is None:  # a layout unknown here: by the package, which reads all the values, too
            with opened.begin() as transaction:
                keys = list(transaction.cursor().iternext(keys=True, values=False))
    if len(keys) != opened.stat()["entries"] or len(set(keys)) < len(keys):
        raise ValueError(f"--data {path}: a damaged LMDB ({len(set(keys))} of its keys are there); {AGAIN}")
    return keys


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What a damaged file raises becomes one line that names it."""
    import lmdb

    try:
        yield
    except (lmdb.Error, struct.error, ValueError, OSError, OverflowError) as error:
        raise ValueError(f"--data {path}: a damaged LMDB ({in_one_line(error)}); {AGAIN}") from error


def walk_keys(path: Path) -> list[bytes] | None:
    """The keys of an LMDB in order, from its pages of keys alone; None for a layout unknown here.

    The package's cursor touches the pages of every value on its way: of a set of 40 GB it would read 40 GB. It also
    believes damaged pages, which may kill the process; here every node must lie within its page and the file.

    Raises:
        struct.error: It is damaged.

    Source: LMDB 0.9, mdb.c, MDB_meta, MDB_db, MDB_page and MDB_node of a 64-bit machine. Of the two meta pages the
    later transaction's holds; a branch node gives a page number in 48 bits, a node's key follows its 8 bytes of head.
    """
    with path.open("rb") as file:
        (page_size,) = struct.unpack_from("<I", file.read(44), 40)
        file.seek(0)
        metas = [file.read(page_size) for _ in range(2)]
        known = [struct.unpack_from("<II", meta, 16) == (0xBEEFC0DE, 1) for meta in metas]
        if page_size < 512 or not any(known):
            return None
        if not all(known):
            raise struct.error("a page about the whole that is none")
        latest = max(metas, key=lambda meta: struct.unpack_from("<Q", meta, 144))
        (root,) = struct.unpack_from("<Q", latest, 128)
        if struct.unpack_from("<H", latest, 92)[0] & 4:  # several values a key
            return None
        n_pages = os.fstat(file.fileno()).st_size // page_size
        keys, n_read, todo = [], 0, [root] if root != 2**64 - 1 else []  # no page: an empty LMDB
        while todo:
            file.seek(todo.pop() * page_size)
            page, n_read = file.read(page_size), n_read + 1
            flags, lower = struct.unpack_from("<HH", page, 10)
            nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16)
            if flags & 1:
                children = [int.from_bytes(page[at : at + 6], "little") for at in nodes]
                if n_read + len(todo) + len(children) > n_pages or max(children) >= n_pages:
                    raise struct.error("pages that are not there")
                todo += reversed(children)
            elif flags & 2:
                for at in nodes:
                    low, high, kind, length = struct.unpack_from("<4H", page, at)
                    value, size = at + 8 + length, low + (high << 16)
                    if kind > 2:
                        raise struct.error("a node of an unknown kind")
                    if kind == 1:  # a long value: its first page
                        (first,) = struct.unpack_from("<Q", page, value)
                        end, most = first * page_size + 16 + size, n_pages * page_size
                    else:
                        end, most = value + size, page_size
                    if end > most:
                        raise struct.error("values that are not there")
                    keys.append(page[at + 8 : value])
            else:
                raise struct.error("a page of an unknown kind")
    return keys
