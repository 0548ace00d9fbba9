#!/usr/bin/env bash
# Run a script on a kernel with ublk whose user code runs at native speed: user-mode Linux.
#
# usage: scripts/vm/uml.sh [OPTION...] -f SCRIPT
#
#   -f SCRIPT      a host script to run; a copy is executed by sh
#   -p FILE        a file to copy beside it, again for each one; they are on its PATH
#   -e NAME=VALUE  a variable in its environment, again for each one
#   -m SIZE        the guest's memory (2G)
#   -s COUNT       its processors (2)
#   -t SECONDS     time limit (300)
#   -h             this text
#
# For measurements: an emulated processor is slow at what programs compute, this one is slow only at what
# its kernel does. Tests use the guests of run.sh, whose drivers and scheduler are the real ones. Its root
# is this host's, read-only; /tmp and /run are empty and in memory; there is no network.
#
# The first run builds the kernel from Debian's source, which takes 10 minutes. State:
# ${OBJBLK_LAB:-/tmp/objblk-lab}/uml. exit code: the script's, but for 2 (usage), 124 (time) and 125 (the
# lab failed).
set -euo pipefail

readonly here=${BASH_SOURCE[0]%/*} lab=${OBJBLK_LAB:-/tmp/objblk-lab}/uml source=linux-source-7.2
readonly rc_usage=2 rc_timeout=124 rc_lab=125

script='' memory=2G processors=2 limit=300 files=() environment=() run=''

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    local rc=$1
    shift
    printf 'uml: %s\n' "$*" >&2
    exit "$rc"
}

# Build the kernel, once; one at a time.
kernel() {
    mkdir -p "$lab"
    exec 9>"$lab/lock"
    flock 9
    if [ ! -x "$lab/linux" ] || [ "$here/uml.config" -nt "$lab/linux" ]; then
        build >"$lab/build.log" 2>&1 || die $rc_lab "the kernel cannot be built: see $lab/build.log"
    fi
    exec 9>&-
}

build() {
    "$here/../bootstrap.sh" uml
    rm -rf "$lab/src" "$lab/new"
    mkdir "$lab/src" "$lab/new"
    (
        cd "$lab/new"
        apt-get -qq -o APT::Sandbox::User=root download "$source"
        dpkg -x "$source"_*.deb .
        tar -C "$lab/src" --strip-components=1 -xf "usr/src/$source.tar.xz"
    )
    make -C "$lab/src" ARCH=um KCONFIG_ALLCONFIG="$(realpath "$here/uml.config")" allnoconfig
    make -C "$lab/src" ARCH=um -j"$(nproc)" linux
    cp "$lab/src/linux" "$lab/linux"
    rm -rf "$lab/src" "$lab/new"
}

boot() {
    local name item rc=0
    run=$(mktemp -d "$lab/run.XXXXXX")
    trap 'rm -rf "$run"' EXIT
    mkdir "$run/payload"
    for item in ${files[@]+"${files[@]}"}; do cp -L "$item" "$run/payload/"; done
    cp -L "$script" "$run/payload/.script"
    for item in ${environment[@]+"${environment[@]}"}; do
        name=${item%%=*} item=${item#*=}
        printf "export %s='%s'\n" "$name" "${item//\'/\'\\\'\'}"
    done >"$run/payload/.environment"
    cp "$here/uml-init" "$run/init"
    chmod 755 "$run/init"
    TMPDIR=/dev/shm timeout -k 5 "$limit" "$lab/linux" mem="$memory" ncpus="$processors" seccomp=on \
        rootfstype=hostfs root=/dev/root ro init="$run/init" payload="$run/payload" quiet \
        con=null con0=fd:0,fd:1 panic=-1 </dev/null >"$run/out" 2>"$run/err" || rc=$?
    [ "$rc" != 124 ] || die $rc_timeout "not done after $limit seconds: $(tail -n 5 "$run/out")"
    # The console ends lines with CR LF, and the kernel writes to it as well.
    tr -d '\r' <"$run/out" | sed '1,/^uml: begin$/d;/^uml: exit /,$d'
    rc=$(tr -d '\r' <"$run/out" | sed -n 's/^uml: exit //p')
    [ -n "$rc" ] || die $rc_lab "the guest died: $(tail -n 5 "$run/out" "$run/err")"
    exit "$rc"
}

while getopts f:p:e:m:s:t:h option; do
    case $option in
        f) script=$OPTARG ;;
        p) files+=("$OPTARG") ;;
        e) environment+=("$OPTARG") ;;
        m) memory=$OPTARG ;;
        s) processors=$OPTARG ;;
        t) limit=$OPTARG ;;
        h) usage && exit ;;
        *) usage >&2 && exit $rc_usage ;;
    esac
done
[ -r "$script" ] || die $rc_usage "no script '$script'; see -h"
kernel
boot
