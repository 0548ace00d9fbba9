#!/bin/sh
# The ublk frontend on a real kernel. Runs as root in a guest that may be thrown away, with the
# example ublk_ram in the current folder or on PATH. Prints one line a check; exits 1 where one
# failed. Arguments name the parts to run; without any, all of them. CYCLES: how often a device comes and goes.
set -u
PATH=$PWD:$PATH
T=$(mktemp -d)
fails=0
CYCLES=${CYCLES:-50}
first_dmesg=$(dmesg | wc -l)

ok() { echo "ok    $*"; }
fail() { fails=$((fails + 1)); echo "FAIL  $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1: $2"; else fail "$1: $2, wanted $3"; fi; }
at_least() { if [ "$2" -ge "$3" ] 2>/dev/null; then ok "$1: $2"; else fail "$1: $2, wanted $3 or more"; fi; }
at_most() { if [ "$2" -le "$3" ] 2>/dev/null; then ok "$1: $2"; else fail "$1: $2, wanted $3 or less"; fi; }
run() { what=$1; shift; if "$@" >"$T/run" 2>&1; then ok "$what"; else fail "$what: $*: $(tail -3 "$T/run" | tr '\n' ' ')"; fi; }
refused() { what=$1; shift; if "$@" >"$T/run" 2>&1; then fail "$what: $* succeeded"; else ok "$what: $(tail -1 "$T/run")"; fi; }
ms() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}0"; }

need() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { echo "FAIL  $tool is missing: install the package that has it"; exit 1; }
    done
}

