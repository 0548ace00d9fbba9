#!/bin/bash
# One of two live hosts that take a volume from each other. Runs as root in a guest; objblk and its
# environment are set, ledger.py and crash-lib.sh lie beside it.
#
# usage: live-takeover.sh PORT
#
# Does what $VM_HOST:PORT says, a word a line:
#   own     takes the volume `shared` over, reports what is on it, and works
#   lost    waits until the work fails, because somebody else has taken over; looks how the target takes
#           it, and detaches; prints `let go`
#   leave   ends the work and detaches in order; prints `left`
#   quit    looks what is left, prints `done`
cd /tmp/payload || exit 1
# shellcheck source=tests/vm/crash-lib.sh
. ./crash-lib.sh || exit 1
need fio

# The target in the foreground, for its exit code.
own() {
    local begin tries=0
    begin=$(ms)
    objblk attach shared --takeover --foreground >"$T/dev" 2>"$T/log" &
    target=$!
    until [ -s "$T/dev" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 1500 ] || ! kill -0 "$target" 2>/dev/null; then
            fail "attach: $(tail -n 3 "$T/log")"
            exit 1
        fi
        sleep 0.1
    done
    echo "ready shared $(($(ms) - begin))"
    dev=$(cat "$T/dev")
    ledger report shared "$dev"
    # Beside the ledger, in its own part of the disk. Requests that fail end it. Both are rated: a claimant
    # finds the end of a log that grows faster than it reads only by luck.
    fio --name=noise --filename="$dev" --offset=32m --size=64m --rw=randwrite --bs=16k --iodepth=8 --ioengine=libaio \
        --direct=1 --rate_iops=100 --runtime=600 --time_based >"$T/fio" 2>&1 &
    fio=$!
    start_load shared "$dev" || exit 1
}

target_ends() {
    local rc=0
    run "$1: detach" objblk detach shared
    wait "$target" || rc=$?
    if [ "$rc" = "$2" ]; then ok "$1: exit code $rc of the target"; else
        fail "$1: exit code $rc of the target, wanted $2: $(tail -n 3 "$T/log")"
    fi
    gone "$1" "$dev"
    nothing_left "$1"
}

lost() {
    local state rc=0
    load_ends || exit 1
    wait "$fio" || rc=$?
    if [ "$rc" != 0 ] && grep -q 'Input/output error' "$T/fio"; then ok "fio has EIO"; else
        fail "fio ended with $rc: $(tail -n 3 "$T/fio")"
    fi
    state=$(objblk status shared --json)
    case $state in
        *taken\ over*) ok "status: $(grep -o '"failure": *"[^"]*"' <<<"$state")" ;;
        *) fail "status does not say who has taken over: $state" ;;
    esac
    ! dd if=/dev/zero of="$dev" bs=4k count=1 seek=9 oflag=direct conv=nocreat,notrunc 2>/dev/null ||
        fail "a fenced owner takes writes"
    target_ends "fenced" 5
    echo "let go"
}

leave() {
    kill "$load" "$fio"
    wait "$load" "$fio"
    target_ends "in order" 0
    echo "left"
}

target='' fio=''
export LEDGER_PAUSE=1
exec 5<>"/dev/tcp/$VM_HOST/$1" || { fail "nobody conducts at port $1"; exit 1; }
echo "here" >&5
while read -r -u 5 word; do
    case $word in
        own) own ;;
        lost) lost ;;
        leave) leave ;;
        quit)
            nothing_left "the end"
            echo "done"
            exit 0
            ;;
        *) fail "no word $word" ;;
    esac
done
fail "the conductor has gone"
exit 1
