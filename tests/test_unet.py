"""The U-Nets: parity with torchcfm, frozen names, and what the options mean."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchcfm.models.unet.nn import timestep_embedding as torchcfm_embedding
from torchcfm.models.unet.unet import UNetModelWrapper

from common.cli.configs import TrainConfig
from common.networks import build_network, network_description
from common.unet import AttentionBlock, ConditionalUNet, Dropout, ResBlock, UNet, timestep_embedding
from nets import images, randomised

# sha256 of "name shape" of every tensor of the CIFAR-10 network, sorted: weights in the world depend on these names
FROZEN_KEYS = "643b0572a1fdc4f0a011ea620812b3d08d6e614c050b1c7a42207280252bdd64"


def small(**options) -> UNet:
    defaults = {"image_size": 16, "in_channels": 3, "out_channels": 3, "channels": 32, "channel_mult": (1, 2)}
    defaults |= {"num_res_blocks": 1, "attention_resolutions": (8,), "head_channels": 32}
    return UNet(**(defaults | options))


def cifar_pair(num_classes: int = 0, channels: int = 3) -> tuple[UNet, nn.Module]:
    """Our network and torchcfm's in its CIFAR-10 configuration, with the same random weights."""
    theirs = randomised(
        UNetModelWrapper(
            dim=(channels, 32, 32),
            num_channels=128,
            num_res_blocks=2,
            channel_mult=[1, 2, 2, 2],
            num_heads=4,
            num_head_channels=64,
            attention_resolutions="16",
            dropout=0.1,
            class_cond=num_classes > 0,
            num_classes=num_classes,
        )  # fmt: skip
    )
    ours = UNet(32, channels, channels, 128, (1, 2, 2, 2), 2, (16,), 4, 64, 0.1, num_classes=num_classes).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# ---- parity


@pytest.mark.parametrize("num_classes", [0, 10])
def test_output_equals_torchcfm(num_classes):
    ours, theirs = cifar_pair(num_classes)
    x, t = images(size=32)
    y = torch.tensor([2, 9]) if num_classes else None
    with torch.no_grad():
        expected = theirs(t, x, y)
        assert expected.std() > 0.1, "a comparison of zeros would say nothing"
        torch.testing.assert_close(ours(x, t, y), expected, rtol=1e-5, atol=1e-5)
        fast = ours.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t, y)
        torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_torchcfm():
    theirs = randomised(
        UNetModelWrapper(
            dim=(3, 16, 16),
            num_channels=32,
            num_res_blocks=1,
            channel_mult=[1, 2],
            num_heads=4,
            num_head_channels=-1,
            attention_resolutions="8",
        )  # fmt: skip
    )
    ours = small(head_channels=-1, num_heads=4).eval()
    ours.load_state_dict(theirs.state_dict())
    x, t = images()
    theirs(t, x).square().mean().backward()
    ours(x, t).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert expected[name].grad.abs().max() > 0 or name.endswith("qkv.bias")
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_names_and_shapes_are_frozen():
    state = UNet(32, 3, 3, 128, (1, 2, 2, 2), 2, (16,), 4, 64).state_dict()
    listing = "\n".join(sorted(f"{key} {tuple(value.shape)}" for key, value in state.items()))
    assert len(state) == 304
    assert hashlib.sha256(listing.encode()).hexdigest() == FROZEN_KEYS


def test_idff_paper_network_has_torchcfms_names():
    """Two heads: six channels, multipliers 1, 2, 2, 4."""
    with torch.device("meta"):
        theirs = UNetModelWrapper(
            dim=(6, 32, 32), num_channels=128, num_res_blocks=2, channel_mult=[1, 2, 2, 4], num_heads=4,
            num_head_channels=64, attention_resolutions="16",
        )  # fmt: skip
        ours = build_network(network_description(TrainConfig(channel_mult=(1, 2, 2, 4)), heads=2))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("dim", [128, 7])
def test_time_features_equal_torchcfm(dim):
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(timestep_embedding(t, dim), torchcfm_embedding(t, dim))


# ---- parts


