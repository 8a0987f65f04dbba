"""``python -m common.hub``; see ``common.scripts.hub``."""

from common.scripts.hub import script

script()
