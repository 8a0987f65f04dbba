"""--plan: what the stages of sequential reflow will take on this machine, measured on some pairs and some steps."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from common.runtime import Processes, number_of
from common.training.plan import tell
from seqrf.all_stages import with_training
from seqrf.options import DISTILL, GENERATE, Run
from seqrf.pairs import Pairs
from seqrf.shards import read_header
from seqrf.stages import make_pairs, pairs_folder, start_of, watcher, workdir
from seqrf.train import FINAL, PairBatches, SegmentTrainer, snapshots

FEW = 16  # pairs of a segment that are made on a CPU, at most; on a GPU a batch of them


def plan(run: Run, here: Processes) -> float:
    """Say what a command takes: pairs and the training on them, or the training alone. Its seconds; nothing is left.

    Raises:
        ValueError: an evaluation or a teacher of the plane, which have no plan; no weights to start from.
    """
    if run.mode == "eval" or run.config.model.rf_phase == 1:
        raise ValueError("--plan is of pairs and students: leave out --mode=eval and --config.model.rf_phase=1")
    model, folder, seconds = start_of(run, here.device), pairs_folder(run), 0.0
    with tempfile.TemporaryDirectory() as place:
        made = with_training(replace(run, workdir=place), import_torch=str(model.path), pairs="")
        if run.config.training.reflow_mode == GENERATE:
            seconds = plan_pairs(made, here, folder)
        there = run.config.training.reflow_mode != GENERATE and (folder / "manifest.json").exists()
        pairs = Pairs.open(folder) if there else some_pairs(made, here)
        here.say("---- training")
        trainer, source = SegmentTrainer(run, model, pairs, here), PairBatches(pairs, run, here)
        events = partial(snapshots, trainer, watcher(made, here))  # their pictures go to the place, too
        return seconds + tell(trainer, source, workdir(run) / FINAL, run, events).seconds


def some_pairs(run: Run, here: Processes) -> Pairs:
    """A few pairs of equal segments in the run's work folder, once; every process makes its own."""
    t = run.config.training
    each = min(t.gen_reflow_size, FEW) if here.device.type == "cpu" else t.gen_reflow_size
    few = min(t.n_reflow_data, t.reflow_t * each)
    with contextlib.redirect_stdout(None):
        sample = with_training(run, n_reflow_data=few, adaptive_interval=False)
        return Pairs.open(make_pairs(sample, replace(here, rank=0, world=1)))


def plan_pairs(run: Run, here: Processes, folder: Path) -> float:
    """Say what the pairs of a run take, as some in its work folder did, and where they would go; the seconds."""
    t, pairs = run.config.training, some_pairs(run, here)
    shards = range(pairs.manifest.n_shards)
    one = sum(read_header(pairs.folder, shard)["seconds"] for shard in shards) / len(pairs)
    size = sum(map(pairs.manifest.size, shards)) / len(pairs) * t.n_reflow_data
    seconds, what = one * t.n_reflow_data / here.world, number_of(t.reflow_t, "segment")
    if t.adaptive_interval:
        seconds += one / pairs.nfe * t.adaptive_samples * t.adaptive_steps
        what += f", which {t.adaptive_samples} trajectories of {t.adaptive_steps} steps choose"
    here.say(f"---- pairs\npairs    {len(pairs)} made, {one:.3g} s and {pairs.nfe:.3g} evaluations of the teacher each")
    here.say(f"time     {timedelta(seconds=round(seconds))}: {t.n_reflow_data} pairs of {what}")
    here.say(f"disk     {size / 1e6:,.3g} MB in {folder}")
    return seconds


def plan_all(run: Run, here: Processes) -> None:
    """Say what all students of pipeline.py take, and the sum; evaluations and teachers of the plane are not in it."""
    p, seconds = run.config.pipeline, 0.0
    kinds = [*((k, GENERATE, False) for k in p.segments), *((k, GENERATE, True) for k in p.adaptive)]
    for k, mode, adaptive in [*kinds, *((k, DISTILL, False) for k in p.distill)]:
        here.say(f"---- {number_of(k, 'segment')}{', adaptive' * adaptive}{', distilled' * (mode == DISTILL)}")
        seconds += plan(with_training(run, reflow_t=k, reflow_mode=mode, adaptive_interval=adaptive, pairs=""), here)
    total = timedelta(seconds=round(seconds * len(p.seeds)))
    here.say(f"in all   {total} for {number_of(len(p.seeds), 'seed')}, and the evaluations")
