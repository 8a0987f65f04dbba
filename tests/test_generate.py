"""From a network to images: guidance, what solvers cost, exact marginals, image k from (weights, seed, k) alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common import checkpoint, runtime, solvers
from common.cli.configs import GridConfig, SolverName
from common.generate import (
    CountedNetwork,
    Sampler,
    guided,
    interpolate,
    invert,
    labels_for,
    noise_for,
    real_classes,
    sample_many,
    sde_of,
    slerp,
    velocity_of,
)
from common.images import grid, save_png
from common.losses import velocity
from common.methods import METHODS, Method
from common.runtime import Processes, generator
from common.scripts.gen import gen_main
from common.scripts.grid import class_names, grid_main
from common.scripts.sampling import make_sampler
from common.solvers import time_grid
from problems import slope_of
from tiny import TINY, folder, images, network, options, run, weights

CONDITIONAL = options(num_classes=3)
SHAPE = (1, 8, 8)


def sampler(config=CONDITIONAL, **changes) -> Sampler:
    return Sampler(network(config), config.method, SHAPE, config.sigma, **{"n_steps": 3, **changes})


def images_of(made) -> dict[int, torch.Tensor]:
    return {index: image for indices, part, _ in made for index, image in zip(indices, part)}


# ---- image k


def test_noise_of_an_image_is_a_function_of_seed_stream_and_index():
    noise = noise_for([4, 0, 9], SHAPE, seed=3)
    assert noise.shape == (3, *SHAPE)
    assert torch.equal(noise[1:2], noise_for([0], SHAPE, seed=3))
    for other in (noise_for([5], SHAPE, 3), noise_for([4], SHAPE, 4), noise_for([4], SHAPE, 3, "path")):
        assert not torch.equal(noise[:1], other)


@pytest.mark.parametrize(
    ("solver", "method"),
    [("euler", "rf"), ("dpmpp2m", "idff"), ("idff", "idff"), ("euler_maruyama", "rf"), ("dopri5", "rf")],
)
def test_an_image_does_not_depend_on_batch_size_or_order(solver, method):
    config = replace(CONDITIONAL, method=method, sigma=0.2)
    make = sampler(config, solver=solver)
    by_three = images_of(sample_many(make, range(10), 3))
    by_seven = images_of(sample_many(make, [9, 2, 5, 0, 7, 1, 8, 3, 6, 4], 7))
    assert by_three.keys() == by_seven.keys() == set(range(10))
    for k in range(10):
        assert torch.allclose(by_three[k], by_seven[k], atol=1e-5)
    assert (by_three[0] - by_three[3]).abs().max() > 0.1  # of the same class, and yet another image
    other = images_of(sample_many(sampler(config, solver=solver, seed=1), [0], 1))
    assert (by_three[0] - other[0]).abs().max() > 0.1


def test_the_next_noise_is_made_while_a_gpu_works(monkeypatch):
    done = []

    def noise(part, shape, seed):
        done.append(f"noise {part[0]}")
        return torch.zeros(len(part), *shape)

    def work(self, x0, part, labels, trajectory):
        done.append(f"work {part[0]}")
        return x0, 1

    monkeypatch.setattr("common.generate.noise_for", noise)
    monkeypatch.setattr(Sampler, "from_noise", work)
    for part, *_ in sample_many(sampler(), range(5), 2):
        done.append(f"given {part[0]}")
    given = ["noise 0", "work 0", "noise 2", "given 0", "work 2", "noise 4", "given 2", "work 4", "given 4"]
    assert done == given


def test_labels_go_by_index():
    assert labels_for([0, 1, 2, 3, 7], 3).tolist() == [0, 1, 2, 0, 1]
    assert labels_for([5, 6], 3, label=2).tolist() == [2, 2]
    assert labels_for([5], 0) is None
    with pytest.raises(ValueError, match="--label 3 is out of range: these weights know the classes 0 to 2"):
        labels_for([0], 3, label=3)
    with pytest.raises(ValueError, match="--label needs class-conditional weights"):
        labels_for([0], 0, label=0)
    net = network(CONDITIONAL)
    assert net.num_classes == 4 and real_classes(net) == 3  # the row of "no label" is not a class
    assert real_classes(network(replace(CONDITIONAL, label_dropout=0.0))) == 3 and real_classes(network()) == 0


def test_labels_reach_the_network():
    by_turns = images_of(sample_many(sampler(), range(3), 3))
    twos = images_of(sample_many(sampler(), range(3), 3, label=2))
    assert torch.allclose(by_turns[2], twos[2], atol=1e-6)
    assert (by_turns[0] - twos[0]).abs().max() > 1e-3


# ---- guidance and cost


def test_guidance_is_a_line_through_both_predictions():
    net, y = network(CONDITIONAL), torch.tensor([0, 2])
    x, t = noise_for([0, 1], SHAPE, 0), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        given, free = net(x, t, y), net(x, t, None)
        assert (given - free).abs().max() > 1e-3
        for cfg, expected in ((1.0, given), (0.0, free), (2.0, 2 * given - free), (0.5, (given + free) / 2)):
            assert torch.allclose(guided(net, y, cfg)(x, t), expected, atol=1e-6)
        assert torch.equal(guided(net, None, 3.0)(x, t), free)


@pytest.mark.parametrize(
    ("solver", "n", "nfe"),
    [
        *[("euler", 5, 5), ("ab2", 5, 5), ("dpmpp2m", 5, 5), ("torchdyn", 5, 5), ("euler_maruyama", 5, 5)],
        *[("heun", 5, 9), ("midpoint", 5, 9), ("rk4", 5, 17), ("heun", 1, 1)],  # the last step is Euler's
    ],
)
def test_evaluations_are_counted_at_the_network(solver, n, nfe):
    for cfg, times in ((1.0, 1), (0.0, 1), (2.0, 2)):
        made = sampler(solver=solver, n_steps=n, cfg=cfg)
        counted = []
        made.net.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        images, evaluations = made.sample([0, 1], torch.tensor([0, 1]))
        assert len(images) == 2 and evaluations == len(counted) == nfe * times


def test_precision_is_that_of_the_network_only(monkeypatch):
    monkeypatch.setattr(runtime, "computes", lambda precision: True)
    seen = []
    net = network()
    net.out[2].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    full, half = (Sampler(net, "rf", SHAPE, precision=p)([0, 1]) for p in ("no", "bf16"))
    assert set(seen) == {torch.float32, torch.bfloat16} and half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.2
    assert CountedNetwork(net, "bf16")(noise_for([0], SHAPE, 0), torch.zeros(1)).dtype == torch.float32


# ---- every solver

OWN = ("flowmap", "consistency")  # of weights of their own


@pytest.mark.parametrize("solver", [s for s in get_args(SolverName) if s not in ("auto", "fitted", *OWN)])
def test_every_solver_runs_on_idff_weights(solver):
    made = sampler(replace(CONDITIONAL, method="idff", sigma=0.2), solver=solver, rtol=1e-2, atol=1e-2)
    x, evaluations = made.sample([0, 1], torch.tensor([0, 1]))
    assert x.shape == (2, *SHAPE) and x.isfinite().all() and x.abs().max() <= 1 and evaluations >= 3


def test_solvers_agree_on_a_smooth_velocity():
    config = options(method="rf")
    reference = sampler(config, solver="rk4", n_steps=20)([0, 1])
    for solver, n in (("dopri5", 1), ("heun", 30), ("midpoint", 30), ("ab2", 50), ("dpmpp2m", 50), ("euler", 200)):
        error = (sampler(config, solver=solver, n_steps=n)([0, 1]) - reference).abs().max()
        print(solver, error)
        assert error < 0.02, (solver, error)


def test_solvers_that_do_not_fit_the_method_say_so():
    with pytest.raises(ValueError, match="--solver idff needs weights trained with --method idff, these are rf"):
        sampler(solver="idff")([0])
    for method, coupling in (("otcfm", "auto"), ("sbcfm", "auto"), ("rf", "ot"), ("cfm", "sinkhorn"), ("fm", "ot")):
        config = replace(CONDITIONAL, method=method, sigma=0.1)
        with pytest.raises(ValueError, match=f"needs the score, which a {method} network does not give; use an ODE"):
            sampler(config, solver="euler_maruyama", coupling=coupling)([0])
        with pytest.raises(ValueError, match="needs independent noise and data"):
            sde_of(network(config), method, 0.1, coupling=coupling)
    with pytest.raises(ValueError, match="unknown solver 'gauss'"):
        sampler(solver="gauss")([0])
    with pytest.raises(ValueError, match="--batch_size 0"):
        list(sample_many(sampler(), range(2), 0))


def test_a_path_that_tells_no_score_is_refused_before_it_is_sampled(monkeypatch):
    class CosinePath:  # as CONTRIBUTING.md adds one
        start = 1.0

        def __init__(self, sigma):
            self.sigma = sigma

    monkeypatch.setitem(METHODS, "cosine", Method(velocity, CosinePath))
    line = "--solver euler_maruyama needs the score, which the path of cosine does not tell .*: use an ODE solver"
    made = replace(sampler(), method="cosine", solver="euler_maruyama")
    for refused in (made.check, lambda: made([0]), lambda: sde_of(network(), "cosine", 0.0)):
        with pytest.raises(ValueError, match=line):
            refused()
    assert replace(made, solver="heun")([0], torch.tensor([0])).isfinite().all()


# ---- closed forms: x0 ~ N(0, 1), x1 ~ N(MEAN, SPREAD^2), independent

MEAN, SPREAD, SIGMA = 0.1, 0.2, 0.2


class Exact(nn.Module):
    """The network that training would find: the velocity of a path of spread sigma, or IDFF's heads on its bridge."""

    num_classes, null_class = 0, False

    def __init__(self, method: str, sigma: float = SIGMA, spread: float = SPREAD):
        super().__init__()
        self.method, self.sigma, self.spread = method, sigma, spread
        self.dummy = nn.Parameter(torch.zeros(1))

    def noise(self, t):
        """The variance of x_t given x1, and its derivative."""
        s = self.sigma
        if self.method in ("rf", "flowmap"):
            return (1 - t) ** 2, -2 * (1 - t)
        if self.method in ("cfm", "otcfm"):
            return (1 - t) ** 2 + s**2, -2 * (1 - t)
        if self.method == "fm":
            return (1 - (1 - s) * t) ** 2, -2 * (1 - s) * (1 - (1 - s) * t)
        return (1 - t) ** 2 + s**2 * t * (1 - t), -2 * (1 - t) + s**2 * (1 - 2 * t)

    def forward(self, x, t, y=None, r=None):
        t = t.view(-1, 1, 1, 1)
        x = x[:, :1]
        noise, slope = self.noise(t)
        variance, off = t**2 * self.spread**2 + noise, x - t * MEAN
        if self.method != "idff":
            return MEAN + (t * self.spread**2 + slope / 2) / variance * off
        return torch.cat([MEAN + t * self.spread**2 / variance * off, -(self.sigma**2) / 2 * off / variance], 1)


