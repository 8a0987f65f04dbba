"""Open a page to play with flows: images step by step, between two noises, a picture followed to its noise.

    python -m common.app                                   # the shipped weights and those of runs
    python -m common.app --weights PATH hf:USER/NAME       # and these, first
    python -m common.app --no-browser --port 8000          # http://127.0.0.1:8000

Only this machine can open the page, which asks nobody else for anything. Needs Flask: pip install flask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from common import cli
from common.cli.ranges import AtLeast, AtMost, Device
from common.runtime import run_main


@dataclass(frozen=True)
class Options:
    """Options of the page."""

    weights: tuple[str, ...] = ()
    """Files or folders of weights, or hf:USER/NAME, that stand first in the page's list"""
    port: Annotated[int, AtLeast(0), AtMost(65535)] = 7860
    """Port on 127.0.0.1; 0: any free one"""
    browser: bool = True
    """Open the page in the browser"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; returns when it is interrupted."""
    options = cli.parse(Options, description=__doc__ or "", argv=argv)
    from common.app import serve  # the port and Flask are asked for before torch takes its seconds

    with serve.listening(options.port) as door:
        from common.app.play import Player, find_weights

        serve.serve(door, Player(find_weights(options.weights), options.device), options.browser)


if __name__ == "__main__":
    run_main(main)
