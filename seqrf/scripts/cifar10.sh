#!/usr/bin/env bash
# Sequential reflow of a CIFAR-10 flow with the paper's recipe, for a GPU:
#   scripts/cifar10.sh WEIGHTS [more flags]
set -euo pipefail
weights=$(realpath "${1:?give the weights of the teacher: scripts/cifar10.sh WEIGHTS}")
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" pipeline.py --config=configs/rf/cifar10_rf_continuous.py \
  --config.training.import_torch="$weights" "${@:2}"
