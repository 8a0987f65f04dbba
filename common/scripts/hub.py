"""Write a folder of weights as model hubs take it: safetensors, config.json, a model card, a picture.

    python -m common.hub export cifar10/results/IDFF-2.0-0.2 build/cifar10-idff
    huggingface-cli upload USER/NAME build/cifar10-idff                  # yours to do
    python -m common.hub convert mnist/results/RF-0.0 build/digits.safetensors
    python -m common.hub convert build/digits.safetensors build/digits_again.pt

The tensors are those of the averaged weights, bit for bit; the description of network and method stands in the header
of model.safetensors, so that --weights DIR (or --weights hf:USER/NAME) of every sampling script loads them without
pickle. Fitted samplers and the card with its measurements come along. "convert" writes the file alone, either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import cli
from common.cli.configs import SampleConfig
from common.cli.ranges import Device, Whole
from common.runtime import atomic_folder, number_of
from common.scripts.folder import Folder, data_folders

WEIGHTS, PICTURE = "model.safetensors", "samples.png"
FACTS = ("data", "training_images", "parameters", "steps", "images_seen", "hours", "hardware", "precision", "seed")
SETTINGS = ("solver", "n_steps", "nfe", "cfg", "cfg_interval", "seed", "generated")
FIGURES = ("fid", "kid", "effnet_frechet", "effnet_kid", "recognised", "feature_distance")


@dataclass(frozen=True)
class Options:
    """Options of both commands."""

    command: Literal["export", "convert"] = "export"
    """What to do: a hub's folder, or a file of the other kind"""
    run: str = ""
    """Run folder or file of final weights; may stand without this flag"""
    out: str = ""
    """Folder to write, new or empty, or file, .safetensors, .pt or .pth; may stand without this flag"""
    n_samples: Whole = 16
    """export: images of the card's picture, by the usual sampler; 0: no picture"""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1, mps"""

    def check_together(self) -> None:
        if not (self.run and self.out):
            what = "folder" if self.command == "export" else "file"
            text = f"python -m common.hub {self.command} RUN_FOLDER NEW_{what.upper()}"
            raise ValueError(f"give a run and a new {what}: {text}")


def export(options: Options) -> Path:
    """Write the folder, and return it.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a folder that is not empty, or weights of another project or of a run that has not ended.
    """
    from common import checkpoint
    from common.runtime import write_json

    source, out = checkpoint.find(Path(options.run).expanduser(), "RUN"), Path(options.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new folder, or remove it first")
    state = checkpoint.load(source)
    described = {key: value for key, value in state.items() if key != "ema_model"}
    with atomic_folder(out) as folder:
        file = folder / WEIGHTS
        facts = write_weights(source, state, file)
        write_json(folder / "config.json", described)
        picture = draw(file, options) if options.n_samples else ""
        text = model_card(out.resolve().name, state, facts, picture, folder_of(source))
        (folder / "README.md").write_text(text, encoding="utf-8")
    size = (out / WEIGHTS).stat().st_size / 1e6
    print(f"hub folder: {out}, {size:.1f} MB of weights; --weights {out} loads it")
    return out


def convert(options: Options) -> Path:
    """Write weights as a file of the kind that its name says, with card and samplers beside it, and return it.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a name of another kind or that is there already, or weights as :func:`export` refuses them.
    """
    from common import checkpoint
    from common.records.cards import card_path

    source, out = checkpoint.find(Path(options.run).expanduser(), "RUN"), Path(options.out).expanduser()
    if out.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{out}: give a file whose name ends in .safetensors, .pt or .pth")
    if taken := next((path for path in (out, card_path(out)) if path.exists()), None):
        raise ValueError(f"{taken} is there already: give another name, or remove it first")
    write_weights(source, checkpoint.load(source), out)
    print(f"weights: {out}, {out.stat().st_size / 1e6:.1f} MB; --weights {out} loads it")
    return out


def write_weights(source: Path, state: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write the final weights of a file under another name, with samplers and card; what the card says."""
    from common import checkpoint
    from common.records.cards import card_path, write_card
    from common.runtime import read_json
    from common.solvers import fitted

    checkpoint.check_final(state)
    (checkpoint.save_tensors if file.suffix == ".safetensors" else checkpoint.save)(file, state)
    for kind, entries in fitted.read_samplers(source).items():
        if entries:
            fitted.keep(file, kind, entries)
    card = read_json(card_path(source)) if card_path(source).exists() else {}
    facts = {key: value for key, value in card.items() if key not in ("weights", "sha256")}
    write_card(file, facts)
    return facts


def draw(file: Path, options: Options) -> str:
    """Draw the card's picture, and say how it was made."""
    from common.generate import labels_for, real_classes
    from common.images import grid, save_png
    from common.scripts.sampling import make_sampler

    folder = Folder(here=file.parent, presets={}, data="", weights=file.name, weights_name="")
    sampler, _ = make_sampler(folder, SampleConfig(weights=str(file), device=options.device))
    count = range(options.n_samples)
    images, nfe = sampler.sample(count, labels_for(count, real_classes(sampler.net)))
    save_png(file.with_name(PICTURE), grid(images, n_columns=8))
    each = number_of(nfe, "evaluation")
    return f"{number_of(len(images), 'image')}, {sampler.solver}, {each} each, seed {sampler.seed}, no guidance"


def folder_of(source: Path) -> str:
    """The name of the data folder that weights lie in; a word in its place where they lie elsewhere."""
    folders = data_folders(Path(__file__).resolve().parents[2])
    return next((name for name, each in folders.items() if each.here in source.resolve().parents), "FOLDER")


def model_card(name: str, state: Mapping[str, Any], card: Mapping[str, Any], picture: str, folder: str) -> str:
    """The README.md of a hub's folder; ``folder`` is the data folder whose scripts sample from such weights."""
    from common.records.compare import markdown

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
    lines += [f"python {folder}/simple_gen_test.py --weights path/to/{name}    # or hf:USER/{name}", "```", ""]
    lines += ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {card[key]} |" for key in FACTS if card.get(key) is not None]
    lines += ["", str(card["note"])] if card.get("note") else []
    rows = card.get("measured") or []
    figures = [key for key in FIGURES if any(key in row for row in rows)]
    columns = [key for key in SETTINGS if any(key in row for row in rows)] + figures
    table = markdown([{key: row.get(key) for key in columns} for row in rows]) if figures else "Nothing.\n"
    return "\n".join([*lines, "", "## Measured", "", table])


def main(argv: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder or file."""
    options = cli.parse(Options, description=__doc__ or "", argv=argv, words=("command", "run", "out"))
    return (export if options.command == "export" else convert)(options)
