"""Evaluation of sequential reflow: paths of known straightness, evaluations counted, files and tables read back."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import plots
from common.evaluate import classifier as measure
from common.evaluate import features
from common.evaluate.__main__ import main as evaluate_main
from common.images import to_uint8
from common.metrics import rms
from common.runtime import file_hash, generator
from common.solvers import CountNFE
from seqrf import compare as script
from seqrf import comparison as C
from seqrf import evaluate as E
from seqrf import images as real
from seqrf import options as O
from seqrf import quality as Q
from seqrf import segments
from tiny import images

UNEVEN = (0.0, 0.25, 1.0)


def model_of(net, edges=(0.0, 1.0), shape=(2,), num_classes=0, **facts):
    """A model around net(x, t, y, segment), with what evaluation asks of one."""
    count = CountNFE(net)
    facts = {"name": "teacher", "step": 0, "condition": "teacher" if len(edges) == 2 else "edges", **facts}
    return SimpleNamespace(
        velocity_for=lambda y, cfg: segments.velocity_of(count, y, cfg),
        count=count,
        edges=edges,
        shape=shape,
        source=facts.pop("source", "gaussian"),
        num_classes=num_classes,
        device=torch.device("cpu"),
        **facts,
    )


def still(x, t, y, segment):
    return torch.zeros_like(x)


def by_label(x, t, y, segment):
    """Moves by the label in unit time, by 0 without one."""
    shift = torch.zeros(len(x)) if y is None else y.float()
    return torch.zeros_like(x) + shift.reshape(-1, *[1] * (x.ndim - 1))


def draw(model, n=6, **how):
    sampler = E.Sampler(**{name: how.pop(name) for name in ("method", "n_steps", "tol", "cfg", "seed") if name in how})
    return E.draw(model, range(n), sampler=sampler, progress=False, **how)


# ---- samples


@pytest.mark.parametrize("source", ["gaussian", "8gaussians"])
def test_a_sample_is_a_function_of_its_index_and_the_seed(source):
    model = model_of(lambda x, t, y, segment: x.sin() * t[:, None], source=source)
    whole = draw(model, 10, n_steps=3)
    assert whole.x.shape == (10, 2) and whole.y is None
    assert torch.equal(draw(model, 10, n_steps=3, batch_size=3).x, whole.x)
    assert torch.equal(E.draw(model, [7, 2], sampler=E.Sampler(n_steps=3), progress=False).x, whole.x[[7, 2]])
    assert not torch.equal(draw(model, 10, n_steps=3, seed=1).x, whole.x)


def test_labels_go_with_their_samples():
    model = model_of(by_label, num_classes=3)
    labels, start = torch.arange(7) % 3, draw(model_of(still), 7).x
    moved = draw(model, 7, labels=labels, batch_size=3)
    torch.testing.assert_close(moved.x, start + labels[:, None])
    torch.testing.assert_close(draw(model, 7, labels=labels, cfg=2.0).x, start + 2 * labels[:, None])


@pytest.mark.parametrize(
    ("method", "n_steps", "cfg", "nfe"),
    [("euler", 4, 1, 4), ("heun", 4, 1, 8), ("rk4", 4, 1, 16), ("euler", 4, 3, 8), ("heun", 4, 3, 16)],
)
def test_evaluations_are_counted_at_the_network(method, n_steps, cfg, nfe):
    for edges in ((0.0, 1.0), UNEVEN):
        model = model_of(by_label, edges, num_classes=3)
        how = {"method": method, "n_steps": n_steps, "cfg": cfg, "labels": torch.zeros(6, dtype=torch.long)}
        assert draw(model, **how, batch_size=4).nfe == nfe  # batches of 4 and 2


def test_an_adaptive_solver_is_counted_and_keeps_its_tolerance():
    calls = []

    def growth(x, t, y, segment):
        calls.append(len(x))
        return x

    model = model_of(growth, UNEVEN)
    start = draw(model_of(still)).x
    coarse, fine = (draw(model, method="dopri5", tol=tol, batch_size=4) for tol in (1e-2, 1e-6))
    assert (coarse.nfe + fine.nfe) * 6 == sum(calls) and 2 * 7 < coarse.nfe < fine.nfe
    errors = [rms(s.x, math.e * start) for s in (coarse, fine)]
    assert errors[0] < 1e-2 and errors[1] < 1e-5
    guided = draw(model_of(by_label, num_classes=3), method="dopri5", cfg=2.0, labels=torch.ones(6).long())
    assert guided.nfe % 2 == 0 and guided.nfe >= 16


def test_a_trajectory_has_the_samplers_times():
    model = model_of(lambda x, t, y, segment: x * 0 + 1 + segment, UNEVEN)
    path = draw(model, 5, n_steps=3, trajectory=True, batch_size=2)
    assert path.times == pytest.approx([0, 0.125, 0.25, 1.0])
    torch.testing.assert_close(path.trajectory[:, :, 0].diff(dim=0)[:, 0], torch.tensor([0.125, 0.125, 1.5]))
    assert torch.equal(path.trajectory[-1], path.x) and torch.equal(path.trajectory[0], draw(model_of(still), 5).x)


def test_pixels_are_those_of_the_samples():
    model = model_of(still, shape=(1, 4, 4))
    assert torch.equal(draw(model, pixels=True).x, to_uint8(draw(model).x))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw(model_of(still, UNEVEN), n_steps=1), "1 step for 2 segments: each needs one; give --n_steps 2"),
        (lambda: draw(model_of(still), method="simpson"), "unknown solver 'simpson'"),
        (lambda: draw(model_of(still), 0), "0 samples"),
        (lambda: draw(model_of(still), labels=torch.zeros(2)), "6 samples, 2 labels"),
        (lambda: draw(model_of(lambda x, t, y, s: x / 0)), "not finite: take more steps, or other weights"),
        (lambda: E.geometry(model_of(still, UNEVEN), edges=[0, 0.5, 1]), "other edges are for a teacher"),
        (lambda: Q.PlaneJudge("moon").measure(torch.zeros(3, 2)), "unknown distribution 'moon': choose one of"),
    ],
)
def test_mistakes_are_named_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- paths


def straight(x, t, y, segment):
    """From N(0, I) to N(m, s^2) along straight lines: x_t = (1 - t) x0 + t (m + s x0)."""
    t, m, s = t[:, None], torch.tensor([2.0, -1.0]), 0.3
    return m + (s - 1) * (x - t * m) / (1 - t + t * s)


def test_straight_lines_have_straightness_0_and_one_step_is_exact():
    found = E.geometry(model_of(straight), n=64)
    assert found["straightness"] < 1e-9 and found["truncation"] < 1e-6 and found["truncation_within"][0] < 1e-6


def test_a_polyline_is_straight_in_each_segment():
    """Velocities (1, 0) and then (0, 2): chords are exact, and the whole deviates by (1/2, -1) all the time."""
    speeds = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    model = model_of(lambda x, t, y, segment: x * 0 + speeds[segment], (0.0, 0.5, 1.0))
    found = E.geometry(model, n=8)
    assert found["sequential_straightness"] < 1e-9 and found["straightness"] == pytest.approx(1.25, rel=1e-5)
    assert max(found["truncation_within"]) < 1e-6 and len(found["truncation_within"]) == 2 > found["truncation"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_sequential_straightness_of_constant_acceleration(k):
    """x_t = x0 + (a t)^2 / a: the chords of k equal segments miss by 4 a^2 / (12 k^2)."""
    speed = torch.tensor([2.0, 4.0])
    model = model_of(lambda x, t, y, segment: t[:, None] * speed + segment)  # a teacher, so its segment is always 0
    found = E.geometry(model, n=4, edges=segments.uniform_edges(k))
    assert found["straightness"] == pytest.approx(5 / 3, rel=1e-3)
    assert found["sequential_straightness"] == pytest.approx(5 / 3 / k**2, rel=5e-3)


def test_the_truncation_of_exponential_growth_and_batches_that_do_not_matter(monkeypatch):
    model = model_of(lambda x, t, y, segment: x, (0.0, 0.5, 1.0))
    size = E.starts(model, range(10), 0).square().mean().sqrt().item()
    found = E.geometry(model, E.Sampler(n_steps=4), n=40)
    assert found["truncation"] == pytest.approx(size * (math.e - 1.25**4), rel=1e-4)
    half = math.exp(0.5) - 1.25**2
    assert found["truncation_within"] == pytest.approx([size * half, size * math.exp(0.5) * half], rel=1e-4)
    second = E.geometry(model, E.Sampler("heun"), n=40)
    assert second["truncation"] == pytest.approx(size * (math.e - 1.625**2), rel=1e-4)
    monkeypatch.setattr(E, "STATES", 101 * 2 * 16)  # 16 at a time
    again = E.geometry(model, E.Sampler(n_steps=4), n=40)
    assert {key: pytest.approx(value, rel=1e-6) for key, value in found.items()} == again


def test_the_paths_of_a_conditional_model_have_labels_and_guidance():
    """v = y t for the labels 0, 1, 2: int |y / 2 - y t|^2 = y^2 / 12, in two coordinates."""
    model = model_of(lambda x, t, y, s: t[:, None] * by_label(x, t, y, s), num_classes=3)
    assert E.geometry(model, n=9)["straightness"] == pytest.approx(2 * (0 + 1 + 4) / 3 / 12, rel=1e-3)
    guided = E.geometry(model, E.Sampler(cfg=2.0), n=9)
    assert guided["straightness"] == pytest.approx(4 * 2 * (0 + 1 + 4) / 3 / 12, rel=1e-3)


# ---- judges


def test_w2_of_perfect_samples_is_the_floor():
    judge = Q.PlaneJudge("8gaussians", seed=3)
    other = Q.PlaneJudge("8gaussians", seed=4).points(600, "other")
    found, shifted = judge.measure(other), judge.measure(other + torch.tensor([3.0, -4.0]))
    assert found["w2_points"] == 600 and found["w2_floor"] == judge.floor(600) > 0.1
    assert found["w2"] == pytest.approx(found["w2_floor"], rel=0.5) and shifted["w2"] == pytest.approx(5, rel=0.1)
    assert judge.measure(judge.points(600, "test"))["w2"] == 0


def test_only_so_many_points_are_compared(monkeypatch):
    monkeypatch.setattr(Q, "POINTS", 50)
    assert Q.PlaneJudge("moons").measure(torch.zeros(200, 2))["w2_points"] == 50


def shades(n=900):
    """Noisy images (n, 1, 8, 8) uint8 and labels: dark, grey, bright in turn."""
    labels = torch.arange(n) % 3
    noise = torch.randint(0, 60, (n, 1, 8, 8), generator=generator(0))
    return (noise + 95 * labels[:, None, None, None]).to(torch.uint8), labels


def image_options(tmp_path, **changes):
    """Options for an .npz of such images."""
    x, y = shades()
    np.savez(tmp_path / "images.npz", images=x.numpy(), labels=y.numpy())
    data = O.Data(dataset=str(tmp_path / "images.npz"), image_size=8, channels=1, random_flip=False)
    return replace(data, **changes)


def test_images_are_measured_by_a_classifier_that_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr("common.evaluate.features.find_weights", lambda path: None)
    data = image_options(tmp_path)
    judge = Q.make_image_judge(data, 0, tmp_path)
    x, y = (part[4::5] for part in shades())
    found = judge.measure(x, y)
    assert found["feature_distance"] < 1e-4 < found["feature_distance_floor"]
    assert found["recognised"] == pytest.approx(judge.recogniser.accuracy, abs=1e-4) and found["recognised"] > 0.9
    shown = judge.measure(x, (y + 1) % 3)
    assert shown["recognised"] < 0.4 and shown["feature_distance"] == found["feature_distance"]
    noise = judge.measure(torch.rand(50, 1, 8, 8) * 2 - 1)
    assert noise["recognised"] is None and noise["feature_distance"] > 3 * found["feature_distance_floor"]
    monkeypatch.setattr("common.evaluate.classifier.train_classifier", lambda *a: pytest.fail("trained again"))
    kept = Q.make_image_judge(replace(data, classifier=str(tmp_path / "classifier.pt")), 0, tmp_path / "other")
    assert kept.measure(x, y) == found
    assert judge.real(4) is None


def test_a_classifier_that_does_not_fit_or_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("common.evaluate.features.find_weights", lambda path: None)
    grey = Q.make_image_judge(image_options(tmp_path), 0, tmp_path).recogniser
    assert isinstance(grey, measure.Recogniser)
    with pytest.raises(ValueError, match="is for images of 1 channels, not 3"):
        Q.make_image_judge(image_options(tmp_path, channels=3, classifier=str(tmp_path / "classifier.pt")), 0, tmp_path)
    with pytest.raises(FileNotFoundError, match="no classifier at nowhere.pt: leave out --config.data.classifier"):
        Q.make_image_judge(image_options(tmp_path, classifier="nowhere.pt"), 0, tmp_path)


def test_images_without_labels_and_weights_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.evaluate.features.find_weights", lambda path: None)
    data = image_options(tmp_path)
    np.savez(tmp_path / "images.npz", images=shades(24)[0].numpy())
    assert Q.make_image_judge(data, 0, tmp_path).measure(torch.zeros(2, 1, 8, 8)) == {}
    assert "their quality is not measured" in capsys.readouterr().out


def test_images_that_are_not_there_are_asked_for_by_the_flags_of_this_program(tmp_path):
    for data in (O.Data(dataset=str(tmp_path / "none.zip")), O.Data(dataset="torchvision:None", root=str(tmp_path))):
        with pytest.raises(ValueError, match=r"--config\.data\.dataset ") as caught:
            real.load_split(data, "train")
        assert "--data" not in str(caught.value)


@pytest.fixture
def small_inception(tmp_path, monkeypatch):
    """A file of weights, and three pixels in place of Inception's features; lists how many images it has seen."""
    seen, weights = [], tmp_path / "weights.pth"
    weights.write_bytes(b"weights")

    def network(file, device="cpu"):
        def run(images):
            seen.append(len(images))
            return images.float().flatten(1)[:, :3] / 255, None

        return features.FeatureNetwork(run, features.INCEPTION, file_hash(file), "none")

    monkeypatch.setattr(features, "inception_network", network)
    return weights, seen


