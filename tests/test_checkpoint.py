"""Checkpoints: written whole, read safely, rebuilt without flags; files of other projects; one line for bad ones."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchcfm.models.unet.unet import UNetModelWrapper

from common import checkpoint, foreign
from common.config import TrainConfig
from common.ema import EMA
from common.unet import ConditionalUNet, UNet, build_network, network_description

CONFIG = TrainConfig(
    num_channel=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), image_size=16, head_channels=-1
)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that keeps activations of order one, also in layers that start as zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return net.eval()


def own_state(config: TrainConfig = CONFIG, seed: int = 0) -> tuple[nn.Module, dict]:
    """A network and its checkpoint, whose averaged weights differ from the raw ones."""
    description = network_description(config)
    net = randomised(build_network(description), seed)
    ema = EMA(net, 0.5, warmup=0)
    randomised(net, seed + 1)
    ema.update()
    return net, {
        "format": "flow-checkpoint",
        "version": 1,
        "step": 12,
        "config": {"seed": 3},
        "network": description,
        "method": {"name": "cfm", "sigma": 0.0, "flow_weight": 2.0},
        "ema_model": ema.module_state_dict(),
        "net_model": net.state_dict(),
        "ema": ema.state_dict(),
    }


def images(channels: int = 3, size: int = 16, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(batch, channels, size, size, generator=g), torch.rand(batch, generator=g)


def same(a: nn.Module, state: dict) -> bool:
    return all(torch.equal(v, state[k].to(v.dtype)) for k, v in a.state_dict().items())


# ---- our own files


def test_everything_comes_back_bit_for_bit(tmp_path):
    net, state = own_state()
    optimizer = torch.optim.AdamW(net.parameters())
    net(*images()).sum().backward()
    optimizer.step()
    state |= {"optim": optimizer.state_dict(), "best": float("inf"), "none": None, "flags": [True, ("a", 1)]}
    checkpoint.save(tmp_path / "a.pt", state)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert list(loaded) == list(state)
    assert loaded["best"] == float("inf") and loaded["none"] is None and loaded["flags"] == [True, ("a", 1)]
    assert all(torch.equal(v, loaded["net_model"][k]) for k, v in state["net_model"].items())
    for k, entry in state["optim"]["state"].items():
        assert all(torch.equal(entry[n], loaded["optim"]["state"][k][n]) for n in ("exp_avg", "exp_avg_sq", "step"))


def test_shared_tensors_are_written_once(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "both.pt", state)
    checkpoint.save(tmp_path / "one.pt", {k: v for k, v in state.items() if k != "ema"})
    assert (tmp_path / "both.pt").stat().st_size < 1.05 * (tmp_path / "one.pt").stat().st_size


def test_save_refuses_what_load_would_refuse(tmp_path):
    for value, name in ((np.float64(1), "float64"), (Namespace(a=1), "Namespace"), (Path("x"), "Path")):
        with pytest.raises(TypeError, match=rf"state\['config'\]\['x'\] is a (Posix)?{name}"):
            checkpoint.save(tmp_path / "a.pt", {"config": {"x": value}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})

    def full_disk(state, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"disk .*full.*a\.pt"):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_load_network_needs_nothing_but_the_path(tmp_path):
    net, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    network, info = checkpoint.load_network(tmp_path / "a.pt")
    assert not network.training
    assert same(network, state["ema_model"])
    assert (info["step"], info["config"], info["method"]["name"]) == (12, {"seed": 3}, "cfm")
    assert info["network"] == state["network"]
    assert info["report"] == ["a.pt: averaged cfm weights, step 12"]
    raw, info = checkpoint.load_network(tmp_path / "a.pt", ema=False)
    assert same(raw, net.state_dict()) and not same(raw, state["ema_model"])
    assert info["report"] == ["a.pt: raw cfm weights, step 12"]
    raw(*images()).sum().backward()  # trainable: the weights are real parameters
    assert all(p.grad is not None for p in raw.parameters())


def test_half_precision_files_become_float32_networks(tmp_path):
    _, state = own_state()
    half = {k: v.half() for k, v in state["ema_model"].items()}
    kept = {k: state[k] for k in ("format", "version", "step", "config", "network", "method")}
    checkpoint.save(tmp_path / "a.pt", kept | {"ema_model": half})
    network, _ = checkpoint.load_network(tmp_path / "a.pt")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert same(network, {k: v.float() for k, v in half.items()})
    with pytest.raises(ValueError, match=r"averaged weights only: leave out --no-ema"):
        checkpoint.load_network(tmp_path / "a.pt", ema=False)


def test_network_survives_its_file_being_overwritten(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    network, _ = checkpoint.load_network(tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    with open(tmp_path / "a.pt", "r+b") as file:
        file.write(bytes(size))
    assert same(network, state["ema_model"])


def test_a_run_folder_means_its_final_then_best_then_last_weights(tmp_path):
    for name, step in (("checkpoint_last.pt", 1), ("checkpoint_best.pt", 2), ("IDFF_weights_step_final.pt", 3)):
        checkpoint.save(tmp_path / name, {"step": step})
        assert checkpoint.load(tmp_path)["step"] == step


def test_conditional_unet_with_labels_round_trip(tmp_path):
    config = TrainConfig(network="conditional_unet", num_channel=16, in_channels=1, image_size=16, num_classes=4)
    _, state = own_state(config)
    checkpoint.save(tmp_path / "a.pt", state)
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra=config)
    assert isinstance(network, ConditionalUNet) and network.null_class and network.num_classes == 5
    assert same(network, state["ema_model"])
    assert info["network"]["name"] == "ConditionalUNet"


# ---- what is wrong with a file, in one line


def test_missing_file_says_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*no\.pt: train them first, or give --weights"):
        checkpoint.load_network(tmp_path / "no.pt")
    (tmp_path / "other.pt").write_bytes(b"")
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there are other\.pt"):
            checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path, share):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"a\.pt is (truncated|not a PyTorch checkpoint).*again") as error:
        checkpoint.load_network(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_every_flipped_byte_is_noticed(tmp_path):
    """Bytes of tensors, too, which torch.load alone would take as they are."""
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    data = (tmp_path / "a.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        largest = max(archive.infolist(), key=lambda m: m.file_size)
        names = len(largest.filename) + 30
    for offset in (largest.header_offset + names + 4000, largest.header_offset + largest.file_size // 2):
        damaged = bytearray(data)
        damaged[offset] ^= 0x10
        (tmp_path / "b.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"b\.pt is damaged \(checksum of .*\)"):
            checkpoint.load(tmp_path / "b.pt")


def test_random_damage_never_gives_anything_but_one_line(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    data = (tmp_path / "a.pt").read_bytes()
    pick = random.Random(0)
    refused = 0
    for _ in range(30):
        damaged = bytearray(data)
        for _ in range(20):  # near the ends: the pickle and the directory of the archive
            damaged[pick.choice([pick.randrange(9000), -1 - pick.randrange(9000)])] = pick.randrange(256)
        (tmp_path / "b.pt").write_bytes(damaged)
        try:
            loaded = checkpoint.load(tmp_path / "b.pt")
            assert all(torch.equal(v, state["net_model"][k]) for k, v in loaded["net_model"].items())
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / "b.pt")) and "\n" not in str(error)
    assert refused >= 25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", r"not a PyTorch checkpoint \(it begins with b'vers'\)"),
        (b"<!DOCTYPE html>", "not a PyTorch checkpoint"),
        (b"", r"it is empty"),
        (b"\x80\x02garbage", "damaged or not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "a.pt")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("image.png", b"x")
    with pytest.raises(ValueError, match="zip archive, but not a PyTorch checkpoint"):
        checkpoint.load(tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="holds a Tensor, not a dict of weights"):
        checkpoint.load(tmp_path / "b.pt")


class Payload:
    """Unpickled by a careless reader, this makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["value", "weights", "whole"])
