"""What was fetched, why, and how often nothing had to be.

Counting takes a lock only when something was fetched; a hit is one addition.
"""

from __future__ import annotations

import heapq
import threading
from dataclasses import dataclass

_MOST_FILES = 1000  # of a report
_KEPT_FILES = 8 * _MOST_FILES
SOURCES = ("demand", "prefetch", "background", "cache")


@dataclass(frozen=True)
class SourceStats:
    """Spans that came from one source, their compressed bytes that were fetched, and their content."""

    spans: int = 0
    fetched: int = 0
    uncompressed: int = 0


@dataclass(frozen=True)
class FileStats:
    """The spans that were fetched because a file was read, and their compressed bytes."""

    layer: str
    file: str
    spans: int
    fetched: int


@dataclass(frozen=True)
class Presence:
    """How much of a layer is here: spans, and uncompressed bytes."""

    spans: int
    spans_here: int
    size: int
    size_here: int


@dataclass(frozen=True)
class Report:
    """All that was counted since the process began to read.

    Each span counts where it came from: fetched on `demand` (with what was fetched ahead of a reader), as
    `prefetch` or in the `background`, or found in the `cache` on the disk when it was used first. `hits`
    are uses of spans that were here, `misses` those that waited, `errors` spans that could not be had;
    `files` are those with the most bytes, at most 1,000.
    """

    demand: SourceStats
    prefetch: SourceStats
    background: SourceStats
    cache: SourceStats
    hits: int
    misses: int
    hit_rate: float
    errors: int
    files: tuple[FileStats, ...]


class Stats:
    """Counts for all layers that are read in one process. Several threads may use it."""

    def __init__(self) -> None:
        self.hits = 0  # added to without a lock: one may be lost now and then
        self.misses = 0
        self._errors = 0
        self._sources = dict.fromkeys(SOURCES, SourceStats())
        self._files: dict[tuple[str, bytes], tuple[int, int]] = {}  # bytes, spans
        self._mutex = threading.Lock()

    def count_span(self, source: str, fetched: int, uncompressed: int) -> None:
        """One more span from a source."""
        with self._mutex:
            old = self._sources[source]
            self._sources[source] = SourceStats(
                old.spans + 1, old.fetched + fetched, old.uncompressed + uncompressed
            )

    def charge(self, layer: str, file: bytes, fetched: int) -> None:
        """A span was fetched because of a file."""
        with self._mutex:
            size, spans = self._files.get((layer, file), (0, 0))
            self._files[layer, file] = size + fetched, spans + 1
            if len(self._files) > _KEPT_FILES:
                self._files = dict(self._most(_KEPT_FILES // 2))

    def count_error(self) -> None:
        """A span could not be had."""
        with self._mutex:
            self._errors += 1

    def report(self) -> Report:
        """What was counted so far."""
        with self._mutex:
            sources, errors, most = dict(self._sources), self._errors, self._most(_MOST_FILES)
        hits, misses = self.hits, self.misses
        files = tuple(
            FileStats(layer, file.decode("utf-8", "backslashreplace"), spans, size)
            for (layer, file), (size, spans) in most
        )
        rate = hits / (hits + misses) if hits or misses else 0.0
        return Report(
            **sources, hits=hits, misses=misses, hit_rate=rate, errors=errors, files=files
        )

    def _most(self, count: int) -> list[tuple[tuple[str, bytes], tuple[int, int]]]:
        """The files with the most bytes, these first."""
        return heapq.nlargest(count, self._files.items(), key=lambda item: item[1])
