#!/usr/bin/env bash
# Consistency tuning of the shipped CIFAR-10 weights on one GPU, in at most nine minutes: weights for 1 to 4 evaluations.
#
#   DATA=cifar10-train.zip benchmarks/fewstep_gpu.sh                  # 5 minutes of training, then measured
#   DATA=cifar10-train.zip benchmarks/fewstep_gpu.sh --minutes 3
#   benchmarks/fewstep_gpu.sh --smoke                                 # on a CPU, a tiny network: whether all parts run
#
# DATA: CIFAR-10's training images, anything that --data takes; they also are what is measured against. Leaves
# fewstep_gpu.json and the weights in parts of at most 16 MiB (cat NAME.part-* > NAME) in OUT=FOLDER, without in
# benchmarks/. FLAGS="--lr 1e-3 ...": more flags of cifar10/train_cifar10.py. Measured are the tuned weights and, by
# Euler's method, those that they began from, at 1, 2 and 4 evaluations, side by side after the training.
# What it needs, PYTHON and TORCHINDUCTOR_CACHE_DIR: see gpu.sh.
set -eu
cd "$(dirname "$0")/.."
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$PWD/build/inductor}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/fewstep_gpu.py "$@"
