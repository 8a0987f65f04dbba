"""The search for a train's hyper-parameters, by Optuna, on held-out pairs of the validation set; never on the test set.

The study is a SQLite file: a search that was stopped goes on where it was. What is searched: the number of functions
of each coordinate and of t, the rank, the ridge and its smoothness, the length of radial functions, and with "any" the
kind of the functions itself. A trial whose
train would have more parameters than allowed gets the largest rank that fits; if none does, it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttflow.bases import KINDS

if TYPE_CHECKING:
    import optuna

Fit = Callable[[dict[str, Any]], float]


def search(
    fit: Fit, size: Callable[[dict[str, Any]], int], basis: str, n_trials: int, path: Path, **options: Any
) -> tuple[dict[str, Any], float]:
    """The best choices after n_trials in all, and their validation error.

    Args:
        fit: Validation error of a train with these choices, keywords of ``recflow.fit_velocity``.
        size: Its number of parameters.
        basis: Of the coordinates, or "any": the search chooses.
        n_trials: Of the study; those that its file holds count.
        path: The study. One of other data or another basis needs another file.
        options: seed, budget (most parameters) and progress.

    Raises:
        ValueError: n_trials < 1, or no trial fits the budget.
        ModuleNotFoundError: Optuna is not installed.
    """
    if n_trials < 1:
        raise ValueError(f"{n_trials} trials: give --hopt-max-eval of at least 1; try 20")
    optuna = _optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=basis,
        storage=f"sqlite:///{path}",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=options.get("seed", 0)),
    )
    _run(study, fit, size, basis, n_trials, options.get("budget", math.inf), options.get("progress", False))
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        raise ValueError(f"no trial of {n_trials} had at most {options['budget']:g} parameters: give a larger --budget")
    best = min(done, key=lambda trial: trial.value)
    return _within(best.params, size, options.get("budget", math.inf)), float(best.value)


def _optuna() -> Any:
    """Optuna, without its messages for each trial."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--hopt needs Optuna: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _run(
    study: optuna.Study, fit: Fit, size: Callable, basis: str, n_trials: int, budget: float, progress: bool
) -> None:
    """Trials until there are n_trials that were fitted or left out, with a bar."""
    from tqdm import tqdm

    def finished() -> int:
        return sum(trial.state.is_finished() for trial in study.trials)

    bar = tqdm(total=n_trials, initial=min(finished(), n_trials), desc="search", unit="trial", disable=not progress)
    with bar:
        while finished() < n_trials:
            trial = study.ask()
            _suggest(trial, basis)
            choices = _within(trial.params, size, budget)
            if choices is None:
                study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
            else:
                study.tell(trial, fit(choices))
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


def _within(choices: dict[str, Any], size: Callable[[dict[str, Any]], int], budget: float) -> dict[str, Any] | None:
    """The choices with the largest rank, up to theirs, that fits; None if rank 1 does not."""
    for rank in range(choices["rank"], 0, -1):
        if size(choices | {"rank": rank}) <= budget:
            return choices | {"rank": rank}
    return None
