#!/usr/bin/env bash
# Installs what tests of clusters need besides the locked packages: SLURM, munge, ip. Starts none of their services.
set -euo pipefail
PACKAGES=(slurm-wlm munge iproute2)

missing=()
for tool in slurmctld slurmd munged ip nsenter unshare; do
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
