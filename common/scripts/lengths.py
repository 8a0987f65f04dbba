"""Choose the length of a run's average of weights after the run, by the loss on what it held out.

    python -m common.ema RUN                             # seven lengths; the best becomes RUN/ema_std_STD.pt
    python -m common.ema RUN --std 0.03 0.08..0.2 --write all

RUN is the folder of a run that was trained with --ema_std 0.05 0.10, which keeps snapshots of two power-function
averages; one of another length is a sum of them (Karras et al. 2024, 2312.02696, section 3). Long averages have a
larger std: its unit is the length of the run. The loss is the run's own validation loss, of the same images, noise and
times; a picture of it goes to RUN/ema/lengths.png. The error of the profile says how far the sum is from the average of
that length, since snapshots are few. The run's other weights stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from common import cli
from common.cli.ranges import Device, Matches

WITHIN = 7  # lengths of a range
NUMBER = r"0?\.\d+"
Lengths = Annotated[
    str, Matches(rf"{NUMBER}(\.\.{NUMBER})?", "give a number such as 0.1, or a range such as 0.05..0.2")
]


@dataclass(frozen=True)
class Options:
    """Options of the choice."""

    run: str = ""
    """Run folder; may stand without this flag"""
    std: tuple[Lengths, ...] = ("0.05..0.2",)
    """Lengths to measure, standard deviations as shares of the run from 0.01 to 0.28; of a range A..B seven"""
    write: Literal["best", "all"] = "best"
    """Which to write as weights, with a card each"""
    data: str = ""
    """The images of the run, where they have moved since: the same ones"""
    data_root: str = ""
    """The folder of torchvision's sets, where that has moved"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""

    def check_together(self) -> None:
        if not self.run:
            raise ValueError("give a run folder: python -m common.ema RUN_FOLDER")
        for word in self.std:
            ends = [float(end) for end in word.split("..")]
            if not 0.01 <= ends[0] <= ends[-1] <= 0.28:
                raise ValueError(f"--std {word}: must be from 0.01 to 0.28, a range ascending, e.g. 0.05..0.2")

    @property
    def stds(self) -> list[float]:
        """The lengths, in order."""
        found = set()
        for word in self.std:
            ends = [float(end) for end in word.split("..")]
            found |= {round(ends[0] + k / (WITHIN - 1) * (ends[-1] - ends[0]), 4) for k in range(WITHIN)}
        return sorted(found)


def main(argv: Sequence[str] | None = None) -> Any:
    """The command line; returns the file of the best weights."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = cli.parse(Options, description=__doc__ or "", argv=words, words=("run",))
    from common.training.lengths import choose

    run = Path(options.run).expanduser()
    command = ["python", "-m", "common.ema", *words]
    return choose(run, options.stds, options.write == "all", options.data, options.data_root, options.device, command)
