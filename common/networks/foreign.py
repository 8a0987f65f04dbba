"""Weights of other projects: what a file holds, the network that fits its tensors, and its direction of time.

Known are torchcfm and IDFF (``net_model``, ``ema_model``), flow-matching-pytorch (``model``), the Flow Image Generator
(``model_state``, ``ema_state``) and bare state dicts. The shapes of the tensors say most about a network; what they
cannot say comes from ``extra`` (the training options) or is assumed, and then reported.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.networks.generator_unet import time_frequencies

TORCHCFM, PYTORCH, GENERATOR, BARE = "torchcfm or IDFF", "flow-matching-pytorch", "Flow Image Generator", "state dict"
# (project, key of the averaged weights, key of the raw ones)
_CONTAINERS = ((TORCHCFM, "ema_model", "net_model"), (GENERATOR, "ema_state", "model_state"), (PYTORCH, "", "model"))


@dataclass
class Foreign:
    """Weights taken out of a file of another project.

    ``tensors`` is a state dict without wrappers' prefixes; ``notes`` says what was found and what was assumed.
    """

    project: str
    tensors: dict[str, Tensor]
    step: int | None = None
    notes: list[str] = field(default_factory=list)


def is_state_dict(value: Any) -> bool:
    """Whether a value is a dict of named tensors."""
    return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what DataParallel (``module``) and torch.compile (``_orig_mod``) add to names, where they did."""
    wrappers = ("module", "_orig_mod")
    return {".".join(part for part in key.split(".") if part not in wrappers): v for key, v in tensors.items()}


def unpack(state: dict[str, Any], ema: bool = True) -> Foreign:
    """The weights in a loaded file, averaged ones if asked for and present.

    Raises:
        ValueError: none are found, or raw ones are asked for and the file has averaged ones only.
    """
    if is_state_dict(state):
        return Foreign(BARE, strip_prefixes(state))
    step = next((state[key] for key in ("step", "epoch") if isinstance(state.get(key), int)), None)
    for project, averaged, raw in _CONTAINERS:
        keys = [key for key in (averaged, raw) if is_state_dict(state.get(key))]
        if keys and not ema and raw not in keys:
            raise ValueError(f"there are only averaged weights ({averaged}) in the file: leave out --no-ema")
        if keys:
            key = keys[0] if ema else raw
            notes = [f"no averaged weights in the file, {raw} is used"] if ema and averaged and key == raw else []
            return Foreign(project, strip_prefixes(state[key]), step, [f"weights: {key}", *notes])
    raise ValueError(
        f"no weights found among its entries {', '.join(map(str, list(state)[:6]))}; known are net_model/ema_model, "
        "model_state/ema_state, model, or the tensors themselves"
    )


# ---- the network that fits the tensors

# Of the networks that are trained here: the layers that embed time and label, the first layer and the last two.
_LAYERS = {
    "UNet": ("time_embed", "label_emb", "input_blocks.0.0", "out"),
    "ConditionalUNet": ("time_mlp", "class_embedding", "stem", "head"),
}


