#!/usr/bin/env bash
# Build a user-mode Linux that has ublk, once: a kernel that is an ordinary program.
#
# usage: scripts/uml/build.sh [-h]
#
# Prints the path of the program, $LAB/linux, where $LAB is ${OBJBLK_LAB:-/tmp/objblk-lab}/uml. The sources
# are a Debian package, unpacked there and removed again. Takes 3 to 8 minutes on two processors.
set -euo pipefail

lab=${OBJBLK_LAB:-/tmp/objblk-lab}/uml
readonly here=$(cd "${BASH_SOURCE[0]%/*}" && pwd) lab
readonly package=linux-source-7.2 suite=trixie-backports

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    printf 'uml: %s\n' "$*" >&2
    exit 1
}

download() { apt-get -qq -o APT::Sandbox::User=root download "$package/$suite"; }

unpack() {
    "$here/../bootstrap.sh" uml
    download || {
        "$here/../bootstrap.sh" lists
        download
    }
    dpkg -x "$package"_*.deb unpacked
    mkdir sources
    tar -xf unpacked/usr/src/$package.tar.xz -C sources --strip-components=1
}

# In $work, which is made and removed by the caller.
build() {
    cd "$work"
    unpack
    cd sources
    KCONFIG_ALLCONFIG=$here/kernel.config make -s ARCH=um allnoconfig
    grep '^CONFIG_BLK_DEV_UBLK=y' .config || die "$package cannot be configured with ublk"
    make -s ARCH=um -j"$(nproc)" linux
    strip -o "$lab/linux.new" linux
    mv "$lab/linux.new" "$lab/linux"
}

main() {
    local rc
    [ "${1:-}" != -h ] || {
        usage
        return
    }
    mkdir -p "$lab"
    exec 9>"$lab/lock"
    flock 9
    if [ ! "$lab/linux" -nt "$here/kernel.config" ]; then
        work=$(mktemp -d "$lab/build.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        # Not `build || ...`, which would go on after each failure.
        set +e
        (set -e && build) >"$lab/build.log" 2>&1
        rc=$?
        set -e
        [ $rc = 0 ] || {
            tail -n 30 "$lab/build.log" >&2
            die "the kernel could not be built; all of what was said is in $lab/build.log"
        }
    fi
    echo "$lab/linux"
}

main "$@"
