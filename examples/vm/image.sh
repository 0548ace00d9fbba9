#!/usr/bin/env bash
# Make a small golden image: an ext4 file system with busybox and an init, and what boots it.
#
# usage: examples/vm/image.sh [-h] KERNEL_DIR OUT
#
# KERNEL_DIR holds `vmlinux` or `vmlinuz`, `version` (its release) and `lib/modules/RELEASE`, as
# `scripts/vm/fetch.sh 6.12` leaves it. Into the directory OUT come
#   disk.img   64 MiB, to be imported: objblk import OUT/disk.img golden
#   initrd     loads the drivers of the disk and its file system, and goes on there
#   kernel     a link to the image
# Needs busybox (static), cpio, kmod and mkfs.ext4; no root.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

# The init of the image. On its first boot it installs something; then it says what it has found. Words of the
# kernel's command line: `me=NAME`, who it is; `work`, write until the power is cut; otherwise it ends.
install_init() {
    cat >"$1" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
words=$(cat /proc/cmdline)
me=${words##*me=}
me=${me%% *}
if [ ! -e /installed ]; then
    mkdir -p /usr/share/app
    for n in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c ${n}0000 /dev/urandom >/usr/share/app/$n; done
    (cd /usr/share/app && sha256sum *) >/installed.new
    echo "$me" >/me
    sync
    mv /installed.new /installed
    sync
    echo installed
fi
(cd /usr/share/app && sha256sum -c -s /installed) && echo intact || echo broken
read -r was </me
read -r n </count || n=0
echo "$me here, installed as $was, found $n"
case $words in *work*)
    while :; do
        n=$((n + 1))
        head -c 30000 /dev/urandom >/var/$((n % 7))
        echo $n >/count.new
        sync
        mv /count.new /count
        sync
        # Only now may anybody rely on it.
        echo "synced $n"
    done
    ;;
esac
mount -o remount,ro /
echo ended
poweroff -f
INIT
    chmod 755 "$1"
}

make_disk() {
    local root=$1/root
    mkdir -p "$root"/{bin,sbin,dev,proc,var,usr}
    cp /bin/busybox "$root/bin/"
    for tool in sh mount cat head sha256sum mkdir mv sync poweroff read; do ln -s busybox "$root/bin/$tool"; done
    install_init "$root/sbin/init"
    echo 0 >"$root/count"
    truncate -s 64M "$2"
    mkfs.ext4 -q -F -L golden -E root_owner=0:0 -d "$root" "$2"
}

make_initrd() {
    local kernel=$1 root=$2/initrd release module file
    release=$(cat "$kernel/version")
    mkdir -p "$root"/{bin,dev,proc,root,lib/modules/"$release"}
    cp /bin/busybox "$root/bin/"
    cp "$kernel/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$release/"
    for module in virtio_pci virtio_blk ext4 crc32c_generic; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        install -D -m 644 "$file" "$root/${file#"$kernel"/}"
    done
    depmod -b "$root" "$release"
    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo booting
for module in virtio_pci virtio_blk crc32c_generic ext4; do modprobe -q $module; done
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "there is no disk"; poweroff -f; }
    sleep 0.05
done
mount -t ext4 /dev/vda /root || poweroff -f
mount --move /dev /root/dev
umount /proc
exec switch_root /root /sbin/init
INIT
    chmod 755 "$root/init"
    # Uncompressed: QEMU loads it at once.
    (cd "$root" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) >"$3"
}

main() {
    local work
    [ "${1:-}" != -h ] || { usage && return; }
    [ $# = 2 ] || { usage >&2 && exit 2; }
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # expanded now: the trap runs after main's variables are gone
    trap "rm -rf '$work'" EXIT
    mkdir -p "$2"
    make_disk "$work" "$2/disk.img"
    make_initrd "$1" "$work" "$2/initrd"
    if [ -e "$1/vmlinux" ]; then ln -sfn "$1/vmlinux" "$2/kernel"; else ln -sfn "$1/vmlinuz" "$2/kernel"; fi
}

main "$@"
