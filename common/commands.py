"""The bodies of the folders' scripts: train, simple_gen_test, gen and gen_true of an image data set.

A folder says what is its own (presets, data, names) in a :class:`Folder`; everything else is the same everywhere.
Torch is imported inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli
from common.config import GenConfig, GridConfig, SampleConfig, TrainConfig, TrueConfig
from common.fit import resolved
from common.runtime import relaunch_parallel

if TYPE_CHECKING:
    from torch import Tensor

FLAGS = {"flow_w": "flow_weight"}  # more spellings, of IDFF's scripts


@dataclass(frozen=True)
class Folder:
    """What is particular to a data set's folder.

    Args:
        here: the folder.
        presets: training options by name; the first is the default.
        data: the usual ``--data``; empty where the images have to be fetched by hand, to one of ``places``.
        weights: the shipped weights, relative to ``here``.
        weights_name: name of a run's final weights; ``{METHOD}`` is replaced.
        landing: the usual ``--landing``: below 1 for weights whose velocity near the data is mostly error.
        load_data: loads the data when ``data`` needs more than ``common.data.load_images``.
        places: files and folders below data/ (or ``--data_root``) that are the images, the first that is there.
        advice: what to fetch, and where from, when none of them is there.
        runs: the run folder, relative to ``here``; empty: results/ with a name that says method and constants.
    """

    here: Path
    presets: dict[str, TrainConfig]
    data: str
    weights: str
    weights_name: str
    landing: float = 1.0
    load_data: Callable[..., Any] | None = None
    places: tuple[str, ...] = ()
    advice: str = ""
    runs: str = ""

    def run_folder(self, config: TrainConfig) -> Path:
        """Where a run goes without ``--out``."""
        if self.runs and not config.smoke:
            return self.here / self.runs
        return self.here / "results" / self.run_name(config)

    def run_name(self, config: TrainConfig) -> str:
        """Name of a run's folder: METHOD-WEIGHT-SIGMA for idff as in its paper, METHOD-SIGMA otherwise."""
        if config.smoke:
            return f"smoke-{config.method}"
        weight = f"{config.flow_weight}-" if config.method == "idff" else ""
        return f"{config.method.upper()}-{weight}{config.sigma}"


