"""Sequential reflow as its users meet it: stages one after the other, resumed, refused; a student that has learnt."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from common import checkpoint
from common.couplings import couple
from common.images import from_uint8
from common.networks import MLP, build_network, network_description
from common.records.rows import JsonLines
from common.runtime import generator
from common.training import plan as training_plan
from seqrf import all_stages, costs, endpoints, flags, models, pictures, pipeline, segments, shards, stages, train
from seqrf import pairs as P
from seqrf.evaluate import Sampler, draw
from seqrf.manifest import PairOptions, Teacher, read_manifest, write_manifest
from seqrf.plan import plan
from seqrf.segments import uniform_edges
from tiny import ALONE, ROOT, difference, images, options

TOY = ["--config=configs/rf/toy2d.py", "--config.training.lr_decay=none", "--config.training.warmup=0"]
SHORT = {
    "n_reflow_data": 64,
    "gen_reflow_size": 16,
    "batch_size": 8,
    "n_iters": 4,
    "snapshot_freq": 2,
    "log_freq": 1,
    "snapshot_sampling": False,
    "adaptive_samples": 4,
    "adaptive_steps": 60,
}


def command(workdir, *arguments, **training):
    """A short run with its options given as flags."""
    given = {**SHORT, **training}
    given = [f"--config.training.{key}={value}" for key, value in given.items()]
    return flags.parse([*TOY, f"--workdir={workdir}", "--config.eval.num_samples=32", *given, *arguments])


def execute(workdir, *arguments, **training):
    stages.execute(command(workdir, *arguments, **training))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The weights of a teacher of 8 gaussians to moons that has hardly learnt."""
    folder = tmp_path_factory.mktemp("teacher")
    execute(folder, "--config.model.rf_phase=1", "--config.model.width=16", n_iters=20)
    return folder / stages.TEACHER


@pytest.fixture(scope="module")
def reflowed(teacher, tmp_path_factory):
    """A work folder with pairs of two segments and a student."""
    folder = tmp_path_factory.mktemp("reflowed")
    for mode in ("gen_reflow", "train_reflow"):
        execute(folder, import_torch=teacher, reflow_t=2, reflow_mode=mode)
    return folder


# --------------------------------------------------------------------------------------------------------------- stages
def test_a_run_folder_holds_what_is_promised(reflowed, teacher):
    names = {path.name for path in reflowed.iterdir()}
    assert names == {
        *("samples", "checkpoints", "checkpoint_last.pt", "student_step_final.pt", "student_step_final.json"),
        *("metrics.jsonl", "config.yaml", "run.lock", "page.html"),
    }
    steps = sorted(path.name for path in (reflowed / "checkpoints").iterdir())
    assert steps == [f"weights_step_{step:07d}.pt" for step in (0, 2, 4)]
    rows = [row for row in JsonLines(reflowed / "metrics.jsonl").read() if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row["loss"] > 0 for row in rows)
    again = flags.parse(["-c", str(reflowed)])
    assert again == command(reflowed, import_torch=teacher, reflow_t=2, reflow_mode="train_reflow")
    card = json.loads((reflowed / "student_step_final.json").read_text())
    assert card["edges"] == [0, 0.5, 1] and card["pairs"] == 64 and card["method"]["source"] == "8gaussians"


def test_the_student_begins_as_the_teacher_and_then_moves(reflowed, teacher):
    x, t = torch.randn(5, 2), torch.rand(5)
    whole = models.load(teacher)
    for step, same in ((0, True), (4, False)):
        student = models.load(train.snapshot_path(reflowed, step))
        assert student.is_student and student.edges == (0, 0.5, 1) and student.name == "2-SeqRF"
        for segment in (0, 1):
            with torch.no_grad():
                ours, theirs = (m.velocity_for()(x, t, segment) for m in (student, whole))
            assert torch.allclose(ours, theirs, atol=2e-2 * theirs.abs().max()) is same or not same  # float16
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        assert (difference < 2e-2) if same else difference > 1e-4


