#!/usr/bin/env bash
# Build the VM lab's initramfs for a kernel: busybox, guest-init, and the modules a guest may want.
#
# usage: scripts/vm/mkinitrd.sh [-h] KERNEL_DIR INITRD
#
# KERNEL_DIR is what fetch.sh prints, INITRD the file to write. The archive stays uncompressed:
# QEMU loads it at once, while the emulated guest would take long to decompress it.
set -euo pipefail

readonly here=${BASH_SOURCE[0]%/*}
# Loaded by guest-init before the command runs.
readonly loaded=(virtio_pci virtio_net virtio_blk virtio_console virtio_rng virtiofs overlay loop ublk_drv)
# There for modprobe, mount and the like to load. What a kernel has built in, or lacks, is skipped.
readonly loadable=(
    ext4 xfs dm_mod dm_flakey dm_log_writes dm_snapshot dm_thin_pool null_blk nbd fuse
    crc32c_generic crc32c_intel libcrc32c veth sch_netem
)

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

# Copy the modules, and those that they depend on, from the kernel's tree to the initramfs.
copy_modules() {
    local kernel=$1 release=$2 root=$3 module file
    mkdir -p "$root/lib/modules/$release"
    cp "$kernel/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$release/"
    for module in "${loaded[@]}" "${loadable[@]}"; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        install -D -m 644 "$file" "$root/${file#"$kernel"/}"
    done
    depmod -b "$root" "$release"
}

main() {
    local kernel=${1:-} out=${2:-} release root
    [ "$kernel" != -h ] || {
        usage
        return
    }
    if [ $# != 2 ]; then
        usage >&2
        exit 2
    fi
    release=$(cat "$kernel/version")
    root=$(mktemp -d)
    # shellcheck disable=SC2064  # expanded now: the trap runs after main's variables are gone
    trap "rm -rf '$root'" EXIT
    mkdir -p "$root"/{bin,etc,proc,sys,dev,run,tmp,root,lib}
    cp /bin/busybox "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    install -m 755 "$here/guest-init" "$root/init"
    printf '%s\n' "${loaded[@]}" >"$root/etc/modules"
    copy_modules "$kernel" "$release" "$root"
    # Renamed into place, so that a cut-off run leaves no half of one.
    (cd "$root" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) >"$out.new"
    mv "$out.new" "$out"
}

main "$@"
