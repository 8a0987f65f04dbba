"""Every script of the data sets' folders, with --smoke, as a user starts it: from its own folder or from the root."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import started
from common import checkpoint, cli
from common.cli.configs import TrainConfig
from common.images import HEADER
from common.methods import METHODS
from common.networks import build_network, network_description
from common.records.cards import card_path
from common.runtime import file_hash
from common.scripts.folder import FLAGS, smoke_preset
from common.scripts.train import train_main
from common.solvers import fitted
from tiny import ROOT, network, options, weights

# name: (train script, its weights, suffix of gen_*.py, side, where the scripts are started)
FOLDERS = {
    "cifar10": ("train_cifar10.py", "IDFF_cifar10_weights_step_final.pt", "cifar10", 32, ROOT),
    "mnist": ("mnist_train.py", "flow_matching_mnist.pth", "mnist", 28, ROOT / "mnist"),
}
# Folders whose images the user fetches: (train script, its weights, side)
LARGE = {
    "celebA": ("celeba_train.py", "IDFF_celeba_weights_step_final.pt", 64),
    "celebA_HQ": ("train_celebA_HQ.py", "IDFF_celeba_256_weights_step_final.pt", 256),
    "lsun_bed": ("train_lsun_bed.py", "IDFF_lsun_bed_weights_step_final.pt", 256),
    "lsun_church": ("train_lsun_church.py", "IDFF_lsun_church_weights_step_final.pt", 256),
}
SCRIPTS = [
    *(
        f"cifar10/{name}.py"
        for name in ("train_cifar10", "simple_gen_test", "gen_cifar10", "gen_true_cifar10", "measure", "fit_sampler")
    ),
    *(
        f"mnist/{name}.py"
        for name in ("mnist_train", "simple_gen_test", "gen_mnist", "gen_true_mnist", "measure", "fit_sampler")
    ),
    "mnist/mnist_test.py",
    "celebA/rectified_flow_train.py",
    *(f"{name}/{files[0]}" for name, files in LARGE.items() if name in ("celebA", "lsun_church")),
]


def start(script: str, *flags: object, cwd: Path, cold: bool = False) -> str:
    """Run a script, cold where the start counts, too; what it printed."""
    if cold:
        command = [sys.executable, os.path.relpath(ROOT / script, cwd), *map(str, flags)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    else:
        result = started.start(ROOT / script, *flags, cwd=cwd)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module", params=list(FOLDERS))
def trained(request, tmp_path_factory):
    """A folder's name, a run of its train script, and what the script printed."""
    name = request.param
    out = tmp_path_factory.mktemp(name) / "run"
    flags = ("--smoke", "--out", out, "--device", "cpu")
    printed = start(f"{name}/{FOLDERS[name][0]}", *flags, cwd=FOLDERS[name][4], cold=name == "mnist")
    return name, out, printed


def test_train(trained):
    name, out, printed = trained
    final = out / FOLDERS[name][1]
    assert f"weights: {final}" in printed and f"run folder: {out}" in printed
    assert {path.name for path in out.iterdir()} == {
        *("checkpoint_last.pt", "checkpoint_best.pt", "config.yaml", "metrics.jsonl", "run.lock", "samples"),
        *(final.name, final.with_suffix(".json").name, "page.html"),
    }
    net, info = checkpoint.load_network(final)
    assert info["config"]["image_size"] == FOLDERS[name][3] and net.num_classes == 11 and info["step"] == 4
    assert (out / "samples" / "step_0000004.png").exists()


def test_simple_gen_test(trained, tmp_path):
    name, out, _ = trained
    weights, side = out / FOLDERS[name][1], FOLDERS[name][3]
    flags = ("--weights", weights, "--n_samples", 4, "--n_steps", 3, "--cfg", 1.5, "--out", tmp_path / "grid.png")
    printed = start(f"{name}/simple_gen_test.py", "--smoke", *flags, cwd=FOLDERS[name][4])
    assert "4 images" in printed and "NFE 6" in printed and f"picture: {tmp_path / 'grid.png'}" in printed
    width, height = Image.open(tmp_path / "grid.png").size
    assert height == 4 * (2 * side + 2) + 2 and width > 2 * side + 4 + 8  # a class a row, its name before it


