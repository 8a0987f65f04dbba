"""The split of an image, by the whole of its path: train/cat/0.png, Testing/0.png, cat/val/0.png, test-0.parquet.

What looks like splits but does not say the split of every image is a question to the user, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = {
    "train": "train|training|trainings|trainval|trn|训练",
    "val": "val|valid|validate|validation|validierungs|dev|develop|development|验证",
    "test": "test|testing|tst|eval|evaluation|holdout|heldout|测试",
    "unlabeled": "unlabeled|unlabelled|pred|predict|prediction",
}
_SUFFIX = r"(?:set|data|images?|imgs?|files?|daten|集)?"
_HINT = re.compile("|".join(_WORDS.values()), re.IGNORECASE)  # 1 us a name; ``split_of`` takes 20
_PLAIN = {"seg", "set", "data", "dataset", "images", "image", "img", "imgs", "of", "full", "partial", "split", "part"}
_PLAIN |= {"parquet", "tfrecord", "tfrecords", "npy", "png", "jpg", "jpeg"}  # they add nothing to a split
_MANY = 4  # names that are no splits beside some that only sound like ones (bullet_train) are all taken for classes
ALL = "all"  # what to ask for when splits are not to matter


class NoSplit(ValueError):
    """Images of a split were asked for where there are none."""


def split_of(part: str) -> tuple[str, str]:
    """The split that a part of a path names, in any case and spelling, and what else the part says.

    ``seg_train`` is ("train", "seg"), ``Testing`` ("test", ""), ``trainA`` ("train", "A"), ``cat`` ("", "cat").
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+", part)
    for k, word in enumerate(words):
        for split, spellings in _WORDS.items():
            if re.fullmatch(f"(?:{spellings}){_SUFFIX}", word.lower()):
                return split, "_".join(words[:k] + words[k + 1 :])
    return "", part


def _is_plain(rest: str) -> bool:
    """Whether what is left of a part beside its split says nothing more: numbers, "images", ..."""
    return all(word.isdigit() or word.lower() in _PLAIN for word in rest.split("_") if word)


def place(names: Sequence[str], where: str, stems: bool = False) -> tuple[list[str], list[str]]:
    """The split of each name, and what is left of the name when the part about the split is taken out.

    Args:
        names: Relative paths, with "/".
        where: What to call the data in a message.
        stems: The files' own names are to say the split, too, as those of parquet files do.

    Returns:
        "train", "val", "test" or "unlabeled" for each name; "" for all when they say nothing of splits.

    Raises:
        ValueError: Some names look like splits, others do not; the line lists both.
    """
    parts = [name.split("/") for name in names]
    folders = [part if stems else part[:-1] for part in parts]
    for level in range(max(map(len, folders), default=0)):
        here = [folder[level] if level < len(folder) else "" for folder in folders]
        found = {part: split_of(part) for part in set(here)}
        looks = {part for part, (kind, _) in found.items() if kind}
        plain = {part for part in looks if _is_plain(found[part][1])}
        kinds = {found[part][0] for part in looks}
        if len(looks) == len(found) and (plain or len(kinds) > 1 or len(looks) == 1):
            rest = {part: "" if part in plain else found[part][1] for part in found}
            left = [_without(whole, level, rest[part]) for part, whole in zip(here, parts, strict=True)]
            return [found[part][0] for part in here], left
        if looks and len(looks) < len(found) and (plain or len(found) - len(looks) < _MANY):
            other = sorted(part or "files beside them" for part in set(found) - looks)
            raise ValueError(_question(where, sorted(looks), other))
    kinds = [split_of(part[-1])[0] if _HINT.search(part[-1]) else "" for part in parts]  # train_0.png, test_0.png, ...
    other = [name for name, kind in zip(names, kinds, strict=True) if not kind]
    if len({*kinds} - {""}) < 2 or 2 * len(other) > len(names):  # most say nothing: words of their own
        return [""] * len(names), list(names)
    if other:
        looks = [name for name, kind in zip(names, kinds, strict=True) if kind]
        raise ValueError(_question(where, looks, other))
    return kinds, list(names)


def _question(where: str, looks: list[str], other: list[str]) -> str:
    return (
        f"--data {where}: {_listed(looks)}: these look like splits, but {_listed(other)} cannot be placed; give the "
        "folder of one split, rename what is no split, or move the others away (common.prepare --split all: takes all)"
    )


def place_for(split: str, names: Sequence[str], where: str, stems: bool = False) -> tuple[list[str], list[str]]:
    """:func:`place`; where all are asked for, names that cannot be placed are no splits."""
    try:
        return place(names, where, stems)
    except ValueError:
        if split != ALL:
            raise
        return [""] * len(names), list(names)


def pick(kinds: Sequence[str], split: str, where: str) -> list[int]:
    """Which of the images are of a split: "train", "val", "test", or "all".

    Raises:
        NoSplit: None are: there are other splits, or none at all and it is not "train".
    """
    there = sorted(set(kinds))
    if split == ALL or (there == [""] and split == "train"):
        return list(range(len(kinds)))
    if there == [""]:
        raise NoSplit(
            f"--data {where}: its names say nothing of splits, so no {split} part is in it; --split train: all"
        )
    if split not in there:
        raise NoSplit(f"--data {where}: no {split} images in it, only {', '.join(there)}; give one of them")
    return [index for index, kind in enumerate(kinds) if kind == split]


def _without(parts: list[str], level: int, rest: str) -> str:
    """A name without its part about the split, or with what that part says besides."""
    return "/".join([*parts[:level], *([rest] if rest else []), *parts[level + 1 :]])


def _listed(words: list[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
