#!/usr/bin/env bash
# The figures of one GPU in at most eight minutes: what a step and a sample cost, a minute of training, the tests.
#
#   benchmarks/gpu.sh                      # all parts; a table, and benchmarks/gpu.json (OUT=FOLDER: there)
#   benchmarks/gpu.sh --smoke              # on a CPU, tiny networks: whether all parts run (under 90 s)
#   benchmarks/gpu.sh --only step-patches  # parts whose names begin so
#
# Needs Python 3.10 or later with torch 2.11 or later and its Triton, and on the path msgspec (all parts), torchcfm and
# POT (the comparison), pytest (the tests); a C compiler, which Triton uses. No network. What is missing is said in a line,
# the rest goes on. Wheels that were carried along: pip install --no-index --no-deps --target SITE WHEELS; PYTHONPATH=SITE.
# DATA=FILE: CIFAR-10 images for the minute of training (anything that --data takes); made-up ones without.
# PYTHON=INTERPRETER: python3 without. Each part has a limit of its own and leaves its rows when it ends or is ended.
# Compiled kernels are kept in TORCHINDUCTOR_CACHE_DIR, by default build/inductor: the next call starts from them.
set -eu
cd "$(dirname "$0")/.."
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$PWD/build/inductor}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
