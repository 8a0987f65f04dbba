"""Sets of images as statistics of their features: read, streamed through a network, kept in files without pickle.

A set is reduced to mean and covariance of all features, a bounded random sample of them (for distances that need
pairs) and sums for the Inception score. Which images are in the sample is decided by hashes of their pixels, so
nothing depends on file names, order or batches, and memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.data.opening import open_source
from common.data.sources import Source, summary
from common.evaluate.scores import ClassSums, Kept
from common.images import fit
from common.metrics import Moments
from common.runtime import atomic_write, file_hash, in_one_line, made_ahead, silent

if TYPE_CHECKING:
    from common.evaluate.features import FeatureNetwork

BATCH = 50  # images at a time
GROUPS = 10  # of the Inception score; an image's hash says which one it is in
FORMAT = "flow-statistics 1"


# ------------------------------------------------------------------------------------------------------------- images
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size that are read when they are needed."""

    source: Source
    side: int  # to crop and resize them to (centre square, bicubic, antialiased); 0: they stay as they are
    shown: int  # side of the images that :meth:`batches` gives

    def __len__(self) -> int:
        return self.source.count

    def batches(self, batch_size: int, workers: int = 2) -> Iterator[Tensor]:
        """All images in order, uint8 (B, 3, S, S); threads read ahead by a few batches.

        Raises:
            ValueError: an image that cannot be read, or of another size than the first.
        """

        def block(start: int) -> Tensor:
            return self._block(start, min(start + batch_size, len(self)))

        return made_ahead(block, range(0, len(self), batch_size), workers)

    def _block(self, start: int, stop: int) -> Tensor:
        if self.source.rows is not None:
            block = self.source.rows[start:stop]
            if block.shape[2:] == (self.shown, self.shown) and block.shape[1] in (1, 3):
                colours = block if block.shape[1] == 3 else block.repeat(3, axis=1)
                return torch.from_numpy(np.array(colours))
        return torch.from_numpy(np.stack([_pixels(self.source, k, self.side, self.shown) for k in range(start, stop)]))


def open_set(spec: str, side: int = 0, split: str = "train") -> ImageSet:
    """A folder, zip, tar, LMDB, .npy or .npz of images.

    With ``side`` 0 all images must be squares of one size.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no images in it, the first cannot be read or is not square.
    """
    if spec.startswith("torchvision:"):
        raise ValueError(f"{spec}: write the images first, by the folder's gen_true script, and give what it wrote")
    try:
        source = open_source(spec, None, split, silent)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).removeprefix("--data ")) from error
    if source.skipped:
        print(summary(source, source.count))
    return ImageSet(source, side, side or _pixels(source, 0, 0, 0).shape[-1])


def set_of(images: Tensor, name: str) -> ImageSet:
    """Square uint8 images in memory, (N, 1 or 3, S, S), as a set; ``name`` is what messages call it.

    Raises:
        ValueError: other images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must be uint8 (N, 1 or 3, S, S), not {images.dtype} {tuple(images.shape)}")

    def load(index: int) -> Any:
        raise ValueError(f"image {index} of {name} is not square")  # whole blocks are read otherwise

    rows = images.cpu().numpy()
    return ImageSet(Source(name, load, len(images), rows=rows, kind="array"), 0, images.shape[-1])


def _pixels(source: Source, index: int, side: int, expected: int) -> np.ndarray:
    """Image ``index`` as (3, S, S) uint8, S = side, or its own side where that is 0, as ``expected`` (0: any)."""
    try:
        image = source.load(index)
        width, height = image.size
        pixels = fit(image, side or width, 3) if side or width == height else None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  decoders raise anything on damaged bytes
        reason = in_one_line(error)[:80]
        raise ValueError(
            f"{source.name(index)} cannot be read ({reason}): write the set again, or remove it"
        ) from error
    if pixels is None or (expected and pixels.shape[-1] != expected):
        wanted = f"{expected}x{expected} as the first one is" if expected else "square"
        raise ValueError(
            f"{source.name(index)} is {width}x{height}, not {wanted}: give --side N to crop and resize all"
        )
    return pixels


def digests(images: Tensor) -> list[int]:
    """A 256-bit hash of the pixels of each image (B, C, H, W) uint8, as a number."""
    rows = np.ascontiguousarray(images.cpu().numpy())
    size = repr(rows.shape[1:]).encode()
    return [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=32, key=size).digest(), "little") for row in rows]


def content_of(hashes: Iterable[int]) -> str:
    """The hash of a set from those of its images, whatever their order: their sum."""
    return f"{sum(hashes) % 2**256:064x}"


# ----------------------------------------------------------------------------------------------------------- features
@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What is kept of the features of a set of images."""

    count: int
    mean: Tensor  # of all features, (D,) float64
    cov: Tensor  # (D, D) float64, unbiased
    rows: Tensor  # features of a random sample of the images, (K, D) float32; none where the file had none
    score: tuple[float, float] | None  # Inception score over groups, mean and standard deviation; None without logits
    about: dict[str, Any]  # network and preparation: "backend", "weights", "resize", "side", ...
    content: str = ""  # hash of the pixels of all images; empty where unknown


