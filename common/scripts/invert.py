"""simple_gen_test.py --invert: an image to its noise and back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common import generate
from common.cli.configs import GridConfig
from common.generate import Sampler
from common.images import decode, fit, from_uint8, grid, save_png
from common.runtime import number_of
from common.scripts.folder import Folder
from common.scripts.sampling import Config, make_sampler


def invert(folder: Folder, config: GridConfig, extra: dict[str, Any]) -> Path:
    """Follow an image to its noise and back: errors printed, and a picture of the image, the noise / 3, and the way."""
    if config.interpolate:
        raise ValueError("--invert and --interpolate make two different pictures: give one of them")
    config = for_inversion(config)
    sampler, _ = make_sampler(folder, config, extra)
    image, noise, again, nfe, error, ratio = there_and_back(
        sampler, read_image(config.invert), config.invert, config.label
    )
    how = f"{sampler.solver}, {number_of(sampler.n_steps, 'step')}, grid {sampler.grid}"
    print(f"{config.invert}: {how}, NFE {nfe:g} both ways")
    print(f"noise: mean {noise.mean():.3f}, spread {noise.std():.3f}; of a normal one they are 0 and 1")
    if noise.std() > 2:
        print("note: what these weights miss of the image is magnified on the way to the noise; train longer")
    print(f"error after both ways: RMS {error:.3f} of 255 grey levels, PSNR {ratio:.1f} dB")
    out = Path(config.out or folder.samples(config, f"invert_{Path(config.invert).stem}.png"))
    save_png(out, grid(torch.cat([image, noise / 3, again]), 3))
    print(f"picture: {out}")
    return out


def for_inversion(config: Config) -> Config:
    """Options with what "auto" is for an inversion."""
    if config.landing is None:
        config = replace(config, landing=1.0)  # the folder's choice is for sampling, and cannot be undone
    solver, times = ("rk4", "power") if config.solver == "auto" else (config.solver, "uniform")
    return replace(config, solver=solver, grid=times if config.grid == "auto" else config.grid)


class Inverted(NamedTuple):
    """An image as the network takes it, its noise, the image made of that again (1, C, H, W), the evaluations of both
    ways, the root mean square of the error in grey levels, and the peak signal-to-noise ratio in dB."""

    image: Tensor
    noise: Tensor
    again: Tensor
    nfe: float
    error: float
    ratio: float


def there_and_back(sampler: Sampler, data: bytes, name: str, label: int | None) -> Inverted:
    """An image file's bytes followed to the noise and back; ``name`` is for the errors.

    Raises:
        ValueError: no image, a solver that cannot run backwards, or a class that has to be said.
    """
    labels = label_of(sampler, label)
    image = from_uint8(torch.from_numpy(fitted_image(data, name, sampler.shape)))[None]
    noise, again, nfe = generate.invert(sampler, image, labels)
    error = 127.5 * (again.double() - image.double()).square().mean().sqrt().item()
    return Inverted(image, noise, again, nfe, error, 20 * math.log10(255 / error) if error else math.inf)


def label_of(sampler: Any, label: int | None) -> Any:
    """The label, (1,), of one image that is given: ``label``, or None where the weights can do without.

    Raises:
        ValueError: the class has to be said, for such weights or for guidance.
    """
    classes = generate.real_classes(sampler.net)
    if label is None and classes:
        if sampler.cfg != 1 or not sampler.net.null_class:
            raise ValueError("--invert: say the image's class by --label, which these weights or --cfg need")
        return None
    return generate.labels_for([0], classes, label)


def read_image(path: str) -> bytes:
    """The bytes of an image file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"--invert {path}: no such file; give an image, e.g. a PNG or JPEG file")
    return file.read_bytes()


def fitted_image(data: bytes, name: str, shape: tuple[int, int, int]) -> Any:
    """An image file's bytes as (C, H, W) uint8: its centre square, resized.

    Raises:
        ValueError: there is no image in them.
    """
    try:
        return fit(decode(data), shape[-1], shape[0]).copy()
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"--invert {name}: not an image that can be read ({reason}); give a PNG or JPEG") from error
