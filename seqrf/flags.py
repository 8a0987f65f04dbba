"""The command line of sequential reflow: a tree of options, filled by a configuration file and by dotted flags.

``parse`` merges ``dataclass default < -c/--config FILE < flags`` into an :class:`options.Run`; ``check`` tests ranges.
Every mistake is one line that names the flag and what to type. No torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from common.cli import CONFIG_HELP, Names, read_flags
from common.cli.configs import SolverName
from common.cli.values import allowed, check_device, convert, field_types, find_config, load_config
from seqrf.options import Config, Run

HERE = Path(__file__).resolve().parent

__all__ = ["PREDICTORS", "check", "parse"]

T = TypeVar("T")

_NO_FIXED_GRID = ("auto", "fitted", "dopri5", "torchdyn", "idff", "euler_maruyama")
_FIXED = tuple(name for name in get_args(SolverName) if name not in _NO_FIXED_GRID)
# What config.sampling.predictor may be, and its name in common.solvers; the first two are the paper's program's.
PREDICTORS = {"rf_solver": "euler", "rf_solver_heun": "heun", **{name: name for name in _FIXED}}

# Values of a file that name something on disk: relative to the current directory, or to this folder.
_PATHS = (
    *("config.training.import_torch", "config.training.pairs"),
    *("config.data.dataset", "config.data.classifier", "config.data.inception"),
)


def parse(argv: Sequence[str] | None = None, description: str = "") -> Run:
    """Read a command line.

    ``--config.training.reflow_t=4`` and ``--config.training.reflow-t 4`` are the same; booleans are
    ``--config.eval.save_trajectory``, ``=True``, ``=False`` or absl's ``--noresume``; the last of two flags counts.
    ``-c/--config FILE`` is a .py with ``get_config()``, a .yaml or a .json with nested mappings, or a run folder; it is
    looked for from the current directory, then from this folder. It holds parts of a Config, of a Run, or both.

    Args:
        argv: The arguments without the program; None: those of this process.
        description: First lines of the help.

    Raises:
        ValueError: an unknown flag or key, a value out of range, a file that cannot be read; one line.
        FileNotFoundError: no such configuration file.
        SystemExit: after ``--help``, which shows the values of the file as defaults.
    """
    names = Names(_leaves(Run), {"mp": "mixed_precision"})
    flags = read_flags(argv, names)
    run = Run()
    if "config" in flags:
        run = _with_values(run, _read_file(flags.pop("config")))
    if flags.pop("help", False):
        _print_help(run, description)
    run = _with_values(run, flags)
    check(run)
    return run


def _leaves(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The types of all options below a dataclass, by dotted name."""
    found: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        found |= _leaves(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {prefix + name: hint}
    return found


def _with_values(tree: T, values: Mapping[str, Any]) -> T:
    """The tree with other values, given by dotted name."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    own |= {name: _with_values(getattr(tree, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(tree, **own)  # type: ignore[type-var]


# ---- configuration files


def _read_file(path: str) -> dict[str, Any]:
    """Checked values of a file by dotted name, its paths resolved.

    A configuration names its runs' folder; a Run, as the config.yaml of a run folder, says itself where it was.
    """
    file = _find(path)
    raw = load_config(file)
    if "config" in raw:
        values = _read(Run, raw, f"{file}")
    else:
        outer = {key: value for key, value in raw.items() if key in field_types(Run)}
        inner = {key: value for key, value in raw.items() if key not in outer}
        values = {"workdir": str(HERE / "exp" / file.stem)} if file.name != "config.yaml" else {}
        values |= _read(Run, outer, f"{file}") | _read(Config, inner, f"{file}", "config.")
    return {name: _on_disk(value) if name in _PATHS else value for name, value in values.items()}


def _find(path: str) -> Path:
    """The file; when there is none, the error names those of this folder."""
    try:
        return find_config(path, beside=HERE)
    except FileNotFoundError as error:
        shipped = ", ".join(f"configs/rf/{file.name}" for file in sorted((HERE / "configs/rf").glob("*.py")))
        raise FileNotFoundError(f"{error}; here are {shipped}") from None


def _read(cls: Any, raw: Mapping[Any, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Checked values of one section and of those inside it; ``where`` begins an error's line."""
    names = Names(field_types(cls))
    values: dict[str, Any] = {}
    for key, value in raw.items():
        field = names.key(str(key))
        if field is None:
            raise ValueError(f"{where}: unknown key {key}{names.suggestion(str(key), names.hints)}")
        place, hint = f"{where}: {field}", names.hints[field]
        if dataclasses.is_dataclass(hint):
            values |= _read(hint, _section(value, hint, place), place, f"{prefix}{field}.")
        else:
            values[prefix + field] = convert(place, hint, value)
    return values


def _section(value: Any, cls: Any, place: str) -> Mapping[Any, Any]:
    """The mapping of a section; nothing, as YAML reads an empty one, is an empty mapping."""
    to_dict = getattr(value, "to_dict", None)  # ml_collections' ConfigDict within a plain dict
    value = to_dict() if to_dict else {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: give a mapping of its options, which are {', '.join(field_types(cls))}")
    return value


def _on_disk(value: str) -> str:
    """A path as it is, unless it leads nowhere from the current directory and somewhere from this folder."""
    if value in ("", "none") or Path(value).expanduser().exists() or not (HERE / value).exists():
        return value
    return str((HERE / value).resolve())


# ---- ranges


def _from(least: float) -> Callable[[Any], bool]:
    return lambda value: value >= least


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config.seed": (lambda seed: 0 <= seed < 2**63, "give 0 or more, below 2^63"),
    "config.data.dataset": (bool, "give torchvision:NAME, a folder or zip of images, .npy/.npz, or toy2d:moons"),
    "config.data.image_size": (_from(1), "give 1 or more, e.g. 32"),
    "config.data.channels": (_from(1), "give 3 (colour) or 1 (grey)"),
    "config.model.rf_phase": (lambda phase: phase in (1, 2), "give 1 (the teacher) or 2 (reflow)"),
    "config.model.ema_rate": (lambda rate: 0 <= rate < 1, "give 0 or more and less than 1, e.g. 0.999"),
    "config.model.num_scales": (_from(1), "give 1 or more, e.g. 4"),
    "config.training.reflow_t": (_from(1), "give 1 (plain reflow) or more, e.g. 4"),
    "config.training.n_reflow_data": (_from(1), "give 1 or more, e.g. 1000000"),
    "config.training.gen_reflow_size": (_from(1), "give 1 or more, e.g. 256"),
    "config.training.batch_size": (_from(1), "give 1 or more, e.g. 512"),
    "config.training.n_iters": (_from(1), "give 1 or more, e.g. 100001"),
    "config.training.lr": (lambda lr: lr > 0, "give more than 0, e.g. 2e-4"),
    "config.training.warmup": (_from(0), "give 0 (none) or more, e.g. 5000"),
    "config.training.grad_clip": (_from(0), "give 0 (off) or more, e.g. 1"),
    "config.training.snapshot_freq": (_from(1), "give 1 or more, e.g. 10000"),
    "config.training.snapshot_fid_sample": (_from(0), "give 0 (none) or more, e.g. 10000"),
    "config.training.log_freq": (_from(1), "give 1 or more, e.g. 50"),
    "config.sampling.tol": (lambda tol: 0 < tol < 1, "give more than 0 and less than 1, e.g. 1e-4"),
    "config.sampling.cfg": (_from(0), "give 1 (no guidance) or another number from 0, e.g. 2"),
    "config.sampling.predictor": (
        lambda name: name in PREDICTORS,
        f"choose one of {', '.join(PREDICTORS)}; the adaptive solver is --config.sampling.method=ode",
    ),
    "config.sampling.pairs_solver": (
        lambda name: name in ("auto", "dopri5", *_FIXED),
        f"choose one of auto, dopri5, {', '.join(_FIXED)}",
    ),
    "config.eval.num_samples": (_from(1), "give 1 or more, e.g. 50000"),
    "config.eval.batch_size": (_from(1), "give 1 or more, e.g. 500"),
    "config.eval.begin_step": (_from(-1), "give -1 (only the last weights), 0 or more"),
    "config.eval.end_step": (_from(0), "give 0 or more, e.g. 100000"),
    "config.eval.interval_step": (_from(1), "give 1 (every snapshot) or more, e.g. 10000"),
}


def check(run: Run) -> None:
    """Check the options of a command that does not need the run's files or torch for it.

    Raises:
        ValueError: one line that names the flag, what was given and what to give.
    """
    for name, hint in _leaves(Run).items():
        value: Any = run
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name} {value}: give a finite number")
        if convert(f"--{name}", hint, value) != value:  # in a Run that was made by hand
            raise ValueError(f"--{name} {value!r}: {allowed(hint)}")
        good, advice = _RANGES.get(name, (None, ""))
        if good and not good(value):
            raise ValueError(f"--{name} {value if value != '' else repr(value)}: {advice}")
    check_device(run.device)
    training, evaluation = run.config.training, run.config.eval
    if training.n_reflow_data < training.reflow_t:
        raise ValueError(
            f"--config.training.n_reflow_data {training.n_reflow_data}: give {training.reflow_t} or more, one pair for "
            f"each of the {training.reflow_t} segments of --config.training.reflow_t"
        )
    if evaluation.begin_step > evaluation.end_step:
        raise ValueError(
            f"--config.eval.begin_step {evaluation.begin_step}: give {evaluation.end_step} "
            "(--config.eval.end_step) or less"
        )


# ---- help


def _print_help(run: Run, description: str) -> None:
    """Print tyro's help, with the values of the run as defaults, and leave with code 0."""
    import tyro

    file = tyro.conf.arg(name="config", aliases=["-c"], metavar="FILE", help=CONFIG_HELP)
    parts = [("file", Annotated[str, file], ""), ("run", Annotated[Run, tyro.conf.arg(name="")], run)]
    whole = dataclasses.make_dataclass("Options", parts, frozen=True)
    about = description or inspect.getdoc(Run)
    tyro.cli(whole, args=["--help"], description=about, use_underscores=True)
