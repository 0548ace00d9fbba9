#!/usr/bin/python3
"""A load whose every durable step is told to the world outside, and the report of what is there.

usage: ledger.py load   NAME DIRECTORY|DEVICE
       ledger.py report NAME DIRECTORY|DEVICE

A key is a thing with a version that only grows: 1, 2, 3, ... `load` goes on with the versions that it
finds, for ever, or until the disk fails. After the call that makes version N of a key durable
(fsync, fdatasync, COMMIT) has returned, and not before, it prints `ack NAME/KEY N`. `report` prints
`found NAME/KEY N` for every key, or `found NAME/KEY damaged WHY`, then `reported NAME`. Who reads
both, on another machine, demands that what is found is never older than what was acknowledged.

  keys        how a version becomes durable
  slot00-15   4 KiB pages of one file, overwritten in place in turns; fdatasync. On a device: four writers
              at once, each to four of the pages; O_DIRECT, fdatasync
  file0-5     a whole file: written under another name, fsync, renamed, fsync of the directory
  log         records of mixed sizes at the end of one file; fdatasync
  wal         SQLite transactions, write-ahead log, synchronous=FULL
  rollback    SQLite transactions, rollback journal, synchronous=EXTRA

Beside them a noise that nobody ever syncs: pages of a big file, and small files that come and go. All
contents follow from key and version, so that a page of another version, place or key shows.

LEDGER_PAUSE=S: seconds between two steps of a writer.
LEDGER_LIES=1: nothing is synced at all, and acknowledged all the same: for proof that the reader sees it.
"""
import errno
import hashlib
import mmap
import os
import random
import sqlite3
import stat
import sys
import threading
import time

PAGE = 4096
SLOTS = 16
# Made at the first acknowledgement.
STARTED = os.environ.get("LEDGER_STARTED")
# Of the volume: part of all contents.
NAME = sys.argv[2] if len(sys.argv) > 2 else ""
# What a disk that has gone makes of a call.
GONE = {errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESHUTDOWN, errno.ENOSPC, errno.EUCLEAN}
PAUSE = float(os.environ.get("LEDGER_PAUSE", "0"))
LIES = os.environ.get("LEDGER_LIES") == "1"


def sync(fd):
    if not LIES:
        os.fsync(fd)


def sync_data(fd):
    if not LIES:
        os.fdatasync(fd)


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def content(key, version, size):
    head = f"{NAME}/{key} {version} {size}\n".encode()
    return head + hashlib.shake_128(head).digest(size - len(head))


def version_of(key, data):
    """The version that `data` is, whole; 0 of nothing or zeros. ValueError: it is none."""
    if not data.strip(b"\0"):
        return 0
    head, _, _ = data[:100].partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != f"{NAME}/{key}" or not words[1].isdigit() or not words[2].isdigit():
        raise ValueError(f"begins with {data[:40]!r}")
    if data != content(key, int(words[1]), int(words[2])):
        raise ValueError(f"version {words[1]} in part")
    return int(words[1])


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(fd)
    finally:
        os.close(fd)


class Slots:
    """Pages of `path`, overwritten in place."""

    def __init__(self, path, direct, numbers=range(SLOTS)):
        self.path, self.direct = path, direct
        self.flags = os.O_RDWR | (os.O_DIRECT if direct else os.O_CREAT)
        # O_DIRECT wants aligned memory: a mapping is.
        self.page = mmap.mmap(-1, PAGE)
        self.keys = {f"slot{i:02}": i * PAGE for i in numbers}

    def found(self):
        fd = os.open(self.path, self.flags, 0o644)
        try:
            for key, at in self.keys.items():
                got = os.preadv(fd, [self.page], at)
                yield key, lambda key=key, got=got: version_of(key, self.page[:got])
        finally:
            os.close(fd)

    def steps(self):
        versions = {key: get() for key, get in self.found()}
        fd = os.open(self.path, self.flags)
        if not self.direct:
            sync_directory(os.path.dirname(self.path))
        while True:
            for key, at in self.keys.items():
                versions[key] += 1
                self.page[:] = content(key, versions[key], PAGE)
                if os.pwritev(fd, [self.page], at) != PAGE:
                    raise OSError(errno.EIO, "short write")
                sync_data(fd)
                yield key, versions[key]


class Files:
    """Whole files, replaced by a rename."""

    def __init__(self, directory):
        self.directory = directory
        self.keys = [f"file{i}" for i in range(6)]

    def found(self):
        for key in self.keys:
            def get(key=key):
                try:
                    with open(f"{self.directory}/{key}", "rb") as file:
                        data = file.read()
                except FileNotFoundError:
                    return 0
                return version_of(key, data) or self.hollow(key, data)
            yield key, get

    @staticmethod
    def hollow(_key, data):
        raise ValueError(f"{len(data)} bytes of zeros")

    def steps(self):
        versions = {key: get() for key, get in self.found()}
        rng = random.Random(sum(versions.values()))
        while True:
            for key in self.keys:
                versions[key] += 1
                path = f"{self.directory}/{key}"
                with open(f"{path}.new", "wb", buffering=0) as file:
                    file.write(content(key, versions[key], rng.choice([200, 5000, 20000, 70000])))
                    sync(file.fileno())
                os.rename(f"{path}.new", path)
                sync_directory(self.directory)
                yield key, versions[key]