def test_malicious_pickle_is_refused_and_its_payload_does_not_run(tmp_path, new_format, place):
    mark = tmp_path / "pwned"
    state = {
        "value": {"format": "flow-checkpoint", "version": 1, "step": Payload(mark)},
        "weights": {"ema_model": {"a": torch.zeros(1), "b": Payload(mark)}},
        "whole": Payload(mark),
    }[place]
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"posix\.system\) besides tensors and was refused") as error:
        checkpoint.load_network(tmp_path / "a.pt")
    assert "\n" not in str(error.value)
    assert not mark.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)  # the payload is real: a careless reader runs it
    assert mark.exists()


def test_bare_pickles_and_argparse_options_are_refused(tmp_path):
    mark = tmp_path / "pwned"
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"ema_model": Payload(mark)}, protocol=2))
    with pytest.raises(ValueError, match="refused|not a checkpoint"):
        checkpoint.load(tmp_path / "a.pt")
    assert not mark.exists()
    torch.save({"model": {}, "args": Namespace(lr=1)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"argparse\.Namespace\) besides tensors and was refused"):
        checkpoint.load(tmp_path / "b.pt")


def test_another_version_or_an_incomplete_file(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state | {"version": 2})
    with pytest.raises(ValueError, match="format version 2, this code reads version 1"):
        checkpoint.load(tmp_path / "a.pt")
    checkpoint.save(tmp_path / "b.pt", {"format": "flow-checkpoint", "version": 1, "step": 3})
    with pytest.raises(ValueError, match=r"holds no network to sample from \(missing: network, method, net_model\)"):
        checkpoint.load_network(tmp_path / "b.pt")
    checkpoint.save(tmp_path / "c.pt", state | {"network": state["network"] | {"new_option": 1}})
    with pytest.raises(ValueError, match="cannot build its network .*new_option"):
        checkpoint.load_network(tmp_path / "c.pt")


def test_checkpoint_of_another_network_names_the_options(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    with pytest.raises(ValueError, match=r"num_channel: 128 given, 32 in the file; channel_mult: \[1, 2, 2\] given"):
        checkpoint.load_network(tmp_path / "a.pt", extra={"num_channel": 128, "channel_mult": (1, 2, 2)})
    checkpoint.load_network(tmp_path / "a.pt", extra=CONFIG)
    wider = network_description(TrainConfig(num_channel=64, image_size=16, head_channels=-1))
    checkpoint.save(tmp_path / "b.pt", state | {"network": wider})
    with pytest.raises(ValueError, match=r"do not fit their network .* tensors missing, first .*of another shape"):
        checkpoint.load_network(tmp_path / "b.pt")


# ---- files of other projects


def torchcfm_net(**options) -> tuple[UNetModelWrapper, dict]:
    """torchcfm's real network, small, and the options of its CIFAR-10 recipe."""
    defaults = {"dim": (3, 16, 16), "num_channels": 64, "num_res_blocks": 1, "channel_mult": [1, 2, 2]}
    defaults |= {"num_heads": 4, "num_head_channels": 64, "attention_resolutions": "8", "dropout": 0.1}
    net = randomised(UNetModelWrapper(**(defaults | options)))
    return net, net.state_dict()


def torchcfm_file(state: dict, ema_state: dict | None = None) -> dict:
    """What torchcfm's and IDFF's training scripts save, with a real optimizer and scheduler."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    sched = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: min(step, 5) / 5)
    saved = {"net_model": state, "ema_model": ema_state or state, "sched": sched.state_dict()}
    return saved | {"optim": optimizer.state_dict(), "step": 400}


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_torchcfm_weights_give_the_same_output(tmp_path, prefix):
    net, state = torchcfm_net()
    torch.save(torchcfm_file({prefix + k: v for k, v in state.items()}), tmp_path / "otcfm_cifar10_weights_step_400.pt")
    network, info = checkpoint.load_network(tmp_path / "otcfm_cifar10_weights_step_400.pt", extra={"image_size": 16})
    x, t = images()
    with torch.no_grad():
        expected = net(t, x)
        torch.testing.assert_close(network(x, t), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1
    assert isinstance(network, UNet) and not network.training
    assert info["step"] == 400
    assert info["method"] == {"name": "otcfm", "sigma": 0.0, "flow_weight": 2.0}
    assert info["network"] == {
        "name": "UNet", "image_size": 16, "in_channels": 3, "out_channels": 3, "channels": 64,
        "channel_mult": [1, 2, 2], "num_res_blocks": 1, "attention_resolutions": [8], "num_heads": 1,
        "head_channels": 64, "dropout": 0.0, "num_classes": 0, "null_class": False, "patch_size": 1,
    }  # fmt: skip
    assert "torchcfm or IDFF" in info["report"][0]
    assert any("assumed: head_channels 64" in line for line in info["report"])


def test_ema_or_raw_weights_of_a_torchcfm_file(tmp_path):
    _, averaged = torchcfm_net()
    raw = {k: v + 1 for k, v in averaged.items()}
    torch.save(torchcfm_file(raw, averaged), tmp_path / "a.pt")
    for ema, state in ((True, averaged), (False, raw)):
        network, info = checkpoint.load_network(tmp_path / "a.pt", ema=ema, extra={"image_size": 16})
        assert same(network, state)
        assert f"weights: {'ema_model' if ema else 'net_model'}" in info["report"]


@pytest.mark.parametrize("channels", [3, 1])
def test_idff_weights_are_recognised_by_their_two_heads(tmp_path, channels):
    net, state = torchcfm_net(dim=(2 * channels, 16, 16), channel_mult=[1, 2])
    torch.save(torchcfm_file(state), tmp_path / "weights.pt")
    network, info = checkpoint.load_network(tmp_path / "weights.pt", extra={"image_size": 16})
    assert info["method"] == {"name": "idff", "sigma": 0.2, "flow_weight": 2.0}
    assert network.out_channels == 2 * channels
    x, t = images(2 * channels)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), net(t, x), rtol=1e-5, atol=1e-5)


def test_class_conditional_weights_of_torchcfm_with_one_head(tmp_path):
    """torchcfm's MNIST example: 32 channels, one attention head, ten labels."""
    net, state = torchcfm_net(
        dim=(1, 16, 16), num_channels=32, num_head_channels=-1, num_heads=1, num_res_blocks=2, class_cond=True,
        num_classes=10,
    )  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra={"image_size": 16})
    x, t = images(1)
    y = torch.tensor([3, 9])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y), net(t, x, y), rtol=1e-5, atol=1e-5)
    assert (network.num_classes, network.null_class) == (10, False)
    assert any("all 10 class labels are real" in line for line in info["report"])
    assert any("method cfm" in line for line in info["report"])
    network, _ = checkpoint.load_network(tmp_path / "a.pt", extra={"image_size": 16, "num_classes": 9})
    assert network.null_class, "one row more than there are classes is the 'no label' row"
    with pytest.raises(ValueError, match="num_classes: 5 given, 10 in the file"):
        checkpoint.load_network(tmp_path / "a.pt", extra={"image_size": 16, "num_classes": 5})


