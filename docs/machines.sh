#!/usr/bin/env bash
# One command on several machines at once: docs/many-machines.md. Each machine runs this line, with its own NODE:
#   NODES=2 NODE=0 FIRST=10.0.0.1 bash docs/machines.sh cifar10/train_cifar10.py -e /shared/run --resume auto
# Under Slurm (srun --nodes 2 --ntasks-per-node 1 bash docs/machines.sh ...) the three are known.
# More: PROCESSES on a machine (its GPUs; its cores where there are none), PORT of the first one, PYTHON.
set -euo pipefail
nodes=${NODES:-${SLURM_NNODES:?NODES: give the number of machines}}
node=${NODE:-${SLURM_NODEID:?NODE: give the number of this machine, the first is 0}}
[ -n "${FIRST:-${SLURM_JOB_NODELIST:-}}" ] || { echo "FIRST: give the address of machine 0" >&2; exit 2; }
first=${FIRST:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$nodes" --node_rank "$node" \
    --master_addr "$first" --master_port "${PORT:-29500}" --nproc_per_node "${PROCESSES:-auto}" "$@"
