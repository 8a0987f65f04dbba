"""The training loop: resumed runs, averaged weights, schedules, non-finite steps, what a run folder holds."""

from __future__ import annotations

import json
import math
import signal
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from common import checkpoint, runtime
from common.cli import parse
from common.cli.configs import TrainConfig
from common.couplings import couple
from common.data.loading import Batches, StreamingImages
from common.images import save_png
from common.methods import TIMES
from common.records.rows import JsonLines
from common.runtime import Processes, file_hash, generator
from common.scripts.folder import smoke_preset
from common.scripts.train import train_main
from common.training import report
from common.training import trainer as trainer_module
from common.training.batches import CoupledBatches
from common.training.loop import train
from common.training.trainer import Trainer, learning_rate
from tiny import ALONE, NAME, difference, folder, images, last, options, run, states_differ, weights

RF = {"method": "rf", "num_classes": 3, "dropout": 0.1, "grad_accum": 2, "lr_decay": "cosine", "val_step": 1}
IDFF = {"method": "idff", "sigma": 0.2, "dropout": 0.1, "grad_accum": 2, "channel_mult": (1, 2), "patch_size": 2}


def stop_after(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal in the middle of a training step."""
    update = Trainer.update

    def interrupted(self, batch):
        if self.step + 1 == step:
            signal.raise_signal(number)
        return update(self, batch)

    monkeypatch.setattr(Trainer, "update", interrupted)


# ---- resume


RECIPE = {**IDFF, "data_loss": "velocity", "score_target": "conditional", "score_weight": 0.1}
RECIPE |= {"coupling": "independent", "times": "mixed", "times_share": 0.5}


@pytest.mark.parametrize("changes", [RF, IDFF, RECIPE], ids=["rf", "idff", "recipe"])
def test_a_stopped_and_resumed_run_equals_the_run_that_never_stopped(tmp_path, monkeypatch, capsys, changes):
    whole = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", **changes, coupling_ahead=False)
    assert "saved at step 2; the same command with --resume auto goes on from here" in capsys.readouterr().out
    assert last(tmp_path / "parts")["step"] == 2 and not (tmp_path / "parts" / NAME).exists()

    parts = run(tmp_path / "parts", **changes, resume="auto")
    assert states_differ(last(tmp_path / "whole"), last(tmp_path / "parts")) == ""
    assert difference(checkpoint.load(whole)["ema_model"], checkpoint.load(parts)["ema_model"]) == ""
    assert last(tmp_path / "parts")["skipped"] == 0
    for name in ("whole", "parts"):  # also the log has each step once
        rows = [row for row in JsonLines(tmp_path / name / "metrics.jsonl").read() if "loss" in row]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_the_state_depends_on_seed_and_dropout(tmp_path):
    """So that the equalities above are not those of a run that ignores its randomness."""
    states = [last(run(tmp_path / str(k), **RF, **more).parent) for k, more in enumerate([{}, {"seed": 1}])]
    states.append(last(run(tmp_path / "no", **{**RF, "dropout": 0.0}).parent))
    assert states_differ(states[0], states[1]) and states_differ(states[0], states[2])


def test_preparing_batches_ahead_changes_nothing(tmp_path):
    states = [last(run(tmp_path / str(ahead), **IDFF, coupling_ahead=ahead).parent) for ahead in (True, False)]
    assert states_differ(*states) == ""


def test_counters_are_part_of_the_state(tmp_path):
    trainer, _ = trainer_and_batches()
    trainer.step, trainer.bad[0], trainer.best, trainer.seconds = 3, 3, 0.25, 12.5
    checkpoint.save(tmp_path / "state.pt", trainer.state())
    other, _ = trainer_and_batches()
    for parameter in other.net.parameters():
        parameter.data += 1
    other.restore(checkpoint.load(tmp_path / "state.pt"), tmp_path)
    assert (other.step, other.bad_steps(), other.best, other.seconds) == (3, 3, 0.25, 12.5)
    assert states_differ(trainer.state(), other.state()) == ""


def test_a_finished_run_can_be_resumed_again_and_prolonged(tmp_path):
    final = run(tmp_path)
    before = final.read_bytes(), last(tmp_path)["optim"]
    assert run(tmp_path, resume="auto") == final
    assert difference(last(tmp_path)["optim"], before[1]) == ""
    assert list(tmp_path.glob("*previous*")) == []  # the same weights: nothing to keep
    run(tmp_path, resume="auto", total_steps=5)
    assert checkpoint.load(final)["step"] == 5
    assert checkpoint.load(tmp_path / "weights_step_final.previous.pt")["step"] == 4


def test_resume_auto_in_an_empty_folder_begins(tmp_path):
    (tmp_path / "config.yaml").write_text("of: a run that was killed before its first checkpoint\n")
    run(tmp_path, resume="auto", total_steps=2)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["total_steps"] == 2


def test_weights_that_were_there_are_kept(tmp_path, capsys):
    shipped = weights(tmp_path / NAME).read_bytes()
    final = run(tmp_path, total_steps=2)
    assert (tmp_path / "weights_step_final.previous.pt").read_bytes() == shipped
    run(tmp_path, total_steps=3, resume="auto")
    assert (tmp_path / "weights_step_final.previous.pt").read_bytes() == shipped  # not lost to the next ones
    assert checkpoint.load(tmp_path / "weights_step_final.previous2.pt")["step"] == 2
    assert "kept as weights_step_final.previous.pt" in capsys.readouterr().out
    assert checkpoint.find(tmp_path) == final


def test_final_weights_that_cannot_be_read_are_kept_too(tmp_path):
    (tmp_path / NAME).write_bytes(b"PK\x03\x04 half a file")
    run(tmp_path, total_steps=2)
    assert (tmp_path / "weights_step_final.previous.pt").read_bytes() == b"PK\x03\x04 half a file"
    assert checkpoint.load(tmp_path / NAME)["step"] == 2


def test_a_resumed_run_takes_the_optimizers_options_that_it_is_given(tmp_path):
    run(tmp_path, total_steps=2)
    run(tmp_path, total_steps=3, resume="auto", betas=(0.8, 0.99), weight_decay=0.1)
    group = last(tmp_path)["optim"]["param_groups"][0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.99), 0.1)
    changes = {"betas": [[0.9, 0.999], [0.8, 0.99]], "weight_decay": [0.0, 0.1]}
    assert last(tmp_path)["history"] == [{"step": 2, "total_steps": [2, 3], **changes}]


# ---- arithmetic of a step


def test_learning_rate():
    config = TrainConfig(lr=2.0, warmup=4, total_steps=12, lr_decay="none")
    assert [learning_rate(config, k) for k in (0, 1, 3, 4, 11)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert learning_rate(replace(config, warmup=0), 0) == 2.0
    linear = replace(config, lr_decay="linear")
    assert [learning_rate(linear, k) for k in (3, 4, 6, 8, 12)] == [2.0, 2.0, 1.5, 1.0, 0.0]
    cosine = replace(config, lr_decay="cosine")
    values = [learning_rate(cosine, k) for k in (4, 8, 10, 12)]
    assert values == pytest.approx([2.0, 1.0, 1 + math.cos(0.75 * math.pi), 0.0])


def test_the_optimizer_uses_the_schedule(tmp_path):
    run(tmp_path, warmup=2, lr=1e-3, lr_decay="linear", total_steps=4)
    rows = JsonLines(tmp_path / "metrics.jsonl").read()
    assert [row["lr"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert last(tmp_path)["optim"]["param_groups"][0]["lr"] == pytest.approx(5e-4)


def trainer_and_batches(**changes):
    config = options(**changes)
    batches = Batches(images(), config.batch_size, config.seed)
    return Trainer(config, ALONE), CoupledBatches(batches, "independent", config.seed, ALONE, ahead=False)


def test_averaged_weights_of_a_run_follow_the_recursion():
    trainer, source = trainer_and_batches(num_classes=3, ema_decay=0.5, ema_warmup=0.0)
    average = {key: value.clone() for key, value in trainer.net.state_dict().items()}
    for step in range(4):
        trainer.update(source.at(step))
        for key, value in trainer.net.state_dict().items():
            average[key] = 0.5 * average[key] + 0.5 * value
    found = trainer.weights()["ema_model"]
    assert all(torch.allclose(found[key], average[key], atol=1e-7) for key in average)
    moved = trainer.net.state_dict()
    assert not torch.allclose(found["out.2.weight"], moved["out.2.weight"], atol=1e-7)


@pytest.mark.parametrize("changes", [{"grad_accum": 4}, {"checkpointing": True, "dropout": 0.1}], ids=str)
def test_accumulation_and_checkpointing_do_not_change_the_step(changes):
    results = []
    for extra in ({"dropout": changes.get("dropout", 0.0)}, changes):
        trainer, source = trainer_and_batches(num_classes=3, **extra)
        figures = [trainer.update(source.at(step)) for step in range(2)]
        results.append((torch.tensor(figures), trainer.net.state_dict()))
    (figures, plain), (others, changed) = results
    assert torch.allclose(figures, others, rtol=1e-5)  # the loss, and the gradient before Adam makes its size vanish
    errors = torch.cat([(plain[key] - changed[key]).abs().flatten() for key in plain])
    assert errors.mean() < 1e-6 and errors.max() < 1e-4  # Adam divides by gradients that are nearly zero


def test_gradients_are_clipped():
    norms = {}
    for clip in (0.0, 1e-4):
        trainer, source = trainer_and_batches(num_classes=3, grad_clip=clip)
        seen = []
        step = trainer.optimizer.step
        trainer.optimizer.step = lambda trainer=trainer, seen=seen, step=step: (
            seen.append(torch.cat([p.grad.flatten() for p in trainer.net.parameters() if p.grad is not None]).norm()),
            step(),
        )
        reported = trainer.update(source.at(0))[1]
        norms[clip] = (seen[0].item(), reported.item())
    assert norms[0.0][0] == pytest.approx(norms[0.0][1]) and norms[0.0][1] > 1e-3
    assert norms[1e-4] == pytest.approx((1e-4, norms[0.0][1]), rel=1e-2)  # reported before it is clipped


def test_weight_decay_takes_its_share_of_the_weights_beside_the_step():
    """Decoupled: w <- (1 - lr decay) w - lr adam (Loshchilov & Hutter 2019, algorithm 2), so nothing else differs."""
    steps = []
    for decay in (0.0, 5.0):
        trainer, source = trainer_and_batches(num_classes=3, lr=1e-2, warmup=0, weight_decay=decay)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.net.parameters()])
        trainer.update(source.at(0))
        steps.append(torch.cat([p.detach().flatten() for p in trainer.net.parameters()]) - before)
    assert before.abs().max() > 0.1
    assert torch.allclose(steps[1] - steps[0], -1e-2 * 5.0 * before, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_float32_and_keeps_float32_weights(tmp_path, precision, monkeypatch):
    monkeypatch.setattr(runtime, "computes", lambda precision: True)
    pictures = 4 if precision == "bf16" else 0  # fp16 is emulated on a CPU, and slow
    run(tmp_path / "full", num_classes=3)
    run(tmp_path / "half", num_classes=3, mixed_precision=precision, val_step=4, sample_step=pictures)
    logs = [JsonLines(tmp_path / name / "metrics.jsonl").read() for name in ("full", "half")]
    said = [json.loads((tmp_path / name / NAME).with_suffix(".json").read_text()) for name in ("full", "half")]
    assert [card["precision"] for card in said] == ["no", precision]
    full, half = ([row["loss"] for row in rows if "loss" in row] for rows in logs)
    assert half[0] == pytest.approx(full[0], rel=0.01) and half != full and half[-1] < half[0]
    if precision == "bf16":
        assert half == pytest.approx(full, rel=0.02) and last(tmp_path / "half")["skipped"] == 0
    else:  # fp16's loss scale starts too large: a step or two are skipped and it is halved
        assert last(tmp_path / "half")["skipped"] <= 2
    assert all(value.dtype == torch.float32 for value in last(tmp_path / "half")["net_model"].values())
    assert all(
        value.dtype == torch.float16 for value in checkpoint.load(tmp_path / "half" / NAME)["ema_model"].values()
    )


def test_batches_of_a_step_are_a_function_of_it_and_the_processes_rows_make_the_whole():
    batches = Batches(images(), 8, 0)
    whole = CoupledBatches(batches, "ot", 0, ALONE, ahead=False)
    parts = [CoupledBatches(batches, "ot", 0, Processes(r, 2, ALONE.device), ahead=False).make(5) for r in (0, 1)]
    batch = whole.at(5)
    for name in ("x0", "x1", "t", "noise", "y"):
        mine = getattr(batch, name)
        assert torch.equal(mine, getattr(whole.make(5), name))
        assert torch.equal(mine[0::2], getattr(parts[0], name)) and torch.equal(mine[1::2], getattr(parts[1], name))
    assert not torch.equal(batch.x0, whole.at(6).x0)
    assert torch.equal((batch.t * 8).floor(), torch.arange(8.0))  # one time in each eighth
    independent = CoupledBatches(batches, "independent", 0, ALONE, ahead=False).make(5)
    assert torch.equal(independent.x1, batch.x1) and torch.equal(independent.y, batch.y)
    order = (batch.x0[:, None] == independent.x0[None]).flatten(2).all(2)
    assert (order.sum(0) == 1).all() and (order.sum(1) == 1).all() and not order.diagonal().all()
    assert torch.equal(batch.y, batch.y[order.int().argmax(1)])  # the noise stays within its class


# ---- what training sees


def batches_of_a_run(out, monkeypatch, **changes):
    """The batches of a run, whose steps are counted and not taken."""
    batches = []

    def update(self, batch):
        self.step += 1
        batches.append(batch)
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(Trainer, "update", update)
    run(out, **{"sample_step": 0, "val_fraction": 0.0, **changes})
    return batches


def test_labels_are_dropped_at_their_rate_and_the_network_learns_to_do_without(tmp_path, monkeypatch):
    changes = {"num_classes": 3, "label_dropout": 0.25, "data": images(64)}
    fresh = Trainer(options(num_classes=3, label_dropout=0.25), ALONE).net.label_emb.weight
    learnt = last(run(tmp_path / "run", **changes).parent)["net_model"]["label_emb.weight"]
    assert learnt.shape == (4, 128) and (learnt != fresh).any(1).all()  # the last row means "no label"
    labels = torch.cat([b.y for b in batches_of_a_run(tmp_path, monkeypatch, **changes, batch_size=64, total_steps=20)])
    share = (labels == 3).float().mean().item()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(labels)) ** 0.5)
    assert set(labels.tolist()) == {0, 1, 2, 3}


def test_a_schroedinger_bridge_pairs_by_the_entropic_plan_of_its_sigma(tmp_path, monkeypatch):
    """Of N(0, 1) and N(0, s^2) the plan's covariance is sqrt(s^2 + sigma^4 / 4) - sigma^2 / 2.

    Images of one grey level a meet noise in its mean only: 8 a and 8 mean(x0) are two such numbers in one dimension.
    Source: Janati et al. 2020 (2006.02572), theorem 1, for the regularisation 2 sigma^2.
    """
    spread, sigma = 2.0, 3.0
    levels = spread / 8 * torch.special.ndtri((torch.arange(512) + 0.5) / 512)
    pixels = (127.5 * (1 + levels)).round().to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    data = replace(images(512), images=pixels, labels=None)
    changes = {"method": "sbcfm", "sigma": sigma, "data": data, "batch_size": 128, "total_steps": 8}
    batches = batches_of_a_run(tmp_path, monkeypatch, **changes)
    x0, x1 = (8 * torch.cat([getattr(b, name) for b in batches]).mean((1, 2, 3)) for name in ("x0", "x1"))
    assert x1.std().item() == pytest.approx(spread, rel=0.03)
    expected = (spread**2 + sigma**4 / 4) ** 0.5 - sigma**2 / 2
    found = torch.cov(torch.stack([x0, x1]))[0, 1].item()
    assert found == pytest.approx(expected, abs=0.13)  # two standard errors; 0.42, with half the regularisation 0.76


# ---- non-finite steps


def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted():
    trainer, source = trainer_and_batches(num_classes=3)
    trainer.update(source.at(0))
    good, before = trainer.losses, {key: trainer.state()[key] for key in ("net_model", "optim")}
    before = {key: _copy(value) for key, value in before.items()}
    net, average = before["net_model"]["out.2.weight"], trainer.weights()["ema_model"]["out.2.weight"].clone()
    trainer.losses = lambda *args: good(*args) * math.nan
    loss, norm = trainer.update(source.at(1))
    assert loss.isnan() and norm.isnan()
    assert (trainer.step, *trainer.bad) == (2, 1, 1, 1)
    after = trainer.state()
    after["optim"]["param_groups"][0]["lr"] = before["optim"]["param_groups"][0]["lr"]  # the schedule goes on
    assert difference(before, {key: after[key] for key in before}) == ""
    average.lerp_(net, 1 - trainer.ema.decay_at(1))  # towards the weights, as they have stayed
    assert torch.equal(average, after["ema_model"]["out.2.weight"])
    trainer.losses = good
    trainer.update(source.at(2))
    assert (trainer.step, *trainer.bad) == (3, 1, 0, 1)
    assert difference(before["net_model"], trainer.state()["net_model"])


@pytest.mark.parametrize("changes", [{}, {"mixed_precision": "fp16", "betas": (0.8, 0.9)}], ids=["no", "fp16"])
def test_a_run_with_bad_steps_equals_the_one_without_their_batches(changes):
    """Weights, moments and Adam's count of steps; the schedule is constant, for it counts all steps."""
    whole, source = trainer_and_batches(num_classes=3, warmup=0, **changes)
    other, _ = trainer_and_batches(num_classes=3, warmup=0, **changes)
    good = whole.losses
    for step in range(5):
        bad = step in (0, 2, 3)
        whole.losses = (lambda *args: good(*args) * math.nan) if bad else good
        whole.update(source.at(step))
        if not bad:
            other.update(source.at(step))
        assert (whole.scaler.get_scale() == 1) == (not changes)
        other.scaler.load_state_dict(whole.scaler.state_dict())
    assert difference(whole.net.state_dict(), other.net.state_dict()) == ""
    assert difference(whole.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]) == ""
    assert {state["step"].item() for state in whole.optimizer.state.values()} == {2}
    assert (whole.step, *whole.bad, other.step, *other.bad) == (5, 3, 0, 2, 2, 0, 0, 0)


