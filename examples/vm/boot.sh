#!/usr/bin/env bash
# Boot a machine from a volume, and serve that meanwhile.
#
# usage: examples/vm/boot.sh [-h] vhost-user|nbd VOLUME [WORD...]
#
# WORDs are for the init of the volume (see image.sh). The machine's console is on standard output. A signal
# TERM or Ctrl-C is the plug: QEMU dies on the spot, then the volume is closed, so that it has what the machine
# had flushed, and maybe more. Environment: that of objblk (which pool), and that of qemu.sh.
set -euo pipefail
here=${BASH_SOURCE[0]%/*}
# shellcheck source=examples/vm/qemu.sh
. "$here/qemu.sh"

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
[ "${1:-}" != -h ] || { usage && exit; }
case ${1:-} in
    vhost-user | nbd) [ $# -ge 2 ] || { usage >&2 && exit 2; } ;;
    *) usage >&2 && exit 2 ;;
esac
door=$1 volume=$2
shift 2

run=$(mktemp -d)
server='' guest='' cut=''
finish() {
    [ -z "$guest" ] || kill -KILL "$guest" 2>/dev/null || true
    [ -z "$server" ] || leave || true
    rm -rf "$run"
}
trap finish EXIT
trap 'cut=1; [ -z "$guest" ] || kill -KILL "$guest"' TERM INT

serve "$door" "$volume" "$run"
machine "$door" "$at" "$*"
[ -z "$cut" ] || exit 143
setsid "${qemu[@]}" </dev/null &
guest=$!
rc=0
wait "$guest" || rc=$?
# The signal interrupts the first wait; the second one is for the end that it brings about.
[ -z "$cut" ] || wait "$guest" 2>/dev/null || rc=$?
guest=''
[ -z "$cut" ] || rc=143
exit "$rc"
