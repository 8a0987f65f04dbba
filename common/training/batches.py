"""Training batches with noise, times and coupling, made ahead of the step that uses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.couplings import couple
from common.data.loading import Batches
from common.runtime import Processes, generator


@dataclass
class Batch:
    """One process's part of a coupled batch; ``seconds`` is what the coupling took, ``r`` a second time."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    noise: Tensor
    y: Tensor | None
    seconds: float = 0.0
    r: Tensor | None = None


def part(batch: Any, i: int, parts: int) -> Any:
    """Micro-batch i of ``parts`` equal ones: those rows of every tensor of a dataclass."""
    tensors = {key: value for key, value in vars(batch).items() if isinstance(value, Tensor)}
    size = len(next(iter(tensors.values()))) // parts
    return replace(batch, **{key: value[i * size : (i + 1) * size] for key, value in tensors.items()})


class Ahead:
    """Batches that are a pure function of the step, the next one made in a thread while the network works on this one.

    Decoding, transfer and optimal transport then cost the step nothing. ``wait_seconds`` sums the time spent waiting. A
    batch is a dataclass of tensors; whoever inherits says in ``make(step)`` what it is.

    Args:
        device: where the batches lie.
        ahead: False: each batch is made when it is asked for.
    """

    def __init__(self, device: torch.device, ahead: bool):
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batch") if ahead else None
        self.future: tuple[int, Any] | None = None
        self.wait_seconds = 0.0
        # Own stream: the transfers and the transport's synchronisation must not wait for the network's queue.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and ahead else None

    def prepare(self, folder: Path | None) -> tuple[float, int]:
        """Do what has to be done before the first step, in the run's folder; seconds and bytes of it.

        Args:
            folder: None: only so much that batches can be made, without writing; the figures are those of all.
        """
        return 0.0, 0

    def make(self, step: int) -> Any:
        """This process's part of the batch of a step."""
        raise NotImplementedError

    def at(self, step: int) -> Any:
        """The batch of a step; asks for the next one to be prepared."""
        start = time.perf_counter()
        if self.pool is None:
            batch = self.make(step)
        else:
            if self.future is None or self.future[0] != step:
                self.future = (step, self.pool.submit(self._make_on_stream, step))
            batch = self.future[1].result()
            self.future = (step + 1, self.pool.submit(self._make_on_stream, step + 1))
        self.wait_seconds += time.perf_counter() - start
        if self.stream is not None:  # the memory belongs to the side stream: it must outlive the network's use
            for tensor in vars(batch).values():
                if isinstance(tensor, Tensor):
                    tensor.record_stream(torch.cuda.current_stream())
        return batch

    def close(self) -> None:
        """Stop the thread."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def _make_on_stream(self, step: int) -> Any:
        if self.stream is None:
            return self.make(step)
        with torch.cuda.stream(self.stream):
            batch = self.make(step)
        self.stream.synchronize()
        return batch


class CoupledBatches(Ahead):
    """Images with noise, times and coupling, a name of ``common.couplings``.

    Args:
        reg: entropic regularisation of a Sinkhorn coupling.
        times: of a method with two times, see ``common.methods.Method``; None: one.
        quantile: the distribution of that one, see ``common.methods.Times``; None: uniform.
    """

    def __init__(
        self,
        batches: Batches,
        coupling: str,
        seed: int,
        processes: Processes,
        ahead: bool,
        reg: float | None = None,
        times: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        quantile: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(processes.device, ahead)
        self.batches, self.coupling, self.seed, self.processes, self.reg = batches, coupling, seed, processes, reg
        self.times, self.quantile = times, quantile

    def make(self, step: int) -> Batch:
        """Draw and couple the global batch; return this process's rows."""
        x1, y = self.batches.at(step)
        draw = generator(self.seed, "step", step, device=x1.device)
        x0 = torch.randn(x1.shape, generator=draw, device=x1.device)
        noise = torch.randn(x1.shape, generator=draw, device=x1.device)
        # Stratified times: one uniform draw in each of B equal intervals. Same mean, smaller variance of the loss.
        n = len(x1)
        t = (torch.arange(n, device=x1.device) + torch.rand(n, generator=draw, device=x1.device)) / n
        r = None
        if self.times is not None:
            t, r = self.times(t, torch.rand(n, generator=draw, device=x1.device))
        elif self.quantile is not None:
            t = self.quantile(t)
        start = time.perf_counter()
        if self.coupling != "independent":
            pairing = generator(self.seed, "couple", step)
            if y is None:
                x0, x1 = couple(x0, x1, self.coupling, pairing, reg=self.reg)
            else:  # inside each class, so that every class still starts from all of the noise
                x0, x1, y = couple(x0, x1, self.coupling, pairing, y, self.reg, within_labels=True)
        seconds = time.perf_counter() - start
        rows = slice(self.processes.rank, None, self.processes.world)
        y, r = (x if x is None else x[rows] for x in (y, r))
        return Batch(x0[rows], x1[rows], t[rows], noise[rows], y, seconds, r)
