"""The card of a weights file: a JSON beside it that says where the weights come from and what was measured."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from common.runtime import file_hash, read_json, write_json


class Side(TypedDict, total=False):
    """One of the sets of images that an evaluation compares, on its card."""

    name: str
    images: int
    made: dict[str, Any]


class Card(TypedDict, total=False):
    """A card of weights or of an evaluation, as far as it is read again."""

    sha256: str
    measured: list[dict[str, Any]]
    kind: str
    metrics: dict[str, Any]
    a: Side
    b: Side
    hardware: str
    hours: float
    processes: int
    command: str


def commit() -> str:
    """The repository's commit, with a + when files differ from it; empty without git."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return ""
    return described.stdout.strip()


def without_folders(words: Sequence[str]) -> str:
    """A command line as a card tells it: paths are cut to their names, since folders of one machine mean nothing."""

    def named(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        return flag + equals + (Path(value).name if "/" in value else value)

    return shlex.join(map(named, words))


def card_path(weights: Path) -> Path:
    """Where the card of a weights file lies: the same name with .json."""
    return weights.with_suffix(".json")


def write_card(weights: Path, facts: dict[str, Any]) -> None:
    """Write a new card: the facts, and the hash of the weights that they belong to."""
    write_json(card_path(weights), {"weights": weights.name, "sha256": file_hash(weights), **facts})


def add_measurement(weights: Path, result: dict[str, Any]) -> Path:
    """Add a measurement to the card; one with the same settings, by the same features, is replaced.

    Raises:
        ValueError: the card belongs to other weights.
    """
    path, sha256 = card_path(weights), file_hash(weights)
    card: dict[str, Any] = read_json(path, Card) if path.exists() else {"sha256": sha256}
    if card.get("sha256") != sha256:
        raise ValueError(f"{path} is the card of other weights than {weights.name}: remove it first")
    settings = ("solver", "n_steps", "grid", "landing", "cfg", "cfg_interval", "guide_sha256", "seed", "generated")
    settings += ("effnet", "inception")  # by which features
    others = [m for m in card.get("measured", []) if any(m.get(key) != result.get(key) for key in settings)]
    facts = {k: v for k, v in card.items() if k not in ("weights", "sha256", "measured")}
    write_card(weights, facts | {"measured": [*others, result]})
    return path
