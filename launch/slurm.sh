#!/usr/bin/env bash
# One run on one node:  sbatch launch/slurm.sh recipes/llama-3.1-8b-instruct/run.yaml [key=value ...]
# Submit it again with the same recipe to go on where a stopped job was.
#SBATCH --job-name=selfreward
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=96G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

RECIPE=${1:?"give a recipe: sbatch launch/slurm.sh recipes/NAME/run.yaml"}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
# An environment made by `make install` or by hand; the one that is active otherwise.
[[ -x .venv/bin/selfreward ]] && PATH="$PWD/.venv/bin:$PATH"
status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" selfreward run "$RECIPE" "$@" || status=$?
# 75: stopped as asked, before its end. The job goes on where it was.
if ((status == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