@pytest.mark.parametrize("method", ["rf", "cfm", "idff"])
@pytest.mark.parametrize(("solver", "n"), [("heun", 50), ("dpmpp2m", 100), ("euler_maruyama", 300)])
def test_samples_have_the_distribution_of_the_data(method, solver, n):
    exact = Sampler(Exact(method), method, (1, 32, 32), SIGMA, solver=solver, n_steps=n)
    x = exact(range(40))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.005)  # standard error 0.001
    end = math.hypot(SPREAD, SIGMA) if method == "cfm" else SPREAD  # its path ends with a noise of sigma
    assert x.std().item() == pytest.approx(end, rel=0.03)


def moments(made: Sampler, monkeypatch, n: int) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler makes of one pixel by an exact, linear network, exactly.

    Image = mean + a x0 + sum_i b_i noise_i: the rows are the image of nothing, of x0 = 1, and of one noise of 1 each.
    """
    rows, real = n + 2, solvers.euler_maruyama

    def impulses(drift, diffusion, x, times, noise, trajectory):
        return real(drift, diffusion, x, times, lambda i, x: torch.eye(rows)[:, i + 2].view(-1, 1, 1, 1))

    monkeypatch.setattr(solvers, "euler_maruyama", impulses)
    x = made.from_noise(torch.eye(rows)[:, 1].view(-1, 1, 1, 1), range(rows)).images.double().flatten()
    return x[0].item(), (x[1:] - x[0]).norm().item()


@pytest.mark.parametrize(
    ("method", "coupling", "sigma"),
    [
        *[("rf", "auto", 0.0), ("cfm", "auto", 0.0), ("cfm", "auto", 0.1), ("cfm", "auto", 0.5), ("fm", "auto", 0.1)],
        *[("fm", "auto", 0.5), ("otcfm", "independent", 0.5), ("sbcfm", "independent", 0.5), ("idff", "auto", 0.3)],
        *[("idff", "independent", 0.5), ("flowmap", "auto", 0.0)],
    ],
)
def test_the_sde_keeps_the_marginals_at_every_sigma(method, coupling, sigma, monkeypatch):
    n, spread = 1000, 0.5
    net = Exact(method, sigma, spread)
    made = Sampler(net, method, (1, 1, 1), sigma, "euler_maruyama", n, coupling=coupling)
    mean, deviation = moments(made, monkeypatch, n)
    end = math.sqrt(spread**2 + float(net.noise(torch.ones(()))[0]))
    print(method, sigma, deviation / end - 1)
    assert deviation == pytest.approx(end, rel=0.005) and mean == pytest.approx(MEAN, abs=5e-4)
    ode = Sampler(net, method, (1, 1, 1), sigma, "heun", 200, coupling=coupling)  # which starts from the same p_0
    assert moments(ode, monkeypatch, n)[1] == pytest.approx(end, rel=0.005)


def test_the_sde_lands_without_noise(monkeypatch):
    """Data of a small spread: the noise of a last step would be several times as large as what is to be seen."""
    for landing, n in ((1.0, 10), (0.8, 10), (1.0, 1)):
        net = Exact("rf", 0.0, 0.02)
        made = Sampler(net, "rf", (1, 1, 1), solver="euler_maruyama", n_steps=n, landing=landing)
        with monkeypatch.context() as patch:
            assert moments(made, patch, n)[1] < 0.02
        assert made.sample([0]).nfe == n
    last = []
    net.register_forward_hook(lambda module, args, out: last.append((args[0].clone(), args[1][0].item(), out)))
    image = replace(made, n_steps=10, landing=0.8)([0])
    x, t, velocity = last[-1]
    assert t == pytest.approx(0.8) and torch.allclose(image, x + (1 - t) * velocity, atol=1e-6)


def test_a_data_head_is_where_every_solver_lands():
    for solver in ("euler", "heun", "dpmpp2m", "unipc2", "euler_maruyama"):
        net, heads = Exact("idff"), []
        net.register_forward_hook(lambda module, args, out, heads=heads: heads.append((args[1][0].item(), out[:, :1])))
        image = Sampler(net, "idff", SHAPE, SIGMA, solver, 5)([0])
        assert heads[-1][0] == pytest.approx(0.8) and torch.allclose(image, heads[-1][1].clamp(-1, 1), atol=1e-6)
    plain = Sampler(Exact("rf"), "rf", SHAPE, solver="ab2", n_steps=5)  # a velocity has no such step
    whole = solvers.integrate(velocity_of(plain.net, "rf"), noise_for([0], SHAPE, 0), time_grid(5), "ab2")
    assert torch.equal(plain([0]), whole.clamp(-1, 1))


def test_landing_places_the_last_node_and_adaptive_steps_end_there():
    make = sampler(options(method="rf"), solver="heun", n_steps=5, landing=0.8)
    assert make.times().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert replace(make, n_steps=1).times().tolist() == [0, 1]
    for n in (1, 5):  # the number of steps is not dopri5's
        seen = []
        net = Exact("rf")
        net.register_forward_hook(lambda module, args, out, seen=seen: seen.append(args[1][0].item()))
        Sampler(net, "rf", SHAPE, solver="dopri5", n_steps=n, landing=0.8)([0])
        assert len(seen) > 10 and max(seen) == seen[-1] == pytest.approx(0.8)


def test_idffs_sampler_takes_twice_the_sigma_of_training():
    """On a Gaussian its heads are linear: each step is x <- a x + b, written out here for the published sampler."""
    n, twice, x = 8, 2 * SIGMA, noise_for(range(4), (1, 8, 8), 0).double()
    for t in (k / n for k in range(n)):
        variance = t**2 * SPREAD**2 + (1 - t) ** 2 + SIGMA**2 * t * (1 - t)
        x1_hat, st = MEAN + t * SPREAD**2 / variance * (x - t * MEAN), -(SIGMA**2) / 2 * (x - t * MEAN) / variance
        spread = twice * math.sqrt(t * (1 - t))
        x = x + (math.sqrt(1 - spread**2) * (x1_hat - x) / (1 - t) + spread * st) / n
    made = Sampler(Exact("idff"), "idff", (1, 8, 8), SIGMA, solver="idff", n_steps=n)(range(4))
    assert torch.allclose(made.double(), x, atol=1e-5) and x.abs().max() < 1


def test_idff_velocity_is_the_velocity_of_its_marginals():
    """Along the flow of a Gaussian, (x - mean) / spread does not change."""
    velocity = velocity_of(Exact("idff"), "idff")
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)

    def spread(t):
        return math.sqrt(t**2 * SPREAD**2 + (1 - t) ** 2 + SIGMA**2 * t * (1 - t))

    for t in (0.0, 0.2, 0.5, 0.9, 0.97):
        h = 1e-6
        slope = (spread(t + h) - spread(max(t - h, 0))) / (t + h - max(t - h, 0)) / spread(t)
        expected = MEAN + slope * (x - t * MEAN)
        assert torch.allclose(velocity(x, torch.full((9,), t, dtype=torch.float64)), expected, atol=1e-5), t


def test_idff_velocity_is_finite_at_the_end():
    heads = network(replace(TINY, method="idff", sigma=0.2))
    v = velocity_of(heads, "idff")(noise_for([0], SHAPE, 0), torch.ones(1))
    assert v.isfinite().all()


def test_diffusions_are_numbers():
    assert sde_of(network(), "rf", 0.0)[1](0.5) == pytest.approx(1.0)
    assert sde_of(network(), "cfm", 0.5)[1](0.5) == pytest.approx(math.sqrt(2 * (0.5 + 0.25)))
    assert sde_of(network(), "fm", 0.2)[1](0.5) == pytest.approx(math.sqrt(2 * (1 - 0.8 * 0.5)))
    assert sde_of(Exact("idff"), "idff", 0.3)[1](0.5) == 0.3


# ---- many images on disk


def generate(tmp_path: Path, target: str, *flags: str) -> Path:
    file = tmp_path / "weights.pt"
    if not file.exists():
        weights(file, CONDITIONAL)
    argv = ["--weights", str(file), "--n_samples", "10", "--n_steps", "2", "--device", "cpu", "--batch_size", "4"]
    return gen_main(folder(tmp_path), "", [*argv, "--save_dir", str(tmp_path / target), *flags])


def pictures(path: Path) -> np.ndarray:
    files = sorted(path.glob("*.png"))
    assert [file.name for file in files] == [f"{k:06d}.png" for k in range(10)]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_several_processes_agree_on_what_is_missing_before_they_write(tmp_path, monkeypatch):
    """Else the second one counts what the first has made already, and some images are nobody's."""
    there = []

    class Second(Processes):
        def wait(self):
            there.append(sorted(path.name for path in (tmp_path / "set").glob("*.png")))

    monkeypatch.setattr(runtime, "processes", lambda name: Second(1, 2, torch.device("cpu")))
    generate(tmp_path, "set")
    assert there == [[], [], [f"{k:06d}.png" for k in (1, 3, 5, 7, 9)]]  # after the first has begun, before, behind


