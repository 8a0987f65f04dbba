"""Measure generated images against real ones: FID, KID, precision and recall, Inception score; every result a card.

    python -m common.evaluate A B --out card.json        # two sets, or a statistics file in place of one
    python -m common.evaluate B --save real.npz          # statistics, to be used in place of B
    python -m common.evaluate compare CARD...            # a table of cards that can be compared
    python -m common.evaluate page RUN_FOLDER            # one offline page about a run
    python -m common.evaluate bits --weights W --data B  # bits per dimension of images under a flow
    python -m common.evaluate inception                  # where FID's weights are looked for, and how to get them

A is the generated set, B the real one: a folder, zip, tar, LMDB, .npy or .npz. The network is pytorch-fid's Inception,
whose weights are never downloaded (--inception PATH), EfficientNet-Lite0 (--features effnet-lite0), whose ImageNet
weights come with a pip package and whose figures are called effnet_frechet, effnet_kid and so on, or any TorchScript
network (--features FILE). Only Inception's distances are called FID and KID, and no table compares figures of different
features. Published FIDs are of 50,000 images; with fewer, compare cards of as many images only: a Frechet distance
falls with their number, KID does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.evaluate.options import BitsConfig, CompareConfig, EvaluateConfig, InceptionConfig, PageConfig
from common.records import compare, page
from common.records.cards import without_folders
from common.runtime import run_main


def main(argv: Sequence[str] | None = None) -> Any:
    """The command line; returns the card, the table or the page's path."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = without_folders(["python", "-m", "common.evaluate", *words])
    match words[:1]:
        case ["compare"]:
            options = cli.parse(CompareConfig, description=compare.__doc__ or "", argv=words[1:], words=("cards",))
            return compare.write_table(compare.table(options.cards), options.out)
        case ["page"]:
            options = cli.parse(PageConfig, description=page.__doc__ or "", argv=words[1:], words=("run",))
            if not options.run:
                raise ValueError("give a run folder: python -m common.evaluate page RUN_FOLDER")
            return page.write_page(Path(options.run).expanduser(), options.out, options.grids)
        case ["bits"]:
            options = cli.parse(BitsConfig, argv=words[1:])
            from common.evaluate.likelihood import bits

            return bits(options, command)
        case ["inception"]:
            options = cli.parse(InceptionConfig, argv=words[1:], words=("inception",))
            from common.evaluate.comparison import tell

            return tell(options)
    options = cli.parse(EvaluateConfig, description=__doc__ or "", argv=words, words=("a", "b"))
    from common.evaluate.comparison import evaluate

    return evaluate(options, command)


if __name__ == "__main__":
    run_main(main)
