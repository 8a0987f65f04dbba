"""From the words of a command line to a network, its solver and its times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from common import checkpoint, generate, networks
from common.cli.configs import SampleConfig, TrainConfig
from common.generate import Guide, Sampler
from common.methods import method_of
from common.runtime import file_hash, keep_freed_memory, pick_device
from common.scripts.folder import FEW, Folder, smoke_preset
from common.solvers import fitted
from common.solvers.fitted import Teacher, VelocityFor
from common.solvers.grids import partition, segment_costs

Config = TypeVar("Config", bound=SampleConfig)
Batch = TypeVar("Batch", bound=tuple[Any, ...])

# What "auto" is where no sampler was fitted: the best of the plain solvers over 5 to 20 evaluations on the shipped
# weights, see benchmarks/few_step.py.
SOLVER, GRID = "unipc2", "uniform"
LARGEST = 32  # steps up to which adaptive grids are kept
FIT_NOISE, TEST_NOISE = "fit", "fit-test"  # streams of noise that no sample uses


def make_sampler(
    folder: Folder, config: SampleConfig, extra: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The sampler that a command line asks for, and what its weights file says about itself.

    Args:
        extra: options of ``TrainConfig`` that are known of the weights, see ``common.checkpoint.load_network``.

    Raises:
        FileNotFoundError: there are no weights; the line says how to train them.
    """
    net, info = read_network(folder, config, extra)
    return sampler_of(net, info, folder, config), info


