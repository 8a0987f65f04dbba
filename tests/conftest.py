"""The repository importable: its root, the tests' own helpers, 2D-toys/ (whose name no import can say), any ``_repo``.

The folders of tests mirror those of common/ and of the root; the helpers (tiny, nets, problems, started) stand here.
"""

import gc
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.path.append(str(ROOT / "2D-toys"))
if "PYTEST_XDIST_WORKER" in os.environ:
    # torch, which reads it when it is imported, takes all cores: so would every worker, and threads wait by spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")

gc.disable()  # until all is imported, which only makes what stays: a third of the time until the first test

import common  # noqa: E402, F401  (sets what POT needs before anything imports it)
import started  # noqa: E402


def pytest_configure() -> None:
    """In a worker of the whole suite the server of scripts is made first, out of what both import."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        started.fork()


class Repo(ModuleType):
    """Stands for each folder's _repo.py, which a script finds beside itself: HERE is the importing module's folder."""

    def __getattr__(self, name: str) -> Path:
        if name != "HERE":
            raise AttributeError(name)
        return Path(sys._getframe(1).f_globals["__file__"]).resolve().parent


sys.modules["_repo"] = Repo("_repo")


# A file goes to one of two processes: the longest first, and at the end small ones, so that both end together.
LONGEST = ("test_scripts", "test_two_processes", "test_interruptions", "test_repository", "test_stages", "test_sst")
LONGEST += ("test_race", "test_notebook", "test_lorenz", "test_few_steps")


def pytest_collection_modifyitems(items: list) -> None:
    """Files in the order of LONGEST, then by their number of tests; inside a file as they stand there."""
    count = Counter(item.path for item in items)
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(rank)), -count[item.path], item.path))


def pytest_collection_finish() -> None:
    """Garbage is collected again from here on, but no longer sought among the million objects of what was imported."""
    gc.freeze()
    gc.enable()