class Reads(TorchDispatchMode):
    """Counts what waits for a device: numbers read from tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in func.name() or func.name().startswith("aten::nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{"grad_clip": 1.0, "grad_accum": 2}, {"mixed_precision": "fp16"}], ids=str)
def test_no_step_reads_from_the_device(changes):
    trainer, source = trainer_and_batches(num_classes=3, **changes)
    trainer.losses = lambda network, batch, good=trainer.losses: (
        good(network, batch) * (math.nan if trainer.step == 1 else 1)
    )
    batches = [source.at(step) for step in range(3)]
    with Reads() as reads:
        for batch in batches:
            trainer.update(batch)
        assert reads.count == 0
        assert bool(trainer.bad[0]) and reads.count == 1  # which the mode sees


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_gpu():
    trainer = Trainer(options(num_classes=3, device="cuda"), replace(ALONE, device=torch.device("cuda")))
    _, source = trainer_and_batches(num_classes=3)
    batches = [source.at(step) for step in range(4)]
    batches = [replace(b, **{k: v.cuda() for k, v in vars(b).items() if isinstance(v, torch.Tensor)}) for b in batches]
    trainer.update(batches[0])
    trainer.losses = lambda network, batch, good=trainer.losses: (
        good(network, batch) * (math.nan if trainer.step == 2 else 1)
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            trainer.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.bad_steps() == 1 and all(p.isfinite().all() for p in trainer.net.parameters())


def _copy(value):
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_twenty_such_steps_in_a_row_end_the_run_and_keep_the_last_good_checkpoint(tmp_path, monkeypatch):
    make, calls = trainer_module.make_loss, []

    def failing(*args, **constants):
        loss = make(*args, **constants)
        return lambda *a: calls.append(0) or (loss(*a) * (math.nan if len(calls) > 4 else 1))

    monkeypatch.setattr(trainer_module, "make_loss", failing)
    with pytest.raises(
        ValueError, match=r"not finite in 20 steps in a row \(till step 24\).*smaller --lr.*--resume auto"
    ) as e:
        run(tmp_path, total_steps=100, save_step=4)
    assert "\n" not in str(e.value) and not (tmp_path / NAME).exists()
    state = last(tmp_path)
    assert all(value.isfinite().all() for key in ("net_model", "ema_model") for value in state[key].values())
    rows = JsonLines(tmp_path / "metrics.jsonl").read()
    assert rows[3]["loss"] > 0 and rows[3]["skipped"] == 0
    assert rows[-1]["loss"] is None and rows[-1]["skipped"] == 19
    monkeypatch.undo()
    run(tmp_path / "good", total_steps=4)
    assert difference(last(tmp_path / "good")["net_model"], state["net_model"]) == ""


# ---- whole runs


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "cfm", "sigma": 0.1},
        {"method": "otcfm", "num_classes": 3},
        {"method": "fm", "sigma": 0.01, "channels_last": False},
        {"method": "sbcfm", "sigma": 0.5},
        {"method": "rf", "network": "conditional_unet", "channel_mult": (1, 2), "num_classes": 3, "label_dropout": 0.0},
        {"method": "idff", "sigma": 0.2, "num_classes": 3, "coupling": "sinkhorn"},
    ],
    ids=lambda changes: changes["method"],
)
def test_every_method_trains_and_its_weights_are_rebuilt(tmp_path, capsys, changes):
    final = run(tmp_path, **changes, total_steps=3, sample_step=3, val_step=3)
    rows = JsonLines(tmp_path / "metrics.jsonl").read()
    assert [row["step"] for row in rows if row.get("loss", -1) > 0] == [1, 2, 3]
    assert set(rows[0]) == {
        *("step", "images_seen", "loss", "grad_norm", "lr", "images_per_s", "coupling_share", "waited_share"),
        *("skipped", "seconds"),
    }
    assert rows[2]["images_seen"] == 24 and rows[3].keys() == {"step", "val_loss"} and rows[3]["val_loss"] > 0
    assert (tmp_path / "samples" / "step_0000003.png").stat().st_size > 0
    net, info = checkpoint.load_network(final)
    assert info["method"]["name"] == changes["method"] and info["step"] == 3 and info["config"]["image_size"] == 8
    assert net.num_classes == (changes.get("num_classes", 0) and 3 + (changes.get("label_dropout", 0.1) > 0))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["method"] == changes["method"]
    assert f"{changes['method']} with " in capsys.readouterr().out


def test_a_run_starts_from_the_weights_of_another_and_says_so(tmp_path):
    first = run(tmp_path / "a", total_steps=3)
    second = run(tmp_path / "b", init=str(first), total_steps=1, lr=1e-20, warmup=0, ema_warmup=0)
    old, new = (checkpoint.load(path)["ema_model"] for path in (first, second))
    assert difference(old, new) == ""  # Adam moves a weight by lr, below the precision of float16 here
    assert checkpoint.load(second)["init"] == {"weights": first.name, "sha256": file_hash(first)}
    assert json.loads(second.with_suffix(".json").read_text())["init"] == checkpoint.load(second)["init"]


def test_a_resumed_run_does_not_need_the_weights_that_it_started_from(tmp_path):
    first = run(tmp_path / "a", total_steps=2)
    changes = {"init": str(first), "save_step": 2}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(whole, total_steps=4, **changes)
    run(parted, total_steps=2, **changes)
    first.unlink()
    run(parted, total_steps=4, resume="auto", **changes)
    assert states_differ(last(whole), last(parted)) == ""
    assert last(parted)["init"] == last(whole)["init"]


def test_a_resumed_run_is_not_said_to_start_from_other_weights(tmp_path):
    first, other = run(tmp_path / "a", total_steps=1), run(tmp_path / "b", total_steps=2)
    out = tmp_path / "c"
    run(out, init=str(first), total_steps=1)
    text = (out / "config.yaml").read_text()
    for init in (str(other), str(tmp_path / "gone.pt")):
        with pytest.raises(ValueError, match=f"^--init {init}: .* began from {first.name}, other ones than these"):
            run(out, init=init, total_steps=2, resume="auto")
    with pytest.raises(ValueError, match="began from random weights"):
        run(tmp_path / "b", init=str(first), total_steps=3, resume="auto")
    assert (out / "config.yaml").read_text() == text
    run(out, init=str(tmp_path / "a"), total_steps=2, resume="auto")  # the same ones, by their folder
    assert "began from" not in (out / "config.yaml").read_text()
    run(out, total_steps=3, resume="auto")
    assert f"# began from {first.name} by --init, which the options below" in (out / "config.yaml").read_text()


def test_a_flow_map_starts_as_the_velocity_that_it_is_given(tmp_path):
    first = run(tmp_path / "a", total_steps=3, lr=1e-2)
    second = run(tmp_path / "b", init=str(first), method="flowmap", total_steps=1, lr=1e-20, warmup=0)
    velocity, flow_map = checkpoint.load_network(first)[0], checkpoint.load_network(second)[0]
    x, t, r = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0.5, 1.0])
    torch.testing.assert_close(flow_map(x, t, None, r), velocity(x, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_channel": 64}, "channels: 32 there, 64 here"),
        ({"method": "idff", "sigma": 0.2}, "in_channels: 1 there, 2 here"),
        ({"num_classes": 3}, "num_classes: 0 there, 4 here"),
    ],
    ids=str,
)
def test_weights_of_another_network_are_no_start(tmp_path, changes, words):
    first = weights(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"^--init .*a.pt is of another network .*{words}"):
        run(tmp_path / "b", init=str(first), **changes)
    assert not list((tmp_path / "b").glob("*.pt"))


def test_validation_loss_falls_and_the_best_weights_are_kept(tmp_path):
    data = images(24, classes=2)
    run(tmp_path, data=data, num_classes=2, total_steps=40, batch_size=16, lr=4e-3, val_step=10, val_fraction=0.2)
    values = {row["step"]: row["val_loss"] for row in JsonLines(tmp_path / "metrics.jsonl").read() if "val_loss" in row}
    assert list(values) == [10, 20, 30, 40]
    assert values[40] < 0.7 * values[10]
    best = min(values, key=lambda step: values[step])
    assert checkpoint.load(tmp_path / "checkpoint_best.pt")["step"] == best
    assert last(tmp_path)["best"] == values[best]


def test_the_best_weights_are_those_of_the_least_validation_loss(tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0, math.nan, 1.0, 4.0])
    monkeypatch.setattr(Trainer, "validation_loss", lambda *_: next(values))
    run(tmp_path, val_step=1)
    best = checkpoint.load(tmp_path / "checkpoint_best.pt")
    assert best["step"] == 2 and last(tmp_path)["best"] == 1.0
    run(tmp_path, val_step=1, total_steps=6, resume="auto")  # which knows what was best
    assert difference(checkpoint.load(tmp_path / "checkpoint_best.pt"), best) == ""


def test_validation_changes_neither_weights_nor_mode_and_repeats():
    trainer, source = trainer_and_batches(num_classes=3, dropout=0.5)
    trainer.net.train()
    trainer.update(source.at(0))
    before = _copy(trainer.net.state_dict())
    held_out = CoupledBatches(Batches(images(), 8, 0, flip=False), "independent", 1, ALONE, ahead=False)
    assert trainer.validation_loss(held_out, 2) == trainer.validation_loss(held_out, 2)
    assert torch.equal(trainer.sample_grid(), trainer.sample_grid())
    assert trainer.net.training and difference(before, trainer.net.state_dict()) == ""


@pytest.mark.parametrize(
    ("method", "coupling", "joint"),
    [("otcfm", "auto", "ot"), ("idff", "auto", "ot"), ("sbcfm", "auto", "sinkhorn"), ("rf", "ot", "ot")]
    + [("rf", "auto", "independent"), ("otcfm", "independent", "independent")],
)
def test_held_out_batches_are_coupled_as_those_of_the_training(tmp_path, method, coupling, joint):
    """Else the validation loss, which chooses the best weights, is that of other pairs and has another minimum."""
    seen = []

    def events(report, held_out, count):
        seen.append(held_out)
        return []

    config = options(method=method, coupling=coupling, sigma=0.5, val_fraction=0.5, batch_size=16, total_steps=1)
    weights_file = train(config, images(40), tmp_path, NAME, ALONE, events)
    batch = seen[0].batches.make(0)
    draw = generator(config.seed + 1, "step", 0)
    x0 = torch.randn(batch.x1.shape, generator=draw)
    reg = 2 * 0.5**2 if joint == "sinkhorn" else None
    assert torch.equal(batch.x0, couple(x0, batch.x1, joint, generator(config.seed + 1, "couple", 0), reg=reg)[0])
    assert torch.equal(batch.x0, x0) == (joint == "independent") and len(x0) == 16
    # and the checkpoint says how they were coupled
    assert checkpoint.load(weights_file)["method"]["coupling"] == joint
    assert checkpoint.load_network(tmp_path)[1]["method"]["coupling"] == joint


def test_training_times_are_those_asked_for_and_held_out_losses_those_of_every_run(tmp_path, monkeypatch):
    seen = []

    def events(report, held_out, count):
        seen.append((report.trainer, held_out))
        return []

    for terms in (IDFF | {"coupling": "independent"}, RECIPE | {"flow_weight": 1.0}):
        config = options(**terms, val_fraction=0.5, batch_size=16, total_steps=1)
        train(config, images(40), tmp_path / config.times, NAME, ALONE, events)
    held_out = seen[1][1]
    assert torch.equal((held_out.batches.make(0).t * 16).floor(), torch.arange(16.0))
    trainers = [Trainer(trainer.config, ALONE) for trainer, _ in seen]  # the same fresh network
    assert trainers[0].validation_loss(*held_out) == trainers[1].validation_loss(*held_out)
    batch = held_out.batches.make(0)
    assert not torch.allclose(*(trainer.losses(trainer.net, batch) for trainer in trainers))
    plain, recipe = (
        batches_of_a_run(tmp_path / f"{k}", monkeypatch, **terms) for k, terms in enumerate((IDFF, RECIPE))
    )
    for a, b in zip(plain, recipe, strict=True):
        assert torch.equal(b.t, TIMES["mixed"].of(share=0.5)(a.t)) and not torch.equal(a.t, b.t)


def test_a_run_is_not_resumed_with_another_objective(tmp_path):
    run(tmp_path, **RECIPE, total_steps=2)
    with pytest.raises(ValueError, match="score_weight: 0.1 there, 1.0 here"):
        run(tmp_path, **(RECIPE | {"score_weight": 1.0}), total_steps=3, resume="auto")


def test_a_run_from_before_couplings_were_recorded_goes_on(tmp_path):
    run(tmp_path, method="rf", coupling="ot", total_steps=2)
    state = checkpoint.load(tmp_path / "checkpoint_last.pt")
    del state["method"]["coupling"]
    checkpoint.save(tmp_path / "checkpoint_last.pt", state)
    with pytest.raises(ValueError, match="coupling: ot there, independent here"):
        run(tmp_path, method="rf", total_steps=3, resume="auto")
    run(tmp_path, method="rf", coupling="ot", total_steps=3, resume="auto")
    assert last(tmp_path)["step"] == 3 and last(tmp_path)["method"]["coupling"] == "ot"


def test_streamed_images_train_like_resident_ones(tmp_path):
    data = images(12, size=8)
    for k, image in enumerate(data.images):
        save_png(tmp_path / "data" / str(int(data.labels[k])) / f"{k:02d}.png", image.permute(1, 2, 0))
    for classes in (3, 0):
        streamed = StreamingImages(str(tmp_path / "data"), 8, 1, progress=False)
        order = [data.images[int(name.split("/")[1][:2])] for name in streamed._source.names]
        resident = replace(data, images=torch.stack(order), labels=streamed.labels)
        both = [
            run(tmp_path / f"{k}-{classes}", data=d, total_steps=2, num_classes=classes)
            for k, d in enumerate((streamed, resident))
        ]
        assert states_differ(*(last(final.parent) for final in both)) == ""


def test_no_validation_no_samples(tmp_path):
    run(tmp_path, total_steps=2, val_fraction=0.0, val_step=1, sample_step=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint_last.pt", "config.yaml", "metrics.jsonl", "run.lock", NAME, "weights_step_final.json"),
        "page.html",
    }


def test_tensorboard_gets_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    before = "tensorflow" in sys.modules
    run(tmp_path, total_steps=2, logger="tensorboard")
    assert before or "tensorflow" not in sys.modules
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_smoke_is_small_and_goes_through_everything(tmp_path):
    big = TrainConfig(method="idff", sigma=0.2, channel_mult=(1, 2, 2), num_classes=10, patch_size=2)
    small = smoke_preset(big)
    assert small.total_steps == 4 and small.num_channel == 32 and small.patch_size == 2
    assert smoke_preset(replace(big, image_size=28, channel_mult=(1, 2), patch_size=1)).patch_size == 2
    assert smoke_preset(replace(big, network="conditional_unet", patch_size=1)).patch_size == 1
    place = folder(tmp_path, options(method="rf", num_classes=3))
    for _ in range(2):  # again and again, without --resume
        final = train_main(place, "", ["--smoke"])
    assert final == tmp_path / "results" / "smoke-rf" / "RF_weights_step_final.pt"
    assert {path.name for path in final.parent.iterdir()} == {
        *("checkpoint_last.pt", "checkpoint_best.pt", "config.yaml", "metrics.jsonl", "run.lock", "samples"),
        *(final.name, "RF_weights_step_final.json", "page.html"),
    }


def test_weights_tell_no_paths_of_the_machine(tmp_path):
    config = Trainer(options(data="/home/me/faces.zip", data_root="/home/me", out="/home/me/run"), ALONE).options()
    assert (config["data"], config["data_root"], config["out"]) == ("faces.zip", "", "")
    assert checkpoint.load(run(tmp_path, total_steps=1))["config"] == Trainer(options(total_steps=1), ALONE).options()


def test_the_first_pictures_and_validation_come_early_and_change_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "EARLY", 1)
    quiet = run(tmp_path / "quiet", total_steps=7, dropout=0.1, save_step=7)
    seen = run(tmp_path / "seen", total_steps=7, dropout=0.1, save_step=7, sample_step=6, val_step=6)
    steps = [1, 2, 4, 6, 7]
    assert sorted(path.name for path in (seen.parent / "samples").iterdir()) == [f"step_{k:07d}.png" for k in steps]
    rows = JsonLines(seen.parent / "metrics.jsonl").read()
    assert [row["step"] for row in rows if "val_loss" in row] == steps
    assert difference(checkpoint.load(quiet)["ema_model"], checkpoint.load(seen)["ema_model"]) == ""
    assert f"page: {seen.parent / 'page.html'}\n" in capsys.readouterr().out
    monkeypatch.undo()
    assert [k for k in range(1, 2001) if report.due(k, 1000, 1500, early=True)][:6] == [50, 100, 200, 400, 800, 1000]
    assert [k for k in range(1, 121) if report.due(k, 100, 120)] == [100, 120] and not report.due(50, 0, 100, True)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_loss_of_each_epoch_is_printed(tmp_path, monkeypatch, capsys, stopped):
    """36 training images in batches of 8: epochs end with steps 5, 9 and 14."""
    every = run(tmp_path / "every", total_steps=14, log_step=1)
    capsys.readouterr()
    if stopped:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, 7)
            run(tmp_path / "few", total_steps=14, log_step=4, epochs=3)
    run(tmp_path / "few", total_steps=14, log_step=1 if stopped else 4, epochs=3, resume="auto")
    losses = [row["loss"] for row in JsonLines(every.parent / "metrics.jsonl").read() if "loss" in row]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in printed] == [f"epoch {k} of 3" for k in (1, 2, 3)]
    wanted = [sum(losses[a:b]) / (b - a) for a, b in ((0, 5), (5, 9), (9, 14))]
    seen = [float(line.split("loss ")[1]) for line in printed]
    assert seen[::2] == pytest.approx(wanted[::2], abs=1e-4)
    assert seen[1] == pytest.approx(wanted[1], abs=0.3 if stopped else 1e-4)  # where it stopped, steps have no row


def test_epochs_of_fewer_images_than_a_batch_have_a_loss(tmp_path, capsys):
    run(tmp_path, data=images(10), total_steps=4, epochs=3, val_fraction=0.0)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in printed] == ["epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3"]
    assert "inf" not in "".join(printed)


def test_a_logger_that_is_not_installed_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # what wandb leaves where it ran is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="--logger wandb is not installed: pip install wandb"):
        parse(TrainConfig, argv=["--logger", "wandb"])
