"""Folders whose images the user fetches: their places, epochs as steps, the Flow Image Generator's files."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.cli.configs import TrainConfig, TrueConfig
from common.data.loading import fits_in_memory
from common.generate import noise_for
from common.images import grid, save_png
from common.records.rows import JsonLines
from common.runtime import Processes
from common.scripts.folder import data_spec, smoke_preset
from common.scripts.train import epochs_as_steps, train_main
from common.scripts.true import true_main
from common.training import report
from common.training.trainer import Trainer
from tiny import ALONE, ROOT, folder, images, options, run, weights

NAMES = ("config", "epochs", "rectified_flow_train")
CPU = ["--device", "cpu"]
SMALL = options(
    network="conditional_unet", in_channels=3, image_size=16, num_channel=8, channel_mult=(1, 2), dropout=0.1,
    batch_size=8, epochs=3, save_step=3, log_step=1, flip=False, warmup=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def celeba():
    """The folder's own modules by name."""
    return {name: importlib.import_module(f"celebA.{name}") for name in NAMES}


@pytest.fixture
def place(tmp_path):
    """A folder whose images lie at one of two places."""
    where = {"places": ("faces.zip", "faces"), "advice": "fetch faces.zip from somewhere", "data": ""}
    return replace(folder(tmp_path, options(in_channels=3)), **where)


def photographs(path: Path, count: int = 20, size: int = 8) -> Path:
    """A folder of images, larger than they will be used."""
    pixels = images(count, 2 * size, 3).images
    for k, image in enumerate(pixels):
        save_png(path / f"{k:06d}.png", grid(image[None]), sync=False)
    return path


# ---- where the images are


def test_missing_images_are_answered_with_what_to_fetch(place):
    for action in (train_main, true_main):
        with pytest.raises(FileNotFoundError) as error:
            action(place, "", argv=[] if action is true_main else CPU)
        line = str(error.value)
        assert "no images in" in line and "faces.zip, faces" in line and "fetch faces.zip from somewhere" in line
        assert "--data FOLDER_OR_ZIP" in line and "--smoke" in line and "\n" not in line
    assert not (place.here / "results").exists()


def test_the_first_place_that_is_there_is_taken(place, tmp_path):
    config = TrueConfig()
    (tmp_path / "data" / "faces").mkdir(parents=True)
    assert data_spec(place, config) == str(tmp_path / "data" / "faces")
    (tmp_path / "data" / "faces.zip").touch()
    assert data_spec(place, config) == str(tmp_path / "data" / "faces.zip")
    (tmp_path / "elsewhere" / "faces").mkdir(parents=True)
    assert data_spec(place, TrueConfig(data_root=str(tmp_path / "elsewhere"))).startswith(str(tmp_path / "elsewhere"))
    assert data_spec(place, TrueConfig(data="mine.zip")) == "mine.zip"
    assert data_spec(folder(tmp_path), config) == str(tmp_path / "images.npz")  # a folder without places


def test_training_and_real_images_from_a_place(place, tmp_path, monkeypatch):
    photographs(tmp_path / "data" / "faces")
    final = train_main(place, "", [*CPU, "--total_steps", "2"])
    assert final.exists() and checkpoint.load_network(final)[1]["step"] == 2
    whole = true_main(place, "", ["--save_dir", str(tmp_path / "true")])
    monkeypatch.setattr("common.data.loading.fits_in_memory", lambda *shape: not fits_in_memory(*shape))
    streamed = true_main(place, "", ["--save_dir", str(tmp_path / "streamed")])
    for k in range(20):  # images that do not fit in memory are decoded one by one
        a, b = (np.asarray(Image.open(path / f"{k:06d}.png")) for path in (whole, streamed))
        assert a.shape == (8, 8, 3) and (a == b).all()
    true_main(place, "", ["--save_dir", str(tmp_path / "large"), "--side", "12", "--n_samples", "5"])
    sizes = [Image.open(file).size for file in sorted((tmp_path / "large").glob("*.png"))]
    assert sizes == [(12, 12)] * 5


# ---- epochs


def test_epochs_are_steps():
    config = TrainConfig(epochs=3, batch_size=64, val_fraction=0.02)
    assert epochs_as_steps(config, 1000).total_steps == math.ceil(3 * 980 / 64)
    assert epochs_as_steps(replace(config, val_fraction=0.0), 128).total_steps == 6
    assert epochs_as_steps(replace(config, epochs=None), 1000).total_steps == 400_000
    assert smoke_preset(config).epochs is None and smoke_preset(config).total_steps == 4


def test_an_epoch_ends_when_all_images_have_been_seen():
    done = report.epochs_done
    assert [done(step, 8, 36) for step in (0, 4, 5, 9, 13, 14)] == [0, 0, 1, 2, 2, 3]
    assert done(1, 64, 10) == 6  # tiny data: several epochs in one step


