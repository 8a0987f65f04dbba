"""One offline HTML page about a run: samples over time, loss, speed, what was measured, and what was not.

    python -m common.evaluate page RUN_FOLDER [--out page.html]

Reads config.yaml, metrics.jsonl, samples/*.png and the JSON cards of a run folder. The page holds its pictures and
asks for nothing from the network; all text from files is escaped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from common import cli
from common.runtime import JsonLines, atomic_write

MEASURES = {
    "FID": ("fid",),
    "KID": ("kid",),
    "Inception score": ("inception_score",),
    "precision and recall": ("precision",),
    "bits per dimension": ("bits_per_dimension",),
    "distance by a classifier's features": ("feature_distance", "frechet_distance"),
    "share of samples recognised as their class": ("recognised",),
}
_COLUMNS = ("kind", "step", "solver", "grid", "n_steps", "nfe", "cfg", "generated", "real")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:2px 7px;text-align:right}
pre{background:#f5f5f5;padding:.7rem;overflow-x:auto}figure{display:inline-block;margin:0 1rem 1rem 0}
img{image-rendering:pixelated;max-width:18rem;width:100%}figcaption{font-size:13px;color:#555}.wide{overflow-x:auto}"""


@dataclass(frozen=True)
class PageConfig:
    """Options of the page."""

    run: str = ""
    """Run folder; may stand first without this flag"""
    out: str = ""
    """File to write; empty: page.html in the run folder"""
    grids: int = 6
    """Sample grids to show, evenly spread over the run, with the first and the last"""


def page_main(argv: Sequence[str]) -> Path:
    """Read the options and write the page."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--run")
    config = cli.parse(PageConfig, description=__doc__ or "", argv=words)
    if not config.run:
        raise ValueError("give a run folder: python -m common.evaluate page RUN_FOLDER")
    if config.grids < 1:
        raise ValueError(f"--grids {config.grids}: give 1 or more")
    folder = Path(config.run).expanduser()
    out = Path(config.out).expanduser() if config.out else folder / "page.html"
    text = page(folder, config.grids)
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"page: {out}")
    return out


def page(folder: Path, grids: int = 6) -> str:
    """The page of a run folder as HTML.

    Raises:
        FileNotFoundError: no such folder, or nothing of a run in it.
        ValueError: a damaged card.
    """
    rows = JsonLines(folder / "metrics.jsonl").read()
    cards = _cards(folder)
    pictures = sorted((folder / "samples").glob("*.png"))
    if not (rows or cards or pictures):
        raise FileNotFoundError(f"{folder} is no run folder: it needs metrics.jsonl, samples/*.png or JSON cards")
    results = [result for card in cards.values() for result in _results(card)]
    parts = [
        ("Samples from the same noise over time", _grids(_spread(pictures, grids))),
        ("Loss", _loss(rows)),
        ("Speed", _speed(rows)),
        ("Quality that was measured", _quality(results)),
        ("Quality against network evaluations", _against_nfe(results)),
        ("Not measured", _list(_missing(results, rows, pictures))),
        ("Commands and configuration", _commands(folder, cards)),
        ("Cards", "".join(f"<details><summary>{escape(n)}</summary>{_json(c)}</details>" for n, c in cards.items())),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>\n{text}\n" for title, text in parts if text)
    name = escape(folder.resolve().name)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>Run {name}</h1>\n{body}</body></html>\n'


# ---- what is there


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON cards of a folder, by name; other JSON files are left out."""
    cards = {}
    for file in sorted(folder.glob("*.json")):
        try:
            card = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}): remove it, or write it again") from error
        if isinstance(card, dict) and ({"sha256", "measured"} & card.keys() or {"kind", "metrics"} <= card.keys()):
            cards[file.name] = card
    return cards