# start ARGS...: a server; sets dev, id and pid
start() {
    : >"$T/out"
    ublk_ram "$@" >"$T/out" 2>"$T/err" &
    pid=$!
    dev=
    begin=$(ms)
    while [ -z "$dev" ] && [ $(($(ms) - begin)) -lt 20000 ] && kill -0 $pid 2>/dev/null; do
        sleep 0.02
        read -r dev <"$T/out"
    done
    id=${dev#/dev/ublkb}
    [ -b "$dev" ] || { fail "start $*: $(cat "$T/err")"; return 1; }
}

# stop: ends it as a user would; sets took (ms) and rc
stop() {
    begin=$(ms)
    kill -TERM "$pid"
    wait "$pid"
    rc=$?
    took=$(($(ms) - begin))
}

counter() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$T/out"; }
queue() { cat "/sys/block/ublkb$id/queue/$1"; }
nothing_left() {
    is "$1: devices left" "$(ls -d /dev/ublk[bc]* /sys/block/ublkb* 2>/dev/null | tr '\n' ' ')" ""
    is "$1: symlinks left" "$(ls -A /dev/objblk)" ""
}
stuck() { cat /proc/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (\(.*\)) D .*/\1:\2/p' | grep -v ':\(kworker\|jbd2\|xfs\)' | tr '\n' ' '; }
not_stuck() { s=$(stuck); [ -z "$s" ] || { sleep 3; s=$(stuck); }; is "$1: tasks that cannot be killed" "$s" ""; }
fio_on() { fio --name=t --filename="$dev" --ioengine=libaio --direct=1 "$@"; }

attributes() {
    start --size 320M --name 'a/b c' || return
    for pair in logical_block_size=512 physical_block_size=4096 minimum_io_size=4096 \
        optimal_io_size=4194304 max_hw_sectors_kb=512 max_sectors_kb=512 chunk_sectors=0 \
        discard_granularity=4096 discard_max_hw_bytes=4294963200 discard_max_bytes=4294963200 \
        write_zeroes_max_bytes=4294963200 max_discard_segments=1 rotational=0 fua=1 \
        virt_boundary_mask=0 nr_requests=128 zoned=none; do
        is "${pair%=*}" "$(queue "${pair%=*}")" "${pair#*=}"
    done
    is write_cache "$(queue write_cache)" "write back"
    is size "$(cat "/sys/block/ublkb$id/size")" 655360
    is ro "$(cat "/sys/block/ublkb$id/ro")" 0
    is discard_alignment "$(cat "/sys/block/ublkb$id/discard_alignment")" 0
    is symlink "$(readlink /dev/objblk/a%2Fb%20c)" "../ublkb$id"
    is "thread name" "$(cat /proc/$pid/task/*/comm | grep -c "^ublk$id-q0$")" 1
    # PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE (include/linux/sched.h), set by PR_SET_IO_FLUSHER
    for task in /proc/"$pid"/task/*; do
        grep -q "^ublk$id-q0$" "$task/comm" || continue
        flags=$(sed 's/.*) //' "$task/stat" | cut -d' ' -f7)
        is "io flusher" $((flags & 0x80000)) $((0x80000))
    done
    stop; is "exit code" $rc 0; nothing_left attributes
    start --size 320M --block-size 4096 --read-only --queues 2 --depth 32 --max-io 1048576 || return
    for pair in logical_block_size=4096 physical_block_size=4096 max_hw_sectors_kb=1024 \
        nr_requests=32 fua=1; do
        is "4k ${pair%=*}" "$(queue "${pair%=*}")" "${pair#*=}"
    done
    is "4k ro" "$(cat "/sys/block/ublkb$id/ro")" 1
    is "4k size" "$(cat "/sys/block/ublkb$id/size")" 655360
    is "hardware queues" "$(ls "/sys/block/ublkb$id/mq" | wc -l)" 2
    is "queue threads" "$(cat /proc/$pid/task/*/comm | grep -c "^ublk$id-q")" 2
    stop; nothing_left "4k attributes"
    start --size 64M --queues 64 --depth 1 || return
    is "one queue a CPU at most" "$(ls "/sys/block/ublkb$id/mq" | wc -l)" "$(nproc)"
    run "one request at a time" fio_on --rw=randwrite --bs=4k --iodepth=8 --io_size=1m
    stop
}

file_system() {
    run "$1 mkfs" "mkfs.$1" $2 "$dev"
    mkdir -p "$T/mnt"
    run "$1 mount" mount "$dev" "$T/mnt"
    run "$1 copy" cp -a /usr/share/perl5 "$T/mnt/files"
    run "$1 umount" umount "$T/mnt"
    run "$1 check" $3 "$dev"
    run "$1 mount again" mount "$dev" "$T/mnt"
    run "$1 compare" diff -r /usr/share/perl5 "$T/mnt/files"
    run "$1 fstrim" fstrim "$T/mnt"
    run "$1 umount again" umount "$T/mnt"
}

file_systems() {
    start --size 512M || return
    file_system ext4 "-q -F" "e2fsck -fn"
    file_system xfs "-q -f" "xfs_repair -n"
    stop
    at_least "flushes of the file systems" "$(counter flushes)" 4
    at_least "discards of the file systems" "$(counter discards)" 4
    is "file system errors" "$(counter errors)" 0
    start --size 256M --block-size 4096 --delay-us 300 || return
    file_system ext4 "-q -F" "e2fsck -fn"
    stop
    is "delayed file system errors" "$(counter errors)" 0
}

verify() {
    for delay in "" "--delay-us 1000"; do
        for block in 512 4096; do
            start --size 64M --queues 2 --block-size $block $delay || return
            run "verify with trims, blocks of $block ${delay:-inline}" fio_on --rw=randtrimwrite \
                --bsrange=$block-64k --blockalign=$block --size=64m --io_size=8m --iodepth=32 \
                --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7
            stop
            at_least "trims" "$(counter discards)" 10
            is "verify errors" "$(counter errors)" 0
        done
    done
}

discards() {
    start --size 64M || return
    run "fill" dd if=/dev/urandom of="$dev" bs=1M count=64 oflag=direct
    run "blkdiscard" blkdiscard "$dev"
    is "bytes after discard" "$(tr -d '\0' <"$dev" | wc -c)" 0
    run "fill" dd if=/dev/urandom of="$dev" bs=1M count=4 oflag=direct
    run "zeroout" blkdiscard -z -l 4194304 "$dev"
    is "bytes after zeroout" "$(tr -d '\0' <"$dev" | wc -c)" 0
    stop
    is "discard requests for 64 MiB" "$(counter discards)" 1
    at_least "write-zeroes requests" "$(counter write_zeroes)" 1
    start --size 1T --null || return
    begin=$(ms)
    run "blkdiscard of 1 TiB" blkdiscard "$dev"
    at_most "ms for it" $(($(ms) - begin)) 1000
    stop
    at_most "discard requests for 1 TiB" "$(counter discards)" 257
}

durability() {
    start --size 64M || return
    run "dsync writes" dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync
    run "fsync after buffered writes" dd if=/dev/zero of="$dev" bs=1M count=4 conv=fsync
    stop
    is "FUA requests" "$(counter fua)" 10
    at_least "flush requests" "$(counter flushes)" 1
}

two_queues() {
    start --size 64M --queues 2 --delay-us 200 || return
    run "two jobs on two CPUs" fio_on --rw=randwrite --bs=4k --iodepth=32 --numjobs=2 \
        --cpus_allowed=0,1 --cpus_allowed_policy=split --size=8m --offset_increment=8m \
        --verify=crc32c --do_verify=1 --verify_fatal=1
    stop
    is "two-queue errors" "$(counter errors)" 0
}

# in_flight ARGS...: a server and 64 reads under way
in_flight() {
    start --size 64M "$@" || return 1
    fio_on --rw=randread --bs=4k --iodepth=64 --size=64m --runtime=60 --time_based >"$T/fio" 2>&1 &
    load=$!
    i=0
    while [ $i -lt 200 ]; do
        set -- $(cat "/sys/block/ublkb$id/inflight")
        [ "$1" -ge 64 ] && return 0
        i=$((i + 1))
        sleep 0.05
    done
    fail "64 requests in flight: $1"
}

# end_load: fio goes on at the end of its run time, or when told
end_load() {
    kill -TERM $load 2>/dev/null
    wait $load
}

detach() {
    in_flight --delay-us 2000000 || return
    stop
    is "detach under load: exit code" $rc 0
    [ $rc = 0 ] || cat "$T/err"
    at_most "detach under load: ms" $took 10000
    is "detach under load: errors" "$(counter errors)" 0
    end_load
    not_stuck "detach under load"
    nothing_left "detach under load"
    in_flight --null --stall --drain-ms 1000 || return
    stop
    is "detach of a dead store: exit code" $rc 0
    at_most "detach of a dead store: ms" $took 8000
    end_load
    at_least "detach of a dead store: EIO seen" "$(grep -c 'Input/output error' "$T/fio")" 1
    is "detach of a dead store: errors" "$(counter errors)" 64
    not_stuck "detach of a dead store"
    nothing_left "detach of a dead store"
}

# killed ARGS...: kill -9 with 64 requests in flight
killed() {
    in_flight "$@" || return 1
    kill -9 "$pid"
    wait "$pid" 2>/dev/null
    return 0
}

kill_9() {
    killed --delay-us 500000 || return
    begin=$(ms)
    wait $load
    at_most "kill -9: ms until the application has errors" $(($(ms) - begin)) 10000
    at_least "kill -9: errors seen" "$(grep -c 'error=' "$T/fio")" 1
    not_stuck "kill -9"
    begin=$(ms)
    run "kill -9: reap" timeout 20 ublk_ram --reap "$id"
    at_most "kill -9: ms to reap" $(($(ms) - begin)) 5000
    nothing_left "kill -9"
    refused "kill -9: reap again" ublk_ram --reap "$id"
    # The symlink of a dead server is replaced, even before anyone reaps.
    killed --delay-us 500000 || return
    old=$id
    wait $load
    start --size 64M || return
    is "stale symlink replaced" "$(readlink /dev/objblk/ram)" "../ublkb$id"
    run "kill -9: reap beside a living device" timeout 20 ublk_ram --reap "$old"
    refused "reap of a living device" timeout 20 ublk_ram --reap "$id"
    run "it still works" dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct
    stop
    nothing_left "kill -9 twice"
}

recovery() {
    killed --delay-us 500000 --recovery || return
    sleep 2
    run "recovery: the block device stays" test -b "$dev"
    run "recovery: the application waits" kill -0 $load
    run "recovery: reap" timeout 30 ublk_ram --reap "$id"
    wait $load
    at_least "recovery: errors seen" "$(grep -c 'error=' "$T/fio")" 1
    not_stuck recovery
    nothing_left recovery
}

read_only() {
    start --size 64M --read-only || return
    is "blockdev --getro" "$(blockdev --getro "$dev")" 1
    refused "write to a read-only device" dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct
    refused "discard on a read-only device" blkdiscard "$dev"
    run "read of a read-only device" dd if="$dev" of=/dev/null bs=1M count=4 iflag=direct
    stop
}

large_blocks() {
    start --size 64M --block-size 4096 || return
    refused "512 bytes of a 4096-byte block" dd if=/dev/zero of="$dev" bs=512 count=1 oflag=direct
    run "4096 bytes at block 3" dd if=/dev/urandom of="$dev" bs=4096 count=1 seek=3 oflag=direct
    dd if="$dev" of="$T/back" bs=4096 count=1 skip=3 iflag=direct 2>/dev/null
    at_least "bytes back" "$(tr -d '\0' <"$T/back" | wc -c)" 3900
    stop
}

conflicts() {
    start --size 64M --id 5 || return
    is "chosen number" "$dev" /dev/ublkb5
    refused "a number in use" ublk_ram --id 5 --name other
    refused "a name in use" ublk_ram --size 64M
    refused "no size" ublk_ram --size 0
    refused "too many requests" ublk_ram --depth 5000 --name other
    run "the first device is unharmed" dd if="$dev" of=/dev/null bs=4k count=4 iflag=direct
    is "only its node" "$(ls -d /dev/ublkc*)" /dev/ublkc5
    begin=$(ms)
    run "evict" timeout 30 ublk_ram --evict 5
    wait "$pid"
    is "server of an evicted device: exit code" $? 0
    is "server of an evicted device: says" "$(grep -c 'deleted by another' "$T/out")" 1
    at_most "evict: ms" $(($(ms) - begin)) 5000
    nothing_left evict
    mv /dev/ublk-control /dev/ublk-control.away
    refused "no driver" ublk_ram
    mv /dev/ublk-control.away /dev/ublk-control
    refused "no permission" setpriv --reuid 65534 --clear-groups ublk_ram --name other
    begin=$(ms)
    refused "a dead store" ublk_ram --size 64M --delay-us 3600000000 --start-ms 2000
    at_most "a dead store: ms" $(($(ms) - begin)) 10000
    nothing_left "a dead store"
    mkdir -p /dev/objblk/folder
    refused "a name that is a folder" ublk_ram --size 64M --name folder
    rmdir /dev/objblk/folder
}

cycles() {
    before=$(grep -c . /proc/modules; ls /sys/class/ublk-char 2>/dev/null | wc -l)
    first=$(ms)
    i=0
    while [ $i -lt "$CYCLES" ]; do
        start --size 16M --queues 2 || return
        stop
        [ $rc = 0 ] || fail "cycle $i: exit code $rc"
        i=$((i + 1))
    done
    ok "$CYCLES cycles: $((($(ms) - first) / CYCLES)) ms each"
    nothing_left "$CYCLES cycles"
    after=$(grep -c . /proc/modules; ls /sys/class/ublk-char 2>/dev/null | wc -l)
    is "character devices left" "$after" "$before"
}

figures() {
    for args in "--null" "--null --hop" "--delay-us 1000"; do
        start --size 64M $args || return
        for depth in 1 64; do
            iops=$(fio_on --rw=randread --bs=4k --iodepth=$depth --size=64m --runtime=4 \
                --time_based --output-format=terse | cut -d';' -f8)
            echo "      $args qd$depth: $iops IOPS"
        done
        stop
        echo "      inline $(counter inline), waited $(counter waited)"
    done
}

need fio blkdiscard mkfs.ext4 e2fsck mkfs.xfs xfs_repair fstrim blockdev setpriv diff ublk_ram
echo 20 >/proc/sys/kernel/hung_task_timeout_secs
echo "kernel $(uname -r)"
[ $# -gt 0 ] || set -- attributes file_systems verify discards durability two_queues detach \
    kill_9 recovery read_only large_blocks conflicts cycles figures
for part in "$@"; do
    echo "== $part at $(ms) ms"
    "$part"
done
dmesg | tail -n +$((first_dmesg + 1)) >"$T/dmesg"
is "complaints of the kernel" \
    "$(grep -cE 'blocked for more than|BUG:|WARNING:|Call Trace|Oops|refcount' "$T/dmesg")" 0
grep -E -A12 'blocked for more than|BUG:|WARNING:|Oops' "$T/dmesg" | head -40
echo "$fails failed"
[ $fails = 0 ]
