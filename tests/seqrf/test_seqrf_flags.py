"""Sequential reflow's command line: the paper's own commands, files, precedence, ranges, one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from common.cli import to_yaml, validate
from common.solvers import SOLVERS
from seqrf import flags as F
from seqrf.options import PREDICTORS, Config, Run
from tiny import ROOT

SEQRF = ROOT / "seqrf"
CONFIGS = sorted((SEQRF / "configs/rf").glob("*.py"))


def parse(line: str = ""):
    return F.parse(shlex.split(line))


def flat(tree, prefix: str = "") -> dict:
    """Every option by dotted name."""
    found = {}
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        name = prefix + field.name
        found |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def changed(run, since=None) -> dict:
    """The options in which a run differs from another one, by default from no arguments."""
    before = flat(since or parse())
    return {name: value for name, value in flat(run).items() if value != before[name]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the paper's six commands, as they stand, with values for the shell's variables

GENERATE = """
  --config=configs/rf/cifar10_rf_continuous.py --eval_folder=c10-gen --mode="train" --workdir="exp/"c10-gen
  --log_name="gen-"c10-gen"-"4"div" --config.model.rf_phase=2 --config.training.reflow_t=4
  --config.training.n_reflow_data=1000000 --config.training.reflow_mode='gen_reflow'
  --config.training.import_torch=ckpt/checkpoint_8.pth --config.sampling.method='ode' --config.sampling.tol=1e-4
  --config.training.batch_size=512 --config.training.gen_reflow_size=1024
"""
TRAIN = """
  --config=configs/rf/cifar10_rf_continuous.py --eval_folder=c10 --mode="train" --workdir="exp/"c10
  --log_name=tpu"-"c10 --config.model.rf_phase=2 --config.training.n_iters=100001
  --config.training.reflow_mode='train_reflow' --config.training.reflow_t=4 --config.training.n_reflow_data=1000000
  --config.training.snapshot_sampling=True --config.training.snapshot_freq=10000 --config.model.ema_rate=0.9999
  --config.model.variable_ema_rate=False --config.training.import_torch=ckpt/checkpoint_8.pth
  --config.sampling.method='ode' --config.training.snapshot_fid_sample=10000 --config.training.batch_size=512
  --config.sampling.tol=1e-4 --config.eval.batch_size=1024
"""
DISTILL = """
  --config=configs/rf/cifar10_rf_continuous.py --eval_folder=c10 --mode="train" --workdir="exp/"c10
  --log_name=tpu"-"c10 --config.model.rf_phase=2 --config.training.n_iters=100001
  --config.training.reflow_mode='train_distill' --config.training.reflow_t=4 --config.training.n_reflow_data=1000000
  --config.training.snapshot_sampling=True --config.training.snapshot_freq=10000 --config.model.ema_rate=0.9999
  --config.model.variable_ema_rate=False --config.training.import_torch=ckpt/checkpoint_8.pth
  --config.sampling.method='pc' --config.training.snapshot_fid_sample=10000 --config.training.batch_size=512
  --config.sampling.tol=1e-4 --config.model.num_scales=4 --config.eval.batch_size=1024
"""
EVALUATE = """
  --config=configs/rf/cifar10_rf_continuous.py --eval_folder="sample-"4"div_tol_1e-3" --mode="eval"
  --workdir="exp/"c10 --log_name="sample-"c10"-tol_1e-3" --config.model.rf_phase=2 --config.training.reflow_t=4
  --config.eval.num_samples=50000 --config.sampling.method='ode' --config.sampling.tol=1e-3
  --config.eval.reflow_mode='eval_reflow' --config.eval.batch_size=2048 --config.training.import_torch='none'
  --config.eval.begin_step=0 --config.eval.end_step=100000 --config.eval.interval_step=10000
  --config.eval.save_trajectory=True
"""
EULER = """
  --config="configs/rf/cifar10_rf_continuous.py" --eval_folder="sample_"4"div_euler_100" --mode="eval"
  --workdir="exp/"c10 --log_name=tpu"-"c10 --config.model.rf_phase=2 --config.training.reflow_t=4
  --config.eval.num_samples=50000 --config.sampling.method='pc' --config.sampling.predictor='rf_solver'
  --config.eval.reflow_mode='eval_reflow' --config.eval.batch_size=2048 --config.training.import_torch='none'
  --config.eval.begin_step=0 --config.eval.end_step=100000 --config.eval.interval_step=10000
  --config.model.num_scales=100 --config.eval.save_trajectory=True
