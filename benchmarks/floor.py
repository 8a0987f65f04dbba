"""How long must a training step take on a GPU? Operations and bytes of the CIFAR-10 networks, layer by layer.

    python benchmarks/floor.py                       # both networks, batch 128 and 512, on an H200
    python benchmarks/floor.py --network patches --batch_size 512 --images_per_s 9900    # what share a rate is

Nothing is computed: forward pass, loss and backward pass go through torch's meta device, which knows shapes only, in
bf16 as under autocast, and every operation is counted as it is dispatched. Seconds on a CPU.

floor: each matrix product reads its operands and writes its result once. Of what lies between them the normalisations
(forward twice, backward three times their tensor) and the sums of two branches (once) touch memory; all else is taken
to be fused into its neighbours. The optimizer reads and writes its float32 state. A kernel takes the longer of its
operations at --tflops and its bytes at --tbytes; the floor is the sum.
one by one: the same where every dispatched operation reads its inputs and writes its outputs, as without torch.compile
(dropout and copies into another memory layout are left out).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.cli.configs import TrainConfig
from common.cli.ranges import Count, NotNegative, Positive
from common.runtime import run_main

PAPER = TrainConfig(method="idff", sigma=0.2, mixed_precision="bf16")  # 35.7M parameters, as published
PATCHES = replace(  # 19.4M on patches of 2 x 2 pixels
    PAPER,
    num_channel=96,
    channel_mult=(2, 2, 2),
    attention_resolutions=(16, 8),
    dropout=0.05,
    patch_size=2,
    num_classes=10,
)
NETWORKS = {"patches": PATCHES, "paper": PAPER}

# Bytes of a parameter in a step, float32: AdamW reads weight, gradient and two moments and writes three of them; the
# average is read beside the weight and written; the gradient's norm reads it, clipping reads and writes it. The copies
# in bf16 are read and written, and their gradients.
STATE = 4 * (7 + 3 + 3) + 6 + 6
# What is between the products, by dispatched operation; the rest is "other".
BETWEEN = {
    "aten.native_group_norm": "normalisation",
    "aten.native_group_norm_backward": "normalisation",
    "aten.silu": "SiLU",
    "aten.silu_backward": "SiLU",
    "aten._to_copy": "casts",
    "aten.cat": "concatenation",
    "aten.slice_backward": "concatenation",
    "aten.add": "sums",
    "aten.add_": "sums",
    "aten.sum": "sums",
    "aten.clone": "copies",
    "aten.copy_": "copies",
}
NOTHING_MOVED = ("aten._unsafe_view", "aten.detach", "aten.empty_like", "aten.new_empty")  # besides all views


@dataclass(frozen=True)
class Options:
    """Options of the count."""

    network: tuple[Literal["patches", "paper"], ...] = ("patches", "paper")
    """patches: 19.4M parameters on patches of 2 x 2 pixels; paper: 35.7M"""
    batch_size: tuple[Count, ...] = (128, 512)
    """Images of a step"""
    tflops: Positive = 790.0
    """Matrix products in bf16, 10^12 operations a second; measured on an H200"""
    tbytes: Positive = 4.3
    """Memory traffic, 10^12 bytes a second; measured on an H200"""
    images_per_s: NotNegative = 0.0
    """A measured rate, whose share of the floor is printed; 0: none"""


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one kernel, and of these the bytes that the floor needs."""

    flops: float
    bytes: float
    needed: float


@dataclass(frozen=True)
class Row:
    """Kernels of one kind: how many, operations, bytes, and seconds by the floor and one by one."""

    kernels: int
    flops: float
    bytes: float
    needed: float
    floor: float
    one_by_one: float
    by_memory: float
    """Seconds of the floor in which the memory is what is waited for"""


def size(tensors: Any) -> float:
    """Bytes of the tensors in a nested structure; of an expanded one those that there are."""
    import torch
    from torch.utils._pytree import tree_leaves

    total = 0.0
    for x in tree_leaves(tensors):
        if isinstance(x, torch.Tensor):
            sides = [n for n, step in zip(x.shape, x.stride(), strict=True) if step]
            total += x.element_size() * float(torch.Size(sides).numel())
    return total


def kernels(func: Any, args: Any, kwargs: Any, out: Any) -> Iterator[tuple[str, Work]]:
    """The kernels of a dispatched operation: name of the layer, work."""
    from torch.utils.flop_counter import flop_registry

    name, moved = str(func.overloadpacket), size((args, kwargs)) + size(out)
    formula = flop_registry.get(func.overloadpacket)
    flops = float(formula(*args, **kwargs, out_val=out)) if formula else 0.0
    if name == "aten.convolution":
        yield product_name(args[1], out), Work(flops, moved, moved)
    elif name == "aten.convolution_backward":
        gradient, x, weight = args[:3]
        both = [size((gradient, weight, out[0])), size((gradient, x, out[1]))]  # gradient of the input, of the weight
        done = [moved for moved, made in zip(both, out, strict=False) if made is not None]
        yield from ((product_name(weight, gradient), Work(flops / len(done), moved, moved)) for moved in done)
    elif "attention" in name:
        yield f"attention, {args[0].shape[2]} pixels", Work(flops, moved, moved)
    elif formula:
        yield "products of embeddings", Work(flops, moved, moved)
    else:
        yield BETWEEN.get(name, "other"), Work(0.0, moved, needed(name, args, out))


