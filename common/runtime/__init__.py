"""What a script needs around its work: errors as one line, device, seeds, processes, locks, files written whole.

Importing this module does not import torch, so that ``--help`` and a mistyped flag answer at once; the functions
that need torch import it themselves.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import operator
import os
import platform
import shutil
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.runtime.ending import end_if_others_fall_silent, in_one_line, one_line, run_main

if TYPE_CHECKING:
    import torch

__all__ = ["in_one_line", "one_line", "run_main"]

T = TypeVar("T")


def checked(value: Any, kind: Any, name: str) -> Any:
    """The value as it came, once it is of a kind: a type, also a TypedDict or one with msgspec's ranges.

    Raises:
        ValueError: it is not; the line begins with the name and says which entry is what instead.
    """
    import msgspec

    try:
        msgspec.convert(value, kind)
    except MemoryError:
        raise
    except Exception as error:  # what has indices is taken for a mapping where one belongs, and fails in its own way
        if not isinstance(error, msgspec.ValidationError):
            raise ValueError(f"{name}: an entry is no plain value ({in_one_line(error)})") from error
        what, _, place = str(error).partition(" - at ")
        place = place.replace("`", "").replace("$.", "").replace("$", "")
        raise ValueError(f"{name}{place and f', {place}'}: {what[0].lower()}{what[1:]}") from error
    return value


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], advice: str) -> Iterator[None]:
    """Whatever goes wrong inside, on what a file holds, is the file's fault: a line that names it and says what to do.

    Raises:
        ValueError: something went wrong that is not for want of the file, of memory or of a package; or it is a pipe
            or a device.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{path} is no regular file: {advice}")  # a pipe would be waited for
    try:
        yield
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        what = in_one_line(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(what if str(path) in what else f"{path} is damaged ({kind}{what}): {advice}") from error


def silent(*_: object) -> None:
    """Say nothing: for functions that take one to tell the user something."""


def made_ahead(make: Callable[[Any], T], items: Iterable[Any], workers: int) -> Iterator[T]:
    """``make(item)`` of each item, in their order; ``workers`` threads make up to twice as many ahead."""
    from concurrent.futures import Future, ThreadPoolExecutor

    pool, pending = ThreadPoolExecutor(workers), deque[Future[T]]()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def number_of(count: float, noun: str) -> str:
    """A number and what it counts: "1 step", "10 steps"."""
    return f"{count} {noun}{'s' * (count != 1)}"


# ---- device and seeds


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    import torch

    here = _devices_here()
    if name == "auto":
        return torch.device("cuda" if "cuda" in here else "mps" if "mps" in here else "cpu")
    if name not in here:
        raise ValueError(f"device {name!r} is not on this machine, which has {', '.join(here)}; use --device auto")
    return torch.device(name)


def _devices_here() -> list[str]:
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *(["cuda", *gpus] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else [])]


def hardware(device: torch.device) -> str:
    """The device in words, for cards and logs."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute: ``precision`` "no" is float32, "bf16" and "fp16" are halves.

    A CPU without instructions for a half emulates it, ten to fifty times slower than float32: there float32 it is, and
    the first time says so.
    """
    import torch

    halves = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = halves[computed_in(device, precision)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def computed_in(device: torch.device, precision: str) -> str:
    """The precision in which networks compute where one is asked for, see :func:`autocast`."""
    return "no" if device.type == "cpu" and precision != "no" and not computes(precision) else precision


@functools.cache
def computes(precision: str) -> bool:
    """Whether this machine's CPU has instructions for a half; where not, one line says what that means."""
    import torch

    asked = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)  # None: torch was built without it
    can = bool(asked and asked())
    if not can:
        print(
            f"-mp {precision}: this CPU has no {precision} arithmetic; float32, which is faster here", file=sys.stderr
        )
    return can


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed that is a stable function of a seed and of what it is for, e.g. ``derive_seed(0, "flip", step)``.

    All randomness of training step k and of sample k comes from seeds derived with k: a resumed run needs no
    generator state, and the result does not depend on batch size, machine or Python version.
    """
    digest = hashlib.blake2b(digest_size=8)
    for key in (seed, *keys):
        text = key if isinstance(key, str) else str(operator.index(key))
        # kind and length first, so that ("ab", "c") differs from ("a", "bc") and 1 from "1"
        digest.update(f"{'s' if isinstance(key, str) else 'i'}{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "little") & (2**63 - 1)


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of ``derive_seed(seed, *keys)``; those of CPU and GPU draw different numbers."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *keys))


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generator that operations on a device draw from, as ``torch.manual_seed`` does.

    That one seeds the generators of all backends: 140 microseconds instead of 1.4, in every training step.
    """
    import torch

    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    else:
        torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back; nothing with other C libraries.

    A training step on a CPU frees and takes the same gigabytes again; the page faults of touching fresh ones cost
    a third to a half of the step (measured: 60,000 faults, 1.5 times the time in float32, 2.1 in bf16).
    """
    import ctypes

    trim_threshold, mmap_max, never = -1, -4, -1  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: CDLL(None) on Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, never)


# ---- processes


# rank 0 may draw a sample grid while the others wait: longer than the 10 minutes that NCCL allows
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among those that work on the same run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here; nothing to do with one."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through the block alone; then the others do, who read what it has written, in silence.

        An error in it ends the first process, and with that, by the launcher, those that wait for it.
        """
        if self.is_main:
            yield
            self.wait()
        else:
            self.wait()
            with contextlib.redirect_stdout(None):
                yield

    def of_first(self, number: float) -> float:
        """The first process's number, at every process; it goes past the GPUs, which nobody waits for."""
        if self.world == 1:
            return number
        import torch

        value = torch.tensor(number, dtype=torch.float64)
        torch.distributed.broadcast(value, 0, group=_between_hosts())
        return value.item()

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(line, flush=True)