def test_options_fill_in_what_shapes_do_not_tell(tmp_path):
    net, state = torchcfm_net(num_head_channels=-1, num_heads=4)
    torch.save(state, tmp_path / "a.pt")
    options = {"image_size": 16, "num_heads": 4, "head_channels": -1, "method": "rf", "dropout": 0.3}
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra=options)
    x, t = images()
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), net(t, x), rtol=1e-5, atol=1e-5)
        wrong, _ = checkpoint.load_network(tmp_path / "a.pt", extra={"image_size": 16})
        assert (wrong(x, t) - net(t, x)).abs().max() > 1e-3, "the heads matter, so the assumption must be told"
    assert info["method"]["name"] == "rf" and info["network"]["dropout"] == 0.3
    assert not any("assumed" in line for line in info["report"])
    with pytest.raises(ValueError, match="num_channel: 128 given, 64 in the file"):
        checkpoint.load_network(tmp_path / "a.pt", extra=options | {"num_channel": 128})


def test_patches_are_a_matter_of_options(tmp_path):
    net = randomised(UNet(16, 3, 3, 32, (1, 2), 1, (4,), 4, -1, patch_size=2))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    options = {"image_size": 16, "patch_size": 2, "in_channels": 3, "num_heads": 4}
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra=options)
    assert info["network"]["attention_resolutions"] == [4]
    x, t = images()
    with torch.no_grad():
        assert torch.equal(network(x, t), net(x, t))


