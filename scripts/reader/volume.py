"""Volumes of a pool: what the objects say that they hold.

The rules are those of `src/format/mod.rs`, "Reading a volume": the newest checkpoint, then the log
behind it, slot by slot, through the fences. Nothing is trusted that was not verified.
"""

from __future__ import annotations

import bisect
import re
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, NamedTuple, Optional, TypeVar

import objects
from crc import crc32c
from objects import FRAME_SECTORS, LEAF_SECTORS, LEAVES_PER_PAGE, SECTOR, Chunk, Damage, Item
from stores import Store

# Bytes that are fetched of a chunk to have its header, and frames that are kept.
HEADER_GUESS = 32 << 10
FRAMES_KEPT = 512
# Frames that one request fetches.
FRAMES_AT_ONCE = 64
# The slot of what is in no chunk.
NOWHERE = -1


T = TypeVar("T")


class NotFound(Exception):
    """There is no such volume or snapshot."""


class Run(NamedTuple):
    """Sectors that lie together in the chunk `seq` from `offset` on, or are zeros (`seq` is `NOWHERE`)."""

    start: int
    end: int
    seq: int = NOWHERE
    offset: int = 0

    def cut(self, start: int, end: int) -> Run:
        """The part of it between `start` and `end`."""
        start, end = max(start, self.start), min(end, self.end)
        return Run(start, end, self.seq, self.offset + start - self.start)


class Runs:
    """Runs that do not overlap, in order. What is put later wins."""

    def __init__(self, runs: Optional[list[Run]] = None) -> None:
        self.runs: list[Run] = runs or []

    def put(self, run: Run) -> None:
        """Replaces what is there."""
        if run.start >= run.end:
            return
        first, last = self._touched(run.start, run.end)
        kept = [old.cut(old.start, run.start) for old in self.runs[first:last] if old.start < run.start]
        after = [old.cut(run.end, old.end) for old in self.runs[first:last] if old.end > run.end]
        self.runs[first:last] = kept + [run] + after

    def between(self, start: int, end: int) -> list[Run]:
        """What is there, cut to that range."""
        first, last = self._touched(start, end)
        return [run.cut(start, end) for run in self.runs[first:last]]

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        first = bisect.bisect_right(self.runs, (start,))
        if first and self.runs[first - 1].end > start:
            first -= 1
        return first, bisect.bisect_left(self.runs, (end,))


