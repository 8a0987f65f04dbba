"""Train a flow between two distributions of the plane, sample from it, measure it and draw it.

    python toys.py
    python toys.py --source moons --target 8gaussians --method reflow
    python toys.py --method idff                            # IDFF's example: two heads and its own sampler
    python toys.py --weights results/gaussian-8gaussians-otcfm --solver euler --n_steps 4

One CPU core, about 20 s. The folder printed at the end holds figure.png, results.json and weights.pt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _repo import HERE
from common import cli
from common.runtime import atomic_write, generator, run_main

if TYPE_CHECKING:
    from torch import Tensor

    from common.networks import MLP

Distribution = Literal[
    "gaussian", "8gaussians", "moons", "s-curve", "swissroll", "checkerboard", "pinwheel", "spirals", "circles"
]
Grid = Literal["uniform", "cosine", "power", "logsnr", "edm"]
Solver = Literal[
    "auto", "euler", "midpoint", "heun", "rk4", "ab2", "ab4", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "ipndm4",
    "dopri5", "torchdyn", "idff", "euler_maruyama",
]  # fmt: skip
LEARNT = ("source", "target", "method", "sigma", "spread", "width", "depth")  # what weights.pt fixes
FORMAT = "toy-flow"


@dataclass(frozen=True)
class Options:
    """Options of a flow in the plane."""

    # ---- what is learnt
    source: Distribution = "gaussian"
    """Distribution at t = 0"""
    target: Distribution = "8gaussians"
    """Distribution at t = 1"""
    method: Literal["cfm", "otcfm", "fm", "sbcfm", "rf", "idff", "reflow"] = "otcfm"
    """cfm, otcfm, fm (Lipman), sbcfm, rf (rectified flow), idff, or reflow: rf again, on the pairs that rf makes"""
    sigma: float = 0.2
    """idff, sbcfm: the sigma of their bridge; idff's sampler takes twice as much"""
    spread: float = 0.0
    """cfm, otcfm, fm: constant noise around the straight paths"""

    # ---- training
    steps: int = 4000
    """Training steps; reflow: of each of its two flows"""
    batch_size: int = 128
    """Pairs of a step"""
    lr: float = 5e-3
    """Learning rate at the start; it falls to 0 as a cosine"""
    width: int = 128
    """Units of a hidden layer"""
    depth: int = 3
    """Hidden layers"""
    weights: str = ""
    """A weights.pt or its folder: sample from it, without training"""

    # ---- sampling
    solver: Solver = "auto"
    """auto: idff's own sampler for idff, else midpoint"""
    n_steps: int = 20
    """Intervals of the time grid; the NFE is counted and printed"""
    grid: Grid = "uniform"
    """Time grid"""
    n_samples: int = 2000
    """Samples, compared with as many fresh points of the target"""

    # ---- running
    seed: int = 0
    """One seed for everything"""
    out: str = ""
    """Folder of the results; empty: results/SOURCE-TARGET-METHOD beside the script"""
    smoke: bool = False
    """Seconds: a tiny network and few steps; writes to results/smoke"""


def main() -> None:
    """Train or load, sample, measure, draw."""
    options = cli.parse(Options, description=__doc__)
    name = f"{options.source}-{options.target}-{options.method}"
    if options.smoke:
        options, name = replace(options, steps=20, batch_size=64, width=16, depth=2, n_samples=200), "smoke"
    if options.weights:
        options, net = loaded(options)
        name = f"{options.source}-{options.target}-{options.method}"
    out = Path(options.out) if options.out else HERE / "results" / name
    check(options)
    facts: dict[str, Any] = {}
    if not options.weights:
        net, facts = learnt(options)
        save(out / "weights.pt", net, options)
    facts |= report(net, options, out / "figure.png")
    with atomic_write(out / "results.json") as path:
        path.write_text(json.dumps({"options": asdict(options), **facts}, indent=2) + "\n")
    print(f"results: {out}")