def epochs_run(celeba, out: Path, processes: Processes = ALONE, **changes) -> Path:
    config = epochs_as_steps(replace(SMALL, **changes), 40)
    return celeba["epochs"].train_epochs(config, images(40, 16, 3), out, "rf_weights_step_final.pt", processes)


@pytest.fixture(scope="module")
def trained(celeba, tmp_path_factory):
    """A run of three epochs: 36 training images, batch 8, 14 steps."""
    out = tmp_path_factory.mktemp("celeba") / "checkpoints"
    epochs_run(celeba, out)
    return out


def test_files_of_epochs_hold_the_seeds_entries_and_ours(trained):
    assert sorted(path.name for path in trained.glob("*.pth")) == [
        *(f"epoch_{k}.pth" for k in (1, 2, 3)),
        "rf_best.pth",
    ]
    rows = JsonLines(trained / "metrics.jsonl").read()
    ends = {row["epoch"]: row for row in rows if "epoch" in row}
    assert {k: row["step"] for k, row in ends.items()} == {1: 5, 2: 9, 3: 14}
    for k in (1, 2, 3):
        state = checkpoint.load(trained / f"epoch_{k}.pth")
        assert {"epoch", "ema_state", "model_state", "optimizer_state", "loss"} <= state.keys()
        assert (state["epoch"], state["step"]) == (k, ends[k]["step"])
        low = 0 if k == 1 else ends[k - 1]["step"]
        losses = [row["loss"] for row in rows if row.get("loss") and low < row["step"] <= ends[k]["step"]]
        assert state["loss"] == pytest.approx(sum(losses) / len(losses)) and len(losses) == (5, 4, 5)[k - 1]
        assert state["val_loss"] == pytest.approx(ends[k]["val_loss"])
        assert len(state["optimizer_state"]["state"]) == len(state["model_state"])
        net, info = checkpoint.load_network(trained / f"epoch_{k}.pth")
        raw, _ = checkpoint.load_network(trained / f"epoch_{k}.pth", ema=False)
        for mine, theirs in ((net, "ema_state"), (raw, "model_state")):
            assert all(torch.equal(value, state[theirs][key]) for key, value in mine.state_dict().items())
        assert info["method"]["name"] == "rf" and info["config"]["image_size"] == 16
    shared = {state[key]["stem.weight"].data_ptr() for key in ("ema_state", "ema_model")}
    assert len(shared) == 1, "the same tensors, written once"


