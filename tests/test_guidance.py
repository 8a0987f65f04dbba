"""Guidance in an interval of times, and by a worse network: closed forms, exactness, its cost, what is recorded."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.cli.configs import GridConfig
from common.generate import Guide, Sampler, guided, invert, noise_for, within
from common.records.cards import add_measurement
from common.scripts.fit import fit_main
from common.scripts.gen import gen_main
from common.scripts.grid import grid_main
from common.scripts.sampling import adaptive_nodes, make_sampler
from common.solvers import fitted, time_grid
from tiny import folder, options, weights

CONDITIONAL = options(num_classes=3)
SHAPE, LABELS = (1, 8, 8), torch.tensor([0, 1, 2])


class Mixture(nn.Module):
    """The rectified flow of N(0, 1) to two classes N(+c, spread^2) and N(-c, spread^2) of a pixel, exactly."""

    num_classes, null_class = 3, True

    def __init__(self, c: float = 1.0, spread: float = 0.5):
        super().__init__()
        self.c, self.spread, self.dummy = c, spread, nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y=None):
        """E[x1 - x0 | x, y] with E[x1 | x, class] = m + t spread^2 / variance (x - t m)."""
        t = t.view(-1, 1, 1, 1).to(x)
        variance = (1 - t) ** 2 + t**2 * self.spread**2

        def of_class(m):
            return m + (t * self.spread**2 - (1 - t)) / variance * (x - t * m)

        if y is not None:
            return of_class(self.c * (1 - 2.0 * y).view(-1, 1, 1, 1))
        first = torch.sigmoid(2 * self.c * t * x / variance)  # the class's share at x
        return first * of_class(self.c) + (1 - first) * of_class(-self.c)


def closed_form(x, t, cfg, c=1.0, spread=0.5):
    """The velocity of the first class, guided: a x + (1 - a t) c (tanh + cfg (1 - tanh)), by hand."""
    variance = (1 - t) ** 2 + t**2 * spread**2
    a, middle = (t * spread**2 - (1 - t)) / variance, np.tanh(c * t * x / variance)
    return a * x + (1 - a * t) * c * (middle + cfg * (1 - middle))


def test_a_mixture_is_guided_by_its_closed_form_in_the_interval_only():
    x0, steps = noise_for(range(4), (1, 2, 2), 0), 10
    made = Sampler(Mixture(), "rf", (1, 2, 2), n_steps=steps, cfg=2.5, interval=(0.2, 0.7))
    x = x0.double().numpy()
    for i in range(steps):
        x = x + closed_form(x, i / steps, 2.5 if 2 <= i < 7 else 1.0) / steps
    ours = made.sample(range(4), torch.zeros(4, dtype=torch.long))
    np.testing.assert_allclose(ours.images.numpy(), x.clip(-1, 1), atol=1e-5)
    assert ours.nfe == 10 + 5
    whole = replace(made, interval=(0.0, 1.0))(range(4), torch.zeros(4, dtype=torch.long))
    assert np.abs(whole.numpy() - x).max() > 0.01


def test_a_worse_network_guides_as_its_closed_form_says():
    better, worse = {"c": 1.0, "spread": 0.5}, {"c": 0.7, "spread": 0.9}
    x, t = noise_for(range(3), (1, 2, 2), 0), torch.tensor([0.1, 0.5, 0.9])
    first = torch.zeros(3, dtype=torch.long)
    v = guided(Mixture(**better), first, 3.0, guide=Mixture(**worse))(x, t)
    for k, time in enumerate(t.tolist()):
        bad, good = (closed_form(x[k].double().numpy(), time, 1.0, **which) for which in (worse, better))
        np.testing.assert_allclose(v[k].numpy(), bad + 3 * (good - bad), atol=1e-5)
    mixed = guided(Mixture(**better), first, 3.0, (0.4, 0.8), Mixture(**worse))(x, t)  # rows of other times
    plain = Mixture(**better)(x, t, first)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and torch.equal(mixed[1], v[1])
    free = guided(Mixture(**better), None, 2.0, guide=Mixture(**worse))(x, t)  # without labels, too
    assert torch.allclose(free, 2 * Mixture(**better)(x, t) - Mixture(**worse)(x, t), atol=1e-6)


def test_an_end_belongs_to_the_interval_that_begins_there():
    t = time_grid(10)
    assert within(t, (0.3, 0.7)).tolist() == [3 <= k < 7 for k in range(11)]
    assert within(t, (0.7, 1.0)).tolist() == [k >= 7 for k in range(11)] and not within(t, (0.5, 0.5)).any()


class Waves(nn.Module):
    """A network of microseconds for every method: one output a channel that it is given."""

    num_classes, null_class = 4, True

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.shift, self.dummy = shift, nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y=None, r=None):
        label = torch.full_like(t, 0.4) if y is None else y / 3
        return torch.sin(2 * x + (label + t + self.shift + (0 if r is None else r)).view(-1, 1, 1, 1))


SOLVERS = [
    *[("rf", solver) for solver in ("euler", "heun", "rk4", "ab2", "unipc2", "ipndm3", "dopri5")],
    *[("rf", "euler_maruyama"), ("rf", "fitted"), ("idff", "unipc2"), ("idff", "idff"), ("flowmap", "flowmap")],
]


@pytest.mark.parametrize("guide", [None, Guide(Waves(0.5))], ids=["label", "guide"])
@pytest.mark.parametrize(("method", "solver"), SOLVERS)
def test_without_times_it_is_no_guidance_and_with_all_it_is_as_ever(method, solver, guide):
    plan = fitted.adams_sampler([0.0, 0.3, 0.8, 1.0], 2) if solver == "fitted" else None
    made = Sampler(Waves(), method, SHAPE, 0.2, solver, 4, fitted=plan, rtol=1e-2, atol=1e-2, cfg=2.0, guide=guide)
    whole, plain, never, always = (
        replace(made, **change).sample([0, 1, 2], LABELS)
        for change in ({}, {"cfg": 1.0}, {"interval": (0.5, 0.5)}, {"interval": (-1.0, 1.0)})
    )
    assert torch.equal(plain.images, never.images) and plain.nfe == never.nfe
    assert torch.equal(whole.images, always.images) and whole.nfe == always.nfe
    assert (whole.images - plain.images).abs().max() > 1e-3
    assert whole.nfe == 2 * plain.nfe or solver == "dopri5"


@pytest.mark.parametrize(
    ("solver", "alone", "more"),
    [("euler", 5, 2), ("ab2", 5, 2), ("heun", 9, 4), ("midpoint", 9, 4), ("rk4", 17, 8), ("euler_maruyama", 5, 2)],
)
@pytest.mark.parametrize("by", ["label", "guide"])
def test_evaluations_outside_are_not_made(solver, alone, more, by):
    """Nodes 0, 0.2, ..., the last step Euler's: inside rk4 evaluates twice at 0.2, 0.3, 0.4 and 0.5."""
    made = Sampler(Waves(), "rf", SHAPE, solver=solver, n_steps=5, cfg=2.0, interval=(0.2, 0.6))
    guide = Waves(0.5)
    made = replace(made, guide=Guide(guide)) if by == "guide" else made
    calls: dict[str, int] = {"main": 0, "guide": 0}
    for name, net in (("main", made.net), ("guide", guide)):
        net.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    made.check_interval()
    nfe = made.sample([0, 1, 2], LABELS).nfe
    assert nfe == alone + more == sum(calls.values()) and type(nfe) is int
    assert calls["guide"] == (more if by == "guide" else 0)


