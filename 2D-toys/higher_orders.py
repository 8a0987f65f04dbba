"""idff_orders.py: its options, the published drifts and their calls, and the comparison at equal cost."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.cli.ranges import Count, Positive, Seed
from common.runtime import generator, write_json
from toy_flow import Distribution

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
# The published gammas are among them: 0.2 and -0.5.
GRIDS = ((0.0, 0.2, 0.5, 0.8, 1.0), (-0.5, -0.2, -0.05, 0.0, 0.05, 0.2, 0.5), (-0.2, -0.05, 0.0, 0.05, 0.2))


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    source: Distribution = "gaussian"
    """Distribution at t = 0"""
    target: Distribution = "8gaussians"
    """Distribution at t = 1"""
    orders: tuple[Count, ...] = (2, 3)
    """Orders of the samplers, 1 to 3: how many gradients they use"""
    calls: tuple[Count, ...] = (10, 20)
    """Budgets: evaluations of the network and backward passes together, a sample"""
    gammas: tuple[float, ...] = ()
    """As many as the one order given; left out: chosen on validation points"""
    sigma: Positive = 0.2
    """The sigma of the drift"""
    solver: Literal["euler", "rk4"] = "euler"
    """Numerical method; the last step is Euler's"""
    steps: Count = 4000
    """Training steps"""
    batch_size: Count = 128
    """Pairs of a step"""
    lr: Positive = 5e-3
    """Learning rate at the start; it falls to 0 as a cosine"""
    width: Count = 128
    """Units of each of the three hidden layers"""
    n_samples: Count = 2000
    """Test samples, compared with as many fresh points of the target; half as many choose the gammas"""
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Folder of the results; empty: results/SOURCE-TARGET-orders beside the script"""
    smoke: bool = False
    """Seconds: a tiny network and few steps; writes to results/smoke-orders"""

    def check_together(self) -> None:
        """Raises ValueError where options do not fit together."""
        if not self.orders or not set(self.orders) <= {1, 2, 3}:
            raise ValueError(f"--orders {' '.join(map(str, self.orders))}: choose among 1, 2 and 3")
        if self.gammas and self.orders != (len(self.gammas),):
            n = len(self.gammas)
            raise ValueError(f"{n} gammas belong to order {n}: give --orders {n}, or leave --gammas out to choose them")
        least = max(calls_of(self.solver, order) for order in self.orders)
        if not self.calls or min(self.calls) < least:
            raise ValueError(f"--calls must be at least {least} for {self.solver} and these orders")
        if self.sigma**2 * sum(self.gammas) > 4:
            raise ValueError(
                f"the gammas' sum must be at most 4 / sigma^2 = {4 / self.sigma**2:g}, or the root is of < 0"
            )


def run(options: Options) -> None:
    """Train the network, compare the samplers at each budget, draw the paths of the last one."""
    name = f"{options.source}-{options.target}-orders"
    if options.smoke:
        options, name = replace(options, steps=20, width=16, n_samples=64), "smoke-orders"
    out = Path(options.out) if options.out else HERE / "results" / name
    from common import plots

    data = learnt(options)
    rows, paths = compare(data, options)
    figure, axes = plots.panels(list(paths), plots.limit_of(*paths.values()), scale=2.8)
    for axis, states in zip(axes, paths.values()):
        plots.paths(axis, states)
    plots.save(figure, out / "figure.png", dpi=120, crop=False)
    write_json(out / "results.json", {"options": asdict(options), "rows": rows})
    print(f"results: {out}")


# ---- the data prediction and its gradients


def learnt(options: Options) -> Callable[[Tensor, Tensor], Tensor]:
    """x1_hat(x, t), trained by E |(x1_hat - x1) / (0.01 + 1 - t)|^2 on optimal-transport pairs, xt on the line.

    x1_hat = x + (1 - t) net(x, t): a network that predicts x1 itself has to learn the identity near t = 1, where the
    loss weighs most, and after as many steps its modes are uneven (squared MMD 0.016 instead of below 0.001).
    """
    import torch

    from common.training import small
    from plane import network

    torch.manual_seed(options.seed)
    net = network("otcfm", options.width, depth=3)
    pairs = small.fresh_pairs(options.source, options.target, "ot", options.batch_size, options.seed)

    def data(x: Tensor, t: Tensor) -> Tensor:
        return x + (1 - t)[:, None] * net(x, t)

    def loss(step: int) -> Tensor:
        x0, x1 = pairs(step)
        t = torch.rand(len(x1), generator=generator(options.seed, "times", step))
        s = t[:, None]
        return ((data((1 - s) * x0 + s * x1, t) - x1) / (1.01 - s)).square().mean()

    small.fit(net, loss, options.steps, options.lr, progress="data prediction")
    return data


class Drift:
    """The published drift of order len(gammas), or with gammas = () the plain flow (x1_hat - x) / (1 - t).

    It counts its calls: ``forward`` evaluations of the network, ``backward`` passes. Gradients that have the weight 0
    are not computed: all at t = 0, and those above the last gamma that matters.

    Args:
        data: x1_hat(x, t), rows independent of each other.
        gammas: up to three.
        sigma: of s^2 = sigma^2 t (1 - t).
    """

    def __init__(self, data: Callable[[Tensor, Tensor], Tensor], gammas: Sequence[float], sigma: float = 0.2) -> None:
        self.data, self.gammas, self.sigma = data, tuple(gammas), sigma
        self.weights = (self.gammas[0] - 0.5, *self.gammas[1:]) if self.gammas else ()
        self.order = max((k for k, weight in enumerate(self.weights, 1) if weight), default=0)
        self.forward = self.backward = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift at x, (B, D); t (B,) holds one time, below 1."""
        now = t[0].item()
        x1_hat, gradients = self._gradients(x, t, self.order if now > 0 else 0)
        drift = math.sqrt(1 - sum(self.gammas) * self.sigma**2 * now * (1 - now)) * (x1_hat - x) / (1 - now)
        for weight, gradient in zip(self.weights, gradients):
            drift = drift + weight * now * (1 - now) * gradient
        return drift

    def _gradients(self, x: Tensor, t: Tensor, order: int) -> tuple[Tensor, list[Tensor]]:
        """x1_hat, and g1 to g_order."""
        import torch

        self.forward += 1
        gradients: list[Tensor] = []
        with torch.set_grad_enabled(order > 0):
            x = x.detach().requires_grad_(order > 0)
            last = x1_hat = self.data(x, t)
            for k in range(1, order + 1):
                self.backward += 1
                total = last.sum() + 0 * x.sum()  # where x1_hat is linear, g1 does not depend on x
                (last,) = torch.autograd.grad(total, x, create_graph=k < order)
                gradients.append(last)
        return x1_hat.detach(), [g.detach() for g in gradients]


