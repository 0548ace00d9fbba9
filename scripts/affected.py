#!/usr/bin/env python3
"""Which files lie in the sectors of a volume that cannot be read.

usage: objblk check NAME --data --json | affected.py NAME IMAGE [OFFSET]

IMAGE is where the volume is read: its device, or its file below `objblk mount`. OFFSET, in bytes, is where the
file system begins in it (a partition); 0 if left out. Knows ext2 to ext4 (by debugfs) and xfs (by xfs_db, which
reads all of its metadata). Prints a line for each file, with how many blocks of the file system it has there. Exit
code 1 if that cannot be told.
"""
import collections
import json
import re
import struct
import subprocess
import sys

SECTOR = 512
# Blocks that are asked for at once.
BATCH = 500


def runs_of(report, name):
    """Pairs of first byte and end, of what cannot be read of `name`."""
    for volume in report["volumes"]:
        for affected in volume["affected"]:
            if affected["name"] != name:
                continue
            if affected["whole"]:
                sys.exit(f"{name} cannot be read at all")
            for run in affected["runs"]:
                yield run["sector"] * SECTOR, (run["sector"] + run["count"]) * SECTOR


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.stdout


def numbered(pattern, command, numbers):
    """What debugfs says of each of these numbers."""
    told, numbers = {}, sorted(numbers)
    for first in range(0, len(numbers), BATCH):
        asked = " ".join(map(str, numbers[first : first + BATCH]))
        for line in run(*(word.replace("ASKED", asked) for word in command)).splitlines():
            found = re.fullmatch(pattern, line)
            if found:
                told[int(found[1])] = found[2]
    return told


def ext(image, offset, size, blocks):
    """Paths of blocks; None where no file has it."""
    at = f"{image}?offset={offset}" if offset else image
    owner = numbered(r"(\d+)\t(\d+)", ("debugfs", "-R", "icheck ASKED", at), blocks)
    inodes = {int(inode) for inode in owner.values()}
    paths = numbered(r"(\d+)\t(.*)", ("debugfs", "-R", "ncheck ASKED", at), inodes)
    for block in sorted(blocks):
        inode = owner.get(block)
        yield None if inode is None else paths.get(int(inode), f"inode {inode}")


def xfs(image, offset, size, blocks):
    """The same."""
    if offset:
        sys.exit("xfs is read from a device or file of its own: name that of the partition")
    with open(image, "rb") as file:
        head = file.read(SECTOR)
    per_group, log = struct.unpack_from(">I", head, 84)[0], head[124]
    owner, paths, blocks = {}, {}, sorted(blocks)
    for first in range(0, len(blocks), BATCH):
        numbers = [divmod(block, per_group) for block in blocks[first : first + BATCH]]
        asked = " ".join(f"-b {group << log | at}" for group, at in numbers)
        for line in run("xfs_db", "-r", "-c", f"blockget -n {asked}", image).splitlines():
            found = re.fullmatch(r"setting inode to (\d+) for block (\d+)/(\d+)", line)
            if found:
                owner[int(found[2]) * per_group + int(found[3])] = int(found[1])
    asked = " ".join(f"-i {inode}" for inode in sorted(set(owner.values())))
    if asked:
        told = run("xfs_db", "-r", "-c", "blockget -n", "-c", f"ncheck {asked}", image)
        for line in told.splitlines():
            found = re.fullmatch(r"\s*(\d+) (.*)", line)
            if found:
                paths[int(found[1])] = found[2]
    for block in blocks:
        inode = owner.get(block)
        yield None if inode is None else paths.get(inode, f"inode {inode}")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.strip())
    name, image = sys.argv[1:3]
    offset = int(sys.argv[3]) if len(sys.argv) == 4 else 0
    lost = list(runs_of(json.load(sys.stdin), name))
    if not lost:
        print(f"all of {name} can be read")
        return
    with open(image, "rb") as file:
        file.seek(offset)
        head = file.read(4096)
    if head[:4] == b"XFSB":
        look, size = xfs, struct.unpack_from(">I", head, 4)[0]
    elif head[1080:1082] == b"\x53\xef":
        look, size = ext, 1024 << struct.unpack_from("<I", head, 1048)[0]
    else:
        sys.exit(f"there is no file system at byte {offset} of {image} that is known here")
    blocks = set()
    for begin, end in lost:
        begin, end = max(begin - offset, 0), end - offset
        blocks.update(range(begin // size, max(end + size - 1, 0) // size))
    counts = collections.Counter(look(image, offset, size, blocks))
    nobodys = counts.pop(None, 0)
    for path, count in sorted(counts.items()):
        print(f"{count:>8}  {path}")
    if nobodys:
        print(f"{nobodys:>8}  (no file's: metadata, or free)")


main()
