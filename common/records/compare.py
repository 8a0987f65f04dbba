"""Cards of evaluations: what they say beside the figures, and a table of those that can be compared.

    python -m common.evaluate compare CARD... [--out TABLE.md]

Writes Markdown, and with ``--out`` a .csv of the same name beside it.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.records.cards import Card, commit
from common.records.page import in_words, refresh
from common.runtime import atomic_write, read_json, write_json


def circumstances(device: str, command: str, started: float) -> dict[str, Any]:
    """Where and how a card was made: hardware, versions, command, seconds since ``started``."""
    import torch

    from common.runtime import hardware, pick_device

    facts = {"hardware": hardware(pick_device(device)), "torch": torch.__version__, "commit": commit()}
    return {**facts, "command": command, "seconds": round(time.perf_counter() - started, 1)}


def write(card: dict[str, Any], out: str) -> dict[str, Any]:
    """Print a card, or write it whole; the page of a run folder that it lies in is written again."""
    if not out:
        print(json.dumps(card, indent=2))
        return card
    write_json(out, card)
    short = {key: value for key, value in card["metrics"].items() if isinstance(value, float)}
    print(f"{', '.join(f'{key} {value:.5g}' for key, value in short.items())}; card: {out}")
    refresh(Path(out).parent)
    return card


# -------------------------------------------------------------------------------------------------------------- table
# What numbers in one column must have been measured with: place on the card, and what to call it.
_ALIKE = {
    "evaluation": {
        "backend": "backend",
        "weights": "network's weights",
        "resize": "resize rule",
        "side": "--side",
        "a.images": "number of generated images",
        "a.side": "side of the generated images",
        "b.images": "number of real images",
        "b.content": "real images",
        "kept": "--kept",
        "metrics.neighbours": "--neighbours",
        "metrics.kid_subsets": "subsets of KID",
        "metrics.kernel_distance_subsets": "subsets of the kernel distance",
        "metrics.effnet_neighbours": "--neighbours",
        "metrics.effnet_kid_subsets": "subsets of KID",
    },
    "bits": {
        "b.name": "images",
        "b.images": "number of images",
        "b.side": "side of the images",
        "b.split": "split",
        "dequantisation": "dequantisation",
    },
}
# of the samples, shown where a card has them
_SETTINGS = ("solver", "grid", "landing", "n_steps", "nfe", "cfg", "cfg_interval", "guide", "probes", "seed")


def read_card(path: Path) -> dict[str, Any]:
    """A card of an evaluation.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no card at {path}: python -m common.evaluate A B --out {path} writes one")
    card = read_json(path, Card)
    if card.get("kind") not in _ALIKE or "metrics" not in card:
        raise ValueError(f"{path} is no card of an evaluation: python -m common.evaluate A B --out {path} writes one")
    return card


def table(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of figures and of the settings in which the samples differ, one for each card.

    Raises:
        FileNotFoundError, ValueError: no cards, what is no card, or cards whose numbers were not measured alike.
    """
    if not paths:
        raise ValueError("give cards to compare: python -m common.evaluate compare CARD...")
    cards = [read_card(Path(path).expanduser()) for path in paths]
    for path, card in zip(paths, cards):
        _check_alike(paths[0], cards[0], path, card)
    names = [Path(path).stem for path in paths]
    labels = names if len(set(names)) == len(names) else paths  # with their folders where names alone are the same
    rows = []
    for label, card in zip(labels, cards):
        made = card if card["kind"] == "bits" else _at(card, "a.made", {})
        name = str(card["weights"])[:12] if card["kind"] == "bits" else _at(card, "a.name", "")
        settings = {key: made[key] for key in _SETTINGS if key in made}
        figures = {k: v for k, v in card["metrics"].items() if isinstance(v, (int, float)) and "neighbours" not in k}
        rows.append({"card": label, "set": name, **settings, **figures})
    return [{key: row.get(key) for key in dict.fromkeys(k for r in rows for k in r)} for row in rows]


def _check_alike(first: str, a: Mapping[str, Any], label: str, b: Mapping[str, Any]) -> None:
    if a["kind"] != b["kind"]:
        raise ValueError(f"{first} is a card of {a['kind']}, {label} one of {b['kind']}: compare them separately")
    for place, name in _ALIKE[a["kind"]].items():
        x, y = _at(a, place), _at(b, place)
        if x != y:
            difference = f"{name} {_short(x)} in {first}, {_short(y)} in {label}"
            raise ValueError(f"numbers that cannot be compared: {difference}; measure alike, or compare separately")


def _at(card: Mapping[str, Any], place: str, default: Any = None) -> Any:
    """The entry of a dotted place; the default where there is none."""
    value: Any = card
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 50 else f"{text[:12]}..."


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a table in Markdown, numbers to five digits."""
    head = list(rows[0])
    cells = ([in_words(value).replace("|", "\\|").replace("\n", " ") for value in row.values()] for row in rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *cells))


def write_table(rows: Sequence[Mapping[str, Any]], out: str) -> str:
    """Print rows of the same keys as Markdown, or write them to ``out``, with a .csv of all digits beside it.

    Returns:
        The Markdown.

    Raises:
        ValueError: the name does not end in .md.
    """
    text = markdown(rows)
    if not out:
        print(text, end="")
        return text
    file = Path(out)
    if file.suffix != ".md":
        raise ValueError(f"--out {out}: give a name that ends in .md; the .csv goes beside it")
    with atomic_write(file) as temporary:
        temporary.write_text(text)
    with atomic_write(file.with_suffix(".csv")) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows: {file}, {file.with_suffix('.csv')}")
    return text
