"""``python -m common.evaluate``: the same figures from every kind of set, cards, tables, pages, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common import checkpoint, metrics
from common.data.synthetic import synthetic_images
from common.evaluate import comparison, features, scores
from common.evaluate import sets as feature_sets
from common.evaluate.__main__ import main
from common.images import open_writer, save_png
from common.records.page import page
from common.records.rows import JsonLines
from common.runtime import run_main
from nets import random_inception
from tiny import ROOT, options, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is on its way out of torch

CPU = ["--device", "cpu", "--num_workers", "1"]


class Small(nn.Module):
    """Means of the four quarters of an image and of its square: 24 features."""

    def forward(self, x: Tensor) -> Tensor:
        pool = torch.nn.functional.adaptive_avg_pool2d
        return torch.cat([pool(x, 2), pool(x * x, 2)], 1).flatten(1)


class Broken(nn.Module):
    """NaN for dark images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5].sqrt()


def script(net: nn.Module, path):
    torch.jit.save(torch.jit.script(net), str(path))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two sets of images as folders, the first also as .npz and .zip, and a network."""
    here = tmp_path_factory.mktemp("sets")
    for name, seed in (("a", 0), ("b", 1)):
        data = synthetic_images(40, 8, 3, 3, seed)
        writer = open_writer(here / name, 40, (3, 8, 8), {"weights": "/far/away/w.pt", "solver": "heun", "n_steps": 5})
        for k, image in enumerate(data.images):
            writer.write(k, image)
        np.savez(here / f"{name}.npz", arr_0=data.images.permute(0, 2, 3, 1).numpy())
    with zipfile.ZipFile(here / "a.zip", "w") as archive:
        for k, file in enumerate(sorted((here / "a").glob("*.png"), reverse=True)):
            archive.write(file, f"{k:03d}.png")  # in another order
    script(Small(), here / "net.pt")
    return here


def go(place, *words, small=True, net="net.pt"):
    """The card of a command line; words with an @ at the front are paths below ``place``."""
    words = [str(place / word[1:]) if word.startswith("@") else word for word in words]
    first = next((k for k, word in enumerate(words) if word.startswith("--")), len(words))
    flags = ["--features", str(place / net), "--resamples", "2", "--kid_subsets", "2", *CPU]
    return main([*words[:first], *(["--small"] if small else []), *flags, *words[first:]])


def close(found, want) -> None:
    """The same figures to 1e-6, also inside lists and mappings."""
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        for key in want:
            close(found[key], want[key])
    else:
        assert found == pytest.approx(want, rel=1e-6, abs=1e-9)


def line_of(capsys, action) -> str:
    """The one line that a refused command ends with, at exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        run_main(action)
    text = [part for part in capsys.readouterr().err.splitlines() if part.startswith("error:")]
    assert raised.value.code == 2 and len(text) == 1
    return text[0]


# ---- figures


def test_the_figures_are_those_of_the_features(place):
    figures = go(place, "@a", "@b")["metrics"]
    sets = []
    for name in "ab":
        pixels = np.load(place / f"{name}.npz")["arr_0"]
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
        sets.append(Small()(x))
    want = metrics.frechet_distance(*metrics.gaussian_statistics(sets[0]), *metrics.gaussian_statistics(sets[1]))
    assert figures["frechet_distance"] == pytest.approx(want, rel=1e-5) and want > 0.01
    precision, recall = scores.precision_recall(sets[1], sets[0])
    assert (figures["precision"], figures["recall"]) == (precision, recall)
    whole = metrics.kernel_distance(sets[0], sets[1], 1, 40)[0]  # 40 of 40 rows: every subset is the set
    assert figures["kernel_distance"] == pytest.approx(whole, rel=1e-4)
    assert "fid" not in figures and figures["frechet_distance_of_halves"]["size"] == 20


@pytest.mark.parametrize("words", [["@a.npz"], ["@a.zip"], ["@a", "--batch_size", "7"]], ids=["npz", "zip", "batches"])
def test_kind_of_file_order_and_batches_do_not_matter(place, words):
    want, found = go(place, "@a", "@b"), go(place, words[0], "@b", *words[1:])
    assert found["a"]["content"] == want["a"]["content"] != want["b"]["content"]
    close(found["metrics"], want["metrics"])


