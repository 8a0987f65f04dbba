"""What a GPU makes of the CIFAR-10 networks, part by part, each in a process of its own; started by gpu.sh.

    benchmarks/gpu.sh [--smoke] [--only PART]

Parts: the step of torchcfm's own loop, as published and under plain bf16 autocast; ours, plain and compiled, with its
share of the floor (benchmarks/floor.py) and the time by kind of kernel; single layers, with theirs; sampling; a minute
of training; the tests. Compiling is done first, all networks at once, beside the tests.
A part that hangs is ended at its limit, and its rows so far are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

Row = dict[str, Any]
KINDS = {  # kinds of kernels by their names, the first that fits
    "Triton, reductions": r"triton_(red|per)",
    "Triton, pointwise": r"triton_",
    "layouts": r"nchwTo|nhwcTo|[Tt]ranspose",
    "attention": r"flash|fmha|sdpa|attention",
    "convolutions and products": r"conv|cudnn|cutlass|xmma|gemm|nvjet|implicit|wgrad|dgrad|fprop|aten::(addmm|mm)",
    "optimizer, average": r"multi_tensor|[Ff]usedAdam|foreach|fused_adam|lerp",
    "normalisation": r"GroupNorm|RowwiseMoments|ComputeFusedParams|group_norm",
    "copies": r"[Mm]emcpy|[Mm]emset|copy",
}


# ---- steps


def network(name: str, smoke: bool) -> Any:
    """Options of a network of benchmarks/floor.py; the paper's with torchcfm's OT-CFM, as in training_step.py."""
    from floor import NETWORKS

    config = NETWORKS[name]
    changes = {"method": "otcfm", "sigma": 0.0} if name == "paper" else {"coupling": "independent"}
    small = {"num_channel": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "head_channels": 32} if smoke else {}
    return replace(config, **changes, **small)


def batch_of(name: str, smoke: bool) -> int:
    """The batch size at the end of a part's name."""
    return 4 if smoke else int(name.rsplit("-", 1)[1])


def our_step(config: Any) -> Callable[[int], Any]:
    """A step of common.training on made-up images that lie on the GPU, batches made ahead."""
    import torch

    from common.data.loading import Batches, ImageData
    from common.methods import METHODS
    from common.runtime import Processes, pick_device
    from common.training.batches import CoupledBatches
    from common.training.trainer import Trainer

    here = Processes(0, 1, pick_device())
    shape = (4 * config.batch_size, config.in_channels, config.image_size, config.image_size)
    labels = torch.arange(len(range(shape[0]))) % config.num_classes if config.num_classes else None
    data = ImageData(torch.randint(0, 256, shape, dtype=torch.uint8), labels, (), "noise").to(here.device)
    drop = (config.label_dropout, config.num_classes) if config.num_classes else None
    batches = Batches(data, config.batch_size, 0, True, here.device, drop)
    source = CoupledBatches(batches, METHODS[config.method].joint(config.coupling), 0, here, ahead=True)
    trainer = Trainer(config, here)
    trainer.net.train()
    return lambda k: trainer.update(source.at(k))