def smoke_preset(config: TrainConfig) -> TrainConfig:
    """A run of seconds on a CPU that goes through every part of training: few levels, large images in large patches."""
    levels, size = min(4, len(config.channel_mult)), config.image_size
    patch = max(config.patch_size, 2, size // 32)
    return replace(
        config,
        image_size=size if config.network == "unet" else min(size, 2 * 2**levels),
        num_channel=32,
        channel_mult=(1,) * levels,
        num_res_blocks=1,
        head_channels=32,
        patch_size=patch if config.network == "unet" and size % (patch * 2 ** (levels - 1)) == 0 else 1,
        total_steps=min(config.total_steps, 4),
        epochs=0,
        batch_size=min(config.batch_size, 8),
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
    from common import data

    if config.smoke:
        return data.synthetic_images(64, image_size, channels, getattr(config, "num_classes", 0) or 10, seed=0)
    options |= {"root": _data_root(folder, config), "num_workers": getattr(config, "num_workers", 2)}
    if stream:
        return data.StreamingImages(data_spec(folder, config), image_size, channels, **options)
    load = folder.load_data if folder.load_data is not None and not config.data else None
    if load is not None:
        return load(image_size=image_size, channels=channels, **options)
    return data.load_images(data_spec(folder, config), image_size, channels, **options)


def train_main(
    folder: Folder, description: str, argv: list[str] | None = None, run: Callable[..., Path] | None = None
) -> Path:
    """Train: parse the command line, load the data, run ``common.training.train`` or what is given as ``run``."""
    config = cli.parse(TrainConfig, folder.presets, description, FLAGS, argv)
    if config.smoke:
        config = smoke_preset(config)
    if config.parallel:
        relaunch_parallel(sys.argv)
    from common.runtime import processes

    if run is None:
        from common.training import train as run
    here = processes(config.device)
    if not here.is_main:
        here.wait()  # the first process loads (and downloads) alone, then the others do
    out = Path(config.out) if config.out else folder.run_folder(config)
    if config.smoke and not config.out and config.resume == "no" and here.is_main:
        import shutil

        shutil.rmtree(out, ignore_errors=True)
    shape = (config.image_size, config.in_channels)
    stream = config.resident == "stream" or (config.resident == "auto" and _too_large(folder, config, *shape))
    images = load_data(folder, config, *shape, stream=stream, progress=here.is_main)
    if here.is_main:
        here.wait()
    if config.resident == "device" or (config.resident == "auto" and _fits_device(images, here.device)):
        images = images.to(here.device)
    config = epochs_as_steps(config, len(images))
    return run(config, images, out, folder.weights_name.format(METHOD=config.method.upper()), here)


def epochs_as_steps(config: TrainConfig, count: int) -> TrainConfig:
    """The options with ``epochs``, where given, as ``total_steps`` of ``count`` images less the held-out ones."""
    from common.data import split_train_val

    if not config.epochs:
        return config
    training = len(split_train_val(count, config.val_fraction, config.seed)[0])
    return replace(config, total_steps=math.ceil(config.epochs * training / config.batch_size))


def _too_large(folder: Folder, config: Any, image_size: int, channels: int, **options: Any) -> bool:
    """Whether images on the disk would not fit in memory: they are counted, not decoded."""
    from common.data import fits_in_memory

    if config.smoke or (not config.data and folder.load_data) or data_spec(folder, config).startswith("torchvision:"):
        return False
    count = len(load_data(folder, config, image_size, channels, stream=True, progress=False, **options))
    return not fits_in_memory(count, channels, image_size, image_size)


def _fits_device(images: Any, device: Any) -> bool:
    """Whether the pixels are in memory and take less than a fifth of a GPU's free memory."""
    import torch

    pixels = getattr(images, "images", None)
    return pixels is not None and device.type == "cuda" and pixels.nbytes < 0.2 * torch.cuda.mem_get_info(device)[0]


def make_sampler(folder: Folder, config: SampleConfig, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The sampler that a command line asks for, and what its weights file says about itself.

    Raises:
        FileNotFoundError: there are no weights; the line says how to train them.
    """
    import torch

    from common import checkpoint, generate, unet
    from common.runtime import keep_freed_memory, pick_device

    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    path = Path(config.weights) if config.weights else folder.here / folder.weights
    if config.smoke and not config.weights and not path.exists():
        preset = smoke_preset(next(iter(folder.presets.values())))
        description = unet.network_description(preset, 2 if preset.method == "idff" else 1)
        torch.manual_seed(0)
        net = unet.build_network(description).eval()
        info = {"network": description, "method": {"name": preset.method, "sigma": preset.sigma}, "step": 0}
        info |= {"config": {"image_size": preset.image_size}}
    elif not path.exists() and not config.weights:
        script = min(folder.here.glob("*train*.py"), default=folder.here / "train.py").name
        raise FileNotFoundError(f"there are no weights at {path}: train them with python {script}, or give --weights")
    else:
        net, info = checkpoint.load_network(path, ema=config.ema, extra=extra)
        for line in info.get("report", ()):
            print(line)
    net: Any = net.to(device, memory_format=torch.channels_last)  # type: ignore[no-redef, call-overload]
    method = info["method"]
    channels = net.out_channels // (2 if method["name"] == "idff" else 1)
    size = info["network"].get("image_size") or info.get("config", {}).get("image_size")
    if not size:
        raise ValueError(f"{path} does not say its image size: give -c with the config.yaml of its run")
    sampler = generate.Sampler(
        torch.compile(net) if config.compile else net,  # type: ignore[arg-type]
        method["name"],
        (channels, size, size),
        method.get("sigma", 0.0),
        n_steps=config.n_steps,
        rtol=config.rtol,
        atol=config.atol,
        cfg=config.cfg,
        seed=config.seed,
        precision=config.mixed_precision,
        landing=config.landing or (1.0 if config.weights else folder.landing),
    )
    if config.cfg != 1 and generate.real_classes(net) == 0:
        raise ValueError(f"--cfg {config.cfg} needs class-conditional weights; {path.name} is unconditional")
    if config.cfg != 1 and not net.null_class:
        raise ValueError(f"--cfg {config.cfg} needs weights trained with --label_dropout > 0; {path.name} was not")
    sampler = resolved(sampler, config, checkpoint.find(path) if path.exists() else None)
    return sampler, info | {"path": str(path)}


def _weights_hash(path: str) -> str:
    """SHA-256 of a weights file (of a run folder: of the weights in it); "untrained" for --smoke without weights."""
    from common.cards import file_hash
    from common.checkpoint import find

    return file_hash(find(path)) if Path(path).exists() else "untrained"


def grid_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """A picture of images from the shipped or given weights, and what it took: a grid, arcs or an inversion."""
    config, extra = cli.parse_with_extra(GridConfig, description=description, argv=argv)
    if config.invert:
        return _invert(folder, config, extra)
    import time

    import torch
    from tqdm import tqdm

    from common import generate
    from common.images import grid, save_png

    sampler, info = make_sampler(folder, config, extra)
    start, parts, name, columns = time.perf_counter(), [], "", None
    if config.interpolate:
        name, columns, rows = "_arcs", config.columns, math.ceil(config.n_samples / config.columns)
        made: Iterator[Tensor] = generate.interpolate(sampler, rows, columns, config.batch_size, config.label)
    else:
        batches = generate.sample_many(sampler, range(config.n_samples), config.batch_size, config.label)
        made = (images for _, images in batches)
    with tqdm(total=config.n_samples, unit="image", dynamic_ncols=True) as bar:
        for images in made:
            parts.append(images)
            bar.update(len(images))
    out = Path(config.out) if config.out else folder.here / "samples" / f"{sampler.solver}_nfe{sampler.nfe}{name}.png"
    save_png(out, grid(torch.cat(parts), columns))
    print(
        f"{sum(map(len, parts))} images, {info['method']['name']} weights of step {info.get('step', '?')}, "
        f"{sampler.solver}, {config.n_steps} steps, grid {sampler.grid}, NFE {sampler.nfe}, seed {config.seed}, "
        f"{time.perf_counter() - start:.1f} s"
    )
    print(f"picture: {out}")
    return out


def _invert(folder: Folder, config: GridConfig, extra: dict[str, Any]) -> Path:
    """Follow an image to its noise and back: errors printed, and a picture of the image, the noise / 3, and the way."""
    if config.interpolate:
        raise ValueError("--invert and --interpolate make two different pictures: give one of them")
    import torch

    from common import generate
    from common.images import from_uint8, grid, save_png
    from common.metrics import rms

    if not config.landing:
        config = replace(config, landing=1.0)  # the folder's choice is for sampling, and cannot be undone
    solver, times = ("rk4", "power") if config.solver == "auto" else (config.solver, "uniform")
    config = replace(config, solver=solver, grid=times if config.grid == "auto" else config.grid)
    sampler, _ = make_sampler(folder, config, extra)
    labels = generate.label_of_one(sampler, config.label)
    image = from_uint8(torch.from_numpy(read_image(config.invert, sampler.shape)))[None]
    noise, again = generate.invert(sampler, image, labels)
    error = 127.5 * rms(again, image)
    ratio = 20 * math.log10(255 / error) if error else math.inf
    told = f"{sampler.solver}, {config.n_steps} steps, grid {sampler.grid}, NFE {sampler.nfe} both ways"
    print(f"{config.invert}: {told}")
    print(f"noise: mean {noise.mean():.3f}, spread {noise.std():.3f}; of a normal one they are 0 and 1")
    if noise.std() > 2:
        print("note: what these weights miss of the image is magnified on the way to the noise; train longer")
    print(f"error after both ways: RMS {error:.3f} of 255 grey levels, PSNR {ratio:.1f} dB")
    out = Path(config.out) if config.out else folder.here / "samples" / f"invert_{Path(config.invert).stem}.png"
    save_png(out, grid(torch.cat([image, noise / 3, again]), 3))
    print(f"picture: {out}")
    return out


def read_image(path: str, shape: tuple[int, int, int]) -> Any:
    """An image file as (C, H, W) uint8: its centre square, resized.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no image in it.
    """
    from common.images import decode, fit

    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"--invert {path}: no such file; give an image, e.g. a PNG or JPEG file")
    try:
        return fit(decode(file.read_bytes()), shape[-1], shape[0]).copy()
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"--invert {path}: not an image that can be read ({reason}); give a PNG or JPEG") from error


def gen_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """Generate many images as numbered PNG files or one .npz; goes on where it was stopped."""
    config, extra = cli.parse_with_extra(GenConfig, description=description, argv=argv)
    from tqdm import tqdm

    from common import generate
    from common.images import add_counted, open_writer, to_uint8
    from common.runtime import processes

    if config.smoke:
        config = replace(config, n_samples=min(config.n_samples, 16))
    here = processes(config.device)
    sampler, info = make_sampler(folder, replace(config, device=str(here.device)), extra)
    start, stop = cli.index_range(config.range, config.n_samples)
    target = Path(config.save_dir) if config.save_dir else folder.here / "samples" / "gen"
    keys = ("n_steps", "cfg", "label", "seed", "ema", "rtol", "atol")
    fingerprint = {"weights": _weights_hash(info["path"]), **{key: getattr(config, key) for key in keys}}
    fingerprint |= {"solver": sampler.solver, "grid": sampler.grid, "landing": sampler.landing}
    fingerprint["times"] = sampler.times_hash()
    c, h, w = sampler.shape
    writer = open_writer(target, config.n_samples, (c, h, w), fingerprint)
    todo = writer.missing(start, stop)[here.rank :: here.world]
    here.wait()  # all see the same images missing before the first one is written
    evaluations = 0
    with tqdm(total=len(todo), unit="image", dynamic_ncols=True, disable=not here.is_main) as bar:
        for indices, images in generate.sample_many(sampler, todo, config.batch_size, config.label):
            for index, image in zip(indices, to_uint8(images)):
                writer.write(index, image)
            evaluations += sampler.nfe * len(indices)
            bar.update(len(indices))
            bar.set_postfix(nfe=sampler.nfe)
    here.wait()
    if here.is_main:
        if todo:  # the mean of the images made here: an adaptive solver's number differs between batches
            add_counted(target, nfe=evaluations / len(todo))
        writer.finish()
        print(f"images {start} to {stop - 1} are in {target}" + (f", NFE {sampler.nfe}" if todo else ""))
    return target


def true_main(folder: Folder, description: str, argv: list[str] | None = None) -> Path:
    """Write the real images as numbered PNG files or one .npz, for FID."""
    config = cli.parse(TrueConfig, description=description, argv=argv)
    import torch
    from tqdm import tqdm

    from common.images import open_writer

    preset = next(iter(folder.presets.values()))
    shape = (config.side or preset.image_size, preset.in_channels)
    chosen = {"split": config.split, "limit": config.n_samples or None}
    stream = _too_large(folder, config, *shape, **chosen)
    images = load_data(folder, config, *shape, stream=stream, **chosen)
    target = Path(config.save_dir) if config.save_dir else folder.here / "samples" / "true"
    fingerprint = {"data": config.data or folder.data or images.source, "split": config.split, "n": len(images)}
    writer = open_writer(target, len(images), (shape[1], shape[0], shape[0]), fingerprint)
    for index in tqdm(writer.missing(0, len(images)), unit="image", dynamic_ncols=True):
        writer.write(index, images.read(torch.tensor([index]))[0][0])
    writer.finish()
    print(f"{len(images)} images are in {target}")
    return target
