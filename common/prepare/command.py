"""Prepare a data set: any images on disk, cropped and resized once, into one zip or LMDB that training reads fast.

    python -m common.prepare images --size 64 --crop 140 --from photos.tar.gz --to data/photos64.zip
    python -m common.prepare NAME --from PATH --to FILE.lmdb        # crop and size from the folder NAME's prepare.json

``--from`` takes a folder, zip, tar (also .gz, .bz2, .xz), LMDB, .npy/.npz, parquet or TFRecord files, a folder of
those, or a folder of images with list_eval_partition.txt, of which ``--split`` is taken. The images are cropped
(``--box``, ``--crop``, else the centre square), resized (bicubic, antialiased) and encoded by threads. Killed at any
moment, the same command goes on where it was and gives the same file. Images that cannot be read are named and left
out, up to ``--corrupt_limit``. The file's header.json says what was done, with a checksum (``--check`` compares).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common import cli
from common.cli.files import load_config, read_values
from common.cli.ranges import AtLeast, AtMost, Count, OneOf, Split, Whole
from common.records.rows import JsonLines
from common.runtime import in_one_line, made_ahead, read_json, run_lock, silent, write_json
from common.runtime.kept import check_same, contents

if TYPE_CHECKING:
    from PIL.Image import Image

    from common.data.sources import Source

ROOT = Path(__file__).resolve().parents[2]
_CHUNK = 64  # images between two points from which a killed run goes on
_FREE = ("stamp", "pillow", "count", "checksum", "skipped")  # of a finished file: they may differ
_PNG_LEVEL = 1  # of zlib: 6% larger than PIL's 6 on photographs of 256x256, in 40% of the time


@dataclass(frozen=True)
class PrepareConfig:
    """Options of the preparation of a data set."""

    # ---- files
    source: str = ""
    """The images; --from is another name of this option"""
    to: str = ""
    """File to write, .zip or .lmdb (for millions of images)"""
    split: Split = "train"
    """Which images, where the source has train/ and test/ folders, files of splits or a partition list"""
    attribute: str = ""
    """Attribute that becomes the label, folders 0_no_NAME/ and 1_NAME/; for sources with a list of attributes"""

    # ---- images
    size: Annotated[int | None, AtLeast(1, "give the side of the images, e.g. --size 64")] = None
    """Side of the images to write"""
    crop: Whole = 0
    """Side of the centre square that is kept before resizing; 0: the largest"""
    box: tuple[Whole, ...] = ()
    """LEFT,TOP,RIGHT,BOTTOM in pixels, kept before resizing; instead of --crop"""
    channels: Annotated[int, OneOf((1, 3))] = 3
    """3 colour, 1 grey"""
    background: Literal["white", "black"] = "white"
    """What shows through where an image is transparent"""
    format: Literal["png", "jpeg"] = "png"
    """Encoding; png loses nothing"""
    quality: Annotated[int, AtLeast(1, "give 1 to 100"), AtMost(100, "give 1 to 100")] = 95
    """Of jpeg, 1 to 100; the chroma is not subsampled"""

    # ---- running
    num_workers: Count = 2
    """Threads that decode, resize and encode"""
    corrupt_limit: Whole = 10
    """More unreadable images than this are an error"""
    check: bool = False
    """Read the finished file back and compare its checksum"""

    def check_together(self) -> None:
        if not self.source or not self.to:
            raise ValueError("give --from PATH and --to FILE.zip or FILE.lmdb")
        if self.size is None:
            raise ValueError("give the side of the images, e.g. --size 64")
        if self.box and self.crop:
            raise ValueError("--crop and --box exclude each other; give one of them")
        left, top, right, bottom = self.box if len(self.box) == 4 else (0, 0, 0 if self.box else 1, 1)
        if not (0 <= left < right and 0 <= top < bottom):
            raise ValueError(f"--box {','.join(map(str, self.box))}: give LEFT,TOP,RIGHT,BOTTOM, e.g. 25,57,153,185")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the header of the file."""
    aliases = {"from": "source", "image_size": "size"}
    config = cli.parse(PrepareConfig, _presets(), __doc__ or "", aliases, argv, words=("preset",))
    header = prepare(config)
    print(f"{config.to}: {header['count']} images of {header['size']}x{header['size']}, checksum {header['checksum']}")
    return header


def _presets() -> dict[str, PrepareConfig]:
    """``images``, and the folders that have a prepare.json with some of the options."""
    presets = {"images": PrepareConfig()}
    for file in sorted(ROOT.glob("*/prepare.json")):
        values = read_values(PrepareConfig, load_config(file), f"{file}")
        presets[file.parent.name] = replace(presets["images"], **values)
    return presets


