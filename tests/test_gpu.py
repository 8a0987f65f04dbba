"""What only a GPU can show: halves, compiled steps, its streams and memory, and that it computes what a CPU does.

    python -m pytest -m gpu
    REHEARSE_ON=cpu python -m pytest -m gpu        # the bodies on a CPU: minutes, of which compiling takes most

Tolerances are those of tf32, which cuDNN's convolutions use (2^-11 a product), and of halves.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import checkpoint, runtime
from common.data.loading import Batches
from common.generate import Sampler, sample_many, velocity_of
from common.losses import flow_map
from common.methods import METHODS
from common.paths import LinearPath
from common.records.rows import JsonLines
from common.runtime import Processes
from common.solvers import fitted, integrate
from common.training.batches import CoupledBatches
from common.training.trainer import Trainer
from tiny import images, last, network, options, run

WHERE = os.environ.get("REHEARSE_ON", "cuda")
DEVICE = torch.device(WHERE)
HERE = Processes(rank=0, world=1, device=DEVICE)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHERE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WIDE = options(channel_mult=(2, 2), attention_resolutions=(4,), image_size=8, num_classes=3, device=WHERE)


def batches(config, device=DEVICE, ahead=False):
    """Coupled batches of made-up images that lie on a device."""
    data = images(classes=3).to(device)
    drop = (config.label_dropout, config.num_classes)
    coupling = METHODS[config.method].joint()
    plain = Batches(data, config.batch_size, 0, True, device, drop)
    return CoupledBatches(plain, coupling, 0, replace(HERE, device=device), ahead, times=METHODS[config.method].times)


def on(device, batch):
    """The same batch on another device."""
    return replace(batch, **{k: v.to(device) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)})


def steps(config, device, count=3):
    """Losses and gradient norms of a run's first steps on the CPU's batches, and its trainer."""
    trainer, source = Trainer(config, replace(HERE, device=torch.device(device))), batches(config, torch.device("cpu"))
    with torch.no_grad():  # a fresh network predicts zero, whatever it computes with
        trainer.net.load_state_dict({k: v.to(device) for k, v in network(config).state_dict().items()}, strict=False)
    trainer.net.train()
    done = [trainer.update(on(device, source.at(k))) for k in range(count)]
    return torch.tensor([[float(loss), float(norm)] for loss, norm in done]), trainer


def relative(a, b):
    """Norm of the difference over the norm of the second."""
    a, b = (torch.as_tensor(x).double().cpu() for x in (a, b))
    return float((a - b).norm() / b.norm())


# ---- steps


def test_a_step_is_the_cpus():
    here, trainer = steps(WIDE, WHERE)
    there, reference = steps(WIDE, "cpu")
    assert relative(here, there) < 5e-3 and here.std() > 0
    assert all(p.device.type == DEVICE.type for p in trainer.net.parameters())
    for (name, p), q in zip(trainer.net.named_parameters(), reference.net.parameters(), strict=True):
        assert p.dtype == torch.float32 and relative(p.detach(), q.detach()) < 0.05, name


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("bf16", torch.bfloat16, 0.03), ("fp16", torch.half, 0.01)]
)
def test_a_step_in_half_precision_is_that_in_float32(precision, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(runtime, "computes", lambda name: True)  # a CPU emulates it
    seen = set()

    def look(module, inputs, output):
        seen.add(output.dtype)

    full, _ = steps(WIDE, WHERE)
    with monkeypatch.context() as patch:
        init = Trainer.build

        def build(self):
            net, description = init(self)
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(look)
            return net, description

        patch.setattr(Trainer, "build", build)
        half, trainer = steps(replace(WIDE, mixed_precision=precision), WHERE)
    assert seen == {dtype}, "the convolutions' results are halves"
    assert trainer.bad_steps() == 0 and trainer.ema.updates == 3
    assert 0 < relative(half, full) < tolerance
    assert {p.dtype for p in trainer.net.parameters()} == {torch.float32}


def test_scaled_gradients_that_overflow_are_skipped():
    """fp16's loss scale begins at 2^16: where that is too much the step is left out, the scale halved."""
    config = replace(WIDE, mixed_precision="fp16" if WHERE == "cuda" else "no", total_steps=10)
    trainer, source = Trainer(config, HERE), batches(config)
    trainer.net.train()
    before = [p.detach().clone() for p in trainer.net.parameters()]
    broken = source.at(0)
    broken.x1.fill_(float("inf"))
    trainer.update(broken)
    assert trainer.scaler.get_scale() == (2**15 if WHERE == "cuda" else 1)
    assert all(torch.equal(p, q) for p, q in zip(trainer.net.parameters(), before, strict=True))
    trainer.update(source.at(1))
    assert any(not torch.equal(p, q) for p, q in zip(trainer.net.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in trainer.net.parameters())


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    changes = {"method": "idff", "sigma": 0.2, "dropout": 0.1, "num_classes": 3, "lr_decay": "none"}
    whole = run(tmp_path / "whole", HERE, **changes, total_steps=4)
    run(tmp_path / "parts", HERE, **changes, total_steps=2)
    parts = run(tmp_path / "parts", HERE, **changes, total_steps=4, resume="auto")
    other = run(tmp_path / "other", HERE, **changes, total_steps=4, seed=1)
    one, two, third = (checkpoint.load(path)["ema_model"] for path in (whole, parts, other))
    flat = [torch.cat([v.float().flatten() for v in state.values()]) for state in (one, two, third)]
    assert relative(flat[1], flat[0]) < 5e-3 < relative(flat[2], flat[0])
    a, b = (last(tmp_path / name) for name in ("whole", "parts"))
    assert (a["step"], a["images_seen"], a["skipped"]) == (b["step"], b["images_seen"], b["skipped"]) == (4, 32, 0)


def test_a_network_of_two_times_learns_as_on_a_cpu():
    config = replace(WIDE, method="flowmap")
    here, trainer = steps(config, WHERE)
    there, _ = steps(config, "cpu")
    assert trainer.net.end_embed is not None and relative(here, there) < 0.02
    sampler = Sampler(trainer.net.eval(), "flowmap", (1, 8, 8), solver="flowmap", n_steps=2)
    (_, drawn, nfe), *_ = sample_many(sampler, range(3))
    assert drawn.shape == (3, 1, 8, 8) and drawn.isfinite().all() and nfe == 2


def test_both_calls_of_a_flow_map_drop_the_same():
    masks = []

    def net(x, t, y, r):
        masks.append(F.dropout(torch.ones_like(x), 0.5))
        return masks[-1] * x

    x0, x1, t, r = (torch.rand(4, *shape, device=DEVICE) for shape in [(64,), (64,), (), ()])
    for seed in (0, 1):
        torch.manual_seed(seed)
        flow_map(net, LinearPath(0.0), x0, x1, 0.5 * t, None, None, 0.5 + 0.5 * r, 0.5)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2]) and 0.2 < masks[0].eq(0).float().mean() < 0.8


