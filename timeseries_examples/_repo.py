"""Make the repository's ``common`` importable from this folder and from anywhere else."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))
