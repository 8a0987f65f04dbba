"""Images from files: what a ``--data`` is (``opening``), read in place (``archives``, ``arrays``), as tensors (``loading``)."""
