"""``python -m common.app``: a page to play with flows. ``play`` computes, ``serve`` answers, page.* shows."""