def test_samples_that_step_each_for_itself_are_guided_each_for_itself():
    made = Sampler(Waves(), "rf", SHAPE, solver="dopri5", rtol=1e-3, atol=1e-3, cfg=2.0)
    made, rows = replace(made, interval=(0.3, 0.6)), []
    made.net.register_forward_hook(lambda net, args, out: rows.append(len(out)))
    together = made.sample([0, 1, 2], LABELS)
    assert together.nfe == sum(rows) / 3 and 0 < min(rows) < 3
    alone = [made.sample([k], LABELS[k : k + 1]).images for k in range(3)]
    torch.testing.assert_close(together.images, torch.cat(alone), rtol=0, atol=1e-5)


def test_inversion_is_guided_alike():
    made = Sampler(Waves(), "rf", SHAPE, solver="rk4", n_steps=8, cfg=2.0, interval=(0.25, 0.5))
    x = noise_for([5], SHAPE, 0)
    noise, again, nfe = invert(made, x, LABELS[:1])
    assert 2 * 32 < nfe < 4 * 32 and (again - x).abs().max() < 0.05
    assert (noise - invert(replace(made, cfg=1.0), x, LABELS[:1]).noise).abs().max() > 1e-3


# ---- command lines

CPU = ["--device", "cpu", "--n_steps", "4", "--solver", "euler"]


