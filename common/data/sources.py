"""Images that can be read one by one, and what the names of files say of them: splits and classes; folders of files.

A :class:`Source` only looks (names, labels, shapes); pixels are read when ``Source.load(i)`` is called, which is safe
from several threads. ``common.data.opening`` makes one of what ``--data`` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

AGAIN = "copy or download it again"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_SPLITS = {"train", "training", "test", "val", "valid", "validation"}


@dataclass
class Source:
    """Images that can be read one by one.

    Attributes:
        where: The spec that was opened, for messages.
        load: ``load(i)`` gives image i as a decoded PIL image and raises when it cannot be read.
        names: File name of each image, or None when images have no names (arrays).
        count: Number of images.
        labels: (count,) int64, or None.
        class_names: Name of each label.
        rows: For arrays, their uint8 pixels (N,C,H,W), perhaps mapped from a file; else None.
        kind: What the images were found in: "folder", "zip", "tar", "lmdb", "array", ...
    """

    where: str
    load: Callable[[int], Image]
    count: int
    names: Sequence[str] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    kind: str = ""

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""
        return self.names[index] if self.names is not None else f"image {index} of {self.where}"


def open_folder(path: Path, split: str) -> Source:
    """A source from the images below a folder; class folders give labels."""
    return named_source(path, list_files(path), split, "folder", lambda name: (path / name).read_bytes())


def named_source(path: Path, names: list[str], split: str, kind: str, read: Callable[[str], bytes]) -> Source:
    """A source of those of ``names`` that are images of the split; ``read(name)`` gives a file's bytes."""
    names = _pick_split(sorted(filter(is_image, names)), split, str(path))
    if not names:
        raise ValueError(f"--data {path}: no images in it; names must end in {' '.join(SUFFIXES)}")
    labels, class_names = class_labels(names)
    return Source(str(path), lambda k: decode(read(names[k])), len(names), names, labels, class_names, kind=kind)


def list_files(path: Path) -> list[str]:
    """Files below ``path``, as relative names; links are followed, but no folder is visited twice."""
    names, seen = [], set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(path).as_posix()
        prefix = "" if relative == "." else relative + "/"
        names += [prefix + name for name in files]
    return names


def is_image(name: str) -> bool:
    """Whether a name is that of an image, and not hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def _pick_split(names: list[str], split: str, where: str) -> list[str]:
    """Keeps the sub-folder called ``split`` when the folders are train/, test/, ...; else all names."""
    folders = _first_folders(names)
    if not folders or not set(folders) <= _SPLITS:
        return names
    if split not in folders:
        raise ValueError(f"--data {where}: no {split}/ in it, only {', '.join(sorted(set(folders)))}; give one of them")
    return [name for name, folder in zip(names, folders, strict=True) if folder == split]


def _first_folders(names: list[str]) -> list[str]:
    """First folder of each name below what all names share; empty when some image lies above such folders."""
    parts = [name.split("/")[:-1] for name in names]
    depth = len(os.path.commonprefix(parts)) if parts else 0
    return [] if any(len(part) <= depth for part in parts) else [part[depth] for part in parts]


def class_labels(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from class folders: (N,) int64 and the folders' names, sorted (numbers by value); None without them."""
    folders = _first_folders(names)
    if not folders:
        return None, ()
    classes = sorted(set(folders))
    if all(name.isdigit() for name in classes):
        classes.sort(key=int)
    number = {name: k for k, name in enumerate(classes)}
    return np.fromiter((number[folder] for folder in folders), np.int64, len(folders)), tuple(classes)
