"""Images for training: one uint8 copy in memory (or decoded on the fly), and batches that are a function of the step.

:class:`StreamingImages` decodes what ``common.data.opening`` opens when asked for an image; ``load_images`` reads all
into an :class:`ImageData`. :class:`Batches` draws from either. Batch k depends on (seed, k) alone, so a resumed run
needs no state of a loader, and several processes take their rows of the same global batch.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.data.opening import open_source
from common.data.sources import summary
from common.images import fit, from_uint8, traits
from common.runtime import generator, in_one_line, silent
from common.runtime.kept import contents

CORRUPT_LIMIT = 10  # more unreadable images than this are an error
_CHUNK = 256  # images that a thread takes at a time
_BLOCK = 4  # of a batch: an image at a time costs 5% in the pool, more would leave threads idle at the end
_SMALL = 64  # up to this side decoding is mostly Python, where a second thread costs more than it gives (measured)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images in memory."""

    images: Tensor  # (N,C,H,W) uint8
    labels: Tensor | None = None  # (N,) int64
    class_names: tuple[str, ...] = ()  # empty without labels
    source: str = ""  # where they come from, as --data takes it
    root: str = ""  # folder of torchvision's sets

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to(self, device: torch.device | str) -> ImageData:
        """The same images on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def contents(self, known: Mapping[str, Any]) -> dict[str, str]:
        """What they are, to compare later; see ``common.runtime.kept``. Cost: 1 GB/s."""
        return {"hash": mark_of(self, len(self))}

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B,C,H,W) uint8 and labels (B,) at ``indices``, on the device of the data."""
        indices = indices.to(self.images.device)
        return self.images[indices], None if self.labels is None else self.labels[indices]


@dataclass
class Unreadable:
    """The images that could not be read, by position; more than ``limit`` are a ValueError that lists them."""

    limit: int
    say: Callable[[str], None]
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, position: int, name: str, error: Exception) -> None:
        """Notes an image, and says so once."""
        if position in self.reasons:
            return
        self.reasons[position] = f"{name} ({in_one_line(error)[:80]})"
        if len(self.reasons) > self.limit:
            listed = "; ".join(self.reasons[key] for key in sorted(self.reasons)[:20])
            raise ValueError(f"more than {self.limit} images cannot be read: {listed}")
        self.say(f"skipped an image that cannot be read: {self.reasons[position]}")


def load_images(spec: str, image_size: int, channels: int, **options: Any) -> ImageData:
    """Reads images into one uint8 tensor; threads decode straight into it, so no second copy is ever made.

    Arguments and errors are those of :class:`StreamingImages`; an unreadable image is named and left out.

    Raises:
        ValueError: More than memory holds.
    """
    return StreamingImages(spec, image_size, channels, **options).resident()