def test_a_sample_of_the_features_does_not_depend_on_the_order_either(place):
    want, found = (go(place, name, "@b", "--kept", "11")["metrics"] for name in ("@a", "@a.zip"))
    close(found, want)
    assert want["manifolds"] == [11, 11]
    other = go(place, "@a", "@b", "--kept", "11", "--seed", "1")["metrics"]
    assert other["kernel_distance"] != pytest.approx(want["kernel_distance"], rel=1e-3)
    assert other["frechet_distance"] == pytest.approx(want["frechet_distance"], rel=1e-6)


def test_images_from_a_generator_need_no_files(place):
    net = features.torchscript_network(place / "net.pt")
    data = synthetic_images(40, 8, 3, 3, 0).images
    found = feature_sets.collect(iter(data.split(9)), net, keep=10)
    want = feature_sets.collect(feature_sets.open_set(str(place / "a")).batches(4), net, keep=10)
    assert found.content == want.content and torch.equal(found.rows, want.rows) and found.count == 40
    torch.testing.assert_close(found.cov, want.cov, rtol=1e-6, atol=1e-12)
    grey = feature_sets.collect([data[:, :1]], net)
    assert grey.content == feature_sets.collect([data[:, :1].repeat(1, 3, 1, 1)], net).content


@pytest.mark.parametrize(("pixels", "low", "high"), [("signed", -1, 1), ("unit", 0, 1), ("bytes", 0, 255)])
def test_what_a_torchscript_network_is_given(tmp_path, pixels, low, high):
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).amin(1).float(), x.flatten(1).amax(1).float()], 1)

    net = features.torchscript_network(script(Ends(), tmp_path / "ends.pt"), pixels=pixels)
    images = torch.tensor([0, 255, 7, 99], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(2, 3, 2, 2)
    rows, logits = net.run(images)
    assert rows.tolist() == [[low, high]] * 2 and logits is None


def test_network_and_side_are_applied_as_said(place):
    class Side(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([float(x.shape[2]), float(x.shape[3])]).repeat(x.shape[0], 1) + 0 * x.mean()

    file = script(Side(), place / "side.pt")
    network = features.torchscript_network(file, side=12)
    assert network.run(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))[0][0].tolist() == [12, 12]
    assert "12x12" in network.resize
    images = feature_sets.open_set(str(place / "a.npz"), side=4)
    assert next(images.batches(5)).shape == (5, 3, 4, 4)


# ---- statistics and cache


def test_statistics_take_the_place_of_the_images(place, tmp_path, capsys):
    assert go(place, "@b", "--save", str(tmp_path / "b.npz")) == {}
    want, found = go(place, "@a", "@b"), go(place, "@a", str(tmp_path / "b.npz"))
    close(found["metrics"], want["metrics"])
    assert found["b"]["images"] == 40
    assert found["b"]["content"] == want["b"]["content"] and found["b"]["name"] == "b.npz"
    with np.load(tmp_path / "b.npz") as file:  # as pytorch-fid reads it
        mean, cov = metrics.gaussian_statistics(Small()(torch.from_numpy(np.load(place / "b.npz")["arr_0"])
                                                        .permute(0, 3, 1, 2) / 127.5 - 1))  # fmt: skip
        np.testing.assert_allclose(file["mu"], mean, atol=1e-6)
        np.testing.assert_allclose(file["sigma"], cov, atol=1e-6)


def test_statistics_that_are_refused(place, tmp_path, capsys):
    go(place, "@b", "--save", str(tmp_path / "b.npz"))
    script(nn.Sequential(Small(), nn.Linear(24, 24)), place / "other.pt")
    refusal = line_of(capsys, lambda: go(place, "@a", str(tmp_path / "b.npz"), net="other.pt"))
    assert "holds statistics of another network (weights " in refusal
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(24), sigma=np.eye(24))
    refusal = line_of(capsys, lambda: go(place, "@a", str(tmp_path / "theirs.npz")))
    assert "does not say which network" in refusal and "--foreign_statistics" in refusal
    card = go(place, "@a", str(tmp_path / "theirs.npz"), "--foreign_statistics")
    assert card["metrics"]["frechet_distance"] > 1 and "precision" not in card["metrics"]
    assert any("unknown origin" in text for text in card["warnings"])


