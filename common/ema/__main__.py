"""``python -m common.ema``; see ``common.scripts.lengths``."""

from common.scripts.lengths import main
from common.runtime import run_main

run_main(main)