@functools.cache
def _between_hosts() -> Any:
    """The processes' group for messages that lie in the memory of their hosts; all of them make it together."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def processes(device_name: str = "auto") -> Processes:
    """Join the processes that ``accelerate launch`` or ``torchrun`` started; alone, without importing accelerate."""
    device = pick_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes(rank=0, world=1, device=device)
    if device.index is not None:
        raise ValueError(f"--device {device_name} with several processes: use --device cuda, each takes its own GPU")
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    if int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)) < state.num_processes:  # several machines
        from torch.distributed.distributed_c10d import _get_default_store

        end_if_others_fall_silent(_get_default_store(), state.process_index, state.num_processes)
    return Processes(
        rank=state.process_index,
        world=state.num_processes,
        device=device if device.type == "cpu" else state.device or device,
    )


# ---- files


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold ``folder/run.lock`` while a run writes to the folder, which is made if it is missing.

    The system frees the lock when the process ends, however it does; the file stays. Temporary files that a killed run
    left are removed. Where files cannot be locked (Windows, some network file systems) the run goes on without.

    Raises:
        ValueError: another process holds the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "run.lock", "a+") as file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ValueError(
                f"another run (pid {holder}) writes to {folder}: wait for it, stop it, or choose another --out"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def _try_lock(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; False when somebody else has it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside ``path`` that replaces it at the end.

    On any failure the temporary file is removed and an old ``path`` stays as it was. The temporary name is hidden and
    ends in ``.tmp``: tell PIL the format, and give numpy an open file. The folder is made if it is missing.

    Args:
        sync: Wait until the disk has it (milliseconds); False for many small files that can be made again.

    Raises:
        OSError: the disk is full, in one line that names the file (torch's writer, too, which raises RuntimeError).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent.resolve())
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's own writer hides the reason in a RuntimeError
        of_torch = "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
        if not (error.errno in (errno.ENOSPC, errno.EDQUOT) if isinstance(error, OSError) else of_torch):
            raise
        text = f"the disk or quota is full: cannot write {path} (an older file is kept); free some space, try again"
        raise OSError(errno.ENOSPC, text) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder whole or not at all: yields a new one beside ``path``, which takes its place at the end.

    On any failure the new one is removed and an old ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _machine() -> str:
    """A mark of this machine: numbers of processes tell nothing about those of another one with the same disk."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


@functools.cache  # once a process: a folder may hold a million files
def _clear(folder: Path) -> None:
    """Remove what processes of this machine that were killed had begun to write in a folder."""
    for path in folder.glob(f".*.{_machine()}-*-*.tmp"):
        import psutil

        process = path.name.split("-")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str], kind: Any = object) -> Any:
    """The value of a JSON file, of a kind as :func:`checked` takes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or of another kind, in one line that names it.
    """
    with reading(path, "delete it, or restore it from a copy"):
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return value if kind is object else checked(value, kind, "its value")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, whole or not at all (see :func:`atomic_write`)."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
