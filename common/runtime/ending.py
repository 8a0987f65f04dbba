"""How a script ends: one line for a user's mistake, also under ``accelerate launch`` or ``torchrun``.

Their launchers report a process that ends with an error by pages about themselves, and end the others. Here the process
that ends says its line, and ends the others and the launcher, which has then nothing to report.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import psutil

ENDED = "another process of this run has ended: the run can be resumed from its last checkpoint"
SILENCE = 300.0  # seconds without a sign of life after which a process on another machine counts as lost
BEAT = 5.0  # seconds between two signs
LEFT = b"left"  # the last sign of a process that has ended by itself
_LOST = re.compile(r"gloo|NCCL|\bDist\w*Error|Connection (reset|closed|refused)|Broken pipe", re.IGNORECASE)
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_LAUNCHER = re.compile(r"accelerate|torchrun|torch[./]distributed")
_saying_ended = threading.Lock()  # held by the thread that says ENDED, until it ends the process


def run_main(main: Callable[[], object]) -> None:
    """Run a script: a user's mistake becomes one line on stderr and exit code 2, an interruption exit code 130.

    ``ValueError``, ``OSError`` (a missing file, a full disk), a missing optional package and running out of memory
    count as the user's; any other exception is ours and keeps its traceback. SIGTERM is treated like Ctrl-C unless
    somebody handles it already. ``FLOW_TRACEBACK=1`` in the environment shows the traceback of every error.
    """
    sys.stdout, sys.stderr = (_Harmless(_writable(stream)) for stream in (sys.stdout, sys.stderr))
    in_main_thread = threading.current_thread() is threading.main_thread()  # signals belong to it
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        _leave("stopped", 130)
    except BrokenPipeError:  # the reader of our output went away: `script | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter's last flush must not fail again
        sys.exit(141)
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        _leave(f"error: {message}", 2)


class _Harmless:
    """A stream that shows the control characters of foreign names and values, which a terminal would obey.

    Line ends, tabs and the carriage return of progress bars stay; so does one of a name, which may hide its own line.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = getattr(stream, "_stream", stream)

    def write(self, text: str) -> int:
        """Write a text; what turns the direction of writing or takes no room is shown, too."""
        return self._stream.write(_CONTROL.sub(lambda match: ascii(match[0])[1:-1], text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _writable(stream: Any) -> Any:
    """A stream at which no message ends a run: it escapes what a code page lacks; a closed one takes all."""
    if stream is None or stream.closed:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the life of the process
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _leave(message: str, code: int) -> None:
    if os.environ.get("FLOW_TRACEBACK") == "1":
        traceback.print_exc()
    sys.stdout.flush()
    end_of_bar = "\n" if ENDED in message else ""  # of another process
    if end_of_bar:
        _saying_ended.acquire(timeout=10)
    print(f"{end_of_bar}{message}", file=sys.stderr, flush=True)
    end_together(interrupted=code == 130)
    sys.exit(code)


def one_line(error: Exception) -> str | None:
    """The line to print for a user's mistake; None when the error is not one."""
    if _is_out_of_memory(error):
        what = in_one_line(error).split(". ")[0]
        return f"{what}: try a smaller --batch_size (in training also --grad_accum 2, --checkpointing or -mp bf16)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else " ".join(error.strerror.split())
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name} is not installed: pip install -r requirements.txt"
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
        return in_one_line(error)
    if isinstance(error, RuntimeError) and "WORLD_SIZE" in os.environ and _LOST.search(f"{type(error)} {error}"):
        return ENDED
    return None


def in_one_line(error: BaseException) -> str:
    """What an error says, or else its type."""
    return " ".join(str(error).split()) or type(error).__name__


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a machine or GPU ran out of memory; torch is asked only when it has been imported."""
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    # torch's CPU allocator raises a plain RuntimeError
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, (MemoryError, out_of_memory))


# ---- the processes of a run


class Started(NamedTuple):
    """What a launcher has started on this machine: itself, and the processes beside this one."""

    launcher: psutil.Process
    others: list[psutil.Process]

    def end(self) -> None:
        """End the launcher, before it can report the end of the others, and those."""
        for process in (self.launcher, *self.others):
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)


def started() -> Started | None:
    """The launcher of this process and what it has started; None where there is none."""
    if not {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        return None
    import psutil

    own = psutil.Process()
    launcher = own.parent()
    if launcher is None or not _LAUNCHER.search(" ".join(_words(launcher))):
        return None
    same = [process for process in launcher.children() if process != own and _words(process) == _words(own)]
    return Started(launcher, same)


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; of one that has ended: nothing."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def end_together(interrupted: bool = False) -> None:
    """End the launcher and the other processes of a run; those that are interrupted, too, may end by themselves."""
    run = started()
    if run is None or (interrupted and os.environ.get("RANK", "0") != "0"):
        return
    patience = time.monotonic() + (20 if interrupted else 0)
    while any(map(_words, run.others)) and time.monotonic() < patience:
        time.sleep(0.05)
    run.end()


def end_lone_launcher() -> None:
    """End a launcher of this process alone: it would report an interruption at once, while this process still saves."""
    if (run := started()) and not run.others:
        run.end()


@contextlib.contextmanager
def ending_with_others() -> Iterator[Callable[[], None]]:
    """Inside the block, until what it yields is called, the process ends with a line when another of its run does.

    The next message between them would fail, too, but later than the launcher has seen it. Does nothing where the
    system cannot tell (only Linux can).
    """
    run, off = started(), threading.Event()
    if run and run.others and hasattr(os, "pidfd_open"):
        threading.Thread(target=_wait_for_end, args=(run, off), daemon=True).start()
    try:
        yield off.set
    finally:
        off.set()


def _wait_for_end(run: Started, off: threading.Event) -> None:
    poll, files = select.poll(), [os.pidfd_open(process.pid) for process in run.others]
    for file in files:
        poll.register(file, select.POLLIN)  # readable once the process has ended
    while not off.is_set():
        if poll.poll(200) and not off.is_set() and _saying_ended.acquire(blocking=False):
            print(f"\nerror: {ENDED}", file=sys.stderr, flush=True)
            run.end()
            os._exit(2)
    for file in files:
        os.close(file)


def end_if_others_fall_silent(store: Any, rank: int, world: int) -> None:
    """From now on end this process with a line when another of its run gives no sign of life for ``SILENCE`` seconds.

    A machine without power, or a cable that is pulled, closes no connection: whoever waits for a message waits for as
    long as a process may work alone, which is hours. So each changes its value in the store that they met at, every
    ``BEAT`` seconds, in a thread that goes on while it works alone. Silence is counted in naps of this process rather
    than by the clock: one that has itself been stopped for a while blames nobody.

    Args:
        store: the ``torch.distributed.Store`` of the run.
        rank, world: this process among its peers.
    """
    keys, own = [f"alive/{other}" for other in range(world)], store.clone()  # another connection: this one may hang
    heard, silent = [b""] * world, [0.0] * world

    def leave() -> None:
        with contextlib.suppress(Exception):  # the first process may have left before, and the store with it
            store.set(keys[rank], LEFT)

    def listen() -> None:
        for beat in itertools.count():
            with contextlib.suppress(Exception):  # a store that is gone is a silence, too
                own.set(keys[rank], str(beat))
                for other, value in enumerate(own.multi_get(keys)):
                    if value != heard[other]:
                        heard[other], silent[other] = value, 0.0
            time.sleep(BEAT)

    def judge() -> None:
        while max(silent) <= SILENCE or not _saying_ended.acquire(blocking=False):
            time.sleep(BEAT)
            for other in range(world):
                silent[other] += BEAT * (other != rank and heard[other] != LEFT)
        lost = f"process {silent.index(max(silent))} of this run has given no sign of life for {SILENCE:g} s"
        advice = "its machine or the way to it is down, and the run can be resumed from its last checkpoint"
        print(f"\nerror: {lost}: {advice}", file=sys.stderr, flush=True)
        if run := started():
            run.end()
        os._exit(2)

    atexit.register(leave)
    for task in (listen, judge):
        threading.Thread(target=task, daemon=True).start()
