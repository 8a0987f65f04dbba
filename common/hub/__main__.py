"""``python -m common.hub``; see ``common.scripts.hub``."""

from common.runtime import run_main
from common.scripts.hub import main

run_main(main)
