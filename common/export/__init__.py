"""``python -m common.export``: a whole sampler as one graph, for programs without this library; see ``command``."""