def test_generated_and_true_images_are_folders_that_pytorch_fid_reads(trained, tmp_path):
    name, out, _ = trained
    _, weights, suffix, side, cwd = FOLDERS[name]
    flags = ("--smoke", "--save_dir")
    made = (*flags, tmp_path / "gen", "--weights", out / weights, "--n_steps", 2)
    assert "images" in start(f"{name}/gen_{suffix}.py", *made, cwd=cwd)
    assert "images" in start(f"{name}/gen_true_{suffix}.py", *flags, tmp_path / "true", cwd=cwd)
    for folder, count in (("gen", 16), ("true", 64)):
        files = sorted((tmp_path / folder).glob("*.png"))  # what `python -m pytorch_fid A B` lists
        assert [file.name for file in files] == [f"{k:06d}.png" for k in range(count)]
        shapes = {np.asarray(Image.open(file).convert("RGB")).shape for file in files}
        assert shapes == {(side, side, 3)}
        assert {path.name for path in (tmp_path / folder).iterdir()} - {file.name for file in files} == {"samples.json"}


def test_measure(trained, tmp_path):
    name, out, _ = trained
    flags = ("--weights", out / FOLDERS[name][1], "--n_samples", 20, "--n_steps", 2, "--out", tmp_path / "m.json")
    printed = start(f"{name}/measure.py", "--smoke", *flags, cwd=FOLDERS[name][4])
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["nfe"] == 2 and result["generated"] == 20 and 0 <= result["recognised"] <= 1
    assert result["feature_distance"] > result["feature_distance_real"] >= 0
    assert json.loads(printed[printed.index("{") :]) == result


def test_a_fitted_sampler_is_what_auto_takes(trained, tmp_path):
    name, out, _ = trained
    weights = tmp_path / FOLDERS[name][1]
    weights.write_bytes((out / FOLDERS[name][1]).read_bytes())
    flags = ("--smoke", "--weights", weights)
    printed = start(f"{name}/fit_sampler.py", *flags, "--n_steps", 3, cwd=FOLDERS[name][4])
    assert "3 steps: RMS to the fine end" in printed and weights.with_suffix(".samplers.json").exists()
    more = ("--n_samples", 4, "--n_steps", 3, "--out", tmp_path / "grid.png")
    assert "fitted, 3 steps" in start(f"{name}/simple_gen_test.py", *flags, *more, cwd=FOLDERS[name][4])


@pytest.mark.parametrize("trained", ["mnist"], indirect=True)
def test_mnist_test_draws_ten_digits(trained, tmp_path):
    name, out, _ = trained
    flags = ("--weights", out / FOLDERS[name][1], "--out", tmp_path / "digits.png")
    printed = start("mnist/mnist_test.py", "--smoke", *flags, cwd=ROOT)
    assert "ten digits, 8 network evaluations each" in printed
    assert Image.open(tmp_path / "digits.png").size == (10 * 58 + 2, 60 + HEADER)


@pytest.mark.parametrize(("method", "kind"), [("ect", "pt"), ("idff", "pt"), ("rf", "safetensors")])
def test_mnist_test_takes_a_velocity_alone_from_either_file(tmp_path, monkeypatch, method, kind):
    from mnist import mnist_test

    file = weights(tmp_path / "a.pt", options(method=method, sigma=0.2 if method == "idff" else 0.0))
    checkpoint.save_tensors(tmp_path / "a.safetensors", checkpoint.load(file))
    words = ["--smoke", "--weights", str(tmp_path / f"a.{kind}"), "--out", str(tmp_path / "digits.png")]
    monkeypatch.setattr(sys, "argv", ["mnist_test.py", *words])
    if method == "rf":
        mnist_test.main()
        assert (tmp_path / "digits.png").exists()
    else:
        with pytest.raises(
            ValueError, match=f"a.pt does not hold a velocity but {method} weights: python mnist/simple"
        ):
            mnist_test.main()


