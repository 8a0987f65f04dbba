"""What is wrong on this machine, and the command that mends it: ``python -m common.doctor``."""
