"""All stages of sequential reflow for one seed, each done once: teacher, pairs, students, distillation, evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrf.options import DISTILL, REFLOW, Run

if TYPE_CHECKING:
    from common.runtime import Processes
    from seqrf.quality import Judge


def check(run: Run) -> None:
    """ValueError for a plan that cannot be carried out."""
    plan = run.config.pipeline
    if others := set(plan.distill) - set(plan.segments):
        raise ValueError(f"--config.pipeline.distill {min(others)}: add {min(others)} to --config.pipeline.segments")


def whole(run: Run, here: Processes) -> None:
    """All stages for one seed, in the run's work folder."""
    from seqrf.quality import make_judge
    from seqrf.stages import TEACHER, train_teacher

    plan, base = run.config.pipeline, Path(run.workdir)
    if run.config.training.import_torch == "none":
        train_teacher(run, here)
        run = with_training(run, import_torch=str(base / TEACHER))
    judge = make_judge(run, base, here.device) if here.is_main else None  # one process measures
    for k in plan.segments:
        measure(run, student(run, here, "2-RF" if k == 1 else f"{k}-SeqRF", k), judge, here)
    for k in plan.adaptive:
        measure(run, student(run, here, f"{k}-SeqRF-Ada", k, adaptive_interval=True), judge, here)
    for k in plan.distill:
        name = "2-RF" if k == 1 else f"{k}-SeqRF"
        pairs = base / name / "samples" / "reflow_batch"
        changes = {"reflow_mode": DISTILL, "pairs": str(pairs), "import_torch": str(base / name)}
        measure(run, student(run, here, f"{name}-Distill", k, **changes), judge, here, only=k)
    for cfg in sorted({1.0, run.config.sampling.cfg}):  # a guided teacher beside the plain one
        sampling = replace(run.config.sampling, cfg=cfg)
        settings = replace(run, config=replace(run.config, sampling=sampling))
        measure(settings, Path(run.config.training.import_torch), judge, here, f"teacher, cfg {cfg:g}" * (cfg != 1))


def with_training(run: Run, **changes: Any) -> Run:
    """The run with other options of training."""
    return replace(run, config=replace(run.config, training=replace(run.config.training, **changes)))


def student(run: Run, here: Processes, name: str, k: int, **changes: Any) -> Path:
    """Make the pairs of a student and train it in a folder of its own; the file of its weights."""
    from seqrf.stages import make_pairs, train
    from seqrf.train import FINAL

    folder = Path(run.workdir) / name
    if (folder / FINAL).exists():
        return folder / FINAL
    here.say(f"---- {name}, seed {run.config.seed}")
    run = with_training(replace(run, workdir=str(folder)), **{"reflow_t": k, "reflow_mode": REFLOW, **changes})
    if not run.config.training.pairs:
        make_pairs(run, here)
    model, sampling = replace(run.config.model, num_scales=k), replace(run.config.sampling, method="pc")
    run = replace(run, config=replace(run.config, model=model, sampling=sampling))  # of the snapshots' pictures
    return train(run, here)


def measure(run: Run, weights: Path, judge: Judge | None, here: Processes, name: str = "", only: int = 0) -> None:
    """Rows of a model at all numbers of steps (or one) that are not there yet, by Euler's method."""
    from common.records.rows import JsonLines
    from seqrf.evaluate import evaluate
    from seqrf.models import load

    if judge is None:
        return
    model = load(weights, here.device, name, run.config.data.image_size)
    k, out = len(model.edges) - 1, Path(run.workdir) / run.eval_folder
    steps = {only} if only else {n for n in run.config.pipeline.steps if n >= k} | {k}
    steps |= set() if model.is_student else set(run.config.pipeline.teacher_steps)
    rows = {(row["name"], row["step"], row["n_steps"]) for row in JsonLines(out / "rows.jsonl").read()}
    row = None
    for n in sorted(steps):
        if (model.name, model.step, n) not in rows:
            sampling = replace(run.config.sampling, method="pc", predictor="rf_solver")
            settings = replace(run.config, sampling=sampling, model=replace(run.config.model, num_scales=n))
            row = evaluate(model, replace(run, config=settings), judge, out, row)