def test_the_flow_image_generators_lines_run_after_its_preset(tmp_path, monkeypatch, capsys):
    """Its inference example: bare averaged weights, where it looks for them; --smoke replaces none."""
    from common.unet import ConditionalUNet
    from mnist import mnist_train

    monkeypatch.setattr(mnist_train, "HERE", tmp_path)
    argv = ["--preset", "seed", "--smoke", "--batch_size", "2", "--total_steps", "2", "--device", "cpu"]
    argv += ["--sample_step", "0", "--out"]
    final = train_main(mnist_train.FOLDER, "", [*argv, str(tmp_path / "run")], run=mnist_train.run)
    bare = tmp_path / "flow_matching_mnist.pth"
    assert f"the weights alone, for ConditionalUNet(): {bare}" in capsys.readouterr().out
    model = ConditionalUNet()
    model.load_state_dict(torch.load(bare))
    averaged, _ = checkpoint.load_network(final)
    assert all(torch.equal(value, averaged.state_dict()[key]) for key, value in model.state_dict().items())
    sample = mnist_train.generate_sample(model.eval(), img_size=(1, 128, 128), steps=1)
    assert sample.shape == (1, 1, 128, 128) and sample.isfinite().all()

    written = bare.stat().st_mtime_ns
    train_main(mnist_train.FOLDER, "", [*argv, str(tmp_path / "again")], run=mnist_train.run)
    assert bare.stat().st_mtime_ns == written
    mnist_train.leave_bare(mnist_train.FOLDER.here / mnist_train.FOLDER.weights, tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()  # the shipped weights are of another network
    printed = start("mnist/mnist_test.py", "--smoke", "--weights", final, "--out", tmp_path / "digits.png", cwd=ROOT)
    assert "ten digits" in printed and Image.open(tmp_path / "digits.png").size == (10 * 66 + 2, 68)  # no names


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_from_the_other_place_is_quick_and_free_of_torch(script):
    folder = (ROOT / script).parent
    cwd = ROOT if FOLDERS.get(folder.name, ("",) * 5)[4] == folder else folder
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "sys.path[0] = __import__('os').path.dirname(sys.argv[0]) or '.'\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left: print('left', left.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    name = os.path.relpath(ROOT / script, cwd)
    shown = subprocess.run([sys.executable, "-c", code, name, "--help"], cwd=cwd, capture_output=True, text=True)
    assert shown.stdout.endswith("left 0 False False\n"), shown.stderr
    assert "--smoke" in shown.stdout and "--device" in shown.stdout or "true" in script


# ---- the folders of large images


def test_scripts_of_the_folders_of_large_images(tmp_path):
    """Train, sample, arcs, inversion, many images, real images: --smoke, with the weights that the training left.

    The three folders of 256x256 have one network: the last one's weights serve the two that are not trained again.
    """
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "photo.jpg")
    jobs = []
    for name in ("celebA", "lsun_church"):
        jobs.append((name, LARGE[name][0], "--smoke", "--out", tmp_path / name / "run"))
        jobs[-1] += ("--total_steps", 2, "--batch_size", 4)
    for name, (train, _, side) in LARGE.items():
        out, trained = tmp_path / name, "celebA" if side == 64 else "lsun_church"
        if name != trained:
            jobs.append((name, train, "--help"))
        weights = tmp_path / trained / "run" / LARGE[trained][1]
        use = ("--smoke", "--weights", weights, "--n_steps", 2)
        jobs.append((name, "simple_gen_test.py", *use, "--n_samples", 4, "--interpolate", "--columns", 2))
        jobs[-1] += ("--out", out / "arcs.png")
        jobs.append((name, "simple_gen_test.py", *use, "--invert", tmp_path / "photo.jpg", "--out", out / "way.png"))
        jobs.append((name, f"gen_{name}.py", *use, "--n_samples", 3, "--save_dir", out / "gen"))
        jobs.append((name, f"gen_true_{name}.py", "--smoke", "--n_samples", 8, "--save_dir", out / "true.npz"))
    files = tmp_path / "celebA" / "checkpoints"
    jobs.append(("celebA", "rectified_flow_train.py", "--smoke", "--out", files))
    printed = ""
    for folder, script, *flags in jobs:
        device = () if "true" in script else ("--device", "cpu")
        printed += start(f"{folder}/{script}", *flags, *device, cwd=ROOT)
    for name, (_, final, side) in LARGE.items():
        out = tmp_path / name
        if (out / "run").exists():
            _, info = checkpoint.load_network(out / "run" / final)
            assert info["config"]["image_size"] == side and info["method"]["name"] == "idff" and info["step"] == 2
        shown = 2 * side if side <= 64 else side
        assert Image.open(out / "arcs.png").size == (2 * shown + 6, 2 * shown + 6)
        assert Image.open(out / "way.png").size == (3 * side + 8, side + 4)
        assert sorted(path.name for path in (out / "gen").glob("*.png")) == [f"{k:06d}.png" for k in range(3)]
        with np.load(out / "true.npz") as real:
            assert real["arr_0"].shape == (8, side, side, 3)
    assert printed.count("error after both ways: RMS") == 4 and printed.count("4 images, idff weights") == 4
    assert (files / "rf_best.pth").exists() and (files / "epoch_1.pth").exists()


