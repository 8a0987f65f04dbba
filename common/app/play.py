"""What the page computes: images step by step, images between two noises, a picture's noise and back. No HTTP.

Each of :class:`Player`'s answers is a few JSON-like lines, handed to ``say`` one by one as they are ready.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import torch
from PIL import Image
from torch import Tensor

from common import checkpoint, cli, generate
from common.cli.configs import SampleConfig, SolverName
from common.cli.ranges import AtLeast, AtMost, Seed
from common.images import png, to_uint8
from common.scripts.folder import Folder, data_folders
from common.scripts.grid import class_names
from common.scripts.invert import for_inversion, there_and_back
from common.scripts.sampling import read_network, sampler_of

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES, MOST_PIXELS = 10_000_000, 50_000_000  # of a picture that is uploaded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Say = Callable[[dict[str, Any]], object]


class Entry(NamedTuple):
    """Weights that the page offers: their file or folder, the data folder that they belong to, and its landing."""

    path: str
    folder: Folder
    landing: float = 1.0


@dataclass(frozen=True)
class Wish(SampleConfig):
    """What the page asks for: options of sampling within bounds; ``weights`` is a name of the page's list."""

    n_samples: Annotated[int, AtLeast(1), AtMost(64)] = 16
    """Images"""
    n_steps: Annotated[int | None, AtLeast(1), AtMost(200)] = None
    """Steps"""
    cfg: Annotated[float, AtLeast(0), AtMost(20)] = 1.0
    """Guidance scale"""
    other: Seed = 1
    """Seed of the noise at the other end"""
    places: tuple[Annotated[float, AtLeast(0), AtMost(1)], ...] = (0.5,)
    """Places between the two noises"""


ASKED = ("weights", "label", "cfg", "solver", "n_steps", "seed", "n_samples", "other", "places")


def wish_of(values: Any) -> Wish:
    """A wish from the page's words.

    Raises:
        ValueError: an unknown word, a value of another kind or out of range.
    """
    if not isinstance(values, Mapping) or (unknown := values.keys() - {*ASKED}):
        what = f"unknown: {', '.join(sorted(map(str, unknown)))}" if isinstance(values, Mapping) else "not an object"
        raise ValueError(f"{what}; the page's words are {', '.join(ASKED)}")
    places = values.get("places")
    if isinstance(places, list) and len(places) > 16:
        raise ValueError(f"{len(places)} places between two noises: give 16 at most")
    wish = replace(Wish(), **{**values, **({"places": tuple(places)} if isinstance(places, list) else {})})
    cli.validate(wish)
    return wish


def find_weights(given: Sequence[str] = (), root: Path = ROOT) -> dict[str, Entry]:
    """Weights by the name that the page shows: those given, then of each data folder its runs' and the shipped ones.

    Raises:
        FileNotFoundError: one of the given ones is not there, or there are none at all.
    """
    own = {name: Path(checkpoint.find(Path(name).expanduser() if name[:3] != "hf:" else name)) for name in given}
    found = {name: Entry(str(path), Folder(path.parent, {}, "", path.name, "")) for name, path in own.items()}
    shipped = {}
    for folder in data_folders(root).values():
        runs = {path: Entry(str(path), folder, folder.landing) for path in folder.own_weights()}
        found |= {str(path.parent.relative_to(root)): entry for path, entry in runs.items()}
        for name, what, landing in ((folder.weights, "shipped", folder.landing), (folder.few, "for few steps", 1.0)):
            if name and (path := folder.here / name).exists():
                shipped[f"{folder.here.name}, {what}"] = Entry(str(path), folder, landing)
    found |= dict(sorted(shipped.items(), key=lambda item: -Path(item[1].path).stat().st_size))  # the largest first
    if not found:
        raise FileNotFoundError(f"there are no weights in the folders of {root}: give some by --weights PATH")
    return found


def pictures(x: Tensor) -> list[str]:
    """Images (B, C, H, W) in [-1, 1] as the addresses of PNG files that hold themselves."""
    images = to_uint8(x).permute(0, 2, 3, 1).cpu()
    return [f"data:image/png;base64,{base64.b64encode(png(image)).decode()}" for image in images]


