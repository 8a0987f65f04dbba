"""The stages of sequential reflow, each a function of a Run: teacher, pairs, training, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from common.cli.configs import check_logger
from seqrf.options import DISTILL, GENERATE, PLANE, Config, Run

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    from common.runtime import Processes
    from seqrf.endpoints import Pool
    from seqrf.models import Model

PAIRS = "samples/reflow_batch"  # folder of the pairs in a work folder
TEACHER = "teacher_step_final.pt"
POINTS = 50_000  # of the plane that starts of pairs are mixed from
STATES = 2**27  # numbers of teacher trajectories in memory at a time


def workdir(run: Run) -> Path:
    """The run's folder."""
    return Path(run.workdir) if run.workdir else HERE / "exp" / "default"


def smoke(run: Run) -> Run:
    """The run, made short enough for seconds on a CPU."""
    c, k = run.config, run.config.training.reflow_t
    training = replace(
        c.training,
        n_reflow_data=min(c.training.n_reflow_data, 16 * k),
        gen_reflow_size=min(c.training.gen_reflow_size, 8),
        batch_size=min(c.training.batch_size, 8),
        n_iters=min(c.training.n_iters, 4),
        minutes=c.training.minutes and min(c.training.minutes, 0.05),
        snapshot_freq=2,
        log_freq=1,
        snapshot_fid_sample=min(c.training.snapshot_fid_sample, 8),
        adaptive_samples=min(c.training.adaptive_samples, 4),
        adaptive_steps=min(c.training.adaptive_steps, 60),
    )
    n = min(c.eval.num_samples, 64 if c.data.dataset.startswith(PLANE) else 8)
    evaluation = replace(c.eval, num_samples=n, batch_size=min(c.eval.batch_size, 32))
    sampling = replace(c.sampling, tol=max(c.sampling.tol, 1e-2))
    folder = workdir(run)  # a folder of its own: what is there is not done again, and would be the real run's
    if folder.resolve().parent == HERE / "exp" and not folder.name.startswith("smoke-"):
        run = replace(run, workdir=str(folder.with_name(f"smoke-{folder.name}")))
    return replace(run, config=replace(c, training=training, eval=evaluation, sampling=sampling))


def execute(run: Run) -> None:
    """Do what a run asks for.

    Raises:
        ValueError, FileNotFoundError: options, files or folders that do not fit; one line says what to do.
    """
    from common.runtime import processes

    run = smoke(run) if run.smoke else run
    here = processes(run.device)
    if run.plan:
        from seqrf.costs import plan

        plan(run, here)
    elif run.mode == "eval":
        evaluate_run(run, here)
    elif run.config.model.rf_phase == 1:
        train_teacher(run, here)
    elif run.config.training.reflow_mode == GENERATE:
        make_pairs(run, here)
    else:
        train(run, here)


# ------------------------------------------------------------------------------------------------------------- teacher
def train_teacher(run: Run, here: Processes) -> Path:
    """Train the rectified flow of a toy2d data set, unless the work folder has it; the file of its weights.

    It is so small that the first process trains it alone, while the others wait.

    Raises:
        ValueError: the data are images.
    """
    data, final = run.config.data, workdir(run) / TEACHER
    if not data.dataset.startswith(PLANE):
        raise ValueError(
            f"--config.model.rf_phase=1 trains teachers of toy2d only: train that of {data.dataset} in its own folder, "
            "and give its weights with --config.training.import_torch"
        )
    if here.is_main:
        _fit_teacher(run, final)
    here.wait()
    return final


def _fit_teacher(run: Run, final: Path) -> None:
    """Train a teacher and write its weights, unless they are there."""
    from common import checkpoint
    from common.runtime import run_lock
    from common.training import small

    data, t, model = run.config.data, run.config.training, run.config.model
    with run_lock(final.parent):
        if final.exists():
            print(f"the teacher is there: {final}")
            return
        schedule = "cosine" if t.lr_decay == "cosine" else "constant"
        options = {"lr": t.lr, "schedule": schedule, "ema_decay": model.ema_rate, "progress": "teacher"}
        plan = {"n_steps": t.n_iters, "batch_size": t.batch_size, "width": model.width}
        net = small.train_mlp(
            data.source, data.dataset.removeprefix(PLANE), "rf", seed=run.config.seed, **plan, **options
        )
        state = {"format": checkpoint.FORMAT, "version": 1, "step": t.n_iters, "config": {}, "network": net.description}
        method = {"name": "rf", "sigma": 0.0, "source": data.source}
        checkpoint.save(final, state | {"method": method, "ema_model": net.state_dict()})
        print(f"teacher: {final}")