def test_a_resumed_run_equals_the_run_that_never_stopped(reflowed, teacher, tmp_path):
    for n_iters in (2, 4):
        pairs = {"pairs": stages.pairs_folder(command(reflowed))}
        execute(tmp_path, import_torch=teacher, reflow_t=2, reflow_mode="train_reflow", n_iters=n_iters, **pairs)
    whole, parts = (checkpoint.load(folder / "checkpoint_last.pt") for folder in (reflowed, tmp_path))
    assert whole["step"] == parts["step"] == 4
    for key in ("net_model", "ema_model"):
        assert difference(whole[key], parts[key]) == ""
    with pytest.raises(ValueError, match=r"holds a run: continue it with --resume, or choose another"):
        execute(
            tmp_path, "--noresume", import_torch=teacher, reflow_t=2, reflow_mode="train_reflow", n_iters=4, **pairs
        )


def test_students_are_trained_for_minutes(reflowed, teacher, tmp_path, monkeypatch):
    seconds = itertools.count(0.0)
    monkeypatch.setattr(train.SegmentTrainer, "now", staticmethod(lambda: next(seconds)))
    # minutes beside steps are refused on a command line; over steps of a file they count
    run = command(tmp_path, import_torch=teacher, reflow_t=2, reflow_mode="train_reflow")
    minutes = replace(run.config.training, minutes=0.05, pairs=str(stages.pairs_folder(command(reflowed))))
    stages.execute(replace(run, config=replace(run.config, training=minutes)))
    state = checkpoint.load(tmp_path / "checkpoint_last.pt")
    assert (state["step"], state["seconds"], state["config"]["training"]["minutes"]) == (4, 3, 0.05)


def test_a_run_goes_on_with_its_own_pairs_and_seed_only(reflowed, teacher, tmp_path):
    run = {"import_torch": teacher, "reflow_t": 2, "reflow_mode": "train_reflow", "n_iters": 2}
    pairs = {"pairs": stages.pairs_folder(command(reflowed))}
    execute(tmp_path / "run", **run, **pairs)
    with pytest.raises(ValueError, match="seed 0 there and 1 now; give the same, or another --workdir"):
        execute(tmp_path / "run", "--config.seed=1", **run, **pairs)
    others = {**run, "reflow_mode": "gen_reflow", "n_reflow_data": 32}
    execute(tmp_path / "others", **others)
    with pytest.raises(ValueError, match=r"data 64 pairs \w+ there and 32 pairs \w+ now"):
        execute(tmp_path / "run", **run, pairs=stages.pairs_folder(command(tmp_path / "others")))
    execute(tmp_path / "run", **{**run, "n_iters": 3, "batch_size": 4}, **pairs)
    state = checkpoint.load(tmp_path / "run" / "checkpoint_last.pt")
    changes = {"training.batch_size": [8, 4], "training.n_iters": [2, 3]}
    assert state["history"] == [{"step": 2, **changes}] and state["images_seen"] == 2 * 8 + 4
    assert flags.parse(["-c", str(tmp_path / "run")]).config.training.batch_size == 4


def test_distillation_goes_on_from_a_student_and_is_named_so(reflowed, tmp_path):
    run = {"import_torch": reflowed, "pairs": reflowed / stages.PAIRS, "reflow_t": 2, "reflow_mode": "train_distill"}
    execute(tmp_path, "--config.sampling.method=pc", "--config.model.num_scales=2", **run)
    student = models.load(tmp_path)
    assert student.name == "2-SeqRF-Distill" and student.method["distilled"] is True
    start, first = checkpoint.load(reflowed / train.FINAL), checkpoint.load(train.snapshot_path(tmp_path, 0))
    assert difference(start["ema_model"], first["ema_model"]) == ""
    with pytest.raises(ValueError, match=r"num_scales 1 is less than one step for each of the 2 segments: give 2"):
        execute(tmp_path, "--config.sampling.method=pc", "--config.model.num_scales=1", **run)
    with pytest.raises(ValueError, match=r"another method \(distilled: True there, False here\).*another --workd"):
        execute(tmp_path, **{**run, "reflow_mode": "train_reflow"})


