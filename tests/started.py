"""Scripts in processes of their own that do not wait for torch.

Started cold, a script spends seconds on importing other people's packages, and a tenth of that on what is tested. Here
one process, the server, imports those packages and compiles the library, but imports nothing of this repository; a
script then runs in a fork of it, as its main module, with its own arguments, environment, folder, exit code and output.
What only a cold start shows, such as what an import brings in, is not for this.

In a run of the whole suite the server is itself a fork of the worker, made before it imports anything of this
repository (``fork``): what both need is then imported once.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import NamedTuple, TextIO

# What costs a tenth of a second or more; torch imports the second when the first optimizer is made.
PACKAGES = ("torch", "torch._dynamo", "scipy.optimize", "scipy.stats", "PIL.Image", "tyro", "matplotlib.figure", "yaml")
SECONDS = 300
LOCK = threading.Lock()  # one answer at a time


def start(
    script: Path, *flags: object, cwd: Path, packages: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script from a folder, as ``python SCRIPT FLAGS`` there with ``environment`` over this process's own.

    Args:
        script: Where it is; it is named as seen from the folder.
        flags: Its arguments.
        cwd: The folder.
        packages: More of other people's that the server imports first, once for all such scripts.
        environment: Variables that are set for it.
    """
    command = [os.path.relpath(script, cwd), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, name) for name in ("out", "err")]
        with LOCK:
            process = _server()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([packages, command, str(cwd), environment, streams]) + "\n")
            process.stdin.flush()
            code = process.stdout.readline()
            assert code, "the server has ended"
        out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(command, int(code), out, err)


class Server(NamedTuple):
    """The ends of a forked server's streams that this process holds."""

    stdin: TextIO
    stdout: TextIO


FORKED: list[Server] = []


def fork() -> None:
    """Make the server as a fork of this process, which needs its packages, too; ``start`` then finds it.

    Call it early: nothing of this repository and no thread of torch's may be there yet. Of this process the server
    keeps the modules of others, and none of what a test runner put in their way.
    """
    for name in PACKAGES:
        importlib.import_module(name)
    (asked, ask), (answer, answered) = os.pipe(), os.pipe()
    if os.fork():
        os.close(asked), os.close(answered)
        FORKED.append(Server(open(ask, "w", encoding="utf-8"), open(answer, encoding="utf-8")))
        return
    os.dup2(asked, 0), os.dup2(answered, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    at_once = "PYTHONUNBUFFERED" in os.environ
    sys.stdin, sys.stdout = open(0), io.TextIOWrapper(open(1, "wb", 0 if at_once else -1), write_through=at_once)
    sys.stderr = open(2, "w", 1, errors="backslashreplace")
    sys.dont_write_bytecode = True
    sys.path[:] = ["the script's folder", *(path for path in sys.path if path and not _inside(path))]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "pytest" not in type(finder).__module__]
    for name in list(sys.modules):
        if name.split(".")[0] in ("common", "_repo", "conftest", "pytest", "_pytest", "xdist"):
            del sys.modules[name]
    atexit._clear()
    _serve()
    os._exit(0)


def _inside(path: str) -> bool:
    """Whether a folder of sys.path is one of this repository's, which the tests have put there."""
    root = Path(__file__).resolve().parent.parent
    return Path(path).resolve() in (root, root / "tests", root / "2D-toys")


@functools.cache
def _server() -> Server | subprocess.Popen[str]:
    """The process that this one's scripts are forked from."""
    if FORKED:
        return FORKED[0]
    process = subprocess.Popen(
        [sys.executable, "-B", __file__],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # it ends when its input does
    return process


def _serve() -> None:
    """Fork for every line of the input and answer with the exit code of the fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the tests end this process
    for name in PACKAGES:
        importlib.import_module(name)
    _compile_once()
    for line in sys.stdin:
        packages, *asked = json.loads(line)
        for name in packages:
            importlib.import_module(name)
        gc.freeze()  # so that a fork's collections leave the shared pages shared
        process = os.fork()
        if not process:
            # no finalization: taking torch down again would take longer than most scripts
            os._exit(_become(*asked))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(code, flush=True)


def _compile_once() -> None:
    """Compile the library's files for all scripts, by their contents: no cache of bytecode is read or written."""
    files = (Path(__file__).resolve().parent.parent / "common").rglob("*.py")
    codes = {
        (file.read_bytes(), str(file)): compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        for file in files
    }
    to_code = SourceFileLoader.source_to_code

    def known(self: SourceFileLoader, data: bytes, path: str, **how: int) -> CodeType:
        return codes.get((bytes(data), path)) or to_code(self, data, path, **how)

    SourceFileLoader.source_to_code = known  # type: ignore[method-assign]


def _become(command: Sequence[str], cwd: str, environment: dict[str, str], streams: Sequence[str]) -> int:
    """In the fork: be the script; its exit code, after what the interpreter would do at its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(SECONDS)  # ends a script that hangs
    for number, stream in enumerate((os.devnull, *streams)):
        file = os.open(stream, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path[0] = list(command), os.path.dirname(os.path.abspath(command[0]))
    code: object = None
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code or "", end="", file=sys.stderr)
        code = int(code is not None)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
    os._exit(0)
