"""The page of a run: written when it ends, and again when something is measured."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import torch
from PIL import Image

from common.images import save_png
from common.records.page import SHOWN_SIDE, page
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
