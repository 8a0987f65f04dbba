#!/usr/bin/env bash
# Install what the repository needs; further packages may follow, such as wandb for --logger wandb.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python3}" -m pip install -r requirements.txt "$@"
