"""Many small networks trained side by side on the same coupled batches, so that a coupling is computed once for all.

The couplings are those of ``common.couplings`` (the tests compare them), but made for thousands of batches of the same
10,000 points: dual potentials are carried from batch to batch, and an exact assignment takes half the time.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from common.runtime import generator
from protocols import LEARNING_RATE, WEIGHT_DECAY, Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from common.networks import MLP

# For an exact assignment: entropies in units of the transport cost per point, and Sinkhorn sweeps with each.
SMOOTHING = ((16.0, 10), (6.0, 15))
OVER = 1.8  # over-relaxation of the sweeps
CARRY = 30  # batches over which a carried potential is averaged


class Transport:
    """Couples batches of a fixed set of target points: ``transport(x0, x1, rows) -> order``, for x0[order].

    For every target point a dual potential is kept, averaged over the batches that it was in. With its help the
    squared distances become reduced costs, nearly zero along the optimal plan, from which Sinkhorn's sweeps start.

    * reg None: the exact assignment of least squared distance. A few smoothed sweeps adapt the potentials to the batch
      (any potentials leave the assignment the same), then the Hungarian method has little left to do.
    * reg > 0: for every x1 an x0 drawn from the entropic plan with this regularisation.

    Args:
        n_targets: size of the fixed set.
        reg: entropic regularisation, in units of the squared distance.
        tol: sum of the errors of the plan's row marginal at which the sweeps stop (reg > 0).
    """

    def __init__(self, n_targets: int, reg: float | None = None, tol: float = 1e-2) -> None:
        import torch

        self.reg, self.tol = reg, tol
        self._potential, self._seen = torch.zeros(n_targets), torch.zeros(n_targets)

    def __call__(self, x0: Tensor, x1: Tensor, rows: Tensor, g: torch.Generator | None = None) -> Tensor:
        """Args: x0, x1 (B, D) float32; rows (B,), the places of x1 in the fixed set; g for reg > 0."""
        import torch
        from scipy.optimize import linear_sum_assignment

        centre = x1.mean(0)
        a, b = x0 - centre, x1 - centre
        before = self._potential[rows]
        cost = torch.addmm(b.square().sum(1) - before, a, b.T, alpha=-2)
        cost -= cost.amin(1, keepdim=True)
        lowest = cost.amin(0)
        cost -= lowest  # every row and column now has a zero, and nothing is negative
        if self.reg is not None:
            kernel, u, v = self._sweeps(cost, self.reg, 1000)
            self._carry(rows, before + lowest + self.reg * v.log())
            return self._draw(kernel * u[:, None], g)
        scale = (a.square().sum(1).mean() * b.square().sum(1).mean()).sqrt().item() / len(x1)
        for smoothing, sweeps in SMOOTHING:
            eps = max(smoothing * scale, 1e-12)
            change = eps * self._sweeps(cost, eps, sweeps)[2].log()
            lowest += change
            cost -= change
            cost -= cost.amin(1, keepdim=True)
        self._carry(rows, before + lowest)
        columns = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
        return torch.argsort(columns)

    def _draw(self, plan: Tensor, g: torch.Generator | None) -> Tensor:
        """A row for each column, with the probabilities of the column, by inversion of its distribution function."""
        import torch

        below = plan.T.contiguous().cumsum(1)
        level = torch.rand(len(below), 1, generator=g) * below[:, -1:]
        return torch.searchsorted(below, level)[:, 0].clamp_(max=len(plan) - 1)

    def _sweeps(self, cost: Tensor, eps: float, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kernel exp(-cost / eps), and u and v for which diag(u) kernel diag(v) has marginals 1, nearly.

        They are held in a range that cannot overflow. With a ``reg`` the sweeps end when the marginals are good enough.
        """
        import torch

        kernel = (cost / -eps).clamp_(min=-60).exp_()
        u, v = torch.ones(kernel.shape[0]), torch.ones(kernel.shape[1])
        for k in range(sweeps):
            if self.reg is not None and k % 5 == 4:
                u = 1 / (kernel @ v)
                v = 1 / (u @ kernel)
                if ((kernel @ v) * u - 1).abs().mean() < self.tol:
                    break
            u = (u ** (1 - OVER) * (kernel @ v) ** -OVER).clamp_(1e-9, 1e9)
            v = (v ** (1 - OVER) * (u @ kernel) ** -OVER).clamp_(1e-9, 1e9)
        return kernel, u, v

    def _carry(self, rows: Tensor, potential: Tensor) -> None:
        """Averages the potentials of these points; constants of a batch do not matter and are taken out."""
        counts = self._seen[rows] + 1
        old = self._potential[rows]
        self._seen[rows] = counts
        self._potential[rows] = old + (potential - potential.mean() - old) / counts.clamp(max=CARRY)


