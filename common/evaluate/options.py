"""The options of the commands of ``python -m common.evaluate``, as frozen dataclasses without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.cli.ranges import AtLeast, Count, Device, Seed, Split, Whole

USAGE = (
    "python -m common.evaluate A B, or A --save FILE, compare CARD..., page RUN_FOLDER, bits --weights W --data B, "
    "inception"
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of the comparison of two sets of images."""

    # ---- sets
    a: str = ""
    """Generated images, or statistics; may stand without this flag"""
    b: str = ""
    """Real images, or statistics; may stand without this flag"""
    split: Split = "train"
    """Which images, where a set has folders train/ and test/"""
    side: Whole = 0
    """Crop to the centre square and resize to this side before the network; 0: leave the images as they are"""
    small: bool = False
    """Measure also fewer than 2,048 images; such a number means little"""

    # ---- network
    inception: str = ""
    """Weights of FID's Inception; empty: those in torch's cache"""
    features: str = ""
    """effnet-lite0: EfficientNet-Lite0, ImageNet weights from pip; or the file of a TorchScript network. Such a file is
    code: take it from people you trust"""
    pixels: Literal["signed", "unit", "bytes"] = "signed"
    """What that network takes: [-1, 1], [0, 1] or uint8"""
    resize: Whole = 0
    """Side that the images get for that network; 0: their own"""

    # ---- measurements
    kept: Annotated[int, AtLeast(4, "give 4 or more")] = 10_000
    """Features kept of each set, a random sample, for all but FID and the Inception score"""
    kid_subsets: Count = 100
    """Subsets of KID, of up to 1000 images each"""
    neighbours: Count = 3
    """Neighbour that gives the radius in precision and recall"""
    resamples: Annotated[int, AtLeast(2, besides=0)] = 4
    """Random halves of A's kept features that tell the spread of FID; 0: none"""
    crosscheck: bool = False
    """FID also by torch-fidelity or clean-fid, whichever is installed, with the same weights"""
    seed: Seed = 0
    """Of the samples and subsets"""

    # ---- files
    out: str = ""
    """Card to write, .json; empty: print it"""
    save: str = ""
    """Write the statistics of A to this .npz"""
    cache: str = ""
    """Folder that keeps statistics by the content of the images"""
    foreign_statistics: bool = False
    """Take a statistics file that does not say its network for one of this network"""

    # ---- running
    batch_size: Count = 50
    """Images at a time; changes speed and memory only"""
    num_workers: Count = 2
    """Threads that read images"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""

    def check_together(self) -> None:
        if not self.a or not (self.b or self.save):
            raise ValueError(f"give two sets of images: {USAGE}")
        if self.inception and self.features:
            raise ValueError("--inception and --features exclude each other; give one of them")
        if self.crosscheck and self.features:
            raise ValueError("--crosscheck is of FID, which --features does not give; leave one of them out")
        folders = [Path(spec).expanduser().is_dir() for spec in (self.a, self.b)]
        if self.crosscheck and (self.side or not all(folders)):
            raise ValueError("--crosscheck reads folders of images as they are: give two folders, and no --side")
        if (self.resize or self.pixels != "signed") and self.features in ("", "effnet-lite0"):
            raise ValueError("--resize and --pixels belong to --features FILE; other networks have their own rule")
        if self.save and Path(self.save).suffix != ".npz":
            raise ValueError(f"--save {self.save}: give a name that ends in .npz")


@dataclass(frozen=True)
class BitsConfig:
    """Bits per dimension of images under a trained flow: ``python -m common.evaluate bits --weights W --data
    IMAGES``."""

    weights: str = ""
    """Checkpoint, or a run folder"""
    data: str = ""
    """Images: a folder, zip, tar, LMDB, .npy or .npz"""
    split: Split = "test"
    """Which images, where the set has folders train/ and test/"""
    n_samples: Count = 64
    """Images, evenly spread over the set"""
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    """Solver of the flow and of its density"""
    n_steps: Count = 50
    """Steps of it; double them to see what the solver misses"""
    probes: Count = 1
    """Of Hutchinson's estimate of the divergence"""
    batch_size: Count = 32
    """Images at a time"""
    seed: Seed = 0
    """Of the dequantisation and the probes"""
    out: str = ""
    """Card to write, .json; empty: print it"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""


@dataclass(frozen=True)
class CompareConfig:
    """Options of the table."""

    cards: tuple[str, ...] = ()
    """Cards to compare; may stand without this flag"""
    out: str = ""
    """Markdown file to write, with a .csv beside it; empty: print the table"""


@dataclass(frozen=True)
class PageConfig:
    """Options of the page."""

    run: str = ""
    """Run folder; may stand without this flag"""
    out: str = ""
    """File to write; empty: page.html in the run folder"""
    grids: Count = 6
    """Sample grids to show, evenly spread over the run, with the first and the last"""


@dataclass(frozen=True)
class InceptionConfig:
    """Where the Inception weights of FID are looked for, whether they are there and whole, and how to get them."""

    inception: str = ""
    """Their file; may stand without this flag; empty: in torch's cache"""
