"""A teacher's trajectories, made once before the first step of a run and kept in its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import checkpoint
from common.methods import method_of
from common.runtime import generator
from common.training.batches import Ahead, Batch, CoupledBatches
from common.training.trainer import Trainer

# Of a batch, the share of the points that are noise itself, whose end is the one-step sample. A point drawn evenly
# from a trajectory is noise once in 12 or 16 times: one step then stays behind by far, see docs/few-steps.md.
AT_NOISE = 0.5


class TrajectoryBatches(Ahead):
    """Points x_t of a teacher's trajectories, their times and their ends: ``x0``, ``t`` and ``x1`` of a :class:`Batch`.

    They begin at the noises and labels of the first batches of the run's data. Half of the points of a batch are the
    noise, the others lie anywhere after it, each of a trajectory drawn at random. Trajectories are kept in halves:
    ``teacher_noises`` (``teacher_steps`` + 1) times the size of an image, of all processes together.

    Args:
        trainer: with a teacher.
        noises: where the trajectories begin.
    """

    def __init__(self, trainer: Trainer, noises: CoupledBatches):
        config = trainer.config
        super().__init__(trainer.device, config.coupling_ahead)
        self.trainer, self.noises, self.seed, self.processes = trainer, noises, config.seed, trainer.processes
        self.count = -(-config.teacher_noises // config.batch_size)  # of files
        self.states, self.times, self.labels = torch.empty(0), torch.empty(0), None  # (T, N, C, H, W), (T,), (N,)

    def prepare(self, folder: Path | None) -> tuple[float, int]:
        """Make the trajectories, or read those that an earlier process of the run made; a file for each batch.

        Args:
            folder: of the run; None: the first ones alone are made, and nothing is written.

        Returns:
            Seconds and bytes that all take.
        """
        here, start = self.processes, time.perf_counter()
        numbers = range(self.count if folder else 1)
        shown = tqdm(numbers, "teacher", unit="batch", disable=not (folder and here.is_main), dynamic_ncols=True)
        size = self.noises.batches.batch_size // here.world
        for k in shown:
            made = self._batch(k, folder / "trajectories" if folder else None)
            if not k:  # all at once, so that they never lie in memory twice
                self.times, states, labels = made["times"], made["states"], made.get("labels")
                self.states = states.new_empty((len(states), size * len(numbers), *states.shape[2:]))
                self.labels = None if labels is None else labels.new_empty((size * len(numbers), *labels.shape[1:]))
            rows = slice(k * size, (k + 1) * size)
            self.states[:, rows] = made["states"]
            if self.labels is not None:
                self.labels[rows] = made["labels"]
        share = self.count / len(numbers)
        taken = self.states.numel() * self.states.element_size() * here.world
        return share * (time.perf_counter() - start), round(share * taken)

    def make(self, step: int) -> Batch:
        """This process's points of a step."""
        steps, count = len(self.times), self.states.shape[1]
        draw = generator(self.seed, "trajectories", step, self.processes.rank)
        rows = self.noises.batches.batch_size // self.processes.world
        which = torch.randint(count, (rows,), generator=draw)
        point = torch.randint(1, steps, (rows,), generator=draw) if steps > 1 else torch.zeros(rows, dtype=torch.long)
        point[torch.rand(rows, generator=draw) < AT_NOISE] = 0
        device = self.noises.batches.device
        x, end = (self.states[i, which].float().to(device) for i in (point, -1))
        y = None if self.labels is None else self.labels[which].to(device)
        return Batch(x, end, self.times[point].to(device), x, y)

    def _batch(self, k: int, folder: Path | None) -> dict[str, Any]:
        """The trajectories from the noises of batch k."""
        trainer, here, config = self.trainer, self.processes, self.trainer.config
        names = ("seed", "batch_size", "label_dropout", "sigma", "teacher_cfg", "teacher_steps")
        key = {
            **{name: getattr(config, name) for name in names},
            **{"data": trainer.data, "world": here.world, "teacher": trainer.origin.get("sha256", "")},
        }
        file = folder / f"{k:05d}_{here.rank}.pt" if folder else None
        if file and file.exists():
            try:
                there = checkpoint.load(file)
            except checkpoint.Unreadable as error:
                raise ValueError(f"{error.fault}: delete it, and it is made again") from None
            if there.get("key") == key:
                return there
        batch = self.noises.make(k)
        method, teacher = method_of(config.method), trainer.taught_by(batch.y)
        states, times = method.trajectories(teacher, config.sigma, batch.x0, config.teacher_steps or 1)
        made = {"key": key, "states": states.half().cpu(), "times": times.cpu()}
        made |= {} if batch.y is None else {"labels": batch.y.cpu()}
        if file:
            file.parent.mkdir(exist_ok=True)
            checkpoint.save(file, made)
        return made