def infer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of a state dict say about its network, as arguments of ``common.unet``'s classes.

    ``attention_levels`` holds the levels with self-attention, coarse or fine, counted from 0; for a UNet these have
    to be turned into resolutions with the size of the images, which the tensors do not tell.

    Raises:
        ValueError: the names or shapes are not those of a network that this repository knows.
    """
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if {"time_emb.mlp.0.weight", "enc1.weight", "final_conv.weight"} <= shapes.keys():
        first, last, time = (shapes[f"{name}.weight"] for name in ("enc1", "final_conv", "time_emb.mlp.0"))
        if (len(first), len(last), len(time)) != (4, 4, 2):
            raise ValueError("its network has the names of the Flow Image Generator's, but not its shapes")
        known = {"name": "GeneratorUNet", "in_channels": first[1], "out_channels": last[0], "channels": first[0]}
        return known | {"time_channels": time[1]}
    name = _name_of(shapes)
    time, label, first, last = _LAYERS[name]
    channels = shapes[f"{time}.0.weight"][1]
    levels = _unet_levels(shapes) if name == "UNet" else _conditional_levels(shapes)
    counts = {count for _, count, _ in levels}
    out = shapes.get(f"{last}.2.weight", ())
    if len(out) != 4 or len(counts) != 1 or any(width == 0 or width % channels for width, _, _ in levels):
        raise ValueError(f"its {name} is of a variant that is not supported here (levels {levels})")
    return {
        "name": name,
        "in_channels": shapes[f"{first}.weight"][1],
        "out_channels": out[0],
        "channels": channels,
        "channel_mult": [width // channels for width, _, _ in levels],
        "num_res_blocks": counts.pop(),
        "num_classes": shapes.get(f"{label}.weight", (0,))[0],
        "attention_levels": [level for level, (_, _, attends) in enumerate(levels) if attends],
    }


def _name_of(tensors: Mapping[str, Any]) -> str:
    """The network of ``common.unet`` that has these tensors."""
    for name, (time, _, first, _) in _LAYERS.items():
        if {f"{time}.0.weight", f"{first}.weight"} <= tensors.keys():
            return name
    raise ValueError(
        f"its tensors ({', '.join(list(tensors)[:3])}, ...) are not those of a network known here: UNet "
        "(input_blocks.*, as in torchcfm, IDFF, flow-matching-pytorch), ConditionalUNet (encoder.*) or that of the "
        "Flow Image Generator (enc1, time_emb.*)"
    )


Level = tuple[int, int, bool]  # channels, residual blocks, self-attention


def _unet_levels(shapes: dict[str, tuple[int, ...]]) -> list[Level]:
    """Levels of an ADM encoder: its stages in order, a strided convolution ends a level."""
    widths: list[list[int]] = [[]]
    attention = [False]
    for i in itertools.count(1):
        block = f"input_blocks.{i}.0"
        if f"{block}.op.weight" in shapes:
            widths.append([])
            attention.append(False)
        elif f"{block}.in_layers.2.weight" in shapes:
            width = shapes[f"{block}.in_layers.2.weight"][0]
            if shapes.get(f"{block}.emb_layers.1.weight", (0,))[0] != width:
                raise ValueError("its UNet was built with use_scale_shift_norm, which is not supported here")
            widths[-1].append(width)
            attention[-1] |= f"input_blocks.{i}.1.qkv.weight" in shapes
        else:
            break
    if any(len(set(level)) != 1 for level in widths):
        raise ValueError(f"its UNet is of a variant (resblock_updown?) that is not supported here (widths {widths})")
    return [(level[0], len(level), attends) for level, attends in zip(widths, attention, strict=True)]


def _conditional_levels(shapes: dict[str, tuple[int, ...]]) -> list[Level]:
    """Levels of a ConditionalUNet's encoder."""
    levels = []
    while stage := [key for key in shapes if key.startswith(f"encoder.{len(levels)}.")]:
        blocks = [key for key in stage if key.endswith("in_layers.2.weight")]
        width = shapes[blocks[0]][0] if blocks else 0
        levels.append((width, len(blocks), any(key.endswith("qkv.weight") for key in stage)))
    return levels