def test_a_pickle_is_never_read(place, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (print, ("the pickle ran",))

    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "inside.npz", mu=np.array([Bomb()], dtype=object), sigma=np.eye(1))
    for name, text in (("bare", "not a readable .npz"), ("inside", "needs unpickling, which can run code")):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run_main(lambda: go(place, "@a", str(tmp_path / f"{name}.npz")))
        shown = capsys.readouterr()
        assert text in shown.err and "the pickle ran" not in shown.out + shown.err


def test_the_cache_knows_images_by_their_pixels(place, tmp_path, monkeypatch):
    cache = ["--cache", str(tmp_path / "cache")]
    want = go(place, "@a", "@b", *cache)
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2
    monkeypatch.setattr(feature_sets, "collect", None)  # no network any more
    close(go(place, "@a.zip", "@b", *cache)["metrics"], want["metrics"])
    monkeypatch.undo()
    go(place, "@a", "@b", *cache, "--seed", "3")
    script(nn.Sequential(Small(), nn.Linear(24, 8)), place / "third.pt")
    go(place, "@a", "@b", *cache, net="third.pt")
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 6


# ---- cards


def test_a_card_says_how_its_numbers_came_about(place, tmp_path, capsys):
    card = go(place, "@a", "@b", "--out", str(tmp_path / "card.json"))
    assert json.loads((tmp_path / "card.json").read_text()) == card
    text = json.dumps(card)
    assert str(place) not in text and str(tmp_path) not in text and "/far/away" not in text
    assert card["a"]["made"] == {"weights": "w.pt", "solver": "heun", "n_steps": 5, "shape": [3, 8, 8]}
    assert card["backend"] == "TorchScript" and len(card["weights"]) == 64 and card["resize"] == "none; pixels signed"
    assert (card["a"]["images"], card["a"]["side"], card["kept"], card["seed"]) == (40, 8, 10_000, 0)
    assert card["command"].startswith("python -m common.evaluate a b --small --features net.pt")
    assert {"commit", "hardware", "torch", "seconds"} <= card.keys()
    assert sum("has 40 images: a Frechet distance falls" in text for text in card["warnings"]) == 2
    assert "warning: A has 40 images" in capsys.readouterr().err
    assert any("the same images" in text for text in go(place, "@a", "@a.zip")["warnings"])


def test_crosscheck(place, monkeypatch, capsys):
    config = comparison.EvaluateConfig(a=str(place / "a"), b=str(place / "b"), inception=str(place / "net.pt"))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    monkeypatch.setitem(sys.modules, "cleanfid.fid", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        comparison.crosscheck_package()
    seen = {}
    clean = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cleanfid", types.SimpleNamespace(fid=clean))
    monkeypatch.setitem(sys.modules, "cleanfid.fid", clean)
    network = types.SimpleNamespace(load_state_dict_from_url=None)
    monkeypatch.setitem(sys.modules, "cleanfid.inception_pytorch", network)
    torch.save({"x": torch.ones(1)}, place / "weights.pth")
    config = dataclasses.replace(config, inception=str(place / "weights.pth"))
    clean.compute_fid = lambda a, b, **options: (
        seen.update(a=a, state=network.load_state_dict_from_url("url", progress=False), **options) or 3
    )
    assert comparison.crosscheck(config, comparison.crosscheck_package()) == {
        "by": "clean-fid legacy_pytorch",
        "fid": 3.0,
    }
    assert seen["a"] == str(place / "a") and seen["mode"] == "legacy_pytorch" and seen["device"].type == "cpu"
    assert seen["state"]["x"] == 1 and network.load_state_dict_from_url is None  # nothing is downloaded
    theirs = types.SimpleNamespace(calculate_metrics=lambda **o: {"frechet_inception_distance": len(o["input2"])})
    monkeypatch.setitem(sys.modules, "torch_fidelity", theirs)
    assert comparison.crosscheck(config, comparison.crosscheck_package()) == {
        "by": "torch-fidelity",
        "fid": float(len(str(place / "b"))),
    }
    refusal = line_of(capsys, lambda: go(place, "@a", "@b", "--crosscheck"))
    assert "--features does not give" in refusal
    words = [str(place / "a.zip"), str(place / "b"), "--small", "--crosscheck"]
    assert "give two folders, and no --side" in line_of(capsys, lambda: main(words))


# ---- table


def test_a_table_of_cards(place, tmp_path, capsys):
    go(place, "@a", "@b", "--out", str(tmp_path / "one.json"))
    go(place, "@a.zip", "@b", "--out", str(tmp_path / "two.json"))
    files = [str(tmp_path / name) for name in ("one.json", "two.json")]
    text = main(["compare", *files, "--out", str(tmp_path / "t.md")])
    lines = text.splitlines()
    assert len(lines) == 4 and lines[0].startswith("| card | set | solver | n_steps | frechet_distance |")
    assert lines[2].startswith("| one | a | heun | 5 |") and lines[3].startswith("| two | a.zip |  |  |")
    assert (tmp_path / "t.md").read_text() == text
    rows = (tmp_path / "t.csv").read_text().splitlines()
    value = json.loads((tmp_path / "one.json").read_text())["metrics"]["frechet_distance"]
    assert len(rows) == 3 and str(value) in rows[1].split(",")
    main(["compare", files[0]])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| one | a |")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["@b", "@a"], "real images .* in .*one.json"),
        (["@a", "@b", "--side", "4"], "--side 0 in .*, 4 in"),
        (["@a", "@b", "--resize", "6"], "resize rule none; pixels signed in"),
        (["@a", "@b", "--kept", "12"], "--kept 10000 in"),
    ],
)
def test_numbers_that_cannot_be_compared(place, tmp_path, words, match, capsys):
    go(place, "@a", "@b", "--out", str(tmp_path / "one.json"))
    go(place, *words, "--out", str(tmp_path / "two.json"))
    files = [str(tmp_path / name) for name in ("one.json", "two.json")]
    assert re.search(match, line_of(capsys, lambda: main(["compare", *files])))


