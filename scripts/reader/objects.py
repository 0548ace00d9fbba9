"""The objects of a pool, byte by byte: written from the documentation of `src/format`.

Every parser takes untrusted bytes and gives a structure or `Damage`. Numbers are little-endian,
ids are UUIDs in text, positions and lengths are in sectors of 512 bytes unless said otherwise.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crc import crc32c

SECTOR = 512
FRAME_SECTORS = 128
LEAF_SECTORS = 1 << 17
LEAVES_PER_PAGE = 1 << 10
SLOTS_PER_PAGE = 1 << 12
HEADER_MAX = 8 << 20
NONE = "00000000-0000-0000-0000-000000000000"
# Feature bits that make a difference to a reader, of those that are known.
INCOMPAT_CLONE = 1
INCOMPAT_LZ4 = 1 << 8
INCOMPAT_ZSTD = 1 << 9
INCOMPAT_ENCRYPTED = 1 << 10
INCOMPAT_SEVERAL = 1 << 14
INCOMPAT_KNOWN = INCOMPAT_CLONE | INCOMPAT_LZ4 | INCOMPAT_SEVERAL

# How frames are compressed.
PLAIN, LZ4 = 0, 1

DATA, ZERO, TRIM, EPOCH_START, RESIZE, CLOSE, MADE, DELETED, ROLLED_BACK = range(1, 10)


class Damage(Exception):
    """An object is missing, is not what it has to be, or needs a newer reader."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Unknown(Damage):
    """What is there is whole, as far as this reader can tell, and more than it knows."""


