#!/usr/bin/env bash
# Boot a user-mode Linux whose kernel has ublk, run a script in it, return its output and exit code.
#
# usage: scripts/uml/run.sh [OPTION...] -f SCRIPT
#
#   -f SCRIPT      a host script to run; a copy is executed, by its own #! line
#   -p FILE        a file or directory to copy into the payload, again for each one
#   -e NAME=VALUE  a variable in the script's environment, again for each one
#   -m SIZE        its memory (2G)
#   -s COUNT       its processors, 1 or 2 (2)
#   -t SECONDS     time limit for the boot and the script (300)
#   -h             this text
#
# Programs run at this machine's own speed, which in an emulated guest (scripts/vm) they do not; what costs many
# times as much as on a real machine are system calls and page faults. So it is for figures and for trying
# things; what is true is what the kernels of scripts/vm say.
#
# The root is this host's, read-only; /tmp and /run are in memory. The script runs as root in /tmp/payload, which
# is also in its PATH. There is no network. The first run builds the kernel (build.sh).
#
# exit code: the script's, but for 2 (wrong usage), 124 (time limit), 125 (the lab itself failed)
set -euo pipefail

readonly here=$(cd "${BASH_SOURCE[0]%/*}" && pwd) lab=${OBJBLK_LAB:-/tmp/objblk-lab}/uml
# Each page of each process in it is a mapping of this host's.
readonly mappings=4000000

memory=2G processors=2 limit=300 script=''
payload=() environment=()
# Set on the way: the directory of this run, the process that waits for the kernel, the host's own setting.
run='' guest='' mappings_before=''

# shellcheck source=scripts/payload.sh
. "$here/../payload.sh"

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    local rc=$1
    printf 'uml: %s\n' "${*:2}" >&2
    exit "$rc"
}
allow_mappings() {
    local now
    now=$(cat /proc/sys/vm/max_map_count)
    [ "$now" -lt $mappings ] || return 0
    mappings_before=$now
    echo $mappings >/proc/sys/vm/max_map_count
}

clean_up() {
    if [ -n "$guest" ]; then
        # The kernel itself; its processes end with it.
        pkill -KILL -P "$guest" || true
        wait "$guest" 2>/dev/null || true
    fi
    [ -z "$mappings_before" ] || echo "$mappings_before" >/proc/sys/vm/max_map_count
    rm -rf --one-file-system "$run"
}

main() {
    local option kernel rc=0
    while getopts f:p:e:m:s:t:h option; do
        case $option in
            f) script=$OPTARG ;;
            p) payload+=("$OPTARG") ;;
            e) environment+=("$OPTARG") ;;
            m) memory=$OPTARG ;;
            s) processors=$OPTARG ;;
            t) limit=$OPTARG ;;
            h) usage && exit ;;
            *) exit 2 ;;
        esac
    done
    [ -r "$script" ] || die 2 "no script '$script'; -h shows the usage"
    [ "$(id -u)" = 0 ] || die 125 "must be root: it reads this host's root, and needs many mappings"
    kernel=$("$here/build.sh") || die 125 "there is no kernel"
    # One at a time: the one that ends first would take the mappings away from the other.
    exec 9>"$lab/running"
    flock 9
    run=$(mktemp -d "$lab/run.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    fill_payload "$run/payload"
    allow_mappings
    # In the background, for a signal to end this script at once.
    timeout --foreground -s KILL "$limit" "$kernel" "mem=$memory" "ncpus=$processors" seccomp=on \
        rootfstype=hostfs root=/dev/root ro "init=$here/init" "objblk.share=$run" \
        con=null con0=fd:0,fd:1 panic=-1 "umid=${run##*/}" </dev/null >"$run/console" 2>&1 9>&- &
    guest=$!
    wait "$guest" || rc=$?
    guest=
    cat "$run/out" 2>/dev/null || true
    if [ -s "$run/exit" ]; then
        exit "$(cat "$run/exit")"
    fi
    tail -n 30 "$run/console" >&2
    # timeout's own code is that of its signal.
    [ "$rc" != 137 ] || die 124 "the time limit of $limit s was reached"
    die 125 "it ended without an exit code ($rc)"
}

main "$@"