def collect(
    batches: Iterable[Tensor], network: FeatureNetwork, keep: int = 10_000, seed: int = 0, total: int | None = None
) -> FeatureSet:
    """Stream images through a network; they may come from a file or directly from a generator.

    Memory: one batch, D^2 numbers and at most 2 keep rows.

    Args:
        batches: uint8 images (B, 3, H, W), or (B, 1, H, W), which are repeated.
        keep: Size of the random sample of features.
        seed: Of the sample, and of the groups of the Inception score.

    Raises:
        ValueError: fewer than 2 images, or features that are not finite.
    """
    kept, content, side = Kept(keep), 0, 0
    moments: Moments | None = None
    sums: ClassSums | None = None
    with tqdm(total=total, desc="features", unit="image", dynamic_ncols=True) as bar:
        for batch in batches:
            images = batch.expand(-1, 3, -1, -1)
            rows, logits = network.run(images)
            moments = moments or Moments(rows.shape[1])
            moments.add(rows)
            hashes = digests(images)
            content, side = content + sum(hashes), images.shape[-1]
            marks = (hashlib.blake2b(f"{seed}:{value}".encode(), digest_size=8).digest() for value in hashes)
            keys = torch.tensor([int.from_bytes(mark, "little") >> 1 for mark in marks])  # 63 bits
            kept.add(keys, rows)
            if logits is not None:
                sums = sums or ClassSums(GROUPS, logits.shape[1])
                sums.add(logits, keys % GROUPS)
            bar.update(len(images))
    if moments is None:
        raise ValueError("no images: give at least 2")
    mean, cov = moments.statistics()
    about = {**network.about(), "side": side}
    score = None if sums is None else sums.score()
    return FeatureSet(moments.count, mean, cov, kept.rows(), score, about, content_of([content]))


# -------------------------------------------------------------------------------------------------------------- files
def is_statistics(path: str | Path) -> bool:
    """Whether a file is a .npz with mean and covariance and without images."""
    path = Path(path).expanduser()
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    return {"mu.npy", "sigma.npy"} <= names and not names & {"arr_0.npy", "images.npy"}


def save_statistics(path: str | Path, features: FeatureSet) -> None:
    """Write a set's statistics: a plain .npz whose ``mu`` and ``sigma`` pytorch-fid reads too."""
    facts = {"format": FORMAT, "count": features.count, "score": features.score, "content": features.content}
    text = np.array(json.dumps({**facts, "about": features.about}))
    arrays = {"mu": features.mean.numpy(), "sigma": features.cov.numpy(), "rows": features.rows.numpy()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, facts=text, **arrays)  # type: ignore[arg-type]


def load_statistics(path: str | Path, network: FeatureNetwork, foreign: bool = False) -> FeatureSet:
    """Read statistics, ours or another project's ``mu`` and ``sigma``, without running any code that they may contain.

    Args:
        foreign: Take a file that does not say its network for one of this network; its count is then 0, unknown.

    Raises:
        ValueError: damaged, pickled, of another network, or of an unknown one without ``foreign``.
    """
    path = Path(path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("mu", "sigma")}
            rows = archive["rows"] if "rows" in archive else np.zeros((0, len(np.atleast_1d(arrays["mu"]))), np.float32)
            facts = json.loads(str(archive["facts"])) if "facts" in archive else None
        mean, cov = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
        fits = mean.ndim == 1 and cov.shape == (len(mean), len(mean)) and rows.shape[1:] == mean.shape
    except (ValueError, KeyError, EOFError, OSError, TypeError, zipfile.BadZipFile) as error:
        reason = "it needs unpickling, which can run code" if "pickle" in str(error) else type(error).__name__
        raise ValueError(f"{path} holds no statistics that can be read ({reason}): make it again by --save") from error
    if not fits or not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        shapes = f"{tuple(mean.shape)}, {tuple(cov.shape)}"
        raise ValueError(f"{path}: mean and covariance {shapes} do not fit or are not finite: make it again by --save")
    whole = FeatureSet(0, mean, cov, torch.from_numpy(np.asarray(rows, np.float32)), None, {**network.about()})
    if facts is None:
        if not foreign:
            text = "does not say which network its statistics are of"
            raise ValueError(f"{path} {text}: make it again by --save, or give --foreign_statistics if you know")
        return replace(whole, about={**network.about(), "unverified": True}, content=f"file {file_hash(path)}")
    return _described(path, whole, facts, network.about())


def _described(path: Path, features: FeatureSet, facts: Any, wanted: dict[str, str]) -> FeatureSet:
    """The set with what its file says of it; refused when it is of another network."""
    about = facts.get("about") if isinstance(facts, dict) and facts.get("format") == FORMAT else None
    if not isinstance(about, dict):
        raise ValueError(f"{path}: statistics of an unknown format: make it again by --save")
    keys = [key for key, value in wanted.items() if about.get(key) != value]
    if keys:
        differences = ", ".join(f"{key} {str(about.get(key))[:40]} there, {wanted[key][:40]} now" for key in keys)
        raise ValueError(f"{path} holds statistics of another network ({differences}): make it again by --save")
    score = None if facts["score"] is None else (float(facts["score"][0]), float(facts["score"][1]))
    return replace(features, count=int(facts["count"]), score=score, about=about, content=str(facts["content"]))


def cached(
    images: ImageSet,
    network: FeatureNetwork,
    folder: Path | None,
    keep: int = 10_000,
    seed: int = 0,
    batch_size: int = BATCH,
    workers: int = 2,
) -> FeatureSet:
    """The statistics of a set, kept in a folder under a hash of pixels, network and options; made if need be.

    Costs reading the images once more than :func:`collect` when they are not there; None for a folder keeps nothing.
    """
    if folder is None:
        return collect(images.batches(batch_size, workers), network, keep, seed, len(images))
    content = content_of(value for batch in images.batches(256, workers) for value in digests(batch))
    about = json.dumps({**network.about(), "content": content, "keep": keep, "seed": seed})
    file = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz"
    if file.exists():
        return load_statistics(file, network)
    features = cached(images, network, None, keep, seed, batch_size, workers)
    save_statistics(file, features)
    return features
