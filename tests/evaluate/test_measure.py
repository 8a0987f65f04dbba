"""A folder's images measured by its classifier, or by Inception."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.loading import ImageData, load_images
from common.evaluate import classifier, features, figures
from common.evaluate import sets as feature_sets
from common.metrics import frechet_distance, gaussian_statistics
from common.runtime import generator
from common.scripts import measure
from tiny import ROOT, folder, images

# ---- classifier


def test_shifts_move_images_by_whole_pixels():
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    draw = generator(3)
    dy, dx = torch.randint(0, 3, (2, 2), generator=generator(3)).tolist()
    moved = classifier.shifted(x, 1, draw)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    for k in range(2):
        assert torch.equal(moved[k], padded[k, :, dy[k] : dy[k] + 4, dx[k] : dx[k] + 5])
    assert torch.equal(classifier.shifted(x, 0, draw), x)


@pytest.mark.parametrize("residual", [False, True])
def test_a_classifier_learns_and_is_the_same_from_its_file(tmp_path, residual):
    y = torch.arange(120) % 3
    noise = torch.randn(120, 3, 16, 16, generator=generator(0))
    x = (noise + torch.eye(3)[y][:, :, None, None] * 2).mul(30).add(100).clamp(0, 255).to(torch.uint8)
    data = ImageData(x, y, ("red", "green", "blue"), "colours")
    net = classifier.train_classifier(data, 10, True, batch_size=30, width=8, residual=residual, precision="bf16")
    rows, classes = classifier.classify(net, x)
    assert (classes == y).float().mean() > 0.95 and rows.shape == (120, 56 if residual else 32)
    classifier.save_classifier(tmp_path / "c.pt", net, 0.75, "colours", "a mark")
    again, accuracy, mark = classifier.load_classifier(tmp_path / "c.pt")
    assert (accuracy, mark) == (0.75, "a mark") and again.arguments == net.arguments
    torch.testing.assert_close(classifier.classify(again, x)[0], rows, rtol=1e-2, atol=1e-2 * rows.std().item())


def test_shipped_classifiers_are_as_good_as_they_say():
    for name, channels, least in (("mnist", 1, 0.98), ("cifar10", 3, 0.85)):
        net, accuracy, mark = classifier.load_classifier(ROOT / name / "results" / "classifier.pt")
        assert accuracy > least and mark and net.arguments["channels"] == channels
        assert net(torch.zeros(2, channels, 32, 32)).shape == (2, 10)


# ---- Inception


def test_figures_of_inception_are_those_of_its_features(tmp_path):
    """A small network stands for Inception: a distance in 2048 dimensions takes seconds."""
    matrix = torch.randn(3 * 64, 4, generator=generator(0))

    def rows(x):
        return x.flatten(1).float() @ matrix / 255

    network = features.FeatureNetwork(lambda x: (rows(x), rows(x)), features.INCEPTION, "hash", "none")
    real, fake = (images(n, 8, 3).images for n in (12, 8))
    found = figures.reference(network, real, tmp_path / "known").measure(fake)
    a, b = (gaussian_statistics(rows(x)) for x in (fake, real))
    assert found["fid"] == pytest.approx(frechet_distance(*a, *b), rel=1e-9)
    assert {"kid", "precision", "recall", "inception_score"} <= found.keys() and found["fid_real"] == 12
    kept = list((tmp_path / "known").glob("*.npz"))
    assert len(kept) == 1 and feature_sets.load_statistics(kept[0], network).count == 12
    again = figures.reference(network, real, tmp_path / "known").measure(fake)
    assert again == found and list((tmp_path / "known").glob("*.npz")) == kept
    grey = feature_sets.set_of(fake[:, :1], "grey images")
    assert next(iter(grey.batches(8))).equal(fake[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"the images must be uint8 .*, not torch.float32 \(1, 3, 8, 8\)"):
        feature_sets.set_of(torch.zeros(1, 3, 8, 8), "the images")


def test_measuring_with_inception_needs_its_weights_before_all_else(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for given in ("cache", "gone.pth"):
        with pytest.raises(FileNotFoundError, match="nception weights.*download https"):
            measure.measure_main(folder(tmp_path), "", False, ["--inception", given, "--device", "cpu"])


# ---- data that are not what the classifier was trained on


def dark_and_bright(path, count: int = 40, seed: int = 0) -> str:
    """Images of two classes without a split."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) // 2 % 2
    pixels = (labels[:, None, None] * 150 + draw.integers(0, 60, (count, 8, 8))).astype(np.uint8)
    np.savez(path, images=pixels, labels=labels)
    return str(path)


def test_a_part_is_held_out_where_there_is_no_test_split(tmp_path, capsys):
    spec = dark_and_bright(tmp_path / "one.npz")
    train, test = classifier.real_images(lambda split: load_images(spec, 8, 1, split=split, progress=False), True)
    assert (len(train), len(test)) == (32, 8) and "every fifth image is held out" in capsys.readouterr().out
    whole = np.load(spec)["images"]
    assert np.array_equal(test.images[:, 0].numpy(), whole[4::5])
    assert not {row.tobytes() for row in train.images.numpy()} & {row.tobytes() for row in test.images.numpy()}


def test_a_kept_classifier_belongs_to_its_data(tmp_path, capsys):
    def recogniser(spec: str, **options) -> classifier.Recogniser:
        parts = classifier.real_images(lambda split: load_images(spec, 8, 1, split=split, progress=False), True)
        return classifier.make_recogniser(*parts, path, epochs=1, batch_size=8, width=8, **options)

    one, other = (dark_and_bright(tmp_path / f"{seed}.npz", seed=seed) for seed in range(2))
    path = tmp_path / "classifier.pt"
    first = recogniser(one)
    made = path.read_bytes()
    capsys.readouterr()
    assert recogniser(one).accuracy == first.accuracy and "trained on other" not in capsys.readouterr().out
    net, _, mark = classifier.load_classifier(path)
    classifier.save_classifier(path, net, 0.123, "one", mark)  # an accuracy that other data must not be told
    assert recogniser(one).accuracy == 0.123
    assert recogniser(other).accuracy != 0.123 and "was trained on other images" in capsys.readouterr().out
    assert path.read_bytes() != made and classifier.load_classifier(path)[1] == 0.123  # left alone
    assert len(list(tmp_path.glob("classifier-*.pt"))) == 1
    recogniser(other)
    assert len(list(tmp_path.glob("classifier-*.pt"))) == 1
    assert recogniser(other, asked_for=True).accuracy != 0.123  # the user's own choice: measured here
    assert "note: " in capsys.readouterr().out
