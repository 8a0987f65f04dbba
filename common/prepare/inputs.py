"""What can be prepared but not trained on directly: compressed tar, parquet, TFRecord, folders with a partition file.

``open_input`` adds these to ``common.data.opening.open_source``. What is damaged, is not what its name says or holds no
images is a ValueError.
"""

from __future__ import annotations

import bisect
import bz2
import contextlib
import gzip
import itertools
import json
import lzma
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from common.data import splits
from common.data.archives import open_tar
from common.data.arrays import MAX_CLASSES, open_npy
from common.data.opening import open_source
from common.data.sources import AGAIN, SUFFIXES, Source, is_hidden, list_files
from common.images import decode
from common.prepare.tfrecord import open_tfrecord
from common.runtime import atomic_write

_COMPRESSED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_RECORDS = r"\.tfrecords?(-\d+-of-\d+)?$"
_LABELS = ("label", "labels", "target", "targets", "class", "y", "fine_label")
_PARTITIONS = {"train": "0", "val": "1", "test": "2"}  # of a partition list


def open_input(spec: str, split: str, attribute: str, work: Path, say: Callable[[str], None]) -> Source:
    """Opens what ``--from`` names.

    Args:
        spec: Anything that ``open_source`` reads, a compressed .tar, a .parquet or TFRecord file or a folder of such
            files, a folder of .npy files, or a folder with list_eval_partition.txt.
        attribute: Column of the attribute file that becomes the label; empty: none.
        work: Folder for what has to be unpacked.

    Raises:
        FileNotFoundError: No such path.
        ValueError: It holds no images, is damaged, or is not what it seems to be.
    """
    path = Path(spec).expanduser()
    if attribute and not (path.is_dir() and _lists(path, "list_eval_partition")):
        raise ValueError(f"--attribute {attribute}: only for a folder that has list_eval_partition and list_attr files")
    if path.is_dir():
        return _open_folder(path, split, attribute, say) or open_source(spec, None, split, say)
    if path.is_file() and path.suffix.lower() in _COMPRESSED:
        source = open_tar(_unpacked(path, work, say), split)
        source.files = [path]
        return source
    for opener, pattern in _MANY:
        if path.is_file() and re.search(pattern, path.name):
            return opener(path)
    return open_source(spec, None, split, say)


def _open_folder(path: Path, split: str, attribute: str, say: Callable[[str], None]) -> Source | None:
    """A source from a folder of files that each hold many images; None for any other folder."""
    if _lists(path, "list_eval_partition"):
        return open_partitioned(path, split, attribute, say)
    names = sorted(name for name in list_files(path, outside=True)[0] if not is_hidden(name))
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    for opener, pattern in (*_MANY, (lambda file: open_npy(file, "train"), r"\.npy$")):
        files = [name for name in names if re.search(pattern, name)]
        # of the resolutions of one set, NAME-r02.tfrecords to NAME-r10.tfrecords (Karras et al. 2018), the largest
        levels = [int(match[1]) if (match := re.search(r"-r(\d\d)\.tfrecords$", name)) else -1 for name in files]
        files = [name for name, level in zip(files, levels, strict=True) if level == max(levels)]
        if files and images and opener in dict(_MANY):
            raise ValueError(
                f"--data {path}: {len(images)} images, such as {images[0]}, and {len(files)} files of many, such as "
                f"{files[0]}; give the folder of one kind"
            )
        if files and not images:
            kinds, _ = splits.place_for(split, files, str(path), stems=True)
            chosen = splits.pick(kinds, split, str(path))
            parts = [opener(path / files[k]) for k in chosen]
            others = [path / files[k] for k, kind in enumerate(kinds) if k not in chosen and kind != "unlabeled"]
            return concatenated(parts, str(path), _classes(others) if opener is open_parquet else [])
    return None


def _classes(files: Iterable[Path]) -> list[tuple[str, ...]]:
    """The classes of parquet files of other splits, so that a class has one number in all of them."""
    found = []
    for file in files:
        with contextlib.suppress(ValueError):  # of a damaged or hidden one nothing is read
            found.append(open_parquet(file).class_names)
    return found