def test_parts_make_the_whole_whatever_the_batch_size(tmp_path, capsys):
    whole = pictures(generate(tmp_path, "whole"))
    assert whole.shape == (10, 8, 8) and whole.std() > 10
    assert "images 0 to 9 are in" in (out := capsys.readouterr().out) and "NFE 2" in out
    generate(tmp_path, "parts", "--range", "6:10", "--batch_size", "3")
    assert len(list((tmp_path / "parts").glob("*.png"))) == 4
    parts = pictures(generate(tmp_path, "parts", "--range", "0:6", "--batch_size", "1"))
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_generation_goes_on_where_it_was_stopped(tmp_path, capsys):
    before = pictures(generate(tmp_path, "set"))
    for k in (2, 7):
        (tmp_path / "set" / f"{k:06d}.png").unlink()
    (tmp_path / "set" / "000004.png").write_bytes(b"")  # as after a power cut
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "set").glob("*.png") if file.stat().st_size}
    assert np.abs(before.astype(int) - pictures(generate(tmp_path, "set"))).max() <= 1
    assert all((tmp_path / "set" / name).stat().st_mtime_ns == time for name, time in kept.items())
    capsys.readouterr()
    generate(tmp_path, "set")  # nothing to do
    assert "NFE" not in capsys.readouterr().out


