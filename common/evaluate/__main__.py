"""``python -m common.evaluate``; see ``common.evaluate.comparison``."""

from common.evaluate.comparison import main
from common.runtime import run_main

run_main(main)