class StreamingImages:
    """Images decoded when they are asked for; for sets that do not fit in memory.

    Images of another size are cropped to their centre square and resized (bicubic, antialiased); grey and colour
    are converted. An unreadable image is named and replaced by the next readable one, so that a batch stays a function
    of its indices.

    Args:
        spec, root, split: See ``common.data.opening.open_source``.
        image_size, channels: Side of the images wanted; 1 or 3.
        labels: False drops the labels.
        num_workers: Decoding threads.
        limit: Takes this many images, evenly spread over the source (a prefix would hold the first classes only).
        progress: Progress bar and lines of information; False is silent.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: No images, or more than ``CORRUPT_LIMIT`` unreadable ones.
    """

    def __init__(
        self,
        spec: str,
        image_size: int,
        channels: int,
        root: str | Path | None = None,
        split: str = "train",
        labels: bool = True,
        num_workers: int = 2,
        limit: int | None = None,
        progress: bool = True,
    ):
        if image_size < 1 or channels not in (1, 3):
            raise ValueError(
                f"image_size {image_size}, channels {channels}: give a size >= 1 and 1 (grey) or 3 (colour)"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit}: give 1 or more images")
        say = tqdm.write if progress else silent
        source = open_source(spec, root, split, say)
        self._source = source if labels else replace(source, labels=None, class_names=())
        count = source.count if limit is None else min(limit, source.count)
        self._chosen = np.arange(count) * source.count // count
        self._shape, self._progress, self._workers = (channels, image_size, image_size), progress, max(1, num_workers)
        self._say, self._unreadable = say, Unreadable(CORRUPT_LIMIT, say)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self.source, self.root, self.class_names = source.where, str(root or ""), self._source.class_names
        self.labels = None if self._source.labels is None else torch.from_numpy(self._source.labels[self._chosen])

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def contents(self, known: Mapping[str, Any]) -> dict[str, str]:
        """What the files hold, or some of the images where there are none, to compare later."""
        files = self._source.files
        return contents(files, known) if files else {"hash": mark_of(self)}

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B,C,H,W) uint8 and labels (B,) at ``indices``, on the CPU. Cost: one decoding per image."""
        images = torch.empty(len(indices), *self._shape, dtype=torch.uint8)
        pixels, wanted = images.numpy(), indices.tolist()

        def read_block(start: int) -> list[int]:
            return [self._read_one(index, pixels[start + k]) for k, index in enumerate(wanted[start : start + _BLOCK])]

        used = [index for block in self._pool.map(read_block, range(0, len(wanted), _BLOCK)) for index in block]
        return images, None if self.labels is None else self.labels[torch.tensor(used, dtype=torch.int64)]

    def _read_one(self, index: int, out: np.ndarray) -> int:
        """Decodes image ``index``, or the next readable one; returns the index used."""
        for candidate in (k % len(self) for k in range(index, index + len(self))):
            if candidate not in self._unreadable.reasons and self._decode(candidate, out):
                return candidate
        raise ValueError(f"--data {self.source}: none of its images can be read")

    def _decode(self, position: int, out: np.ndarray) -> tuple[tuple[int, int], list[str]] | None:
        """Decodes an image into ``out`` (C,S,S); its size and traits before that, None when it cannot be read."""
        index = int(self._chosen[position])
        try:
            image = self._source.load(index)
            out[:] = fit(image, out.shape[-1], out.shape[0])
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  decoders raise anything on damaged bytes: SyntaxError, struct.error
            self._unreadable.add(position, self._source.name(index), error)
            return None
        return image.size, traits(image)

    def tell(self, count: int | None = None, about: Mapping[str, int] = {}) -> None:
        """Say in one line what there is: how many images, which were left out and why, the classes."""
        source = self._source
        if self._unreadable.reasons:
            source = replace(source, skipped=source.skipped + Counter(unreadable=len(self._unreadable.reasons)))
        self._say(summary(source, len(self) if count is None else count, about))

    def resident(self) -> ImageData:
        """All images in memory, without the unreadable ones; see :func:`load_images`."""
        shape = (len(self), *self._shape)
        if not fits_in_memory(*shape):
            size = np.prod(shape, dtype=float) / 2**30
            raise ValueError(
                f"--data {self.source}: {size:.1f} GiB of pixels do not fit in memory; give --resident stream"
            )
        rows, labels = self._source.rows, self.labels
        if rows is not None and rows.shape == shape:  # an array's; torchvision's CIFAR-like ones need no copy
            images = torch.from_numpy(np.array(rows, order="C", copy=True if isinstance(rows, np.memmap) else None))
            self.tell()
        else:
            images = torch.empty(shape, dtype=torch.uint8)
            good = self._decode_all(images.numpy())
            images, labels = images[: len(good)], None if labels is None else labels[good]
        return ImageData(images, labels, self.class_names, self.source, self.root)

    def _decode_all(self, pixels: np.ndarray) -> np.ndarray:
        """Decodes all images into ``pixels`` (N,C,S,S), unreadable ones left out; the positions that are there."""
        first = self._decode(0, pixels[0])
        workers = 1 if first is not None and max(first[0]) <= _SMALL else self._workers

        def decode_chunk(start: int) -> list[tuple[tuple[int, int], list[str]] | None]:
            return [self._decode(k, pixels[k]) for k in range(start, min(start + _CHUNK, len(pixels)))]

        about, resized, example, side = Counter[str](), 0, "", pixels.shape[-1]
        bar = tqdm(total=len(self), desc="reading images", unit="img", disable=None if self._progress else True)
        with bar, ThreadPoolExecutor(workers) as pool:
            for start, chunk in enumerate(pool.map(decode_chunk, range(0, len(self), _CHUNK))):  # in order
                bar.update(len(chunk))
                for k, (size, image_traits) in ((k, seen) for k, seen in enumerate(chunk) if seen is not None):
                    about.update(image_traits)
                    if size != (side, side):
                        name = self._source.name(int(self._chosen[start * _CHUNK + k]))
                        resized, example = resized + 1, example or f"{name} is {size[0]}x{size[1]}"
        if resized:
            about[f"resized to {side}x{side} ({example})"] = resized
        good = _close_gaps(pixels, sorted(self._unreadable.reasons))
        if not len(good):
            raise ValueError(f"--data {self.source}: none of its {len(self)} images can be read")
        self.tell(len(good), about)
        return good


def _close_gaps(pixels: np.ndarray, broken: list[int]) -> np.ndarray:
    """Moves the good rows together in place; returns their old positions."""
    good = np.setdiff1d(np.arange(len(pixels)), broken)
    for start in range(broken[0] if broken else len(good), len(good), _CHUNK):
        rows = good[start : start + _CHUNK]
        pixels[start : start + len(rows)] = pixels[rows]
    return good


class Batches:
    """Training batches as a pure function of the step.

    The stream is an endless row of epochs, each a fresh permutation; batch k is its positions [kB, (k+1)B), so every
    image is seen exactly once an epoch and a batch may reach into the next epoch.

    Args:
        batch_size: Global batch, over all processes.
        seed: Orders, flips and hidden labels are functions of it and the step.
        flip: Horizontal flips, half of the images.
        device: Where batches go; resident data on that device is indexed there.
        drop: (share, null): that share of the labels is replaced by ``null``, the index of "no label".
        subset: (M,) indices of the data to use, for example the training part; no pixel is copied.
    """

    def __init__(
        self,
        data: ImageData | StreamingImages,
        batch_size: int,
        seed: int,
        flip: bool = True,
        device: torch.device | str = "cpu",
        drop: tuple[float, int] | None = None,
        subset: Tensor | None = None,
    ):
        self.data, self.batch_size, self.seed, self.flip = data, batch_size, seed, flip
        self.device, self.drop, self.subset = torch.device(device), drop, subset
        self.n = len(data) if subset is None else len(subset)
        self._orders: dict[int, Tensor] = {}
        if batch_size < 1:
            raise ValueError(f"--batch_size {batch_size}: give 1 or more")
        if self.n == 0:
            raise ValueError("no images to make batches of; give more data or a smaller --val_fraction")

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Batch of a step: x1 (B,C,H,W) float32 in [-1, 1] and labels (B,) or None."""
        images, labels = self.data.read(self.indices(step))
        images = images.to(self.device)
        labels = None if labels is None else labels.to(self.device)
        if self.flip:
            images = _flipped(images, torch.rand(self.batch_size, generator=generator(self.seed, "flip", step)) < 0.5)
        if self.drop is not None and labels is not None:
            hidden = torch.rand(self.batch_size, generator=generator(self.seed, "drop", step)) < self.drop[0]
            labels = labels.masked_fill(hidden.to(self.device), self.drop[1])
        return from_uint8(images), labels

    def indices(self, step: int) -> Tensor:
        """(B,) indices of the data in the global batch of ``step``."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        first, last = int(positions[0]) // self.n, int(positions[-1]) // self.n
        parts = [
            self._order(epoch)[positions[positions // self.n == epoch] % self.n] for epoch in range(first, last + 1)
        ]
        chosen = torch.cat(parts)
        return chosen if self.subset is None else self.subset.to(chosen.device)[chosen]

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch; it and its neighbours are kept."""
        order = self._orders.get(epoch)
        if order is None:
            order = torch.randperm(self.n, generator=generator(self.seed, "epoch", epoch))
            self._orders = {**{k: v for k, v in self._orders.items() if abs(k - epoch) == 1}, epoch: order}
        return order