@pytest.mark.parametrize(("heads", "width"), [(4, -1), (1, -1), (7, 16)])
def test_attention_is_softmax_of_scaled_products(heads, width):
    block = randomised(AttentionBlock(64, heads, width))
    x = torch.randn(2, 64, 4, 3, generator=torch.Generator().manual_seed(0))
    count = 64 // width if width > 0 else heads
    qkv = F.conv1d(block.norm(x).reshape(2, 64, 12), block.qkv.weight, block.qkv.bias)
    out = []
    for head in qkv.chunk(count, dim=1):
        q, k, v = head.chunk(3, dim=1)  # (B, C / heads, HW)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(dim=-1)
        out.append(v @ weights.transpose(1, 2))
    expected = x + F.conv1d(torch.cat(out, dim=1), block.proj_out.weight, block.proj_out.bias).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_attention_sits_where_the_options_say():
    def resolutions(**options) -> list[int]:
        net = small(channel_mult=(1, 1, 1), **options)
        encoder = [i for i, stage in enumerate(net.input_blocks) for m in stage if isinstance(m, AttentionBlock)]
        assert sum(isinstance(m, AttentionBlock) for m in net.middle_block) == 1
        return encoder

    assert resolutions(attention_resolutions=(16,)) == [1]
    assert resolutions(attention_resolutions=(8, 4)) == [3, 5]
    assert resolutions(attention_resolutions=()) == []
    assert resolutions(attention_resolutions=(8,), patch_size=2) == [1]


def test_heads_that_do_not_divide_the_channels_say_so():
    with pytest.raises(
        ValueError, match=r"32 channels cannot be split into attention heads of 24: choose --head_channels"
    ):
        AttentionBlock(32, 1, 24)
    with pytest.raises(ValueError, match="32 channels cannot be split into 5 heads: change --num_heads"):
        AttentionBlock(32, 5)


def test_residual_block_starts_as_the_identity():
    block = ResBlock(32, 8, 32, dropout=0.5)
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 8)), x)


def test_a_new_network_predicts_zero():
    x, t = images()
    assert torch.equal(small()(x, t), torch.zeros_like(x))
    assert torch.equal(ConditionalUNet(3, channels=16)(x, t), torch.zeros_like(x))


def test_dropout_works_in_training_only():
    x, t = images()
    net = randomised(small(dropout=0.5))
    torch.manual_seed(0)
    with torch.no_grad():
        quiet = net(x, t)
        assert torch.equal(net(x, t), quiet)
        net.train()
        assert (net(x, t) - net(x, t)).abs().max() > 0.01
        without = small(dropout=0.0).train()
        without.load_state_dict(net.state_dict())
        torch.testing.assert_close(without(x, t), quiet)


# ---- images, labels, patches