def test_the_best_epoch_is_that_of_the_lowest_validation_loss(celeba, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(Trainer, "validation_loss", lambda *arguments: next(losses))
    epochs_run(celeba, tmp_path)
    assert checkpoint.load(tmp_path / "rf_best.pth")["epoch"] == 2
    best = checkpoint.load(tmp_path / "rf_best.pth")["ema_state"]
    second = checkpoint.load(tmp_path / "epoch_2.pth")["ema_state"]
    assert all(torch.equal(best[key], second[key]) for key in second)


def test_without_held_out_images_the_training_loss_decides(celeba, tmp_path):
    epochs_run(celeba, tmp_path, val_fraction=0.0, epochs=2)
    states = [checkpoint.load(tmp_path / f"epoch_{k}.pth") for k in (1, 2)]
    assert [state["val_loss"] for state in states] == [None, None]
    lowest = min(states, key=lambda state: state["loss"])["epoch"]
    assert checkpoint.load(tmp_path / "rf_best.pth")["epoch"] == lowest


def test_a_resumed_run_is_the_run_that_was_not_stopped(celeba, trained, tmp_path):
    epochs_run(celeba, tmp_path, epochs=2)
    epochs_run(celeba, tmp_path, resume="auto")
    for name in ("epoch_3.pth", "rf_best.pth"):
        whole, parts = (checkpoint.load(out / name) for out in (trained, tmp_path))
        assert whole["loss"] == parts["loss"] and whole["epoch"] == parts["epoch"]
        assert all(torch.equal(whole["ema_state"][key], parts["ema_state"][key]) for key in whole["ema_state"])


def test_labels_and_batches_that_do_not_fit(celeba, tmp_path):
    with pytest.raises(ValueError, match="--num_classes 3: this recipe has no labels; use celeba_train.py"):
        epochs_run(celeba, tmp_path, num_classes=3)
    with pytest.raises(ValueError, match="--batch_size 8 cannot be split over 3 processes: make it a multiple of 3"):
        epochs_run(celeba, tmp_path, processes=Processes(0, 3, torch.device("cpu")))


def test_the_recipe_of_the_seed(celeba):
    recipe = celeba["config"].GENERATOR_FOLDER.presets["default"]
    wanted = {"method": "rf", "network": "conditional_unet", "image_size": 128, "in_channels": 3, "lr": 1e-5}
    wanted |= {"batch_size": 64, "ema_decay": 0.999, "epochs": 1000, "weight_decay": 0.0, "warmup": 0, "flip": False}
    assert {key: getattr(recipe, key) for key in wanted} == wanted
    assert celeba["config"].GENERATOR_FOLDER.run_folder(recipe) == ROOT / "celebA" / "checkpoints"
    smoke = celeba["config"].GENERATOR_FOLDER.run_folder(replace(recipe, smoke=True))
    assert smoke == ROOT / "celebA" / "results" / "smoke-rf"  # which is emptied: never the checkpoints


# ---- sampling from a checkpoint


def test_sample_from_checkpoint(celeba, trained, tmp_path, capsys):
    sample = celeba["rectified_flow_train"].sample_from_checkpoint
    drawn = sample(trained / "rf_best.pth", tmp_path / "a" / "sample.png", steps=3, batch_size=4)
    assert drawn.shape == (4, 3, 16, 16) and drawn.abs().max() <= 1
    assert Image.open(tmp_path / "a" / "sample.png").size == (4 * 18 + 2, 18 + 2)  # in one row
    assert "4 image(s), 12 network evaluations each" in capsys.readouterr().out
    net, _ = checkpoint.load_network(trained / "rf_best.pth")
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    x = noise_for(range(4), (3, 16, 16), 0)
    for i in range(3):  # the classical Runge-Kutta method, written out
        t, h = i / 3, 1 / 3
        with torch.no_grad():
            k1 = net(x, torch.full((4,), t))
            k2 = net(x + h / 2 * k1, torch.full((4,), t + h / 2))
            k3 = net(x + h / 2 * k2, torch.full((4,), t + h / 2))
            k4 = net(x + h * k3, torch.full((4,), t + h))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert len(calls) == 12 and torch.allclose(drawn, x.clamp(-1, 1), atol=1e-5)
    alone = sample(trained / "rf_best.pth", tmp_path / "b.png", steps=3, batch_size=1)
    assert torch.allclose(alone, drawn[:1], atol=1e-5)  # image k does not depend on its neighbours
    assert not torch.allclose(alone, sample(trained / "rf_best.pth", tmp_path / "b.png", steps=3, seed=1), atol=1e-3)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        sample(tmp_path / "gone.pth")


def test_sample_from_checkpoint_of_idff(celeba, tmp_path):
    """Weights of two heads, as celeba_train.py leaves them."""
    file = weights(tmp_path / "w.pt", options(method="idff", sigma=0.2))
    drawn = celeba["rectified_flow_train"].sample_from_checkpoint(file, tmp_path / "a.png", steps=2)
    assert drawn.shape == (1, 1, 8, 8) and drawn.isfinite().all()


def test_train_main_runs_what_it_is_given(place, tmp_path):
    """rectified_flow_train.py gives its own training; the data, the run folder and the epochs come from train_main."""
    photographs(tmp_path / "data" / "faces")
    seen = []
    train_main(
        replace(place, run="mine"), "", [*CPU, "--epochs", "2"], run=lambda *given: seen.append(given) or given[2]
    )
    config, data, out, name, processes = seen[0]
    assert config.total_steps == math.ceil(2 * 18 / 8) and len(data) == 20 and processes.is_main
    assert out == tmp_path / "mine" and name == "RF_weights_step_final.pt"
    assert run(tmp_path / "common").exists()


def test_the_files_of_the_last_three_epochs_are_kept(celeba, tmp_path):
    epochs_run(celeba, tmp_path, epochs=5)
    assert {path.name for path in tmp_path.glob("*.pth")} == {*(f"epoch_{k}.pth" for k in (3, 4, 5)), "rf_best.pth"}


# ---- real images


@pytest.mark.parametrize("resident", [True, False])
def test_real_images_know_what_they_were_made_from(place, tmp_path, monkeypatch, resident):
    monkeypatch.setattr("common.scripts.true.too_large", lambda *args, **options: not resident)
    photographs(tmp_path / "photos", 3)
    flags = ["--data", str(tmp_path / "photos"), "--save_dir", str(tmp_path / "true")]
    true_main(place, "", flags)
    os.utime(tmp_path / "photos" / "000001.png")  # another time, the same bytes: the same set
    true_main(place, "", flags)
    save_png(tmp_path / "photos" / "000001.png", grid(images(9, 16, 3).images[8:]), sync=False)
    with pytest.raises(ValueError, match="begun with other settings: hash .*give another --save_dir"):
        true_main(place, "", flags)


def test_real_images_of_a_split(place, tmp_path):
    for split, count in (("Training", 3), ("Validation", 1), ("Testing", 2)):
        photographs(tmp_path / "photos" / split, count)
    for split, count in (("train", 3), ("test", 2)):
        flags = ["--data", str(tmp_path / "photos"), "--split", split, "--save_dir", str(tmp_path / split)]
        true_main(place, "", flags)
        assert len(list((tmp_path / split).glob("*.png"))) == count
    photographs(tmp_path / "photos" / "more", 1)
    with pytest.raises(ValueError, match="look like splits, but more cannot be placed"):
        true_main(place, "", flags)
