"""The averaged weights: values, warm-up, swapping in and out, state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common import checkpoint
from common.ema import EMA


class Small(nn.Module):
    """A convolution, a layer with tied weights, float and integer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def shake(net: nn.Module, seed: int) -> None:
    """Give a network new weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g).to(p.dtype))


def shadow(ema: EMA) -> dict[str, torch.Tensor]:
    return ema.state_dict()["shadow"]


def test_update_is_the_recursion_of_torchcfm():
    net = small()
    ema, target = EMA(net, 0.9, warmup=0), copy.deepcopy(net)
    for k in range(5):
        shake(net, k)
        ema.update()
        with torch.no_grad():
            for key, value in target.named_parameters():
                value.copy_(value * 0.9 + net.state_dict()[key] * 0.1)
    averaged = ema.module_state_dict()
    for key, value in target.named_parameters():
        torch.testing.assert_close(averaged[key], value.detach(), rtol=1e-5, atol=1e-6)


def test_warmup_formula_and_the_closed_form_of_a_constant_decay():
    ema = EMA(small(), 0.9999, warmup=0.75)
    assert [ema.decay_at(k) for k in (0, 1, 15)] == [0, 1 - 2**-0.75, 0.875]
    assert ema.decay_at(10**9) == 0.9999
    assert EMA(small(), 0.5, warmup=0).decay_at(0) == 0.5

    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    ema = EMA(net, 0.9, warmup=0)
    nn.init.ones_(net.weight)
    for _ in range(20):
        ema.update()
    assert shadow(ema)["weight"].item() == pytest.approx(1 - 0.9**20, rel=1e-6)


def test_first_update_with_warmup_copies_the_weights_exactly():
    net = small()
    ema = EMA(net, 0.9999)
    shake(net, 1)
    ema.update()
    assert all(torch.equal(shadow(ema)[name], p) for name, p in net.named_parameters())


def test_shadow_is_float32_and_does_not_stall_under_a_half_precision_network():
    net = nn.Linear(8, 8).to(torch.bfloat16)
    nn.init.zeros_(net.weight)
    ema = EMA(net, 0.9999, warmup=0)
    nn.init.ones_(net.weight)
    for _ in range(100):
        ema.update()  # a bf16 average could not move from 0.01 by 1e-4
    assert shadow(ema)["weight"].dtype == torch.float32
    torch.testing.assert_close(shadow(ema)["weight"], torch.full((8, 8), 1 - 0.9999**100), rtol=1e-4, atol=0)
    with ema.applied():
        assert net.weight.dtype == torch.bfloat16
        assert net.weight.float().mean().item() == pytest.approx(1 - 0.9999**100, rel=1e-2)


def test_channels_last_layout_is_kept_and_averaged_correctly():
    net = small().to(memory_format=torch.channels_last)
    ema = EMA(net, 0.5, warmup=0)
    before = net.conv.weight.detach().clone()
    shake(net, 3)
    ema.update()
    assert shadow(ema)["conv.weight"].stride() == net.conv.weight.stride()
    torch.testing.assert_close(shadow(ema)["conv.weight"], 0.5 * before + 0.5 * net.conv.weight.detach())


def test_applied_swaps_and_restores_also_after_an_error():
    net = small()
    ema = EMA(net, 0.9)
    ema.update()
    average = {name: value.clone() for name, value in shadow(ema).items()}
    shake(net, 7)
    raw = {name: p.detach().clone() for name, p in net.named_parameters()}
    pointers = [p.data_ptr() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="inside the block"), ema.applied() as inside:
        assert inside is net
        assert all(torch.equal(p, average[name]) for name, p in net.named_parameters())
        assert net.two.weight is net.one.weight
        raise RuntimeError("inside the block")
    assert all(torch.equal(p, raw[name]) for name, p in net.named_parameters())
    assert [p.data_ptr() for p in net.parameters()] == pointers, "the optimizer's memory must be back in place"
    assert all(torch.equal(value, average[name]) for name, value in shadow(ema).items())


def test_applied_refuses_updates_and_nesting_and_training_goes_on_after_it():
    net = small()
    ema = EMA(net, 0.9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ema.applied():
        with pytest.raises(RuntimeError, match="applied"):
            ema.update()
        with pytest.raises(RuntimeError, match="applied"), ema.applied():
            pass
    before = net.one.weight.detach().clone()
    net.one(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(net.one.weight.detach(), before - 0.1)


def test_state_is_bit_exact_through_a_file(tmp_path):
    net = small()
    ema = EMA(net, 0.99)
    for k in range(3):
        shake(net, k)
        ema.update()
    checkpoint.save(tmp_path / "ema.pt", {"ema": ema.state_dict()})
    other = EMA(small(5), 0.99)
    other.load_state_dict(checkpoint.load(tmp_path / "ema.pt")["ema"])
    assert other.updates == 3
    assert all(torch.equal(value, shadow(other)[name]) for name, value in shadow(ema).items())
    shake(net, 9)
    shake(other.model, 9)
    ema.update()
    other.update()
    assert all(torch.equal(value, shadow(other)[name]) for name, value in shadow(ema).items())


def test_loading_copies_so_that_the_file_or_the_other_average_stays_untouched():
    net = small()
    ema, other = EMA(net, 0.9), EMA(small(1), 0.9)
    other.load_state_dict(ema.state_dict())
    kept = shadow(ema)["one.weight"].clone()
    other.update()
    assert torch.equal(shadow(ema)["one.weight"], kept)


def test_state_of_another_network_is_refused():
    ema = EMA(nn.Linear(3, 3), 0.9)
    with pytest.raises(ValueError, match="another network: 9 parameters differ, first weight"):
        ema.load_state_dict(EMA(small(), 0.9).state_dict())
    with pytest.raises(ValueError, match="another network: 1 parameters differ, first weight"):
        ema.load_state_dict(EMA(nn.Linear(2, 3), 0.9).state_dict())


def test_module_state_dict_fits_the_network_and_shares_memory():
    net = small()
    ema = EMA(net, 0.9)
    shake(net, 2)
    ema.update()
    shake(net, 3)
    net.norm.running_mean.fill_(2)
    state = ema.module_state_dict()
    assert list(state) == list(net.state_dict())
    assert state["two.weight"].data_ptr() == shadow(ema)["one.weight"].data_ptr()
    assert torch.equal(state["norm.running_mean"], torch.full((3,), 2.0)), "buffers are copied, not averaged"
    other = small(4)
    other.load_state_dict(state)
    assert torch.equal(other.one.weight, shadow(ema)["one.weight"])
    half = ema.module_state_dict(torch.float16)
    assert half["conv.weight"].dtype == torch.float16
    assert half["norm.num_batches_tracked"].dtype == torch.int64
    assert shadow(ema)["conv.weight"].dtype == torch.float32
