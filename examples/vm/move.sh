#!/usr/bin/env bash
# Move a running machine from one QEMU to another, with its disk: live migration over NBD.
#
# usage: examples/vm/move.sh [-h] VOLUME [WORD...]
#
# One objblk process owns the volume all the time; the two QEMUs are both its clients, and only the one whose
# machine runs writes. (A disk of vhost-user cannot be moved like this: it is stopped here, and started
# there.) The machine is moved when a line comes on standard input (press Enter), and runs in the second QEMU
# until TERM or Ctrl-C comes, which cuts its power. Its console is on standard output: lines of the first QEMU begin
# with `1: `, those of the second with `2: `. Needs socat. Environment: as of boot.sh.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
# shellcheck source=examples/vm/qemu.sh
. "$here/qemu.sh"

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
[ "${1:-}" != -h ] || { usage && exit; }
[ $# -ge 1 ] || { usage >&2 && exit 2; }
volume=$1
shift

run=$(mktemp -d)
server='' first='' second=''
finish() {
    for guest in $first $second; do kill -KILL "$guest" 2>/dev/null || true; done
    [ -z "$server" ] || leave || true
    rm -rf "$run"
}
trap finish EXIT
trap 'exit 143' TERM INT

# start NAME [OPTION...]: a QEMU, whose lines are marked.
start() {
    local name=$1
    shift
    machine nbd "$at" "$words" -monitor "unix:$run/$name.monitor,server=on,wait=off" "$@"
    setsid "${qemu[@]}" </dev/null > >(sed -u "s/^/$name: /") &
}
# order NAME WORD...: what the QEMU says to that.
order() { echo "${*:2}" | socat -t 5 - "unix-connect:$run/$1.monitor"; }

serve nbd "$volume" "$run"
words="$*"
start 1
first=$!
read -r _
# It waits for the machine, and has the disk open, but writes nothing before that has come.
start 2 -incoming "unix:$run/migration"
second=$!
until [ -S "$run/migration" ]; do
    kill -0 "$second"
    sleep 0.1
done
order 1 migrate -d "unix:$run/migration" >/dev/null
until order 1 info migrate | grep -q 'Migration status: completed'; do
    if order 1 info migrate | grep -qE 'Migration status: (failed|cancelled)'; then
        order 1 info migrate >&2
        exit 1
    fi
    sleep 0.2
done
order 1 quit >/dev/null || true
wait "$first" || true
first=''
echo "moved"
wait "$second"
second=''