def test_adaptive_segments_get_pairs_of_their_own(reflowed, teacher, tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "reflow_batch").symlink_to(stages.pairs_folder(command(reflowed)))
    before = sorted((reflowed / stages.PAIRS).iterdir())
    run = {"import_torch": teacher, "reflow_t": 2, "reflow_mode": "train_reflow"}
    execute(tmp_path, "--config.training.adaptive_interval=True", **run)
    edges = json.loads((tmp_path / "edges_2.json").read_text())["edges"]
    student = models.load(tmp_path)
    assert student.edges == pytest.approx(edges, abs=1e-6) and edges[1] != 0.5 and student.name == "2-SeqRF-Ada"
    assert "adaptive segments: 0, " in capsys.readouterr().out and sorted((reflowed / stages.PAIRS).iterdir()) == before
    times = [i / 60 for i in range(61)]
    path = draw(models.load(teacher), range(4), None, Sampler("euler", 60), trajectory=True, progress=False).trajectory
    assert edges == pytest.approx(segments.adaptive_edges(path, times, 2), abs=1e-9)


def test_snapshots_are_evaluated_by_their_steps(reflowed, capsys):
    stages.execute(command(reflowed, "--mode=eval", "--config.sampling.method=pc", "--config.model.num_scales=3"))
    range_ = ["--config.eval.begin_step=0", "--config.eval.end_step=3", "--config.eval.interval_step=2"]
    stages.execute(command(reflowed, "--mode=eval", "--eval_folder=some", *range_))
    rows = {name: JsonLines(reflowed / name / "rows.jsonl").read() for name in ("eval", "some")}
    assert [(row["step"], row["nfe"], row["method"]) for row in rows["eval"]] == [(4, 3, "euler")]
    assert [row["step"] for row in rows["some"]] == [0, 2] and rows["some"][0]["method"] == "dopri5"
    with pytest.raises(FileNotFoundError, match=r"no snapshot in .* from step 9 .*; there are: 0, 2, 4"):
        stages.execute(command(reflowed, "--mode=eval", "--config.eval.begin_step=9"))
    for folder in ("eval", "some"):
        for path in (reflowed / folder).iterdir():
            path.unlink()
        (reflowed / folder).rmdir()
    assert "NFE 3" in capsys.readouterr().out


def test_snapshots_can_show_and_measure(reflowed, teacher, tmp_path):
    run = {"import_torch": teacher, "reflow_t": 2, "reflow_mode": "train_reflow", "n_iters": 2}
    run |= {"pairs": stages.pairs_folder(command(reflowed)), "snapshot_sampling": True, "snapshot_fid_sample": 16}
    execute(tmp_path, "--config.sampling.method=pc", "--config.model.num_scales=2", **run)
    (row,) = [row for row in JsonLines(tmp_path / "metrics.jsonl").read() if "w2" in row]
    assert row["step"] == 2 and row["snapshot_nfe"] == 2 and row["w2_points"] == 16
    assert (tmp_path / "samples" / "step_0000002.png").exists()


# ---------------------------------------------------------------------------------------------------------- mathematics
def test_reflow_makes_few_steps_exact_where_the_teacher_is_curved(tmp_path):
    """From 8 gaussians to moons with a short budget: 4 Euler steps end nearer to the fine flow than the teacher's."""
    execute(tmp_path, "--config.model.rf_phase=1", "--config.model.width=48", n_iters=700, batch_size=256, lr=3e-3)
    run = {"import_torch": tmp_path / stages.TEACHER, "reflow_t": 4, "n_reflow_data": 4000, "gen_reflow_size": 1000}
    run |= {"n_iters": 700, "batch_size": 256, "lr": 3e-3, "snapshot_freq": 1000, "log_freq": 100}
    for mode in ("gen_reflow", "train_reflow"):
        execute(tmp_path, reflow_mode=mode, **run)
    teacher, student = models.load(tmp_path / stages.TEACHER), models.load(tmp_path / train.FINAL)
    how = {"progress": False, "batch_size": 500}
    fine = draw(teacher, range(500), None, Sampler("euler", 200), **how).x

    def error(model):
        few = draw(model, range(500), None, Sampler("euler", 4), **how)
        assert few.nfe == 4
        return (few.x - fine).square().mean().sqrt().item()

    assert error(student) < 0.6 * error(teacher)


