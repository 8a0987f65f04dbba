"""The bodies of the data folders' scripts, one module a script. Torch is imported inside the functions."""