def synchronize() -> None:
    """Wait for the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(step: Callable[[int], Any], smoke: bool, seconds: float = 4.0) -> Row:
    """Milliseconds of a step, and of these the time until the host has asked for all of it, after warming up."""
    import torch

    warm, least, seconds = (1, 1, 0.0) if smoke else (8, 10, seconds)
    begun = time.perf_counter()
    for k in range(warm):
        step(k)
    synchronize()
    first = time.perf_counter() - begun
    begun, k = time.perf_counter(), 0
    while k < least or time.perf_counter() - begun < seconds:
        step(warm + k)
        k += 1
    asked = time.perf_counter() - begun
    synchronize()
    total = time.perf_counter() - begun
    row = {"ms": 1e3 * total / k, "host_ms": 1e3 * asked / k, "steps": k, "warm_up_s": first}
    if torch.cuda.is_available():
        row["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def kinds_of_kernels(step: Callable[[int], Any], steps: int = 3) -> Row:
    """Milliseconds of a step by kind of kernel, how many there are, and the longest."""
    import torch
    from torch.autograd import DeviceType

    gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if gpu else activity.CPU]) as profile:
        for k in range(steps):
            step(1000 + k)
        synchronize()
    where, time_of = (DeviceType.CUDA, "self_device_time_total") if gpu else (DeviceType.CPU, "self_cpu_time_total")
    found = [
        (e.key, getattr(e, time_of) / steps / 1e3, e.count / steps)
        for e in profile.key_averages()
        if e.device_type == where
    ]
    sums: dict[str, float] = {}
    for key, ms, _ in found:
        kind = next((kind for kind, names in KINDS.items() if re.search(names, key)), "other")
        sums[kind] = sums.get(kind, 0.0) + ms
    longest = sorted(found, key=lambda x: -x[1])[:15]
    return {
        "kernels": sum(count for *_, count in found),
        "kernels_ms": sum(sums.values()),
        "by_kind_ms": dict(sorted(sums.items(), key=lambda x: -x[1])),
        "longest_ms": [[key[:100], round(ms, 4), count] for key, ms, count in longest],
    }


def peer(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """torchcfm's own loop, 35.7M parameters, batch 128."""
    import torch
    from training_step import torchcfm_step

    from common.runtime import pick_device

    device, size = pick_device(), 2 if smoke else 128
    images = [torch.rand(size, 3, 32, 32) * 2 - 1 for _ in range(4)]
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    published = {"tf32_products": flags[0].allow_tf32, "tf32_convolutions": flags[1].allow_tf32}
    for what, precision, tf32 in (
        ("torchcfm, as published", "no", published["tf32_convolutions"]),
        ("torchcfm, plain bf16 autocast", "bf16", published["tf32_convolutions"]),
        ("torchcfm, float32 without tf32", "no", False),
    )[: 1 if smoke else 3]:
        torch.backends.cudnn.allow_tf32 = tf32
        step = torchcfm_step(device, images, precision, 32 if smoke else 128)
        yield {"what": what, "batch": size, **published} | timed(lambda k, step=step: step(k % 4), smoke)


