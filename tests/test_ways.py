"""benchmarks/ways.py: what trainings cost in forward passes, and rows from cards."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from common.records.rows import JsonLines
from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import ways  # type: ignore[import-not-found]

NO_TEACHER = {"method": "ect", "teacher_cfg": None, "teacher_steps": None, "teacher_noises": 8192}
FIGURES = {
    "solver": "consistency",
    "feature_distance": 0.5,
    "recognised": 0.75,
    "generated": 10,
    "seed": 0,
    "commit": "c",
}


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        ({}, 400),  # one call without gradient, one with, which counts as three
        ({"method": "flowmap", "teacher_cfg": 1.0}, 500),  # the teacher's velocity
        ({"method": "meanflow"}, 700),  # and a forward derivative
        ({"method": "rf"}, 300),  # a flow
        ({"teacher_cfg": 1.4}, 600),  # with labels and without
        ({"teacher_cfg": 1.4, "teacher_steps": 12}, 8192 * 12 * 2 + 300),  # trajectories first, then a regression
    ],
)
def test_the_cost_of_a_hundred_images(changed, passes):
    assert ways.passes(NO_TEACHER | changed, 100) == passes


def test_figures_of_a_card_become_rows_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "ROWS", tmp_path / "ways.jsonl")
    run = tmp_path / "run"
    run.mkdir()
    (run / "w_step_final.pt").touch()
    (run / "config.yaml").write_text(yaml.safe_dump(NO_TEACHER))
    card = {"images_seen": 100, "hours": 0.5, "hardware": "a CPU", "seed": 3}
    with pytest.raises(ValueError, match="no figures: python mnist/measure.py"):
        (run / "w_step_final.json").write_text(json.dumps(card))
        ways.add("ECT", run)
    card["measured"] = [{**FIGURES, "nfe": 1}, {**FIGURES, "nfe": 2, "feature_distance": 0.25}]
    (run / "w_step_final.json").write_text(json.dumps(card))
    ways.add("ECT", run)
    ways.add("ECT", run)
    rows = JsonLines(ways.ROWS).read()
    about = [(row["way"], row["passes"], row["minutes"], row["training_seed"], row["nfe"]) for row in rows]
    assert about == [("ECT", 400, 30.0, 3, 1), ("ECT", 400, 30.0, 3, 2)]
    assert "| ECT | 0.00 | 100 | 1 | 0.500, 75.0% | 0.250, 75.0% |  |  |" in ways.table(rows)
    other = {**rows[1], "training_seed": 4, "feature_distance": 0.75, "recognised": 0.85}
    assert "| ECT | 0.00 | 100 | 2 | 0.500, 75.0% | 0.500, 80.0% |  |  |" in ways.table([*rows, other])


@pytest.mark.parametrize(("name", "run"), [("", "runs/x"), ("ECT", "")])
def test_a_row_needs_a_name_and_a_run(name, run):
    with pytest.raises(ValueError, match="^add: give --name, .* and --run"):
        ways.add(name, Path(run))


def test_a_card_from_before_there_were_teachers():
    assert ways.passes({"method": "rf"}, 100) == 300