def test_files_that_are_no_cards(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "y.json").write_text("{")
    for words, match in [
        (["x.json"], "no card of an evaluation"),
        (["y.json"], "is damaged"),
        (["gone.json"], "no card at"),
    ]:
        assert match in line_of(capsys, lambda: main(["compare", str(tmp_path / words[0])]))
    assert "give cards to compare" in line_of(capsys, lambda: main(["compare"]))


# ---- page


def test_a_page_of_a_run(place, tmp_path):
    out = tmp_path / "run <b>"
    log = JsonLines(out / "metrics.jsonl")
    for step in range(1, 5):
        log.append({"step": step, "loss": 1 / step, "images_per_s": 50.0 * step, "seconds": 9.0 * step})
        log.append({"step": step, "val_loss": 1.5 / step})
        save_png(out / "samples" / f"step_{step:07d}.png", torch.full((4, 4, 3), 9 * step, dtype=torch.uint8))
    (out / "config.yaml").write_text("total_steps: 4\ndata: <i>\n")
    go(place, "@a", "@b", "--out", str(out / "card.json"))
    measured = [{"solver": "heun", "nfe": n, "feature_distance": 9.0 / n, "note": "<script>x</script>"} for n in (2, 8)]
    (out / "weights_step_final.json").write_text(json.dumps({"sha256": "0", "measured": measured}))
    text = main(["page", str(out), "--grids", "3"]).read_text()
    assert text.count('<img src="data:image/png;base64,') == 3 and "step 4" in text and "step 2" not in text
    assert "<script" not in text and "&lt;script&gt;" in text and "run &lt;b&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:)|https?:|@import|url\(", text), "something from the network"
    assert text.count("<svg") == 2 and "feature_distance" in text
    assert "<p>150 images/s (median of 4 windows), 0.01 hours in all</p>" in text and "data: &lt;i&gt;" in text
    assert "python -m common.evaluate a b" in text and "total_steps: 4" in text
    missing = text.split("Not measured")[1].split("</ul>")[0]
    assert "<li>FID</li>" in missing and "precision" not in missing and "validation loss" not in missing


def test_a_page_of_little_and_of_nothing(tmp_path, capsys):
    save_png(tmp_path / "samples" / "step_0000010.png", torch.zeros(4, 4, 3, dtype=torch.uint8))
    missing = page(tmp_path).split("Not measured")[1].split("</ul>")[0]
    assert missing.count("<li>") == 10 and "training speed" in missing
    assert "is no run folder" in line_of(capsys, lambda: main(["page", str(tmp_path / "samples")]))
    (tmp_path / "card.json").write_text("{")
    assert "is damaged" in line_of(capsys, lambda: main(["page", str(tmp_path)]))
    assert "give a run folder" in line_of(capsys, lambda: main(["page"]))


