#!/bin/bash
# Volumes of an S3 pool on /dev/ublkbN of a real kernel. Runs as root in a guest that may be thrown
# away; objblk is on PATH, OBJBLK_STORE, AWS_ENDPOINT_URL and credentials are set. Prints one line a
# check; exits 1 where one failed.
#
# usage: volume.sh STEP...
#   fill:V     a file system on volume V, `ext` or `xfs` (made before), the tree of the archive TREE copied in
#   verify:V   in another guest: attached again, checked, compared
#   fio        fio with verification, mixed block sizes and trims, on volume `fio`
#   discard    the whole of volume `huge` is written here and there, then discarded
#   kill       the target of volume `kill` dies by kill -9 under flushes; taken over; compared
#   conduct    what attach and detach refuse, the past on a device, and what is left behind
#   doors      the suite that all doors have (tests/doors), by the test program DOORS
#   udev       what udev makes of volume `kill` with the rules of examples/
set -u
T=$(mktemp -d)
fails=0
export TREE=${TREE:-/tmp/payload/tree.tar} FIO_SECONDS=${FIO_SECONDS:-8} FIO_AMOUNT=${FIO_AMOUNT:-24m} KILL_ROUNDS=${KILL_ROUNDS:-2}

ok() { echo "ok    $*"; }
fail() { fails=$((fails + 1)); echo "FAIL  $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1: $2"; else fail "$1: $2, wanted $3"; fi; }
run() { what=$1; shift; if "$@" >"$T/run" 2>&1; then ok "$what"; else fail "$what: $*: $(tail -3 "$T/run" | tr '\n' ' ')"; fi; }
exits() {
    local what=$1 wanted=$2 rc
    shift 2
    "$@" >"$T/run" 2>&1
    rc=$?
    if [ $rc = "$wanted" ]; then ok "$what: exit $rc: $(tail -1 "$T/run")"; else fail "$what: exit $rc, wanted $wanted: $(tail -2 "$T/run")"; fi
}
ms() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}0"; }
took() { echo "      $1: $(($(ms) - $2)) ms"; }

# attach NAME [FLAG...]: sets dev
attach() {
    local begin name=$1
    begin=$(ms)
    dev=$(objblk attach "$@" 2>"$T/err") || { fail "attach $*: $(tail -2 "$T/err")"; return 1; }
    took "attach $name" "$begin"
    [ -b "$dev" ] || { fail "attach $name printed '$dev'"; return 1; }
    is "link of $name" "$(readlink -f "/dev/objblk/$name")" "$dev"
}
detach() {
    local begin
    begin=$(ms)
    run "detach $1" objblk detach "$1"
    took "detach $1" "$begin"
    if [ -e "$dev" ] || [ -e "/dev/objblk/$1" ]; then fail "$dev or its link is left"; fi
}

fill() {
    local volume=$1 begin
    attach "$volume" || return
    if [ "$volume" = ext ]; then run "mkfs.ext4" mkfs.ext4 -q "$dev"; else run "mkfs.xfs" mkfs.xfs -q "$dev"; fi
    mkdir -p "$T/m"
    run "mount $volume" mount "$dev" "$T/m" || return
    begin=$(ms)
    run "copy the tree to $volume" tar -C "$T/m" -xf "$TREE"
    run "umount" umount "$T/m"
    took "tree to $volume, and umount" "$begin"
    detach "$volume"
}

verify() {
    local volume=$1
    attach "$volume" || return
    if [ "$volume" = ext ]; then run "e2fsck" e2fsck -fn "$dev"; else run "xfs_repair" xfs_repair -n "$dev"; fi
    mkdir -p "$T/m"
    run "mount $volume" mount "$dev" "$T/m" || return
    is "files on $volume" "$(find "$T/m" -type f | wc -l)" "$(tar -tvf "$TREE" | grep -c ^-)"
    run "the tree on $volume equals the archive" tar -C "$T/m" -df "$TREE"
    run "fstrim" fstrim "$T/m"
    run "umount" umount "$T/m"
    detach "$volume"
}

fio_step() {
    attach fio --queues 2 || return
    local bs amount
    for bs in 512 4k 20k 256k; do
        amount=$FIO_AMOUNT
        [ $bs != 512 ] || amount=4m
        run "fio verify bs=$bs" fio --name=v --filename="$dev" --ioengine=libaio --direct=1 --rw=randwrite --bs=$bs --iodepth=32 \
            --size=256m --io_size=$amount --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7
    done
    run "fio random mixed sizes with trims" fio --name=t --filename="$dev" --ioengine=libaio --direct=1 --rw=randtrimwrite --bssplit=4k/60:16k/20:64k/20 \
        --iodepth=16 --offset=256m --size=256m --runtime="$FIO_SECONDS" --time_based
    run "fio verify after trims" fio --name=w --filename="$dev" --ioengine=libaio --direct=1 --rw=randwrite --bs=8k --offset=256m --size=64m \
        --io_size="$FIO_AMOUNT" --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1
    detach fio
}

