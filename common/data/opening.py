"""What ``--data`` names as a source: folders, zip, tar and LMDB files, .npy/.npz arrays and torchvision's sets.

Nothing is extracted from an archive, and nothing of the user's is unpickled here.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from common.data.archives import open_lmdb, open_tar, open_zip
from common.data.arrays import array_source, open_npy, open_npz
from common.data.sources import CONVERTED, PREPARE, Source, open_folder
from common.data.splits import NoSplit
from common.runtime import in_one_line

ALLOWED = "torchvision:NAME, a folder, .zip or .tar of images, an LMDB, or a .npy/.npz file"

_OPENERS = {
    ".lmdb": open_lmdb,
    ".mdb": open_lmdb,
    ".zip": open_zip,
    ".tar": open_tar,
    ".npy": open_npy,
    ".npz": open_npz,
}


class DownloadError(ValueError):
    """A data set could not be fetched; the message says what to do by hand."""


def open_source(spec: str, root: str | Path | None = None, split: str = "train", say=print) -> Source:
    """Opens what ``--data`` names.

    Args:
        spec: ``torchvision:NAME``, a folder, a .zip or .tar, an LMDB (its folder or file), a .npy or a .npz.
        root: Folder of torchvision's sets; what is missing is downloaded into it.
        split: "train", "val" or "test", by the names of what is there (``common.data.splits``) or torchvision's; "all".
        say: Gets lines of information.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: It holds no images, or is not what it seems to be.
        DownloadError: A torchvision set is not there and could not be fetched.
    """
    if spec.startswith("torchvision:"):
        return _open_torchvision(spec, root, split, say)
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        raise FileNotFoundError(f"--data {spec!r}: no such file or folder; give {ALLOWED}")
    if path.is_dir() and not (path / "data.mdb").exists():
        return open_folder(path, split)
    if path.is_dir():
        return open_lmdb(path / "data.mdb", split)
    suffix = path.suffix.lower() or "suffixless"
    if not path.is_file():
        raise ValueError(f"--data {spec}: no regular file; give {ALLOWED}")
    if suffix not in _OPENERS:
        hint = f"; convert it by {PREPARE} {spec}" if suffix in CONVERTED else ""
        raise ValueError(f"--data {spec}: cannot read a {suffix} file; give {ALLOWED}{hint}")
    return _OPENERS[suffix](path, split)


# ---- torchvision


def _open_torchvision(spec: str, root: str | Path | None, split: str, say) -> Source:
    dataset = _torchvision_set(spec.removeprefix("torchvision:"), root, split, say)
    targets = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    labels = None if targets is None else np.asarray(targets)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any()):
        labels = None  # attributes, boxes, "unlabelled": not classes
    classes = tuple(str(name) for name in getattr(dataset, "classes", ()))
    pixels = getattr(dataset, "data", None)
    if pixels is not None and getattr(pixels, "ndim", 0) in (3, 4):
        return array_source(spec, np.asarray(pixels), labels, classes if labels is not None else ())
    classes = classes if labels is not None else ()
    return Source(spec, lambda index: dataset[index][0], len(dataset), None, labels, classes, kind="torchvision")


def _torchvision_set(name: str, root: str | Path | None, split: str, say) -> Any:
    from torchvision import datasets

    if name not in datasets.__all__:
        close = difflib.get_close_matches(name, datasets.__all__, 1)
        raise ValueError(f"--data torchvision:{name}: no such set{f'; did you mean {close[0]}?' if close else ''}")
    if not root:
        raise ValueError(f"--data torchvision:{name}: give --data-root, the folder where it lies or goes")
    cls: Any = getattr(datasets, name)
    parameters = inspect.signature(cls).parameters
    if "train" in parameters and split not in ("train", "test"):
        raise NoSplit(f"--data torchvision:{name}: no {split} images in it, only train and test; give one of them")
    options: dict[str, Any] = {"train": split == "train"} if "train" in parameters else {}
    if "split" in parameters:
        options = {"split": split}
    try:
        return cls(root=str(root), download=False, **options)
    except Exception as error:  # torchvision raises RuntimeError when absent, anything when damaged
        if "not found" not in str(error).lower():
            raise ValueError(f"--data torchvision:{name} in {root}: {in_one_line(error)[:200]}") from error
    say(f"{name} is not (whole) in {root}: downloading {_download_size(cls)}; --data-root takes a folder that has it")
    try:
        return cls(root=str(root), download=True, **options)
    except Exception as error:
        raise DownloadError(
            f"could not download {name} ({in_one_line(error)[:200]}); copy its files into {root} by hand, "
            f"or give --data with {ALLOWED.removeprefix('torchvision:NAME, ')}"
        ) from error


def _download_size(cls) -> str:
    """About how much a torchvision set downloads, asked from its server, which may not say."""
    import http.client
    import urllib.request

    mirror = (getattr(cls, "mirrors", None) or [""])[0]
    links = [mirror + entry[0] for entry in getattr(cls, "resources", [])] or [getattr(cls, "url", "")]
    try:
        total = 0
        for link in links:
            with urllib.request.urlopen(urllib.request.Request(link, method="HEAD"), timeout=5) as reply:
                total += int(reply.headers["Content-Length"])
        return f"{total / 1e6:.0f} MB"
    except (OSError, ValueError, TypeError, http.client.HTTPException):  # the download itself reports what is wrong
        return "as much as its server has, which does not say how much"