def test_what_a_step_drops_is_a_function_of_its_seed():
    drawn = []
    for seed in (3, 3, 4):
        runtime.seed_device(DEVICE, seed)
        drawn.append(F.dropout(torch.ones(1000, device=DEVICE), 0.5))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# ---- batches


def test_images_that_lie_on_the_device_make_the_cpus_batches():
    pair = []
    for device in (DEVICE, torch.device("cpu")):
        pair.append(
            Batches(images(classes=3).to(device), 8, 0, True, device, drop=(0.3, 3), subset=torch.arange(5, 35))
        )
    for step in range(6):
        (x, y), (expected, labels) = (part.at(step) for part in pair)
        assert x.device.type == y.device.type == DEVICE.type
        assert torch.allclose(x.cpu(), expected, atol=1e-6) and torch.equal(y.cpu(), labels)


@pytest.mark.parametrize("method", ["rf", "idff"])
def test_batches_made_ahead_on_a_stream_of_their_own_are_those_made_in_turn(method):
    """While the network's queue is long: what a batch lies in must not be taken for the next one before it was used."""
    config = replace(WIDE, method=method, sigma=0.2)
    ahead, in_turn = batches(config, ahead=True), batches(config)
    assert (ahead.stream is not None) == (DEVICE.type == "cuda")
    load = torch.randn(4096 if DEVICE.type == "cuda" else 16, 4096 if DEVICE.type == "cuda" else 16, device=DEVICE)
    copies = []
    for step in range(8):
        batch = ahead.at(step)
        for _ in range(20):
            load = torch.tanh(load @ load)  # tens of milliseconds of work, queued before the batch is read
        copies.append([x.clone() for x in (batch.x0, batch.x1, batch.t, batch.noise, batch.y)])
        del batch
    ahead.close()
    for step, copy in enumerate(copies):
        batch = in_turn.at(step)
        for x, expected in zip(copy, (batch.x0, batch.x1, batch.t, batch.noise, batch.y), strict=True):
            assert torch.equal(x, expected), step


