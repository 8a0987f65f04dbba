"""A sweep of guidance: which points it measures, what it keeps, when it goes on, and its picture."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from common.generate import Sampler
from common.scripts.measure import measure_main
from tiny import folder, images, options, weights

CONDITIONAL = options(num_classes=3)
SWEEP = "--sweep_cfg 1 2 --sweep_interval 0..1 0.3..0.8 --device cpu --n_samples 6 --n_steps 4 --epochs 1".split()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with weights and images, the rows of a sweep there, and what it printed."""
    here = tmp_path_factory.mktemp("folder")
    weights(here / "results" / "shipped.pt", CONDITIONAL)
    np.savez(here / "images.npz", images=images(40).images.numpy(), labels=np.arange(40) % 3)
    place = folder(here, CONDITIONAL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        rows = measure_main(place, "", False, SWEEP)
    return place, rows, out.getvalue()


def test_each_point_is_measured_once_and_as_alone(swept):
    place, rows, out = swept
    file = place.here / "samples" / "guidance.jsonl"
    assert [(row["cfg"], row["cfg_interval"], row["nfe"]) for row in rows] == [
        (1, "0..1", 4), (2, "0..1", 8), (2, "0.3..0.8", 6),
    ]  # fmt: skip
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert {row["seed"] for row in rows} == {1} and {row["solver"] for row in rows} == {"unipc2"}
    alone = "--cfg 2 --cfg_interval 0.3 0.8 --solver unipc2 --seed 1".split()
    single = measure_main(place, "", False, [*alone, *SWEEP[SWEEP.index("--device") :]])
    assert {key: single[key] for key in ("recognised", "nfe")} == {key: rows[-1][key] for key in ("recognised", "nfe")}
    assert single["feature_distance"] == pytest.approx(rows[-1]["feature_distance"], rel=1e-4)
    assert "| cfg | cfg_interval | nfe | recognised | feature_distance |" in out and "3 points, 0 of them in" in out
    assert np.asarray(Image.open(file.with_suffix(".png"))).std() > 10


def test_it_goes_on_where_it_was_stopped_with_the_same_settings_only(swept, tmp_path, monkeypatch, capsys):
    place, whole, _ = swept
    lines = (place.here / "samples" / "guidance.jsonl").read_text().splitlines(keepends=True)
    file = tmp_path / "stopped.jsonl"
    file.write_text("".join(lines[:2]) + lines[2][:20])  # in the middle of a line
    made, sample = [], Sampler.from_noise
    monkeypatch.setattr(Sampler, "from_noise", lambda self, *rows: (made.append(self.interval), sample(self, *rows))[1])
    again = measure_main(place, "", False, [*SWEEP, "--out", str(file)])
    assert made == [(0.3, 0.8)] and "3 points, 2 of them in" in capsys.readouterr().out
    assert [row["nfe"] for row in again] == [row["nfe"] for row in whole] and again[:2] == whole[:2]
    for flags, match in (
        (["--n_steps", "5"], "n_steps 4 there and 5 now; give another --out, or delete that one"),
        (["--sweep_seed", "2", "--solver", "euler"], "solver unipc2 there and euler now, seed 1 there and 2 now"),
        (["--guide", str(weights(tmp_path / "worse.pt", CONDITIONAL, seed=1))], "guide_sha256  there and"),
    ):
        with pytest.raises(ValueError, match=match):
            measure_main(place, "", False, [*SWEEP, "--out", str(file), *flags])


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ("--sweep_cfg 1 2 --sweep_interval 0.9..0.1", "--sweep_interval 0.9..0.1: give two times from 0"),
        ("--sweep_cfg 1 2 --sweep_interval 0..2", "--sweep_interval 0..2: give two times from 0"),
        ("--sweep_cfg 1 2 --sweep_interval 0.1-0.9", "--sweep_interval 0.1-0.9: write FROM..TO"),
        ("--sweep_cfg -1", "--sweep_cfg -1.0: must be at least 0"),
        ("--sweep_cfg 1", "--sweep_cfg 1 alone is no guidance"),
        ("--sweep_cfg 2 --cfg 2", "leave --cfg and --cfg_interval out"),
        ("--sweep_cfg 2 --card", "--card is for one measurement"),
        ("--sweep_cfg 2 --out a.json", "--out a.json: the rows of a sweep go to a name that ends in .jsonl"),
        ("--sweep_cfg 2 --seed 1", "--sweep_seed 1 is --seed"),
        ("--sweep_interval 0.1..0.9", "--sweep_interval without a sweep"),
        ("--sweep_seed 4", "--sweep_seed without a sweep"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, match):
    with pytest.raises(ValueError, match=match):
        measure_main(folder(tmp_path), "", False, flags.split())


def test_an_interval_that_guides_nothing_ends_it_before_the_first_point(swept, tmp_path):
    flags = ["--sweep_interval", "0..1", "0.8..0.9", "--out", str(tmp_path / "rows.jsonl")]
    with pytest.raises(ValueError, match=r"--cfg_interval 0.8 0.9 guides none of the 4 steps"):
        measure_main(swept[0], "", False, [*SWEEP, *flags])
    assert not (tmp_path / "rows.jsonl").exists()


def test_weights_that_cannot_be_guided_end_it_before_the_data_are_read(tmp_path):
    weights(tmp_path / "results" / "shipped.pt")
    with pytest.raises(ValueError, match="--cfg 2.0 needs class-conditional weights"):
        measure_main(folder(tmp_path), "", False, ["--sweep_cfg", "1", "2", "--device", "cpu"])
