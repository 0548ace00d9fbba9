#!/bin/bash
# The target of a mounted volume dies by kill -9, again and again, and its device comes back with
# everything that was acknowledged, flushed or not. Runs as root in a guest that may be thrown away;
# objblk is on PATH, OBJBLK_STORE names a pool. Prints one line a check; exits 1 where one failed.
#
# usage: recover.sh STEP...
#   cycles   under load: the target killed (its supervisor acts), and both killed (`objblk recover`),
#            CYCLES times each; now and then the successor is killed before it is ready
#   sealed   cycles, of an encrypted volume
#   journal  the same with --durability local: it is in the journal that the successors find most of it
#   pressure memory is short: a journal, and a file system on the device
#   refuse   what a dead target's device refuses; detach --force; a damaged mirror; another owner
#   start    everything dies during attach
#   table    everything dies while the partition table is read
#   ending   everything dies while a detach waits for the store
#   loop     a target that dies again and again is given up
#   grow     mounted file systems grow with their volumes, where the kernel can tell them
#   growing  everything dies while a volume grows
set -u
T=$(mktemp -d)
fails=0
export CYCLES=${CYCLES:-2}

ok() { echo "ok    $*"; }
fail() { fails=$((fails + 1)); echo "FAIL  $*"; }
is() { if [ "$2" = "$3" ]; then ok "$1: $2"; else fail "$1: $2, wanted $3"; fi; }
run() { what=$1; shift; if "$@" >"$T/run" 2>&1; then ok "$what"; else fail "$what: $*: $(tail -3 "$T/run" | tr '\n' ' ')"; fi; }
exits() {
    local what=$1 wanted=$2 rc
    shift 2
    timeout 150 "$@" >"$T/run" 2>&1
    rc=$?
    if [ $rc = "$wanted" ]; then ok "$what: exit $rc: $(tail -1 "$T/run")"; else fail "$what: exit $rc, wanted $wanted: $(tail -2 "$T/run")"; fi
}
ms() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}0"; }
# until WHAT SECONDS COMMAND...: waits for it
until_true() {
    local what=$1 deadline=$(($(ms) + $2 * 1000))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(ms)" -lt $deadline ] || { fail "$what: not within time: $*"; return 1; }
        sleep 0.05
    done
}
running() { pgrep -x objblk | while read -r p; do grep -q 'State:.Z' "/proc/$p/status" 2>/dev/null || echo "$p"; done; }
none_running() { [ -z "$(running)" ]; }
target() { objblk status "$1" --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -1; }
parent() { sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status"; }

# The words that give a key, where the volume is encrypted.
key=()
volume() { objblk info vol >/dev/null 2>&1 || run "create" objblk create vol --size 1G ${key[0]:+--encrypt} "${key[@]}"; }
attach() {
    dev=$(objblk attach "$@" "${key[@]}" 2>"$T/err") || { fail "attach $*: $(tail -2 "$T/err")"; return 1; }
    [ -b "$dev" ] || { fail "attach $1 printed '$dev'"; return 1; }
}
nothing_left() {
    until_true "$1: all processes end" 60 none_running
    is "$1: processes left" "$(running | tr '\n' ' ')" ""
    is "$1: devices left" "$(find /dev -name 'ublk[bc]*' -o -path '/dev/objblk/*')" ""
    is "$1: files left" "$(find /run/objblk -not -name '*.log' -not -path /run/objblk | tr '\n' ' ')" ""
}
# kill_both NAME: the target and its supervisor
kill_both() {
    local pid parent
    pid=$(target "$1")
    parent=$(parent "$pid")
    is "the parent is the supervisor" "$(tr '\0' ' ' <"/proc/$parent/cmdline" | grep -c ' supervise ')" 1
    kill -9 "$parent" "$pid"
}

# Writes blocks of a file past the page cache and remembers what was acknowledged, until told to
# stop; nothing is ever flushed. Then every block must hold the last thing it was given.
cat >"$T/ledger.py" <<'END'
import mmap, os, random, struct, sys, time
path, stop, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
BLOCKS = 4096
rng = random.Random(seed)
f = os.open(path, os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
ledger, writes, reads, longest = {}, 0, 0, 0.0
def check(block):
    if os.preadv(f, [page], block * 4096) != 4096: sys.exit(f"short read of block {block}")
    found = set(struct.unpack("<512Q", page[:]))
    wanted = {ledger[block] << 16 | block}
    if found != wanted: sys.exit(f"block {block} holds {[hex(x) for x in sorted(found)][:4]}, wanted {[hex(x) for x in wanted]} of {writes} writes")
while not os.path.exists(stop):
    # A few places often (overwritten while their chunk is open), the others now and then.
    block = rng.randrange(64) if rng.random() < 0.3 else rng.randrange(BLOCKS)
    writes += 1
    page[:] = struct.pack("<Q", writes << 16 | block) * 512
    began = time.monotonic()
    if os.pwritev(f, [page], block * 4096) != 4096: sys.exit("short write")
    longest = max(longest, time.monotonic() - began)
    ledger[block] = writes
    if writes % 8 == 0:
        check(rng.choice(list(ledger)))
        reads += 1
for block in ledger: check(block)
print(f"{writes} writes, {reads} reads in between, {len(ledger)} blocks verified, longest write {longest * 1000:.0f} ms")
END

start_load() {
    mkdir -p "$T/m"
    run "mkfs" mkfs.ext4 -q "$dev"
    run "mount" mount "$dev" "$T/m" || return 1
    run "a file for the ledger" dd if=/dev/zero of="$T/m/ledger" bs=1M count=16 oflag=direct
    rm -f "$T/stop"
    python3 "$T/ledger.py" "$T/m/ledger" "$T/stop" 7 >"$T/ledger.out" 2>&1 &
    ledger=$!
    # Through the page cache, with fsync: trees of files made, compared, removed.
    (
        n=0
        while [ ! -e "$T/stop" ]; do
            n=$((n + 1))
            cp -r /usr/include/linux "$T/m/tree$n" && sync -f "$T/m/tree$n/fs.h" && diff -r /usr/include/linux "$T/m/tree$n" || exit 1
            [ $n -le 2 ] || rm -r "$T/m/tree$((n - 2))"
        done
        echo "$n trees"
    ) >"$T/trees.out" 2>&1 &
    trees=$!
}

end_load() {
    touch "$T/stop"
    if wait "$ledger"; then ok "ledger: $(cat "$T/ledger.out")"; else fail "ledger: $(tail -2 "$T/ledger.out")"; fi
    if wait "$trees"; then ok "trees: $(tail -1 "$T/trees.out")"; else fail "trees: $(tail -3 "$T/trees.out")"; fi
    is "still mounted read-write" "$(grep -c " $T/m ext4 rw" /proc/mounts)" 1
    echo 3 >/proc/sys/vm/drop_caches
    run "trees are right after the page cache is gone" diff -r /usr/include/linux "$(printf '%s\n' "$T"/m/tree* | sort -V | tail -1)"
    run "umount" umount "$T/m"
    run "fsck" e2fsck -fn "$dev"
    is "the kernel saw errors" "$(dmesg | grep -ciE 'I/O error|EXT4-fs (error|warning)|aborting journal')" 0
}

another() { attached && [ "$(target vol)" != "$1" ]; }
attached() { objblk status vol --json | grep -q '"state": "attached"'; }
attached_or_recovered() { attached || objblk recover vol; }
# answers WHAT BEGIN: waits until the device does, and notes how long that took
answers() {
    timeout 150 dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || fail "$1: no answer, or an error"
    local took=$(($(ms) - $2))
    echo "$took ${3:-}" >>"$T/times"
    echo "      $1: the device answers after $took ms"
}

cycle_supervised() {
    local pid begin
    pid=$(target vol)
    begin=$(ms)
    kill -9 "$pid"
    # What it still answers while it dies is no answer of its successor.
    until_true "it is dead" 60 ended "$pid"
    answers "killed, supervised" "$begin"
    # Known to others a moment after it serves.
    until_true "another process serves it" 90 another "$pid"
}

cycle_by_hand() {
    local begin
    kill_both vol
    begin=$(ms)
    is "recover prints" "$(timeout 150 objblk recover 2>"$T/err" || cat "$T/err")" "$dev vol"
    answers "killed with its supervisor" "$begin"
}

# The first successor is killed on its way, at a moment that differs each time.
cycle_twice() {
    local begin pid supervisor
    kill_both vol
    begin=$(ms)
    timeout 150 objblk recover vol >"$T/first" 2>&1 &
    supervisor=$!
    sleep "0.$((RANDOM % 9))"
    pid=$(running | while read -r p; do grep -qz '^target$' "/proc/$p/cmdline" && echo "$p"; done | tail -1)
    [ -z "$pid" ] || kill -9 "$pid"
    wait "$supervisor"
    # Its supervisor may have done it meanwhile, or it was not the successor that was hit.
    until_true "recovered in the end" 150 attached_or_recovered
    answers "killed once more on the way" "$begin" twice
}

cycles() {
    local i
    volume
    attach vol || return
    is "recoverable" "$(find /run/objblk -name '*.mirror' | wc -l)" 1
    start_load || return
    for i in $(seq "$CYCLES"); do
        sleep "$((2 + RANDOM % 2)).$((RANDOM % 10))"
        cycle_supervised
        sleep "$((1 + RANDOM % 2)).$((RANDOM % 10))"
        cycle_by_hand
        [ $((i % 5)) != 1 ] || { sleep 2; cycle_twice; }
        is "the device is the same" "$(readlink -f /dev/objblk/vol)" "$dev"
    done
    end_load
    is "devices" "$(find /dev -name 'ublkb*' | wc -l)" 1
    run "detach" objblk detach vol
    nothing_left cycles
    grep -v twice "$T/times" | sort -n | awk '{ t[NR] = $1 } END { print "      recovery of the device: " NR " times, median " t[int((NR + 1) / 2)] " ms, max " t[NR] " ms" }'
    attach vol || return
    run "fsck after a clean attach" e2fsck -fn "$dev"
    run "detach" objblk detach vol
}

sealed() {
    objblk delete vol --now --yes >/dev/null 2>&1
    head -c 64 /dev/urandom >"$T/key"
    key=(--key-file "$T/key")
    cycles
    run "the volume goes" objblk delete vol --now --yes "${key[@]}"
    key=()
    rm -f "$T/times"
}

journaled() {
    is "$1: its durability" "$(objblk status vol --json | grep -o '"durability": *"[^"]*"')" '"durability": "local"'
    is "$1: its journal" "$(objblk status vol --json | grep -cF "\"path\": \"$T/journals/")" 1
    is "$1: it could be recovered once more" "$(objblk status vol --json | grep -c '"recoverable": *true')" 1
}

journal() {
    local i
    volume
    mkdir -p "$T/journals"
    truncate -s 128M "$T/disk"
    run "a file system for the journal" mkfs.ext4 -q -F "$T/disk"
    run "its mount" mount -o loop "$T/disk" "$T/journals" || return
    attach vol --durability local --journal "$T/journals" --journal-size 64M || return
    journaled "attached"
    start_load || return
    for i in $(seq "$CYCLES"); do
        sleep "1.$((RANDOM % 10))"
        cycle_supervised
        journaled "killed"
        sleep "1.$((RANDOM % 10))"
        cycle_by_hand
        journaled "killed with its supervisor"
    done
    end_load
    run "detach" objblk detach vol
    nothing_left journal
    is "journals left" "$(find "$T/journals" -name '*.journal*')" ""
    attach vol || return
    run "fsck after a clean attach" e2fsck -fn "$dev"
    run "detach" objblk detach vol
    run "the journals' file system is let go" umount "$T/journals"
}

# Of the threads of process $1, those whose allocations may begin I/O: without PF_MEMALLOC_NOIO.
may_begin_io() { sed 's/.*) //' /proc/"$1"/task/*/stat | awk '{ if (int($7 / 524288) % 2 == 0) n++ } END { print n + 0 }'; }

pressure() {
    local pid free sum
    volume
    mkdir -p "$T/journals" "$T/m" "$T/hog"
    truncate -s 128M "$T/disk"
    run "a file system for the journal" mkfs.ext4 -q -F "$T/disk"
    run "its mount" mount -o loop "$T/disk" "$T/journals" || return
    attach vol --durability local --journal "$T/journals" --journal-size 64M || return
    pid=$(target vol)
    for pid in "$pid" "$(parent "$pid")"; do
        is "killed last: process $pid" "$(cat "/proc/$pid/oom_score_adj")" -1000
        is "its threads whose allocations may begin I/O" "$(may_begin_io "$pid")" 0
        is "it is locked in memory" "$(awk '/^VmLck:/ { print ($2 > 1000) }' "/proc/$pid/status")" 1
    done
    pid=$(target vol)
    run "mkfs" mkfs.ext4 -q -F "$dev"
    run "mount" mount "$dev" "$T/m" || return
    head -c 48M /dev/urandom >"$T/data"
    sum=$(sha256sum <"$T/data")
    # What the target takes at most is left, and little beside. Pages of tmpfs cannot be written out.
    run "memory that is taken" mount -t tmpfs -o size=100% tmpfs "$T/hog" || return
    free=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
    run "memory is short" fallocate -l $((free - 350))M "$T/hog/taken"
    run "written through the page cache, and synced" timeout 100 dd if="$T/data" of="$T/m/data" bs=1M conv=fsync
    echo 3 >/proc/sys/vm/drop_caches
    is "what was written" "$(timeout 100 sha256sum <"$T/m/data")" "$sum"
    is "the target is the same" "$(target vol)" "$pid"
    run "memory is there again" umount "$T/hog"
    rm "$T/data"
    run "umount" umount "$T/m"
    run "fsck" e2fsck -fn "$dev"
    run "detach" objblk detach vol
    nothing_left pressure
    run "the journals' file system is let go" umount "$T/journals"
}

# A device with a reader that waits for it: target and supervisor are dead.
orphan() {
    attach vol || return 1
    run "written, not flushed" dd if=/dev/urandom of="$dev" bs=64k count=16 oflag=direct conv=notrunc,nocreat
    kill_both vol
    dd if="$dev" of=/dev/null bs=4k count=1 skip=$((RANDOM)) iflag=direct 2>"$T/reader" &
    reader=$!
    sleep 0.5
    run "the reader waits" kill -0 "$reader"
}
# removed WHAT: the reader has got its error, and nothing is left
ended() { ! kill -0 "$1"; }
gone() { [ ! -e "$1" ]; }
removed() {
    until_true "$1: the reader ends" 60 ended "$reader"
    wait "$reader" && fail "$1: the reader saw no error"
    is "$1: the reader's error" "$(grep -c 'Input/output error' "$T/reader")" 1
    nothing_left "$1"
}

refuse() {
    volume
    exits "nothing to recover" 0 objblk recover
    exits "recover of what is not there" 3 objblk recover vol
    orphan || return
    exits "attach of an orphan" 5 objblk attach vol --takeover
    exits "detach of an orphan" 5 objblk detach vol
    exits "resize of an orphan" 5 objblk resize vol --size 2G
    exits "detach --force of an orphan" 0 objblk detach --force vol
    removed "detach --force"
    orphan || return
    segment=$(find /run/objblk/*.mirror/* -type f -size +64k | head -1)
    printf '\x55' | dd of="$segment" bs=1 seek=5000 conv=notrunc 2>/dev/null
    exits "a damaged mirror" 1 objblk recover vol
    removed "damaged mirror"
    orphan || return
    # Another host, as far as the store and the run directory know.
    OBJBLK_RUN_DIR=$T/elsewhere timeout 150 objblk serve nbd vol --takeover >"$T/uri" 2>&1 &
    until_true "another owner serves it" 90 grep -q '^nbd' "$T/uri"
    run "the other owner leaves" env OBJBLK_RUN_DIR="$T/elsewhere" objblk detach vol
    exits "a volume that another owner has had" 5 objblk recover
    removed "fenced"
    attach vol --no-recovery || return
    kill -9 "$(target vol)"
    until_true "without recovery the device dies with its process" 60 gone "$dev"
    attach vol || return
    run "detach" objblk detach vol
    nothing_left refuse
}

loop() {
    local pid i
    volume
    attach vol || return
    pid=''
    for i in 1 2 3 4 5; do
        until_true "successor $i" 90 another "$pid" || break
        pid=$(target vol)
        kill -9 "$pid"
    done
    until_true "the device is given up" 60 gone "$dev"
    is "the log says so" "$(grep -c 'early deaths in a row' /run/objblk/vol.log)" 1
    nothing_left loop
    attach vol || return
    run "detach" objblk detach vol
    nothing_left "loop, and attached again"
}

# Everything dies at some moment of an attach: whoever comes next finds nothing in the way.
start() {
    local i attaching
    volume
    for i in 1 2 3 4; do
        objblk attach vol >"$T/out" 2>&1 &
        attaching=$!
        sleep "0.$((i * 2))"
        running | xargs -r kill -9
        wait "$attaching" 2>/dev/null
        until_true "all are dead" 60 none_running
        if objblk attach vol >"$T/out" 2>&1; then ok "attached after a death during attach"; else
            run "recovered after a death after attach" objblk recover vol
        fi
        run "detach" objblk detach vol
        nothing_left "start $i"
    done
    # The supervisor cleans up after a target that dies before it is ready.
    objblk attach vol >"$T/out" 2>"$T/err" &
    attaching=$!
    until_true "a token is left" 60 compgen -G '/run/objblk/*.json'
    running | while read -r i; do tr '\0' ' ' <"/proc/$i/cmdline" | grep -q 'objblk target' && kill -9 "$i"; done
    wait "$attaching"
    # It may have been ready already: then it has a successor.
    if [ -s "$T/out" ]; then
        until_true "the successor serves it" 150 attached_or_recovered
        run "detach" objblk detach vol
    fi
    nothing_left "a death before it is ready"
}

# Two partitions, and the sector that says so in the first chunk.
cat >"$T/partition.py" <<'END'
import os, struct, sys
f = os.open(sys.argv[1], os.O_RDWR)
table = bytearray(512)
for i in range(2):
    entry = struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048 + 16384 * i, 16384)
    table[446 + 16 * i:462 + 16 * i] = entry
table[510:] = b"\x55\xaa"
os.pwrite(f, bytes(table), 0)
os.fsync(f)
END

partitions() { find /dev -name 'ublkb*p*' | sort | tr '\n' ' '; }
has_two() { [ "$(partitions)" = "${dev}p1 ${dev}p2 " ]; }
chunks() { find "$T/table" -path '*/log/*' -type f -size +2k; }

# The table cannot be read, as its chunk is a pipe that nobody writes to.
table() {
    local -x OBJBLK_STORE=file://$T/table
    local option chunk
    run "a pool of files" objblk pool init
    run "create" objblk create vol --size 64M --compress none
    attach vol || return
    run "two partitions" python3 "$T/partition.py" "$dev"
    run "detach" objblk detach vol
    attach vol || return
    until_true "the partitions appear" 30 has_two
    is "partitions" "$(partitions)" "${dev}p1 ${dev}p2 "
    run "detach" objblk detach vol
    for option in --recovery --no-recovery; do
        chunks | while read -r chunk; do mv "$chunk" "$chunk.kept" && mkfifo "$chunk"; done
        # shellcheck disable=SC2086
        objblk attach vol ${option#--recovery} >"$T/out" 2>&1 &
        until_true "the device is there" 60 test -b "$dev"
        sleep 2
        running | xargs -r kill -9
        wait $! 2>/dev/null
        find "$T/table" -name '*.kept' | while read -r chunk; do mv "$chunk" "${chunk%.kept}"; done
        until_true "$option: all are dead" 60 none_running
        attach vol || return
        until_true "$option: the partitions appear" 30 has_two
        run "$option: detach" objblk detach vol
        nothing_left "$option"
    done
}

# The store is gone: the page cache cannot be written out, and requests wait.
ending() {
    local -x OBJBLK_STORE=file://$T/ending
    local sum how
    run "a pool of files" objblk pool init
    run "create" objblk create vol --size 256M
    head -c 90M /dev/urandom >"$T/data"
    sum=$(sha256sum <"$T/data")
    for how in '' --force; do
        attach vol || return
        mv "$T/ending" "$T/away"
        dd if="$T/data" of="$dev" bs=1M 2>/dev/null &
        until_true "writers wait" 60 grep -q '[1-9]' "/sys/block/${dev#/dev/}/inflight"
        # shellcheck disable=SC2086
        objblk detach vol $how >"$T/out" 2>&1 &
        sleep 2
        running | xargs -r kill -9
        mv "$T/away" "$T/ending"
        until_true "detach $how: all are dead" 60 none_running
        if [ -z "$how" ]; then
            run "recover" objblk recover vol
            wait
            is "what was written" "$(head -c 90M "$dev" | sha256sum)" "$sum"
            run "detach" objblk detach vol
        else
            # Begun by force, it may have been over.
            objblk detach --force vol >"$T/out" 2>&1
            wait
        fi
        nothing_left "detach $how"
    done
    attach vol --no-recovery || return
    mv "$T/ending" "$T/away"
    dd if="$T/data" of="$dev" bs=1M 2>/dev/null &
    until_true "writers wait" 60 grep -q '[1-9]' "/sys/block/${dev#/dev/}/inflight"
    objblk detach vol >"$T/out" 2>&1 &
    sleep 2
    running | xargs -r kill -9
    wait
    mv "$T/away" "$T/ending"
    attach vol || return
    run "detach" objblk detach vol
    nothing_left "without recovery"
}

size() { blockdev --getsize64 "$dev"; }

grow_fs() {
    local fs=$1
    run "create $fs" objblk create "$fs" --size 512M
    attach "$fs" || return
    mkdir -p "$T/m"
    run "mkfs.$fs" "mkfs.$fs" -q "$dev"
    run "mount $fs" mount "$dev" "$T/m" || return
    run "a tree on $fs" cp -r /usr/include/asm-generic "$T/m/tree"
    run "a file for the ledger" dd if=/dev/zero of="$T/m/ledger" bs=1M count=16 oflag=direct
    rm -f "$T/stop"
    python3 "$T/ledger.py" "$T/m/ledger" "$T/stop" 7 >"$T/ledger.out" 2>&1 &
    ledger=$!
    exits "$fs: a smaller size while attached" 2 objblk resize "$fs" --size 256M --shrink
    run "$fs: resize" objblk resize "$fs" --size 1G
    is "$fs: size of the device" "$(size)" $((1 << 30))
    is "$fs: the kernel knows its size" "$(cat "/sys/block/${dev#/dev/}/size")" $((1 << 21))
    run "$fs: the same size once more" objblk resize "$fs" --size 1G
    if [ "$fs" = xfs ]; then run "xfs_growfs" xfs_growfs "$T/m"; else run "resize2fs" resize2fs "$dev"; fi
    is "$fs: it has grown" "$([ "$(df --output=size -k "$T/m" | tail -1)" -gt 800000 ] && echo yes)" yes
    run "$fs: files behind the old end" cp -r /usr/include/asm-generic "$T/m/more"
    touch "$T/stop"
    if wait "$ledger"; then ok "ledger: $(cat "$T/ledger.out")"; else fail "ledger: $(tail -2 "$T/ledger.out")"; fi
    run "umount $fs" umount "$T/m"
    run "detach $fs" objblk detach "$fs"
    attach "$fs" || return
    is "$fs: size when attached again" "$(size)" $((1 << 30))
    if [ "$fs" = xfs ]; then run "xfs_repair" xfs_repair -n "$dev"; else run "e2fsck" e2fsck -fn "$dev"; fi
    run "mount $fs again" mount "$dev" "$T/m" || return
    run "$fs: the tree" diff -r /usr/include/asm-generic "$T/m/tree"
    run "$fs: the files that came later" diff -r /usr/include/asm-generic "$T/m/more"
    run "umount $fs" umount "$T/m"
    run "detach $fs" objblk detach "$fs"
}

grow() {
    if [[ $(uname -r) = 6.* ]]; then
        volume
        attach vol || return
        exits "resize of an attached device" 5 objblk resize vol --size 2G
        is "it says why" "$(grep -c 'cannot change the size of a device' "$T/run")" 1
        is "its size" "$(size)" $((1 << 30))
        run "detach" objblk detach vol
        return
    fi
    grow_fs ext4
    grow_fs xfs
}

# As `objblk resize` does, which needs the store before.
cat >"$T/resize.py" <<'END'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
message = {"grow": {"volume": sys.argv[2], "size": int(sys.argv[3])}}
s.sendall(json.dumps({"version": 1, "message": message}).encode() + b"\n")
print(s.makefile().readline())
END

# The volume has grown as far as this host knows; the store has not heard of it, nor has the device.
growing() {
    local sum id
    local -x OBJBLK_STORE=file://$T/grow
    run "a pool of files" objblk pool init
    run "create" objblk create vol --size 256M
    attach vol || return
    run "written, not flushed" dd if=/dev/urandom of="$dev" bs=64k count=16 oflag=direct conv=notrunc,nocreat
    sum=$(head -c 1M "$dev" | sha256sum)
    id=$(objblk info vol --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -1)
    mv "$T/grow" "$T/away"
    python3 "$T/resize.py" "$(find /run/objblk -type s)" "$id" $((512 << 20)) >"$T/out" 2>&1 &
    sleep 2
    is "said to who wants it larger" "$(cat "$T/out")" ""
    is "size before" "$(size)" $((256 << 20))
    running | xargs -r kill -9
    wait
    mv "$T/away" "$T/grow"
    until_true "all are dead" 60 none_running
    run "recover" objblk recover vol
    is "size of the recovered device" "$(size)" $((512 << 20))
    is "what was written" "$(head -c 1M "$dev" | sha256sum)" "$sum"
    run "its last sector" dd if=/dev/urandom of="$dev" bs=512 count=1 seek=$(((512 << 11) - 1)) oflag=direct conv=notrunc,nocreat
    run "detach" objblk detach vol
    attach vol || return
    is "size when attached again" "$(size)" $((512 << 20))
    run "detach" objblk detach vol
    nothing_left growing
}

for step in "$@"; do
    echo "== $step at $(ms) ms"
    "$step"
done
[ $fails = 0 ] || { cat /run/objblk/*.log 2>/dev/null; dmesg | tail -30; }
[ $fails = 0 ]