"""

RECIPE = {  # the configuration file's part that differs from the defaults
    "config.data.dataset": "torchvision:CIFAR10",
    "config.model.ema_rate": 0.9999,
    "config.model.variable_ema_rate": False,
    "config.training.gen_reflow_size": 2048,
    "config.eval.batch_size": 2048,
}
NAMED = RECIPE | {"workdir": "exp/c10", "log_name": "tpu-c10"}
TEACHER = {"config.training.import_torch": "ckpt/checkpoint_8.pth"}
SNAPSHOTS = {"eval_folder": "c10", "config.training.snapshot_fid_sample": 10_000, "config.eval.batch_size": 1024}
STEPS = {"config.eval.begin_step": 0, "config.eval.end_step": 100_000, "config.eval.interval_step": 10_000}
STEPS |= {"config.eval.save_trajectory": True}
EXPECTED = {
    "generate": (
        GENERATE,
        {"workdir": "exp/c10-gen", "log_name": "gen-c10-gen-4div", "eval_folder": "c10-gen"}
        | {"config.training.gen_reflow_size": 1024},
        TEACHER,
    ),
    "train": (TRAIN, SNAPSHOTS | {"config.training.reflow_mode": "train_reflow"}, TEACHER),
    "train, adaptive": (
        TRAIN + "--config.training.adaptive_interval=True",
        SNAPSHOTS | {"config.training.reflow_mode": "train_reflow", "config.training.adaptive_interval": True},
        TEACHER,
    ),
    "distill": (
        DISTILL,
        SNAPSHOTS | {"config.training.reflow_mode": "train_distill", "config.sampling.method": "pc"},
        TEACHER,
    ),
    "evaluate": (
        EVALUATE,
        STEPS | {"eval_folder": "sample-4div_tol_1e-3", "mode": "eval", "log_name": "sample-c10-tol_1e-3"},
        {"config.sampling.tol": 1e-3},
    ),
    "euler": (
        EULER,
        STEPS | {"eval_folder": "sample_4div_euler_100", "mode": "eval", "config.sampling.method": "pc"},
        {"config.model.num_scales": 100},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_papers_commands_parse_as_they_stand(name, monkeypatch):
    line, own, more = EXPECTED[name]
    for folder in (SEQRF, ROOT):  # the configuration file is looked for beside the program, too
        monkeypatch.chdir(folder)
        assert changed(parse(line)) == NAMED | own | more


def test_heun_at_half_the_steps():
    run = parse(EULER + "--config.sampling.predictor='rf_solver_heun' --config.model.num_scales=50")
    assert PREDICTORS[run.config.sampling.predictor] == "heun" and run.config.model.num_scales == 50
    assert PREDICTORS["rf_solver"] == "euler"


# ---- spellings


def test_no_arguments_give_the_defaults(monkeypatch):
    assert parse() == Run()
    monkeypatch.setattr(sys, "argv", ["main.py", "--mode", "eval"])
    assert F.parse() == replace(Run(), mode="eval")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--config.training.reflow-t 8", "config.training.reflow_t", 8),
        ("-config.training.reflow_t=8", "config.training.reflow_t", 8),
        ("--config.training.n_iters 4e5", "config.training.n_iters", 400_000),
        ("--config.training.n_iters=1_000", "config.training.n_iters", 1000),
        ("--config.sampling.tol .001", "config.sampling.tol", 1e-3),
        ("--config.training.reflow_t=2 --config.training.reflow-t=8", "config.training.reflow_t", 8),
        ("--config.seed=7", "config.seed", 7),
        ("-mp bf16", "mixed_precision", "bf16"),
        ("--log-name=-x", "log_name", "-x"),
        ("--workdir 'a = b'", "workdir", "a = b"),
        ("--noresume", "resume", False),
        ("--no_resume", "resume", False),
        ("--no-resume", "resume", False),
        ("--resume=False", "resume", False),
        ("--resume --resume false", "resume", False),
        ("--config.eval.save_trajectory", "config.eval.save_trajectory", True),
        ("--config.eval.save_trajectory 1", "config.eval.save_trajectory", True),
        ("--noconfig.data.random_flip", "config.data.random_flip", False),
        ("--config.data.no_random_flip", "config.data.random_flip", False),
        ("--config.data.no-random-flip", "config.data.random_flip", False),
        ("--config.training.snapshot_sampling=no", "config.training.snapshot_sampling", False),
    ],
)
def test_spellings(line, name, value):
    run = parse(line)
    assert changed(run) == {name: value} and type(flat(run)[name]) is type(value)


def test_every_option_has_a_flag_that_sets_it_and_nothing_else():
    for name, value in flat(Run()).items():
        other = not value if isinstance(value, bool) else 1 if isinstance(value, int) and value != 1 else None
        other = 0.5 if isinstance(value, float) else other
        if other is not None:
            line = f"--{name}={other}" + (" --config.training.reflow_t=1" if name.endswith("n_reflow_data") else "")
            assert changed(parse(line)).get(name) == other, name
    assert changed(parse("--config.eval.interval_step=2")) == {"config.eval.interval_step": 2}


# ---- files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses_from_anywhere(path, here):
    run = parse(f"--config=configs/rf/{path.name}")
    assert run == parse(f"-c {path}") and run.workdir == str(SEQRF / "exp" / path.stem)
    assert parse(f"-c {path} --workdir=w").workdir == "w"
    given = flat(run)
    for name in ("config.training.import_torch", "config.data.classifier"):
        assert given[name] in ("none", "") or (ROOT / given[name]).is_file(), given[name]
    assert given["config.data.dataset"].startswith(("torchvision:", "toy2d:", "data/"))


def test_the_papers_configurations_have_the_papers_recipe():
    assert len(CONFIGS) >= 5
    run = parse("-c configs/rf/cifar10_rf_continuous.py").config
    training = run.training
    assert (training.batch_size, training.n_iters, training.lr, training.warmup) == (512, 100_001, 2e-4, 5000)
    assert (training.grad_clip, training.lr_decay, training.snapshot_freq) == (1.0, "none", 10_000)
    assert (run.model.ema_rate, run.model.variable_ema_rate, run.model.condition) == (0.9999, False, "heads")
    assert (run.data.image_size, run.data.channels, run.data.random_flip) == (32, 3, True)
    assert (run.sampling.tol, training.n_reflow_data) == (1e-4, 1_000_000)
    church = parse("-c configs/rf/church_rf_continuous.py").config
    assert (church.data.image_size, church.training.batch_size, church.eval.batch_size) == (256, 64, 256)


def test_default_file_flags(here):
    (here / "c.yaml").write_text("training: {reflow_t: 2, lr: 1e-3}\nmodel:\nmode: eval\nseed: 5\n")
    run = parse("--config.training.reflow_t=3 -c c.yaml")
    expected = {"config.training.reflow_t": 3, "config.training.lr": 1e-3, "config.seed": 5, "mode": "eval"}
    assert changed(run) == expected | {"workdir": str(SEQRF / "exp" / "c")}


def test_the_current_directory_comes_first(here):
    (here / "configs/rf").mkdir(parents=True)
    (here / "configs/rf/toy2d.py").write_text("def get_config():\n    return {'seed': 9}\n")
    assert parse("-c configs/rf/toy2d.py").config.seed == 9


def test_kinds_of_files_agree(here):
    values = {"data": {"dataset": "toy2d:spirals"}, "training": {"reflow-t": 2, "lr": 1}}
    (here / "c.json").write_text(json.dumps(values))
    (here / "c.yml").write_text("data:\n  dataset: toy2d:spirals\ntraining:\n  reflow_t: 2\n  lr: 1\n")
    (here / "c.py").write_text(f"def get_config():\n    return {values}\n")
    config_dict = "class ConfigDict:\n    def __init__(self, d):\n        self.d = d\n    def to_dict(self):\n"
    config_dict += "        return self.d\n"  # what ml_collections' class is asked for, whole or as a section
    (here / "w").mkdir()
    (here / "w/c.py").write_text(config_dict + f"def get_config():\n    return ConfigDict({values})\n")
    (here / "s").mkdir()
    text = f"def get_config():\n    return {{k: ConfigDict(v) for k, v in {values}.items()}}\n"
    (here / "s/c.py").write_text(config_dict + text)
    runs = [parse(f"-c {name}") for name in ("c.json", "c.yml", "c.py", "w/c.py", "s/c.py")]
    assert all(run == runs[0] for run in runs)
    assert changed(replace(runs[0], workdir="")) == {
        "config.data.dataset": "toy2d:spirals",
        "config.training.reflow_t": 2,
        "config.training.lr": 1.0,
    }


def test_a_run_folder_gives_an_equal_run(here):
    lines = ("", TRAIN, EULER + "--noresume", "-c configs/rf/mnist.py --config.seed=3 --log_name='a: #b'")
    for line in lines:
        run = parse(line)
        (here / "config.yaml").write_text(to_yaml(run))
        for spelling in ("-c .", f"--config={here}", "-c config.yaml"):
            assert parse(spelling) == run
        assert parse("-c . --config.seed=11").config == replace(run.config, seed=11)
        (here / "config.yaml").write_text(to_yaml(run.config))  # the configuration alone
        assert parse("-c .") == replace(Run(), config=run.config)


def test_paths_in_a_file_are_found_beside_the_program(here):
    text = "data: {dataset: ../mnist, classifier: configs/rf, inception: gone.pth}\ntraining: {pairs: configs}\n"
    (here / "c.yaml").write_text(text)
    config = parse("-c c.yaml").config
    assert (config.data.dataset, config.data.inception) == (str(ROOT / "mnist"), "gone.pth")
    assert (config.data.classifier, config.training.pairs) == (str(SEQRF / "configs/rf"), str(SEQRF / "configs"))
    assert config.training.import_torch == "none" and config.data.root == ""
    (here / "configs").mkdir()
    assert parse("-c c.yaml").config.training.pairs == "configs"  # the current directory comes first
    assert parse("--config.training.pairs=../mnist").config.training.pairs == "../mnist"  # a flag is taken as it is
    mnist = parse("-c configs/rf/mnist.py").config
    assert mnist.training.import_torch == str(ROOT / "mnist/results/RF-0.0/flow_matching_mnist.pth")
    assert mnist.data.classifier == str(ROOT / "mnist/results/classifier.pt")


# ---- mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config.training.reflow_T 4", "unknown flag --config.training.reflow_T; the nearest is --config.training."),
        ("--config.training.reflowt=4", "unknown flag --config.training.reflowt; the nearest is --config.training.ref"),
        ("--config.sampling.reflow_t=4", "unknown flag --config.sampling.reflow_t; the nearest is --config.training.r"),
        ("--reflow_t 4", "unknown flag --reflow_t; the nearest is --config.training.reflow_t (--help lists all)"),
        ("--seed 4", "unknown flag --seed; the nearest is --config.seed"),
        ("--config.eval.batchsize=4", "unknown flag --config.eval.batchsize; the nearest is --config.eval.batch_size"),
        ("--workdri=x", "unknown flag --workdri; the nearest is --workdir"),
        ("--no_mode", "unknown flag --no_mode"),
        ("--config.qqqqq=1", "unknown flag --config.qqqqq"),
        ("train", "unexpected argument 'train': options begin with --"),
        ("--config.training.lr", "--config.training.lr needs a value: give a number"),
        ("--config", "--config needs a value"),
        ("--mode=test", "--mode test: choose one of train, eval"),
        ("--logger=tb", "--logger tb: choose one of none, tensorboard, wandb"),
        ("--config.training.n_iters=1.5", "--config.training.n_iters 1.5: give a whole number"),
        ("--config.training.adaptive_interval=maybe", "--config.training.adaptive_interval maybe: give true or false"),
        (
            "--config.training.reflow_mode=reflow",
            "--config.training.reflow_mode reflow: choose one of gen_reflow,",
        ),
        ("--config.training.loss=l1", "--config.training.loss l1: choose one of mse, huber"),
        ("--config.eval.reflow_mode=x", "--config.eval.reflow_mode x: choose one of eval_reflow"),
        ("--config.training.reflow_t=0", "--config.training.reflow_t 0: give 1 (plain reflow) or more, e.g. 4"),
        ("--config.training.reflow_t=-4", "--config.training.reflow_t -4: give 1 (plain reflow) or more, e.g. 4"),
        ("--config.seed -1", "--config.seed -1: give 0 or more"),
        ("--config.seed 9223372036854775808", "--config.seed 9223372036854775808: give 0 or more, below 2^63"),
        ("--config.data.dataset=", "--config.data.dataset '': give torchvision:NAME"),
        ("--config.data.image_size 0", "--config.data.image_size 0: give 1 or more, e.g. 32"),
        ("--config.data.channels 0", "--config.data.channels 0: give 3 (colour) or 1 (grey)"),
        ("--config.model.rf_phase=3", "--config.model.rf_phase 3: give 1 (the teacher) or 2 (reflow)"),
        ("--config.model.ema_rate=1", "--config.model.ema_rate 1.0: give 0 or more and less than 1, e.g. 0.999"),
        ("--config.model.ema_rate=-.1", "--config.model.ema_rate -0.1: give 0 or more"),
        ("--config.model.num_scales=0", "--config.model.num_scales 0: give 1 or more"),
        ("--config.training.n_reflow_data=0", "--config.training.n_reflow_data 0: give 1 or more"),
        (
            "--config.training.n_reflow_data=3",
            "--config.training.n_reflow_data 3: give 4 or more, one pair for each",
        ),
        ("--config.training.gen_reflow_size=0", "--config.training.gen_reflow_size 0: give 1 or more"),
        ("--config.training.batch_size=0", "--config.training.batch_size 0: give 1 or more"),
        ("--config.training.minutes=0", "--config.training.minutes 0.0: must be above 0"),
        (
            "--config.training.minutes=1 --config.training.n_iters=9",
            "--config.training.minutes 1.0 and --config.training.n_iters 9: give one length of the run",
        ),
        (
            "--config.training.minutes=1 --config.model.rf_phase=1",
            "--config.training.minutes 1 with --config.model.rf_phase 1: a teacher of the plane is trained in steps, "
            "give --config.training.n_iters",
        ),
        ("--config.training.n_iters=0", "--config.training.n_iters 0: give 1 or more"),
        ("--config.training.lr=0", "--config.training.lr 0.0: give more than 0, e.g. 2e-4"),
        ("--config.training.lr=inf", "--config.training.lr inf: must be a finite number"),
        ("--config.training.warmup=-1", "--config.training.warmup -1: give 0 (none) or more"),
        ("--config.training.grad_clip=-1", "--config.training.grad_clip -1.0: give 0 (off) or more"),
        ("--config.training.snapshot_freq=0", "--config.training.snapshot_freq 0: give 1 or more"),
        ("--config.training.snapshot_fid_sample=-1", "--config.training.snapshot_fid_sample -1: give 0 (none) or more"),
        ("--config.training.log_freq=0", "--config.training.log_freq 0: give 1 or more"),
        ("--config.sampling.tol=0", "--config.sampling.tol 0.0: give more than 0 and less than 1, e.g. 1e-4"),
        ("--config.sampling.tol=1", "--config.sampling.tol 1.0: give more than 0 and less than 1, e.g. 1e-4"),
        ("--config.sampling.tol=nan", "--config.sampling.tol nan: must be a finite number"),
        ("--config.sampling.cfg=-1", "--config.sampling.cfg -1.0: give 1 (no guidance)"),
        (
            "--config.sampling.predictor=rk5",
            "--config.sampling.predictor rk5: choose one of rf_solver, rf_solver_",
        ),
        ("--config.sampling.predictor=dopri5", "--config.sampling.predictor dopri5: choose one of rf_solver, rf_"),
        (
            "--config.sampling.pairs_solver=rk5",
            "--config.sampling.pairs_solver rk5: choose one of auto, dopri5,",
        ),
        ("--config.sampling.pairs_solver=rf_solver", "--config.sampling.pairs_solver rf_solver: choose one of auto,"),
        ("--config.eval.num_samples=0", "--config.eval.num_samples 0: give 1 or more"),
        ("--config.eval.batch_size=0", "--config.eval.batch_size 0: give 1 or more"),
        ("--config.eval.begin_step=-2", "--config.eval.begin_step -2: give -1 (only the last weights), 0 or more"),
        ("--config.eval.begin_step=5 --config.eval.end_step=4", "--config.eval.begin_step 5: give 4 (--config.eval."),
        ("--config.eval.interval_step=0", "--config.eval.interval_step 0: give 1 (every snapshot) or more"),
        ("--device=gpu", "--device gpu: choose auto, cpu, cuda, mps or a numbered GPU such as cuda:1"),
        (
            "-c gone.py",
            "there is no configuration file gone.py: give a .yaml, .json or .py, or a run folder; here are",
        ),
    ],
)
def test_mistakes(line, message):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        parse(line)
    text = str(raised.value)
    assert text.startswith(message) and "\n" not in text
    assert line != "-c gone.py" or "configs/rf/toy2d.py" in text


@pytest.mark.parametrize("line", ["--config.training.n_reflow_data=4", "--config.eval.end_step=0", "--device=cuda:1"])
def test_the_last_value_that_is_allowed(line):
    assert len(changed(parse(line))) == 1 and parse("--config.eval.begin_step=-1").config.eval.begin_step == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {reflow_T: 4}", "training: unknown key reflow_T; the nearest is reflow_t"),
        ("trainng: {reflow_t: 4}", "unknown key trainng; the nearest is training"),
        ("config: {training: {zzz: 4}}", "config: training: unknown key zzz"),
        ("config: {trainng: {}}", "config: unknown key trainng; the nearest is training"),
        ("config: {}\nworkdri: x", "unknown key workdri; the nearest is workdir"),
        ("data: {model: x}", "data: unknown key model"),
        (
            "config: 5",
            "config: give a mapping of its options, which are data, model, training, sampling, eval, pipeline, seed",
        ),
        ("training: 4", "training: give a mapping of its options, which are reflow_mode, reflow_t,"),
        ("training: {reflow_t: many}", "training: reflow_t many: give a whole number"),
        ("training: {lr: {a: 1}}", "training: lr {'a': 1}: give a number"),
        ("data: {dataset: [a]}", "data: dataset a: give a text"),
        ("mode: test", "mode test: choose one of train, eval"),
        ("[1]", "it must hold a mapping"),
    ],
)
def test_mistakes_in_a_file(here, text, message):
    (here / "c.yaml").write_text(text)
    with pytest.raises(ValueError) as raised:
        parse("-c c.yaml")
    assert str(raised.value).startswith(f"c.yaml: {message}") and "\n" not in str(raised.value)


def test_ranges_are_checked_after_the_flags(here):
    (here / "c.yaml").write_text("training: {reflow_t: 0}")
    with pytest.raises(ValueError, match=r"^--config.training.reflow_t 0: give 1"):
        parse("-c c.yaml")
    assert parse("-c c.yaml --config.training.reflow_t=1").config.training.reflow_t == 1


def test_check_of_a_run_made_by_hand():
    validate(Run())
    with pytest.raises(ValueError, match="^--mode test: choose one of train, eval"):
        validate(Run(mode="test"))
    with pytest.raises(ValueError, match="^--config.seed '3': give a whole number"):
        validate(Run(config=Config(seed="3")))


def test_solvers_are_those_of_fixed_steps():
    assert set(PREDICTORS) == {"rf_solver", "rf_solver_heun", *SOLVERS} and set(PREDICTORS.values()) == set(SOLVERS)
    for name in SOLVERS:
        run = parse(f"--config.sampling.predictor={name} --config.sampling.pairs_solver={name}")
        assert PREDICTORS[run.config.sampling.predictor] == run.config.sampling.pairs_solver == name
    for name in ("auto", "dopri5"):
        assert parse(f"--config.sampling.pairs_solver={name}").config.sampling.pairs_solver == name


# ---- help


def test_help_has_every_flag_with_a_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # flags and texts are on lines of their own
    with pytest.raises(SystemExit) as left:
        F.parse(["--help"], description="Straighten a flow.")
    out = capsys.readouterr().out
    assert left.value.code == 0 and "Straighten a flow." in out and "-c FILE, --config FILE" in out
    lines = [re.sub("[│╭╰]", " ", line).rstrip("╮╯ ") for line in out.splitlines()]
    shown = {words[1]: k for k, line in enumerate(lines) if (words := re.match(r"\s*(?:-mp \S+, )?(--[\w.]+)", line))}
    for name in flat(Run()):
        assert f"--{name}" in shown, name
        text = lines[shown[f"--{name}"] + 1]
        assert len(text.split("(default")[0].split()) > 1, f"{name} has no text"


def test_help_shows_the_values_of_the_file(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help -c configs/rf/church_rf_continuous.py")
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert left.value.code == 0
    assert "Side of the images; those of another size are resized (default: 256)" in out
    assert "Pairs of a training step, over all processes (default: 64)" in out


def test_neither_parsing_nor_help_imports_torch(here):
    """So that --help and a mistyped flag answer at once."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from seqrf import flags; flags.parse()"
    lines = (["-c", "configs/rf/mnist.py"], ["--help"])
    for argv in lines:
        command = [sys.executable, "-X", "importtime", "-c", code, *argv]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        imported = {part for line in done.stderr.splitlines() for part in line.split("|")[-1].strip().split(".")}
        assert {"flags", "options", "common"} <= imported
        assert not {"torch", "numpy", "yaml", "matplotlib"} & imported
        assert ("--config.training.reflow_t INT" in done.stdout) is (argv == ["--help"])
