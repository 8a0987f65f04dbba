"""Images from files: ``opening`` finds, ``archives`` and ``arrays`` read in place, ``loading`` makes tensors."""
