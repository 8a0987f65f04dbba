"""The steps of sst_forecaster.py: train, fit the spread, forecast, score, draw, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import checkpoint, training
from common.cli.configs import check_logger
from common.networks import build_network
from common.runtime import Processes, file_hash, pick_device, processes, write_json
from common.scripts.folder import newest
from common.training.report import Event, HeldOut, Report
from sst import export, maps, skill
from sst.config import DEFAULT, WEIGHTS, DrawOptions, Options, run_folder, run_name, smoke
from sst.flow import FieldBatches, FieldTrainer, check, description
from sst.forecast import Ensemble, Forecaster, World, fit_spread, forecast, load_forecaster, world
from sst.latest import learnt, world_until

HERE = Path(__file__).resolve().parent

VALIDATION_BATCHES = 8


def weights_name(options: Options) -> str:
    """File name of a run's final weights."""
    return f"{options.method.upper()}_sst_weights_step_final.pt"


def run(options: Options) -> dict[str, Any]:
    """Do what ``--mode`` says; returns the scores, empty after ``--mode train`` and on all processes but the first."""
    here = processes(options.device)
    out = run_folder(options)
    check(options, torus=not options.data)
    check_logger(options.logger)
    if options.forecasts:
        export.check_name(options.forecasts)
    if options.mode == "forecast":
        return forecast_from(options, weights_of(options, out), out, here.device) if here.is_main else {}
    with here.main_first():
        data = world(options)
    final = weights_of(options, out) if options.mode == "evaluate" else train(options, data, out, here)
    if options.mode == "train" or options.plan or not here.is_main:
        return {}
    return evaluate(options, data, final, out, here.device)


def weights_of(options: Options, out: Path) -> Path:
    """The weights that are given, else those of the run folder, else the shipped ones."""
    own, shipped = out / weights_name(options), HERE / "results" / run_name(options) / weights_name(options)
    if options.weights or options.out or options.smoke:
        return Path(options.weights or own)
    found = newest([own] if own.exists() else [], shipped)
    if not found.exists() and options.mode == "forecast":
        kept = ", ".join(sorted(f"results/{path.parent.name}" for path in HERE.glob("results/*/*_final.pt")))
        raise FileNotFoundError(f"no run here is called {run_name(options)}: give --weights, shipped are {kept}")
    return found


def train(options: Options, data: World, out: Path, here: Processes) -> Path:
    """Train a flow and leave in ``out`` its weights (the best of the validation years), state, metrics and options.

    Raises:
        ValueError, KeyboardInterrupt: see ``common.training.run``.
    """
    trainer, parts = FieldTrainer(options, data.fields.torus, here), data.parts
    trainer.data, trainer.learnt = data.mark(), learnt(data)
    fields = (data.climates, data.fields, data.amplitude, options)
    source = FieldBatches(*fields, 0, parts.val, here)
    # the first process validates alone: all rows of the batches are its own
    alone = Processes(0, 1, here.device)
    held_out = HeldOut(FieldBatches(*fields, parts.val, parts.test, alone, "held out"), VALIDATION_BATCHES)

    def events(report: Report) -> list[Event]:
        return [Event(options.val_step, lambda: report.validate(held_out)), Event(options.save_step, report.save)]

    def final() -> tuple[dict[str, Any], dict[str, Any]]:
        best = best_weights(options, data, out, here.device)
        facts = {"data": data.fields.name, "best_step": best["step"]}
        return best, facts | {"learnt": best["learnt"], "spread": best.get("spread", [])}

    what = f"{options.method} from {options.source}"
    if options.method == "crps":
        what = f"fair CRPS of {options.train_members} members"
    title = f"{what}, {parts.val} training frames"
    return training.run(trainer, source, out, weights_name(options), title, options, events, final)


def best_weights(options: Options, data: World, out: Path, device: torch.device) -> dict[str, Any]:
    """The weights of the lowest validation loss in float16, with the factors of the spread where they are asked for."""
    file = out / "checkpoint_best.pt"
    best = checkpoint.load(file)
    best["ema_model"] = {key: x.half() if x.is_floating_point() else x for key, x in best["ema_model"].items()}
    if options.spread == "validation":
        model = load_forecaster(file, device, members=options.members)
        model.net.half().float()  # the factors are those of the rounded weights
        best["spread"] = list(fit_spread(model, data, options.members))
    return best


