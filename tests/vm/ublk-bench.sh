#!/bin/sh
# A volume on /dev/ublkbN against a disk in memory behind the same frontend: fio with direct I/O, in
# turns, another one first in each round. Runs as root in a guest that may be thrown away; objblk and
# ublk_ram are on PATH, ROUNDS and TURN (seconds of a turn) are set.
#
# Prints `figure WORK WHO VALUE` for each turn: requests a second, of reads of 1 MiB KiB a second. Exits 1
# where something failed.
set -u
# Copies of some KiB are `rep movsb` in the C library, which an emulated processor does byte by byte; real
# ones, and the larger copies that only the RAM disk makes, do not.
export GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1073741824
T=$(mktemp -d)
SIZE=256M
CACHE=512M
export OBJBLK_STORE="file://$T/store"

fail() { echo "FAIL  $*"; exit 1; }

# The block device that file $1 will name.
named() {
    tries=0
    until [ -s "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || { echo "no device: $(cat "$T/limit.err")" && return 1; }
        sleep 0.02
    done
    cat "$1"
}

# begin QUEUES FLAG...: both devices, all of them in memory; FLAGs are those of attach
begin() {
    count=$1
    shift
    objblk=$(objblk attach disk --queues "$count" --mem-cache $CACHE "$@" 2>"$T/err") ||
        fail "attach: $(cat "$T/err")"
    : >"$T/limit"
    ublk_ram --size $SIZE --queues "$count" --recovery >"$T/limit" 2>"$T/limit.err" &
    server=$!
    limit=$(named "$T/limit") || fail "$limit"
    fill "$limit" write
    for dev in "$objblk" "$limit"; do fill "$dev" read; done
    before=$(misses)
}

# end: nothing that was read had to be fetched since `begin`
end() {
    now=$(misses)
    [ "$now" = "$before" ] || fail "$((now - before)) frames were not in the cache"
    stop
}
stop() {
    kill -TERM $server
    wait $server || fail "ublk_ram: $(cat "$T/limit.err")"
    objblk detach disk 2>"$T/err" || fail "detach: $(cat "$T/err")"
}
misses() { objblk status disk --json | grep -o '"misses": *[0-9]*' | head -n 1 | tr -dc 0-9; }

# fio_on DEVICE ARG...: one line of fio's terse figures
fio_on() {
    on=$1
    shift
    fio --name=speed --filename="$on" --ioengine=libaio --direct=1 --thread --group_reporting --norandommap \
        --randrepeat=0 --output-format=terse --terse-version=3 "$@" 2>&1
}
fill() { fio_on "$1" --rw="$2" --bs=1m --iodepth=4 --end_fsync=1 >"$T/run" || fail "$(cat "$T/run")"; }
timed() { fio_on "$@" --time_based --runtime="$TURN"; }

# Kinds of work, on a device; the fields are those of fio's terse format.
random_reads() { timed "$1" --rw=randread --bs=4k --iodepth=32 --numjobs="$2" | cut -d';' -f8; }
large_reads() { timed "$1" --rw=read --bs=1m --iodepth=8 | cut -d';' -f7; }
writes() { timed "$1" --rw=randwrite --bs=4k --iodepth=32 | cut -d';' -f49; }
# Less than writers may be ahead of the store; what is left of it is stored before the next turn.
burst() {
    fio_on "$1" --rw=randwrite --bs=4k --iodepth=32 --io_size=32m | cut -d';' -f49
    sync "$1"
}

# contest WORK FUNCTION ARG...
contest() {
    work=$1 kind=$2
    shift 2
    round=0
    while [ $round -lt "$ROUNDS" ]; do
        if [ $((round % 2)) = 0 ]; then order="objblk limit"; else order="limit objblk"; fi
        for who in $order; do
            if [ "$who" = objblk ]; then dev=$objblk; else dev=$limit; fi
            value=$("$kind" "$dev" "$@")
            case $value in '' | *[!0-9.]*) fail "$work: $value" ;; esac
            echo "figure $work $who $value"
        done
        round=$((round + 1))
    done
}

echo "kernel $(uname -r), $(nproc) processors"
queues=$(nproc)
[ "$queues" -le 4 ] || queues=4
objblk create disk --size $SIZE 2>"$T/err" || fail "create: $(cat "$T/err")"
# A first attachment writes the volume: what the second one reads is in the store.
objblk=$(objblk attach disk 2>"$T/err") || fail "attach: $(cat "$T/err")"
fill "$objblk" write
objblk detach disk 2>"$T/err" || fail "detach: $(cat "$T/err")"

begin 1
contest reads_1 random_reads 1
contest large_reads large_reads
end
begin "$queues"
contest reads_4 random_reads 4
end
# What is written is cached as well: full from the beginning, so that no turn pays for new memory.
CACHE=32M
begin 1
contest bursts burst
contest writes writes
stop
begin 1 --no-recovery
contest bursts_alone burst
stop