def check(options: Options) -> None:
    """Refuse what cannot work together.

    Raises:
        ValueError: one line that says what to type instead.
    """
    method, bridge = options.method, options.method in ("idff", "sbcfm")
    if method == "fm" and options.source != "gaussian":
        raise ValueError(f"--method fm starts from a Gaussian, not from {options.source}: use --method cfm or otcfm")
    if not bridge and options.sigma != Options.sigma:
        raise ValueError(f"--sigma belongs to the bridges of idff and sbcfm; for {method} give --spread")
    if options.spread and (bridge or method in ("rf", "reflow")):
        raise ValueError(f"--spread belongs to cfm, otcfm and fm, not to {method}; leave it out")
    if options.spread < 0 or min(options.steps, options.width, options.depth) < 1:
        raise ValueError("--spread must be at least 0, and --steps, --width and --depth at least 1")
    if options.solver == "idff" and method != "idff":
        raise ValueError(f"--solver idff needs --method idff, not {method}: use --solver euler")
    if options.solver == "euler_maruyama" and (method == "reflow" or (options.source != "gaussian" and not bridge)):
        raise ValueError(
            f"--solver euler_maruyama needs the score, unknown for {method} from {options.source}: use ab2"
        )


# ---- training


def network(method: str, width: int, depth: int) -> MLP:
    """The network of a method, with fresh weights: one head, or IDFF's two.

    GELU, since with SELU the same training blurs the spirals to a disc (from the Gaussian by rf: W2 0.30, not 0.25).
    """
    from torch import nn

    from common.losses import network_heads
    from common.networks import MLP

    heads = network_heads(method)
    return MLP(2 * heads, width, depth, nn.GELU, out_dim=2 * heads)


def learnt(options: Options) -> tuple[MLP, dict[str, Any]]:
    """The trained network, and the seconds and losses of its training."""
    import torch

    from common import toys
    from common.losses import usual_coupling
    from common.training.small import fit

    start = time.perf_counter()
    torch.manual_seed(options.seed)
    method = "rf" if options.method == "reflow" else options.method
    noise = options.sigma if method in ("idff", "sbcfm") else options.spread
    net = network(method, options.width, options.depth)
    pairs = toys.fresh_pairs(options.source, options.target, usual_coupling(method), options.batch_size, options.seed)
    loss = toys.flow_loss(net, pairs, method, noise, options.seed)
    losses = fit(net, loss, options.steps, options.lr, progress=method)
    if options.method == "reflow":
        x0, x1 = reflow_pairs(net, options.source, 500 if options.smoke else 20_000, options.seed)
        how = {"lr": options.lr, "progress": "reflow"}
        losses += reflow(net, x0, x1, options.steps, options.batch_size, options.seed, **how)
    seconds = time.perf_counter() - start
    last = sum(losses[-100:]) / len(losses[-100:])
    print(
        f"{options.source} -> {options.target}, {options.method}: {len(losses)} steps, {seconds:.1f} s, loss {last:.3f}"
    )
    return net.eval(), {"seconds_training": seconds, "loss": last}