def plain(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Our step in bf16, not compiled."""
    yield from stepped(part, smoke, False)


def compiled(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Our step in bf16, compiled: from the cache, if the part that compiles came to its end."""
    yield from stepped(part, smoke, not smoke)


def stepped(part: str, smoke: bool, compile: bool) -> Iterator[Row]:
    """A step's time, its share of the floor, and where the time goes."""
    from floor import floor_seconds

    name = part.split("-")[1]
    config = replace(network(name, smoke), batch_size=batch_of(part, smoke), compile=compile)
    row = {"what": f"{name}, bf16{', compiled' * compile}", "batch": config.batch_size}
    step = our_step(config)
    row |= timed(step, smoke)
    yield row  # what can fail from here on does not take it away
    floor = 1e3 * floor_seconds(config, config.batch_size)
    row |= {"floor_ms": floor, "share": floor / row["ms"]}
    yield row
    yield row | kinds_of_kernels(step)


def compiling(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Fill the cache of compiled kernels for a later part."""
    begun = time.perf_counter()
    if part == "compile-sample":
        sampler, size = make_sampler(smoke, not smoke)
        sampler.sample(range(size), labels(size))
    else:
        config = replace(network(part.split("-")[1], smoke), batch_size=batch_of(part, smoke), compile=not smoke)
        step = our_step(config)
        for k in range(2):
            step(k)
    synchronize()
    yield {"what": f"compiling, {part}", "seconds": time.perf_counter() - begun}


# ---- pieces of the network of 19.4M parameters at side 16, which take most of its floor


def normalised_by_channel(x: Any, groups: int, weight: Any, bias: Any) -> Any:
    """GroupNorm by mean and variance of each channel, which are read in the order of a channels-last tensor.

    The variance of a group is the mean of its channels' variances and of the squares of their means' deviations.
    """
    import torch

    var, mean = (m.view(len(x), groups, -1) for m in torch.var_mean(x.float(), (2, 3), correction=0))
    centre = mean.mean(2, keepdim=True)
    rate = ((var + (mean - centre).square()).mean(2, keepdim=True) + 1e-5).rsqrt()
    scale = rate * weight.view(1, groups, -1)
    shift = bias.view(1, groups, -1) - centre * scale
    return (x.float() * scale.view(len(x), -1, 1, 1) + shift.view(len(x), -1, 1, 1)).to(x.dtype)


def pieces(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Forward and backward pass of single layers, in bf16, and the chip's own two rates."""
    import torch
    import torch.nn.functional as F

    from common.runtime import pick_device
    from common.unet import attend

    device, n = pick_device(), 4 if smoke else 512
    half = {"device": device, "dtype": torch.float32 if smoke else torch.bfloat16}  # many CPUs only emulate bf16
    x = torch.randn(n, 192, 16, 16, **half).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernels = [torch.randn(192, 192, k, k, **half).contiguous(memory_format=torch.channels_last) for k in (3, 1)]
    weight, bias = torch.randn(192, device=device), torch.randn(192, device=device)
    q, k, v = (torch.randn(n, 3, 256, 64, **half, requires_grad=True) for _ in range(3))
    side = 256 if smoke else 8192
    a, b = torch.randn(side, side, **half), torch.randn(side, side, **half)
    large = torch.randn(2**20 if smoke else 2**31, **half)

    def both(function: Callable[..., Any], *inputs: Any) -> Callable[[int], Any]:
        """A function's forward and backward pass; the gradient as the result is laid out."""
        for tensor in inputs:
            tensor.requires_grad_()
        gradient = torch.randn_like(function(*inputs))
        return lambda step: torch.autograd.grad(function(*inputs), inputs, gradient)

    norms = {
        "GroupNorm, SiLU": lambda x, w, b: F.silu(F.group_norm(x.float(), 32, w, b).to(x.dtype)),
        "GroupNorm by channels, SiLU": lambda x, w, b: F.silu(normalised_by_channel(x, 32, w, b)),
    }
    size, pixels = x.numel() * 2, n * 256
    todo: list[tuple[str, Callable[[int], Any], float, float]] = [  # operations and bytes of the floor
        ("product of two matrices", lambda step: a @ b, 2 * side**3, 0),
        ("copy", lambda step: large.clone(), 0, 4 * large.numel()),
        ("convolution 3x3", both(lambda x, k: F.conv2d(x, k, padding=1), x, kernels[0]), 6 * pixels * 192**2 * 9, 0),
        ("convolution 1x1", both(F.conv2d, x, kernels[1]), 6 * pixels * 192**2, 6 * size),
        ("attention", both(attend, q, k, v), 14 * n * 3 * 256**2 * 64, 12 * size),
        *((name, both(norm, x, weight, bias), 0.0, 5.0 * size) for name, norm in norms.items()),
    ]
    if not smoke:
        done = [(f"{name}, compiled", torch.compile(norm)) for name, norm in norms.items()]
        todo += [(name, both(norm, x, weight, bias), 0.0, 5.0 * size) for name, norm in done]
    for what, function, flops, moved in todo:
        floor = 1e3 * max(flops / 790e12, moved / 4.3e12)
        row = {"what": what, "batch": n} | timed(function, smoke, 0.5)
        yield row | {"floor_ms": floor, "share": floor / row["ms"]}


# ---- samples, training, tests


def labels(count: int) -> Any:
    """Labels of CIFAR-10's classes in turn."""
    from common.generate import labels_for

    return labels_for(range(count), 10)


def make_sampler(smoke: bool, compile: bool) -> tuple[Any, int]:
    """UniPC with 10 steps on the network of 19.4M parameters, with the weights that it starts from; a batch size."""
    import torch

    from common.generate import Sampler
    from common.networks import build_network, network_description
    from common.runtime import pick_device

    net = build_network(network_description(network("patches", smoke), heads=2)).eval()
    net = net.to(pick_device()).to(memory_format=torch.channels_last)
    call: Any = torch.compile(net) if compile else net
    return Sampler(call, "idff", (3, 32, 32), 0.2, "unipc2", 10, precision="bf16"), 2 if smoke else 512


def sampling(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """Images a second at 10 evaluations, from the noise to the CPU's memory."""
    for compile in (False, True)[: 1 if smoke else 2]:
        sampler, size = make_sampler(smoke, compile)
        y = labels(size)
        row = timed(lambda k: sampler.sample(range(k * size, (k + 1) * size), y).images.cpu(), smoke)  # noqa: B023
        yield {"what": f"10 NFE, patches, bf16{', compiled' * compile}", "batch": size} | row


def training(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """A minute of training by the script that a user calls, and its loss."""
    import numpy as np

    config, out = network("patches", smoke), folder / "minute"
    data = os.environ.get("DATA", "")
    if not data:
        data = str(out.parent / "noise.npz")
        pixels = np.random.default_rng(0).integers(0, 256, (2000 if smoke else 20_000, 32, 32, 3), np.uint8)
        np.savez(data, images=pixels, labels=np.arange(len(pixels)) % 10)
    kept = ("num_channel", "num_res_blocks", "head_channels", "dropout", "patch_size", "num_classes", "coupling")
    given = {key: getattr(config, key) for key in kept}
    given |= {key: ",".join(map(str, getattr(config, key))) for key in ("channel_mult", "attention_resolutions")}
    given |= {"method": "idff", "sigma": 0.2, "mixed_precision": "bf16", "batch_size": 32 if smoke else 512}
    given |= {"lr": 1e-3, "warmup": 500, "lr_decay": "linear", "ema_decay": 0.998, "epochs": 0}
    yield trained(given | {"data": data}, out, [*["--compile"] * (not smoke)])


def trained(options: dict[str, Any], out: Path, flags: list[str]) -> Row:
    """Train CIFAR-10 by the script that a user calls, for MINUTES, without samples; what it took and reached."""
    usual = {"minutes": os.environ["MINUTES"], "sample_step": 0, "val_step": 10**6, "save_step": 10**6, "out": out}
    command = ["cifar10/train_cifar10.py", *(f"--{key}={value}" for key, value in {**usual, **options}.items())]
    called(*command, *flags)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    last = losses[-min(10, len(losses)) :]
    return {
        "what": f"{float(usual['minutes']):g} minute(s) of training, {Path(str(options.get('data', 'made up'))).name}",
        "batch": options.get("batch_size"),
        "steps": losses[-1]["step"],
        "images": losses[-1]["images_seen"],
        "images_per_s": losses[-1]["images_seen"] / losses[-1]["seconds"],
        "loss": sum(row["loss"] for row in last) / len(last),
        "val_loss": next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        "skipped": losses[-1]["skipped"],
        "waited_share": last[-1]["waited_share"],
    }


def called(*command: Any) -> str:
    """What a script of the repository says, run by this interpreter from the root; raises where it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def tests(part: str, smoke: bool, folder: Path) -> Iterator[Row]:
    """The tests that are marked gpu; of --smoke two of them, on the CPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "tests/test_gpu.py",
        "-p",
        "no:cacheprovider",
        "-rf",
        "--tb=short",
    ]
    environment = dict(os.environ, REHEARSE_ON="cpu") if smoke else os.environ
    chosen = ["-k", "drop_the_same or lie_on_the_device"] if smoke else ["--durations=5"]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    yield {"what": "tests", "exit_code": done.returncode, "said": lines[-1], "output": done.stdout[-6000:]}


# ---- parts


@dataclass(frozen=True)
class Part:
    """A function of (name, smoke, folder) that yields rows, its limit in seconds, the packages that it needs; with
    ``trains`` the limit is that beside the minutes of training, which the variable MINUTES of its process says."""

    function: Callable[[str, bool, Path], Iterator[Row]]
    limit: float
    needs: tuple[str, ...] = ()
    trains: bool = False

    def seconds(self, smoke: bool) -> float:
        """Its limit; a CPU may be shared."""
        return self.limit * 3 if smoke else self.limit + self.trains * 60 * float(os.environ["MINUTES"])


@dataclass(frozen=True)
class Suite:
    """What one call runs and keeps: parts by name, the script that runs each of them by --part, its file of results,
    the parts of --smoke (empty: all), the limit of all in seconds, the usual minutes of training, and the environment
    variables that have to be given for figures that mean something."""

    script: str
    parts: dict[str, Part]
    file: str
    rehearsal: tuple[str, ...] = ()
    total: float = 470.0
    minutes: float = 1.0
    variables: tuple[str, ...] = ()


STEPS = ("paper-128", "patches-512", "patches-128", "paper-512")
PARTS = {
    "peer": Part(peer, 60, ("torchcfm", "ot")),
    **{f"plain-{name}": Part(plain, 40) for name in STEPS[:2]},
    **{f"compile-{name}": Part(compiling, 170) for name in (*STEPS, "sample")},
    "tests": Part(tests, 170, ("pytest",)),
    **{f"step-{name}": Part(compiled, 50) for name in STEPS[:2]},
    "train": Part(training, 50, trains=True),
    "pieces": Part(pieces, 45),
    "sample": Part(sampling, 45),
    **{f"step-{name}": Part(compiled, 50) for name in STEPS[2:]},
}
AT_ONCE = ("compile", "tests", "measure")  # what these parts take is not measured: they run side by side


def stages(names: list[str]) -> Iterator[list[str]]:
    """The parts in their order; those of ``AT_ONCE`` together."""
    while names:
        count = next((i for i, name in enumerate(names) if not name.startswith(AT_ONCE)), len(names))
        yield names[: max(1, count)]
        names = names[max(1, count) :]


def missing(part: Part) -> list[str]:
    """Packages that a part needs and this interpreter has not."""
    return [name for name in ("torch", "msgspec", *part.needs) if importlib.util.find_spec(name) is None]


def work(suite: Suite, part: str, smoke: bool, file: Path) -> None:
    """In a process of its own: a part's rows, the file written again with each."""
    rows: list[Row] = []
    try:
        for row in suite.parts[part].function(part, smoke, file.parent):
            if rows and rows[-1]["what"] == row["what"]:
                rows.pop()  # the same row with more in it
            rows.append(row)
            write(file, rows)
    except Exception as error:  # noqa: BLE001  the other parts go on, whatever this one met
        import traceback

        rows.append(
            {"what": part, "failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]}
        )
        write(file, rows)


def write(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def together(suite: Suite, names: list[str], smoke: bool, folder: Path, left: float) -> dict[str, list[Row]]:
    """Run parts side by side, each until it ends or its limit comes; their rows."""
    running, rows = {}, {}
    for name in names:
        command = [
            sys.executable,
            suite.script,
            "--part",
            name,
            "--file",
            str(folder / f"{name}.json"),
            *["--smoke"] * smoke,
        ]
        log = open(folder / f"{name}.log", "w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
    begun = time.perf_counter()
    for name, process in running.items():
        limit = min(suite.parts[name].seconds(smoke), left)
        file, ended = folder / f"{name}.json", False
        try:
            process.wait(max(0.1, limit - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            ended = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
        rows[name] = json.loads(file.read_text()) if file.exists() else []
        if ended:
            rows[name].append({"what": name, "failed": f"ended at its limit of {limit:.0f} s"})
        elif not rows[name]:
            said = (folder / f"{name}.log").read_text().strip()[-600:]
            rows[name].append({"what": name, "failed": f"ended with {process.returncode}: {said}"})
    return rows


def line(part: str, row: Row) -> str:
    """A row of the table."""
    if "failed" in row:
        return f"| {part} | {row['what']}: {row['failed'].splitlines()[0][:200]} | | | | | |"
    rate = row.get("images_per_s") or (1e3 * row["batch"] / row["ms"] if "ms" in row else None)
    cells = [
        f"{row['ms']:.2f}" if "ms" in row else f"{row['seconds']:.0f} s" if "seconds" in row else "",
        f"{rate:,.0f}" if rate else "",
        f"{row['share']:.0%} of {row['floor_ms']:.2f} ms" if "share" in row else "",
        f"{row['host_ms']:.2f}, {row['kernels']:.0f}, {row['kernels_ms']:.2f}" if "kernels" in row else "",
        row.get("said")
        or (f"loss {row['loss']:.4f}, val {row['val_loss'] or 0:.4f}, {row['steps']} steps" if "loss" in row else ""),
    ]
    batch = f", batch {row['batch']}" if "batch" in row else ""
    return f"| {part} | {row['what']}{batch} | " + " | ".join(cells) + " |"


def ratios(results: dict[str, list[Row]]) -> list[str]:
    """Our compiled step against the peer's, at the same batch."""
    ours = next((row["ms"] for row in results.get("step-paper-128", []) if "ms" in row), None)
    peers = [row for row in results.get("peer", []) if "ms" in row]
    return [f"{row['what']}: {row['ms'] / ours:.2f}x" for row in peers] if ours else []


def machine() -> Row:
    """What was measured on, asked in a process of its own."""
    ask = (
        "import torch, sys, json\n"
        "gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'\n"
        "print(json.dumps({'gpu': gpu, 'torch': torch.__version__, 'python': sys.version.split()[0]}))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"gpu": "none", "torch": done.stderr.strip()[-200:]}


def parser_of(suite: Suite, description: str | None = None) -> argparse.ArgumentParser:
    """The flags of a suite."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny networks on whatever is there, under 90 s")
    parser.add_argument("--only", default="", metavar="PART", help="parts whose names begin so")
    parser.add_argument("--seconds", type=float, default=suite.total, help="limit of all parts together")
    parser.add_argument("--minutes", type=float, default=suite.minutes, help="of the training")
    parser.add_argument("--part", choices=suite.parts, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser


def main(suite: Suite, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run the parts of a suite; print and keep what each has found."""
    if given.part:
        return work(suite, given.part, given.smoke, given.file)
    if not 0 < given.minutes < given.seconds / 60:
        parser.error(f"--minutes {given.minutes:g}: above 0, and less than the {given.seconds:g} s of --seconds")
    os.environ["MINUTES"] = "0.03" if given.smoke else str(given.minutes)  # of the parts' processes
    for name in () if given.smoke else suite.variables:
        if not os.environ.get(name):
            parser.error(f"{name} is not set, see the head of {Path(suite.script).with_suffix('.sh').name}")
    here = machine()
    if here["gpu"] == "none" and not given.smoke:
        parser.error("no GPU on this machine (torch.cuda.is_available() is false); --smoke rehearses on a CPU")
    names = [name for name in suite.parts if name.startswith(given.only)]
    if given.smoke and not given.only:
        names = list(suite.rehearsal or suite.parts)
    if not names:
        parser.error(f"no part begins with {given.only!r}: {', '.join(suite.parts)}")
    begun, results = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(os.environ.get("OUT") or ROOT / ("build" if given.smoke else "benchmarks"))
        out.mkdir(parents=True, exist_ok=True)
        os.environ["OUT"] = str(out.resolve())  # of the parts' processes
        print(", ".join(f"{key} {value}" for key, value in here.items()), flush=True)
        columns = ("part", "what", "ms", "images/s", "share of the floor", "host ms, kernels, their ms", "")
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for stage in stages(names):
            for name in stage:
                if gone := missing(suite.parts[name]):
                    results[name] = [{"what": name, "failed": f"not run, needs {', '.join(gone)}"}]
            left = given.seconds - (time.perf_counter() - begun)
            able = [name for name in stage if name not in results]
            if left < 5:
                results |= {name: [{"what": name, "failed": "not run, no time left"}] for name in able}
            elif able:
                results |= together(suite, able, given.smoke, Path(temporary), left)
            for name in stage:
                print("\n".join(line(name, row) for row in results[name]), flush=True)
            write(out / suite.file, here | {"smoke": given.smoke, "parts": results, "ratios": ratios(results)})
        for text in ratios(results):
            print(f"ours, compiled bf16, against {text}")
        print(f"{out / suite.file}; {time.perf_counter() - begun:.0f} s")


REHEARSAL = ("peer", "compile-sample", "tests", "step-patches-512", "pieces", "sample", "train")  # each function once

if __name__ == "__main__":
    suite = Suite(__file__, PARTS, "gpu.json", REHEARSAL)
    parser = parser_of(suite, __doc__)
    main(suite, parser.parse_args(), parser)
