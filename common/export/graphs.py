"""A sampler with fixed steps as one graph, (noise, labels) -> images: a program of torch.export, or an ONNX model.

In the ONNX model the network is a function that the steps call: it is translated once, and the file does not grow with
their number. A runtime inlines the calls. Times and coefficients of the steps are constants.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.generate import CountedNetwork, Sampler, labels_for, noise_for, real_classes
from common.runtime import atomic_write

DOMAIN = "flows"  # of the ONNX functions
TOLERANCE = 1e-4  # of a graph's images, in [-1, 1], to the sampler's
BATCH = 2  # of the examples that are traced: 1 would be taken for a constant


class Uncounted(CountedNetwork):
    """A network and its guide as they are: a graph counts nothing, and has the precision of its weights."""

    def __init__(self, net: Callable[..., Tensor], guide: Callable[..., Tensor] | None):
        super().__init__(net)  # type: ignore[arg-type]
        self.guide = None if guide is None else Uncounted(guide, None)

    def __call__(self, x: Tensor, t: Tensor, *conditions: Tensor | None) -> Tensor:
        return self.velocity(x, t, *conditions)


class Steps(nn.Module):
    """The sampler of given networks: ``forward(noise, labels=None)`` gives images in [-1, 1], (B, C, H, W).

    Args:
        net, guide: called as the sampler's are.
    """

    def __init__(self, sampler: Sampler, net: Callable[..., Tensor], guide: Callable[..., Tensor] | None):
        super().__init__()
        self.sampler, self.net, self.guide = sampler, net, guide
        self.times = sampler.times().tolist()

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        x0 = self.sampler.start * noise.contiguous(memory_format=torch.channels_last)
        return self.sampler.solve(Uncounted(self.net, self.guide), x0, labels, (), self.times).clamp(-1, 1)


def example(sampler: Sampler, size: int = BATCH) -> tuple[Tensor, ...]:
    """Noise (B, C, H, W) and, of a network with classes, labels (B,)."""
    labels = labels_for(range(size), real_classes(sampler.net))
    noise = noise_for(range(size), sampler.shape, sampler.seed)
    return (noise,) if labels is None else (noise, labels)


def traced(module: nn.Module, *inputs: Tensor | None) -> torch.export.ExportedProgram:
    """A module's program; the first axis of inputs of more than one row is of any length."""
    batch = torch.export.Dim("batch")
    shapes = tuple(None if value is None or len(value) == 1 else {0: batch} for value in inputs)
    with torch.no_grad(), quiet():
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def program(sampler: Sampler) -> torch.export.ExportedProgram:
    """The sampler as a program of torch.export, called ``program.module()(noise, labels)``."""
    return traced(Steps(sampler, sampler.net, sampler.guide.net if sampler.guide else None).eval(), *example(sampler))


# ---- files


class Written(NamedTuple):
    """Evaluations of an image, and the largest difference of two graph's images, in [-1, 1], to the sampler's."""

    nfe: float
    miss: float


def write(sampler: Sampler, out: Path, kind: str, facts: Mapping[str, Any], int8: bool = False) -> Written:
    """Write a sampler's graph whole or not at all, with facts about it, once it gives the sampler's images.

    Args:
        kind: "onnx" or "torch".
        facts: what the file says of itself: metadata of the ONNX model (values that are no text as JSON), or
            facts.json in torch's archive. NFE is added.
        int8: see :func:`model`; such images are not the sampler's.

    Raises:
        ValueError: the graph's images are not the sampler's.
    """
    inputs = example(sampler, 3)  # another batch than the traced one
    images, nfe = sampler.from_noise(inputs[0], range(len(inputs[0])), inputs[1] if len(inputs) > 1 else None)
    facts = {**facts, "nfe": nfe}
    with atomic_write(out) as path:
        if kind == "onnx":
            import onnx

            whole = model(sampler, int8)
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
            onnx.helper.set_model_props(whole, texts)
            onnx.save(whole, path)
        else:
            with open(path, "wb") as file, quiet():
                torch.export.save(program(sampler), file, extra_files={"facts.json": json.dumps(facts)})
        miss = float((read(path, kind)(*inputs) - images).abs().max())
        if not int8 and not miss <= TOLERANCE:
            raise ValueError(f"{out}: the graph's images differ from the sampler's by {miss:.1g}; nothing was written")
    return Written(nfe, miss)