class Player:
    """Weights to choose from, and what is computed with them; the network that was used last stays in memory."""

    def __init__(self, entries: dict[str, Entry], device: str = "auto") -> None:
        self.entries, self.device = entries, device
        self.evaluating: Callable[[], object] = lambda: None  # called before each evaluation, which it may end
        self._last: tuple[str, Any] = ("", None)

    def _config(self, wish: Wish) -> Wish:
        """The wish with the file of its weights."""
        if wish.weights not in self.entries:
            raise ValueError(f"weights {wish.weights!r}: choose one of {', '.join(self.entries)}")
        path, _, landing = self.entries[wish.weights]
        return replace(wish, weights=path, device=self.device, landing=landing)

    def _network(self, name: str, config: Wish) -> tuple[Any, dict[str, Any], Folder]:
        folder = self.entries[name].folder
        if self._last[0] != name:
            net, info = read_network(folder, config)
            net.register_forward_pre_hook(lambda *_: self.evaluating())
            self._last = (name, (net, info))
        return (*self._last[1], folder)

    def _sampler(self, wish: Wish, inverting: bool = False) -> tuple[generate.Sampler, Sequence[str]]:
        """The sampler of a wish, and the names of its classes."""
        config = self._config(wish)
        config = for_inversion(replace(config, landing=None)) if inverting else config
        net, info, folder = self._network(wish.weights, config)
        return sampler_of(net, info, folder, config), class_names(folder, info, generate.real_classes(net))

    def about(self, wish: Wish, say: Say) -> None:
        """What can be chosen for the weights of a wish: classes, whether there is guidance, solvers."""
        sampler, classes = self._sampler(Wish(weights=wish.weights))
        millions = sum(parameter.numel() for parameter in sampler.net.parameters()) / 1e6
        solvers = ["auto", *filter(lambda name: can(sampler, name), get_args(SolverName)[2:])]
        text = f"method {sampler.method}, {sampler.shape[-1]} x {sampler.shape[-1]} pixels, {millions:.1f}M parameters"
        guidance = bool(classes and sampler.net.null_class)
        say(
            {
                "classes": list(classes),
                "guidance": guidance,
                "solvers": solvers,
                "side": sampler.shape[-1],
                "steps": sampler.n_steps,
                "text": text,
            }
        )

    def sample(self, wish: Wish, say: Say) -> None:
        """Images, the noises first and then the state after each step as the solver makes it; last what it took."""
        sampler, classes = self._sampler(wish)
        indices = range(wish.n_samples)
        labels = generate.labels_for(indices, len(classes), wish.label)
        times, numbers, start = sampler.state_times().tolist(), count(), time.perf_counter()
        names = [f"image {k}" for k in indices] if labels is None else [classes[k] for k in labels.tolist()]

        def show(x: Tensor) -> None:
            k = next(numbers)
            say({"step": k, "of": len(times) - 1, "t": times[k], "images": pictures(x), "names": names})

        x0 = generate.noise_for(indices, sampler.shape, sampler.seed)
        show(sampler.start * x0)
        _, nfe = sampler.from_noise(x0, indices, labels, show)
        say(_cost(sampler, nfe, start))

    def between(self, wish: Wish, say: Say) -> None:
        """The images at places on the arc from image 0's noise of one seed to that of another.

        At 0 and 1 they are image 0 of these seeds; what a stochastic solver draws later is that of the first seed.
        """
        sampler, classes = self._sampler(wish)
        ends = [generate.noise_for([0], sampler.shape, seed) for seed in (wish.seed, wish.other)]
        x0 = generate.slerp(ends[0], ends[1], torch.tensor(wish.places, dtype=torch.float64))[:, 0]
        label, start = generate.labels_for([0], len(classes), wish.label), time.perf_counter()
        labels = None if label is None else label.expand(len(x0))
        images, nfe = sampler.from_noise(x0, [0] * len(x0), labels)
        say({"places": wish.places, "images": pictures(images)} | _cost(sampler, nfe, start))

    def invert(self, wish: Wish, data: bytes, say: Say) -> None:
        """A picture as the network takes it, its noise / 3 and what becomes of that again, with the error."""
        check_picture(data)
        sampler, _ = self._sampler(wish, inverting=True)
        start = time.perf_counter()
        image, noise, again, nfe, error, ratio = there_and_back(sampler, data, "the picture", wish.label)
        facts = {"error": error, "ratio": min(ratio, 999.0), "mean": noise.mean().item(), "spread": noise.std().item()}
        cost = _cost(sampler, nfe, start)
        say({"images": pictures(torch.cat([image, noise / 3, again])), "facts": facts} | cost)


def can(sampler: generate.Sampler, solver: str) -> bool:
    """Whether weights can use a solver; torchdyn's, a reference, is left out."""
    try:
        replace(sampler, solver=solver, fitted=None).check()
    except ValueError:
        return False
    return solver != "torchdyn"


def check_picture(data: bytes) -> None:
    """Refuse (ValueError) what is no picture, or too large, before it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # decoders raise anything on damaged bytes
        raise ValueError(f"this is no picture that can be read: give one of {', '.join(FORMATS)}") from error
    if len(data) > MOST_BYTES or width * height > MOST_PIXELS:
        most = f"{MOST_BYTES // 10**6} MB and {MOST_PIXELS // 10**6} million pixels"
        raise ValueError(f"the picture has {len(data) / 1e6:.1f} MB and {width} x {height} pixels; {most} are allowed")


def _cost(sampler: generate.Sampler, nfe: float, start: float) -> dict[str, Any]:
    """What an answer took: evaluations of an image, seconds, and by which solver."""
    return {"nfe": nfe, "seconds": time.perf_counter() - start, "solver": sampler.solver, "grid": sampler.grid}
