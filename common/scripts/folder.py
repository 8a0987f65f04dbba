"""What is particular to a data set's folder, and its data.

A folder says what is its own (presets, data, names) in a :class:`Folder`; the bodies of its scripts are the modules
beside this one, the same everywhere. Torch is imported inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.cli.configs import TrainConfig
from common.methods import method_of

# IDFF's heads trained for the velocity, with the target of less variance: what the presets but the papers' take.
OBJECTIVE: dict[str, Any] = {
    "data_loss": "velocity",
    "score_target": "conditional",
    "coupling": "independent",
    "flow_weight": 1.0,
    "score_weight": 0.1,
}
# The U-Net that a CPU trains in hours, 7.0M parameters for colour images; with patch_size it sees fewer pixels.
CPU_NETWORK: dict[str, Any] = {
    "num_channel": 64,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "head_channels": 32,
    "dropout": 0.0,
}
FLAGS = {"flow_w": "flow_weight"}  # more spellings, of IDFF's scripts
SMOKE_IMAGES = 64  # that are made up, at most
FEW = 4  # steps, at most, for which weights tuned for few of them are taken


@dataclass(frozen=True)
class Folder:
    """What is particular to a data set's folder; ``weights``, ``few`` and ``run`` are relative to it."""

    here: Path  # the folder
    presets: dict[str, TrainConfig]  # training options by name; the first is the default
    data: str  # the usual --data; empty where the images have to be fetched by hand, to one of ``places``
    weights: str  # that are shipped, or that their authors offer; nothing else is written to their folder
    weights_name: str  # of a run's final weights; {METHOD} is replaced
    few: str = ""  # shipped weights that were tuned for 1 to FEW steps, which a plain call for so few takes
    landing: float = 1.0  # the usual --landing: below 1 for weights whose velocity near the data is mostly error
    load_data: Callable[..., Any] | None = None  # where ``data`` needs more than ``common.data.loading.load_images``
    places: tuple[str, ...] = ()  # below data/ (or --data_root), that are the images: the first that is there
    advice: str = ""  # what to fetch, and where from, when none of them is there
    classes: tuple[str, ...] = ()  # names of the shipped weights' classes, where their file does not hold them
    run: str = ""  # the run folder; empty: runs/ with a name that says method and constants
    for_cpu: str = ""  # the preset for a machine without a GPU, where the others are for one

    def advice_on(self, device: str, config: TrainConfig) -> str:
        """A line for who trains the network of a GPU's preset on a CPU; empty: there is nothing to say."""
        sizes = {name: size_of(preset) for name, preset in self.presets.items()}
        own = sizes.pop(self.for_cpu, None)
        if device != "cpu" or own is None or size_of(config) not in {*sizes.values()} - {own}:
            return ""
        return f"note: this network is for a GPU and takes a CPU days; --preset {self.for_cpu} is for a CPU"

    def run_folder(self, config: TrainConfig) -> Path:
        """Where a run goes.

        Raises:
            ValueError: ``--out`` is the folder of weights that no run here has made.
        """
        if config.smoke and not config.out:
            return self.here / "results" / f"smoke-{config.method}"
        out = Path(config.out or self.here / (self.run or f"runs/{self.run_name(config)}"))
        if self.ships(out) and not (out / "run.lock").exists():
            names = (Path(name).name for name in (self.weights, self.few))
            name = next((name for name in names if name and (out / name).exists()), out.name)
            raise ValueError(f"{out} holds {name}, which no run here has made: give another folder by --out")
        return out

    def run_name(self, config: TrainConfig) -> str:
        """Name of a run's folder: METHOD-WEIGHT-SIGMA for idff as in its paper, METHOD-SIGMA otherwise."""
        weight = f"{config.flow_weight}-" if "flow_weight" in method_of(config.method).constants else ""
        return f"{config.method.upper()}-{weight}{config.sigma}"

    def find_weights(self, given: str, few: bool = False) -> Path:
        """The weights of ``--weights``; without it the final ones of the newest run, else the shipped ones: says which.

        What it returns need not exist. Those of a hub, hf:USER/NAME, are fetched.

        Args:
            few: take the shipped ones for few steps, which there are.
        """
        if given.startswith("hf:"):
            from common.checkpoint import find

            return find(given)
        shipped = self.here / (self.few if few else self.weights)
        return Path(given) if given else newest(self.own_weights(), shipped)

    def own_weights(self) -> list[Path]:
        """The final weights of the runs here, the newest first."""
        runs = self.here.glob(f"{self.run or 'runs/*'}/{self.weights_name.format(METHOD='*')}")
        return newest_first(runs)

    def ships(self, path: Path) -> bool:
        """Whether a path is that of shipped weights, or their folder."""
        shipped = [(self.here / name).resolve() for name in (self.weights, self.few) if name]
        return any(file.exists() and path.resolve() in (file, file.parent) for file in shipped)

    def samples(self, config: Any, name: str) -> Path:
        """Where samples go without a flag that says so: samples/NAME, those of ``--smoke`` beside it."""
        return self.here / "samples" / (f"smoke-{name}" if config.smoke else name)


