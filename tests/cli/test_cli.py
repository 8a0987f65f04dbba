"""Command lines: precedence, other projects' spellings, files, ranges, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest

from common.cli import index_range, parse, parse_with_extra, to_yaml, validate
from common.cli.configs import GenConfig, GridConfig, SampleConfig, TrainConfig, TrueConfig
from common.cli.ranges import OneOf
from tiny import ROOT

PRESETS = {
    "default": TrainConfig(num_channel=64, batch_size=64),
    "paper": TrainConfig(method="idff", sigma=0.2, channel_mult=(1, 2, 2, 4), out="results/paper"),
}

SCRIPT = """
import sys
import time
sys.path.insert(0, {root!r})
from common.cli import parse
from common.cli.configs import {cls}
from common.runtime import run_main

def main():
    print(parse({cls}).batch_size)

run_main(main)
"""


def train(line: str, **keywords) -> TrainConfig:
    return parse(TrainConfig, argv=shlex.split(line), **keywords)


def gen(line: str) -> GenConfig:
    return parse(GenConfig, argv=shlex.split(line))


@pytest.fixture
def script(tmp_path):
    """Run a little training script in its own process: (exit code, stdout, stderr)."""
    path = tmp_path / "train_it.py"
    path.write_text(SCRIPT.format(root=str(ROOT), cls="TrainConfig"))

    def run(line: str, *python_flags: str) -> tuple[int, str, str]:
        command = [sys.executable, *python_flags, str(path), *shlex.split(line)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


# ---- command lines that must parse


@pytest.mark.parametrize("cls", [TrainConfig, SampleConfig, GridConfig, GenConfig, TrueConfig])
def test_no_arguments_give_the_defaults(cls):
    assert parse(cls, argv=[]) == cls()


def test_flow_matching_pytorch_commands(tmp_path):
    config = tmp_path / "cifar10.yaml"
    config.write_text("total_steps: 200000\nbatch_size: 64\nnum_channel: 32\nlr: 2e-4\n")
    trained = train(f"-c {config} -e ./runs/one -mp fp16")
    assert (trained.out, trained.mixed_precision, trained.total_steps) == ("./runs/one", "fp16", 200_000)
    assert trained.lr == 2e-4  # which YAML takes for text
    line = (
        f"-c {config} --weights ./runs/expdir/ckpt/step0001/model_ema.pt --n_samples 50000 --save_dir ./samples "
        "--sampling_steps 100 --sampling_method heun --bspp 250 -seed 8888"
    )
    sampled, extra = parse_with_extra(GenConfig, argv=shlex.split(line))
    assert sampled == GenConfig(
        weights="./runs/expdir/ckpt/step0001/model_ema.pt",
        save_dir="./samples",
        n_steps=100,
        solver="heun",
        batch_size=250,
        seed=8888,
    )
    assert extra == {"total_steps": 200_000, "batch_size": 64, "num_channel": 32, "lr": 2e-4}
    assert gen("--seed 8888 --sampling_method 'euler'").seed == 8888


@pytest.mark.parametrize("cls", [TrainConfig, GridConfig, GenConfig, TrueConfig])
def test_idff_and_mnist_commands_have_no_flags(cls):
    # python simple_gen_test.py, gen_cifar10.py, gen_true_cifar10.py, mnist_train.py, mnist_test.py
    assert parse(cls, argv=[]) == cls()


def test_absl_spellings():
    line = "--model icfm --output_dir ./results/ --num_channel 64 --ema_decay=0.999 --parallel=True --flip=False"
    config = train(line + " --warmup=5000 --save-step 20000")
    assert config == TrainConfig(
        method="cfm", out="./results/", num_channel=64, ema_decay=0.999, parallel=True, flip=False, save_step=20_000
    )
    assert gen("--integration_steps 100 --integration_method dopri5 --batch_size_fid 1024") == GenConfig(
        n_steps=100, solver="dopri5", batch_size=1024
    )
    assert train("--num_channels=32").num_channel == 32


@pytest.mark.parametrize(
    ("line", "flip"),
    [
        ("--flip", True),
        ("--no-flip", False),
        ("--no_flip", False),
        ("--noflip", False),
        ("--flip=True", True),
        ("--flip=false", False),
        ("--flip False", False),
        ("--flip=0", False),
        ("--no-flip --flip", True),
        ("-flip=no", False),
    ],
)
def test_booleans(line, flip):
    assert train(line, presets={"other": TrainConfig(flip=not flip)}).flip is flip


@pytest.mark.parametrize(
    "line",
    [
        "--channel_mult 1 2 2 4",
        "--channel-mult 1,2,2,4",
        "--channel_mult=1,2,2,4",
        "--channel_mult '[1, 2, 2, 4]'",
        "--channel_mult 1 2 --channel_mult=(1,2,2,4)",
    ],
)
def test_lists(line):
    config = train(line + " --lr 1e-3")
    assert config.channel_mult == (1, 2, 2, 4) and config.lr == 1e-3


def test_values():
    config = train("--total_steps 4e5 --warmup 1_000 --head_channels -1 --lr .001 --attention_resolutions --out=")
    assert (config.total_steps, config.warmup, config.head_channels) == (400_000, 1000, -1)
    assert (config.lr, config.attention_resolutions, config.out) == (0.001, (), "")
    assert isinstance(config.total_steps, int)
    assert train("--ema_std none").ema_std == train("--ema_std=null").ema_std == train("--ema_std").ema_std == ()
    with pytest.raises(ValueError, match="^--channel_mult none: give whole numbers such as 1,2,2$"):
        train("--channel_mult none")
    assert train("--out 'a = b -c'").out == "a = b -c"
    assert gen("--label -1 --cfg 2").cfg == 2.0


def test_a_later_flag_wins_and_the_spelling_does_not_matter():
    assert gen("--sampling_steps 5 --n-steps=7").n_steps == 7
    assert train("-seed 1 --seed 2 -seed=3").seed == 3


def test_own_aliases_and_fields_come_before_borrowed_names():
    @dataclass(frozen=True)
    class Own:
        steps: int = 1
        """own meaning"""
        n_steps: int = 2
        """another"""

    assert parse(Own, argv=["--steps", "5"]) == Own(steps=5)
    assert parse(Own, argv=["--nfe", "6"], aliases={"--nfe": "--n-steps"}) == Own(n_steps=6)


def test_argv_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "9"])
    assert parse(TrainConfig).seed == 9


def test_words_without_their_flags():
    @dataclass(frozen=True)
    class Own:
        a: str = ""
        """first"""
        b: int = 2
        """second"""
        rest: tuple[str, ...] = ()
        """third"""
        flip: bool = False
        """no word"""

    def own(line: str) -> Own:
        return parse(Own, argv=shlex.split(line), words=("a", "b", "rest"))

    assert own("x 3 y z --flip") == Own("x", 3, ("y", "z"), True)
    assert own("--flip x --b 4") == Own("x", 4, (), True)
    assert own("--rest y --flip x") == Own("x", 2, ("y",), True)
    assert own("x 1 y --rest z --flip w --rest=u,v") == Own("x", 1, ("y", "z", "w", "u", "v"), True)
    with pytest.raises(ValueError, match="^b three: give a whole number$"):
        own("x three")
    with pytest.raises(ValueError, match="^unexpected argument 'y': options begin with --"):
        parse(Own, argv=["x", "y"], words=("a",))
    assert parse(TrainConfig, PRESETS, argv=["paper", "--seed", "1"], words=("preset",)).method == "idff"


def test_none_and_the_numbers_that_stood_for_it(tmp_path):
    assert gen("") == gen("--label none --landing null") == gen("--label -1 --landing=0") == GenConfig()
    assert (gen("--label 0").label, gen("--landing 1").landing) == (0, 1.0)
    file = tmp_path / "c.yaml"
    file.write_text("label: -1\nlanding: 0.0\n")  # written by older versions
    assert gen(f"-c {file}") == GenConfig() and gen(f"-c {file} --label 3").label == 3
    file.write_text("label: null\nlanding:\n")
    assert gen(f"-c {file}") == GenConfig()
    for config in (GenConfig(), GenConfig(label=0, landing=0.5)):
        file.write_text(to_yaml(config))
        assert gen(f"-c {file}") == config
    assert "label: null\n" in to_yaml(GenConfig()) and "epochs: null\n" in to_yaml(TrainConfig())
    for flag, text in (("--label x", "give a whole number, or none"), ("--landing 2", "must be at most 1")):
        with pytest.raises(ValueError, match=text):
            gen(flag)
    with pytest.raises(ValueError, match="^--label -1: give a whole number, or none$"):
        validate(GenConfig(label=-1))


def test_names_from_a_table():
    @dataclass(frozen=True)
    class Own:
        method: Annotated[str, OneOf(("cfm", "rf"), "see the README", (("icfm", "cfm"),))] = "rf"
        """a text with a list"""

    assert parse(Own, argv=["--method", "ICFM"]) == Own("cfm")
    with pytest.raises(ValueError, match="^--method x: choose one of cfm, rf; see the README$"):
        parse(Own, argv=["--method=x"])
    with pytest.raises(ValueError, match="^--method x: choose one of cfm, rf; see the README$"):
        validate(Own("x"))


# ---- precedence and files


def test_default_preset_file_flags(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 32\nchannel_mult: [1, 2]\n")
    assert train("", presets=PRESETS) == PRESETS["default"]
    assert train("--preset paper", presets=PRESETS) == PRESETS["paper"]
    config = train(f"--seed 3 --channel_mult 1 -c {file} --preset=paper", presets=PRESETS)
    assert config == replace(PRESETS["paper"], batch_size=32, channel_mult=(1,), seed=3)


def test_steps_given_later_set_aside_epochs(tmp_path):
    presets = {"default": TrainConfig(epochs=20)}
    file = tmp_path / "c.yaml"
    file.write_text("total_steps: 9\nepochs: 3\n")  # a run's own file holds both: its steps are those of its epochs
    lengths = {line: train(line, presets=presets) for line in ("", "--total_steps 5", f"-c {file}", "--epochs 2")}
    assert [(c.total_steps, c.epochs) for c in lengths.values()] == [(400_000, 20), (5, None), (9, 3), (400_000, 2)]
    both = train(f"-c {file} --total_steps 5", presets=presets), train("--total_steps 5 --epochs 2", presets=presets)
    assert [(c.total_steps, c.epochs) for c in both] == [(5, None), (5, 2)]


def test_another_method_sets_aside_what_a_preset_says_of_its_own(tmp_path):
    terms = {"data_loss": "velocity", "score_target": "conditional", "score_weight": 0.1, "flow_weight": 1.0}
    recipe = TrainConfig(method="idff", sigma=0.2, **terms, coupling="independent", times="mixed", lr=1.0)
    presets = {"default": recipe}
    assert train("--method idff", presets=presets) == recipe
    assert train("--method otcfm", presets=presets) == TrainConfig(method="otcfm", sigma=0.2, times="mixed", lr=1.0)
    assert train("--method flowmap", presets=presets) == TrainConfig(method="flowmap", sigma=0.2, lr=1.0)
    tuned = train("--method ect --init a.pt --times_std 1.5", presets=presets)
    assert tuned == TrainConfig(method="ect", sigma=0.2, lr=1.0, init="a.pt", times_std=1.5)
    assert train("--method rf --coupling independent", presets=presets).coupling == "independent"
    file = tmp_path / "c.yaml"
    file.write_text("coupling: sinkhorn\n")  # what a file says itself stays
    assert train(f"-c {file} --method rf", presets=presets).coupling == "sinkhorn"
    file.write_text(to_yaml(recipe))
    with pytest.raises(ValueError, match="data_loss velocity: --method rf has no such term"):
        train(f"-c {file} --method rf")


def test_yaml_round_trip(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for config in (*PRESETS.values(), TrainConfig(lr=1e-7, data="a: #b", attention_resolutions=(), flip=False)):
        (folder / "config.yaml").write_text(to_yaml(config))
        assert train(f"-c {folder / 'config.yaml'}", presets=PRESETS) == config
        assert train(f"-c {folder}") == config  # the run folder itself
    assert to_yaml(TrainConfig()).startswith("method: cfm\n") and "!!" not in to_yaml(TrainConfig())
    (folder / "config.yaml").write_text(to_yaml(GenConfig(range="5:7")))
    assert gen(f"-c {folder}") == GenConfig(range="5:7")


def test_json_and_python_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"lr": 1, "num-channel": 64, "channel_mult": [1, 2]}))
    expected = TrainConfig(lr=1.0, num_channel=64, channel_mult=(1, 2))
    assert train(f"-c {tmp_path / 'a.json'}") == expected
    (tmp_path / "b.py").write_text(
        "class ConfigDict:\n    def to_dict(self):\n        return dict(lr=1, num_channel=64, channel_mult=(1, 2))\n"
        "def get_config():\n    return ConfigDict()\n"
    )
    assert train(f"--config={tmp_path / 'b.py'}") == expected
    (tmp_path / "c.py").write_text(
        "from common.cli.configs import TrainConfig\n"
        "def get_config():\n    return TrainConfig(lr=1.0, num_channel=64, channel_mult=(1, 2))\n"
    )
    assert train(f"-c {tmp_path / 'c.py'}") == expected


def test_what_yaml_makes_of_bare_words(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("mixed_precision: no\nresume: no\nlogger: null\nflip: off\nout:\nlr: 1e-3\nchannel_mult: 1 2 4\n")
    assert train(f"-c {file}") == TrainConfig(flip=False, lr=1e-3, channel_mult=(1, 2, 4))


def test_a_training_file_for_sampling(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(PRESETS["paper"]))
    config, extra = parse_with_extra(GridConfig, argv=["-c", str(file), "--n_steps", "5"])
    assert config == GridConfig(n_steps=5)  # not the training's batch size, seed or run folder
    assert TrainConfig(**extra) == PRESETS["paper"]
    with pytest.raises(ValueError, match="unknown key method"):
        parse(GridConfig, argv=["-c", str(file)])
    file.write_text("n_steps: 3\nnum_channel: 64\nseed: 4\n")  # both kinds of keys in one file
    assert parse_with_extra(GenConfig, argv=["-c", str(file)]) == (GenConfig(n_steps=3), {"num_channel": 64, "seed": 4})
    file.write_text("n_steps: 3\nseed: 4\n")  # a sampling's own file
    assert parse_with_extra(GenConfig, argv=["-c", str(file)]) == (GenConfig(n_steps=3, seed=4), {})


# ---- mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batchsize 4", "unknown flag --batchsize; the nearest is --batch_size (--help lists all)"),
        ("--chanel_mult=1", "unknown flag --chanel_mult; the nearest is --channel_mult (--help lists all)"),
        ("--qqq", "unknown flag --qqq (--help lists all)"),
        ("--no-lr", "unknown flag --no-lr"),
        ("--n_steps 4", "unknown flag --n_steps"),
        ("--preset paper", "unknown flag --preset"),
        ("config.yaml", "unexpected argument 'config.yaml'"),
        ("--seed 1 2", "unexpected argument '2'"),
        ("--lr", "--lr needs a value: give a number"),
        ("--lr --seed 1", "--lr needs a value"),
        ("--method fmm", "--method fmm: choose one of cfm, otcfm, fm, sbcfm, rf, idff"),
        ("-mp half", "-mp half: choose one of no, fp16, bf16"),
        ("--total_steps many", "--total_steps many: give a whole number"),
        ("--total_steps 1.5", "--total_steps 1.5: give a whole number"),
        ("--total_steps=", "--total_steps '': give a whole number"),
        ("--total_steps inf", "--total_steps inf: give a whole number"),
        ("--lr fast", "--lr fast: give a number"),
        ("--flip=maybe", "--flip maybe: give true or false"),
        ("--channel_mult 1 two", "--channel_mult 1,two: give whole numbers such as 1,2,2"),
        ("--batch_size 0", "--batch_size 0: must be at least 1"),
        ("--total_steps -5", "--total_steps -5: must be at least 1"),
        ("--lr 0", "--lr 0.0: must be above 0"),
        ("--betas 0.9", "--betas 0.9: give two numbers, e.g. 0.9 0.99"),
        ("--betas 0.9 1", "--betas 1.0: must be below 1"),
        ("--betas 0.9 nan", "--betas nan: must be a finite number"),
        ("--betas a,b", "--betas a,b: give numbers such as 0.9,0.99"),
        ("--lr nan", "--lr nan: must be a finite number"),
        ("--ema_decay 1", "--ema_decay 1.0: must be below 1"),
        ("--dropout -0.1", "--dropout -0.1: must be at least 0"),
        ("--sigma -1", "--sigma -1.0: must be at least 0"),
        ("--num_classes -1", "--num_classes -1: must be at least 0"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--channel_mult", "--channel_mult: give one value or more, e.g. 1,2,2,2"),
        ("--channel_mult 1 0", "--channel_mult 0: must be at least 1"),
        ("--channel_mult=", "--channel_mult: give one value or more, e.g. 1,2,2,2"),
        ("--total_steps ٣", "--total_steps ٣: give a whole number"),
        ("--total_steps ３e2", "--total_steps ３e2: give a whole number"),
        ("--lr ١", "--lr ١: give a number"),
        ("--channel_mult 1,２", "--channel_mult 1,２: give whole numbers such as 1,2,2"),
        ("--total_steps 1e25", "--total_steps 10000000000000000905969664: must be below 2^63"),
        (f"--total_steps {10**25}", f"--total_steps {10**25}: must be below 2^63"),
        (f"--channel_mult 1,{10**25}", f"--channel_mult {10**25}: must be below 2^63"),
        ("--head_channels 0", "--head_channels 0: must be at least 1, or -1"),
        ("--method idff", "--sigma 0: --method idff is a bridge with noise, give a sigma above 0"),
        ("--method sbcfm", "--sigma 0: --method sbcfm"),
        ("--grad_accum 3", "--grad_accum 3: must divide --batch_size 128"),
        ("--grad_accum 0", "--grad_accum 0: must be at least 1"),
        ("--image_size 28", "--image_size 28: must be divisible by 8 (patch_size 1, 4 levels), e.g. 24 or 32"),
        ("--image_size 4 --patch_size 2", "--image_size 4: must be divisible by 16 (patch_size 2, 4 levels), e.g. 16"),
        ("--device gpu", "--device gpu: choose auto, cpu, cuda, mps"),
        ("-c nowhere.yaml", "there is no configuration file nowhere.yaml"),
    ],
)
def test_training_mistakes(line, message):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        train(line)
    text = str(raised.value)
    assert text.startswith(message) and "\n" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--n_steps 0", "--n_steps 0: must be at least 1"),
        ("--n_step 5", "unknown flag --n_step; the nearest is --n_steps"),
        ("--sampling_step 5", "unknown flag --sampling_step; the nearest is --n_steps"),
        ("--solver rk5", "--solver rk5: choose one of auto, fitted, euler, midpoint, heun, rk4,"),
        ("--sampling_method rk5", "--sampling_method rk5: choose one of auto, fitted, euler,"),
        ("--grid cos", "--grid cos: choose one of auto, uniform, cosine"),
        ("--n_samples 0", "--n_samples 0: must be at least 1"),
        ("--label -2", "--label -2: must be at least -1"),
        ("--cfg -1", "--cfg -1.0: must be at least 0"),
        ("--rtol 0", "--rtol 0.0: must be above 0"),
        ("--range 5", "--range 5: write START:STOP"),
        ("--range 7:7", "--range 7:7: START must be below STOP"),
        ("--range 0:60000", "--range 0:60000: there are only --n_samples 50000; raise it to 60000"),
    ],
)
def test_sampling_mistakes(line, message):
    with pytest.raises(ValueError) as raised:
        gen(line)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_unknown_preset():
    with pytest.raises(ValueError, match="^--preset big: choose one of default, paper$"):
        train("--preset big", presets=PRESETS)


def test_every_image_is_allowed_where_it_is_the_default():
    assert parse(TrueConfig, argv=["--n_samples", "0"]).n_samples == 0
    with pytest.raises(ValueError, match="--n_samples -1: must be at least 0"):
        parse(TrueConfig, argv=["--n_samples", "-1"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "lr: 1\nlrr: 2\n", "unknown key lrr; the nearest is lr"),
        ("a.yaml", "zzz: 2\n", "unknown key zzz"),
        ("a.yaml", "lr: [1\nb: 2\n", "not readable as .yaml: line"),
        ("a.yaml", "just words\n", "it must hold a mapping, one `name: value` per line, not just words"),
        ("a.yaml", "", "it must hold a mapping"),
        ("a.yaml", "- 1\n", "it must hold a mapping"),
        ("a.yaml", b"\xff\xfe\x00", "not readable as .yaml: "),
        ("a.yaml", "!!python/object/apply:os.system ['touch pwned']\n", "not readable as .yaml: line 1"),
        ("a.yaml", "lr: fast\n", "lr fast: give a number"),
        ("a.yaml", "batch_size: true\n", "batch_size True: give a whole number"),
        ("a.yaml", "data:\n  target: x\n", "data {'target': 'x'}: give a text"),
        ("a.yaml", "method: [cfm]\n", "method cfm: choose one of cfm, otcfm"),
        ("a.yaml", "channel_mult: {a: 1}\n", "channel_mult {'a': 1}: give whole numbers"),
        ("a.json", "{", "not readable as .json: "),
        ("a.txt", "lr: 1", "a configuration file ends in .yaml, .yml, .json, .py"),
        ("a.py", "x = 1\n", "not readable as .py: ValueError: it has no function get_config()"),
        ("a.py", "def get_config():\n    return 1 / 0\n", "not readable as .py: ZeroDivisionError: division by zero"),
        ("a.py", "def get_config(:\n", "not readable as .py: SyntaxError"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as raised:
        train(f"-c {file}")
    text = str(raised.value)
    assert text.startswith(f"{file}: {message}") and "\n" not in text
    assert not (tmp_path / "pwned").exists()


def test_a_value_out_of_range_in_a_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 0\n")
    with pytest.raises(ValueError, match="--batch_size 0: must be at least 1"):
        train(f"-c {file}")
    assert train(f"-c {file} --batch_size 2").batch_size == 2


def test_validate_checks_a_preset_written_by_hand():
    for config in PRESETS.values():
        validate(config)
    with pytest.raises(ValueError, match="--lr_decay exp: choose one of none, cosine, linear"):
        validate(TrainConfig(lr_decay="exp"))  # type: ignore[arg-type]


def test_index_range():
    assert index_range("", 10) == (0, 10)
    assert index_range("3:7", 10) == (3, 7)
    assert index_range(":7", 10) == (0, 7)
    assert index_range("3:", 10) == (3, 10)
    for text in ("3", "a:b", "-1:3", "1:2:3", "7:3"):
        with pytest.raises(ValueError, match=f"--range {text}"):
            index_range(text, 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batch_sise 4", "error: unknown flag --batch_sise; the nearest is --batch_size (--help lists all)\n"),
        ("--batch_size 0", "error: --batch_size 0: must be at least 1\n"),
        (
            "-c gone.yaml",
            "error: there is no configuration file gone.yaml: give a .yaml, .json or .py, or a run folder\n",
        ),
    ],
)
def test_a_script_ends_with_one_line_and_code_2(script, line, message):
    assert script(line) == (2, "", message)


def test_a_script_runs(script):
    assert script("--batch_size 4") == (0, "4\n", "")


# ---- help


def test_help_shows_sections_texts_and_the_presets_defaults(capsys):
    with pytest.raises(SystemExit) as left:
        train("--preset paper --help", presets=PRESETS, description="Train on small pictures.")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert left.value.code == 0
    assert "Train on small pictures." in text
    assert "--preset {default,paper}" in text and "-c FILE, --config FILE" in text
    assert "network options" in text and "optimisation options" in text
    assert "-mp {no,fp16,bf16}, --mixed_precision {no,fp16,bf16}" in text
    assert "Noise of the path" in text
    assert "Channel multiplier of each level, finest first (default: 1 2 2 4)" in text
    assert "--flip, --no_flip" in text


def test_help_has_every_flag_once(capsys):
    for cls in (TrainConfig, GenConfig, TrueConfig):
        with pytest.raises(SystemExit):
            parse(cls, argv=["-h"])
        out = capsys.readouterr().out  # tyro leaves the box out where the output cannot show it
        flags = [flag for line in out.splitlines() if re.match("[│ ] -", line) for flag in re.findall(r"--\w+", line)]
        for field in dataclasses.fields(cls):
            assert flags.count(f"--{field.name}") == 1, field.name


@pytest.mark.parametrize("width", [30, 80, 200])
def test_help_keeps_examples_on_lines_of_their_own(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    about = """A picture of many, many images from the shipped
weights.

