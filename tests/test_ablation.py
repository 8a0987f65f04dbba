"""benchmarks/ablation.py: which runs stand in one table, and which are measured already."""

from __future__ import annotations

import sys

import pytest

from common import cli
from common.records.rows import JsonLines
from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation  # type: ignore[import-not-found]


def test_runs_of_another_setting_are_neither_taken_for_measured_nor_averaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    monkeypatch.setattr(ablation, "load_data", lambda *args: None)
    monkeypatch.setattr(ablation, "measures", lambda *args: None)
    made = []

    def one(options, variant, seed, data, measure, out):
        made.append(out.name)
        return {"variant": variant, "seed": seed, **ablation.setting_of(options), **figures}

    figures = dict.fromkeys(ablation.COLUMNS.values(), 1.0)
    monkeypatch.setattr(ablation, "one", one)
    plain = ablation.Options(variants=("paper",), seeds=(0,))
    half = ablation.Options(variants=("paper",), seeds=(0,), mixed_precision="bf16")
    for options in (plain, plain, half, half):
        ablation.run(options)
    assert len(made) == len({*made}) == len(JsonLines(tmp_path / "mnist.jsonl").read()) == 2
    ablation.print_tables()
    assert capsys.readouterr().out.count("###") == 2


def test_a_run_has_a_length():
    with pytest.raises(ValueError, match="^--minutes none: give a length by --total_steps"):
        cli.parse(ablation.Options, argv=["--minutes", "none"])
    assert cli.parse(ablation.Options, argv=["--total_steps", "5"]).minutes is None