discard() {
    local begin i
    attach huge || return
    is "size of huge" "$(blockdev --getsize64 "$dev")" $((1 << 40))
    for i in 0 1 7 100 500 1000 1023; do
        dd if=/dev/urandom of="$dev" bs=1M count=1 seek=$((i * 1024)) oflag=direct conv=notrunc,nocreat 2>/dev/null || fail "write at $i GiB"
    done
    run "sync" blockdev --flushbufs "$dev"
    sync "$dev"
    begin=$(ms)
    run "blkdiscard of 1 TiB" blkdiscard "$dev"
    local spent=$(($(ms) - begin))
    took "blkdiscard of 1 TiB" "$begin"
    is "blkdiscard takes less than a second" "$([ $spent -lt 1000 ] && echo yes)" yes
    is "bytes that are not zero" "$(dd if="$dev" bs=1M count=1 skip=$((7 * 1024)) iflag=direct 2>/dev/null | tr -d '\0' | wc -c)" 0
    detach huge
}

# Four writers, each in a region of its own: block N holds N and the round; what was acknowledged
# after an fsync is noted outside the volume. (nocreat: once the device is gone, dd would make a file
# of its name and go on for ever.)
writer() {
    local region=$1 round=$2 n=0 stamp
    while :; do
        stamp=$(printf '%08d %08d %s' "$round" "$n" "$region")
        for _ in 1 2 3 4 5 6 7 8; do printf '%-512s' "$stamp"; done >"$T/block$region"
        dd if="$T/block$region" of="$dev" bs=4k count=1 seek=$((region * 4096 + n % 64)) oflag=direct conv=notrunc,nocreat,fsync 2>/dev/null || return
        echo "$round $n" >"$T/acked$region.new"
        mv "$T/acked$region.new" "$T/acked$region"
        n=$((n + 1))
    done
}

check_region() {
    local region=$1 round n block got
    read -r round n <"$T/acked$region"
    # The newest acknowledged block, and the 63 before it.
    for block in $(seq $((n > 63 ? n - 63 : 0)) "$n"); do
        got=$(dd if="$dev" bs=4k count=1 skip=$((region * 4096 + block % 64)) iflag=direct 2>/dev/null | head -c 17)
        set -- "${got% *}" "${got#* }"
        # One more may have been written than was acknowledged: it may stand in the oldest place.
        if [ "$got" != "$(printf '%08d %08d' "$round" "$block")" ] && [ "${2:-}" != "$(printf '%08d' $((block + 64)))" ]; then
            fail "region $region block $block of round $round holds '$got'"
        fi
    done
    ok "region $region: $((n + 1)) acknowledged blocks are there"
}

kill_step() {
    local round region pids pid
    for round in $(seq "$KILL_ROUNDS"); do
        # Without recovery: otherwise it would come back, and nobody notice (recover.sh).
        attach kill --takeover --no-recovery || return
        pids=''
        rm -f "$T"/acked*
        for region in 0 1 2 3; do
            writer $region "$round" &
            pids="$pids $!"
        done
        # Without a device, as when it starts late on a busy machine, it would make a file of its name.
        fio --name=noise --filename="$dev" --allow_file_create=0 --offset=512m --size=128m --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio --direct=1 --fsync=16 \
            --runtime=60 --time_based >/dev/null 2>&1 &
        pids="$pids $!"
        sleep $((4 + round))
        pid=$(objblk status kill --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -1)
        run "kill -9 of the target" kill -9 "$pid"
        # shellcheck disable=SC2086  # a list
        wait $pids
        attach kill --takeover || return
        for region in 0 1 2 3; do check_region $region; done
        detach kill
    done
}

