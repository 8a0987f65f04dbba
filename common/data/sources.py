"""Images that can be read one by one, and what the names of files say of them: splits and classes; folders of files.

A :class:`Source` only looks (names, labels, shapes); pixels are read when ``Source.load(i)`` is called, which is safe
from several threads. ``common.data.opening`` makes one of what ``--data`` names.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL.Image import Image

from common.data import splits
from common.images import decode

SPECIAL = "links and special files"
AGAIN = "copy or download it again"
MAX_IMAGE_BYTES = 128 * 2**20  # one encoded image; what is larger is taken for a bomb and left out
PREPARE = "python -m common.prepare images --size SIZE --to FILE.zip --from"
CONVERTED = (".gz", ".tgz", ".bz2", ".xz", ".parquet", ".tfrecord", ".tfrecords")  # by it, but not read in training
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".j2k")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".tga")
# Images that are counted, since they are not read
_OTHERS = (".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm")
_OWN = ("header.json", "samples.json")  # of prepared and generated sets
# Folders that systems make for themselves: thumbnails, trash, snapshots, forks; so is what begins with @ or $
_HIDDEN = ("__macosx", "#recycle", "#snapshot", "lost+found", "system volume information")


@dataclass
class Source:
    """Images that can be read one by one."""

    where: str  # the spec that was opened, for messages
    load: Callable[[int], Image]  # gives image i, decoded; raises when it cannot be read
    count: int
    names: Sequence[str] | None = None  # of the images' files; None: they have none (arrays)
    labels: np.ndarray | None = None  # (count,) int64
    class_names: tuple[str, ...] = ()
    rows: np.ndarray | None = None  # of arrays: uint8 pixels (N,C,H,W), perhaps mapped from a file
    kind: str = ""  # "folder", "zip", "tar", "lmdb", "array", ...
    skipped: Counter[str] = field(default_factory=Counter)  # images that were found and are left out, by reason
    files: Sequence[Path] = ()  # what is read; none: it is in memory
    notes: list[str] = field(default_factory=list)  # what else there is to say

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""
        return self.names[index] if self.names is not None else f"image {index} of {self.where}"


def open_folder(path: Path, split: str) -> Source:
    """A source from the images below a folder; class folders give labels."""
    names, skipped = list_files(path)
    source = named_source(path, names, split, "folder", lambda name: _read_file(path / name), skipped)
    source.files = [path / name for name in source.names or ()]
    return source


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def check_size(size: int) -> None:
    """Raises ValueError for an encoded image that is too large to be one."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"it has {size / 2**20:.0f} MiB, more than the {MAX_IMAGE_BYTES >> 20} that an image may have")


def named_source(
    path: Path,
    names: Sequence[str],
    split: str,
    kind: str,
    read: Callable[[str], bytes],
    skipped: Mapping[str, int] = {},
) -> Source:
    """A source of those of ``names`` that are images of the split; ``read(name)`` gives a file's bytes."""
    counts, others = Counter(skipped), Counter[str]()
    images = []
    for name in sorted(names):
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in (*SUFFIXES, *_OTHERS):
            others[suffix or "without a suffix"] += not is_hidden(name) and name not in _OWN
        elif is_hidden(name):
            counts["hidden or of the system"] += 1
        elif suffix in _OTHERS:
            counts[f"{suffix} (not read here: convert them)"] += 1
        else:
            images.append(name)
    if not images:
        told = left_out(counts) if counts else f"names must end in {' '.join(SUFFIXES)}"
        if held := [suffix for suffix in CONVERTED if others[suffix]]:
            told = f"it holds {held[0]} files: convert them by {PREPARE} {path}"
        raise ValueError(f"--data {path}: no images in it; {told}")
    if others := +others:
        kinds = ", ".join(kind for kind, _ in others.most_common(4)) + (", ..." if len(others) > 4 else "")
        counts[f"no images by their names ({kinds})"] = others.total()
    names, labels, class_names = arranged(images, split, str(path))

    def load(index: int) -> Image:
        return decode(read(names[index]))

    return Source(str(path), load, len(names), names, labels, class_names, None, kind, counts, [path])