# ---- what a folder's own files say


@pytest.fixture(params=[*FOLDERS, *LARGE])
def config(request):
    """A folder's config.py."""
    return importlib.import_module(f"{request.param}.config")


def test_presets_are_in_range_and_build_their_networks(config):
    for name, preset in config.FOLDER.presets.items():
        cli.validate(preset)
        for run in (preset, smoke_preset(preset)):
            with torch.device("meta"):
                net = build_network(network_description(run, METHODS[run.method].heads))
            assert net.num_classes == (run.num_classes and run.num_classes + 1), name
    assert config.FOLDER.here.name in {*FOLDERS, *LARGE} and (config.FOLDER.here / "_repo.py").exists()


@pytest.mark.parametrize("config", ["cifar10"], indirect=True)
def test_the_paper_preset_is_the_published_network(config):
    paper = config.FOLDER.presets["paper"]
    with torch.device("meta"):
        velocity = build_network(network_description(paper, 1))
    assert sum(p.numel() for p in velocity.parameters()) == 35_746_307  # torchcfm's CIFAR-10 network
    assert (paper.method, paper.sigma, paper.flow_weight) == ("idff", 0.2, 2.0)
    assert (paper.lr, paper.batch_size, paper.ema_decay) == (2e-4, 128, 0.9999)
    assert (paper.data_loss, paper.score_target, paper.score_weight, paper.times) == ("data", "noise", 1.0, "uniform")
    default, small = (config.FOLDER.presets[name] for name in ("default", "small"))
    with torch.device("meta"):
        networks = [build_network(network_description(preset, 2)) for preset in (default, small)]
    assert [round(sum(p.numel() for p in net.parameters()) / 1e6, 1) for net in networks] == [19.4, 7.0]
    deep = config.FOLDER.presets["paper-deep"]
    assert deep == dataclasses.replace(paper, channel_mult=(1, 2, 2, 4))


def test_names_of_runs_and_weights_are_the_seeds(config):
    folder = config.FOLDER
    published = folder.presets.get("paper", folder.presets["default"])
    run, name = folder.run_name(published), folder.weights_name.format(METHOD=published.method.upper())
    assert f"results/{run}/{name}" == folder.weights
    assert folder.weights in (
        "results/IDFF-2.0-0.2/IDFF_cifar10_weights_step_final.pt",
        "results/RF-0.0/flow_matching_mnist.pth",
        *(f"results/IDFF-2.0-0.2/{files[1]}" for files in LARGE.values()),
    )


@pytest.mark.parametrize("config", FOLDERS, indirect=True)
def test_what_is_shipped_belongs_together(config):
    """Card, samplers and options are those of the weights that they lie beside."""
    weights = config.FOLDER.here / config.FOLDER.weights
    state, card = checkpoint.load(weights), json.loads(card_path(weights).read_text())
    assert card["sha256"] == file_hash(weights) and card["measured"]
    assert (card["steps"], card["images_seen"]) == (state["step"], state["images_seen"])
    assert card["parameters"] == sum(x.numel() for x in state["ema_model"].values())
    assert {entry["n_steps"] for entry in fitted.read_samplers(weights)["fitted"]} >= {5, 8, 10}
    options = cli.parse(TrainConfig, config.FOLDER.presets, argv=["-c", str(weights.with_name("config.yaml"))])
    described = network_description(options, METHODS[options.method].heads)
    assert {key: described[key] for key in state["network"]} == state["network"]
    assert (options.method, options.sigma) == (state["method"]["name"], state["method"]["sigma"])
    # log and options end together
    last = json.loads(weights.with_name("metrics.jsonl").read_text().splitlines()[-1])
    assert options.total_steps - last["step"] < 100 and f"results/{config.FOLDER.run_name(options)}" in str(weights)


