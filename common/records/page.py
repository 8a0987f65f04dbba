"""One offline HTML page about a run: samples over time, loss, speed, what was measured, and what was not.

    python -m common.evaluate page RUN_FOLDER [--out page.html]

Training writes it when it ends, and evaluations whose card lies beside it write it again. It shows config.yaml,
metrics.jsonl, samples/*.png and the JSON cards of the run folder. It holds its pictures and asks for nothing from the
network; all values are escaped.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.records.cards import Card
from common.records.rows import JsonLines, Metrics
from common.runtime import atomic_write, checked, read_json, reading

NAME = "page.html"
HUGE = 1e100  # what is larger, or NaN, is no value that a chart can show
SHOWN_BYTES, SHOWN_SIDE = 200_000, 720  # pictures larger than this are shown as JPEG, no wider than this
MEASURES = {
    "FID": ("fid",),
    "KID": ("kid",),
    "Inception score": ("inception_score",),
    "precision and recall": ("precision",),
    "bits per dimension": ("bits_per_dimension",),
    "distance by ImageNet features of EfficientNet-Lite0": ("effnet_frechet", "effnet_kid"),
    "distance by a classifier's features": ("feature_distance", "frechet_distance"),
    "share of samples recognised as their class": ("recognised",),
}
_GUIDANCE = ("landing", "cfg", "cfg_interval", "guide")
_COLUMNS = ("kind", "features", "step", "solver", "grid", "n_steps", "nfe", *_GUIDANCE, "generated", "real")
Chart = tuple[dict[str, Any], dict[str, list[tuple[float, float]]]]  # axes, and lines in pixels


def write_page(folder: Path, out: str = "", grids: int = 6) -> Path:
    """Write the page of a run folder, by default as page.html in it; see :func:`page`."""
    file, text = Path(out).expanduser() if out else folder / NAME, page(folder, grids)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half characters of a card's names
    print(f"page: {file}")
    return file


def refresh(folder: Path) -> None:
    """Write a folder's page again, where there is one: a card has been added."""
    if (folder / NAME).exists():
        write_page(folder)


def page(folder: Path, grids: int = 6) -> str:
    """The page of a run folder as HTML: page.html.in, which escapes all that is put into it.

    Raises:
        FileNotFoundError: no such folder, or nothing of a run in it.
        ValueError: a damaged card.
    """
    from jinja2 import Environment, StrictUndefined

    rows = JsonLines(folder / "metrics.jsonl").read(Metrics)
    cards = _cards(folder)
    pictures = sorted((folder / "samples").glob("*.png"))
    if not (rows or cards or pictures):
        raise FileNotFoundError(f"{folder} is no run folder: it needs metrics.jsonl, samples/*.png or JSON cards")
    results = [result for card in cards.values() for result in _results(card)]
    config = folder / "config.yaml"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html.in").read_text(encoding="utf-8"))
    return template.render(
        name=folder.resolve().name,
        pictures=[_picture(file) for file in _spread(pictures, grids)],
        loss=_loss(rows),
        speed=_speed(rows, cards),
        tables=_tables(results),
        against_nfe=_against_nfe(results),
        missing=_missing(results, rows, pictures),
        commands=dict.fromkeys(str(card["command"]) for card in cards.values() if card.get("command")),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        cards=[(name, json.dumps(card, indent=2)) for name, card in cards.items()],
        in_words=in_words,
    )


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON cards of a folder, by name; other JSON files are left out."""
    files = {file.name: read_json(file) for file in sorted(folder.glob("*.json"))}
    kinds = ({"sha256"}, {"measured"}, {"kind", "metrics"})  # of weights, and of evaluations
    cards = {n: c for n, c in files.items() if isinstance(c, dict) and any(kind <= c.keys() for kind in kinds)}
    return {name: checked(card, Card, f"{folder / name} is damaged") for name, card in cards.items()}


def _results(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measurements of a card: those beside weights, or the one of an evaluation with what its samples say."""
    if "metrics" not in card:
        return [dict(result) for result in card.get("measured", [])]
    made = card.get("a", {}).get("made", {})
    settings = {key: value for key, value in {**card, **made}.items() if key in _COLUMNS}
    counts = {"generated": card.get("a", {}).get("images"), "real": card.get("b", {}).get("images")}
    if "backend" in card:  # figures of the same name by other features are another line, and another column tells so
        settings["features"] = f"{card['backend']} {str(card.get('weights'))[:8]}"
    return [{**{k: v for k, v in counts.items() if v is not None}, **settings, **card["metrics"]}]


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the items, evenly spread, the last always among them."""
    if len(items) <= count:
        return list(items)
    places = [round(k * (len(items) - 1) / max(1, count - 1)) for k in range(count)] if count > 1 else [len(items) - 1]
    return [items[k] for k in places]


def _picture(file: Path) -> tuple[str, str]:
    """Title and content, as a data URL, of a picture: the file as it is when it is small, else a smaller JPEG."""
    with reading(file, "remove it"):
        kind, content = "png", file.read_bytes()
    if len(content) > SHOWN_BYTES:
        from PIL import Image

        with reading(file, "remove it"), Image.open(io.BytesIO(content)) as image:
            smaller, buffer = image.convert("RGB"), io.BytesIO()
        smaller.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        smaller.save(buffer, "JPEG", quality=88)
        kind, content = "jpeg", buffer.getvalue()
    step = re.search(r"step_0*(\d+)", file.stem)
    title = f"step {int(step[1]):,}" if step else file.stem
    return title, f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _loss(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    return chart({"training": train, "validation, averaged weights": held_out}, "step", "loss")


def _speed(rows: Sequence[Mapping[str, Any]], cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Median speed, whole time and machines of the training; empty where nothing is known of it."""
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s") is not None)
    if not speeds:
        return ""
    hours = max((row.get("seconds") or 0) for row in rows) / 3600
    where = {str(c["hardware"]): c.get("processes", 1) for c in cards.values() if "hours" in c and c.get("hardware")}
    machines = "".join(f"; {name}, {count} process(es)" for name, count in where.items())
    windows = f"(median of {len(speeds)} windows)"
    return f"{speeds[len(speeds) // 2]:.4g} images/s {windows}, {hours:.3g} hours in all{machines}"


