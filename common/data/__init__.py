"""Images from files: ``opening`` finds, ``archives`` and ``arrays`` read in place, ``loading`` makes tensors.

``series``: sequences and their roll-outs; ``toys``: distributions in the plane.
"""
