"""``python -m common.prepare``; see ``common.prepare.command``."""

from common.prepare.command import main
from common.runtime import run_main

run_main(main)