def test_sources_of_the_plane_depend_on_the_number_alone():
    x = endpoints.sources(range(600), (2,), 3, "pair", "moons")
    for chosen in ([599, 0, 300], [17]):
        assert torch.equal(endpoints.sources(chosen, (2,), 3, "pair", "moons"), x[chosen])
    assert not torch.equal(endpoints.sources([0], (2,), 4, "pair", "moons"), x[:1])
    # moons take turns among their halves: both must be there among even numbers alone
    from common.data.toys import sample

    expected = sample("moons", 4000, generator(0)).mean(0)
    assert (x[::2].mean(0) - expected).abs().max() < 0.4
    with pytest.raises(ValueError, match="the source 'moons' is a distribution of the plane, the samples are 1x8x8"):
        endpoints.sources([0], (1, 8, 8), 0, "pair", "moons")


@pytest.mark.parametrize("labelled", [False, True])
def test_starts_are_mixed_as_the_teacher_was_trained(labelled):
    """An IDFF teacher: noise and data coupled by transport in blocks of 64, and the bridge's spread."""
    data = images(300, size=4)
    pool = endpoints.Pool(data.images, data.labels if labelled else None)
    options = PairOptions(600, uniform_edges(2), solver="rk4", n_steps=1)
    manifest = plan(pool, Teacher("a", (1, 4, 4), method="idff", sigma=0.5), options)
    numbers = range(1, 257, 2)
    x, chosen, y = endpoints.starts(manifest, 1, numbers, pool)
    noise = endpoints.sources(numbers, (1, 4, 4), 0, "pair")
    drawn, labels = pool.draw(numbers, 0, samples=True)
    assert chosen.dtype == torch.uint8 and (y is None) is not labelled
    for block in (slice(0, 64), slice(64, 128)):  # the same samples and labels, in another order
        rows = {tuple(image.flatten().tolist()) for image in drawn[block]}
        assert rows == {tuple(image.flatten().tolist()) for image in chosen[block]}
        if not labelled:
            x1 = from_uint8(chosen[block])
            best = couple(noise[block], x1, "ot")[0]  # nothing to gain from another order
            assert (best * x1).sum().item() == pytest.approx((noise[block] * x1).sum().item(), rel=1e-5)
    assert not torch.equal(chosen, drawn)
    if labelled:
        assert torch.equal(y, labels)
    rest = x - 0.5 * noise - 0.5 * from_uint8(chosen)
    assert rest.std().item() == pytest.approx(0.5 * 0.5, rel=0.05)  # sigma sqrt(t (1 - t))
    part = endpoints.starts(manifest, 1, [numbers[70], numbers[3]], pool)  # whoever asks, and for how many
    assert torch.equal(part[0], x[[70, 3]]) and torch.equal(part[1], chosen[[70, 3]])


def test_a_reader_draws_the_starts_of_a_coupled_teacher_again(tmp_path):
    data = images(40, size=4)
    pool, teacher = endpoints.Pool(data.images), Teacher("a" * 64, (1, 4, 4), method="idff", sigma=0.5)
    options = PairOptions(20, uniform_edges(2), solver="rk4", n_steps=1, ends="float32")
    manifest = P.generate(tmp_path, lambda x, t: torch.zeros_like(x), pool, teacher, options, progress=False)
    batch = P.Pairs.open(tmp_path).batch(range(1, 20, 2))
    assert torch.equal(batch.x_a, endpoints.starts(manifest, 1, range(1, 20, 2), pool)[0])
    assert torch.allclose(batch.x_b, batch.x_a, atol=1e-6)  # the teacher does not move them


