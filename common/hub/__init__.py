"""``python -m common.hub``: a folder of weights as model hubs take it; the body is ``common.scripts.hub``."""
