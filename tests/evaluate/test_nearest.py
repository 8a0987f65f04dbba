"""Training images that come again are found among samples; held-out images are not taken for them."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from common.evaluate import nearest
from common.evaluate.classifier import Classifier, classify
from common.runtime import generator
from common.scripts.measure import learnt_and_held_out, measure_main, memorised
from tiny import folder, images, options, run


def drawn(name: str, count: int, size: int = 16) -> torch.Tensor:
    return torch.randn(count, size, generator=generator(0, name))


def test_nearest_rows_and_their_distances():
    rows, bank = drawn("rows", 300), drawn("bank", 500)
    found = nearest.nearest(rows, bank)
    distances, places = torch.cdist(rows.double(), bank.double()).sort(1)
    assert found.places.equal(places[:, :3])
    torch.testing.assert_close(found.distances, distances[:, :3].float())
    far = bank + 1000  # where products of float32 have no digits left for a distance of 0
    assert nearest.nearest(far[:7], far).distances[:, 0].tolist() == [0.0] * 7
    assert nearest.nearest(rows, bank[:2]).distances.shape == (300, 2)


def test_copies_are_named_and_others_are_as_near_as_held_out_images():
    training, held_out = drawn("training", 4000), drawn("held out", 2000)
    figures, found, _ = nearest.compare(torch.cat([training[40:50], drawn("samples", 990)]), training, held_out)
    assert figures["copies"] == 10 and figures["copies_held_out"] == 0
    assert found.places[:10, 0].tolist() == list(range(40, 50)) and found.distances[:10, 0].max() == 0
    assert 0.01 <= figures["nearer_than_1_percent"] <= 0.03  # 10 copies, and 1% of the others
    assert figures["median_distance"] == pytest.approx(figures["median_distance_held_out"], rel=0.03)
    with pytest.raises(ValueError, match="there are none"):
        nearest.compare(training, training, held_out[:0])


def test_copied_images_are_found_by_the_features_of_a_classifier(tmp_path, capsys):
    data = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=generator(0))
    training, held_out, net = data[:40], data[40:50], Classifier(1, 3, 8).eval()
    samples = torch.cat([training[[5, 7]], data[50:]])
    figures = memorised(str(tmp_path / "n.png"), samples, (training, held_out), lambda x: classify(net, x)[0])
    assert (figures["copies"], figures["copies_held_out"]) == (2, 0) and Image.open(tmp_path / "n.png").width > 600
    assert "copies: 2" in capsys.readouterr().out


def test_a_measurement_takes_the_split_of_the_weights_own_run(tmp_path, capsys):
    place = folder(tmp_path, options(num_classes=3))
    weights = run(tmp_path / "run", num_classes=3, total_steps=1)
    flags = ["--smoke", "--n_samples", "8", "--n_steps", "1", "--epochs", "1", "--nearest", str(tmp_path / "n.png")]
    result = measure_main(place, "", False, ["--weights", str(weights), *flags])
    assert result["nearest"]["training_images"] == 58 and result["nearest"]["held_out_images"] == 6  # a tenth of 64
    assert json.dumps(result["nearest"]) and Image.open(tmp_path / "n.png").format == "PNG"
    train, test = images(12), images(5)
    unknown = learnt_and_held_out({}, lambda split: pytest.fail("not needed"), train, test)
    assert unknown[0] is train.images and unknown[1] is test.images and "note: the weights" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--nearest is for one measurement"):
        measure_main(place, "", False, [*flags, "--sweep_cfg", "1", "2"])
