#!/usr/bin/env bash
# Installs what tests of several ranks and of clusters need besides the locked packages: requirements/cluster.sh VENV
#   DeepSpeed, into VENV/deepspeed: on the path of the ranks that train with it alone, as every library that finds it
#     imports it.
#   SLURM, munge, ip, and g++ for DeepSpeed's kernel, by apt-get as root. No service is started.
set -euo pipefail
VENV=${1:?"name the environment: requirements/cluster.sh .venv"}
DEEPSPEED=0.19.8 HJSON=3.1.0
PACKAGES=(slurm-wlm munge iproute2 g++)

if [[ ! -d $VENV/deepspeed/deepspeed-$DEEPSPEED.dist-info ]]; then
    rm -rf "$VENV/deepspeed"
    # Its operations for GPUs are built when they are first used, and here they never are.
    DS_BUILD_OPS=0 "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps \
        --no-build-isolation --target "$VENV/deepspeed" "deepspeed==$DEEPSPEED" "hjson==$HJSON"
fi

missing=()
for tool in slurmctld slurmd munged ip nsenter unshare g++; do
    command -v "$tool" > /dev/null || missing+=("$tool")
done
((${#missing[@]})) || exit 0
if ((EUID)) || ! command -v apt-get > /dev/null; then
    echo "Not installed: ${missing[*]}. Tests of clusters need them. As root, on Debian and Ubuntu:" \
        "apt-get install ${PACKAGES[*]}" >&2
    exit 1
fi

echo "Installing ${PACKAGES[*]} with apt-get: half a minute"
# What apt asks before it starts a service; 101 forbids it.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends "${PACKAGES[@]}" > /dev/null