def start_of(run: Run, device: Any) -> Model:
    """The model of config.training.import_torch; none: the teacher in the work folder.

    Raises:
        ValueError: no weights were given, or they are of other samples than the configuration's data.
    """
    from seqrf.models import load

    data, path = run.config.data, run.config.training.import_torch
    if path == "none":
        path = str(workdir(run) / TEACHER)
        if not Path(path).exists():
            raise ValueError("give the weights to start from: --config.training.import_torch=FILE")
    model = load(path, device, image_size=data.image_size)
    shape = (2,) if data.dataset.startswith(PLANE) else (data.channels, data.image_size, data.image_size)
    if model.shape != shape:
        theirs, ours = ("x".join(map(str, sizes)) for sizes in (model.shape, shape))
        raise ValueError(
            f"{path} works on {theirs}, the data of the configuration are {ours}: give weights of its data"
        )
    return model


# --------------------------------------------------------------------------------------------------------------- pairs
def make_pairs(run: Run, here: Processes, folder: Path | None = None) -> Path:
    """Make the pairs of a run, or those of them that are not there yet; returns their folder.

    Raises:
        ValueError: no teacher, one that cannot make these pairs, or a folder with others.
    """
    from seqrf import pairs
    from seqrf.manifest import PairOptions

    config, t = run.config, run.config.training
    folder = folder or pairs_folder(run)
    teacher = start_of(run, here.device)
    if teacher.is_student and (t.reflow_t > 1 or len(teacher.edges) > 2):
        raise ValueError(
            f"{teacher.path} is a student of {len(teacher.edges) - 1} segments: pairs come from a teacher, or with "
            "--config.training.reflow_t=1 from a 2-RF"
        )
    solver, n_steps = config.sampling.pairs_solver, None
    if solver not in ("auto", "dopri5"):
        n_steps = max(1, config.model.num_scales // t.reflow_t)
    with here.main_first():  # which downloads where it has to
        pool = replace(pool_of(run, teacher), name=Path(config.data.dataset).name)
    sampling = (config.sampling.cfg, config.sampling.landing)
    options = PairOptions(
        t.n_reflow_data,
        edges_of(run, teacher, here),
        config.seed,
        solver,
        n_steps,
        config.sampling.tol,
        t.gen_reflow_size,
    )
    manifest = pairs.generate(
        folder,
        teacher.flow(*sampling),
        pool,
        teacher.as_teacher(*sampling),
        options,
        device=here.device,
        rank=here.rank,
        world=here.world,
        turn=here.main_first,
        progress=here.is_main,
    )
    here.wait()
    if here.is_main:
        whole = pairs.Pairs.open(folder)
        print(f"{len(whole)} pairs of {manifest.k} segments in {folder}, {whole.nfe:.4g} teacher evaluations a pair")
    return folder


def pairs_folder(run: Run) -> Path:
    """Where a run's pairs are."""
    return Path(run.config.training.pairs) if run.config.training.pairs else workdir(run) / PAIRS


def pool_of(run: Run, teacher: Model) -> Pool:
    """The real samples and labels that pairs start from."""
    from seqrf.endpoints import Pool

    data, k = run.config.data, run.config.training.reflow_t
    if data.dataset.startswith(PLANE):
        from common.data.toys import sample
        from common.runtime import generator

        return Pool(sample(data.dataset.removeprefix(PLANE), POINTS, generator(run.config.seed, "pool")))
    if k == 1 and not teacher.num_classes:
        return Pool(None)
    from seqrf.images import load_split

    images = load_split(data, "train", run.smoke)
    if not teacher.num_classes:
        return Pool(images.images)
    if images.labels is None:
        raise ValueError(f"the teacher is class-conditional, but {data.dataset} has no labels: give labelled data")
    if images.num_classes > teacher.num_classes:
        raise ValueError(f"{data.dataset} has {images.num_classes} classes, the teacher knows {teacher.num_classes}")
    return Pool(images.images if k > 1 else None, images.labels)


class Edges(TypedDict, total=False):
    """Adaptive segments as the work folder keeps them, with what they were made of."""

    edges: list[float]


def edges_of(run: Run, teacher: Model, here: Processes) -> list[float]:
    """The segments of a run: of equal length, or adaptive; those are computed once and kept in the work folder."""
    from common.runtime import read_json, write_json
    from seqrf.segments import checked_edges, uniform_edges

    t = run.config.training
    if not t.adaptive_interval:
        return uniform_edges(t.reflow_t)
    settings = {"teacher": teacher.hash, "k": t.reflow_t, "samples": t.adaptive_samples, "steps": t.adaptive_steps}
    settings |= {"cfg": run.config.sampling.cfg, "seed": run.config.seed}
    path = workdir(run) / f"edges_{t.reflow_t}.json"
    with here.main_first():
        entry = read_json(path, Edges) if path.exists() else {}
        if any(entry.get(key) != value for key, value in settings.items()):
            edges = teacher_edges(teacher, t.reflow_t, t.adaptive_samples, t.adaptive_steps, run.config)
            write_json(path, entry := settings | {"edges": edges})
            print(f"adaptive segments: {', '.join(f'{edge:.3g}' for edge in edges)}")
    return checked_edges(entry["edges"])


def teacher_edges(teacher: Model, k: int, n_samples: int, n_steps: int, config: Config) -> list[float]:
    """Edges whose k chords are straightest in sum on fine Euler trajectories of a teacher, a few of them at a time.

    Costs n_samples n_steps evaluations.

    Source: Yoon & Lee 2402.06461; no segment shorter than 1% of the steps, as in the authors' code.
    """
    from tqdm import tqdm

    from common.generate import labels_for
    from common.solvers.grids import partition, segment_costs
    from seqrf.evaluate import Sampler, draw
    from seqrf.segments import checked_edges

    size = max(1, min(n_samples, STATES // ((n_steps + 1) * math.prod(teacher.shape))))
    sampler = Sampler("euler", n_steps, cfg=config.sampling.cfg, seed=config.seed)
    cost, times = 0.0, [i / n_steps for i in range(n_steps + 1)]
    with tqdm(total=n_samples, desc="trajectories", unit="sample", dynamic_ncols=True) as bar:
        for start in range(0, n_samples, size):
            rows = range(start, min(start + size, n_samples))
            y = labels_for(rows, teacher.num_classes)
            path = draw(teacher, rows, y, sampler, trajectory=True, batch_size=size, progress=False).trajectory
            assert path is not None
            cost = cost + segment_costs(path, times, "straightness") * len(rows) / n_samples
            bar.update(len(rows))
    nodes = partition(cost, k, max(1, round(0.01 * n_steps)))  # type: ignore[arg-type]
    return checked_edges([times[i] for i in nodes])


# ------------------------------------------------------------------------------------------------------------ training
def train(run: Run, here: Processes) -> Path:
    """Train a student on the pairs of a run; returns the file of its weights.

    With adaptive segments, pairs that were made for equal ones are left alone: others are made beside them.
    """
    from seqrf.pairs import Pairs
    from seqrf.train import train_student

    check_logger(run.logger)
    t, model = run.config.training, start_of(run, here.device)
    if t.reflow_mode == DISTILL and run.config.sampling.method == "pc" and run.config.model.num_scales < t.reflow_t:
        raise ValueError(
            f"--config.model.num_scales {run.config.model.num_scales} is less than one step for each of the "
            f"{t.reflow_t} segments: give {t.reflow_t} or more"
        )
    folder = pairs_folder(run)
    if t.adaptive_interval and not is_adaptive(folder, run, model, here):
        folder = folder.with_name(folder.name + "_ada")
        here.say(f"pairs of adaptive segments: {folder}")
        make_pairs(run, here, folder)
    pairs = Pairs.open(folder, model.method.get("teacher", model.hash), t.reflow_t, model.shape)
    final = train_student(run, model, pairs, workdir(run), here, watcher(run, here))
    here.say(f"evaluate it: --mode=eval with the same --config and --workdir={workdir(run)}")
    return final


def is_adaptive(folder: Path, run: Run, model: Model, here: Processes) -> bool:
    """Whether a folder holds pairs of adaptive segments: not of equal length, or just those that this run would get."""
    from seqrf.manifest import read_manifest
    from seqrf.segments import uniform_edges

    if not (folder / "manifest.json").exists():
        return False
    edges = read_manifest(folder).edges

    def differ(other: list[float]) -> bool:
        return len(other) != len(edges) or max(abs(a - b) for a, b in zip(edges, other)) > 1e-6

    return differ(uniform_edges(len(edges) - 1)) or not differ(edges_of(run, model, here))


def watcher(run: Run, here: Processes) -> Callable[[Model], dict[str, Any]]:
    """What is done with the student at each snapshot: a picture of samples, and figures, as the options ask."""
    from common.generate import labels_for
    from seqrf.evaluate import SHOWN, draw, picture, sampler_of
    from seqrf.quality import make_judge

    t, judge = run.config.training, None

    def watch(model: Model) -> dict[str, Any]:
        nonlocal judge
        few = 4 if run.smoke else SHOWN
        n = max(few if t.snapshot_sampling else 0, t.snapshot_fid_sample)
        if not n:
            return {}
        y, pixels = labels_for(range(n), model.num_classes), len(model.shape) == 3
        samples = draw(model, range(n), y, sampler_of(run.config), pixels=pixels, progress=n > few)
        if t.snapshot_sampling:
            picture(samples.x, None, workdir(run) / "samples" / f"step_{model.step:07d}.png")
        if not t.snapshot_fid_sample:
            return {"snapshot_nfe": samples.nfe}
        judge = judge or make_judge(run, workdir(run), here.device)
        first = slice(t.snapshot_fid_sample)
        return {"snapshot_nfe": samples.nfe} | judge.measure(samples.x[first], None if y is None else y[first])

    return watch


# ---------------------------------------------------------------------------------------------------------- evaluation
def evaluate_run(run: Run, here: Processes) -> list[dict[str, Any]]:
    """Evaluate the weights of a run, or those of config.training.import_torch; the rows.

    Raises:
        FileNotFoundError: the run has no weights, or no snapshot in the range of steps.
    """
    from seqrf.evaluate import evaluate
    from seqrf.models import load
    from seqrf.quality import make_judge

    if not here.is_main:
        return []
    files = [Path(run.config.training.import_torch)] if run.config.training.import_torch != "none" else weights_of(run)
    judge, out = make_judge(run, workdir(run), here.device), workdir(run) / run.eval_folder
    size = run.config.data.image_size
    rows = [evaluate(load(file, here.device, image_size=size), run, judge, out) for file in files]
    print(f"rows, pictures: {out}")
    return rows


def weights_of(run: Run) -> list[Path]:
    """The snapshots that config.eval asks for, or the last weights."""
    from seqrf.train import FINAL, SNAPSHOTS

    e, folder = run.config.eval, workdir(run)
    files = {int(file.stem.rpartition("_")[2]): file for file in (folder / SNAPSHOTS).glob("weights_step_*.pt")}
    if e.begin_step < 0:
        final = folder / FINAL
        if not final.exists() and not files:
            raise FileNotFoundError(f"no weights in {folder}: train first, or give --config.training.import_torch=FILE")
        return [final if final.exists() else files[max(files)]]
    steps = [s for s in sorted(files) if e.begin_step <= s <= e.end_step and s % e.interval_step == 0]
    if not steps:
        names = ", ".join(map(str, sorted(files))) or "none"
        raise FileNotFoundError(
            f"no snapshot in {folder} from step {e.begin_step} to {e.end_step} in steps of {e.interval_step}; "
            f"there are: {names}"
        )
    return [files[s] for s in steps]
