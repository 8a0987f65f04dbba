"""Put the repository root on sys.path and keep torch to two threads."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402, F401  (sets what POT needs before anything imports it)
