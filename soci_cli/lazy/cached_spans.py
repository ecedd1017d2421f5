"""The spans of one layer that are here: in the cache, open, or in memory where the disk takes none."""

from __future__ import annotations

from soci_cli.lazy.cache import Claim, span_key
from soci_cli.lazy.entries import AnyEntry
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.span_table import SpanTable

_HERE = 1  # believed to be in the cache
_COUNTED = 2  # by `Stats`
_CHECKED = 4  # its file was right when this process first opened or wrote it


class CachedSpans:
    """Several threads may use it. Only `find` and `claim` wait for the disk."""

    def __init__(self, fetching: Fetching, table: SpanTable, keys: tuple[str, str]) -> None:
        """`keys` are the digests of the layer and of its zTOC."""
        self._cache = fetching.cache
        self._open = fetching.fetcher.open
        self._stats = fetching.stats
        self._table = table
        self._prefix = span_key(*keys, 0).removesuffix("0")
        self._open_prefix = f"{fetching.cache.root}/{self._prefix}"
        self._state = bytearray(len(table))
        for number in self._present():
            self._state[number] = _HERE

    def _present(self) -> set[int]:
        count = len(self._table)
        names = self._cache.names(self._prefix)
        return {int(name) for name in names if name.isdecimal() and int(name) < count}

    def missing(self) -> list[int]:
        """The spans that are not in the cache, in order, as the disk says."""
        present = self._present()
        return [number for number in range(len(self._table)) if number not in present]

    def opened(self, number: int) -> AnyEntry | None:
        """A span that is open, or in memory."""
        return self._open.get(f"{self._open_prefix}{number}")

    def is_here(self, number: int) -> bool:
        """Whether a span is open, in memory, or believed to be in the cache."""
        return bool(self._state[number] & _HERE) or self.opened(number) is not None

    def is_closed(self, number: int) -> bool:
        """Whether a span is believed to be in the cache and is not open."""
        return bool(self._state[number] & _HERE) and self.opened(number) is None

    def find(self, number: int) -> AnyEntry | None:
        """A span that is here, opened now if need be. What another process may have fetched counts."""
        found = self.opened(number)
        if found is not None:
            return found
        # A file can only be damaged before this process began: by a crash of the machine.
        key = f"{self._prefix}{number}"
        is_checked = self._state[number] & _CHECKED
        cache = self._cache
        entry = cache.find_unchecked(key) if is_checked else cache.find(key)
        start, end = self._table.range(number)
        if entry is None or entry.size != end - start:
            self._state[number] &= ~_HERE
            return None
        self._state[number] |= _HERE | _CHECKED
        self._open.put(f"{self._open_prefix}{number}", entry)
        self.count(number, "cache", 0)
        return entry

    def has(self, number: int) -> bool:
        """Whether the cache has a span, good or not."""
        return self._cache.has(f"{self._prefix}{number}")

    def claim(self, number: int) -> Claim | None:
        """See `Cache.claim`."""
        return self._cache.claim(f"{self._prefix}{number}")

    def claim_beside(self, number: int) -> Claim | None:
        """See `Cache.claim_beside`."""
        return self._cache.claim_beside(f"{self._prefix}{number}")

    def keep(self, number: int, entry: AnyEntry) -> None:
        """A span was fetched."""
        if entry.is_kept:
            self._state[number] |= _HERE | _CHECKED
        self._open.put(f"{self._open_prefix}{number}", entry)

    def drop(self, number: int) -> None:
        """A span turned out to be damaged."""
        self._state[number] &= ~(_HERE | _CHECKED)
        self._open.drop(f"{self._open_prefix}{number}")
        self._cache.remove(f"{self._prefix}{number}")

    def count(self, number: int, source: str, fetched: int) -> None:
        """Counts a span that was fetched, or is used for the first time."""
        if fetched or not self._state[number] & _COUNTED:
            self._state[number] |= _COUNTED
            start, end = self._table.range(number)
            self._stats.count_span(source, fetched, end - start)