# ---- the whole


def prepare(config: PrepareConfig, progress: bool = True) -> dict[str, Any]:
    """Writes the file that the options describe, or goes on with it; returns its header.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: A wrong option, a damaged source, too many unreadable images, or another file in the way.
    """
    cli.validate(config)
    from tqdm import tqdm

    from common.prepare.containers import read_header, verify, writer_for
    from common.prepare.inputs import open_input

    to = Path(config.to).expanduser()
    writer_for(to)
    work, say = to.with_name(f".{to.name}.part"), tqdm.write if progress else silent
    with run_lock(work), _relabelled():
        try:
            source = open_input(config.source, config.split, config.attribute, work, say)
            names = output_names(source, ".png" if config.format == "png" else ".jpg")
            old = read_header(to) if to.exists() else {}
            plan = _plan(config, source, names, old)
            if old and not _is_renewed(old, plan, say):
                check_same(to, old, plan, "give another --to, or delete that file", _FREE)
                say(f"{to} is complete")
            else:
                _write(config, to, work, source, names, plan, progress)
            header = verify(to) if config.check else read_header(to)
        except BaseException:
            if not (work / "journal.jsonl").exists():  # nothing to go on from
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
    return header


@contextlib.contextmanager
def _relabelled() -> Iterator[None]:
    """Errors of the sources speak of --data, which is called --from here."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not str(error).startswith("--data "):
            raise
        raise type(error)(str(error).replace("--data ", "--from ", 1)) from error


def _is_renewed(old: Any, plan: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether images of the same names have changed since a file was made or begun, which is then made anew."""
    before, now = old.get("source") if isinstance(old, dict) else None, plan["source"]
    if not isinstance(before, dict) or before == now or {**before, "hash": now["hash"]} != now:
        return False
    say("the images have changed since: all are prepared anew")
    return True


def _plan(config: PrepareConfig, source: Source, names: list[str], old: dict[str, Any]) -> dict[str, Any]:
    """What the bytes of the file depend on; ``old``: the plan of a file that is there."""
    import PIL

    from common.prepare.containers import digest

    before = old["source"] if isinstance(old.get("source"), dict) else {}
    held = contents(source.files, {"hash": before.get("hash"), "stamp": old.get("stamp")})
    rule = f"box {','.join(map(str, config.box))}, " if config.box else f"centre {config.crop}, " if config.crop else ""
    return {
        "format": "prepared images",
        "version": 2,
        "size": config.size,
        "channels": config.channels,
        "crop": rule + f"centre square, resized to {config.size} (bicubic, antialiased)",
        "encoding": "png" if config.format == "png" else f"jpeg, quality {config.quality}, 4:4:4",
        "pillow": PIL.__version__,
        "split": config.split,
        "attribute": config.attribute,
        "background": config.background,
        "source": {
            "kind": source.kind,
            "count": source.count,
            "names": digest("\n".join(sorted(names)).encode()),
            "hash": held["hash"],
        },
        "stamp": held["stamp"],
    }


def _write(
    config: PrepareConfig, to: Path, work: Path, source: Source, names: list[str], plan: dict, progress: bool
) -> None:
    """Encodes what is not there yet, in the order of the names, and moves the finished file to its place."""
    from tqdm import tqdm

    from common.data.loading import Unreadable
    from common.data.sources import summary
    from common.prepare.containers import checksum, writer_for

    begun, say = work / "plan.json", tqdm.write if progress else silent
    if begun.exists() and _is_renewed(read_json(begun), plan, say):
        for file in (begun, work / "journal.jsonl", work / "data"):
            file.unlink(missing_ok=True)
    if begun.exists():
        check_same(work, read_json(begun), plan, f"go on with those settings, or delete the folder {work}", ("stamp",))
    else:
        write_json(begun, plan)
    journal = JsonLines(work / "journal.jsonl")
    rows = journal.read()
    entries = [entry for row in rows for entry in row["entries"]]
    unreadable, about = Unreadable(config.corrupt_limit, say), Counter[str]()
    for name, reason in (skipped for row in rows for skipped in row["skipped"]):
        unreadable.add(len(unreadable.reasons), name, ValueError(reason))
    done = len(entries) + len(unreadable.reasons)
    order = sorted(range(source.count), key=names.__getitem__)
    writer = writer_for(to)(work / "data", entries)
    bar = tqdm(total=source.count, initial=done, desc=to.name, unit="img", disable=None if progress else True)
    try:
        for chunk in _encoded(config, source, order[done:]):
            good = [(names[index], data) for index, data, *_ in chunk if data is not None]
            skipped = [[source.name(index), _reason(error)] for index, data, error, _ in chunk if data is None]
            about.update(trait for *_, seen in chunk for trait in seen)
            added = writer.write(good)
            for name, reason in skipped:
                unreadable.add(len(unreadable.reasons), name, ValueError(reason))
            journal.append({"entries": added, "skipped": skipped})
            entries += added
            bar.update(len(chunk))
        if not entries:
            raise ValueError(f"--data {source.where}: none of its {source.count} images can be read")
        skipped = list(unreadable.reasons.values())
        writer.finish(plan | {"count": len(entries), "checksum": checksum(entries), "skipped": skipped})
    finally:
        bar.close()
        writer.close()
    (work / "data").replace(to)
    source.skipped["unreadable"] += len(skipped)
    say(summary(source, len(entries), about))