def _tables(results: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], list[dict[str, Any]]]]:
    """Columns and rows of a table for each kind of measurement."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        plain = {key: value for key, value in result.items() if not isinstance(value, (dict, list))}
        groups.setdefault(plain.get("kind", ""), []).append(plain)
    tables = []
    for rows in groups.values():
        columns = list(
            dict.fromkeys([k for k in _COLUMNS if any(k in row for row in rows)] + [k for r in rows for k in r])
        )
        tables.append((columns, [{key: row.get(key) for key in columns} for row in rows]))
    return tables


def _against_nfe(results: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart for each measure that was taken at several numbers of evaluations, a line for each solver."""
    charts = []
    for key in dict.fromkeys(key for keys in MEASURES.values() for key in keys):
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in results:
            if isinstance(r.get(key), (int, float)) and isinstance(r.get("nfe"), (int, float)):
                label = " ".join(str(r[name]) for name in ("features", "solver", "grid") if name in r)
                label += "".join(f", {name} {in_words(r[name])}" for name in _GUIDANCE if name in r)
                lines.setdefault(label, []).append((r["nfe"], r[key]))
        if len({x for points in lines.values() for x, _ in points}) > 1:
            lines = {label: sorted(points) for label, points in lines.items()}
            charts.append(chart(lines, "NFE", key.replace("_", " ")))
    return [each for each in charts if each]


def _missing(results: Sequence[Mapping[str, Any]], rows: Sequence[Any], pictures: Sequence[Path]) -> list[str]:
    """What the files of the run say nothing about."""
    measured = {key for result in results for key, value in result.items() if value is not None}
    logged = {key for row in rows for key in row} | ({"pictures"} if pictures else set())
    others = {"val_loss": "validation loss", "images_per_s": "training speed", "pictures": "samples over time"}
    missing = [name for name, keys in MEASURES.items() if not measured & set(keys)]
    return missing + [name for key, name in others.items() if key not in logged]


def in_words(value: Any) -> str:
    """A value as tables show it: numbers to five digits, nothing for None."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Chart | None:
    """A line chart over the range of the values, 560 by 220 pixels at (70, 28); None where there are no points.

    Args:
        lines: label -> points (x, y); those that are not finite are left out, and so are empty lines.
        x_label, y_label: what the axes are; the second stands above the chart.

    Returns:
        The axes with five ticks each as (pixel, pixel, words, words), and the lines in pixels.
    """
    finite = {label: [p for p in points if abs(p[0]) < HUGE and abs(p[1]) < HUGE] for label, points in lines.items()}
    shown = {label: points for label, points in finite.items() if points}
    if not shown:
        return None
    (low_x, high_x), (low_y, high_y) = map(_range, zip(*(point for points in shown.values() for point in points)))

    def place(x: float, y: float) -> tuple[float, float]:
        u, v = (x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)
        return round(70 + 560 * u, 1), round(248 - 220 * v, 1)

    marks = [(low_x + k / 4 * (high_x - low_x), low_y + k / 4 * (high_y - low_y)) for k in range(5)]
    ticks = [(*place(x, y), f"{x:.4g}", f"{y:.4g}") for x, y in marks]
    axes = {"x_label": x_label, "y_label": y_label, "ticks": ticks}
    return axes, {label: [place(*point) for point in points] for label, points in shown.items()}


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value; around the only one, if there is one."""
    low, high = min(values), max(values)
    margin = 0.0 if high > low else 0.05 * abs(high) or 1.0
    return low - margin, high + margin