def test_fid_and_kid_compare_with_training_images_whose_features_are_kept(tmp_path, small_inception):
    weights, seen = small_inception
    data = image_options(tmp_path, inception=str(weights))
    judge = Q.make_image_judge(data, 0, tmp_path)
    x, y = shades()
    train = x[torch.arange(900) % 5 != 4]  # the others are held out
    found = judge.measure(train)
    assert sum(seen) == 2 * 720 and found["fid_real"] == 720 and found["fid"] == pytest.approx(0, abs=1e-9)
    assert abs(found["kid"]) < 5e-3 and found["kid_error"] < 5e-4
    assert "feature_distance" in found and "precision" not in found
    dark = judge.measure(x[y == 0])
    means = [part.float().flatten(1)[:, :3].mean(0) / 255 for part in (train, x[y == 0])]
    assert dark["fid"] > (means[0] - means[1]).square().sum().item() > 0.1 and 0.1 < dark["kid"] < 10
    seen.clear()
    again = Q.make_image_judge(data, 0, tmp_path).measure(x[y == 0])
    assert again == dark and sum(seen) == 300, "real images are not seen again"
    weights.write_bytes(b"others")
    Q.make_image_judge(data, 0, tmp_path)
    assert sum(seen) == 300 + 720, "other weights"