# ---- names


def output_names(source: Source, suffix: str) -> list[str]:
    """The name of each image in the file, all different: class folder, and the old name or else the number.

    Folders that all images share are left out, and whatever could point outside of an archive.
    """
    numbers = [f"{index:08d}{suffix}" for index in range(source.count)]
    if source.names is None:
        return _in_class_folders(source, numbers)
    safe = [_safe(name) for name in source.names]
    parts = [name.split("/") for name in safe]
    shared = len(os.path.commonprefix([part[:-1] for part in parts]))
    short = ["/".join(part[shared:]) for part in parts]
    for candidate in ([re.sub(r"\.\w+$", "", name) + suffix for name in short], [name + suffix for name in short]):
        named = _in_class_folders(source, candidate)
        if len(set(named)) == len(named):
            return named
    return _in_class_folders(source, numbers)


def _safe(name: str) -> str:
    """A relative name that is not hidden, without steps upwards, drive letters and bytes that are not UTF-8."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "/".join(re.sub(r"^(\.|__MACOSX)+|[\\:]", "_", part) for part in name.split("/") if part) or "image"


def _in_class_folders(source: Source, names: list[str]) -> list[str]:
    """The names, with the class's folder in front where they do not tell the labels themselves."""
    import numpy as np

    from common.data.sources import class_labels

    labels = class_labels(names)[0]
    if source.labels is None or (labels is not None and np.array_equal(labels, source.labels)):
        return names
    folders = [re.sub(r"[^\w.+-]+", "_", name) for name in source.class_names]
    if class_labels([f"{folder}/image" for folder in folders])[1] != tuple(folders):  # they would not sort by label
        folders = [f"{k:0{len(str(len(folders)))}d}_{name}" for k, name in enumerate(folders)]
    return [f"{folders[label]}/{name.rpartition('/')[2]}" for label, name in zip(source.labels, names, strict=True)]


# ---- images


def _encoded(config: PrepareConfig, source: Source, order: Sequence[int]) -> Iterator[list[tuple]]:
    """Chunks of (index, encoded image or None, error or None, traits), in order; a few chunks ahead are being made."""

    def encode_chunk(start: int) -> list[tuple]:
        return [(index, *_encode_one(config, source, index)) for index in order[start : start + _CHUNK]]

    return made_ahead(encode_chunk, range(0, len(order), _CHUNK), config.num_workers)


def _encode_one(
    config: PrepareConfig, source: Source, index: int
) -> tuple[bytes | None, Exception | None, Sequence[str]]:
    """The encoded image, or why there is none, and what is worth telling of it."""
    from PIL import Image

    from common.images import fit, traits

    assert config.size is not None
    try:
        part = cropped(source.load(index), config.crop, config.box)
        pixels, seen = fit(part, config.size, config.channels, config.background), traits(part, config.background)
        image = Image.fromarray(pixels[0] if config.channels == 1 else pixels.transpose(1, 2, 0).copy())
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  decoders raise anything on damaged bytes
        return None, error, ()
    buffer = io.BytesIO()
    if config.format == "png":
        image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    else:
        image.save(buffer, "JPEG", quality=config.quality, subsampling=0)
    return buffer.getvalue(), None, seen


def cropped(image: Image, crop: int = 0, box: tuple[int, ...] = ()) -> Image:
    """The part of an image to keep: a box (left, top, right, bottom), or a square of side ``crop`` in the centre.

    Raises:
        ValueError: The image is smaller than that.
    """
    if crop:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        box = (left, top, left + crop, top + crop)
    if not box:
        return image
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise ValueError(f"{image.width}x{image.height} is smaller than the crop {','.join(map(str, box))}")
    return image.crop((left, top, right, bottom))


def _reason(error: Exception) -> str:
    """One line, the same in every run: without addresses of objects."""
    return re.sub(r" <\S+ object at \w+>", "", in_one_line(error))[:80]