@pytest.fixture
def place(tmp_path):
    """A folder with shipped weights, weights of another width beside it, and others that do not fit."""
    weights(tmp_path / "results" / "shipped.pt", CONDITIONAL)
    weights(tmp_path / "worse.pt", replace(CONDITIONAL, num_channel=64), seed=1)
    state = checkpoint.load(tmp_path / "results" / "shipped.pt")  # another file of the same run
    averaged = {key: tensor.half() for key, tensor in state["ema_model"].items()}
    checkpoint.save(tmp_path / "rounded.pt", state | {"step": 7, "ema_model": averaged})
    return folder(tmp_path, CONDITIONAL)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ("--cfg 2 --cfg_interval 0.5 1.2", "--cfg_interval .*1.2: must be at most 1"),
        ("--cfg 2 --cfg_interval -0.1 1", "--cfg_interval .*-0.1: must be at least 0"),
        ("--cfg 2 --cfg_interval 0.9 0.1", "--cfg_interval 0.9 0.1: give two times from 0 .* the smaller first"),
        ("--cfg 2 --cfg_interval 0.5 0.5", "--cfg_interval 0.5 0.5: give two times"),
        ("--cfg 2 --cfg_interval 0.5", "--cfg_interval 0.5: give two times"),
        ("--cfg_interval 0.1 0.9", "--cfg_interval without guidance: give a scale by --cfg"),
        ("--guide worse.pt", "--guide without guidance: give a scale by --cfg"),
        (
            "--cfg 2 --cfg_interval 0.41 0.59 --n_steps 5 --solver euler",
            "guides none of the 5 steps, starting at 0, 0.2",
        ),
        ("--cfg 2 --guide gone.pt", "no weights at .*gone.pt.* or give --guide with"),
        ("--cfg 2 --guide results/shipped.pt", "these are the weights that it is to guide"),
        ("--cfg 2 --guide rounded.pt", "these are the weights that it is to guide"),
    ],
)
def test_mistakes_are_one_line(place, monkeypatch, flags, match):
    monkeypatch.chdir(place.here)
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        gen_main(place, "", [*CPU, *flags.split()])
    assert "\n" not in str(caught.value)
    assert not (place.here / "samples").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "idff", "sigma": 0.2}, "method idff there, rf of shipped.pt; sigma 0.2 there, 0.0 of"),
        ({"image_size": 16}, "image_size 16 there, 8 of shipped.pt"),
        ({"in_channels": 3}, "channels 3 there, 1 of shipped.pt"),
        ({"num_classes": 0}, "num_classes 0 there, 3 of shipped.pt"),
    ],
)
def test_a_guide_for_something_else_is_refused(place, changes, match):
    other = weights(place.here / "other.pt", replace(CONDITIONAL, **changes), seed=1)
    with pytest.raises(ValueError, match=f"other.pt does not fit: .*{match}.*; give worse weights of the same task"):
        grid_main(place, "", [*CPU, "--cfg", "2", "--guide", str(other)])


def test_a_guide_of_another_coupling_is_told(place, capsys):
    other = weights(place.here / "other.pt", CONDITIONAL, seed=1)
    state = checkpoint.load(other)
    checkpoint.save(other, state | {"method": state["method"] | {"coupling": "ot"}})
    grid_main(place, "", [*CPU, "--n_samples", "1", "--cfg", "2", "--guide", str(other)])
    assert "coupling ot there, independent of shipped.pt" in capsys.readouterr().out


def test_unconditional_weights_are_guided_by_worse_ones(tmp_path):
    given = weights(tmp_path / "given.pt"), weights(tmp_path / "worse.pt", options(num_channel=64), seed=1)
    config = GridConfig(weights=str(given[0]), guide=str(given[1]), cfg=2.0, solver="euler", n_steps=4, device="cpu")
    made, _ = make_sampler(folder(tmp_path), config, {})
    assert made.sample([0, 1]).nfe == 8 and made.guidance()["guide"] == "worse.pt"
    assert not torch.equal(made([0]), replace(made, cfg=1.0, guide=None)([0]))
    with pytest.raises(ValueError, match="given.pt is unconditional: give others, or --guide WEIGHTS"):
        make_sampler(folder(tmp_path), replace(config, guide=""), {})


