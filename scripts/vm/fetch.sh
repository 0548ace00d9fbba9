#!/usr/bin/env bash
# Download the parts of the VM lab that come from Debian packages; unpacked, never installed.
#
# usage: scripts/vm/fetch.sh [-h] 6.12|7.2      a cloud kernel, in $LAB/kernel-SERIES
#        scripts/vm/fetch.sh virtiofsd          the file server, in $LAB/virtiofsd
#        scripts/vm/fetch.sh udevadm            the device manager, for guests, in $LAB/udevadm
#        scripts/vm/fetch.sh libvirt            the schemas of its XML, and xmllint, in $LAB/libvirt
#
# $LAB is ${OBJBLK_LAB:-/tmp/objblk-lab}/vm. Prints the path of what was asked for; what is there
# already is left alone. A kernel's directory holds
#   vmlinux or vmlinuz        what QEMU boots
#   version                   the release, as uname -r prints it in the guest
#   lib/modules/RELEASE/...   all modules, uncompressed, with their index
set -euo pipefail

lab=${OBJBLK_LAB:-/tmp/objblk-lab}/vm
readonly here=${BASH_SOURCE[0]%/*} lab
readonly flavour=cloud-amd64

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
die() {
    printf 'fetch: %s\n' "$*" >&2
    exit 1
}

# The packages of the newest kernel of a series in a suite. The suite's meta package may have moved on to
# the next series: the packages of the older one stay. Since about 6.16 the image package is empty and
# pulls linux-binary (the image), linux-modules and linux-base.
concrete_packages() {
    local suite=$1 series=$2 image parts
    image=$(images "$series" | while read -r image; do
        ! apt-cache madison "$image" | grep -q " $suite/" || echo "$image"
    done | tail -n 1)
    [ -n "$image" ] || return 1
    parts=$(apt-cache depends "$image" | sed -n 's/^ *Depends: \(linux-\(binary\|modules\|base\)-[0-9].*\)/\1/p')
    printf '%s\n' "${parts:-$image}"
}

# The image packages of a series, of all suites, oldest first.
images() {
    apt-cache --names-only search "^linux-image-${1//./\\.}\\..*-$flavour\$" | cut -d' ' -f1 | sort -V
}

# Download PACKAGE/SUITE... to the current directory, by package lists that may be too old at first.
download() {
    apt_download "$@" 2>/dev/null && return
    "$here/../bootstrap.sh" lists
    apt_download "$@" >&2
}

apt_download() { apt-get -qq -o APT::Sandbox::User=root download "$@"; }

# Take the ELF kernel out of a compressed image. QEMU starts it directly (PVH), which saves a second
# of decompression in the emulated guest. The image starts with several things that look like a zstd frame.
extract_vmlinux() {
    local image=$1 out=$2 offset
    while read -r offset; do
        { tail -c +$((offset + 1)) "$image" | zstd -qdc >"$out" 2>/dev/null; } || true
        [ "$(head -c 4 "$out" | tail -c 3)" != ELF ] || return 0
    done < <(LC_ALL=C grep -abo $'\x28\xb5\x2f\xfd' "$image" | LC_ALL=C cut -d: -f1)
    rm -f "$out"
    return 1
}

# Lay out the unpacked packages in the tree $1 as a kernel directory $2.
lay_out() {
    local tree=$1 out=$2 modules release image
    modules=$(find "$tree" -type d -path '*/lib/modules/*/kernel' -print -quit)
    modules=${modules%/kernel}
    release=${modules##*/}
    image=$(find "$tree" -type f -name 'vmlinuz*' -print -quit)
    [ -n "$release$image" ] || die "the downloaded packages hold no kernel image or no modules"
    mkdir -p "$out/lib/modules"
    extract_vmlinux "$image" "$out/vmlinux" || cp "$image" "$out/vmlinuz"
    mv "$modules" "$out/lib/modules/$release"
    find "$out/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -P "$(nproc)" -n 64 xz -d
    depmod -b "$out" "$release"
    echo "$release" >"$out/version"
}

# Unpack into $work/tree the packages given.
unpack() {
    local deb
    mkdir "$work/debs" "$work/tree"
    (cd "$work/debs" && download "$@") || die "could not download $*"
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/tree"; done
}

fetch_kernel() {
    local series=$1 suite=$2 out=$3 found packages
    found=$(concrete_packages "$suite" "$series") || {
        "$here/../bootstrap.sh" lists
        found=$(concrete_packages "$suite" "$series")
    } || die "$suite has no kernel $series; what it has: apt-cache policy 'linux-image-*-$flavour'"
    mapfile -t packages <<<"$found"
    unpack "${packages[@]/%//$suite}"
    lay_out "$work/tree" "$work/kernel"
    mv "$work/kernel" "$out"
}

# The one in C that QEMU had up to 7.2. Debian 12 has no other, and its own package of that QEMU cannot
# be installed next to a newer one.
fetch_virtiofsd() {
    unpack qemu-system-common/bookworm
    mv "$work/tree/usr/lib/qemu/virtiofsd" "$1"
}

fetch_udevadm() {
    unpack udev/bookworm
    mv "$work/tree/bin/udevadm" "$1"
}

fetch_libvirt() {
    unpack libvirt0/bookworm libxml2-utils/bookworm
    mv "$work/tree" "$1"
}

main() {
    local what=${1:-} out
    case $what in
        -h) usage && return ;;
        6.12 | 7.2) out=$lab/kernel-$what ;;
        virtiofsd | udevadm | libvirt) out=$lab/$what ;;
        *) die "what there is to fetch: 6.12, 7.2, virtiofsd, udevadm, libvirt; not '$what'" ;;
    esac
    if [ ! -e "$out" ]; then
        mkdir -p "$lab"
        work=$(mktemp -d "$lab/fetch.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        case $what in
            6.12) fetch_kernel 6.12 bookworm-backports "$out" ;;
            7.2) fetch_kernel 7.2 trixie-backports "$out" ;;
            virtiofsd) fetch_virtiofsd "$out" ;;
            udevadm) fetch_udevadm "$out" ;;
            libvirt) fetch_libvirt "$out" ;;
        esac
    fi
    echo "$out"
}

main "$@"
