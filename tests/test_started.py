"""A script that is started from the server of the tests ends as one that python starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from started import start

SCRIPT = """
import atexit, os, sys, threading
import beside
ours = [name for name in sys.modules if name.split(".")[0] in ("common", "pytest", "tiny", "_repo")]
print(sys.argv, os.getcwd(), os.path.abspath(sys.path[0]), __name__, os.path.abspath(__file__), ours, beside.where)
print(os.environ["WHAT"], os.environ["OMP_NUM_THREADS"], sys.stdin.read() == "", sys.modules["__main__"].SELF)
atexit.register(print, "at the end")
threading.Timer(0.1, print, ["from a thread"]).start()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('in words')", 1),
        ("raise KeyError('ours')", 1),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_a_script_ends_as_one_that_python_starts(end, code, tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").write_text("where = __file__")
    (folder / "one.py").write_text(SCRIPT.replace("import beside", "import beside; SELF = 'itself'") + end)
    environment = {**os.environ, "WHAT": "this", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "scripts/one.py", "--flag", "a b"]
    cold = subprocess.run(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    started = start(folder / "one.py", "--flag", "a b", cwd=tmp_path, WHAT="this")
    assert started.returncode == cold.returncode == code
    assert started.stdout == cold.stdout.decode() and ("at the end" in started.stdout) is (code >= 0)
    assert started.stderr.splitlines()[-1:] == cold.stderr.decode().splitlines()[-1:]
