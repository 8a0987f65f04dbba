"""The comparison of two sets of images, from their files to a card; the command is ``python -m common.evaluate``."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from common.cli.ranges import AtLeast, Count, Device, Seed, Split, Whole
from common.records.compare import circumstances, write
from common.runtime import read_json

if TYPE_CHECKING:
    from common.evaluate.features import FeatureNetwork
    from common.evaluate.sets import FeatureSet, ImageSet

FEWEST, ENOUGH = 2048, 50_000  # images: the dimension of Inception's features; what published FIDs are of
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


def evaluate(config: EvaluateConfig, command: str = "") -> dict[str, Any]:
    """Measure A against B and write the card; with ``save`` alone write A's statistics.

    Raises:
        FileNotFoundError: a set or the network is not there.
        ValueError: a wrong option, damaged images or statistics, too few images.
    """
    from common.evaluate.figures import measure

    started, package = time.perf_counter(), crosscheck_package() if config.crosscheck else None
    network = _network(config)
    opened = [_open(config, spec, network) for spec in (config.a, config.b) if spec]  # both, before hours of work
    a = _features(config, opened[0], network)
    if config.save:
        from common.evaluate.sets import save_statistics

        save_statistics(config.save, a)
        print(f"statistics of {a.count} images: {config.save}")
    if not config.b:
        return {}
    b = _features(config, opened[1], network)
    card = {"kind": "evaluation", "a": _described(config.a, a), "b": _described(config.b, b), **network.about()}
    card |= {"side": config.side, "split": config.split, "seed": config.seed, "kept": config.kept}
    card["metrics"] = measure(a, b, config.kid_subsets, config.neighbours, config.resamples, config.seed)
    if package is not None:
        card["crosscheck"] = crosscheck(config, package)
    card["warnings"] = warnings_of(a, b)
    card |= circumstances(config.device, command, started)
    for warning in card["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return write(card, config.out)


@dataclass(frozen=True)
class InceptionConfig:
    """Options of what is told of Inception's weights."""

    inception: str = ""
    """Their file; may stand without this flag; empty: in torch's cache"""


def tell(config: InceptionConfig) -> bool:
    """Where the Inception weights of FID are looked for, whether they are there and whole, and how to get them.

    Raises:
        ValueError: other weights, or a download that was cut off.
    """
    from common.evaluate.features import EFFNET_FLAG, EFFNET_PACKAGES, FILE, URL, inception_place
    from common.runtime import file_hash

    file, mark = inception_place(config.inception), Path(FILE).stem.split("-")[-1]  # of its SHA-256, as torch.hub's
    there = file.is_file()
    if there and not (found := file_hash(file)).startswith(mark):
        raise ValueError(f"{file} has the SHA-256 {found[:8]}..., FID's weights {mark}...: download {URL} again")
    print(f"Inception weights of FID: {'here and whole' if there else 'not here'}, {file}")
    if not there:
        print(f"  to get them: download {URL} (91 MB) to there, or anywhere, and give --inception PATH")
    if not config.inception:
        print("  the folder is torch's cache; TORCH_HOME=FOLDER makes it FOLDER/hub/checkpoints")
    print("  what they give: FID and KID by python -m common.evaluate A B; in every measure.py and in seqrf without")
    print("  being asked, where torch's cache has them")
    print(f"  without them: --features {EFFNET_FLAG}, after pip install {EFFNET_PACKAGES}")
    return there


def _network(config: EvaluateConfig) -> FeatureNetwork:
    from common.evaluate import features
    from common.runtime import pick_device

    device = pick_device(config.device)
    if config.features == features.EFFNET_FLAG:
        return features.effnet_network(device)
    if config.features:
        file = Path(config.features).expanduser()
        return features.torchscript_network(file, device, config.pixels, config.resize)
    return features.inception_network(features.find_inception(config.inception), device)


