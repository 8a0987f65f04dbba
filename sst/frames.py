"""Fields over time that are read when they are asked for, a chunk of frames at a time: memory hardly grows with them.

What a file holds is decoded once into a temporary file, which is gone when the program ends, however it ends.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK = 1 << 20  # cells that are worked on at a time


class Temporary:
    """Fields (N, H, W), float32, in a file without a name in the folder for temporary files ($TMPDIR).

    Raises:
        ValueError: there is no room for them.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.dtype = shape, np.dtype(np.float32)
        folder, size = tempfile.gettempdir(), 4 * int(np.prod(shape))
        if (free := shutil.disk_usage(folder).free) < size:
            raise ValueError(
                f"{folder} has {free / 1e9:.1f} GB free, the decoded fields take {size / 1e9:.1f} GB: "
                "set TMPDIR to a folder with more"
            )
        self.file, self.lock = tempfile.TemporaryFile(buffering=0, prefix="sst-"), threading.Lock()

    def write(self, k: int, fields: np.ndarray) -> None:
        """Put fields (n, H, W) in the place of those from k on."""
        data = np.ascontiguousarray(fields, np.float32).data.cast("B")
        self.file.seek(4 * k * int(np.prod(self.shape[1:])))
        while data:
            data = data[self.file.write(data) :]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Fields (n, H, W) of an index (n,)."""
        found = np.empty((len(index), *self.shape[1:]), np.float32)
        with self.lock:  # batches are made in another thread
            for field, k in zip(found, index.tolist()):
                self.file.seek(k * field.nbytes)
                self.file.readinto(field.data)
        return found


class Frames:
    """Some frames, rows and columns of stored fields: an array (T, H, W) that reads what it is indexed with.

    Args:
        store: fields (N, h, w) that an index (n,) is read from: an array, :class:`Temporary`, or a file's variable.
        index: (T,), which of them; -1: a field of which nothing is known (NaN).
        cells: rows (H,) and columns (W,), which of their cells; None: all.
        land: (H, W), cells that are read as 0.
    """

    def __init__(
        self,
        store: Any,
        index: np.ndarray | None = None,
        cells: tuple[np.ndarray, np.ndarray] | None = None,
        land: np.ndarray | None = None,
    ):
        self.store, self.cells, self.land, self.dtype = store, cells, land, store.dtype
        self.index = np.arange(store.shape[0]) if index is None else index
        self.shape = (len(self.index), *(map(len, cells) if cells else store.shape[1:]))

    @staticmethod
    def of(values: np.ndarray | Frames) -> Frames:
        """An array's, or itself."""
        return values if isinstance(values, Frames) else Frames(values)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        """What the same index of an array would give; the first axis' is a number, slice or array of numbers."""
        first, *others = key if isinstance(key, tuple) else (key,)
        index = np.asarray(self.index[first.numpy() if hasattr(first, "numpy") else first])
        flat = index.ravel()
        found = self.store[np.maximum(flat, 0)]
        if self.cells:
            found = found[:, self.cells[0][:, None], self.cells[1]]
        if self.land is not None:
            found[:, self.land] = 0
        if (flat < 0).any():
            found[flat < 0] = np.nan
        found = found.reshape(*index.shape, *self.shape[1:])
        return found[(*[slice(None)] * index.ndim, *others)] if others else found

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def take(self, index: np.ndarray) -> Frames:
        """Some of the frames; -1: one of which nothing is known."""
        return Frames(self.store, np.where(index < 0, -1, self.index[index]), self.cells, self.land)

    def crop(self, rows: np.ndarray, columns: np.ndarray) -> Frames:
        """Some of the cells."""
        land = None if self.land is None else self.land[rows[:, None], columns]
        cells = (self.cells[0][rows], self.cells[1][columns]) if self.cells else (rows, columns)
        return Frames(self.store, self.index, cells, land)

    def with_land(self, land: np.ndarray) -> Frames:
        """With 0 at some cells (H, W)."""
        return Frames(self.store, self.index, self.cells, land)


def chunks(values: Any, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Stretches [a, b) of the first ``end`` frames of fields (T, H, W); about ``CHUNK`` cells, more where a file is
    packed in longer pieces."""
    stop: int = values.shape[0] if end is None else end
    store = getattr(values, "store", values)
    cells = max(1, int(np.prod(store.shape[1:])))
    step = max(1, CHUNK // cells, min(getattr(store, "packed", 1), 8 * CHUNK // cells))
    for a in range(0, stop, step):
        yield a, min(a + step, stop)


def fields(values: Frames) -> Iterator[np.ndarray]:
    """One field (H, W) after the other."""
    for a, b in chunks(values):
        yield from values[a:b]