def test_pairs_follow_the_coupling_that_the_teachers_file_records(tmp_path):
    """An rf trained with OT starts from coupled data; one from before couplings were recorded from its options'."""
    data, chosen = images(80, size=4), PairOptions(64, uniform_edges(2), solver="rk4", n_steps=1, ends="float32")
    pool = endpoints.Pool(data.images)
    usual, coupled = Teacher("a", (1, 4, 4)), Teacher("a", (1, 4, 4), coupling="ot")
    manifests = [plan(pool, teacher, chosen) for teacher in (usual, coupled)]
    drawn = [endpoints.starts(m, 1, range(1, 65, 2), pool)[1] for m in manifests]
    assert torch.equal(drawn[0], pool.draw(range(1, 65, 2), 0, samples=True)[0]) and not torch.equal(*drawn)
    assert "coupling" not in manifests[0].facts() and manifests[1].facts()["coupling"] == "ot"
    assert manifests[0].mark == plan(pool, Teacher("a", (1, 4, 4), coupling="independent"), chosen).mark
    for k, manifest in enumerate(manifests):
        (tmp_path / str(k)).mkdir()
        write_manifest(tmp_path / str(k), manifest)
        assert read_manifest(tmp_path / str(k)).teacher.joint == manifest.teacher.joint
        assert read_manifest(tmp_path / str(k)).mark == manifest.mark
        with pytest.raises(ValueError, match="holds pairs with coupling .*, not "):
            write_manifest(tmp_path / str(k), manifests[1 - k])

    tiny = options(method="rf", coupling="ot")
    for recorded in (True, False):
        method = {"name": "rf", "sigma": 0.0} | ({"coupling": "ot"} if recorded else {})
        state = {"format": "flow-checkpoint", "version": 1, "step": 1, "config": {"image_size": 8, "coupling": "ot"}}
        state |= {"network": network_description(tiny), "method": method}
        checkpoint.save(tmp_path / "a.pt", state | {"ema_model": build_network(state["network"]).state_dict()})
        assert models.load(tmp_path / "a.pt").as_teacher().joint == "ot"


def test_a_landing_goes_straight_to_the_predicted_data():
    """A Gaussian teacher whose prediction of the data is 3: from the landing on x goes to 3, wherever it was."""
    seen = []

    def velocity(x, t):
        seen.append(t[0].item())
        return (3.0 - x) / (1 - t[:, None]) if t[0] > 0.8 + 5e-6 else torch.ones_like(x)

    x = torch.zeros(5, 1)
    for t_a, way, solver in ((0.5, 0.3, "rk4"), (0.9, 0.0, "rk4"), (0.5, 0.3, "dopri5")):
        seen.clear()
        end = endpoints.follow(velocity, x, None, t_a, 1.0, solver, 2, landing=0.8)
        assert torch.allclose(end, torch.full_like(x, 3.0), atol=1e-4)
        assert seen[-1] == pytest.approx(max(t_a, 0.8) + 1e-5, abs=1e-6) and (len(seen) == 1) is (way == 0)
        assert all(t <= 0.8 + 1e-6 for t in seen[:-1])
    assert torch.allclose(endpoints.follow(velocity, x, None, 0.0, 0.5, "rk4", 1, landing=0.8), x + 0.5, atol=1e-6)
    with pytest.raises(ValueError, match="landing 0 is out of range"):
        plan(endpoints.Pool(torch.zeros(3, 2)), Teacher("a", (2,), landing=0.0), PairOptions(4, uniform_edges(2)))


def test_pairs_that_fit_are_kept_and_are_the_same(reflowed, monkeypatch):
    pairs = P.Pairs.open(reflowed / stages.PAIRS)
    kept = pairs.at(3, 10, 0)
    monkeypatch.setattr(P, "RESIDENT", 0)
    read = P.Pairs.open(reflowed / stages.PAIRS).at(3, 10, 0)
    assert pairs._all is not None and all(x is y is None or torch.equal(x, y) for x, y in zip(kept, read))


