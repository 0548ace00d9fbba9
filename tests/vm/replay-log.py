#!/usr/bin/python3
"""What a file system sent to its disk, as dm-log-writes has recorded it: sent to another disk.

usage: replay-log.py marks LOG                 prints the number of entries that are flush marks (FLUSH, FUA),
                                               and the number of those before the mark `made`
       replay-log.py play LOG DEVICE IMAGE FROM TO
                                               plays the entries from flush mark FROM (0: the beginning) up to
                                               and with flush mark TO, to DEVICE, flushed at every such mark,
                                               and to the file IMAGE; then those behind TO up to the next
                                               mark, to DEVICE alone, and never flushed
       replay-log.py judge LOG DEVICE IMAGE TO
                                               after that and a crash: DEVICE must hold IMAGE and the first so
                                               many of the entries that were not flushed, or exit code 1. Prints
                                               how many

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
# Bytes of one request: none is split.
STEP = 128 << 10


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


def changes(entry):
    """(offset, data) of an entry, in the order in which they are sent: one at a time."""
    flags, offset, length, data = entry
    if flags & DISCARD:
        yield offset, bytes(length)
    elif not flags & MARK:
        for at in range(0, length, STEP):
            yield offset + at, data[at:at + STEP]


class Device:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        # Aligned, as O_DIRECT wants it.
        self.buffer = mmap.mmap(-1, STEP)

    def play(self, entry):
        flags, offset, length, _ = entry
        if flags & DISCARD:
            fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, length))
            return
        for at, data in changes(entry):
            self.buffer[:len(data)] = data
            with memoryview(self.buffer) as view, view[:len(data)] as part:
                if os.pwritev(self.fd, [part], at) != len(data):
                    sys.exit("short write")

    def flush(self):
        os.fsync(self.fd)

    def read(self):
        all_of_it = bytearray()
        while got := os.preadv(self.fd, [self.buffer], len(all_of_it)):
            all_of_it += self.buffer[:got]
        return all_of_it


class Image:
    def __init__(self, path):
        self.file = open(path, "r+b")

    def play(self, entry):
        for at, data in changes(entry):
            self.file.seek(at)
            self.file.write(data)

    def flush(self):
        self.file.flush()

    def read(self):
        self.file.seek(0)
        return bytearray(self.file.read())


def play(log, device, image, first, last):
    mark = 0
    for entry in entries(log):
        # Entries up to and with mark `first` have been played.
        played = mark < first
        mark += is_flush(entry)
        if played:
            continue
        if mark > last:
            return
        # Behind the last mark: only entries that nothing flushes.
        targets = [device] if mark == last and not is_flush(entry) else [device, image]
        for target in targets:
            if entry[0] & FLUSH:
                target.flush()
            target.play(entry)
            if is_flush(entry):
                target.flush()
    if mark < last:
        sys.exit(f"the log has no flush mark {last}")


def behind(log, last):
    """The changes behind flush mark `last` that nothing flushed."""
    mark = 0
    for entry in entries(log):
        mark += is_flush(entry)
        if mark > last:
            return
        if mark == last and not is_flush(entry):
            yield from changes(entry)


def torn(found, image, at, data):
    """Whether `found` is `image` with some of the sectors of one change more."""
    end = at + len(data)
    if found[:at] != image[:at] or found[end:] != image[end:]:
        return False
    sectors = range(at, end, 512)
    return all(found[s:s + 512] in (image[s:s + 512], data[s - at:s - at + 512]) for s in sectors)


def judge(log, device, image, last):
    found, flushed, pending = device.read(), image.read(), list(behind(log, last))

    def prefix(fits):
        """The longest prefix of which that is true."""
        longest, image = None, flushed[:]
        for kept, (at, data) in enumerate([*pending, (0, b"")]):
            if fits(image, at, data):
                longest = kept
            image[at:at + len(data)] = data
        return longest

    kept = prefix(lambda image, at, data: found == image)
    if kept is None:
        kept = prefix(lambda image, at, data: torn(found, image, at, data))
    if kept is None:
        sys.exit("what is there is not what was flushed and a prefix of what was not")
    print(f"kept {kept} of {len(pending)} changes that were not flushed")


def main():
    verb, arguments = sys.argv[1:2], sys.argv[2:]
    if (verb, len(arguments)) not in ((["marks"], 1), (["play"], 5), (["judge"], 4)):
        sys.exit(__doc__)
    with open(arguments[0], "rb") as log:
        if verb == ["marks"]:
            marks = made = 0
            for entry in entries(log):
                marks += is_flush(entry)
                if entry[0] & MARK and entry[3] == b"made":
                    made = marks
            print(marks, made)
            return
        device, image = Device(arguments[1]), Image(arguments[2])
        numbers = map(int, arguments[3:])
        (play if verb == ["play"] else judge)(log, device, image, *numbers)


main()
