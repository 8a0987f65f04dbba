"""Write a folder of weights as model hubs take it: safetensors, config.json, a model card, a picture.

    python -m common.hub export cifar10/results/IDFF-2.0-0.2 build/cifar10-idff
    huggingface-cli upload USER/NAME build/cifar10-idff                  # yours to do

The tensors are those of the averaged weights, bit for bit; the description of network and method stands in the header
of model.safetensors, so that --weights DIR (or --weights hf:USER/NAME) of every sampling script loads them without
pickle. Fitted samplers and the card with its measurements come along.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import cli
from common.cli.configs import SampleConfig
from common.cli.ranges import Device, Whole
from common.runtime import atomic_folder, run_main
from common.scripts.folder import Folder

WEIGHTS, PICTURE = "model.safetensors", "samples.png"
FACTS = ("data", "training_images", "parameters", "steps", "images_seen", "hours", "hardware", "precision", "seed")
SETTINGS = ("solver", "n_steps", "nfe", "cfg", "cfg_interval", "seed", "generated")
FIGURES = ("fid", "kid", "effnet_frechet", "effnet_kid", "recognised", "feature_distance")


@dataclass(frozen=True)
class Options:
    """Options of the export."""

    command: Literal["export"] = "export"
    """What to do"""
    run: str = ""
    """Run folder or file of final weights; may stand without this flag"""
    out: str = ""
    """Folder to write, new or empty; may stand without this flag"""
    n_samples: Whole = 16
    """Images of the card's picture, by the usual sampler of ten steps; 0: no picture"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""

    def check_together(self) -> None:
        """Raises ValueError where a folder is missing."""
        if not (self.run and self.out):
            raise ValueError("give a run and a new folder: python -m common.hub export RUN_FOLDER NEW_FOLDER")


def export(options: Options) -> Path:
    """Write the folder, and return it.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a folder that is not empty, or weights of another project or of a run that has not ended.
    """
    from common import checkpoint
    from common.records.cards import card_path, write_card
    from common.runtime import read_json, write_json
    from common.solvers import fitted

    source, out = checkpoint.find(Path(options.run).expanduser(), "RUN"), Path(options.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new folder, or remove it first")
    state = checkpoint.load(source)
    card = read_json(card_path(source)) if card_path(source).exists() else {}
    facts = {key: value for key, value in card.items() if key not in ("weights", "sha256")}
    described = {key: value for key, value in state.items() if key != "ema_model"}
    with atomic_folder(out) as folder:
        file = folder / WEIGHTS
        checkpoint.save_tensors(file, state)
        for kind, entries in fitted.read_samplers(source).items():
            if entries:
                fitted.keep(file, kind, entries)
        write_card(file, facts)
        write_json(folder / "config.json", described)
        picture = draw(file, options) if options.n_samples else ""
        text = model_card(out.resolve().name, state, facts, picture)
        (folder / "README.md").write_text(text, encoding="utf-8")
    size = (out / WEIGHTS).stat().st_size / 1e6
    print(f"hub folder: {out}, {size:.1f} MB of weights; --weights {out} loads it")
    return out


def draw(file: Path, options: Options) -> str:
    """Draw the card's picture, and say how it was made."""
    from common.generate import labels_for, real_classes
    from common.images import grid, save_png
    from common.scripts.sampling import make_sampler

    folder = Folder(here=file.parent, presets={}, data="", weights=file.name, weights_name="")
    sampler, _ = make_sampler(folder, SampleConfig(weights=str(file), device=options.device, n_steps=10))
    count = range(options.n_samples)
    images, nfe = sampler.sample(count, labels_for(count, real_classes(sampler.net)))
    save_png(file.with_name(PICTURE), grid(images, n_columns=8))
    return f"{len(images)} images, {sampler.solver}, {nfe} evaluations each, seed {sampler.seed}, no guidance"


def model_card(name: str, state: Mapping[str, Any], card: Mapping[str, Any], picture: str) -> str:
    """The README.md of a hub's folder."""
    method, network = state["method"], state["network"]
    constants = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name")
    size = network.get("image_size") or state["config"].get("image_size")
    lines = ["---", "license: mit", "pipeline_tag: unconditional-image-generation", "tags:", "- flow-matching"]
    lines += ["- rectified-flow", f"- {method['name']}", "---", "", f"# {name}", ""]
    classes = network.get("num_classes", 0) - bool(network.get("null_class"))  # the class after the last is none
    kind = f"{classes} classes" if classes else "unconditional"
    lines += [f"Weights of a flow, method `{method['name']}` ({constants}), {size}x{size} images, {kind}.", ""]
    lines += [f"![{picture}]({PICTURE})", "", f"{picture}.", ""] if picture else []
    lines += ["Sample with the scripts of the repository that made it:", "", "```"]
    lines += ["python simple_gen_test.py --weights THIS_FOLDER", "```", "", "## Training", "", "| | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {card[key]} |" for key in FACTS if card.get(key) is not None]
    lines += ["", str(card["note"])] if card.get("note") else []
    rows = card.get("measured") or []
    figures = [key for key in FIGURES if any(key in row for row in rows)]
    settings = [key for key in SETTINGS if any(key in row for row in rows)]
    lines += ["", "## Measured", ""]
    if not figures:
        return "\n".join([*lines, "Nothing."]) + "\n"
    columns = [*settings, *figures]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(told(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def told(value: Any) -> str:
    """A value in a table's cell."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder."""
    words = list(sys.argv[1:] if argv is None else argv)
    return export(cli.parse(Options, description=__doc__ or "", argv=words, words=("command", "run", "out")))


def script() -> None:
    """The command as a program."""
    run_main(main)
