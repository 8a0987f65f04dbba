"""One offline HTML page about a run: samples over time, loss, speed, what was measured, and what was not.

    python -m common.evaluate page RUN_FOLDER [--out page.html]

Training writes it when it ends, and evaluations whose card lies beside it write it again. It shows config.yaml,
metrics.jsonl, samples/*.png and the JSON cards of the run folder. It holds its pictures and asks for nothing from the
network; all text from files is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.runtime import JsonLines, atomic_write, read_json

NAME = "page.html"
SHOWN_BYTES, SHOWN_SIDE = 200_000, 720  # pictures larger than this are shown as JPEG, no wider than this
MEASURES = {
    "FID": ("fid",),
    "KID": ("kid",),
    "Inception score": ("inception_score",),
    "precision and recall": ("precision",),
    "bits per dimension": ("bits_per_dimension",),
    "distance by a classifier's features": ("feature_distance", "frechet_distance"),
    "share of samples recognised as their class": ("recognised",),
}
_COLUMNS = ("kind", "step", "solver", "grid", "landing", "n_steps", "nfe", "cfg", "generated", "real")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px;margin:.7rem 0}
td,th{border:1px solid #ccc;padding:2px 7px;text-align:right}
pre{background:#f5f5f5;padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere}
figure{display:inline-block;margin:0 1rem 1rem 0}
img{image-rendering:pixelated;max-width:18rem;width:100%}figcaption{font-size:13px;color:#555}.wide{overflow-x:auto}"""


def write_page(folder: Path, out: str = "", grids: int = 6) -> Path:
    """Write the page of a run folder, by default as page.html in it; see :func:`page`."""
    file, text = Path(out).expanduser() if out else folder / NAME, page(folder, grids)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"page: {file}")
    return file


def refresh(folder: Path) -> None:
    """Write a folder's page again, where there is one: a card has been added."""
    if (folder / NAME).exists():
        write_page(folder)


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
        ("Speed", _speed(rows, cards)),
        ("Quality that was measured", _quality(results)),
        ("Quality against network evaluations", _against_nfe(results)),
        ("Not measured", _missing(results, rows, pictures)),
        ("Commands and configuration", _commands(folder, cards)),
        ("Cards", "".join(map(_folded, cards, cards.values()))),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>\n{text}\n" for title, text in parts if text)
    name = escape(folder.resolve().name)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>Run {name}</h1>\n{body}</body></html>\n'


# ---- what is there


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON cards of a folder, by name; other JSON files are left out."""
    files = {file.name: read_json(file) for file in sorted(folder.glob("*.json"))}
    kinds = ({"sha256"}, {"measured"}, {"kind", "metrics"})  # of weights, and of evaluations
    return {n: c for n, c in files.items() if isinstance(c, dict) and any(kind <= c.keys() for kind in kinds)}


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


def _missing(results: Sequence[Mapping[str, Any]], rows: Sequence[Any], pictures: Sequence[Path]) -> str:
    """A list of what the files of the run say nothing about."""
    known = {key for result in results for key, value in result.items() if value is not None}
    missing = [name for name, keys in MEASURES.items() if not known & set(keys)]
    logged = {key for row in rows for key in row} | ({"pictures"} if pictures else set())
    others = {"val_loss": "validation loss", "images_per_s": "training speed", "pictures": "samples over time"}
    missing += [name for key, name in others.items() if key not in logged]
    return f"<ul>{''.join(f'<li>{escape(name)}</li>' for name in missing)}</ul>" if missing else ""


# ---- parts of the page


def _grids(files: Iterable[Path]) -> str:
    figures = []
    for file in files:
        kind, content = _shown(file)
        data = base64.b64encode(content).decode()
        step = re.search(r"step_0*(\d+)", file.stem)
        label = escape(f"step {int(step[1]):,}" if step else file.stem)
        image = f'<img src="data:image/{kind};base64,{data}" alt="{label}">'
        figures.append(f"<figure>{image}<figcaption>{label}</figcaption></figure>")
    return "\n".join(figures)


def _shown(file: Path) -> tuple[str, bytes]:
    """Type and bytes of a picture for the page: the file as it is when it is small, else a smaller JPEG."""
    content = file.read_bytes()
    if len(content) <= SHOWN_BYTES:
        return "png", content
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        smaller, buffer = image.convert("RGB"), io.BytesIO()
    smaller.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    smaller.save(buffer, "JPEG", quality=88)
    return "jpeg", buffer.getvalue()


def _loss(rows: Sequence[Mapping[str, Any]]) -> str:
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    return chart({"training": train, "validation, averaged weights": held_out}, "step", "loss")


def _speed(rows: Sequence[Mapping[str, Any]], cards: Mapping[str, Mapping[str, Any]]) -> str:
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s") is not None)
    if not speeds:
        return ""
    hours = max((row.get("seconds") or 0) for row in rows) / 3600
    where = {str(c["hardware"]): c.get("processes", 1) for c in cards.values() if "hours" in c and c.get("hardware")}
    machines = "".join(f"; {escape(name)}, {count} process(es)" for name, count in where.items())
    windows = f"(median of {len(speeds)} windows)"
    return f"<p>{speeds[len(speeds) // 2]:.4g} images/s {windows}, {hours:.3g} hours in all{machines}</p>"


def _quality(results: Sequence[Mapping[str, Any]]) -> str:
    """A table for each kind of measurement."""
    plain = [{key: value for key, value in r.items() if not isinstance(value, (dict, list))} for r in results]
    kinds = dict.fromkeys(row.get("kind", "") for row in plain)
    return "\n".join(html_table([row for row in plain if row.get("kind", "") == kind]) for kind in kinds)


def _against_nfe(results: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each measure that was taken at several numbers of evaluations, a line for each solver."""
    charts = []
    for key in dict.fromkeys(key for keys in MEASURES.values() for key in keys):
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in results:
            if isinstance(r.get(key), (int, float)) and isinstance(r.get("nfe"), (int, float)):
                label = " ".join(str(r[name]) for name in ("solver", "grid") if name in r)
                label += "".join(f", {name} {r[name]:g}" for name in ("landing", "cfg") if name in r)
                lines.setdefault(label, []).append((r["nfe"], r[key]))
        if len({x for points in lines.values() for x, _ in points}) > 1:
            charts.append(
                chart({label: sorted(points) for label, points in lines.items()}, "NFE", key.replace("_", " "))
            )
    return "\n".join(charts)


