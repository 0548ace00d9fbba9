"""Verifies a volume: every object that is needed, and that all accounts add up."""

from __future__ import annotations

from collections import Counter
from typing import Optional

import objects
import past
from objects import SLOTS_PER_PAGE, Chunk, Damage
from volume import Run, State, Volume, check_end, read_snapshot, replay


class Checker:
    """What was found wrong with one volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.findings: list[str] = []
        self.notes: list[str] = []
        # Objects that something needs, and of those what was verified.
        self.needed: set[str] = set()
        self.verified: set[str] = set()
        self.lost = 0
        volume.lost = self.on_lost

    def on_lost(self, damage: Damage, run: Run) -> None:
        """Sectors that cannot be had."""
        self.lost += run.end - run.start
        self.wrong(f"{damage}: sectors {run.start} to {run.end} are lost")

    def wrong(self, what: object) -> None:
        """Notes a finding, once."""
        if str(what) not in self.findings:
            self.findings.append(str(what))

    def run(self) -> None:
        """Verifies the volume and its snapshots."""
        volume = self.volume
        try:
            state = volume.newest()
        except Damage as damage:
            return self.wrong(damage)
        self.needed.update(volume.checkpoints()[:1])
        checkpoint = state.checkpoint
        self.check_state(volume.begin(checkpoint), "the newest checkpoint")
        for entry in checkpoint.snapshots:
            self.check_snapshot(entry.id, entry)
        known = {entry.id for entry in checkpoint.snapshots}
        try:
            replay(state, self.check_slot)
            check_end(state)
        except Damage as damage:
            self.wrong(damage)
        for entry in state.snapshots.values():
            if entry.id not in known:
                self.check_snapshot(entry.id, entry)
        # What the log changed, and where it went back to.
        self.check_runs(state)
        self.check_garbage(checkpoint)
        try:
            self.check_past(checkpoint)
        except Damage as damage:
            self.wrong(damage)
        self.check_fences(state)
        for warning in volume.warnings:
            self.wrong(warning)
        stored = set(volume.store.list(volume.key() + "/")) - {volume.key("volume.json"), volume.key("profile")}
        parts = ("log", "map", "checkpoints", "snapshots")
        objects_of = [k for k in stored if k.split("/")[2] in parts]
        unneeded = [key for key in objects_of if key not in self.needed]
        self.notes.append(f"{len(objects_of)} objects, of which {len(unneeded)} are not needed any more")
        return None

    def check_slot(self, found: Chunk | objects.Fence) -> None:
        """A slot of the log behind the checkpoint: all of it is needed."""
        key = self.volume.slot_key(found.seq, found.epoch)
        self.needed.add(key)
        claim = found.next_epoch if isinstance(found, objects.Fence) else found.epoch
        if self.volume.store.get(self.volume.key("epochs", f"{claim:016x}"), 0, 1) is None and claim != self.first_epoch():
            self.wrong(f"{key}: nobody claimed epoch {claim:x}")
        if isinstance(found, Chunk):
            self.check_frames(found.seq, found.epoch)

    def first_epoch(self) -> int:
        """The epoch that the volume begins in, which nobody claims."""
        return self.volume.ancestors[-1].epoch + 1 if self.volume.ancestors else 0

    def check_frames(self, seq: int, epoch: int) -> Optional[Chunk]:
        """Every frame of a chunk, whether anything in it is live or not."""
        key = self.volume.slot_key(seq, epoch)
        self.needed.add(key)
        try:
            chunk = self.volume.chunk(seq, epoch)
            if key not in self.verified:
                self.verified.add(key)
                for index in range(len(chunk.frames)):
                    self.volume.frame(seq, epoch, index, len(chunk.frames) - 1)
            return chunk
        except Damage as damage:
            self.wrong(damage)
            return None

    def check_runs(self, state: State) -> Counter[int]:
        """All that the map names. Returns the live sectors of each slot."""
        live: Counter[int] = Counter()
        for run in state.runs():
            live[run.seq] += run.end - run.start
            chunk = self.check_frames(run.seq, state.epoch_of(run.seq))
            if chunk and run.offset + run.end - run.start > chunk.payload:
                self.wrong(f"slot {run.seq:x} has less than the map says")
            if run.end > state.size:
                self.wrong(f"the map goes beyond the end of the volume at sector {run.start}")
        return live

    def check_state(self, state: State, what: str) -> None:
        """A state that a checkpoint names, and its accounts."""
        checkpoint = state.checkpoint
        lost_before = self.lost
        live = self.check_runs(state)
        used = self.check_items(state, what)
        if self.lost > lost_before:
            return
        total = sum(live.values())
        if total != checkpoint.live:
            self.wrong(f"{what} counts {checkpoint.live} live sectors, there are {total}")
        if max(live, default=-1) >= checkpoint.next:
            self.wrong(f"{what} names slot {max(live):x}, which is behind it")
        counts = self.chunk_counts(state, what)
        if counts is not None and counts != live:
            slots = sorted(s for s in counts.keys() | live.keys() if counts[s] != live[s])
            self.wrong(f"{what} has wrong counts of live sectors of slots {[f'{s:x}' for s in slots[:5]]}")
        stated = {key: size for key, (_, size) in checkpoint.map_objects.items()}
        if used != stated:
            self.wrong(f"{what} has wrong accounts of its map objects")

    def check_items(self, state: State, what: str) -> dict[tuple[int, int], int]:
        """Every map object that is named. Returns the bytes of items in use by object."""
        used: Counter[tuple[int, int]] = Counter()
        checkpoint, volume = state.checkpoint, self.volume
        items = list(checkpoint.map_root.values()) + list(checkpoint.chunk_root.values())
        items += [item for _, item in state.leaves() if item is not None]
        for item in items:
            used[item.epoch, item.number] += item.length
        for (epoch, number), (total, _) in checkpoint.map_objects.items():
            key = volume.map_key(epoch, number)
            self.needed.add(key)
            if key in self.verified:
                continue
            self.verified.add(key)
            try:
                data = volume.store.get(key)
                if data is None:
                    raise Damage(key, "is missing")
                if objects.parse_directory(key, data, (volume.map_volume(epoch), epoch, number)) != total:
                    self.wrong(f"{key} has not the {total} bytes of items that {what} says")
            except Damage as damage:
                self.wrong(damage)
        return dict(used)

    def chunk_counts(self, state: State, what: str) -> Optional[Counter[int]]:
        """Live sectors by slot, as the chunk pages have them."""
        counts: Counter[int] = Counter()
        for page, item in state.checkpoint.chunk_root.items():
            try:
                data, name = self.volume.item(item, f"chunk page {page}")
                entries = objects.parse_chunk_page(name, data)
            except Damage as damage:
                self.wrong(damage)
                return None
            for index, live, payload in entries:
                seq = page * SLOTS_PER_PAGE + index
                counts[seq] += live
                chunk = self.check_frames(seq, state.epoch_of(seq))
                if chunk and payload not in (0, chunk.payload):
                    self.wrong(f"{what} says that slot {seq:x} has {payload} sectors, it has {chunk.payload}")
        return counts

    def check_snapshot(self, id: str, entry: objects.Snapshot) -> None:
        """The object of a snapshot, and all that it needs."""
        volume, what = self.volume, f"snapshot {entry.name}"
        self.needed.add(volume.key("snapshots", id))
        try:
            own, checkpoint = read_snapshot(volume.store, volume.id, id)
        except Damage as damage:
            return self.wrong(damage)
        if (own.name, own.next, own.size, own.live) != (entry.name, entry.next, entry.size, entry.live):
            self.wrong(f"{what} is another one than the table of snapshots says")
        # Of a deleted one only some of what it names is kept.
        if not entry.deleted:
            self.check_state(volume.begin(checkpoint), what)
        return None

    def check_past(self, newest: objects.Checkpoint) -> None:
        """Points, and the log from the oldest of them to the newest checkpoint."""
        volume = self.volume
        there = past.points(volume, newest)
        # What one of them has lost since the one before, nothing later needs.
        for point in there:
            self.check_garbage(point)
        for point in there:
            self.needed.add(volume.checkpoint_key(point.next, point.epoch))
            self.check_state(volume.begin(point), f"the state at slot {point.next:x}")
        if there:
            state = volume.begin(there[0])
            past.forward(state, newest.next, self.check_slot)
            if past.joined(state) != past.joined(volume.begin(newest)):
                self.wrong(f"the log from slot {there[0].next:x} on does not lead to the newest checkpoint")

    def check_garbage(self, checkpoint: objects.Checkpoint) -> None:
        """Nothing that is needed may be named as garbage: it would be deleted."""
        volume, state = self.volume, self.volume.begin(checkpoint)
        for kind, first, second in checkpoint.garbage:
            if kind == 1:
                keys = [volume.slot_key(seq, state.epoch_of(seq)) for seq in range(first, first + second)]
            elif kind == 2:
                keys = [volume.map_key(first, second)]
            else:
                continue
            for key in self.needed.intersection(keys):
                self.wrong(f"{key} is needed, and named as garbage")

    def check_fences(self, state: State) -> None:
        """Each of the volume's own terms but the last is ended by a fence that leads to the next one.

        A clone's log begins behind its origin's without one, and outlives the origin's fences."""
        volume = self.volume
        for (_, epoch), (first, following) in zip(state.terms, state.terms[1:]):
            if volume.slot_volume(first - 1) != volume.id:
                continue
            try:
                found = volume.slot(first - 1, epoch)
            except Damage as damage:
                self.wrong(damage)
                continue
            key = volume.slot_key(first - 1, epoch)
            self.needed.add(key)
            if not isinstance(found, objects.Fence) or found.next_epoch != following:
                self.wrong(f"{key} is no fence that leads from epoch {epoch:x} to {following:x}")
