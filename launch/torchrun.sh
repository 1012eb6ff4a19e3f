#!/usr/bin/env bash
# One run on several nodes, without a scheduler. On each node, with its own NODE_RANK from 0:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 launch/torchrun.sh recipes/NAME/run.yaml [key=value ...]
# torchrun.md tells the rest.
set -euo pipefail

RECIPE=${1:?"give a recipe: launch/torchrun.sh recipes/NAME/run.yaml"}
shift
exec torchrun \
    --nnodes="${NNODES:?"how many nodes there are"}" \
    --node_rank="${NODE_RANK:?"this node's number, from 0"}" \
    --master_addr="${MASTER_ADDR:?"the first node, as the others reach it"}" \
    --master_port="${MASTER_PORT:-29500}" \
    --nproc_per_node="${PROCESSES:-gpu}" \
    -m selfreward run "$RECIPE" "$@"