@pytest.mark.parametrize("config", LARGE, indirect=True)
def test_presets_of_large_images_say_what_they_are_for(config):
    name, presets = config.FOLDER.here.name, config.FOLDER.presets
    paper, small = presets["paper"], presets["small"]
    assert (paper.image_size, paper.lr, paper.method, paper.sigma) == (LARGE[name][2], 1e-5, "idff", 0.2)
    assert {"data", "noise"} == {paper.data_loss, paper.score_target} and paper.coupling == "auto"
    assert all((p.data_loss, p.score_target) == ("velocity", "conditional") for p in (small, presets["default"]))
    assert paper.channel_mult == ((1, 2, 2, 4, 4) if name == "celebA" else (1, 1, 2, 2, 4, 4))
    patches, steps = (16, 7000) if name == "celebA" else (32, 2000)  # hours of a CPU
    assert small.image_size // small.patch_size == patches and small.total_steps <= steps
    assert config.FOLDER.places and "--data" not in config.FOLDER.advice
    if name == "celebA":
        return
    one, several = presets["default"], presets["multi"]
    assert one.checkpointing and one.grad_accum > 1 and one.mixed_precision == "bf16" and not one.parallel
    assert several.parallel and all(several.batch_size % (gpus * several.grad_accum) == 0 for gpus in (2, 4, 8, 16))
    with torch.device("meta"):
        networks = [build_network(network_description(preset, 2)) for preset in (paper, one)]
    assert [sum(p.numel() for p in net.parameters()) for net in networks] == [113_680_134] * 2


@pytest.mark.parametrize("config", ["celebA"], indirect=True)
def test_idffs_command_line(config):
    argv = ["--model", "IDFF", "--flow_w", "5", "--output_dir", "results/a", "--num_channel", "64", "--parallel=True"]
    run = cli.parse(
        TrainConfig, config.FOLDER.presets, aliases=FLAGS, argv=[*argv, "--ema_decay=0.999", "--lr", "1e-5"]
    )
    wanted = {"method": "idff", "flow_weight": 5.0, "out": "results/a", "num_channel": 64, "parallel": True}
    assert {key: getattr(run, key) for key in wanted} == wanted and (run.ema_decay, run.lr) == (0.999, 1e-5)


@pytest.mark.parametrize("config", ["cifar10"], indirect=True)
def test_flow_matching_pytorchs_command_line(config):
    file = str(config.FOLDER.here / "configs" / "cifar10.yaml")
    argv = ["-c", file, "-e", "results/fm", "-mp", "fp16"]
    run = cli.parse(TrainConfig, config.FOLDER.presets, argv=argv)
    assert (run.out, run.mixed_precision, run.num_channel, run.batch_size, run.lr) == (
        "results/fm",
        "fp16",
        256,
        256,
        5e-4,
    )
    assert run.method == "cfm" and run.num_classes == 0 and run.total_steps == 200_000 and run.patch_size == 1


@pytest.mark.parametrize("config", ["mnist"], indirect=True)
def test_generate_sample_is_importable_as_in_the_seed(config):
    generate_sample = importlib.import_module("mnist.mnist_train").generate_sample
    model = network(options(num_classes=3))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    image = generate_sample(model, img_size=(1, 8, 8), steps=5)
    assert image.shape == (1, 1, 8, 8) and image.abs().max() <= 1 and len(calls) == 20
    torch.manual_seed(0)
    assert torch.equal(image, generate_sample(model, (1, 8, 8), 5))
    torch.manual_seed(0)
    assert not torch.allclose(image, generate_sample(model, (1, 8, 8), 5, label=1))
    torch.manual_seed(0)
    constant = generate_sample(Constant(), (1, 8, 8), 5)
    torch.manual_seed(0)
    assert torch.allclose(constant, (torch.randn(1, 1, 8, 8) + 0.25).clamp(-1, 1), atol=1e-6)


class Constant(torch.nn.Module):
    """A velocity of 0.25 everywhere: images are the noise plus 0.25."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.25))

    def forward(self, x, t, y=None):
        return self.value.expand_as(x)
