"""What is kept knows what it was made from: contents and options, compared before it is used again. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runtime import file_hash


def check_same(
    what: object, old: Mapping[str, Any], new: Mapping[str, Any], advice: str, free: Sequence[str] = ()
) -> None:
    """Refuse (ValueError) to use or to go on with what was made from other data or by other options.

    Args:
        what, advice: Its name and what to do about a difference, for the line that names the keys.
        old, new: What it says of itself and what is asked for now: JSON-like values that its contents depend on.
        free: Keys that may differ.
    """
    new, old = json.loads(json.dumps(new)), old if isinstance(old, Mapping) else {}
    keys = [key for key in {**new, **old} if key not in free and new.get(key) != old.get(key)]
    if keys:
        differences = ", ".join(f"{key} {old.get(key)} there and {new.get(key)} now" for key in keys[:4])
        raise ValueError(f"{what} was begun with other settings: {differences}; {advice}")


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str], free: Sequence[str] = ()
) -> str:
    """Where the description of a file and that of a run differ, "channels: 96 there, 64 here; ..."; empty: nowhere.

    Args:
        keys, free: Which are compared, and which of these may differ.
    """
    unequal = [key for key in keys if key not in free and theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in unequal)


def contents(files: Iterable[str | os.PathLike[str]], known: Mapping[str, Any] = {}) -> dict[str, str]:
    """What files hold, for :func:`check_same`: "hash" of names and bytes; "stamp" of sizes and times alone.

    Args:
        files: In an order that is the same every time.
        known: An earlier answer: its hash holds, and nothing is read, where sizes and times are still the same.
    """
    paths = [Path(file) for file in files]
    stats = [(path.name, path.stat()) for path in paths]
    lines = (f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in stats)
    stamp = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if stamp == known.get("stamp") and known.get("hash"):
        return {"hash": known["hash"], "stamp": stamp}
    lines = (f"{path.name} {file_hash(path)}\n" for path in paths)
    return {"hash": hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32], "stamp": stamp}
