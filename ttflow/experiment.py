"""One experiment: a train and a network fitted to the same data, sampled from the same noise, measured the same way."""

from __future__ import annotations

import hashlib
import math
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from common.cli import validate, with_values
from common.cli.files import read_values
from common.cli.values import field_types
from common.records.cards import commit, without_folders
from common.runtime import generator, read_json, write_json
from ttflow import hopt, network, score
from ttflow.baselines import mixture
from ttflow.datasets import TWELVE, Data, load
from ttflow.draws import data_pairs, on_lines, posterior_means
from ttflow.exported import check_path, export
from ttflow.options import SMOKE, Options
from ttflow.panels import comparison
from ttflow.recflow import SWEEPS, Shape, TTVelocity, fit_velocity, frame_of, on_mixture
from ttflow.sweeper import Adapt, Sweeps


def run(options: Options, out: Path) -> dict[str, Any]:
    """Fits, samples, measures, writes; returns what results.json holds."""
    if options.smoke:
        options = replace(options, **SMOKE)  # type: ignore[arg-type]
    validate(options)
    if options.export:
        check_path(options.export)
    data = _data(options)
    flows: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    flows["tt"], facts["tt"] = _train_of(options, data, out)
    if not options.tt_only:
        flows["network"], facts["network"] = _network_of(options, data)
    return _report(options, data, flows, facts, out)


class Results(TypedDict):
    """results.json, as far as it is always read again."""

    options: dict[str, Any]
    tt: dict[str, Any]


def again(out: Path, **changes: Any) -> dict[str, Any]:
    """Measures the flows that a run left in its folder once more, with some options changed; returns and writes all.

    Raises:
        FileNotFoundError: the folder lacks results.json or a flow.
        ValueError: a file that no run wrote.
    """
    before = read_json(out / "results.json", Results)
    values = {k: v for k, v in before["options"].items() if k in field_types(Options)}
    options = with_values(Options(), read_values(Options, values, f"{out / 'results.json'}") | changes)
    validate(options)
    flows: dict[str, Any] = {"tt": TTVelocity.load(out / "tt.pt")}
    if "network" in before:
        flows["network"] = network.load(out / "network.pt")
    facts = {name: before[name] for name in flows}
    return _report(options, _data(options), flows, facts, out)


def _data(options: Options) -> Data:
    """The set that the options name."""
    data = load(options.dataset_name, options.n_train, options.n_test, options.seed, options.sinkhorn_draws)
    if options.smoke:
        data = replace(data, few=data.few[:, : options.n_test], few_again=data.few_again[:, : options.n_test])
    return data


def _report(options: Options, data: Data, flows: dict[str, Any], facts: dict[str, Any], out: Path) -> dict[str, Any]:
    """Samples, measures, writes and prints."""
    points = {name: _measure(name, flow, facts[name], options, data) for name, flow in flows.items()}
    results = {
        "dataset": data.name,
        "floor": _distances(data.again, data.few_again, data, options),
        **facts,
        **({"columns": asdict(data.units)} if data.units else {}),
        "sinkhorn": {"p": 2, "blur": score.BLUR, "points": data.few.shape[1], "draws": len(data.few)},
        "w2": {"points": len(data.test)},
        "options": asdict(options),
        "command": without_folders(sys.argv),
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }
    _write(options, out, flows, results, points, data)
    print(table(results))
    print(f"wrote {out}: figure.png, results.json" + "".join(f", {name}.pt" for name in flows))
    return results


# -------------------------------------------------------------------------------------------------------------- a train
def _train_of(options: Options, data: Data, out: Path) -> tuple[TTVelocity, dict[str, Any]]:
    """The train that the options ask for, and what is to be said about its fit."""
    if options.use_best_model:
        path = out / "best_model.pt"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: run once with --hopt, which writes it")
        return _with_size(TTVelocity.load(path), {"fit_seconds": 0.0, "loaded": True})
    (shape, sweeps), fitting = plan(options, data.dim), Fitting(options, data)
    if options.rank and not options.hopt and shape.n_parameters(data.dim) > len(data.train):
        size = f"{shape.n_parameters(data.dim):,} parameters for {len(data.train):,} points"
        raise ValueError(f"--rank {options.rank} has {size}: give a lower rank, fewer --n-centers or more --n-train")
    extra: dict[str, Any] = {}
    if options.hopt:
        begin = time.perf_counter()
        shape, sweeps, extra["search_error"] = fitting.search(shape, sweeps, out / "study.db")
        extra["search_seconds"] = time.perf_counter() - begin
    begin = time.perf_counter()
    velocity, history = fitting.fit(shape, sweeps, progress="train")
    choices = asdict(shape) | asdict(sweeps)
    extra |= {"fit_seconds": time.perf_counter() - begin, "choices": choices, "sweeps": len(history)}
    extra["validation"] = min(row["validation"] for row in history)
    if options.verbose > 1:
        for row in history:
            errors = f"error {row['train']:.4f}, held out {row['validation']:.4f}"
            print(f"sweep {row['sweep']}: {errors}, ranks {row['ranks']}")
    if options.hopt:
        out.mkdir(parents=True, exist_ok=True)
        velocity.save(out / "best_model.pt")
    return _with_size(velocity, extra)