def test_a_set_is_continued_with_the_same_guidance_only(place):
    target = place.here / "set"
    argv = [*CPU, "--n_samples", "4", "--save_dir", str(target), "--cfg", "2"]
    guide = ["--guide", str(place.here / "worse.pt")]
    gen_main(place, "", [*argv, *guide, "--cfg_interval", "0.25", "0.75", "--range", "0:2"])
    facts = json.loads((target / "samples.json").read_text())
    assert facts["cfg_interval"] == "0.25..0.75" and facts["guide"] == "worse.pt" and len(facts["guide_sha256"]) == 64
    assert facts["nfe"] == 4 + 2
    for flags, match in (
        (guide, "cfg_interval 0.25..0.75 there and None now"),
        ([*guide, "--cfg_interval", "0.25", "0.5"], "cfg_interval 0.25..0.75 there and 0.25..0.5 now"),
        (["--cfg_interval", "0.25", "0.75"], "guide_sha256 .* there and None now"),
    ):
        with pytest.raises(ValueError, match=match):
            gen_main(place, "", [*argv, *flags])
    (place.here / "worse.pt").rename(place.here / "renamed.pt")
    gen_main(place, "", [*argv, "--guide", str(place.here / "renamed.pt"), "--cfg_interval", "0.25", "0.75"])
    assert len(list(target.glob("*.png"))) == 4


def test_a_sampler_is_fitted_to_its_guidance(place, capsys):
    interval = ["--cfg", "2", "--cfg_interval", "0.2", "0.6"]
    guide = [*interval, "--guide", str(place.here / "worse.pt")]
    few = ["--n_noises", "2", "--n_test", "2", "--fine_steps", "6", "--search", "0", "--n_steps", "3"]
    fit_main(place, "", [*few, *guide])
    draw = ["--n_samples", "1", "--n_steps", "3", "--out", str(place.here / "a.png")]
    grid_main(place, "", [*draw, *guide])
    assert "fitted, 3 steps, grid fitted, NFE" in capsys.readouterr().out
    for flags in (interval, guide[:2]):
        with pytest.raises(ValueError, match="there are: 3 --cfg 2 --cfg_interval 0.2 0.6 --guide worse.pt; fit one"):
            grid_main(place, "", [*draw, *flags, "--solver", "fitted"])


def test_kept_samplers_are_found_by_guidance(place):
    file = place.here / "results" / "shipped.pt"
    made = Sampler(Waves(), "rf", SHAPE, cfg=2.0)
    kinds = [made, replace(made, interval=(0.2, 0.6)), replace(made, guide=Guide(Waves(0.5), "worse.pt", "12"))]
    kinds.append(replace(kinds[2], interval=(0.2, 0.6)))
    plans = [fitted.adams_sampler([0.0, middle, 1.0], 1) for middle in (0.2, 0.3, 0.4, 0.5)]
    for each, plan in zip(kinds, plans):
        fitted.keep_fitted(file, plan, fitted.key_of(2, 2.0, guidance=each.guidance()))
    keys = [fitted.key_of(2, 2.0, guidance=each.guidance()) for each in kinds]
    assert [fitted.find_fitted(file, key) for key in keys] == plans
    assert "cfg_interval" not in fitted.read_samplers(file)["fitted"][0]  # a file of before means the whole interval
    grids = [adaptive_nodes(each, 9, file).tolist() for each in kinds]
    assert len(fitted.read_samplers(file)["adaptive"]) == 4 * 32 and len({str(grid) for grid in grids}) == 4
    assert [adaptive_nodes(each, 9, file).tolist() for each in kinds] == grids


def test_cards_keep_measurements_of_other_guidance_apart(place):
    file = place.here / "results" / "shipped.pt"
    same = {"solver": "euler", "n_steps": 4, "cfg": 2.0, "seed": 0, "generated": 9}
    for more in (
        {},
        {"cfg_interval": "0.1..0.9"},
        {"guide": "a", "guide_sha256": "1"},
        {"guide": "b", "guide_sha256": "1"},
    ):
        card = add_measurement(file, same | more)
    assert [row.get("guide") for row in json.loads(card.read_text())["measured"]] == [None, None, "b"]
