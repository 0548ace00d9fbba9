# shellcheck shell=bash
# What the crash scripts of this folder share; sourced by them, from the payload. Every line that begins
# with `FAIL` fails the test that reads them; the words of the other lines are said where they are printed.
set -u
T=$(mktemp -d)
dev='' load=''
# No udev makes the nodes of the device mapper here.
export PYTHONDONTWRITEBYTECODE=1 DM_DISABLE_UDEV=1

ok() { echo "ok    $*"; }
fail() { echo "FAIL  $*"; }
run() {
    local what=$1 said rc=0
    shift
    said=$(timeout -k 5 120 "$@" 2>&1 </dev/null) || rc=$?
    if [ $rc = 0 ]; then ok "$what"; else
        fail "$what: $*: exit $rc: $(tail -3 <<<"$said" | tr '\n' ' ')"
        return 1
    fi
}
ms() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}0"; }

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { fail "$tool is missing: install the package that has it"; exit 1; }
    done
}
need objblk mkfs.ext4 e2fsck mkfs.xfs xfs_repair blockdev

# The interpreter of the distribution: it has sqlite3, a user's own need not.
ledger() { /usr/bin/python3 ./ledger.py "$@"; }

# attach NAME [FLAG...]: sets dev; prints `ready NAME MS`, from the call to the device that answers. The device
# goes when its target dies: what happens then is what is tested here, and recover.sh the other way.
attach() {
    local begin name=$1
    begin=$(ms)
    dev=$(timeout -k 5 120 objblk attach "$@" --no-recovery 2>"$T/err-$name") || { fail "attach $*: $(tail -2 "$T/err-$name")"; return 1; }
    dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || { fail "$dev cannot be read"; return 1; }
    echo "ready $name $(($(ms) - begin))"
}

# make_fs FS DEVICE: the file system, whose UUID must differ from that of any other.
make_fs() {
    case $1 in
        ext4) run "mkfs of $2" mkfs.ext4 -q -F "$2" ;;
        xfs) run "mkfs of $2" mkfs.xfs -q -f "$2" ;;
        *) fail "no file system $1" ;;
    esac
}

# check_fs FS DEVICE: nothing at all is wrong with it. Its journal was replayed before.
check_fs() {
    case $1 in
        ext4) run "e2fsck of $2" e2fsck -fn "$2" ;;
        xfs) run "xfs_repair of $2" xfs_repair -n "$2" ;;
        *) fail "no file system $1" ;;
    esac
}

# Journals that were replayed on DEVICE since the boot.
replays() { dmesg | grep -cE "\(${1#/dev/}\): (recovery complete|Ending recovery)"; }

# recover_fs NAME FS DEVICE DIRECTORY: as after any crash: mounted, so that its journal is replayed;
# reported; checked; mounted again for work. Prints `replayed NAME` where there was something to replay.
recover_fs() {
    local before
    mkdir -p "$4"
    before=$(replays "$3")
    run "mount of $1" mount -t "$2" "$3" "$4" || return 1
    [ "$(replays "$3")" = "$before" ] || echo "replayed $1"
    ledger report "$1" "$4" || fail "report of $1: exit $?"
    run "umount of $1" umount "$4" || return 1
    check_fs "$2" "$3" || return 1
    run "mount of $1 again" mount -t "$2" "$3" "$4"
}

# Tasks in state D for three seconds: those of ours, and whoever waits for a disk of ours.
stuck() {
    # One process for all of them: there are few things that a guest does as slowly as starting one.
    cat /proc/[0-9]*/task/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (\(.*\)) D .*/\1:\2/p' | grep -v ':\(kworker\|jbd2\|xfs\)' | tr '\n' ' '
}
none_stuck() {
    local names tries=0
    names=$(stuck)
    while [ -n "$names" ] && [ $tries -lt 30 ]; do
        tries=$((tries + 1))
        sleep 0.5
        names=$(stuck)
    done
    if [ -z "$names" ]; then ok "$1: no task is stuck"; else
        fail "$1: tasks that cannot be killed: $names"
        echo w >/proc/sysrq-trigger
    fi
}

# gone WHAT DEVICE: the kernel removes it within 15 s.
gone() {
    local tries=0
    while [ -e "$2" ] || [ -e "/sys/block/${2#/dev/}" ]; do
        tries=$((tries + 1))
        [ $tries -lt 150 ] || { fail "$1: $2 is left"; return 1; }
        sleep 0.1
    done
    ok "$1: $2 is gone"
}

# nothing_left WHAT: no device, no link, no process, no file of the run directory.
nothing_left() {
    local left
    none_stuck "$1"
    left=$(
        ls -d /dev/ublk[bc]* /sys/block/ublkb* /sys/class/ublk-char/* /dev/objblk/* 2>/dev/null
        find /run/objblk -type s 2>/dev/null
        pgrep -a objblk
    )
    if [ -z "$left" ]; then ok "$1: nothing is left"; else fail "$1: left behind: $left"; fi
}

# start_load NAME PLACE: the load in the background, once it has synced something; sets load.
start_load() {
    local tries=0
    rm -f "$T/started"
    # Not by the function: the process itself is to be ended, not a shell above it.
    LEDGER_STARTED=$T/started /usr/bin/python3 ./ledger.py load "$1" "$2" &
    load=$!
    until [ -e "$T/started" ]; do
        tries=$((tries + 1))
        [ $tries -lt 1500 ] || { fail "the load on $1 has synced nothing in 150 s"; return 1; }
        sleep 0.1
    done
}

# load_ends: by itself, because its disk is gone.
load_ends() {
    local tries=0
    while kill -0 "$load" 2>/dev/null; do
        tries=$((tries + 1))
        # Another host may still be about to take over.
        [ $tries -lt 2400 ] || { fail "the load does not end"; none_stuck "the load"; return 1; }
        sleep 0.1
    done
    wait "$load" || fail "the load: exit $?"
}

target_of() { objblk status "$1" --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1; }
