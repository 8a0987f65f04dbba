"""The Markdown of tables/README.md, made from the rows of tables.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from protocols import HEADLINE, METHODS, PAIRS, VARIANTS
from published import DSBM, TONG

Row = Mapping[str, Any]
NONE = "–"


class Results:
    """The rows of the longest training, by pair, name and seed; the numbers of a network may be in several rows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.steps = max(row["steps"] for row in rows)
        self.rows = [row for row in rows if row["steps"] == self.steps]
        self.cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for row in self.rows:
            self.cells.setdefault((row["pair"], row["name"]), {}).setdefault(row["seed"], {}).update(row)

    def of(self, pair: str, name: str, key: str) -> dict[int, float]:
        """The values of a number, by seed."""
        rows = self.cells.get((pair, name), {})
        return {seed: row[key] for seed, row in sorted(rows.items()) if row.get(key) is not None}

    def above_floor(self, pair: str, name: str, key: str) -> dict[int, float]:
        """W2 less the floor of the same seed."""
        floor = self.of(pair, "floor", key.replace("w2_100", "w2_20"))
        return {seed: w2 - floor[seed] for seed, w2 in self.of(pair, name, key).items() if seed in floor}

    def pairs(self) -> list[str]:
        """Those with rows, in the order of protocols.PAIRS."""
        return [pair for pair in PAIRS if any(key[0] == pair for key in self.cells)]


def spread(values: Mapping[int, float], digits: int = 3) -> str:
    """Mean and standard deviation over the seeds; of one seed its value."""
    numbers = list(values.values())
    if not numbers:
        return NONE
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def figure(published: float | None, floor: Mapping[int, float] | None = None) -> str:
    """A published figure; with a dagger if it is below the floor by more than twice the floor's deviation."""
    if published is None:
        return NONE
    low = statistics.fmean(floor.values()) - 2 * _deviation(floor) if floor else 0.0
    return f"{published:g}{' †' if published < low else ''}"


def _deviation(values: Mapping[int, float]) -> float:
    return statistics.stdev(values.values()) if len(values) > 1 else 0.0


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def tong_table(results: Results) -> str:
    """Euler with 100 steps, 1,000 test points."""
    lines = []
    for pair in results.pairs():
        floor = results.of(pair, "floor", "w2_20")
        for name in METHODS:
            w2 = results.of(pair, name, "w2_100")
            if w2:
                paper = TONG.get((pair, name), (None, None))
                npe = spread(results.of(pair, name, "npe_100"))
                above = spread(results.above_floor(pair, name, "w2_100"))
                line = [pair, name, spread(w2), spread(floor), above, figure(paper[0], floor), npe, figure(paper[1])]
                lines.append([*line, str(len(w2))])
    head = ["pair", "method", "W2", "floor", "W2 - floor", "W2 published", "NPE", "NPE published", "seeds"]
    return table(head, lines)


def dsbm_table(results: Results) -> str:
    """Euler with 20 steps: 10,000 test points where measured, and 1,000."""
    lines = []
    for pair in results.pairs():
        small, large = (results.of(pair, "floor", key) for key in ("w2_20", "w2_20_large"))
        for name in [*METHODS, *(name for name in HEADLINE if name not in METHODS)]:
            w2 = results.of(pair, name, "w2_20")
            if w2:
                paper = DSBM.get((pair, name), (None, None))
                big = results.of(pair, name, "w2_20_large")
                line = [pair, name, spread(big), spread(large), figure(paper[0], large), spread(w2), spread(small)]
                energy = results.of(pair, name, "energy_20")
                lines.append([*line, spread(energy, 2), figure(paper[1]), str(len(w2))])
    head = ["pair", "method", "W2, 10,000 points", "floor", "published", "W2, 1,000 points", "floor"]
    return table([*head, "path energy", "published", "seeds"], lines)


def improvement_table(results: Results, key: str) -> str:
    """Each change of OT-CFM: a W2 as a share of OT-CFM's, of the same seeds and test points."""
    lines = []
    for name in ["OT-CFM + EMA", *(f"{variant}{average}" for variant in VARIANTS for average in ("", " + EMA"))]:
        ratios = [_ratio(results, pair, name, key) for pair in results.pairs()]
        if any(ratios):
            every = [value for ratio in ratios for value in ratio.values()]
            line = [name.removeprefix("OT-CFM + "), f"{statistics.fmean(every):.3f}", *map(spread, ratios)]
            lines.append([*line, str(max(map(len, ratios)))])
    return table(["change", "mean", *results.pairs(), "seeds"], lines)


def _ratio(results: Results, pair: str, name: str, key: str) -> dict[int, float]:
    base = results.of(pair, "OT-CFM", key)
    return {seed: value / base[seed] for seed, value in results.of(pair, name, key).items() if seed in base}


def verdict_table(results: Results) -> str:
    """Whether OT-CFM here is as good as the published OT-CFM, 20 steps and 10,000 test points."""
    lines = []
    for pair in results.pairs():
        paper = DSBM[pair, "OT-CFM"][0]
        measured = [results.of(pair, name, "w2_20_large") for name in HEADLINE]
        if paper is not None and any(measured):
            floor = results.of(pair, "floor", "w2_20_large")
            line = [pair, figure(paper, floor), spread(floor)]
            for w2 in measured:
                line += [spread(w2), verdict(w2, paper)]
            lines.append([*line, str(len(measured[0]))])
    head = ["pair", "published OT-CFM", "floor"]
    for name in HEADLINE:
        head += [name, "as good?"]
    return table([*head, "seeds"], lines)