def _commands(folder: Path, cards: Mapping[str, Mapping[str, Any]]) -> str:
    """The commands that cards tell, and all options of the run."""
    commands = [str(card["command"]) for card in cards.values() if card.get("command")]
    file = folder / "config.yaml"
    parts = [f"<pre>{escape(line)}</pre>" for line in dict.fromkeys(commands)]
    if file.is_file():
        parts.append("<p>All options; the folder's training script with -c config.yaml does the run again:</p>")
        parts.append(f"<pre>{escape(file.read_text(encoding='utf-8'))}</pre>")
    return "".join(parts)


def _folded(name: str, card: Mapping[str, Any]) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(card, indent=2))}</pre></details>"


def in_words(value: Any) -> str:
    """A value as tables show it: numbers to five digits, nothing for None."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table with a column for each key; empty without rows."""
    if not rows:
        return ""
    keys = list(dict.fromkeys([k for k in _COLUMNS if any(k in row for row in rows)] + [k for r in rows for k in r]))
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in keys)
    cells = [[f"<td>{escape(in_words(row.get(key)))}</td>" for key in keys] for row in rows]
    lines = "".join(f"<tr>{''.join(row)}</tr>\n" for row in cells)
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """A line chart as SVG: linear axes over the range of the values, with five ticks each.

    Args:
        lines: label -> points (x, y); empty lines are left out.
        x_label, y_label: what the axes are; the second stands above the chart.
    """
    shown = {label: points for label, points in lines.items() if points}
    if not shown:
        return ""
    xs, ys = (_range(values) for values in zip(*(point for points in shown.values() for point in points)))
    left, top, width, height = 70, 28, 560, 220
    bottom = top + height

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - xs[0]) / (xs[1] - xs[0]) * width, bottom - (y - ys[0]) / (ys[1] - ys[0]) * height

    def text(x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'

    drawn = [text(left, top - 10, y_label, "start"), text(left + width / 2, bottom + 32, x_label, "middle")]
    for k in range(5):
        x, y = (low + k / 4 * (high - low) for low, high in (xs, ys))
        (u, v), colour = place(x, y), "#bbb" if k in (0, 4) else "#eee"
        drawn.append(f'<path d="M{left},{v:.1f}h{width}M{u:.1f},{top}v{height}" stroke="{colour}"/>')
        drawn += [text(left - 6, v + 4, f"{y:.4g}", "end"), text(u, bottom + 16, f"{x:.4g}", "middle")]
    for k, (label, points) in enumerate(shown.items()):
        colour = f"hsl({(210 + 67 * k) % 360},65%,42%)"
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="2.5"/>'.format(*place(*p)) for p in points[:60])
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        drawn.append(f'<g fill="{colour}">{dots if len(points) <= 60 else ""}</g>')
        drawn.append(f'<g fill="{colour}">{text(left + width - 8, top + 16 + 15 * k, label, "end")}</g>')
    size = f'width="{left + width + 25}" height="{bottom + 40}"'
    return f'<svg {size} font-size="12" font-family="sans-serif">{"".join(drawn)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value; around the only one, if there is one."""
    low, high = min(values), max(values)
    margin = 0.0 if high > low else 0.05 * abs(high) or 1.0
    return low - margin, high + margin