def test_patches_equal_a_network_on_unshuffled_images():
    net = randomised(small(patch_size=2, channel_mult=(1, 2), attention_resolutions=(4,)))
    plain = UNet(8, 12, 12, 32, (1, 2), 1, (4,), head_channels=32).eval()
    plain.load_state_dict(net.state_dict())
    x, t = images()
    with torch.no_grad():
        out = net(x, t)
        assert out.shape == x.shape
        expected = F.pixel_shuffle(plain(F.pixel_unshuffle(x, 2), t), 2)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("shape", [(2, 3, 15, 16), (2, 3, 16, 18), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_a_wrong_shape_are_named(shape):
    t = torch.rand(2)
    patched = small(patch_size=2)
    for net in (patched, ConditionalUNet(3, channels=16, channel_mult=(1, 2, 2))):
        with pytest.raises(ValueError, match=r"images of shape \(B, 3, H, W\) with H and W divisible by 4; got"):
            net(torch.zeros(shape), t)


def test_networks_take_images_that_are_not_square():
    x, t = torch.randn(2, 3, 8, 24), torch.rand(2)
    assert small()(x, t).shape == x.shape
    assert ConditionalUNet(3, channels=16, channel_mult=(1, 2))(x, t).shape == x.shape


@pytest.mark.parametrize("make", [small, lambda **o: ConditionalUNet(3, channels=16, channel_mult=(1, 2), **o)])
def test_labels(make):
    x, t = images()
    net = randomised(make(num_classes=4, null_class=True))
    with torch.no_grad():
        assert torch.equal(net(x, t), net(x, t, torch.tensor([3, 3]))), "no label is the last row"
        assert (net(x, t, torch.tensor([0, 1])) - net(x, t, torch.tensor([1, 1]))).abs().amax((1, 2, 3))[0] > 1e-3
    with pytest.raises(ValueError, match="class-conditional .* give y"):
        make(num_classes=4)(x, t)


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="labels were given to an unconditional network"):
        small()(*images(), torch.tensor([0, 1]))


def test_conditional_unet_is_the_one_that_was_asked_for():
    """128 -> 64 -> 32 -> 16, GroupNorm with 8 groups, SiLU, attention at the two lowest levels and the bottleneck."""
    net = randomised(ConditionalUNet(1, channels=16, dropout=0.1))
    seen = []
    for block in net.modules():
        if isinstance(block, AttentionBlock):
            block.register_forward_hook(lambda m, args, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        out = net(torch.randn(1, 1, 128, 128), torch.rand(1))
    assert out.shape == (1, 1, 128, 128)
    assert sorted(set(seen)) == [16, 32] and seen.count(16) == 3
    assert {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)} == {8}
    assert any(isinstance(m, nn.SiLU) for m in net.modules())
    assert ConditionalUNet(1, 2, channels=16)(torch.randn(1, 1, 64, 64), torch.rand(1)).shape == (1, 2, 64, 64)


def test_conditional_unet_depends_on_time_and_trains_every_parameter():
    net = randomised(ConditionalUNet(3, channels=16, num_classes=3))
    x, _ = images()
    y = torch.tensor([0, 2])
    with torch.no_grad():
        assert (net(x, torch.zeros(2), y) - net(x, torch.full((2,), 0.01), y)).abs().max() > 1e-3
    net(x, torch.rand(2), y).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


# ---- how it computes


@pytest.mark.parametrize("make", [small, lambda **o: ConditionalUNet(3, channels=16, channel_mult=(1, 2), **o)])
def test_checkpointing_gives_equal_gradients(make):
    x, t = images()
    grads = []
    for checkpointing in (False, True):
        net = randomised(make(dropout=0.3, checkpointing=checkpointing)).train()
        torch.manual_seed(0)
        net(x, t).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert sum(float(g.abs().sum()) for g in grads[0]) > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("make", [small, lambda: ConditionalUNet(3, channels=16, channel_mult=(1, 2))])
def test_bf16_is_close_to_fp32(make, layout):
    x, t = images()
    net = randomised(make()).to(memory_format=layout)
    with torch.no_grad():
        expected = net(x, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x.to(memory_format=layout), t)
    error = (out.float() - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.03  # above zero: bf16 was really used


def test_time_features_keep_their_precision_under_bf16():
    """t = 0.5 and 0.501 are the same number in bf16; their features must not be."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = timestep_embedding(torch.tensor([0.5, 0.501]), 64)
    assert (a - b).abs().max() > 5e-4


# ---- descriptions


def test_description_rebuilds_the_network():
    config = TrainConfig(
        num_channel=32, channel_mult=(1, 2), image_size=16, num_classes=3, head_channels=32, patch_size=2
    )
    description = network_description(config, heads=2)
    net = build_network(description)
    assert (net.in_channels, net.out_channels, net.num_classes, net.null_class) == (6, 6, 4, True)
    x, t = images(6)
    assert net(x, t).shape == x.shape
    without = network_description(TrainConfig(num_classes=3, label_dropout=0.0))
    assert (without["num_classes"], without["null_class"]) == (3, False)
    plain = network_description(TrainConfig(network="conditional_unet", in_channels=1))
    assert plain["name"] == "ConditionalUNet" and build_network(plain | {"channels": 16}).in_channels == 1


def test_descriptions_that_cannot_be_built_say_why():
    with pytest.raises(ValueError, match="unknown network 'VGG'; known: UNet, ConditionalUNet"):
        build_network({"name": "VGG"})
    with pytest.raises(ValueError, match="--patch_size belongs to --network unet"):
        network_description(TrainConfig(network="conditional_unet", patch_size=2))


def test_dropout_keeps_the_mean_and_drops_the_share():
    dropout = Dropout(0.3).train()
    x = torch.full((16, 32, 33, 31), 2.0).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    y = dropout(x)
    n = x.numel()
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / n) ** 0.5)
    assert torch.allclose(y[y != 0], torch.tensor(2 / 0.7), rtol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y) and not torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


def test_conditional_unet_takes_any_first_multiplier():
    net = ConditionalUNet(channels=16, channel_mult=(2, 4), num_heads=2)
    assert net(torch.randn(2, 1, 8, 8), torch.rand(2)).shape == (2, 1, 8, 8)