conduct() {
    attach conduct || return
    exits "a second attach here" 5 objblk attach conduct
    exits "a volume that is not there" 3 objblk attach no-such-volume
    exits "delete while attached" 5 objblk delete conduct --yes
    # What can grow while attached does so in recover.sh.
    if [[ $(uname -r) = 6.* ]]; then
        exits "resize while attached" 5 objblk resize conduct --size 2G
        is "it says why" "$(grep -c 'cannot change the size of a device' "$T/run")" 1
    fi
    run "status" objblk status conduct
    # Detach with requests in flight: they are answered, and the device goes.
    # (Without a device fio would make a file of its name.)
    fio --name=inflight --filename="$dev" --allow_file_create=0 --rw=randrw --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --size=64m --runtime=30 --time_based >/dev/null 2>&1 &
    sleep 2
    run "detach by device with I/O in flight" objblk detach "$dev"
    [ ! -e "$dev" ] || fail "$dev is left"
    wait
    run "detached: resize" objblk resize conduct --size 2G
    attach conduct --read-only && {
        is "size after resize" "$(blockdev --getsize64 "$dev")" $((2 << 30))
        is "read-only" "$(blockdev --getro "$dev")" 1
        if dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct conv=nocreat 2>/dev/null; then fail "a write to a read-only device"; fi
        detach conduct
    }
    past
    is "files left in the run directory" "$(find /run/objblk -type s 2>/dev/null | wc -l)" 0
    is "devices left" "$(find /dev -name "ublkb*" | wc -l)" 0
}

doors() {
    local -x OBJBLK_DOORS_PROGRAM=/tmp/payload/objblk OBJBLK_DOORS_AMOUNT=$DOORS_AMOUNT
    if "./$DOORS" --exact a_block_device_is_a_disk --nocapture >"$T/doors" 2>&1; then
        ok "doors: $(grep -c ublk: "$T/doors") things to say"
    else
        fail "doors: exit $?"
    fi
    cat "$T/doors"
}

has_property() { udevadm info --query=property "$dev" | grep -qx "$1"; }
udev() {
    local id events
    # Process 1 has another root than all of this.
    local -x SYSTEMD_IGNORE_CHROOT=1
    mkdir -p /run/udev/rules.d
    cp /tmp/payload/90-objblk.rules /run/udev/rules.d/
    (exec -a systemd-udevd /tmp/payload/udevadm --daemon --resolve-names=never)
    attach kill || return
    id=$(objblk info kill --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -1 | tr -d -)
    run "udev settles" udevadm settle --timeout=30
    is "the link by id" "$(readlink -f "/dev/disk/by-id/objblk-$id")" "$dev"
    run "systemd would know it by its name" has_property SYSTEMD_ALIAS=/dev/objblk/kill
    run "a file system" mkfs.ext4 -q -F -L labelled "$dev"
    # Nobody looks at a device again because it was closed.
    events=$(cat /sys/kernel/uevent_seqnum)
    dd if=/dev/zero of="$dev" bs=4k count=1 seek=1000 conv=notrunc,nocreat oflag=direct 2>/dev/null
    run "udev settles" udevadm settle --timeout=30
    is "events by a close" $(($(cat /sys/kernel/uevent_seqnum) - events)) 0
    # An event that does not say which volume it is takes nothing away.
    run "all are looked at" udevadm trigger --settle --subsystem-match=block
    is "the link by id" "$(readlink -f "/dev/disk/by-id/objblk-$id")" "$dev"
    is "the link by label" "$(readlink -f /dev/disk/by-label/labelled)" "$dev"
    detach kill
    run "udev settles" udevadm settle --timeout=30
    is "links left" "$(find /dev/disk -name 'objblk*' -o -name labelled 2>/dev/null)" ""
    udevadm control --exit
}

# Volume `conduct` as it was, on a device of its own.
past() {
    local slot
    run "the past is kept" objblk retain conduct 1h
    slot=$(objblk info conduct --json | sed -n 's/.*"oldest_seq": *\([0-9]*\).*/\1/p')
    attach conduct || return
    run "a write" dd if=/dev/urandom of="$dev" bs=1M seek=100 count=1 oflag=direct conv=notrunc,nocreat,fsync
    detach conduct
    dev=$(objblk attach conduct --at "#$slot" 2>"$T/err") || { fail "attach --at #$slot: $(tail -2 "$T/err")"; return; }
    is "the past is read-only" "$(blockdev --getro "$dev")" 1
    is "bytes of the past that are not zero" "$(dd if="$dev" bs=1M count=1 skip=100 iflag=direct 2>/dev/null | tr -d '\0' | wc -c)" 0
    run "detach the past" objblk detach "$dev"
    [ ! -e "$dev" ] || fail "$dev is left"
}

done_steps=''
for step in "$@"; do
    echo "--- $step at $(ms) ms"
    case $step in
        fill:* | verify:*) ${step%:*} "${step#*:}" ;;
        discard | conduct | doors | udev) $step ;;
        fio | kill) "${step}_step" ;;
        *) fail "no step $step" ;;
    esac
    # bash leaves a function on some errors without a word.
    done_steps="$done_steps $step"
done
is "steps" "${done_steps# }" "$*"
dmesg | grep -iE 'I/O error|ublk' | grep -v 'ublkb[0-9]*: detected capacity' | tail -5
echo "$fails failed"
[ $fails = 0 ]
