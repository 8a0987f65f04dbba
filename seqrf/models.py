"""Teachers and students read from files, ready to sample from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint, generate
from common.methods import METHODS
from common.runtime import file_hash, keep_freed_memory, reading
from common.solvers import CountNFE
from seqrf import segments
from seqrf.endpoints import after
from seqrf.manifest import Teacher
from seqrf.networks import Student, build


@dataclass(frozen=True, eq=False)
class Model:
    """A teacher or a student.

    Attributes:
        net: in eval mode, on its device; a teacher's net(x, t, y), a student's net(x, t, y, segment).
        method: name and sigma of the teacher's method, as checkpoints have them.
        description: of the network, as checkpoints have it.
        shape: of a sample, (3, 32, 32) or (2,).
        source: where the flow starts, see ``endpoints.sources``.
        path, hash: the weights file and its SHA-256.
        step: training steps that the weights have seen.
        name: for tables.
    """

    net: nn.Module
    method: dict[str, Any]
    description: dict[str, Any]
    shape: tuple[int, ...]
    source: str
    path: Path
    hash: str
    step: int
    name: str
    count: CountNFE

    @property
    def is_student(self) -> bool:
        return isinstance(self.net, Student)

    @property
    def edges(self) -> tuple[float, ...]:
        """Of its segments; a teacher has one."""
        return tuple(self.net.edges) if isinstance(self.net, Student) else (0.0, 1.0)

    @property
    def condition(self) -> str:
        """How it knows its segment."""
        return self.description["condition"] if self.is_student else "teacher"

    @property
    def num_classes(self) -> int:
        """Classes that it can be asked for; 0: unconditional."""
        return generate.real_classes(self.net) if hasattr(self.net, "null_class") else self.net.num_classes  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def velocity_for(
        self, y: Tensor | None = None, cfg: float = 1.0, last: float = math.inf
    ) -> Callable[[Tensor, Tensor, int], Tensor]:
        """velocity(x, t, segment), its network evaluations counted in ``count``; a teacher's points at the data from
        ``last`` on, see ``common.generate.velocity_of``."""
        if self.is_student:
            return segments.velocity_of(self.count, y, cfg, self.method["name"])
        whole = generate.velocity_of(self.count, self.method["name"], y, cfg, last)
        return lambda x, t, segment: whole(x, t)

    def flow(self, cfg: float = 1.0, landing: float = 1.0) -> Callable[..., Tensor]:
        """velocity(x, t) or velocity(x, t, y) of a teacher, as pairs are made with; see ``endpoints.follow``."""
        return lambda x, t, y=None: self.velocity_for(y, cfg, after(landing))(x, t, 0)

    def as_teacher(self, cfg: float = 1.0, landing: float = 1.0) -> Teacher:
        """What pairs of :meth:`flow` need to know of it."""
        sigma, coupling = self.method.get("sigma", 0.0), self.method.get("coupling", "auto")
        return Teacher(self.hash, self.shape, self.source, self.method["name"], sigma, cfg, landing, coupling)


def load(path: str | Path, device: torch.device | str = "cpu", name: str = "", image_size: int = 0) -> Model:
    """A model from a checkpoint: of this repository (teacher, student, run folder) or of another project.

    Args:
        path: a file, or a run folder.
        device: where the network goes.
        name: for tables; empty: made from what it is.
        image_size: of networks whose file does not say it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or a guess about its images is impossible.
    """
    file = checkpoint.find(path)
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    state = checkpoint.load(file)
    if checkpoint.is_own(state) and state["network"].get("name") == "Student":
        with reading(file, "copy it again, or train the student anew"):
            net: Any = build(state["network"])
            checkpoint.take_weights(net, state["ema_model"])
        info = {key: state[key] for key in ("network", "method", "step", "config")}
    else:
        net, info = checkpoint.load_network(file)
    net = net.eval().to(device, memory_format=torch.channels_last)
    method = info["method"]
    return Model(
        net,
        method,
        info["network"],
        _shape(info, method["name"], image_size),
        method.get("source", "gaussian"),
        file,
        file_hash(file),
        info.get("step") or 0,
        name or name_of(info["network"], method),
        counter(net),
    )


def counter(net: nn.Module) -> CountNFE:
    """The network with its evaluations counted, its output float32."""
    return CountNFE(partial(_float, net))


def _float(net: nn.Module, x: Tensor, t: Tensor, *conditions: Any) -> Tensor:
    return net(x, t, *conditions).float()


def _shape(info: dict[str, Any], method: str, image_size: int) -> tuple[int, ...]:
    """The shape of a sample of a checkpoint's network."""
    network = info["network"]
    network = network.get("network", network)  # a student's teacher
    heads = METHODS[method].heads
    if network["name"] == "MLP":
        return (network["out_dim"] // heads,)
    size = network.get("image_size") or (info.get("config") or {}).get("image_size") or image_size
    if not size:
        raise ValueError("the weights do not say the size of their images: give --config.data.image_size")
    return network["out_channels"] // heads, size, size


def name_of(network: dict[str, Any], method: dict[str, Any]) -> str:
    """What a model is called in tables: teacher, 2-RF, 4-SeqRF, 4-SeqRF-Ada, 4-SeqRF-Distill."""
    if network["name"] != "Student":
        return "teacher"
    k = len(network["edges"]) - 1
    uneven = max(abs(a - b) for a, b in zip(network["edges"], segments.uniform_edges(k))) > 1e-3
    return ("2-RF" if k == 1 else f"{k}-SeqRF") + "-Ada" * uneven + "-Distill" * method.get("distilled", False)
