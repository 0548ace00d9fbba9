#!/bin/bash
# Two disks of QEMU's vhost-user-blk, whose backends are killed under load. Runs as root in a guest; the disks
# are /dev/vda with split rings and /dev/vdb with packed ones. Prints `load` when the load has begun (the other
# side kills then), `verified` and `done`.
set -euo pipefail
for disk in vda vdb; do
    block=/sys/block/$disk
    name=$(cat $block/serial)
    [ "${#name}" = 20 ] || { echo "FAIL  the serial is '$name'"; exit 1; }
    # Of the features, VIRTIO_F_RING_PACKED.
    features=$(cat $block/device/features) packed=0
    [ $disk = vda ] || packed=1
    [ "${features:34:1}" = $packed ] || { echo "FAIL  the features of $disk are $features"; exit 1; }
    echo "$disk has the serial $name, packed rings: $packed"
    [ "$(cat $block/queue/write_cache)" = "write back" ]
    [ "$(cat $block/queue/discard_max_bytes)" -gt 0 ]
    [ "$(find $block/mq -mindepth 1 -maxdepth 1 | wc -l)" -gt 1 ]
    mkfs.ext4 -q -F /dev/$disk
    mkdir -p /mnt/$disk
    mount /dev/$disk /mnt/$disk
done
echo "load"
fio --size=48m --rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=16 --direct=1 --fsync=4 --time_based \
    --runtime="${FIO_SECONDS:-12}" --verify=crc32c --verify_backlog=64 --verify_fatal=1 --output-format=terse \
    --name=split --directory=/mnt/vda --name=packed --directory=/mnt/vdb >/tmp/fio.out 2>&1 ||
    { echo "FAIL  fio: $(tail -5 /tmp/fio.out)"; exit 1; }
echo "verified"
for disk in vda vdb; do
    umount /mnt/$disk
    # The page cache is not asked: what is on the disk.
    e2fsck -fn /dev/$disk >/dev/null
done
! dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs error|vd[ab]: .*(timeout|reset)'
echo "done"
