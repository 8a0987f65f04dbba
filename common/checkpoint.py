"""Checkpoints: written whole, read safely, rebuilt into networks; foreign files too.

A checkpoint is a plain dict of tensors and primitives with ``format``, ``version``, ``step``, ``config``, ``network``
(name and constructor arguments), ``method``, ``ema_model`` and, to resume, ``net_model``, ``optim``, ``ema``. It is
read with ``weights_only=True`` and nothing else, so a file from a stranger cannot run a program. Final weights may
also be safetensors, without pickle at all: ``ema_model`` are the tensors, all else is JSON in the header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Required, TypedDict

from common.methods import NAMES, method_of, recorded_method
from common.networks import build_network, check_description, foreign, with_second_time
from common.runtime import atomic_write, checked, file_hash
from common.runtime.kept import differences

FORMAT = "flow-checkpoint"
HUB = "hf:"
AGAIN = "copy or download it again"


class Unreadable(ValueError):
    """A file that is no checkpoint: ``fault`` names it and says what is wrong, the message what to do about it, too."""

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(f"{fault}: {advice}")
        self.fault = fault


class Method(TypedDict, total=False):
    """Of a checkpoint; some folders say more."""

    name: Required[str]
    sigma: Annotated[float, Meta(ge=0, le=1e6)]
    flow_weight: Annotated[float, Meta(ge=0, le=1e6)]
    data_loss: Literal["data", "velocity"]
    score_target: Literal["noise", "conditional"]
    score_weight: Annotated[float, Meta(ge=0, le=1e6)]
    ect_q: Annotated[float, Meta(ge=2, le=1e6)]
    weight_power: Annotated[float, Meta(ge=0, le=1)] | None
    coupling: Literal["independent", "ot", "sinkhorn"]


class Averages(TypedDict, total=False):
    """What a checkpoint of a run says of its averages."""

    updates: Annotated[int, Meta(ge=0)]
    shadow: dict[str, Tensor]
    power: dict[float, dict[str, Tensor]]  # by std


class Contents(TypedDict, total=False):
    """What a checkpoint of our format holds; some folders add more."""

    format: Required[Literal["flow-checkpoint"]]
    version: Required[int]
    step: Required[Annotated[int, Meta(ge=0)]]
    config: Required[dict[str, Any]]
    network: Required[dict[str, Any]]
    method: Required[Method]
    ema_model: dict[str, Tensor]
    net_model: dict[str, Tensor]
    images_seen: Annotated[int, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=0)]
    classes: list[str]
    init: dict[str, str]
    optim: dict[str, Any]
    ema: Averages
    scaler: dict[str, Any]
    skipped: Annotated[int, Meta(ge=0)]
    best: float
    minutes: float | None
    data: str
    history: list[dict[str, Any]]


# ---- files


def save(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; an older file of that name stays until the new one is complete.

    Tensors are streamed from where they lie, so the peak of memory does not grow (from a GPU: by one tensor), and
    tensors that share memory are written once.

    Raises:
        TypeError: something in it is neither a tensor nor a primitive, so ``load`` would refuse the file.
        OSError: the disk is full.
    """
    _check_plain(state, "state")
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Tensor) or type(value) in (str, int, float, bool, type(None)):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and primitives only")


def find(path: str | PathLike[str], flag: str = "--weights") -> Path:
    """The checkpoint file that a path means: itself, or in a run folder the final, else best, else last weights.

    Args:
        path: a file or a run folder; hf:USER/NAME: a repository of the Hugging Face hub, which is fetched.
        flag: where it was given, for the error's line.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder is one of diffusers.
    """
    path = Path(path)
    if str(path).startswith(HUB):
        path = _fetched(str(path).removeprefix(HUB), flag)
    if path.is_file():
        return path
    if path.is_dir():
        _check_not_diffusers(path, flag)
        for pattern in ("*_final.pt", "*.pth", "*.safetensors", "checkpoint_best.pt", "checkpoint_last.pt"):
            files = [file for file in path.glob(pattern) if ".previous" not in file.suffixes]
            if files:
                return max(files, key=lambda file: file.stat().st_mtime)
    folder = path if path.is_dir() else path.parent
    suffixes = (".pt", ".pth", ".safetensors")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in suffixes) if folder.is_dir() else []
    contents = f"; in {folder} there are {', '.join(others[:5])}" if others else ""
    raise FileNotFoundError(
        f"no weights at {path}{contents}: train them first, or give {flag} with a checkpoint file or a run folder"
    )