def arranged(names: list[str], split: str, where: str) -> tuple[list[str], np.ndarray | None, tuple[str, ...]]:
    """Those of the names that are of a split, their labels by class folders, and what the classes are called.

    Classes are those of all splits but the unlabelled one, so that a class has one number in each of them.
    """
    kinds, rests = splits.place_for(split, names, where)
    chosen = splits.pick(kinds, split, where)
    names = [names[index] for index in chosen]
    labelled = [index for index, kind in enumerate(kinds) if kind != "unlabeled"]
    labels, class_names = class_labels([rests[index] for index in labelled])
    number = dict(zip(labelled, range(len(labelled)), strict=True))
    if labels is None or not all(index in number for index in chosen):
        return names, *class_labels([rests[index] for index in chosen])
    return names, labels[[number[index] for index in chosen]], class_names


def summary(source: Source, count: int, traits: Mapping[str, int] = {}) -> str:
    """One line: how many images are read of what was found, what else some of them are (``traits``, with their number),
    what is left out and why, and the classes."""
    names = ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) for name in source.class_names]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    classes = f"{len(names)} classes ({shown})" if names else "no classes"
    if names and source.labels is not None and (empty := len(names) - len(np.unique(source.labels))) > 0:
        classes += f", {empty} of them without images"
    parts = [f"{source.where}: {count} images, {classes}"]
    parts += [f"{number} {trait}" for trait, number in sorted(traits.items())]
    skipped = +source.skipped  # without what counts nothing
    return "; ".join([*parts, *source.notes, *([left_out(skipped)] if skipped else [])])


def left_out(counts: Mapping[str, int]) -> str:
    """Words for what was left out and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"left out {sum(counts.values())}: {reasons}"


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or lies in a hidden folder or in one that systems make for themselves."""
    *folders, file = name.split("/")
    return file.startswith(".") or any(part[0] in ".@$" or part.lower() in _HIDDEN for part in folders if part)


def list_files(path: Path, outside: bool = False) -> tuple[list[str], Counter[str]]:
    """Regular files below ``path`` as relative names, and how many others there are, by reason.

    No folder is visited twice. FIFOs, devices and links that lead out of the folder are never opened; ``outside``: such
    links are followed, for files that hold many images, which caches keep elsewhere.
    """
    root, names, skipped, seen = os.path.realpath(path), [], Counter[str](), set()

    def visit(folder: str, prefix: str) -> None:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            skipped["folders that may not be read"] += 1
            return
        for entry in entries:
            kind = _kind_of(entry)
            if (
                not outside
                and entry.is_symlink()
                and not (os.path.realpath(entry.path) + os.sep).startswith(root + os.sep)
            ):
                skipped["links that lead out of the folder"] += 1
            elif kind == "folder":
                visit(entry.path, f"{prefix}{entry.name}/")
            elif kind == "file":
                names.append(prefix + entry.name)
            else:
                skipped[SPECIAL] += 1

    visit(root, "")
    return names, skipped


def _kind_of(entry: os.DirEntry[str]) -> str:
    """ "folder", "file", or "" for what is neither, such as a link to itself."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:
        return ""


def class_labels(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from class folders: (N,) int64 and the folders' names, sorted (numbers by value); None without them."""
    parts = [name.split("/")[:-1] for name in names]
    depth = len(os.path.commonprefix(parts)) if parts else 0  # the class is the first folder that not all share
    if not parts or any(len(part) <= depth for part in parts):
        return None, ()
    folders = [part[depth] for part in parts]
    classes = sorted(set(folders))
    if all(name.isdigit() for name in classes):
        classes.sort(key=int)
    number = {name: k for k, name in enumerate(classes)}
    return np.fromiter((number[folder] for folder in folders), np.int64, len(folders)), tuple(classes)