def test_kid_of_a_run_is_that_of_the_command(tmp_path, small_inception):
    """The same images give the same FID and KID, in one unit, by seqrf's judge and by python -m common.evaluate."""
    x, y = shades()
    dark, train = x[y == 0], x[torch.arange(900) % 5 != 4]
    found = Q.make_image_judge(image_options(tmp_path, inception=str(small_inception[0])), 0, tmp_path).measure(dark)
    for name, images_of in (("a", dark), ("b", train)):
        np.savez(tmp_path / f"{name}.npz", images=images_of.numpy())
    words = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--small", "--inception", str(small_inception[0])]
    card = evaluate_main([*words, "--device", "cpu", "--out", str(tmp_path / "card.json")])
    assert card["metrics"]["kid"] == found["kid"] > 0.1 and card["metrics"]["kid_error"] == found["kid_error"]
    assert card["metrics"]["fid"] == pytest.approx(found["fid"], rel=1e-12)


def test_a_test_split_is_found(tmp_path):
    for place in ("whole/a/0.png", "split/train/0.png", "split/test/1.png", "half/train/0.png"):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    for name, expected in (("whole", [1, 0]), ("split", [1, 1]), ("half", [1, 0])):
        data = O.Data(dataset=str(tmp_path / name), image_size=8, channels=1)
        assert [len(part) for part in real.real_parts(data)] == expected
    parts = measure.real_images(lambda split: images(20), False)
    assert [len(part) for part in parts] == [16, 4] and torch.equal(parts[1].images, images(20).images[4::5])


