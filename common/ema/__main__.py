"""``python -m common.ema``; see ``common.scripts.lengths``."""

from common.scripts.lengths import script

script()
