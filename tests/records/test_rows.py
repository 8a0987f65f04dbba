"""Logs of one JSON object per line: complete rows, after crashes too."""

from __future__ import annotations

import numpy
import torch

from common.records.rows import JsonLines


def test_json_lines(tmp_path):
    log = JsonLines(tmp_path / "run" / "metrics.jsonl")
    assert log.read() == []
    log.append({"step": 1, "loss": float("nan"), "images": numpy.float32(0.5), "t": torch.tensor(3)})
    log.append({"step": 2, "loss": 0.25, "sizes": (1, float("inf")), "name": "é", "more": {"a": None}})
    assert log.read() == [
        {"step": 1, "loss": None, "images": 0.5, "t": 3},
        {"step": 2, "loss": 0.25, "sizes": [1, None], "name": "é", "more": {"a": None}},
    ]
    assert log.path.read_text().count("\n") == 2


def test_json_lines_resume(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.truncate_after(3)  # nothing there yet
    log.append({"event": "start"})
    for step in range(1, 6):
        log.append({"step": step})
    with open(log.path, "a") as file:
        file.write('{"step": 6, "lo')  # torn by kill -9
    resumed = JsonLines(log.path)
    resumed.truncate_after(3)
    resumed.append({"step": 4, "again": True})
    assert resumed.read() == [{"event": "start"}, {"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_json_lines_appends_after_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    log = JsonLines(path)
    log.append({"step": 2})
    log.append({"step": 3})
    assert log.read() == [{"step": 1}, {"step": 2}, {"step": 3}]