# ---- a whole evaluation


def run_of(method="pc", n_steps=4, predictor="rf_solver", **parts):
    """Options of an evaluation of the plane."""
    config = O.Config(
        data=O.Data(dataset="toy2d:gaussian"),
        model=O.Model(num_scales=n_steps),
        training=O.Training(reflow_t=5),
        sampling=O.Sampling(method=method, predictor=predictor, tol=1e-3, cfg=2.0),
        eval=O.Eval(num_samples=300, batch_size=200, **parts),
    )
    return O.Run(config=config)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_an_evaluation_of_the_plane(tmp_path, capsys):
    run, judge = run_of(), Q.PlaneJudge("gaussian")
    row = E.evaluate(model_of(still, UNEVEN, name="2-SeqRF", step=20), run, judge, tmp_path)
    teacher = E.evaluate(model_of(still), replace(run), judge, tmp_path)
    assert rows_of(tmp_path) == [row, teacher], "what is returned is what is written"
    wanted = {"name": "2-SeqRF", "step": 20, "condition": "edges", "k": 2, "edges": list(UNEVEN), "method": "euler"}
    wanted |= {"n_steps": 4, "tol": None, "cfg": 1.0, "nfe": 4, "samples": 300, "seed": 0, "w2_points": 300}
    wanted |= {"straightness": 0, "sequential_straightness": 0, "truncation": 0, "straightness_edges": list(UNEVEN)}
    assert {key: row[key] for key in wanted} == wanted
    assert row["w2"] == pytest.approx(row["w2_floor"], rel=0.5) and row["samples_per_second"] > 0
    assert row["hardware"] and isinstance(row["commit"], str)
    assert teacher["cfg"] == 2.0 and teacher["straightness_edges"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == 2
        and "2-SeqRF, step 20, euler 4 steps: NFE 4," in said[0]
        and f"w2 {row['w2']:.4g} (floor" in said[0]
    )
    shown = sorted(path.name for path in tmp_path.glob("*.png"))
    assert shown == ["2-SeqRF-step-20-euler-4.png", "teacher-step-0-euler-4.png"]
    assert Image.open(tmp_path / shown[0]).size[0] > 1.7 * Image.open(tmp_path / shown[0]).size[1], "two panels"


