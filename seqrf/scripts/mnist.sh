#!/usr/bin/env bash
# Sequential reflow of the shipped MNIST flow, all of it. An hour or two on a CPU; more flags may follow.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" pipeline.py --config=configs/rf/mnist.py "$@"