# ---- sampling within a budget


def evaluations(solver: str, n_steps: int) -> int:
    """Evaluations of the drift: the last step is Euler's."""
    return n_steps if solver == "euler" else 4 * n_steps - 3


def calls_of(solver: str, order: int, n_steps: int = 1) -> int:
    """Calls of n steps when every gradient is computed: none at t = 0."""
    count = evaluations(solver, n_steps)
    return count + order * (count - 1)


def steps_within(calls: int, solver: str, order: int) -> int:
    """The most steps whose calls fit into a budget."""
    return next(n for n in itertools.count(1) if calls_of(solver, order, n + 1) > calls)


def sampled(
    data: Callable, gammas: Sequence[float], sigma: float, x0: Tensor, n_steps: int, solver: str
) -> tuple[Tensor, Drift]:
    """States at all times, (n + 1, B, 2), and the drift with its counts."""
    import torch

    from common.solvers import integrate, time_grid

    drift = Drift(data, gammas, sigma)
    with torch.no_grad():
        return integrate(drift, x0, time_grid(n_steps), solver, trajectory=True, final_euler=True), drift


# ---- the comparison


def points(options: Options, what: str, n: int) -> tuple[Tensor, Tensor]:
    """n points of the source and n of the target, from streams of their own for each purpose."""
    from common.data import toys

    draws = (generator(options.seed, "orders", what, end) for end in ("x0", "x1"))
    return toys.sample(options.source, n, next(draws)), toys.sample(options.target, n, next(draws))


def mmd(a: Tensor, b: Tensor) -> float:
    """The squared MMD with one Gaussian kernel of width 1, the authors'."""
    from common import metrics

    return metrics.mmd(a, b, sigmas=(1.0,))


def choose(data: Callable, options: Options, order: int, n_steps: int) -> tuple[float, ...]:
    """The gammas of the grid with which validation points come closest to their target."""
    x0, x1 = points(options, "validation", max(2, options.n_samples // 2))

    def score(gammas: tuple[float, ...]) -> float:
        return mmd(sampled(data, gammas, options.sigma, x0, n_steps, options.solver)[0][-1], x1)

    return min(itertools.product(*GRIDS[:order]), key=score)


def entries(data: Callable, options: Options, budget: int) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    """Name, steps and gammas of every sampler at a budget of calls."""
    yield "plain flow", steps_within(budget, options.solver, 0), ()
    for order in options.orders:
        n_steps = steps_within(budget, options.solver, order)
        yield f"plain flow, steps of order {order}", n_steps, ()
        yield f"order {order} at", n_steps, (0.0,) * order
        gammas = options.gammas or choose(data, options, order, n_steps)
        yield f"order {order}, {'given' if options.gammas else 'chosen'}", n_steps, gammas


def compare(data: Callable, options: Options) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Print and return a row for each sampler and budget; also some paths at the last budget, by title."""
    from common import metrics

    x0, target = points(options, "test", options.n_samples)
    other = points(options, "other test", options.n_samples)[1]
    print(f"two real samples: W2 {metrics.wasserstein2(other, target):.3f}, MMD^2 {1000 * mmd(other, target):.2f}e-3")
    rows: list[dict[str, Any]] = []
    paths: dict[str, Tensor] = {}
    for budget in options.calls:
        for name, n_steps, gammas in entries(data, options, budget):
            start = time.perf_counter()
            states, drift = sampled(data, gammas, options.sigma, x0, n_steps, options.solver)
            row: dict[str, Any] = {"budget": budget, "name": name, "gammas": gammas, "steps": n_steps}
            row |= {"forward": drift.forward, "backward": drift.backward, "seconds": time.perf_counter() - start}
            row |= {"w2": metrics.wasserstein2(states[-1], target), "mmd": mmd(states[-1], target)}
            rows.append(row)
            print(line(row))
            if budget == options.calls[-1] and (name == "plain flow" or name.endswith(("chosen", "given"))):
                paths[f"{name}: {drift.forward + drift.backward} calls"] = states
    return rows, paths


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    name = " ".join([row["name"], *(f"{gamma:g}" for gamma in row["gammas"])])
    calls = f"calls {row['forward'] + row['backward']} = {row['forward']} forward + {row['backward']} backward"
    return f"{name:30s} {calls:38s} W2 {row['w2']:.3f}  MMD^2 {1000 * row['mmd']:6.2f}e-3"
