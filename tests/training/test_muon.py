"""Muon: a step against the formula and torch's own, what it is used for, bad steps, resumption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.data.loading import Batches
from common.training.batches import CoupledBatches
from common.training.muon import Muon, hidden_kernels, orthogonalised
from common.training.trainer import Trainer
from tiny import ALONE, difference, images, last, options, run, states_differ

MUON = {"optimizer": "muon", "channel_mult": (1, 2), "num_classes": 3}


def net_with_gradients(layout=torch.contiguous_format, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 3), nn.Linear(4, 5)]
    net = nn.Sequential(*shapes).to(memory_format=layout)
    for p in net.parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=draw))
        p.grad = torch.randn(p.shape, generator=draw).to(
            memory_format=layout if p.ndim == 4 else torch.contiguous_format
        )
    return net


def test_singular_vectors_stay_and_singular_values_come_near_one():
    draw = torch.Generator().manual_seed(0)
    for rows, columns in ((6, 20), (20, 6)):
        matrices = torch.randn(3, rows, columns, generator=draw)
        found = orthogonalised(matrices)
        u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ found @ v.mT  # diagonal where the singular vectors are the same
        values = inside.diagonal(dim1=-2, dim2=-1)
        assert (inside - torch.diag_embed(values)).abs().max() < 1e-5
        assert values.min() > 0.6 and values.max() < 1.25
        # of singular values the iteration makes a polynomial of degree 5^5
        s = s / s.norm(dim=-1, keepdim=True)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert torch.allclose(values, s, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_two_steps_are_those_of_the_formula_and_of_torchs_own(layout):
    net, lr, decay = net_with_gradients(layout), 0.01, 0.1
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    ours = Muon(net, lr, (0.9, 0.99), decay, fused=True)
    other = net_with_gradients()
    flat = [nn.Parameter(other[k].weight.detach().flatten(1).clone()) for k in (1, 2)]
    rest = [p for p in other.parameters() if all(p is not other[k].weight for k in (1, 2))]
    theirs = torch.optim.Muon(flat, lr, decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr, (0.9, 0.99), weight_decay=decay, fused=True)
    for k in range(2):
        for mine, p in zip(net.parameters(), other.parameters(), strict=True):
            assert mine.grad is not None and p.grad is not None
            mine.grad.mul_(1 - 1.7 * k)
            p.grad.mul_(1 - 1.7 * k)
        for p, j in zip(flat, (1, 2), strict=True):
            p.grad = other[j].weight.grad.flatten(1)
        ours.step()
        theirs.step()
        adamw.step()
        if k == 0:  # written out: momentum from 0
            g = net[1].weight.grad.flatten(1)
            update = orthogonalised((0.05 * g + 0.95 * 0.05 * g)[None])[0] * 0.2 * math.sqrt(72)
            wanted = (1 - lr * decay) * start["1.weight"].flatten(1) - lr * update
            assert torch.allclose(net[1].weight.flatten(1), wanted, atol=1e-6)
    for p, j in zip(flat, (1, 2), strict=True):  # theirs iterates in bfloat16
        ours_moved, theirs_moved = (w.flatten(1) - start[f"{j}.weight"].flatten(1) for w in (net[j].weight, p))
        assert (ours_moved - theirs_moved).norm() < 0.02 * theirs_moved.norm()
    for name, p in net.named_parameters():
        if name not in ("1.weight", "2.weight"):
            assert torch.equal(p, dict(other.named_parameters())[name]), name


def test_it_is_used_for_hidden_kernels_alone():
    trainer = Trainer(options(**MUON), ALONE)
    names = {id(p): name for name, p in trainer.net.named_parameters()}
    found = {names[id(p)] for p in hidden_kernels(trainer.net)}
    assert found == {names[id(p)] for p in trainer.optimizer.param_groups[1]["params"]}
    assert "middle_block.0.in_layers.2.weight" in found and all(p.ndim > 2 for p in hidden_kernels(trainer.net))
    assert not found & {"input_blocks.0.0.weight", "out.2.weight", "label_emb.weight", "time_embed.0.weight"}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(names)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_bad_steps_change_nothing(precision):
    trainers = [Trainer(options(**MUON, warmup=0, mixed_precision=precision), ALONE) for _ in range(2)]
    source = CoupledBatches(Batches(images(), 8, 0), "independent", 0, ALONE, ahead=False)
    good = trainers[0].losses
    for step in range(4):
        trainers[0].losses = (lambda *args: good(*args) * math.nan) if step in (0, 2) else good
        trainers[0].update(source.at(step))
        if step in (1, 3):
            trainers[1].update(source.at(step))
        trainers[1].scaler.load_state_dict(trainers[0].scaler.state_dict())
    assert trainers[0].bad_steps() == 2
    assert difference(trainers[0].net.state_dict(), trainers[1].net.state_dict()) == ""
    states = [trainer.optimizer.state_dict()["state"] for trainer in trainers]
    assert difference(*states) == "" and any("momentum" in state for state in states[0].values())


def test_a_run_goes_on_bit_for_bit_and_with_the_same_optimizer_only(tmp_path):
    changes = {**MUON, "dropout": 0.1, "grad_clip": 0.1}
    run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", **changes, total_steps=2)
    run(tmp_path / "parts", **changes, resume="auto")
    assert states_differ(last(tmp_path / "whole"), last(tmp_path / "parts")) == ""
    line = r"^\S+checkpoint_last.pt is of another optimizer than --optimizer adamw: give the same, or another --out$"
    with pytest.raises(ValueError, match=line):
        run(tmp_path / "parts", **{**changes, "optimizer": "adamw"}, total_steps=5, resume="auto")
