"""Weights of other projects: recognised, rebuilt from their shapes, converted, or refused in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchcfm.models.unet.unet import UNetModelWrapper

from common import checkpoint
from common.networks import foreign
from common.networks.generator_unet import GeneratorUNet
from common.scripts.grid import grid_main
from common.unet import ConditionalUNet, UNet
from nets import images, randomised, same
from tiny import folder, run


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
        "checkpointing": False,
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
        assert (net(t, x) - network(x, t)).abs().max() > 0.1


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


# ---- the Flow Image Generator


def generator_net(channels: int = 8, time: int = 16) -> torch.nn.Module:
    """That project's network with weights that follow a formula."""
    net = GeneratorUNet(3, 3, channels, time).eval()
    with torch.no_grad():
        for i, (key, value) in enumerate(net.state_dict().items()):
            n = torch.arange(value.numel(), dtype=torch.float64)
            scale = 1.0 if "norm" in key and "weight" in key else 0.0
            value.copy_((0.3 * torch.cos(1.7 * n + i) + scale).reshape(value.shape).float())
    return net


def generator_file(path: Path) -> Path:
    """A file as that project's training script writes it, from inside DataParallel."""
    net = nn.DataParallel(generator_net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    raw = {key: value + 1 for key, value in net.state_dict().items()}
    state = {"epoch": 7, "ema_state": net.state_dict(), "model_state": raw, "loss": 0.25}
    torch.save(state | {"optimizer_state": optimizer.state_dict()}, path)
    return path


def test_the_generators_network_gives_its_numbers():
    """Names and outputs were taken from that project's code with these weights."""
    net = generator_net()
    x = torch.sin(torch.arange(2 * 3 * 16 * 16, dtype=torch.float64)).reshape(2, 3, 16, 16).float()
    with torch.no_grad():
        out = net(x, torch.tensor([0.25, 1.0]))
    first = [-0.20521678030490875, -1.0357418060302734, -0.9899109601974487]
    second = [-1.8685004711151123, -0.5715710520744324, 1.148409128189087]
    torch.testing.assert_close(out[:, :, 3, 5], torch.tensor([first, second]), rtol=1e-4, atol=1e-4)
    assert out.mean().item() == pytest.approx(-0.575987, abs=1e-4)
    names = " ".join(net.state_dict())
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "69e94e29c77259a4" and len(net.state_dict()) == 218
    with pytest.raises(ValueError, match="unconditional"):
        net(x, torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_the_generators_checkpoints_are_read_with_time_turned(tmp_path):
    path = generator_file(tmp_path / "rf_best.pth")
    x, t = images()
    net, info = checkpoint.load_network(path)
    with torch.no_grad():
        expected = -generator_net()(x, 1 - t)
        torch.testing.assert_close(net(x, t), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    raw, _ = checkpoint.load_network(path, ema=False)
    assert torch.equal(raw.enc1.bias, net.enc1.bias + 1)
    assert info["method"]["name"] == "rf" and info["step"] == 7 and info["network"]["image_size"] == 128
    assert "Flow Image Generator" in info["report"][0] and "weights: ema_state" in info["report"]
    assert any("t = 0 is noise here" in line for line in info["report"])
    bare = generator_net().state_dict()
    torch.save(bare, tmp_path / "bare.pt")
    again, info = checkpoint.load_network(tmp_path / "bare.pt", extra={"image_size": 64, "num_channel": 8})
    assert same(again, net.state_dict()) and info["network"]["image_size"] == 64
    with pytest.raises(ValueError, match="num_channel: 32 given, 8 in the file"):
        checkpoint.load_network(tmp_path / "bare.pt", extra={"num_channel": 32})
    with pytest.raises(
        ValueError, match="^--init .*rf_best.pth is of another network .name: GeneratorUNet there, UNet"
    ):
        run(tmp_path / "run", method="flowmap", init=str(path))  # it cannot be given a second time


def test_the_generators_checkpoints_are_sampled_from_any_folder(tmp_path, capsys):
    file = generator_file(tmp_path / "rf_best.pth")
    (tmp_path / "run.yaml").write_text("image_size: 16\ntotal_steps: 3\n")
    flags = ["--weights", str(file), "-c", str(tmp_path / "run.yaml"), "--n_samples", "2", "--n_steps", "1"]
    grid_main(folder(tmp_path), "", [*flags, "--device", "cpu", "--out", str(tmp_path / "grid.png")])
    assert "2 images, rf weights of step 7, unipc2, 1 step, grid" in capsys.readouterr().out
    assert Image.open(tmp_path / "grid.png").size == (2 * 34 + 2, 34 + 2)


def test_files_that_only_look_like_the_generators(tmp_path):
    state = generator_net().state_dict()
    cases = {
        "lacks": ({k: v for k, v in state.items() if k != "enc2.weight"}, "1 tensors missing, first enc2.weight"),
        "stem": ({k: v for k, v in state.items() if k != "enc1.weight"}, "not those of a network known here"),
        "more": (state | {"x": torch.zeros(1)}, "1 tensors unexpected, first x"),
        "flat": (state | {"enc1.weight": torch.zeros(8)}, "but not its shapes"),
    }
    for name, (tensors, reason) in cases.items():
        torch.save({"ema_state": tensors, "model_state": {}}, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=f"{name}.pth: .*{reason}") as error:
            checkpoint.load_network(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
