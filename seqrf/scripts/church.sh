#!/usr/bin/env bash
# Sequential reflow of an LSUN church flow with the paper's recipe, for GPUs:
#   scripts/church.sh WEIGHTS IMAGES [more flags]
set -euo pipefail
weights=$(realpath "${1:?give the weights of the teacher: scripts/church.sh WEIGHTS IMAGES}")
images=$(realpath "${2:?give the folder or zip of the images: scripts/church.sh WEIGHTS IMAGES}")
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" pipeline.py --config=configs/rf/church_rf_continuous.py \
  --config.training.import_torch="$weights" --config.data.dataset="$images" "${@:3}"