def _check_not_diffusers(folder: Path, flag: str) -> None:
    """Refuse (ValueError) a folder that diffusers wrote: a pipeline with its networks in folders, or one network.

    Its UNet2DModel could be rebuilt from the tensors; but what it predicts is the noise at a numbered step of the
    diffusion that the pipeline's scheduler describes, so that no method here makes a velocity of it.
    """
    for name in ("model_index.json", "config.json"):
        kind = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kind = json.loads((folder / name).read_text(encoding="utf-8")).get("_class_name")
        if kind:
            raise ValueError(
                f"{flag} {folder} is a {kind} of diffusers ({name}): it predicts the noise of a diffusion's numbered "
                "steps, not a flow's velocity, and cannot be used here: sample it with diffusers, or give weights of "
                "this project, torchcfm, IDFF or flow-matching-pytorch"
            )


def _fetched(name: str, flag: str) -> Path:
    """The folder of a hub's repository in the user's cache: safetensors and JSON only, whatever else is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{flag} {HUB}{name} could not be fetched ({reason}): give USER/NAME of a hub"
        ) from error


def load(path: str | PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint (of any project) without running any code that it may contain.

    On the CPU the tensors are mapped from the file and read when used. Files of our own format are verified against
    their checksums (about a second per GB).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, not a checkpoint, or holds more than tensors and primitives; mostly
            :class:`Unreadable`.
    """
    path = find(path)
    if path.suffix == ".safetensors":
        return _load_tensors(path, map_location)
    zipped = _is_zip(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True, mmap=zipped)
    except (torch.OutOfMemoryError, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise Unreadable(*_refusal(path, error)) from error
    if not isinstance(state, dict):
        raise Unreadable(f"{path} holds a {type(state).__name__}, not a dict of weights", "it is not a checkpoint")
    if is_own(state):
        _verify(path, state)
    return state


def is_own(state: dict[str, Any]) -> bool:
    """Whether a file is of our format, or was before it was damaged: no other project describes its network so."""
    return {"network", "method"} <= state.keys() or str(state.get("format")) == FORMAT


def _is_zip(path: Path) -> bool:
    """Whether the file is of torch's present (zip) format; False: the format before torch 1.6, a bare pickle."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] == b"\x80\x02":
        return False
    if head != b"PK\x03\x04":
        what = f"it begins with {head!r}" if head else "it is empty"
        raise Unreadable(f"{path} is not a PyTorch checkpoint ({what})", AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged directory may fail in any way
        fault = f"{path} is truncated or damaged ({path.stat().st_size:,} bytes)"
        raise Unreadable(fault, f"{AGAIN}, or use an older checkpoint") from error
    if not any(m.filename.endswith("data.pkl") for m in members) or any(m.compress_type for m in members):
        raise Unreadable(f"{path} is a zip archive, but not a PyTorch checkpoint", AGAIN)
    return True


def _refusal(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with a file that torch would not read, and what to do."""
    names = re.findall(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and names and not names[0].startswith("torch."):
        fault = f"{path} holds Python objects ({names[0]}) besides tensors and was refused, since reading them can run"
        return f"{fault} any program", "ask its author for a plain state dict"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, not a checkpoint", "ask its author for a plain state dict"
    return f"{path} is damaged or not a checkpoint ({type(error).__name__})", AGAIN


def _verify(path: Path, state: dict[str, Any]) -> None:
    """Raises ValueError for other entries, a version that this code does not know, or a byte that is not as written."""
    _verify_entries(path, state)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged header may fail in any way
        damaged = type(error).__name__
    if damaged:
        raise Unreadable(f"{path} is damaged (checksum of {damaged})", "copy it again, or use an older checkpoint")


def _verify_entries(path: Path, state: dict[str, Any]) -> None:
    """Raises ValueError for other entries than ours, or a version that this code does not know."""
    damage = f"{path} is damaged, copy it again or use an older checkpoint"
    checked(state, Contents, damage)
    if len(gaps := {"images_seen", "seconds"} - state.keys()) == 1:  # both are of the same age
        raise ValueError(f"{damage}: it has no {gaps.pop()}")
    if state["version"] != 1:
        raise ValueError(f"{path} is of format version {state['version']}, this code reads version 1: update it")


# ---- safetensors


def save_tensors(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Write final weights, a checkpoint's entries with ``ema_model`` as their only tensors, as safetensors.

    Raises:
        ValueError: see :func:`check_final`.
    """
    from safetensors.torch import save as packed

    check_final(state)
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state["ema_model"].items()}
    header = json.dumps({key: value for key, value in state.items() if key != "ema_model"})
    metadata = {"format": "pt", FORMAT: header, "sha256": _hash_of(tensors)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed(tensors, metadata))


def check_final(state: dict[str, Any]) -> None:
    """Raises ValueError for a checkpoint that is not of our format, or holds the state of a run."""
    if not is_own(state) or "ema_model" not in state or {"net_model", "optim"} & state.keys():
        raise ValueError("only averaged final weights of this project's own format become safetensors, or .pt again")


def _load_tensors(path: Path, device: str | torch.device) -> dict[str, Any]:
    """The entries of a safetensors file as of any checkpoint; of another project's the tensors alone."""
    from safetensors import SafetensorError, safe_open

    damage = f"{path} is damaged or not safetensors, copy it again or use an older checkpoint"
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:  # type: ignore[no-untyped-call]
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if FORMAT not in metadata:
            return tensors
        state = {**json.loads(metadata[FORMAT]), "ema_model": tensors}
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{damage} ({' '.join(str(error).split())})") from error
    if metadata.get("sha256") != _hash_of(tensors):
        raise ValueError(f"{damage} (its hash is another one)")
    _verify_entries(path, state)
    return state


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and bytes."""
    found = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        found.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- networks


def start_from(
    path: str | PathLike[str],
    network: nn.Module,
    description: Mapping[str, Any],
    method: str,
    sigma: float | None = None,
    flow: bool = False,
) -> dict[str, str]:
    """Give a network the weights of a file to train on from: averaged ones, if the file has them.

    A network of two times may start from one of one time: its flow map then begins as the velocity, whatever r is.

    Args:
        network: changed in place; ``description`` is its own.
        sigma: that the file must have been trained with; None: any.
        flow: whether it has to know the velocity of a flow.

    Returns:
        {"weights", "sha256"} of the file, for the record of the run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or of another network.
    """
    path = find(path, "--init")
    said = {
        key: description[key] for key in ("image_size", "patch_size", "num_heads", "head_channels") & description.keys()
    }
    said["num_classes"] = description.get("num_classes", 0) - bool(description.get("null_class"))
    source, info = load_network(path, unsaid=said if sigma is None else said | {"sigma": sigma})
    theirs, options = info["network"], ("dropout", "checkpointing")  # of a run, not of its weights
    if description.get("two_times") and not theirs.get("two_times") and theirs["name"] == description["name"]:
        source, theirs = with_second_time(source, theirs)
    if different := differences(theirs, description, {**description, **theirs}, free=options):
        if (name := info["method"]["name"]) != method:
            different += f"; method: {name} there, {method} here"
        raise ValueError(f"--init {path} is of another network ({different}): give this run its options")
    if sigma is not None and sigma != (trained := info["method"]["sigma"]):
        raise ValueError(
            f"--sigma {sigma:g}: --init {path} was trained with sigma {trained:g}, give --sigma {trained:g}"
        )
    if flow and method_of(info["method"]["name"]).denoiser:
        raise ValueError(
            f"--teacher_cfg: --init {path} was tuned by {info['method']['name']} and knows no flow to learn from: "
            "leave it out, or give the weights that it was tuned from"
        )
    network.load_state_dict(source.state_dict())
    return {"weights": path.name, "sha256": file_hash(path)}


def load_network(
    path: str | PathLike[str],
    ema: bool = True,
    extra: Mapping[str, Any] | None = None,
    unsaid: Mapping[str, Any] = {},
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint with its weights, in eval mode, on the CPU.

    Our own files need nothing but the path. Files of other projects (``common.networks.foreign``) are recognised by
    their entries and the shapes of their tensors; their time is turned where t = 0 is data there.

    Args:
        path: a file, or a run folder (see ``find``).
        ema: the averaged weights if the file has them; False: the raw ones.
        extra: options of ``TrainConfig`` that are known; they fill in what foreign tensors do not tell, and must not
            contradict the file.
        unsaid: options that are taken where neither foreign tensors nor ``extra`` tell.

    Returns:
        The network and {"config", "network", "method", "step", "classes", "report"}; classes are names, of old files
        none; the report is a list of lines that say what the file is and what was assumed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or of another network than ``extra`` says.
    """
    path = find(path)
    state, options = load(path), dict(extra or {})
    try:
        info, tensors = _own(state, ema) if is_own(state) else _foreign(state, ema, {**unsaid, **options}, path)
        if different := _differences(options, info["network"], info["method"]["name"]):
            raise ValueError(
                f"it is of another network than the options say ({'; '.join(different)}): drop -c or change it"
            )
        network = _fill(info["network"], tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    info["report"].insert(0, f"{path.name}: {info.pop('kind')}")
    return network, info


def _own(state: dict[str, Any], ema: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of a file of our own format."""
    key = "ema_model" if ema and "ema_model" in state else "net_model"
    if "ema_model" in state and key not in state:
        raise ValueError("it holds averaged weights only: leave out --no-ema")
    if key not in state:
        raise ValueError(f"it holds no weights to sample from (missing: {key})")
    check_description(state["network"])
    method = recorded_method(state)
    info = {"config": state["config"], "network": state["network"], "method": method, "step": state["step"]}
    info |= {"report": [], "classes": state.get("classes", [])}
    weights = "averaged" if key == "ema_model" else "raw"
    return info | {"kind": f"{weights} {method['name']} weights, step {info['step']}"}, state[key]


def _foreign(
    state: dict[str, Any], ema: bool, options: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of another project's file."""
    file = foreign.unpack(state, ema)
    network, method = foreign.describe(file, options, path.stem, NAMES)
    if "coupling" in options:
        method = recorded_method({"method": method, "config": options})
    info = {"config": options, "network": network, "method": method, "step": file.step, "report": file.notes}
    info["classes"] = []
    kind = f"foreign weights ({file.project}), {network['name']}, method {method['name']}"
    tensors = file.tensors
    # a first head that is data stays data, whichever way time runs
    if foreign.runs_backwards(file.project) and method_of(method["name"]).heads == 1:
        tensors = foreign.reverse_time(tensors)
        file.notes.append("time ran from data to noise there: converted, t = 0 is noise here")
    return info | {"kind": kind}, tensors


def _differences(options: dict[str, Any], network: dict[str, Any], method: str) -> list[str]:
    """Options that contradict a network's description: 'num_channel: 64 given, 128 in the file'."""
    if network["name"] == "MLP" or not options:
        return []
    facts = {
        "method": method,
        "in_channels": network["in_channels"] // method_of(method).heads,
        "num_channel": network["channels"],
        "num_classes": network.get("num_classes", 0) - bool(network.get("null_class")),
    }
    kinds = {"UNet": "unet", "ConditionalUNet": "conditional_unet"}  # the others are not trained here
    facts |= {"network": kinds[network["name"]]} if network["name"] in kinds else {}
    facts |= {"channel_mult": list(network["channel_mult"])} if "channel_mult" in network else {}
    facts |= {key: network[key] for key in ("num_res_blocks", "image_size", "patch_size") if key in network}
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    return [
        f"{key}: {values[key]} given, {v} in the file" for key, v in facts.items() if key in values and values[key] != v
    ]


def _fill(description: dict[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a network around float32 copies of its weights, without drawing random ones first."""
    check_finite(tensors)
    with torch.device("meta"), NothingDrawn():
        network = build_network(description)
    take_weights(network, tensors)
    return network.eval()


class NothingDrawn(TorchFunctionMode):
    """Weights are not drawn, since they are to be replaced: on "meta" the first draw would import for two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def take_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network copies of weights from a file, float32 where they are not whole numbers.

    Raises:
        ValueError: tensors are missing, too many, of other shapes, or hold something that is no finite number.
    """
    expected = network.state_dict()
    both = [key for key in expected if key in tensors]
    faults = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "of another shape": [key for key in both if expected[key].shape != tensors[key].shape],
        "of another type": [k for k in both if expected[k].is_floating_point() != tensors[k].is_floating_point()],
    }
    if wrong := [f"{len(keys)} tensors {what}, first {keys[0]}" for what, keys in faults.items() if keys]:
        raise ValueError(f"the weights do not fit their network, a {type(network).__name__}: {'; '.join(wrong)}")
    check_finite(tensors)
    # copied, since memory mapped from a file would break if somebody overwrote the file
    kinds = {key: torch.float32 if value.is_floating_point() else value.dtype for key, value in expected.items()}
    network.load_state_dict({key: tensors[key].to(kind, copy=True) for key, kind in kinds.items()}, assign=True)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where tensors hold something that is no finite real number."""
    if wrong := [key for key, x in tensors.items() if x.is_complex() or not torch.isfinite(x).all()]:
        raise ValueError(f"{len(wrong)} of its tensors hold something that is no finite number, first {wrong[0]}")