@pytest.mark.parametrize("target", ["set", "set.npz"])
def test_samples_tell_the_evaluations_that_were_counted(tmp_path, target):
    path = generate(tmp_path, target, "--solver", "heun", "--cfg", "2", "--range", "0:4")
    file = path.with_suffix(".samples.json") if path.suffix else path / "samples.json"
    first = json.loads(file.read_text())
    assert first["nfe"] == 6 and type(first["nfe"]) is int  # two steps, Euler's last; each twice for guidance
    generate(tmp_path, target, "--solver", "heun", "--cfg", "2")  # the count does not make it another set
    assert json.loads(file.read_text()) == first
    before = file.stat().st_mtime_ns
    generate(tmp_path, target, "--solver", "heun", "--cfg", "2")  # nothing is made, nothing is counted
    assert file.stat().st_mtime_ns == before
    adaptive = generate(tmp_path, f"adaptive_{target}", "--solver", "dopri5", "--rtol", "1e-3", "--atol", "1e-3")
    file = adaptive.with_suffix(".samples.json") if path.suffix else adaptive / "samples.json"
    assert json.loads(file.read_text())["nfe"] > 6


def test_npz_holds_the_same_images_also_from_two_writers(tmp_path):
    whole = pictures(generate(tmp_path, "png"))
    generate(tmp_path, "two.npz", "--range", ":4")
    assert not (tmp_path / "two.npz").exists()  # half a set is not a set
    generate(tmp_path, "two.npz", "--range", "4:")
    generate(tmp_path, "one.npz")
    for name in ("one.npz", "two.npz"):
        with np.load(tmp_path / name) as file:
            assert file.files == ["arr_0"] and file["arr_0"].shape == (10, 8, 8, 1) and file["arr_0"].dtype == np.uint8
            assert np.abs(whole.astype(int) - file["arr_0"][..., 0]).max() <= 1


