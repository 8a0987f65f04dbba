"""``python -m common.export``; see ``common.export.command``."""

from common.export.command import main
from common.runtime import run_main

run_main(main)
