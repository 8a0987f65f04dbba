"""measure.py --sweep_cfg: figures of a folder's images over guidance scales and intervals, as rows and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Required, TypedDict

from common.cli.configs import MeasureConfig, times_of
from common.generate import Sampler
from common.plots import curves
from common.records.compare import write_table
from common.records.rows import JsonLines
from common.runtime.kept import check_same
from common.scripts.folder import Folder
from common.scripts.sampling import fitted_weights, plain, resolved, weights_hash

# What is drawn of what was measured: a figure, its title, and what real images get.
PANELS = (
    ("recognised", "share recognised as their class", "classifier_accuracy"),
    ("feature_distance", "feature distance", "feature_distance_real"),
    ("effnet_kid", "KID of EfficientNet-Lite0", "effnet_kid_floor"),
    ("fid", "FID", ""),
)
TOLD = ("cfg", "cfg_interval", "nfe")  # of the table


class Row(TypedDict, total=False):
    """A line of the file, as far as it is read again."""

    cfg: Required[float]
    cfg_interval: Required[str]
    nfe: Required[float]
    recognised: float | None
    feature_distance: float
    effnet_kid: float
    fid: float


def sweep(
    folder: Folder,
    config: MeasureConfig,
    sampler: Sampler,
    info: Mapping[str, Any],
    judged: Mapping[str, Any],
    measure: Callable[[Sampler], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Measure all points that the file does not hold yet, then draw the picture and print the table.

    Args:
        sampler, info: of ``make_sampler``; its solver and times are made anew for each point.
        judged: what the figures depend on besides the images, as JSON has it.
        measure: the figures of a sampler's images, and their NFE.

    Returns:
        A row for each point that was asked for.

    Raises:
        ValueError: the file is of other weights, solvers, images or judges.
    """
    file = Path(config.out) if config.out else folder.samples(config, "guidance.jsonl")
    config = plain(config, sampler.method)  # one solver for all points, and no sampler that is fitted to some
    facts = {**made_by(config, sampler, info), **judged}
    log = JsonLines(file)
    kept = log.read(Row)
    for row in kept:
        check_same(file, {key: row.get(key) for key in facts}, facts, "give another --out, or delete that one")
    rows = {(row["cfg"], row["cfg_interval"]): row for row in kept}
    points = dict(points_of(config))
    print(f"{len(points)} points, {len(points.keys() & rows.keys())} of them in {file}")
    path = Path(info["path"])
    how, left = (config, fitted_weights(path, config.ema), not folder.ships(path)), {}
    for (cfg, name), interval in points.items():
        if (cfg, name) not in rows:
            made = replace(sampler, cfg=cfg, interval=interval, fitted=None, nodes=None, seed=config.sweep_seed)
            left[cfg, name] = resolved(made, *how)
            left[cfg, name].check_interval()  # before hours of work at the points before it
    for (cfg, name), made in left.items():
        print(f"cfg {cfg:g}, interval {name}")
        rows[cfg, name] = {"cfg": cfg, "cfg_interval": name, **facts, **measure(made)}
        log.append(rows[cfg, name])
    asked = [rows[point] for point in points]
    report(asked, file)
    return asked


def first_point(config: MeasureConfig) -> MeasureConfig:
    """Options of one guided point, by which weights that cannot be guided end it at once; without a sweep its own."""
    if not config.sweep_cfg:
        return config
    guided = next(cfg for cfg in config.sweep_cfg if cfg != 1)
    return replace(config, cfg=guided, cfg_interval=times_of(config.sweep_interval[0]))


def points_of(config: MeasureConfig) -> Iterator[tuple[tuple[float, str], tuple[float, float]]]:
    """(scale, name of the interval) and the interval; without guidance all intervals are one."""
    for text in config.sweep_interval:
        interval = times_of(text)
        for cfg in config.sweep_cfg:
            yield (
                (cfg, f"{interval[0]:g}..{interval[1]:g}" if cfg != 1 else "0..1"),
                interval if cfg != 1 else (0.0, 1.0),
            )


def made_by(config: MeasureConfig, sampler: Sampler, info: Mapping[str, Any]) -> dict[str, Any]:
    """What the images of all points have in common."""
    keys = ("solver", "grid", "label", "ema", "rtol", "atol", "mixed_precision")
    guide = sampler.guide.sha256 if sampler.guide else ""
    facts = {"weights_sha256": weights_hash(info["path"]), "guide_sha256": guide}
    facts |= {"landing": sampler.landing, "n_steps": sampler.n_steps}
    facts |= {key: getattr(config, key) for key in keys}
    return facts | {"seed": config.sweep_seed, "generated": config.n_samples}


def report(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Print a table, and draw a panel for each figure beside the file: lines over the scale, one for each interval."""
    figures = [panel for panel in PANELS if all(row.get(panel[0]) is not None for row in rows)]
    write_table([{key: row[key] for key in (*TOLD, *(key for key, *_ in figures))} for row in rows], "")
    free = [row for row in rows if row["cfg"] == 1]
    panels, floors = {}, {}
    for key, title, floor in figures:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["cfg"] != 1:
                line = lines.setdefault(f"guided in {row['cfg_interval']}", [(1, each[key]) for each in free])
                line.append((row["cfg"], row[key]))
        panels[title] = {name: sorted(points) for name, points in lines.items()}
        if rows[0].get(floor) is not None:
            floors[title] = rows[0][floor]
    picture = file.with_suffix(".png")
    curves(panels, picture, "guidance scale", "", floors=floors, scale="linear", floor="real images")
    print(f"rows: {file}; picture: {picture}")