def concatenated(parts: list[Source], where: str, others: Sequence[tuple[str, ...]] = ()) -> Source:
    """The images of several sources, one after the other; labels when all have some, by the names of the classes.

    Classes are those of the parts and ``others``.
    """
    counts, labels, classes = [part.count for part in parts], None, ()
    files, notes = [file for part in parts for file in part.files], [*dict.fromkeys(n for p in parts for n in p.notes)]
    unlabelled = [part.where for part in parts if part.labels is None]
    if 0 < len(unlabelled) < len(parts):
        notes = [note for note in notes if not note.startswith("labels: ")]
        notes.append(f"no labels, since {len(unlabelled)} of {len(parts)} files have none, first {unlabelled[0]}")
    if not unlabelled:
        known = [*(part.class_names for part in parts), *others]
        classes = max(known, key=len)
        if any(names != classes[: len(names)] for names in known):
            classes = tuple(sorted({name for names in known for name in names}))
        number = {name: k for k, name in enumerate(classes)}
        maps = [np.array([number[name] for name in part.class_names], np.int64) for part in parts]
        labels = np.concatenate([own[part.labels] for own, part in zip(maps, parts, strict=True)])
    kind = f"{parts[0].kind} files" if len(parts) > 1 else parts[0].kind
    load = _by_parts(counts, lambda k, index: parts[k].load(index))
    return Source(where, load, sum(counts), None, labels, classes, kind=kind, files=files, notes=notes)


def _by_parts(counts: Iterable[int], load: Callable[[int, int], Image]) -> Callable[[int], Image]:
    """Loads images by their number over all parts; ``load(part, number)`` does by that within a part."""
    starts = [0, *itertools.accumulate(counts)]

    def load_any(index: int) -> Image:
        part = bisect.bisect_right(starts, index) - 1
        return load(part, index - starts[part])

    return load_any


def _unpacked(path: Path, work: Path, say: Callable[[str], None]) -> Path:
    """The uncompressed tar of a compressed one, in ``work``: its members can then be read in any order."""
    status = path.stat()
    target = work / f"source-{status.st_size}-{status.st_mtime_ns}.tar"
    if target.exists():
        return target
    say(f"unpacking {path} to {target}, which is deleted at the end")
    try:
        with _COMPRESSED[path.suffix.lower()](path) as packed, atomic_write(target) as temporary:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(f"--data {path}: damaged, or not compressed as its name says ({error}); {AGAIN}") from error
    return target


# ---- a folder of images with lists


def _lists(path: Path, name: str) -> list[Path]:
    return sorted(file for file in path.glob(f"{name}*") if file.suffix in (".txt", ".csv"))


def open_partitioned(path: Path, split: str, attribute: str, say: Callable[[str], None]) -> Source:
    """Images whose split stands in list_eval_partition*.txt or .csv, lines "NAME 0", 0 training, 1 validation, 2 test.

    The images lie in a folder or zip called img_align*, else anywhere below ``path``; they are matched by file name.

    Args:
        attribute: Column of list_attr*.txt or .csv (values 1 and -1) to use as label 1 and 0; empty: no labels.
        say: Gets a line when listed images are missing.

    Raises:
        ValueError: A list that cannot be read, an unknown attribute, or no image of the split.
    """
    rows = _table(_lists(path, "list_eval_partition")[0])
    wanted = {name for name, *value in rows if split == splits.ALL or value == [_PARTITIONS[split]]}
    places = [place for place in sorted(path.glob("img_align*")) if place.is_dir() or place.suffix == ".zip"]
    images = open_source(str(places[0] if places else path), None, splits.ALL, say)
    names = images.names or ()
    chosen = [k for k, name in enumerate(names) if name.rpartition("/")[2] in wanted]
    if not chosen:
        raise ValueError(f"--data {path}: none of the {len(wanted)} images of --split {split} is there")
    if len(chosen) < len(wanted):
        say(f"{len(wanted) - len(chosen)} of the {len(wanted)} images of --split {split} are not there")
    own = [names[k] for k in chosen]
    labels = _attribute(path, attribute, own) if attribute else None
    classes = (f"no_{attribute}", attribute) if attribute else ()
    files = [_lists(path, "list_eval_partition")[0], *images.files]
    return Source(
        str(path), lambda k: images.load(chosen[k]), len(own), own, labels, classes, kind="partition", files=files
    )


