"""What torch finds here, in a process of its own: one that crashes or hangs tells that, and harms nobody."""

from __future__ import annotations

import json
import sys
import timeit
import warnings
from typing import Any


def run() -> None:
    """Read {name: [torchvision's class, root]} as JSON, write a line of JSON as each part is known."""
    sets = json.load(sys.stdin)
    for part in (about_torch, about_torchvision, lambda: {"sets": about_sets(sets)}, about_halves):
        print(json.dumps(part()), flush=True)


def about_torch() -> dict[str, Any]:
    """Version, CUDA that it was built for, devices."""
    try:
        import torch
    except Exception as error:
        return {"torch": None, "torch_error": f"{type(error).__name__}: {error}"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count() * torch.cuda.is_available())]
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": gpus}
    facts["old_gpus"] = any(torch.cuda.get_device_capability(k)[0] < 8 for k in range(len(gpus)))
    facts["warnings"] = " ".join(" ".join(str(each.message) for each in said).split())[:300]
    return facts | {"threads": torch.get_num_threads(), "mps": torch.backends.mps.is_available()}


def about_torchvision() -> dict[str, Any]:
    """Its version, or why it cannot be imported."""
    try:
        import torchvision
    except Exception as error:
        return {"torchvision": None, "torchvision_error": f"{type(error).__name__}: {error}"}
    return {"torchvision": torchvision.__version__}


def about_sets(sets: dict[str, list[str]]) -> dict[str, str]:
    """Of torchvision's sets what is wrong with them, empty where they are whole; nothing is downloaded."""
    found = {}
    for folder, (name, root) in sets.items():
        try:
            from torchvision import datasets

            getattr(datasets, name)(root=root, download=False)
            found[folder] = ""
        except Exception as error:
            found[folder] = " ".join(str(error).split())[:120] or type(error).__name__
    return found


def about_halves() -> dict[str, Any]:
    """Whether the CPU computes in bf16, and seconds of a convolution's step in float32 and in bf16."""
    import torch

    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    x, net = torch.randn(8, 64, 16, 16), torch.nn.Conv2d(64, 64, 3, padding=1)

    def step(enabled: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = net(x).float().square().mean()
        loss.backward()

    times = (timeit.repeat(lambda enabled=enabled: step(enabled), number=1, repeat=4) for enabled in (False, True))
    seconds = [min(each[1:]) for each in times]  # the first one warms up
    return {"bf16": bool(asked and asked()), "seconds": seconds}