class Cursor:
    """Reads the fields of an object one after the other."""

    def __init__(self, what: str, data: bytes) -> None:
        self.what, self.data, self.at = what, data, 0

    def bad(self, why: str) -> Damage:
        """What is wrong here."""
        return Damage(self.what, f"{why} (at byte {self.at})")

    def take(self, length: int) -> bytes:
        """The next bytes."""
        taken = self.data[self.at : self.at + length]
        if len(taken) < length:
            raise self.bad("ends too early")
        self.at += length
        return taken

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """The next fields, in the notation of `struct`."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def number(self, layout: str) -> int:
        """One number: B, H, I or Q."""
        return int(self.unpack(layout)[0])

    def id(self) -> str:
        """An id of 16 bytes."""
        return str(uuid.UUID(bytes=self.take(16)))

    def zeros(self, length: int) -> None:
        """Reserved bytes."""
        if any(self.take(length)):
            raise self.bad("reserved bytes are in use: a newer reader is needed")

    def head(self, magic: bytes, newest: int = 1) -> int:
        """Magic and version."""
        if self.take(8) != magic:
            raise self.bad(f"does not begin with {magic.decode()}")
        version = self.number("H")
        if not 1 <= version <= newest:
            raise self.bad(f"has version {version}: a newer reader is needed")
        return version

    def end(self) -> None:
        """Nothing may follow."""
        if self.at != len(self.data):
            raise self.bad(f"has {len(self.data) - self.at} bytes too many")


def sealed(what: str, data: bytes) -> bytes:
    """The object without the crc32c that ends it."""
    if len(data) < 4 or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Damage(what, "its checksum is wrong")
    return data[:-4]


def parse_json(what: str, data: bytes) -> dict[str, Any]:
    """A JSON object, whose last member is the checksum of the text without that member."""
    match = re.fullmatch(rb'(.*),\n  "crc32c": "([0-9a-f]{8})"\n}\n', data, re.DOTALL)
    if not match or crc32c(match[1] + b"\n}\n") != int(match[2], 16):
        raise Damage(what, "its checksum is wrong")
    try:
        value = json.loads(match[1] + b"\n}\n")
    except ValueError as error:
        raise Damage(what, f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damage(what, "is no JSON object")
    return value


def check_features(what: str, description: dict[str, Any]) -> None:
    """Refuses what cannot be read right without knowing of it."""
    if description.get("version") != 1:
        raise Unknown(what, f"has version {description.get('version')}: a newer reader is needed")
    features = description.get("features")
    bits = features.get("incompat") if isinstance(features, dict) else None
    if not isinstance(bits, int):
        raise Damage(what, "lacks its feature bits")
    if bits & INCOMPAT_ZSTD:
        raise Unknown(what, "is compressed with zstd, which this reader does not know: read it with objblk")
    if bits & INCOMPAT_ENCRYPTED:
        raise Unknown(what, "is encrypted, which this reader does not know: read it with objblk")
    unknown = bits & ~INCOMPAT_KNOWN
    if unknown:
        raise Unknown(what, f"has unknown incompat features {unknown:#x}: a newer reader is needed")


class Item(NamedTuple):
    """Where a leaf or a page is, and the checksum of its bytes."""

    epoch: int
    number: int
    offset: int
    length: int
    crc: int


class Extent(NamedTuple):
    """Sectors of a volume that lie in a chunk."""

    start: int
    length: int
    seq: int
    offset: int


def parse_leaf(what: str, data: bytes, index: int) -> list[Extent]:
    """The extents of leaf `index`, by their place on the volume."""
    cursor, extents, end = Cursor(what, data), [], 0
    for _ in range(cursor.number("I")):
        seq, shape = cursor.unpack("QQ")
        start, length, offset = shape & 0x1FFFF, (shape >> 17 & 0x1FFFF) + 1, shape >> 34 & 0x1FFFF
        if seq >> 48 or shape >> 51 or start < end or start + length > LEAF_SECTORS:
            raise cursor.bad("has an extent that cannot be")
        end = start + length
        extents.append(Extent(index * LEAF_SECTORS + start, length, seq, offset))
    cursor.end()
    return extents


def parse_map_page(what: str, data: bytes) -> list[tuple[int, Item]]:
    """Leaves by their index in the page."""
    cursor = Cursor(what, data)
    page = [(cursor.number("I"), Item(*cursor.unpack("QIIII"))) for _ in range(cursor.number("I"))]
    cursor.end()
    _ascending(cursor, [index for index, _ in page], LEAVES_PER_PAGE)
    return page


def parse_chunk_page(what: str, data: bytes) -> list[tuple[int, int, int]]:
    """For each slot in use: its index in the page, live sectors, all sectors (0: not known)."""
    cursor = Cursor(what, data)
    words = [cursor.unpack("II") for _ in range(cursor.number("I"))]
    cursor.end()
    page = [(word & 0xFFF, live, word >> 12) for word, live in words]
    _ascending(cursor, [index for index, _, _ in page], SLOTS_PER_PAGE)
    return page


def _ascending(cursor: Cursor, numbers: list[int], limit: int) -> None:
    if any(a >= b for a, b in zip(numbers, numbers[1:])) or any(n >= limit for n in numbers):
        raise cursor.bad("has entries that are out of order")


@dataclass
class Snapshot:
    """A snapshot, as the table of a checkpoint has it."""

    id: str
    next: int
    made_at_ms: int
    size: int
    live: int
    oldest: int
    before: str
    flags: int
    name: str

    @property
    def deleted(self) -> bool:
        """It is kept only because others came from it."""
        return bool(self.flags & 1)


def _snapshot(cursor: Cursor) -> Snapshot:
    id, (next_seq, made, size, live, oldest), before = cursor.id(), cursor.unpack("QQQQQ"), cursor.id()
    flags, length = cursor.unpack("BB")
    if flags & ~3:
        raise cursor.bad("has unknown flags: a newer reader is needed")
    try:
        name = cursor.take(length).decode("ascii")
    except UnicodeDecodeError as error:
        raise cursor.bad("has a name that cannot be") from error
    return Snapshot(id, next_seq, made, size, live, oldest, before, flags, name)


@dataclass
class Checkpoint:
    """The state of a volume as of a position of its log."""

    volume: str
    epoch: int
    next: int
    closed: bool
    size: int
    live: int = 0
    made_at_ms: int = 0
    terms: list[tuple[int, int]] = field(default_factory=list)
    # Object (epoch, number): bytes of items in all, and of those that are referenced.
    map_objects: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    map_root: dict[int, Item] = field(default_factory=dict)
    chunk_root: dict[int, Item] = field(default_factory=dict)
    garbage: list[tuple[int, int, int]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    # How long the past is kept; positions and epochs of older checkpoints that are, the oldest first.
    retention_ms: int = 0
    points: list[tuple[int, int]] = field(default_factory=list)


def parse_checkpoint(what: str, data: bytes) -> Checkpoint:
    """A whole checkpoint."""
    Cursor(what, data).head(b"OBJBLKCP", 2)
    cursor = Cursor(what, sealed(what, data))
    version = cursor.head(b"OBJBLKCP", 2)
    closed = cursor.number("B")
    cursor.zeros(5)
    volume, (epoch, next_seq, size, live, made) = cursor.id(), cursor.unpack("QQQQQ")
    snapshots, terms, objects, map_pages, chunk_pages, garbage = cursor.unpack("IIIIII")
    state = Checkpoint(volume, epoch, next_seq, closed == 1, size, live, made)
    points = 0
    if version == 2:
        state.retention_ms, points = cursor.unpack("QI")
        cursor.zeros(4)
    state.terms = [cursor.unpack("QQ") for _ in range(terms)]
    for _ in range(objects):
        object_epoch, number, total, used = cursor.unpack("QIII")
        state.map_objects[object_epoch, number] = (total, used)
    for _ in range(map_pages):
        index = cursor.number("I")
        state.map_root[index] = Item(*cursor.unpack("QIIII"))
    for _ in range(chunk_pages):
        index = cursor.number("Q")
        state.chunk_root[index] = Item(*cursor.unpack("QIIII"))
    state.garbage = [cursor.unpack("IQQ") for _ in range(garbage)]
    state.snapshots = [_snapshot(cursor) for _ in range(snapshots)]
    state.points = [(at, point_epoch) for at, point_epoch, _, _ in (cursor.unpack("QQQQ") for _ in range(points))]
    cursor.end()
    places = [at for at, _ in state.points] + [next_seq]
    if any(a >= b for a, b in zip(places, places[1:])):
        raise Damage(what, "has points that are out of order")
    if not state.terms or any(a[0] >= b[0] or a[1] >= b[1] for a, b in zip(state.terms, state.terms[1:])):
        raise Damage(what, "has terms that are out of order")
    return state


def parse_snapshot(what: str, data: bytes) -> tuple[Snapshot, Checkpoint]:
    """The object of a snapshot: what the table says of it, and the state."""
    Cursor(what, data).head(b"OBJBLKSN")
    cursor = Cursor(what, sealed(what, data))
    cursor.head(b"OBJBLKSN")
    cursor.zeros(6)
    volume, entry = cursor.id(), _snapshot(cursor)
    state = parse_checkpoint(what, cursor.data[cursor.at :])
    if (state.volume, state.next, state.size) != (volume, entry.next, entry.size):
        raise Damage(what, "has the state of something else")
    return entry, state


@dataclass
class Fence:
    """The end of an owner's term."""

    volume: str
    epoch: int
    seq: int
    next_epoch: int
    owner: str


