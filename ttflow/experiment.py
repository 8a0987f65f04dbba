"""One experiment: a train and a network fitted to the same data, sampled from the same noise, measured the same way."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.records.cards import commit, without_folders
from common.runtime import generator, read_json, write_json
from ttflow import hopt, network, score
from ttflow.bases import make
from ttflow.datasets import TWELVE, Data, load
from ttflow.options import SMOKE, Options, check
from ttflow.panels import comparison
from ttflow.recflow import TTVelocity, data_pairs, fit_velocity, frame_of, on_lines, posterior_means
from ttflow.tt import feasible_ranks


def run(options: Options, out: Path) -> dict[str, Any]:
    """Fits, samples, measures, writes; returns what results.json holds."""
    if options.smoke:
        options = replace(options, **SMOKE)  # type: ignore[arg-type]
    check(options)
    data = _data(options)
    flows: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    flows["tt"], facts["tt"] = _train_of(options, data, out)
    if not options.tt_only:
        flows["network"], facts["network"] = _network_of(options, data)
    return _report(options, data, flows, facts, out)


def again(out: Path, **changes: Any) -> dict[str, Any]:
    """Measures the flows that a run left in its folder once more, with some options changed; returns and writes all.

    Raises:
        FileNotFoundError: the folder lacks results.json or a flow.
        ValueError: a file that no run wrote.
    """
    before = read_json(out / "results.json")
    known = {field.name for field in fields(Options)}
    options = replace(Options(**{k: v for k, v in before["options"].items() if k in known}), **changes)
    check(options)
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
    made = {name: _measure(name, flow, facts[name], options, data) for name, flow in flows.items()}
    results = {
        "dataset": data.name,
        "floor": _distances(data.again, data.few_again, data, options),
        **facts,
        "sinkhorn": {"p": 2, "blur": score.BLUR, "points": data.few.shape[1], "draws": len(data.few)},
        "w2": {"points": len(data.test)},
        "options": asdict(options),
        "command": without_folders(sys.argv),
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }
    _write(out, flows, results, made, data)
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
        return _counted(TTVelocity.load(path), {"fit_seconds": 0.0, "loaded": True})
    fitting = Fitting(options, data)
    chosen = choices(options, data.dim)
    if options.rank and not options.hopt and fitting.size(chosen) > len(data.train):
        too_many = f"--rank {options.rank} has {fitting.size(chosen):,} parameters for {len(data.train):,} points"
        raise ValueError(f"{too_many}: give a lower rank, fewer --n-centers or more --n-train")
    extra: dict[str, Any] = {}
    if options.hopt:
        begin = time.perf_counter()
        chosen, extra["search_error"] = fitting.search(out / "study.db")
        extra["search_seconds"] = time.perf_counter() - begin
    begin = time.perf_counter()
    velocity, history = fitting.fit(chosen, progress="train")
    extra |= {"fit_seconds": time.perf_counter() - begin, "choices": chosen, "sweeps": len(history)}
    extra["validation"] = min(row["validation"] for row in history)
    if options.verbose > 1:
        for row in history:
            errors = f"error {row['train']:.4f}, held out {row['validation']:.4f}"
            print(f"sweep {row['sweep']}: {errors}, ranks {row['ranks']}")
    if options.hopt:
        out.mkdir(parents=True, exist_ok=True)
        velocity.save(out / "best_model.pt")
    return _counted(velocity, extra)


def _counted(velocity: TTVelocity, extra: dict[str, Any]) -> tuple[TTVelocity, dict[str, Any]]:
    """The train, and its facts with its size."""
    facts = {"parameters": velocity.n_parameters, "bytes": velocity.n_bytes, "ranks": velocity.train_.ranks}
    return velocity, facts | extra


def choices(options: Options, dim: int) -> dict[str, Any]:
    """Keywords of ``recflow.fit_velocity`` for options; what they leave open depends on the dimension."""
    n_basis = options.n_centers or (36 if dim < 3 else 20 if dim == 3 else 8)
    chosen: dict[str, Any] = {"n_basis": n_basis, "n_time": 14 if dim < 3 else 8, "ridge": options.reg_coeff}
    if options.length_scale and options.bases == "rbf":
        chosen["length"] = options.length_scale
    if options.rank:
        return chosen | {"rank": options.rank}
    return chosen | {"rank": 4, "adapt": True, "max_rank": 16 if dim < 4 else 8, "budget": budget(options, dim)}


def budget(options: Options, dim: int) -> int:
    """Most parameters."""
    return options.budget * max(3, dim) // 3


class Fitting:
    """Draws and frame of a data set, made once for all trains that are fitted to it."""

    def __init__(self, options: Options, data: Data) -> None:
        self.options, self.dim = options, data.dim
        # measured (benchmarks/LOG.md): beside the coordinate of most variance in three dimensions, of least in two
        self.time_at = options.time_at if options.time_at >= 0 else 0 if data.dim == 3 else data.dim
        if self.time_at > data.dim:
            raise ValueError(f"--time-at is {options.time_at}: the positions are 0 to {data.dim}, -1 for the default")
        n = options.n_pairs or (60_000 if data.dim < 4 else 20_000)
        pairs = data_pairs(data.train, min(n, 20_000), options.coupling, options.seed)
        self.frame = frame_of(*pairs(0))
        self.draw = self._draw(data.train, n, options.seed, 512)
        # the same held-out rows for every train, with means over as many data as there are
        self.held_out = self._draw(data.validation, min(20_000, n), options.seed + 1, 5000)(0)

    def _draw(self, x1: Tensor, n: int, seed: int, block: int):
        """Straight paths, their velocities with as little noise as the coupling allows."""
        if self.options.coupling == "independent":
            return posterior_means(x1, n, seed, block)
        return on_lines(data_pairs(x1, n, self.options.coupling, seed), seed)

    def fit(self, chosen: dict[str, Any], progress: bool | str = False) -> tuple[TTVelocity, list[dict[str, Any]]]:
        """A train with these choices."""
        chosen = dict(chosen)
        basis = chosen.pop("basis", self.options.bases)
        basis_options = {"length": chosen.pop("length")} if "length" in chosen else None
        return fit_velocity(
            self.draw,
            self.frame,
            basis,
            basis_options=basis_options,
            validation=self.held_out,
            sweeps=self.options.sweeps,
            seed=self.options.seed,
            time_at=self.time_at,
            moves=self.dim > 8,  # else the parts beside a core carry all outputs, which costs dim times as much
            progress=progress if self.options.verbose else False,
            **chosen,
        )

    def search(self, path: Path) -> tuple[dict[str, Any], float]:
        """The best choices and their validation error; see ``hopt``."""
        options = self.options
        more = {"seed": options.seed, "budget": budget(options, self.dim), "progress": options.verbose > 0}
        return hopt.search(self._error, self.size, options.bases, options.hopt_max_eval, path, **more)

    def _error(self, chosen: dict[str, Any]) -> float:
        """Validation error of a train with these choices."""
        return min(row["validation"] for row in self.fit(chosen)[1])

    def size(self, chosen: dict[str, Any]) -> int:
        """Parameters of a train with these choices."""
        widths = [make(chosen.get("basis", self.options.bases), chosen["n_basis"], 0.0, 1.0).n] * self.dim
        widths.insert(self.time_at, make("legendre", chosen["n_time"], 0.0, 1.0).n * self.dim)  # and the outputs
        ranks = [1, *feasible_ranks(widths, chosen["rank"]), 1]
        return sum(a * n * b for a, n, b in zip(ranks[:-1], widths, ranks[1:]))


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
    seconds = statistics.median(took for _, took, _ in few)
    facts |= {"sampling_seconds": seconds, "nfe": nfe, "solver": solver, "n_steps": options.n_steps}
    if data.name not in TWELVE:
        rows = data.test[:500].to(device=options.device, dtype=dtype)
        facts["nll"] = score.negative_log_likelihood(flow, rows, min(options.n_steps, 50))
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
def _write(out: Path, flows: dict[str, Any], results: dict[str, Any], made: dict[str, Tensor], data: Data) -> None:
    """Models, numbers and picture."""
    if "network" in results:
        results["compression"] = results["network"]["parameters"] / results["tt"]["parameters"]
    out.mkdir(parents=True, exist_ok=True)
    for flow in flows.values():
        flow.cpu().float()
    flows["tt"].save(out / "tt.pt")
    if "network" in flows:
        flows["network"].save(out / "network.pt")
    comparison(data, made, results, out / "figure.png")
    write_json(out / "results.json", results)


def table(results: dict[str, Any]) -> str:
    """Data, train and network as lines of text."""
    head = f"{'':9}{'parameters':>11}{'Sinkhorn':>10}{'W2':>8}{'MMD':>9}{'fit s':>8}{'sample s':>10}{'NFE':>5}"
    nll = "nll" in results["tt"]
    lines = [head + (f"{'nats':>8}" if nll else "")]
    for name in ("floor", "tt", "network"):
        row = results.get(name)
        if not row:
            continue
        line = f"{name:9}{row.get('parameters', ''):>11}{row['sinkhorn']:>10.4f}{row['w2']:>8.3f}{row['mmd']:>9.5f}"
        if name != "floor":
            line += f"{row['fit_seconds']:>8.1f}{row['sampling_seconds']:>10.2f}{row['nfe']:>5}"
            line += f"{row['nll']:>8.2f}" if nll else ""
        lines.append(line)
    return "\n".join(lines)