@pytest.mark.parametrize("flags", [("--seed", "1"), ("--cfg", "2"), ("--solver", "heun"), ("--label", "1")])
def test_a_set_of_other_images_is_not_continued(tmp_path, flags):
    generate(tmp_path, "set", "--range", "0:2")
    with pytest.raises(ValueError, match=f"begun with other settings: {flags[0][2:]} .*another --save_dir"):
        generate(tmp_path, "set", *flags)
    weights(tmp_path / "weights.pt", CONDITIONAL, seed=1)
    with pytest.raises(ValueError, match="begun with other settings: weights"):
        generate(tmp_path, "set")


def test_grid_is_a_picture_and_says_what_it_took(tmp_path, capsys):
    weights(tmp_path / "weights.pt", CONDITIONAL)
    argv = ["--weights", str(tmp_path / "weights.pt"), "--n_samples", "9", "--n_steps", "3", "--solver", "heun"]
    path = grid_main(folder(tmp_path), "", [*argv, "--cfg", "1.5", "--device", "cpu"])
    assert path == tmp_path / "samples" / "heun_nfe10.png"
    width, height = Image.open(path).size
    assert height == 3 * 18 + 2 < width  # a row for each of 3 classes, their names before them
    out = capsys.readouterr().out
    assert "9 images, rf weights of step 7, heun, 3 steps, grid uniform, NFE 10, seed 0" in out
    assert f"picture: {path}" in out


