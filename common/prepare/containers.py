"""Files of prepared images: a stored zip or an LMDB, written chunk by chunk so that kill -9 costs one chunk at most.

Both hold one encoded image a name, in sorted order, and a description, ``header.json``. A checksum that depends on
names and images alone makes a zip and an LMDB of the same images comparable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.data.archives import HEADER, environment, keys_of
from common.data.sources import AGAIN
from common.runtime import in_one_line

MAX_KEY_BYTES = 511  # of an LMDB
_MAP_BYTES = 2**26  # of a new LMDB; doubled when it is full
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: files made at different times are equal


def digest(data: bytes) -> str:
    """16 bytes of BLAKE2b of an image, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksum(entries: Iterable[Sequence[Any]]) -> str:
    """Checksum of a set of images from (name, digest, ...) in sorted order: BLAKE2b of the lines "digest  name"."""
    total = hashlib.blake2b(digest_size=16)
    for name, image_digest, *_ in entries:
        total.update(f"{image_digest}  {name}\n".encode())
    return total.hexdigest()


class ZipWriter:
    """A stored zip that can be continued: images first, ``header.json`` and the directory at the end.

    Args:
        path: The unfinished file; made when it is missing.
        entries: What is there already, rows of :meth:`write`; whatever lies behind them is cut off.
    """

    def __init__(self, path: Path, entries: Sequence[Sequence[Any]]):
        path.open("ab").close()
        self._file = path.open("r+b")
        self._file.truncate(entries[-1][4] if entries else 0)
        self._file.seek(0, os.SEEK_END)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._archive.filelist += [_member(*row) for row in entries]

    def write(self, images: Sequence[tuple[str, bytes]]) -> list[list[Any]]:
        """Adds images; they are on the disk afterwards. Returns rows (name, digest, bytes, CRC, end in the file)."""
        rows = []
        for name, data in images:
            info = _member(name)
            self._archive.writestr(info, data)
            rows.append([name, digest(data), len(data), info.CRC, self._file.tell()])
        self._file.flush()
        os.fsync(self._file.fileno())
        return rows

    def finish(self, header: dict[str, Any]) -> None:
        """Adds the description and the directory, and closes the file."""
        self._archive.writestr(_member(HEADER), json.dumps(header, indent=1))
        self.close()

    def close(self) -> None:
        """Closes the file; without :meth:`finish` it can be continued."""
        self._archive.close()
        self._file.close()


def _member(name: str, _digest: str = "", size: int = 0, crc: int = 0, end: int = 0) -> zipfile.ZipInfo:
    """A member's entry in the directory, from a row of :meth:`ZipWriter.write`."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every operating system
    info.file_size, info.compress_size, info.CRC = size, size, crc
    info.flag_bits |= 0 if name.isascii() else 0x800  # the name is UTF-8
    info.header_offset = end - size - len(info.FileHeader(False)) if end else 0
    return info


class LmdbWriter:
    """An LMDB in one file (``subdir=False``) that can be continued; a chunk is a transaction."""

    def __init__(self, path: Path, entries: Sequence[Sequence[Any]]):
        import lmdb

        self._lmdb, self._path, self._size = lmdb, path, _MAP_BYTES
        try:
            self._environment = lmdb.open(str(path), subdir=False, lock=False, map_size=self._size, meminit=False)
        except lmdb.Error as error:
            raise OSError(f"cannot write {path} ({in_one_line(error)}): delete its folder and start again") from error
        with self._environment.begin() as transaction:
            last = entries[-1][0] if entries else None
            if last is not None and transaction.get(last.encode()) is None:
                raise ValueError(f"{path}: does not hold what its journal says; delete its folder and start again")

    def write(self, images: Sequence[tuple[str, bytes]]) -> list[list[Any]]:
        """Adds images; they are on the disk afterwards. Returns rows (name, digest, bytes)."""
        for name, _ in images:
            if len(name.encode()) > MAX_KEY_BYTES:
                raise ValueError(f"the name {name!r} is longer than an LMDB's {MAX_KEY_BYTES} bytes; write a .zip")
        self._put([(name.encode(), data) for name, data in images])
        return [[name, digest(data), len(data)] for name, data in images]

    def _put(self, items: list[tuple[bytes, bytes]]) -> None:
        """One transaction; the map doubles until it is large enough."""
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in items:
                    transaction.put(key, value)
        except self._lmdb.MapFullError:
            self._size *= 2
            self._environment.set_mapsize(self._size)
            self._put(items)
        except self._lmdb.Error as error:
            raise OSError(
                f"cannot write {self._path} ({in_one_line(error)}): is the disk full, or the file damaged?"
            ) from error

    def finish(self, header: dict[str, Any]) -> None:
        """Adds the description and closes the file."""
        self._put([(HEADER.encode(), json.dumps(header, indent=1).encode())])
        self.close()

    def close(self) -> None:
        """Closes the file; without :meth:`finish` it can be continued."""
        self._environment.close()


def writer_for(path: Path) -> type[ZipWriter] | type[LmdbWriter]:
    """The kind of file that a name asks for.

    Raises:
        ValueError: Neither .zip nor .lmdb.
    """
    kinds = {".zip": ZipWriter, ".lmdb": LmdbWriter}
    if path.suffix not in kinds:
        raise ValueError(f"--to {path}: give a name that ends in .zip or .lmdb (for millions of images)")
    return kinds[path.suffix]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names in a prepared file, sorted, and what reads one."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield sorted(set(archive.namelist())), archive.read
    else:
        with environment(path).begin() as transaction:
            yield [key.decode() for key in keys_of(path)], lambda name: transaction.get(name.encode())


def read_header(path: Path) -> dict[str, Any]:
    """The description of a prepared file.

    Raises:
        ValueError: It has none, or cannot be read.
    """
    try:
        with _opened(path) as (_, read):
            return dict(json.loads(read(HEADER)))
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a file of prepared images ({error}); give another name, or delete it") from error


def verify(path: Path) -> dict[str, Any]:
    """Reads every image of a prepared file and compares the checksum with the description, which it returns.

    Raises:
        ValueError: They differ, or something cannot be read.
    """
    header = read_header(path)
    try:
        with _opened(path) as (names, read):
            actual = checksum((name, digest(read(name))) for name in names if name != HEADER)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); {AGAIN}, or prepare it again") from error
    if actual != header.get("checksum"):
        raise ValueError(f"{path}: checksum {actual}, but its header says {header.get('checksum')}; prepare it again")
    return header