def describe(
    file: Foreign, extra: Mapping[str, Any], file_stem: str = "", names: Mapping[str, str] = {}
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Description of network and method for foreign weights; what was assumed is added to ``file.notes``.

    Args:
        extra: training options that are known (keys of ``common.cli.configs.TrainConfig``).
        file_stem: the file's name, in which torchcfm and IDFF put the method.
        names: what methods are called there, see ``common.methods.NAMES``.

    Returns:
        The network's description for ``common.networks.build_network``, and {"name", "sigma", "flow_weight"}.
    """
    known = infer(file.tensors)
    if known["name"] == "GeneratorUNet":
        file.project = GENERATOR  # whoever wrote the file
        if "image_size" not in extra:
            file.notes.append("assumed: image_size 128 (the tensors do not tell; give -c with the training options)")
        return known | {"image_size": extra.get("image_size", 128)}, _method(file, known, extra, file_stem, names)
    levels = known.pop("attention_levels")
    method = _method(file, known, extra, file_stem, names)
    rows = known["num_classes"]
    known |= {
        "num_heads": extra.get("num_heads", 4 if file.project == PYTORCH or known["name"] != "UNet" else 1),
        "dropout": extra.get("dropout", 0.0),
        "checkpointing": False,
        "null_class": bool(rows) and "num_classes" in extra and rows == extra["num_classes"] + 1,
    }
    if rows and "num_classes" not in extra:
        file.notes.append(f"assumed: all {rows} class labels are real ones (num_classes)")
    if known["name"] == "ConditionalUNet":
        count = len(levels)
        if levels != list(range(len(known["channel_mult"])))[-count:] and count:
            raise ValueError(f"its ConditionalUNet has attention at levels {levels}, not at the coarsest ones")
        return known | {"attention_levels": count}, method
    return known | _unet_details(file, known, levels, extra), method


def _unet_details(file: Foreign, known: dict[str, Any], levels: list[int], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes of a UNet leave open: size of the images, patches, width of a head."""
    size, patch = extra.get("image_size", 32), extra.get("patch_size", 1)
    widths = [known["channels"] * known["channel_mult"][level] for level in {*levels, len(known["channel_mult"]) - 1}]
    assumed = -1 if file.project == PYTORCH or any(w % 64 for w in widths) else 64
    heads = extra.get("head_channels", -1 if "num_heads" in extra else assumed)
    if missing := [key for key in ("image_size", "head_channels") if key not in extra]:
        values = {"image_size": size, "head_channels": f"{heads}, num_heads {known['num_heads']}"}
        assumptions = ", ".join(f"{key} {values[key]}" for key in missing)
        file.notes.append(f"assumed: {assumptions} (the tensors do not tell; give -c with the training options)")
    resolutions = [size // patch >> level for level in levels]
    wanted = set(extra.get("attention_resolutions", resolutions))
    if wanted & {size // patch >> level for level in range(len(known["channel_mult"]))} != set(resolutions):
        file.notes.append(f"self-attention is at {resolutions or 'the middle only'}, as the tensors have it")
    return {
        "image_size": size,
        "in_channels": known["in_channels"] // patch**2,
        "out_channels": known["out_channels"] // patch**2,
        "attention_resolutions": resolutions,
        "head_channels": heads,
        "patch_size": patch,
    }


def _method(
    file: Foreign, known: dict[str, Any], extra: Mapping[str, Any], stem: str, names: Mapping[str, str]
) -> dict[str, Any]:
    """The method: given, or IDFF when a network takes its image twice, or from the file's name, or assumed."""
    name = extra.get("method")
    if name is None and known["in_channels"] == known["out_channels"] and known["in_channels"] in (2, 6):
        name = "idff"
        file.notes.append(
            f"{known['in_channels']} channels in and out: an IDFF network with two heads (IDFF's image scripts fit the "
            "second one to x0: sample with --solver idff as they do)"
        )
    if name is None:
        name = names.get(re.split(r"[^a-z]", stem.lower())[0])
    if name is None:
        name = "rf" if runs_backwards(file.project) else "cfm"
        file.notes.append(f"assumed: method {name}")
    sigma = extra.get("sigma", 0.2 if name == "idff" else 0.0)
    return {"name": name, "sigma": sigma, "flow_weight": extra.get("flow_weight", 2.0)}


# ---- the direction of time


def runs_backwards(project: str) -> bool:
    """Whether a project's time runs from data (0) to noise (1)."""
    return project in (PYTORCH, GENERATOR)


def reverse_time(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of v(x, t) = -w(x, 1 - t) from those of w: a velocity learnt with time running backwards.

    Exact, by changing two layers. With the frequencies f, cos f(1-t) = cos f cos ft + sin f sin ft and
    sin f(1-t) = sin f cos ft - cos f sin ft, so the first layer's matrix [C, S] on the features [cos ft, sin ft]
    becomes [C cos f + S sin f, C sin f - S cos f]; the last layer changes its sign.
    """
    first, last, frequencies, sines_first = _time_layers(tensors)
    matrix, half = tensors[first].double(), len(frequencies)
    cos, sin = frequencies.double().cos(), frequencies.double().sin()
    parts = [matrix[:, :half], matrix[:, half : 2 * half]]
    c, s = reversed(parts) if sines_first else parts
    turned = [c * cos + s * sin, c * sin - s * cos]
    turned = torch.cat([*(reversed(turned) if sines_first else turned), matrix[:, 2 * half :]], dim=1)
    negated = {f"{last}.{p}": -tensors[f"{last}.{p}"] for p in ("weight", "bias")}
    return {**tensors, first: turned.to(tensors[first].dtype), **negated}


def _time_layers(tensors: Mapping[str, Tensor]) -> tuple[str, str, Tensor, bool]:
    """The layer that reads the time, the last one, the time's frequencies, and whether its sines come first."""
    if "time_emb.mlp.0.weight" in tensors:
        first = "time_emb.mlp.0.weight"
        return first, "final_conv", time_frequencies(tensors[first].shape[1] // 2), True
    name = _name_of(tensors)
    time, _, _, last = _LAYERS[name]
    first, scale = f"{time}.0.weight", 1.0 if name == "UNet" else 1000.0
    half = tensors[first].shape[1] // 2
    # In float32 as the networks have them, and scaled in double: scale * f is exact there
    frequencies = torch.exp(-math.log(10_000.0) / half * torch.arange(half, dtype=torch.float32))
    return first, f"{last}.2", scale * frequencies.double(), False