@pytest.mark.parametrize(
    ("solver", "landing", "frames"),
    [
        *[("euler", 1.0, 4), ("heun", 1.0, 4), ("unipc2", 0.9, 4), ("dopri5", 1.0, 4), ("dopri5", 0.9, 5)],
        *[("euler_maruyama", 1.0, 4), ("torchdyn", 1.0, 4)],
    ],
)
def test_a_trajectory_runs_from_the_noise_to_the_very_image(solver, landing, frames):
    made = sampler(solver=solver, landing=landing)
    images, nfe = made.sample([0, 1], labels_for([0, 1], 3))
    (_, states, counted), *_ = sample_many(made, [0, 1], trajectory=True)
    assert states.shape == (2, frames, *SHAPE) and counted == nfe
    assert states[:, 0].equal(noise_for([0, 1], SHAPE, 0).clamp(-1, 1)) and states[:, -1].equal(images)
    assert (states[:, 1:] - states[:, :-1]).abs().amax((0, 2, 3, 4)).min() > 0  # every one is another
    seen = []
    again = made.from_noise(noise_for([0, 1], SHAPE, 0), [0, 1], labels_for([0, 1], 3), seen.append)
    assert again.images.equal(images) and torch.stack(seen, 1).clamp(-1, 1).equal(states[:, 1:])
    assert len(made.state_times()) == frames


def test_states_are_handed_over_as_the_solver_makes_them():
    calls = []
    made = replace(sampler(solver="heun"), net=(net := network(CONDITIONAL)))
    net.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    made.from_noise(noise_for([0], SHAPE, 0), [0], labels_for([0], 3), lambda x: counts.append(len(calls)))
    assert counts == [2, 4, 5]  # heun, whose last step is Euler's


@pytest.mark.parametrize(("method", "solver"), [("idff", "idff"), ("idff", "euler"), ("ect", "consistency")])
def test_a_trajectory_of_data_heads_and_jumps(method, solver):
    config = replace(CONDITIONAL, method=method, sigma=0.2 if method == "idff" else 0.0)
    made = sampler(config, solver=solver)
    (_, states, _), *_ = sample_many(made, [0, 1], trajectory=True)
    assert states.shape == (2, 4, *SHAPE) and states[:, -1].equal(made.sample([0, 1], labels_for([0, 1], 3)).images)


def test_a_moving_picture_of_a_command(tmp_path):
    weights(tmp_path / "weights.pt", CONDITIONAL)
    argv = ["--weights", str(tmp_path / "weights.pt"), "--n_samples", "7", "--n_steps", "3", "--device", "cpu"]
    still = grid_main(folder(tmp_path), "", [*argv, "--solver", "euler"])
    moving = Image.open(grid_main(folder(tmp_path), "", [*argv, "--solver", "euler", "--gif"]))
    assert moving.n_frames == 4 and moving.info["loop"] == 0 and moving.filename.endswith("euler_nfe3.gif")
    durations = [moving.seek(k) or moving.info["duration"] for k in range(4)]
    assert durations[:3] == [530] * 3 and durations[3] == 2500
    shown, wanted = (np.asarray(picture.convert("L"), int) for picture in (moving, Image.open(still)))
    assert shown.shape == wanted.shape and np.abs(shown - wanted).max() <= 1
    for flags in (["--gif", "--interpolate"], ["--gif", "--out", "a.png"], ["--gif", "--invert", "a.png"]):
        with pytest.raises(ValueError, match=f"{flags[1]}|gif"):
            grid_main(folder(tmp_path), "", [*argv, *flags])


def test_raw_and_averaged_weights_of_a_run_folder(tmp_path):
    state = checkpoint.load(weights(tmp_path / "checkpoint_last.pt", CONDITIONAL))
    checkpoint.save(tmp_path / "checkpoint_last.pt", state | {"net_model": network(CONDITIONAL, 1).state_dict()})
    asked = GridConfig(weights=str(tmp_path), solver="euler", device="cpu")
    made = {ema: make_sampler(folder(tmp_path), replace(asked, ema=ema))[0] for ema in (True, False)}
    for ema, seed in ((True, 0), (False, 1)):
        expected = Sampler(network(CONDITIONAL, seed), "rf", SHAPE)([0], torch.tensor([1]))
        assert torch.allclose(made[ema]([0], torch.tensor([1])), expected, atol=1e-6)


def test_a_script_asks_the_weights_for_their_coupling(tmp_path):
    state = checkpoint.load(weights(tmp_path / "a.pt", TINY))
    asked = GridConfig(weights=str(tmp_path / "a.pt"), solver="euler_maruyama", device="cpu")
    assert make_sampler(folder(tmp_path), asked)[0].coupling == "independent"
    checkpoint.save(tmp_path / "a.pt", state | {"method": state["method"] | {"coupling": "ot"}})
    with pytest.raises(ValueError, match="it was trained with ot coupling"):
        make_sampler(folder(tmp_path), asked)


# ---- between two noises


def angles(a, b):
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
    return cosine.clamp(-1, 1).acos()