@dataclass
class State:
    """What a volume is, now or at a snapshot: a tree of extents, and changes since."""

    volume: Volume
    size: int
    map_root: dict[int, Item]
    terms: list[tuple[int, int]]
    # The state that the tree and the accounts are those of.
    checkpoint: objects.Checkpoint
    changes: Runs = field(default_factory=Runs)
    # Snapshots that there are, by name.
    snapshots: dict[str, objects.Snapshot] = field(default_factory=dict)
    # Where the log ends: the first missing slot, and its epoch.
    end: tuple[int, int] = (0, 0)

    def epoch_of(self, seq: int) -> int:
        """In which epoch a slot was written."""
        after = bisect.bisect_right(self.terms, (seq, 1 << 64))
        return self.terms[max(after - 1, 0)][1]

    def leaves(self) -> Iterator[tuple[int, Optional[Item]]]:
        """Leaves of the volume that may hold something, in order."""
        changed = sorted(
            {
                leaf
                for run in self.changes.runs
                if run.seq != NOWHERE
                for leaf in range(run.start // LEAF_SECTORS, (run.end - 1) // LEAF_SECTORS + 1)
            }
        )
        for page in sorted(set(self.map_root) | {leaf // LEAVES_PER_PAGE for leaf in changed}):
            first, leaves = page * LEAVES_PER_PAGE, {}
            if page in self.map_root:
                try:
                    data, what = self.volume.item(self.map_root[page], f"map page {page}")
                    leaves = {first + index: item for index, item in objects.parse_map_page(what, data)}
                except Damage as damage:
                    self.lose(damage, Run(first * LEAF_SECTORS, (first + LEAVES_PER_PAGE) * LEAF_SECTORS))
            here = changed[bisect.bisect_left(changed, first) : bisect.bisect_left(changed, first + LEAVES_PER_PAGE)]
            for leaf in sorted(leaves.keys() | set(here)):
                yield leaf, leaves.get(leaf)

    def lose(self, damage: Damage, where: Run) -> None:
        """A part of the tree cannot be read: what did not change since is lost."""
        at, end = where.start, min(where.end, self.size)
        for change in [*self.changes.between(at, end), Run(end, end)]:
            if at < change.start:
                self.volume.lost(damage, Run(at, change.start))
            at = change.end

    def runs(self) -> Iterator[Run]:
        """Everything that is not zeros, in order."""
        for leaf, item in self.leaves():
            start, runs = leaf * LEAF_SECTORS, Runs()
            if item is not None:
                try:
                    data, what = self.volume.item(item, f"leaf {leaf}")
                    extents = objects.parse_leaf(what, data, leaf)
                    runs = Runs([Run(e.start, e.start + e.length, e.seq, e.offset) for e in extents])
                except Damage as damage:
                    self.lose(damage, Run(start, start + LEAF_SECTORS))
            for change in self.changes.between(start, start + LEAF_SECTORS):
                runs.put(change)
            yield from (run for run in runs.runs if run.seq != NOWHERE)

    def image(self) -> Iterator[tuple[int, bytes]]:
        """The contents, in order: bytes at a sector; what is left out is zeros."""
        for run in self.runs():
            if run.end > self.size:
                self.volume.lost(Damage(f"the map of {self.volume.id}", f"goes beyond its end at sector {run.start}"), run)
                run = run.cut(0, self.size)
            while run.start < run.end:
                index, skip = divmod(run.offset, FRAME_SECTORS)
                piece = run.cut(run.start, run.start + FRAME_SECTORS - skip)
                try:
                    last = (run.offset + run.end - run.start - 1) // FRAME_SECTORS
                    frame = self.volume.frame(run.seq, self.epoch_of(run.seq), index, last)
                    data = frame[skip * SECTOR : (skip + piece.end - piece.start) * SECTOR]
                    if len(data) != (piece.end - piece.start) * SECTOR:
                        raise Damage(f"slot {run.seq:x}", "has less than the map says")
                    yield piece.start, data
                except Damage as damage:
                    self.volume.lost(damage, piece)
                run = run.cut(piece.end, run.end)


def strict(damage: Damage, _: Run) -> None:
    """Stops at the first damage."""
    raise damage


class Cache:
    """Verified headers and frames, by the names of their objects: the oldest are forgotten."""

    def __init__(self) -> None:
        self.kept: OrderedDict[object, Any] = OrderedDict()

    def put(self, key: object, value: object) -> None:
        """Keeps something."""
        self.kept[key] = value
        if len(self.kept) > FRAMES_KEPT:
            self.kept.popitem(last=False)

    def get(self, key: object, load: Callable[[], T]) -> T:
        """What is kept, or else is loaded. A key stands for one type."""
        if key not in self.kept:
            self.put(key, load())
        found: T = self.kept[key]
        return found


class Volume:
    """A volume of a pool, by its id. Clones of one another may share a cache."""

    def __init__(self, store: Store, id: str, cache: Optional[Cache] = None) -> None:
        self.store, self.id, self.cache = store, id, cache or Cache()
        # Told of sectors that cannot be had.
        self.lost: Callable[[Damage, Run], None] = strict
        # What went wrong and cost no sector by itself: told to whoever cares.
        self.warnings: list[str] = []
        key = self.key("volume.json")
        self.description = objects.parse_json(key, need(store, key))
        objects.check_features(key, self.description)
        try:
            if self.description["id"] != id:
                raise Damage(key, f"describes volume {self.description['id']}")
            self.size = int(self.description["size"]) // SECTOR
            self.ancestors = [Ancestor(**ancestor) for ancestor in self.description.get("ancestors", [])]
        except (KeyError, TypeError, ValueError) as error:
            raise Damage(key, f"lacks something: {error!r}") from error

    def key(self, *parts: str) -> str:
        """The name of an object of the volume."""
        return "/".join(("volumes", self.id) + parts)

    # Whose object it is (`src/format/lineage.rs`).

    def slot_volume(self, seq: int) -> str:
        """The volume that a slot is of."""
        return next((a.volume for a in self.ancestors if seq < a.next), self.id)

    def map_volume(self, epoch: int) -> str:
        """The volume that map objects of an epoch are of."""
        return next((a.volume for a in self.ancestors if epoch <= a.epoch), self.id)

    def slot_key(self, seq: int, epoch: int) -> str:
        """The name of a slot's object."""
        return f"volumes/{self.slot_volume(seq)}/log/{seq & 0xFF:02x}/{seq:016x}-{epoch:016x}"

    def map_key(self, epoch: int, number: int) -> str:
        """The name of a map object."""
        return f"volumes/{self.map_volume(epoch)}/map/{epoch:016x}-{number:08x}"

    # Verified parts of objects.

    def item(self, item: Item, what: str) -> tuple[bytes, str]:
        """The bytes of a leaf or page, and how to call it."""
        key = self.map_key(item.epoch, item.number)
        what = f"{what} in {key}"
        data = need(self.store, key, item.offset, item.length)
        if len(data) != item.length or crc32c(data) != item.crc:
            raise Damage(what, "its checksum is wrong")
        return data, what

    def slot(self, seq: int, epoch: int) -> Chunk | objects.Fence | None:
        """What a slot holds, if anything."""
        key = self.slot_key(seq, epoch)
        data = self.store.get(key, 0, HEADER_GUESS)
        if data is None:
            return None
        if data.startswith(b"OBJBLKFE"):
            found: Chunk | objects.Fence = objects.parse_fence(key, data)
        else:
            length = objects.chunk_header_len(key, data)
            if length > len(data):
                data = need(self.store, key, 0, length)
            found = objects.parse_chunk(key, data)
        if (found.volume, found.epoch, found.seq) != (self.slot_volume(seq), epoch, seq):
            raise Damage(key, "is another object than its name says")
        return found

    def chunk(self, seq: int, epoch: int) -> Chunk:
        """The chunk in a slot, which has to be there."""
        return self.cache.get(self.slot_key(seq, epoch), lambda: self._chunk(seq, epoch))

    def _chunk(self, seq: int, epoch: int) -> Chunk:
        found = self.slot(seq, epoch)
        if not isinstance(found, Chunk):
            why = "is missing" if found is None else "is a fence, where the map expects data"
            raise Damage(self.slot_key(seq, epoch), why)
        return found

    def frame(self, seq: int, epoch: int, index: int, last: int = 0) -> bytes:
        """The payload of a frame; those up to `last` are going to be wanted too."""
        if last > index and (self.slot_key(seq, epoch), index) not in self.cache.kept:
            self._fetch(seq, epoch, index, min(last + 1, index + FRAMES_AT_ONCE))
        return self.cache.get((self.slot_key(seq, epoch), index), lambda: self._frame(seq, epoch, index))

    def _fetch(self, seq: int, epoch: int, first: int, end: int) -> None:
        """Has frames kept, but those that are not whole."""
        chunk, key = self.chunk(seq, epoch), self.slot_key(seq, epoch)
        frames = chunk.frames[first:end]
        offset = chunk.header_len + sum(frame[0] for frame in chunk.frames[:first])
        data = need(self.store, key, offset, sum(frame[0] for frame in frames))
        at = 0
        for index, frame in enumerate(frames, first):
            stored, at = data[at : at + frame[0]], at + frame[0]
            try:
                self.cache.put((key, index), objects.open_frame(key, stored, frame))
            except Damage:
                pass

    def _frame(self, seq: int, epoch: int, index: int) -> bytes:
        chunk, key = self.chunk(seq, epoch), self.slot_key(seq, epoch)
        if index >= len(chunk.frames):
            raise Damage(key, f"has no frame {index}, which the map expects")
        offset = chunk.header_len + sum(frame[0] for frame in chunk.frames[:index])
        data = need(self.store, key, offset, chunk.frames[index][0])
        return objects.open_frame(f"frame {index} of {key}", data, chunk.frames[index])

    # States.

    def checkpoints(self) -> list[str]:
        """Names of checkpoints, the newest first."""
        return list(self.store.list(self.key("checkpoints") + "/"))

    def checkpoint_key(self, next_seq: int, epoch: int) -> str:
        """The name of the checkpoint at that position."""
        return self.key("checkpoints", f"{(1 << 64) - 1 - next_seq:016x}-{epoch:016x}")

    def checkpoint(self, key: str) -> objects.Checkpoint:
        """The checkpoint of that name."""
        found = objects.parse_checkpoint(key, need(self.store, key))
        if key != self.checkpoint_key(found.next, found.epoch) or found.volume != self.id:
            raise Damage(key, "is another object than its name says")
        return found

    def initial(self) -> objects.Checkpoint:
        """What the volume was when it was made."""
        if not self.ancestors:
            return objects.Checkpoint(self.id, 0, 0, True, self.size, terms=[(0, 0)])
        origin = self.ancestors[-1]
        _, state = read_snapshot(self.store, origin.volume, origin.snapshot)
        if (state.next, state.epoch) != (origin.next, origin.epoch):
            raise Damage(self.key("volume.json"), "names another state of its origin than the snapshot is")
        state.terms = [term for term in state.terms if term[0] < origin.next] + [(origin.next, origin.epoch + 1)]
        state.volume, state.epoch, state.closed = self.id, origin.epoch + 1, True
        return state

    def begin(self, checkpoint: objects.Checkpoint) -> State:
        """A checkpoint as a state, without the log behind it."""
        snapshots = {s.name: s for s in checkpoint.snapshots if not s.deleted}
        end = (checkpoint.next, checkpoint.epoch)
        root, terms = dict(checkpoint.map_root), list(checkpoint.terms)
        return State(self, checkpoint.size, root, terms, checkpoint, Runs(), snapshots, end)

    def newest(self, keep_going: bool = False) -> State:
        """The newest checkpoint as a state; with `keep_going` an older one where it is damaged."""
        for key in self.checkpoints():
            try:
                return self.begin(self.checkpoint(key))
            except Damage as damage:
                if not keep_going:
                    raise
                self.warnings.append(f"{damage}; going on from the checkpoint before it")
        return self.begin(self.initial())

    def now(self, keep_going: bool = False) -> State:
        """The volume as recovery would find it: the newest checkpoint and the log behind it.

        With `keep_going` the log ends where it is damaged, with a warning."""
        state = self.newest(keep_going)
        try:
            replay(state)
            check_end(state)
        except Damage as damage:
            if not keep_going:
                raise
            seq = state.end[0]
            self.warnings.append(f"{damage}; what was written from slot {seq:x} of the log on is left out")
        return state

    def at(self, name: str, keep_going: bool = False) -> State:
        """The snapshot of that name."""
        snapshots = self.now(keep_going).snapshots
        if name not in snapshots:
            raise NotFound(f"volume {self.id} has no snapshot {name}")
        _, checkpoint = read_snapshot(self.store, self.id, snapshots[name].id)
        return self.begin(checkpoint)


class Ancestor(NamedTuple):
    """A volume that a clone comes from, and how far."""

    volume: str
    snapshot: str
    next: int
    epoch: int


def replay(state: State, seen: Callable[[Chunk | objects.Fence], None] = lambda _: None) -> None:
    """Applies the log behind a state, as far as it goes. `seen` is told of every slot."""
    while (found := state.volume.slot(*state.end)) is not None:
        seen(found)
        step(state, found, apply)


def step(state: State, found: Chunk | objects.Fence, change: Callable[[State, int, objects.Record], None]) -> None:
    """Goes on by what the next slot holds: `change` applies one record."""
    seq, epoch = state.end
    if isinstance(found, objects.Fence):
        epoch = found.next_epoch
        state.terms.append((seq + 1, epoch))
    else:
        for record in found.records:
            change(state, seq, record)
    state.end = (seq + 1, epoch)


def apply(state: State, seq: int, record: objects.Record) -> None:
    """Applies one change."""
    volume = state.volume
    end = record.start + record.length
    if record.tag in (objects.DATA, objects.ZERO, objects.TRIM):
        if end > state.size:
            raise Damage(f"slot {seq:x} of volume {volume.id}", "changes sectors beyond the volume's end")
        place = seq if record.tag == objects.DATA else NOWHERE
        state.changes.put(Run(record.start, end, place, record.offset))
    elif record.tag == objects.RESIZE:
        state.changes.put(Run(record.value, state.size))
        state.size = record.value
    elif record.tag == objects.MADE:
        if any(snapshot.id == record.value for snapshot in state.checkpoint.snapshots):
            return
        key = volume.key("snapshots", record.value)
        if volume.store.get(key, 0, 1) is None:
            volume.warnings.append(f"the snapshot {key} is lost")
            return
        entry, _ = read_snapshot(volume.store, volume.id, record.value)
        if entry.next > state.checkpoint.next:
            raise Damage(volume.key("checkpoints"), f"the one that the snapshot {entry.name} was made of is missing")
        state.snapshots[entry.name] = entry
    elif record.tag == objects.DELETED:
        state.snapshots = {n: s for n, s in state.snapshots.items() if s.id != record.value}
    elif record.tag == objects.ROLLED_BACK:
        _, back = read_snapshot(volume.store, volume.id, record.value)
        state.size, state.map_root, state.changes = back.size, dict(back.map_root), Runs()


def check_end(state: State) -> None:
    """Verifies that nothing says that the log went on where it ends."""
    volume, (end, epoch) = state.volume, state.end
    behind = []
    for key in volume.store.list(volume.key("log") + "/"):
        match = re.fullmatch("([0-9a-f]{16})-([0-9a-f]{16})", key.rpartition("/")[2])
        if not match:
            continue
        seq, slot_epoch = int(match[1], 16), int(match[2], 16)
        if seq > end and slot_epoch > epoch:
            why = f"is missing, but epoch {slot_epoch:x} wrote behind it: {key}"
            raise Damage(volume.slot_key(end, epoch), why)
        if seq > end and slot_epoch == epoch:
            behind.append(seq)
    # The last chunk of the term knows most; what is damaged, and fences that were put ahead, know nothing.
    for seq in sorted(behind, reverse=True):
        try:
            found = volume.slot(seq, epoch)
        except Damage:
            continue
        if isinstance(found, Chunk):
            if found.committed > end:
                raise Damage(volume.slot_key(end, epoch), f"is missing, but slot {seq:x} says that it was committed")
            return


def read_snapshot(store: Store, volume: str, id: str) -> tuple[objects.Snapshot, objects.Checkpoint]:
    """The object of a snapshot."""
    key = f"volumes/{volume}/snapshots/{id}"
    entry, state = objects.parse_snapshot(key, need(store, key))
    if (state.volume, entry.id) != (volume, id):
        raise Damage(key, "is another object than its name says")
    return entry, state


def need(store: Store, key: str, offset: int = 0, length: Optional[int] = None) -> bytes:
    """Bytes of an object that has to be there."""
    data = store.get(key, offset, length)
    if data is None:
        raise Damage(key, "is missing")
    return data


def check_pool(store: Store) -> Optional[str]:
    """Verifies the pool's own object. Returns what is wrong where volumes can be read without it."""
    data = store.get("objblk.json")
    if data is None:
        return "there is no objblk.json: this is no pool, or not all of one"
    objects.check_features("objblk.json", objects.parse_json("objblk.json", data))
    return None


def names(store: Store) -> dict[str, str]:
    """The names of volumes, and their ids."""
    found = {}
    for key in store.list("names/"):
        found[key.partition("/")[2]] = resolve(store, key.partition("/")[2])
    return found


def resolve(store: Store, name: str) -> str:
    """The id of a volume, by name or id."""
    key = f"names/{name}"
    data = store.get(key) if name and "/" not in name else None
    try:
        if data is None:
            id = str(uuid.UUID(name))
            if store.get(f"volumes/{id}/volume.json", 0, 1) is None:
                raise ValueError
            return id
    except ValueError:
        raise NotFound(f"the pool has no volume {name}") from None
    try:
        return str(uuid.UUID(objects.parse_json(key, data)["volume"]))
    except (KeyError, ValueError, AttributeError) as error:
        raise Damage(key, "names no volume") from error
