#!/usr/bin/python3
"""What a file system sent to its disk, as dm-log-writes has recorded it: sent to another disk.

usage: replay-log.py marks LOG                 prints the number of entries that are flush marks (FLUSH, FUA),
                                               and the number of those before the mark `made`
       replay-log.py play LOG DEVICE IMAGE FROM TO
                                               plays the entries from flush mark FROM (0: the beginning) up to
                                               and with flush mark TO, to DEVICE, flushed at every such mark,
                                               and to the file IMAGE, which is what DEVICE then must hold

The format is that of Documentation/admin-guide/device-mapper/log-writes.rst of the kernel: a superblock
of one sector, then entries of one sector, each followed by its data. An entry's flush comes before its
data, its FUA behind them; the kernel has ordered the entries so that all that a flush covers is before it.
"""
import fcntl
import mmap
import os
import struct
import sys

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
BLKDISCARD = 0x1277


def entries(log):
    """(flags, offset, length, data or label) of each entry."""
    magic, version, count, sector = struct.unpack("<QQQI", log.read(28))
    if magic != MAGIC or version != 1:
        sys.exit(f"not a log of dm-log-writes: magic {magic:#x}, version {version}")
    log.seek(sector)
    for _ in range(count):
        head = log.read(sector)
        if len(head) != sector:
            sys.exit("the log ends in the middle of an entry")
        at, length, flags, label = struct.unpack("<QQQQ", head[:32])
        if flags & MARK:
            yield flags, 0, 0, head[32:32 + label]
            continue
        length *= sector
        data = b"" if flags & DISCARD else log.read(length)
        if not flags & DISCARD and len(data) != length:
            sys.exit("the log ends in the middle of an entry's data")
        yield flags, at * sector, length, data


def is_flush(entry):
    return bool(entry[0] & (FLUSH | FUA))


class Device:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        # Aligned, as O_DIRECT wants it.
        self.buffer = mmap.mmap(-1, 1 << 20)

    def write(self, offset, data):
        for at in range(0, len(data), len(self.buffer)):
            part = data[at:at + len(self.buffer)]
            self.buffer[:len(part)] = part
            with memoryview(self.buffer) as view, view[:len(part)] as some:
                if os.pwritev(self.fd, [some], offset + at) != len(part):
                    sys.exit("short write")

    def discard(self, offset, length):
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, length))

    def flush(self):
        os.fsync(self.fd)


class Image:
    def __init__(self, path):
        self.file = open(path, "r+b")

    def write(self, offset, data):
        self.file.seek(offset)
        self.file.write(data)

    def discard(self, offset, length):
        self.write(offset, bytes(length))

    def flush(self):
        self.file.flush()


def play(log, targets, first, last):
    mark = 0
    for entry in entries(log):
        flags, offset, length, data = entry
        # Entries up to and with mark `first` have been played.
        played = mark < first
        mark += is_flush(entry)
        if played:
            continue
        for target in targets:
            if flags & FLUSH:
                target.flush()
            if flags & DISCARD:
                target.discard(offset, length)
            elif data and not flags & MARK:
                target.write(offset, data)
            if is_flush(entry):
                target.flush()
        if mark == last:
            return
    sys.exit(f"the log has no flush mark {last}")


def main():
    if sys.argv[1:2] == ["marks"] and len(sys.argv) == 3:
        marks = made = 0
        with open(sys.argv[2], "rb") as log:
            for entry in entries(log):
                marks += is_flush(entry)
                if entry[0] & MARK and entry[3] == b"made":
                    made = marks
        print(marks, made)
    elif sys.argv[1:2] == ["play"] and len(sys.argv) == 7:
        with open(sys.argv[2], "rb") as log:
            targets = [Device(sys.argv[3]), Image(sys.argv[4])]
            play(log, targets, int(sys.argv[5]), int(sys.argv[6]))
    else:
        sys.exit(__doc__)


main()
