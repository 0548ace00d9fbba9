"""Reads volumes of objblk from their objects alone, without objblk. It never writes to the pool.

  list    which volumes and snapshots a pool holds
  read    the contents of a volume or snapshot, as a raw image (sparse) or to standard output;
          NAME@#SLOT is the volume before that slot of its log, as long as its past is kept
  check   verifies every object that a volume needs, and that all accounts add up
  sha256  the checksum of such an image

POOL is a directory (of a directory store, or a copy of a bucket) or s3://BUCKET[/PREFIX], with
credentials in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. NAME is a volume's name
or id. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists already, 6 store, 7 data corrupt.

A volume that is in use changes while it is read: read a snapshot of it, or detach it first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
import time
from typing import Any, BinaryIO, Callable, Iterator

import past
from check import Checker
from objects import SECTOR, Damage, Unknown
from stores import Directory, Store, StoreError, open_pool
from volume import Cache, NotFound, Run, State, Volume, check_pool, names, resolve

ZEROS = bytes(1 << 20)
OK, FAILED, USAGE, NOT_FOUND, EXISTS, STORE, CORRUPT = 0, 1, 2, 3, 4, 6, 7


def say(text: object) -> None:
    """Tells people."""
    print(f"reader: {text}", file=sys.stderr)


class Source:
    """One or more states of a pool, opened by name."""

    def __init__(self, store: Store, keep_going: bool) -> None:
        self.store, self.keep_going = store, keep_going
        # Sectors that were left as zeros.
        self.lost: list[Run] = []
        self.volumes: dict[str, Volume] = {}
        self.cache = Cache()

    def volume(self, name: str) -> Volume:
        """A volume by name or id."""
        id = resolve(self.store, name)
        if id not in self.volumes:
            self.volumes[id] = Volume(self.store, id, self.cache)
            if self.keep_going:
                self.volumes[id].lost = self.on_lost
        return self.volumes[id]

    def state(self, name: str) -> State:
        """`NAME`, `NAME@SNAP`, or `NAME@#SLOT`: before that slot of its log."""
        name, at, snapshot = name.partition("@")
        volume = self.volume(name)
        volume.warnings.clear()
        if snapshot.startswith("#"):
            if not snapshot[1:].isdecimal():
                raise NotFound(f"{snapshot} is no slot of a log")
            state = past.at(volume, int(snapshot[1:]))
        else:
            state = volume.at(snapshot, self.keep_going) if at else volume.now(self.keep_going)
        for warning in volume.warnings:
            say(warning)
        return state

    def on_lost(self, damage: Damage, run: Run) -> None:
        """Sectors that stay zeros."""
        self.lost.append(run)
        say(f"{damage}; sectors {run.start} to {run.end} (not included) are left as zeros")

    def outcome(self) -> int:
        """The exit code, after everything was read."""
        if self.lost:
            say(f"{sum(run.end - run.start for run in self.lost)} sectors could not be read")
        warned = any(volume.warnings for volume in self.volumes.values())
        return CORRUPT if self.lost or (self.keep_going and warned) else OK


def image(state: State) -> Iterator[tuple[int, bytes]]:
    """The image, with how far it got for people who watch."""
    shown = 0.0
    for start, data in state.image():
        if sys.stderr.isatty() and time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"\r{100 * start // state.size:3} % ", end="", file=sys.stderr, flush=True)
        yield start, data
    if shown:
        print("\r      \r", end="", file=sys.stderr, flush=True)


def pieces(state: State) -> Iterator[bytes]:
    """All bytes of the image, in order."""
    at = 0
    for start, data in image(state):
        yield from zeros((start - at) * SECTOR)
        yield data
        at = start + len(data) // SECTOR
    yield from zeros((state.size - at) * SECTOR)


def zeros(length: int) -> Iterator[bytes]:
    """So many zeros."""
    while length > 0:
        yield ZEROS[:length]
        length -= len(ZEROS)


def write_sparse(state: State, file: BinaryIO) -> None:
    """The image into a file that is empty."""
    file.truncate(state.size * SECTOR)
    for start, data in image(state):
        if data.count(0) != len(data):
            file.seek(start * SECTOR)
            file.write(data)


def listed(store: Store) -> list[dict[str, Any]]:
    """What there is, volume by volume; of those that this reader does not know it only says so."""
    found = []
    for name, id in names(store).items():
        try:
            state = Volume(store, id).now()
        except Unknown as why:
            say(f"{name}: {why}")
            continue
        found.append(
            {
                "name": name,
                "id": id,
                "size": state.size * SECTOR,
                "snapshots": [
                    {"name": s.name, "id": s.id, "size": s.size * SECTOR, "made_at_ms": s.made_at_ms}
                    for s in state.snapshots.values()
                ],
            }
        )
    return found


def do_list(store: Store, options: argparse.Namespace) -> int:
    """`list`"""
    found = listed(store)
    if options.json:
        print(json.dumps(found, indent=2))
        return OK
    rows = [("NAME", "SIZE", "ID")]
    for volume in found:
        rows.append((str(volume["name"]), str(volume["size"]), str(volume["id"])))
        for snapshot in volume["snapshots"]:
            rows.append((f"{volume['name']}@{snapshot['name']}", str(snapshot["size"]), snapshot["id"]))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, size, id in rows:
        print(f"{name:{widths[0]}}  {size:>{widths[1]}}  {id}")
    return OK


def do_sha256(store: Store, options: argparse.Namespace) -> int:
    """`sha256`"""
    wanted = list(options.name)
    if options.all:
        for volume in listed(store):
            wanted.append(str(volume["name"]))
            wanted.extend(f"{volume['name']}@{snapshot['name']}" for snapshot in volume["snapshots"])
    if not wanted:
        say("which volume? give names, or --all")
        return USAGE
    source = Source(store, False)
    for name in wanted:
        digest = hashlib.sha256()
        for piece in pieces(source.state(name)):
            digest.update(piece)
        print(f"{digest.hexdigest()}  {name}", flush=True)
    return OK


def do_read(store: Store, options: argparse.Namespace) -> int:
    """`read`"""
    source, out = Source(store, options.keep_going), options.out
    if isinstance(store, Directory) and out != "-":
        if (os.path.realpath(out) + "/").startswith(store.root + "/"):
            say(f"{out} is in the pool: nothing is ever written there")
            return USAGE
    state = source.state(options.name)
    if out == "-":
        for piece in pieces(state):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return source.outcome()
    was_there = os.path.exists(out)
    if was_there and not options.force:
        say(f"{out} is there already: name another file, or overwrite it with --force")
        return EXISTS
    try:
        with open(out, "wb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                write_sparse(state, file)
            else:
                for piece in pieces(state):
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except (Damage, StoreError, OSError):
        # Half an image must not be taken for a whole one.
        if not was_there and os.path.exists(out):
            os.unlink(out)
        raise
    return source.outcome()


def do_check(store: Store, options: argparse.Namespace) -> int:
    """`check`"""
    pool = check_pool(store)
    report: dict[str, Any] = {"pool": [pool] if pool else [], "volumes": []}
    named = {options.name: resolve(store, options.name)} if options.name else names(store)
    cache = Cache()
    for name, id in named.items():
        notes: list[str] = []
        try:
            checker = Checker(Volume(store, id, cache))
            checker.run()
            findings, notes = checker.findings, checker.notes
        except Damage as damage:
            findings = [str(damage)]
        report["volumes"].append({"name": name, "id": id, "findings": findings, "notes": notes})
    damaged = bool(report["pool"]) or any(volume["findings"] for volume in report["volumes"])
    if options.json:
        print(json.dumps(report, indent=2))
        return CORRUPT if damaged else OK
    for finding in report["pool"]:
        print(f"pool: {finding}")
    for volume in report["volumes"]:
        for line in volume["findings"]:
            print(f"{volume['name']}: {line}")
        told = "; ".join([f"{len(volume['findings']) or 'no'} findings"] + volume["notes"])
        print(f"{volume['name']}: {told}")
    return CORRUPT if damaged else OK


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="reader", description=__doc__, formatter_class=form)
    endpoint = os.environ.get("OBJBLK_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("OBJBLK_REGION") or os.environ.get("AWS_REGION")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, does: Callable[[Store, argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name)
        sub.set_defaults(does=does)
        sub.add_argument("pool", metavar="POOL")
        sub.add_argument("--endpoint-url", default=endpoint, help="the S3 server, if it is not Amazon's")
        sub.add_argument("--region", default=region, help="the S3 region")
        return sub

    verb("list", do_list).add_argument("--json", action="store_true", help="one JSON document")
    read = verb("read", do_read)
    read.add_argument("name", metavar="NAME[@SNAP|@#SLOT]")
    read.add_argument("out", metavar="OUT", nargs="?", default="-", help="a file, or - (the default)")
    read.add_argument("--force", action="store_true", help="overwrite OUT")
    read.add_argument("--keep-going", action="store_true", help="leave what is damaged as zeros, and say so")
    check = verb("check", do_check)
    check.add_argument("name", metavar="NAME", nargs="?")
    check.add_argument("--json", action="store_true", help="one JSON document")
    digest = verb("sha256", do_sha256)
    digest.add_argument("name", metavar="NAME[@SNAP]", nargs="*")
    digest.add_argument("--all", action="store_true", help="of every volume and snapshot")
    return parser


def main() -> int:
    """Runs a verb. Returns the exit code."""
    options = arguments().parse_args()
    try:
        store = open_pool(options.pool, options.endpoint_url, options.region)
        if options.verb != "check" and (strange := check_pool(store)):
            say(strange)
        return int(options.does(store, options))
    except Damage as damage:
        say(damage)
        if options.verb == "read" and not options.keep_going:
            say("restore the object from a copy, or have what is whole with --keep-going")
        return CORRUPT
    except NotFound as missing:
        say(missing)
        return NOT_FOUND
    except StoreError as error:
        say(error)
        return STORE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        say(error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
