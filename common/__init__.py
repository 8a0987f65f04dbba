"""Flow matching and rectified flow: the small library under every folder of this repository.

Conventions, everywhere:

* Time ``t`` has shape (batch,) and lies in [0, 1]; ``t = 0`` is noise (or the source), ``t = 1`` is data.
* ``x0`` noise or source, ``x1`` data, ``xt`` a point of the path, ``ut`` the target velocity, ``vt`` a prediction.
* Images are float32 in [-1, 1], shape (B, C, H, W); uint8 lives in ``common.images`` and ``common.data``.
* A network is called ``net(x, t, y=None)``; a velocity is called ``velocity(x, t)``.
* ``n_steps`` counts intervals, ``times`` has ``n_steps + 1`` nodes. The number of function evaluations (NFE)
  is counted at the network, never inferred.
* Network calls may run in bf16 or fp16; losses, EMA weights and the state of an ODE are float32.

Importing this package imports nothing heavy.
"""

import os

# POT imports every array library that it finds; with tensorflow present that can kill the interpreter
# ("LLVM ERROR: inconsistency in registered CommandLine options") and it doubles the import time.
os.environ.setdefault("POT_BACKEND_DISABLE_TENSORFLOW", "1")