def _flipped(images: Tensor, chosen: Tensor) -> Tensor:
    """Images (B,C,H,W) with the chosen rows mirrored; on a CPU in place, one by one, so that they stay in the cache."""
    if images.device.type != "cpu":
        return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)
    pixels = images.numpy()
    for row in chosen.nonzero()[:, 0].tolist():  # numpy mirrors 3 to 5 times as fast as torch
        pixels[row] = pixels[row, :, :, ::-1].copy()
    return images


def split_train_val(n: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint sorted indices (train, validation) that together are 0..n-1; at least one stays for training."""
    if n < 1 or not 0 <= val_fraction < 1:
        raise ValueError(f"--val_fraction {val_fraction} of {n} images: give 0 <= fraction < 1 and at least one image")
    count = min(n - 1, max(1, round(n * val_fraction))) if val_fraction > 0 else 0
    order = torch.randperm(n, generator=generator(seed, "split"))
    return order[count:].sort().values, order[:count].sort().values


def mark_of(data: ImageData | StreamingImages, most: int = 512) -> str:
    """A mark of images and labels, by which other data are told: number, all labels, pixels of up to ``most`` images.

    They are spread evenly. Cost: as many decodings.
    """
    count, digest = min(most, len(data)), hashlib.sha256()
    for rows in (torch.arange(count) * len(data) // count).split(4096):  # no second copy of all
        digest.update(data.read(rows)[0].cpu().contiguous().numpy().tobytes())
    if data.labels is not None:
        digest.update(data.labels.cpu().numpy().tobytes())
    return f"{len(data)} images {digest.hexdigest()[:16]}"


def check_labels(labels: Tensor | None, num_classes: int) -> None:
    """Raises ValueError when ``labels`` do not suit a network of ``num_classes`` classes (0: any do)."""
    if num_classes == 0:
        return
    if labels is None:
        raise ValueError(f"--num_classes {num_classes}, but the data has no labels; give class folders, or 0")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels reach from {low} to {high}; --num_classes {num_classes} allows 0 to {num_classes - 1}"
        )


def fits_in_memory(n: int, c: int, h: int, w: int) -> bool:
    """Whether n uint8 images (C,H,W) take at most half of the memory that is free."""
    return n * c * h * w <= free_memory() // 2


def free_memory() -> int:
    """Bytes of memory that are free, within a container's limit; without end where the system does not say."""
    try:
        import psutil

        free = psutil.virtual_memory().available
    except (ImportError, AttributeError, OSError):
        return sys.maxsize
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return free