def reflow_pairs(net: MLP, source: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n fresh points of the source and where the flow takes them: 50 midpoint steps, 99 evaluations."""
    from common import toys
    from common.solvers import time_grid

    x0 = toys.sample(source, n, generator(seed, "reflow", "x0"))
    return x0, sample_paths(net, "rf", x0, time_grid(50), "midpoint")[0][-1]


def reflow(
    net: MLP, x0: Tensor, x1: Tensor, n_steps: int, batch_size: int = 256, seed: int = 0, **options: Any
) -> list[float]:
    """Train a rectified flow further, in place, on fixed pairs (x0, x1): the next rectified flow. Returns its losses.

    Args:
        options: of ``common.training.small.fit``.

    Source: Liu et al. 2209.03003, section 2.2, equation 3 with the pairs of the flow before.
    """
    import torch

    from common import toys
    from common.training.small import fit

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x0), (batch_size,), generator=generator(seed, "reflow", step))
        return x0[rows], x1[rows]

    net.train()
    losses = fit(net, toys.flow_loss(net, pairs, "rf", 0.0, seed), n_steps, **options)
    net.eval()
    return losses


# ---- sampling


def sample_paths(
    net: Any, method: str, x0: Tensor, times: Tensor, solver: str = "midpoint", sigma: float = 0.2, seed: int = 0
) -> tuple[Tensor, int]:
    """States at all times, (n + 1, B, 2), from x0 by a solver, and the network evaluations that it took.

    The last step lands on the prediction at t = 1 (of a velocity: an Euler step), where velocities are least accurate.

    Args:
        sigma: idff: that of the training; its sampler runs at twice the value, with noise.
        seed: of the noise of the stochastic solvers.
    """
    import torch

    from common import generate, solvers

    net = generate.CountedNetwork(net)

    def noise(i: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator(seed, "path", i))

    with torch.no_grad():
        velocity = generate.velocity_of(net, method)
        if solver == "idff":
            states = solvers.idff_sampler(generate.heads_of(net), x0, times, 2 * sigma, noise, trajectory=True)
        elif solver == "euler_maruyama":
            drift, diffusion = generate.sde_of(net, method, sigma)
            states = solvers.euler_maruyama(drift, diffusion, x0, times, noise, trajectory=True)
        elif method == "idff":  # the bridge's velocity is infinite at t = 1: land on the data head
            states = x0[None]
            if len(times) > 2:
                states = solvers.integrate(velocity, x0, times[:-1], solver, trajectory=True)
            end = generate.heads_of(net)(states[-1], times[-2].expand(len(x0)))[0]
            states = torch.cat([states, end[None]])
        else:
            states = solvers.integrate(velocity, x0, times, solver, trajectory=True, final_euler=True)
    return states, net.nfe


def log_density(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor, solver: str = "rk4") -> Tensor:
    """log p_1(x) of a flow from N(0, I), by the change of variables; (B,).

    log p_1(x(1)) = log p_0(x(0)) - int_0^1 div v(x(t), t) dt along the path that ends in x, followed backwards. The
    divergence is exact: D backward passes for D features at each evaluation of the velocity.

    Args:
        velocity: velocity(x, t), differentiable, rows independent of each other.
        x: (B, D).
        times: ascending nodes from 0 to 1.

    Source: Chen et al. 1806.07366, theorem 1.
    """
    import math

    import torch

    from common.solvers import integrate

    def slope(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            z = state[:, :-1].detach().requires_grad_()
            v = velocity(z, t)
            rows = [torch.autograd.grad(v[:, k].sum(), z, retain_graph=True)[0][:, k] for k in range(z.shape[1])]
        return torch.cat([v, torch.stack(rows).sum(0)[:, None]], dim=1).detach()

    with torch.no_grad():
        end = integrate(slope, torch.cat([x, x.new_zeros(len(x), 1)], dim=1), times.flip(0), solver)
    x0, change = end[:, :-1], end[:, -1]
    return change - x0.square().sum(1) / 2 - x0.shape[1] / 2 * math.log(2 * math.pi)


# ---- measuring and drawing


def report(net: MLP, options: Options, picture: Path) -> dict[str, Any]:
    """Sample, print the measurements and draw the figure; the measurements."""
    from common import metrics, toys
    from common.solvers import time_grid

    def fresh(name: str, what: str) -> Tensor:
        return toys.sample(name, options.n_samples, generator(options.seed, "test", what))

    solver = {"auto": "idff" if options.method == "idff" else "midpoint"}.get(options.solver, options.solver)
    x0, target, other = fresh(options.source, "x0"), fresh(options.target, "x1"), fresh(options.target, "other")
    start = time.perf_counter()
    how = (solver, options.sigma, options.seed)
    states, nfe = sample_paths(net, options.method, x0, time_grid(options.n_steps, options.grid), *how)
    seconds = time.perf_counter() - start
    fine = time_grid(100)
    ode = sample_paths(net, options.method, x0, fine, "euler")[0]
    facts = {
        "solver": solver,
        "nfe": nfe,
        "w2": metrics.wasserstein2(states[-1], target),
        "w2_of_two_real_samples": metrics.wasserstein2(other, target),
        "straightness": metrics.straightness(ode, fine),
        "seconds_sampling": seconds,
    }
    print(
        f"{solver}, {options.n_steps} steps: NFE {nfe}, W2 {facts['w2']:.3f} "
        f"(two real samples: {facts['w2_of_two_real_samples']:.3f}), "
        f"straightness {facts['straightness']:.3f} (0: straight), {seconds:.2f} s for {options.n_samples} samples"
    )
    draw(net, options, solver, states, target, facts, picture)
    return facts


def draw(
    net: MLP, options: Options, solver: str, states: Tensor, target: Tensor, facts: dict[str, Any], picture: Path
) -> None:
    """Source, paths, samples beside the target, and the density that the flow gives."""
    from common import plots

    limit = plots.limit_of(states[0], target)
    title, image = density(net, options, solver, limit)
    titles = [
        f"source: {options.source}",
        f"{options.method}, {solver}: {facts['nfe']} evaluations",
        f"samples: W2 {facts['w2']:.2f} (real {facts['w2_of_two_real_samples']:.2f})",
        f"target: {options.target}",
        title,
    ]
    figure, axes = plots.panels(titles, limit)
    plots.points(axes[0], states[0], plots.SOURCE)
    plots.paths(axes[1], states)
    plots.points(axes[2], states[-1])
    plots.points(axes[3], target, plots.TARGET)
    plots.image(axes[4], image, limit)
    plots.save(figure, picture, dpi=120, crop=False)


def density(net: MLP, options: Options, solver: str, limit: float, bins: int = 100) -> tuple[str, Tensor]:
    """A title and a picture of the density at t = 1: the ODE's where the source's is known, else 50,000 samples'."""
    from common import generate, plots, toys
    from common.solvers import time_grid

    if options.source == "gaussian" and options.method != "idff" and solver != "euler_maruyama":
        velocity = generate.velocity_of(net, options.method)
        exact = log_density(velocity, plots.mesh(limit, bins), time_grid(10)).exp()
        return "density of the ODE", exact.reshape(bins, bins)
    x0 = toys.sample(options.source, 50_000, generator(options.seed, "density"))
    times = time_grid(options.n_steps, options.grid)
    end = sample_paths(net, options.method, x0, times, solver, options.sigma, options.seed)[0][-1]
    return "density of 50,000 samples", plots.histogram(end, limit, bins)


# ---- files


def save(path: Path, net: MLP, options: Options) -> None:
    """Write the weights and what describes them, as tensors and primitives."""
    from common import checkpoint

    about = {key: getattr(options, key) for key in LEARNT}
    checkpoint.save(path, {"format": FORMAT, "options": about, "net_model": net.state_dict()})


def loaded(options: Options) -> tuple[Options, MLP]:
    """The options with what the weights were trained for, and their network.

    Raises:
        ValueError: the file is of another kind, or a flag contradicts it.
    """
    from common import checkpoint

    path = Path(options.weights)
    state = checkpoint.load(path / "weights.pt" if path.is_dir() else path)
    if state.get("format") != FORMAT:
        raise ValueError(f"{options.weights} holds no flow of toys.py: give a weights.pt that it wrote")
    about = state["options"]
    for key in LEARNT:
        if not options.smoke and getattr(options, key) not in (getattr(Options, key), about[key]):
            raise ValueError(f"--{key} {getattr(options, key)}, but {options.weights} has {about[key]}: drop --{key}")
    net = network(about["method"], about["width"], about["depth"])
    net.load_state_dict(state["net_model"])
    return replace(options, **about), net.eval()


if __name__ == "__main__":
    run_main(main)