def _results(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measurements of a card: those beside weights, or the one of an evaluation with what its samples say."""
    if "metrics" not in card:
        return [dict(result) for result in card.get("measured", [])]
    made = card.get("a", {}).get("made", {})
    settings = {key: value for key, value in {**card, **made}.items() if key in _COLUMNS}
    counts = {"generated": card.get("a", {}).get("images"), "real": card.get("b", {}).get("images")}
    return [{**{k: v for k, v in counts.items() if v is not None}, **settings, **card["metrics"]}]


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the items, evenly spread, the last always among them."""
    if len(items) <= count:
        return list(items)
    places = [round(k * (len(items) - 1) / max(1, count - 1)) for k in range(count)] if count > 1 else [len(items) - 1]
    return [items[k] for k in places]


def _missing(results: Sequence[Mapping[str, Any]], rows: Sequence[Any], pictures: Sequence[Path]) -> list[str]:
    """What the files of the run say nothing about."""
    known = {key for result in results for key, value in result.items() if value is not None}
    missing = [name for name, keys in MEASURES.items() if not known & set(keys)]
    missing += [] if any("val_loss" in row for row in rows) else ["validation loss"]
    missing += [] if any("images_per_s" in row for row in rows) else ["training speed"]
    missing += [] if pictures else ["samples over time"]
    return missing


# ---- parts of the page


def _grids(files: Iterable[Path]) -> str:
    figures = []
    for file in files:
        data = base64.b64encode(file.read_bytes()).decode()
        step = re.search(r"step_0*(\d+)", file.stem)
        label = escape(f"step {int(step[1]):,}" if step else file.stem)
        image = f'<img src="data:image/png;base64,{data}" alt="{label}">'
        figures.append(f"<figure>{image}<figcaption>{label}</figcaption></figure>")
    return "\n".join(figures)


def _loss(rows: Sequence[Mapping[str, Any]]) -> str:
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    return chart({"training": train, "validation, averaged weights": held_out}, "step", "loss")


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s") is not None)
    if not speeds:
        return ""
    hours = max((row.get("seconds") or 0) for row in rows) / 3600
    return f"<p>{speeds[len(speeds) // 2]:.4g} images/s (median of {len(speeds)} windows), {hours:.3g} hours in all</p>"


def _quality(results: Sequence[Mapping[str, Any]]) -> str:
    return html_table(
        [{key: value for key, value in r.items() if not isinstance(value, (dict, list))} for r in results]
    )


def _against_nfe(results: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each measure that was taken at several numbers of evaluations, a line for each solver."""
    charts = []
    for key in dict.fromkeys(key for keys in MEASURES.values() for key in keys):
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in results:
            if isinstance(r.get(key), (int, float)) and isinstance(r.get("nfe"), (int, float)):
                label = " ".join(f"{name} {r[name]}" for name in ("solver", "grid", "cfg") if name in r)
                lines.setdefault(label, []).append((r["nfe"], r[key]))
        if len({x for points in lines.values() for x, _ in points}) > 1:
            charts.append(chart({label: sorted(points) for label, points in lines.items()}, "NFE", key))
    return "\n".join(charts)


def _commands(folder: Path, cards: Mapping[str, Mapping[str, Any]]) -> str:
    config = folder / "config.yaml"
    lines = [f"-c {config.name}    # with the folder's training script: the run again"] if config.is_file() else []
    lines += [str(card[key]) for card in cards.values() for key in ("command", "recipe") if card.get(key)]
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    blocks = ["\n".join(dict.fromkeys(lines)), text]
    return "".join(f"<pre>{escape(block)}</pre>" for block in blocks if block)


def _json(card: Mapping[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(card, indent=2))}</pre>"


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table with a column for each key; empty without rows."""
    if not rows:
        return ""
    keys = list(dict.fromkeys([k for k in _COLUMNS if any(k in row for row in rows)] + [k for r in rows for k in r]))

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
        return f"<td>{escape(text)}</td>"

    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    lines = "".join(f"<tr>{''.join(cell(row.get(key)) for key in keys)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """A line chart as SVG: linear axes between the smallest and largest values, which are written at their ends.

    Args:
        lines: label -> points (x, y); empty lines are left out.
    """
    shown = {label: points for label, points in lines.items() if points}
    if not shown:
        return ""
    xs, ys = zip(*(point for points in shown.values() for point in points))
    left, top, width, height = 70, 15, 560, 220

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        v = (y - min(ys)) / ((max(ys) - min(ys)) or 1)
        return left + u * width, top + (1 - v) * height

    def text(x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'

    bottom = top + height
    drawn = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>']
    drawn += [text(left - 6, top + 10, f"{max(ys):.4g}", "end"), text(left - 6, bottom, f"{min(ys):.4g}", "end")]
    drawn += [text(left, bottom + 16, f"{min(xs):g}", "start"), text(left + width, bottom + 16, f"{max(xs):g}", "end")]
    drawn += [text(left + width / 2, bottom + 16, x_label, "middle"), text(left - 6, top + height / 2, y_label, "end")]
    for k, (label, points) in enumerate(shown.items()):
        colour = f"hsl({(210 + 67 * k) % 360},65%,42%)"
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="2.5"/>'.format(*place(*p)) for p in points[:60])
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        drawn.append(f'<g fill="{colour}">{dots if len(points) <= 60 else ""}</g>')
        drawn.append(f'<g fill="{colour}">{text(left + width - 8, top + 16 + 15 * k, label, "end")}</g>')
    size = f'width="{left + width + 15}" height="{bottom + 25}"'
    return f'<svg {size} font-size="12" font-family="sans-serif">{"".join(drawn)}</svg>'