# ----------------------------------------------------------------------------------------------------------------- plan
def test_the_plan_is_what_the_stages_take_and_leaves_nothing(reflowed, teacher, tmp_path, monkeypatch, capsys):
    told, flags_ = [], {"import_torch": teacher, "reflow_t": 2}
    monkeypatch.setattr(training_plan, "STEPS", 2)
    monkeypatch.setattr(costs, "tell", lambda *args: told.append(training_plan.tell(*args)) or told[-1])
    execute(tmp_path / "a", "--plan", **flags_)
    assert not (tmp_path / "a").exists()
    folder = reflowed / stages.PAIRS
    left = sum(path.stat().st_size - shards.HEADER for path in folder.glob("*.pairs"))
    printed = capsys.readouterr().out
    assert f"disk     {left / 1e6:,.3g} MB in {tmp_path / 'a' / stages.PAIRS}" in printed
    for kind in ("checkpoint_last.pt", train.FINAL, "checkpoints/weights_step_*.pt"):
        sizes = [training_plan.bytes_of(checkpoint.load(path)) for path in sorted(reflowed.glob(kind))[-2:]]
        assert told[0].files[kind] == pytest.approx(sum(sizes), rel=0.02), kind

    # 16 pairs of each of two segments in 3.2 s are 0.1 s each
    monkeypatch.setattr(costs, "read_header", lambda folder, shard: {"seconds": 3.2})
    run = command(tmp_path / "a", "--plan", **{**flags_, "n_reflow_data": 6400, "adaptive_interval": True})
    seconds = costs.plan(run, ALONE) - told[-1].seconds
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pairs "))
    nfe = float(line.split(" and ")[1].split()[0])
    assert line.startswith("pairs    32 made, 0.1 s") and seconds == pytest.approx(640 + 0.1 / nfe * 4 * 60, rel=0.01)
    execute(tmp_path / "a", "--plan", **flags_, reflow_mode="train_distill", pairs=folder)
    assert "---- pairs" not in (printed := capsys.readouterr().out) and "---- training" in printed
    with pytest.raises(ValueError, match="--plan is of pairs and students: leave out --mode=eval"):
        execute(tmp_path / "a", "--plan", "--mode=eval", **flags_)
    assert not (tmp_path / "a").exists()


def test_the_plan_of_the_pipeline_is_the_sum_of_its_students(tmp_path, monkeypatch, capsys):
    done = []

    def plan_one(run, here):
        t = run.config.training
        done.append((t.reflow_t, t.reflow_mode, t.adaptive_interval))
        return 100.0

    monkeypatch.setattr(costs, "plan", plan_one)
    kinds = ["--config.pipeline.segments=1,2", "--config.pipeline.adaptive=3", "--config.pipeline.distill=2"]
    argv = ["pipeline.py", *TOY, "--plan", f"--workdir={tmp_path}", *kinds, "--config.pipeline.seeds=0,1"]
    monkeypatch.setattr(sys, "argv", argv)
    pipeline.main()
    assert done == [
        (1, "gen_reflow", False),
        (2, "gen_reflow", False),
        (3, "gen_reflow", True),
        (2, "train_distill", False),
    ]
    assert "in all   0:13:20 for 2 seeds, and the evaluations" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- images
@pytest.fixture(scope="module")
def image_teacher(tmp_path_factory):
    """Weights of an untrained IDFF network of 8x8 images without labels, and a file of such images."""
    folder = tmp_path_factory.mktemp("images")
    description = network_description(options(method="idff", sigma=0.2), 2)
    torch.manual_seed(0)
    state = {"format": checkpoint.FORMAT, "version": 1, "step": 1, "config": {}, "network": description}
    state |= {"method": {"name": "idff", "sigma": 0.2}, "ema_model": build_network(description).state_dict()}
    checkpoint.save(folder / "teacher.pt", state)
    import numpy as np

    np.savez(folder / "images.npz", images=images(40).images.numpy())
    return folder


