"""How much the cache holds, and what goes when that is too much."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.lazy.cache_directory import PART, CacheDirectory
from soci_cli.oci import encoded_of, parse_digest

ZTOC_SUFFIX = ".ztoc"
"""What the key of a whole layer's zTOC has after that of the layer."""

_USAGE = "usage"
_DEVICES = "devices/"
_LEFTOVER_AGE = 24 * 60 * 60
_ATTEMPTS = 10
_PAUSE = 0.01
_LENGTHS = {"spans": 4, "devices": 3, "blobs": 2, "metadata": 2}  # parts of a key
_ALGORITHMS = {64: "sha256", 128: "sha512"}  # by hex digits


@dataclass(frozen=True)
class LayerEntries:
    """What the cache has of one layer or blob: `kind` is "spans", "devices", "blobs" or "metadata".

    `last_used` are seconds since 1970, `entries` the number of files.
    """

    kind: str
    digest: str
    entries: int
    size: int
    last_used: float


class Eviction:
    """Keeps the files of a cache below `limit` bytes: those that were not read for longest go first.

    A device that something has open, such as the kernel for a mount, whoever made that, stays.
    Several threads and processes may use it at once. The sum of all sizes is kept in a file: looking at
    all of them for each that is written would take too long. It is a little wrong after a crash, and right
    again after the next eviction.
    """

    def __init__(self, directory: CacheDirectory, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._mutex = threading.Lock()
        self._unreported = 0

    def account(self, size: int) -> None:
        """So many bytes were written; removes files when there is too much."""
        with self._mutex:
            self._unreported += size
        with suppress(OSError):
            fd = self._directory.create(_USAGE)
            try:
                if self._lock(fd):  # else they are counted next time
                    self._add(fd)
            finally:
                os.close(fd)

    def entries(self) -> list[LayerEntries]:
        """What there is, by layer and blob, the last used first."""
        found: dict[tuple[str, str], tuple[int, int, float]] = {}
        for key, status in self._directory.files():
            about = _about(key.split("/"))
            if about is not None:
                count, size, used = found.get(about, (0, 0, 0.0))
                latest = max(used, _used_ns(key, status) / 1e9)
                found[about] = count + 1, size + status.st_size, latest
        listed = [
            LayerEntries(kind, digest, count, size, used)
            for (kind, digest), (count, size, used) in found.items()
        ]
        return sorted(listed, key=lambda one: (-one.last_used, one.kind, one.digest))

    def prune(self, limit: int, older_than: float | None, spared: Collection[str]) -> int:
        """See `Cache.prune`."""
        if self._directory.fd < 0:
            return 0
        newest = None if older_than is None else time.time() - older_than
        with self._locked_usage() as fd:
            before, after = self._remove(limit, limit, newest, 0.0, spared)
            os.pwrite(fd, after.to_bytes(8, "little"), 0)
        return before - after

    def occupied(self, layer: str) -> tuple[int, int]:
        """See `Cache.occupied`."""
        found: list[int] = []
        for kind in ("spans", "devices"):
            with suppress(FileNotFoundError):
                files = self._directory.files(f"{kind}/{encoded_of(layer)}")
                found += [status.st_size for _, status in files]
        return sum(found), len(found)

    def forget(self, digests: Collection[str]) -> int:
        """See `Cache.forget`."""
        if self._directory.fd < 0:
            return 0
        names, freed = {encoded_of(digest) for digest in digests}, 0
        with self._locked_usage() as fd:
            for key, status in list(self._directory.files()):
                if names.isdisjoint(part.removesuffix(ZTOC_SUFFIX) for part in key.split("/")[1:2]):
                    continue
                if key.endswith(PART):
                    self._remove_leftover(key)
                    continue
                with suppress(OSError):
                    self._directory.remove(key)
                    freed += status.st_size
            known = os.pread(fd, 8, 0)
            if len(known) == 8:
                total = max(0, int.from_bytes(known, "little") - freed)
                os.pwrite(fd, total.to_bytes(8, "little"), 0)
        return freed

    @contextmanager
    def _locked_usage(self) -> Iterator[int]:
        """The file with the sum of all sizes, locked. An OSError of the block is a StorageError."""
        try:
            fd = self._directory.create(_USAGE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(
                f"the cache {self._directory.root}: {error.strerror or error}"
            ) from error

    def _lock(self, fd: int) -> bool:
        """Waits a moment for the process that evicts now, where much was written since."""
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._unreported < self._limit // 20:
                    return False
                time.sleep(_PAUSE)
        return False

    def _add(self, fd: int) -> None:
        with self._mutex:
            grown, self._unreported = self._unreported, 0
        known = os.pread(fd, 8, 0)
        total = int.from_bytes(known, "little") + grown if len(known) == 8 else -1
        if not 0 <= total <= self._limit:
            goal = self._limit - self._limit // 10
            _, total = self._remove(self._limit, goal, None, _LEFTOVER_AGE)
        os.pwrite(fd, total.to_bytes(8, "little"), 0)

    def _remove(
        self,
        limit: int,
        goal: int,
        newest: float | None,
        leftover_age: float,
        spared: Collection[str] = (),
    ) -> tuple[int, int]:
        """Removes files down to `goal` bytes where there are more than `limit`; the bytes before and after.

        Only what was used last before `newest` goes, and leftovers of at least `leftover_age` seconds. What
        is of the digests `spared` stays.
        """
        units: dict[str, _Unit] = {}
        for key, status in self._directory.files():
            if key.endswith(PART):
                if time.time() - status.st_mtime >= leftover_age:
                    self._remove_leftover(key)
            elif key != _USAGE:
                name = key.removesuffix(ZTOC_SUFFIX)
                unit = units.get(name)
                if unit is None:
                    unit = units[name] = _Unit()
                unit.add(key, status)
        before = total = sum(unit.size for unit in units.values())
        if total <= limit:
            return before, total
        kept = {digest.partition(":")[2] for digest in spared}
        removable = [unit for name, unit in units.items() if kept.isdisjoint(name.split("/")[1:2])]
        for unit in sorted(removable, key=lambda unit: (unit.used_ns, unit.size)):
            if total <= goal or (newest is not None and unit.used_ns >= newest * 1e9):
                break
            for key, size in sorted(unit.files):  # the layer goes before its zTOC
                with suppress(OSError):
                    if key.startswith(_DEVICES) and not key.endswith(ZTOC_SUFFIX):
                        if not self._directory.remove_unused(key):
                            break
                    else:
                        self._directory.remove(key)
                    total -= size
        return before, total

    def _remove_leftover(self, key: str) -> None:
        """Removes what a killed process was writing; not what a living one still writes."""
        with suppress(OSError):
            fd = self._directory.open(key, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._directory.is_same(fd, key):
                    self._directory.remove(key)
            finally:
                os.close(fd)


class _Unit:
    """What is of use only together: a file, and the zTOC beside it. `files` are keys and sizes."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int]] = []
        self.size = 0
        self.used_ns = 0

    def add(self, key: str, status: os.stat_result) -> None:
        """One more file."""
        self.files.append((key, status.st_size))
        self.size += status.st_size
        self.used_ns = max(self.used_ns, _used_ns(key, status))


def _used_ns(key: str, status: os.stat_result) -> int:
    """When a file was used last. The time of change of devices is their seal."""
    return status.st_atime_ns if key.startswith(_DEVICES) else status.st_mtime_ns


def _about(parts: Sequence[str]) -> tuple[str, str] | None:
    """Kind and digest of the layer or blob that an entry belongs to; None for what is no entry."""
    if _LENGTHS.get(parts[0]) != len(parts) or parts[-1].endswith(PART):
        return None
    encoded = parts[1].removesuffix(ZTOC_SUFFIX)
    digest = f"{_ALGORITHMS.get(len(encoded))}:{encoded}"
    try:
        return parts[0], parse_digest(digest)
    except InvalidDataError:
        return None