def read_network(
    folder: Folder, config: SampleConfig, extra: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The network of the weights that a command line asks for, on its device, and what their file says about it."""
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    path = folder.find_weights(config.weights, takes_few(folder, config))
    if config.smoke and not config.weights and not path.exists():
        net, info = _untrained(smoke_preset(next(iter(folder.presets.values()))))
    elif not path.exists() and not config.weights:
        script = min(folder.here.glob("*train*.py"), default=folder.here / "train.py").name
        raise FileNotFoundError(f"there are no weights at {path}: train them with python {script}, or give --weights")
    else:
        net, info = checkpoint.load_network(path, ema=config.ema, extra=extra)
        for line in info.get("report", ()):
            print(line)
    net: Any = net.to(device, memory_format=torch.channels_last)  # type: ignore[no-redef, call-overload]
    return net, info | {"path": str(path)}


def sampler_of(net: Any, info: Mapping[str, Any], folder: Folder, config: SampleConfig) -> Sampler:
    """The sampler that a command line asks for, of what :func:`read_network` gave.

    Raises:
        ValueError: these weights cannot do what is asked for.
    """
    path, method = Path(info["path"]), info["method"]
    record = method_of(method["name"])
    channels = net.out_channels // record.heads
    size = _side(info)
    if not size:
        raise ValueError(f"{path} does not say its image size: give -c with the config.yaml of its run")
    sampler = generate.Sampler(
        torch.compile(net) if config.compile else net,  # type: ignore[arg-type]
        method["name"],
        (channels, size, size),
        method.get("sigma", 0.0),
        coupling=method.get("coupling", "auto"),
        n_steps=config.n_steps or (FEW if record.denoiser else config.usual_steps),
        rtol=config.rtol,
        atol=config.atol,
        cfg=config.cfg,
        seed=config.seed,
        precision=config.mixed_precision,
        landing=config.landing or (1.0 if config.weights or takes_few(folder, config) else folder.landing),
        interval=(config.cfg_interval[0], config.cfg_interval[-1]),
    )
    if config.guide:
        sampler = replace(sampler, guide=read_guide(config, net, info, path))
    if config.cfg != 1 and not config.guide:
        needs, advice = f"--cfg {config.cfg} needs", "or --guide WEIGHTS"
        if generate.real_classes(net) == 0:
            raise ValueError(f"{needs} class-conditional weights; {path.name} is unconditional: give others, {advice}")
        if not net.null_class:
            raise ValueError(
                f"{needs} weights trained with --label_dropout > 0; {path.name} was not: give others, {advice}"
            )
    generate.labels_for([0], generate.real_classes(net), config.label)  # a wrong label ends it here
    sampler = resolved(sampler, config, fitted_weights(path, config.ema), not folder.ships(path))
    sampler.check()
    sampler.check_interval()
    return sampler


def takes_few(folder: Folder, config: SampleConfig) -> bool:
    """Whether there are weights for few steps, and a call asks for so few and for nothing that they cannot do alike."""
    usual = (config.solver, config.grid, config.cfg, config.guide, config.landing) == ("auto", "auto", 1, "", None)
    return bool(folder.few) and usual and config.n_steps is not None and config.n_steps <= FEW


def read_guide(config: SampleConfig, net: Any, info: Mapping[str, Any], path: Path) -> Guide:
    """The weights of ``--guide``; they must do what the network ``net`` of ``path`` does, of which ``info`` tells.

    Raises:
        FileNotFoundError, ValueError: there are none, or of another method, for other images or classes.
    """
    file = checkpoint.find(Path(config.guide).expanduser(), "--guide")
    guide, about = checkpoint.load_network(file)
    ours, theirs = _task_of(net, info), _task_of(guide, about)
    told = {key: f"{key} {theirs[key]} there, {ours[key]} of {path.name}" for key in ours if theirs[key] != ours[key]}
    if "coupling" in told:  # the marginals of the paths differ a little, as the networks do
        print(f"note: --guide {file}: {told.pop('coupling')}")
    if different := told.values():
        raise ValueError(f"--guide {file} does not fit: {'; '.join(different)}; give worse weights of the same task")
    if same_weights(net, guide):
        raise ValueError(f"--guide {file}: these are the weights that it is to guide; give worse ones")
    guide = guide.to(next(net.parameters()).device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generate.Guide(torch.compile(guide) if config.compile else guide, file.name, file_hash(file))  # type: ignore[arg-type]


def same_weights(a: Any, b: Any) -> bool:
    """Whether two networks are one but for the float16 rounding of final weights."""
    ours, theirs = a.state_dict(), b.state_dict()
    alike = ours.keys() == theirs.keys() and all(ours[key].shape == theirs[key].shape for key in ours)
    return alike and all(theirs[key].to(ours[key].device).half().equal(ours[key].half()) for key in ours)


def _task_of(net: Any, info: Mapping[str, Any]) -> dict[str, Any]:
    """What two networks should have in common, if one is to guide the other: all but their inner sizes."""
    method = method_of(info["method"]["name"])
    task = {"method": info["method"]["name"], "sigma": info["method"].get("sigma", 0.0)}
    task |= {"coupling": method.joint(info["method"].get("coupling", "auto")), "image_size": _side(info)}
    return task | {"channels": net.out_channels // method.heads, "num_classes": generate.real_classes(net)}


def _side(info: Mapping[str, Any]) -> int | None:
    """Of the images, where a weights file says it."""
    return info["network"].get("image_size") or info.get("config", {}).get("image_size")


def with_bar(batches: Iterable[Batch], total: int, title: str = "", show: bool = True) -> Iterator[Batch]:
    """Batches (..., images, NFE) as they are, and a progress bar of ``total`` images that shows their NFE."""
    with tqdm(total=total, unit="image", desc=title or None, dynamic_ncols=True, disable=not show) as bar:
        for batch in batches:
            yield batch
            *_, images, nfe = batch
            bar.update(len(images))
            bar.set_postfix(nfe=nfe)


def _untrained(preset: TrainConfig) -> tuple[Any, dict[str, Any]]:
    """A network without training, and what its weights file would say about itself."""
    description = networks.network_description(preset, method_of(preset.method).heads)
    torch.manual_seed(0)
    info = {"network": description, "method": {"name": preset.method, "sigma": preset.sigma}, "step": 0}
    return networks.build_network(description).eval(), info | {"config": {"image_size": preset.image_size}}


def fitted_weights(path: str | Path, ema: bool) -> Path | None:
    """The file of the weights that samplers are fitted to; None: there is none (--smoke), or raw ones are asked for."""
    return checkpoint.find(path) if ema and Path(path).exists() else None


def weights_hash(path: str) -> str:
    """SHA-256 of a weights file (of a run folder: of the weights in it); "untrained" for --smoke without weights."""
    return file_hash(checkpoint.find(path)) if Path(path).exists() else "untrained"


def resolved(sampler: Sampler, config: SampleConfig, weights: Path | None, keep: bool = True) -> Sampler:
    """The sampler with its solver and times as ``config`` asks for them.

    Args:
        weights: of :func:`fitted_weights`.
        keep: whether an adaptive grid is kept beside it.

    Raises:
        ValueError: no sampler was fitted for these steps, or it is asked for with a time grid.
    """
    asked = _key_of(sampler, sampler.n_steps)
    if config.solver == "fitted":
        if config.grid != "auto":
            raise ValueError(f"--solver fitted brings its own times: leave --grid {config.grid} out")
        if weights is None:
            raise ValueError(
                "--solver fitted needs weights that a sampler was fitted to: give --weights, without --no-ema"
            )
        plan = fitted.find_fitted(weights, asked)
        return replace(sampler, solver="fitted", grid="fitted", fitted=plan)
    if config.solver == "auto" and config.grid == "auto" and weights is not None:
        try:
            if plan := fitted.fitted_for(weights, asked):
                return replace(sampler, solver="fitted", grid="fitted", fitted=plan)
        except ValueError as error:
            print(f"note: {error}")
    config = plain(config, sampler.method)
    sampler = replace(sampler, solver=config.solver, grid=config.grid)
    if config.grid != "adaptive":
        return sampler
    return replace(sampler, nodes=adaptive_nodes(sampler, sampler.n_steps, weights, keep))


def plain(config: Config, method: str) -> Config:
    """Options with what "auto" is where no sampler was fitted."""
    usual = method_of(method).own_solver or SOLVER
    solver = usual if config.solver == "auto" else config.solver
    return replace(config, solver=solver, grid=GRID if config.grid == "auto" and solver != "fitted" else config.grid)


def adaptive_nodes(sampler: Sampler, n_steps: int, weights: Path | None, keep: bool = True) -> Tensor:
    """The adaptive grid of a network: beside its weights, or made (32 noises, 64 fine steps) and kept there."""
    fine = max(64, 2 * n_steps)
    if weights is not None:
        entry = fitted.entry_for(weights, "adaptive", _key_of(sampler, n_steps))
        if entry is not None:
            return torch.tensor(entry["times"], dtype=torch.float64)
    teacher, _ = teacher_of(sampler, 32, FIT_NOISE, fine, "adaptive grid")
    cost = segment_costs(teacher.states, teacher.times)
    steps = sorted({*range(1, min(LARGEST, fine) + 1), n_steps})
    grids = {n: [round(teacher.times[i], 6) for i in partition(cost, n)] for n in steps}
    if weights is not None and keep:
        fitted.keep(weights, "adaptive", [{**_key_of(sampler, n), "times": grids[n]} for n in steps])
    return torch.tensor(grids[n_steps], dtype=torch.float64)


def _key_of(sampler: Sampler, n_steps: int) -> dict[str, Any]:
    """What a sampler's times and weights are kept under."""
    return fitted.key_of(n_steps, sampler.cfg, sampler.landing, sampler.precision, sampler.guidance())


def teacher_of(
    sampler: Sampler, n_noises: int, stream: str, n_steps: int, title: str, seed: int = 0
) -> tuple[Teacher, VelocityFor]:
    """Fine trajectories of a sampler's network from noises of a stream, and its velocity for those noises' labels."""
    device = next(sampler.net.parameters()).device
    x0 = sampler.start * generate.noise_for(range(n_noises), sampler.shape, seed, stream).to(device)
    y = generate.labels_for(range(n_noises), generate.real_classes(sampler.net))
    y = None if y is None else y.to(device)
    net = sampler.counted()

    def velocity_for(last: float) -> Any:
        return sampler.velocity(net, y, last)

    with tqdm(total=n_steps, desc=title, unit="evaluation", dynamic_ncols=True) as bar:
        x0 = x0.contiguous(memory_format=torch.channels_last)
        teacher = fitted.teach(velocity_for, x0, n_steps, bar.update, sampler.landing)
    return teacher, velocity_for
