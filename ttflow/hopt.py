"""The search for a train's hyper-parameters, by Optuna, on held-out pairs of the validation set; never on the test set.

The study is a SQLite file: a search that was stopped goes on where it was. What is searched: the number of functions
of each coordinate and of t, the rank, the ridge and its smoothness, the length of radial functions, and with "any" the
kind of the functions itself. A trial whose train would have more parameters than allowed gets the largest rank that
fits; if none does, it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime import reading
from common.runtime.kept import check_same
from ttflow.bases import KINDS

if TYPE_CHECKING:
    import optuna

    from ttflow.recflow import Shape, Sweeps

    Error = Callable[[Shape, Sweeps], float]
    Size = Callable[[Shape], int]


def search(
    error: Error,
    size: Size,
    shape: Shape,
    sweeps: Sweeps,
    n_trials: int,
    budget: float,
    path: Path,
    progress: bool = False,
    about: Mapping[str, Any] = {},
) -> tuple[Shape, Sweeps, float]:
    """The best shape and sweeps after n_trials in all, and their validation error.

    Args:
        error: Validation error of a train.
        size: Number of parameters of a train.
        shape, sweeps: For all that is not searched, and the sampler's seed. With the basis "any" the search chooses it.
        n_trials: Of the study; those that its file holds count.
        budget: Most parameters.
        path: The study. One of other data or options needs another file.
        progress: Show a bar.
        about: What the trials depend on: data and options, JSON-like.

    Raises:
        ValueError: n_trials < 1, no trial fits the budget, or the study is of other data or options.
        ModuleNotFoundError: Optuna is not installed.
    """
    if n_trials < 1:
        raise ValueError(f"{n_trials} trials: give --hopt-max-eval of at least 1; try 20")
    optuna = _optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    with reading(path, "delete it, or give another --out"):
        study = optuna.create_study(
            study_name=shape.basis,
            storage=f"sqlite:///{path}",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=shape.seed),
        )
        kept = study.trials
    if kept:
        check_same(path, study.user_attrs.get("about", {}), about, "delete it, or give another --out")
    study.set_user_attr("about", dict(about))

    def plan(trial: optuna.Trial | optuna.trial.FrozenTrial) -> tuple[Shape, Sweeps] | None:
        chosen = _shape(shape, trial.params, size, budget)
        return chosen and (chosen, replace(sweeps, ridge=trial.params["ridge"], smooth=trial.params["smooth"]))

    def trial_error(trial: optuna.Trial) -> float | None:
        _suggest(trial, shape.basis)
        chosen = plan(trial)
        return chosen and error(*chosen)

    _run(study, trial_error, n_trials, progress)
    trials = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not trials:
        raise ValueError(f"no trial of {n_trials} had at most {budget:g} parameters: give a larger --budget")
    best = min(trials, key=lambda trial: trial.value)
    return *plan(best), float(best.value)  # type: ignore[misc]


def _optuna() -> Any:
    """Optuna, without its messages for each trial."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--hopt needs Optuna: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _run(
    study: optuna.Study, trial_error: Callable[[optuna.Trial], float | None], n_trials: int, progress: bool
) -> None:
    """Trials until there are n_trials that were fitted or left out (None), with a bar."""
    from tqdm import tqdm

    def n_finished() -> int:
        return sum(trial.state.is_finished() for trial in study.trials)

    bar = tqdm(total=n_trials, initial=min(n_finished(), n_trials), desc="search", unit="trial", disable=not progress)
    with bar:
        while n_finished() < n_trials:
            trial = study.ask()
            value = trial_error(trial)
            if value is None:
                study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
            else:
                study.tell(trial, value)
                bar.set_postfix(best=f"{study.best_value:.4g}")
            bar.update(1)


def _suggest(trial: optuna.Trial, basis: str) -> None:
    """Draws the choices of a trial."""
    if basis == "any":
        basis = trial.suggest_categorical("basis", list(KINDS))
    trial.suggest_int("n_basis", 10, 40)
    trial.suggest_int("rank", 2, 14)
    trial.suggest_int("n_time", 4, 16)
    trial.suggest_float("ridge", 1e-6, 1e-2, log=True)
    trial.suggest_float("smooth", 1e-4, 1e-1, log=True)
    if basis == "rbf":
        trial.suggest_float("length", 0.05, 2.0, log=True)


def _shape(shape: Shape, params: dict[str, Any], size: Size, budget: float) -> Shape | None:
    """The shape of a trial with the largest rank, up to the trial's, that fits; None if rank 1 does not."""
    names = {"basis", "n_basis", "n_time"} & set(params)
    shape = replace(shape, **{name: params[name] for name in names})
    shape = replace(shape, basis_options={"length": params["length"]}) if "length" in params else shape
    ranks = (replace(shape, rank=rank) for rank in range(params["rank"], 0, -1))
    return next((smaller for smaller in ranks if size(smaller) <= budget), None)
