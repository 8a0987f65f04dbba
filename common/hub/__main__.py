"""``python -m common.hub``; see ``common.scripts.hub``."""

from common.scripts.hub import main
from common.runtime import run_main

run_main(main)