def parse_fence(what: str, data: bytes) -> Fence:
    """A whole fence."""
    cursor = Cursor(what, sealed(what, data))
    cursor.head(b"OBJBLKFE")
    cursor.zeros(6)
    volume, (epoch, seq, next_epoch, length) = cursor.id(), cursor.unpack("QQQI")
    owner = cursor.take(length).decode("utf-8", "replace")
    cursor.end()
    if next_epoch <= epoch:
        raise Damage(what, f"leads from epoch {epoch} back to {next_epoch}")
    return Fence(volume, epoch, seq, next_epoch, owner)


class Record(NamedTuple):
    """One change: of `length` sectors from `start` on, or with a `value` (size or snapshot)."""

    tag: int
    start: int = 0
    length: int = 0
    offset: int = 0
    value: Any = None


@dataclass
class Chunk:
    """The header of a chunk."""

    volume: str
    epoch: int
    seq: int
    committed: int
    payload: int
    header_len: int
    records: list[Record]
    codec: int
    # Of each frame: length in the object in bytes, crc32c of that, length of the payload.
    frames: list[tuple[int, int, int]]


def chunk_header_len(what: str, data: bytes) -> int:
    """The length of the header that begins with `data`."""
    cursor = Cursor(what, data)
    cursor.head(b"OBJBLKCH")
    cursor.take(66)
    length = cursor.number("I")
    if not 84 <= length <= HEADER_MAX:
        raise cursor.bad(f"has a header of {length} bytes")
    return length


