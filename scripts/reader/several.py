"""A pool of several stores: slots of logs lie in all of them, everything else in the home store.

`stores/<n>` has the stores and their weights at every version. A slot is at one of its stays: below
`at/<generation>/` of a store, in generation 0 without that. A stay of a higher generation counts before a lower one.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Iterator, Optional

from objects import Damage, parse_json
from stores import Store, StoreError

# Opens a store at an address, by an endpoint and in a region, if they are not those of the home store.
Opener = Callable[[str, Optional[str], Optional[str]], Store]


class Several:
    """All stores of a pool as one."""

    def __init__(self, home: Store, version: dict[str, Any], opener: Opener) -> None:
        self.home = home
        opened = [self.member(store, version, opener) for store in version["stores"]]
        rows = [row + [0] * (len(opened) - len(row)) for row in version["weights"]]
        # The stores of each generation that may have slots, the newest first.
        self.stays: list[tuple[str, Store]] = []
        for generation in range(len(rows)):
            row, before = rows[generation], rows[generation - 1] if generation else [0] * len(opened)
            for index, store in enumerate(opened):
                others = any(row[i] < before[i] for i in range(len(row)) if i != index)
                gains = row[index] > before[index] or (generation and others)
                if store is not None and row[index] and gains:
                    below = f"at/{generation:04x}/" if generation else ""
                    self.stays.insert(0, (below, store))

    def member(self, store: dict[str, Any], version: dict[str, Any], opener: Opener) -> Optional[Store]:
        """A store of the pool, once it has shown that it is that; `None`: it was removed."""
        if store["removed"]:
            return None
        if store["id"] == "home":
            return self.home
        endpoints = [text.partition(",")[0] for text in store["endpoints"]]
        opened = opener(store["url"], endpoints[0] if endpoints else None, store.get("region"))
        data = opened.get("objblk-store.json")
        own = parse_json("objblk-store.json", data) if data is not None else {}
        if (own.get("pool"), own.get("id")) != (version["pool"], store["id"]):
            raise StoreError(f"{store['url']} is not store {store['id']} of this pool")
        return opened

    def get(self, key: str, offset: int = 0, length: Optional[int] = None) -> Optional[bytes]:
        """See `Store`."""
        if not re.match("volumes/[^/]*/log/", key):
            return self.home.get(key, offset, length)
        for below, store in self.stays:
            data = store.get(below + key, offset, length)
            if data is not None:
                return data
        return None

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        if not re.match("volumes/[^/]*/", prefix):
            return self.home.list(prefix)
        found = set(self.home.list(prefix))
        for below, store in self.stays:
            found.update(key[len(below) :] for key in store.list(below + prefix))
        return iter(sorted(found))


def whole(home: Store, opener: Opener) -> Store:
    """The pool in a store, with all its other stores."""
    versions = sorted(home.list("stores/"))
    if not versions:
        return home
    data = home.get(versions[-1])
    if data is None:
        raise Damage(versions[-1], "vanishes")
    return Several(home, parse_json(versions[-1], data), opener)
