"""Checkpoints: written whole, read safely, rebuilt without flags; one line for bad ones."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.cli.configs import TrainConfig
from common.ema import EMA
from common.networks import build_network, network_description
from common.unet import ConditionalUNet
from nets import images, randomised, same

CONFIG = TrainConfig(
    num_channel=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), image_size=16, head_channels=-1
)


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
    network, info = checkpoint.load_network(tmp_path / "a.pt", extra=vars(config))
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
    with pytest.raises(FileNotFoundError, match="or give --init with a checkpoint"):
        checkpoint.start_from(tmp_path / "no.pt", nn.Identity(), {}, "rf")


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
    with pytest.raises(ValueError, match="b.pt is damaged, copy it again .*: object missing required field `config`"):
        checkpoint.load_network(tmp_path / "b.pt")
    checkpoint.save(tmp_path / "c.pt", state | {"network": state["network"] | {"new_option": 1}})
    with pytest.raises(ValueError, match="c.pt: its UNet: object contains unknown field `new_option`"):
        checkpoint.load_network(tmp_path / "c.pt")


def test_checkpoint_of_another_network_names_the_options(tmp_path):
    _, state = own_state()
    checkpoint.save(tmp_path / "a.pt", state)
    with pytest.raises(ValueError, match=r"num_channel: 128 given, 32 in the file; channel_mult: \[1, 2, 2\] given"):
        checkpoint.load_network(tmp_path / "a.pt", extra={"num_channel": 128, "channel_mult": (1, 2, 2)})
    checkpoint.load_network(tmp_path / "a.pt", extra=vars(CONFIG))
    wider = network_description(TrainConfig(num_channel=64, image_size=16, head_channels=-1))
    checkpoint.save(tmp_path / "b.pt", state | {"network": wider})
    with pytest.raises(
        ValueError, match=r"do not fit their network, a UNet: .* tensors missing, first .*of another shape"
    ):
        checkpoint.load_network(tmp_path / "b.pt")


# ---- damaged entries


WRONG = {
    "none": None,
    "list": [1, 2],
    "text": "x",
    "negative": -5,
    "huge": 2**40,
    "half": 2.5,
    "tensor": torch.zeros(3),
}


def damaged(state):
    """Our format with one entry of another type, out of range, or gone; by what is wrong with it."""
    for key in state:
        yield f"without {key}", {k: v for k, v in state.items() if k != key}
        allowed = {"step": ("huge",), "images_seen": ("huge",), "seconds": ("huge", "half")}.get(key, ())
        yield from ((f"{key} {name}", state | {key: value}) for name, value in WRONG.items() if name not in allowed)
    for key, good in state["network"].items():
        gone = {k: v for k, v in state["network"].items() if k != key}
        yield f"network without {key}", state | {"network": gone}
        bad = {name: value for name, value in WRONG.items() if not (key == "dropout" and name == "huge")}
        for name, value in bad.items():
            if not (isinstance(good, list) and name == "list"):
                yield f"{key} {name}", state | {"network": gone | {key: value}}
    for name, values in {"long": [1] * 3000, "nested": [[2]], "empty": []}.items():
        yield f"channel_mult {name}", state | {"network": state["network"] | {"channel_mult": values}}
    for name in ("Module", "functional", "__class__", "Nope"):
        network = {"name": "MLP", "dim": 2, "width": 8, "depth": 1, "activation": name, "num_classes": 0, "out_dim": 2}
        yield f"activation {name}", state | {"network": network}
    for sigma in (math.nan, math.inf, -1.0, "x"):
        yield f"sigma {sigma}", state | {"method": state["method"] | {"sigma": sigma}}
    yield "method unknown", state | {"method": state["method"] | {"name": "zzz"}}
    tensors = state["ema_model"]
    for value in (math.nan, math.inf):
        first = next(iter(tensors))
        one = tensors[first].clone()
        one.view(-1)[-1] = value
        yield f"weights {value}", state | {"ema_model": {**tensors, first: one}}
    yield "weights int", state | {"ema_model": {k: v.long() for k, v in tensors.items()}}
    yield "weights complex", state | {"ema_model": {k: v.to(torch.complex64) for k, v in tensors.items()}}
    yield "no weights", state | {"ema_model": {}}
    for power in (5, [1], {"a": {}}, {0.1: 1}, {0.1: {"x": 1}}):
        yield f"power functions {power}", state | {"ema": {"updates": 1, "shadow": {}, "power": power}}
    yield "minutes text", state | {"minutes": "x"}
    yield from ((f"history {bad!r}", state | {"history": bad}) for bad in (1, None, "x", [1]))
    yield from ((f"data {bad!r}", state | {"data": bad}) for bad in (1, None, ["x"]))


def test_a_damaged_entry_is_refused_in_one_line_before_anything_is_built(tmp_path):
    """Whichever it is, in a moment: sizes that would take hours or all of memory are never built."""
    _, state = own_state(replace(CONFIG, channel_mult=(1,)))
    state = {key: value for key, value in state.items() if key not in ("net_model", "ema")}
    state |= {"seconds": 1.0, "images_seen": 8}
    file, accepted, count = tmp_path / "bad.pt", [], 0
    start = time.perf_counter()
    for name, bad in damaged(state):
        torch.save(bad, file)
        count += 1
        try:
            checkpoint.load_network(file)
        except ValueError as error:
            assert str(file) in str(error) and "\n" not in str(error), name
        else:
            accepted.append(name)
    assert not accepted and count > 150 and time.perf_counter() - start < 0.2 * count


def test_files_of_sst_without_classes_and_of_one_time_are_whole(tmp_path):
    _, state = own_state()
    network = {k: v for k, v in state["network"].items() if k not in ("null_class", "checkpointing")}
    checkpoint.save(tmp_path / "a.pt", state | {"network": network})
    net, _ = checkpoint.load_network(tmp_path / "a.pt")
    assert same(net, state["ema_model"])


def test_a_network_is_built_without_drawing_its_weights():
    before = torch.get_rng_state()
    with torch.device("meta"), checkpoint.NothingDrawn():
        net = build_network(network_description(CONFIG))
    assert torch.equal(before, torch.get_rng_state()) and all(p.is_meta for p in net.parameters())


def test_a_folder_of_diffusers_is_refused_in_a_line_that_says_what_it_is(tmp_path):
    from safetensors.torch import save_file

    unet = tmp_path / "unet"  # as UNet2DModel.save_pretrained and DDPMPipeline.save_pretrained write them
    unet.mkdir()
    save_file({"conv_in.weight": torch.zeros(8, 3, 3, 3)}, unet / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.30.0", "sample_size": 32}
    (unet / "config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for folder, kind in ((tmp_path, "DDPMPipeline"), (unet, "UNet2DModel")):
        with pytest.raises(
            ValueError, match=f"--weights {folder} is a {kind} of diffusers .* predicts the noise"
        ) as refused:
            checkpoint.load_network(folder)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"conv_in\.weight.* are not those of a network known here"):
        checkpoint.load_network(unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text(json.dumps({"channels": 8}))  # a hub's folder has one, too
    assert checkpoint.find(unet).name == "diffusion_pytorch_model.safetensors"