def test_the_options_choose_the_solver(tmp_path):
    judge, model = SimpleNamespace(measure=lambda x, y: {"w2": 1.0}, real=lambda n: None), model_of(still)
    rows = [E.evaluate(model, run, judge, tmp_path) for run in (run_of("ode"), run_of("pc", 3, "rf_solver_heun"))]
    assert [rows[0][key] for key in ("method", "n_steps", "tol")] == ["dopri5", None, 1e-3] and rows[0]["nfe"] >= 8
    assert [rows[1][key] for key in ("method", "n_steps", "tol", "nfe")] == ["heun", 3, None, 6]
    config = O.Config(sampling=O.Sampling(method="pc", predictor="ab2"), model=O.Model(num_scales=7), seed=3)
    assert E.sampler_of(config, 2.0) == E.Sampler("ab2", 7, cfg=2.0, seed=3)
    with pytest.raises(ValueError, match="3 steps for 4 segments"):
        E.evaluate(model_of(None, tuple(segments.uniform_edges(4))), run_of("pc", 3), judge, tmp_path)


def test_trajectories_of_points_are_kept(tmp_path):
    model = model_of(lambda x, t, y, segment: x * 0 + 1 + segment, UNEVEN)
    row = E.evaluate(model, run_of(save_trajectory=True), Q.PlaneJudge("gaussian"), tmp_path)
    with np.load(tmp_path / "teacher-step-0-euler-4-trajectory.npz", allow_pickle=False) as kept:
        assert sorted(kept) == ["states", "times"] and kept["states"].dtype == np.float16
        np.testing.assert_allclose(kept["times"], segments.sample_times(UNEVEN, row["n_steps"]), atol=1e-6)
        start = E.starts(model, range(64), 0).numpy()
        np.testing.assert_allclose(kept["states"][[0, -1]], [start, start + 0.25 + 2 * 0.75], atol=4e-3)
    assert Image.open(tmp_path / "teacher-step-0-euler-4-trajectory.png").size[0] > 200


