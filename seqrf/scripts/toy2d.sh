#!/usr/bin/env bash
# Sequential reflow of points of the plane, all of it: 8 gaussians to moons. Minutes on a CPU; more flags may follow.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" pipeline.py --config=configs/rf/toy2d.py --config.training.n_iters=2500 \
  --config.pipeline.segments=1,2,4,8 "$@"
