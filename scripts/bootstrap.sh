#!/usr/bin/env bash
# Install what objblk's build, tests and VM lab need on a Debian 12 machine.
#
# usage: scripts/bootstrap.sh [-h] [GROUP...]        (default: all groups)
#
#   build   clang and libclang for the ublk bindings, a C compiler, make
#   test    cargo-nextest and fsx, by way of cargo
#   s3      the reference S3 server: Ceph monitor, OSD and gateway
#   nbd     NBD clients and servers, fio, SQLite, mkfs and fsck of ext4 and xfs
#   vm      QEMU, what the guest's initramfs is made of, apt sources of its kernels
#   uml     what builds a user-mode Linux (not part of the default)
#   lists   nothing: only refreshes Debian's package lists (not part of the default)
#
# Only what is missing is installed: each item is looked for first, and when all is there nothing is
# asked of apt or the network. Needs root where something is missing. The two backports suites that
# `vm` adds are pinned below everything else, so that no other package ever moves because of them.
set -euo pipefail

readonly sources_file=/etc/apt/sources.list.d/objblk-backports.sources
readonly pins_file=/etc/apt/preferences.d/objblk-backports
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# QEMU and the older kernel come from the first, the newer kernel from the second.
readonly qemu_suite=bookworm-backports
readonly qemu_packages=(qemu-system-x86 qemu-system-common qemu-system-data qemu-utils seabios)
readonly kernel_suites=(bookworm-backports trixie-backports)

