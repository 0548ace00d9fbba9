#!/usr/bin/env bash
# One golden image, many machines: its clones share everything but what they write.
#
# usage: examples/vm/clones.sh [-h] IMAGE COUNT [AT_ONCE]
#
# Imports IMAGE (see image.sh) as the volume `golden`, takes the snapshot golden@image, clones it COUNT times
# (vm1, vm2, ...) and boots a machine from each, AT_ONCE (2) of them at a time. What each says goes to
# vmN.log in the current directory. Environment: as of boot.sh.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
[ "${1:-}" != -h ] || { usage && exit; }
[ $# -ge 2 ] || { usage >&2 && exit 2; }
image=$1 count=$2 at_once=${3:-2}

objblk import "$image" golden
objblk snapshot create golden@image
for n in $(seq "$count"); do objblk clone golden@image "vm$n"; done

failed=0 running=0
for n in $(seq "$count"); do
    if [ "$running" = "$at_once" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    "$here/boot.sh" vhost-user "vm$n" "me=vm$n" >"vm$n.log" 2>&1 &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
objblk list
exit "$failed"
