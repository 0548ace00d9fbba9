#!/usr/bin/env bash
# The steps of the demo, the same on a host with ublk and in a guest; see scripts/demo.sh.
#
# usage: scripts/vm/demo-guest.sh [-h] fill STATE FILES    make the disk and copy files to it
#        scripts/vm/demo-guest.sh verify STATE        attach it again and compare
#
# STATE is a directory, or a block device (formatted if it is blank), that holds the store and the
# checksums; FILES lists paths below /, NUL-terminated. objblk is taken from PATH. Needs root.
set -euo pipefail

readonly volume=demo size=1G
# Set on the way: where the store is, where the volume is mounted, the volume's device while attached.
state='' mounted='' device=''

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
heading() { printf '\n== %s\n' "$*"; }
run() {
    printf '$ %s\n' "$*"
    "$@"
}
die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

open_state() {
    state=$1
    if [ -b "$state" ]; then
        blkid "$state" >/dev/null || mkfs.ext4 -q "$state"
        state=$(mktemp -d)
        mount "$1" "$state"
    fi
    export OBJBLK_STORE=file://$state/pool
    mounted=$(mktemp -d)
}

# Leave nothing behind, wherever a step failed.
clean_up() {
    ! mountpoint -q "$mounted" || umount "$mounted"
    [ -z "$device" ] || objblk detach $volume || true
    ! mountpoint -q "$state" || umount "$state"
    rmdir "$mounted"
}

attach() {
    printf '$ objblk attach %s\n' $volume
    device=$(objblk attach $volume)
    echo "$device"
    [ -b "$device" ] || die "attach printed '$device', which is no block device"
    [ "$(blockdev --getsize64 "$device")" = $((1 << 30)) ] || die "$device is not of size $size"
}

detach() {
    run objblk detach $volume
    [ ! -e "$device" ] || die "$device is still there after detach"
    device=''
}

fill() {
    heading "Create a volume of $size in $OBJBLK_STORE and attach it"
    run objblk create $volume --size $size
    attach

    heading "Make an ext4 file system on it and mount it"
    run mkfs.ext4 -q "$device"
    run mount "$device" "$mounted"

    heading "Copy files to it, and note the checksums of the originals"
    tar -C / -cf - --null -T "$1" | tar -C "$mounted" -xf -
    (cd / && xargs -0 sha256sum) <"$1" >"$state/checksums"
    run df -h "$mounted"
    echo "$(wc -l <"$state/checksums") files copied"

    heading "Unmount and detach"
    run umount "$mounted"
    detach
}

verify() {
    heading "Attach it again and check the file system"
    attach
    run e2fsck -fn "$device"
    run mount "$device" "$mounted"

    heading "Compare all files with the checksums noted"
    (cd "$mounted" && sha256sum --check --quiet) <"$state/checksums" || die "files differ"
    [ "$(find "$mounted" -type f | wc -l)" = "$(wc -l <"$state/checksums")" ] || die "files are missing or too many"
    echo "$(wc -l <"$state/checksums") files are the same"
    run umount "$mounted"
    run objblk info $volume
    detach

    heading "What the store holds"
    find "$state/pool" -type f -printf '%s %P\n' | LC_ALL=C sort -k 2 | tee "$state/objects" | head -n 30 |
        awk '{ printf "%10d  %s\n", $1, $2 }'
    awk '{ total += $1 } NR > 30 { more++ } END {
        if (more) printf "            ... and %d more\n", more
        printf "%d objects, %.1f MiB\n", NR, total / 1048576 }' "$state/objects"
}

main() {
    local step=${1:-}
    case $step in
        -h) usage && return ;;
        fill) [ $# = 3 ] || die "fill takes a state directory or disk, and a list of files" ;;
        verify) [ $# = 2 ] || die "verify takes a state directory or disk" ;;
        *) die "the steps are fill and verify, not '$step'" ;;
    esac
    [ "$(id -u)" = 0 ] || die "must be root to attach and mount"
    open_state "$2"
    trap clean_up EXIT
    "$step" "${@:3}"
}

main "$@"
