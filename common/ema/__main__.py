"""``python -m common.ema``; see ``common.scripts.lengths``."""

from common.runtime import run_main
from common.scripts.lengths import main

run_main(main)
