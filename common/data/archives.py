"""Archives that are read in place, image by image: zip, tar and LMDB.

What an archive says about paths is never followed: members are read by their offset or key and nothing is extracted.
Members that point outside of the archive are refused, links and devices are left out with a line.
Every ``load`` may be called by several threads, and pickled to another process, where the archive is opened again.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import tarfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.sources import Source, class_labels, is_image, named_source
from common.images import decode
from common.runtime import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

HEADER = "header.json"  # member or key with the description of a prepared file; not an image
_INDEX_FROM = 100_000  # an LMDB of more keys gets a file beside it with the list of them
MAX_MEMBER_BYTES = 128 * 2**20  # one encoded image; a larger member of an archive is taken for a bomb
AGAIN = "copy or download it again"


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


class ZipImages:
    """Images of a zip file, by their number in ``names``; the file is opened once in each process."""

    def __init__(self, path: Path, names: Sequence[str], archive: zipfile.ZipFile | None = None):
        self.path, self.names, self._archive = path, names, archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def __call__(self, index: int) -> Image:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return decode(self._archive.read(self.names[index]))  # ZipFile locks its file handle: safe from threads


def open_zip(path: Path, split: str, say: Callable[[str], None]) -> Source:
    """A source from the images in a zip file; class folders give labels.

    Raises:
        ValueError: Not a zip, damaged, encrypted, a member that points outside, or no images.
    """
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
    return named_source(path, names, split, "zip", lambda members: ZipImages(path, members, archive))


# ---- tar


def open_tar(path: Path, split: str, say: Callable[[str], None]) -> Source:
    """A source from the images in an uncompressed tar file; class folders give labels. Cost: one pass over headers.

    Raises:
        ValueError: Not a tar, compressed, damaged, a member that points outside, or no images.
    """
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

    def loader(names: list[str]) -> Callable[[int], Image]:
        table = np.array([places[name] for name in names], np.int64).reshape(-1, 2)
        return partial(_load_range, path, table)

    return named_source(path, list(places), split, "tar", loader)


def _load_range(path: Path, table: np.ndarray, index: int) -> Image:
    return decode(read_range(path, *map(int, table[index])))


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


def import_lmdb() -> Any:
    """The lmdb package; ModuleNotFoundError with what to type when it is not there."""
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LMDB files need the package lmdb: pip install lmdb") from error
    return lmdb


def environment(path: Path) -> Any:
    """The read-only LMDB environment of a data file, shared by all readers of this process.

    Raises:
        ValueError: Not an LMDB, or shorter than it says (reading beyond the end would kill the process).
    """
    lmdb, status = import_lmdb(), os.stat(path)
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


class Keys(Sequence):
    """The keys of an LMDB in order, as text: one block of bytes and where each key ends, 8 bytes a key besides it."""

    def __init__(self, block: np.ndarray, ends: np.ndarray):
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> Keys:
        """From a list of keys."""
        lengths = np.fromiter(map(len, keys), np.int64, len(keys))
        return cls(np.frombuffer(b"".join(keys), np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and all(map(np.array_equal, (self.block, self.ends), (other.block, other.ends)))

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return self.block[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


class LmdbImages:
    """Images of an LMDB, by their number in ``keys``; the environment is opened in the process that reads.

    Args:
        path: The data file.
        keys: Keys of the images.
        raw: The values are not files but pixels (side, side, 3), as some converters write them.
    """

    def __init__(self, path: Path, keys: Keys, raw: bool = False):
        self.path, self.keys, self.raw, self._environment = path, keys, raw, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def read(self, index: int) -> bytes:
        """The value of image ``index``; OSError when it is gone."""
        if self._environment is None:
            self._environment = environment(self.path)
        with self._environment.begin() as transaction:
            value = transaction.get(self.keys[index].encode("utf-8", "surrogateescape"))
        if value is None:
            raise OSError(f"no such key: {self.keys[index]}")
        return value

    def __call__(self, index: int) -> Image:
        return _raw_image(self.read(index)) if self.raw else decode(self.read(index))


def open_lmdb(path: Path, say: Callable[[str], None]) -> Source:
    """A source from an LMDB whose values are image files, or square pixels of three channels.

    Keys such as cat/0.png give labels. Cost: one pass over the keys; those of a large LMDB are kept beside it.

    Raises:
        ValueError: Not an LMDB, cut off, or without images.
    """
    opened = environment(path)  # held until the source holds it
    keys = _keys(path, opened, say)
    if not len(keys):
        raise ValueError(f"--data {path}: no images in it")
    load = LmdbImages(path, keys)
    load.raw = _is_raw(load.read(0))
    labels, class_names = class_labels(list(keys)) if (keys.block == ord("/")).any() else (None, ())
    return Source(str(path), load, len(keys), keys, labels, class_names, kind="lmdb")


def _keys(path: Path, opened: Any, say: Callable[[str], None]) -> Keys:
    """The keys of the images, from the file beside the LMDB if it is newer and has as many."""
    index, entries = path.with_name(path.name + ".keys.npz"), opened.stat()["entries"]
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            with np.load(index, allow_pickle=False) as arrays:
                if int(arrays["entries"]) == entries and len(arrays["block"]) == arrays["ends"][-1]:
                    return Keys(arrays["block"], arrays["ends"])
    names = walk_keys(path)
    if len(names) != entries:  # a layout unknown here: by the package, which reads all the values, too
        with opened.begin() as transaction:
            names = list(transaction.cursor().iternext(keys=True, values=False))
    keys = Keys.of([key for key in names if key != HEADER.encode()])
    if entries >= _INDEX_FROM:
        with contextlib.suppress(OSError):  # a read-only folder: they are listed again next time
            with atomic_write(index) as temporary, open(temporary, "wb") as file:
                np.savez(file, block=keys.block, ends=keys.ends, entries=entries)
            say(f"kept the list of {entries} keys in {index}")
    return keys


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


def _is_raw(value: bytes) -> bool:
    """Whether a value is pixels: no image file, and of the size of a square."""
    from PIL import UnidentifiedImageError

    try:
        decode(value)
    except UnidentifiedImageError:
        return len(value) > 0 and 3 * math.isqrt(len(value) // 3) ** 2 == len(value)
    except Exception:  # noqa: BLE001  an image file, but damaged: it is reported when it is read
        return False
    return False


def _raw_image(value: bytes) -> Image:
    from PIL import Image

    side = math.isqrt(len(value) // 3)
    return Image.frombytes("RGB", (side, side), value)