# ---- bits


def test_bits_of_a_checkpoint(place, tmp_path, capsys):
    file = weights(tmp_path / "w.pt", options(in_channels=3))
    words = [
        "bits",
        "--weights",
        str(file),
        "--data",
        str(place / "a"),
        "--split",
        "train",
        "--n_samples",
        "5",
        "--n_steps",
        "2",
        *CPU[:2],
    ]
    card = main(words)
    assert card["metrics"]["nfe"] == 4 * 2 and 0 < card["metrics"]["bits_per_dimension"] < 50
    again = main([*words, "--batch_size", "2"])["metrics"]["bits_per_dimension"]
    assert again == pytest.approx(card["metrics"]["bits_per_dimension"], rel=1e-5)
    assert str(tmp_path) not in json.dumps(card) and card["b"]["images"] == 5
    assert "give --weights FILE and --data IMAGES" in line_of(capsys, lambda: main(["bits"]))


# ---- bad input


def broken(folder, kind):
    """A folder of images with something wrong in it, and what is said of it."""
    folder.mkdir()
    if kind != "text only":
        for k in range(4):
            save_png(folder / f"{k}.png", torch.full((8, 8, 3), 60 * k, dtype=torch.uint8))
    from PIL import Image

    if kind == "damaged":
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    elif kind == "wide first":
        Image.new("RGB", (12, 8)).save(folder / "0.png")
    elif kind == "another size":
        Image.new("RGB", (9, 9)).save(folder / "3.png")
    elif kind == "text only":
        (folder / "notes.txt").write_text("no image")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("damaged", r"2\.png cannot be read \(.*\): write the set again, or remove it"),
        ("wide first", r"0\.png is 12x8, not square: give --side N"),
        ("another size", r"3\.png is 9x9, not 8x8 as the first one is: give --side N"),
        ("text only", "no images in it; names must end in"),
    ],
)
def test_bad_images(place, tmp_path, capsys, kind, match):
    refusal = line_of(capsys, lambda: go(place, broken(tmp_path / "bad", kind), "@b"))
    assert re.search(match, refusal) and "--data" not in refusal


def test_images_of_other_modes_are_colour(place, tmp_path):
    from PIL import Image

    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 256).reshape(8, 8))
    see_through = grey.convert("RGB")
    see_through.putalpha(7)
    for name, image in (("1", grey), ("2", deep), ("3", see_through), ("4", grey.convert("RGB"))):
        image.save(tmp_path / f"{name}.png")
    (batch,) = feature_sets.open_set(str(tmp_path)).batches(4)
    assert batch.shape == (4, 3, 8, 8) and all(torch.equal(batch[0], batch[k]) for k in (1, 3))
    over_white = batch[0].float() * 7 / 255 + 255 * (1 - 7 / 255)
    assert (batch[2].float() - over_white).abs().max() <= 1


def test_other_bad_input(place, tmp_path, capsys):
    def refused(*words, **options):
        return line_of(capsys, lambda: go(place, *words, **options))

    assert "a has 40 images: a distance of fewer than 2,048 means little; --small" in refused("@a", "@b", small=False)
    (tmp_path / "empty").mkdir()
    assert "no images in it" in refused(str(tmp_path / "empty"), "@b")
    assert "no such file or folder" in refused("@a", "@gone")
    assert "gen_true" in refused("torchvision:FakeData", "@b")
    script(Broken(), place / "broken.pt")
    assert re.search(r"features of \d+ of 40 images hold NaN", refused("@a", "@b", net="broken.pt"))
    (place / "text.pt").write_text("weights")
    assert "is not TorchScript" in refused("@a", "@b", net="text.pt")
    torch.save({"w": torch.zeros(2)}, place / "plain.pt")
    assert "is not TorchScript" in refused("@a", "@b", net="plain.pt")
    assert "no TorchScript network at" in refused("@a", "@b", net="gone.pt")
    script(nn.Conv2d(7, 2, 3), place / "seven.pt")
    assert "does not take images" in refused("@a", "@b", net="seven.pt")
    assert "give two sets of images" in refused("@a")
    assert "unexpected argument 'c'" in refused("@a", "@b", "c")
    assert "--kept 3: give 4 or more" in refused("@a", "@b", "--kept", "3")
    assert "exclude each other" in refused("@a", "@b", "--inception", "w.pth")
    assert "--resamples 1" in refused("@a", "@b", "--resamples", "1")
    one = tmp_path / "one"
    save_png(one / "0.png", torch.zeros(8, 8, 3, dtype=torch.uint8))
    assert "a covariance needs at least 2" in refused(str(one), "@b")


