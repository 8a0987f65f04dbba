"""``python -m common.prepare``: data sets of images made once, small and fast to read."""