@pytest.mark.parametrize(("method", "times"), [("pc", 4), ("ode", 9)])
def test_trajectories_of_images_are_kept_and_drawn(tmp_path, method, times):
    model = model_of(by_label, shape=(1, 4, 4), num_classes=3)
    judge = SimpleNamespace(measure=lambda x, y: {"kind": str(x.dtype), "labels": len(y)}, real=lambda n: None)
    row = E.evaluate(model, run_of(method, 3, save_trajectory=True), judge, tmp_path)
    assert row["kind"] == "torch.uint8" and row["labels"] == 300
    stem = f"teacher-step-0-{'euler-3' if method == 'pc' else 'dopri5-0.001'}"
    with np.load(tmp_path / f"{stem}-trajectory.npz", allow_pickle=False) as kept:
        assert kept["states"].shape == (times, 64, 1, 4, 4) and kept["times"].shape == (times,)
        np.testing.assert_array_equal(kept["labels"], np.arange(64) % 3)
        moved = kept["states"][-1].astype(np.float32) - kept["states"][0]
        np.testing.assert_allclose(moved[:, 0, 0, 0], 2 * kept["labels"], atol=1e-2)  # guidance 2
    assert Image.open(tmp_path / f"{stem}-trajectory.png").size == (6 * min(times, 8) + 2, 6 * 8 + 2)
    assert Image.open(tmp_path / f"{stem}.png").size == (50, 50)


# ---- comparison


def row_of(name="4-SeqRF", w2=0.5, n_steps=4, seed=0, step=100, **more):
    """A row as an evaluation writes it."""
    row: dict[str, Any] = {
        "data": "toy2d:moons",
        "source": "gaussian",
        "name": name,
        "step": step,
        "condition": "edges",
        "k": 4,
    }
    row |= {"edges": [0, 0.5, 1], "method": "euler", "n_steps": n_steps, "tol": None, "cfg": 1.0, "nfe": n_steps}
    return row | {"samples": 300, "w2": w2, "w2_floor": 0.1, "straightness": 0.25, "seed": seed} | more


def write_rows(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rows.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


TEACHER_ROWS = [row_of("teacher", 1.0 / n, n, condition="teacher", step=0, straightness=2.0) for n in (4, 16)]


def test_a_comparison_of_two_runs(tmp_path, capsys):
    write_rows(tmp_path / "a" / "eval", row_of(w2=9.0), row_of(w2=0.5), row_of(w2=0.7, seed=1), *TEACHER_ROWS)
    write_rows(tmp_path / "b" / "eval", row_of("2-RF", 0.9, 2), *TEACHER_ROWS)
    script.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:8] == ["data", "name", "step", "method", "n_steps", "nfe", "w2", "w2_floor"]
    found = {(row["name"], row["n_steps"], row["seed"]): row["w2"] for row in table}
    assert found == {
        ("4-SeqRF", "4", "0"): "0.5",
        ("4-SeqRF", "4", "1"): "0.7",
        ("2-RF", "2", "0"): "0.9",
        ("teacher", "4", "0"): "0.25",
        ("teacher", "16", "0"): "0.0625",
    }
    assert json.loads(table[0]["edges"]) == [0, 0.5, 1]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "| data | model | step | method | steps | NFE | w2 | straightness | seeds |"
    assert "| toy2d:moons | 4-SeqRF | 100 | euler | 4 | 4 | 0.6 +- 0.14 | 0.25 | 2 |" in said
    assert "| toy2d:moons | teacher | 0 | euler | 16 | 16 | 0.0625 | 2 | 1 |" in said
    assert "floor of w2, toy2d:moons: 0.1" in said
    assert Image.open(tmp_path / "out" / "quality_against_nfe.png").size[0] > 300