# What a group needs: PROBE=PACKAGE. A probe is a command, or a path pattern when it has a slash.
readonly build_needs=(
    cc=gcc make=make pkg-config=pkg-config clang=clang '/usr/lib/llvm-*/lib/libclang*.so*=libclang-dev'
)
readonly s3_needs=(ceph-mon=ceph-mon ceph-osd=ceph-osd radosgw=radosgw ceph=ceph-common)
readonly nbd_needs=(
    fio=fio nbdinfo=libnbd-bin /usr/lib/python3/dist-packages/nbd.py=python3-libnbd nbdkit=nbdkit
    nbdfuse=libnbd-bin fusermount3=fuse3 qemu-img=qemu-utils mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs
    losetup=mount curl=curl sqlite3=sqlite3 ip=iproute2 openssl=openssl systemd-analyze=systemd
    /usr/bin/python3=python3
)
readonly vm_needs=(
    qemu-system-x86_64=qemu-system-x86 socat=socat /bin/busybox=busybox-static cpio=cpio zstd=zstd xz=xz-utils
    depmod=kmod fio=fio mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs unshare=util-linux
    dmsetup=dmsetup losetup=mount pgrep=procps /usr/bin/python3=python3
)
readonly uml_needs=(
    cc=gcc make=make flex=flex bison=bison bc=bc xz=xz-utils strip=binutils
    '/usr/include/libelf.h=libelf-dev'
)

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Is the thing that PROBE names on this machine?
present() {
    case $1 in
        */*) compgen -G "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# Print the packages of the given needs that are missing, each once.
missing() {
    local need
    for need in "$@"; do
        present "${need%%=*}" || printf '%s\n' "${need#*=}"
    done | sort -u
}

need_root() {
    command -v apt-get >/dev/null || die "no apt-get here; install by hand: $*"
    [ "$(id -u)" = 0 ] || die "must be root to install: $*"
}

# The archive that this machine already uses, e.g. the URI of its main Debian source.
debian_mirror() {
    # shellcheck disable=SC2016  # the names are apt-get's
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
        awk -v suite="$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" \
            '$2 == suite && $3 == "main" { print $1; exit }'
}

# Refresh the package lists of the Debian archive. Other vendors' sources stay out of it: one that
# cannot be reached must not cost minutes, nor fail this script.
update_lists() {
    local parts file rc=0
    parts=$(mktemp -d)
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        ! grep -qsE '/debian(-security)?/?( |$)' "$file" || cp "$file" "$parts/"
    done
    say "refreshing the package lists"
    apt-get -qq update -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$parts" \
        -o APT::Get::List-Cleanup=0 -o Acquire::Retries=3 || rc=$?
    rm -rf "$parts"
    [ "$rc" = 0 ] || say "some package lists could not be refreshed; going on with what is there"
}

# Install packages, with the lists as they are at first; lists that are absent, or that name files the
# archive no longer has, are refreshed once.
install() {
    need_root "$@"
    say "installing $*"
    apt_install "$@" 2>/dev/null && return
    update_lists
    apt_install "$@" || die "apt-get could not install: $*"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" </dev/null >/dev/null
}

# Add the backports suites that are not configured yet, pinned so low that apt takes from them only
# what is asked for by suite.
add_backports() {
    local mirror suite configured absent=()
    command -v apt-get >/dev/null || die "no apt-get here: the guests' kernels are Debian packages"
    # shellcheck disable=SC2016  # the name is apt-get's
    configured=$(apt-get indextargets --no-release-info --format '$(RELEASE)' | sort -u)
    for suite in "${kernel_suites[@]}"; do
        grep -qx "$suite" <<<"$configured" || absent+=("$suite")
    done
    if [ ${#absent[@]} -gt 0 ]; then
        need_root "the apt sources ${absent[*]}"
        mirror=$(debian_mirror)
        [ -n "$mirror" ] || die "apt's sources name no Debian archive to take ${absent[*]} from"
        say "adding the apt sources ${absent[*]}"
        cat >"$pins_file" <<PINS
Package: *
Pin: release n=bookworm-backports
Pin-Priority: 1

Package: *
Pin: release n=trixie-backports
Pin-Priority: 1
PINS
        cat >"$sources_file" <<SOURCES
Types: deb
URIs: $mirror
Suites: ${absent[*]}
Components: main
Signed-By: $keyring
SOURCES
    fi
    lists_of "${kernel_suites[@]}" || update_lists
    lists_of "${kernel_suites[@]}" || newer_keyring
}

# Have the package lists of all these suites been downloaded?
lists_of() {
    local suite
    for suite in "$@"; do
        compgen -G "/var/lib/apt/lists/*_dists_${suite}_main_binary-*_Packages*" >/dev/null || return 1
    done
}

# An image older than trixie lacks the keys that sign its suites; the stable updates have them.
newer_keyring() {
    say "taking the archive keys of newer suites"
    apt_install debian-archive-keyring
    update_lists
    lists_of "${kernel_suites[@]}" || die "apt could not read the lists of ${kernel_suites[*]}"
}

# Install what a group lacks. QEMU's packages depend on each other's exact version and may be there from
# backports already, so these come from there; named one by one, because asking apt for the whole suite
# (-t) also takes libraries from it that other packages then cannot agree with.
install_missing() {
    local packages package wanted=()
    mapfile -t packages < <(missing "$@")
    for package in "${packages[@]}"; do
        case $package in
            qemu-system-x86) wanted+=("${qemu_packages[@]/%//$qemu_suite}") ;;
            qemu-*) wanted+=("$package/$qemu_suite") ;;
            *) wanted+=("$package") ;;
        esac
    done
    [ "${#wanted[@]}" -gt 0 ] || return 0
    [[ ${wanted[*]} != */* ]] || add_backports
    install "${wanted[@]}"
}

group_build() { install_missing "${build_needs[@]}"; }
group_s3() { install_missing "${s3_needs[@]}"; }
group_nbd() { install_missing "${nbd_needs[@]}"; }
group_vm() {
    add_backports
    install_missing "${vm_needs[@]}"
}
group_uml() {
    add_backports
    install_missing "${uml_needs[@]}"
}
group_lists() {
    add_backports
    update_lists
}
group_test() {
    command -v cargo-nextest >/dev/null || {
        say "building cargo-nextest (several minutes, once)"
        cargo install --quiet --locked cargo-nextest
    }
    command -v fsx >/dev/null || {
        say "building fsx"
        cargo install --quiet --locked fsx --version 0.3.2
    }
}

main() {
    local group
    [ "${1:-}" != -h ] || {
        usage
        return
    }
    # mkfs and friends live here, and a plain user's PATH may lack it
    PATH=$PATH:/usr/sbin:/sbin
    [ $# -gt 0 ] || set -- build test s3 nbd vm
    for group in "$@"; do
        case $group in
            build | test | s3 | nbd | vm | uml | lists) "group_$group" ;;
            *) die "unknown group '$group'; the groups are build, test, s3, nbd, vm, uml and lists" ;;
        esac
    done
}

main "$@"
