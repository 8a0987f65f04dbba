"""Put the repository root on sys.path, and keep each of several workers to one thread."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if "PYTEST_XDIST_WORKER" in os.environ:
    # torch, which reads it when it is imported, takes all cores: so would every worker, and threads wait by spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import common  # noqa: E402, F401  (sets what POT needs before anything imports it)
