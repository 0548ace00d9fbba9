"""What is kept of a volume's past: points, and the log from the oldest of them on.

A state between two points is the first of them and the log behind it, up to a slot. The owner deletes the
oldest point first, so one that is missing behind one that is there is lost."""

from __future__ import annotations

from typing import Callable

import objects
from objects import Chunk, Damage
from volume import NotFound, Runs, State, Volume, apply, read_snapshot, step


def points(volume: Volume, newest: objects.Checkpoint) -> list[objects.Checkpoint]:
    """The points that are there, the oldest first; without a retention time those left go any moment."""
    found: list[objects.Checkpoint] = []
    if newest.retention_ms == 0:
        return found
    for next_seq, epoch in newest.points:
        key = volume.checkpoint_key(next_seq, epoch)
        if volume.store.get(key, 0, 1) is not None:
            found.append(volume.checkpoint(key))
        elif found:
            raise Damage(key, f"is missing, and the point at slot {found[-1].next:x} before it is there")
    return found


def forward(state: State, slot: int, seen: Callable[[Chunk | objects.Fence], None] = lambda _: None) -> None:
    """Goes on with the log as far as that slot, which is not in it. `seen` is told of every slot."""
    while state.end[0] < slot:
        found = state.volume.slot(*state.end)
        if found is None:
            raise Damage(state.volume.slot_key(*state.end), "is missing, and what is kept of the past needs it")
        seen(found)
        step(state, found, redo)


def redo(state: State, seq: int, record: objects.Record) -> None:
    """Applies one change, but for which snapshots there are: that is not asked of the past."""
    if record.tag == objects.ROLLED_BACK:
        _, back = read_snapshot(state.volume.store, state.volume.id, record.value)
        state.size, state.map_root, state.changes = back.size, dict(back.map_root), Runs()
    elif record.tag not in (objects.MADE, objects.DELETED):
        apply(state, seq, record)


def at(volume: Volume, slot: int) -> State:
    """The volume before that slot of its log."""
    newest = volume.newest().checkpoint
    before = [point for point in points(volume, newest) + [newest] if point.next <= slot]
    if not before:
        raise NotFound(f"slot {slot} of volume {volume.id} is not kept")
    state = volume.begin(before[-1])
    forward(state, slot)
    return state


def joined(state: State) -> list[tuple[int, int, int, int]]:
    """What the state has where: runs that go on in each other are one."""
    found: list[tuple[int, int, int, int]] = []
    for run in state.runs():
        start, end, seq, offset = found[-1] if found else (0, 0, -1, 0)
        if found and (end, seq, offset + end - start) == (run.start, run.seq, run.offset):
            found[-1] = (start, run.end, seq, offset)
        else:
            found.append((run.start, run.end, run.seq, run.offset))
    return found