def _with_size(velocity: TTVelocity, extra: dict[str, Any]) -> tuple[TTVelocity, dict[str, Any]]:
    """The train, and its facts with its size."""
    facts = {"parameters": velocity.n_parameters, "bytes": velocity.n_bytes, "ranks": velocity.train_.ranks}
    return velocity, facts | extra


def plan(options: Options, dim: int) -> tuple[Shape, Sweeps]:
    """The train that the options name and how it is fitted; what they leave open depends on the dimension.

    Raises:
        ValueError: no such position of t.
    """
    # measured (benchmarks/LOG.md): beside the coordinate of most variance in three dimensions, of least in two
    time_at = (0 if dim == 3 else dim) if options.time_at is None else options.time_at
    if time_at > dim:
        raise ValueError(f"--time-at is {time_at}: the positions are 0 to {dim}")
    adapt = None if options.rank or options.hopt else Adapt(16 if dim < 4 else 8, budget(options, dim))
    shape = Shape(
        options.bases,
        options.n_centers or (36 if dim < 3 else 20 if dim == 3 else 8),
        {"length": options.length_scale} if options.length_scale and options.bases == "rbf" else None,
        n_time=14 if dim < 3 else 8,
        rank=options.rank or 4,
        time_at=time_at,
        seed=options.seed,
    )
    # in many dimensions the outputs move, else the parts beside a core carry them all, which costs dim times as much
    sweeps = replace(SWEEPS, n_sweeps=options.sweeps, ridge=options.reg_coeff, moves=dim > 8, adapt=adapt)
    return shape, sweeps


def budget(options: Options, dim: int) -> int:
    """Most parameters."""
    return options.budget * max(3, dim) // 3


class Fitting:
    """Draws and frame of a data set, made once for all trains that are fitted to it."""

    def __init__(self, options: Options, data: Data) -> None:
        self.options, self.dim = options, data.dim
        self.points = torch.cat([data.train, data.validation]).cpu().numpy()
        n = options.n_pairs or (60_000 if data.dim < 4 else 20_000)
        pairs = data_pairs(data.train, min(n, 20_000), options.coupling, options.seed)
        self.frame = frame_of(*pairs(0), rotate=options.rotate)
        if options.components:
            self.put_on(mixture(data.train.double().cpu().numpy(), options.components, options.seed))
        self.draw = self._draw(data.train, n, options.seed, 512)
        # the same held-out rows for every train, with means over as many data as there are
        self.held_out = self._draw(data.validation, min(20_000, n), options.seed + 1, 5000)(0)

    def put_on(self, mixture: Any) -> None:
        """From here on trains are fitted to what the flow of a mixture of scikit-learn lacks."""
        parts = (mixture.weights_, mixture.means_, mixture.covariances_)
        self.frame = on_mixture(self.frame, *map(torch.from_numpy, parts))

    def _draw(self, x1: Tensor, n: int, seed: int, block: int):
        """Straight paths, their velocities with as little noise as the coupling allows."""
        if self.options.coupling == "independent":
            return posterior_means(x1, n, seed, block)
        return on_lines(data_pairs(x1, n, self.options.coupling, seed), seed)

    def fit(
        self, shape: Shape, sweeps: Sweeps, progress: bool | str = False
    ) -> tuple[TTVelocity, list[dict[str, Any]]]:
        """A train of this shape."""
        progress = progress if self.options.verbose else False
        return fit_velocity(self.draw, self.frame, shape, sweeps, self.held_out, progress)

    def search(self, shape: Shape, sweeps: Sweeps, path: Path) -> tuple[Shape, Sweeps, float]:
        """The best shape and sweeps, and their validation error; see ``hopt``."""

        def error(shape: Shape, sweeps: Sweeps) -> float:
            return min(row["validation"] for row in self.fit(shape, sweeps)[1])

        def size(shape: Shape) -> int:
            return shape.n_parameters(self.dim)

        options = self.options
        most = budget(options, self.dim)
        about = {key: getattr(options, key) for key in ("coupling", "n_pairs", "seed")} | {"budget": most}
        about |= {"components": options.components} if options.components else {}
        about |= {} if options.rotate else {"rotate": False}
        about |= {"sweeps": asdict(sweeps), "data": hashlib.sha256(self.points.tobytes()).hexdigest()[:16]}
        return hopt.search(error, size, shape, sweeps, options.hopt_max_eval, most, path, options.verbose > 0, about)