def of_images(folder, workdir, *arguments, **training):
    solver = ("--config.sampling.pairs_solver=rk4", "--config.model.num_scales=2")
    run = command(workdir, *solver, *arguments, import_torch=folder / "teacher.pt", **{"reflow_t": 2, **training})
    data = replace(run.config.data, dataset=str(folder / "images.npz"), source="gaussian", image_size=8, channels=1)
    return replace(run, config=replace(run.config, data=replace(data, random_flip=True)))


def test_a_two_headed_teacher_of_images_goes_all_the_way(image_teacher, tmp_path, capsys, monkeypatch):
    for mode in ("gen_reflow", "train_reflow", "train_distill"):
        out = tmp_path / mode
        pairs = {"pairs": tmp_path / "gen_reflow" / stages.PAIRS} if mode != "gen_reflow" else {}
        stages.execute(of_images(image_teacher, out, reflow_mode=mode, n_iters=2, **pairs))
    run = of_images(image_teacher, out, "--mode=eval", "--config.sampling.method=pc", "--config.eval.num_samples=8")
    own = replace(run.config.training, import_torch="none")
    (row,) = stages.evaluate_run(replace(run, config=replace(run.config, training=own)), ALONE)
    assert row["nfe"] == 2 and row["name"] == "2-SeqRF-Distill" and row["straightness"] > 0
    assert "their quality is not measured" in capsys.readouterr().out
    teacher = ["--teacher", str(image_teacher / "teacher.pt"), "--n_samples=2", "--fine=3", "--n_steps=2"]
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path), *teacher])
    pictures.main()
    assert (tmp_path / "pictures.png").stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(image_teacher), *teacher])
    with pytest.raises(ValueError, match=r"0 students in .*: give --teacher WEIGHTS and a folder of pipeline.py"):
        pictures.main()


# ------------------------------------------------------------------------------------------------------------- pipeline
def test_the_whole_pipeline_and_that_it_does_nothing_twice(tmp_path, monkeypatch, capsys):
    plan_ = ["--config.pipeline.segments=1,2", "--config.pipeline.adaptive=3", "--config.pipeline.distill=2"]
    plan_ += ["--config.pipeline.steps=2", "--config.pipeline.teacher_steps=6", "--config.pipeline.seeds=0,1"]
    argv = ["pipeline.py", *TOY, "--smoke", f"--workdir={tmp_path}", *plan_]
    monkeypatch.setattr(sys, "argv", argv)
    pipeline.main()
    rows = JsonLines(tmp_path / "seed-0" / "eval" / "rows.jsonl").read()
    found = {(row["name"].removesuffix("-Ada"), row["nfe"]) for row in rows}  # a teacher of 4 steps bends nowhere
    assert found == {
        *(
            ("teacher", 1),
            ("teacher", 2),
            ("teacher", 6),
            ("2-RF", 1),
            ("2-RF", 2),
            ("2-SeqRF", 2),
            ("2-SeqRF-Distill", 2),
        ),
        ("3-SeqRF", 3),
    }
    assert (tmp_path / "quality_against_nfe.png").exists() and (tmp_path / "table.csv").exists()
    table = capsys.readouterr().out
    assert "| toy2d:moons | 2-SeqRF | 4 | euler | 2 | 2 |" in table and "| 2 |\n" in table  # two seeds
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    pipeline.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == before
    assert JsonLines(tmp_path / "seed-0" / "eval" / "rows.jsonl").read() == rows


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.pipeline.segments=0,2", r"--config.pipeline.segments 0: give 1 or more"),
        ("--config.pipeline.distill=3", "--config.pipeline.distill 3: add 3 to --config.pipeline.segments"),
    ],
)
def test_plans_that_cannot_be_carried_out(tmp_path, flag, message):
    with pytest.raises(ValueError, match=message):
        all_stages.check(command(tmp_path, flag))