def product_name(weight: Any, image: Any) -> str:
    """A convolution by its kernel and the side of its output."""
    return f"convolutions {weight.shape[-1]}x{weight.shape[-1]}, side {image.shape[-1]}"


def needed(name: str, args: Any, out: Any) -> float:
    """Bytes of the floor for what lies between matrix products."""
    if name.startswith("aten.native_group_norm"):  # its tensors as bf16
        return 2 * float(out[0].numel()) * (3 if name.endswith("backward") else 2)
    if name in ("aten.add", "aten.add_") and size(args[0]) == size(args[1]):
        return size(out)
    return 0.0


def count(config: TrainConfig, batch_size: int) -> dict[str, list[Work]]:
    """The kernels of a step by layer, forward pass, loss, backward pass and optimizer."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from common import unet
    from common.methods import METHODS, make_loss
    from common.networks import build_network, network_description

    work: dict[str, list[Work]] = defaultdict(list)

    class Counter(TorchDispatchMode):
        """Counts whatever is dispatched and moves bytes."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if not func.is_view and str(func.overloadpacket) not in NOTHING_MOVED:
                for layer, done in kernels(func, args, kwargs or {}, out):
                    work[layer].append(done)
            return out

    def attend(q: Any, k: Any, v: Any) -> Any:  # the meta device has fused attention by this name only
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    with torch.device("meta"), mock.patch.object(unet, "attend", attend):
        net = build_network(network_description(replace(config, dropout=0.0), METHODS[config.method].heads)).to(
            torch.bfloat16
        )
        x = torch.empty(batch_size, config.in_channels, config.image_size, config.image_size)
        t = torch.empty(batch_size)
        y = torch.zeros(batch_size, dtype=torch.long) if config.num_classes else None
        loss = make_loss(config.method, config.sigma, flow_weight=config.flow_weight)
        network: Callable[..., Any] = lambda x, t, y: net(x.to(torch.bfloat16), t, y)  # noqa: E731
        with Counter():
            loss(network, x, x, t, x, y).mean().backward()
    parameters = sum(p.numel() for p in net.parameters())
    work["optimizer, average, casts of weights"].append(Work(0.0, STATE * parameters, STATE * parameters))
    return work


def table(work: dict[str, list[Work]], options: Options) -> dict[str, Row]:
    """The rows by layer, largest first, and their sum as "all"."""
    rows = {}
    for layer, done in work.items():
        compute = [w.flops / options.tflops / 1e12 for w in done]
        memory, alone = ([b / options.tbytes / 1e12 for b in bs] for bs in zip(*((w.needed, w.bytes) for w in done)))
        rows[layer] = Row(
            len(done),
            sum(w.flops for w in done),
            sum(w.bytes for w in done),
            sum(w.needed for w in done),
            sum(map(max, compute, memory)),
            sum(map(max, compute, alone)),
            sum(m for c, m in zip(compute, memory) if m > c),
        )
    rows = dict(sorted(rows.items(), key=lambda row: -row[1].one_by_one))
    return rows | {"all": Row(*(sum(column) for column in zip(*(vars(row).values() for row in rows.values()))))}


def floor_seconds(config: TrainConfig, batch_size: int, options: Options = Options()) -> float:  # noqa: B008
    """The floor of a step."""
    return table(count(config, batch_size), options)["all"].floor


def main() -> None:
    """Print a table for each network and batch size."""
    options = cli.parse(Options, description=__doc__)
    for name in options.network:
        for batch_size in options.batch_size:
            rows = table(count(NETWORKS[name], batch_size), options)
            total = rows["all"]
            print(f"\n{name}, batch {batch_size}, {options.tflops:g} TFLOP/s, {options.tbytes:g} TB/s\n")
            print("| layer | kernels | GFLOP | GB one by one | GB floor | ms one by one | ms floor | of it by memory |")
            print("|---|---|---|---|---|---|---|---|")
            for layer, row in rows.items():
                share = row.by_memory / row.floor if row.floor else 0
                moved = f"{row.bytes / 1e9:.2f} | {row.needed / 1e9:.2f}"
                seconds = f"{1e3 * row.one_by_one:.2f} | {1e3 * row.floor:.2f} | {share:.0%}"
                print(f"| {layer} | {row.kernels} | {row.flops / 1e9:.1f} | {moved} | {seconds} |")
            arithmetic = total.flops / options.tflops / 1e12
            print(
                f"\nfloor {1e3 * total.floor:.2f} ms, {batch_size / total.floor:,.0f} images/s; arithmetic alone "
                f"{1e3 * arithmetic:.2f} ms; one by one {1e3 * total.one_by_one:.2f} ms"
            )
            if options.images_per_s:
                seconds = batch_size / options.images_per_s
                print(f"{options.images_per_s:,.0f} images/s: {total.floor / seconds:.0%} of the floor's rate")


if __name__ == "__main__":
    run_main(main)