def read(path: Path, kind: str, threads: int = 0) -> Callable[..., Tensor]:
    """A written graph as a function of (noise, labels); ``threads`` of onnxruntime, 0: its choice."""
    if kind == "torch":
        with open(path, "rb") as file, quiet():
            module = torch.export.load(file).module()
        return torch.no_grad()(module)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def images(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})[0])

    return images


# ---- ONNX


def model(sampler: Sampler, int8: bool = False) -> Any:
    """The sampler as an ONNX model.

    Args:
        int8: matrix products and convolutions of the networks in 8 bits, scaled by each batch's own ranges.
    """
    nets = {"Network": sampler.net} | ({"Guide": sampler.guide.net} if sampler.guide else {})
    calls = [placeholder(name, net) for name, net in nets.items()]
    steps = Steps(sampler, calls[0], calls[1] if len(calls) > 1 else None)
    whole = onnx_of(traced(steps.eval(), *example(sampler)), "images")
    for name, net in nets.items():
        define(whole, name, network_model(net, sampler, int8))
    for value in (*whole.graph.input, *whole.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del whole.graph.value_info[:]
    return whole


def placeholder(name: str, net: Any) -> Callable[..., Tensor]:
    """What stands for a network's function in the graph of the steps; it is called as the network."""

    def call(x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        if net.num_classes and y is None:
            y = torch.full((x.shape[0],), net.num_classes - 1)
        given = [x, t, y, t if r is None and net.end_embed is not None else r]
        shape = (x.shape[0], net.out_channels, *x.shape[2:])
        inputs = [value for value in given if value is not None]
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, dtype=x.dtype, shape=shape, version=1)

    return call


def network_model(net: Any, sampler: Sampler, int8: bool) -> Any:
    """A network alone as an ONNX model of (x, t) and, where it has them, (y, r)."""
    x = torch.zeros(BATCH, net.in_channels, *sampler.shape[1:])
    y = torch.zeros(BATCH, dtype=torch.long) if net.num_classes else None
    found = onnx_of(traced(net, x, torch.zeros(1), y, None if net.end_embed is None else torch.ones(1)), "v")
    return prepared(found, int8)


def onnx_of(traced: torch.export.ExportedProgram, output: str) -> Any:
    """A program in ONNX."""
    with quiet():
        made = torch.onnx.export(traced, dynamo=True, verbose=False, output_names=[output])
    assert made is not None
    return made.model_proto


def prepared(found: Any, int8: bool) -> Any:
    """A model whose constants are worked out once, not in each call; in 8 bits with a scale for each channel."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder, quiet():
        out = Path(folder) / "network.onnx"
        options.optimized_model_filepath = str(out)
        onnxruntime.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
        if int8:
            quantize_dynamic(out, out, per_channel=True)
        return onnx.load(out)


def define(whole: Any, name: str, network: Any) -> None:
    """Give a model the body of the function that its steps call; its weights become the model's, and inputs of it."""
    from onnx import helper

    graph = network.graph
    weights = {each.name: f"{name}.{each.name}" for each in graph.initializer}
    inputs = [each.name for each in graph.input] + list(weights)
    outputs = [each.name for each in graph.output]
    body = helper.make_function(DOMAIN, name, inputs, outputs, graph.node, network.opset_import)
    whole.functions.append(body)
    for each in graph.initializer:
        whole.graph.initializer.add().CopyFrom(each)
        whole.graph.initializer[-1].name = weights[each.name]
    for node in whole.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, name):
            node.input.extend(weights.values())
    known = {each.domain for each in whole.opset_import}
    whole.opset_import.extend(each for each in network.opset_import if each.domain not in known)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell their own developers much."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