def _table(path: Path) -> list[list[str]]:
    """Rows of a list separated by blanks or commas."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {path}: not a text file ({error.reason})") from error
    return [row for line in text.splitlines() if (row := line.replace(",", " ").split())]


def _attribute(path: Path, attribute: str, names: Sequence[str]) -> np.ndarray:
    """0 or 1 for each image, from the list of attributes."""
    files = _lists(path, "list_attr")
    if not files:
        raise FileNotFoundError(f"--attribute {attribute}: there is no list_attr*.txt or .csv in {path}")
    rows = _table(files[0])
    header, rows = (rows[1], rows[2:]) if len(rows[0]) == 1 else (rows[0][1:], rows[1:])  # .txt begins with a count
    if attribute not in header:
        raise ValueError(f"--attribute {attribute}: choose one of {', '.join(header)}")
    column = header.index(attribute) + 1
    values = {row[0]: row[column] for row in rows if len(row) == len(header) + 1}
    entries = [values.get(name.rpartition("/")[2]) for name in names]
    if not set(entries) <= {"1", "-1"}:
        bad = next(name for name, value in zip(names, entries, strict=True) if value not in ("1", "-1"))
        raise ValueError(f"--data {files[0]}: no value 1 or -1 of {attribute} for {bad}")
    return np.array([value == "1" for value in entries], np.int64)


# ---- parquet


def _parquet_loader(file: Any, column: str) -> Callable[[int], Image]:
    """Loads images by their number; a row group is read at a time and the last two are kept."""
    lock = threading.Lock()

    @lru_cache(maxsize=2)
    def group(number: int) -> Any:
        values = file.read_row_group(number, columns=[column]).column(0).combine_chunks()
        return values.field("bytes") if column.endswith(".bytes") else values

    def load(number: int, row: int) -> Image:
        with lock:
            value = group(number)[row].as_py()
        if value is None:
            raise ValueError("no bytes in this row")
        return decode(value)

    return _by_parts((file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)), load)


def open_parquet(path: Path) -> Source:
    """A source from a parquet file with a column of encoded images (binary, or a struct with ``bytes``).

    An integer column "label" (or of another usual name) gives labels, with the names that the Hugging Face hub writes
    into the schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"--data {path}: not a readable parquet file ({error}); {AGAIN}") from error
    schema = file.schema_arrow
    columns = {field.name: _image_column(field, pa) for field in schema}
    images = {name: column for name, column in columns.items() if column}
    if not images or file.metadata.num_rows == 0:
        raise ValueError(f"--data {path}: no column of encoded images in it, only {', '.join(columns) or 'nothing'}")
    load = _parquet_loader(file, images.get("image") or next(iter(images.values())))
    source = Source(str(path), load, file.metadata.num_rows, kind="parquet", files=[path])
    if usual := [name for name in _LABELS if name in columns and not columns[name]]:
        source.labels, source.class_names = _parquet_labels(file, schema, usual[0], path)
    image = "image" if "image" in images else next(iter(images))
    source.notes = [f"labels: {usual[0]}"] if usual else []
    if others := [name for name in columns if name not in (image, *usual[:1])]:
        source.notes.append(f"not read: {', '.join(others)}")
    return source


def _image_column(field: Any, pa: Any) -> str:
    """The name of the bytes of a column of images; empty when it holds something else."""
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes"
    return ""


def _parquet_labels(file: Any, schema: Any, column: str, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and classes of a column of whole numbers, or of names."""
    import pyarrow as pa

    values = file.read(columns=[column]).column(0)
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_string(values.type)):
        raise ValueError(f"--data {path}: the labels {column} are {values.type}, {values.null_count} of them missing")
    if pa.types.is_string(values.type):
        names, labels = np.unique(values.to_pylist(), return_inverse=True)
        return labels.astype(np.int64), tuple(map(str, names))
    labels = np.asarray(values.to_numpy(), np.int64)
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        names = ()
    if labels.min() < 0:
        raise ValueError(f"--data {path}: negative numbers in {column}: its classes are hidden; give another --split")
    if labels.max() >= MAX_CLASSES:
        raise ValueError(f"--data {path}: the labels {column} reach {labels.max()}; allowed are 0 to {MAX_CLASSES - 1}")
    return labels, names if len(names) > labels.max() else tuple(map(str, range(labels.max() + 1)))


# Files of many images: what opens them, and their names
_MANY = ((open_parquet, r"\.parquet$"), (open_tfrecord, _RECORDS))