def _open(config: EvaluateConfig, spec: str, network: FeatureNetwork) -> FeatureSet | ImageSet:
    """Statistics from a file of them, or images that are still to be read; refused when they are too few."""
    from common.evaluate import sets

    if sets.is_statistics(spec):
        opened = sets.load_statistics(spec, network, config.foreign_statistics)
        count = opened.count or FEWEST  # unknown in another project's file
    else:
        opened = sets.open_set(spec, config.side, config.split)
        count = len(opened)
    if count < FEWEST and not config.small:
        raise ValueError(f"{spec} has {count} images: a distance of fewer than {FEWEST:,} means little; --small allows")
    return opened


def _features(config: EvaluateConfig, opened: FeatureSet | ImageSet, network: FeatureNetwork) -> FeatureSet:
    from common.evaluate import sets

    if isinstance(opened, sets.FeatureSet):
        return opened
    folder = Path(config.cache).expanduser() if config.cache else None
    return sets.cached(opened, network, folder, config.kept, config.seed, config.batch_size, config.num_workers)


def warnings_of(a: FeatureSet, b: FeatureSet) -> list[str]:
    """What a reader of the figures must know."""
    from common.evaluate.features import INCEPTION

    warnings = []
    for name, features in (("A", a), ("B", b)):
        if features.about.get("unverified"):
            warnings.append(f"{name}: statistics of unknown origin and count, taken on the user's word")
        elif features.count < ENOUGH:
            warnings.append(
                f"{name} has {features.count:,} images, published FIDs {ENOUGH:,}: fewer give larger values"
                if features.about.get("backend") == INCEPTION
                else f"{name} has {features.count:,} images: a Frechet distance falls with them, compare as many only"
            )
    sides = a.about.get("side"), b.about.get("side")
    if None not in sides and sides[0] != sides[1]:
        warnings.append(f"the images of A have side {sides[0]}, those of B {sides[1]}: --side N makes them alike")
    if a.content and a.content == b.content:
        warnings.append("A and B hold the same images")
    return warnings


def _described(spec: str, features: FeatureSet) -> dict[str, Any]:
    """A set on a card: its name without folders, count, content and, for generated images, how they were made."""
    from common.images import facts_file

    path = Path(spec).expanduser()
    facts: dict[str, Any] = {"name": path.resolve().name, "images": features.count, "side": features.about.get("side")}
    facts["content"] = features.content
    if (made := facts_file(path)).is_file():
        known = read_json(made, dict[str, Any])
        facts["made"] = {k: Path(v).name if isinstance(v, str) and "/" in v else v for k, v in known.items()}
    return facts


def crosscheck_package() -> ModuleType:
    """torch-fidelity, or clean-fid where that is not installed.

    Raises:
        ValueError: neither is installed.
    """
    for name in ("torch_fidelity", "cleanfid.fid"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise ValueError("--crosscheck needs another package: pip install torch-fidelity (or clean-fid)")


def crosscheck(config: EvaluateConfig, package: Any) -> dict[str, Any]:
    """FID of the two folders by another package with the same weights; clean-fid in the mode of pytorch-fid."""
    import torch

    from common.evaluate.features import find_inception

    folders = [str(Path(spec).expanduser()) for spec in (config.a, config.b)]
    weights = find_inception(config.inception)
    if hasattr(package, "calculate_metrics"):
        options = {"fid": True, "cuda": False, "verbose": False, "batch_size": config.batch_size, "save_cpu_ram": True}
        options["feature_extractor_weights_path"] = str(weights)
        figures = package.calculate_metrics(input1=folders[0], input2=folders[1], **options)
        return {"by": "torch-fidelity", "fid": float(figures["frechet_inception_distance"])}
    options = {"num_workers": 0, "use_dataparallel": False, "verbose": False, "batch_size": config.batch_size}
    with _clean_fid_reads(weights):  # by default it wants a GPU, and downloads the weights
        value = package.compute_fid(*folders, mode="legacy_pytorch", device=torch.device("cpu"), **options)
    return {"by": "clean-fid legacy_pytorch", "fid": float(value)}


@contextlib.contextmanager
def _clean_fid_reads(weights: Path) -> Iterator[None]:
    """Inside the block clean-fid's network takes its weights from a file, for which it has no option."""
    from common import checkpoint

    module: Any = importlib.import_module("cleanfid.inception_pytorch")
    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda url, progress: checkpoint.load(weights)
    try:
        yield
    finally:
        module.load_state_dict_from_url = original