def evaluate(options: Options, data: World, weights: Path, out: Path, device: torch.device) -> dict[str, Any]:
    """Forecast the test years, print and write the scores (scores.json) and the figures into ``out``."""
    model = model_of(options, weights, device, n_steps=options.n_steps, solver=options.solver)
    others = [model_of(options, Path(file), device) for file in options.beside]
    names = row_names([(model, weights), *zip(others, map(Path, options.beside))])
    starts = data.starts(options)
    ensemble = forecast(model, data, starts, options.members, options.seed)
    rest = zip(names[1:], others)
    beside = {name: forecast(other, data, starts, options.members, options.seed, name) for name, other in rest}
    validation = data.starts(options, validation=True) if options.spread == "validation" else None
    result = skill.evaluate(data, ensemble, options.seed, validation, names[0], beside)
    result |= facts_of(model.options, data, ensemble, weights, model.step)
    print("\n".join(skill.lines(result)))
    print_verdict(result)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scores.json", result)
    maps.forecast_maps(out / "forecast.png", data, ensemble, index=len(ensemble.box) // 2)
    maps.verification(out / "verification.png", result, data, ensemble)
    print(f"figures: {out}/forecast.png, verification.png")
    if options.forecasts:
        save_forecasts(Path(options.forecasts), data, ensemble, model, weights)
    return result


def forecast_from(options: Options, weights: Path, out: Path, device: torch.device) -> dict[str, Any]:
    """Forecast from the field of ``--init``: writes the members (``--forecasts``) and forecast.png, prints their means.

    Returns:
        date -> mean anomaly, spread (both deg C) and share of water in the warm decile.

    Raises:
        FileNotFoundError, ValueError: see ``model_of`` and ``latest.world_until``.
    """
    model = model_of(options, weights, device, n_steps=options.n_steps, solver=options.solver)
    if not model.learnt:
        raise ValueError(f"{weights} does not say which years it learnt from, as older weights do not: train it again")
    data, now = world_until(options, model.learnt)  # type: ignore[arg-type]
    drawn = forecast(model, data, torch.tensor([now]), options.members, options.seed)
    means = skill.outlook(data, drawn)
    cost = f"NFE {drawn.nfe:g} a lead, {drawn.seconds:.1f} s"
    print(f"\nfrom {data.fields.times[now]}, {options.members} members, {cost}")
    for date, row in means.items():
        warm = f"{100 * row['warm']:.0f}% beyond the warm decile"
        print(f"{date}  anomaly {row['anomaly']:+.2f} deg C, spread {row['spread']:.2f}, {warm}")
    save_forecasts(Path(options.forecasts or out / "forecast.nc"), data, drawn, model, weights)
    maps.forecast_maps(out / "forecast.png", data, drawn, index=len(drawn.box) // 2)
    print(f"picture: {out}/forecast.png")
    return means


def save_forecasts(path: Path, data: World, drawn: Ensemble, model: Forecaster, weights: Path) -> None:
    """Write forecasts with what made them, and say where."""
    file = checkpoint.find(weights)
    facts = {"source": f"{file.name}, step {model.step}", "method": model.method.name, "data": data.fields.name}
    facts |= {"seed": model.options.seed, "evaluations_a_lead": drawn.nfe, "weights_sha256": file_hash(file)}
    facts |= {"card": export.card_of(file)}
    files = export.save(path, export.datasets(data, drawn, facts))
    print(f"forecasts: {', '.join(map(str, files))}")


def model_of(options: Options, weights: Path, device: torch.device, **changes: Any) -> Forecaster:
    """The forecaster of a weights file, for forecasts as the options ask for.

    Raises:
        FileNotFoundError, ValueError: see ``load_forecaster``; and weights of other boxes, leads or years.
    """
    keys = ("members", "starts", "chunk", "seed", "spread", "mixed_precision", "data", "smoke")
    model = load_forecaster(weights, device, **{key: getattr(options, key) for key in keys}, **changes)
    keys = "box past horizon harmonics colour test_years val_years train_years variable gaps".split()
    if differences := [key for key in keys if getattr(model.options, key) != getattr(options, key)]:
        flags = ", ".join(f"--{key} {getattr(model.options, key)}" for key in differences)
        raise ValueError(f"{weights} was trained with {flags}: give the same, or -c with the config.yaml beside it")
    check(model.options, torus=not options.data)
    return model


def row_names(models: list[tuple[Forecaster, Path]]) -> list[str]:
    """What rows of tables are called: flow, or network trained on the CRPS; where two are alike, with their folders."""
    names = ["CRPS network" if model.method.name == "crps" else "flow" for model, _ in models]
    folders = [path.name if path.is_dir() else path.resolve().parent.name for _, path in models]
    full = [f"{name} ({where})" if names.count(name) > 1 else name for name, where in zip(names, folders)]
    if len(set(full)) < len(full):
        twice = next(name for name in full if full.count(name) > 1)
        raise ValueError(f"--beside: two rows would be called {twice}: give weights from folders of different names")
    return full


def facts_of(options: Options, data: World, ensemble: Ensemble, weights: Path, step: int) -> dict[str, Any]:
    """What the scores belong to."""
    days = data.fields.times[ensemble.frame[[0, -1]].numpy()]
    facts = {"weights": weights.name, "step": step, "data": data.fields.name, "boxes": len(data.boxes)}
    facts |= {
        "forecasts": len(ensemble.box),
        "starts": [str(day) for day in days],
        "members": ensemble.members.shape[1],
    }
    return facts | {"solver": options.solver, "n_steps": options.n_steps, "seed": options.seed}


def print_verdict(result: dict[str, Any]) -> None:
    """Say in words how the forecasts compare."""
    baselines = [name for name in result["units"]["normalised"] if name not in (result["row"], skill.EXACT)]
    names = [name for name, below in skill.below_everywhere(result, baselines).items() if below]
    print(f"\nCRPS below, at every lead: {'; '.join(names) or 'none of the baselines'}")
    if "exact_ratio" in result:
        ratios = ", ".join(f"{r:.2f}" for r in result["exact_ratio"])
        print(f"CRPS / CRPS of the exact forecast: {result['exact_ratio_mean']:.3f} (by lead {ratios})")
    count = result["forecasts"] * result["members"]
    for name, cost in result["networks"].items():
        print(f"{name}: {count} members, NFE {cost['nfe']:g} a lead, {cost['seconds']:.1f} s")


def draw(options: DrawOptions) -> Path:
    """One ensemble forecast of the test years: its scores on the terminal, its maps as a picture.

    Raises:
        FileNotFoundError: there are no weights, or no data; the line says what to type.
        ValueError: weights of other data, or no such start.
    """
    model = _model_to_draw(options, pick_device(options.device))
    if model.options.data and not options.data:
        raise ValueError(f"these weights were trained on {model.options.data}: give it with --data")
    data = world(replace(model.options, data=options.data))
    frames = data.starts(replace(model.options, starts=0))
    if not 0 <= options.start < len(frames):
        raise ValueError(
            f"--start {options.start}: {len(frames)} forecasts fit into the test years, 0 to {len(frames) - 1}"
        )
    members = min(options.members, 4) if options.smoke else options.members
    ensemble = forecast(model, data, frames[options.start : options.start + 1], members, options.seed)
    name = row_names([(model, HERE)])[0]
    print("\n".join(skill.lines(skill.evaluate(data, ensemble, options.seed, name=name))))
    nfe, seconds = ensemble.nfe, ensemble.seconds
    print(f"{members} members, step {model.step}, NFE {nfe:g} a lead, seed {options.seed}, {seconds:.1f} s")
    name = f"{'smoke-' * options.smoke}forecast_{data.fields.name}.png"
    out = Path(options.out) if options.out else HERE / "samples" / name
    maps.forecast_maps(out, data, ensemble, index=len(ensemble.box) // 2)
    print(f"picture: {out}")
    return out


def _model_to_draw(options: DrawOptions, device: torch.device) -> Forecaster:
    """The weights that are asked for; an untrained network for ``--smoke`` where there are none."""
    runs = HERE.glob("runs/*/*_sst_weights_step_final.pt")
    path = Path(options.weights) if options.weights else newest(runs, HERE / WEIGHTS)
    if options.smoke and not options.weights and not path.exists():
        small = smoke(DEFAULT)
        torch.manual_seed(0)
        return Forecaster(build_network(description(small)).eval().to(device), small)
    if not options.weights and not path.exists():
        raise FileNotFoundError(
            f"there are no weights at {path}: train them with python sst_forecaster.py, or give --weights"
        )
    changes = {"n_steps": options.solver_steps} if options.solver_steps else {}
    return load_forecaster(path, device, mixed_precision="no", **changes)