def test_what_is_drawn(monkeypatch):
    """The last step of each model, the mean over seeds, and methods apart where a model has several."""
    shown = {}
    monkeypatch.setattr("common.plots.curves", lambda panels, path, x, y, floors: shown.update(locals()))
    rows = [row_of(w2=3.0, step=50), row_of(w2=0.5), row_of(w2=0.7, seed=1), row_of(w2=0.0, n_steps=8), *TEACHER_ROWS]
    rows += [row_of("teacher", 0.05, 0, condition="teacher", step=0, method="dopri5", tol=1e-3, nfe=44.5)]
    rows += [row_of(name="2-RF step 100", data="toy2d:s-curve", w2=2.0, w2_floor=0.3)]
    C.draw(C.by_seed(rows), "w2", "figure.png")
    assert shown["panels"]["toy2d:moons"] == {
        "4-SeqRF": [(4, pytest.approx(0.6))],
        "teacher, euler": [(4, 0.25), (16, 0.0625)],
        "teacher, dopri5": [(44.5, 0.05)],
    }
    assert shown["panels"]["toy2d:s-curve"] == {"2-RF": [(4, 2.0)]} and shown["y"] == "W2"
    assert shown["floors"] == pytest.approx({"toy2d:moons": 0.1, "toy2d:s-curve": 0.3})


def test_students_of_one_name_in_two_folders_stay_apart(tmp_path):
    write_rows(tmp_path / "mse" / "eval", row_of(w2=0.5), *TEACHER_ROWS)
    write_rows(tmp_path / "huber" / "eval", row_of(w2=0.4), *TEACHER_ROWS)
    names = {row["name"]: row["w2"] for row in C.newest(C.read_rows([tmp_path])) if row["condition"] != "teacher"}
    assert names == {"4-SeqRF (mse/eval)": 0.5, "4-SeqRF (huber/eval)": 0.4}
    assert sum(row["name"] == "teacher" for row in C.newest(C.read_rows([tmp_path]))) == 2


def test_a_comparison_of_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="give folders with evaluations and --out FOLDER"):
        script.main([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no evaluations .* in .*empty: run main.py --mode=eval"):
        script.main([str(tmp_path / "empty"), "--out", str(tmp_path)])
    write_rows(tmp_path / "full", row_of())
    with pytest.raises(ValueError, match="--metric fid: no row has it; there are .*straightness.*w2"):
        script.main(["--runs", str(tmp_path / "full"), "--out", str(tmp_path), "--metric", "fid"])


@pytest.mark.parametrize("change", [{"name": 3}, {"step": "x"}, {"w2": [1]}, {"nfe": "<b>"}, {"edges": 3}])
def test_rows_of_other_kinds_are_named(tmp_path, change):
    write_rows(tmp_path, row_of() | change)
    with pytest.raises(ValueError, match=r"rows.jsonl is damaged \(line 1, \w+: expected `"):
        C.read_rows([tmp_path])


def test_a_floor_is_a_dashed_line_of_its_panel(monkeypatch):
    figures = []
    monkeypatch.setattr("common.plots.save", lambda figure, path: figures.append(figure))
    lines = {"a": [(1, 0.5), (4, 0.2)]}
    plots.curves({"left": lines, "right": lines}, "x.png", "NFE", "W2", floors={"right": 0.1})
    dashed = [[line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] for axis in figures[0].axes]
    assert dashed == [[], [0.1]]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "floor"]
