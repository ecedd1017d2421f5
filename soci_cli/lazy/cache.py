"""The cache of what was fetched and inflated: on disk for all processes and images, and in memory.

An entry is a file of its own. It is written aside, under a lock, and then renamed, so nothing unfinished
ever has a final name; its header gives length and CRC-32, so that what a crash of the machine left of it
is taken as absent (nothing is synced: a cache may lose entries). Files that are open stay readable when
they are evicted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from zlib_ng import zlib_ng

from soci_cli.closing import Closing
from soci_cli.errors import ConfigError
from soci_cli.oci import encoded_of

DEFAULT_LIMIT = 10 << 30
"""Bytes on disk, where a tenth of the disk is not less."""
DEFAULT_MEMORY = 64 << 20
"""Bytes in memory."""

_HEADER = struct.Struct("<8sQI")  # magic, length, CRC-32 of the data
_MAGIC = b"soci-1\0\0"
_PART = ".part"
_USAGE = "usage"
_LEFTOVER_AGE = 24 * 60 * 60
_ATTEMPTS = 10
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def cache_root(environ: Mapping[str, str]) -> Path:
    """`$SOCI_CACHE`, else `$XDG_CACHE_HOME/soci`, else `~/.cache/soci`. ConfigError without any."""
    if environ.get("SOCI_CACHE"):
        return Path(environ["SOCI_CACHE"])
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "soci"
    if environ.get("HOME"):
        return Path(environ["HOME"]) / ".cache" / "soci"
    raise ConfigError("no place for the cache: set SOCI_CACHE, or HOME")


def default_limit(root: Path) -> int:
    """10 GiB, or a tenth of the disk that `root` is on, whichever is less."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    try:
        return min(DEFAULT_LIMIT, shutil.disk_usage(there).total // 10)
    except OSError:
        return DEFAULT_LIMIT


def span_key(layer: str, ztoc: str, span: int) -> str:
    """The key of a span's uncompressed bytes: another zTOC of the same layer has other spans."""
    return f"spans/{encoded_of(layer)}/{encoded_of(ztoc)}/{span}"


def blob_key(digest: str) -> str:
    """The key of a small blob, such as a zTOC."""
    return f"blobs/{encoded_of(digest)}"


def archive_key(layer: str) -> str:
    """The key of a layer's whole uncompressed archive."""
    return f"archives/{encoded_of(layer)}"


class Claim(Closing):
    """The right to write an entry, which nobody else has until `commit` or `close`.

    Without a file, because the cache cannot be written, everything that is put is forgotten.
    """

    def __init__(self, cache: Cache, path: Path, fd: int) -> None:
        self._cache = cache
        self._path = path
        self._fd = fd
        self._size = 0

    @property
    def is_real(self) -> bool:
        """Whether what is written will be kept."""
        return self._fd >= 0

    def put(self, data: bytes) -> None:
        """Write a whole entry and show it. What the disk refuses is not kept, and that is no error."""
        with suppress(OSError):
            self.write(_HEADER.pack(_MAGIC, len(data), zlib_ng.crc32(data)))
            self.write(data)
            self.commit()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes of an entry without a header. Raises OSError."""
        if self._fd < 0:
            return
        view = memoryview(data)
        self._size += view.nbytes
        while view.nbytes:
            view = view[os.write(self._fd, view) :]

    def restart(self) -> None:
        """Forget what was written so far. Raises OSError."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._size = 0

    def commit(self) -> None:
        """Show what was written. Raises OSError."""
        if self._fd < 0:
            return
        # The lock is on the file, which its final name does not end.
        _part_of(self._path).replace(self._path)
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._cache.grew(self._size)

    def close(self) -> None:
        """Drop what was not committed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                _part_of(self._path).unlink()
            os.close(fd)


class Cache:
    """Entries below `root`, by key. Any number of threads and processes may use it at once.

    When all entries together have more than `limit` bytes, those that were not read for the longest time
    are removed.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.limit = default_limit(root) if limit is None else limit
        self._mutex = threading.Lock()
        self._unreported = 0

    def has(self, key: str) -> bool:
        """Whether there is an entry, good or not."""
        return (self.root / key).exists()

    def load(self, key: str) -> bytes | None:
        """The bytes of an entry; None when it is absent or damaged."""
        fd = self.open(key)
        if fd is None:
            return None
        try:
            head = os.read(fd, _HEADER.size)
            size = os.fstat(fd).st_size - _HEADER.size
            if len(head) == _HEADER.size:
                magic, length, checksum = _HEADER.unpack(head)
                if magic == _MAGIC and length == size:
                    data = _read_all(fd, length)
                    if len(data) == length and zlib_ng.crc32(data) == checksum:
                        return data
        except OSError:
            return None
        finally:
            os.close(fd)
        self.drop(key)
        return None

    def open(self, key: str) -> int | None:
        """A file descriptor of an entry, which counts as read now; None when it is absent."""
        try:
            fd = os.open(self.root / key, _READ)
        except OSError:
            return None
        with suppress(OSError):
            os.utime(fd)
        return fd

    def drop(self, key: str) -> None:
        """Remove an entry, because it is damaged."""
        with suppress(OSError):
            (self.root / key).unlink()

    def claim(self, key: str) -> Claim | None:
        """The right to write an entry; None when somebody else is writing it now.

        Look again whether it is there: somebody may have written it just before.
        """
        path = self.root / key
        part = _part_of(path)
        for _ in range(_ATTEMPTS):
            try:
                fd = os.open(part, _NEW_FILE, 0o600)
            except FileNotFoundError:
                try:
                    self._make_folders(path.parent)
                except OSError:
                    break
                continue
            except OSError:
                break
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had the lock before has renamed or removed the file since.
                if _is_same(fd, part):
                    os.ftruncate(fd, 0)
                    return Claim(self, path, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError:
                os.close(fd)
                break
            os.close(fd)
        # A cache that cannot be written costs speed, not content.
        return Claim(self, path, -1)

    def put(self, key: str, data: bytes) -> None:
        """Write an entry, unless somebody else is doing so."""
        claim = self.claim(key)
        if claim is not None:
            with claim:
                claim.put(data)

    def grew(self, size: int) -> None:
        """Count what was written; removes entries when there is too much."""
        with self._mutex:
            self._unreported += size
        with suppress(OSError):
            self._count()

    def _make_folders(self, folder: Path) -> None:
        # What is in private images is nobody else's business.
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _count(self) -> None:
        """Keeps the sum of all sizes in a file: scanning the folder for each entry would take too long.

        It is a little wrong after a crash, and right again after the next eviction.
        """
        fd = os.open(self.root / _USAGE, _NEW_FILE, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # told next time
            with self._mutex:
                grown, self._unreported = self._unreported, 0
            known = os.pread(fd, 8, 0)
            total = int.from_bytes(known, "little") + grown if len(known) == 8 else -1
            if not 0 <= total <= self.limit:
                total = self._evict()
            os.pwrite(fd, total.to_bytes(8, "little"), 0)
        finally:
            os.close(fd)

    def _evict(self) -> int:
        """Removes what was read longest ago, when there is too much; the bytes that are left."""
        entries = []
        total = 0
        for path, status in self._files():
            if path.name.endswith(_PART):
                if time.time() - status.st_mtime > _LEFTOVER_AGE:
                    _remove_leftover(path)
                continue
            total += status.st_size
            entries.append((status.st_mtime_ns, status.st_size, path))
        if total <= self.limit:
            return total
        entries.sort(key=lambda entry: entry[:2])
        for _, size, path in entries:
            if total <= self.limit - self.limit // 10:
                break
            with suppress(OSError):
                path.unlink()
                total -= size
            with suppress(OSError):
                path.parent.rmdir()  # only when it is empty
        return total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    if name != _USAGE:
                        yield path, path.lstat()


class MemoryCache:
    """The entries that were used last, `limit` bytes of them. Several threads may use it."""

    def __init__(self, limit: int = DEFAULT_MEMORY) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """An entry, which counts as used now."""
        with self._mutex:
            data = self._entries.get(key)
            if data is not None:
                self._entries.move_to_end(key)
            return data

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry, unless it alone is too large."""
        if len(data) > self._limit:
            return
        with self._mutex:
            self._size += len(data) - len(self._entries.pop(key, b""))
            self._entries[key] = data
            while self._size > self._limit:
                _, old = self._entries.popitem(last=False)
                self._size -= len(old)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PART}")


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _read_all(fd: int, length: int) -> bytes:
    data = os.read(fd, length)
    while len(data) < length and (more := os.read(fd, length - len(data))):
        data += more
    return data


def _remove_leftover(path: Path) -> None:
    """Removes what a killed process was writing; not what a living one still writes."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(fd, path):
                path.unlink()
        finally:
            os.close(fd)