def test_an_arc_keeps_the_norm_and_turns_at_a_constant_rate():
    draw = generator(0, "arc")
    a, b = (torch.randn(5, 2, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    b[0] = a[0] + 0.1 * b[0]  # a small angle too, and a large one
    b[1] = 0.2 * b[1] - a[1]
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    w = torch.linspace(0, 1, 6, dtype=torch.float64)
    arc, whole = slerp(a, b, w), angles(a, b)
    assert arc.shape == (6, 5, 2, 3) and whole.min() < 0.3 and whole.max() > 2.5
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[-1], b)
    for x, u in zip(arc, w):
        torch.testing.assert_close(x.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
        torch.testing.assert_close(angles(a, x), u * whole, rtol=0, atol=1e-7)  # acos near 0 keeps half the digits


def test_all_of_an_arc_between_noises_has_the_norm_of_a_noise():
    a, b = (torch.randn(4000, 300, generator=generator(k, "noises")) for k in range(2))
    for x in slerp(a, b, torch.linspace(0, 1, 5)):
        assert x.square().sum(1).mean().item() / 300 == pytest.approx(1, abs=0.01)
        assert 0.45 < x.norm(dim=1).std().item() < 0.75  # 0.71 at the ends, 0.5 in the middle
    assert (a / 2 + b / 2).square().sum(1).mean().item() / 300 == pytest.approx(0.5, abs=0.01)  # what a line would do


def test_parallel_and_opposite_ends():
    a = torch.tensor([[1.0, 2.0, 2.0]])
    torch.testing.assert_close(slerp(a, 3 * a, torch.tensor([0.0, 0.5, 1.0])), torch.stack([a, 2 * a, 3 * a]))
    assert slerp(a, a.clone(), torch.tensor([0.3])).isfinite().all()
    with pytest.raises(ValueError, match="no one arc between opposite ends"):
        slerp(a, -2 * a, torch.tensor([0.5]))


@pytest.mark.parametrize("solver", ["euler", "euler_maruyama"])
def test_rows_run_from_one_image_to_the_next(solver):
    make = sampler(solver=solver)
    rows, evaluations = zip(*interpolate(make, 2, 4, batch_size=3))
    assert evaluations == (3, 3)
    assert [row.shape for row in rows] == [(4, *SHAPE)] * 2
    first = make([0, 2], torch.tensor([0, 1]))  # a row has one class: that of its number
    assert torch.allclose(torch.stack([row[0] for row in rows]), first, atol=1e-5)
    if solver == "euler":
        last = make([1, 3], torch.tensor([0, 1]))
        assert torch.allclose(torch.stack([row[-1] for row in rows]), last, atol=1e-5)
    steps = rows[0].diff(dim=0).flatten(1).norm(dim=1)
    assert steps.min() > 0.01 and steps.max() < (rows[0][-1] - rows[0][0]).norm()
    whole = torch.cat([row.images for row in interpolate(make, 2, 4)])
    assert torch.allclose(torch.cat(rows), whole, atol=1e-5)  # whatever the batch size
    twos = torch.cat([row.images for row in interpolate(make, 2, 4, label=2)])
    assert not torch.allclose(whole, twos, atol=1e-2)


# ---- back to the noise


def gaussian_images(count: int = 8) -> torch.Tensor:
    """Data of the closed forms above, and the noise that the flow maps to it: (x - MEAN) / SPREAD."""
    return MEAN + SPREAD * noise_for(range(count), SHAPE, 5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 2), ("rk4", 4)])
def test_inversion_finds_the_noise_to_the_order_of_the_solver(solver, order):
    images, counts = gaussian_images(), (8, 16, 32) if order < 4 else (4, 8, 16)
    missed, again = [], []
    for n in counts:
        noise, back, _ = invert(Sampler(Exact("rf"), "rf", SHAPE, solver=solver, n_steps=n), images)
        missed.append((noise - (images - MEAN) / SPREAD).abs().max().item())
        again.append((back - images).abs().max().item())
    assert order - 0.35 < slope_of(counts, missed) < order + 0.9, missed
    assert slope_of(counts, again) > order - 0.35, again


def test_inversion_of_idff_keeps_away_from_the_end():
    images, seen = gaussian_images(), []
    net = Exact("idff")
    net.register_forward_hook(lambda module, args, out: seen.append(args[1].max().item()))
    made = Sampler(net, "idff", SHAPE, SIGMA, solver="rk4", n_steps=40, grid="power")
    noise, back, evaluations = invert(made, images)
    assert max(seen) == pytest.approx(0.995) and evaluations == len(seen) == 2 * 160
    assert (noise - (images - MEAN) / SPREAD).abs().max() < 0.01  # of up to 4
    assert (back - images).abs().max() < 1e-3
    made = Sampler(net, "idff", SHAPE, SIGMA, solver="dopri5")
    assert (invert(made, images).images - images).abs().max() < 1e-3 and max(seen) < 0.996


def test_inversion_takes_labels_and_guidance():
    made = sampler(solver="heun", n_steps=12, cfg=2.0)
    images, y = made([0, 1], torch.tensor([0, 1])) * 0.5, torch.tensor([0, 1])
    noise, back, evaluations = invert(made, images, y)
    assert (back - images).abs().max() < 0.01 and evaluations == 2 * 2 * 24
    other = invert(made, images, y.flip(0)).noise
    assert (noise - other).abs().max() > 0.01


