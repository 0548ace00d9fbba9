#!/bin/bash
# One life of a host with file systems on volumes of an S3 pool, between two power cuts. Runs as root in
# a guest; objblk and its environment are set, ledger.py and crash-lib.sh lie beside it.
#
# usage: power-cut.sh first|liar|next|last [ext4|xfs...]       (default: both)
#   first   makes the file systems, then works until the power is cut
#   liar    the same with a load that does not sync what it acknowledges
#   next    recovers as after any crash (see recover_fs), all at once, then works until the power is cut
#   last    recovers, detaches in order, and looks what is left
#
# The volumes have the names of their file systems. Prints `recovering`, the lines of crash-lib.sh and ledger.py, and
# `done` at the end of the last.
cd /tmp/payload || exit 1
# shellcheck source=tests/vm/crash-lib.sh
. ./crash-lib.sh || exit 1

life=$1
shift
if [ "$life" = liar ]; then
    export LEDGER_LIES=1
    life=first
fi
[ $# -gt 0 ] || set -- ext4 xfs

# begin FS: attached and mounted, after a crash or as new.
begin() {
    # The owner was a boot that is over: nobody but us knows that.
    attach "$1" --takeover || return
    mkdir "$T/$1"
    if [ "$life" = first ]; then
        # The new file system itself is to be found again.
        make_fs "$1" "$dev" && run "mount of $1" mount "$dev" "$T/$1" && sync -f "$T/$1"
    else
        recover_fs "$1" "$1" "$dev" "$T/$1"
    fi && touch "$T/$1.begun"
}

end() {
    dev=$(readlink -f "/dev/objblk/$1")
    run "umount of $1" umount "$T/$1"
    run "detach of $1" objblk detach "$1"
    gone "detach of $1" "$dev"
}

nothing_left "boot"
echo recovering
for fs in "$@"; do begin "$fs" & done
wait
for fs in "$@"; do [ -e "$T/$fs.begun" ] || exit 1; done
if [ "$life" = last ]; then
    for fs in "$@"; do end "$fs"; done
    nothing_left "the end"
    echo "done"
    exit 0
fi
for fs in "$@"; do ledger load "$fs" "$T/$fs" & done
wait
fail "the load ended before the power was cut"
exit 1