# ------------------------------------------------------------------------------------------------------------ bad input
def test_mistakes_are_one_line(reflowed, teacher, image_teacher, tmp_path):
    training = {"import_torch": teacher, "reflow_t": 2, "reflow_mode": "train_reflow"}
    pairs = {"pairs": reflowed / stages.PAIRS}
    other = tmp_path / "other.pt"
    state = checkpoint.load(teacher)
    checkpoint.save(other, {**state, "ema_model": {key: value + 1 for key, value in state["ema_model"].items()}})
    mistakes = [
        ({**training}, r"no pairs in .*reflow_batch, .*: generate them first"),
        ({**training, **pairs, "reflow_t": 3}, r"of 2 segments, not 3: make some with k = 3"),
        ({**training, **pairs, "import_torch": other}, r"were made with the teacher \w+, not \w+: give its weights"),
        ({**training, "import_torch": image_teacher / "teacher.pt"}, r"works on 1x8x8, the data of the configuration"),
        ({**training, "import_torch": tmp_path / "gone.pt"}, "no weights at .*gone.pt"),
        ({**training, "import_torch": "none"}, "give the weights to start from: --config.training.import_torch=FILE"),
        (
            {"reflow_mode": "gen_reflow", "import_torch": reflowed},
            "is a student of 2 segments: pairs come from",
        ),
    ]
    for given, message in mistakes:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            execute(tmp_path / "w", **given)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"rf_phase=1 trains teachers of toy2d only: train that of .*images.npz"):
        stages.train_teacher(of_images(image_teacher, tmp_path / "w"), ALONE)
    with pytest.raises(
        FileNotFoundError, match=r"no weights in .*: train first, or give --config.training.import_torch"
    ):
        execute(tmp_path / "w", "--mode=eval")


def test_a_student_of_other_segments_is_refused(reflowed, teacher, tmp_path):
    execute(tmp_path, import_torch=teacher, reflow_t=3, reflow_mode="gen_reflow")
    with pytest.raises(ValueError, match=r"has the segments \(0, 0.5, 1\), the pairs \(0, 0.333, 0.667, 1\): make"):
        execute(tmp_path, import_torch=reflowed, reflow_t=3, reflow_mode="train_distill")


def test_a_truncated_shard_is_named(reflowed, teacher, tmp_path):
    execute(tmp_path, import_torch=teacher, reflow_t=2)
    shard = shards.shard_path(tmp_path / stages.PAIRS, 0)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"1 of the 1 shards in .* cannot be used \(shard 0 .*\): generate with"):
        execute(tmp_path, import_torch=teacher, reflow_t=2, reflow_mode="train_reflow")
    execute(tmp_path, import_torch=teacher, reflow_t=2)
    assert len(P.Pairs.open(tmp_path / stages.PAIRS)) == 64


@pytest.mark.parametrize("where", ["seqrf", "."])
def test_the_script_ends_with_one_line_and_code_2(where, tmp_path):
    script = "main.py" if where == "seqrf" else "seqrf/main.py"
    arguments = ["--config=configs/rf/toy2d.py", f"--workdir={tmp_path}", "--config.training.reflow_t=0"]
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT / where, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --config.training.reflow_t 0") and not done.stdout
    assert done.stderr.count("\n") == 1


def test_networks_of_points_are_read_back(tmp_path):
    net = MLP(2, 8, 2, out_dim=4)
    state = {"format": checkpoint.FORMAT, "version": 1, "step": 3, "config": {}, "network": net.description}
    checkpoint.save(
        tmp_path / "a.pt", state | {"method": {"name": "idff", "sigma": 0.1}, "ema_model": net.state_dict()}
    )
    model = models.load(tmp_path / "a.pt")
    assert model.shape == (2,) and model.step == 3 and model.num_classes == 0 and model.name == "teacher"
    assert difference(model.net.state_dict(), net.state_dict()) == ""
    assert model.source == "gaussian"