class Blocks:
    """Exact assignments within consecutive blocks of a batch: what a smaller coupling batch would give."""

    def __init__(self, n_targets: int, size: int) -> None:
        self.size, self.transport = size, Transport(n_targets)

    def __call__(self, x0: Tensor, x1: Tensor, rows: Tensor, g: torch.Generator | None = None) -> Tensor:
        import torch

        parts = range(0, len(x0), self.size)
        block = [slice(k, k + self.size) for k in parts]
        return torch.cat([k + self.transport(x0[s], x1[s], rows[s]) for k, s in zip(parts, block, strict=True)])


def epochs(points: Tensor, batch: int, g: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled points for ever, (rows, points); the last, smaller one of an epoch is left out."""
    import torch

    while True:
        for rows in torch.randperm(len(points), generator=g).split(batch):
            if len(rows) == batch or batch > len(points):
                yield rows, points[rows]


def coupling_of(method: Method, n_targets: int) -> Transport | Blocks | None:
    """The coupling that a method names: independent (None), ot, ot<block size> or sinkhorn."""
    if method.coupling == "sinkhorn":
        return Transport(n_targets, reg=2 * method.sigma**2)
    if method.coupling.startswith("ot"):
        return Blocks(n_targets, int(method.coupling[2:])) if method.coupling != "ot" else Transport(n_targets)
    return None


def example(method: Method, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What the network of a regression sees and should answer: points on its paths, and their velocity or data.

    The same formulas as in ``common.losses``, taken apart so that several networks can be evaluated at once.
    """
    from common.paths import BridgePath, LinearPath, LipmanPath

    path = {"fm": LipmanPath, "sbcfm": BridgePath}.get(method.loss, LinearPath)(method.sigma)
    xt = path.xt(x0, x1, t, noise)
    return xt, path.ut(x0, x1, t, xt) if method.predicts == "velocity" else x1


class Stack:
    """K networks of one shape as batched products: stack(x, t) with x (K, B, dim) and t (B,) -> (K, B, out_dim).

    Their gradients do not mix, and AdamW works element by element, so each is trained as if it were alone.
    ``parameters`` holds the weights of all layers, (K, in, out), then the biases, (K, 1, out).
    """

    def __init__(self, nets: Sequence[MLP]) -> None:
        import torch

        layers = list(zip(*map(linear_layers, nets), strict=True))
        weights = [torch.stack([layer.weight.detach().T for layer in same]) for same in layers]
        biases = [torch.stack([layer.bias.detach()[None] for layer in same]) for same in layers]
        self.parameters = torch.nn.ParameterList([*weights, *biases])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        import torch

        depth = len(self.parameters) // 2
        x = torch.cat([x, t.expand(len(x), -1)[:, :, None]], dim=2)
        for k in range(depth):
            x = torch.baddbmm(self.parameters[depth + k], x, self.parameters[k])
            x = torch.selu(x) if k < depth - 1 else x
        return x

    def write(self, nets: Sequence[MLP]) -> None:
        """Copies the weights back into separate networks."""
        depth = len(self.parameters) // 2
        for k, net in enumerate(nets):
            for layer, weight, bias in zip(
                linear_layers(net), self.parameters[:depth], self.parameters[depth:], strict=True
            ):
                layer.weight.data.copy_(weight.detach()[k].T)
                layer.bias.data.copy_(bias.detach()[k, 0])


def linear_layers(net: MLP) -> list[nn.Linear]:
    """The layers that hold the weights of an MLP, whose activations must be SELU."""
    from torch import nn

    return [layer for layer in net.net if isinstance(layer, nn.Linear)]


class Class:
    """Networks that are trained by one optimizer: the regressions of one schedule, or one IDFF."""

    def __init__(self, methods: dict[str, Method], seed: int) -> None:
        import torch

        from common.ema import EMA
        from common.methods import METHODS, make_loss
        from common.networks import MLP

        first = next(iter(methods.values()))
        heads = METHODS[first.loss].heads
        self.methods, self.schedule, self.nets = methods, first.schedule, dict[str, MLP]()
        for name in methods:
            torch.manual_seed(seed)
            self.nets[name] = MLP(2 * heads, out_dim=2 * heads)
        self.idff = make_loss("idff", first.sigma) if first.loss == "idff" else None
        self.stack = None if self.idff else Stack(list(self.nets.values()))
        trained = self.stack.parameters if self.stack else next(iter(self.nets.values()))
        self.ema = EMA(trained, 0.999)
        rates = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
        self.optimizer = torch.optim.AdamW(trained.parameters(), **rates, fused=True)

    def step(self, progress: float, coupled: dict[str, Tensor], x1: Tensor, t: Tensor, noise: Tensor) -> None:
        """One update of all; ``coupled``: the x0 of each coupling; progress in [0, 1): where the schedule stands."""
        if self.schedule == "cosine":
            self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.zero_grad()
        self._loss(coupled, x1, t, noise).backward()
        self.optimizer.step()
        self.ema.update()

    def _loss(self, coupled: dict[str, Tensor], x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The sum of the losses of all networks."""
        import torch

        if self.stack is None:
            ((name, method),) = self.methods.items()
            return self.idff(self.nets[name], coupled[method.coupling], x1, t, noise, None).mean()
        examples = [example(m, coupled[m.coupling], x1, t, noise) for m in self.methods.values()]
        xt, target = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return (self.stack(xt, t) - target).square().mean((1, 2)).sum()

    def finished(self, average: bool) -> dict[str, MLP]:
        """Copies of the networks by name, with their last or their averaged weights."""
        with self.ema.applied() if average else contextlib.nullcontext():
            if self.stack:
                self.stack.write(list(self.nets.values()))
            return {name: copy.deepcopy(net).eval() for name, net in self.nets.items()}


def classes_of(methods: dict[str, Method], seed: int) -> list[Class]:
    """Sorts the methods into those that can be trained as one stack; every IDFF has one of its own."""
    groups: dict[tuple[str, str], dict[str, Method]] = {}
    for name, method in methods.items():
        kind = name if method.loss == "idff" else "regression"
        groups.setdefault((kind, method.schedule), {})[name] = method
    return [Class(part, seed) for part in groups.values()]


def train_together(
    methods: dict[str, Method],
    source: Tensor | None,
    target: Tensor,
    seed: int,
    steps: int,
    batch: int,
    averaged: Sequence[str] = (),
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, MLP]:
    """Trains a network per method, all on the same batches, times and noise; returns them by name, in eval mode.

    Args:
        methods: what to train, by name.
        source: (N, 2) training points of the source; None: fresh standard normal noise in every batch.
        target: (N, 2) training points of the target.
        seed: of the initial weights (equal for networks of equal shape), the batches, the times and the noise.
        averaged: names whose averaged weights are returned as well, under "NAME + EMA".
        on_step: called after each step.
    """
    import torch

    g, draws = generator(seed, "together"), generator(seed, "plan")  # two, so that no method changes another's batches
    classes = classes_of(methods, seed)
    couplings = {method.coupling: coupling_of(method, len(target)) for method in methods.values()}
    targets = epochs(target, batch, g)
    sources = None if source is None else epochs(source, batch, g)
    for step in range(steps):
        rows, x1 = next(targets)
        x0 = next(sources)[1] if sources else torch.randn(x1.shape, generator=g)
        coupled = {name: x0 if c is None else x0[c(x0, x1, rows, draws)] for name, c in couplings.items()}
        t, noise = torch.rand(len(x1), generator=g), torch.randn(x1.shape, generator=g)
        for one in classes:
            one.step(step / steps, coupled, x1, t, noise)
        on_step()
    nets = {name: net for one in classes for name, net in one.finished(average=False).items()}
    averages = {name: net for one in classes for name, net in one.finished(average=True).items()}
    return nets | {f"{name} + EMA": averages[name] for name in averaged}