def test_what_cannot_run_backwards_says_so():
    for solver in ("idff", "euler_maruyama", "unipc2", "torchdyn"):
        with pytest.raises(ValueError, match=f"--invert cannot use --solver {solver}: choose one of euler, midpoint"):
            invert(sampler(solver=solver), gaussian_images())
    with pytest.raises(ValueError, match="leave out --landing 0.9"):
        invert(sampler(solver="heun", landing=0.9), gaussian_images())


# ---- their pictures


def draw(tmp_path: Path, *flags: object, config=CONDITIONAL) -> Path:
    file = weights(tmp_path / "weights.pt", config)
    argv = ["--weights", file, "--device", "cpu", "--n_steps", 3, *flags]
    return grid_main(folder(tmp_path), "", [str(word) for word in argv])


def test_picture_of_arcs(tmp_path, capsys):
    path = draw(tmp_path, "--interpolate", "--n_samples", 10, "--columns", 4, "--solver", "heun")
    assert path == tmp_path / "samples" / "heun_nfe5_arcs.png"
    assert Image.open(path).size == (4 * 18 + 2, 3 * 18 + 2)  # as many rows as it takes
    assert "12 images, rf weights" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--columns 1: must be at least 2"):
        draw(tmp_path, "--interpolate", "--columns", 1)


def test_picture_of_an_inversion(tmp_path, capsys):
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(photo)  # colour, not square
    path = draw(tmp_path, "--invert", photo, "--n_steps", 8)
    out = capsys.readouterr().out
    assert path == tmp_path / "samples" / "invert_photo.png" and Image.open(path).size == (32, 12)
    assert "rk4, 8 steps, grid power, NFE 64 both ways" in out
    rms_line = next(line for line in out.splitlines() if "error after both ways" in line)
    error, ratio = float(rms_line.split("RMS ")[1].split()[0]), float(rms_line.split("PSNR ")[1].split()[0])
    assert error < 0.5 and (ratio > 54 or ratio == math.inf)
    pixels = np.asarray(Image.open(path)).astype(int)
    assert np.abs(pixels[2:10, 2:10] - pixels[2:10, 22:30]).max() <= 3  # the image and what it became
    labelled = draw(tmp_path, "--invert", photo, "--label", 1, "--cfg", 2, "--out", tmp_path / "x.png")
    assert (np.asarray(Image.open(labelled))[2:10, 12:20] != pixels[2:10, 12:20]).any()


def test_an_inversion_of_an_image_that_is_one_already_is_exact_to_the_solver(tmp_path, capsys):
    save_png(tmp_path / "a.png", grid(gaussian_images(1)))  # a grid of one: 8 + 2 lines, cropped and resized
    draw(tmp_path, "--invert", tmp_path / "a.png", "--solver", "euler", "--n_steps", 2, config=TINY)
    rough = capsys.readouterr().out
    draw(tmp_path, "--invert", tmp_path / "a.png", "--solver", "heun", "--n_steps", 12, config=TINY)
    error = [float(text.split("RMS ")[1].split()[0]) for text in (rough, capsys.readouterr().out)]
    assert error[0] > 10 * error[1]


def test_mistakes_with_inversions(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    save_png(tmp_path / "a.png", grid(gaussian_images(1)))
    for flags, match in (
        (("--invert", "gone.png"), "--invert gone.png: no such file; give an image"),
        (("--invert", tmp_path / "text.png"), "text.png: not an image that can be read"),
        (("--invert", tmp_path / "a.png", "--interpolate"), "--invert and --interpolate make two different pictures"),
        (("--invert", tmp_path / "a.png", "--cfg", 2), "say the image's class by --label"),
        (("--invert", tmp_path / "a.png", "--solver", "dpmpp2m"), "--invert cannot use --solver dpmpp2m"),
        (("--invert", tmp_path / "a.png", "--landing", 0.8), "leave out --landing 0.8"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
            draw(tmp_path, *flags)
        assert "\n" not in str(error.value)


def test_names_of_classes_are_those_of_the_data_the_shipped_ones_the_folders(tmp_path):
    place = replace(folder(tmp_path), weights="results/shipped/w.pt", classes=("x", "y", "z"))
    (tmp_path / "results" / "shipped").mkdir(parents=True)
    run(tmp_path / "run", num_classes=3, total_steps=1)
    weights(tmp_path / "results" / "shipped" / "w.pt", CONDITIONAL)
    weights(tmp_path / "old.pt", CONDITIONAL)
    names = []
    for file in (tmp_path / "run", tmp_path / "results/shipped/w.pt", tmp_path / "old.pt"):
        _, info = checkpoint.load_network(file)
        names.append(list(class_names(place, info | {"path": str(file)}, 3)))
    assert names == [list(images().class_names), ["x", "y", "z"], ["0", "1", "2"]]