def data_folders(root: Path) -> dict[str, Folder]:
    """The data folders of a repository by name, as their config.py has them; but for those that miss a package."""
    if str(root) not in sys.path:
        sys.path.append(str(root))
    found = {}
    for file in sorted(root.glob("*/config.py")):
        if (file.parent / "_repo.py").exists():
            with contextlib.suppress(ImportError):
                found[file.parent.name] = getattr(importlib.import_module(f"{file.parent.name}.config"), "FOLDER", None)
    return {name: folder for name, folder in found.items() if isinstance(folder, Folder)}


def newest(runs: Iterable[Path], shipped: Path) -> Path:
    """The newest of the weights that runs have left, else the shipped ones; one line says which."""
    own = newest_first(runs)
    path = own[0] if own else shipped
    if path.exists():
        whose = "of the newest run here" + f"; --weights {shipped} are the shipped ones" * shipped.exists()
        print(f"weights: {path}, {whose if own else 'as shipped: no run here has ended'}")
    return path


def newest_first(runs: Iterable[Path]) -> list[Path]:
    """Weights that runs have left, without those that a later run has set aside."""
    own = [path for path in runs if ".previous" not in path.suffixes]
    return sorted(own, key=lambda path: path.stat().st_mtime, reverse=True)


def size_of(config: TrainConfig) -> tuple[Any, ...]:
    """What says how much a network computes for an image."""
    keys = ("network", "image_size", "num_channel", "channel_mult", "num_res_blocks", "patch_size")
    return tuple(getattr(config, key) for key in keys)


def smoke_preset(config: TrainConfig) -> TrainConfig:
    """A run of seconds on a CPU that goes through every part of training: few levels, large images in large patches.

    ``conditional_unet`` stays as it is, so that its weights fit where the real ones do, and sees small images.
    """
    levels, size = min(4, len(config.channel_mult)), config.image_size
    patch = max(config.patch_size, 2, size // 32)
    unet = {
        "num_channel": 32,
        "channel_mult": (1,) * levels,
        "num_res_blocks": 1,
        "head_channels": 32,
        "patch_size": patch if size % (patch * 2 ** (levels - 1)) == 0 else 1,
    }
    plain = {"image_size": min(size, 2 * 2 ** len(config.channel_mult))}
    return replace(
        config,
        **(unet if config.network == "unet" else plain),
        total_steps=min(config.total_steps, 4),
        epochs=None,
        minutes=config.minutes and min(config.minutes, 0.05),
        batch_size=min(config.batch_size, 8),
        teacher_noises=min(config.teacher_noises, 16),
        warmup=2,
        save_step=2,
        sample_step=4,
        val_step=2,
        log_step=2,
    )


def _data_root(folder: Folder, config: Any) -> Path:
    return Path(config.data_root) if config.data_root else folder.here / "data"


def data_spec(folder: Folder, config: Any) -> str:
    """What ``--data`` is when it is not given: the folder's own, or the first of its places that is there.

    Raises:
        FileNotFoundError: none is; the line says what to fetch.
    """
    if config.data or not folder.places:
        return config.data or folder.data
    root = _data_root(folder, config)
    for name in folder.places:
        if (root / name).exists():
            return str(root / name)
    raise FileNotFoundError(
        f"no images in {root} (looked for {', '.join(folder.places)}): {folder.advice}; or give --data FOLDER_OR_ZIP, "
        "or --smoke for made-up images"
    )


def load_data(folder: Folder, config: Any, image_size: int, channels: int, stream: bool = False, **options: Any) -> Any:
    """The images of ``--data``, or the folder's own, or made-up ones for ``--smoke``; ``stream``: decoded when used."""
    from common.data import loading
    from common.data.synthetic import synthetic_images

    if config.smoke:
        if config.data:
            print(f"--smoke: made-up images; --data {config.data} is not read")
        count = min(options.get("limit") or SMOKE_IMAGES, SMOKE_IMAGES)
        return synthetic_images(count, image_size, channels, getattr(config, "num_classes", 0) or 10, seed=0)
    options |= {"root": _data_root(folder, config), "num_workers": getattr(config, "num_workers", 2)}
    if stream:
        images = loading.StreamingImages(data_spec(folder, config), image_size, channels, **options)
        images.tell()
        return images
    load = folder.load_data if folder.load_data is not None and not config.data else None
    if load is not None:
        return load(image_size=image_size, channels=channels, **options)
    return loading.load_images(data_spec(folder, config), image_size, channels, **options)


def too_large(folder: Folder, config: Any, image_size: int, channels: int, **options: Any) -> bool:
    """Whether images on the disk would not fit in memory: they are counted, not decoded."""
    from common.data.loading import fits_in_memory

    if config.smoke or (not config.data and folder.load_data) or data_spec(folder, config).startswith("torchvision:"):
        return False
    count = len(load_data(folder, config, image_size, channels, stream=True, progress=False, **options))
    return not fits_in_memory(count, channels, image_size, image_size)