# ---- samples


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 5e-3), ("bf16", 0.1)])
def test_a_sample_does_not_depend_on_its_batch(precision, tolerance):
    net = network(WIDE).to(DEVICE).to(memory_format=torch.channels_last)
    sampler = Sampler(net, "rf", (1, 8, 8), solver="unipc2", n_steps=4, cfg=1.5, precision=precision)
    together = torch.cat([part for _, part, _ in sample_many(sampler, range(64), 64)])
    alone = torch.cat([part for _, part, _ in sample_many(sampler, (0, 1, 37, 63), 1)])
    assert (alone - together[[0, 1, 37, 63]]).abs().max() < tolerance
    assert (alone[0] - alone[3]).abs().max() > 2 * tolerance, "other noise, another image"


def test_a_sample_is_the_cpus():
    pictures = []
    for device in (DEVICE, "cpu"):
        sampler = Sampler(network(WIDE).to(device), "rf", (1, 8, 8), solver="heun", n_steps=4, cfg=1.5)
        pictures.append(torch.cat([part for _, part, _ in sample_many(sampler, range(8))]))
    assert relative(*pictures) < 5e-3


def test_a_sampler_is_fitted_and_used():
    net = network(WIDE).to(DEVICE)
    y = torch.arange(6, device=DEVICE) % 3

    def velocity_for(last):
        return velocity_of(net, "rf", y, last=last)

    noise = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    teacher = fitted.teach(velocity_for, noise, 24)
    fit = fitted.fit_sampler(velocity_for, teacher, 4, search=3)
    with torch.no_grad():
        ends = [
            integrate(velocity_for(times[-2]), noise, times, how)
            for how, times in ((fit, fit.times), ("euler", [0, 0.25, 0.5, 0.75, 1]))
        ]
    assert relative(ends[0], teacher.states[-1]) < relative(ends[1], teacher.states[-1])
    sampler = Sampler(net, "rf", (1, 8, 8), fitted=fit, n_steps=4)
    (_, drawn, nfe), *_ = sample_many(sampler, range(6))
    assert nfe == 4 and drawn.isfinite().all()


# ---- compiled: last, for they take longest


def test_a_compiled_step_is_the_plain_one():
    config = replace(WIDE, mixed_precision="bf16")
    plain, _ = steps(config, WHERE, 2)
    compiled, trainer = steps(replace(config, compile=True), WHERE, 2)
    assert trainer.call is not trainer.net and relative(compiled, plain) < 0.03


def test_a_compiled_run_validates_draws_and_is_read_on_a_cpu(tmp_path):
    """Between compiled steps the averaged weights take the place of the trained ones, and go again."""
    changes = {"sample_step": 2, "val_step": 1, "total_steps": 3, "val_fraction": 0.2, "lr_decay": "none"}
    losses, weights = [], []
    for compiled in (True, False):
        path = run(tmp_path / str(compiled), HERE, **changes, compile=compiled)
        rows = list(JsonLines(path.parent / "metrics.jsonl").read())
        losses.append([row[key] for key in ("loss", "val_loss") for row in rows if row.get(key) is not None])
        weights.append(torch.cat([v.float().flatten() for v in checkpoint.load(path)["ema_model"].values()]))
        assert len(list((path.parent / "samples").iterdir())) > 0
    assert len(losses[0]) == 6 and relative(losses[0], losses[1]) < 5e-3 and relative(*weights) < 0.02
    net = checkpoint.load_network(path)[0]
    assert next(net.parameters()).device.type == "cpu"
    assert net(torch.zeros(2, 1, 8, 8), torch.rand(2)).isfinite().all()
