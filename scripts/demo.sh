#!/usr/bin/env bash
# Show objblk's main job from nothing: build it, make a disk in a directory store, put it on a block
# device, fill a file system, detach, attach again, verify every byte.
#
# usage: scripts/demo.sh [-h] [vm]        (or: make demo)
#
# The device comes from this kernel's ublk driver, or with `vm`, or where there is no such driver, from
# that of a guest. There, detaching and attaching again are two boots that share nothing but the store.
# The files are those of this repository, /usr/include and the cargo registry, up to
# ${OBJBLK_DEMO_MIB:-64} MiB. Everything is made in a temporary directory and removed at the end.
#
# exit code: 0 only if every step worked and every file came back as it was
set -euo pipefail

cd "$(dirname "$0")/.."
readonly target=${CARGO_TARGET_DIR:-$PWD/target} mib=${OBJBLK_DEMO_MIB:-64} steps=scripts/vm/demo-guest.sh

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
heading() { printf '\n== %s\n' "$*"; }

# Can this kernel make ublk devices, and may we?
native_ublk() {
    [ "$(id -u)" = 0 ] || return 1
    [ -c /dev/ublk-control ] || modprobe ublk_drv 2>/dev/null || return 1
    [ -c /dev/ublk-control ]
}

# The files to copy to the disk, as paths below /, NUL-terminated, up to the limit in bytes. A guest sees this host's
# root file system only, and has a /tmp of its own.
files() {
    local trees=() tree size file left=$((mib << 20))
    for tree in "$PWD/src" /usr/include "${CARGO_HOME:-$HOME/.cargo}/registry/src"; do
        [ ! -d "$tree" ] || trees+=("$tree")
    done
    find "${trees[@]}" -xdev -type f -not -path '/tmp/*' -not -path '/run/*' -printf '%s %p\0' |
        while read -r -d '' size file; do
            [ "$size" -le "$left" ] || continue
            left=$((left - size))
            printf '%s\0' "${file#/}"
        done
}

main() {
    local mode=native state
    case ${1:-} in
        -h) usage && return ;;
        vm) mode=vm ;;
        '') native_ublk || mode=vm ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    heading "Building objblk"
    scripts/bootstrap.sh build
    cargo build --release --locked
    state=$(mktemp -d "${TMPDIR:-/tmp}/objblk-demo.XXXXXX")
    # shellcheck disable=SC2064  # expanded now: the trap runs after main's variables are gone
    trap "rm -rf --one-file-system '$state'" EXIT

    files >"$state/files"

    if [ "$mode" = native ]; then
        PATH=$target/release:$PATH
        "$steps" fill "$state" "$state/files"
        "$steps" verify "$state"
    else
        heading "This kernel has no ublk driver, or you asked for a guest: the device lives in a QEMU guest"
        scripts/bootstrap.sh vm
        in_guest "$state" fill /dev/vda files
        heading "A second boot, which knows nothing but the store"
        in_guest "$state" verify /dev/vda
    fi
    heading "Done: every file came back as it was"
}

# in_guest STATE ARG...: run the steps in a guest that keeps its store on a disk of its own.
in_guest() {
    local state=$1
    shift
    scripts/vm/run.sh -d "$state/store.img:4G" -t 900 -m 3G -p "$target/release/objblk" \
        -p "$state/files" -f "$steps" -- "$@"
}

main "$@"
