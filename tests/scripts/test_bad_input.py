"""What users get wrong: one clear line that says what was given and what to do, exit code 2, nothing lost.

Interruptions, refused folders and full disks of training runs are in test_interruptions.py, bad flags in test_cli.py.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, runtime
from common.cli.configs import GridConfig
from common.images import save_png
from common.scripts.gen import gen_main
from common.scripts.grid import grid_main
from common.scripts.measure import measure_main
from common.scripts.sampling import make_sampler
from common.scripts.train import train_main
from common.scripts.true import true_main
from started import start
from tiny import NAME, ROOT, TINY, folder, images, options, run, weights

CPU = ["--device", "cpu"]
CONDITIONAL = options(num_classes=3)


@pytest.fixture
def place(tmp_path):
    """A data set's folder with 24 images of three classes and no weights."""
    data = images(24)
    np.savez(tmp_path / "images.npz", images=data.images.numpy(), labels=data.labels.numpy())
    (tmp_path / "train_small.py").write_text("")
    return folder(tmp_path, CONDITIONAL)


def refused(action, *argv, match: str, error: type[Exception] = ValueError) -> None:
    """The action ends with this error, in one line."""
    with pytest.raises(error, match=match) as raised:
        action(*argv)
    assert "\n" not in str(raised.value)
    assert runtime.one_line(raised.value), "it would end with a traceback"


def train_in(place, *flags: str) -> Path:
    return train_main(place, "", [*CPU, *flags])


# ---- weights


@pytest.mark.parametrize("action", [grid_main, gen_main, measure_main])
def test_missing_weights(place, action):
    match = r"there are no weights at .*results/shipped.pt: train them with python train_small.py, or give --weights"
    refused(lambda: action(place, "", argv=CPU), match=match, error=FileNotFoundError)
    match = "no weights at gone.pt.*train them first, or give --weights"
    refused(lambda: action(place, "", argv=["--weights", "gone.pt", *CPU]), match=match, error=FileNotFoundError)
    assert not list(place.here.glob("results/*"))  # nor is a classifier trained first


@pytest.mark.parametrize("action", [grid_main, gen_main])
def test_a_truncated_or_damaged_checkpoint(place, tmp_path, action):
    whole = weights(tmp_path / "w.pt").read_bytes()
    flags = ["--weights", str(tmp_path / "w.pt"), "--n_samples", "2", *CPU]
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    refused(action, place, "", flags, match="w.pt is truncated or damaged .* copy or download it again")
    (tmp_path / "w.pt").write_bytes(whole[:3000] + bytes(64) + whole[3064:])
    refused(action, place, "", flags, match="w.pt is damaged")
    (tmp_path / "w.pt").write_bytes(b"<html>404</html>")
    refused(action, place, "", flags, match="not a PyTorch checkpoint")
    (tmp_path / "w.pt").write_bytes(b"")
    refused(action, place, "", flags, match="it is empty")


def test_a_checkpoint_of_another_network(place, tmp_path):
    weights(tmp_path / "w.pt", CONDITIONAL)
    (tmp_path / "run.yaml").write_text("num_channel: 64\nchannel_mult: [2]\ntotal_steps: 3\n")
    flags = ["--weights", str(tmp_path / "w.pt"), "-c", str(tmp_path / "run.yaml"), *CPU]
    refused(grid_main, place, "", flags, match="another network.*num_channel: 64 given, 32 in the file")
    state = checkpoint.load(tmp_path / "w.pt")
    checkpoint.save(tmp_path / "w.pt", state | {"network": {**state["network"], "channels": 64}})
    refused(grid_main, place, "", flags[:2] + CPU, match="do not fit their network.* tensors of another shape, first")
    checkpoint.save(tmp_path / "w.pt", {"classifier": {}, "weights": {}})
    refused(grid_main, place, "", flags[:2] + CPU, match="w.pt")


def test_weights_that_cannot_do_what_is_asked(place, tmp_path):
    free, given = (
        weights(tmp_path / "free.pt"),
        weights(tmp_path / "given.pt", options(num_classes=3, label_dropout=0.0)),
    )
    for flags, match in (
        (["--weights", str(free), "--cfg", "2"], "--cfg 2.0 needs class-conditional weights; free.pt is unconditional"),
        (["--weights", str(given), "--cfg", "2"], "--cfg 2.0 needs weights trained with --label_dropout > 0"),
        (["--weights", str(free), "--label", "1"], "--label needs class-conditional weights"),
        (["--weights", str(given), "--label", "12"], "--label 12 is out of range.*classes 0 to 2"),
        (["--weights", str(given), "--solver", "idff"], "--solver idff needs weights trained with --method idff"),
        (["--weights", str(given), "--no-ema"], "averaged weights only: leave out --no-ema"),
        (["--weights", str(given), "--device", "cuda:7"], "device 'cuda:7' is not on this machine"),
    ):
        refused(grid_main, place, "", [*CPU, *flags], match=match)
    assert not (tmp_path / "samples").exists()


