"""Archives that are read in place, image by image: zip, tar and LMDB.

What an archive says about paths is never followed: members are read by their offset or key and nothing is extracted.
Members that point outside of the archive are refused, links and devices are left out with a line.
Every ``load`` may be called by several threads. What is damaged or is not what its name says, holds no images or asks
for a password is a ValueError.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import tarfile
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.sources import AGAIN, Source, class_labels, is_image, named_source
from common.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

HEADER = "header.json"  # member or key with the description of a prepared file; not an image
MAX_MEMBER_BYTES = 128 * 2**20  # one encoded image; a larger member of an archive is taken for a bomb


def check_member(path: Path, name: str, size: int) -> None:
    """Raises ValueError for a member that an honest archive of images does not hold: an outer path, a bomb."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or parts[0][1:2] == ":" or ".." in parts:
        raise ValueError(f"--data {path}: member {name!r} points outside of the archive; refused")
    if is_image(name) and size > MAX_MEMBER_BYTES:
        raise ValueError(f"--data {path}: member {name!r} unpacks to {size / 2**20:.0f} MiB; refused as a zip bomb")


def _tell_ignored(path: Path, names: list[str], say: Callable[[str], None]) -> None:
    if names:
        say(f"{path}: ignored {len(names)} links and special files, for example {names[0]!r}")


# ---- zip


def open_zip(path: Path, split: str, say: Callable[[str], None]) -> Source:
    """A source from the images in a zip file; class folders give labels."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"--data {path}: not a readable zip file ({error}); {AGAIN}") from error
    names, ignored = [], []
    for member in archive.infolist():
        check_member(path, member.filename, member.file_size)
        if member.flag_bits & 1:
            raise ValueError(f"--data {path}: member {member.filename!r} is encrypted; make a zip without a password")
        kind = stat.S_IFMT(member.external_attr >> 16)
        (names if kind in (0, stat.S_IFREG, stat.S_IFDIR) else ignored).append(member.filename)
    _tell_ignored(path, ignored, say)
    if any(name.endswith("data.mdb") for name in names):
        raise ValueError(f"--data {path}: a zipped LMDB; unzip it and give the folder that has data.mdb")
    return named_source(path, names, split, "zip", archive.read)  # which locks its file handle: safe from threads


# ---- tar


def open_tar(path: Path, split: str, say: Callable[[str], None]) -> Source:
    """A source from the images in an uncompressed tar file; class folders give labels. Cost: one pass over headers."""
    places: dict[str, tuple[int, int]] = {}
    ignored = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                check_member(path, member.name, member.size)
                if member.isreg() and not member.issparse():
                    places[member.name] = member.offset_data, member.size
                elif not member.isdir():
                    ignored.append(member.name)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            end = archive.offset
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"--data {path}: not a readable uncompressed tar file ({error}); {AGAIN}") from error
    if end + 512 > path.stat().st_size:  # what was cut off between two members looks whole otherwise
        raise ValueError(f"--data {path}: the tar file ends without the mark of its end; {AGAIN}")
    _tell_ignored(path, ignored, say)
    return named_source(path, list(places), split, "tar", lambda name: read_range(path, *places[name]))


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


def open_lmdb(path: Path) -> Source:
    """A source from an LMDB whose values are image files, or square pixels of three channels.

    Keys such as cat/0.png give labels. Cost: one pass over the keys, 1.3 s a million.
    """
    opened = environment(path)
    keys = walk_keys(path)
    if len(keys) != opened.stat()["entries"]:  # a layout unknown here: by the package, which reads all the values, too
        with opened.begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    keys = [key for key in keys if key != HEADER.encode()]
    if not keys:
        raise ValueError(f"--data {path}: no images in it")
    names = [key.decode("utf-8", "surrogateescape") for key in keys]

    def read(index: int) -> bytes:
        with opened.begin() as transaction:
            return transaction.get(keys[index])

    image_of = _pixels if _is_pixels(read(0)) else decode
    labels, class_names = class_labels(names)
    return Source(str(path), lambda k: image_of(read(k)), len(keys), names, labels, class_names, kind="lmdb")


def walk_keys(path: Path) -> list[bytes]:
    """The keys of an LMDB in order, from its pages of keys alone; an empty list for a layout unknown here.

    The package's cursor touches the pages of every value on its way: of a set of 40 GB it would read 40 GB.

    Source: LMDB 0.9, mdb.c, MDB_meta, MDB_db, MDB_page and MDB_node of a 64-bit machine. Of the two meta pages the
    later transaction's holds; a branch node gives a page number in 48 bits, a node's key follows its 8 bytes of head.
    """
    with path.open("rb") as file:
        (page_size,) = struct.unpack_from("<I", file.read(44), 40)
        file.seek(0)
        metas = [file.read(page_size) for _ in range(2)]
        if page_size < 512 or any(struct.unpack_from("<II", meta, 16) != (0xBEEFC0DE, 1) for meta in metas):
            return []
        roots = {struct.unpack_from("<Q", meta, 144)[0]: struct.unpack_from("<Q", meta, 128)[0] for meta in metas}
        root = roots[max(roots)]
        keys, todo = [], [root] if root != 2**64 - 1 else []  # no page: an empty LMDB
        while todo:
            file.seek(todo.pop() * page_size)
            page = file.read(page_size)
            flags, lower = struct.unpack_from("<HH", page, 10)
            nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16)
            if flags & 1:
                children = [int.from_bytes(page[at : at + 6], "little") for at in nodes]
                todo += reversed(children)
            elif flags & 2:
                sizes = [int.from_bytes(page[at + 6 : at + 8], "little") for at in nodes]
                keys += [page[at + 8 : at + 8 + size] for at, size in zip(nodes, sizes, strict=True)]
            else:
                return []
    return keys


def _is_pixels(value: bytes) -> bool:
    """Whether a value is pixels, as some converters write them: no image file, and of the size of a square."""
    from PIL import Image, UnidentifiedImageError

    try:
        Image.open(io.BytesIO(value))
    except UnidentifiedImageError:
        return len(value) > 0 and 3 * math.isqrt(len(value) // 3) ** 2 == len(value)
    except Exception:  # noqa: BLE001  an image file, but damaged: it is reported when it is read
        return False
    return False


def _pixels(value: bytes) -> Image:
    """The image of pixels (side, side, 3)."""
    from PIL import Image

    side = math.isqrt(len(value) // 3)
    return Image.frombytes("RGB", (side, side), value)