def parse_chunk(what: str, data: bytes) -> Chunk:
    """A header, all of which is in `data`."""
    length = chunk_header_len(what, data)
    if len(data) < length:
        raise Damage(what, "ends inside its header")
    cursor = Cursor(what, sealed(what, data[:length]))
    cursor.head(b"OBJBLKCH")
    codec, cipher = cursor.unpack("BB")
    if codec not in (PLAIN, LZ4) or cipher:
        raise cursor.bad(f"has codec {codec} and cipher {cipher}: a newer reader is needed")
    cursor.zeros(4)
    volume, (epoch, seq, committed, _) = cursor.id(), cursor.unpack("QQQQ")
    record_count, frame_count, payload, _ = cursor.unpack("IIII")
    if committed > seq or frame_count != -(-payload // FRAME_SECTORS):
        raise cursor.bad("has numbers that do not fit each other")
    records = [_record(cursor, payload) for _ in range(record_count)]
    frames = [cursor.unpack("II") for _ in range(frame_count)]
    cursor.end()
    payloads = [SECTOR * min(FRAME_SECTORS, payload - at) for at in range(0, payload, FRAME_SECTORS)]
    # A frame that did not get smaller is stored as it is.
    least = [1 if codec == LZ4 else size for size in payloads]
    if any(not a <= size <= b for a, (size, _), b in zip(least, frames, payloads)):
        raise cursor.bad("has frames of other lengths than their payload")
    all_of = [(size, crc, of) for (size, crc), of in zip(frames, payloads)]
    return Chunk(volume, epoch, seq, committed, payload, length, records, codec, all_of)


def open_frame(what: str, data: bytes, frame: tuple[int, int, int]) -> bytes:
    """The payload of a frame out of its bytes in the object."""
    length, crc, payload = frame
    if len(data) != length or crc32c(data) != crc:
        raise Damage(what, "its checksum is wrong")
    return data if length == payload else lz4_block(what, data, payload)


def lz4_block(what: str, data: bytes, length: int) -> bytes:
    """What an LZ4 block of so many bytes unpacks to: literals and copies of what is there already."""
    out, at = bytearray(), 0

    def more(number: int) -> int:
        nonlocal at
        while number >= 15:
            at += 1
            number += data[at - 1]
            if data[at - 1] != 255:
                break
        return number

    try:
        while True:
            token, at = data[at], at + 1
            literals = more(token >> 4)
            if at + literals > len(data) or len(out) + literals > length:
                break
            out += data[at : at + literals]
            at += literals
            if at == len(data):
                break
            offset, at = data[at] | data[at + 1] << 8, at + 2
            size = more(token & 15) + 4
            if not 1 <= offset <= len(out) or len(out) + size > length:
                break
            start = len(out) - offset
            copied = bytes(out[start : start + size])
            out += (copied * (size // len(copied) + 1))[:size]
    except IndexError:
        pass
    if at != len(data) or len(out) != length:
        raise Damage(what, "does not unpack to its payload")
    return bytes(out)


BODIES = {DATA: "QII", ZERO: "QQ", TRIM: "QQ", EPOCH_START: "", RESIZE: "Q", CLOSE: ""}


def _record(cursor: Cursor, payload: int) -> Record:
    tag, zero, length = cursor.unpack("BBH")
    if zero or not 1 <= tag <= ROLLED_BACK:
        raise cursor.bad(f"has a record of kind {tag}: a newer reader is needed")
    if length != (struct.calcsize("<" + BODIES[tag]) if tag in BODIES else 16):
        raise cursor.bad(f"has a record of kind {tag} of {length} bytes")
    if tag not in BODIES:
        return Record(tag, value=cursor.id())
    body = cursor.unpack(BODIES[tag])
    if tag == RESIZE:
        return Record(tag, value=body[0])
    if tag == DATA and body[2] + body[1] > payload:
        raise cursor.bad("has a record of data that it does not hold")
    return Record(tag, *body)


def parse_directory(what: str, data: bytes, who: tuple[str, int, int]) -> int:
    """Verifies a map object: its header, that of `who` (volume, epoch, number), and its directory.

    Returns the bytes of all items."""
    Cursor(what, data).head(b"OBJBLKMP")
    cursor = Cursor(what, sealed(what, data[:48]))
    cursor.head(b"OBJBLKMP")
    cursor.zeros(6)
    if (cursor.id(), *cursor.unpack("QI")) != who:
        raise Damage(what, "is another object than its name says")
    if len(data) < 48 + 16:
        raise Damage(what, "ends too early")
    count = struct.unpack("<I", data[-16:-12])[0]
    begin = len(data) - 16 - 20 * count
    if begin < 48:
        raise Damage(what, "has a directory that cannot be")
    cursor, total = Cursor(what, sealed(what, data[begin:])), 0
    for _ in range(count):
        kind = cursor.number("B")
        cursor.zeros(3)
        offset, _, length = cursor.unpack("IQI")
        if not 1 <= kind <= 3 or offset < 48 or offset + length > begin:
            raise cursor.bad("has a directory that cannot be")
        total += length
    return total
