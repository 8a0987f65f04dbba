"""toys.py: its options, and the run from training or weights to numbers and a picture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common.cli import validate
from common.cli.configs import among, check_bridge
from common.cli.ranges import Count, NotNegative, Positive, Seed
from common.runtime import generator, number_of, reading, write_json

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
HERE = Path(__file__).resolve().parent
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
    method: Annotated[str, among("cfm", "otcfm", "fm", "sbcfm", "rf", "idff", "reflow")] = "otcfm"
    """cfm, otcfm, fm (Lipman), sbcfm, rf (rectified flow), idff, or reflow: rf again, on the pairs that rf makes"""
    sigma: NotNegative = 0.2
    """idff, sbcfm: the sigma of their bridge; idff's sampler takes twice as much"""
    spread: NotNegative = 0.0
    """cfm, otcfm, fm: constant noise around the straight paths"""

    # ---- training
    steps: Count = 4000
    """Training steps; reflow: of each of its two flows"""
    batch_size: Count = 128
    """Pairs of a step"""
    lr: Positive = 5e-3
    """Learning rate at the start; it falls to 0 as a cosine"""
    width: Count = 128
    """Units of a hidden layer"""
    depth: Count = 3
    """Hidden layers"""
    weights: str = ""
    """A weights.pt or its folder: sample from it, without training"""

    # ---- sampling
    solver: Solver = "auto"
    """auto: idff's own sampler for idff, else midpoint"""
    n_steps: Count = 20
    """Intervals of the time grid; the NFE is counted and printed"""
    grid: Grid = "uniform"
    """Time grid"""
    n_samples: Count = 2000
    """Samples, compared with as many fresh points of the target"""

    # ---- running
    seed: Seed = 0
    """One seed for everything"""
    out: str = ""
    """Folder of the results; empty: results/SOURCE-TARGET-METHOD beside the script"""
    smoke: bool = False
    """Seconds: a tiny network and few steps; writes to results/smoke"""


def run(options: Options) -> None:
    """Train or load, sample, measure, draw."""
    name = f"{options.source}-{options.target}-{options.method}"
    if options.smoke:
        options, name = replace(options, steps=20, batch_size=64, width=16, depth=2, n_samples=200), "smoke"
    if options.weights:
        options, net = loaded(options)
        name = "smoke" if options.smoke else f"{options.source}-{options.target}-{options.method}"
    out = Path(options.out) if options.out else HERE / "results" / name
    check(options)
    facts: dict[str, Any] = {}
    if not options.weights:
        net, facts = learnt(options)
        save(out / "weights.pt", net, options)
    facts |= report(net, options, out / "figure.png")
    write_json(out / "results.json", {"options": asdict(options), **facts})
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
    if bridge:
        check_bridge(method, options.sigma)
    if options.solver == "idff" and method != "idff":
        raise ValueError(f"--solver idff needs --method idff, not {method}: use --solver euler")
    if options.solver == "euler_maruyama" and (method == "reflow" or (options.source != "gaussian" and not bridge)):
        raise ValueError(
            f"--solver euler_maruyama needs the score, unknown for {method} from {options.source}: use ab2"
        )


def noise_of(options: Options) -> float:
    """The sigma of the method's path: a bridge's, or the constant spread of the others."""
    return options.sigma if options.method in ("idff", "sbcfm") else options.spread


# ---- training


def learnt(options: Options) -> tuple[MLP, dict[str, Any]]:
    """The trained network, and the seconds and losses of its training."""
    import torch

    from common.methods import METHODS
    from common.training import small
    from plane import flow_of, network, reflow, reflow_pairs

    start = time.perf_counter()
    torch.manual_seed(options.seed)
    method = flow_of(options.method)
    net = network(method, options.width, options.depth)
    pairs = small.fresh_pairs(
        options.source, options.target, METHODS[method].coupling, options.batch_size, options.seed
    )
    loss = small.flow_loss(net, pairs, method, noise_of(options), options.seed)
    losses = small.fit(net, loss, options.steps, options.lr, progress=method)
    if options.method == "reflow":
        x0, x1 = reflow_pairs(net, options.source, 500 if options.smoke else 20_000, options.seed)
        how = {"lr": options.lr, "progress": "reflow"}
        losses += reflow(net, x0, x1, options.steps, options.batch_size, options.seed, **how)
    seconds = time.perf_counter() - start
    last = sum(losses[-100:]) / len(losses[-100:])
    print(
        f"{options.source} -> {options.target}, {options.method}: {number_of(len(losses), 'step')}, "
        f"{seconds:.1f} s, loss {last:.3f}"
    )
    return net.eval(), {"seconds_training": seconds, "loss": last}


