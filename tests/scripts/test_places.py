"""Where scripts write: runs and smoke runs have folders of their own, and nothing that is shipped is written to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from common import checkpoint, cli
from common.cli.configs import GridConfig, MeasureConfig
from common.scripts import sampling, train
from common.scripts.gen import gen_main
from common.scripts.grid import grid_main
from common.scripts.train import train_main
from common.scripts.true import true_main
from seqrf import flags, stages
from sst import config as sst_config
from sst import sst_pipeline
from timeseries_examples import lorenz, md

DRAW = ["--n_samples", "2", "--n_steps", "2", "--solver", "euler"]


@pytest.fixture
def place(tmp_path):
    """A folder with shipped weights and images."""
    images = tiny.images()
    numpy = pytest.importorskip("numpy")
    numpy.savez(tmp_path / "images.npz", images=images.images.numpy().transpose(0, 2, 3, 1), labels=images.labels)
    tiny.weights(tmp_path / "results" / "shipped.pt")
    return tiny.folder(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_has_its_own_folder_and_is_what_is_sampled_from(place, capsys, monkeypatch):
    fine = sampling.teacher_of  # of adaptive grids, which are not looked at here: two noises instead of 32
    monkeypatch.setattr(sampling, "teacher_of", lambda sampler, n, *rest: fine(sampler, 2, *rest))
    shipped = contents(place.here / "results")
    grid_main(place, "", DRAW)
    assert f"weights: {place.here}/results/shipped.pt, as shipped: no run here has ended" in capsys.readouterr().out
    first = train_main(place, "", [])
    assert first == place.here / "runs" / "RF-0.0" / "RF_weights_step_final.pt"
    second = train_main(place, "", ["-e", str(place.here / "runs" / "b"), "--seed", "1"])
    for path, age in ((second, 5), (first, 9)):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    capsys.readouterr()
    grid_main(place, "", DRAW)
    line = f"weights: {second}, of the newest run here; --weights {place.here}/results/shipped.pt are the shipped ones"
    assert line in capsys.readouterr().out
    grid_main(place, "", [*DRAW, "--weights", str(place.here / "results" / "shipped.pt"), "--grid", "adaptive"])
    gen_main(place, "", [*DRAW, "--grid", "adaptive", "--weights", str(place.here / "results" / "shipped.pt")])
    assert contents(place.here / "results") == shipped


def test_a_plain_call_for_few_steps_takes_the_weights_that_were_tuned_for_them(place, capsys):
    tuned = replace(place, few="results/few/tuned.pt", landing=0.8)
    tiny.weights(place.here / tuned.few, replace(tiny.TINY, method="ect"))

    def taken(words: str, folder=tuned) -> tuple[str, str, float, float]:
        config, _ = cli.parse_with_extra(GridConfig, argv=words.split())
        sampler, info = sampling.make_sampler(folder, config)
        return Path(info["path"]).name, sampler.solver, sampler.landing, sampler.n_steps

    few, usual = ("tuned.pt", "consistency", 1.0), ("shipped.pt", sampling.SOLVER, 0.8)
    for steps in (1, 2, 3, 4):
        assert taken(f"--n_steps {steps}") == (*few, steps)
        assert taken(f"--n_steps {steps}", place) == ("shipped.pt", sampling.SOLVER, 1.0, steps)
    assert taken("--n_steps 5") == (*usual, 5)
    assert taken("--n_steps 4 --solver euler") == ("shipped.pt", "euler", 0.8, 4)
    assert taken("--n_steps 4 --landing 0.7")[::2] == ("shipped.pt", 0.7)
    assert taken("--n_steps 4 --grid cosine")[0] == "shipped.pt"
    assert taken(f"--n_steps 2 --weights {place.here / tuned.few}") == (*few, 2)
    assert taken(f"--weights {place.here / tuned.few}") == (*few, 4)  # theirs; of others it is ten
    assert taken("") == (*usual, 10)
    assert "tuned.pt, as shipped: no run here has ended" in capsys.readouterr().out
    with pytest.raises(ValueError, match="few holds tuned.pt, which no run here has made"):
        train_main(tuned, "", ["-e", str(place.here / "results" / "few")])
    train_main(tuned, "", [])  # the newest run comes before what is shipped, whatever the steps
    assert taken("--n_steps 1")[0] == "RF_weights_step_final.pt"


def test_measuring_takes_twenty_steps_and_the_few_of_weights_for_few(place):
    tiny.weights(place.here / "tuned.pt", replace(tiny.TINY, method="ect"))
    for path, steps in (("tuned.pt", 4), ("results/shipped.pt", 20)):
        config, _ = cli.parse_with_extra(MeasureConfig, argv=["--weights", str(place.here / path)])
        assert sampling.make_sampler(place, config)[0].n_steps == steps


def test_training_into_the_folder_of_shipped_weights_is_refused(place):
    shipped = contents(place.here / "results")
    with pytest.raises(ValueError, match=r"results holds shipped.pt, which no run here has made: give another folder"):
        train_main(place, "", ["-e", str(place.here / "results")])
    assert contents(place.here / "results") == shipped


def test_smoke_leaves_the_real_files_alone(place):
    real = ["--weights", str(place.here / "results" / "shipped.pt")]
    gen_main(place, "", [*DRAW, *real])
    true_main(place, "", ["--n_samples", "3"])
    grid_main(place, "", [*DRAW, *real])
    train_main(place, "", [])
    before = contents(place.here)
    for main, words in ((gen_main, DRAW), (true_main, []), (grid_main, DRAW), (train_main, []), (train_main, [])):
        main(place, "", ["--smoke", *words])
    after = contents(place.here)
    assert {name: after[name] for name in before} == before
    new = {name for name in after if name not in before}
    assert new and all("/smoke-" in name for name in new), new


def test_a_smoke_run_that_is_refused_keeps_the_one_before(place, monkeypatch):
    final = train_main(place, "", ["--smoke"])
    before = contents(final.parent)

    def missing(*arguments, **options):
        raise FileNotFoundError("no images")

    monkeypatch.setattr(train, "load_data", missing)
    with pytest.raises(FileNotFoundError, match="no images"):
        train_main(place, "", ["--smoke"])
    assert contents(final.parent) == before and checkpoint.load(final)["step"] == 4


def test_other_folders_have_the_same_rule(tmp_path):
    for words, name in (([], "toy2d"), (["--smoke"], "smoke-toy2d")):
        run = flags.parse(["--config=configs/rf/toy2d.py", *words])
        assert stages.workdir(stages.smoke(run) if run.smoke else run) == stages.HERE / "exp" / name
    elsewhere = flags.parse(["--config=configs/rf/toy2d.py", "--smoke", f"--workdir={tmp_path}"])
    assert stages.workdir(stages.smoke(stages.smoke(elsewhere))) == tmp_path
    assert sst_config.run_folder(sst_config.DEFAULT).relative_to(sst_config.HERE) == Path("runs/CFM-synthetic")
    assert sst_config.run_folder(sst_config.smoke(sst_config.DEFAULT)).name == "smoke"
    for module, name in ((lorenz, "lorenz"), (md, "md")):
        options = module.Options(weights=f"results/{name}/x.pt")
        assert Path(module.completed(options).out) == module.HERE / "runs" / name
        assert Path(module.completed(replace(options, smoke=True)).out) == module.HERE / "results" / f"smoke-{name}"


def test_shipped_forecasts_are_scored_elsewhere(monkeypatch, capsys):
    options = replace(sst_config.DEFAULT, mode="evaluate", device="cpu")
    monkeypatch.setattr(sst_pipeline, "world", lambda options: None)
    found = []
    monkeypatch.setattr(
        sst_pipeline, "evaluate", lambda options, data, weights, out, device: found.append((weights, out))
    )
    sst_pipeline.run(options)
    (weights, out), here = found[0], sst_config.HERE
    assert out == here / "runs" / "CFM-synthetic"
    if not out.exists():
        assert weights == here / sst_config.WEIGHTS and "as shipped" in capsys.readouterr().out