def verdict(w2: Mapping[int, float], published: float) -> str:
    """yes: the mean is not above the published figure; within the spread: less than one standard deviation above."""
    if not w2:
        return NONE
    mean = statistics.fmean(w2.values())
    if mean <= published:
        return "yes"
    return "within the spread" if mean - _deviation(w2) <= published else "no"


def hours(rows: Iterable[Row]) -> float:
    """Time of all rows, in hours; networks that were trained together share their seconds."""
    together = {(row["pair"], row["seed"], row["seconds"]) for row in rows if "trained_together" in row}
    alone = sum(row["seconds"] for row in rows if "trained_together" not in row)
    return (sum(seconds for _, _, seconds in together) + alone) / 3600


def provenance(results: Results) -> str:
    """Commands, commits, machine, seeds and hours."""

    def distinct(of: Callable[[Row], str]) -> str:
        return ", ".join(f"`{text}`" for text in dict.fromkeys(map(of, results.rows)) if text)

    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in results.rows}))
    return (
        f"Command {distinct(lambda row: row['command'])}; seeds {seeds}; {results.steps:,} steps; "
        f"commit {distinct(lambda row: row['commit'])}; {distinct(lambda row: row['hardware'])}; "
        f"{hours(results.rows):.1f} hours for all networks, trained side by side, and their tests."
    )


HEAD = """# Published 2D tables, measured again

Written by `python 2D-toys/tables.py`; edit `table_text.py`, not this file.

W2 is the exact 2-Wasserstein distance between generated and real points, mean ± standard deviation over the seeds.
**Floor** is W2 between two sets of real points, as many as are tested (of 1,000: the mean over ten sets against the
same test points): no method can be expected below it. A published figure below it by more than twice its deviation (†)
was not measured on points like these. The floor is high where the number of points in a mode, or along a curve, is left
to chance.
NPE, the normalised path energy, is |E int |v|^2 dt - W2^2| / W2^2 with the W2 between source and target: 0 for optimal
transport.
"""

SETTINGS = """## What was done

Data and training are those of the code published by Tong et al.: 10,000 training points, a batch of 512, 1000 epochs of
the 19 whole batches, AdamW 1e-3 with weight decay 1e-5 and a constant rate, an MLP with 3 layers of 64 and SELU, sigma
0.1 (OT-CFM, CFM, FM), 0 (RF), 1 (SB-CFM), 0.2 (IDFF). FM is defined for a Gaussian source only. RF is its first flow,
without reflow. OT-CFM and IDFF use the exact assignment of each batch, SB-CFM draws from the Sinkhorn plan with
regularisation 2 sigma^2. IDFF has two heads; its ODE is sampled with its velocity and its last step lands on the data
head, as in `common.generate.Sampler`.

| data | definition |
|---|---|
| N | standard normal, fresh in every batch |
| 8gaussians (from N) | 8 standard normals on a circle of radius 5, equally many points in each |
| moons (from N) | scikit-learn's, noise 0.05, times 2, moved by -1 in x |
| s-curve | scikit-learn's, noise 0.05, its first and third coordinate times 1.5 |
| moons (to 8gaussians) | scikit-learn's, noise 0.1, standardised as a whole, times 7 |
| 8gaussians (from moons) | 8 normals of spread 1.5 on a circle of radius 12, at random |

All networks of a pair and a seed see the same batches, times and noise. Test points are drawn like training points, so
that the number in each mode or half is left to chance, as by the random split in the published code; test points
balanced by hand would have a lower floor. Where W2 on 1,000 points is far from the published figure while NPE agrees,
the published test must have had other points; which could not be found out.

Published figures: Tong et al. 2302.00482 and Shi et al. 2303.16852, table 2, both quoted second-hand. Tong et al.'s
could not be checked against the paper; what is inferred about Shi et al.'s data and test size stands in `published.py`.
"""


def markdown(rows: Iterable[Row]) -> str:
    """The whole file.

    Args:
        rows: dictionaries as tables.py writes them; of trainings of different length the longest counts.
    """
    results = Results(rows)
    parts = [HEAD, provenance(results) + "\n", "## As good as the published OT-CFM?\n"]
    parts += ["20 Euler steps, 10,000 test points.\n", verdict_table(results)]
    parts += ["## Protocol of Tong et al.: 100 Euler steps, 1,000 test points\n", tong_table(results)]
    parts += ["## Protocol of DSBM: 20 Euler steps\n", dsbm_table(results)]
    parts += ["## What improves OT-CFM\n", IMPROVEMENTS]
    for title, key in (("10,000", "w2_20_large"), ("1,000", "w2_20"), ("1,000 validation", "w2_20_validation")):
        parts += [f"{title} points:\n", improvement_table(results, key)]
    return "\n".join([*parts, SETTINGS])


IMPROVEMENTS = """W2 with 20 steps as a share of OT-CFM's (below 1 is better) with the same seed, batches and test
points, each change alone and together; mean ± standard deviation over the seeds. With 1,000 points chance decides much
of it. The combination compared above was fixed beforehand, so nothing was chosen by its test points.

* **EMA**: average of the weights, decay 0.999. **cosine**: learning rate falling to 0.
* **sigma 0**: no noise around the straight path, which otherwise blurs the target by sigma.
* **x1**: the network estimates x1 and v = (x1_hat - x) / (1 - t); needs sigma 0, so compare it with that.
* **coupling 128**: exact assignments within blocks of 128 pairs instead of 512.
"""
