"""Students: networks that know the segment, and that start as exact copies of a teacher.

In one of two ways:

* heads: each network of this repository has one module through which the time enters, the U-Nets' time embedding, the
  MLP's first layer. A copy of it for each segment, all begun with the teacher's weights, as in the code of Yoon & Lee
  (2402.06461), who tile the two layers of the time embedding. An MLP has no such embedding: its first layer is copied.
* edges: a network of two times, the second being where the segment ends; its embedding starts as zero. Its size does
  not depend on the number of segments, and what one segment learns serves its neighbours.

Import this module where a network is needed: it brings torch with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from typing_extensions import TypedDict

from common.networks import MLP, build_network, with_second_time
from common.runtime import checked
from common.unet import ConditionalUNet, UNet
from seqrf.segments import checked_edges

ENTRIES = {UNet: "time_embed", ConditionalUNet: "time_mlp", MLP: "net.0"}  # where the time enters
CONDITIONS = ("heads", "edges")


class Heads(nn.Module):
    """k copies of a module; each sample gets the output of its segment's.

    In a batch of several segments every copy computes every sample: the very operations of the teacher, no gather of
    weight matrices, and little beside a U-Net's convolutions.
    """

    def __init__(self, entry: nn.Module, edges: Sequence[float]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(entry) for _ in edges[1:])
        self.segment: int | Tensor | None = None  # of the samples, set by Student for the length of a call

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        if not isinstance(self.segment, Tensor):
            return self.heads[self.segment](features)
        every = torch.stack([head(features) for head in self.heads])  # (k, B, out)
        return every[self.segment, torch.arange(len(features), device=features.device)]


class Description(TypedDict):
    """What a file says of a student; its network's own description is checked where that is built."""

    edges: Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=2, max_length=1001)]
    network: dict[str, Any]


class Student(nn.Module):
    """A network with segments, ``net(x, t, y, segment)``; see :func:`with_heads`, :func:`with_edges` and :func:`build`.

    Args:
        net: A network of this repository, for "edges" of two times; becomes a part of the student.
        condition: "heads" or "edges".
        edges: k + 1 edges from 0 to 1; kept as numbers in ``edges``.
        description: Of ``net``.

    ``description`` holds primitives only: stored in a checkpoint's "network" it lets :func:`build` make the student
    again. Raises ValueError for bad edges.
    """

    def __init__(self, net: nn.Module, condition: str, edges: Sequence[float], description: dict[str, Any]) -> None:
        super().__init__()
        self.edges = checked_edges(edges)
        self.description = {"name": "Student", "condition": condition, "edges": self.edges, "network": description}
        self.num_classes, self.null_class = net.num_classes, getattr(net, "null_class", False)
        self._place = ENTRIES[type(net)] if condition == "heads" else ""
        if condition == "heads":
            net.set_submodule(self._place, Heads(net.get_submodule(self._place), self.edges))
        # the edges stand in the description: weights rounded to 16 bits do not move them
        self.register_buffer("ends", torch.tensor(self.edges[1:]), persistent=False)  # (k,)
        self.net = net

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None, segment: int | Tensor) -> Tensor:
        """x (B, ...), t (B,), y (B,) or None, segment a number or (B,) integers -> the network's output.

        Raises:
            ValueError: a segment out of range (tensors are looked at on the CPU only, a GPU would have to wait).
        """
        segment = checked_segment(segment, len(self.edges) - 1, len(x))
        if not self._place:
            return self.net(x, t, y, self.ends[segment].expand(len(x)))
        entry: Any = self.net.get_submodule(self._place)
        entry.segment = segment
        try:
            return self.net(x, t, y)
        finally:
            entry.segment = None


def checked_segment(segment: int | Tensor, k: int, batch: int) -> int | Tensor:
    """The segment or segments; ValueError unless they are integers from 0 to k - 1, one or (batch,)."""
    if not isinstance(segment, Tensor):
        values, fits = [segment], isinstance(segment, int)
    else:
        fits = segment.shape == (batch,) and not (segment.is_floating_point() or segment.dtype == torch.bool)
        values = list(segment.aminmax()) if fits and batch and segment.device.type == "cpu" else []
    if not fits:
        raise ValueError(f"segment must be a number or {batch} integers, one for each sample; got {segment!r:.60}")
    if not all(0 <= int(v) < k for v in values):
        raise ValueError(f"segment {int(min(values))} to {int(max(values))}: there are only 0 to {k - 1}")
    return segment


def with_heads(net: nn.Module, edges: Sequence[float], description: dict[str, Any] | None = None) -> Student:
    """A student with a time head for each segment; at first net itself in every one, bit for bit.

    Args:
        net: The teacher, a UNet, ConditionalUNet or MLP; it is copied and stays as it is.
        edges: k + 1 edges from 0 to 1.
        description: Of the teacher, as a checkpoint has it; an MLP needs none.

    Raises:
        ValueError: bad edges, another kind of network, or a description that does not fit it.
    """
    return _student(net, "heads", edges, description)


def with_edges(net: nn.Module, edges: Sequence[float], description: dict[str, Any] | None = None) -> Student:
    """A student that sees its segment's edges; at first net itself. Arguments of :func:`with_heads`."""
    return _student(net, "edges", edges, description)


def _student(net: nn.Module, condition: str, edges: Sequence[float], description: dict[str, Any] | None) -> Student:
    if type(net) not in ENTRIES:
        kinds = ", ".join(kind.__name__ for kind in ENTRIES)
        raise ValueError(f"a {type(net).__name__} cannot become a student: give one of {kinds}")
    if description is None:
        if not isinstance(net, MLP):
            raise ValueError("give the network's description, which load_network returns as info['network']")
        description = net.description
    with torch.device("meta"):
        again = {key: tensor.shape for key, tensor in build_network(description).state_dict().items()}
    if again != {key: tensor.shape for key, tensor in net.state_dict().items()}:
        raise ValueError(f"the description is not that of the network: {description}")
    net = copy.deepcopy(net)
    if condition == "edges":
        net, description = with_second_time(net, description)
    return Student(net, condition, edges, description).train(net.training)


def build(description: dict[str, Any]) -> Student:
    """The student that a ``Student.description`` describes, with fresh weights: load its state dict next.

    Raises:
        ValueError: it describes something else.
    """
    if description.get("name") != "Student" or description.get("condition") not in CONDITIONS:
        raise ValueError(f"these weights are of a {description.get('name')}, not of a student: train one first")
    checked(description, Description, "the student")
    inner = description["network"]
    return Student(build_network(inner), description["condition"], description["edges"], dict(inner))