class Log:
    """A file that grows."""

    def __init__(self, directory):
        self.path = f"{directory}/log"

    @staticmethod
    def record(version):
        return content("log", version, 60 + version * 37 % 500)

    def scan(self):
        """The newest of the whole records, and their bytes."""
        version, size = 0, 0
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        while data.startswith(self.record(version + 1), size):
            version += 1
            size += len(self.record(version))
        return version, size

    def found(self):
        yield "log", lambda: self.scan()[0]

    def steps(self):
        version, size = self.scan()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(fd, size)
        sync(fd)
        sync_directory(os.path.dirname(self.path))
        while True:
            version += 1
            os.write(fd, self.record(version))
            sync_data(fd)
            yield "log", version


class Database:
    """Rows of an SQLite database, one a transaction, and their count."""

    def __init__(self, directory, key, mode, synchronous):
        self.path, self.key = f"{directory}/{key}.db", key
        # Exclusive: no shared-memory file, whose loss would come as a signal.
        synchronous = "OFF" if LIES else synchronous
        self.pragmas = f"PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous};"

    def open(self):
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        database.executescript(self.pragmas)
        return database

    def text(self, version):
        return content(self.key, version, 100 + version * 61 % 900).hex()

    def version(self):
        if not os.path.exists(self.path):
            return 0
        database = self.open()
        try:
            verdict = database.execute("PRAGMA integrity_check").fetchall()
            if verdict != [("ok",)]:
                raise ValueError(f"integrity_check: {verdict[:3]}")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'total'").fetchone():
                return 0
            rows = database.execute("SELECT n, text FROM row ORDER BY n").fetchall()
            total = database.execute("SELECT rows FROM total").fetchone()[0]
        finally:
            database.close()
        for at, (n, text) in enumerate(rows, 1):
            if n != at or text != self.text(n):
                raise ValueError(f"row {at} is {n}")
        if total != len(rows):
            raise ValueError(f"{len(rows)} rows, {total} counted")
        return total

    def found(self):
        yield self.key, self.version

    def steps(self):
        version = self.version()
        database = self.open()
        database.executescript(
            "BEGIN; CREATE TABLE IF NOT EXISTS row(n INTEGER PRIMARY KEY, text TEXT);"
            "CREATE TABLE IF NOT EXISTS total(rows INTEGER);"
            "INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total); COMMIT;"
        )
        sync_directory(os.path.dirname(self.path))
        while True:
            version += 1
            database.execute("BEGIN")
            database.execute("INSERT INTO row VALUES (?, ?)", (version, self.text(version)))
            database.execute("UPDATE total SET rows = ?", (version,))
            database.execute("COMMIT")
            yield self.key, version


def noise(directory):
    rng = random.Random()
    fd = os.open(f"{directory}/noise", os.O_RDWR | os.O_CREAT, 0o644)
    for n in range(1 << 60):
        os.pwrite(fd, rng.randbytes(16384), rng.randrange(1024) * 16384)
        path = f"{directory}/small{n % 50}"
        if os.path.exists(path):
            os.unlink(path)
        else:
            with open(path, "wb") as file:
                file.write(rng.randbytes(rng.randrange(20000)))
        # Little enough that the syncs of the others, which may have to write it as well, stay many.
        time.sleep(0.1)


def until_gone(what, work):
    """Runs `work` until the disk fails; anything else ends the load with a line that says so."""
    try:
        for key, version in work:
            say("ack", f"{NAME}/{key}", version)
            if STARTED and not os.path.exists(STARTED):
                open(STARTED, "w").close()
            time.sleep(PAUSE)
    except (OSError, sqlite3.Error) as e:
        gone = isinstance(e, sqlite3.Error) or e.errno in GONE
        say("stopped" if gone else "broken", NAME, what, repr(e))
    except ValueError as e:
        say("broken", NAME, what, repr(e))


def load(parts, directory):
    work = [threading.Thread(target=until_gone, args=(type(part).__name__, part.steps())) for part in parts]
    if directory:
        def noisy():
            try:
                noise(directory)
            except OSError as e:
                say("stopped" if e.errno in GONE else "broken", NAME, "noise", repr(e))
        work.append(threading.Thread(target=noisy))
    for thread in work:
        thread.start()
    say("loading", NAME)
    for thread in work:
        thread.join()
    say("ended", NAME)


def report(parts):
    for part in parts:
        for key, version in part.found():
            try:
                say("found", f"{NAME}/{key}", version())
            except (ValueError, sqlite3.Error, OSError) as e:
                say("found", f"{NAME}/{key}", "damaged", repr(e))
    say("reported", NAME)


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("load", "report"):
        sys.exit(__doc__)
    verb, _, place = sys.argv[1:]
    directory = None if stat.S_ISBLK(os.stat(place).st_mode) else place
    if directory:
        parts = [
            Slots(f"{place}/slots", False), Files(place), Log(place),
            Database(place, "wal", "WAL", "FULL"), Database(place, "rollback", "DELETE", "EXTRA"),
        ]
    else:
        parts = [Slots(place, True, range(i, SLOTS, 4)) for i in range(4)]
    if verb == "load":
        load(parts, directory)
    else:
        report(parts)


main()
