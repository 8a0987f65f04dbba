"""The page of a run: written when it ends, and again when something is measured."""

from __future__ import annotations

import base64
import io
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import save_png
from common.records.page import SHOWN_SIDE, page, write_page
from common.runtime import generator
from common.scripts import measure
from tiny import NAME, folder, images, run


def test_a_run_ends_with_a_page_that_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train_it.py", "--data", "/home/me/images.zip", "--preset", "small"])
    final = run(tmp_path / "run", total_steps=3, sample_step=1, val_step=1, image_size=8)
    text = (tmp_path / "run" / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and text.count("<svg") == 1
    assert "python train_it.py --data images.zip --preset small" in text and "total_steps: 3" in text
    assert "<li>FID</li>" in text and "images/s (median of" in text
    assert f"CPU, {torch.get_num_threads()} threads, 1 process(es)" in text
    assert json.loads((tmp_path / "run" / NAME).with_suffix(".json").read_text())["command"].startswith("python train")
    made = images()
    np.savez(tmp_path / "images.npz", images=made.images.numpy(), labels=np.arange(len(made)) % 3)
    flags = ["--weights", str(final), "--n_steps", "1", "--n_samples", "6"]
    result = measure.measure_main(folder(tmp_path), "", False, [*flags, "--epochs", "1", "--card", "--device", "cpu"])
    text = (tmp_path / "run" / "page.html").read_text()
    assert "distance by a classifier" not in text.split("Not measured")[1].split("</ul>")[0]
    assert f"{result['feature_distance']:.5g}" in text


def test_large_pictures_are_small_on_the_page(tmp_path):
    noise = torch.randint(0, 256, (900, 600, 3), generator=generator(0), dtype=torch.uint8)
    save_png(tmp_path / "samples" / "step_0000010.png", noise)
    text = page(tmp_path)
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.size == (SHOWN_SIDE * 2 // 3, SHOWN_SIDE)


EVIL = "<script>alert(1)</script>\x1b[31m&\"'"


def test_every_value_of_a_page_is_escaped(tmp_path):
    """Whatever stands in a card, a row, a name or the options: none of it is read as HTML, and no script may run."""
    out = tmp_path / "run <b>"
    picture = out / "samples" / "x<script>y.png"
    save_png(picture, torch.zeros(4, 4, 3, dtype=torch.uint8))
    measured = [{"nfe": n, "fid": 1.0, "solver": EVIL, "landing": EVIL, EVIL: EVIL, "kind": EVIL} for n in (1, 2)]
    card = {"sha256": EVIL, "measured": measured, "hardware": EVIL, "hours": 1.0, "command": EVIL}
    made = {"kind": EVIL, "metrics": {EVIL: EVIL, "fid": 2.0}, "a": {"name": EVIL, "images": 3, "made": {"grid": EVIL}}}
    for name, value in {"weights.json": card, "card.json": made}.items():
        (out / name).write_text(json.dumps(value))
    (out / "config.yaml").write_text(f"data: '{EVIL}'")
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "images_per_s": 3.0}\n')
    text = page(out)
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "run &lt;b&gt;" in text
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("c.json", {"sha256": 1, "measured": []}, "c.json is damaged, sha256: expected `str`, got `int`"),
        ("c.json", {"sha256": "a", "measured": ["ab"]}, "measured[0]: expected `object`, got `str`"),
        ("c.json", {"kind": "x", "metrics": 3}, "metrics: expected `object`, got `int`"),
        ("c.json", {"sha256": "a", "processes": "<script>"}, "processes: expected `int`, got `str`"),
        ("c.json", {"kind": "x", "metrics": {}, "a": [1]}, "a: expected `object`, got `array`"),
        ("c.json", "[" * 100_000, "c.json is damaged (RecursionError"),
        ("c.json", b"\xff\xfe{}", "c.json is damaged ('utf-8' codec"),
        ("metrics.jsonl", {"loss": 1.0}, "metrics.jsonl is damaged (line 1: object missing required field `step`)"),
        ("metrics.jsonl", {"step": 1, "loss": [1]}, "line 1, loss: expected `float | null`, got `array`"),
        ("metrics.jsonl", {"step": "x"}, "line 1, step: expected `int`, got `str`"),
        ("metrics.jsonl", "[1]", "line 1: expected `object`, got `array`"),
        ("metrics.jsonl", b'{"step": 1}\xff', "metrics.jsonl is damaged ('utf-8' codec"),
    ],
)
def test_files_of_other_shapes_are_named(tmp_path, file, content, message):
    data = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (tmp_path / file).write_bytes(data if isinstance(data, bytes) else data.encode())
    save_png(tmp_path / "samples" / "a.png", torch.zeros(4, 4, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        page(tmp_path)
    assert str(tmp_path / file) in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_finite_is_not_drawn(tmp_path):
    losses = [1.0, float("nan"), float("inf"), 0.5]
    rows = "".join(json.dumps({"step": k, "loss": loss}) + "\n" for k, loss in enumerate(losses))
    (tmp_path / "metrics.jsonl").write_text(rows)
    line = re.search(r'<polyline points="([^"]*)"', page(tmp_path))
    assert line and len(line[1].split()) == 2 and "nan" not in line[1]


@pytest.mark.parametrize("name", ["card.json", "metrics.jsonl", "samples/step_1.png"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "samples").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is no regular file"):
        page(tmp_path)


def test_half_a_character_of_a_card_is_shown(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"sha256": "", "command": "\ud800"}))
    write_page(tmp_path)
    assert r"\ud800" in (tmp_path / "page.html").read_text(encoding="utf-8")
