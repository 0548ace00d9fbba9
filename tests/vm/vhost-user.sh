#!/bin/bash
# A disk of QEMU's vhost-user-blk, whose backend is killed under load. Runs as root in a guest; the disk is
# /dev/vda. Prints `load` when the load has begun (the other side kills then), `verified` and `done`.
set -euo pipefail
disk=/dev/vda mount=/mnt
name=$(cat /sys/block/vda/serial)
[ "${#name}" = 20 ] || { echo "FAIL  the serial is '$name'"; exit 1; }
echo "serial $name"
[ "$(cat /sys/block/vda/queue/write_cache)" = "write back" ]
[ "$(cat /sys/block/vda/queue/discard_max_bytes)" -gt 0 ]
[ "$(find /sys/block/vda/mq -mindepth 1 -maxdepth 1 | wc -l)" -gt 1 ]
mkfs.ext4 -q -F "$disk"
mount "$disk" $mount
echo "load"
fio --name=load --directory=$mount --size=48m --rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=16 \
    --direct=1 --fsync=4 --time_based --runtime="${FIO_SECONDS:-12}" --verify=crc32c --verify_backlog=64 \
    --verify_fatal=1 --output-format=terse >/tmp/fio.out 2>&1 ||
    { echo "FAIL  fio: $(tail -5 /tmp/fio.out)"; exit 1; }
echo "verified"
umount $mount
# The page cache is not asked: what is on the disk.
e2fsck -fn "$disk" >/dev/null
! dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs error|vda: .*(timeout|reset)'
echo "done"