def test_weights_that_do_not_say_their_image_size(place, tmp_path):
    weights(tmp_path / "w.pt", options(network="conditional_unet", channel_mult=(1, 2)))
    config = GridConfig(weights=str(tmp_path / "w.pt"), device="cpu")
    with pytest.raises(ValueError, match="does not say its image size: give -c with the config.yaml of its run"):
        make_sampler(place, config)


# ---- options


@pytest.mark.parametrize(
    ("action", "flags", "match"),
    [
        (train_main, "--batch_size 0", "--batch_size 0: must be at least 1"),
        (train_main, "--method flow", "--method flow: choose one of cfm, otcfm, fm, sbcfm, rf, idff"),
        (train_main, "--image_size 9 --channel_mult 1,2", r"--image_size 9: must be divisible by 2 .*e.g. 8 or 10"),
        (train_main, "--grad_accum 3", "--grad_accum 3: must divide --batch_size 8"),
        (train_main, "--method idff --sigma 0", "--sigma 0: --method idff is a bridge with noise"),
        (
            train_main,
            "--method idff --sigma 0.2 --score_target conditional",
            "--coupling auto is ot for idff: add --coupling independent",
        ),
        (
            train_main,
            "--method idff --sigma 0.2 --score_target conditional --coupling ot",
            "and --coupling is ot: add --coupling independent, or give --score_target noise",
        ),
        (train_main, "--data_loss velocity", "--data_loss velocity: --method rf has no such term, only idff has"),
        (train_main, "--flow_weight 3", "--flow_weight 3.0: --method rf has no such term, only idff has"),
        (train_main, "--score_weight -1", "--score_weight -1.0: must be at least 0"),
        (train_main, "--times beta", "--times beta: choose one of uniform, logit-normal, mixed, edm, u-shaped"),
        (train_main, "--times mixed --times_share 1", "--times_share 1.0: must be below 1"),
        (train_main, "--times edm --times_std 0", "--times_std 0.0: must be above 0"),
        (train_main, "--times u-shaped --times_mean 1", "--times_mean 1: --times u-shaped has --times_rate; leave it"),
        (train_main, "--times_mean 1", "--times_mean 1: --times uniform has no parameters; leave it out"),
        (train_main, "--times mixed --method flowmap", "--method flowmap draws its two times itself, leave it out"),
        (train_main, "--times mixed --method meanflow", "--method meanflow draws its two times itself, leave it out"),
        (train_main, "--method ect --ect_q 1.5", "--ect_q 1.5: must be at least 2"),
        (train_main, "--method ect", "--method ect tunes a trained network: give its weights or run folder by --init"),
        (
            train_main,
            "--weight_power 0",
            "--weight_power 0.0: --method rf has no such term, only flowmap, meanflow has",
        ),
        (train_main, "--teacher_steps 0", "--teacher_steps 0: must be at least 1"),
        (train_main, "--num_chanel 4", "unknown flag --num_chanel; the nearest is --num_channel"),
        (train_main, "--head_channels 24", "64 channels cannot be split into attention heads of 24"),
        (train_main, "--network conditional_unet --patch_size 2", "--patch_size belongs to --network unet"),
        (train_main, "-c gone.yaml", "there is no configuration file gone.yaml"),
        (grid_main, "--solver gauss", "--solver gauss: choose one of auto, fitted, euler, midpoint"),
        (grid_main, "--n_steps 0", "--n_steps 0: must be at least 1"),
        (grid_main, "--batch_size 0", "--batch_size 0: must be at least 1"),
        (gen_main, "--n_samples 0", "--n_samples 0: must be at least 1"),
        (gen_main, "--n_samples 10 --range 5:20", "--range 5:20: there are only --n_samples 10"),
        (gen_main, "--range 7", "--range 7: write START:STOP"),
        (measure_main, "--n_steps 0", "--n_steps 0: must be at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("-") else "",
)
def test_options_out_of_range(place, action, flags, match):
    expected = FileNotFoundError if "gone" in flags else ValueError
    refused(lambda: action(place, "", argv=flags.split()), match=match, error=expected)
    assert not list((place.here / "results").glob("**/*.pt"))


def test_a_batch_that_cannot_be_split_over_the_processes(tmp_path):
    two = runtime.Processes(rank=0, world=2, device=torch.device("cpu"))
    match = "--batch_size 6 cannot be split over 2 processes with --grad_accum 2: make it a multiple of 4"
    refused(lambda: run(tmp_path / "out", two, batch_size=6, grad_accum=2), match=match)
    assert not (tmp_path / "out").exists()


# ---- data


def test_data_that_is_not_there_or_holds_no_images(place, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    for flags, match, error in (
        ("gone", "--data 'gone': no such file or folder; give torchvision:NAME, a folder", FileNotFoundError),
        (str(tmp_path / "empty"), "no images in it", ValueError),
        (str(tmp_path / "notes.txt"), "cannot read a .txt file", ValueError),
        ("torchvision:MNISTT", "no such set; did you mean MNIST", ValueError),
    ):
        refused(train_in, place, "--data", flags, match=match, error=error)
        refused(lambda flags=flags: true_main(place, "", ["--data", flags]), match=match, error=error)
    (tmp_path / "images.npz").unlink()
    refused(train_in, place, match=r"images.npz.*no such file", error=FileNotFoundError)


def write_pictures(path: Path, size: int = 8, n: int = 24) -> None:
    data = images(n, size)
    for k, image in enumerate(data.images):
        save_png(path / str(int(data.labels[k])) / f"{k:02d}.png", image.permute(1, 2, 0))


def test_a_corrupt_image_is_named_and_the_run_goes_on(place, tmp_path, capsys):
    write_pictures(tmp_path / "data")
    (tmp_path / "data" / "1" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n half a picture")
    assert train_in(place, "--data", str(tmp_path / "data"), "--total_steps", "2").exists()
    captured = capsys.readouterr()
    assert "skipped an image that cannot be read: 1/07.png" in captured.out + captured.err
    assert "21 images" in captured.out  # 23, and one in ten held out
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(b"nothing")
    refused(
        train_in,
        place,
        "--data",
        str(tmp_path / "data"),
        "--resume",
        "auto",
        match="more than 10 images cannot be read",
    )


def test_images_of_another_size_are_resized_with_one_line(place, tmp_path, capsys):
    write_pictures(tmp_path / "data", size=12)
    assert train_in(place, "--data", str(tmp_path / "data"), "--total_steps", "2").exists()
    assert "24 images, 3 classes (0, 1, 2); 24 resized to 8x8 (0/00.png is 12x12)" in capsys.readouterr().out


def test_labels_out_of_range_or_missing(place, tmp_path):
    refused(train_in, place, "--num_classes", "2", match="labels reach from 0 to 2; --num_classes 2 allows 0 to 1")
    np.savez(tmp_path / "bare.npz", images=images(24).images.numpy())
    flags = ("--data", str(tmp_path / "bare.npz"))
    refused(train_in, place, *flags, match="--num_classes 3, but the data has no labels; give class folders, or 0")
    assert train_in(place, *flags, "--num_classes", "0", "--total_steps", "1").exists()
    np.savez(tmp_path / "negative.npz", images=images(24).images.numpy(), labels=np.arange(24) - 1)
    refused(train_in, place, "--data", str(tmp_path / "negative.npz"), match="labels reach from -1 to 22")


def test_data_beside_smoke_is_said_not_to_be_read(place, tmp_path, capsys):
    train_main(place, "", [*CPU, "--smoke", "--data", str(tmp_path / "images.npz"), "--out", str(tmp_path / "smoke")])
    assert f"made-up images; --data {tmp_path / 'images.npz'} is not read" in capsys.readouterr().out


def test_classes_of_other_data_are_not_taken_for_those_of_the_weights(place, tmp_path, capsys):
    """A share of digits that a classifier of two animals recognises would be a number without meaning."""
    final = run(tmp_path / "run", data=images(24), num_classes=3)
    for count, said in (
        (2, "the weights know 3 classes, the classifier of"),
        (3, "note: classes of the weights: "),
    ):
        for k in range(24):
            target = tmp_path / f"set{count}" / "abc"[k % count] / f"{k}.png"
            save_png(target, images(24).images[k].permute(1, 2, 0))
        flags = ["--weights", str(final), "--data", str(tmp_path / f"set{count}"), "--n_steps", "1", "--epochs", "1"]
        result = measure_main(place, "", False, [*CPU, *flags, "--n_samples", "6"])
        assert said in capsys.readouterr().out and (result["recognised"] is None) == (count == 2)


def test_a_classifier_needs_labels(place, tmp_path):
    np.savez(tmp_path / "images.npz", images=images(24).images.numpy())
    weights(tmp_path / "results" / "shipped.pt", CONDITIONAL)
    refused(lambda: measure_main(place, "", False, CPU), match="has no labels: a classifier needs class folders")


def test_a_logger_that_is_not_installed(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(train_in, place, "--logger", "wandb", match="--logger wandb is not installed: pip install wandb")


# ---- what is there stays


def test_samples_of_other_weights_are_not_mixed(place, tmp_path):
    weights(tmp_path / "results" / "shipped.pt", CONDITIONAL)
    flags = [*CPU, "--n_samples", "3", "--n_steps", "1", "--save_dir", str(tmp_path / "set")]
    gen_main(place, "", flags)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    refused(gen_main, place, "", [*flags, "--seed", "5"], match="begun with other settings.*seed 0 there and 5 now")
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


@pytest.mark.parametrize("target", ["set", "set.npz"])
def test_a_full_disk_while_sampling_loses_nothing(place, tmp_path, monkeypatch, target):
    weights(tmp_path / "results" / "shipped.pt", CONDITIONAL)
    flags = [*CPU, "--n_samples", "6", "--n_steps", "1", "--batch_size", "2", "--save_dir", str(tmp_path / target)]
    from common import images as module

    write, written = module.save_png, []

    def full(*args, **options):
        written.append(args)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args, **options)

    monkeypatch.setattr(module, "save_png", full)
    with pytest.raises(OSError, match="full|No space left"):
        gen_main(place, "", flags)
    monkeypatch.undo()
    gen_main(place, "", flags)
    whole = tmp_path / ("whole" + target[3:])
    gen_main(place, "", [*flags[:-1], str(whole)])
    if target == "set":
        names = [f"{k:06d}.png" for k in range(6)]
        assert all((tmp_path / "set" / n).read_bytes() == (whole / n).read_bytes() for n in names)
    else:
        assert (tmp_path / "set.npz").read_bytes() == whole.read_bytes()


# ---- as a script


@pytest.mark.parametrize(
    ("script", "flags", "line"),
    [
        ("cifar10/train_cifar10.py", "--batch_size 0", "error: --batch_size 0: must be at least 1"),
        ("cifar10/train_cifar10.py", "--methd rf", "error: unknown flag --methd; the nearest is --method"),
        ("mnist/gen_mnist.py", "--solver gauss", "error: --solver gauss: choose one of auto, fitted, euler"),
        ("mnist/simple_gen_test.py", "--weights gone.pt", "error: no weights at gone.pt"),
        ("cifar10/train_cifar10.py", "--data gone --device cpu --out OUT", "error: --data 'gone': no such file"),
    ],
)
def test_a_script_ends_with_one_line_and_code_2(tmp_path, script, flags, line):
    words = flags.replace("OUT", str(tmp_path / "out")).split()
    result = start(ROOT / script, *words, cwd=tmp_path, FLOW_TRACEBACK="0")
    assert result.returncode == 2 and result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_refused_leaves_a_run_of_the_same_folder_alone(place, tmp_path):
    out = tmp_path / "out"
    train_in(place, "--out", str(out), "--total_steps", "2")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for flags in ([], ["--resume", "auto", "--num_channel", "64"], ["--resume", "auto", "--num_classes", "2"]):
        with pytest.raises(ValueError):
            train_in(place, "--out", str(out), *flags)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after == before and json.loads(after["metrics.jsonl"].splitlines()[0])["step"] == 1
    assert NAME not in after and TINY.save_step == 2


def test_a_gpus_network_on_a_cpu_is_told_once_with_the_preset_for_a_cpu(tmp_path):
    small, large = TINY, replace(TINY, num_channel=4 * TINY.num_channel)
    own = replace(folder(tmp_path), presets={"default": large, "small": small, "paper": large}, for_cpu="small")
    assert own.advice_on("cpu", replace(large, lr=1.0)).endswith("--preset small is for a CPU")
    others = [("cuda", large), ("cpu", small), ("cpu", replace(large, num_channel=8))]
    assert not any(own.advice_on(*each) for each in others)
    assert not replace(own, presets={"default": large}).advice_on("cpu", large)  # there is no preset to name