python simple_gen_test.py
python simple_gen_test.py --n_steps 20 --cfg 1.5  # longer than a narrow terminal
accelerate-launch train.py

Seconds
on a CPU.
    python indented.py
"""
    with pytest.raises(SystemExit):
        train("--help", description=about)
    lines = capsys.readouterr().out.split("usage:")[0].splitlines()
    for example in (*about.splitlines()[3:6], "    python indented.py"):
        assert example in lines
    others = [line for line in lines if "python" not in line and "accelerate" not in line]
    assert all(len(line) <= width for line in others) and "Seconds on a CPU." in lines
    assert ("A picture of many, many images from the shipped weights." in lines) is (width >= 80)


def test_help_of_long_lists_and_of_none(capsys):
    with pytest.raises(SystemExit):
        gen("--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--solver NAME Numerical method;" in text and "One of auto, fitted, euler, midpoint, heun, rk4," in text
    assert "--label INT Class to draw; none (or -1): all classes in turn (default: none)" in text


def test_help_of_a_class_without_source():
    made = dataclasses.make_dataclass("Made", [("a", int, 1), ("b", Literal["x", "y"], "x")], frozen=True)
    assert parse(made, argv=["--a", "2", "--b", "y"]) == made(2, "y")
    with pytest.raises(SystemExit) as left:
        parse(made, argv=["--help"])
    assert left.value.code == 0


def test_help_is_instant_and_imports_nothing_heavy(script):
    seconds = []
    for _ in range(2):  # the better of two, in the processor's time: this machine may be busy
        before = os.times()
        code, out, err = script("--help")
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))  # of the children, user and system
        assert (code, err) == (0, "") and "--batch_size" in out
    assert 0 < min(seconds) < 1
    imported = {
        line.split("|")[-1].strip().split(".")[0] for line in script("--help", "-X", "importtime")[2].splitlines()
    }
    assert {"tyro", "common"} <= imported
    assert not {"torch", "numpy", "torchvision", "accelerate", "yaml", "matplotlib", "PIL", "typeguard"} & imported
    parsed = script("--batch_size 4", "-X", "importtime")[2]
    assert "common.cli" in parsed and "tyro" not in parsed and "common.cli.help" not in parsed


def test_help_from_a_terminal_of_any_width(script, monkeypatch):
    for width in ("40", "200"):
        monkeypatch.setitem(os.environ, "COLUMNS", width)
        assert script("--help")[0] == 0


# ---- files that would take all time or memory, or talk to the terminal


BOMB = "&a [1,1,1,1,1,1,1,1,1,1]"
for level in "bcdefghi":
    BOMB = f"&{level} [{BOMB}{f', *{chr(ord(level) - 1)}' * 9}]"


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.yaml", f"lr: {BOMB}\n", "more than 20,000 values, with its aliases written out"),
        ("a.yaml", "seed: 1\nlr: 1\nseed: 2\n", "seed stands in it 2 times"),
        ("a.json", '{"seed": 1, "seed": 2}', "seed stands in it 2 times"),
        ("a.yaml", "seed: 010\n", "010 is read in base 8 or 60"),
        ("a.yaml", "seed: 1:30\n", "1:30 is read in base 8 or 60"),
        ("a.py", "import sys\nsys.exit(0)\n", "not readable as .py: SystemExit: 0"),
        ("a.yaml", f"channel_mult: {BOMB}\n", "more than 20,000 values"),
        ("a.yaml", "lr: &a [*a]\n", "RecursionError"),
        ("a.yaml", "lr: " + "[" * 5_000, "not readable as .yaml"),
        ("a.yaml", "#" * 3_000_000 + "\nlr: 1\n", "it has 3,000,007 bytes"),
        ("a.json", '{"channel_mult": [' + "1," * 10**6 + "1]}", "it has 2,000,021 bytes"),
        (
            "a.yaml",
            "channel_mult: [" + "1," * 9_000 + "1]",
            "--channel_mult has 9001 levels: give at most 12",
        ),
        ("a.yaml", f"{'k' * 900}: 1\n", r"unknown key \S{1,60}$"),
        ("a.yaml", "lr: \xff", "a number"),
    ],
)
def test_files_are_refused_by_their_size_before_they_are_expanded(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=match) as error:
        parse(TrainConfig, argv=["-c", str(tmp_path / name)])
    assert len(str(error.value)) < 300 and time.process_time() - start < 2


def test_aliases_of_a_file_of_options_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("channel_mult: &m [1, 2]\nattention_resolutions: *m\n")
    config = parse(TrainConfig, argv=["-c", str(tmp_path / "a.yaml")])
    assert config.channel_mult == config.attention_resolutions == (1, 2)


@pytest.mark.parametrize("word", ["validation", "Valid", "val", "dev"])
def test_splits_by_their_other_names(word):
    assert parse(TrueConfig, argv=["--split", word]).split == "val"
