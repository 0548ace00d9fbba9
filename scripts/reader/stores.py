"""The objects of a pool: files below a directory, or a bucket of an S3-compatible server.

Read only: nothing here can change an object. An object that is not there is `None`; one that the
disk cannot give is damage; a server that refuses or does not answer is `StoreError`.
"""

from __future__ import annotations

import os
from typing import Iterator, Optional, Protocol

from objects import Damage


class StoreError(Exception):
    """The store refuses, or cannot be reached."""


class Store(Protocol):
    """Named immutable objects."""

    def get(self, key: str, offset: int = 0, length: Optional[int] = None) -> Optional[bytes]:
        """Bytes of an object, less than `length` at its end; `None`: there is no such object."""

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, a path that ends with a slash, in byte order."""


class Directory:
    """A pool in a directory, or a bucket that was copied into one."""

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise StoreError(f"{root} is not a directory")
        self.root = os.path.realpath(root)

    def get(self, key: str, offset: int = 0, length: Optional[int] = None) -> Optional[bytes]:
        """See `Store`."""
        try:
            with open(os.path.join(self.root, key), "rb") as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except PermissionError as error:
            raise StoreError(f"{key} cannot be read: {error.strerror}") from error
        except OSError as error:
            raise Damage(key, f"cannot be read: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        top = os.path.join(self.root, prefix)
        found: list[str] = []
        for folder, _, files in os.walk(top, onerror=_refused):
            below = os.path.relpath(folder, self.root)
            found.extend(f"{below}/{name}" for name in files)
        return iter(sorted(found))


def _refused(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}")


def open_pool(address: str, endpoint: Optional[str], region: Optional[str]) -> Store:
    """The pool in the store at an address, with all its other stores."""
    from several import whole

    def opener(url: str, by: Optional[str], where: Optional[str]) -> Store:
        return open_store(url, by or endpoint, where or region)

    return whole(open_store(address, endpoint, region), opener)


def open_store(address: str, endpoint: Optional[str], region: Optional[str]) -> Store:
    """The store at `s3://bucket[/prefix]`, `file:///directory` or a path."""
    if address.startswith("s3://"):
        # Loaded where it is needed: it takes longer than reading a small pool.
        from s3 import Bucket

        return Bucket(address[len("s3://") :], endpoint, region)
    return Directory(address[len("file://") :] if address.startswith("file://") else address)
