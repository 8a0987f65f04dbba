"""``python -m common.export``; see ``common.export.command``."""

from common.export.command import script

script()