@pytest.mark.parametrize(
    ("wrap", "project"),
    [
        (lambda s: {"model": s}, "flow-matching-pytorch"),
        (lambda s: {"epoch": 7, "ema_state": s, "model_state": {}, "optimizer_state": {}, "loss": 0.5}, "Flow Image"),
        (lambda s: {"epoch": 7, "ema_state": {}, "model_state": s, "optimizer_state": {}, "loss": 0.5}, "Flow Image"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_projects_whose_time_runs_backwards_are_converted(tmp_path, wrap, project, prefix):
    """There net(x, s) is d x / d s with s = 0 data, s = 1 noise; here the velocity is -net(x, 1 - t)."""
    net, state = torchcfm_net(num_head_channels=-1, num_heads=4, attention_resolutions="1")  # as that recipe has it
    torch.save(wrap({prefix + k: v for k, v in state.items()}), tmp_path / "model_ema.pt")
    options = {"image_size": 16, "num_heads": 4}
    network, info = checkpoint.load_network(tmp_path / "model_ema.pt", extra=options)
    assert project in info["report"][0]
    assert any("converted, t = 0 is noise here" in line for line in info["report"])
    assert info["method"]["name"] == "rf"
    assert info["network"]["attention_resolutions"] == []
    x, _ = images(batch=5)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(network(x, t), -net(1 - t, x), rtol=1e-5, atol=1e-5)
        kept, _ = checkpoint.load_network(tmp_path / "model_ema.pt", extra=options, reverse_time=False)
        torch.testing.assert_close(kept(x, t), net(t, x), rtol=1e-5, atol=1e-5)
        assert (kept(x, t) - network(x, t)).abs().max() > 0.1


def test_time_reversal_twice_is_the_identity_also_for_the_conditional_unet():
    net = randomised(ConditionalUNet(1, channels=16))
    x, _ = images(1, batch=4)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    turned, twice = ConditionalUNet(1, channels=16).eval(), ConditionalUNet(1, channels=16).eval()
    turned.load_state_dict(foreign.reverse_time(net.state_dict()))
    twice.load_state_dict(foreign.reverse_time(turned.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(turned(x, t), -net(x, 1 - t), rtol=1e-3, atol=1e-3)  # float32 phases up to 1000
        torch.testing.assert_close(twice(x, t), net(x, t), rtol=1e-4, atol=1e-4)


def test_bare_conditional_unet_is_inferred(tmp_path):
    net = randomised(ConditionalUNet(3, channels=16, channel_mult=(1, 2, 3), num_res_blocks=2, num_classes=4))
    torch.save({"_orig_mod." + k: v for k, v in net.state_dict().items()}, tmp_path / "a.pt")
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra={"image_size": 16})
    x, t = images()
    with torch.no_grad():
        assert torch.equal(network(x, t, torch.tensor([0, 3])), net(x, t, torch.tensor([0, 3])))
    assert info["config"]["image_size"] == 16


def test_foreign_files_that_do_not_fit_say_why(tmp_path):
    _, state = torchcfm_net()
    cases = {
        "scale": (torchcfm_net(use_scale_shift_norm=True)[1], "use_scale_shift_norm, which is not supported"),
        "updown": (torchcfm_net(resblock_updown=True)[1], "variant|do not fit"),
        "resnet": ({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, r"its tensors \(conv1.weight, fc.bias"),
        "entries": ({"ema": {"decay": 0.9}, "lr": 1}, "no weights found among its entries ema, lr"),
        "empty": ({}, "no weights found"),
        "lacks": (
            {k: v for k, v in state.items() if not k.startswith("middle_block.1")},
            "missing, first middle_block.1",
        ),
        "more": (state | {"extra.weight": torch.zeros(1)}, "1 tensors unexpected, first extra.weight"),
        "only_ema": ({"ema_state": state}, "only averaged weights"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=message) as error:
            checkpoint.load_network(tmp_path / f"{name}.pt", ema=name != "only_ema", extra={"image_size": 16})
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value), name


def test_prefixes_are_stripped_only_when_present():
    names = ["time_embed.0.weight", "out.2.bias"]
    tensors = {name: torch.zeros(1) for name in names}
    for prefix in PREFIXES:
        assert list(foreign.strip_prefixes({prefix + k: v for k, v in tensors.items()})) == names