def test_missing_inception_weights_are_one_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    words = [str(place / "a"), str(place / "b"), "--small", *CPU]
    refusal = line_of(capsys, lambda: main(words))
    assert features.URL in refusal and str(tmp_path / "checkpoints" / features.FILE) in refusal
    assert "--inception PATH" in refusal and "--features FILE" in refusal
    assert "no Inception weights of FID at x.pth" in line_of(capsys, lambda: main([*words, "--inception", "x.pth"]))


def test_help_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "common.evaluate", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "--foreign_statistics" in shown.stdout and "| torch\n" not in shown.stderr


# ---- FID itself


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file of random weights where pytorch-fid looks for the true ones: below a TORCH_HOME."""
    home = tmp_path_factory.mktemp("torch")
    file = home / "hub" / "checkpoints" / features.FILE
    file.parent.mkdir(parents=True)
    random_inception(file)
    return home, file


def few(place, folder, name, count):
    folder.mkdir()
    for file in sorted((place / name).glob("*.png"))[:count]:
        shutil.copy(file, folder)
    return str(folder)


def test_fid_is_that_of_pytorch_fid_on_written_folders(place, tmp_path, inception_file, monkeypatch):
    """Its own reader, network and formula; in the space that the features span, where its matrix root is quick."""
    from pytorch_fid import fid_score
    from pytorch_fid import inception as fid

    home, file = inception_file
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(home / "hub"))
    net, ours = fid.InceptionV3().eval(), features.inception_network(file)
    theirs, found = [], []
    for name, count in (("a", 3), ("b", 2)):
        folder = few(place, tmp_path / name, name, count)
        paths = sorted(tmp_path.joinpath(name).glob("*.png"))
        theirs.append(fid_score.get_activations(paths, net, batch_size=3, num_workers=0))
        found.append(feature_sets.collect(feature_sets.open_set(folder).batches(2), ours))
    span = torch.linalg.qr(torch.from_numpy(np.concatenate(theirs)).T)[0]
    stats = [part for x in theirs for part in ((x @ span.numpy()).mean(0), np.cov(x @ span.numpy(), rowvar=False))]
    mu, cov, nu, other = stats
    want = float(fid_score.calculate_frechet_distance(mu, cov, nu, other))
    inside = [part for side in found for part in (span.T @ side.mean, span.T @ side.cov @ span)]
    assert metrics.frechet_distance(*inside) == pytest.approx(want, rel=1e-3) and want > 1e-3
    for side, x in zip(found, theirs):
        np.testing.assert_allclose(side.mean, x.mean(0), rtol=0, atol=1e-4 * x.std())
        np.testing.assert_allclose(side.cov, np.cov(x, rowvar=False), rtol=0, atol=1e-4 * x.std() ** 2)


def test_logits_are_those_of_the_last_layer_without_its_bias(inception_file):
    file = inception_file[1]
    images = synthetic_images(2, 8, 3, 2, 5).images
    rows, logits = features.inception_network(file).run(images)
    torch.testing.assert_close(logits, rows @ checkpoint.load(file)["fc.weight"].T)


@pytest.mark.slow
def test_the_seeds_command_gives_the_same_fid(place, tmp_path, inception_file):
    """``python -m pytorch_fid A B`` as a process: its matrix root of 2048 x 2048 takes minutes on one core."""
    home, file = inception_file
    folders = [few(place, tmp_path / name, name, 12) for name in ("a", "b")]
    command = [sys.executable, "-m", "pytorch_fid", *folders, "--num-workers", "0", "--device", "cpu"]
    env = {"TORCH_HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    (told,) = re.findall(r"FID:\s+([\d.]+)", shown)
    want = float(told)
    card = main([*folders, "--small", "--inception", str(file), "--resamples", "0", "--kid_subsets", "1", *CPU])
    assert card["metrics"]["fid"] == pytest.approx(want, rel=1e-3) and math.isfinite(want)
    assert {"kid", "inception_score", "inception_score_real", "precision"} <= card["metrics"].keys()
