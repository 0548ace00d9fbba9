#!/bin/bash
# The target dies behind the flushes of a file system: all that dm-log-writes has recorded of one is sent to
# a volume, up to a flush and beyond, but not flushed again; there the target is killed, taken over, compared
# and checked. Runs as root in a guest; objblk and its environment are set, replay-log.py and crash-lib.sh
# lie beside it.
#
# usage: flush-marks.sh ext4|xfs COUNT
#
# COUNT flush marks, evenly spread over all that the log has. The volumes are `record` and `marks`, of one
# size. Prints the lines of crash-lib.sh, `mark N: ...` for each one that has been judged, `of ALL` and
# `done`.
cd /tmp/payload || exit 1
# shellcheck source=tests/vm/crash-lib.sh
. ./crash-lib.sh || exit 1
need dmsetup losetup cmp

fs=$1 count=$2

# What a package manager or a mail server does: new files synced, renamed over old ones, appended to,
# removed; with writes in between that nobody syncs.
work() {
    local n
    mkdir -p "$1/d"
    for n in 1 2 3 4 5 6 7 8; do
        head -c $((n * 3000)) /dev/urandom >"$1/d/new"
        sync "$1/d/new"
        mv "$1/d/new" "$1/d/file$((n % 3))"
        sync "$1/d"
        echo "line $n" >>"$1/log"
        head -c 150000 /dev/urandom >"$1/unsynced$n"
        sync -d "$1/log"
        [ $((n % 3)) != 0 ] || { rm "$1/unsynced$n"; sync -f "$1"; }
    done
}

record() {
    local loop log=$T/log sectors
    attach record || exit 1
    truncate -s 1G "$log"
    loop=$(losetup -f --show "$log") || exit 1
    modprobe -q dm_log_writes
    sectors=$(blockdev --getsz "$dev")
    run "log-writes" dmsetup create logged --table "0 $sectors log-writes $dev $loop" || exit 1
    make_fs "$fs" /dev/mapper/logged || exit 1
    run "mark" dmsetup message logged 0 mark made
    mkdir -p "$T/m"
    run "mount" mount /dev/mapper/logged "$T/m" || exit 1
    work "$T/m"
    run "umount" umount "$T/m"
    run "end of the log" dmsetup remove logged
    losetup -d "$loop"
    recorded=$dev
}

# check_copy: the file system as it is on the volume, its journal replayed. What that writes goes to a
# snapshot's layer: the volume is to go on as it is.
check_copy() {
    local loop sectors
    sectors=$(blockdev --getsz "$dev")
    rm -f "$T/layer"
    truncate -s 256M "$T/layer"
    loop=$(losetup -f --show "$T/layer") || return 1
    modprobe -q dm_snapshot
    run "snapshot" dmsetup create copy --table "0 $sectors snapshot $dev $loop N 8" || return 1
    if run "mount at mark $1" mount -t "$fs" /dev/mapper/copy "$T/m"; then
        run "umount at mark $1" umount "$T/m"
        check_fs "$fs" /dev/mapper/copy
    fi
    run "end of the snapshot" dmsetup remove copy
    losetup -d "$loop"
}

record
read -r all made < <(/usr/bin/python3 ./replay-log.py marks "$T/log")
if [ "${made:-0}" = 0 ] || [ "$all" -lt $((made + count)) ]; then
    fail "the log has ${all:-no} flush marks, ${made:-no} of mkfs"
    exit 1
fi

attach marks || exit 1
truncate -s "$(blockdev --getsize64 "$dev")" "$T/image"
from=0
for n in $(seq "$count"); do
    to=$((all * n / count))
    run "play to mark $to" /usr/bin/python3 ./replay-log.py play "$T/log" "$dev" "$T/image" $from $to || exit 1
    run "kill -9 at mark $to" kill -9 "$(target_of marks)" || exit 1
    gone "kill -9 at mark $to" "$dev"
    attach marks --takeover || exit 1
    kept=$(/usr/bin/python3 ./replay-log.py judge "$T/log" "$dev" "$T/image" $to 2>&1) || fail "mark $to: $kept"
    echo "mark $to: $kept"
    [ $to -le "$made" ] || check_copy $to
    from=$to
done
# The last mark is that of the unmount: nothing comes after it.
run "the copy equals the original" cmp "$dev" "$recorded"
run "detach" objblk detach marks
run "detach" objblk detach record
gone "detach" "$dev"
nothing_left "the end"
echo "of $all"
echo "done"