# ---- measuring and drawing


def report(net: MLP, options: Options, picture: Path) -> dict[str, Any]:
    """Sample, print the measurements and draw the figure; the measurements."""
    from common import metrics
    from common.data import toys
    from common.solvers import time_grid
    from plane import sample_paths

    def fresh(name: str, what: str) -> Tensor:
        return toys.sample(name, options.n_samples, generator(options.seed, "test", what))

    solver = {"auto": "idff" if options.method == "idff" else "midpoint"}.get(options.solver, options.solver)
    x0, target, other = fresh(options.source, "x0"), fresh(options.target, "x1"), fresh(options.target, "other")
    start = time.perf_counter()
    how = (solver, noise_of(options), options.seed)
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
        f"{solver}, {number_of(options.n_steps, 'step')}: NFE {nfe}, W2 {facts['w2']:.3f} "
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
    from plane import image

    limit = plots.limit_of(states[0], target)
    title, values = density(net, options, solver, limit)
    titles = [
        f"source: {options.source}",
        f"{options.method}, {solver}: {number_of(facts['nfe'], 'evaluation')}",
        f"samples: W2 {facts['w2']:.2f} (real {facts['w2_of_two_real_samples']:.2f})",
        f"target: {options.target}",
        title,
    ]
    figure, axes = plots.panels(titles, limit)
    plots.points(axes[0], states[0], plots.SOURCE)
    plots.paths(axes[1], states)
    plots.points(axes[2], states[-1])
    plots.points(axes[3], target, plots.TARGET)
    image(axes[4], values, limit)
    plots.save(figure, picture, dpi=120, crop=False)


def density(net: MLP, options: Options, solver: str, limit: float, bins: int = 100) -> tuple[str, Tensor]:
    """A title and a picture of the density at t = 1: the ODE's where the source's is known, else 50,000 samples'."""
    from common import generate
    from common.data import toys
    from common.solvers import time_grid
    from plane import flow_of, histogram, log_density, mesh, sample_paths

    if options.source == "gaussian" and options.method != "idff" and solver != "euler_maruyama":
        velocity = generate.velocity_of(net, flow_of(options.method))
        exact = log_density(velocity, mesh(limit, bins), time_grid(10)).exp()
        return "density of the ODE", exact.reshape(bins, bins)
    x0 = toys.sample(options.source, 50_000, generator(options.seed, "density"))
    times = time_grid(options.n_steps, options.grid)
    end = sample_paths(net, options.method, x0, times, solver, noise_of(options), options.seed)[0][-1]
    return "density of 50,000 samples", histogram(end, limit, bins)


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
    from plane import network

    path = Path(options.weights)
    state = checkpoint.load(path / "weights.pt" if path.is_dir() else path)
    if state.get("format") != FORMAT:
        raise ValueError(f"{options.weights} holds no flow of toys.py: give a weights.pt that it wrote")
    with reading(options.weights, "copy it again, or train it anew"):
        about = {key: state["options"][key] for key in LEARNT}
        known = replace(options, **about)
        validate(known)
        net = network(known.method, known.width, known.depth)
        checkpoint.take_weights(net, state["net_model"])
    for key in LEARNT:
        if not options.smoke and getattr(options, key) not in (getattr(Options, key), about[key]):
            raise ValueError(f"--{key} {getattr(options, key)}, but {options.weights} has {about[key]}: drop --{key}")
    return known, net.eval()