# ------------------------------------------------------------------------------------------------------------ a network
def _network_of(options: Options, data: Data) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network, and what is to be said about it."""
    more = {"n_steps": options.nn_steps, "seed": options.seed, "progress": "network" if options.verbose else False}
    velocity, seconds = network.train(data.train.to(options.device), options.network, **more)
    n: Any = velocity.n_parameters
    return velocity, {"parameters": n, "bytes": 4 * n, "fit_seconds": seconds, "recipe": options.network}


# ----------------------------------------------------------------------------------------------------------- measuring
def _measure(name: str, flow: torch.nn.Module, facts: dict[str, Any], options: Options, data: Data) -> Tensor:
    """Adds distances, seconds and NFE to the facts; returns the points."""
    solver = options.odesolve_method_tt if name == "tt" else options.odesolve_method_nn
    dtype = getattr(torch, options.dtype)
    flow.to(device=options.device, dtype=dtype)
    few = [score.sample(flow, noise, solver, options.n_steps) for noise in noise_like(data.few, options, "few")]
    points, _, nfe = score.sample(flow, noise_like(data.test, options, "test"), solver, options.n_steps)
    facts |= _distances(points, torch.stack([each for each, _, _ in few]), data, options)
    seconds = statistics.median(seconds for _, seconds, _ in few)
    facts |= {"sampling_seconds": seconds, "nfe": nfe, "solver": solver, "n_steps": options.n_steps}
    if data.name not in TWELVE:
        rows = data.test[:500].to(device=options.device, dtype=dtype)
        scales = data.units.scale if data.units else ()  # the density is that of the table's own units
        facts["nll"] = score.negative_log_likelihood(flow, rows, min(options.n_steps, 50)) + sum(map(math.log, scales))
    return points


def noise_like(like: Tensor, options: Options, what: str) -> Tensor:
    """Standard normal, of the same shape; the same for all flows."""
    noise = torch.randn(like.shape, generator=generator(options.seed, "noise", what))
    return noise.to(device=options.device, dtype=getattr(torch, options.dtype))


def _distances(points: Tensor, few: Tensor, data: Data, options: Options) -> dict[str, Any]:
    """``score.distances`` with a line that says that it takes long."""
    if options.verbose:
        what = f"W2 of {len(points):,} points, Sinkhorn's divergence of {len(few)} times {few.shape[1]:,}"
        print(f"{what}: up to a minute", file=sys.stderr)
    return score.distances(points.float(), few.float(), data)


# ------------------------------------------------------------------------------------------------------------- results
def _write(
    options: Options,
    out: Path,
    flows: dict[str, Any],
    results: dict[str, Any],
    points: dict[str, Tensor],
    data: Data,
) -> None:
    """Models, numbers and picture."""
    if "network" in results:
        results["compression"] = results["network"]["parameters"] / results["tt"]["parameters"]
    out.mkdir(parents=True, exist_ok=True)
    for flow in flows.values():
        flow.cpu().float()
    flows["tt"].save(out / "tt.pt")
    if options.export:
        export(flows["tt"], options.export)
        print(f"wrote {options.export} and {Path(options.export).with_suffix('.py')}")
    if "network" in flows:
        flows["network"].save(out / "network.pt")
    comparison(data, points, results, out / "figure.png")
    write_json(out / "results.json", results)


def table(results: dict[str, Any]) -> str:
    """Data, train and network as lines of text."""
    head = f"{'':9}{'parameters':>11}{'Sinkhorn':>10}{'W2':>8}{'MMD':>9}{'outliers':>10}"
    head += f"{'fit s':>8}{'sample s':>10}{'NFE':>5}"
    nll = "nll" in results["tt"]
    lines = [head + (f"{'nats':>8}" if nll else "")]
    for name in ("floor", "tt", "network"):
        row = results.get(name)
        if not row:
            continue
        line = f"{name:9}{row.get('parameters', ''):>11}{row['sinkhorn']:>10.4f}{row['w2']:>8.3f}{row['mmd']:>9.5f}"
        line += f"{row['outliers']:>10.2%}"
        if name != "floor":
            line += f"{row['fit_seconds']:>8.1f}{row['sampling_seconds']:>10.2f}{row['nfe']:>5}"
            line += f"{row['nll']:>8.2f}" if nll else ""
        lines.append(line)
    return "\n".join(lines)
